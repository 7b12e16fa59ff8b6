//! Scenarios that broke flows once, as proptest shrank them.

use std::time::Duration;

use crate::scenario::{Kind, Scenario, Step};

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        service_back_after_a_removal_that_failed(),
        flow_that_finds_no_room_just_before_its_slot_settles(),
        connection_id_used_before_the_ring_follows(),
        owner_that_wakes_after_its_first_ring_is_in_force(),
        slot_that_is_steady_just_before_its_owner_wakes(),
        owner_that_stood_in_for_a_dead_origin_before_a_move_of_the_whole(),
        backend_chosen_just_before_it_is_found_to_be_unwanted(),
        client_forgotten_before_a_longer_persistence(),
        counters_that_change_hands_during_a_sweep(),
        setting_that_releases_a_backend_without_connections(),
        panic_that_ends_while_a_flow_has_no_room(),
        client_that_opens_again_from_the_port_of_a_connection_that_has_ended(),
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

/// Services by number, flows, room for established and half-open ones, seconds of the moving time.
pub fn scenario(
    services: &[usize],
    flows: usize,
    [established, half_open]: [usize; 2],
    seconds: u64,
    steps: &[(Kind, u8, u8, u8, u32)],
) -> Scenario {
    Scenario {
        services: services.to_vec(),
        flows,
        established,
        half_open,
        moving_time: Duration::from_secs(seconds),
        start: 0,
        steps: steps.iter().copied().map(step).collect(),
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
    scenario(&[8], 26, [2_600, 2_600], 2, &steps)
}

/// The table of half-open flows was full, the overflow counter had been read, and the slot had not
/// settled yet when a flow began that could not be recorded.
fn flow_that_finds_no_room_just_before_its_slot_settles() -> Scenario {
    let steps = [
        (Kind::Sweep, 0, 0, 101, 2_276_868_000),
        (Kind::Traffic, 0, 0, 108, 4_136_180_964),
        (Kind::RemoveBackend, 50, 61, 51, 3_929_181_173),
        (Kind::Limit, 85, 0, 34, 324_562_376),
        (Kind::Scheduler, 73, 58, 169, 140_356_946),
        (Kind::Sweep, 0, 0, 82, 3_042_657_692),
        (Kind::Sweep, 0, 0, 128, 1_558_058_410),
        (Kind::Traffic, 0, 0, 21, 2_200_575_912),
        (Kind::Sweep, 0, 0, 71, 1_541_724_297),
        (Kind::Traffic, 0, 0, 0, 0),
    ];
    scenario(&[0, 10], 31, [3_100, 2], 2, &steps)
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
    scenario(&[9], 32, [3_200, 1], 900, &steps)
}

/// A service came back with all next hops unknown: between the switch to its first ring and an owner's
/// waking, flows of steady slots began elsewhere.
fn owner_that_wakes_after_its_first_ring_is_in_force() -> Scenario {
    let steps = [
        (Kind::Fail, 0, 0, 18, 0),
        (Kind::RemoveService, 0, 0, 10, 1_510_205_970),
        (Kind::Restart, 0, 105, 0, 7_237),
        (Kind::Traffic, 0, 0, 0, 0),
        (Kind::Traffic, 0, 0, 0, 87_806),
    ];
    scenario(&[0], 20, [2_000, 2_000], 2, &steps)
}

/// A slot became steady, and its owner took flows again, by the same plan: in between, a flow of it
/// began elsewhere.
fn slot_that_is_steady_just_before_its_owner_wakes() -> Scenario {
    let steps = [
        (Kind::Die, 44, 193, 8, 2_639_818_513),
        (Kind::Sweep, 0, 0, 95, 452_570_002),
        (Kind::Sweep, 0, 0, 50, 3_380_471_091),
        (Kind::FalseAlarm, 1, 201, 111, 1_441_028_166),
        (Kind::RemoveBackend, 61, 19, 73, 1_204_247_955),
        (Kind::OnDown, 31, 47, 106, 3_053_917_468),
        (Kind::Down, 1, 21, 217, 3_867_665_453),
        (Kind::FalseAlarm, 182, 60, 122, 3_035_443_148),
        (Kind::Sweep, 0, 0, 135, 2_121_782_868),
        (Kind::SlowSweep, 0, 173, 4, 4_038_683_082),
        (Kind::Traffic, 0, 0, 32, 723_320_045),
        (Kind::Weight, 71, 31, 214, 2_615_148_861),
        (Kind::Die, 44, 217, 0, 0),
        (Kind::Weight, 162, 11, 181, 3_891_090_557),
        (Kind::Revive, 0, 86, 80, 3_311_824_943),
        (Kind::Drain, 36, 73, 148, 2_950_904_146),
        (Kind::SlowSweep, 0, 41, 201, 3_653_586_805),
        (Kind::Traffic, 0, 0, 161, 716_529_113),
        (Kind::Revive, 49, 114, 124, 251_671_018),
        (Kind::RemoveBackend, 67, 4, 190, 1_928_706_127),
        (Kind::Traffic, 0, 0, 234, 3_350_966_292),
        (Kind::Traffic, 0, 0, 5, 3_340_097_088),
        (Kind::MovingTime, 0, 69, 125, 3_630_543_065),
        (Kind::Sweep, 0, 0, 127, 443_373_514),
        (Kind::Sweep, 0, 0, 18, 1_930_868_021),
        (Kind::Traffic, 0, 0, 94, 3_895_298_441),
        (Kind::AddBackend, 5, 253, 215, 3_259_191_531),
        (Kind::Fail, 0, 0, 20, 0),
        (Kind::Sweep, 0, 0, 214, 276_634_577),
        (Kind::FalseAlarm, 8, 56, 92, 1_894_689_377),
        (Kind::Sweep, 0, 0, 43, 502_168_443),
        (Kind::Traffic, 0, 0, 0, 0),
    ];
    scenario(&[3, 6], 27, [2_700, 1], 2, &steps)
}

/// An origin had died and a plan had failed, so that flows that found no room went to the owner; then
/// the whole service moved, and the ring before named nobody for them.
fn owner_that_stood_in_for_a_dead_origin_before_a_move_of_the_whole() -> Scenario {
    let steps = [
        (Kind::Traffic, 0, 0, 28, 333_375_918),
        (Kind::Fail, 0, 0, 48, 0),
        (Kind::Traffic, 0, 0, 146, 942_524_357),
        (Kind::Down, 55, 8, 94, 1_330_394_413),
        (Kind::Traffic, 0, 0, 40, 2_941_755_860),
        (Kind::SynFlood, 0, 0, 0, 0),
        (Kind::Down, 127, 152, 72, 837_400_131),
        (Kind::Drain, 188, 6, 89, 254_243_824),
        (Kind::Sweep, 0, 0, 130, 112_661_057),
        (Kind::Traffic, 0, 0, 18, 634_411_351),
        (Kind::AddService, 0, 0, 218, 2_645_148_533),
        (Kind::Traffic, 0, 0, 114, 326_943_116),
        (Kind::Sweep, 0, 0, 115, 60_037_629),
        (Kind::Sweep, 0, 0, 95, 2_199_877_907),
        (Kind::Retry, 0, 0, 149, 154_768_972),
        (Kind::Fail, 0, 0, 114, 0),
        (Kind::SynFlood, 0, 0, 0, 0),
        (Kind::Weight, 0, 1, 178, 2_102_826_314),
        (Kind::Restart, 0, 154, 69, 1_064_034_735),
        (Kind::Sweep, 0, 0, 6, 3_632_139_094),
        (Kind::Weight, 1, 70, 58, 443_872_774),
        (Kind::Weight, 29, 236, 46, 104_005_198),
        (Kind::Retry, 0, 0, 123, 1_460_611_446),
        (Kind::Traffic, 0, 0, 88, 58_501_256),
        (Kind::Traffic, 0, 0, 88, 131_441_135),
        (Kind::Fail, 0, 0, 121, 0),
        (Kind::RemoveBackend, 20, 54, 99, 36_941_931),
        (Kind::Down, 43, 3, 123, 4_126_831_984),
        (Kind::DieAndRevive, 13, 123, 20, 324_751_836),
        (Kind::RingSize, 7, 55, 53, 1_173_581_958),
        (Kind::Traffic, 0, 0, 0, 0),
    ];
    scenario(&[1, 3], 64, [6_400, 1], 900, &steps)
}

/// Adding a backend failed half-way, and the plan after a sweep that had begun before took it away again,
/// while a connection that knew its id had come to it in between.
fn backend_chosen_just_before_it_is_found_to_be_unwanted() -> Scenario {
    let steps = [
        (Kind::FalseAlarm, 0, 27, 176, 3_300_544_231),
        (Kind::FalseAlarm, 0, 0, 87, 479_842_290),
        (Kind::AddBackend, 0, 126, 46, 2_787_757_816),
        (Kind::SlowSweep, 0, 125, 146, 3_723_267_462),
        (Kind::DieAndRevive, 0, 83, 224, 1_102_646_484),
        (Kind::Die, 0, 36, 243, 3_408_106_521),
        (Kind::Traffic, 0, 0, 39, 2_851_010_873),
        (Kind::Traffic, 0, 0, 218, 1_805_014_550),
        (Kind::Traffic, 0, 0, 118, 1_411_449_587),
        (Kind::Die, 0, 135, 179, 2_428_615_932),
        (Kind::Weight, 0, 17, 28, 1_657_051_879),
        (Kind::Die, 0, 73, 133, 3_285_487_073),
        (Kind::Weight, 0, 80, 21, 710_669_390),
        (Kind::AddService, 0, 0, 252, 166_101_246),
        (Kind::FlowState, 0, 0, 221, 3_963_361_112),
        (Kind::Die, 0, 33, 70, 800_732_822),
        (Kind::AddBackend, 0, 4, 93, 2_155_485_278),
        (Kind::Traffic, 0, 0, 153, 3_667_384_536),
        (Kind::Traffic, 0, 0, 109, 1_751_023_067),
        (Kind::Weight, 0, 66, 34, 4_075_285_906),
        (Kind::Sweep, 0, 0, 69, 117_903_415),
        (Kind::Revive, 0, 78, 131, 3_472_855_922),
        (Kind::Sweep, 0, 0, 84, 1_087_860_274),
        (Kind::AddService, 0, 0, 191, 234_281_229),
        (Kind::SlowSweep, 0, 233, 238, 2_855_204_155),
        (Kind::Weight, 0, 43, 48, 1_195_237_786),
        (Kind::Traffic, 0, 0, 127, 1_965_319_120),
        (Kind::Traffic, 0, 0, 246, 1_901_763_235),
        (Kind::Down, 0, 132, 68, 2_761_420_015),
        (Kind::Weight, 0, 90, 193, 222_380_228),
        (Kind::Sweep, 0, 0, 49, 4_059_227_073),
        (Kind::RemoveBackend, 0, 5, 199, 214_309_023),
        (Kind::Traffic, 0, 0, 201, 1_210_625_627),
        (Kind::Die, 0, 39, 204, 3_265_133_117),
        (Kind::Die, 0, 182, 13, 2_884_237_480),
        (Kind::Sweep, 0, 0, 30, 1_443_064_403),
        (Kind::FlowState, 0, 0, 225, 111_732_127),
        (Kind::Fail, 0, 0, 52, 0),
        (Kind::Weight, 0, 0, 82, 3_257_274_859),
        (Kind::Weight, 0, 0, 45, 203_574_593),
        (Kind::Traffic, 0, 0, 156, 2_778_586_160),
        (Kind::Traffic, 0, 0, 109, 3_082_317_911),
        (Kind::AddBackend, 0, 4, 103, 3_245_872_422),
        (Kind::Sweep, 0, 0, 218, 1_841_353_022),
    ];
    scenario(&[10], 88, [8_800, 1], 900, &steps)
}

/// A record of a client had expired and another had been made, when a longer persistence brought the
/// first one back.
fn client_forgotten_before_a_longer_persistence() -> Scenario {
    let steps = [
        (Kind::Sweep, 0, 0, 126, 3_022_443_635),
        (Kind::Traffic, 0, 0, 249, 273_558_060),
        (Kind::Traffic, 0, 0, 145, 395_900_376),
        (Kind::Traffic, 0, 0, 138, 3_710_329_987),
        (Kind::SlowSweep, 0, 97, 50, 1_067_356_687),
        (Kind::Traffic, 0, 0, 16, 1_153_527_899),
        (Kind::Traffic, 0, 0, 10, 258_792_081),
        (Kind::Traffic, 0, 0, 167, 3_782_503_704),
        (Kind::Sweep, 0, 0, 2, 3_563_022_877),
        (Kind::FalseAlarm, 0, 0, 168, 4_236_237_758),
        (Kind::Restart, 0, 26, 65, 1_116_299_236),
        (Kind::RemoveBackend, 254, 34, 107, 2_621_705_423),
        (Kind::Traffic, 0, 0, 207, 4_237_273_530),
        (Kind::Limit, 43, 0, 163, 269_747_883),
        (Kind::Persistence, 29, 128, 44, 3_533_445_791),
        (Kind::Sweep, 0, 0, 205, 1_434_033_912),
        (Kind::Down, 0, 0, 2, 417_765_106),
        (Kind::Traffic, 0, 0, 68, 299_110_742),
    ];
    scenario(&[3, 11], 87, [8_700, 8_700], 900, &steps)
}

/// A service went and came back while a sweep was on: what it then took off was taken off the new
/// backends, which had the counters of the old ones.
fn counters_that_change_hands_during_a_sweep() -> Scenario {
    let steps = [
        (Kind::Promotion, 0, 6, 1, 1_478_115_657),
        (Kind::Fail, 0, 0, 178, 0),
        (Kind::Traffic, 0, 0, 41, 1_563_442_840),
        (Kind::SlowSweep, 0, 157, 0, 87_469_297),
        (Kind::RemoveService, 0, 0, 121, 2_520_255_218),
        (Kind::FalseAlarm, 0, 115, 144, 995_629_628),
        (Kind::Sweep, 0, 0, 28, 975_088_905),
        (Kind::RemoveBackend, 0, 0, 41, 727_165_375),
        (Kind::Sweep, 0, 0, 1, 525_033_154),
    ];
    scenario(&[6], 20, [2_000, 2_000], 2, &steps)
}

/// The plan that would have released a removed backend failed, and the next one, of a service that keeps no
/// records any more, released it with its connection id: which is no connection forgotten.
fn setting_that_releases_a_backend_without_connections() -> Scenario {
    let steps = [
        (Kind::Die, 0, 124, 74, 1_759_216_606),
        (Kind::RemoveBackend, 0, 0, 0, 0),
        (Kind::SlowSweep, 0, 8, 0, 0),
        (Kind::FalseAlarm, 0, 0, 0, 0),
        (Kind::Traffic, 0, 0, 0, 0),
        (Kind::SlowSweep, 0, 27, 0, 0),
        (Kind::Fail, 0, 0, 0, 0),
        (Kind::Traffic, 0, 0, 0, 0),
        (Kind::MovingTime, 0, 24, 0, 0),
    ];
    scenario(&[9], 20, [2_000, 2_000], 2, &steps)
}

/// A backend that was down and used in a panic counted as dead once the panic was over; a flow of UDP
/// found no room just then, and nobody to stay with.
fn panic_that_ends_while_a_flow_has_no_room() -> Scenario {
    let steps = [
        (Kind::FailOver, 0, 0, 19, 943_874_048),
        (Kind::Restart, 0, 60, 245, 1_029_678_904),
        (Kind::Restart, 0, 2, 174, 2_389_462_437),
        (Kind::Traffic, 0, 0, 134, 1_388_808_100),
        (Kind::Recovery, 0, 0, 137, 340_434_851),
        (Kind::Down, 0, 243, 32, 2_339_303_455),
        (Kind::AddBackend, 0, 255, 218, 1_560_888_420),
        (Kind::Restart, 0, 144, 228, 73_967_616),
        (Kind::Down, 0, 29, 0, 0),
        (Kind::DieAndRevive, 0, 18, 109, 2_036_783_769),
        (Kind::Tier, 0, 64, 83, 1_173_711_057),
    ];
    scenario(&[2], 37, [3_700, 2], 45, &steps)
}

/// The second connection is recorded over the first, among the established ones, so that nothing promoted it, and its client
/// was forgotten as one that has only sent a SYN is.
fn client_that_opens_again_from_the_port_of_a_connection_that_has_ended() -> Scenario {
    let steps = [
        (Kind::SlowSweep, 0, 7, 46, 2_981_291_744),
        (Kind::Restart, 0, 8, 233, 1_769_714_290),
        (Kind::Limit, 6, 0, 158, 4_217_324_837),
        (Kind::Traffic, 0, 0, 140, 457_538_257),
        (Kind::SynFlood, 104, 127, 4, 0),
        (Kind::Traffic, 0, 0, 106, 734_869_119),
        (Kind::RemoveBackend, 14, 3, 109, 937_085_213),
        (Kind::Sweep, 0, 0, 226, 3_167_295_500),
        (Kind::SlowSweep, 0, 86, 79, 2_348_273_627),
        (Kind::Retry, 0, 0, 207, 1_238_787_013),
        (Kind::Revive, 0, 0, 169, 2_862_444_510),
        (Kind::Traffic, 0, 0, 213, 759_256_260),
        (Kind::Limit, 43, 0, 193, 1_869_578_152),
        (Kind::Sweep, 0, 0, 119, 3_509_439_348),
        (Kind::Traffic, 0, 0, 0, 0),
    ];
    scenario(&[5, 11], 30, [3_000, 15], 900, &steps)
}
