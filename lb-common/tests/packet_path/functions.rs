//! The functions that the kernel's verifier takes by themselves, whatever their callers do: of a service that is none, or a backend
//! that is none's, each says that there is nobody, and notes nothing.

use lb_common::{
    admit,
    flow::{Flow, Signal},
    hash::FlowHash,
    memory::MemoryTables,
    persist,
    quic::{self, Start},
    schedule::{self, NOBODY},
    steer::{self, InForce, RouteTable, Service, Spot},
    tables::{Address, Descriptor, FlowKey, ServiceEntry, Slot, flow_kind},
    track::{self, Question},
    verdict::DropReason,
};

/// A service that the tables do not have.
const NONE: u32 = 99;
/// One without members that its ring or anybody could name.
const EMPTY: u32 = 1;

fn tables() -> MemoryTables {
    let mut tables = MemoryTables::default();
    tables.service_entries = vec![ServiceEntry::default(); 2];
    tables
}

fn question(service: u32) -> Question {
    Question {
        key: FlowKey {
            source: Address::v4(1),
            port: 2,
            kind: flow_kind::FLOW,
            service: service as u16,
            to: 0,
            host: 0,
        },
        hash: FlowHash::from_word(3),
        previous_hash: FlowHash::from_word(3),
        slot: Slot::steady(0),
        half: 0,
        signal: Signal::Opens,
        connectionless: false,
        over: false,
        subset: 0,
    }
}

#[test]
fn nobody_takes_a_flow_of_a_service_that_is_none_or_has_no_backend() {
    let tables = tables();
    let (hash, subset) = (FlowHash::from_word(3), 1);
    let spot = Spot {
        slot: Slot::steady(0),
        subset,
    };
    for service in [NONE, EMPTY] {
        let question = question(service);
        assert_eq!(track::answer(&tables, &question), 0);
        assert_eq!(track::choose(&tables, &question), NOBODY);
        assert_eq!(persist::recall(&tables, &question), NOBODY);
        assert_eq!(schedule::pick(&tables, service, 0, hash, spot), NOBODY);
        assert_eq!(schedule::least(&tables, service, 0, subset), NOBODY);
        let lightest = schedule::lightest(&tables, service, 0, subset, 5);
        assert_eq!(lightest, NOBODY);
        assert_eq!(quic::route(&tables, service, 0, Start([0; 3])), quic::STEER);
    }
}

#[test]
fn sources_are_for_the_default_subset_of_a_service_that_is_none() {
    for pool in [0, NONE] {
        for half_and_previous in 0..4 {
            let table = RouteTable(pool << 2 | half_and_previous);
            assert_eq!(steer::subset(&tables(), Address::v4(1), table), 0);
        }
    }
}

#[test]
fn nothing_is_remembered_of_a_service_that_is_none_or_a_backend_that_is_none_of_its() {
    let tables = tables();
    for service in [NONE, EMPTY] {
        let question = question(service);
        persist::remember(&tables, &question, 0);
        persist::confirm(&tables, &question, 0);
    }
    let flows = tables.flows.borrow();
    assert!(flows.established.records.is_empty() && flows.half_open.records.is_empty());
    assert!(tables.take_counted().flows.is_empty());
}

#[test]
fn nobody_is_let_in_to_a_service_that_is_none_or_has_no_guard() {
    let tables = tables();
    let descriptor = Descriptor::default();
    let flow = Flow {
        signal: Signal::Opens,
        ..Flow::EMPTY
    };
    for index in [NONE, EMPTY] {
        let service = Service {
            index,
            descriptor: &descriptor,
        };
        let in_force = InForce { service, half: 0 };
        let denied = Err(DropReason::AccessDenied);
        assert_eq!(admit::source(&tables, &in_force, &flow), denied);
        assert_eq!(admit::flow(&tables, &in_force, &flow), denied);
    }
}
