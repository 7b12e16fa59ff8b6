//! Owns HTTP/1.1 probes, over TLS or not.

use std::{future::Future, net::SocketAddr, pin::pin};

use futures_util::{FutureExt as _, future::Fuse};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use regex::bytes::Regex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{self, Instant},
};

use super::{Answer, MAX_ANSWER, ProbeError, connect, pattern, tls::Connector};
use crate::model::{Http, Method, Statuses};

/// The product and its version, as HTTP has it.
pub(super) const AGENT: &str = concat!("lbd/", env!("CARGO_PKG_VERSION"));

/// A request, and which answer is right.
#[derive(Debug)]
pub struct Question {
    method: hyper::Method,
    path: String,
    headers: HeaderMap,
    /// The backend's address where absent.
    host: Option<HeaderValue>,
    status: Vec<Statuses>,
    body: Option<Regex>,
    expect_headers: Vec<(HeaderName, Regex)>,
    tls: Option<Connector>,
}

impl Question {
    pub(super) fn new(http: &Http, tls: Option<Connector>) -> Result<Self, ProbeError> {
        let unaskable = |error: &dyn ToString| ProbeError::Unaskable(error.to_string());
        let name = |name: &str| HeaderName::try_from(name).map_err(|error| unaskable(&error));
        let value = |value: &str| HeaderValue::try_from(value).map_err(|error| unaskable(&error));
        let mut headers = HeaderMap::new();
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
        for (key, text) in &http.headers {
            headers.insert(name(key)?, value(text)?);
        }
        let expected = http.expect_headers.iter();
        let expected = expected.map(|(key, text)| Ok((name(key)?, pattern(text)?)));
        Ok(Self {
            method: match http.method {
                Method::Get => hyper::Method::GET,
                Method::Head => hyper::Method::HEAD,
                Method::Options => hyper::Method::OPTIONS,
            },
            path: http.path.clone(),
            headers,
            host: http.host.as_deref().map(value).transpose()?,
            status: http.status.clone(),
            body: http.body.as_deref().map(pattern).transpose()?,
            expect_headers: expected.collect::<Result<_, _>>()?,
            tls,
        })
    }

    pub(super) async fn ask(
        &self,
        address: SocketAddr,
        started: Instant,
        deadline: Instant,
    ) -> Result<Answer, ProbeError> {
        let stream = connect(address).await?;
        match &self.tls {
            None => self.ask_over(stream, address, started, deadline).await,
            Some(tls) => {
                let stream = tls.connect(stream, address).await?;
                self.ask_over(stream, address, started, deadline).await
            }
        }
    }

    async fn ask_over<S>(
        &self,
        stream: S,
        address: SocketAddr,
        started: Instant,
        deadline: Instant,
    ) -> Result<Answer, ProbeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_ANSWER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        let mut exchange = Exchange {
            connection: connection.fuse(),
        };
        let response = exchange.drive(sender.send_request(self.request(address)?));
        let mut response = response.await.map_err(|error| broken(&error))?;
        self.check_header(&response)?;
        if let Some(expected) = &self.body {
            let body = exchange.body(&mut response).await?;
            if !expected.is_match(&body) {
                let problem = format!("the body does not match /{expected}/");
                return Err(ProbeError::Unexpected(problem));
            }
        }
        let latency = started.elapsed();
        // Closing on unread data would reset the connection and fill the backend's log, so read on for
        // as long as the probe may last.
        let rest = time::timeout_at(deadline, exchange.body(&mut response));
        drop(rest.await);
        Ok(Answer {
            latency,
            reply: None,
        })
    }

    fn request(&self, address: SocketAddr) -> Result<Request<Empty<Bytes>>, ProbeError> {
        let unaskable = |error: &dyn ToString| ProbeError::Unaskable(error.to_string());
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(&self.path)
            .body(Empty::new())
            .map_err(|error| unaskable(&error))?;
        *request.headers_mut() = self.headers.clone();
        let host = match &self.host {
            Some(host) => host.clone(),
            None => {
                HeaderValue::try_from(address.to_string()).map_err(|error| unaskable(&error))?
            }
        };
        request.headers_mut().insert(header::HOST, host);
        Ok(request)
    }

    fn check_header(&self, response: &Response<Incoming>) -> Result<(), ProbeError> {
        let status = response.status().as_u16();
        if !self.status.iter().any(|right| right.contains(status)) {
            return Err(ProbeError::Status(status, shown(&self.status)));
        }
        for (name, expected) in &self.expect_headers {
            let mut values = response.headers().get_all(name).iter().peekable();
            if values.peek().is_none() {
                return Err(ProbeError::Unexpected(format!("no header {name}")));
            }
            if !values.any(|value| expected.is_match(value.as_bytes())) {
                let problem = format!("header {name} does not match /{expected}/");
                return Err(ProbeError::Unexpected(problem));
            }
        }
        Ok(())
    }
}

fn shown(right: &[Statuses]) -> String {
    let each = right.iter().map(|right| match right {
        Statuses { first, last } if first == last => first.to_string(),
        Statuses { first, last } => format!("{first} to {last}"),
    });
    each.collect::<Vec<_>>().join(" or ")
}

fn broken(error: &hyper::Error) -> ProbeError {
    let protocol = "an HTTP answer";
    if error.is_parse_too_large() {
        let problem = format!("header larger than {MAX_ANSWER} bytes or of over 100 fields");
        ProbeError::Malformed { protocol, problem }
    } else if error.is_parse() {
        let problem = error.to_string();
        ProbeError::Malformed { protocol, problem }
    } else {
        ProbeError::Closed
    }
}

/// A connection that is moved along while something is done over it.
struct Exchange<S: AsyncRead + AsyncWrite + Unpin> {
    /// Fused, since answers are read on after the server has closed.
    connection: Fuse<http1::Connection<TokioIo<S>, Empty<Bytes>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Exchange<S> {
    /// The connection's own end is not the exchange's: what it has read is still on its way.
    async fn drive<T>(&mut self, exchange: impl Future<Output = T>) -> T {
        let mut exchange = pin!(exchange);
        tokio::select! {
            biased;
            outcome = &mut exchange => outcome,
            _ = &mut self.connection => exchange.await,
        }
    }

    /// The answer's body, or as much as is read of it.
    async fn body(&mut self, response: &mut Response<Incoming>) -> Result<Vec<u8>, ProbeError> {
        let body = async {
            let mut read = Vec::new();
            while read.len() < MAX_ANSWER {
                match response.body_mut().frame().await {
                    None => break,
                    Some(Err(error)) => return Err(broken(&error)),
                    Some(Ok(frame)) => {
                        read.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
                    }
                }
            }
            read.truncate(MAX_ANSWER);
            Ok(read)
        };
        self.drive(body).await
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
