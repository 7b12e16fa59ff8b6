//! The REST API over a Unix socket: server, client, and what goes over the wire.
//!
//! The wire's types stand in [`dto`] alone and are turned into the model's at the door; nothing
//! outside this module sees them but `lbctl`. Deciding is the model's and the agent's.
//!
//! Paths, all below [`VERSION`]; a service is percent-encoded, as in `10.0.0.1:80%2Ftcp`:
//!
//! | path | methods |
//! |---|---|
//! | `/status` | GET |
//! | `/metrics` | GET (OpenMetrics text) |
//! | `/flows?service=&backend=&phase=&limit=` | GET; each parameter narrows down, and may be left out |
//! | `/clients?service=&backend=&limit=` | GET; likewise |
//! | `/access-lists` | GET |
//! | `/access-lists/{name}` | GET, PUT, PATCH, DELETE |
//! | `/access-lists/{name}/judge?source=` | GET |
//! | `/services` | GET, POST |
//! | `/services/{id}` | GET, PATCH, DELETE |
//! | `/services/{id}/backends` | GET, POST |
//! | `/services/{id}/backends/{address}` | PATCH, DELETE |
//! | `/services/{id}/backends/{address}/heartbeat` | POST |

pub mod client;
pub mod dto;
mod error;
pub mod server;
mod socket;

pub use server::{serve, serve_reports};
pub use socket::bind;

/// First part of every path. Changes only when an old client could misread a new agent.
pub const VERSION: &str = "/v1";

/// Largest request body.
pub const MAX_BODY: usize = 1 << 20;

/// Largest access list accepted, in bytes: as many prefixes as it may have, each of the longest.
pub const MAX_LIST: usize = 48 * crate::model::MAX_PREFIXES;
