//! Checks other than TCP and HTTP, against real servers at the backends: what they find is said by `lbctl`
//! with its reason, and steers new flows.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hickory_proto::{
    op::{Message, MessageType, OpCode},
    rr::{RData, Record, rdata::A},
};
use lb_tests::{
    answering::{SpokenFor, answering},
    config::{Config, Health, Service},
    load::Background,
    netns::Namespace,
    skip::with_root,
    stage::{BACKENDS, Stage, web, web_address},
    topology::{BALANCER_V4, Topology, backend_name, backend_v4},
    udp::UdpEcho,
    wait::wait_until,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time,
};
use tokio_rustls::TlsAcceptor;

const SOON: Duration = Duration::from_secs(30);
/// Where checks ask, apart from where connections go.
const CHECK_PORT: u16 = 7_200;
const OTHER_PORT: u16 = 7_201;
const HEARTBEAT_PORT: u16 = 7_202;
/// A rhythm that finds out soon.
const FAST: &str = "interval = \"200ms\", timeout = \"150ms\", rise = 2, fall = 3";
const NAME: &str = "app.example";

fn any(port: u16) -> SocketAddr {
    (IpAddr::from(Ipv4Addr::UNSPECIFIED), port).into()
}

/// The web service of a stage, checked by `checks` instead.
fn checked(checks: &[String]) -> Service {
    let checks: Vec<&str> = checks.iter().map(String::as_str).collect();
    web(Health::NONE).checked(&checks)
}

fn last_error(stage: &Stage, service: &Service, n: u8) -> Result<String> {
    let backend = stage
        .backend(service, web_address(n))?
        .context("the backend")?;
    Ok(backend["last_error"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

/// Who answers `count` requests.
fn who_answers(stage: &Stage, service: &Service, count: usize) -> Result<Vec<String>> {
    Ok(stage.answers(service, count)?.into_keys().collect())
}

fn names(backends: impl IntoIterator<Item = u8>) -> Vec<String> {
    backends.into_iter().map(backend_name).collect()
}

/// An HTTPS server that answers 200 to everything.
fn https(
    namespace: &Namespace,
    certificate: CertificateDer<'static>,
    key: &KeyPair,
) -> Result<Background<()>> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    answering(namespace, CHECK_PORT, move |stream| {
        answer(acceptor.clone(), stream)
    })
}

async fn answer(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut request = [0; 2_048];
    if stream.read(&mut request).await? > 0 {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n";
        stream.write_all(answer).await?;
    }
    stream.shutdown().await
}

#[test]
fn https_checks_verify_the_servers_certificate_and_say_what_is_wrong_with_it() -> Result<()> {
    with_root(
        "https_checks_verify_the_servers_certificate_and_say_what_is_wrong_with_it",
        || {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
                .distinguished_name
                .push(DnType::CommonName, "the tests' authority");
            let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
            let directory = tempfile::tempdir()?;
            let ca = directory.path().join("ca.pem");
            fs::write(&ca, authority.pem())?;
            let topology = Topology::new(BACKENDS)?;
            let mut servers = Vec::new();
            for (n, namespace) in (1..).zip(&topology.backends) {
                let name = if n == 2 { "other.example" } else { NAME };
                let key = KeyPair::generate()?;
                let params = CertificateParams::new([name.to_owned()])?;
                let certificate = params.signed_by(&key, &authority)?;
                servers.push(https(namespace, certificate.der().clone(), &key)?);
            }
            let check = format!(
                "{{ type = \"https\", host = \"{NAME}\", port = {CHECK_PORT}, body = \"^ready\", \
                 tls = {{ ca = \"{}\" }}, {FAST} }}",
                ca.display()
            );
            let service = checked(&[check]);
            let stage = Stage::new(topology, vec![service.clone()])?;
            stage.await_condition(&service, web_address(1), "up")?;
            stage.await_condition(&service, web_address(3), "up")?;
            stage.await_condition(&service, web_address(2), "down")?;
            let error = last_error(&stage, &service, 2)?;
            ensure!(error.contains("not valid for name"), "{error}");
            assert_eq!(who_answers(&stage, &service, 100)?, names([1, 3]));
            drop(servers.remove(2));
            stage.await_condition(&service, web_address(3), "down")?;
            assert_eq!(who_answers(&stage, &service, 50)?, names([1]));
            Ok(())
        },
    )
}

/// A DNS server whose only record is 192.0.2.1.
fn dns(namespace: &Namespace) -> Result<Background<()>> {
    Background::start(namespace, move |mut stop| async move {
        let socket = UdpSocket::bind(any(CHECK_PORT)).await.expect("a free port");
        let mut buffer = [0; 2_048];
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                received = socket.recv_from(&mut buffer) => {
                    let (length, client) = received.expect("a datagram");
                    let asked = Message::from_vec(&buffer[..length]).expect("a query");
                    let answer = resolved(&asked).to_vec().expect("an answer");
                    drop(socket.send_to(&answer, client).await);
                }
            }
        }
    })
}

