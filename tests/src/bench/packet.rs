//! `bench packet` from its list of scenarios to its figures: loads each fleet once, measures, and judges
//! the one claim that figures can prove wrong.

use anyhow::{Context as _, Result};

use super::{
    flat::{Judgement, judge},
    measure::{Effort, Measured, measure},
    report::Figure,
    rig::Rig,
    scenario::{self, Scenario},
};

/// How often the claim is measured before the answer counts.
const ATTEMPTS: u32 = 3;

/// What came out.
pub struct Outcome {
    /// A figure for each scenario.
    pub figures: Vec<Figure>,
    /// Whether costs are flat in the number of flows, where that was measured.
    pub flat: Option<Judgement>,
    /// Whether the kernel kept statistics of run times meanwhile, which are in every no-op.
    pub watched: bool,
}

/// Measures the scenarios whose title contains `filter`.
///
/// # Errors
/// The program does not do what a scenario says, or the kernel refuses.
pub fn run(quick: bool, filter: &str) -> Result<Outcome> {
    let effort = if quick { Effort::QUICK } else { Effort::FULL };
    let scenarios = scenario::all(quick);
    let wanted: Vec<&Scenario> = scenarios
        .iter()
        .filter(|scenario| scenario.title().contains(filter))
        .collect();
    let mut outcome = Outcome {
        figures: Vec::new(),
        flat: None,
        watched: false,
    };
    for group in wanted.chunk_by(|one, next| one.fleet == next.fleet) {
        let mut rig = Rig::new(group[0].fleet, &scenarios)?;
        let mut claim = Claim::default();
        for scenario in group {
            let measured = measure_named(&mut rig, scenario, effort)?;
            outcome.figures.push(Figure::new(scenario, &measured));
            claim.note(scenario, measured);
        }
        outcome.flat = outcome.flat.or(claim.judge(&mut rig, effort)?);
        outcome.watched |= rig.harness.is_watched()?;
    }
    Ok(outcome)
}

fn measure_named(rig: &mut Rig, scenario: &Scenario, effort: Effort) -> Result<Measured> {
    measure(rig, scenario, effort).with_context(|| scenario.title())
}

/// What a packet costs with one flow, and with a million.
#[derive(Default)]
struct Claim<'a> {
    one: Option<(&'a Scenario, Measured)>,
    million: Option<(&'a Scenario, Measured)>,
}

impl<'a> Claim<'a> {
    fn note(&mut self, scenario: &'a Scenario, measured: Measured) {
        match scenario.title().as_str() {
            "tcp-v4 ipip 1 steady" => self.one = Some((scenario, measured)),
            "tcp-v4 ipip 1000000 steady" => self.million = Some((scenario, measured)),
            _ => {}
        }
    }

    /// Judges, measuring again while the answer is not the one that is claimed.
    fn judge(self, rig: &mut Rig, effort: Effort) -> Result<Option<Judgement>> {
        let (Some((one, mut with_one)), Some((million, mut with_million))) =
            (self.one, self.million)
        else {
            return Ok(None);
        };
        let mut judgement = judge(&with_one, &with_million);
        for _ in 1..ATTEMPTS {
            if matches!(judgement, Judgement::Flat(_)) {
                break;
            }
            with_one = measure_named(rig, one, effort)?;
            with_million = measure_named(rig, million, effort)?;
            judgement = judge(&with_one, &with_million);
        }
        Ok(Some(judgement))
    }
}
