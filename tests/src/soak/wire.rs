//! What client and echo server say to each other: a greeting by which the client learns whom it
//! has, then requests with a number, each answered with the same bytes and the greeting again.
//! All integers are big-endian.

use std::fmt::{self, Display, Formatter};

use serde::{Serialize, Serializer};

/// Bytes of an [`Identity`].
pub const GREETING: usize = 8;
/// Bytes of a [`Request`].
pub const REQUEST: usize = 16;
/// Bytes of a [`Reply`].
pub const REPLY: usize = REQUEST + GREETING;

/// A process that answers: the same backend gets another life when it is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Counted from 1.
    pub backend: u32,
    /// Counted from 1.
    pub life: u32,
}

impl Display for Identity {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "backend{}/{}", self.backend, self.life)
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Identity {
    /// The greeting.
    pub fn encode(self) -> [u8; GREETING] {
        (u64::from(self.backend) << 32 | u64::from(self.life)).to_be_bytes()
    }

    /// Reads a greeting.
    pub fn decode(bytes: [u8; GREETING]) -> Self {
        let [b0, b1, b2, b3, l0, l1, l2, l3] = bytes;
        Self {
            backend: u32::from_be_bytes([b0, b1, b2, b3]),
            life: u32::from_be_bytes([l0, l1, l2, l3]),
        }
    }
}

/// A request, like no other of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Which connection.
    pub connection: u64,
    /// Which of its requests.
    pub number: u64,
}

impl Request {
    /// What is sent.
    pub fn encode(self) -> [u8; REQUEST] {
        (u128::from(self.connection) << 64 | u128::from(self.number)).to_be_bytes()
    }
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The request's bytes.
    pub request: [u8; REQUEST],
    /// Who answers.
    pub by: Identity,
}

impl Reply {
    /// What is sent.
    pub fn encode(self) -> [u8; REPLY] {
        let mut bytes = [0; REPLY];
        bytes[..REQUEST].copy_from_slice(&self.request);
        bytes[REQUEST..].copy_from_slice(&self.by.encode());
        bytes
    }

    /// Reads an answer.
    pub fn decode(bytes: [u8; REPLY]) -> Self {
        let (mut request, mut by) = ([0; REQUEST], [0; GREETING]);
        request.copy_from_slice(&bytes[..REQUEST]);
        by.copy_from_slice(&bytes[REQUEST..]);
        Self {
            request,
            by: Identity::decode(by),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_holds_request_and_identity_unchanged() {
        let by = Identity {
            backend: 3,
            life: 0x0102_0304,
        };
        let request = Request {
            connection: 7,
            number: u64::MAX,
        }
        .encode();
        let reply = Reply { request, by };
        assert_eq!(Reply::decode(reply.encode()), reply);
        assert_eq!(by.encode(), [0, 0, 0, 3, 1, 2, 3, 4]);
        assert_eq!(request[..9], [0, 0, 0, 0, 0, 0, 0, 7, 0xff]);
    }
}
