//! That the running kernel is too old, in words for people. Never decides what is done about it.

use std::fs;

/// The oldest kernel that the programs are tested on (`cargo xtask vm`).
const OLDEST: (u32, u32) = (6, 1);

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
