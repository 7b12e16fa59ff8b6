//! What Wireshark's dissectors have against frames: a second reader beside [`crate::dissect`], whose authors know nothing of
//! either.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::pcap;

/// Checksums that a capture on a host would have wrong are right here: no interface fills them in later. That tunnels have
/// none over IPv6 is as RFC 6935 has it; whether others do is [`crate::dissect`]'s to say.
const OPTIONS: [&str; 4] = [
    "ip.check_checksum:TRUE",
    "tcp.check_checksum:TRUE",
    "udp.check_checksum:TRUE",
    "udp.ignore_ipv6_zero_checksum:TRUE",
];
/// What is no opinion about a connection: a wrong checksum, a length that does not fit, a header cut short.
const WRONG: &str = "_ws.malformed || _ws.expert.severity >= 8388608";

/// Whether `tshark` is installed.
pub fn is_here() -> bool {
    let asked = Command::new("tshark")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

/// What is wrong with Ethernet frames: a line for each that something is, with its number from 1 on.
///
/// # Errors
/// `tshark` cannot be run, or does not read all of them.
pub fn faults(frames: &[Vec<u8>]) -> Result<Vec<String>> {
    let mut file = tempfile::NamedTempFile::new().context("a file for frames")?;
    file.write_all(&pcap::written(frames))
        .context("writing the frames")?;
    let read = |more: &[&str]| -> Result<Vec<String>> {
        let mut tshark = Command::new("tshark");
        tshark
            .arg("-r")
            .arg(file.path())
            .args(["-n", "-T", "fields"]);
        for option in OPTIONS {
            tshark.args(["-o", option]);
        }
        let said = tshark.args(more).output().context("running tshark")?;
        let told = String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.success(), "tshark: {told}");
        let lines = String::from_utf8(said.stdout).context("what tshark says")?;
        Ok(lines.lines().map(str::to_owned).collect())
    };
    let all = read(&["-e", "frame.number"])?.len();
    ensure!(all == frames.len(), "{all} of {} frames", frames.len());
    let fields = ["frame.number", "frame.protocols", "_ws.expert.message"];
    let fields = fields.map(|field| ["-e", field]).concat();
    read(&[&["-Y", WRONG], &fields[..]].concat())
}
