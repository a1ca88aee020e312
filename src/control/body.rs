//! The body of a request: it is read whole within its limits of size and time, or refused.
//!
//! Only bytes are handled here; what they mean is for the handlers.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;

use super::refused::{Refused, refuse};
use crate::model::DenialCode;

/// How long a refused body is read on.
const LINGERING: Duration = Duration::from_secs(1);

/// The answer to a refused request, after which the connection is closed.
pub(super) fn last(refused: Refused) -> Response {
    let mut response = refused.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Reads the rest of a refused body for a moment, and drops it. If it were left unread, the kernel
/// would reset the connection, and the answer on its way with it.
pub(super) fn linger(mut body: Body) {
    if !body.is_end_stream() {
        tokio::spawn(tokio::time::timeout(LINGERING, async move {
            while let Some(Ok(_)) = body.frame().await {}
        }));
    }
}

/// Reads the whole body of a request, up to `most` bytes and for `patience` at most. `Err` is the
/// connection's last answer.
pub(super) async fn whole(mut body: Body, most: u64, patience: Duration) -> Result<Bytes, Response> {
    let limit = usize::try_from(most).unwrap_or(usize::MAX);
    let read = tokio::time::timeout(patience, Limited::new(&mut body, limit).collect()).await;
    let refused = match read {
        Ok(Ok(read)) => return Ok(read.to_bytes()),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
            refuse(DenialCode::TooLarge, format!("the body has more than {most} bytes"), None)
        }
        Ok(Err(error)) => refuse(DenialCode::Invalid, format!("the body can't be read: {error}"), None),
        Err(_) => refuse(DenialCode::TimedOut, "the request body did not arrive in time", None),
    };
    linger(body);
    Err(last(refused))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_is_too_large_is_not_read_to_its_end() {
        assert_eq!(whole(Body::from("12345"), 5, Duration::MAX).await.unwrap_or_default(), "12345");
        let refused = whole(Body::from("123456"), 5, Duration::MAX).await.err().unwrap();
        assert_eq!(refused.status(), 413);
    }
}
