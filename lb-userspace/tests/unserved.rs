//! What packets get that nobody serves: what is configured reaches the program's tables, and leaves them
//! only once no packet can have seen it.

use lb_common::tables::{feature, refusal};
use lb_userspace::{
    agent::Core,
    config::{self, Tunnel},
    dataplane::memory::MemoryDataplane,
    model::{Change, Service, Settings, Unserved},
    plan::half,
};

fn service(mode: &str, more: &str) -> Service {
    let text = format!(
        "[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"{mode}\"\n{more}\n\
         health = {{ type = \"none\" }}\nbackend = [{{ address = \"10.2.0.11:80\" }}]\n"
    );
    let config = config::parse(&text, "lb.toml").expect("what is valid");
    config.services[0].clone()
}

fn core(memory: MemoryDataplane) -> Core<MemoryDataplane> {
    Core::new("unserved".to_owned(), Tunnel::default(), memory).expect("sound maps")
}

fn empty() -> Core<MemoryDataplane> {
    let mut memory = MemoryDataplane::default();
    memory.tables.control.lookup_bits = 2;
    core(memory)
}

/// What the only service's packets get, as the program has it.
fn refusal_of(core: &Core<MemoryDataplane>) -> u8 {
    let tables = &core.dataplane().tables;
    tables.service_entries[0].halves[half(tables.control.generation)].refusal()
}

/// Features in force, and what unknown ports get.
fn unknown(core: &Core<MemoryDataplane>) -> (u32, u8) {
    let control = &core.dataplane().tables.control;
    (control.features, control.unknown_port)
}

const ALL: [(Unserved, u8); 4] = [
    (Unserved::Drop, refusal::DROP),
    (Unserved::Reset, refusal::RESET),
    (Unserved::Unreachable, refusal::UNREACHABLE),
    (Unserved::Pass, refusal::PASS),
];

#[test]
fn a_service_without_a_backend_refuses_as_it_is_told() {
    let mut core = empty();
    let service = service("ipip", "no_backend = \"reset\"");
    let id = service.id;
    core.change(Change::AddService(service))
        .expect("room enough");
    assert_eq!(refusal_of(&core), refusal::RESET);
    for (unserved, number) in ALL {
        let settings = Settings {
            no_backend: Some(unserved),
            ..Settings::default()
        };
        core.change(Change::EditService(id, settings))
            .expect("room enough");
        assert_eq!(refusal_of(&core), number);
    }
}

#[test]
fn unknown_ports_pass_unless_it_is_said_otherwise() {
    let mut core = empty();
    core.change(Change::AddService(service("ipip", "")))
        .expect("room enough");
    let (features, _) = unknown(&core);
    assert_eq!(features & feature::UNKNOWN_PORTS, 0);
    assert_eq!(core.snapshot().unknown_port, Unserved::Pass);
}

#[test]
fn unknown_ports_get_what_the_configuration_says_whatever_services_there_are() {
    for mode in ["ipip", "nat"] {
        let mut core = empty();
        let used = match mode {
            "nat" => feature::NAT,
            _ => feature::IPIP,
        };
        core.change(Change::AddService(service(mode, "")))
            .expect("room enough");
        for (unserved, number) in ALL.into_iter().chain(ALL) {
            core.refuse_unknown_ports(unserved);
            core.enforce().expect("room enough");
            let refuses = match unserved {
                Unserved::Pass => 0,
                _ => feature::UNKNOWN_PORTS,
            };
            assert_eq!(unknown(&core), (used | refuses, number), "{mode}");
            assert_eq!(core.snapshot().unknown_port, unserved);
        }
    }
}

#[test]
fn an_agent_that_starts_again_takes_a_policy_back_that_is_no_longer_configured() {
    let mut first = empty();
    first.refuse_unknown_ports(Unserved::Drop);
    first
        .change(Change::AddService(service("nat", "")))
        .expect("room enough");
    let mut second = core(std::mem::take(first.dataplane_mut()));
    second
        .change(Change::Replace(vec![service("nat", "")]))
        .expect("room enough");
    assert_eq!(unknown(&second), (feature::NAT, refusal::PASS));
}
