//! What comes in by a link with its VLAN tags, which a packet socket tells apart from the frame: by tcpdump, which puts them back.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use tempfile::NamedTempFile;

use crate::{netns::Namespace, pcap, process::Process, wait::wait_until};

const SOON: Duration = Duration::from_secs(20);

/// A running tcpdump.
#[derive(Debug)]
pub struct Dump {
    _process: Process,
    file: NamedTempFile,
}

impl Dump {
    /// Begins to write down what comes in by `interface` of `namespace`.
    ///
    /// # Errors
    /// tcpdump does not start.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        let file = NamedTempFile::new().context("a file for frames")?;
        let mut command = namespace.command("tcpdump");
        command.args(["-i", interface, "-Q", "in", "-U", "--immediate-mode"]);
        // As long as frames are. The buffer has a place for each of that length, and 2 MiB of the longest that there could be are 8.
        command.args(["-s", "10000", "-B", "8192"]);
        command.args(["-Z", "root", "-w"]).arg(file.path());
        let process = Process::spawn("tcpdump", command)?;
        wait_until("tcpdump listens", SOON, || {
            process.log().contains("listening on")
        })
        .with_context(|| process.log())?;
        Ok(Self {
            _process: process,
            file,
        })
    }

    /// All frames so far.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn all(&self) -> Result<Vec<Vec<u8>>> {
        let bytes = fs::read(self.file.path())?;
        let frames = pcap::read(&bytes)?;
        Ok(frames.into_iter().map(<[u8]>::to_vec).collect())
    }

    /// Those of them that have these bytes somewhere.
    ///
    /// # Errors
    /// As [`Self::all`].
    pub fn with(&self, mark: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut frames = self.all()?;
        frames.retain(|frame| frame.windows(mark.len()).any(|at| at == mark));
        Ok(frames)
    }
}
