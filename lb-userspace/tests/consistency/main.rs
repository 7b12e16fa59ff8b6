//! An established connection whose backend lives is never moved: the agent's own code over tables in
//! memory, under every kind of change at the worst moment, against clients who know what they were
//! promised (ARCHITECTURE.md, "Flow consistency").
//!
//! `CONSISTENCY_CASES` and `CONSISTENCY_SEED` in the environment ask for more, or for others.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod agent;
mod astray;
mod at_once;
mod bend;
mod clients;
mod clients_at_once;
mod flood;
mod flow;
mod frame;
mod grace;
mod groups;
mod growth;
mod parts;
mod random;
#[path = "../reach/mod.rs"]
mod reach;
mod regressions;
mod regroup;
mod sabotage;
mod scenario;
mod sight;
mod spoil;
mod stage;
mod steps;
mod tally;
mod world;
mod written;

use std::cell::RefCell;

use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};

use crate::{sabotage::Sabotage, scenario::Scenario, tally::Tally};

fn from_environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => default,
    }
}

fn runner(cases: u64, seed: u64) -> TestRunner {
    let config = Config {
        cases: u32::try_from(cases).unwrap(),
        max_shrink_iters: u32::MAX,
        max_shrink_time: 30_000,
        failure_persistence: None,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn seed() -> u64 {
    from_environment("CONSISTENCY_SEED", 1)
}

#[test]
fn no_established_flow_whose_backend_lives_is_moved() {
    let (cases, seed) = (from_environment("CONSISTENCY_CASES", 400), seed());
    let total = RefCell::new(Tally::default());
    let outcome = runner(cases, seed).run(&scenario::scenario(), |scenario| {
        let tally = agent::run(&scenario, None);
        total.borrow_mut().add(&tally);
        match tally.broken.first() {
            None => Ok(()),
            Some(broken) => Err(TestCaseError::fail(broken.clone())),
        }
    });
    println!("seed {seed}: {}", total.borrow());
    if let Err(TestError::Fail(reason, scenario)) = outcome {
        panic!("{reason}\n{scenario}");
    }
    // What is drawn must not cease to be what is meant.
    let total = total.borrow();
    assert!(cases < 100 || total.kills > 0, "{total}");
}

#[test]
fn what_broke_flows_once_does_not_again() {
    let written = written::all().into_iter().map(|(_, scenario)| scenario);
    for scenario in written.chain(regressions::all()) {
        let broken = agent::run(&scenario, None).broken;
        assert!(broken.is_empty(), "{broken:#?}\n{scenario}");
    }
}

/// A sabotage may take so many times the sequences without one: most show within a few.
const PATIENCE: u32 = 4;

/// Sequences until a sabotage is noticed: those that are written for one, those that broke flows once, and
/// random ones.
fn noticed(sabotage: Sabotage, budget: u32) -> Option<(u32, String)> {
    let mut runner = runner(1, seed());
    let random = std::iter::repeat_with(|| -> Scenario {
        let tree = scenario::scenario().new_tree(&mut runner);
        tree.unwrap().current()
    });
    let mut written = written::all();
    written.retain(|&(wanted, _)| wanted == sabotage);
    let written = written.into_iter().map(|(_, scenario)| scenario);
    let written = written.chain(regressions::all());
    let mut scenarios = (1..=budget).zip(written.chain(random));
    scenarios.find_map(|(count, scenario)| {
        let broken = agent::run(&scenario, Some(sabotage)).broken;
        let mut broken = broken.into_iter();
        Some((
            count,
            broken.find(|broken| broken.contains(sabotage.sign()))?,
        ))
    })
}

#[test]
fn every_invariant_that_is_switched_off_breaks_flows() {
    let cases = u32::try_from(from_environment("CONSISTENCY_CASES", 400)).unwrap();
    let budget = PATIENCE * cases;
    let mut unnoticed = Vec::new();
    for sabotage in Sabotage::ALL {
        match noticed(sabotage, budget) {
            Some((count, broken)) => println!("{sabotage:?}: after {count}: {broken}"),
            None => unnoticed.push(sabotage),
        }
    }
    assert!(
        unnoticed.is_empty(),
        "not noticed within {budget}: {unnoticed:?}"
    );
}
