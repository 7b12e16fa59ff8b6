//! Clients of given prefixes and the subset of backends that their route leads to, over real servers; routes and subsets change
//! under connections, which stay where they are.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Result, ensure};
use lb_tests::{
    config::Service,
    load::held::Held,
    process::run,
    skip::with_root,
    stage::{BACKENDS, Slots, Stage, every_mode, vip},
    topology::Topology,
};

/// From one request on each held connection to its next.
const PERIOD: Duration = Duration::from_millis(200);

/// The modes that are tried, in both families: answers by the balancer and by the backend, and sessions.
const MODES: [&str; 3] = ["nat", "ipip", "full-nat"];

/// One address of the client's without a route, and one in each of two prefixes, by family.
const SOURCES: [[&str; 3]; 2] = [
    ["10.1.0.10", "10.1.0.100", "10.1.0.200"],
    ["fd00:1::10", "fd00:1::a:1", "fd00:1::b:1"],
];
/// The routes of the latter two.
const ROUTES: &str = "--source-route 10.1.0.96/27=a --source-route 10.1.0.192/26=b --source-route fd00:1::a:0/112=a --source-route fd00:1::b:0/112=b";

/// Whether it is of the second family.
fn family(service: &Service) -> Result<usize> {
    Ok(usize::from(vip(service)?.is_ipv6()))
}

/// Services whose backends have their own family.
fn services() -> Result<Vec<Service>> {
    let mut services = Vec::new();
    for service in every_mode() {
        let v6 = vip(&service)?.is_ipv6();
        let own = service.backends.iter().all(|(at, _)| at.is_ipv6() == v6);
        if own && MODES.contains(&service.mode) {
            services.push(service.with("moving_time", "3s"));
        }
    }
    ensure!(services.len() == 2 * MODES.len(), "{services:?}");
    Ok(services)
}

fn stage(services: &[Service]) -> Result<Stage> {
    let stage = Stage::new(Topology::new(BACKENDS)?, services.to_vec())?;
    let mut batch = Vec::new();
    for [_, sources @ ..] in SOURCES {
        for source in sources {
            let length = if source.contains(':') {
                "64 nodad"
            } else {
                "24"
            };
            batch.push(format!("addr add {source}/{length} dev eth0"));
        }
    }
    for line in batch {
        run(stage.topology.client.command("ip").args(line.split(' ')))?;
    }
    Ok(stage)
}

/// From now on, the client's connections come from another of its addresses.
fn come_from(stage: &Stage, source: &str) -> Result<()> {
    let source: IpAddr = source.parse()?;
    let (family, router) = match source {
        IpAddr::V4(_) => ("-4", "10.1.0.1"),
        IpAddr::V6(_) => ("-6", "fd00:1::1"),
    };
    let line = format!("{family} route replace default via {router} dev eth0 src {source}");
    run(stage.topology.client.command("ip").args(line.split(' ')))?;
    Ok(())
}

/// Who answers new connections from each of the sources.
fn answering(stage: &Stage, service: &Service) -> Result<Vec<Vec<String>>> {
    let answer = |source: &&str| {
        come_from(stage, source)?;
        let names = stage.answers(service, 24)?;
        Ok(names.into_keys().collect())
    };
    SOURCES[family(service)?].iter().map(answer).collect()
}

/// The option that puts each backend into one subset.
fn subsets(service: &Service, subsets: [&str; 3]) -> String {
    let backends = service.backends.iter().zip(subsets);
    let each = backends.map(|((at, _), subset)| format!(" --subsets {at}={subset}"));
    each.collect()
}

fn set(stage: &Stage, service: &Service, options: &str) -> Result<()> {
    stage.lbctl(&format!("service set {} {}", service.vip, options.trim()))
}

