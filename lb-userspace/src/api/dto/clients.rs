//! Clients that are remembered for persistence.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{flows, millis};
use crate::{
    model::ServiceId,
    snapshot::{self, FlowFilter},
};

/// Which clients are asked for; all where nothing is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientQuery {
    /// Of this service.
    #[serde(default)]
    pub service: Option<ServiceId>,
    /// Of this backend.
    #[serde(default, deserialize_with = "flows::backend")]
    pub backend: Option<SocketAddr>,
    /// At most so many, up to [`super::MAX_FLOWS`]; [`super::DEFAULT_FLOWS`] where absent.
    #[serde(default)]
    pub limit: Option<usize>,
}

impl ClientQuery {
    /// What the agent is asked.
    ///
    /// # Errors
    /// The limit is too large.
    pub fn into_filter(self) -> Result<FlowFilter, String> {
        Ok(FlowFilter {
            service: self.service,
            backend: self.backend,
            phase: None,
            limit: flows::limit(self.limit)?,
        })
    }
}

/// Remembered clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clients {
    /// How many match, those beyond the limit included.
    pub total: usize,
    /// The first of them, in no order.
    pub clients: Vec<Client>,
}

/// A remembered client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its service.
    pub service: ServiceId,
    /// Its address; `ADDRESS/BITS` where the service takes a prefix for a client.
    pub client: String,
    /// The backend that its new flows go to.
    pub backend: SocketAddr,
    /// Whether only its opening was seen.
    pub half_open: bool,
    /// Since its last new flow.
    pub idle_ms: u64,
    /// Until it is forgotten, unless another flow comes.
    pub left_ms: u64,
}

impl From<snapshot::ClientList> for Clients {
    fn from(list: snapshot::ClientList) -> Self {
        Self {
            total: list.total,
            clients: list.clients.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<snapshot::ClientRecord> for Client {
    fn from(record: snapshot::ClientRecord) -> Self {
        let whole = match record.address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        Self {
            service: record.service,
            client: match record.prefix {
                prefix if prefix < whole => format!("{}/{prefix}", record.address),
                _ => record.address.to_string(),
            },
            backend: record.backend,
            half_open: record.half_open,
            idle_ms: millis(record.idle),
            left_ms: millis(record.left),
        }
    }
}
