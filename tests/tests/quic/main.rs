//! QUIC connections of a real implementation: a connection id that names its server leads there from
//! whatever address, over changes of the ring.

mod peers;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use lb_tests::{
    config::{Health, Service},
    skip::with_root,
    stage::{BACKENDS, Slots, Stage, UDP_PORT, v4_pool, vip},
    topology::{Topology, backend_name, backend_v4, vip_v4},
};
use tokio::runtime::Builder;

use crate::peers::{CONFIG_ID, Client, Identity, NONCE, Server, ServerId};

/// Connections held at once: with three servers, all of them have some but once in a billion runs.
const CONNECTIONS: usize = 60;

const fn server_id(n: u8) -> ServerId {
    [0x5e, 0xed, n]
}

fn hex(id: ServerId) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A service in a mode, QUIC or plain UDP.
fn service(mode: &'static str, quic: bool) -> Service {
    let vip = SocketAddr::from((vip_v4(4), UDP_PORT));
    let service = Service::new(format!("{vip}/udp"), mode, Health::NONE, v4_pool(UDP_PORT));
    let service = service.with("moving_time", "2s");
    if !quic {
        return service;
    }
    let layout = format!(
        "{{ config_id = {CONFIG_ID}, server_id_length = {}, nonce_length = {NONCE} }}",
        server_id(0).len()
    );
    let ids = (1..=BACKENDS).map(|n| hex(server_id(n)));
    service.with_quic(&layout, ids)
}

/// A stage, and a server at every backend.
struct Quic {
    service: Service,
    identity: Identity,
    _servers: Vec<Server>,
    stage: Stage,
}

impl Quic {
    fn new(mode: &'static str, quic: bool) -> Result<Self> {
        let service = service(mode, quic);
        let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
        let identity = Identity::new()?;
        let servers = (1..=BACKENDS).map(|n| {
            // Tunnelled packets come as they were sent.
            let at = match mode {
                "nat" => SocketAddr::from((backend_v4(n), UDP_PORT)),
                _ => vip(&service)?,
            };
            let namespace = stage.topology.backend(n);
            Server::start(namespace, &backend_name(n), server_id(n), at, &identity)
        });
        Ok(Self {
            _servers: servers.collect::<Result<_>>()?,
            service,
            identity,
            stage,
        })
    }

    /// Runs `work` in the client's namespace.
    fn client<T: Send>(&self, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
        self.stage.topology.client.run(|| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work())
        })
    }

    async fn connect(&self, count: usize) -> Result<Vec<Client>> {
        let to = vip(&self.service)?;
        let clients = (0..count).map(|_| Client::connect(to, &self.identity));
        join_all(clients).await.into_iter().collect()
    }

    fn named(&self) -> Result<u64> {
        let shown = self.stage.shown(&self.service)?;
        Ok(shown["flows"]["named"].as_u64().unwrap_or_default())
    }

    fn change(&self, verb: &str, n: u8, options: &str) -> Result<()> {
        let (vip, address) = (&self.service.vip, backend_v4(n));
        let line = format!("backend {verb} {vip} {address}:{UDP_PORT}{options}");
        self.stage.lbctl(&line)
    }
}

/// How many connections each server has.
fn shares(clients: &[Client]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for client in clients {
        *shares.entry(client.server.as_str()).or_default() += 1;
    }
    shares
}

/// Has every client go on from another port, and ask who is there.
async fn move_all(clients: &[Client]) -> Result<Vec<Result<String>>> {
    clients.iter().try_for_each(Client::rebind)?;
    Ok(join_all(clients.iter().map(Client::ask)).await)
}

/// The same; every one has to be with the server that it began with.
async fn keep_all(what: &str, clients: &[Client]) -> Result<()> {
    for (client, answer) in clients.iter().zip(move_all(clients).await?) {
        let answer = answer.map_err(|error| error.context(format!("{what}: {}", client.server)))?;
        ensure!(
            answer == client.server,
            "{what}: {} is {answer} now",
            client.server
        );
    }
    Ok(())
}

async fn hold_over_changes(quic: &mut Quic) -> Result<()> {
    let mut clients = quic.connect(CONNECTIONS).await?;
    let shares = shares(&clients);
    ensure!(shares.len() == usize::from(BACKENDS), "{shares:?}");
    keep_all("at rest", &clients).await?;
    quic.change("drain", 1, "")?;
    keep_all("draining", &clients).await?;
    quic.change("remove", 2, "")?;
    keep_all("removed", &clients).await?;
    let fresh = quic.connect(CONNECTIONS / 2).await?;
    let took: BTreeSet<_> = fresh.iter().map(|client| client.server.as_str()).collect();
    ensure!(
        took == BTreeSet::from([backend_name(3).as_str()]),
        "{took:?}"
    );
    clients.extend(fresh);
    quic.stage.await_slots(&quic.service, Slots::are_steady)?;
    keep_all("settled", &clients).await?;
    quic.stage.agent.restart()?;
    keep_all("restarted", &clients).await?;
    quic.change("undrain", 1, "")?;
    keep_all("undrained", &clients).await
}

fn connections_keep_their_servers(mode: &'static str) -> Result<()> {
    let mut quic = Quic::new(mode, true)?;
    let namespace = quic.stage.topology.client.clone();
    namespace.run(|| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(hold_over_changes(&mut quic))
    })?;
    let named = quic.named()?;
    println!("{mode}: {named} packets by connection id");
    ensure!(
        named > 10 * CONNECTIONS as u64,
        "{named} packets by connection id"
    );
    Ok(())
}

#[test]
fn connections_keep_their_servers_from_other_addresses_over_changes_in_nat() -> Result<()> {
    with_root(
        "connections_keep_their_servers_from_other_addresses_over_changes_in_nat",
        || connections_keep_their_servers("nat"),
    )
}

#[test]
fn connections_keep_their_servers_from_other_addresses_over_changes_in_ipip() -> Result<()> {
    with_root(
        "connections_keep_their_servers_from_other_addresses_over_changes_in_ipip",
        || connections_keep_their_servers("ipip"),
    )
}

#[test]
fn without_quic_connections_break_when_their_addresses_change() -> Result<()> {
    with_root(
        "without_quic_connections_break_when_their_addresses_change",
        || {
            let quic = Quic::new("nat", false)?;
            let broken = quic.client(async || {
                let clients = quic.connect(CONNECTIONS).await?;
                let answers = move_all(&clients).await?;
                Ok(answers.iter().filter(|answer| answer.is_err()).count())
            })?;
            println!("{broken} of {CONNECTIONS} broke");
            // Two of three come to another server.
            ensure!(broken > CONNECTIONS / 4, "{broken} of {CONNECTIONS} broke");
            ensure!(quic.named()? == 0, "packets went by connection id");
            Ok(())
        },
    )
}
