//! Refusals as HTTP answers: which status and code each has. No other place chooses a status.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::dto::Refusal;
use crate::{agent::ChangeError, model::ModelError};

/// A refusal on its way to the client.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            status,
            code,
            message,
        }
    }

    /// The request itself cannot be read.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let refusal = Refusal {
            error: self.message,
            code: self.code.to_owned(),
        };
        (self.status, Json(refusal)).into_response()
    }
}

impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        let (status, code) = match &error {
            ModelError::BadService { .. } | ModelError::BadSpan { .. } => {
                (StatusCode::BAD_REQUEST, "bad_service")
            }
            ModelError::BadBackend { .. } | ModelError::Scoped { .. } => {
                (StatusCode::BAD_REQUEST, "bad_backend")
            }
            ModelError::BadPrefix { .. } => (StatusCode::BAD_REQUEST, "bad_prefix"),
            ModelError::BadAccessList { .. } => (StatusCode::BAD_REQUEST, "bad_access_list"),
            ModelError::BadAddressPool { .. } => (StatusCode::BAD_REQUEST, "bad_address_pool"),
            ModelError::UnknownAddressPool { .. } => {
                (StatusCode::NOT_FOUND, "unknown_address_pool")
            }
            ModelError::UnknownAccessList { .. } => (StatusCode::NOT_FOUND, "unknown_access_list"),
            ModelError::UnknownPrefix { .. } => (StatusCode::NOT_FOUND, "unknown_prefix"),
            ModelError::DuplicateAccessList { .. } => {
                (StatusCode::CONFLICT, "duplicate_access_list")
            }
            ModelError::AccessListInUse { .. } => (StatusCode::CONFLICT, "access_list_in_use"),
            ModelError::NotAnnounced { .. } => (StatusCode::NOT_FOUND, "not_announced"),
            ModelError::BadServerId { .. } => (StatusCode::BAD_REQUEST, "bad_server_id"),
            ModelError::Invalid { .. } | ModelError::InvalidCheck { .. } => {
                (StatusCode::BAD_REQUEST, "invalid")
            }
            ModelError::UnknownService { .. } => (StatusCode::NOT_FOUND, "unknown_service"),
            ModelError::UnknownBackend { .. } => (StatusCode::NOT_FOUND, "unknown_backend"),
            ModelError::DuplicateService { .. } => (StatusCode::CONFLICT, "duplicate_service"),
            ModelError::DuplicateBackend { .. } => (StatusCode::CONFLICT, "duplicate_backend"),
            ModelError::GroupDiffers { .. } => (StatusCode::CONFLICT, "group_differs"),
            ModelError::SharedNatBackend { .. } => (StatusCode::CONFLICT, "shared_nat_backend"),
            ModelError::CrossingPorts { .. } => (StatusCode::CONFLICT, "crossing_ports"),
            ModelError::SharedServerId { .. } => (StatusCode::CONFLICT, "shared_server_id"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        let message = error.to_string();
        match error {
            ChangeError::Refused(error) => error.into(),
            ChangeError::NoRoom(_) => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "no_room", message)
            }
            ChangeError::Forgets(_) => Self::new(StatusCode::CONFLICT, "forgets_flows", message),
            ChangeError::NotLoaded(_) | ChangeError::Kernel(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "kernel", message)
            }
            ChangeError::NotDrained(_) => Self::new(StatusCode::CONFLICT, "not_drained", message),
            ChangeError::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message)
            }
        }
    }
}
