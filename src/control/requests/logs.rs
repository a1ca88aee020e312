//! The request for what services print: from memory, from their log files, and as it comes.
//!
//! Answers must take little memory: few requests read files at a time, and each answer is made a
//! piece at a time.

use std::collections::HashSet;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response, sse};
use futures_core::Stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::query::{Parameter, ParameterKind, Query};
use super::{age, json_event, stream};
use crate::control::connections::Caller;
use crate::control::protocol::{LogLine, LogsEnd, StreamName};
use crate::control::refused::{Handled, refuse};
use crate::control::shared::Shared;
use crate::decide::access::Action;
use crate::model::{DenialCode, InstanceId, SourceId, Stream as OutputStream};
use crate::record::output::{Chunk, Followed};
use crate::sys::memory;

pub(in crate::control) const LOGS: &[Parameter] = &[
    Parameter {
        name: "service",
        kind: ParameterKind::Names,
        about: "The services or instances; default: all",
    },
    Parameter {
        name: "lines",
        kind: ParameterKind::Count,
        about: "The maximum number of lines; the newest are returned",
    },
    Parameter {
        name: "since_s",
        kind: ParameterKind::Seconds,
        about: "The greatest age in seconds; older lines are left out",
    },
    Parameter {
        name: "follow",
        kind: ParameterKind::Flag,
        about: "Stream server-sent events, including new lines",
    },
];

/// The most lines in one answer, for any caller. The log files have the rest.
const LINES: usize = 200_000;

