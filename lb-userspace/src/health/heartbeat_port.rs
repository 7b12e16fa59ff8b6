//! Owns the UDP port that backends report to, as `api` does the same port of TCP. A datagram counts for backends at the address that it came
//! from alone; nobody is answered, so that the port cannot be used to flood others.

use std::time::Duration;

use tokio::{net::UdpSocket, time::sleep};

use super::heartbeat::{MAX_DATAGRAM, Whose};
use crate::agent::{ChangeError, Handle};

/// After the first error.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// While errors go on: a beat is late by no more than that once they end.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Passes beats on to the agent until it stops.
pub async fn listen(socket: UdpSocket, handle: Handle) {
    let mut datagram = [0; MAX_DATAGRAM];
    let mut failures = 0;
    loop {
        let (length, sender) = match socket.recv_from(&mut datagram).await {
            Ok(received) => received,
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(%error, "heartbeats cannot be received; trying again");
                }
                sleep(pause_after(failures)).await;
                failures = failures.saturating_add(1);
                continue;
            }
        };
        failures = 0;
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

/// How long nothing is asked of a socket after so many errors in a row and one more. Most belong to single datagrams: the next
/// may be fine.
fn pause_after(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures));
    doubled.min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::SocketAddr, sync::Arc};

    use tokio::{sync::Notify, time::timeout};

    use super::*;
    use crate::health::{Target, reports::Reports};

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn the_first_error_costs_no_beat_and_errors_that_go_on_no_processor() {
        assert_eq!(pause_after(0), Duration::from_millis(1));
        assert_eq!(pause_after(3), Duration::from_millis(8));
        assert_eq!(pause_after(8), LONGEST_PAUSE);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }

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
