//! What the running kernel lacks, in words for people. Asks the kernel; never decides what is done about it.

use std::fs;

use aya::{
    programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions},
    sys::SyscallError,
};

use super::{Program, early::HELD};

/// The oldest kernel that the programs are tested on (`cargo xtask vm`).
const OLDEST: (u32, u32) = (6, 1);
/// More frames at once than any kernel takes (`TEST_XDP_MAX_BATCH`,
/// <https://github.com/torvalds/linux/blob/v6.1/net/bpf/test_run.c>).
const TOO_MANY: u32 = 257;
/// As long as the kernel asks of a frame at least (`ETH_HLEN`).
const SHORTEST: [u8; 14] = [0; 14];

impl Program {
    /// Whether the kernel takes back fragments that were held (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18). Asks for more
    /// than is allowed: a kernel that knows of it says that it is too much, any other that it is nonsense, and
    /// nothing is run.
    pub fn takes_fragments_back(&mut self) -> bool {
        let options = TestRunOptions {
            data_in: Some(&SHORTEST),
            repeat: 1,
            attrs: TestRunAttrs::new().xdp_live_frames(TOO_MANY),
            ..TestRunOptions::default()
        };
        let run = self.named(HELD).map(|held| held.test_run(options));
        matches!(
            run,
            Ok(Err(ProgramError::SyscallError(SyscallError { io_error, .. })))
                if io_error.raw_os_error() == Some(libc::E2BIG)
        )
    }
}

/// To go on with after what was refused: that the kernel is older than any that the programs are tested on. Empty
/// where it is not.
pub(super) fn remark() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    remark_on(release.trim())
}

fn remark_on(release: &str) -> String {
    match version(release) {
        Some(version) if version < OLDEST => {
            let (major, minor) = OLDEST;
            format!(" on Linux {release}, where {major}.{minor} or newer is needed")
        }
        _ => String::new(),
    }
}

/// Major and minor version.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_by_an_older_kernel_names_it_and_what_is_needed() {
        let remark = remark_on("5.10.0-36-amd64");
        assert!(
            remark.contains("5.10.0-36-amd64") && remark.contains("6.1 or newer is needed"),
            "{remark}"
        );
        assert!(!remark_on("6.0.12").is_empty());
    }

    #[test]
    fn nothing_is_said_of_a_kernel_that_is_new_enough_or_not_known() {
        for release in ["6.1.0-50-amd64", "6.12.1", "7.0", "", "unknown"] {
            assert_eq!(remark_on(release), "");
        }
    }
}
