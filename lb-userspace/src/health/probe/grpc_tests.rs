//! gRPC health probes against an HTTP/2 server on the loopback.

use std::convert::Infallible;

use http_body_util::StreamBody;
use hyper::{Response, body::Frame, server::conn::http2 as server, service::service_fn};
use tokio::net::TcpListener;

use super::*;
use crate::{
    health::probe::testing::{ask, speaks_http},
    model::{Check, Grpc, Probe},
};

fn check(service: &str) -> Check {
    Check::new(Probe::Grpc(Grpc {
        service: service.to_owned(),
        tls: None,
    }))
}

/// What the server answers.
#[derive(Clone)]
struct Script {
    message: Vec<u8>,
    /// Of the trailers.
    status: &'static str,
}

impl Script {
    fn says(status: ServingStatus) -> Self {
        let status = status as i32;
        Self {
            message: framed(&HealthCheckResponse { status }),
            status: "0",
        }
    }
}

/// A server for one connection, which serves `web` and, as a whole, everything.
async fn serve(script: Script) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let answer = service_fn(move |request| answer(request, script.clone()));
        let connection = server::Builder::new(TokioExecutor::new());
        let _ = connection
            .serve_connection(TokioIo::new(stream), answer)
            .await;
    });
    address
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    script: Script,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, Infallible> {
    assert_eq!(request.uri().path(), PATH);
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert_eq!(request.headers()["te"], "trailers");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let asked = HealthCheckRequest::decode(&body[PREFIX..]).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", script.status.parse().unwrap());
    let known = ["", "web"].contains(&asked.service.as_str());
    let frames = match known {
        true => vec![
            Ok(Frame::data(Bytes::from(script.message))),
            Ok(Frame::trailers(trailers)),
        ],
        false => Vec::new(),
    };
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let mut response = Response::new(body);
    if !known {
        let headers = response.headers_mut();
        headers.insert("grpc-status", "5".parse().unwrap());
        headers.insert("grpc-message", "unknown service".parse().unwrap());
    }
    Ok(response)
}

#[tokio::test]
async fn serving_is_up_for_the_whole_server_and_for_a_service() {
    for service in ["", "web"] {
        let server = serve(Script::says(ServingStatus::Serving)).await;
        assert_eq!(ask(server, &check(service)).await.map(drop), Ok(()));
    }
}

#[tokio::test]
async fn anything_but_serving_fails_and_says_what() {
    for (status, name) in [
        (ServingStatus::NotServing, "NOT_SERVING"),
        (ServingStatus::Unknown, "UNKNOWN"),
        (ServingStatus::ServiceUnknown, "SERVICE_UNKNOWN"),
    ] {
        let server = serve(Script::says(status)).await;
        let error = ask(server, &check("")).await.unwrap_err();
        assert_eq!(error.to_string(), format!("the server says {name}"));
        assert!(error.blames_backend());
    }
}

#[tokio::test]
async fn a_service_that_is_not_there_fails_with_the_servers_words() {
    let server = serve(Script::says(ServingStatus::Serving)).await;
    let error = ask(server, &check("mail")).await.unwrap_err();
    assert_eq!(error.to_string(), "gRPC status 5 unknown service");
}

#[tokio::test]
async fn an_error_behind_the_message_and_a_message_cut_short_fail() {
    let mut late = Script::says(ServingStatus::Serving);
    late.status = "14";
    let mut short = Script::says(ServingStatus::Serving);
    short.message.truncate(3);
    for (script, part) in [(late, "gRPC status 14"), (short, "no message")] {
        let error = ask(serve(script).await, &check("")).await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_server_of_another_protocol_is_none() {
    let (address, _) = speaks_http().await;
    let error = ask(address, &check("")).await.unwrap_err();
    assert!(error.blames_backend(), "{error:?}");
    assert!(!matches!(error, ProbeError::Timeout(_)), "{error:?}");
}
