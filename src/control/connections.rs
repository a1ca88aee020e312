//! Connections and who makes them: on a Unix socket the kernel names the other end, on a TCP
//! address the other end must show a token.
//!
//! Connections are identified, counted and timed here. What a request asks for is deliberately not
//! looked at.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::decide::access::{Action, Rights};
use crate::manifest::config::{LocalAccess, LocalIdentity};
use crate::model::{InstanceId, Requester};
use crate::sys::users::{LocalUser, PeerIds};
use crate::vault::tokens::{Token, Tokens};

/// The user or token that a request comes from, with its rights.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// The caller's name in events and in the audit trail: `user:NAME` or `token:NAME`.
    pub(super) who: Arc<str>,
    rights: Arc<Rights>,
    /// The token that the caller showed; the rights end with it. `None` on the Unix socket.
    token: Option<(Arc<Tokens>, Arc<Token>)>,
}

/// How often a token is checked again while its caller follows something. A revoked token ends that
/// within this time.
const LOOKED_AT_AGAIN: Duration = Duration::from_secs(1);

impl Caller {
    fn local(user: &str, rights: Rights) -> Caller {
        Caller { who: format!("user:{user}").into(), rights: Arc::new(rights), token: None }
    }

    /// The caller that showed this token.
    pub(super) fn by_token(token: Token, tokens: &Arc<Tokens>) -> Caller {
        Caller {
            who: format!("token:{}", token.name).into(),
            rights: Arc::new(Rights::Granted(token.permissions.clone())),
            token: Some((Arc::clone(tokens), Arc::new(token))),
        }
    }

    /// The owner of the answers that are kept by `Idempotency-Key`. A token that is made anew under the
    /// same name is another owner.
    pub(super) fn answers_are_for(&self) -> Arc<str> {
        match &self.token {
            None => Arc::clone(&self.who),
            Some((_, token)) => {
                let since = token.created.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                format!("{} {}", self.who, since.as_millis()).into()
            }
        }
    }

    /// When the caller's token was made; `None` for a local user.
    pub(super) fn token_made(&self) -> Option<SystemTime> {
        self.token.as_ref().map(|(_, token)| token.created)
    }

    pub(super) fn may(&self, action: Action, resource: &str) -> bool {
        self.rights.allow(action, resource)
    }

    pub(super) fn may_with(&self, action: Action, instance: &InstanceId) -> bool {
        self.rights.allow_instance(action, instance)
    }

    pub(super) fn may_everywhere(&self, action: Action) -> bool {
        self.rights.allow_everywhere(action)
    }

    /// Whether the caller has all rights.
    pub(super) fn may_everything(&self) -> bool {
        *self.rights == Rights::All
    }

    /// Whether the request came by the network.
    pub(super) fn is_remote(&self) -> bool {
        self.token.is_some()
    }

    pub(super) fn asker(&self) -> Requester {
        Requester::new(&*self.who)
    }

    /// Returns when the caller's token is not valid any more; for a local user never.
    pub(super) async fn gone(&self) {
        let Some((tokens, token)) = &self.token else {
            return std::future::pending().await;
        };
        while tokens.holds(token, SystemTime::now()) {
            tokio::time::sleep(LOOKED_AT_AGAIN).await;
        }
    }
}

/// The other end of a connection, before a request is read from it.
#[derive(Debug, Clone)]
pub(super) enum Peer {
    /// The kernel has named the user at the other end.
    Known(Caller),
    /// The connection comes from this address, and each request must show a token.
    Address(IpAddr),
}

/// The rules for who may use the Unix socket.
pub(super) struct UnixAdmission {
    access: Vec<LocalAccess>,
    own: String,
    /// When each user was last reported as turned away.
    told: Mutex<HashMap<u32, Instant>>,
}

/// How often it is reported that the same user is turned away.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

impl UnixAdmission {
    pub(super) fn new(access: Vec<LocalAccess>) -> UnixAdmission {
        let ids = PeerIds::own();
        let own = LocalUser::of(ids.uid, ids.gid).name;
        UnixAdmission { access, own, told: Mutex::default() }
    }

    /// Whether it is time to report that this user is turned away.
    pub(super) fn is_news(&self, uid: u32) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, at| at.elapsed() < TOLD_AGAIN);
        let is_news = !told.contains_key(&uid);
        told.entry(uid).or_insert_with(Instant::now);
        is_news
    }

    /// The caller where the other end is this process's own user, or root: it has all rights.
    pub(super) fn owner(&self, ids: PeerIds) -> Caller {
        Caller::local(if ids.uid == 0 { "root" } else { &self.own }, Rights::All)
    }

    /// The caller where the other end is another user; `None` where the user may not come in. This is
    /// decided before the first byte is read.
    pub(super) async fn admit(&self, ids: PeerIds) -> Option<Caller> {
        if self.access.is_empty() {
            return None;
        }
        // Looking a user up may ask a directory server, so it is done on another thread.
        let access = self.access.clone();
        let look = move || {
            let user = LocalUser::of(ids.uid, ids.gid);
            let theirs = access.into_iter().filter(|grant| match &grant.who {
                LocalIdentity::User(name) => user.is(name),
                LocalIdentity::Group(name) => user.is_in(name),
            });
            (theirs.flat_map(|grant| grant.permissions).collect::<Vec<_>>(), user.name)
        };
        let (permissions, name) = tokio::task::spawn_blocking(look).await.ok()?;
        if permissions.is_empty() {
            return None;
        }
        Some(Caller::local(&name, Rights::Granted(permissions)))
    }
}
