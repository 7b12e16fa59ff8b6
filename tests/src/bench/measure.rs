//! Verifies what the program makes of a scenario's packets, then times it: rounds of a no-op and of the
//! program in turn, so that both see the same machine.

use anyhow::{Context as _, Result, ensure};

use super::{
    frame::{ETHERNET, destination},
    harness::{Target, action},
    rig::{Counts, Rig},
    scenario::{Records, Scenario},
    services::NEXT_HOP_MAC,
};

/// How long is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rounds; many short ones, since a short one is more likely to be left alone.
    pub rounds: usize,
    /// Packets of each.
    pub packets: u32,
}

impl Effort {
    /// For figures.
    pub const FULL: Self = Self {
        rounds: 31,
        packets: 300_000,
    };
    /// To see that everything works, and a first impression.
    pub const QUICK: Self = Self {
        rounds: 5,
        packets: 40_000,
    };
    /// Packets of a round that records every one: as many as there is room for.
    const RECORDED: u32 = 50_000;
    /// How often scenarios that are compared take turns.
    const TURNS: usize = 5;
}

/// Nanoseconds a packet, over rounds.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            min: values[0],
            median: values[values.len() / 2],
            max: values[values.len() - 1],
        }
    }
}

/// What came out.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// The program's time, each round's no-op taken off.
    pub net: Spread,
    /// The no-op's, harness included.
    pub noop: Spread,
}

/// Measures a scenario.
///
/// # Errors
/// The program does not do what the scenario says, or the kernel refuses.
pub fn measure(rig: &mut Rig, scenario: &Scenario, effort: Effort) -> Result<Measured> {
    Ok(rounds(rig, scenario, effort)?.measured())
}

/// Measures scenarios of the same features in turn, several times, so that all see the same machine and the same loaded
/// program. Each has the flow tables for itself: what is recorded later is found sooner.
///
/// # Errors
/// As of [`measure`].
pub fn in_turn<const N: usize>(
    rig: &mut Rig,
    scenarios: [&Scenario; N],
    effort: Effort,
) -> Result<[Measured; N]> {
    let part = Effort {
        rounds: effort.rounds.div_ceil(Effort::TURNS),
        ..effort
    };
    let mut all = [const { Rounds::NONE }; N];
    for _ in 0..Effort::TURNS {
        for (scenario, all) in scenarios.into_iter().zip(&mut all) {
            let Rounds { nets, noops } = rounds(rig, scenario, part)?;
            all.nets.extend(nets);
            all.noops.extend(noops);
        }
    }
    Ok(all.map(Rounds::measured))
}

/// Nanoseconds a packet, of each round.
struct Rounds {
    nets: Vec<f64>,
    noops: Vec<f64>,
}

impl Rounds {
    const NONE: Self = Self {
        nets: Vec::new(),
        noops: Vec::new(),
    };

    fn measured(self) -> Measured {
        Measured {
            net: Spread::of(self.nets),
            noop: Spread::of(self.noops),
        }
    }
}

fn rounds(rig: &mut Rig, scenario: &Scenario, effort: Effort) -> Result<Rounds> {
    let witnesses = rig.prepare(scenario)?;
    verify(rig, scenario)?;
    let rounds = time(rig, scenario, effort)?;
    rig.confirm(&witnesses)
        .context("a flow did not stay with its backend")?;
    rig.restore(scenario)?;
    Ok(rounds)
}

/// Runs one packet, and looks at all of it.
fn verify(rig: &mut Rig, scenario: &Scenario) -> Result<()> {
    let before = rig.counts()?;
    let expected = scenario.frame.at(rig.harness.next_run());
    let run = rig.harness.run(scenario.target, 1)?;
    ensure!(
        run.action == scenario.action,
        "XDP action {}, not {}",
        run.action,
        scenario.action
    );
    let counted = rig.counts()?.since(before);
    ensure!(
        counted == Counts::of(scenario, 1),
        "one packet counts {counted:?}"
    );
    match (scenario.action, scenario.target) {
        (action::TX, Target::Product) => forwarded(rig, scenario, &run.frame, &expected),
        (action::TX, _) => {
            let swapped = [&expected[6..12], &expected[..6], &expected[12..]].concat();
            ensure!(run.frame == swapped, "more than the MACs were changed");
            Ok(())
        }
        (action::PASS, _) => {
            ensure!(run.frame == expected, "a foreign packet was changed");
            Ok(())
        }
        // What is left of a dropped packet is nobody's business.
        _ => Ok(()),
    }
}

/// Whether a packet came out as its mode says, addressed to a backend.
fn forwarded(rig: &Rig, scenario: &Scenario, out: &[u8], expected: &[u8]) -> Result<()> {
    let to = destination(out).context("what came out is no IP packet")?;
    ensure!(out[..6] == NEXT_HOP_MAC, "not to the next hop");
    if scenario.mode() == "l2" {
        ensure!(
            out[12..] == expected[12..],
            "more than the MACs were changed"
        );
        return Ok(());
    }
    ensure!(rig.is_backend(scenario, to), "{to} is not the backend");
    let ip = if to.is_ipv4() { 20 } else { 40 };
    let overhead = match scenario.mode() {
        "ipip" => ip,
        "gue" => ip + 8,
        _ => 0,
    };
    ensure!(
        out.len() == expected.len() + overhead,
        "{} bytes came out of {}",
        out.len(),
        expected.len()
    );
    if overhead > 0 {
        ensure!(
            out[ETHERNET + overhead..] == expected[ETHERNET..],
            "the inner packet was changed"
        );
    }
    Ok(())
}

fn time(rig: &mut Rig, scenario: &Scenario, effort: Effort) -> Result<Rounds> {
    let fresh = scenario.records == Records::New;
    let packets = if fresh {
        effort.packets.min(Effort::RECORDED)
    } else {
        effort.packets
    };
    let before = rig.counts()?;
    // One round to warm up.
    let (mut nets, mut noops) = (Vec::new(), Vec::new());
    for _ in 0..=effort.rounds {
        if fresh {
            rig.forget_flows()?;
        }
        let noop = rig.harness.run(Target::Noop, packets)?.ns;
        let whole = rig.harness.run(scenario.target, packets)?.ns;
        nets.push(whole - noop);
        noops.push(noop);
    }
    let total = u64::from(packets) * nets.len() as u64;
    let counted = rig.counts()?.since(before);
    ensure!(
        counted == Counts::of(scenario, total),
        "{total} packets count {counted:?}"
    );
    Ok(Rounds {
        nets: nets.split_off(1),
        noops: noops.split_off(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_tells_the_least_the_middle_and_the_most() {
        let spread = Spread::of(vec![3.0, -1.0, 2.0, 10.0, 2.5]);
        assert_eq!((spread.min, spread.median, spread.max), (-1.0, 2.5, 10.0));
    }
}
