//! What Wireshark's dissectors have against frames: a second reader beside [`crate::dissect`], whose authors know nothing of
//! either.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use tempfile::NamedTempFile;

use crate::pcap;

/// Checksums that a capture on a host would have wrong are right here: no interface fills them in later. That tunnels have
/// none over IPv6 is as RFC 6935 has it; whether others do is [`crate::dissect`]'s to say.
const OPTIONS: [&str; 5] = [
    "ip.check_checksum:TRUE",
    "tcp.check_checksum:TRUE",
    "udp.check_checksum:TRUE",
    "sctp.checksum:CRC-32C",
    "udp.ignore_ipv6_zero_checksum:TRUE",
];
/// What is no opinion about a connection: a wrong checksum, a length that does not fit, a header cut short.
/// Of ICMP, a wrong checksum is no more than a warning to it.
const WRONG: &str = "_ws.malformed || _ws.expert.severity >= 8388608 \
                     || icmp.checksum.status == 0 || icmpv6.checksum.status == 0";

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
    let file = written(frames)?;
    let all = read(file.path(), &["-e", "frame.number"])?.len();
    ensure!(all == frames.len(), "{all} of {} frames", frames.len());
    let fields = ["frame.number", "frame.protocols", "_ws.expert.message"];
    let fields = fields.map(|field| ["-e", field]).concat();
    read(file.path(), &[&["-Y", WRONG], &fields[..]].concat())
}

/// Which of the frames a display filter of Wireshark's finds, by their places.
///
/// # Errors
/// `tshark` cannot be run, or knows no such filter.
pub fn found(frames: &[Vec<u8>], filter: &str) -> Result<Vec<usize>> {
    let file = written(frames)?;
    let numbers = read(file.path(), &["-Y", filter, "-e", "frame.number"])?;
    let place = |number: String| Ok(number.parse::<usize>()? - 1);
    numbers.into_iter().map(place).collect()
}

fn written(frames: &[Vec<u8>]) -> Result<NamedTempFile> {
    let mut file = NamedTempFile::new().context("a file for frames")?;
    file.write_all(&pcap::written(frames))
        .context("writing the frames")?;
    Ok(file)
}

/// The lines that `tshark` writes of a file, of the fields and by the filter that `more` says.
fn read(file: &Path, more: &[&str]) -> Result<Vec<String>> {
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(file).args(["-n", "-T", "fields"]);
    for option in OPTIONS {
        tshark.args(["-o", option]);
    }
    let said = tshark.args(more).output().context("running tshark")?;
    let told = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "tshark: {told}");
    let lines = String::from_utf8(said.stdout).context("what tshark says")?;
    Ok(lines.lines().map(str::to_owned).collect())
}
