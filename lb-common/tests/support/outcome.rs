//! What becomes of a frame, as tests expect it. Knows nothing of the maps.

use std::{collections::BTreeMap, fmt};

use lb_common::verdict::{Answer, DropReason, Verdict};

/// A frame's bytes; shown in hexadecimal.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Packets, bytes, new flows.
pub type Count = (u64, u64, u64);

/// Lookups, flows recorded, flows that could not be.
pub type Flows = (u64, u64, u64);

/// What was counted, by position of the service or server on the stage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counted {
    pub services: BTreeMap<u32, Count>,
    pub servers: BTreeMap<u32, Count>,
    /// Of flow tables, by position of the service.
    pub flows: BTreeMap<u32, Flows>,
    /// Packets that a connection id led, by position of the service.
    pub named: BTreeMap<u32, u64>,
    /// Packets that an access list, a source's limit or the service's has refused, by position of the service.
    pub refused: BTreeMap<u32, Flows>,
    /// Flows that found no port.
    pub exhausted: u64,
    /// Packets that could not tell their client's address.
    pub untold: u64,
    /// SYN cookies sent, those that came back valid, and those that did not.
    pub cookies: Flows,
    /// Clients that could not be remembered.
    pub clients: u64,
    pub drops: BTreeMap<u32, u64>,
    /// Answers in a VIP's name, and why there were none.
    pub answers: BTreeMap<u32, u64>,
    /// Fragments by what they came to.
    pub pieces: BTreeMap<u32, u64>,
}

/// What became of a frame; the bytes of a dropped one are nobody's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub frame: Frame,
    pub counted: Counted,
}

impl Outcome {
    /// Dropped, and counted as that.
    pub fn dropped(reason: DropReason) -> Self {
        let counted = Counted {
            drops: BTreeMap::from([(reason as u32, 1)]),
            ..Counted::default()
        };
        Self {
            verdict: Verdict::Drop(reason),
            frame: Frame(Vec::new()),
            counted,
        }
    }

    /// Answered in its VIP's name by `frame`, and counted as that.
    pub fn answered(answer: Answer, frame: Vec<u8>) -> Self {
        let mut outcome = Self::uncounted(Verdict::Transmit, frame);
        outcome.counted.answers.insert(answer as u32, 1);
        outcome
    }

    /// The same, of a packet that is not forwarded for a reason.
    pub fn refused(reason: DropReason, answer: Answer, frame: Vec<u8>) -> Self {
        let mut outcome = Self::answered(answer, frame);
        outcome.counted.drops.insert(reason as u32, 1);
        outcome
    }

    /// Dropped, and no answer given.
    pub fn unanswered(reason: DropReason, why: Answer) -> Self {
        let mut outcome = Self::dropped(reason);
        outcome.counted.answers.insert(why as u32, 1);
        outcome
    }

    /// Handed to the kernel as `frame`, uncounted.
    pub fn passed(frame: Vec<u8>) -> Self {
        Self::uncounted(Verdict::Pass, frame)
    }

    /// Left as `frame`, uncounted.
    pub fn uncounted(verdict: Verdict, frame: Vec<u8>) -> Self {
        Self {
            verdict,
            frame: Frame(frame),
            counted: Counted::default(),
        }
    }

    /// Forwarded to a server of the first service as `frame`, and counted for both.
    pub fn forwarded(verdict: Verdict, frame: Vec<u8>, server: u32, count: Count) -> Self {
        let counted = Counted {
            services: BTreeMap::from([(0, count)]),
            servers: BTreeMap::from([(server, count)]),
            ..Counted::default()
        };
        Self {
            verdict,
            frame: Frame(frame),
            counted,
        }
    }
}
