//! The server of the control socket and of the network API: it accepts connections, gives them
//! seats, and hands their requests to the router.
//!
//! Who may come in is decided in `connections` and `auth`; what a request does, in `requests`.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, watch};
use tower::ServiceExt;

use super::auth::Guard;
use super::connections::{Peer, UnixAdmission};
use super::operations;
use super::seats::{Asked, Crowd, Seats};
use super::shared::Shared;
use super::timed::Timed;
use super::tls::Tls;
use crate::manifest::config::{Api, LocalAccess};
use crate::runtime::Handle;
use crate::sys::files;
use crate::sys::sockets::{self, SocketAccess};
use crate::sys::users::PeerIds;
use crate::vault::tokens::Tokens;

pub use super::operations::document;
pub use super::shared::{Daemon, Load, LoadedManifests};

/// The number of requests that may read log files at a time.
const READERS: usize = 2;
/// The number of connections of root and this process's own user at a time. More wait, since each
/// costs a descriptor that a service may need.
const CONNECTIONS: usize = 64;
/// The number of connections of all other users of this machine; `OF_A_USER` is the limit for each
/// of them.
const OF_OTHERS: usize = 32;
const OF_A_USER: usize = 8;
/// The number of connections of all services together, since each service knows the socket's path.
/// Services take no seats of others, and others none of theirs.
const OF_SERVICES: usize = 16;
/// The user number that stands for all services in reports of who was turned away. No user has it
/// (setuid(2)).
const SERVICES: u32 = u32::MAX;
/// How long a client may take to send a request, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest head of a request, in bytes.
const LARGEST_HEAD: usize = 64 << 10;
/// How often it is checked that the socket is still there. No client can connect to a socket that
/// was removed.
const LOOKING: Duration = Duration::from_secs(2);
/// How often an address is tried again that can't be listened on.
const RETRY: Duration = Duration::from_secs(2);

/// The socket and the address that requests come by.
pub struct Listeners {
    /// The control socket. `None`: it is made as soon as that is possible.
    pub local: Option<std::os::unix::net::UnixListener>,
    /// The path of the control socket. If the socket is removed there, another is made.
    pub path: PathBuf,
    /// What other users of this machine may do on the control socket.
    pub access: Vec<LocalAccess>,
    /// The address on the network, where one is configured.
    pub network: Option<NetworkListener>,
}

/// An address on the network that requests may come by.
pub struct NetworkListener {
    /// The configuration of the network API.
    pub api: Api,
    /// The tokens that callers from the network must show.
    pub tokens: Tokens,
}

impl Listeners {
    /// The control socket alone, open to its owner and root. The listener comes from [`sockets::listen`].
    pub fn local(local: std::os::unix::net::UnixListener, path: PathBuf) -> Listeners {
        Listeners { local: Some(local), path, access: Vec::new(), network: None }
    }
}

/// Serves until `closing` turns true. Then the requests under way are answered, and followers are
/// let go.
pub async fn serve(
    doors: Listeners,
    handle: Handle,
    closing: watch::Receiver<bool>,
    daemon: Option<Daemon>,
) -> io::Result<()> {
    let Listeners { local, path, access, network } = doors;
    let local = match local {
        Some(local) => {
            local.set_nonblocking(true)?;
            Some(UnixListener::from_std(local)?)
        }
        None => None,
    };
    let shared = Shared {
        handle,
        closing: closing.clone(),
        daemon: daemon.map(Arc::new),
        guard: None,
        answers: super::idempotency::Answers::default(),
        reading: Arc::new(Semaphore::new(READERS)),
        remote_body: network
            .as_ref()
            .map_or((0, PATIENCE), |network| (network.api.max_body, network.api.timeout)),
    };
    let graceful = GracefulShutdown::new();
    let inside = async {
        let router = operations::router(shared.clone());
        let reach = if access.is_empty() { SocketAccess::Owner } else { SocketAccess::Everybody };
        let keeper = Arc::new(UnixAdmission::new(access));
        by_socket(local, (&path, reach), keeper, &shared, &router, &graceful).await;
    };
    let outside = async {
        match network {
            Some(network) => by_network(network, &shared, &graceful).await,
            None => std::future::pending().await,
        }
    };
    let mut closing = closing;
    let closed = async move {
        // An error means that the sender is gone, and the runtime with it.
        let _ = closing.wait_for(|closing| *closing).await;
    };
    tokio::select! {
        () = closed => {}
        () = inside => {}
        () = outside => {}
    }
    graceful.shutdown().await;
    Ok(())
}

