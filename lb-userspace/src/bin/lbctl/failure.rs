//! Why a command failed, and the exit code that says so. The codes are part of the interface:
//! see `lbctl --help`.

use std::io;

use lb_userspace::api::client::ClientError;

/// An error inside, or an answer that makes no sense.
const INTERNAL: u8 = 1;
/// Wrong arguments; clap's own.
pub const USAGE: u8 = 2;
/// No agent answers.
const NO_AGENT: u8 = 3;
/// No such service or backend.
const NOT_FOUND: u8 = 4;
/// The agent refused the change.
const REFUSED: u8 = 5;

/// What was waited for did not come in time.
const DEADLINE: u8 = 6;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The agent did not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The command could not do its own part.
    #[error("{0}")]
    Local(io::Error),
    /// Arguments that do not go together.
    #[error("{0}")]
    Arguments(String),
    /// What was waited for did not come in time.
    #[error("{0}")]
    Deadline(String),
    /// The answer cannot be shown.
    #[error("cannot write the answer as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Failure {
    /// The exit code documented in `--help`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Client(error) => client_exit_code(error),
            Self::Arguments(_) => USAGE,
            Self::Deadline(_) => DEADLINE,
            Self::Local(_) | Self::Json(_) => INTERNAL,
        }
    }
}

fn client_exit_code(error: &ClientError) -> u8 {
    match error {
        ClientError::AgentDown { .. }
        | ClientError::Unreachable { .. }
        | ClientError::TimedOut { .. }
        | ClientError::Lost { .. } => NO_AGENT,
        ClientError::Refused { status, code, .. } => match (status, code.as_str()) {
            (
                404,
                "unknown_service"
                | "unknown_backend"
                | "unknown_access_list"
                | "unknown_prefix"
                | "unknown_address_pool",
            ) => NOT_FOUND,
            (400 | 409 | 413 | 507, _) => REFUSED,
            (503, _) => NO_AGENT,
            _ => INTERNAL,
        },
        ClientError::Protocol { .. } => INTERNAL,
    }
}
