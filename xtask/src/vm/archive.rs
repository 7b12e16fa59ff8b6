//! The archive that a kernel starts from: cpio in the form `newc`
//! (<https://www.kernel.org/doc/html/v6.1/driver-api/early-userspace/buffer-format.html>). Pure.

/// Of a folder, and of a file that may be run.
const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
/// What every name and every file is filled up to.
const ALIGNMENT: usize = 4;
const END: &str = "TRAILER!!!";

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a folder; those above come first.
    pub fn folder(&mut self, name: &str) {
        self.entry(name, FOLDER, &[]);
    }

    /// Adds a file that may be run.
    pub fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, FILE, content);
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(END, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (owner, time, device, check) = (0, 0, 0, 0);
        let links = 1;
        let fields = [
            self.entries,
            mode,
            owner,
            owner,
            links,
            time,
            content.len() as u32,
            device,
            device,
            device,
            device,
            name.len() as u32 + 1,
            check,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.fill();
        self.bytes.extend(content);
        self.fill();
    }

    fn fill(&mut self) {
        let whole = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(whole, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_begins_at_a_multiple_of_four() {
        let mut archive = Archive::default();
        archive.file("init", b"12345");
        let bytes = archive.finish();
        // Header, name and its end: 110 + 5, filled up to 116; content, filled up to 8.
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..121], b"12345");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        assert_eq!(&bytes[54..62], b"00000005");
    }
}
