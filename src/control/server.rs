//! The socket's server.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRef, RawQuery, State};
use axum::http::StatusCode;
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::manifests;
use super::protocol::{
    Add, Added, Down, ErrorBody, Events, FaultBody, History, InstanceHistory, LogLine, Logs, StreamName,
    Upgrade, Upgrading, Wait, WaitFor, Waited, WhyReport,
};
use crate::actors::event_log::Read;
use crate::decide::resolve::resolve;
use crate::decide::why::{self, Why};
use crate::manifest::{Environment, LoadError, LoadedAddition as Loaded, load_addition};
use crate::model::{
    Addition, Command, Denial, DenialCode, InstanceId, Kind, Name, Plan, Selector, ServiceStatus, State as Is,
};
use crate::os::{SourceId, Stream as OutputStream, files};
use crate::record::output::{Chunk, Followed};
use crate::record::store::{Store, StoreError};
use crate::runtime::Handle;
use crate::runtime::reload::Reloaded;

/// Serves until `closing` turns true; then what is under way is answered and followers are
/// let go. The listener comes from [`files::listen`].
pub async fn serve(
    listener: std::os::unix::net::UnixListener,
    handle: Handle,
    closing: watch::Receiver<bool>,
    daemon: Option<Daemon>,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let listener = Guarded { listener: UnixListener::from_std(listener)?, places };
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/events", get(events))
        .route("/v1/tree", get(tree))
        .route("/v1/logs", get(logs))
        .route("/v1/why", get(explain))
        .route("/v1/command", post(command))
        .route("/v1/add", post(add).layer(DefaultBodyLimit::max(LARGEST_ADDITION)))
        .route("/v1/wait", post(wait))
        .route("/v1/down", post(down))
        .route("/v1/history", get(history))
        .route("/v1/upgrade", post(upgrade))
        .route("/v1/reload", post(reload))
        .route("/v1/manifests", get(manifests::list))
        .route("/v1/manifests/{name}", get(manifests::show).put(manifests::write).delete(manifests::remove))
        .fallback(|| async { refuse(DenialCode::NotFound, "there is no such path", Some(PATHS)) })
        .method_not_allowed_fallback(|| async {
            refuse(DenialCode::Invalid, "this path does not know that method", Some(PATHS))
        })
        .with_state(Shared { handle, closing: closing.clone(), daemon: daemon.map(Arc::new) });
    let mut closing = closing;
    let closed = async move {
        // Without its sender the runtime is gone, too.
        let _ = closing.wait_for(|closing| *closing).await;
    };
    axum::serve(listener, router).with_graceful_shutdown(closed).await
}

/// For who asks for something else.
const PATHS: &str = "GET /v1/status, /v1/tree, /v1/events, /v1/history, /v1/manifests, /v1/logs, /v1/why; POST /v1/command, /v1/add, \
     /v1/wait, /v1/down, /v1/reload, /v1/upgrade";

/// What every request works with.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) handle: Handle,
    closing: watch::Receiver<bool>,
    pub(super) daemon: Option<Arc<Daemon>>,
}

/// What only a daemon can do.
pub struct Daemon {
    /// What happened before.
    pub store: Option<Store>,
    /// Reads its manifests again.
    pub load: Arc<dyn Fn() -> Result<Plan, Vec<LoadError>> + Send + Sync>,
    /// The folder of its manifests.
    pub manifests: PathBuf,
    /// Held while one of them is changed.
    pub writing: tokio::sync::Mutex<()>,
    /// It is to be replaced by this program.
    pub upgrade: mpsc::UnboundedSender<PathBuf>,
}

impl FromRef<Shared> for Handle {
    fn from_ref(shared: &Shared) -> Handle {
        shared.handle.clone()
    }
}

/// So many clients at a time; more wait at the door, since each costs a descriptor that a
/// service may need.
const CONNECTIONS: usize = 64;
/// Bytes of the largest addition.
const LARGEST_ADDITION: usize = 64 << 20;

/// Lets only our own user and root in; asked before the first byte is read.
struct Guarded {
    listener: UnixListener,
    places: Arc<Semaphore>,
}

