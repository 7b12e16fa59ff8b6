//! Checks that go the way traffic does, in modes whose answers do not come back through the balancer.

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    backend::PORT,
    config::{Health, Service},
    process::run,
    skip::with_root,
    stage::{BACKENDS, Stage, tcp, v4_pool, v6_pool, vip},
    topology::{Topology, backend_name, vip_v4, vip_v6},
};

const VIP_CHECK: &str =
    "{ type = \"vip\", interval = \"200ms\", timeout = \"100ms\", rise = 2, fall = 3 }";

/// A web service that is only asked the way its traffic goes, at VIP `n`.
fn checked(mode: &'static str, n: u8, [vip6, backends6]: [bool; 2]) -> Service {
    let vip = match vip6 {
        false => tcp(vip_v4(n)),
        true => tcp(vip_v6(n.into())),
    };
    let service = match backends6 {
        false => Service::new(vip, mode, Health::NONE, v4_pool(PORT)),
        true => Service::new(vip, mode, Health::NONE, v6_pool(PORT)),
    };
    service.checked(&[VIP_CHECK])
}

/// One of each mode and pair of families.
fn every_way() -> Vec<Service> {
    let families = [[false, false], [true, true], [false, true], [true, false]];
    let ways = ["ipip", "gue", "l2"]
        .into_iter()
        .flat_map(|mode| families.map(|families| (mode, families)));
    let ways = (1..).zip(ways);
    ways.map(|(n, (mode, families))| checked(mode, n, families))
        .collect()
}

fn await_all(stage: &Stage, services: &[Service], n: u8, condition: &str) -> Result<()> {
    for service in services {
        let (address, _) = service.backends[usize::from(n) - 1];
        let awaited = stage.await_condition(service, address, condition);
        awaited.with_context(|| format!("{} in mode {}", service.vip, service.mode))?;
    }
    Ok(())
}

/// Backend `n` gets no connections of any of them.
fn gets_none(stage: &Stage, services: &[Service], n: u8) -> Result<()> {
    for service in services {
        let answers = stage.answers(service, 30)?;
        let (vip, mode) = (&service.vip, service.mode);
        ensure!(
            !answers.contains_key(&backend_name(n)),
            "{vip} in mode {mode}: {answers:?}"
        );
    }
    Ok(())
}

#[test]
fn a_backend_without_its_vip_or_its_tunnel_gets_no_connections() -> Result<()> {
    with_root(
        "a_backend_without_its_vip_or_its_tunnel_gets_no_connections",
        || {
            let services = every_way();
            let mut stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            for n in 1..=BACKENDS {
                await_all(&stage, &services, n, "up")?;
            }
            let host = stage.topology.backend(2).clone();
            let change = |verb: &str| -> Result<()> {
                for service in &services {
                    let vip = vip(service)?.ip();
                    let vip = format!("{vip}/{}", if vip.is_ipv6() { 128 } else { 32 });
                    let mut ip = host.command("ip");
                    ip.args(["addr", verb, &vip, "dev", "lo"]);
                    if verb == "add" && vip.contains(':') {
                        ip.arg("nodad");
                    }
                    run(&mut ip)?;
                }
                Ok(())
            };
            change("del")?;
            await_all(&stage, &services, 2, "down")?;
            gets_none(&stage, &services, 2)?;
            change("add")?;
            await_all(&stage, &services, 2, "up")?;
            stage.detach_tunnel(3)?;
            let in_tunnels = |service: &Service| service.mode != "l2";
            let (tunnelled, l2): (Vec<_>, Vec<_>) = services.iter().cloned().partition(in_tunnels);
            await_all(&stage, &tunnelled, 3, "down")?;
            gets_none(&stage, &tunnelled, 3)?;
            await_all(&stage, &l2, 3, "up")?;
            await_all(&stage, &services, 1, "up")?;
            // Nothing listens at the VIPs any more, which their host says.
            stage.servers[0].kill();
            await_all(&stage, &services, 1, "down")?;
            for service in &services {
                let shown = stage.backend(service, service.backends[0].0)?;
                let error = shown.as_ref().map(|backend| backend["last_error"].clone());
                ensure!(error == Some("connection refused".into()), "{shown:?}");
            }
            Ok(())
        },
    )
}

