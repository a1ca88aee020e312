//! The checks that every request passes on its way to its handler: whose it is, how large its body
//! is, and whether it was sent before.
//!
//! What the caller may do is deliberately not asked here; the handlers ask that.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use tracing::Instrument;
use tracing::field::Empty;

use super::body::{last, linger, whole};
use super::connections::{Caller, Peer};
use super::idempotency::{BODY, Given, Known, MANIFEST, WasTaken, key_of, word};
use super::refused::{Refused, refuse};
use super::shared::Shared;
use crate::model::DenialCode;

/// Identifies the caller of a request and passes the request on, or refuses it.
pub(super) async fn enter(State(shared): State<Shared>, mut request: Request, next: Next) -> Response {
    let caller = match (request.extensions_mut().remove::<Peer>(), &shared.guard) {
        (Some(Peer::Known(caller)), _) => Ok(caller),
        (Some(Peer::Address(from)), Some(guard)) => {
            let unknown = |who: &str, shown: &str| shared.audit(who, "enter", "api", Err(shown));
            guard.identify(request.headers(), from, unknown)
        }
        (Some(Peer::Address(_)) | None, _) => {
            Err(refuse(DenialCode::Unauthorized, "the caller can't be identified", None))
        }
    };
    let caller = match caller {
        Ok(caller) => caller,
        Err(refused) => {
            linger(request.into_body());
            return last(refused);
        }
    };
    let span = tracing::info_span!(
        "request",
        method = %request.method(),
        path = request.uri().path(),
        who = &*caller.who,
        status = Empty
    );
    request.extensions_mut().insert(caller);
    let mut response = next.run(request).instrument(span.clone()).await;
    span.record("status", response.status().as_u16());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Carries out a command, once for each `Idempotency-Key`. `most` is the limit of its body: bytes,
/// and time.
pub(super) async fn once(shared: &Shared, most: (u64, Duration), request: Request, next: Next) -> Response {
    match guarded(shared, most, request, next).await {
        Ok(response) => response,
        Err(refused) => refused.into_response(),
    }
}

async fn guarded(
    shared: &Shared,
    most: (u64, Duration),
    request: Request,
    next: Next,
) -> Result<Response, Refused> {
    let key = key_of(&request)?;
    let (parts, body) = request.into_parts();
    let body = match whole(body, most.0, most.1).await {
        Ok(body) => body,
        Err(response) => return Ok(response),
    };
    let Some(key) = key else {
        // The command goes on when the client hangs up: half of a reload is worse than all or nothing.
        let request = Request::from_parts(parts, Body::from(body));
        let carried_out = tokio::spawn(next.run(request).in_current_span());
        return carried_out.await.map_err(|_| lost());
    };
    let caller = parts.extensions.get::<Caller>();
    let who = caller.map_or_else(|| "".into(), Caller::answers_are_for);
    let (called, since) = caller.map_or_else(Default::default, |c| (Arc::clone(&c.who), c.token_made()));
    let asked = word(&parts, &body);
    let whose = (who, key);
    let sender = match shared.answers.look(&whose, &asked) {
        Known::New(sender) => sender,
        Known::Other => return Err(other()),
        Known::Before(mut answer) => {
            return match answer.wait_for(Option::is_some).await {
                Ok(given) => Ok(given.as_ref().map_or_else(|| lost().into_response(), Given::again)),
                Err(_) => Err(lost()),
            };
        }
    };
    let mut request = Request::from_parts(parts, Body::from(body));
    // An earlier daemon may have answered this key.
    match shared.answered_before(&whose.0, &whose.1).await {
        Some((before, _)) if before != asked => {
            shared.answers.forget(&whose);
            return Err(other());
        }
        Some((_, given)) => {
            let response = given.again();
            sender.send_replace(Some(given));
            return Ok(response);
        }
        None => {}
    }
    if let Some(taken) = shared.was_taken(&called, since, &whose.1).await {
        request.extensions_mut().insert(WasTaken(taken));
    }
    // The command goes on when the client hangs up, so that its answer is there when the client asks
    // again.
    let shared = shared.clone();
    let carried_out = async move {
        let response = next.run(request).await;
        let (parts, body) = response.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return Err(refuse(DenialCode::Internal, error.to_string(), None)),
        };
        // Such a refusal or failure may not happen the next time, so its answer is not kept.
        let passing = [StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT];
        if parts.status.is_server_error() || passing.contains(&parts.status) {
            // The next request with this key is carried out.
            shared.answers.forget(&whose);
        } else {
            let given = Given { status: parts.status.as_u16(), body: body.clone() };
            shared.keep_answer(&whose.0, &whose.1, &asked, &given);
            sender.send_replace(Some(given));
        }
        Ok(Response::from_parts(parts, Body::from(body)))
    };
    tokio::spawn(carried_out.in_current_span()).await.unwrap_or_else(|_| Err(lost()))
}

/// The middleware of commands whose bodies have the usual size.
pub(super) async fn usual(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let most = shared.largest_body(&request, BODY);
    once(&shared, most, request, next).await
}

/// The middleware of requests that may be sent any number of times: only their bodies are limited.
pub(super) async fn any_number(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let (most, patience) = shared.largest_body(&request, BODY);
    let (parts, body) = request.into_parts();
    match whole(body, most, patience).await {
        Ok(body) => next.run(Request::from_parts(parts, Body::from(body))).await,
        Err(response) => response,
    }
}

/// The middleware of commands that carry whole manifests.
pub(super) async fn large(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let most = shared.largest_body(&request, MANIFEST);
    once(&shared, most, request, next).await
}

fn other() -> Refused {
    refuse(DenialCode::KeyReused, "this Idempotency-Key was already used for another command", None)
}

fn lost() -> Refused {
    refuse(DenialCode::Internal, "the command with this Idempotency-Key could not be answered", None)
}
