//! Access lists and limits on their way into the maps: what packets meet at every step of a change, what stays of
//! former lists, and what a restarted agent makes of it.

use std::net::IpAddr;

use lb_common::{
    rate::Rate,
    tables::{AccessKey, Address, Guard, GuardEntry, Tables as _, access},
};
use lb_userspace::{
    agent::{ChangeError, Core},
    config::Tunnel,
    dataplane::{Capacity, Dataplane as _, Operation, memory::MemoryDataplane},
    model::{
        AccessEdit, AccessList, Change, FlowLimit, ModelError, Prefix, Service, ServiceId,
        Settings, State, UNKNOWN_PORT,
    },
    plan::{self, Inputs, half},
};
use serde_json::json;

fn id(port: u16) -> ServiceId {
    format!("10.0.0.1:{port}/tcp").parse().expect("a service")
}

fn service(port: u16, list: Option<&str>) -> Service {
    let mut service: Service = serde_json::from_value(json!({
        "id": id(port), "mode": "ipip", "ring_size": 251, "backends": [{ "address": "10.2.0.11:80" }],
    }))
    .expect("what is valid");
    service.access_list = list.map(str::to_owned);
    service
}

fn prefixes(texts: &[&str]) -> Vec<Prefix> {
    let parsed = texts.iter().map(|text| text.parse());
    parsed.collect::<Result<_, _>>().expect("prefixes")
}

fn list(name: &str, allow: &[&str], deny: &[&str]) -> AccessList {
    AccessList::new(name, prefixes(allow), prefixes(deny)).expect("a list")
}

fn over(memory: MemoryDataplane) -> Core<MemoryDataplane> {
    Core::new("guards".to_owned(), Tunnel::default(), memory).expect("sound maps")
}

fn empty() -> MemoryDataplane {
    let mut memory = MemoryDataplane::default();
    memory.tables.control.lookup_bits = 4;
    memory
}

/// A core with these lists, and a service at port 80 with the first of them.
fn core(lists: &[AccessList]) -> Core<MemoryDataplane> {
    let mut core = over(empty());
    let service = service(80, lists.first().map(AccessList::name));
    core.change(Change::ReplaceAll(lists.to_vec(), vec![service]))
        .expect("room enough");
    core
}

/// What guards the service of a port, as a packet meets it.
fn guard(core: &Core<MemoryDataplane>, port: u16) -> Guard {
    let number = core.layout().placed(id(port)).expect("a service").number;
    let tables = &core.dataplane().tables;
    let entry = tables.guards.get(number as usize).copied();
    entry.unwrap_or_default().halves[half(tables.control.generation)]
}

/// What a list of that number says of a source.
fn says(memory: &MemoryDataplane, number: u32, source: &str) -> u32 {
    let source: IpAddr = source.parse().expect("an address");
    memory.tables.access(&AccessKey {
        bits: AccessKey::LIST_BITS + 128,
        list: number,
        address: Address::from(source),
    })
}

