//! The two doors, and who comes in by them: a Unix socket, whose other end the kernel names, and a
//! TCP address, whose other end must show a token.
//!
//! A connection is known, bounded and timed here; what it asks for is looked at behind.

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

/// Who asks for something.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// For events and the audit trail.
    pub(super) who: Arc<str>,
    rights: Arc<Rights>,
    /// Those who came by a token have no rights without it.
    token: Option<(Arc<Tokens>, Arc<Token>)>,
}

/// A revoked token ends what follows by it within this time.
const LOOKED_AT_AGAIN: Duration = Duration::from_secs(1);

impl Caller {
    fn local(user: &str, rights: Rights) -> Caller {
        Caller { who: format!("user:{user}").into(), rights: Arc::new(rights), token: None }
    }

    /// Somebody with a token.
    pub(super) fn by_token(token: Token, tokens: &Arc<Tokens>) -> Caller {
        Caller {
            who: format!("token:{}", token.name).into(),
            rights: Arc::new(Rights::Granted(token.permissions.clone())),
            token: Some((Arc::clone(tokens), Arc::new(token))),
        }
    }

    /// Whose answers an `Idempotency-Key` is for: a token that is made again under its name is another's.
    pub(super) fn answers_are_for(&self) -> Arc<str> {
        match &self.token {
            None => Arc::clone(&self.who),
            Some((_, token)) => {
                let since = token.created.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                format!("{} {}", self.who, since.as_millis()).into()
            }
        }
    }

    /// When its token was made, where it came by one.
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

    /// Whether there is nothing that they may not.
    pub(super) fn may_everything(&self) -> bool {
        *self.rights == Rights::All
    }

    /// Whether they came by the network.
    pub(super) fn is_remote(&self) -> bool {
        self.token.is_some()
    }

    pub(super) fn asker(&self) -> Requester {
        Requester::new(&*self.who)
    }

    /// Returns when they have no business here any more.
    pub(super) async fn gone(&self) {
        let Some((tokens, token)) = &self.token else {
            return std::future::pending().await;
        };
        while tokens.holds(token, SystemTime::now()) {
            tokio::time::sleep(LOOKED_AT_AGAIN).await;
        }
    }
}

/// The other end of a connection, before it has said anything.
#[derive(Debug, Clone)]
pub(super) enum Peer {
    /// The kernel has named it.
    Known(Caller),
    /// It comes from there.
    Address(IpAddr),
}

/// Who may come in by the Unix socket.
pub(super) struct UnixAdmission {
    access: Vec<LocalAccess>,
    own: String,
    /// Who was turned away, and when that was told.
    told: Mutex<HashMap<u32, Instant>>,
}

/// That somebody is turned away is told this often.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

impl UnixAdmission {
    pub(super) fn new(access: Vec<LocalAccess>) -> UnixAdmission {
        let ids = PeerIds::own();
        let own = LocalUser::of(ids.uid, ids.gid).name;
        UnixAdmission { access, own, told: Mutex::default() }
    }

    /// Whether it is time to tell that this user is turned away.
    pub(super) fn is_news(&self, uid: u32) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, at| at.elapsed() < TOLD_AGAIN);
        let is_news = !told.contains_key(&uid);
        told.entry(uid).or_insert_with(Instant::now);
        is_news
    }

    /// Ourselves, or root.
    pub(super) fn owner(&self, ids: PeerIds) -> Caller {
        Caller::local(if ids.uid == 0 { "root" } else { &self.own }, Rights::All)
    }

    /// Another user; `None`: nobody who may come in. Asked before the first byte is read.
    pub(super) async fn admit(&self, ids: PeerIds) -> Option<Caller> {
        if self.access.is_empty() {
            return None;
        }
        // It may ask a directory server.
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

/// Seats for connections: so many in all, and so many of one peer.
pub(super) struct Seats<K> {
    all: Arc<Semaphore>,
    of_one: usize,
    taken: SeatCounts<K>,
}

/// How many each peer has.
type SeatCounts<K> = Arc<Mutex<HashMap<K, usize>>>;

/// A place, until it is dropped.
pub(super) struct Seat<K: Eq + Hash> {
    _permit: Option<OwnedSemaphorePermit>,
    of: Option<(K, SeatCounts<K>)>,
}

impl<K: Eq + Hash + Clone> Seats<K> {
    pub(super) fn new(all: usize, of_one: usize) -> Seats<K> {
        Seats { all: Arc::new(Semaphore::new(all)), of_one, taken: Arc::default() }
    }

    /// Waits until there is one.
    pub(super) async fn next(&self) -> Seat<K> {
        // Fails only when it was closed, which nobody does.
        Seat { _permit: Arc::clone(&self.all).acquire_owned().await.ok(), of: None }
    }

    /// Gives it to a peer; `None`: that one has enough.
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

/// Those who wait at the door, and those inside who could make room.
///
/// A connection on which nothing is asked costs a place all the same: when somebody waits for one, whoever
/// has been idle for a moment goes.
#[derive(Default)]
pub(super) struct Crowd {
    make_room: tokio::sync::Notify,
}

/// So long a connection may be idle while others wait for its place.
const IDLE_IN_A_CROWD: Duration = Duration::from_millis(500);

impl Crowd {
    /// Somebody waits for a place until there is one.
    pub(super) async fn wait_for<T>(&self, place: impl Future<Output = T>) -> T {
        let mut place = std::pin::pin!(place);
        loop {
            match tokio::time::timeout(IDLE_IN_A_CROWD / 2, place.as_mut()).await {
                Ok(place) => return place,
                Err(_) => self.make_room.notify_waiters(),
            }
        }
    }

    /// Returns when a connection has been idle for too long, as busy as it is here.
    pub(super) async fn sent_out(&self, asked: &Asked) {
        loop {
            self.make_room.notified().await;
            if asked.idle_for().is_some_and(|idle| idle >= IDLE_IN_A_CROWD) {
                return;
            }
        }
    }
}

/// What is under way on a connection.
pub(super) struct Asked(Mutex<(usize, Instant)>);

impl Asked {
    pub(super) fn new() -> Arc<Asked> {
        Arc::new(Asked(Mutex::new((0, Instant::now()))))
    }

    /// Somebody has asked for something, until the answer is dropped.
    pub(super) fn begin(self: &Arc<Asked>) -> UnderWay {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 += 1;
        UnderWay(Arc::clone(self))
    }

    fn idle_for(&self) -> Option<Duration> {
        let (under_way, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (under_way == 0).then(|| since.elapsed())
    }
}

/// An answer that is being given.
pub(super) struct UnderWay(Arc<Asked>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut asked = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        *asked = (asked.0.saturating_sub(1), Instant::now());
    }
}

/// A connection that is cut when the other end takes nothing for too long.
pub(super) struct Timed<S> {
    inner: S,
    patience: Option<Duration>,
    until: Option<Pin<Box<Sleep>>>,
}

impl<S> Timed<S> {
    pub(super) fn new(inner: S, patience: Option<Duration>) -> Timed<S> {
        Timed { inner, patience, until: None }
    }

    /// What a write has come to, with its time looked at.
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
