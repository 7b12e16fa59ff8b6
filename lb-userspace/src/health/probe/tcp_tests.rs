//! Probes of type `tcp`.

use std::{fs, net::SocketAddr};

use tokio::net::TcpListener;

use super::*;
use crate::{health::Way, model::ServiceId};

/// Connections of this host to `server` in any state, as of the kernel's table: local and remote address, in hexadecimal,
/// and state.
fn connections_to(server: SocketAddr) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
    let remote = format!("0100007F:{:04X}", server.port());
    let to_it = |line: &&str| line.split_whitespace().nth(2) == Some(&remote);
    table.lines().filter(to_it).map(str::to_owned).collect()
}

#[tokio::test]
async fn probes_leave_no_connection_behind() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let service: ServiceId = "10.0.0.1:80/tcp".parse().unwrap();
    let subject = Subject {
        target: Target { service, address },
        address,
        check: "tcp".to_owned(),
        timeout: Duration::from_secs(10),
        way: Way::default(),
        also: Arc::default(),
    };
    let network = Network::default();
    let question = network.prepare(&Probe::TCP).await.unwrap();
    for _ in 0..20 {
        network.ask(&subject, &question).await.unwrap();
        // Whoever serves closes what it has accepted.
        drop(server.accept().await.unwrap());
    }
    assert_eq!(connections_to(address), [""; 0]);
}