/// A connection, and its place among those that are open.
struct Connection {
    stream: UnixStream,
    _place: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl axum::serve::Listener for Guarded {
    type Io = Connection;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Connection, Self::Addr) {
        loop {
            // Fails only when it was closed, which nobody does.
            let place = Arc::clone(&self.places).acquire_owned().await.ok();
            match self.listener.accept().await {
                Ok((stream, address)) if files::peer_is_trusted(&stream) => {
                    return (Connection { stream, _place: place }, address);
                }
                Ok(_) => tracing::warn!("another user's connection to the control socket was refused"),
                Err(error) => {
                    tracing::warn!(%error, "the control socket can't accept");
                    // No descriptors left: give others the time to free some.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// An error, or the denial of a command.
pub(super) struct Refused {
    pub(super) denial: Denial,
    pub(super) faults: Vec<FaultBody>,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self.denial.code {
            DenialCode::NotFound => StatusCode::NOT_FOUND,
            DenialCode::HasDependents | DenialCode::DependencyDown | DenialCode::Exists => {
                StatusCode::CONFLICT
            }
            DenialCode::Faulty => StatusCode::UNPROCESSABLE_ENTITY,
            DenialCode::ShuttingDown | DenialCode::NotRunning => StatusCode::SERVICE_UNAVAILABLE,
            DenialCode::Invalid => StatusCode::BAD_REQUEST,
            DenialCode::TimedOut => StatusCode::REQUEST_TIMEOUT,
            DenialCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, axum::Json(ErrorBody { error: self.denial, faults: self.faults })).into_response()
    }
}

impl From<Denial> for Refused {
    fn from(denial: Denial) -> Refused {
        Refused { denial, faults: Vec::new() }
    }
}

pub(super) fn refuse(code: DenialCode, reason: impl Into<String>, hint: Option<&str>) -> Refused {
    Refused::from(Denial { code, reason: reason.into(), hint: hint.map(str::to_owned) })
}

pub(super) fn body<T>(json: Result<axum::Json<T>, JsonRejection>) -> Result<T, Refused> {
    json.map(|axum::Json(value)| value)
        .map_err(|rejection| refuse(DenialCode::Invalid, rejection.body_text(), None))
}

/// A query string, where a name may come several times.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(raw: Option<String>, known: &[&str]) -> Result<Query, Refused> {
        let pairs: Vec<(String, String)> = raw
            .unwrap_or_default()
            .split('&')
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (name, value) = part.split_once('=').unwrap_or((part, "true"));
                (decode(name), decode(value))
            })
            .collect();
        match pairs.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) => {
                let reason = format!("unknown parameter {name:?}; known: {}", known.join(", "));
                Err(refuse(DenialCode::Invalid, reason, None))
            }
            None => Ok(Query(pairs)),
        }
    }

    fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect()
    }

    fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|(n, v)| n == name && v != "false" && v != "0")
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Refused> {
        let Some((_, value)) = self.0.iter().rev().find(|(n, _)| n == name) else {
            return Ok(None);
        };
        value.parse().map(Some).map_err(|_| {
            refuse(DenialCode::Invalid, format!("{name:?} must be a number, not {value:?}"), None)
        })
    }
}

/// Percent-decoding, as in a query.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, after @ ..]) => {
                let digit = |b: &u8| char::from(*b).to_digit(16);
                match (digit(high), digit(low)) {
                    (Some(high), Some(low)) => {
                        bytes.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                        rest = after;
                    }
                    _ => bytes.push(b'%'),
                }
            }
            (other, _) => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The instances that names mean; none named: all.
fn instances(handle: &Handle, services: Vec<String>) -> Result<Vec<InstanceId>, Refused> {
    let select = if services.is_empty() { Selector::all() } else { Selector::named(services) };
    Ok(handle.board(|board| resolve(board, &select))?)
}

async fn status(State(handle): State<Handle>, RawQuery(raw): RawQuery) -> Result<Response, Refused> {
    let query = Query::parse(raw, &["service"])?;
    let wanted: HashSet<String> =
        instances(&handle, query.all("service"))?.iter().map(ToString::to_string).collect();
    let mut report = handle.status();
    report.services.retain(|s| wanted.contains(&s.name));
    Ok(axum::Json(report).into_response())
}