#[test]
fn probes_leave_nothing_behind_at_a_backend() -> Result<()> {
    with_root("probes_leave_nothing_behind_at_a_backend", || {
        let service = checked("ipip", 1, [false, false]);
        let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
        stage.await_condition(&service, service.backends[0].0, "up")?;
        let mut ss = stage.topology.backend(1).command("ss");
        let half_open = run(ss.args(["-Htan", "state", "syn-recv"]))?;
        // One may be under way.
        ensure!(half_open.lines().count() <= 1, "{half_open}");
        Ok(())
    })
}

/// Prefix of VIPs.
const PREFIX: &str = "10.0.0.64/28";

/// Services of which no connection to one address tells all: of other protocols, of several ports or addresses, those whose backends are
/// told of each other, and what else is of their group.
fn others() -> Vec<Service> {
    let [v4, v6] = [false, true].map(|v6| match v6 {
        false => v4_pool(PORT).collect::<Vec<_>>(),
        true => v6_pool(PORT).collect(),
    });
    let group =
        |n| Service::new(tcp(vip_v4(n)), "ipip", Health::NONE, v4.clone()).with("group", "web");
    let with_port = VIP_CHECK.replace('{', &format!("{{ port = {PORT},"));
    let checked = |vip: String, mode, pool: &[_]| {
        Service::new(vip, mode, Health::NONE, pool.to_vec()).checked(&[VIP_CHECK])
    };
    vec![
        checked(format!("{}:53/udp", vip_v4(1)), "ipip", &v4),
        checked(format!("[{}]:53/udp", vip_v6(1)), "gue", &v6),
        checked(format!("[{}]:53/udp", vip_v6(2)), "l2", &v4),
        checked(format!("{}:*/tcp", vip_v4(2)), "ipip", &v4),
        checked(format!("{}:1-{PORT}/tcp", vip_v4(3)), "gue", &v6),
        Service::new(format!("{PREFIX}:*/tcp"), "l2", Health::NONE, v4.clone())
            .checked(&[&with_port]),
        checked(tcp(vip_v4(4)), "gue", &v4).with_true("second_hop"),
        checked(tcp(vip_v6(4)), "gue", &v6).with_true("second_hop"),
        group(5).checked(&[VIP_CHECK]),
        group(6).checked(&[VIP_CHECK]),
    ]
}

#[test]
fn without_its_vip_a_backend_gets_no_flows_of_other_protocols_ranges_prefixes_and_groups()
-> Result<()> {
    with_root(
        "without_its_vip_a_backend_gets_no_flows_of_other_protocols_ranges_prefixes_and_groups",
        || {
            let services = others();
            let stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            for n in 1..=BACKENDS {
                await_all(&stage, &services, n, "up")?;
            }
            let host = stage.topology.backend(2).clone();
            let change = |verb: &str, v4: &[u8]| -> Result<()> {
                let v4 = v4.iter().map(|&n| format!("{}/32", vip_v4(n)));
                for vip in v4.chain([1, 2, 4].map(|n| format!("{}/128", vip_v6(n)))) {
                    let mut ip = host.command("ip");
                    ip.args(["addr", verb, &vip, "dev", "lo"]);
                    if verb == "add" && vip.contains(':') {
                        ip.arg("nodad");
                    }
                    run(&mut ip)?;
                }
                let mut ip = host.command("ip");
                run(ip.args(["route", verb, "local", PREFIX, "dev", "lo"]))?;
                Ok(())
            };
            // Of the group, the first VIP is there all the time.
            let gone = [1, 2, 3, 4, 6];
            change("del", &gone)?;
            await_all(&stage, &services, 2, "down")?;
            let group = stage.backend(&services[9], services[9].backends[1].0)?;
            let error = group.map(|backend| backend["last_error"].to_string());
            let at = format!("{}: no answer", tcp(vip_v4(6)).trim_end_matches("/tcp"));
            ensure!(
                error.as_ref().is_some_and(|error| error.contains(&at)),
                "{error:?}"
            );
            for n in [1, 3] {
                await_all(&stage, &services, n, "up")?;
            }
            change("add", &gone)?;
            await_all(&stage, &services, 2, "up")
        },
    )
}