fn resolved(asked: &Message) -> Message {
    let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    let name = asked.queries[0].name().clone();
    let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
    answer.add_query(asked.queries[0].clone());
    answer.add_answer(Record::from_rdata(name, 60, data));
    answer
}

#[test]
fn dns_and_udp_checks_combined_by_any_keep_a_backend_up_until_both_fail() -> Result<()> {
    with_root(
        "dns_and_udp_checks_combined_by_any_keep_a_backend_up_until_both_fail",
        || {
            let topology = Topology::new(BACKENDS)?;
            let mut resolvers = Vec::new();
            let mut echoes = Vec::new();
            for (n, namespace) in (1..).zip(&topology.backends) {
                resolvers.push(dns(namespace)?);
                let at = SocketAddr::from((backend_v4(n), OTHER_PORT));
                echoes.push(UdpEcho::start(namespace, &backend_name(n), &[at])?);
            }
            let dns = format!(
                "{{ type = \"dns\", query = \"example.org\", answer = \"192.0.2.1\", \
                 port = {CHECK_PORT}, {FAST} }}"
            );
            let udp = format!(
                "{{ type = \"udp\", payload = \"ping\", expect = \"^backend[0-9] ping$\", \
                 port = {OTHER_PORT}, {FAST} }}"
            );
            let service = checked(&[dns, udp]).with("combine", "any");
            let stage = Stage::new(topology, vec![service.clone()])?;
            (1..=BACKENDS)
                .try_for_each(|n| stage.await_condition(&service, web_address(n), "up"))?;
            drop(resolvers.remove(0));
            let checks = |n| -> Result<BTreeMap<String, String>> {
                let backend = stage
                    .backend(&service, web_address(n))?
                    .context("the backend")?;
                let checks = backend["checks"].as_array().cloned().unwrap_or_default();
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let pair = |check: &Value| (text(&check["name"]), text(&check["condition"]));
                Ok(checks.iter().map(pair).collect())
            };
            let of = |dns: &str, udp: &str| {
                let pairs = [("dns", dns), ("udp", udp)];
                let owned = |(name, condition): (&str, &str)| (name.into(), condition.into());
                BTreeMap::from(pairs.map(owned))
            };
            wait_until("its DNS check fails", SOON, || {
                checks(1).is_ok_and(|checks| checks == of("down", "up"))
            })?;
            assert_eq!(who_answers(&stage, &service, 100)?, names(1..=BACKENDS));
            // Refused or not answered: kernels limit how often they say that nobody listens.
            let error = last_error(&stage, &service, 1)?;
            ensure!(error.starts_with("dns: "), "{error}");
            drop(echoes.remove(0));
            stage.await_condition(&service, web_address(1), "down")?;
            assert_eq!(checks(1)?, of("down", "down"));
            assert_eq!(checks(2)?, of("up", "up"));
            assert_eq!(who_answers(&stage, &service, 100)?, names([2, 3]));
            Ok(())
        },
    )
}

/// The slots that each backend owns.
fn shares(stage: &Stage, service: &Service) -> Result<Vec<f64>> {
    let shown = stage.shown(service)?;
    let backends = shown["backends"].as_array().context("backends")?;
    let slots = backends.iter().map(|backend| backend["slots"].as_f64());
    let slots: Option<Vec<f64>> = slots.collect();
    let slots = slots.context("slots")?;
    let all: f64 = slots.iter().sum();
    Ok(slots.into_iter().map(|own| own / all).collect())
}

fn await_shares(stage: &Stage, service: &Service, wanted: [f64; 3]) -> Result<()> {
    let near = |(is, should): (f64, f64)| (is - should).abs() < 0.01;
    wait_until(&format!("shares are {wanted:?}"), SOON, || {
        shares(stage, service).is_ok_and(|shares| shares.into_iter().zip(wanted).all(near))
    })
    .with_context(|| format!("{:?}; {}", shares(stage, service), stage.agent.log()))
}

