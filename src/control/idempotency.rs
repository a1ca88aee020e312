//! `Idempotency-Key`: a command that is sent again with the key it had is not carried out again; it
//! is answered as it was. The answers are in the store, so that the next daemon gives them, too.
//!
//! Who sends the same key for something else is refused. While the first is under way, the second
//! waits for its answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::auth::whole;
use super::connections::Caller;
use super::requests::{Refused, Shared, refuse};
use crate::model::DenialCode;
use crate::record::store::AcceptedCommand;

/// The header, as the IETF's draft has it.
pub(super) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Said of an answer that was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A key has this many characters at most.
const LONGEST: usize = 255;
/// Answers are remembered here for so long, and so many of them; in the store for longer.
const REMEMBERED: Duration = Duration::from_secs(600);
const MOST: usize = 1_000;

/// Bytes of the largest body by the control socket ...
const BODY: u64 = 64 << 20;
/// ... and of one that is a manifest.
const MANIFEST: u64 = 64 << 20;

/// An answer that can be given again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

impl Given {
    fn again(&self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let json = HeaderValue::from_static("application/json");
        let mut response = (status, self.body.clone()).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        response
    }
}

/// One command with a key.
struct Slot {
    asked: String,
    since: Instant,
    /// `None` while it is under way; its sender ends with it.
    answer: watch::Receiver<Option<Given>>,
}

/// Whose key it is, and the key.
type OutputPolicy = (Arc<str>, String);

/// The answers of late.
#[derive(Clone, Default)]
pub(super) struct Answers {
    slots: Arc<Mutex<HashMap<OutputPolicy, Slot>>>,
}

/// What is known of a key.
enum Known {
    /// Nothing: it is under way from now on, and answered here.
    New(watch::Sender<Option<Given>>),
    /// It is, or will be, answered there.
    Before(watch::Receiver<Option<Given>>),
    /// It was for something else.
    Other,
}

impl Answers {
    fn look(&self, whose: &OutputPolicy, asked: &str) -> Known {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(whose) {
            let is_under_way = slot.answer.borrow().is_none() && slot.answer.has_changed().is_ok();
            let is_answered = slot.answer.borrow().is_some();
            if is_under_way || is_answered {
                return if slot.asked == asked { Known::Before(slot.answer.clone()) } else { Known::Other };
            }
        }
        if slots.len() >= MOST {
            slots.retain(|_, slot| {
                let is_under_way = slot.answer.borrow().is_none() && slot.answer.has_changed().is_ok();
                is_under_way || slot.since.elapsed() < REMEMBERED
            });
        }
        while slots.len() >= MOST {
            let answered = slots.iter().filter(|(_, slot)| slot.answer.borrow().is_some());
            let Some(oldest) = answered.min_by_key(|(_, slot)| slot.since).map(|(whose, _)| whose.clone())
            else {
                break;
            };
            slots.remove(&oldest);
        }
        let (sender, answer) = watch::channel(None);
        slots.insert(whose.clone(), Slot { asked: asked.to_owned(), since: Instant::now(), answer });
        Known::New(sender)
    }

    fn forget(&self, whose: &OutputPolicy) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(whose);
    }
}

/// A command was taken, with this key, by a daemon that did not come to answer it.
#[derive(Debug, Clone)]
pub(super) struct WasTaken(pub(super) AcceptedCommand);

