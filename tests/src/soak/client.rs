//! The connections: held ones that live for the whole run, mortal ones that end after a random time
//! and are replaced at once, and churned ones that are closed soon and opened again from the same few
//! ports. Each has an exchange every [`PERIOD`], verified. Owns their life; who is to blame for a break
//! is [`super::account`]'s.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use fastrand::Rng;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{
    account::{Account, Break, How, LIMIT, Phase},
    wire::{GREETING, Identity, REPLY, Reply, Request},
};
use crate::{
    load::{Background, raise_file_limit},
    netns::Namespace,
    wait::wait_until,
};

/// From one exchange of a connection to the next.
pub const PERIOD: Duration = Duration::from_secs(1);
/// How long a churned connection lives, in milliseconds.
const LIFETIME_MS: std::ops::Range<u64> = 1_000..6_000;
/// The mean of [`LIFETIME_MS`], in seconds.
const MEAN_LIFETIME: f64 = 3.5;
/// Connections opened at once.
const OPENING: usize = 256;
/// For all connections to stand.
const OPEN_WITHIN: Duration = Duration::from_secs(60);
/// After a connection could not be made, until the next attempt.
const RETRY: Duration = Duration::from_millis(250);
/// The ports of churned connections, below those that the kernel hands out.
const CHURN_PORTS: std::ops::Range<u16> = 2_000..10_000;
/// Ports that a churned connection uses in turn: one rests until TCP lets it be used again.
const PORTS_EACH: u16 = 2;

/// How many connections, and where to.
#[derive(Debug, Clone)]
pub struct Load {
    /// The services.
    pub targets: Vec<SocketAddr>,
    /// Connections that live for the whole run.
    pub held: usize,
    /// Those that end, and are replaced at once.
    pub mortal: usize,
    /// How long a mortal one lives on average; lifetimes are distributed exponentially.
    pub lifetime: Duration,
    /// Connections closed and opened again every second.
    pub churn: usize,
    /// Of lifetimes.
    pub seed: u64,
}

impl Load {
    /// The most connections that may be churned a second: their ports are few.
    pub fn most_churn() -> usize {
        let lanes = CHURN_PORTS.len() / usize::from(PORTS_EACH);
        (lanes as f64 / MEAN_LIFETIME) as usize
    }

    fn churned(&self) -> usize {
        (self.churn as f64 * MEAN_LIFETIME).ceil() as usize
    }

    fn lanes(&self) -> usize {
        self.held + self.mortal + self.churned()
    }

    fn fate(&self, lane: usize) -> Fate {
        let mortals = self.held..self.held + self.mortal;
        if lane < mortals.start {
            Fate::Held
        } else if mortals.contains(&lane) {
            Fate::Mortal {
                mean: self.lifetime,
                random: self.random(lane),
            }
        } else {
            // `Clients::start` has refused more than there are ports for.
            let first = CHURN_PORTS.start + (lane - mortals.end) as u16 * PORTS_EACH;
            Fate::Churned {
                ports: std::array::from_fn(|n| first + n as u16),
                random: self.random(lane),
            }
        }
    }

    fn random(&self, lane: usize) -> Rng {
        Rng::with_seed(self.seed ^ (lane as u64) << 32)
    }
}

/// The time of a run.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Since the start.
    pub fn now(self) -> Duration {
        self.0.elapsed()
    }

    fn at(self, time: Duration) -> Instant {
        self.0 + time
    }
}

/// The books, shared between those who write them.
#[derive(Debug, Clone)]
pub struct Books(Arc<Mutex<Account>>);

impl Books {
    /// Shares `account`.
    pub fn new(account: Account) -> Self {
        Self(Arc::new(Mutex::new(account)))
    }

    /// Opens them.
    pub fn open(&self) -> MutexGuard<'_, Account> {
        // Every entry is complete in itself: a writer that panicked leaves none in halves.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections in a client's namespace.
#[derive(Debug)]
pub struct Clients {
    background: Background<()>,
}

impl Clients {
    /// Opens all, and returns once as many stand as are to be held or replaced.
    ///
    /// # Errors
    /// They do not stand soon, or one breaks before anything has been changed.
    pub fn start(client: &Namespace, load: Load, books: &Books, clock: Clock) -> Result<Self> {
        raise_file_limit()?;
        let (stand, churn) = (load.held + load.mortal, load.churn);
        ensure!(
            churn <= Load::most_churn(),
            "{churn} churned connections a second need more ports than there are: at most {}",
            Load::most_churn()
        );
        let shared = Arc::new(Shared {
            load,
            books: books.clone(),
            clock,
            opening: Semaphore::new(OPENING),
            connections: AtomicU64::new(0),
        });
        let background = Background::start(client, |stop| hold_all(shared, stop))?;
        let all = stand as u64;
        let what = format!("{stand} connections stand");
        wait_until(&what, OPEN_WITHIN, || books.open().totals().open >= all)?;
        Ok(Self { background })
    }

