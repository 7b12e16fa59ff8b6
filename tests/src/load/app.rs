//! What a generator talks to: a connection to a web server, PostgreSQL or Redis, and the question that all of
//! them are asked, which is their name. Owns the protocols; when to ask is the generators'.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::{
    Failure, Phase, Reason,
    http::{self, After, CONNECT_TIMEOUT, Connection, EXCHANGE_TIMEOUT, io_reason, name_in},
};

/// The key that holds a Redis server's name.
pub const NAME_KEY: &str = "name";

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum App {
    /// nginx.
    Web,
    /// PostgreSQL.
    Postgres,
    /// Redis.
    Redis,
}

impl App {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Web, Self::Postgres, Self::Redis];

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Web => "nginx",
            Self::Postgres => "PostgreSQL",
            Self::Redis => "Redis",
        }
    }

    /// The port that it usually listens on.
    pub fn port(self) -> u16 {
        match self {
            Self::Web => crate::backend::PORT,
            Self::Postgres => 5_432,
            Self::Redis => 6_379,
        }
    }

    /// Connects to `target`, as far as it takes until a question can be put.
    ///
    /// # Errors
    /// How it failed.
    pub async fn open(self, target: SocketAddr) -> Result<Session, Failure> {
        Ok(match self {
            Self::Web => Session::Web(Connection::open(target).await?),
            Self::Postgres => log_in(connect(target).await?).await?,
            Self::Redis => Session::Redis(BufStream::new(connect(target).await?)),
        })
    }

    /// One question on a connection of its own: the name of the backend that answered.
    ///
    /// # Errors
    /// How it failed.
    pub async fn ask_name(self, target: SocketAddr) -> Result<String, Failure> {
        match self {
            Self::Web => http::ask_name(target).await,
            _ => self.open(target).await?.name().await,
        }
    }
}

/// An open connection.
#[derive(Debug)]
pub enum Session {
    /// To a web server.
    Web(Connection),
    /// To PostgreSQL, with what drives it.
    Postgres(Client, Driver),
    /// To Redis.
    Redis(BufStream<TcpStream>),
}

/// A task that ends with its connection.
#[derive(Debug)]
pub struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    /// The name of the backend at the other end, asked for now.
    ///
    /// # Errors
    /// How it failed.
    pub async fn name(&mut self) -> Result<String, Failure> {
        match self {
            Self::Web(connection) => {
                let body = connection.get("/", After::Keep).await?;
                Ok(name_in(&body))
            }
            Self::Postgres(client, _) => exchange(query_name(client)).await,
            Self::Redis(stream) => exchange(get_name(stream)).await,
        }
    }
}

async fn connect(target: SocketAddr) -> Result<TcpStream, Failure> {
    let failed = |reason| Failure {
        phase: Phase::Connect,
        reason,
    };
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(target))
        .await
        .map_err(|_| failed(Reason::TimedOut))?
        .map_err(|error| failed(io_reason(&error)))?;
    drop(stream.set_nodelay(true));
    Ok(stream)
}

async fn exchange<T>(asked: impl Future<Output = Result<T, Reason>>) -> Result<T, Failure> {
    let answer = timeout(EXCHANGE_TIMEOUT, asked).await;
    answer
        .unwrap_or(Err(Reason::TimedOut))
        .map_err(|reason| Failure {
            phase: Phase::Exchange,
            reason,
        })
}

async fn log_in(stream: TcpStream) -> Result<Session, Failure> {
    let mut config = tokio_postgres::Config::new();
    config.user("postgres").dbname("postgres");
    let (client, connection) = exchange(async {
        let connected = config.connect_raw(stream, NoTls).await;
        connected.map_err(|error| postgres_reason(&error))
    })
    .await?;
    // What ends the connection also fails the query that is under way, which reports it.
    let driver = Driver(tokio::spawn(async { drop(connection.await) }));
    Ok(Session::Postgres(client, driver))
}

async fn query_name(client: &Client) -> Result<String, Reason> {
    let rows = client.simple_query("SHOW cluster_name").await;
    let rows = rows.map_err(|error| postgres_reason(&error))?;
    let name = rows.iter().find_map(|row| match row {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    name.map(str::to_owned)
        .ok_or_else(|| Reason::Other("no name".to_owned()))
}

fn postgres_reason(error: &tokio_postgres::Error) -> Reason {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref());
    match cause {
        Some(cause) => stream_reason(cause),
        None if error.is_closed() => Reason::Closed,
        None => Reason::Other(error.to_string()),
    }
}

/// In the protocol's inline form, whose answer is the length in one line and the value in the next.
async fn get_name(stream: &mut BufStream<TcpStream>) -> Result<String, Reason> {
    let asked = async {
        stream
            .write_all(format!("GET {NAME_KEY}\r\n").as_bytes())
            .await?;
        stream.flush().await?;
        let mut lines = [String::new(), String::new()];
        for line in &mut lines {
            if stream.read_line(line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(lines)
    };
    let [length, value] = asked.await.map_err(|error| stream_reason(&error))?;
    match length.trim().strip_prefix('$') {
        Some(length) if length.parse() == Ok(value.trim().len()) => Ok(value.trim().to_owned()),
        _ => Err(Reason::Other(format!("{length:?} and {value:?}"))),
    }
}

/// As [`io_reason`], with an end in the middle told apart.
fn stream_reason(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Reason::Closed,
        _ => io_reason(error),
    }
}