async fn tree(State(handle): State<Handle>, RawQuery(raw): RawQuery) -> Result<Response, Refused> {
    Query::parse(raw, &[])?;
    Ok(axum::Json(handle.tree(None)).into_response())
}

async fn events(State(shared): State<Shared>, RawQuery(raw): RawQuery) -> Result<Response, Refused> {
    let Shared { handle, mut closing, daemon } = shared;
    let query = Query::parse(raw, &["since", "since_s", "follow", "service", "limit"])?;
    let most: usize = query.number("limit")?.unwrap_or(usize::MAX);
    let since: u64 = query.number("since")?.unwrap_or(0);
    let newer_than = age(&query)?;
    let named = query.all("service");
    let wanted: Option<HashSet<String>> = match named.is_empty() {
        true => None,
        false => Some(instances(&handle, named)?.iter().map(ToString::to_string).collect()),
    };
    let names: Option<Vec<String>> = wanted.as_ref().map(|wanted| wanted.iter().cloned().collect());
    let fits = move |event: &crate::model::Event| {
        event.seq > since
            && newer_than.is_none_or(|at| event.at >= at)
            && wanted.as_ref().is_none_or(|wanted| {
                event.fact.instance().is_some_and(|instance| wanted.contains(&instance.to_string()))
            })
    };
    if !query.flag("follow") {
        let kept = handle.kept_events();
        let first = kept.first().map_or(u64::MAX, |event| event.seq);
        // What is not at hand any more, or was before this daemon, is in the store.
        let mut events = match daemon.as_ref().and_then(|daemon| daemon.store.clone()) {
            Some(store) if since + 1 < first => {
                from_store(move || store.events(since, newer_than, names.as_deref(), most)).await?
            }
            Some(_) | None => Vec::new(),
        };
        events.retain(|event| event.seq < first);
        events.extend(kept.into_iter().filter(|e| fits(e)).map(|e| e.as_ref().clone()));
        let skip = events.len().saturating_sub(most);
        let events = events.split_off(skip);
        return Ok(axum::Json(Events { events }).into_response());
    }
    let mut reader = handle.events_from(since + 1);
    Ok(stream(move |sender| async move {
        loop {
            let read = tokio::select! {
                biased;
                read = reader.next() => read,
                _ = closing.wait_for(|closing| *closing) => return,
            };
            let event = match read {
                Read::Event(event) if fits(&event) => json_event("event", &*event).id(event.seq.to_string()),
                Read::Event(_) => continue,
                Read::Missed(count) => sse::Event::default().event("missed").data(count.to_string()),
            };
            if sender.send(event).await.is_err() {
                return;
            }
        }
    }))
}

async fn logs(State(shared): State<Shared>, RawQuery(raw): RawQuery) -> Result<Response, Refused> {
    let Shared { handle, mut closing, .. } = shared;
    let query = Query::parse(raw, &["service", "lines", "since_s", "follow"])?;
    let count: usize = query.number("lines")?.unwrap_or(usize::MAX);
    let newer_than = age(&query)?;
    let hub = handle.output();
    let named = query.all("service");
    let sources: Option<HashSet<SourceId>> = match named.is_empty() {
        true => None,
        false => Some(instances(&handle, named)?.iter().filter_map(|id| hub.source_of(id)).collect()),
    };
    let (mut kept, follower) = hub.follow(sources.clone());
    if !query.flag("follow") {
        // All there is, not only the last of it.
        let hub = Arc::clone(hub);
        let sources = match sources {
            Some(sources) => sources,
            None => instances(&handle, Vec::new())?.iter().filter_map(|id| hub.source_of(id)).collect(),
        };
        let read = move || {
            let mut kept = kept;
            for source in sources {
                if let Some(all) = hub.kept_in_files(source) {
                    kept.retain(|chunk| chunk.source != source);
                    kept.extend(all);
                }
            }
            kept
        };
        let broken = |_| refuse(DenialCode::Internal, "the log files could not be read", None);
        kept = tokio::task::spawn_blocking(read).await.map_err(broken)?;
    }
    let mut past: Vec<(Chunk, LogLine)> = Vec::new();
    for chunk in kept {
        if newer_than.is_none_or(|at| chunk.at >= at) {
            past.extend(lines(&chunk).map(|line| (chunk.clone(), line)));
        }
    }
    past.sort_by_key(|(chunk, _)| chunk.at);
    let skip = past.len().saturating_sub(count);
    let past: Vec<LogLine> = past.into_iter().skip(skip).map(|(_, line)| line).collect();
    let Some(mut follower) = query.flag("follow").then_some(follower) else {
        return Ok(axum::Json(Logs { lines: past }).into_response());
    };
    Ok(stream(move |sender| async move {
        for line in past {
            if sender.send(json_event("line", &line)).await.is_err() {
                return;
            }
        }
        loop {
            let followed = tokio::select! {
                biased;
                followed = follower.next() => followed,
                _ = closing.wait_for(|closing| *closing) => return,
            };
            match followed {
                Followed::Chunk(chunk) => {
                    for line in lines(&chunk) {
                        if sender.send(json_event("line", &line)).await.is_err() {
                            return;
                        }
                    }
                }
                Followed::Dropped(count) => {
                    let event = sse::Event::default().event("dropped").data(count.to_string());
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
            }
        }
    }))
}

fn lines(chunk: &Chunk) -> impl Iterator<Item = LogLine> + '_ {
    chunk.lines().map(move |line| LogLine {
        name: chunk.name.to_string(),
        stream: match chunk.stream {
            OutputStream::Out => StreamName::Stdout,
            OutputStream::Err => StreamName::Stderr,
        },
        at: chunk.at,
        text: String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned(),
    })
}

