//! Owns asking a backend's agent: one line over TCP. What the line means is [`Reply`]'s.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{ProbeError, connect};
use crate::{health::reply::Reply, model::Agent};

/// Longest line that is read.
const MAX_LINE: usize = 1_024;

/// What is sent.
#[derive(Debug)]
pub struct Question {
    send: Vec<u8>,
}

impl Question {
    pub(super) fn new(agent: &Agent) -> Self {
        let send = agent.send.clone().unwrap_or_default().into_bytes();
        Self { send }
    }

    pub(super) async fn ask(&self, address: SocketAddr) -> Result<Reply, ProbeError> {
        let broken = |error: std::io::Error| ProbeError::from_broken(&error);
        let malformed = |problem: String| ProbeError::Malformed {
            protocol: "an agent's answer",
            problem,
        };
        let mut stream = connect(address).await?;
        stream.write_all(&self.send).await.map_err(broken)?;
        let mut line = Vec::new();
        loop {
            // Only a whole line says what was meant: "75%" may be the beginning of "75% down".
            if let Some(end) = line.iter().position(|byte| b"\r\n".contains(byte)) {
                let reply = Reply::parse(&String::from_utf8_lossy(&line[..end]));
                return match &reply.unknown {
                    Some(word) if reply.is_empty() => Err(malformed(format!(
                        "`{}` means nothing",
                        word.escape_debug()
                    ))),
                    _ => Ok(reply),
                };
            }
            if line.len() >= MAX_LINE {
                return Err(malformed(format!("a line longer than {MAX_LINE} bytes")));
            }
            let room = (MAX_LINE - line.len()) as u64;
            let read = (&mut stream).take(room).read_buf(&mut line).await;
            if read.map_err(broken)? == 0 {
                return Err(match line.is_empty() {
                    true => ProbeError::Closed,
                    false => malformed("closed before the end of the line".to_owned()),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        health::{
            probe::testing::ask,
            reply::{Serving, Wants},
        },
        model::{Check, Probe},
    };

    fn check(send: Option<&str>) -> Check {
        Check::new(Probe::Agent(Agent {
            send: send.map(str::to_owned),
            ..Agent::default()
        }))
    }

    /// An agent for one connection: answers `line` and closes, once it has read `asked`.
    async fn agent(asked: &'static str, line: impl Into<Vec<u8>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, line) = (listener.local_addr().unwrap(), line.into());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = vec![0; asked.len()];
            stream.read_exact(&mut read).await.unwrap();
            assert_eq!(read, asked.as_bytes());
            let _ = stream.write_all(&line).await;
        });
        address
    }

    #[tokio::test]
    async fn a_line_is_understood_however_it_ends() {
        for end in ["\n", "\r\n", "\nup 100%\n"] {
            let agent = agent("", format!("75% drain down # busy{end}")).await;
            let reply = ask(agent, &check(None)).await.unwrap().reply.unwrap();
            assert_eq!(reply.weight, Some(75));
            assert_eq!(reply.wants, Some(Wants::Drain));
            assert_eq!(reply.serving, Some(Serving::Down("down: busy".to_owned())));
        }
    }

    #[tokio::test]
    async fn what_is_to_be_sent_is_sent_first() {
        let agent = agent("web\n", "up\n").await;
        assert!(ask(agent, &check(Some("web\n"))).await.is_ok());
    }

    #[tokio::test]
    async fn half_a_line_silence_noise_and_a_flood_say_nothing() {
        for (line, part) in [
            (b"75".to_vec(), "before the end of the line"),
            (Vec::new(), "closed before answering"),
            (b"sideways\n".to_vec(), "`sideways` means nothing"),
            (vec![b'x'; 100_000], "longer than 1024 bytes"),
        ] {
            let error = ask(agent("", line).await, &check(None)).await.unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