#[test]
fn clients_of_two_prefixes_go_to_their_subsets_in_every_family_also_by_an_agent_that_starts_again()
-> Result<()> {
    with_root(
        "clients_of_two_prefixes_go_to_their_subsets_in_every_family_also_by_an_agent_that_starts_again",
        || {
            let services = services()?;
            let mut stage = stage(&services)?;
            for service in &services {
                let split = subsets(service, ["default", "a", "b"]);
                set(&stage, service, &format!("{ROUTES}{split}"))?;
            }
            let expected = ["backend1", "backend2", "backend3"].map(|name| vec![name.to_owned()]);
            for _ in 0..2 {
                for service in &services {
                    let (mode, vip) = (service.mode, &service.vip);
                    let answered = answering(&stage, service)?;
                    ensure!(answered == expected, "{mode} {vip}: {answered:?}");
                }
                stage.agent.restart()?;
            }
            let shown = stage.agent.lbctl(&["service", "show", &services[0].vip])?;
            let shown = shown.succeeded()?;
            ensure!(shown.contains("a: 1 of 1 backends up"), "{shown}");
            Ok(())
        },
    )
}

#[test]
fn a_subset_all_of_whose_backends_are_down_is_not_left_to_others() -> Result<()> {
    with_root(
        "a_subset_all_of_whose_backends_are_down_is_not_left_to_others",
        || {
            let services = services()?;
            let service = &services[0];
            let stage = stage(&services)?;
            let split = subsets(service, ["default", "a", "b"]);
            set(&stage, service, &format!("{ROUTES}{split}"))?;
            let [other, client, _] = SOURCES[0];
            let (at, _) = service.backends[1];
            come_from(&stage, client)?;
            ensure!(stage.only(service, 20)? == "backend2", "before");
            stage.lbctl(&format!("backend drain {} {at}", service.vip))?;
            let refused = stage.answers(service, 5);
            ensure!(refused.is_err(), "{refused:?}");
            come_from(&stage, other)?;
            ensure!(stage.only(service, 20)? == "backend1", "meanwhile");
            // Nobody is in it any more: it is as if it were not there.
            stage.lbctl(&format!("backend remove {} {at}", service.vip))?;
            come_from(&stage, client)?;
            ensure!(stage.only(service, 20)? == "backend1", "after");
            Ok(())
        },
    )
}

#[test]
fn routes_and_subsets_change_under_connections_that_stay_where_they_are() -> Result<()> {
    with_root(
        "routes_and_subsets_change_under_connections_that_stay_where_they_are",
        || {
            let services = services()?;
            let mut stage = stage(&services)?;
            let mut held: BTreeMap<(usize, usize), Held> = BTreeMap::new();
            let mut hold = |stage: &Stage, round: usize| -> Result<()> {
                for (n, service) in services.iter().enumerate() {
                    for (m, source) in SOURCES[family(service)?].iter().enumerate() {
                        come_from(stage, source)?;
                        let target = vip(service)?;
                        let client = &stage.topology.client;
                        let open = Held::open(client, target, 4, PERIOD)?;
                        held.insert((n, 3 * round + m), open);
                    }
                }
                Ok(())
            };
            hold(&stage, 0)?;
            let changes: [(&str, [&str; 3]); 5] = [
                (ROUTES, ["default", "a", "b"]),
                (ROUTES, ["b", "default", "a"]),
                (
                    "--source-route 10.1.0.0/16=a --source-route ::/0=b",
                    ["default", "a", "b"],
                ),
                ("--no-source-routes", ["default", "default", "default"]),
                (ROUTES, ["a", "a,b", "default"]),
            ];
            for (round, (routes, split)) in (1..).zip(changes) {
                for service in &services {
                    let split = subsets(service, split);
                    set(&stage, service, &format!("{routes}{split}"))?;
                }
                hold(&stage, round)?;
                if round == 2 {
                    stage.agent.restart()?;
                }
                // Every other change comes while slots move.
                if round % 2 == 0 {
                    for service in &services {
                        stage.await_slots(service, Slots::have_moved)?;
                    }
                }
            }
            for service in &services {
                stage.await_slots(service, Slots::have_moved)?;
            }
            for (who, held) in held {
                let lives = held.stop()?;
                let broken = lives.broken_per_backend();
                ensure!(broken.is_empty(), "{who:?}: {lives}");
            }
            Ok(())
        },
    )
}