/// The numbers of lists that the maps hold anything of.
fn numbers(core: &Core<MemoryDataplane>) -> Vec<u32> {
    let mut numbers: Vec<u32> = core
        .dataplane()
        .tables
        .access
        .keys()
        .map(|key| key.list)
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

const SOURCES: [&str; 5] = [
    "10.1.2.3",
    "10.2.2.3",
    "192.0.2.1",
    "2001:db8::1",
    "fd00::1",
];

fn verdicts(memory: &MemoryDataplane, number: u32) -> Vec<u32> {
    let verdicts = SOURCES.iter();
    verdicts
        .map(|source| says(memory, number, source))
        .collect()
}

/// The operations by which the maps become what a change wants.
fn planned(core: &Core<MemoryDataplane>, change: Change) -> Vec<Operation> {
    let state: State = core.state().apply(change).expect("a valid change");
    let inputs = Inputs {
        state: &state,
        down: &Default::default(),
        next_hops: &Default::default(),
        no_ways: &Default::default(),
        links: &Default::default(),
        devices: &Default::default(),
        vlans: false,
        own_addresses: &Default::default(),
        tunnel: Tunnel::default(),
        unknown_port: UNKNOWN_PORT,
        now: core.dataplane().now(),
        census: None,
        overflows: &Default::default(),
        traffic: &Default::default(),
        sampling: &Default::default(),
        keeps_flows: false,
        only: None,
    };
    plan::plan(core.layout(), &inputs)
        .expect("a plan")
        .operations
}

#[test]
fn no_packet_meets_a_part_of_a_list_that_replaces_another() {
    let old = list("some", &["10.1.0.0/16", "fd00::/8"], &[]);
    let new = list(
        "some",
        &["10.2.0.0/16", "192.0.2.0/24", "2001:db8::/32"],
        &["10.2.9.0/24"],
    );
    let core = core(&[old]);
    let number = core.layout().placed(id(80)).expect("a service").number as usize;
    let before = verdicts(core.dataplane(), guard(&core, 80).list);
    let operations = planned(&core, Change::SetAccessList(new));
    let mut memory = MemoryDataplane {
        tables: core.dataplane().tables.clone(),
        ..empty()
    };
    let mut seen = vec![before];
    for operation in &operations {
        memory.apply(operation);
        let entry: GuardEntry = memory.tables.guards[number];
        let now = verdicts(
            &memory,
            entry.halves[half(memory.tables.control.generation)].list,
        );
        if seen.last() != Some(&now) {
            seen.push(now);
        }
    }
    let (yes, no) = (access::ALLOWED, access::DENIED);
    assert_eq!(
        seen,
        [vec![yes, no, no, no, yes], vec![no, yes, yes, yes, no]]
    );
    let [even, odd] = memory.tables.guards[number].halves;
    assert_eq!(even, odd);
}

#[test]
fn nothing_of_a_former_list_is_gone_before_packets_that_may_read_it() {
    let core = core(&[list("some", &["10.1.0.0/16"], &[])]);
    let change = Change::SetAccessList(list("some", &["10.2.0.0/16", "10.3.0.0/16"], &[]));
    let operations = planned(&core, change);
    let at = |is: fn(&Operation) -> bool| operations.iter().position(is);
    let written = at(|operation| matches!(operation, Operation::Access(..)));
    let switch = at(|operation| matches!(operation, Operation::Switch(_)));
    let grace = at(|operation| matches!(operation, Operation::Grace));
    let gone = at(|operation| matches!(operation, Operation::ForgetAccess(..)));
    assert!(
        written < switch && switch < grace && grace < gone,
        "{operations:?}"
    );
    assert!(written.is_some() && gone.is_some());
}

#[test]
fn one_prefix_is_changed_in_place_and_several_by_another_list() {
    let mut core = core(&[list("some", &["10.1.0.0/16"], &[])]);
    let first = guard(&core, 80).list;
    let generation = core.layout().generation;
    let edit = |allow: &[&str], deny: &[&str], remove: &[&str]| {
        let (allow, deny, remove) = (prefixes(allow), prefixes(deny), prefixes(remove));
        Change::EditAccessList(
            "some".to_owned(),
            AccessEdit {
                allow,
                deny,
                remove,
            },
        )
    };
    for (change, source, expected) in [
        (
            edit(&["10.2.0.0/16"], &[], &[]),
            "10.2.2.3",
            access::ALLOWED,
        ),
        (edit(&[], &["10.2.0.0/16"], &[]), "10.2.2.3", access::DENIED),
        (edit(&[], &[], &["10.2.0.0/16"]), "10.2.2.3", access::DENIED),
    ] {
        core.change(change).expect("room enough");
        assert_eq!(says(core.dataplane(), first, source), expected);
    }
    assert_eq!(
        (guard(&core, 80).list, core.layout().generation),
        (first, generation)
    );
    core.change(edit(&["10.2.0.0/16", "10.3.0.0/16"], &[], &[]))
        .expect("room enough");
    let second = guard(&core, 80).list;
    assert_ne!(second, first);
    assert_eq!(numbers(&core), [second]);
    // The last allowed prefix goes, and with it what becomes of all others: three changes.
    core.change(edit(
        &[],
        &[],
        &["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"],
    ))
    .expect("room enough");
    assert_eq!(
        says(core.dataplane(), guard(&core, 80).list, "192.0.2.1"),
        access::ALLOWED
    );
}

#[test]
fn lists_that_no_service_has_take_no_room() {
    let mut core = core(&[
        list("some", &["10.1.0.0/16"], &[]),
        list("spare", &["10.2.0.0/16"], &[]),
    ]);
    assert_eq!(numbers(&core), [guard(&core, 80).list]);
    core.change(Change::AddService(service(81, Some("some"))))
        .expect("room enough");
    assert_eq!(guard(&core, 81).list, guard(&core, 80).list);
    let settings = |list: Option<&str>| Settings {
        access_list: Some(list.map(str::to_owned)),
        ..Settings::default()
    };
    core.change(Change::EditService(id(80), settings(Some("spare"))))
        .expect("room enough");
    assert_eq!(numbers(&core).len(), 2);
    core.change(Change::EditService(id(81), settings(None)))
        .expect("room enough");
    assert_eq!(numbers(&core), [guard(&core, 80).list]);
    core.change(Change::RemoveService(id(80)))
        .expect("room enough");
    assert!(numbers(&core).is_empty());
    let guards = &core.dataplane().tables.guards;
    assert!(
        guards.iter().all(|entry| *entry == GuardEntry::default()),
        "{guards:?}"
    );
}

#[test]
fn an_agent_that_starts_again_takes_lists_up_and_removes_what_is_left_of_others() {
    let lists = [list("some", &["10.1.0.0/16"], &[])];
    let mut first = core(&lists);
    let number = guard(&first, 80).list;
    // The former one died while it wrote another list.
    let mut memory = std::mem::take(first.dataplane_mut());
    let rules = list("other", &["10.7.0.0/16"], &[]).rules().clone();
    memory.apply(&Operation::Access(9, rules));
    let mut next = over(memory);
    let services = vec![service(80, Some("some"))];
    let generation = next.layout().generation;
    next.change(Change::ReplaceAll(lists.to_vec(), services))
        .expect("room enough");
    assert_eq!(
        (guard(&next, 80).list, numbers(&next)),
        (number, vec![number])
    );
    assert_eq!(next.layout().generation, generation);
}

#[test]
fn a_change_that_the_kernel_breaks_off_leaves_the_former_list_in_force() {
    let first = list("some", &["10.1.0.0/16"], &[]);
    let second = list("some", &["10.2.0.0/16", "10.3.0.0/16"], &[]);
    let steps = planned(
        &core(std::slice::from_ref(&first)),
        Change::SetAccessList(second.clone()),
    )
    .len();
    for step in 0..steps {
        let mut core = core(std::slice::from_ref(&first));
        let executed = core.dataplane().executed;
        core.dataplane_mut().fail_at = Some(executed + step);
        let failed = core.change(Change::SetAccessList(second.clone()));
        assert!(
            matches!(failed, Err(ChangeError::Kernel(_))),
            "step {step}: {failed:?}"
        );
        let number = guard(&core, 80).list;
        assert_eq!(
            says(core.dataplane(), number, "10.1.2.3"),
            access::ALLOWED,
            "step {step}"
        );
        assert_eq!(
            says(core.dataplane(), number, "10.2.2.3"),
            access::DENIED,
            "step {step}"
        );
        assert_eq!(numbers(&core), [number], "step {step}");
        core.change(Change::SetAccessList(second.clone()))
            .expect("room enough");
        assert_eq!(
            says(core.dataplane(), guard(&core, 80).list, "10.2.2.3"),
            access::ALLOWED
        );
    }
}

#[test]
fn a_list_that_does_not_fit_is_refused_by_the_name_of_the_setting() {
    let mut memory = empty();
    memory.capacity = Capacity {
        access_prefixes: 8,
        ..Capacity::default()
    };
    let mut core = over(memory);
    let lists = vec![list("some", &["10.1.0.0/16", "10.2.0.0/16"], &[])];
    core.change(Change::ReplaceAll(lists, vec![service(80, Some("some"))]))
        .expect("room for four");
    let executed = core.dataplane().executed;
    // Both lists are there for a moment, and each has what becomes of all others.
    let change = Change::SetAccessList(list(
        "some",
        &["10.3.0.0/16", "10.4.0.0/16", "10.5.0.0/16"],
        &[],
    ));
    let refused = core.change(change);
    let Err(ChangeError::NoRoom(text)) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        text.contains("9 prefixes") && text.contains("`access_prefixes`"),
        "{text}"
    );
    assert_eq!(core.dataplane().executed, executed);
}

