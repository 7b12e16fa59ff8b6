//! Servers that answer checks: each connection as a test says.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};

use crate::{load::Background, netns::Namespace};

/// Accepts connections at `port` of every address of a namespace, and answers each; how that ends is the client's affair.
///
/// # Errors
/// It cannot be started.
pub fn answering<F>(
    namespace: &Namespace,
    port: u16,
    answer: impl Fn(TcpStream) -> F + Send + 'static,
) -> Result<Background<()>>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    Background::start(namespace, move |mut stop| async move {
        let any = (IpAddr::from(Ipv4Addr::UNSPECIFIED), port);
        let listener = TcpListener::bind(any).await.expect("a free port");
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                accepted = listener.accept() => {
                    let (stream, _) = accepted.expect("a connection");
                    drop(tokio::spawn(answer(stream)));
                }
            }
        }
    })
}
