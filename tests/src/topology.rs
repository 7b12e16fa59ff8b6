//! The network that tests and the playground run in: one segment with a client, a balancer and
//! backends, each in a namespace with one interface `eth0`.
//!
//! ```text
//! client 10.1.0.10 ─┐                 ┌─ backend1 10.2.0.11
//!                   ├─ bridge (switch)┼─ backend2 10.2.0.12
//! balancer 10.1.0.1 ┘                 └─ …
//!          10.2.0.1
//! ```
//!
//! The balancer is a router on a stick between the two subnets, and the client routes the VIPs to
//! it. A backend answers through the balancer from its own address (`nat`) and directly to the
//! client from a VIP (DSR). Owns addresses, routes and links; never starts a program.

use std::{
    env,
    fs::{File, OpenOptions},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

use crate::{netns::Namespace, xdp_pass::XdpPass};

mod wiring;

/// The client's address.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// The client's address.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x10);
/// The balancer's address on the backends' subnet.
pub const BALANCER_V4: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
/// The balancer's address on the backends' subnet.
pub const BALANCER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1);
/// The address of the balancer's pool, on the backends' subnet.
pub const POOL_V4: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 201);
/// The same of IPv6.
pub const POOL_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0xc9);
/// The interface of every node.
pub const INTERFACE: &str = "eth0";
/// The balancer's other one, where [`Topology::two_armed`] gives it one.
pub const CLIENT_SIDE: &str = "eth1";
/// Backends that fit the address plan.
pub const MAX_BACKENDS: usize = 99;

/// Serializes what measures time against everything else, across test binaries.
const TURN_FILE: &str = "/run/lb-tests.lock";
/// Where nextest says which of its groups a test is in.
const GROUP: &str = "NEXTEST_TEST_GROUP";
/// That of tests beside which nextest starts no other.
const ALONE: &str = "alone";

/// The VIP `10.0.0.n`.
pub const fn vip_v4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

/// The VIP `fd00::n`.
pub const fn vip_v6(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)
}

/// The address of backend `n`, counted from 1: `10.2.0.11` and on.
pub const fn backend_v4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 2, 0, 10 + n)
}

/// The address of backend `n`, counted from 1: `fd00:2::11` and on, in hexadecimal digits.
pub const fn backend_v6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x10 + n as u16)
}

/// The name of backend `n`, counted from 1, which is also what its server answers.
pub fn backend_name(n: u8) -> String {
    format!("backend{n}")
}

/// How namespaces are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names<'a> {
    /// After the process and a counter, so that runs never meet.
    Unique,
    /// `NAME-client`, `NAME-balancer`, `NAME-backend1` …, for people to type.
    Stable(&'a str),
}

/// What stands beside a topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Other tests' topologies may stand at the same time.
    Shared,
    /// No other test runs: for those that measure time or loss.
    Exclusive,
}

impl Turn {
    /// Waits for it, and holds it until the lock is dropped. A topology that has one holds it itself.
    ///
    /// # Errors
    /// The lock cannot be taken.
    pub fn take(self) -> Result<Flock<File>> {
        let kind = match self {
            Self::Shared => FlockArg::LockShared,
            Self::Exclusive => FlockArg::LockExclusive,
        };
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(TURN_FILE)
            .with_context(|| format!("opening {TURN_FILE}"))?;
        match Flock::lock(file, kind) {
            Ok(lock) => Ok(lock),
            Err((_, error)) => bail!("locking {TURN_FILE}: {error}"),
        }
    }
}

/// That a test of nextest's `group` is run alone, or by something else. Tests without namespaces hold no lock.
fn ensure_alone(group: Option<&str>) -> Result<()> {
    ensure!(
        group.is_none_or(|group| group == ALONE),
        "a test with a topology to itself is in nextest's group `{}`: name it in .config/nextest.toml, \
         where the group is `{ALONE}`",
        group.unwrap_or_default()
    );
    Ok(())
}

