//! The API's client, for `lbctl` and tests. One connection per request, each bounded in time.

use std::{
    error::Error as _,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

use super::{
    VERSION,
    dto::{
        AccessList, AccessListSummary, Announce, Announced, Backend, Changed, ClientQuery, Clients,
        EditBackend, EditService, EventQuery, Events, FailOver, FlowQuery, Flows, Heard, Judged,
        ListChanged, NewBackend, NewService, Prefixes, Refusal, Service, Status,
    },
};
use crate::model::{AccessEdit, ServiceId};

/// A change waits for the kernel, and a large one for the agent to build its rings.
const PATIENCE: Duration = Duration::from_secs(30);

/// Larger than the status of a full table, smaller than what hurts.
const MAX_ANSWER: usize = 256 << 20;

/// What a path segment cannot hold as it is (RFC 3986, section 3.3).
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Why a request has no answer to show. Each text says what to do, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent answers at {}: is lbd running? (systemctl status lbd, or --socket)", socket.display())]
    AgentDown {
        /// Where.
        socket: PathBuf,
    },
    /// The socket cannot be used.
    #[error("cannot reach the agent at {}: {source}{}", socket.display(), hint(source))]
    Unreachable {
        /// Where.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It took too long; the change may still take effect.
    #[error("the agent at {} did not answer within {} s: look at its log, and at `lbctl status`", socket.display(), after.as_secs_f32())]
    TimedOut {
        /// Where.
        socket: PathBuf,
        /// How long was waited.
        after: Duration,
    },
    /// It ended before it had answered; the change may have taken effect.
    #[error("the agent at {} ended before it had answered: look at its log, and at `lbctl status`", socket.display())]
    Lost {
        /// Where.
        socket: PathBuf,
    },
    /// The agent refused; nothing changed.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The refusal, for programs.
        code: String,
        /// The refusal, for people.
        message: String,
    },
    /// The answer makes no sense.
    #[error("the answer from {} is not of this version's API: {problem}", socket.display())]
    Protocol {
        /// Where.
        socket: PathBuf,
        /// What was wrong with it.
        problem: String,
    },
}

impl ClientError {
    /// Whether the agent may only be away for a moment, as it is while it is restarted.
    pub fn is_away(&self) -> bool {
        match self {
            Self::AgentDown { .. } | Self::TimedOut { .. } | Self::Lost { .. } => true,
            Self::Unreachable { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            Self::Refused { status, .. } => *status == 503,
            Self::Protocol { .. } => false,
        }
    }
}

/// Whether the other end went away before its answer was there.
fn is_cut_off(error: &hyper::Error) -> bool {
    let by_system = error
        .source()
        .is_some_and(|source| source.is::<io::Error>());
    error.is_incomplete_message() || by_system
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => " (only its owner may use it: run as root)",
        _ => "",
    }
}

type Answer<T> = Result<T, ClientError>;

