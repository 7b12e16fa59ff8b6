//! Servers that answer checks: each connection as a test says.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
};

use anyhow::Result;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
};

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

/// A backend's agent, and what it says next.
#[derive(Debug)]
pub struct SpokenFor {
    line: Arc<Mutex<String>>,
    _server: Background<()>,
}

impl SpokenFor {
    /// One at `port`, which says that its backend is well.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let line = Arc::new(Mutex::new("up ready 100%".to_owned()));
        let said = Arc::clone(&line);
        let server = answering(namespace, port, move |mut stream| {
            let line = format!("{}\n", said.lock().expect("no panic"));
            async move { stream.write_all(line.as_bytes()).await }
        })?;
        Ok(Self {
            line,
            _server: server,
        })
    }

    /// What it says from now on.
    ///
    /// # Panics
    /// Its server has panicked.
    pub fn say(&self, line: &str) {
        *self.line.lock().expect("no panic") = line.to_owned();
    }
}
