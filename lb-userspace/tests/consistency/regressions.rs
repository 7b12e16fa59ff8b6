//! Scenarios that broke flows once, as proptest shrank them.

use std::time::Duration;

use crate::scenario::{Kind, Scenario, Step};

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![service_back_after_a_removal_that_failed()]
}

fn step((kind, choice, amount, seed): (Kind, u8, u8, u32)) -> Step {
    Step {
        kind,
        service: 0,
        choice,
        amount,
        seed,
    }
}

/// The removal failed after its switch, so that the service came back at once: not under the index
/// that flows were recorded by before.
fn service_back_after_a_removal_that_failed() -> Scenario {
    let steps = [
        (Kind::Weight, 0, 3, 1_244_119_726),
        (Kind::AddBackend, 144, 161, 1_367_662_187),
        (Kind::RemoveBackend, 42, 2, 236_603),
        (Kind::RemoveBackend, 178, 32, 3_527_966_852),
        (Kind::Fail, 0, 53, 0),
        (Kind::RemoveService, 0, 145, 2_373_381_283),
        (Kind::FalseAlarm, 0, 28, 2_532_475_047),
        (Kind::RemoveBackend, 0, 0, 20_787),
        (Kind::AddBackend, 2, 162, 4_983_091),
    ];
    Scenario {
        services: vec![8],
        flows: 26,
        established: 2_600,
        half_open: 2_600,
        moving_time: Duration::from_secs(2),
        start: 0,
        steps: steps.map(step).to_vec(),
    }
}
