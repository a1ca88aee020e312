//! The requests that only a daemon answers: it reads its manifests again, and is replaced by
//! another build.
//!
//! May use the daemon's part of `Shared`. Exchanging the program is deliberately not done here; the
//! daemon's main loop is only told.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Extension;
use axum::extract::rejection::JsonRejection;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};

use super::body;
use super::query::{Parameter, ParameterKind, Query};
use crate::control::connections::Caller;
use crate::control::protocol::{FaultBody, Upgrade, Upgrading};
use crate::control::refused::{Handled, Refused, refuse};
use crate::control::shared::{Daemon, LoadedManifests, Shared};
use crate::decide::access::{Action, DAEMON};
use crate::manifest::LoadError;
use crate::model::{Denial, DenialCode, Plan};
use crate::runtime::Handle;
use crate::sys::programs;

pub(in crate::control) const RELOAD: &[Parameter] = &[Parameter {
    name: "strict",
    kind: ParameterKind::Flag,
    about: "Change nothing if any manifest is faulty",
}];

pub(in crate::control) async fn reload(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Handled<Response> {
    let query = Query::parse(raw, RELOAD)?;
    shared.permit(&caller, Action::Reload, DAEMON)?;
    let Some(daemon) = &shared.daemon else {
        let hint = Some("\"regrow add\" and \"regrow remove\" change what runs");
        return Err(refuse(DenialCode::Invalid, "only a daemon can reload its manifests", hint));
    };
    let refused = if query.flag("strict") { Refusal::Any } else { Refusal::Unreadable };
    let plan = daemon.read(&shared.handle, refused);
    let changing = shared.handle.begin_change_to(plan, Some(caller.asker())).await?;
    shared.as_the_folder_says();
    let mut reloaded = shared.handle.changed(changing).await;
    reloaded.faulty = shared.handle.faulty();
    Ok(axum::Json(reloaded).into_response())
}

/// Which faults of manifests keep the tree from being changed.
#[derive(Debug, Clone)]
pub(super) enum Refusal {
    /// Only that the folder can't be read.
    Unreadable,
    /// Any fault of this file.
    Of(PathBuf),
    /// Any fault of any file.
    Any,
}

impl Daemon {
    /// The plan of the manifests as they are now. A faulty manifest counts as it was when it was last
    /// right.
    pub(super) fn read(
        &self,
        handle: &Handle,
        refusal: Refusal,
    ) -> impl Future<Output = Handled<Plan>> + use<> {
        let (load, handle) = (Arc::clone(&self.load), handle.clone());
        async move {
            let gone = |_| refuse(DenialCode::Internal, "the manifests could not be read", None);
            let now = handle.plan();
            let read = tokio::task::spawn_blocking(move || load(&now)).await.map_err(gone)?;
            let refused = |errors: &[&LoadError]| {
                let reason = match errors.len() {
                    1 => "a manifest is faulty; nothing was changed".to_owned(),
                    files => format!("{files} manifests are faulty; nothing was changed"),
                };
                let denial = Denial { code: DenialCode::Faulty, reason, hint: None };
                Refused { denial, faults: errors.iter().flat_map(|error| bodies(error)).collect() }
            };
            let LoadedManifests { plan, faults } = read.map_err(|error| refused(&[&error]))?;
            let counts = |error: &&LoadError| match &refusal {
                Refusal::Unreadable => false,
                Refusal::Of(path) => error.path() == path,
                Refusal::Any => true,
            };
            let counting: Vec<&LoadError> = faults.iter().filter(counts).collect();
            if !counting.is_empty() {
                return Err(refused(&counting));
            }
            handle.tell_faulty(faults.iter().map(LoadError::in_short).collect());
            Ok(plan)
        }
    }
}

/// The bodies for the faults of one file.
fn bodies(error: &LoadError) -> Vec<FaultBody> {
    match error {
        LoadError::Faulty(faults) => faults.iter().map(FaultBody::of).collect(),
        LoadError::Unreadable { path, error } => vec![FaultBody {
            file: path.clone(),
            line: 1,
            column: 1,
            span: 0..0,
            message: format!("the manifest can't be read: {error}"),
            label: String::new(),
            also: None,
            hint: None,
        }],
    }
}

pub(in crate::control) async fn upgrade(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    json: Result<axum::Json<Upgrade>, JsonRejection>,
) -> Handled<Response> {
    let Upgrade { binary } = body(json)?;
    shared.permit(&caller, Action::Upgrade, DAEMON)?;
    let Some(daemon) = &shared.daemon else {
        let hint = Some("stop this run and start it again");
        return Err(refuse(DenialCode::Invalid, "only a daemon can be replaced in place", hint));
    };
    let Some(binary) = binary.or_else(programs::own_program) else {
        return Err(refuse(
            DenialCode::Internal,
            "the path of this daemon's program can't be determined",
            None,
        ));
    };
    if !binary.is_absolute() {
        return Err(refuse(DenialCode::Invalid, "\"binary\" must be an absolute path", None));
    }
    let tried = binary.clone();
    let version = tokio::task::spawn_blocking(move || programs::version_of(&tried)).await;
    let version = match version.map_err(std::io::Error::other).and_then(|version| version) {
        Ok(version) => version,
        Err(error) => {
            let reason = format!("{} can't replace this daemon: {error}", binary.display());
            return Err(refuse(DenialCode::Invalid, reason, None));
        }
    };
    let (tasks_running, tasks_waiting) = shared.handle.tasks().left().await;
    let _ = daemon.upgrade.send(binary.clone());
    let pid = std::process::id();
    Ok(axum::Json(Upgrading { binary, version, pid, tasks_running, tasks_waiting }).into_response())
}
