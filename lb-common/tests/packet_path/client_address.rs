//! What tells backends of mode `full-nat` who the client is, as etherparse would lay it out.

use crate::{
    CLIENT4, SERVER4, TCP, VIP4,
    frames::{Spec, socket},
    full_nat::{ENDS, FROM4, POOL4, POOL6, PORTS},
    refuse::tcp,
    support::{Mode, Stage, macs, server},
};

/// A segment with options, and what else it has.
fn with_options(from: &str, to: &str, syn: bool, options: &[u8], payload: &[u8]) -> Spec {
    let set = |header: &mut etherparse::TcpHeader| {
        (header.syn, header.ack) = (syn, !syn);
        header.options = options.try_into().expect("whole words");
    };
    tcp(from, to, set, payload)
}

/// What tells a client's address.
fn told(client: &str) -> Vec<u8> {
    let client = socket(client);
    let octets = match client.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = 4 + octets.len() as u8;
    [&[254, length][..], &client.port().to_be_bytes(), &octets].concat()
}

#[test]
fn the_clients_address_goes_with_its_syn_and_the_packet_after() {
    const COMMON: [u8; 20] = [
        2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    for (at, [client, vip, from, to]) in (0u8..).zip(ENDS) {
        let pool = [POOL4, POOL6][usize::from(at)];
        let stage = Stage::new()
            .serve(Mode::FullNat, vip, TCP, &[server(to)])
            .translating(&[pool], PORTS)
            .telling();
        for (syn, payload, tells) in [
            (true, &b""[..], true),
            (true, b"", true),
            (false, b"odd", true),
            (false, b"later", false),
        ] {
            let frame = with_options(client, vip, syn, &COMMON, payload).frame();
            let options = match tells {
                true => [&told(client)[..], &COMMON].concat(),
                false => COMMON.to_vec(),
            };
            let expected = with_options(from, to, syn, &options, payload).routed(macs(0));
            let out = stage.run(&frame);
            assert_eq!(out.frame.0, expected.frame(), "{client} {syn} {tells}");
            assert_eq!(out.counted.untold, 0);
        }
    }
}

#[test]
fn a_packet_without_room_for_the_clients_address_goes_without_it_and_is_counted() {
    let stage = |room| {
        Stage::new()
            .serve(Mode::FullNat, VIP4, TCP, &[server(SERVER4).within(room)])
            .translating(&[POOL4], PORTS)
            .telling()
    };
    let full = with_options(CLIENT4, VIP4, true, &[1; 36], b"");
    let behind_options = Spec {
        options: vec![1; 4],
        ..with_options(CLIENT4, VIP4, true, &[], b"")
    };
    let long = with_options(CLIENT4, VIP4, true, &[], b"");
    for (spec, room) in [(full, 1_500), (behind_options, 1_500), (long, 47)] {
        let out = stage(room).run(&spec.frame());
        let expected = between_raw(&spec, FROM4, SERVER4);
        assert_eq!(out.frame.0, expected, "{spec:?}");
        assert_eq!(out.counted.untold, 1);
    }
    // A byte more of room, and it goes with it.
    let out = stage(48).run(&with_options(CLIENT4, VIP4, true, &[], b"").frame());
    let expected = with_options(FROM4, SERVER4, true, &told(CLIENT4), b"").routed(macs(0));
    assert_eq!((out.frame.0, out.counted.untold), (expected.frame(), 0));
    // Without a word of headroom, neither.
    let bare = with_options(CLIENT4, VIP4, true, &[], b"");
    let out = stage(1_500).run_with(&bare.frame(), 4);
    let expected = with_options(FROM4, SERVER4, true, &[], b"").routed(macs(0));
    assert_eq!((out.frame.0, out.counted.untold), (expected.frame(), 1));
}

/// A segment laid out by [`with_options`] between other ends.
fn between_raw(spec: &Spec, from: &str, to: &str) -> Vec<u8> {
    let header = etherparse::TcpHeader::from_slice(&spec.payload)
        .expect("a header")
        .0;
    let options = header.options.as_slice().to_vec();
    Spec {
        options: spec.options.clone(),
        ..with_options(from, to, header.syn, &options, b"")
    }
    .routed(macs(0))
    .frame()
}

#[test]
fn a_packet_goes_without_the_clients_address_where_nothing_can_be_put_in_front() {
    for [client, vip, from, to] in ENDS {
        let pool = if socket(vip).is_ipv4() { POOL4 } else { POOL6 };
        let stage = Stage::new()
            .serve(Mode::FullNat, vip, TCP, &[server(to)])
            .translating(&[pool], PORTS)
            .telling();
        let spec = with_options(client, vip, true, &[], b"");
        let out = stage.run_with(&spec.frame(), 0);
        let expected = with_options(from, to, true, &[], b"").routed(macs(0));
        assert_eq!(out.frame.0, expected.frame());
        assert_eq!(out.counted.untold, 1);
    }
}
