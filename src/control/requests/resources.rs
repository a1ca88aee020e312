//! The requests about resources: what the machine and the services use, and how the commands of the
//! worker pool went.
//!
//! Nothing is measured here.

use std::time::Duration;

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};

use super::query::{Parameter, ParameterKind, Query};
use crate::control::connections::Caller;
use crate::control::protocol::ResourceHistories;
use crate::control::refused::{Handled, refuse};
use crate::control::shared::Shared;
use crate::decide::access::{Action, TASKS};
use crate::decide::history::KEPT;
use crate::model::{DenialCode, InstanceId};

pub(in crate::control) async fn stats(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Handled<Response> {
    Query::parse(raw, &[])?;
    shared.may_see_the_machine(&caller)?;
    let mut stats = shared.handle.stats().await?;
    if !caller.may(Action::Exec, TASKS) {
        // A caller who may only read must not see the commands that others run.
        stats.performance.slowest.clear();
    }
    Ok(axum::Json(stats).into_response())
}

pub(in crate::control) const RESOURCES: &[Parameter] = &[
    Parameter {
        name: "service",
        kind: ParameterKind::Names,
        about: "The services or instances; default: the machine",
    },
    Parameter {
        name: "since_s",
        kind: ParameterKind::Seconds,
        about: "The time span in seconds, up to now; default and maximum one day",
    },
];

pub(in crate::control) async fn resources(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Handled<Response> {
    let query = Query::parse(raw, RESOURCES)?;
    let since = match query.number("since_s")? {
        Some(seconds) => Duration::try_from_secs_f64(seconds).unwrap_or(KEPT).min(KEPT),
        None => KEPT,
    };
    let named = query.all("service");
    let histories = if named.is_empty() {
        shared.may_see_the_machine(&caller)?;
        vec![shared.handle.resources(None, since)]
    } else {
        let ids = shared.instances(&caller, Action::Read, named)?;
        let handle = shared.handle.clone();
        let all = move || {
            let of = |id: &InstanceId| {
                let mut history = handle.resources(Some(&id.to_string()), since);
                history.of = Some(handle.tree_state(|tree_state| tree_state.shown(id)));
                history
            };
            ids.iter().map(of).collect()
        };
        // For a thousand instances this takes a moment.
        let broke = |_| refuse(DenialCode::Internal, "the resource history could not be read", None);
        tokio::task::spawn_blocking(all).await.map_err(broke)?
    };
    Ok(axum::Json(ResourceHistories { histories }).into_response())
}

impl Shared {
    fn may_see_the_machine(&self, caller: &Caller) -> Handled<()> {
        match caller.may_everywhere(Action::Read) {
            true => Ok(()),
            false => Err(self.refuse(caller, Action::Read, "*")),
        }
    }
}
