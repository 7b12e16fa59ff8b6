//! Each program by itself, with frames and tables that are not as the one before it has found them: packets are read anew, and
//! services, sessions and ports may be others by then.

use lb_common::{
    fragment::Fragment,
    full_nat::BEGUN,
    memory::MemoryTables,
    packet::SlicePacket,
    pipeline::{self, Rest},
    rate::Rate,
    tables::{Handover, Tables as _, refusal},
    verdict::{DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, TCP, UDP, VIP4, VIP6,
    fragments::{CUTS, cut, large},
    frames::{Extension, Spec, datagram, segment, socket, syn},
    full_nat::{FROM4, POOL4, PORTS},
    support::{INGRESS, Mode, Outcome, Stage, server},
};

type Done = Result<Verdict, Rest>;
type Program = fn(&mut SlicePacket<'_>, &MemoryTables) -> Done;

/// Those that read a packet that has been read before.
const PROGRAMS: [(&str, Program); 7] = [
    ("full_nat", |packet, tables| {
        pipeline::full_nat(packet, tables)
    }),
    ("full_nat_new", |packet, tables| {
        pipeline::full_nat_new(packet, tables, None)
    }),
    ("full_nat_answer", |packet, tables| {
        pipeline::full_nat_answer(packet, tables)
    }),
    ("syn_cookie", |packet, tables| {
        pipeline::syn_cookie(packet, tables)
    }),
    ("proxy_syn", |packet, tables| {
        pipeline::proxy_syn(packet, tables)
    }),
    ("proxy_answer", |packet, tables| {
        pipeline::proxy_answer(packet, tables)
    }),
    ("second_hop", |packet, tables| {
        pipeline::second_hop(packet, tables)
    }),
];

/// One proxied service of mode `full-nat`.
fn stage() -> Stage {
    Stage::new()
        .serve(Mode::FullNat, VIP4, TCP, &[server(SERVER4)])
        .translating(&[POOL4], PORTS)
        .proxying(Rate::default())
        .cookie(7, 1_440)
        .route(socket(CLIENT4).ip(), INGRESS)
}

/// What nothing can be read of: of no family, without a header, cut within one.
fn unreadable() -> Vec<Vec<u8>> {
    let mut foreign = syn(CLIENT4, VIP4).frame();
    foreign[12..14].copy_from_slice(&[0x88, 0xb5]);
    let cut = |spec: Spec, length: usize| spec.frame()[..length].to_vec();
    vec![
        foreign,
        cut(syn(CLIENT4, VIP4), 14),
        cut(syn(CLIENT4, VIP4), 33),
        cut(syn(CLIENT4, VIP4), 50),
        cut(syn(CLIENT6, VIP6), 53),
    ]
}

#[test]
fn what_a_program_cannot_read_is_the_kernels_as_it_came() {
    for frame in unreadable() {
        for (name, program) in PROGRAMS {
            let (done, bytes) = stage().run_alone(&frame, program);
            assert_eq!(done, Ok(Verdict::Pass), "{name} {frame:x?}");
            assert_eq!(bytes, frame, "{name}");
        }
        let others: [fn(&mut SlicePacket<'_>, &MemoryTables) -> Verdict; 2] = [
            |packet, tables| pipeline::full_nat_error(packet, tables),
            |packet, tables| pipeline::refused(packet, tables),
        ];
        for program in others {
            let (verdict, bytes) = stage().run_alone(&frame, program);
            assert_eq!((verdict, bytes), (Verdict::Pass, frame.clone()));
        }
    }
}

#[test]
fn what_is_to_be_answered_and_cannot_be_read_is_dropped() {
    let programs: [fn(&mut SlicePacket<'_>, &MemoryTables) -> Verdict; 2] = [
        |packet, tables| pipeline::too_big(packet, tables),
        |packet, tables| pipeline::untranslated(packet, tables),
    ];
    for (frame, program) in unreadable()
        .iter()
        .flat_map(|frame| programs.map(|program| (frame, program)))
    {
        let (verdict, _) = stage().run_alone(frame, program);
        assert_eq!(
            verdict,
            Verdict::Drop(DropReason::Inconsistent),
            "{frame:x?}"
        );
    }
}

#[test]
fn an_error_that_quotes_nothing_is_the_kernels() {
    use crate::icmp::message;
    for (vip, kind) in [(VIP4, (3, 1)), (VIP6, (1, 3))] {
        let router = if kind.0 == 3 {
            "198.51.100.9:0"
        } else {
            "[2001:db8:9::9]:0"
        };
        let frame = message(router, vip, kind, [0; 4], &[]).frame();
        let (verdict, bytes) = stage().run_alone(&frame, |packet, tables| {
            pipeline::full_nat_error(packet, tables)
        });
        assert_eq!((verdict, bytes), (Verdict::Pass, frame));
    }
}

#[test]
fn packets_of_a_service_that_has_got_another_mode_in_the_meantime_have_no_session() {
    let turned = Stage::new().serve(Mode::Nat, VIP4, TCP, &[server(SERVER4)]);
    let frame = syn(CLIENT4, VIP4).frame();
    let expected = Ok(Verdict::Drop(DropReason::NoSession));
    let requests = ["full_nat", "full_nat_new", "syn_cookie", "proxy_syn"];
    for (name, program) in PROGRAMS {
        if requests.contains(&name) {
            assert_eq!(turned.run_alone(&frame, program).0, expected, "{name}");
        }
    }
}

#[test]
fn packets_of_a_session_that_has_gone_in_the_meantime_go_nowhere() {
    let request = segment(CLIENT4, VIP4).frame();
    let answer = segment(SERVER4, FROM4).frame();
    let (done, _) = stage().run_alone(&request, |packet, tables| {
        pipeline::proxy_syn(packet, tables)
    });
    assert_eq!(done, Ok(Verdict::Drop(DropReason::NoSession)));
    let (done, bytes) = stage().run_alone(&answer, |packet, tables| {
        pipeline::proxy_answer(packet, tables)
    });
    assert_eq!((done, bytes), (Ok(Verdict::Pass), answer.clone()));
    // Its port goes last.
    let unproxied = stage().proxying(Rate::new(1, 1));
    unproxied.run(&syn(CLIENT4, VIP4).frame());
    assert_eq!(unproxied.sessions().by_flow.len(), 1);
    let torn = unproxied.left(|sessions| sessions.by_flow.clear());
    let (done, bytes) = torn.run_alone(&answer, |packet, tables| {
        pipeline::proxy_answer(packet, tables)
    });
    assert_eq!((done, bytes), (Ok(Verdict::Pass), answer.clone()));
    assert_eq!(torn.run(&answer), Outcome::passed(answer));
}

#[test]
fn a_packet_of_a_session_whose_backend_has_answered_in_the_meantime_goes_on_as_it_is() {
    let stage = stage().proxying(Rate::new(1, 1));
    stage.run(&syn(CLIENT4, VIP4).frame());
    let frame = segment(CLIENT4, VIP4).frame();
    let (done, bytes) =
        stage.run_alone(&frame, |packet, tables| pipeline::proxy_syn(packet, tables));
    assert_eq!((done, bytes), (Err(Rest::FullNat), frame));
}

#[test]
fn what_is_handed_over_as_too_long_for_a_way_of_no_length_is_no_end_of_its_hops() {
    let stage = Stage::new().serve(Mode::Ipip, VIP4, TCP, &[server(SERVER4).within(0)]);
    let outcome = stage.run(&segment(CLIENT4, VIP4).frame());
    let dropped = [(DropReason::PacketTooBig as u32, 1)].into();
    assert_eq!(outcome.counted.drops, dropped, "{outcome:?}");
    let (limit, _) = stage.run_alone(&[], |_, tables| {
        let Handover { limit, .. } = tables.handed_over();
        limit
    });
    assert_eq!(limit, 1);
}

#[test]
fn what_has_no_fragment_no_tag_and_no_message_is_the_kernels_where_these_are_looked_for() {
    let behind_options = Spec {
        extensions: vec![Extension::HopByHop(6)],
        ..syn(CLIENT6, VIP6)
    };
    let packets = [
        syn(CLIENT4, VIP4),
        syn(CLIENT6, VIP6),
        datagram(CLIENT4, VIP4),
        behind_options,
    ];
    for frame in packets.map(|packet| packet.frame()) {
        let alone = stage().run_alone(&frame, |packet, tables| {
            let mut place = Fragment::EMPTY;
            pipeline::fragment(packet, tables, &mut place)
        });
        assert_eq!(alone, (Ok(Verdict::Pass), frame.clone()));
        let alone = stage().run_alone(&frame, |packet, tables| pipeline::unusual(packet, tables));
        assert_eq!(alone, (Ok(Verdict::Pass), frame.clone()));
        for frame in [&frame[..], &frame[..11]] {
            let alone = stage().run_alone(frame, |packet, tables| pipeline::vlan(packet, tables));
            assert_eq!(alone, (false, frame.to_vec()));
        }
    }
}

#[test]
fn a_fragment_that_has_been_cut_or_got_another_protocol_in_the_meantime_is_the_kernels() {
    let mut first = cut(&large(syn(CLIENT4, VIP4)), &CUTS)[0].frame();
    let run = |frame: &[u8]| {
        stage().run_alone(frame, |packet, tables| {
            let mut place = Fragment::EMPTY;
            pipeline::fragment(packet, tables, &mut place)
        })
    };
    assert_eq!(run(&first).0, Err(Rest::FullNatFragment));
    let short = &first[..first.len() - 1];
    assert_eq!(run(short), (Ok(Verdict::Pass), short.to_vec()));
    // Nor is it answered as what nobody takes.
    let alone = stage()
        .unknown_port(refusal::RESET)
        .run_alone(&first, |packet, tables| pipeline::refused(packet, tables));
    assert_eq!(alone, (Verdict::Pass, first.clone()));
    first[14 + 9] = 47;
    assert_eq!(run(&first), (Ok(Verdict::Pass), first));
}

#[test]
fn a_fragment_whose_session_is_gone_although_it_has_just_begun_is_dropped_and_not_begun_again() {
    let first = cut(&large(datagram(CLIENT4, VIP4)), &CUTS)[0].frame();
    let stage = Stage::new()
        .serve(Mode::FullNat, VIP4, UDP, &[server(SERVER4)])
        .translating(&[POOL4], PORTS);
    let run = |limit| {
        stage.run_alone(&first, |packet, tables| {
            let mut place = Fragment::EMPTY;
            let left = pipeline::fragment(packet, tables, &mut place);
            assert_eq!(left, Err(Rest::FullNatFragment));
            tables.hand_over(Handover {
                limit,
                ..Handover::default()
            });
            pipeline::full_nat_fragment(packet, tables, &mut place)
        })
    };
    assert_eq!(run(0).0, Err(Rest::FullNatNew));
    assert_eq!(run(BEGUN).0, Ok(Verdict::Drop(DropReason::NoSession)));
}

#[test]
fn a_datagram_too_short_for_a_segments_header_gets_no_cookie() {
    let stage = Stage::new()
        .serve(Mode::FullNat, VIP4, UDP, &[server(SERVER4)])
        .translating(&[POOL4], PORTS);
    let bare = Spec {
        payload: Vec::new(),
        ..datagram(CLIENT4, VIP4)
    };
    let (done, _) = stage.run_alone(&bare.frame(), |packet, tables| {
        pipeline::syn_cookie(packet, tables)
    });
    assert_eq!(done, Ok(Verdict::Drop(DropReason::Inconsistent)));
}