/// Asks the agent behind a socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// A client of the agent at `socket`. Connects with each request.
    pub fn new(socket: PathBuf) -> Self {
        let patience = PATIENCE;
        Self { socket, patience }
    }

    /// The same, waiting at most `patience` for an answer.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The socket asked.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The agent as a whole.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn status(&self) -> Answer<Status> {
        self.ask(Method::GET, "/status", Bytes::new()).await
    }

    /// Recorded flows.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn flows(&self, query: &FlowQuery) -> Answer<Flows> {
        self.ask(Method::GET, &flows_path(query), Bytes::new())
            .await
    }

    /// Clients that are remembered for persistence.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn clients(&self, query: &ClientQuery) -> Answer<Clients> {
        self.ask(Method::GET, &clients_path(query), Bytes::new())
            .await
    }

    /// What has happened lately.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn events(&self, query: &EventQuery) -> Answer<Events> {
        self.ask(Method::GET, &events_path(query), Bytes::new())
            .await
    }

    /// All services.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn services(&self) -> Answer<Vec<Service>> {
        self.ask(Method::GET, "/services", Bytes::new()).await
    }

    /// One service.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn service(&self, id: ServiceId) -> Answer<Service> {
        self.ask(Method::GET, &service_path(id), Bytes::new()).await
    }

    /// The access lists, in short.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn access_lists(&self) -> Answer<Vec<AccessListSummary>> {
        self.ask(Method::GET, "/access-lists", Bytes::new()).await
    }

    /// One access list.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn access_list(&self, name: &str) -> Answer<AccessList> {
        self.ask(Method::GET, &list_path(name), Bytes::new()).await
    }

    /// What an access list says of a source.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn judge(&self, name: &str, source: IpAddr) -> Answer<Judged> {
        let query = query_string([("source", Some(source.to_string()))]);
        let path = format!("{}/judge?{query}", list_path(name));
        self.ask(Method::GET, &path, Bytes::new()).await
    }

    /// Makes an access list, or replaces what it says.
    ///
    /// # Errors
    /// Why it was refused; nothing changed then.
    pub async fn set_access_list(&self, name: &str, prefixes: &Prefixes) -> Answer<ListChanged> {
        self.ask(Method::PUT, &list_path(name), self.body(prefixes)?)
            .await
    }

    /// Lets prefixes of an access list come and go.
    ///
    /// # Errors
    /// Why it was refused; nothing changed then.
    pub async fn edit_access_list(&self, name: &str, edit: &AccessEdit) -> Answer<ListChanged> {
        self.ask(Method::PATCH, &list_path(name), self.body(edit)?)
            .await
    }

    /// Removes an access list that no service has.
    ///
    /// # Errors
    /// Why it was refused; nothing changed then.
    pub async fn remove_access_list(&self, name: &str) -> Answer<ListChanged> {
        self.ask(Method::DELETE, &list_path(name), Bytes::new())
            .await
    }

    /// Adds a service.
    ///
    /// # Errors
    /// Why it was refused; nothing changed then.
    pub async fn add_service(&self, new: &NewService) -> Answer<Changed> {
        self.ask(Method::POST, "/services", self.body(new)?).await
    }

    /// Changes a service's settings.
    ///
    /// # Errors
    /// Why it was refused; nothing changed then.
    pub async fn edit_service(&self, id: ServiceId, edit: &EditService) -> Answer<Changed> {
        self.ask(Method::PATCH, &service_path(id), self.body(edit)?)
            .await
    }

    /// Sends new flows to a tier and those after it; 0 fails back.
    ///
    /// # Errors
    /// Why it was refused; nothing changed then.
    pub async fn fail_over(&self, id: ServiceId, to: u8) -> Answer<Changed> {
        let path = format!("{}/failover", service_path(id));
        let body = self.body(&FailOver { to })?;
        self.ask(Method::POST, &path, body).await
    }

    /// Has a VIP announced once more, or all.
    ///
    /// # Errors
    /// Why it was refused.
    pub async fn announce(&self, vip: Option<IpAddr>) -> Answer<Announced> {
        let body = self.body(&Announce { vip })?;
        self.ask(Method::POST, "/announce", body).await
    }

    /// Removes a service and its backends.
    ///
    /// # Errors
    /// Why it was refused; nothing changed then.
    pub async fn remove_service(&self, id: ServiceId) -> Answer<Changed> {
        self.ask(Method::DELETE, &service_path(id), Bytes::new())
            .await
    }

    /// The backends of a service.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn backends(&self, id: ServiceId) -> Answer<Vec<Backend>> {
        let path = format!("{}/backends", service_path(id));
        self.ask(Method::GET, &path, Bytes::new()).await
    }

    /// Adds a backend.
    ///
    /// # Errors
    /// Why it was refused; nothing changed then.
    pub async fn add_backend(&self, id: ServiceId, new: &NewBackend) -> Answer<Changed> {
        let path = format!("{}/backends", service_path(id));
        self.ask(Method::POST, &path, self.body(new)?).await
    }

    /// Removes a backend.
    ///
    /// # Errors
    /// Why it was refused; nothing changed then.
    pub async fn remove_backend(&self, id: ServiceId, address: SocketAddr) -> Answer<Changed> {
        self.ask(Method::DELETE, &backend_path(id, address), Bytes::new())
            .await
    }

    /// Changes a backend's weight, state or limit, or several at once.
    ///
    /// # Errors
    /// Why it was refused; nothing changed then.
    pub async fn edit_backend(
        &self,
        id: ServiceId,
        address: SocketAddr,
        edit: &EditBackend,
    ) -> Answer<Changed> {
        let path = backend_path(id, address);
        self.ask(Method::PATCH, &path, self.body(edit)?).await
    }

    /// Reports for a backend that it can serve.
    ///
    /// # Errors
    /// Why it was refused.
    pub async fn beat(&self, id: ServiceId, address: SocketAddr) -> Answer<Heard> {
        let path = format!("{}/heartbeat", backend_path(id, address));
        self.ask(Method::POST, &path, Bytes::new()).await
    }

    /// Reports for a backend that takes no new flows that it has none left.
    ///
    /// # Errors
    /// Why it was refused.
    pub async fn drained(&self, id: ServiceId, address: SocketAddr) -> Answer<Heard> {
        let path = format!("{}/drained", backend_path(id, address));
        self.ask(Method::POST, &path, Bytes::new()).await
    }

    fn body(&self, value: &impl Serialize) -> Answer<Bytes> {
        let json = serde_json::to_vec(value).map_err(|error| self.protocol(&error))?;
        Ok(json.into())
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Answer<T> {
        let exchanged = timeout(self.patience, self.exchange(method, path, body)).await;
        let (status, bytes) = exchanged.map_err(|_| ClientError::TimedOut {
            socket: self.socket.clone(),
            after: self.patience,
        })??;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| self.protocol(&error));
        }
        match serde_json::from_slice::<Refusal>(&bytes) {
            Ok(Refusal { error, code }) => Err(ClientError::Refused {
                status: status.as_u16(),
                code,
                message: error,
            }),
            Err(_) => Err(self.protocol(&format!("status {status} without a reason"))),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Answer<(StatusCode, Bytes)> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| self.unreachable(error))?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.protocol(&error))?;
        // It ends with the sender; what goes wrong in it, the request below reports.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("{VERSION}{path}"))
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.protocol(&error))?;
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| match is_cut_off(&error) {
            true => self.lost(),
            false => self.protocol(&error),
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        let body = body.map_err(|error| match error.downcast_ref().is_some_and(is_cut_off) {
            true => self.lost(),
            false => self.protocol(&error),
        })?;
        Ok((status, body.to_bytes()))
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::AgentDown { socket }
            }
            _ => ClientError::Unreachable { socket, source },
        }
    }

    fn lost(&self) -> ClientError {
        let socket = self.socket.clone();
        ClientError::Lost { socket }
    }

    fn protocol(&self, problem: &impl ToString) -> ClientError {
        ClientError::Protocol {
            socket: self.socket.clone(),
            problem: problem.to_string(),
        }
    }
}