fn age(query: &Query) -> Result<Option<SystemTime>, Refused> {
    let seconds: Option<f64> = query.number("since_s")?;
    let age = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
    Ok(age.and_then(|age| SystemTime::now().checked_sub(age)))
}

async fn explain(State(handle): State<Handle>, RawQuery(raw): RawQuery) -> Result<Response, Refused> {
    let query = Query::parse(raw, &["service"])?;
    let ids = instances(&handle, query.all("service"))?;
    let now = handle.uptime();
    let services = handle.board(|board| {
        ids.iter()
            .map(|id| {
                let (chain, end) = why::chain(board, id, now);
                let entry = board.entry(id);
                let source = handle.output().source_of(&end);
                Why {
                    name: id.to_string(),
                    chain,
                    exit: entry.and_then(|e| e.exit.clone()),
                    check: entry.and_then(|e| e.failing.clone()),
                    last_lines: source.map(|s| handle.output().last_lines(s, 10)).unwrap_or_default(),
                }
            })
            .collect()
    });
    Ok(axum::Json(WhyReport { services }).into_response())
}

async fn command(
    State(handle): State<Handle>,
    json: Result<axum::Json<Command>, JsonRejection>,
) -> Result<Response, Refused> {
    let command = body(json)?;
    if matches!(command, Command::Reconfigure { .. }) {
        let hint = Some("change the manifest, and POST /v1/reload");
        return Err(refuse(DenialCode::Invalid, "a service is changed in its manifest", hint));
    }
    if matches!(command, Command::Add { .. }) {
        // As data it would come without its environment, which is never written down.
        return Err(refuse(DenialCode::Invalid, "a manifest is added at /v1/add", None));
    }
    let answer = handle.command(command).await?;
    Ok(axum::Json(answer).into_response())
}

async fn add(
    State(handle): State<Handle>,
    json: Result<axum::Json<Add>, JsonRejection>,
) -> Result<Response, Refused> {
    let Add { manifest, file, group } = body(json)?;
    let into = match group {
        Some(group) => Some(
            Name::new(&group)
                .map_err(|_| refuse(DenialCode::NotFound, format!("there is no group {group:?}"), None))?,
        ),
        None => None,
    };
    if !file.is_absolute() {
        let reason = format!("\"file\" must be an absolute path, not {:?}", file.display().to_string());
        return Err(refuse(DenialCode::Invalid, reason, None));
    }
    let plan = handle.plan();
    let (done, loaded) = oneshot::channel();
    // On a thread of its own: it reads env files, and a folder on a network may hang.
    let load = move || {
        let environment = Environment { vars: plan.inherited.to_vec(), env_files: Vec::new() };
        // Nobody waits any more when the client has hung up.
        let _ = done.send(load_addition(&manifest, &file, &environment, &plan));
    };
    let gone = || refuse(DenialCode::Internal, "the manifest could not be read", None);
    std::thread::Builder::new().name("regrow-load".into()).spawn(load).map_err(|_| gone())?;
    let Loaded { addition, warnings } = loaded.await.map_err(|_| gone())?.map_err(|faults| {
        let count = faults.len();
        let reason = format!("the manifest has {count} fault{}", if count == 1 { "" } else { "s" });
        let denial = Denial { code: DenialCode::Faulty, reason, hint: None };
        Refused { denial, faults: faults.iter().map(FaultBody::of).collect() }
    })?;
    let addition = Arc::new(Addition { into, ..addition });
    let answer = handle.command(Command::Add { addition }).await?;
    let warnings = warnings.iter().map(FaultBody::of).collect();
    Ok(axum::Json(Added { answer, warnings }).into_response())
}

