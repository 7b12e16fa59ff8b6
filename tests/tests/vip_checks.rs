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
