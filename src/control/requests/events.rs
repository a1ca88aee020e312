//! The requests about the past: events, the processes of each instance, and the audit trail.
//!
//! Events come from memory and, from before that, from the store; the others from the store alone.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{RawQuery, Request, State};
use axum::response::{IntoResponse, Response, sse};

use super::query::{LARGEST, Parameter, ParameterKind, Query};
use super::{age, json_event, stream};
use crate::actors::event_log::NextEvent;
use crate::control::connections::Caller;
use crate::control::protocol::{Audit, Events, History, InstanceHistory};
use crate::control::refused::{Handled, refuse};
use crate::control::shared::{Shared, from_store};
use crate::decide::access::{Action, DAEMON};
use crate::model::{DenialCode, Event, InstanceId};
use crate::record::store::{EventFilter, StoreError};

pub(in crate::control) const EVENTS: &[Parameter] = &[
    Parameter {
        name: "service",
        kind: ParameterKind::Names,
        about: "Only events of these services or instances",
    },
    Parameter {
        name: "state",
        kind: ParameterKind::States,
        about: "Only events that put an instance into one of these states",
    },
    Parameter { name: "since", kind: ParameterKind::Count, about: "Only events after this number" },
    Parameter {
        name: "since_s",
        kind: ParameterKind::Seconds,
        about: "The greatest age in seconds; older events are left out",
    },
    Parameter {
        name: "limit",
        kind: ParameterKind::Count,
        about: "The maximum number of events; the newest are returned",
    },
    Parameter {
        name: "follow",
        kind: ParameterKind::Flag,
        about: "Stream server-sent events, each with its number as id, including new ones; with a Last-Event-ID only those after it",
    },
];

/// The number of events that are read from the store at once for a follower.
const PAGE: usize = 1_000;

pub(in crate::control) async fn events(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Handled<Response> {
    let query = Query::parse(request.uri().query().map(str::to_owned), EVENTS)?;
    let resumed = match request.headers().get("last-event-id") {
        Some(id) => {
            let number = id.to_str().ok().and_then(|id| id.parse::<u64>().ok());
            let number = number.filter(|number| *number <= LARGEST);
            let wrong =
                || refuse(DenialCode::Invalid, "the Last-Event-ID is not the number of an event", None);
            Some(number.ok_or_else(wrong)?)
        }
        None => None,
    };
    let most = shared.at_most(&caller, query.number("limit")?);
    let since: u64 = resumed.or(query.number("since")?).unwrap_or(0);
    let named = query.all("service");
    let everything = named.is_empty() && caller.may_everywhere(Action::Read);
    let instances = match everything {
        true => None,
        false => {
            let ids = shared.instances(&caller, Action::Read, named)?;
            Some(ids.iter().map(ToString::to_string).collect::<HashSet<String>>())
        }
    };
    let wanted = EventFilter { since: age(&query)?, instances, states: query.states() };
    let Shared { handle, mut closing, .. } = shared.clone();
    let store = shared.store();
    if !query.flag("follow") {
        let kept = handle.kept_events();
        let first = kept.first().map_or(u64::MAX, |event| event.seq);
        // Events that are no longer in memory, or are from before this daemon, are in the store.
        let mut events = match store {
            Some(store) if since + 1 < first => {
                let wanted = wanted.clone();
                from_store(move || store.last_events(since, &wanted, most)).await?
            }
            Some(_) | None => Vec::new(),
        };
        events.retain(|event| event.seq < first);
        let fits = |event: &Arc<Event>| event.seq > since && wanted.fits(event);
        events.extend(kept.into_iter().filter(fits).map(|event| event.as_ref().clone()));
        let skip = events.len().saturating_sub(most);
        let events = events.split_off(skip);
        return Ok(axum::Json(Events { events }).into_response());
    }
    let mut reset = false;
    // Without any of these, a follower begins with the events in memory.
    let from_store_on = resumed.is_some() || query.has("since") || query.has("since_s");
    // A number that is still to come was given by a store that is lost.
    let since = if since > handle.tree_state(|tree_state| tree_state.last_event()) {
        reset = true;
        0
    } else {
        since
    };
    Ok(stream(caller, move |sender| async move {
        if reset && sender.send(sse::Event::default().event("reset").data("0")).await.is_err() {
            return;
        }
        let mut next = since + 1;
        if let Some(store) = store.filter(|_| from_store_on) {
            // Events that are only in the store come first, a page at a time. The client may be slow, and
            // meanwhile more events leave the memory.
            loop {
                let first = handle.events_from(0).position();
                if next >= first {
                    break;
                }
                let (store, wanted) = (store.clone(), wanted.clone());
                let page = from_store(move || store.first_events(next - 1, first, &wanted, PAGE)).await;
                let Ok(page) = page else {
                    break;
                };
                let (page, are_more) = page;
                let end = page.last().map_or(first, |event| event.seq + 1);
                for event in page {
                    if sender.send(sent(&event)).await.is_err() {
                        return;
                    }
                }
                next = if are_more { end } else { first };
            }
        }
        let mut reader = handle.events_from(next);
        loop {
            let read = tokio::select! {
                biased;
                read = reader.next() => read,
                _ = closing.wait_for(|closing| *closing) => return,
            };
            let event = match read {
                NextEvent::Event(event) if event.seq > since && wanted.fits(&event) => sent(&event),
                NextEvent::Event(_) => continue,
                NextEvent::Missed(count) => sse::Event::default().event("missed").data(count.to_string()),
            };
            if sender.send(event).await.is_err() {
                return;
            }
        }
    }))
}

fn sent(event: &Event) -> sse::Event {
    json_event("event", event).id(event.seq.to_string())
}

pub(in crate::control) const HISTORY: &[Parameter] = &[
    Parameter {
        name: "service",
        kind: ParameterKind::Names,
        about: "The services or instances; default: all",
    },
    Parameter {
        name: "limit",
        kind: ParameterKind::Count,
        about: "The maximum number for each instance; default 100",
    },
];

pub(in crate::control) async fn history(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Handled<Response> {
    let query = Query::parse(raw, HISTORY)?;
    let Some(store) = shared.store() else {
        return Err(refuse(DenialCode::Invalid, "there is no store: only a daemon keeps a history", None));
    };
    let most = query.number("limit")?.unwrap_or(100);
    let ids = shared.instances(&caller, Action::Read, query.all("service"))?;
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

pub(in crate::control) const AUDIT: &[Parameter] = &[
    Parameter {
        name: "since_s",
        kind: ParameterKind::Seconds,
        about: "The greatest age in seconds; older entries are left out",
    },
    Parameter {
        name: "limit",
        kind: ParameterKind::Count,
        about: "The maximum number of entries; the newest are returned; default 1000",
    },
];

pub(in crate::control) async fn audit(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Handled<Response> {
    let query = Query::parse(raw, AUDIT)?;
    shared.permit(&caller, Action::Audit, DAEMON)?;
    let Some(store) = shared.store() else {
        return Err(refuse(
            DenialCode::Invalid,
            "there is no store: only a daemon keeps an audit trail",
            None,
        ));
    };
    let (since, most) = (age(&query)?, query.number("limit")?.unwrap_or(1_000));
    // The entry of this very request is to be in the answer, too.
    shared.handle.written().await;
    let entries = from_store(move || store.audited(since, most)).await?;
    Ok(axum::Json(Audit { entries }).into_response())
}
