//! Verifies what the program makes of a scenario's packets, then times it: rounds of a no-op and of the
//! program in turn, so that both see the same machine.

use anyhow::{Context as _, Result, ensure};

use lb_common::budget;

use super::{
    frame::{ETHERNET, Frame, destination, source},
    harness::Target,
    network::ROUTER_MAC,
    rig::{Counts, Prepared, Rig},
    scenario::{End, OTHERS, Records, Scenario},
    services::{Also, NEXT_HOP_MAC},
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
    /// To see that it works, where there is much to see.
    pub const GLANCE: Self = Self {
        rounds: 3,
        packets: 5_000,
    };
    /// Packets of a round that records every one: as many as there is room for.
    const RECORDED: u32 = 50_000;
    /// Packets of a round of those that too many came before: fewer than a second's, whatever else the machine does.
    const LIMITED: u32 = 20_000;
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
    let Prepared { frame, witnesses } = rig.prepare(scenario)?;
    verify(rig, scenario, &frame)?;
    let rounds = time(rig, scenario, effort)?;
    rig.confirm(&witnesses)
        .context("a flow did not stay with its backend")?;
    rig.restore(scenario)?;
    Ok(rounds)
}

/// Runs one packet, and looks at all of it.
fn verify(rig: &mut Rig, scenario: &Scenario, frame: &Frame) -> Result<()> {
    if scenario.is_rationed() || scenario.is_limited() {
        rig.ration(scenario)?;
    }
    let before = rig.counts()?;
    let expected = frame.at(rig.harness.next_run());
    let run = rig.harness.run(scenario.target, 1)?;
    let action = scenario.end.action();
    ensure!(
        run.action == action,
        "XDP action {}, not {action}",
        run.action
    );
    let counted = rig.counts()?.since(&before);
    ensure!(
        counted == Counts::of(scenario, 1),
        "one packet counts {counted:?}"
    );
    match (scenario.end, scenario.target) {
        (End::Backend, Target::Product) => forwarded(rig, scenario, &run.frame, &expected),
        (End::Backend, _) => {
            let swapped = [&expected[6..12], &expected[..6], &expected[12..]].concat();
            ensure!(run.frame == swapped, "more than the MACs were changed");
            Ok(())
        }
        (End::Passed, _) => {
            ensure!(run.frame == expected, "a foreign packet was changed");
            Ok(())
        }
        // What is left of a dropped packet is nobody's business.
        (End::Dropped(_), _) => Ok(()),
        (End::Answered(..), _) => answered(&run.frame, &expected),
        (End::Client, _) => to_client(scenario, &run.frame),
        (End::Unwrapped(headers), _) => {
            ensure!(
                run.frame[ETHERNET..] == expected[ETHERNET + headers..],
                "the inner packet was changed"
            );
            Ok(())
        }
        (End::HandedOn, _) => {
            let to = destination(&run.frame).context("what came out is no IP packet")?;
            ensure!(OTHERS.contains(&to), "{to} is not the other backend");
            ensure!(run.frame[..6] == ROUTER_MAC, "not to the router");
            Ok(())
        }
    }
}

/// Whether a packet's sender was answered.
fn answered(out: &[u8], expected: &[u8]) -> Result<()> {
    ensure!(
        out[..6] == expected[6..12],
        "not to the sender's MAC address"
    );
    ensure!(
        destination(out) == source(expected),
        "not to the sender: {:?}",
        destination(out)
    );
    Ok(())
}

/// Whether an answer came out as from the VIP, on the way to a client.
fn to_client(scenario: &Scenario, out: &[u8]) -> Result<()> {
    ensure!(out[..6] == ROUTER_MAC, "not to the router");
    let vip = scenario.service.map(|(id, _)| id.vip.ip());
    ensure!(source(out) == vip, "not from the VIP: {:?}", source(out));
    Ok(())
}

/// A frame without its tags, and those.
fn untagged(frame: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut end = 12;
    while matches!(frame.get(end..end + 2), Some([0x81, 0x00] | [0x88, 0xa8])) {
        end += 4;
    }
    let rest = [&frame[..12], &frame[end..]].concat();
    (rest, frame[12..end].to_vec())
}

/// Whether a packet came out as its mode says, addressed to a backend.
fn forwarded(rig: &Rig, scenario: &Scenario, out: &[u8], expected: &[u8]) -> Result<()> {
    let ((out, tags), (expected, own)) = (untagged(out), untagged(expected));
    ensure!(tags == own, "tags {tags:02x?}, not {own:02x?}");
    let to = destination(&out).context("what came out is no IP packet")?;
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
    let in_front = match scenario.mode() {
        "ipip" => ip,
        "gue" => ip + 8,
        _ => 0,
    };
    let overhead = in_front + scenario.grows;
    ensure!(
        out.len() == expected.len() + overhead,
        "{} bytes came out of {}",
        out.len(),
        expected.len()
    );
    if in_front == 0 {
        return Ok(());
    }
    let (inner, before) = (&out[ETHERNET + overhead..], &expected[ETHERNET..]);
    match scenario.service.map(|(_, kind)| kind.also) {
        Some(Also::Clamp(mss)) => {
            let told = [&[2, 4][..], &mss.to_be_bytes()].concat();
            ensure!(
                inner.len() == before.len() && inner.windows(4).any(|option| option == told),
                "no MSS of {mss} in {inner:02x?}"
            );
        }
        _ => ensure!(inner == before, "the inner packet was changed"),
    }
    Ok(())
}

fn time(rig: &mut Rig, scenario: &Scenario, effort: Effort) -> Result<Rounds> {
    let fresh = scenario.records == Records::New;
    let (rationed, limited) = (scenario.is_rationed(), scenario.is_limited());
    let most = if fresh {
        Effort::RECORDED
    } else if rationed {
        budget::LIMIT
    } else if limited {
        Effort::LIMITED
    } else {
        effort.packets
    };
    let packets = effort.packets.min(most);
    let mut before = rig.counts()?;
    // One round to warm up.
    let (mut nets, mut noops) = (Vec::new(), Vec::new());
    for _ in 0..=effort.rounds {
        if fresh {
            rig.forget_flows()?;
        }
        let noop = rig.harness.run(Target::Noop, packets)?.ns;
        if rationed {
            rig.ration(scenario)?;
        }
        if limited {
            let answered = rig.counts()?;
            rig.ration(scenario)?;
            before.skip(&rig.counts()?.since(&answered));
        }
        let whole = rig.harness.run(scenario.target, packets)?.ns;
        nets.push(whole - noop);
        noops.push(noop);
    }
    let total = u64::from(packets) * nets.len() as u64;
    let counted = rig.counts()?.since(&before);
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
