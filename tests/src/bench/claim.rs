//! What is claimed of costs, checked against what was measured: times are compared with each other only, never
//! with a limit of their own.

use std::fmt;

use super::measure::{Measured, Spread};

/// How far apart the no-op's own rounds may be, relative to the shortest: beyond, the machine is too
/// busy with other things to judge by.
const NOISE: f64 = 0.5;

/// That something costs at most so many times what something else does.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// The one, costs so many times, the other.
    words: (&'static str, &'static str),
    /// How many times as much it may cost.
    limit: f64,
    /// The round of each that counts.
    round: fn(&Spread) -> f64,
}

/// A packet of a steady slot costs the same whatever the number of flows. A million lead all over the ring,
/// whose slots other programs push out of the caches meanwhile: a quarter more is common on a busy
/// machine. A flow table takes four times as long, and more. The shortest rounds count: what else runs on the
/// machine only ever adds.
///
/// That no flow is looked up is counted, and exact ([`super::rig::Counts`]); this is about what counters
/// do not show, such as memory that grows with flows.
pub const FLAT: Claim = Claim {
    words: ("a million flows cost", "what one does"),
    limit: 2.0,
    round: |net| net.min,
};

/// A packet of a slot that moves costs no more than one of a service that records every flow: the same way through the
/// program, but for what memory and the processor's caches make of it, and a machine's noise.
pub const MOVING: Claim = Claim {
    words: ("packets of moving slots cost", "those of `always` do"),
    limit: 1.1,
    round: |net| net.median,
};

/// What the comparison says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// So many times as much: within the limit.
    Holds(f64),
    /// So many times as much: too much.
    Fails(f64),
    /// The no-op's rounds differ by so much, relative to the shortest.
    Noisy(f64),
}

/// What became of a claim.
#[derive(Debug, Clone)]
pub struct Judgement {
    claim: Claim,
    /// Of which scenario, where there are several.
    of: String,
    verdict: Verdict,
}

impl Judgement {
    /// Whether the claim is false.
    pub fn fails(&self) -> bool {
        matches!(self.verdict, Verdict::Fails(_))
    }

    /// Whether the claim is true.
    pub fn holds(&self) -> bool {
        matches!(self.verdict, Verdict::Holds(_))
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { claim, of, verdict } = self;
        let (one, other) = claim.words;
        match verdict {
            Verdict::Holds(ratio) | Verdict::Fails(ratio) => write!(
                f,
                "{of}{one} {ratio:.2} times {other}, of {} at most",
                claim.limit
            ),
            Verdict::Noisy(noise) => write!(
                f,
                "SKIP whether {of}{one} more than {other}: the no-op's own rounds differ by {:.0} %",
                noise * 100.0
            ),
        }
    }
}

impl Claim {
    /// Judges what was measured of the one by the other.
    pub fn judge(self, of: &str, one: &Measured, other: &Measured) -> Judgement {
        let spread = |measured: &Measured| {
            let noop = measured.noop;
            (noop.max - noop.min) / noop.min.max(1.0)
        };
        let ratio = (self.round)(&one.net) / (self.round)(&other.net).max(1.0);
        let noise = spread(one).max(spread(other));
        let verdict = if ratio <= self.limit {
            Verdict::Holds(ratio)
        } else if noise > NOISE {
            Verdict::Noisy(noise)
        } else {
            Verdict::Fails(ratio)
        };
        Judgement {
            claim: self,
            of: of.to_owned(),
            verdict,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(net: f64, noop: [f64; 2]) -> Measured {
        Measured {
            net: Spread::of(vec![net, net + 30.0, net + 30.0]),
            noop: Spread::of(noop.to_vec()),
        }
    }

    #[test]
    fn a_million_flows_may_cost_twice_as_much_and_no_more() {
        let calm = [20.0, 25.0];
        let one = measured(40.0, calm);
        let judge = |million| FLAT.judge("", &measured(million, calm), &one).verdict;
        assert_eq!(judge(80.0), Verdict::Holds(2.0));
        assert_eq!(judge(100.0), Verdict::Fails(2.5));
    }

    #[test]
    fn moving_slots_may_cost_a_tenth_more_than_records_of_every_flow_and_no_more() {
        let calm = [20.0, 25.0];
        let always = measured(70.0, calm);
        let judge = |moving| MOVING.judge("", &measured(moving, calm), &always).verdict;
        assert_eq!(judge(75.0), Verdict::Holds(1.05));
        assert_eq!(judge(90.0), Verdict::Fails(1.2));
    }

    #[test]
    fn a_busy_machine_proves_nothing_against_it() {
        let one = measured(40.0, [20.0, 20.0]);
        let busy = measured(100.0, [20.0, 40.0]);
        assert_eq!(FLAT.judge("", &busy, &one).verdict, Verdict::Noisy(1.0));
    }
}
