//! The claim that a packet of a steady slot costs the same whatever the number of flows, checked
//! against what was measured. Times are compared with each other only, never with a limit of their own.
//!
//! That no flow is looked up is counted, and exact ([`super::rig::Counts`]); this is about what counters
//! do not show, such as memory that grows with flows.

use std::fmt;

use super::measure::Measured;

/// How much longer than one flow's packets a million flows' may take. A million lead all over the ring,
/// whose slots other programs push out of the caches meanwhile: a quarter more is common on a busy
/// machine. A flow table takes four times as long, and more.
const LIMIT: f64 = 2.0;
/// How far apart the no-op's own rounds may be, relative to the shortest: beyond, the machine is too
/// busy with other things to judge by.
const NOISE: f64 = 0.5;

/// What the comparison says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Judgement {
    /// So many times as long: within the limit.
    Flat(f64),
    /// So many times as long: too long.
    Steep(f64),
    /// The no-op's rounds differ by so much, relative to the shortest.
    Noisy(f64),
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flat(ratio) | Self::Steep(ratio) => write!(
                f,
                "a million flows cost {ratio:.2} times what one does, of {LIMIT} at most"
            ),
            Self::Noisy(noise) => write!(
                f,
                "SKIP whether a million flows cost what one does: the no-op's own rounds differ by {:.0} %",
                noise * 100.0
            ),
        }
    }
}

/// Judges a million flows by one. Of each, the shortest round counts: what else runs on the machine
/// only ever adds.
pub fn judge(one: &Measured, million: &Measured) -> Judgement {
    let spread = |measured: &Measured| {
        let noop = measured.noop;
        (noop.max - noop.min) / noop.min.max(1.0)
    };
    let ratio = million.net.min / one.net.min.max(1.0);
    let noise = spread(one).max(spread(million));
    if ratio <= LIMIT {
        Judgement::Flat(ratio)
    } else if noise > NOISE {
        Judgement::Noisy(noise)
    } else {
        Judgement::Steep(ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::measure::Spread;

    fn measured(net: f64, noop: [f64; 2]) -> Measured {
        Measured {
            net: Spread::of(vec![net, net + 30.0]),
            noop: Spread::of(noop.to_vec()),
        }
    }

    #[test]
    fn a_million_flows_may_cost_twice_as_much_and_no_more() {
        let calm = [20.0, 25.0];
        let one = measured(40.0, calm);
        assert_eq!(judge(&one, &measured(80.0, calm)), Judgement::Flat(2.0));
        assert_eq!(judge(&one, &measured(100.0, calm)), Judgement::Steep(2.5));
    }

    #[test]
    fn a_busy_machine_proves_nothing_against_it() {
        let one = measured(40.0, [20.0, 20.0]);
        let busy = measured(100.0, [20.0, 40.0]);
        assert_eq!(judge(&one, &busy), Judgement::Noisy(1.0));
    }
}
