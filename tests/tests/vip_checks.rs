//! Checks that go the way traffic does, in modes whose answers do not come back through the balancer.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_tests::{
    backend::PORT,
    config::{Health, Service},
    process::run,
    skip::with_root,
    stage::{BACKENDS, Stage, tcp, v4_pool, v6_pool, vip},
    topology::{Topology, backend_name, backend_v4, backend_v6, vip_v4, vip_v6},
};

const VIP_CHECK: &str =
    "{ type = \"vip\", interval = \"200ms\", timeout = \"100ms\", rise = 2, fall = 3 }";

/// A web service that is only asked the way its traffic goes.
fn checked(mode: &'static str, v6: bool) -> Service {
    let service = match v6 {
        false => Service::new(tcp(vip_v4(1)), mode, Health::NONE, v4_pool(PORT)),
        true => Service::new(tcp(vip_v6(1)), mode, Health::NONE, v6_pool(PORT)),
    };
    service.checked(&[VIP_CHECK])
}

fn address(n: u8, v6: bool) -> SocketAddr {
    match v6 {
        false => (backend_v4(n), PORT).into(),
        true => (backend_v6(n), PORT).into(),
    }
}

#[test]
fn a_backend_without_its_vip_or_its_tunnel_gets_no_connections() -> Result<()> {
    with_root(
        "a_backend_without_its_vip_or_its_tunnel_gets_no_connections",
        || {
            for (mode, v6) in [
                ("ipip", false),
                ("ipip", true),
                ("gue", false),
                ("gue", true),
            ] {
                let service = checked(mode, v6);
                let mut stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
                let is = |stage: &Stage, n, condition| {
                    stage.await_condition(&service, address(n, v6), condition)
                };
                for n in 1..=BACKENDS {
                    is(&stage, n, "up")?;
                }
                let prefix = if v6 { 128 } else { 32 };
                let vip = format!("{}/{prefix}", vip(&service)?.ip());
                let host = stage.topology.backend(2).clone();
                let change = |verb| {
                    let mut ip = host.command("ip");
                    run(ip.args(["addr", verb, &vip, "dev", "lo"])).map(drop)
                };
                change("del")?;
                is(&stage, 2, "down")?;
                ensure!(!stage.answers(&service, 60)?.contains_key(&backend_name(2)));
                change("add")?;
                is(&stage, 2, "up")?;
                stage.detach_tunnel(3)?;
                is(&stage, 3, "down")?;
                ensure!(!stage.answers(&service, 60)?.contains_key(&backend_name(3)));
                is(&stage, 1, "up")?;
                // Nothing listens at the VIP any more, which its host says.
                stage.servers[0].kill();
                is(&stage, 1, "down")?;
                let shown = stage.backend(&service, address(1, v6))?;
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
        let service = checked("ipip", false);
        let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
        stage.await_condition(&service, address(1, false), "up")?;
        let mut ss = stage.topology.backend(1).command("ss");
        let half_open = run(ss.args(["-Htan", "state", "syn-recv"]))?;
        // One may be under way.
        ensure!(half_open.lines().count() <= 1, "{half_open}");
        Ok(())
    })
}
