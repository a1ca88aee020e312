//! What services print.

use super::query::{Parameter, ParameterKind};
use super::*;
use crate::control::protocol::{LogLine, Logs, StreamName};
use crate::os::{SourceId, Stream as OutputStream};
use crate::record::output::{Chunk, Followed};

pub(in crate::control) const LOGS: &[Parameter] = &[
    Parameter {
        name: "service",
        kind: ParameterKind::Names,
        about: "Of these services or instances; none: of all",
    },
    Parameter { name: "lines", kind: ParameterKind::Count, about: "The last so many" },
    Parameter {
        name: "since_s",
        kind: ParameterKind::Seconds,
        about: "Only what is not older than so many seconds",
    },
    Parameter { name: "follow", kind: ParameterKind::Flag, about: "Server-sent events, and lines that come" },
];

/// Lines of one answer, whoever asks: the files have the rest.
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
    let from_files = (!query.flag("follow")).then(|| (Arc::clone(hub), of_all));
    let shown = handle.clone();
    let names: Arc<Names> = Arc::new(move |id: &InstanceId| shown.board(|board| board.shown(id)));
    let called = Arc::clone(&names);
    // So much is read that it is done beside everything else, and not by many at once.
    let alone = Arc::clone(&shared.reading).acquire_owned().await.ok();
    let read = move || {
        let _alone = alone;
        let mut kept = kept;
        if let Some((hub, sources)) = from_files {
            // All there is, not only the last of it.
            for source in sources {
                if let Some(all) = hub.last_in_files(source, count) {
                    kept.retain(|chunk| chunk.source != source);
                    kept.extend(all);
                }
            }
        }
        last_lines(kept, newer_than, count, &*called)
    };
    let broken = |_| refuse(DenialCode::Internal, "the log files could not be read", None);
    let past = tokio::task::spawn_blocking(read).await.map_err(broken)?;
    if !query.flag("follow") {
        let written = tokio::task::spawn_blocking(move || serde_json::to_vec(&Logs { lines: past }));
        let written = written.await.map_err(broken)?.unwrap_or_default();
        let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        return Ok((json, written).into_response());
    }
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

/// How an instance is called before a reader.
type Names = dyn Fn(&InstanceId) -> String + Send + Sync;

/// The last so many lines, by their time.
fn last_lines(kept: Vec<Chunk>, newer_than: Option<SystemTime>, count: usize, names: &Names) -> Vec<LogLine> {
    let mut chunks: Vec<Chunk> =
        kept.into_iter().filter(|chunk| newer_than.is_none_or(|at| chunk.at >= at)).collect();
    chunks.sort_by_key(|chunk| chunk.at);
    // From the end on, so that no more is made than is wanted.
    let (mut found, mut wanted) = (Vec::new(), count);
    for chunk in chunks.iter().rev() {
        let mut of_chunk: Vec<LogLine> = lines(chunk, names).collect();
        let skip = of_chunk.len().saturating_sub(wanted);
        wanted -= of_chunk.len() - skip;
        found.push(of_chunk.split_off(skip));
        if wanted == 0 {
            break;
        }
    }
    found.into_iter().rev().flatten().collect()
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