#[test]
fn limits_reach_the_program_and_change_while_it_runs() {
    let mut core = core(&[]);
    assert_eq!(guard(&core, 80), Guard::default());
    let settings = |flows, sources| Settings {
        flow_limit: Some(flows),
        source_limit: Some(sources),
        source_prefix_v4: Some(24),
        ..Settings::default()
    };
    let limit = FlowLimit::to(1_000, Some(50)).expect("a limit");
    core.change(Change::EditService(
        id(80),
        settings(limit, FlowLimit::None),
    ))
    .expect("room enough");
    let Guard { flows, sources, .. } = guard(&core, 80);
    assert_eq!((flows, sources), (Rate::new(1_000, 50), Rate::default()));
    core.change(Change::EditService(
        id(80),
        settings(FlowLimit::None, limit),
    ))
    .expect("room enough");
    let now = guard(&core, 80);
    assert_eq!(
        (now.flows, now.sources),
        (Rate::default(), Rate::new(1_000, 50))
    );
    assert_eq!((now.source_bits_v4, now.source_bits_v6), (120, 64));
    core.change(Change::EditService(
        id(80),
        settings(FlowLimit::None, FlowLimit::None),
    ))
    .expect("room enough");
    assert_eq!(guard(&core, 80), Guard::default());
}

