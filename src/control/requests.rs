//! The handlers, one for each request. By then the caller is known. Whether the caller may do this
//! depends on what the request is about, so each handler asks.
//!
//! What several handlers share stands here; routes are in `operations`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use axum::extract::rejection::JsonRejection;
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use tokio::sync::mpsc;

use super::connections::Caller;
use crate::control::refused::{Handled, refuse};
use crate::model::DenialCode;

pub(super) mod admin;
pub(super) mod events;
pub(super) mod logs;
pub(super) mod manifests;
pub(super) mod query;
pub(super) mod resources;
pub(super) mod tasks;
pub(super) mod tree;

use query::Query;

fn body<T>(json: Result<axum::Json<T>, JsonRejection>) -> Handled<T> {
    json.map(|axum::Json(value)| value)
        .map_err(|rejection| refuse(DenialCode::Invalid, rejection.body_text(), None))
}

fn json_event(name: &str, value: &impl serde::Serialize) -> sse::Event {
    // Our own types always serialize.
    let event = sse::Event::default().event(name);
    event
        .json_data(value)
        .unwrap_or_else(|error| sse::Event::default().event("error").data(error.to_string()))
}

/// A response of server-sent events that a task fills. The task ends when the client hangs up, or
/// when the caller's token is not valid any more.
fn stream<F, T>(caller: Caller, fill: F) -> Response
where
    F: FnOnce(mpsc::Sender<sse::Event>) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(64);
    let filling = fill(sender.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = filling => {}
            () = sender.closed() => {}
            () = caller.gone() => {}
        }
    });
    Sse::new(Received(receiver)).keep_alive(sse::KeepAlive::default()).into_response()
}

/// A channel's receiving end, as the stream that a response needs.
struct Received(mpsc::Receiver<sse::Event>);

impl Stream for Received {
    type Item = Result<sse::Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|event| event.map(Ok))
    }
}

fn age(query: &Query) -> Handled<Option<SystemTime>> {
    let seconds: Option<f64> = query.number("since_s")?;
    let age = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
    Ok(age.and_then(|age| SystemTime::now().checked_sub(age)))
}
