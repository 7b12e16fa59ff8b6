//! Owns who is let in at a port that others reach. Each connection takes a descriptor, of which the checks need some: whoever opens
//! many and says nothing could otherwise have the agent find no failure any more.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use nix::sys::resource::{Resource, getrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Instant, Sleep, sleep},
};

/// Connections of one address at a time.
const OF_ONE: usize = 256;
/// Of all, as a part of the descriptors that this process may have.
const PART: u64 = 4;
/// How long a connection may be without a byte: longer than from one scrape to the next.
const SILENCE: Duration = Duration::from_secs(180);

/// A listener that closes what comes beyond its limits.
#[derive(Debug)]
pub(super) struct Door {
    listener: TcpListener,
    guests: Arc<Guests>,
}

/// Who is in.
#[derive(Debug)]
struct Guests {
    most: usize,
    of_one: usize,
    present: Mutex<Present>,
}

#[derive(Debug, Default)]
struct Present {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
struct Guest {
    address: IpAddr,
    guests: Arc<Guests>,
}

/// A connection that ends once it has been silent for [`SILENCE`].
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    silence: Pin<Box<Sleep>>,
    _guest: Guest,
}

/// Who sends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sender(pub(crate) SocketAddr);

impl Door {
    pub(super) fn new(listener: TcpListener) -> Self {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1_024, |(now, _)| now);
        let most = usize::try_from(descriptors / PART).unwrap_or(usize::MAX);
        Self::with_limits(listener, most, OF_ONE.min(most / 4).max(1))
    }

    fn with_limits(listener: TcpListener, most: usize, of_one: usize) -> Self {
        let guests = Guests {
            most,
            of_one,
            present: Mutex::default(),
        };
        let guests = Arc::new(guests);
        Self { listener, guests }
    }
}

impl Guests {
    /// Lets one in, where there is room.
    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Guest> {
        let mut present = self.present();
        let own = present.by_address.get(&address).copied().unwrap_or(0);
        if present.all >= self.most || own >= self.of_one {
            return None;
        }
        present.all += 1;
        present.by_address.insert(address, own + 1);
        drop(present);
        let guests = Arc::clone(self);
        Some(Guest { address, guests })
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut present = self.guests.present();
        present.all -= 1;
        if let Some(own) = present.by_address.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                present.by_address.remove(&self.address);
            }
        }
    }
}

impl Listener for Door {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            let (stream, sender) = Listener::accept(&mut self.listener).await;
            let Some(guest) = self.guests.admit(sender.ip().to_canonical()) else {
                tracing::debug!(%sender, "one connection too many");
                continue;
            };
            let connection = Connection {
                stream,
                silence: Box::pin(sleep(SILENCE)),
                _guest: guest,
            };
            return (connection, sender);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connected<IncomingStream<'_, Door>> for Sender {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        Self(*stream.remote_addr())
    }
}

impl Connection {
    /// What has come of reading or writing, unless nothing has for too long.
    fn bounded<T>(
        &mut self,
        context: &mut Context<'_>,
        done: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match done {
            Poll::Ready(done) => {
                self.silence.as_mut().reset(Instant::now() + SILENCE);
                Poll::Ready(done)
            }
            Poll::Pending => {
                let over = self.silence.as_mut().poll(context);
                over.map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.bounded(context, read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.bounded(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use axum::{Router, routing::get};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpSocket,
        time::timeout,
    };

    use super::*;

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A server that says `ok`, of these limits.
    async fn serve(most: usize, of_one: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let door = Door::with_limits(listener, most, of_one);
        let router = Router::new().route("/", get(|| async { "ok" }));
        tokio::spawn(axum::serve(door, router).into_future());
        at
    }

    /// A connection from 127.0.0.`from`.
    async fn connect(at: SocketAddr, from: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket
            .bind((Ipv4Addr::new(127, 0, 0, from), 0).into())
            .unwrap();
        socket.connect(at).await.unwrap()
    }

    /// Whether it is answered, and not closed.
    async fn is_answered(stream: &mut TcpStream) -> bool {
        let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        let mut answer = [0; 12];
        let answered = async {
            stream.write_all(request).await?;
            stream.read_exact(&mut answer).await
        };
        timeout(PATIENCE, answered).await.unwrap().is_ok()
    }

    #[tokio::test]
    async fn no_more_connections_of_an_address_are_let_in_than_may_and_more_once_one_has_ended() {
        let at = serve(100, 2).await;
        let [mut first, mut second] = [connect(at, 1).await, connect(at, 1).await];
        assert!(is_answered(&mut first).await && is_answered(&mut second).await);
        assert!(!is_answered(&mut connect(at, 1).await).await);
        assert!(is_answered(&mut connect(at, 2).await).await, "of another");
        drop(first);
        let again = async { while !is_answered(&mut connect(at, 1).await).await {} };
        timeout(PATIENCE, again).await.unwrap();
        assert!(is_answered(&mut second).await, "it has stayed");
    }

    #[tokio::test]
    async fn no_more_connections_are_let_in_than_may_whosever_they_are() {
        let at = serve(2, 2).await;
        let [mut first, mut second] = [connect(at, 1).await, connect(at, 2).await];
        assert!(is_answered(&mut first).await && is_answered(&mut second).await);
        assert!(!is_answered(&mut connect(at, 3).await).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_silent_is_closed_and_one_that_speaks_now_and_then_is_not() {
        let at = serve(100, 100).await;
        let [mut silent, mut speaks] = [connect(at, 1).await, connect(at, 1).await];
        assert!(is_answered(&mut speaks).await);
        let began = Instant::now();
        let closed = async {
            let mut byte = [0];
            silent.read(&mut byte).await.unwrap_or(0)
        };
        tokio::pin!(closed);
        let ended = loop {
            let within = timeout(SILENCE / 2, &mut closed).await;
            assert!(is_answered(&mut speaks).await);
            if let Ok(read) = within {
                break read;
            }
            assert!(began.elapsed() < 3 * SILENCE, "it is still there");
        };
        assert_eq!(ended, 0);
        assert!(began.elapsed() >= SILENCE);
    }
}
