//! The body of a request: read whole, as large and as slow as it may be, or refused.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;

use super::refused::{Refused, refuse};
use crate::model::DenialCode;

/// So long a refused body is read on.
const LINGERING: Duration = Duration::from_secs(1);

/// A connection's last answer.
pub(super) fn last(refused: Refused) -> Response {
    let mut response = refused.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Reads on for a moment what is refused, and drops it: were it left unread, the kernel would reset
/// the connection, and with it the answer on its way.
pub(super) fn linger(mut body: Body) {
    if !body.is_end_stream() {
        tokio::spawn(tokio::time::timeout(LINGERING, async move {
            while let Some(Ok(_)) = body.frame().await {}
        }));
    }
}

/// Reads the whole body of a request, as large as it may be and as long as it may take. `Err`: the
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
        Err(_) => refuse(DenialCode::TimedOut, "the body did not come in time", None),
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
