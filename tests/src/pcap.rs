//! Capture files (the format of libpcap 2.4, draft-ietf-opsawg-pcap), as this machine writes them. Pure.

use anyhow::Result;

/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;
/// The magic number, of times in microseconds.
const MAGIC: u32 = 0xa1b2_c3d4;
const VERSION: [u16; 2] = [2, 4];
/// Everything of a frame is there.
const SNAPSHOT: u32 = 1 << 18;
/// Bytes in front of all frames, and of each.
const FILE_HEADER: usize = 24;
const FRAME_HEADER: usize = 16;

/// Frames as a file.
pub fn written(frames: &[Vec<u8>]) -> Vec<u8> {
    let words = |bytes: &mut Vec<u8>, words: &[u32]| {
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    };
    let mut bytes = MAGIC.to_ne_bytes().to_vec();
    bytes.extend(VERSION.into_iter().flat_map(u16::to_ne_bytes));
    words(&mut bytes, &[0, 0, SNAPSHOT, ETHERNET]);
    for frame in frames {
        let length = frame.len() as u32;
        words(&mut bytes, &[0, 0, length, length]);
        bytes.extend(frame);
    }
    bytes
}

/// The frames of a file that somebody may still be writing: those that are there whole.
///
/// # Errors
/// Never, for bytes.
pub fn read(bytes: &[u8]) -> Result<Vec<&[u8]>> {
    let mut rest = bytes.get(FILE_HEADER..).unwrap_or_default();
    let mut frames = Vec::new();
    while let Some((header, behind)) = rest.split_at_checked(FRAME_HEADER) {
        let length = header[8..12].try_into().map(u32::from_ne_bytes)?;
        let Some((frame, behind)) = behind.split_at_checked(length as usize) else {
            break;
        };
        frames.push(frame);
        rest = behind;
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_frame_that_is_not_whole_is_not() {
        let frames = [vec![1; 60], vec![2; 1_500], Vec::new()];
        let bytes = written(&frames);
        assert_eq!(read(&bytes).unwrap(), frames);
        let begun = [&bytes[..], &[0; 20]].concat();
        assert_eq!(
            read(&begun[..bytes.len() - FRAME_HEADER - 1]).unwrap(),
            frames[..1]
        );
        assert!(read(&[]).unwrap().is_empty());
    }
}