    /// Lets every exchange under way end, and closes all.
    ///
    /// # Errors
    /// The client panicked.
    pub fn stop(self) -> Result<()> {
        self.background.stop()
    }
}

struct Shared {
    load: Load,
    books: Books,
    clock: Clock,
    opening: Semaphore,
    connections: AtomicU64,
}

async fn hold_all(shared: Arc<Shared>, stop: watch::Receiver<bool>) {
    let count = shared.load.lanes();
    let mut lanes = JoinSet::new();
    for index in 0..count {
        let lane = Lane {
            target: index % shared.load.targets.len(),
            offset: PERIOD.mul_f64(index as f64 / count as f64),
            fate: shared.load.fate(index),
            shared: Arc::clone(&shared),
        };
        lanes.spawn(lane.run(stop.clone()));
    }
    lanes.join_all().await;
}

/// One connection after another to the same service.
struct Lane {
    shared: Arc<Shared>,
    /// Which of the services.
    target: usize,
    /// Of its exchanges within the period, so that all are spread evenly.
    offset: Duration,
    fate: Fate,
}

/// When a lane closes its connections, and where from it opens the next.
enum Fate {
    /// Not before the end of the run.
    Held,
    /// As likely at any time as at any other.
    Mortal { mean: Duration, random: Rng },
    /// Soon, and its ports are used again.
    Churned {
        ports: [u16; PORTS_EACH as usize],
        random: Rng,
    },
}

impl Fate {
    /// The port of the next connection; 0 for any.
    fn port(&mut self) -> u16 {
        match self {
            Self::Held | Self::Mortal { .. } => 0,
            Self::Churned { ports, .. } => {
                ports.rotate_left(1);
                ports[0]
            }
        }
    }