#[test]
fn lists_in_use_stay_and_unknown_ones_are_refused() {
    let mut core = core(&[list("some", &["10.1.0.0/16"], &[])]);
    let refused = core.change(Change::RemoveAccessList("some".to_owned()));
    let in_use = matches!(
        refused,
        Err(ChangeError::Refused(ModelError::AccessListInUse { .. }))
    );
    assert!(in_use, "{refused:?}");
    for change in [
        Change::RemoveAccessList("none".to_owned()),
        Change::EditAccessList("none".to_owned(), AccessEdit::default()),
        Change::AddService(service(81, Some("none"))),
    ] {
        let refused = core.change(change);
        let unknown = matches!(
            refused,
            Err(ChangeError::Refused(ModelError::UnknownAccessList { .. }))
        );
        assert!(unknown, "{refused:?}");
    }
}

#[test]
fn limits_of_datagrams_ask_for_their_flows_to_be_recorded() {
    let mut udp = service(80, None);
    udp.id = "10.0.0.1:53/udp".parse().expect("a service");
    udp.flow_limit = FlowLimit::to(10, None).expect("a limit");
    let refused = State::new([udp.clone()]).unwrap_err().to_string();
    assert!(
        refused.contains("flow_limit") && refused.contains("flow_state \"always\""),
        "{refused}"
    );
    udp.flow_state = lb_userspace::model::FlowState::Always;
    assert!(State::new([udp]).is_ok());
}
