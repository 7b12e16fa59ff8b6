//! Fuzzing of the packet path: sequences of frames, found by what they reach on the [host](host::Host), and
//! then made more of in the kernel ([`crate::differential`]).
//!
//! `cargo xtask fuzz` runs both; the programs are `fuzz-host` (coverage-guided) and `fuzz-kernel`. What the
//! first has found is kept in `tests/corpus/frames.hex`, an input a line.

pub mod corpus;
pub mod host;
mod repair;

use crate::differential::frames::{Generator, Random};

/// Frames of an input at most: a handshake, a datagram in fragments, and answers to both.
const MOST_FRAMES: usize = 12;
/// Bytes of a frame: what the kernel takes in a test run, to a little more than ways are wide.
const SIZES: std::ops::RangeInclusive<usize> = 14..=2_048;

/// What is fuzzed with: frames that come one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Input {
    /// In which of the host's [worlds](host::Host): the lowest two bits; and how much time passes from frame to frame there,
    /// by the next three.
    pub world: u8,
    /// The frames, of 14 bytes or more.
    pub frames: Vec<Vec<u8>>,
}

impl Input {
    /// Reads what [`Self::encode`] has written; of any other bytes, whatever can be made of them.
    pub fn decode(bytes: &[u8]) -> Self {
        let (&world, mut rest) = bytes.split_first().unwrap_or((&0, &[]));
        let mut frames = Vec::new();
        while let Some((length, more)) = rest.split_first_chunk() {
            let length = usize::from(u16::from_le_bytes(*length)).min(more.len());
            let (frame, after) = more.split_at(length);
            rest = after;
            if frames.len() < MOST_FRAMES {
                let mut frame = frame.to_vec();
                fit(&mut frame);
                frames.push(frame);
            }
        }
        Self { world, frames }
    }

    /// The world, then each frame after its length in two bytes, the lower first.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.world];
        for frame in &self.frames {
            bytes.extend((frame.len() as u16).to_le_bytes());
            bytes.extend(frame);
        }
        bytes
    }

    /// Changes it in one way; `mangle` changes bytes anyhow.
    pub fn mutate(&mut self, generator: &mut Generator, mut mangle: impl FnMut(&mut Vec<u8>)) {
        let count = self.frames.len() as u64;
        if count == 0 || (generator.random.once_in(4) && self.frames.len() < MOST_FRAMES) {
            let at = generator.random.below(count + 1);
            self.frames.insert(at, generator.frame());
            return;
        }
        let random = &mut generator.random;
        let at = random.below(count);
        match random.below(8) {
            0 => drop(self.frames.remove(at)),
            1 if self.frames.len() < MOST_FRAMES => {
                let again = self.frames[at].clone();
                self.frames.push(again);
            }
            2 => self.frames.swap(at, random.below(count)),
            3 => self.world = random.word() as u8,
            4 => repair::checksums(&mut self.frames[at]),
            _ => {
                mangle(&mut self.frames[at]);
                fit(&mut self.frames[at]);
                if random.once_in(2) {
                    repair::checksums(&mut self.frames[at]);
                }
            }
        }
    }
}

fn fit(frame: &mut Vec<u8>) {
    frame.resize(frame.len().clamp(*SIZES.start(), *SIZES.end()), 0);
}

/// Changes some bytes without any guidance.
pub fn mangle(frame: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(frame.len().max(1) as u64);
    let interesting = [0, 1, 5, 6, 8, 17, 44, 58, 60, 0x45, 0x60, 0x7f, 0x80, 0xff];
    match (random.below(6), frame.get_mut(at)) {
        (0, _) => frame.truncate(at),
        (1, _) => frame.extend((0..random.below(64)).map(|n| n as u8)),
        (2, Some(byte)) => *byte ^= 1 << random.below(8),
        (3, Some(byte)) => *byte = random.pick(&interesting),
        (4, Some(byte)) => *byte = byte.wrapping_add(1),
        (_, Some(byte)) => *byte = random.word() as u8,
        (_, None) => frame.push(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_read_as_it_was_written() {
        let frames = vec![vec![1; 14], vec![2; 60], vec![3; 1_514]];
        let input = Input { world: 2, frames };
        assert_eq!(Input::decode(&input.encode()), input);
    }

    #[test]
    fn any_bytes_are_an_input_whose_frames_the_kernel_takes() {
        let mut random = Random(1);
        for length in 0..3_000 {
            let bytes: Vec<u8> = (0..length).map(|_| random.word() as u8).collect();
            let input = Input::decode(&bytes);
            assert!(input.frames.len() <= MOST_FRAMES);
            assert!(
                input
                    .frames
                    .iter()
                    .all(|frame| SIZES.contains(&frame.len()))
            );
        }
    }
}