/// Accepts connections to the control socket and serves them.
async fn by_socket(
    listener: Option<UnixListener>,
    (path, reach): (&Path, SocketAccess),
    keeper: Arc<UnixAdmission>,
    shared: &Shared,
    router: &Router,
    graceful: &GracefulShutdown,
) {
    let seats: Seats<u32> = Seats::new(CONNECTIONS + OF_OTHERS + OF_SERVICES, OF_A_USER);
    let of_others = Arc::new(Semaphore::new(OF_OTHERS));
    let of_services = Arc::new(Semaphore::new(OF_SERVICES));
    let of_owners = Arc::new(Semaphore::new(CONNECTIONS));
    let crowd = Arc::new(Crowd::default());
    let mut listener = match listener {
        Some(listener) => listener,
        None => first_listener(path, reach, shared).await,
    };
    loop {
        // A connection is accepted only when a seat is free: each costs a descriptor that a service may
        // need.
        let place = crowd.wait_for(seats.next()).await;
        let stream = match tokio::time::timeout(LOOKING, listener.accept()).await {
            Ok(Ok((stream, _))) => stream,
            Ok(Err(error)) => {
                unaccepted("the control socket", &error).await;
                continue;
            }
            Err(_) if sockets::is_there(path) => continue,
            Err(_) => {
                match listening_again(path, reach) {
                    Ok(another) => {
                        tracing::warn!("the control socket was removed, and is made again");
                        hold(&another, path, shared);
                        listener = another;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the control socket was removed, and can't be made again");
                    }
                }
                continue;
            }
        };
        let Ok(ids) = PeerIds::of(&stream) else {
            continue;
        };
        let (router, watcher, crowd) = (router.clone(), graceful.watcher(), Arc::clone(&crowd));
        if ids.is_trusted() {
            let caller = keeper.owner(ids);
            let is_of_service = u32::try_from(ids.pid).is_ok_and(|pid| shared.handle.is_of_service(pid));
            let places = if is_of_service { &of_services } else { &of_owners };
            let theirs = match Arc::clone(places).try_acquire_owned() {
                Ok(theirs) => theirs,
                // A service can connect again; the owner and root wait for a seat.
                Err(_) if is_of_service => {
                    if keeper.is_news(SERVICES) {
                        let why = "too many connections of services";
                        shared.audit(&caller.who, "enter", "socket", Err(why));
                    }
                    continue;
                }
                Err(_) => match crowd.wait_for(Arc::clone(&of_owners).acquire_owned()).await {
                    Ok(theirs) => theirs,
                    Err(_) => continue,
                },
            };
            tokio::spawn(async move {
                converse(stream, (PATIENCE, None), Peer::Known(caller), router, (watcher, &crowd)).await;
                drop((place, theirs));
            });
            continue;
        }
        // Other users take none of the seats that the owner and root may need.
        let theirs = Arc::clone(&of_others).try_acquire_owned();
        let (Ok(theirs), Some(place)) = (theirs, seats.given(place, ids.uid)) else {
            if keeper.is_news(ids.uid) {
                let who = format!("user:{}", ids.uid);
                shared.audit(&who, "enter", "socket", Err("too many connections of other users"));
            }
            continue;
        };
        let (keeper, shared) = (Arc::clone(&keeper), shared.clone());
        tokio::spawn(async move {
            // Looking the user up may ask a directory server.
            let admitted = tokio::time::timeout(PATIENCE, keeper.admit(ids)).await;
            if let Ok(Some(caller)) = admitted {
                let patience = (PATIENCE, Some(PATIENCE));
                converse(stream, patience, Peer::Known(caller), router, (watcher, &crowd)).await;
            } else if keeper.is_news(ids.uid) {
                shared.audit(&format!("user:{}", ids.uid), "enter", "socket", Err("not granted"));
            }
            drop((place, theirs));
        });
    }
}

/// Makes the control socket as soon as that is possible.
async fn first_listener(path: &Path, reach: SocketAccess, shared: &Shared) -> UnixListener {
    loop {
        match listening_again(path, reach) {
            Ok(listener) => {
                tracing::warn!("the control socket is there");
                hold(&listener, path, shared);
                return listener;
            }
            Err(error) => tracing::debug!(%error, "no control socket yet"),
        }
        tokio::time::sleep(LOOKING).await;
    }
}

