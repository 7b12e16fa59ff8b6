//! Owns gRPC health probes: one unary call of `grpc.health.v1.Health/Check`
//! (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>) over HTTP/2.

use std::{net::SocketAddr, str::FromStr as _};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    HeaderMap, Request, Uri,
    body::{Body, Bytes},
    client::conn::http2,
    header,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{MAX_ANSWER, ProbeError, connect, http::AGENT, tls::Connector};

const PATH: &str = "/grpc.health.v1.Health/Check";
/// Before each message: whether it is compressed, and its length in four bytes.
const PREFIX: usize = 5;

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// A call.
#[derive(Debug)]
pub struct Question {
    message: Bytes,
    tls: Option<Connector>,
}

impl Question {
    pub(super) fn new(service: &str, tls: Option<Connector>) -> Self {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let message = framed(&request).into();
        Self { message, tls }
    }

    pub(super) async fn ask(&self, address: SocketAddr) -> Result<(), ProbeError> {
        let stream = connect(address).await?;
        match &self.tls {
            None => self.ask_over(stream, "http", address).await,
            Some(tls) => {
                let stream = tls.connect(stream, address).await?;
                self.ask_over(stream, "https", address).await
            }
        }
    }

    async fn ask_over<S>(
        &self,
        stream: S,
        scheme: &str,
        address: SocketAddr,
    ) -> Result<(), ProbeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
        let request = self.request(scheme, address)?;
        let call = async {
            let response = sender.send_request(request).await;
            let (head, body) = response.map_err(|error| broken(&error))?.into_parts();
            if head.status != hyper::StatusCode::OK {
                let expected = "200".to_owned();
                return Err(ProbeError::Status(head.status.as_u16(), expected));
            }
            judge(&head.headers, body).await
        };
        let mut call = std::pin::pin!(call);
        tokio::select! {
            biased;
            verdict = &mut call => verdict,
            _ = connection => call.await,
        }
    }

    fn request(
        &self,
        scheme: &str,
        address: SocketAddr,
    ) -> Result<Request<Full<Bytes>>, ProbeError> {
        let unaskable = |error: &dyn ToString| ProbeError::Unaskable(error.to_string());
        let uri = Uri::from_str(&format!("{scheme}://{address}{PATH}"));
        Request::post(uri.map_err(|error| unaskable(&error))?)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, AGENT)
            .body(Full::new(self.message.clone()))
            .map_err(|error| unaskable(&error))
    }
}

fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0][..], &length.to_be_bytes(), &message].concat()
}

fn broken(error: &hyper::Error) -> ProbeError {
    use std::error::Error as _;
    match error.source() {
        Some(source) => malformed(source.to_string()),
        None => ProbeError::Closed,
    }
}

fn malformed(problem: String) -> ProbeError {
    let protocol = "a gRPC answer";
    ProbeError::Malformed { protocol, problem }
}

/// What the answer says. A call that failed has its status in the header; else it follows the body.
async fn judge<B>(head: &HeaderMap, body: B) -> Result<(), ProbeError>
where
    B: Body<Data = Bytes, Error = hyper::Error>,
{
    check_status(head)?;
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let body = body.map_err(|error| malformed(error.to_string()))?;
    if let Some(trailers) = body.trailers() {
        check_status(trailers)?;
    }
    let bytes = body.to_bytes();
    let message = bytes.get(PREFIX..).filter(|_| bytes[0] == 0);
    let message = message.ok_or_else(|| malformed("no message in it".to_owned()))?;
    let answer = HealthCheckResponse::decode(message);
    match answer
        .map_err(|error| malformed(error.to_string()))?
        .status()
    {
        ServingStatus::Serving => Ok(()),
        other => Err(ProbeError::Unexpected(format!(
            "the server says {}",
            other.as_str_name()
        ))),
    }
}

impl ServingStatus {
    fn as_str_name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Serving => "SERVING",
            Self::NotServing => "NOT_SERVING",
            Self::ServiceUnknown => "SERVICE_UNKNOWN",
        }
    }
}

fn check_status(headers: &HeaderMap) -> Result<(), ProbeError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(code) => {
            let message = text("grpc-message").unwrap_or_default();
            let problem = format!("gRPC status {code} {message}");
            Err(ProbeError::Unexpected(problem.trim_end().to_owned()))
        }
    }
}

#[cfg(test)]
#[path = "grpc_tests.rs"]
mod tests;
