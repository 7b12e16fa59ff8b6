//! A pool whose ring has no size of its own grows beyond what its ring is good for, with flows in progress.

use std::{net::SocketAddr, time::Duration};

use lb_common::tables::{Descriptor, Phase, service_flag};
use lb_userspace::{
    agent::Core,
    dataplane::Dataplane as _,
    model::{Backend, Change, Mode, Scheduler, Service, ServiceId},
    plan::census,
};

use crate::{
    at_once::serving,
    clients,
    flow::Time,
    sabotage::Sabotage,
    stage::{Stage, Swept},
    tally::Tally,
};

const FLOWS: usize = 600;
/// What a ring of 4,093 slots is chosen for, and kept for ([`lb_common::maglev::suitable_size`]).
const FIRST: u8 = 40;
const MOST: u8 = 81;

fn backend(n: u8) -> Backend {
    Backend::at(SocketAddr::from(([10, 1, 0, n], 80)))
}

fn service(scheduler: Scheduler) -> Service {
    let id: ServiceId = "10.0.0.1:80/tcp".parse().unwrap();
    Service {
        scheduler,
        moving_time: Some(Duration::from_secs(45)),
        backends: (1..=FIRST).map(backend).collect(),
        ..Service::new(id, Mode::Ipip)
    }
}

fn in_force(stage: &Stage, id: ServiceId) -> Descriptor {
    clients::in_force(&stage.world().memory.tables, id).unwrap()
}

fn sweep(stage: &Stage, core: &mut Core<Stage>) {
    let layout = core.certain_layout().unwrap();
    let now = core.dataplane().now();
    let mut tables = Swept {
        stage: stage.clone(),
        meanwhile: || {},
        quiet: false,
    };
    let census = census::sweep(&layout, &mut tables, now).unwrap();
    core.swept(census).unwrap();
}

/// Whether no slot moves, and no ring before it is left. Slots settle for as long as flows of others are theirs.
fn has_settled(core: &mut Core<Stage>, id: ServiceId) -> bool {
    let layout = core.certain_layout().unwrap();
    let placed = layout.placed(id).unwrap();
    let mut slots = placed.ring.slots.iter();
    placed.previous.is_none() && slots.all(|slot| slot.phase() != Phase::Moving)
}

/// Backends come until the ring has grown, and time passes until it has settled.
fn grow(scheduler: Scheduler, sabotage: Option<Sabotage>) -> Tally {
    let service = service(scheduler);
    let (id, moving_time) = (service.id, 42_916);
    let (stage, mut core) = serving(std::slice::from_ref(&service), FLOWS, sabotage);
    let pass = |time: Time| stage.world().advance(time);
    pass(moving_time);
    assert_eq!(in_force(&stage, id).ring_size, 4_093);
    let most = Service {
        backends: (1..=MOST).map(backend).collect(),
        ..service.clone()
    };
    core.change(Change::Replace(vec![most])).unwrap();
    assert_eq!(in_force(&stage, id).ring_size, 4_093);
    pass(moving_time / 4);
    // Slots still move when the whole begins to.
    let open = stage
        .world()
        .flows
        .iter()
        .filter(|flow| flow.backend.is_some())
        .count();
    assert!(open > FLOWS / 2, "{open} flows in progress");
    let more = backend(MOST + 1);
    core.change(Change::AddBackend(id, more)).unwrap();
    let grown = in_force(&stage, id);
    assert_eq!(grown.ring_size, 16_381);
    if sabotage.is_none() {
        assert_eq!(grown.previous_size(), 4_093);
        assert!(grown.flags & service_flag::MOVING != 0);
    }
    for _ in 0..12 {
        pass(moving_time / 3);
        sweep(&stage, &mut core);
    }
    assert!(has_settled(&mut core, id), "slots still move");
    // Fewer are no reason to move everybody once more.
    core.change(Change::RemoveBackend(id, backend(1).address))
        .unwrap();
    assert_eq!(in_force(&stage, id).ring_size, 16_381);
    pass(moving_time);
    std::mem::take(&mut stage.world().tally)
}

#[test]
fn a_ring_that_grows_by_itself_breaks_no_flow() {
    for scheduler in [
        Scheduler::Maglev,
        Scheduler::SourceHash,
        Scheduler::ThreeTupleHash,
        Scheduler::RoundRobin,
    ] {
        let tally = grow(scheduler, None);
        println!("{scheduler:?}: {tally}");
        assert!(
            tally.broken.is_empty(),
            "{scheduler:?}: {:#?}",
            tally.broken
        );
    }
}

#[test]
fn a_ring_that_grows_without_the_one_before_breaks_flows() {
    let tally = grow(Scheduler::Maglev, Some(Sabotage::PreviousRingIsReleased));
    println!("{tally}");
    assert!(!tally.broken.is_empty());
}
