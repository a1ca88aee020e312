//! Connections and who makes them: on a Unix socket the kernel names the other end, on a TCP
//! address the other end must show a token.
//!
//! Connections are identified, counted and timed here. What a request asks for is deliberately not
//! looked at.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

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

/// Seats for connections: a limit for all of them, and a limit for each peer.
pub(super) struct Seats<K> {
    all: Arc<Semaphore>,
    of_one: usize,
    taken: SeatCounts<K>,
}

/// The number of seats that each peer has taken.
type SeatCounts<K> = Arc<Mutex<HashMap<K, usize>>>;

/// A seat for one connection, which is free again when this is dropped.
pub(super) struct Seat<K: Eq + Hash> {
    _permit: Option<OwnedSemaphorePermit>,
    of: Option<(K, SeatCounts<K>)>,
}

impl<K: Eq + Hash + Clone> Seats<K> {
    pub(super) fn new(all: usize, of_one: usize) -> Seats<K> {
        Seats { all: Arc::new(Semaphore::new(all)), of_one, taken: Arc::default() }
    }

    /// Waits until a seat is free, and takes it.
    pub(super) async fn next(&self) -> Seat<K> {
        // Acquiring fails only on a closed semaphore, and this one is never closed.
        Seat { _permit: Arc::clone(&self.all).acquire_owned().await.ok(), of: None }
    }

    /// Gives a seat to a peer; `None` where that peer has as many as it may have.
    pub(super) fn given(&self, mut place: Seat<K>, to: K) -> Option<Seat<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(to.clone()).or_insert(0);
        if *count >= self.of_one {
            return None;
        }
        *count += 1;
        drop(taken);
        place.of = Some((to, Arc::clone(&self.taken)));
        Some(place)
    }
}

impl<K: Eq + Hash> Drop for Seat<K> {
    fn drop(&mut self) {
        let Some((of, taken)) = self.of.take() else {
            return;
        };
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&of) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&of);
            }
        }
    }
}

/// Connections that wait for a seat, and the idle ones that could make room for them.
///
/// A connection without a request takes a seat all the same. When another one waits, any that has
/// been idle for [`IDLE_IN_A_CROWD`] is closed.
#[derive(Default)]
pub(super) struct Crowd {
    make_room: tokio::sync::Notify,
}

/// How long a connection may be idle while others wait for a seat.
const IDLE_IN_A_CROWD: Duration = Duration::from_millis(500);

impl Crowd {
    /// Waits for a seat, and asks idle connections to make room until there is one.
    pub(super) async fn wait_for<T>(&self, place: impl Future<Output = T>) -> T {
        let mut place = std::pin::pin!(place);
        loop {
            match tokio::time::timeout(IDLE_IN_A_CROWD / 2, place.as_mut()).await {
                Ok(place) => return place,
                Err(_) => self.make_room.notify_waiters(),
            }
        }
    }

    /// Returns when this connection has been idle for too long while others wait.
    pub(super) async fn sent_out(&self, asked: &Asked) {
        loop {
            self.make_room.notified().await;
            if asked.idle_for().is_some_and(|idle| idle >= IDLE_IN_A_CROWD) {
                return;
            }
        }
    }
}

/// The requests under way on one connection: their number, and when one last ended.
pub(super) struct Asked(Mutex<(usize, Instant)>);

impl Asked {
    pub(super) fn new() -> Arc<Asked> {
        Arc::new(Asked(Mutex::new((0, Instant::now()))))
    }

    /// Notes that a request has begun; it is under way until the result is dropped.
    pub(super) fn begin(self: &Arc<Asked>) -> UnderWay {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 += 1;
        UnderWay(Arc::clone(self))
    }

    fn idle_for(&self) -> Option<Duration> {
        let (under_way, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (under_way == 0).then(|| since.elapsed())
    }
}

/// A request whose answer is not given to its end yet.
pub(super) struct UnderWay(Arc<Asked>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut asked = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        *asked = (asked.0.saturating_sub(1), Instant::now());
    }
}

/// A connection that is cut when the other end takes nothing of an answer for too long.
pub(super) struct Timed<S> {
    inner: S,
    patience: Option<Duration>,
    until: Option<Pin<Box<Sleep>>>,
}

impl<S> Timed<S> {
    pub(super) fn new(inner: S, patience: Option<Duration>) -> Timed<S> {
        Timed { inner, patience, until: None }
    }

    /// The result of a write; an error where the write has been pending for longer than `patience`.
    fn in_time<T>(&mut self, context: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Some(patience) = self.patience else {
            return done;
        };
        match done {
            Poll::Ready(done) => {
                self.until = None;
                Poll::Ready(done)
            }
            Poll::Pending => {
                let until = self
                    .until
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + patience)));
                match until.as_mut().poll(context) {
                    Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.in_time(context, done)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.inner).poll_flush(context);
        self.in_time(context, done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.inner).poll_shutdown(context);
        self.in_time(context, done)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn one_peer_leaves_places_for_others() {
        let places = Seats::new(3, 2);
        let first = places.given(places.next().await, "a").unwrap();
        let _second = places.given(places.next().await, "a").unwrap();
        assert!(places.given(places.next().await, "a").is_none());
        let other = places.given(places.next().await, "b").unwrap();
        drop(first);
        let third = places.given(places.next().await, "a");
        assert!(third.is_some());
        drop((third, other));
        assert_eq!(places.taken.lock().unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_cut_and_who_takes_a_little_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut timed = Timed::new(ours, Some(Duration::from_secs(30)));
        let reading = tokio::spawn(async move {
            let mut byte = [0u8; 8];
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                tokio::io::AsyncReadExt::read_exact(&mut theirs, &mut byte).await.unwrap();
            }
            theirs
        });
        let error = timed.write_all(&[0u8; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(reading.await.unwrap());
    }
}