/// The client, the balancer and the backends, wired up. Everything goes on drop.
#[derive(Debug)]
pub struct Topology {
    /// Where the load comes from.
    pub client: Namespace,
    /// Where the programs under test run.
    pub balancer: Namespace,
    /// `backends[0]` is backend 1.
    pub backends: Vec<Namespace>,
    /// Holds the bridge; its ports are called `client`, `balancer`, `backend1` …
    pub switch: Namespace,
    _far_ends: Vec<XdpPass>,
    _turn: Option<Flock<File>>,
}

impl Topology {
    /// With `backends` backends, beside other tests.
    ///
    /// # Errors
    /// A namespace or link cannot be made.
    pub fn new(backends: u8) -> Result<Self> {
        Self::build(backends, Names::Unique, Some(Turn::Shared))
    }

    /// With `backends` backends and no other test's topology at the same time; waits for that.
    ///
    /// # Errors
    /// A namespace or link cannot be made, or nextest would run other tests meanwhile.
    pub fn exclusive(backends: u8) -> Result<Self> {
        ensure_alone(env::var(GROUP).ok().as_deref())?;
        Self::build(backends, Names::Unique, Some(Turn::Exclusive))
    }

    /// As named; without a turn, tests are ignored.
    ///
    /// # Errors
    /// A namespace or link cannot be made, or names that are stable are taken.
    pub fn build(backends: u8, names: Names<'_>, turn: Option<Turn>) -> Result<Self> {
        ensure!(
            usize::from(backends) <= MAX_BACKENDS,
            "{backends} backends do not fit the address plan: at most {MAX_BACKENDS}"
        );
        let turn = turn.map(Turn::take).transpose()?;
        let make = |role: &str| match names {
            Names::Unique => Namespace::unique(role),
            Names::Stable(name) => Namespace::named(&stable_name(name, role)),
        };
        let (switch, client, balancer) = (make("switch")?, make("client")?, make("balancer")?);
        let backends = (1..=backends)
            .map(|n| make(&backend_name(n)))
            .collect::<Result<Vec<_>>>()?;
        wiring::switch(&switch, &nodes(&client, &balancer, &backends))?;
        wiring::client(&client)?;
        wiring::balancer(&balancer)?;
        for (n, backend) in (1..).zip(&backends) {
            wiring::backend(backend, n)?;
        }
        for (_, node) in nodes(&client, &balancer, &backends) {
            wiring::await_link_local(node, INTERFACE)?;
        }
        let far_end = XdpPass::attach(&switch, "balancer")?;
        Ok(Self {
            client,
            balancer,
            backends,
            switch,
            _far_ends: vec![far_end],
            _turn: turn,
        })
    }

