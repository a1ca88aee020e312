//! `Idempotency-Key`: a command that is sent again with the same key is not carried out again, but
//! answered as before. Answers are kept in the store as well, so that the next daemon gives them,
//! too.
//!
//! A key that comes with another command is refused. While the first request with a key is under
//! way, the second waits for its answer. Sending and reading requests is `middleware`'s.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::refused::{Refused, refuse};
use crate::model::DenialCode;
use crate::record::store::AcceptedCommand;

/// The request header of the IETF's draft.
pub(super) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The header that marks an answer as given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The largest number of characters of a key.
const LONGEST: usize = 255;
/// How long answers are held in memory once there are `MOST` of them; the store keeps them for
/// longer.
const REMEMBERED: Duration = Duration::from_secs(600);
const MOST: usize = 1_000;

/// The largest body on the control socket, in bytes.
pub(super) const BODY: u64 = 64 << 20;
/// The largest body on the control socket that carries a manifest, in bytes.
pub(super) const MANIFEST: u64 = 64 << 20;

/// An answer that can be given again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

impl Given {
    pub(super) fn again(&self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let json = HeaderValue::from_static("application/json");
        let mut response = (status, self.body.clone()).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        response
    }
}

/// One command that was sent with a key.
struct Slot {
    asked: String,
    since: Instant,
    /// The answer; `None` while the command is under way. When the command ends, its sender is dropped.
    answer: watch::Receiver<Option<Given>>,
}

/// The owner of a key, and the key.
type OwnedKey = (Arc<str>, String);

/// The answers that were given lately, by owner and key.
#[derive(Clone, Default)]
pub(super) struct Answers {
    slots: Arc<Mutex<HashMap<OwnedKey, Slot>>>,
}

/// What is known of a key.
pub(super) enum Known {
    /// The key is new. The command is under way from now on, and its answer is sent here.
    New(watch::Sender<Option<Given>>),
    /// The same command was sent before; its answer is here, or will be.
    Before(watch::Receiver<Option<Given>>),
    /// The key was used for another command.
    Other,
}

impl Answers {
    pub(super) fn look(&self, whose: &OwnedKey, asked: &str) -> Known {
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

    pub(super) fn forget(&self, whose: &OwnedKey) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(whose);
    }
}

/// A command that an earlier daemon took with this key, and did not come to answer.
#[derive(Debug, Clone)]
pub(super) struct WasTaken(pub(super) AcceptedCommand);

/// A hash of the request's method, address and body, which tells one command from another.
pub(super) fn word(request: &axum::http::request::Parts, body: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(request.method.as_str());
    hash.update([0]);
    hash.update(request.uri.to_string());
    hash.update([0]);
    hash.update(body);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn key_of(request: &Request) -> Result<Option<String>, Refused> {
    let mut all = request.headers().get_all(&KEY).iter();
    match (all.next(), all.next()) {
        (None, _) => Ok(None),
        (Some(key), None) => match key.to_str() {
            Ok(key) if key.len() <= LONGEST && is_visible(key) => Ok(Some(key.to_owned())),
            Ok(_) | Err(_) => {
                let reason = format!("an Idempotency-Key must have 1 to {LONGEST} visible ASCII characters");
                Err(refuse(DenialCode::Invalid, reason, None))
            }
        },
        (Some(_), Some(_)) => {
            Err(refuse(DenialCode::Invalid, "a request must have only one Idempotency-Key", None))
        }
    }
}

fn is_visible(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(key: &str) -> OwnedKey {
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
    fn so_many_are_remembered_but_none_under_way_is_forgotten() {
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