pub(in crate::control) async fn logs(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Handled<Response> {
    let query = Query::parse(raw, LOGS)?;
    let named = query.all("service");
    let everything = named.is_empty() && caller.may_everywhere(Action::Logs);
    let ids = shared.instances(&caller, Action::Logs, named)?;
    let (handle, mut closing) = (shared.handle.clone(), shared.closing.clone());
    let count = shared.at_most(&caller, query.number("lines")?).min(LINES);
    let newer_than = age(&query)?;
    let hub = handle.output();
    let of_all: HashSet<SourceId> = ids.iter().filter_map(|id| hub.source_of(id)).collect();
    let sources = (!everything).then(|| of_all.clone());
    let (kept, follower) = hub.follow(sources);
    let of_files = of_all.clone();
    let from_files = (!query.flag("follow")).then(|| (Arc::clone(hub), of_all));
    let shown = handle.clone();
    let names: Arc<Names> =
        Arc::new(move |id: &InstanceId| shown.tree_state(|tree_state| tree_state.shown(id)));
    let called = Arc::clone(&names);
    let files: Vec<PathBuf> = of_files.iter().filter_map(|source| hub.file_of(*source)).collect();
    // Much may be read, so it is done on another thread, and by few requests at once.
    let follows = query.flag("follow");
    // A follower reads only what is in memory, which needs no permit.
    let alone = match follows {
        true => Ok(None),
        false => match tokio::time::timeout(TURN, Arc::clone(&shared.reading).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(Some(turn)),
            Ok(Err(_)) | Err(_) => Err(()),
        },
    };
    let Ok(alone) = alone else {
        let hint = "try again in a moment, or ask for fewer lines (-n); all of it is in the log files";
        let reason = "too many requests are reading log files at the same time";
        return Err(refuse(DenialCode::TooManyRequests, reason, Some(hint)));
    };
    let read = move || {
        let mut past = Past { chunks: kept, cut: false };
        past.limit(newer_than);
        if let Some((hub, sources)) = from_files {
            // The files hold more than the memory does.
            for source in sources {
                if let Some((found, whole)) = hub.last_in_files(source, count) {
                    past.chunks.retain(|chunk| chunk.source != source);
                    past.chunks.extend(found);
                    past.cut |= !whole && newer_than.is_none();
                    past.limit(newer_than);
                }
            }
        }
        // The permit lasts as long as the reading, even when the client hangs up.
        (past.newest(count), alone)
    };
    let broken = |_| refuse(DenialCode::Internal, "the log files could not be read", None);
    let (past, alone) = tokio::task::spawn_blocking(read).await.map_err(broken)?;
    if !follows {
        let files = if past.cut { files } else { Vec::new() };
        return Ok(answer(caller, past, (called, files), alone));
    }
    // The lines so far are few, since they come from memory alone.
    drop(alone);
    let past: Vec<LogLine> = past.chunks.iter().flat_map(|chunk| lines(chunk, &*called)).collect();
    let mut follower = follower;
    Ok(stream(caller, move |sender| async move {
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
                    for line in lines(&chunk, &*names) {
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

/// Gives the name of an instance that readers see.
type Names = dyn Fn(&InstanceId) -> String + Send + Sync;

/// The most bytes of lines in one answer.
const ANSWER: usize = 16 << 20;
/// How long a request waits for a permit to read log files.
const TURN: Duration = Duration::from_secs(5);
/// How long a client may take to read its answer.
const TAKING: Duration = Duration::from_secs(60);
/// The size in bytes at which a piece of an answer is sent.
const PIECE: usize = 64 * 1024;

/// The lines that were printed and are to be sent.
struct Past {
    chunks: Vec<Chunk>,
    /// Whether older lines were left out because they were too many.
    cut: bool,
}

impl Past {
    /// Keeps the newest lines, as many as one answer holds.
    fn limit(&mut self, newer_than: Option<SystemTime>) {
        self.chunks.retain(|chunk| newer_than.is_none_or(|at| chunk.at >= at));
        self.chunks.sort_by_key(|chunk| chunk.at);
        let mut left = ANSWER;
        let fits = |chunk: &&Chunk| match left.checked_sub(chunk.bytes.len()) {
            Some(less) => {
                left = less;
                true
            }
            None => false,
        };
        let keeps = self.chunks.iter().rev().take_while(fits).count();
        self.cut |= keeps < self.chunks.len();
        self.chunks.drain(..self.chunks.len() - keeps);
    }

    /// Keeps the last `count` lines, by their time.
    fn newest(mut self, count: usize) -> Past {
        let mut wanted = count;
        let mut keeps = 0;
        for chunk in self.chunks.iter_mut().rev() {
            if wanted == 0 {
                break;
            }
            keeps += 1;
            let there = chunk.lines().count();
            if there > wanted {
                let ends =
                    chunk.bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
                let from = ends.take(there - wanted).last().map_or(0, |at| at + 1);
                chunk.bytes = Arc::from(&chunk.bytes[from..]);
                self.cut |= count == LINES;
            }
            wanted = wanted.saturating_sub(there);
        }
        self.cut |= count == LINES && keeps < self.chunks.len();
        self.chunks.drain(..self.chunks.len() - keeps);
        // A caller who got as many lines as were asked for misses none.
        self.cut &= wanted > 0 || count == LINES;
        self
    }
}

/// A piece of an answer; an error where the answer can't be sent to its end.
type Piece = Result<Bytes, std::io::Error>;

struct Pieces(mpsc::Receiver<Piece>);

impl Stream for Pieces {
    type Item = Piece;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Piece>> {
        self.0.poll_recv(context)
    }
}

/// Sends all lines as one JSON document, of which a piece is made when the client has taken the one
/// before. The permit to read is kept until then, so that only a few answers are in memory.
fn answer(
    caller: Caller,
    past: Past,
    (names, files): (Arc<Names>, Vec<PathBuf>),
    turn: Option<OwnedSemaphorePermit>,
) -> Response {
    let (sender, receiver) = mpsc::channel::<Piece>(1);
    let heard = sender.clone();
    let told = async move {
        let _turn = turn;
        let Past { chunks, cut } = past;
        let mut text = br#"{"lines":["#.to_vec();
        let mut first = true;
        for chunk in chunks {
            for line in lines(&chunk, &*names) {
                if !std::mem::take(&mut first) {
                    text.push(b',');
                }
                // Every line can be written as JSON.
                let _ = serde_json::to_writer(&mut text, &line);
                if text.len() >= PIECE && sender.send(Ok(std::mem::take(&mut text).into())).await.is_err() {
                    return;
                }
            }
        }
        let end = LogsEnd { cut, files };
        let end = serde_json::to_string(&end).unwrap_or_default();
        let end = if end == "{}" { "]}".to_owned() } else { format!("],{}", &end[1..]) };
        text.extend_from_slice(end.as_bytes());
        let _ = sender.send(Ok(text.into())).await;
    };
    tokio::spawn(async move {
        let whole = tokio::select! {
            told = tokio::time::timeout(TAKING, told) => told.is_ok(),
            () = heard.closed() => true,
            () = caller.gone() => false,
        };
        if !whole {
            // Half of an answer must not look like all of it.
            let _ = heard.try_send(Err(std::io::ErrorKind::TimedOut.into()));
        }
        drop(heard);
        // The memory that the answer took is free a moment later, and is given back to the kernel.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let _ = tokio::task::spawn_blocking(memory::give_back).await;
    });
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (json, Body::from_stream(Pieces(receiver))).into_response()
}

fn lines<'a>(chunk: &'a Chunk, names: &'a Names) -> impl Iterator<Item = LogLine> + 'a {
    chunk.lines().map(move |line| LogLine {
        name: names(&chunk.name),
        stream: match chunk.stream {
            OutputStream::Out => StreamName::Stdout,
            OutputStream::Err => StreamName::Stderr,
        },
        at: chunk.at,
        text: String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned(),
    })
}