async fn wait(
    State(handle): State<Handle>,
    json: Result<axum::Json<Wait>, JsonRejection>,
) -> Result<Response, Refused> {
    let wait = body(json)?;
    let ids = instances(&handle, wait.services)?;
    let timeout = match wait.timeout_s {
        Some(seconds) => Some(Duration::try_from_secs_f64(seconds).map_err(|_| {
            refuse(DenialCode::Invalid, "\"timeout_s\" must be a number of seconds, 0 or more", None)
        })?),
        None => None,
    };
    let mut events = handle.events();
    let come_true = async {
        loop {
            if let Some(ok) = verdict(&handle, &ids, wait.for_) {
                return ok;
            }
            events.next().await;
        }
    };
    let result = match timeout {
        Some(timeout) => tokio::time::timeout(timeout, come_true).await.ok(),
        None => Some(come_true.await),
    };
    let names: HashSet<String> = ids.iter().map(ToString::to_string).collect();
    let services: Vec<ServiceStatus> =
        handle.status().services.into_iter().filter(|s| names.contains(&s.name)).collect();
    Ok(axum::Json(Waited { ok: result == Some(true), timed_out: result.is_none(), services }).into_response())
}

/// `Some(true)`: true of all. `Some(false)`: it can't come true by itself any more.
fn verdict(handle: &Handle, ids: &[InstanceId], wanted: WaitFor) -> Option<bool> {
    handle.board(|board| {
        let mut all = true;
        for id in ids {
            let Some(entry) = board.entry(id) else {
                // It was removed: down for good.
                match wanted {
                    WaitFor::Ready | WaitFor::Completed => return Some(false),
                    WaitFor::Stopped => continue,
                }
            };
            let is = match wanted {
                WaitFor::Ready => {
                    entry.ready || (entry.state == Is::Completed && entry.spec.kind == Kind::Task)
                }
                WaitFor::Completed => entry.state == Is::Completed,
                WaitFor::Stopped => {
                    matches!(entry.state, Is::Registered | Is::Stopped | Is::Completed | Is::Failed)
                }
            };
            let never = match wanted {
                // A tree that goes down starts nothing any more.
                WaitFor::Ready | WaitFor::Completed => {
                    let over = entry.state == Is::Completed && entry.spec.kind == Kind::Service;
                    entry.state == Is::Failed || ((over || board.shutting_down()) && !is)
                }
                WaitFor::Stopped => false,
            };
            if never {
                return Some(false);
            }
            all &= is;
        }
        all.then_some(true)
    })
}

async fn history(State(shared): State<Shared>, RawQuery(raw): RawQuery) -> Result<Response, Refused> {
    let query = Query::parse(raw, &["service", "limit"])?;
    let Some(store) = shared.daemon.as_ref().and_then(|daemon| daemon.store.clone()) else {
        return Err(refuse(DenialCode::Invalid, "there is no store: only a daemon keeps a history", None));
    };
    let most = query.number("limit")?.unwrap_or(100);
    let ids = instances(&shared.handle, query.all("service"))?;
    let read = move || -> Result<_, StoreError> {
        let of = |id: &InstanceId| {
            let name = id.to_string();
            Ok(InstanceHistory { incarnations: store.incarnations(&name, most)?, name })
        };
        ids.iter().map(of).collect::<Result<Vec<_>, _>>()
    };
    let services = from_store(read).await?;
    Ok(axum::Json(History { services }).into_response())
}

