//! Owns the UDP port that backends report to. A datagram counts for backends at the address that it came
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
                if let Err(ChangeError::Stopping) = handle.beat_from(sender, whose).await {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use tokio::time::timeout;

    use super::*;
    use crate::agent::Request;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn datagrams_become_beats_from_their_sender_noise_does_not_and_it_ends_with_the_agent() {
        // Bound to both families, as a server is that hears IPv4 senders under mapped addresses.
        let port = UdpSocket::bind("[::]:0").await.unwrap();
        let at = SocketAddr::from(([127, 0, 0, 1], port.local_addr().unwrap().port()));
        let (handle, mut requests) = Handle::new();
        let listening = tokio::spawn(listen(port, handle));
        let backend = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let long = [b'x'; 2 * MAX_DATAGRAM];
        for datagram in [&b"\xff"[..], &long, b"10.2.0.11:80\n"] {
            backend.send_to(datagram, at).await.unwrap();
        }
        let heard = timeout(SOON, requests.recv()).await.unwrap().unwrap();
        let Request::BeatFrom(sender, whose) = heard else {
            panic!("{heard:?}");
        };
        assert_eq!(sender, backend.local_addr().unwrap().ip());
        assert_eq!(whose.backend, Some("10.2.0.11:80".parse().unwrap()));
        drop(requests);
        backend.send_to(b"", at).await.unwrap();
        timeout(SOON, listening).await.unwrap().unwrap();
    }
}
