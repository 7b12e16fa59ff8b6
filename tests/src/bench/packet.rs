//! `bench packet` from its list of scenarios to its figures: loads each fleet once, measures, and judges
//! the claims that figures can prove wrong.

use anyhow::{Context as _, Result};

use super::{
    claim::{Claim, FLAT, Judgement, MOVING},
    measure::{Effort, in_turn, measure},
    network,
    report::Figure,
    rig::Rig,
    scenario::{self, Group, Scenario},
};

/// How often a claim is measured before the answer counts.
const ATTEMPTS: u32 = 3;

/// What came out.
pub struct Outcome {
    /// A figure for each scenario.
    pub figures: Vec<Figure>,
    /// What became of the claims whose scenarios were measured.
    pub judgements: Vec<Judgement>,
    /// Whether the kernel kept statistics of run times meanwhile, which are in every no-op.
    pub watched: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    /// Fewer and shorter rounds, and fewer flows where they are recorded.
    pub quick: bool,
    /// What titles contain.
    pub filter: &'a str,
    /// The one group; all where absent.
    pub group: Option<Group>,
}

/// Measures the scenarios that are selected, and judges the claims about those. Has a network namespace of its own.
///
/// # Errors
/// The program does not do what a scenario says, or the kernel refuses.
pub fn run(selection: Selection<'_>) -> Result<Outcome> {
    network::new()?.run(|| run_there(selection))
}

fn run_there(selection: Selection<'_>) -> Result<Outcome> {
    let Selection {
        quick,
        filter,
        group,
    } = selection;
    let effort = if quick { Effort::QUICK } else { Effort::FULL };
    let scenarios = scenario::all(quick);
    let wanted: Vec<&Scenario> = scenarios
        .iter()
        .filter(|scenario| group.is_none_or(|group| scenario.group() == group))
        .filter(|scenario| scenario.title().contains(filter))
        .collect();
    let mut outcome = Outcome {
        figures: Vec::new(),
        judgements: Vec::new(),
        watched: false,
    };
    for group in wanted.chunk_by(|one, next| one.fleet == next.fleet) {
        let mut rig = Rig::new(group[0].fleet, &scenarios)?;
        for scenario in group {
            let effort = match scenario.group() {
                Group::Special if quick => Effort::GLANCE,
                _ => effort,
            };
            let measured = measure(&mut rig, scenario, effort).with_context(|| scenario.title())?;
            outcome.figures.push(Figure::new(scenario, &measured));
        }
        for comparison in comparisons(group) {
            outcome.judgements.push(comparison.judge(&mut rig, effort)?);
        }
        outcome.watched |= rig.harness.is_watched()?;
    }
    Ok(outcome)
}

/// A claim about two scenarios.
struct Comparison<'a> {
    claim: Claim,
    of: &'static str,
    one: &'a Scenario,
    other: &'a Scenario,
}

/// Those that scenarios can be judged by.
fn comparisons<'a>(scenarios: &[&'a Scenario]) -> Vec<Comparison<'a>> {
    let titled = |title: &str| scenarios.iter().find(|s| s.title() == title).copied();
    let compare = |claim, of, one: &str, other: &str| {
        Some(Comparison {
            claim,
            of,
            one: titled(one)?,
            other: titled(other)?,
        })
    };
    let flat = compare(
        FLAT,
        "",
        "tcp-v4 ipip 1000000 steady",
        "tcp-v4 ipip 1 steady",
    );
    let moving = [
        ("one flow: ", "1"),
        ("1,000 flows: ", "1000"),
        ("100,000 flows: ", "100000"),
        ("1,000,000 flows: ", "1000000"),
        ("all new: ", "unbounded"),
    ]
    .map(|(of, flows)| {
        let one = format!("tcp-v4 ipip {flows} moving");
        let other = format!("tcp-v4-always ipip {flows} steady");
        compare(MOVING, of, &one, &other)
    });
    flat.into_iter()
        .chain(moving.into_iter().flatten())
        .collect()
}

impl Comparison<'_> {
    /// Judges, measuring again while the answer is not the one that is claimed.
    fn judge(&self, rig: &mut Rig, effort: Effort) -> Result<Judgement> {
        let Self {
            claim,
            of,
            one,
            other,
        } = *self;
        let mut attempt = || -> Result<Judgement> {
            let [one, other] = in_turn(rig, [one, other], effort)?;
            Ok(claim.judge(of, &one, &other))
        };
        let mut judgement = attempt()?;
        for _ in 1..ATTEMPTS {
            if judgement.holds() {
                break;
            }
            judgement = attempt()?;
        }
        Ok(judgement)
    }
}
