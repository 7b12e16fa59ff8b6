//! Packets of one client on two CPUs at once, where clients keep their backends.

use std::net::SocketAddr;

use lb_userspace::{
    agent::Core,
    config::{self, Tunnel},
    model::{Change, ServiceId},
};

use crate::{
    frame::{self, Sent, control::ACK},
    reach::{memory, reached},
    sabotage::Bent,
    tally::Tally,
};

const VIP: &str = "10.0.0.1:80/tcp";
/// More than a new flow makes to the flow tables.
const ACCESSES: u64 = 16;

#[test]
fn a_client_keeps_its_backend_while_another_cpu_confirms_it() {
    let id: ServiceId = VIP.parse().unwrap();
    let backends: Vec<String> = (1..5)
        .map(|n| format!("{{ address = \"10.1.0.{n}:80\" }}"))
        .collect();
    // In turn, so that nothing but its record takes a client to the same backend again.
    let text = format!(
        "[[service]]\nvip = \"{VIP}\"\nmode = \"ipip\"\nscheduler = \"round-robin\"\n\
         persistence = \"60s\"\nbackend = [{}]\n",
        backends.join(", ")
    );
    let mut core = Core::new("at-once".to_owned(), Tunnel::default(), memory()).unwrap();
    for n in 1..5 {
        core.network(reached([10, 1, 0, n].into(), n));
    }
    let services = config::parse(&text, "test").unwrap().services;
    core.change(Change::Replace(services)).unwrap();
    let tables = &core.dataplane().tables;
    let tally = Tally::default();
    let mut confirmed = 0;
    for (accesses, host) in (0..ACCESSES).zip(1..) {
        let from = |port| SocketAddr::from(([192, 0, 2, host], port));
        let first = frame::send(tables, from(1), id, Sent::Opening).unwrap();
        let confirm = || {
            confirmed += 1;
            frame::send(tables, from(1), id, Sent::Segment(ACK)).unwrap();
        };
        let confirm = std::cell::RefCell::new(confirm);
        let act = || confirm.borrow_mut()();
        let bent = Bent::new(tables, None, &tally).meanwhile(accesses, &act);
        let second = frame::send(&bent, from(2), id, Sent::Opening).unwrap();
        assert_eq!(second, first, "confirmed before access {accesses}");
    }
    assert!(
        (4..ACCESSES).contains(&confirmed),
        "{confirmed} of {ACCESSES}"
    );
}
