//! How tests put a probe to a server of their own.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};

use super::*;
use crate::model::Check;

/// Puts `check` to the server at `address`, with time enough.
pub(super) async fn ask(address: SocketAddr, check: &Check) -> Result<Answer, ProbeError> {
    let patient = Check {
        timeout: Duration::from_secs(10),
        ..check.clone()
    };
    ask_at(address, &patient).await
}

/// The same with the check's own timeout.
pub(super) async fn ask_at(address: SocketAddr, check: &Check) -> Result<Answer, ProbeError> {
    let network = Network::default();
    let question = network.prepare(&check.probe).await?;
    network.ask(&subject(address, check), &question).await
}

/// A server that answers the one who connects with a line of HTTP, whatever it is asked; ends with that.
pub(super) async fn speaks_http() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    (address, server)
}

/// A backend at `address`, asked by `check`.
pub(super) fn subject(address: SocketAddr, check: &Check) -> Subject {
    Subject {
        target: Target {
            service: "10.0.0.1:80/tcp".parse().unwrap(),
            address,
        },
        address,
        check: check.probe.kind().to_owned(),
        timeout: check.timeout,
        way: Way::default(),
        also: Arc::default(),
    }
}