fn flows_path(query: &FlowQuery) -> String {
    let FlowQuery {
        service,
        backend,
        phase,
        limit,
    } = query;
    let given = [
        ("service", service.map(|id| id.to_string())),
        ("backend", backend.map(|address| address.to_string())),
        ("phase", phase.map(|phase| phase.name().to_owned())),
        ("limit", limit.map(|limit| limit.to_string())),
    ];
    format!("/flows?{}", query_string(given))
}

fn events_path(query: &EventQuery) -> String {
    let EventQuery {
        service,
        after,
        epoch,
        limit,
    } = query;
    let given = [
        ("service", service.map(|id| id.to_string())),
        ("after", after.map(|after| after.to_string())),
        ("epoch", epoch.map(|epoch| epoch.to_string())),
        ("limit", limit.map(|limit| limit.to_string())),
    ];
    format!("/events?{}", query_string(given))
}

fn clients_path(query: &ClientQuery) -> String {
    let ClientQuery {
        service,
        backend,
        limit,
    } = query;
    let given = [
        ("service", service.map(|id| id.to_string())),
        ("backend", backend.map(|address| address.to_string())),
        ("limit", limit.map(|limit| limit.to_string())),
    ];
    format!("/clients?{}", query_string(given))
}

fn query_string<const N: usize>(given: [(&str, Option<String>); N]) -> String {
    let given = given.into_iter();
    let pairs = given.filter_map(|(key, value)| Some(format!("{key}={}", encode(&value?))));
    pairs.collect::<Vec<_>>().join("&")
}

fn list_path(name: &str) -> String {
    format!("/access-lists/{}", encode(name))
}

fn service_path(id: ServiceId) -> String {
    format!("/services/{}", encode(&id.to_string()))
}

fn backend_path(id: ServiceId, address: SocketAddr) -> String {
    format!(
        "{}/backends/{}",
        service_path(id),
        encode(&address.to_string())
    )
}

fn encode(segment: &str) -> impl std::fmt::Display {
    utf8_percent_encode(segment, SEGMENT).to_string()
}
