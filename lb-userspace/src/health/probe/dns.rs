//! Owns DNS probes: a query by datagram or connection (RFC 1035, sections 4.1 and 4.2).

use std::{net::SocketAddr, str::FromStr as _};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{ProbeError, connect, udp};
use crate::model::{Dns, Transport};

/// The bit TC in the third byte of a message (RFC 1035 §4.1.1).
const TRUNCATED: u8 = 1 << 1;

/// A query, and which answer is right.
#[derive(Debug)]
pub struct Question {
    query: Query,
    answer: Option<String>,
    transport: Transport,
}

impl Question {
    pub(super) fn new(dns: &Dns) -> Result<Self, ProbeError> {
        let unaskable = |error: &dyn ToString| ProbeError::Unaskable(error.to_string());
        let mut name = Name::from_ascii(&dns.query).map_err(|error| unaskable(&error))?;
        name.set_fqdn(true);
        let record = RecordType::from_str(&dns.record).map_err(|error| unaskable(&error))?;
        Ok(Self {
            query: Query::query(name, record),
            answer: dns.answer.clone(),
            transport: dns.transport,
        })
    }

    pub(super) async fn ask(&self, address: SocketAddr) -> Result<(), ProbeError> {
        let id = fastrand::u16(..);
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(self.query.clone());
        let asked = message.to_vec();
        let asked = asked.map_err(|error| ProbeError::Unaskable(error.to_string()))?;
        let answer = match self.transport {
            Transport::Udp => udp::exchange(address, &asked).await?,
            Transport::Tcp => exchange(address, &asked).await?,
        };
        self.check(id, &answer)
    }

    fn check(&self, id: u16, answer: &[u8]) -> Result<(), ProbeError> {
        let malformed = |problem: String| ProbeError::Malformed {
            protocol: "a DNS answer",
            problem,
        };
        let unexpected = |problem| Err(ProbeError::Unexpected(problem));
        // Cut where it did not fit, it may not even be readable.
        let truncated = || {
            let problem = "the answer is truncated: use transport = \"tcp\"";
            ProbeError::Unexpected(problem.to_owned())
        };
        let is_truncated = answer.get(2).is_some_and(|flags| flags & TRUNCATED != 0);
        let answer = Message::from_vec(answer).map_err(|error| match is_truncated {
            true => truncated(),
            false => malformed(error.to_string()),
        })?;
        let head = &answer.metadata;
        if head.id != id || head.message_type != MessageType::Response {
            return Err(malformed("it belongs to another query".to_owned()));
        }
        if head.response_code != ResponseCode::NoError {
            return unexpected(format!("DNS says: {}", head.response_code));
        }
        let mut records = answer.answers.iter().map(|record| record.data.to_string());
        match &self.answer {
            None if answer.answers.is_empty() && is_truncated => Err(truncated()),
            None if answer.answers.is_empty() => unexpected("no record in the answer".to_owned()),
            Some(wanted) if !records.any(|record| record == *wanted) => {
                if is_truncated {
                    return Err(truncated());
                }
                unexpected(format!("{wanted} is not in the answer"))
            }
            _ => Ok(()),
        }
    }
}

