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

pub(in crate::control) async fn logs(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Handled<Response> {
    let query = Query::parse(raw, LOGS)?;
    let named = query.all("service");
    let everything = named.is_empty() && caller.may_everywhere(Action::Logs);
    let ids = shared.instances(&caller, Action::Logs, named)?;
    let Shared { handle, mut closing, .. } = shared.clone();
    let count = shared.at_most(&caller, query.number("lines")?);
    let newer_than = age(&query)?;
    let hub = handle.output();
    let of_all: HashSet<SourceId> = ids.iter().filter_map(|id| hub.source_of(id)).collect();
    let sources = (!everything).then(|| of_all.clone());
    let (mut kept, follower) = hub.follow(sources);
    if !query.flag("follow") {
        // All there is, not only the last of it.
        let hub = Arc::clone(hub);
        let read = move || {
            let mut kept = kept;
            for source in of_all {
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
