//! The socket's file, and clients that find nobody or nonsense behind it.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener as StdListener},
    time::Duration,
};

use lb_userspace::api::{
    bind,
    client::{Client, ClientError},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};

use crate::{WEB, ask, support::FakeAgent};

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_socket_is_its_owners_alone_and_its_directory_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/lbd/a.sock");
    let _listener = bind(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o755);
    let files = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(files, 1, "nothing but the socket is left");
}

#[tokio::test]
async fn a_living_agents_socket_is_not_taken() {
    let agent = FakeAgent::start(WEB);
    let error = bind(&agent.socket).unwrap_err().to_string();
    assert!(
        error.contains("an agent answers at") && error.contains("--name"),
        "{error}"
    );
    assert_eq!(ask(&agent, "GET", "/v1/status", "").await.0, 200);
}

#[tokio::test]
async fn a_dead_agents_socket_is_replaced() {
    let agent = FakeAgent::start(WEB);
    let path = agent.socket.clone();
    let _directory = agent.stop().await;
    assert!(path.exists(), "the file outlives its agent here");
    let _listener = bind(&path).unwrap();
    UnixStream::connect(&path).await.unwrap();
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    fs::write(&path, "precious").unwrap();
    let error = bind(&path).unwrap_err().to_string();
    assert!(error.contains("not a socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn an_idle_client_does_not_hold_up_the_end() {
    let agent = FakeAgent::start(WEB);
    let _idle = UnixStream::connect(&agent.socket).await.unwrap();
    let mut half = UnixStream::connect(&agent.socket).await.unwrap();
    half.write_all(b"POST /v1/services HTTP/1.1\r\ncontent-length: 9\r\n\r\n{")
        .await
        .unwrap();
    assert_eq!(ask(&agent, "GET", "/v1/status", "").await.0, 200);
    agent.stop().await;
}

#[tokio::test]
async fn no_socket_and_a_dead_one_are_an_agent_that_is_down() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let client = Client::new(path.clone());
    for _ in 0..2 {
        let error = client.status().await.unwrap_err();
        assert!(matches!(error, ClientError::AgentDown { .. }), "{error:?}");
        assert!(error.to_string().contains("is lbd running?"), "{error}");
        drop(StdListener::bind(&path).ok());
    }
    assert!(path.exists(), "the second round met a dead socket");
}

#[tokio::test]
async fn an_agent_that_never_answers_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let _silent = UnixListener::bind(&path).unwrap();
    let client = Client::new(path).patience(Duration::from_millis(50));
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_a_protocol_error() {
    for answer in [
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\noops",
    ] {
        let error = error_of(answer).await;
        assert!(
            matches!(error, ClientError::Protocol { .. }),
            "{answer}: {error:?}"
        );
        assert!(!error.is_away());
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_of_an_agent_that_ended() {
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"] {
        let error = error_of(answer).await;
        let cut_off = matches!(error, ClientError::Lost { .. });
        assert!(cut_off && error.is_away(), "{answer}: {error:?}");
    }
}

/// What a client makes of that answer.
async fn error_of(answer: &'static str) -> ClientError {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // A request that is left unread resets the connection.
        let asked = stream.read(&mut [0; 1_024]).await.unwrap();
        assert!(asked > 0);
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    Client::new(path).status().await.unwrap_err()
}
