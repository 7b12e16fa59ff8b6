//! Which kernel is asked for, and which of those offered that is. Pure.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// The oldest kernel that a supported Debian release has and on which everything works.
pub const DEFAULT: &str = "6.1";

/// What `--kernel` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Debian's of this version, or the newest that begins with it.
    Version(String),
    /// An image to boot.
    Image(PathBuf),
    /// A Debian package with one.
    Package(PathBuf),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_version = text.split('.').count() >= 2
            && text.starts_with(|first: char| first.is_ascii_digit())
            && !text.contains('/');
        if text.ends_with(".deb") {
            Ok(Self::Package(text.into()))
        } else if is_version {
            Ok(Self::Version(text.to_owned()))
        } else if text.contains('/') {
            Ok(Self::Image(text.into()))
        } else {
            Err(format!(
                "`{text}` is neither a version, such as {DEFAULT}, nor a path, such as ./vmlinuz"
            ))
        }
    }
}

/// A kernel that can be started.
#[derive(Debug)]
pub struct Kernel {
    /// What is booted.
    pub image: PathBuf,
    /// What `uname -r` will say.
    pub release: String,
    /// The folder of its modules' folder, to be mounted at `/lib/modules`; none where everything is built in.
    pub modules: Option<PathBuf>,
}

/// Debian releases, with the series of their kernels.
const RELEASES: [(&str, &str); 3] = [
    ("5.10", "bullseye"),
    ("6.1", "bookworm"),
    ("6.12", "trixie"),
];
/// Where all other kernels are looked for.
const NEWEST: &str = "sid";

/// The Debian release that has the kernels of `version`.
pub fn suite(version: &str) -> &'static str {
    RELEASES
        .iter()
        .find(|(series, _)| belongs(version, series))
        .map_or(NEWEST, |(_, suite)| suite)
}

/// apt's sources of a release.
pub fn sources(suite: &str) -> String {
    const KEYS: &str = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    let mut lines = format!("deb {KEYS} http://deb.debian.org/debian {suite} main\n");
    if suite != NEWEST {
        lines +=
            &format!("deb {KEYS} http://deb.debian.org/debian-security {suite}-security main\n");
    }
    lines
}

/// Of apt's package names, the newest kernel of `version`: its release. Not those for clouds, which lack the
/// file system that the guest starts from, nor those for real time.
pub fn newest<'a>(names: &'a str, version: &str) -> Option<&'a str> {
    let releases = names
        .lines()
        .filter_map(|name| name.trim().strip_prefix(PACKAGE));
    releases
        .filter(|release| {
            release.strip_suffix("-amd64").is_some_and(|number| {
                belongs(number, version) && !number.ends_with("-cloud") && !number.ends_with("-rt")
            })
        })
        .max_by_key(|release| numbers(release))
}

/// What the names of packages with kernels begin with.
pub const PACKAGE: &str = "linux-image-";

/// Whether `number` is `version`, or one of its series.
fn belongs(number: &str, version: &str) -> bool {
    number
        .strip_prefix(version)
        .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
}

/// The numbers in a release, by which releases are ordered.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// The release of an image, by its header (`kernel_version`,
/// <https://www.kernel.org/doc/html/v6.1/x86/boot.html>).
///
/// # Errors
/// It is no such image.
pub fn release_of(image: &[u8]) -> Result<String> {
    const SIGNATURE: (usize, &[u8]) = (0x202, b"HdrS");
    const VERSION: usize = 0x20e;
    /// What the pointer there leaves out.
    const BOOT_SECTOR: usize = 0x200;
    let (at, signature) = SIGNATURE;
    if image.get(at..at + signature.len()) != Some(signature) {
        bail!("it is no bootable image of an x86 kernel (a bzImage, such as /boot/vmlinuz-…)");
    }
    let pointer = image
        .get(VERSION..VERSION + 2)
        .context("its header is cut")?;
    let start = BOOT_SECTOR + usize::from(u16::from_le_bytes([pointer[0], pointer[1]]));
    let text = image
        .get(start..)
        .context("its version is beyond its end")?;
    let word = text.split(|&byte| byte == b' ' || byte == 0).next();
    let word = word.and_then(|word| std::str::from_utf8(word).ok());
    match word {
        Some(word) if !word.is_empty() => Ok(word.to_owned()),
        _ => bail!("its header names no version"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &str = "linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-50-amd64\nlinux-image-6.1.0-51-cloud-amd64\n\
                         linux-image-6.1.0-52-rt-amd64\nlinux-image-6.1.0-53-amd64-unsigned\n\
                         linux-image-6.12.101+deb12-amd64\nlinux-image-6.12.99+deb12-amd64\nlinux-image-amd64\n";

    #[test]
    fn versions_paths_and_packages_are_told_apart() {
        assert_eq!("6.1".parse(), Ok(Wanted::Version("6.1".into())));
        assert_eq!("6.1.0-50".parse(), Ok(Wanted::Version("6.1.0-50".into())));
        assert_eq!(
            "/boot/vmlinuz-6.1".parse(),
            Ok(Wanted::Image("/boot/vmlinuz-6.1".into()))
        );
        assert_eq!(
            "linux-image-6.1.deb".parse(),
            Ok(Wanted::Package("linux-image-6.1.deb".into()))
        );
        for neither in ["bookworm", "6", ""] {
            let error = neither.parse::<Wanted>().unwrap_err();
            assert!(error.contains(&format!("`{neither}`")), "{error}");
        }
    }

    #[test]
    fn a_version_is_looked_for_in_the_release_that_has_it() {
        assert_eq!(suite("6.1"), "bookworm");
        assert_eq!(suite("6.1.0-50"), "bookworm");
        assert_eq!(suite("6.12"), "trixie");
        assert_eq!(suite("5.10"), "bullseye");
        assert_eq!(suite("6.18"), "sid");
    }

    #[test]
    fn releases_have_security_updates_and_sid_has_none() {
        assert!(sources("bookworm").contains(" bookworm-security main\n"));
        assert_eq!(sources("sid").lines().count(), 1);
    }

    #[test]
    fn the_newest_of_a_series_is_chosen_by_number_and_neither_clouds_nor_real_time() {
        assert_eq!(newest(NAMES, "6.1"), Some("6.1.0-50-amd64"));
        assert_eq!(newest(NAMES, "6.12"), Some("6.12.101+deb12-amd64"));
        assert_eq!(newest(NAMES, "6.1.0-9"), Some("6.1.0-9-amd64"));
        assert_eq!(newest(NAMES, "6.1.0-5"), None);
        assert_eq!(newest(NAMES, "6.9"), None);
    }

    #[test]
    fn an_images_header_tells_its_release() {
        let mut image = vec![0; 0x300];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x80u16.to_le_bytes());
        image[0x280..0x290].copy_from_slice(b"6.1.0-50-amd64 (");
        assert_eq!(release_of(&image).unwrap(), "6.1.0-50-amd64");
    }

    #[test]
    fn what_is_no_image_is_refused_with_what_would_be() {
        for bytes in [&b"\x7fELF"[..], &[0; 0x300]] {
            let error = release_of(bytes).unwrap_err().to_string();
            assert!(error.contains("bzImage"), "{error}");
        }
    }
}