/// Has the keeper hold the socket for the daemons that follow.
fn hold(listener: &UnixListener, path: &Path, shared: &Shared) {
    use std::os::fd::AsFd;
    if let Ok(copy) = listener.as_fd().try_clone_to_owned() {
        shared.handle.hold_listener(&std::os::unix::net::UnixListener::from(copy), path);
    }
}

/// Makes the control socket anew, with its folder.
fn listening_again(path: &Path, reach: SocketAccess) -> io::Result<UnixListener> {
    match reach {
        SocketAccess::Owner => files::private_parent(path)?,
        SocketAccess::Everybody => files::open_parent(path)?,
    }
    sockets::listen(path, reach).and_then(UnixListener::from_std)
}

/// Accepts connections from the network and serves them.
async fn by_network(network: NetworkListener, shared: &Shared, graceful: &GracefulShutdown) {
    let NetworkListener { api, tokens } = network;
    let listener = listening(&api).await;
    let at = listener.local_addr().unwrap_or(api.listen);
    let guard = Arc::new(Guard::new(&api, at, tokens));
    let router = operations::router(Shared { guard: Some(guard), ..shared.clone() });
    let tls = api.tls.clone().map(|files| Arc::new(Tls::new(files)));
    let seats: Seats<IpAddr> = Seats::new(api.connections, (api.connections / 4).max(1));
    let crowd = Arc::new(Crowd::default());
    loop {
        let place = crowd.wait_for(seats.next()).await;
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                unaccepted("the API", &error).await;
                continue;
            }
        };
        let from = network_of(from.ip());
        let Some(place) = seats.given(place, from) else {
            continue;
        };
        let (router, graceful, tls) = (router.clone(), graceful.watcher(), tls.clone());
        let crowd = Arc::clone(&crowd);
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let (peer, patience) = (Peer::Address(from), (api.timeout, Some(api.timeout)));
            match tls {
                None => converse(stream, patience, peer, router, (graceful, &crowd)).await,
                Some(tls) => {
                    if let Some(stream) = handshake(&tls, stream, api.timeout).await {
                        converse(stream, patience, peer, router, (graceful, &crowd)).await;
                    }
                }
            }
            drop(place);
        });
    }
}

/// The address that a peer's seats are counted by. An IPv6 host has as many addresses as it likes,
/// so its /64 network counts.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

async fn handshake(
    tls: &Arc<Tls>,
    stream: TcpStream,
    patience: Duration,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    let acceptor = tls.acceptor().await?;
    tokio::time::timeout(patience, acceptor.accept(stream)).await.ok()?.ok()
}

/// Listens as soon as that is possible. Services must not wait for an address.
async fn listening(api: &Api) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(api.listen).await {
            Ok(listener) => {
                if told {
                    tracing::warn!("the API listens on {} now", api.listen);
                }
                return listener;
            }
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::error!("the API can't listen on {}, and goes on trying: {error}", api.listen);
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn unaccepted(what: &str, error: &io::Error) {
    tracing::warn!(%error, "{what} can't accept a connection");
    // Most likely no descriptors are left; others get the time to free some.
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Answers the requests of one connection until it ends. `patience` is the time for the head of a
/// request, `with_answers` the time for a client that takes nothing of an answer. The latter is
/// `None` for the owner and root, whose followers may stand still for as long as they like.
async fn converse<S>(
    stream: S,
    (patience, with_answers): (Duration, Option<Duration>),
    peer: Peer,
    router: Router,
    (graceful, crowd): (Watcher, &Crowd),
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let asked = Asked::new();
    let asking = Arc::clone(&asked);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        let (router, under_way) = (router.clone(), asking.begin());
        async move {
            let answered = answer(router, request).await;
            // The request is under way until the last piece of its answer is sent.
            answered.map(|response| {
                response.map(|body| {
                    Body::new(body.map_frame(move |frame| {
                        let _ = &under_way;
                        frame
                    }))
                })
            })
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    http.header_read_timeout(patience);
    if with_answers.is_some() {
        http.max_buf_size(LARGEST_HEAD);
    }
    let stream = TokioIo::new(Timed::new(stream, with_answers));
    tokio::select! {
        // A client that has gone is no error.
        _ = graceful.watch(http.serve_connection(stream, service)) => {}
        () = crowd.sent_out(&asked) => {}
    }
}

async fn answer(router: Router, request: Request<Body>) -> Result<Response<Body>, Infallible> {
    router.oneshot(request).await
}
