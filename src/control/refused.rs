//! A refused request: the denial, and the answer with its HTTP status.
//!
//! Why a request is refused is decided elsewhere.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::protocol::{ErrorBody, FaultBody};
use crate::model::{Denial, DenialCode};

/// The denial of a request, with the faults of the manifest where it was about one.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) denial: Denial,
    pub(crate) faults: Vec<FaultBody>,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let code = self.denial.code;
        let mut response =
            (status_of(code), axum::Json(ErrorBody { error: self.denial, faults: self.faults }))
                .into_response();
        let extra = match code {
            DenialCode::Unauthorized => Some((header::WWW_AUTHENTICATE, "Bearer realm=\"regrow\"")),
            DenialCode::TooManyRequests => Some((header::RETRY_AFTER, "1")),
            _ => None,
        };
        if let Some((name, value)) = extra {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

fn status_of(code: DenialCode) -> StatusCode {
    match code {
        DenialCode::NotFound => StatusCode::NOT_FOUND,
        DenialCode::HasDependents
        | DenialCode::DependencyDown
        | DenialCode::Exists
        | DenialCode::Ambiguous
        | DenialCode::WrongState => StatusCode::CONFLICT,
        DenialCode::Faulty | DenialCode::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
        DenialCode::ShuttingDown | DenialCode::NotRunning => StatusCode::SERVICE_UNAVAILABLE,
        DenialCode::Invalid => StatusCode::BAD_REQUEST,
        DenialCode::NoSuchMethod => StatusCode::METHOD_NOT_ALLOWED,
        DenialCode::TimedOut => StatusCode::REQUEST_TIMEOUT,
        DenialCode::Unauthorized => StatusCode::UNAUTHORIZED,
        DenialCode::Forbidden => StatusCode::FORBIDDEN,
        DenialCode::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        DenialCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        DenialCode::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        DenialCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<Denial> for Refused {
    fn from(denial: Denial) -> Refused {
        Refused { denial, faults: Vec::new() }
    }
}

pub(crate) fn refuse(code: DenialCode, reason: impl Into<String>, hint: Option<&str>) -> Refused {
    Refused::from(Denial { code, reason: reason.into(), hint: hint.map(str::to_owned) })
}

/// The result of a handler, or of a step of it.
pub(super) type Handled<T> = Result<T, Refused>;