    /// The same with two segments instead of one: the client's is at the balancer's [`CLIENT_SIDE`], and all ways between client
    /// and backends lead by the balancer, that of direct answers included.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn two_armed(backends: u8) -> Result<Self> {
        let mut topology = Self::new(backends)?;
        wiring::split(&topology.switch, &topology.balancer, CLIENT_SIDE)?;
        for backend in &topology.backends {
            wiring::answer_by_balancer(backend)?;
        }
        wiring::await_link_local(&topology.balancer, CLIENT_SIDE)?;
        let far_end = XdpPass::attach(&topology.switch, CLIENT_SIDE)?;
        topology._far_ends.push(far_end);
        Ok(topology)
    }

    /// Backend `n`, counted from 1.
    ///
    /// # Panics
    /// There are fewer.
    pub fn backend(&self, n: u8) -> &Namespace {
        &self.backends[usize::from(n) - 1]
    }

    /// Puts VIPs on every backend's loopback, so that it accepts what DSR brings it.
    ///
    /// # Errors
    /// One is there already.
    pub fn accept_vips(&self, vips: &[IpAddr]) -> Result<()> {
        self.backends
            .iter()
            .try_for_each(|backend| wiring::accept_vips(backend, vips))
    }

    /// Has every backend accept what DSR brings it to any address of a prefix.
    ///
    /// # Errors
    /// It does already.
    pub fn accept_prefix(&self, prefix: &str) -> Result<()> {
        let batch = format!("route add local {prefix} dev lo\n");
        self.backends
            .iter()
            .try_for_each(|backend| wiring::ip_batch(backend, &batch))
    }

    /// Takes the link of backend `n` down at the switch: to the others it falls silent, without
    /// a reset or an ICMP error.
    ///
    /// # Errors
    /// There is no such backend.
    pub fn silence(&self, n: u8) -> Result<()> {
        wiring::set_port(&self.switch, &backend_name(n), "down")
    }

    /// Has the balancer answer ARP and NDP for the addresses of its pool, from which it sends nothing itself.
    ///
    /// # Errors
    /// The addresses cannot be added.
    pub fn own_pool(&self) -> Result<()> {
        let batch = format!(
            "addr add {POOL_V4}/32 dev {INTERFACE}\n\
             addr add {POOL_V6}/128 dev {INTERFACE} nodad preferred_lft 0\n"
        );
        wiring::ip_batch(&self.balancer, &batch)
    }

    /// Has it answer ARP for one more address.
    ///
    /// # Errors
    /// It cannot be added.
    pub fn own_v4(&self, address: Ipv4Addr) -> Result<()> {
        let batch = format!("addr add {address}/32 dev {INTERFACE}\n");
        wiring::ip_batch(&self.balancer, &batch)
    }

    /// Takes the way by the balancer from backend `n`, which only reaches what is on its own subnets then.
    ///
    /// # Errors
    /// There are none.
    pub fn isolate(&self, n: u8) -> Result<()> {
        let batch = "route del default via 10.2.0.1\nroute del default via fd00:2::1\n";
        wiring::ip_batch(self.backend(n), batch)
    }

    /// Undoes [`Self::silence`].
    ///
    /// # Errors
    /// There is no such backend.
    pub fn unsilence(&self, n: u8) -> Result<()> {
        wiring::set_port(&self.switch, &backend_name(n), "up")
    }

    /// Packets dropped by the links themselves, of all nodes and ports: where a test counts losses,
    /// these are not the balancer's.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn link_drops(&self) -> Result<Vec<(String, u64)>> {
        let mut drops = wiring::drops(&self.switch)?;
        for (role, namespace) in nodes(&self.client, &self.balancer, &self.backends) {
            let own = wiring::drops(namespace)?;
            drops.extend(
                own.into_iter()
                    .map(|(link, n)| (format!("{role}/{link}"), n)),
            );
        }
        Ok(drops)
    }
}

/// What [`Names::Stable`] calls the namespace of `role`.
pub fn stable_name(name: &str, role: &str) -> String {
    format!("{name}-{role}")
}

/// The namespaces that [`Names::Stable`] would make and that exist.
pub fn stable_names_taken(name: &str) -> Vec<String> {
    let fixed = ["switch", "client", "balancer"].map(str::to_owned);
    let backends = (1..=MAX_BACKENDS).map(|n| format!("backend{n}"));
    let names = fixed
        .into_iter()
        .chain(backends)
        .map(|role| stable_name(name, &role));
    names.filter(|name| crate::netns::exists(name)).collect()
}

fn nodes<'a>(
    client: &'a Namespace,
    balancer: &'a Namespace,
    backends: &'a [Namespace],
) -> Vec<(String, &'a Namespace)> {
    let fixed = [
        ("client".to_owned(), client),
        ("balancer".to_owned(), balancer),
    ];
    let backends = (1..)
        .zip(backends)
        .map(|(n, backend)| (backend_name(n), backend));
    fixed.into_iter().chain(backends).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topology_to_itself_is_refused_where_nextest_runs_other_tests_beside_it() {
        assert!(ensure_alone(Some(ALONE)).is_ok());
        assert!(ensure_alone(None).is_ok(), "not by nextest");
        let refused = ensure_alone(Some("@global")).unwrap_err().to_string();
        assert!(refused.contains(".config/nextest.toml"), "{refused}");
    }
}
