//! Scenarios that broke flows once, as proptest shrank them.

use std::time::Duration;

use crate::scenario::{Kind, Scenario, Step};

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        service_back_after_a_removal_that_failed(),
        flow_that_finds_no_room_just_before_its_slot_settles(),
        connection_id_used_before_the_ring_follows(),
    ]
}

fn step((kind, service, choice, amount, seed): (Kind, u8, u8, u8, u32)) -> Step {
    Step {
        kind,
        service,
        choice,
        amount,
        seed,
    }
}

/// The removal failed after its switch, so that the service came back at once: not under the index
/// that flows were recorded by before.
fn service_back_after_a_removal_that_failed() -> Scenario {
    let steps = [
        (Kind::Weight, 0, 0, 3, 1_244_119_726),
        (Kind::AddBackend, 0, 144, 161, 1_367_662_187),
        (Kind::RemoveBackend, 0, 42, 2, 236_603),
        (Kind::RemoveBackend, 0, 178, 32, 3_527_966_852),
        (Kind::Fail, 0, 0, 53, 0),
        (Kind::RemoveService, 0, 0, 145, 2_373_381_283),
        (Kind::FalseAlarm, 0, 0, 28, 2_532_475_047),
        (Kind::RemoveBackend, 0, 0, 0, 20_787),
        (Kind::AddBackend, 0, 2, 162, 4_983_091),
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

/// The table of half-open flows was full, the overflow counter had been read, and the slot had not
/// settled yet when a flow began that could not be recorded.
fn flow_that_finds_no_room_just_before_its_slot_settles() -> Scenario {
    let steps = [
        (Kind::Traffic, 0, 0, 220, 713_376_688),
        (Kind::Traffic, 0, 0, 213, 2_029_303_504),
        (Kind::Scheduler, 31, 96, 77, 1_277_130_971),
        (Kind::Drain, 55, 127, 159, 4_033_866_078),
        (Kind::Traffic, 0, 0, 68, 3_040_783_803),
        (Kind::Traffic, 0, 0, 243, 301_207_936),
        (Kind::Sweep, 0, 0, 103, 3_294_875_092),
        (Kind::Restart, 0, 106, 88, 768_024_278),
        (Kind::Traffic, 0, 0, 42, 3_265_044_266),
        (Kind::FalseAlarm, 187, 245, 92, 219_298_948),
        (Kind::Retry, 0, 0, 249, 1_261_849_970),
        (Kind::Traffic, 0, 0, 127, 1_701_729_071),
        (Kind::Restart, 0, 42, 7, 3_139_598_117),
        (Kind::Promotion, 109, 3, 66, 1_058_588_457),
        (Kind::Restart, 0, 0, 152, 495_759_475),
        (Kind::Traffic, 0, 0, 186, 1_887_251_192),
        (Kind::AddBackend, 14, 54, 228, 1_009_810_486),
        (Kind::Restart, 0, 0, 48, 2_358_949_665),
        (Kind::Promotion, 215, 3, 135, 3_996_934_172),
        (Kind::OnDown, 0, 0, 255, 929_293_182),
        (Kind::Sweep, 0, 0, 27, 3_214_727_007),
        (Kind::Promotion, 36, 5, 113, 105_457_493),
    ];
    Scenario {
        services: vec![0, 12],
        flows: 26,
        established: 2_600,
        half_open: 2,
        moving_time: Duration::from_secs(45),
        start: 0,
        steps: steps.map(step).to_vec(),
    }
}

/// A scheduler chose a backend that was being added, and a packet from another address named it by its
/// id before that led there.
fn connection_id_used_before_the_ring_follows() -> Scenario {
    let steps = [
        (Kind::RingSize, 0, 5, 2, 3_949_773_874),
        (Kind::Sweep, 0, 0, 243, 1_039_422_412),
        (Kind::Age, 0, 0, 20, 37_472_229),
        (Kind::Sweep, 0, 0, 30, 2_709_144_480),
        (Kind::AddBackend, 0, 24, 29, 675_531_112),
        (Kind::OnDown, 0, 50, 58, 3_403_904_264),
        (Kind::Undrain, 0, 0, 170, 815_720_877),
        (Kind::Sweep, 0, 0, 233, 391_188_571),
        (Kind::Traffic, 0, 0, 122, 679_305_573),
        (Kind::SlowSweep, 0, 35, 204, 880_218_125),
        (Kind::Down, 0, 14, 74, 2_432_181_359),
        (Kind::Retry, 0, 0, 171, 1_582_542_456),
        (Kind::Traffic, 0, 0, 68, 3_038_142_074),
        (Kind::Traffic, 0, 0, 54, 3_052_950_277),
        (Kind::Traffic, 0, 0, 4, 2_132_458_840),
        (Kind::RemoveBackend, 0, 118, 129, 1_118_461_091),
        (Kind::Drain, 0, 3, 232, 4_183_305_515),
        (Kind::Retry, 0, 0, 32, 299_165_227),
        (Kind::Undrain, 0, 4, 9, 3_607_471_140),
        (Kind::Fail, 0, 0, 68, 0),
        (Kind::SynFlood, 0, 0, 0, 0),
        (Kind::Down, 0, 44, 14, 303_826_383),
        (Kind::Die, 0, 20, 54, 165_979_787),
        (Kind::Traffic, 0, 0, 213, 1_108_259_683),
        (Kind::Restart, 0, 132, 94, 776_188_894),
        (Kind::Sweep, 0, 0, 27, 1_702_233_680),
        (Kind::Persistence, 0, 1, 98, 1_422_242_710),
        (Kind::Undrain, 0, 4, 69, 2_571_480_352),
        (Kind::Weight, 0, 3, 177, 2_933_187_631),
        (Kind::Sweep, 0, 0, 159, 4_154_108_674),
        (Kind::Up, 0, 59, 28, 1_386_692_800),
        (Kind::RingSize, 0, 71, 18, 1_365_222_940),
        (Kind::RemoveBackend, 0, 82, 57, 1_693_187_462),
        (Kind::Scheduler, 0, 163, 79, 821_445_084),
        (Kind::Traffic, 0, 0, 61, 2_277_061_056),
        (Kind::Die, 0, 190, 10, 104_349_753),
        (Kind::Traffic, 0, 0, 13, 2_743_310_192),
        (Kind::RemoveBackend, 0, 8, 2, 191_969_849),
        (Kind::AddService, 0, 0, 48, 533_946_746),
        (Kind::Traffic, 0, 0, 195, 310_803_551),
        (Kind::Sweep, 0, 0, 0, 804_199_126),
        (Kind::Traffic, 0, 0, 0, 0),
        (Kind::Traffic, 0, 0, 0, 0),
        (Kind::AddBackend, 0, 44, 153, 3_226_031_580),
    ];
    Scenario {
        services: vec![9],
        flows: 32,
        established: 3_200,
        half_open: 1,
        moving_time: Duration::from_secs(900),
        start: 0,
        steps: steps.map(step).to_vec(),
    }
}
