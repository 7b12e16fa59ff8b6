//! Owns the UDP port that backends report to, as `api` does the same port of TCP. A datagram counts for backends at the address that it came
//! from alone; nobody is answered, so that the port cannot be used to flood others.

use tokio::net::UdpSocket;

use super::heartbeat::{MAX_DATAGRAM, Whose};
use crate::agent::{ChangeError, Handle};

/// Passes beats on to the agent until it stops.
pub async fn listen(socket: UdpSocket, handle: Handle) {
    let mut datagram = [0; MAX_DATAGRAM];
    loop {
        // Errors belong to single datagrams: the next may be fine.
        let Ok((length, sender)) = socket.recv_from(&mut datagram).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let sender = sender.ip().to_canonical();
        match Whose::parse(&datagram[..length]) {
            Err(problem) => tracing::debug!(%sender, problem, "not a heartbeat"),
            Ok(whose) => {
                if let Err(ChangeError::Stopping) = handle.beat_from(sender, whose) {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

    use tokio::{sync::Notify, time::timeout};

    use super::*;
    use crate::health::{Target, reports::Reports};

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn datagrams_are_beats_of_their_sender_noise_is_not_and_nobody_waits_for_the_agents_loop()
    {
        // Bound to both families, as a server is that hears IPv4 senders under mapped addresses.
        let port = UdpSocket::bind("[::]:0").await.unwrap();
        let at = SocketAddr::from(([127, 0, 0, 1], port.local_addr().unwrap().port()));
        // Whose loop looks at no request.
        let (handle, requests) = Handle::new();
        let (lead, member) = ("10.0.0.1:80/tcp", "10.0.0.1:443/tcp");
        let [lead, member] = [lead, member].map(|id| id.parse().unwrap());
        let target = |n: u8| Target {
            service: lead,
            address: SocketAddr::from(([127, 0, 0, 1], n.into())),
        };
        let beats: [Arc<Notify>; 2] = Default::default();
        let reports = Reports::default();
        let reporting = (1..)
            .zip(&beats)
            .map(|(n, beats)| (target(n), Arc::clone(beats)));
        reports.set(reporting.collect(), HashMap::from([(member, lead)]));
        let handle = handle.reporting(reports);
        let listening = tokio::spawn(listen(port, handle.clone()));
        let backend = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let long = [b'x'; 2 * MAX_DATAGRAM];
        for datagram in [&b"\xff"[..], &long, b"127.0.0.1:2 10.0.0.1:443/tcp\n"] {
            backend.send_to(datagram, at).await.unwrap();
        }
        timeout(SOON, beats[1].notified()).await.unwrap();
        let other = timeout(Duration::from_millis(50), beats[0].notified());
        other.await.expect_err("a beat of another backend");
        let named = Target {
            service: member,
            ..target(1)
        };
        timeout(SOON, handle.beat(named)).await.unwrap().unwrap();
        timeout(SOON, beats[0].notified()).await.unwrap();
        drop(requests);
        backend.send_to(b"", at).await.unwrap();
        timeout(SOON, listening).await.unwrap().unwrap();
    }
}