#[test]
fn agents_weigh_drain_and_take_down_their_backends_and_never_undo_a_persons_drain() -> Result<()> {
    with_root(
        "agents_weigh_drain_and_take_down_their_backends_and_never_undo_a_persons_drain",
        || {
            let topology = Topology::new(BACKENDS)?;
            let agents: Result<Vec<_>> = topology
                .backends
                .iter()
                .map(|host| SpokenFor::start(host, CHECK_PORT))
                .collect();
            let agents = agents?;
            let check = format!("{{ type = \"agent\", port = {CHECK_PORT}, {FAST} }}");
            let service = checked(&[check]);
            let stage = Stage::new(topology, vec![service.clone()])?;
            let third = 1.0 / 3.0;
            await_shares(&stage, &service, [third, third, third])?;
            agents[0].say("50%");
            await_shares(&stage, &service, [0.2, 0.4, 0.4])?;
            agents[0].say("100% drain");
            await_shares(&stage, &service, [0.0, 0.5, 0.5])?;
            assert_eq!(who_answers(&stage, &service, 50)?, names([2, 3]));
            let table = stage.agent.lbctl(&["backend", "list", &service.vip])?;
            let table = table.succeeded()?;
            ensure!(table.contains("active (agent: drain)"), "{table}");

            stage.lbctl(&format!("backend drain {} {}", service.vip, web_address(2)))?;
            agents[0].say("ready");
            agents[1].say("ready up 100%");
            await_shares(&stage, &service, [0.5, 0.0, 0.5])?;
            assert_eq!(who_answers(&stage, &service, 50)?, names([1, 3]));

            agents[1].say("drained");
            wait_until("the drain has ended", SOON, || {
                let second = stage.backend(&service, web_address(2)).ok().flatten();
                second
                    .is_some_and(|b| b["drain"]["ended"] == true && b["drain"]["reported"] == true)
            })?;
            agents[1].say("ready up 100%");

            agents[2].say("down # disk is full");
            stage.await_condition(&service, web_address(3), "down")?;
            let error = last_error(&stage, &service, 3)?;
            assert_eq!(error, "the agent says down: disk is full");
            assert_eq!(who_answers(&stage, &service, 50)?, names([1]));
            agents[2].say("up");
            stage.lbctl(&format!(
                "backend undrain {} {}",
                service.vip,
                web_address(2)
            ))?;
            await_shares(&stage, &service, [third, third, third])
        },
    )
}

/// Reports by UDP for the backends at the namespace's address.
fn heart(namespace: &Namespace, n: u8) -> Result<Background<()>> {
    Background::start(namespace, move |mut stop| async move {
        let socket = UdpSocket::bind((backend_v4(n), 0)).await.expect("a socket");
        let mut beats = time::interval(Duration::from_millis(200));
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                _ = beats.tick() => {
                    drop(socket.send_to(b"", (BALANCER_V4, HEARTBEAT_PORT)).await);
                }
            }
        }
    })
}

/// A request of the host of backend `n` that reports on `backend`: the answer's status line.
fn beat_by_tcp(topology: &Topology, n: u8, backend: SocketAddr, vip: &str) -> Result<String> {
    topology.backend(n).run(|| {
        let port = (BALANCER_V4, HEARTBEAT_PORT).into();
        let mut stream = std::net::TcpStream::connect_timeout(&port, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        let path = format!(
            "/v1/services/{}/backends/{backend}/heartbeat",
            vip.replace('/', "%2F")
        );
        let request =
            format!("POST {path} HTTP/1.1\r\nHost: balancer\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.lines().next().unwrap_or_default().to_owned())
    })
}

#[test]
fn backends_report_by_udp_tcp_or_lbctl_and_are_down_once_beats_are_missing() -> Result<()> {
    with_root(
        "backends_report_by_udp_tcp_or_lbctl_and_are_down_once_beats_are_missing",
        || {
            let service = checked(&[format!("{{ type = \"heartbeat\", {FAST} }}")]);
            let config = Config {
                services: vec![service.clone()],
                heartbeat_port: Some(HEARTBEAT_PORT),
                ..Config::default()
            };
            let topology = Topology::new(BACKENDS)?;
            let mut hearts: Vec<_> = (1..=2)
                .map(|n| heart(topology.backend(n), n))
                .collect::<Result<_>>()?;
            let stage = Stage::new(topology, config)?;
            stage.await_condition(&service, web_address(1), "up")?;
            stage.await_condition(&service, web_address(2), "up")?;
            stage.await_condition(&service, web_address(3), "down")?;
            let error = last_error(&stage, &service, 3)?;
            assert_eq!(error, "no heartbeat within 350ms");
            assert_eq!(who_answers(&stage, &service, 50)?, names([1, 2]));

            let report = format!("backend heartbeat {} {}", service.vip, web_address(3));
            wait_until("it is up by lbctl", SOON, || {
                let up = |backend: Value| backend["condition"] == "up";
                let backend = stage.backend(&service, web_address(3));
                stage.lbctl(&report).is_ok() && backend.ok().flatten().is_some_and(up)
            })?;
            drop(hearts.remove(0));
            stage.await_condition(&service, web_address(1), "down")?;
            stage.await_condition(&service, web_address(2), "up")?;
            assert!(!who_answers(&stage, &service, 50)?.contains(&backend_name(1)));
            stage.await_condition(&service, web_address(3), "down")?;
            wait_until("it is up by TCP", SOON, || {
                let reported = beat_by_tcp(&stage.topology, 3, web_address(3), &service.vip);
                let up = |backend: Value| backend["condition"] == "up";
                let backend = stage.backend(&service, web_address(3));
                reported.is_ok_and(|answer| answer == "HTTP/1.1 200 OK")
                    && backend.ok().flatten().is_some_and(up)
            })?;
            let answer = beat_by_tcp(&stage.topology, 2, web_address(3), &service.vip)?;
            assert_eq!(answer, "HTTP/1.1 403 Forbidden");
            let refused =
                stage
                    .agent
                    .lbctl(&["backend", "heartbeat", &service.vip, "10.2.0.99:80"])?;
            assert_eq!(refused.status.code(), Some(4), "{}", refused.stderr);
            Ok(())
        },
    )
}
