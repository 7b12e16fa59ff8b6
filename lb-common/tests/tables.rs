//! Formats of the maps' keys and values: what the agent writes is what the program reads.

use std::net::IpAddr;

use lb_common::{
    flow::Signal,
    tables::{Address, Counters, Descriptor, Phase, Slot, scheduler},
    vlan,
};
use proptest::prelude::*;

#[test]
fn a_slot_is_fifteen_bits_of_owner_fifteen_of_origin_and_two_of_phase() {
    for (phase, bits) in [(Phase::Steady, 0), (Phase::Moving, 1), (Phase::Settling, 2)] {
        let slot = Slot::new(0x1234, 0x7fed, phase);
        assert_eq!(slot, Slot((bits << 30) | (0x7fed << 15) | 0x1234));
    }
    assert_eq!(Slot::steady(9), Slot((9 << 15) | 9));
    // The last is nobody's.
    assert_eq!((Slot::MAX_ID, Slot::NOBODY), (0x7ffe, 0x7fff));
}

#[test]
fn the_phase_that_has_no_number_reads_as_settling() {
    // It asks the flow table and else the owner: right for every flow that was recorded.
    assert_eq!(Slot(3 << 30).phase(), Phase::Settling);
}

#[test]
fn unrecorded_flows_are_the_origins_while_a_slot_moves_and_else_the_owners() {
    let keeper = |phase| Slot::new(5, 9, phase).keeper();
    let phases = [Phase::Steady, Phase::Moving, Phase::Settling];
    assert_eq!(phases.map(keeper), [5, 9, 5]);
}

#[test]
fn ids_too_long_for_a_slot_do_not_spill_into_its_neighbours() {
    let slot = Slot::new(u32::MAX, 0, Phase::Steady);
    assert_eq!((slot.owner(), slot.origin()), (Slot::NOBODY, 0));
    let slot = Slot::new(0, u32::MAX, Phase::Steady);
    assert_eq!((slot.owner(), slot.origin()), (0, Slot::NOBODY));
    assert_eq!(slot.phase(), Phase::Steady);
}

#[test]
fn ipv4_addresses_are_mapped_into_ipv6() {
    let address = Address::from(IpAddr::from([192, 0, 2, 1]));
    let octets = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1];
    assert_eq!(address.octets(), octets);
    assert_eq!(address.low().to_ne_bytes(), [192, 0, 2, 1]);
    assert!(address.is_v4());
}

#[test]
fn only_mapped_addresses_are_ipv4() {
    for text in [
        "::",
        "::1",
        "::192.0.2.1",
        "2001:db8::ffff:c000:201",
        "::1:ffff:0:1",
        "0:1::ffff:0:1",
    ] {
        let address: IpAddr = text.parse().unwrap();
        assert!(!Address::from(address).is_v4(), "{text}");
    }
}

#[test]
fn counters_add_packets_bytes_and_new_flows_and_wrap() {
    let mut counters = Counters::default();
    counters.add(60, true);
    counters.add(1_500, false);
    let expected = Counters {
        packets: 2,
        bytes: 1_560,
        flows: 1,
    };
    assert_eq!(counters, expected);
    let mut full = Counters {
        packets: u64::MAX,
        bytes: u64::MAX,
        flows: u64::MAX,
    };
    full.add(1, true);
    assert_eq!(full, Counters::default());
}

proptest! {
    #[test]
    fn a_slot_keeps_what_is_put_in(owner in 0..=Slot::MAX_ID, origin in 0..=Slot::MAX_ID) {
        for phase in [Phase::Steady, Phase::Moving, Phase::Settling] {
            let slot = Slot::new(owner, origin, phase);
            prop_assert_eq!((slot.owner(), slot.origin(), slot.phase()), (owner, origin, phase));
        }
    }

    #[test]
    fn addresses_come_back_as_they_went(v4: [u8; 4], v6: [u8; 16]) {
        let v4 = IpAddr::from(v4);
        prop_assert_eq!(IpAddr::from(Address::from(v4)), v4);
        // A mapped one comes back as the IPv4 address that it is.
        let v6 = IpAddr::from(v6);
        prop_assert_eq!(IpAddr::from(Address::from(v6)), v6.to_canonical());
        prop_assert_eq!(Address::from(v6).octets(), match v6 {
            IpAddr::V6(v6) => v6.octets(),
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        });
    }
}

#[test]
fn a_service_is_told_its_scheduler_and_which_handshakes_are_watched_apart() {
    let mut descriptor = Descriptor::default();
    descriptor.set_sampling(5);
    for chosen in [scheduler::TWO_CHOICES, scheduler::RING, scheduler::LEAST] {
        descriptor.set_scheduler(chosen);
        assert_eq!((descriptor.scheduler(), descriptor.sampling()), (chosen, 5));
    }
    descriptor.set_sampling(0);
    assert_eq!(
        (descriptor.scheduler(), descriptor.sampling()),
        (scheduler::LEAST, 0)
    );
}

#[test]
fn signals_are_read_as_they_are_written() {
    for signal in [
        Signal::None,
        Signal::Opens,
        Signal::Finishes,
        Signal::Resets,
        Signal::Hearsay,
    ] {
        assert_eq!(Signal::from_number(signal as u32), signal);
    }
}

#[test]
fn a_vlans_tag_has_its_number_and_no_priority() {
    assert_eq!(vlan::tag(0x8100, 100), [0x81, 0, 0, 100]);
    assert_eq!(vlan::tag(0x88a8, 0xffff), [0x88, 0xa8, 0x0f, 0xff]);
}
