//! Owns a single probe on the wire, never longer than its timeout: a module for each kind.
//! Never decides what an outcome means for the backend (`machine`), nor when to probe (`checking`).

mod agent;
mod dns;
mod error;
mod exec;
mod grpc;
mod http;
mod icmp;
mod tls;
mod udp;
mod vip;

pub use error::ProbeError;

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    sync::Mutex,
    time::{self, Instant},
};

use crate::{
    health::{Target, Way, reply::Reply},
    model::{Probe, ServiceId},
};

/// Most that is read of an answer: of HTTP its header, and as much again of its body.
pub const MAX_ANSWER: usize = 64 * 1024;

/// Who is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The backend, in its service.
    pub target: Target,
    /// Where it is asked.
    pub address: SocketAddr,
    /// What the check is called.
    pub check: String,
    /// How long the probe may take.
    pub timeout: Duration,
    /// How traffic reaches it.
    pub way: Way,
    /// Services whose traffic it gets beside the target's own: those of its group.
    pub also: Arc<[ServiceId]>,
}

/// What a success found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// How long it took.
    pub latency: Duration,
    /// What the backend's agent said.
    pub reply: Option<Reply>,
}

/// Probes backends. The one on the network is [`Network`]; tests script their own.
pub trait Prober: Clone + Send + Sync + 'static {
    /// A probe, ready to be put to any backend.
    type Question: Send + Sync + 'static;

    /// Makes a probe ready: reads and compiles what it needs.
    fn prepare(
        &self,
        probe: &Probe,
    ) -> impl Future<Output = Result<Arc<Self::Question>, ProbeError>> + Send;

    /// One probe of `subject`. Returns within its timeout.
    fn ask(
        &self,
        subject: &Subject,
        question: &Self::Question,
    ) -> impl Future<Output = Result<Answer, ProbeError>> + Send;
}

/// Probes over the network of this process.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Questions in use, so that all backends of a service share one. Each is made under a lock of its own.
    questions: Arc<std::sync::Mutex<HashMap<Probe, Arc<Place>>>>,
    roots: tls::SystemRoots,
    answers: vip::Answers,
}

/// Where a question is, as long as somebody asks it.
type Place = Mutex<Weak<Question>>;

/// A probe made ready.
#[derive(Debug)]
pub enum Question {
    /// Nothing to send.
    Tcp,
    /// HTTP, with or without TLS.
    Http(http::Question),
    /// A datagram.
    Udp(udp::Question),
    /// A DNS query.
    Dns(dns::Question),
    /// An ICMP echo request.
    Icmp,
    /// A SYN or an echo request to the VIP, by the way that traffic goes.
    Vip,
    /// gRPC's health protocol.
    Grpc(grpc::Question),
    /// A program.
    Exec(exec::Question),
    /// HAProxy's agent-check protocol.
    Agent(agent::Question),
}

impl Prober for Network {
    type Question = Question;

    async fn prepare(&self, probe: &Probe) -> Result<Arc<Question>, ProbeError> {
        let place = self.place(probe);
        let mut place = place.lock().await;
        if let Some(question) = place.upgrade() {
            return Ok(question);
        }
        let question = Arc::new(self.make(probe).await?);
        *place = Arc::downgrade(&question);
        Ok(question)
    }

    async fn ask(&self, subject: &Subject, question: &Question) -> Result<Answer, ProbeError> {
        let address = subject.address;
        let started = Instant::now();
        let deadline = started + subject.timeout;
        let asked = async {
            let mut reply = None;
            match question {
                Question::Tcp => reset(connect(address).await?)?,
                // What follows the verdict is no part of it, but of the time that a probe may take.
                Question::Http(question) => return question.ask(address, started, deadline).await,
                Question::Udp(question) => question.ask(address).await?,
                Question::Dns(question) => question.ask(address).await?,
                Question::Icmp => icmp::ask(address.ip()).await?,
                Question::Vip => self.answers.ask(subject, deadline).await?,
                Question::Grpc(question) => question.ask(address).await?,
                Question::Exec(question) => question.ask(subject).await?,
                Question::Agent(question) => reply = Some(question.ask(address).await?),
            }
            let latency = started.elapsed();
            Ok(Answer { latency, reply })
        };
        let asked = time::timeout_at(deadline, asked).await;
        asked.map_err(|_| ProbeError::Timeout(subject.timeout))?
    }
}

impl Network {
    /// The place of a probe's question. Those that nobody asks or makes are forgotten.
    fn place(&self, probe: &Probe) -> Arc<Place> {
        let questions = self.questions.lock();
        let mut questions = questions.unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = questions.get(probe) {
            return Arc::clone(place);
        }
        let asked = |place: &Place| place.try_lock().is_ok_and(|at| at.strong_count() > 0);
        questions.retain(|_, place| Arc::strong_count(place) > 1 || asked(place));
        Arc::clone(questions.entry(probe.clone()).or_default())
    }

    async fn make(&self, probe: &Probe) -> Result<Question, ProbeError> {
        Ok(match probe {
            Probe::Tcp {} => Question::Tcp,
            Probe::Http(http) => Question::Http(http::Question::new(http, None)?),
            Probe::Https(http) => {
                let (tls, host) = (http.tls.clone().unwrap_or_default(), http.host.as_deref());
                let tls = tls::Connector::new(&tls, host, None, &self.roots).await?;
                Question::Http(http::Question::new(http, Some(tls))?)
            }
            Probe::Udp(udp) => Question::Udp(udp::Question::new(udp)?),
            Probe::Dns(dns) => Question::Dns(dns::Question::new(dns)?),
            Probe::Icmp {} => Question::Icmp,
            Probe::Vip {} => Question::Vip,
            Probe::Grpc(grpc) => {
                let tls = match &grpc.tls {
                    Some(tls) => {
                        Some(tls::Connector::new(tls, None, Some("h2"), &self.roots).await?)
                    }
                    None => None,
                };
                Question::Grpc(grpc::Question::new(&grpc.service, tls))
            }
            Probe::Exec(exec) => Question::Exec(exec::Question::new(exec)?),
            Probe::Agent(agent) => Question::Agent(agent::Question::new(agent)),
            Probe::None {} | Probe::Heartbeat {} => {
                let problem = format!("type \"{}\" asks nobody", probe.kind());
                return Err(ProbeError::Unaskable(problem));
            }
        })
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, ProbeError> {
    TcpStream::connect(address)
        .await
        .map_err(|error| ProbeError::from_connect(&error))
}

/// Ends a connection by a reset, which leaves nothing behind on this host: closed, each would take one of its ports for a minute
/// (TIME_WAIT, RFC 9293 §3.6), however often the backend is asked.
fn reset(stream: TcpStream) -> Result<(), ProbeError> {
    let lingers = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    lingers.map_err(|error| ProbeError::Local(error.to_string()))
}

fn pattern(pattern: &str) -> Result<regex::bytes::Regex, ProbeError> {
    regex::bytes::Regex::new(pattern).map_err(|error| ProbeError::Unaskable(error.to_string()))
}

#[cfg(test)]
#[path = "tcp_tests.rs"]
mod tcp_tests;
#[cfg(test)]
mod testing;