/// Reads the store, beside everything else.
async fn from_store<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Refused> {
    let broken = |why: String| refuse(DenialCode::Internal, format!("the store can't be read: {why}"), None);
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(broken(error.to_string())),
        Err(error) => Err(broken(error.to_string())),
    }
}

async fn reload(State(shared): State<Shared>) -> Result<Response, Refused> {
    let Some(daemon) = &shared.daemon else {
        let hint = Some("\"regrow add\" and \"regrow remove\" change what runs");
        return Err(refuse(DenialCode::Invalid, "only a daemon reads its manifests again", hint));
    };
    Ok(axum::Json(daemon.reload(&shared.handle).await?).into_response())
}

impl Daemon {
    /// Makes the tree what its manifests say now. A fault anywhere, and nothing changes.
    pub(super) async fn reload(&self, handle: &Handle) -> Result<Reloaded, Refused> {
        let load = Arc::clone(&self.load);
        let gone = |_| refuse(DenialCode::Internal, "the manifests could not be read", None);
        let plan = tokio::task::spawn_blocking(move || load()).await.map_err(gone)?;
        let plan = plan.map_err(|errors| {
            let files = errors.len();
            let reason = match files {
                1 => "a manifest is faulty; nothing was changed".to_owned(),
                _ => format!("{files} manifests are faulty; nothing was changed"),
            };
            let denial = Denial { code: DenialCode::Faulty, reason, hint: None };
            Refused { denial, faults: errors.iter().flat_map(bodies).collect() }
        })?;
        Ok(handle.change_to(plan).await?)
    }
}

/// The faults of one file.
fn bodies(error: &LoadError) -> Vec<FaultBody> {
    match error {
        LoadError::Faulty(faults) => faults.iter().map(FaultBody::of).collect(),
        LoadError::Unreadable { path, error } => vec![FaultBody {
            file: path.clone(),
            line: 1,
            column: 1,
            span: 0..0,
            message: format!("it can't be read: {error}"),
            label: String::new(),
            also: None,
            hint: None,
        }],
    }
}

async fn upgrade(
    State(shared): State<Shared>,
    json: Result<axum::Json<Upgrade>, JsonRejection>,
) -> Result<Response, Refused> {
    let Upgrade { binary } = body(json)?;
    let Some(daemon) = &shared.daemon else {
        let hint = Some("stop it and run it again");
        return Err(refuse(DenialCode::Invalid, "only a daemon can be replaced in place", hint));
    };
    let Some(binary) = binary.or_else(files::own_program) else {
        return Err(refuse(DenialCode::Internal, "this daemon's own program can't be told", None));
    };
    if !binary.is_absolute() {
        return Err(refuse(DenialCode::Invalid, "\"binary\" must be an absolute path", None));
    }
    let tried = binary.clone();
    let version = tokio::task::spawn_blocking(move || files::version_of(&tried)).await;
    let version = match version.map_err(io::Error::other).and_then(|version| version) {
        Ok(version) => version,
        Err(error) => {
            let reason = format!("{} can't take this daemon's place: {error}", binary.display());
            return Err(refuse(DenialCode::Invalid, reason, None));
        }
    };
    let _ = daemon.upgrade.send(binary.clone());
    Ok(axum::Json(Upgrading { binary, version, pid: std::process::id() }).into_response())
}

async fn down(State(handle): State<Handle>) -> Response {
    handle.begin_shutdown("regrow down");
    // Not for hooks: it may be one that asks.
    let ok = handle.wait_stopped().await.is_ok();
    axum::Json(Down { ok }).into_response()
}

fn json_event(name: &str, value: &impl serde::Serialize) -> sse::Event {
    // Our own types always serialize.
    let event = sse::Event::default().event(name);
    event
        .json_data(value)
        .unwrap_or_else(|error| sse::Event::default().event("error").data(error.to_string()))
}

/// A response that a task fills; the task ends when the client hangs up.
fn stream<F, T>(fill: F) -> Response
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
        }
    });
    Sse::new(Received(receiver)).keep_alive(sse::KeepAlive::default()).into_response()
}

/// A channel's receiving end as the stream that a response wants.
struct Received(mpsc::Receiver<sse::Event>);

impl Stream for Received {
    type Item = Result<sse::Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|event| event.map(Ok))
    }
}
