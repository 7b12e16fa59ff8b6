//! Scenarios that show what it takes long to come upon: each breaks flows where one invariant is switched
//! off, and none otherwise.

use crate::{
    regressions::scenario,
    sabotage::Sabotage,
    scenario::{Kind, Scenario},
};

/// All of them, and what each is written for.
pub fn all() -> Vec<(Sabotage, Scenario)> {
    vec![
        (
            Sabotage::StaleCensusIsUsed,
            backend_removed_while_a_sweep_is_on(),
        ),
        (
            Sabotage::FormerHoldersOfIdsCount,
            id_that_another_backend_got_while_nothing_was_kept(),
        ),
        (
            Sabotage::WakesComeBeforeTheRings,
            backend_that_wakes_while_flows_begin(),
        ),
        (
            Sabotage::EjectedIsTakenForDead,
            backend_that_is_kept_out_while_it_serves(),
        ),
        (
            Sabotage::RoutesComeBeforeTheRings,
            routes_that_come_and_go_while_flows_speak(),
        ),
    ]
}

/// Clients are led elsewhere over and over, while flows go on.
fn routes_that_come_and_go_while_flows_speak() -> Scenario {
    let mut steps = vec![(Kind::Traffic, 0, 0, 31, 1)];
    for seed in 2..40 {
        steps.push((Kind::Routes, 0, seed, 0, seed.into()));
        steps.push((Kind::Traffic, 0, 0, 3, seed.into()));
    }
    scenario(&[0], 400, [40_000, 40_000], 45, &steps)
}

/// A backend without records is removed during a sweep, and its slots have settled by the end of it: its flows
/// have been recorded since the sweep read.
fn backend_removed_while_a_sweep_is_on() -> Scenario {
    let steps = [
        (Kind::Traffic, 0, 0, 15, 1),
        (Kind::SlowSweep, 0, 5, 0, 2),
        (Kind::Traffic, 0, 0, 0, 3),
        (Kind::Traffic, 0, 0, 0, 4),
        (Kind::Traffic, 0, 0, 0, 5),
        (Kind::RemoveBackend, 0, 1, 0, 6),
        (Kind::Traffic, 0, 0, 18, 7),
        (Kind::Traffic, 0, 0, 7, 8),
    ];
    scenario(&[0], 400, [40_000, 40_000], 45, &steps)
}

/// A drained backend takes flows again, and so does one that was dead, while clients open connections.
fn backend_that_wakes_while_flows_begin() -> Scenario {
    let steps = [
        (Kind::FlowState, 178, 27, 93, 447_039_296),
        (Kind::Sweep, 225, 147, 191, 3_382_686_620),
        (Kind::Traffic, 8, 22, 87, 3_787_370_406),
        (Kind::Die, 203, 238, 195, 1_882_442_906),
        (Kind::Drain, 51, 202, 0, 797_832_375),
        (Kind::Undrain, 127, 138, 25, 1_887_708_185),
        (Kind::Sweep, 35, 132, 122, 2_905_327_718),
        (Kind::DieAndRevive, 61, 114, 170, 1_861_370_836),
    ];
    Scenario {
        start: 2_618_218_108,
        ..scenario(&[3], 419, [41_900, 1], 900, &steps)
    }
}

/// While a service keeps nothing, a removed backend's local id is another's at once, and what was recorded
/// under it is still there when the service keeps flows again.
fn id_that_another_backend_got_while_nothing_was_kept() -> Scenario {
    let steps = [
        (Kind::Traffic, 0, 0, 15, 1),
        (Kind::RemoveBackend, 0, 1, 0, 2),
        (Kind::Traffic, 0, 0, 5, 3),
        (Kind::MovingTime, 0, 0, 0, 4),
        (Kind::AddBackend, 0, 5, 1, 5),
        (Kind::AddBackend, 0, 6, 1, 6),
        (Kind::MovingTime, 0, 5, 0, 7),
        (Kind::Traffic, 0, 0, 6, 8),
        (Kind::Sweep, 0, 0, 0, 9),
        (Kind::Traffic, 0, 0, 10, 10),
    ];
    scenario(&[0], 401, [40_100, 40_100], 45, &steps)
}

/// A backend is kept out for what packets show, with flows that it goes on serving.
fn backend_that_is_kept_out_while_it_serves() -> Scenario {
    let steps = [
        (Kind::Recovery, 0, 0, 1, 1),
        (Kind::Traffic, 0, 0, 15, 2),
        (Kind::Refusals, 0, 1, 0, 3),
        (Kind::Traffic, 0, 0, 15, 4),
        (Kind::Sweep, 0, 0, 0, 5),
        (Kind::Traffic, 0, 0, 15, 6),
    ];
    scenario(&[0], 402, [40_200, 40_200], 45, &steps)
}
