//! A UDP server per backend that answers with its name. Owns its thread; who asks is
//! [`crate::load`]'s.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::{net::UdpSocket, sync::watch, task::JoinSet};

use crate::{load::Background, netns::Namespace};

/// Largest datagram that is echoed whole.
const MAX_DATAGRAM: usize = 65_535;

/// An echo server on a thread inside a namespace; stops on drop.
#[derive(Debug)]
pub struct UdpEcho {
    _background: Background<()>,
}

impl UdpEcho {
    /// Answers every datagram to one of `addresses` with `name`, a space, and the datagram, from
    /// the address that it was sent to. A wildcard would answer from the wrong one: name each VIP.
    ///
    /// # Errors
    /// An address is not the namespace's, or taken.
    pub fn start(namespace: &Namespace, name: &str, addresses: &[SocketAddr]) -> Result<Self> {
        let sockets = namespace.run(|| {
            addresses
                .iter()
                .map(|address| {
                    let socket = std::net::UdpSocket::bind(address)
                        .with_context(|| format!("binding {address}/udp"))?;
                    socket.set_nonblocking(true)?;
                    Ok(socket)
                })
                .collect::<Result<Vec<_>>>()
        })?;
        let name = name.to_owned();
        let background = Background::start(namespace, move |stop| serve(sockets, name, stop))?;
        Ok(Self {
            _background: background,
        })
    }
}

async fn serve(sockets: Vec<std::net::UdpSocket>, name: String, mut stop: watch::Receiver<bool>) {
    let mut servers = JoinSet::new();
    for socket in sockets {
        let socket = UdpSocket::from_std(socket).expect("a runtime is running");
        servers.spawn(echo(socket, name.clone()));
    }
    // Ends by the sender's going, too; the servers end with their set.
    drop(stop.wait_for(|stop| *stop).await);
}

async fn echo(socket: UdpSocket, name: String) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // Errors belong to single datagrams, such as a client that is gone: the next may be fine.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let answer = [name.as_bytes(), b" ", &buffer[..length]].concat();
        drop(socket.send_to(&answer, client).await);
    }
}
