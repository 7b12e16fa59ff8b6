//! Starts that fail and what they leave, one instance at a time, upgrades, and what `lbd detach` and
//! `lbd decap` do to what is there.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::links::{FdLink, PinnedLink};
use lb_tests::{
    agent::{Agent, Decapsulator, Home, leftovers, refused, xdp},
    binaries,
    bpffs::Bpffs,
    config::{Config, Health},
    netns::Namespace,
    process::run,
    skip::with_root,
    stage::{BACKENDS, Stage, web},
    topology::{INTERFACE, Topology},
    wait::{wait_ok, wait_until},
    xdp_pass::XdpPass,
};
use lb_userspace::instance;

/// Of a link that something else has attached to; comes after [`INTERFACE`].
const BUSY: &str = "zbusy";
const SOON: Duration = Duration::from_secs(10);

/// A link in `namespace` that no agent can attach to, for as long as what this returns lives.
fn busy_link(namespace: &Namespace) -> Result<XdpPass> {
    let name = namespace.name();
    let link = [
        "-n", name, "link", "add", BUSY, "type", "veth", "peer", "name", "zfar",
    ];
    run(Command::new("ip").args(link))?;
    XdpPass::attach(namespace, BUSY)
}

#[test]
fn a_start_that_fails_leaves_neither_program_nor_pin_nor_socket() -> Result<()> {
    with_root(
        "a_start_that_fails_leaves_neither_program_nor_pin_nor_socket",
        || {
            let topology = Topology::new(1)?;
            let balancer = &topology.balancer;
            let home = Home::unique()?;
            let config = Config::from(vec![web(Health::NONE)]);
            fs::write(&home.config, config.render(&home.name))?;
            let fails = |arguments: &[&str], part: &str| -> Result<()> {
                let said = refused(balancer, &home, &home.socket, arguments)?;
                ensure!(said.contains(part), "{arguments:?}: {said}");
                let left = leftovers(balancer, &home.bpffs)?;
                ensure!(left.is_empty(), "{arguments:?} left {left:?}");
                ensure!(!home.socket.exists(), "{arguments:?} left the socket");
                Ok(())
            };
            let any = (Ipv4Addr::LOCALHOST, 0);
            let bound = || -> Result<_> { Ok((TcpListener::bind(any)?, UdpSocket::bind(any)?)) };
            let (metrics, heartbeat) = balancer.run(bound)?;
            let _busy = busy_link(balancer)?;
            fails(
                &["--interface", INTERFACE, "--interface", "none"],
                "no interface none",
            )?;
            let taken = metrics.local_addr()?.to_string();
            fails(&["--metrics", &taken], "serving metrics")?;
            let taken = heartbeat.local_addr()?.to_string();
            fails(&["--heartbeat", &taken], "listening for heartbeats")?;
            fails(
                &["--interface", INTERFACE, "--interface", BUSY],
                "`pass`, in native mode, held by BPF link ",
            )
        },
    )
}

#[test]
fn a_start_that_fails_leaves_the_former_agents_program_and_services_in_force() -> Result<()> {
    with_root(
        "a_start_that_fails_leaves_the_former_agents_program_and_services_in_force",
        || {
            let service = web(Health::NONE);
            let mut stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
            stage.agent.sigterm()?;
            let home = stage.agent.home();
            let balancer = &stage.topology.balancer;
            stage.agent.write_config(&Config::from(vec![]))?;
            let _busy = busy_link(balancer)?;
            let interfaces = ["--interface", INTERFACE, "--interface", BUSY];
            let version = version(home)?;
            // Of this format, and then of another.
            for name in [version.file_name().context("a name")?, "v0".as_ref()] {
                fs::rename(self::version(home)?, version.with_file_name(name))?;
                let before = (xdp(balancer, INTERFACE)?, home.bpffs.entries());
                refused(balancer, home, &home.socket, &interfaces)?;
                ensure!((xdp(balancer, INTERFACE)?, home.bpffs.entries()) == before);
                stage.answers(&service, 30)?;
            }
            Ok(())
        },
    )
}

#[test]
fn an_instance_runs_once_whatever_its_socket_and_is_not_detached_while_it_runs() -> Result<()> {
    with_root(
        "an_instance_runs_once_whatever_its_socket_and_is_not_detached_while_it_runs",
        || {
            let service = web(Health::HTTP);
            let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
            let home = stage.agent.home();
            let other = home.socket.with_extension("other.sock");
            let said = refused(&stage.topology.balancer, home, &other, &[])?;
            ensure!(
                said.contains("it is running") && said.contains("--name"),
                "{said}"
            );
            // Its own socket is not where this looks, either.
            let said = stage.agent.try_detach().expect_err("it runs").to_string();
            ensure!(said.contains("it is running"), "{said}");
            stage.answers(&service, 30).map(drop)
        },
    )
}

#[test]
fn detaching_removes_what_was_kept_wherever_the_socket_was_and_can_be_repeated() -> Result<()> {
    with_root(
        "detaching_removes_what_was_kept_wherever_the_socket_was_and_can_be_repeated",
        || {
            let mut stage = Stage::new(Topology::new(BACKENDS)?, vec![web(Health::NONE)])?;
            let kept = instance::state_path(&stage.agent.home().name);
            stage.lbctl("backend drain 10.0.0.1:80/tcp 10.2.0.11:80")?;
            let mode = fs::metadata(&kept)
                .context("the kept state")?
                .permissions()
                .mode();
            ensure!(mode & 0o777 == 0o600, "{mode:o}");
            stage.agent.detach()?;
            ensure!(!kept.exists());
            stage.agent.try_detach()
        },
    )
}

