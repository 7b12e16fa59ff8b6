//! What makes a UDP service QUIC: how its servers lay out connection ids, and their server ids
//! (draft-ietf-quic-load-balancers, without a key).

use std::{fmt, str::FromStr};

use lb_common::quic::{Lengths, MAX_ID, MAX_SERVER_ID, MIN_NONCE, UNROUTABLE};
use serde::{Deserialize, Serialize};

use super::{Backend, ModelError, Protocol, Service, check::invalid};

/// How the servers of a service lay out connection ids; theirs have to be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quic {
    /// The configuration that the first three bits name, 0 to 6.
    pub config_id: u8,
    /// Bytes of a server id, 1 to 15.
    pub server_id_length: u8,
    /// Bytes behind it, 4 to 18; 19 with the server id at most.
    pub nonce_length: u8,
}

impl Quic {
    /// As a descriptor has it.
    pub fn lengths(self) -> Lengths {
        Lengths::new(self.server_id_length, self.nonce_length)
    }
}

/// A server's id in the connection ids that it gives out: 1 to 15 bytes, written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId {
    bytes: [u8; MAX_SERVER_ID as usize],
    length: u8,
}

impl ServerId {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl FromStr for ServerId {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let bad = || ModelError::BadServerId {
            text: text.to_owned(),
        };
        let is_hexadecimal = text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let length = text.len() / 2;
        let fits = (1..=usize::from(MAX_SERVER_ID)).contains(&length);
        if !is_hexadecimal || !text.len().is_multiple_of(2) || !fits {
            return Err(bad());
        }
        let mut bytes = [0; MAX_SERVER_ID as usize];
        for (byte, at) in bytes.iter_mut().zip((0..text.len()).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self {
            bytes,
            length: length as u8,
        })
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ServerId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServerId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Service {
    pub(super) fn check_quic(&self) -> Result<(), ModelError> {
        let id = self.id;
        let Some(quic) = self.quic else { return Ok(()) };
        if id.protocol != Protocol::Udp {
            let mut udp = id;
            udp.protocol = Protocol::Udp;
            let problem = format!("is for UDP services: leave it out, or write {udp}");
            return invalid(id, "quic", problem);
        }
        let Quic {
            config_id,
            server_id_length,
            nonce_length,
        } = quic;
        if config_id >= UNROUTABLE {
            let problem = format!(
                "{config_id} is out of range: 0 to {}",
                u32::from(UNROUTABLE) - 1
            );
            return invalid(id, "quic.config_id", problem);
        }
        if !(1..=MAX_SERVER_ID).contains(&server_id_length) {
            let problem = format!("{server_id_length} is out of range: 1 to {MAX_SERVER_ID} bytes");
            return invalid(id, "quic.server_id_length", problem);
        }
        let longest = MAX_ID - server_id_length;
        if !(MIN_NONCE..=longest).contains(&nonce_length) {
            let problem = format!(
                "{nonce_length} is out of range: {MIN_NONCE} to {longest} bytes beside a server id of {server_id_length}, since a connection id has 20 at most"
            );
            return invalid(id, "quic.nonce_length", problem);
        }
        Ok(())
    }

    pub(super) fn check_server_id(&self, backend: &Backend) -> Result<(), ModelError> {
        let address = backend.address;
        let problem = match (self.quic, backend.server_id) {
            (None, None) => return Ok(()),
            (None, Some(_)) => format!(
                "{address}: is for QUIC services: leave it out, or give the service a quic table"
            ),
            (Some(quic), None) => format!(
                "{address}: missing: the service is QUIC, so write the {} bytes that its connection ids name it by, in hexadecimal",
                quic.server_id_length
            ),
            (Some(quic), Some(server_id))
                if server_id.bytes().len() != usize::from(quic.server_id_length) =>
            {
                format!(
                    "{address}: {server_id} has {} bytes, and quic.server_id_length is {}: make them the same",
                    server_id.bytes().len(),
                    quic.server_id_length
                )
            }
            (Some(_), Some(_)) => return Ok(()),
        };
        invalid(self.id, "server_id", problem)
    }
}
