//! `Idempotency-Key`: a command that is sent again with the key it had is not carried out again; it
//! is answered as it was. The answers are in the store, so that the next daemon gives them, too.
//!
//! Who sends the same key for something else is refused. While the first is under way, the second
//! waits for its answer.

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
pub(super) const BODY: u64 = 64 << 20;
/// ... and of one that is a manifest.
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

/// One command with a key.
struct Slot {
    asked: String,
    since: Instant,
    /// `None` while it is under way; its sender ends with it.
    answer: watch::Receiver<Option<Given>>,
}

/// Whose key it is, and the key.
type OwnedKey = (Arc<str>, String);

/// The answers of late.
#[derive(Clone, Default)]
pub(super) struct Answers {
    slots: Arc<Mutex<HashMap<OwnedKey, Slot>>>,
}

/// What is known of a key.
pub(super) enum Known {
    /// Nothing: it is under way from now on, and answered here.
    New(watch::Sender<Option<Given>>),
    /// It is, or will be, answered there.
    Before(watch::Receiver<Option<Given>>),
    /// It was for something else.
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

/// A command was taken, with this key, by a daemon that did not come to answer it.
#[derive(Debug, Clone)]
pub(super) struct WasTaken(pub(super) AcceptedCommand);

/// What is asked for, in one word: another command has another.
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