/// The pins of one format of the maps.
fn version(home: &Home) -> Result<PathBuf> {
    let root = home.bpffs.path().join("lbd").join(&home.name);
    let versions = fs::read_dir(&root)?.collect::<std::io::Result<Vec<_>>>()?;
    ensure!(versions.len() == 1, "{versions:?}");
    Ok(versions[0].path())
}

/// What the kernel says of the link pinned at `pin`.
fn link_id(pin: &Path) -> Result<u32> {
    let link = PinnedLink::from_pin(pin)?;
    Ok(FdLink::from(link).info()?.id())
}

#[test]
fn an_agent_of_another_format_of_the_maps_takes_the_interface_over() -> Result<()> {
    with_root(
        "an_agent_of_another_format_of_the_maps_takes_the_interface_over",
        || {
            let service = web(Health::NONE);
            let mut stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
            stage.agent.sigterm()?;
            let version = version(stage.agent.home())?;
            let link = format!("links/native-{INTERFACE}");
            let before = link_id(&version.join(&link))?;
            fs::rename(&version, version.with_file_name("v0"))?;
            stage.agent.restart()?;
            stage.answers(&service, 30)?;
            ensure!(self::version(stage.agent.home())? == version);
            ensure!(
                link_id(&version.join(&link))? == before,
                "it was attached anew"
            );
            Ok(())
        },
    )
}

#[test]
fn a_program_of_somebody_else_is_named_as_the_reason_whatever_the_mode() -> Result<()> {
    with_root(
        "a_program_of_somebody_else_is_named_as_the_reason_whatever_the_mode",
        || {
            let topology = Topology::new(1)?;
            let balancer = &topology.balancer;
            let _first = Agent::start(balancer, &Config::from(vec![]))?;
            let home = Home::unique()?;
            fs::write(&home.config, Config::from(vec![]).render(&home.name))?;
            for mode in ["auto", "native", "generic"] {
                let said = refused(balancer, &home, &home.socket, &["--mode", mode])?;
                ensure!(said.contains("lbd detach --name"), "{mode}: {said}");
            }
            Ok(())
        },
    )
}

#[test]
fn an_interface_that_is_made_anew_gets_the_program_again() -> Result<()> {
    with_root(
        "an_interface_that_is_made_anew_gets_the_program_again",
        || {
            const OTHER: &str = "other";
            let topology = Topology::new(1)?;
            let balancer = &topology.balancer;
            let link = |verb: &str, kind: &str| {
                let command = format!("-n {} link {verb} {OTHER} {kind}", balancer.name());
                run(Command::new("ip").args(command.split_whitespace()))
            };
            link("add", "type veth peer name far")?;
            let interfaces = ["--interface", INTERFACE, "--interface", OTHER];
            let config = Config::from(vec![web(Health::NONE)]);
            let agent = Agent::start_in(balancer, &config, Home::unique()?, &interfaces)?;
            let first = xdp(balancer, OTHER)?;
            link("del", "")?;
            wait_until("the agent says so", SOON, || {
                agent.log().contains("is gone")
            })?;
            link("add", "type veth peer name far")?;
            wait_ok("it is attached to again", SOON, || {
                let program = xdp(balancer, OTHER)?;
                ensure!(
                    program.is_object() && program == first,
                    "{program}, was {first}"
                );
                Ok(())
            })
        },
    )
}

#[test]
fn a_decapsulator_changes_its_mode_and_says_so() -> Result<()> {
    with_root("a_decapsulator_changes_its_mode_and_says_so", || {
        let topology = Topology::new(1)?;
        let backend = topology.backend(1);
        let decapsulator = Decapsulator::attach(backend)?;
        // `XDP_ATTACHED_SKB` and `XDP_ATTACHED_DRV` of `linux/if_link.h`.
        for (arguments, name, number) in [(&["--generic"][..], "generic", 2), (&[], "native", 1)] {
            let said = decapsulator.lbd_decap(arguments)?;
            ensure!(said.contains(&format!("in {name} mode")), "{said}");
            let program = xdp(backend, INTERFACE)?;
            ensure!(program["mode"] == number, "{name}: {program}");
        }
        decapsulator.detach()
    })
}

#[test]
fn a_decapsulator_stays_where_another_mode_is_refused() -> Result<()> {
    with_root("a_decapsulator_stays_where_another_mode_is_refused", || {
        const BRIDGE: &str = "br0";
        let namespace = Namespace::unique("decap")?;
        let bpffs = Bpffs::unique()?;
        let name = namespace.name();
        run(Command::new("ip").args(["-n", name, "link", "add", BRIDGE, "type", "bridge"]))?;
        let decap = |arguments: &[&str]| -> Result<String> {
            let mut command = namespace.command(binaries::find("lbd")?);
            let usual = [
                "decap",
                "--interface",
                BRIDGE,
                "--address",
                "10.0.0.1",
                "--bpffs",
            ];
            command.args(usual).arg(bpffs.path()).args(arguments);
            run(&mut command)
        };
        decap(&[]).expect_err("bridges have no native XDP");
        decap(&["--generic"])?;
        decap(&[]).expect_err("they still have none");
        ensure!(xdp(&namespace, BRIDGE)?.is_object(), "it is gone");
        decap(&["--detach"]).map(drop)
    })
}