/// What is asked for, in one word: another command has another.
fn word(request: &axum::http::request::Parts, body: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(request.method.as_str());
    hash.update([0]);
    hash.update(request.uri.to_string());
    hash.update([0]);
    hash.update(body);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key_of(request: &Request) -> Result<Option<String>, Refused> {
    let mut all = request.headers().get_all(&KEY).iter();
    match (all.next(), all.next()) {
        (None, _) => Ok(None),
        (Some(key), None) => match key.to_str() {
            Ok(key) if key.len() <= LONGEST && is_visible(key) => Ok(Some(key.to_owned())),
            Ok(_) | Err(_) => {
                let reason = format!("an Idempotency-Key has 1 to {LONGEST} visible characters");
                Err(refuse(DenialCode::Invalid, reason, None))
            }
        },
        (Some(_), Some(_)) => Err(refuse(DenialCode::Invalid, "there are several Idempotency-Keys", None)),
    }
}

fn is_visible(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Carries a command out once; `most` bounds its body.
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
        // To its end, also when the client hangs up: half of a reload is worse than either.
        let request = Request::from_parts(parts, Body::from(body));
        let carried_out = tokio::spawn(next.run(request));
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
    // By an earlier daemon, maybe.
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
    // It goes on when the client hangs up, so that its answer is there when that one asks again.
    let shared = shared.clone();
    let carried_out = tokio::spawn(async move {
        let response = next.run(request).await;
        let (parts, body) = response.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return Err(refuse(DenialCode::Internal, error.to_string(), None)),
        };
        // Who may, and whether it works, may be otherwise the next time.
        let passing = [StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT];
        if parts.status.is_server_error() || passing.contains(&parts.status) {
            // The next time it may be done.
            shared.answers.forget(&whose);
        } else {
            let given = Given { status: parts.status.as_u16(), body: body.clone() };
            shared.keep_answer(&whose.0, &whose.1, &asked, &given);
            sender.send_replace(Some(given));
        }
        Ok(Response::from_parts(parts, Body::from(body)))
    });
    carried_out.await.unwrap_or_else(|_| Err(lost()))
}

/// The middleware of commands, whose bodies are of the usual size.
pub(super) async fn usual(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let most = shared.largest_body(&request, BODY);
    once(&shared, most, request, next).await
}

/// Of what may be asked as often as one likes the body is bounded alone.
pub(super) async fn any_number(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let (most, patience) = shared.largest_body(&request, BODY);
    let (parts, body) = request.into_parts();
    match whole(body, most, patience).await {
        Ok(body) => next.run(Request::from_parts(parts, Body::from(body))).await,
        Err(response) => response,
    }
}

/// As `usual`, where whole manifests come in.
pub(super) async fn large(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let most = shared.largest_body(&request, MANIFEST);
    once(&shared, most, request, next).await
}

fn other() -> Refused {
    refuse(DenialCode::KeyReused, "this Idempotency-Key was used for another command", None)
}

fn lost() -> Refused {
    refuse(DenialCode::Internal, "the command with this Idempotency-Key could not be answered", None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(key: &str) -> OutputPolicy {
        ("token:a".into(), key.to_owned())
    }

    #[test]
    fn a_key_is_for_one_command_until_it_is_forgotten() {
        let answers = Answers::default();
        let Known::New(sender) = answers.look(&whose("k"), "stop web") else { panic!() };
        assert!(matches!(answers.look(&whose("k"), "stop web"), Known::Before(_)));
        assert!(matches!(answers.look(&whose("k"), "stop db"), Known::Other));
        let others = ("token:b".into(), "k".to_owned());
        assert!(matches!(answers.look(&others, "stop db"), Known::New(_)));
        let given = Given { status: 200, body: Bytes::from("{}") };
        sender.send_replace(Some(given.clone()));
        drop(sender);
        let Known::Before(answer) = answers.look(&whose("k"), "stop web") else { panic!() };
        assert_eq!(*answer.borrow(), Some(given));
        answers.forget(&whose("k"));
        assert!(matches!(answers.look(&whose("k"), "stop db"), Known::New(_)));
    }

    #[test]
    fn one_that_broke_off_may_be_tried_again() {
        let answers = Answers::default();
        drop(answers.look(&whose("k"), "x"));
        assert!(matches!(answers.look(&whose("k"), "x"), Known::New(_)));
    }

    #[test]
    fn so_many_are_remembered_and_none_that_is_under_way_is_forgotten() {
        let answers = Answers::default();
        let Known::New(_under_way) = answers.look(&whose("first"), "x") else { panic!() };
        for number in 0..MOST * 2 {
            let Known::New(sender) = answers.look(&whose(&number.to_string()), "x") else { panic!() };
            sender.send_replace(Some(Given { status: 200, body: Bytes::new() }));
        }
        assert!(answers.slots.lock().unwrap().len() <= MOST);
        assert!(matches!(answers.look(&whose("first"), "x"), Known::Before(_)));
    }
}