/// The same over a connection, where each message follows its length in two bytes.
async fn exchange(address: SocketAddr, asked: &[u8]) -> Result<Vec<u8>, ProbeError> {
    let io = |error: std::io::Error| ProbeError::from_broken(&error);
    let mut stream = connect(address).await?;
    let length = u16::try_from(asked.len());
    let length = length.map_err(|error| ProbeError::Unaskable(error.to_string()))?;
    let framed = [&length.to_be_bytes(), asked].concat();
    stream.write_all(&framed).await.map_err(io)?;
    let mut answer = vec![0; stream.read_u16().await.map_err(io)?.into()];
    stream.read_exact(&mut answer).await.map_err(io)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::{RData, Record, rdata::A};
    use tokio::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::{
        health::probe::testing::ask,
        model::{Check, Probe},
    };

    fn check(answer: Option<&str>, transport: Transport) -> Check {
        Check::new(Probe::Dns(Dns {
            query: "example.org".to_owned(),
            record: "A".to_owned(),
            answer: answer.map(str::to_owned),
            transport,
        }))
    }

    /// What a server of `records` answers.
    fn answer(asked: &[u8], code: ResponseCode, records: &[[u8; 4]]) -> Vec<u8> {
        let asked = Message::from_vec(asked).unwrap();
        let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata.response_code = code;
        let name = asked.queries[0].name().clone();
        answer.add_query(asked.queries[0].clone());
        for address in records {
            let data = RData::A(A(Ipv4Addr::from(*address)));
            answer.add_answer(Record::from_rdata(name.clone(), 60, data));
        }
        answer.to_vec().unwrap()
    }

    /// A server for one datagram.
    async fn server(make: impl FnOnce(&[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 2_048];
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            let answer = make(&buffer[..length]);
            socket.send_to(&answer, client).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn a_record_is_right_and_the_one_that_is_expected_too() {
        for expected in [None, Some("192.0.2.2")] {
            let records = [[192, 0, 2, 1], [192, 0, 2, 2]];
            let server = server(move |asked| answer(asked, ResponseCode::NoError, &records)).await;
            assert_eq!(
                ask(server, &check(expected, Transport::Udp))
                    .await
                    .map(drop),
                Ok(())
            );
        }
    }

    #[tokio::test]
    async fn an_error_an_empty_answer_and_another_record_fail() {
        for (code, records, expected, part) in [
            (ResponseCode::ServFail, &[][..], None, "DNS says"),
            (ResponseCode::NoError, &[], None, "no record"),
            (
                ResponseCode::NoError,
                &[[192, 0, 2, 1]],
                Some("192.0.2.2"),
                "192.0.2.2 is not",
            ),
        ] {
            let server = server(move |asked| answer(asked, code, records)).await;
            let error = ask(server, &check(expected, Transport::Udp))
                .await
                .unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            assert!(error.blames_backend());
        }
    }

    #[tokio::test]
    async fn an_answer_that_did_not_fit_says_how_to_ask_unless_it_has_what_is_expected() {
        let records = [[192, 0, 2, 1]];
        let truncated = |cut: usize| {
            move |asked: &[u8]| {
                let mut answer = answer(asked, ResponseCode::NoError, &records);
                answer[2] |= TRUNCATED;
                answer.truncate(answer.len() - cut);
                answer
            }
        };
        let expects = |record| check(record, Transport::Udp);
        for (cut, record) in [(0, Some("192.0.2.2")), (3, None), (3, Some("192.0.2.1"))] {
            let server = server(truncated(cut)).await;
            let error = ask(server, &expects(record)).await.unwrap_err();
            let told = "the answer is truncated: use transport = \"tcp\"";
            assert_eq!(error.to_string(), told, "{cut} {record:?}");
        }
        for record in [None, Some("192.0.2.1")] {
            let server = server(truncated(0)).await;
            assert_eq!(ask(server, &expects(record)).await.map(drop), Ok(()));
        }
        let empty = server(|asked| {
            let mut answer = answer(asked, ResponseCode::NoError, &[]);
            answer[2] |= TRUNCATED;
            answer
        });
        let error = ask(empty.await, &expects(None)).await.unwrap_err();
        assert!(error.to_string().contains("truncated"), "{error}");
    }

    #[tokio::test]
    async fn the_answer_to_another_query_and_noise_are_no_answers() {
        let other = server(|asked| {
            let mut answer = answer(asked, ResponseCode::NoError, &[[192, 0, 2, 1]]);
            answer[0] ^= 1;
            answer
        });
        let noise = server(|_| b"hello".to_vec());
        for server in [other.await, noise.await] {
            let error = ask(server, &check(None, Transport::Udp)).await.unwrap_err();
            assert!(matches!(error, ProbeError::Malformed { .. }), "{error:?}");
        }
    }

    #[tokio::test]
    async fn asks_over_a_connection_where_that_is_wanted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut asked).await.unwrap();
            let answer = answer(&asked, ResponseCode::NoError, &[[192, 0, 2, 1]]);
            stream
                .write_u16(answer.len().try_into().unwrap())
                .await
                .unwrap();
            stream.write_all(&answer).await.unwrap();
        });
        let check = check(Some("192.0.2.1"), Transport::Tcp);
        assert_eq!(ask(address, &check).await.map(drop), Ok(()));
        server.await.unwrap();
    }
}