    /// How long the next connection lives, if it ends by itself.
    fn lifetime(&mut self) -> Option<Duration> {
        match self {
            Self::Held => None,
            Self::Mortal { mean, random } => Some(mean.mul_f64(-(1.0 - random.f64()).ln())),
            Self::Churned { random, .. } => Some(Duration::from_millis(random.u64(LIFETIME_MS))),
        }
    }
}

/// An established connection.
struct Connection {
    stream: TcpStream,
    number: u64,
    born: Duration,
    port: u16,
    backend: Option<Identity>,
    /// When it sent something last, and how long it had sent nothing before.
    sent: Duration,
    quiet: Duration,
}

impl Connection {
    fn sends(&mut self, now: Duration) {
        self.quiet = now.saturating_sub(self.sent);
        self.sent = now;
    }
}

/// How a connection ended.
enum Ended {
    /// The run is over.
    Stopped,
    /// It has lived long enough.
    Aged,
}

impl Lane {
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let Some(mut connection) = self.open().await else {
                // Stopping does not wait for what cannot be had.
                drop(timeout(RETRY, stop.wait_for(|stop| *stop)).await);
                continue;
            };
            if let Err((phase, how)) = self.live(&mut connection, &mut stop).await {
                self.broke(&connection, phase, how);
            }
        }
    }

    /// Nothing where no connection was made, which is in the books then.
    async fn open(&mut self) -> Option<Connection> {
        let port = self.fate.port();
        let _turn = self.shared.opening.acquire().await.ok()?;
        let born = self.shared.clock.now();
        let target = self.shared.load.targets[self.target];
        let opened = timeout(LIMIT, connect(target, port)).await;
        let reason = match opened {
            Ok(Ok(stream)) => {
                return Some(Connection {
                    port: stream.local_addr().map_or(port, |address| address.port()),
                    stream,
                    number: self.shared.connections.fetch_add(1, Ordering::Relaxed),
                    born,
                    backend: None,
                    sent: born,
                    quiet: Duration::ZERO,
                });
            }
            Ok(Err(error)) if is_resting(&error) => return None,
            Ok(Err(error)) => error.kind().to_string(),
            Err(_) => "timed out".to_owned(),
        };
        self.shared.books.open().not_opened(&reason);
        None
    }

    async fn live(
        &mut self,
        connection: &mut Connection,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), (Phase, How)> {
        self.greet(connection)
            .await
            .map_err(|how| (Phase::Greeting, how))?;
        self.shared.books.open().opened();
        let exchanging = self.exchange_until(connection, stop).await;
        match exchanging.map_err(|how| (Phase::Exchange, how))? {
            Ended::Stopped => Ok(()),
            Ended::Aged => {
                self.close(connection)
                    .await
                    .map_err(|how| (Phase::Closing, how))?;
                self.shared.books.open().closed();
                Ok(())
            }
        }
    }

    async fn greet(&self, connection: &mut Connection) -> Result<(), How> {
        let mut greeting = [0; GREETING];
        self.in_time(None, connection.stream.read_exact(&mut greeting))
            .await?;
        connection.backend = Some(Identity::decode(greeting));
        Ok(())
    }

    async fn exchange_until(
        &mut self,
        connection: &mut Connection,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Ended, How> {
        let lifetime = self.fate.lifetime();
        let aged = lifetime.map(|lifetime| Instant::now() + lifetime);
        let mut next = Instant::now() + self.offset;
        for number in 0.. {
            let wake = aged.map_or(next, |aged| next.min(aged));
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return Ok(Ended::Stopped),
                () = sleep_until(wake) => {}
            }
            if aged.is_some_and(|aged| aged <= wake) {
                return Ok(Ended::Aged);
            }
            self.exchange(connection, number).await?;
            // One that had to wait does not catch up.
            next = (next + PERIOD).max(Instant::now());
        }
        Ok(Ended::Stopped)
    }

    async fn exchange(&self, connection: &mut Connection, number: u64) -> Result<(), How> {
        let request = Request {
            connection: connection.number,
            number,
        }
        .encode();
        let begun = self.shared.clock.now();
        connection.sends(begun);
        connection
            .stream
            .write_all(&request)
            .await
            .map_err(|error| How::from(&error))?;
        let mut reply = [0; REPLY];
        let backend = connection.backend;
        self.in_time(backend, connection.stream.read_exact(&mut reply))
            .await?;
        let reply = Reply::decode(reply);
        if reply.request != request {
            return Err(How::Garbled);
        }
        if Some(reply.by) != backend {
            return Err(How::Foreign);
        }
        self.shared
            .books
            .open()
            .echoed(self.shared.clock.now() - begun);
        Ok(())
    }

    /// Ends it in order: our end, then the backend's, and nothing else before.
    async fn close(&self, connection: &mut Connection) -> Result<(), How> {
        connection.sends(self.shared.clock.now());
        connection
            .stream
            .shutdown()
            .await
            .map_err(|error| How::from(&error))?;
        let mut rest = [0; 1];
        match self
            .in_time(connection.backend, connection.stream.read(&mut rest))
            .await?
        {
            0 => Ok(()),
            _ => Err(How::Garbled),
        }
    }

    /// What `work` gives, if it does before it is due.
    async fn in_time<T>(
        &self,
        backend: Option<Identity>,
        work: impl Future<Output = io::Result<T>>,
    ) -> Result<T, How> {
        let clock = self.shared.clock;
        let asked = clock.now();
        let mut work = pin!(work);
        loop {
            let due = self
                .shared
                .books
                .open()
                .deadline(backend, asked, clock.now());
            if due <= clock.now() {
                return Err(How::Silent);
            }
            if let Ok(done) = timeout_at(clock.at(due), &mut work).await {
                return done.map_err(|error| How::from(&error));
            }
        }
    }

    fn broke(&self, connection: &Connection, phase: Phase, how: How) {
        let broken = Break {
            at: self.shared.clock.now(),
            born: connection.born,
            service: self.target,
            port: connection.port,
            backend: connection.backend,
            phase,
            how,
            quiet: connection.quiet,
            after: None,
        };
        self.shared.books.open().broke(broken);
    }
}

async fn connect(target: SocketAddr, port: u16) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if port != 0 {
        // An earlier connection of this port may still be on its way out.
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv4Addr::UNSPECIFIED, port).into())?;
    }
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether the kernel lets a port rest from its last connection: that says nothing of the balancer.
fn is_resting(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
    )
}
