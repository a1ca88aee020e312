//! The requests about tasks: commands that the worker pool runs once.
//!
//! The pool itself is an actor; this module only talks to it through the runtime's `Tasks`.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response, sse};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::{mpsc, watch};

use super::query::{Parameter, ParameterKind, Query};
use super::{body, json_event, stream};
use crate::actors::scaler::PoolSettings;
use crate::actors::worker_pool::{Running, Stage, TaskLifetime, Ticket};
use crate::control::connections::Caller;
use crate::control::protocol::{
    CancelTask, Removed, SetPool, StreamName, Submit, Submitted, TaskList, TaskOutput, TasksDone,
};
use crate::control::refused::{Handled, refuse};
use crate::control::shared::Shared;
use crate::decide::access::{Action, TASKS};
use crate::host::collect::Collector;
use crate::model::task::ProgressReport;
use crate::model::{DenialCode, Stream as OutputStream, TaskId, TaskSpec};
use crate::runtime::Tasks;
use crate::runtime::tasks::IN_A_RESULT;

/// The most bytes of output in one server-sent event.
const PIECE: usize = 48 * 1024;
/// The most bytes of each output stream that a result may be asked to carry.
const MOST: usize = 64 << 20;

fn task_id(text: &str) -> Handled<TaskId> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        refuse(DenialCode::Invalid, format!("{shown:?} is not a task id"), Some("GET /v1/tasks lists them"))
    })
}

/// The commands of a request, for the audit trail.
fn in_words(specs: &[TaskSpec]) -> String {
    match specs {
        [] => "nothing".to_owned(),
        [one] => one.command.to_string(),
        [first, rest @ ..] => format!("{} and {} more", first.command, rest.len()),
    }
}

impl Shared {
    fn may_exec(&self, caller: &Caller, about: &str) -> Handled<()> {
        if !caller.may(Action::Exec, TASKS) {
            return Err(self.refuse(caller, Action::Exec, TASKS));
        }
        self.note(caller, Action::Exec, about);
        Ok(())
    }

    /// The same for a request that changes nothing, which the audit trail need not have.
    fn may_see_tasks(&self, caller: &Caller) -> Handled<()> {
        match caller.may(Action::Exec, TASKS) {
            true => Ok(()),
            false => Err(self.refuse(caller, Action::Exec, TASKS)),
        }
    }
}

pub(in crate::control) async fn submit(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    json: Result<axum::Json<Submit>, JsonRejection>,
) -> Handled<Response> {
    let Submit { mut tasks, env, wait } = body(json)?;
    shared.may_exec(&caller, &in_words(&tasks))?;
    let env = Arc::new(env);
    for task in &mut tasks {
        task.common_env = Arc::clone(&env);
    }
    let tickets = shared.handle.tasks().begin(tasks, &caller.who).await?;
    let ids = tickets.iter().map(|ticket| ticket.id).collect();
    let done = if wait { Some(all_over(tickets).await) } else { None };
    Ok(axum::Json(Submitted { ids, done }).into_response())
}

async fn all_over(tickets: Vec<Ticket>) -> TasksDone {
    let mut done = TasksDone { succeeded: 0, failed: 0 };
    for mut ticket in tickets {
        match ticket.over().await {
            Some(finished) if finished.success() => done.succeeded += 1,
            Some(_) | None => done.failed += 1,
        }
    }
    done
}

/// Cancels a task when nobody waits for it any more.
struct Cancel {
    tasks: Tasks,
    id: Option<TaskId>,
}

impl Drop for Cancel {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            let tasks = self.tasks.clone();
            tokio::spawn(async move { tasks.cancel(id, false).await });
        }
    }
}

/// Runs a command to its end. A client that hangs up cancels it.
pub(in crate::control) async fn run(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    json: Result<axum::Json<TaskSpec>, JsonRejection>,
) -> Handled<Response> {
    let spec = body(json)?;
    shared.may_exec(&caller, &in_words(std::slice::from_ref(&spec)))?;
    let tasks = shared.handle.tasks();
    if let Some(result) = tasks.remembered(&spec, &caller.who).await {
        return Ok(axum::Json(result).into_response());
    }
    let tickets = tasks.begin_that_lives(TaskLifetime::WithItsClient, vec![spec], &caller.who).await?;
    let Some(mut ticket) = tickets.into_iter().next() else {
        return Err(refuse(DenialCode::Internal, "the task was not accepted", None));
    };
    let mut cancel = Cancel { tasks: tasks.clone(), id: Some(ticket.id) };
    let finished = ticket.over().await;
    cancel.id = None;
    let gone = || refuse(DenialCode::ShuttingDown, "the worker pool is gone", None);
    Ok(axum::Json(finished.ok_or_else(gone)?.result(ticket.id, IN_A_RESULT)).into_response())
}

/// Runs a command, and sends its output as it comes. A client that hangs up cancels it.
pub(in crate::control) async fn exec(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    json: Result<axum::Json<TaskSpec>, JsonRejection>,
) -> Handled<Response> {
    let spec = body(json)?;
    shared.may_exec(&caller, &in_words(std::slice::from_ref(&spec)))?;
    let tasks = shared.handle.tasks().clone();
    let tickets = tasks.begin_that_lives(TaskLifetime::WithItsClient, vec![spec], &caller.who).await?;
    let Some(ticket) = tickets.into_iter().next() else {
        return Err(refuse(DenialCode::Internal, "the task was not accepted", None));
    };
    let mut cancel = Cancel { tasks, id: Some(ticket.id) };
    Ok(stream(caller, move |sender| async move {
        if tell_all(ticket, &sender).await {
            cancel.id = None;
        }
        drop(cancel);
    }))
}

/// Sends what a task prints, and then its result. `false`: the client has hung up.
async fn tell_all(mut ticket: Ticket, sender: &mpsc::Sender<sse::Event>) -> bool {
    // The run whose whole output was sent already.
    let mut told: Option<Arc<Collector>> = None;
    loop {
        let stage = ticket.stages.borrow_and_update().clone();
        match stage {
            Stage::Running(Running { collector, .. })
                if told.as_ref().is_none_or(|told| !Arc::ptr_eq(told, &collector)) =>
            {
                if !tell_output(&collector, Some(&mut ticket.stages), sender).await {
                    return false;
                }
                told = Some(collector);
                // The next stage may have come meanwhile, and `changed` would not report it again.
                continue;
            }
            Stage::Waiting | Stage::Running(_) => {}
            Stage::Over(finished) => {
                // Of a result that came from another task, no output was sent yet.
                let result = finished.result(ticket.id, 0);
                if result.cached
                    && let Some(collector) = finished.collector()
                    && !tell_output(collector, None, sender).await
                {
                    return false;
                }
                return sender.send(json_event("result", &result)).await.is_ok();
            }
        }
        if ticket.stages.changed().await.is_err() {
            return true;
        }
    }
}

/// Sends what a run prints until it ends, and the progress that it reports. `false`: the client has
/// hung up.
async fn tell_output(
    collector: &Collector,
    mut stages: Option<&mut watch::Receiver<Stage>>,
    sender: &mpsc::Sender<sse::Event>,
) -> bool {
    let mut follow = collector.follow();
    let mut told = [0, 0];
    let mut said = None;
    loop {
        let progress = match stages.as_deref_mut().map(|stages| stages.borrow_and_update()).as_deref() {
            Some(Stage::Running(running)) => running.progress.clone(),
            Some(Stage::Waiting | Stage::Over(_)) | None => None,
        };
        if progress.is_some() && progress != said {
            if sender.send(json_event("progress", &progress)).await.is_err() {
                return false;
            }
            said = progress;
        }
        let ended = follow.has_changed().is_err();
        follow.mark_unchanged();
        for (stream, name) in
            [(OutputStream::Out, StreamName::Stdout), (OutputStream::Err, StreamName::Stderr)]
        {
            let told = &mut told[stream as usize];
            loop {
                let bytes = collector.read(stream, *told, PIECE).unwrap_or_default();
                if bytes.is_empty() {
                    break;
                }
                *told += bytes.len() as u64;
                let piece = TaskOutput { stream: name, data: STANDARD.encode(&bytes) };
                if sender.send(json_event("output", &piece)).await.is_err() {
                    return false;
                }
            }
        }
        if ended {
            return true;
        }
        // When the output ends, `changed` returns an error.
        match stages.as_deref_mut() {
            Some(stages) => {
                tokio::select! {
                    _ = follow.changed() => {}
                    changed = stages.changed() => {
                        // The task was forgotten, or its pool is gone, so no more will come.
                        if changed.is_err() {
                            return true;
                        }
                    }
                }
            }
            None => drop(follow.changed().await),
        }
    }
}

pub(in crate::control) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Handled<Response> {
    Query::parse(raw, &[])?;
    shared.may_see_tasks(&caller)?;
    let tasks = shared.handle.tasks().list().await?;
    Ok(axum::Json(TaskList { tasks }).into_response())
}

pub(in crate::control) async fn status(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Handled<Response> {
    shared.may_see_tasks(&caller)?;
    let task = shared.handle.tasks().status(task_id(&id)?).await?;
    Ok(axum::Json(task).into_response())
}

pub(in crate::control) const RESULT: &[Parameter] = &[
    Parameter {
        name: "wait_s",
        kind: ParameterKind::Seconds,
        about: "The longest time to wait for the task in seconds; then the request is refused as timed out; default: no limit",
    },
    Parameter {
        name: "bytes",
        kind: ParameterKind::Count,
        about: "The maximum number of bytes of each stream; default 1 MiB",
    },
];

pub(in crate::control) async fn result(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    RawQuery(raw): RawQuery,
) -> Handled<Response> {
    let query = Query::parse(raw, RESULT)?;
    shared.may_see_tasks(&caller)?;
    let id = task_id(&id)?;
    let most = query.number("bytes")?.unwrap_or(IN_A_RESULT).min(MOST);
    let wait: Option<f64> = query.number("wait_s")?;
    let limit = wait.and_then(|wait| Duration::try_from_secs_f64(wait).ok());
    let result = shared.handle.tasks().result(id, most);
    let result = match limit {
        None => result.await?,
        Some(limit) => tokio::time::timeout(limit, result)
            .await
            .map_err(|_| refuse(DenialCode::TimedOut, format!("task {id} has not finished yet"), None))??,
    };
    Ok(axum::Json(result).into_response())
}

pub(in crate::control) async fn cancel(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    json: Result<axum::Json<CancelTask>, JsonRejection>,
) -> Handled<Response> {
    let CancelTask { at_once } = body(json)?;
    shared.may_exec(&caller, &id)?;
    shared.handle.tasks().cancel(task_id(&id)?, at_once).await?;
    Ok(axum::Json(Removed { removed: 1 }).into_response())
}

pub(in crate::control) async fn progress(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    json: Result<axum::Json<ProgressReport>, JsonRejection>,
) -> Handled<Response> {
    let report = body(json)?;
    // A task may report its progress every second, which the audit trail need not have.
    shared.may_see_tasks(&caller)?;
    let (tasks, id) = (shared.handle.tasks(), task_id(&id)?);
    tasks.report_progress(id, report).await?;
    Ok(axum::Json(tasks.status(id).await?).into_response())
}

pub(in crate::control) async fn pause(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Handled<Response> {
    shared.may_exec(&caller, &id)?;
    let (tasks, id) = (shared.handle.tasks(), task_id(&id)?);
    tasks.pause(id).await?;
    Ok(axum::Json(tasks.status(id).await?).into_response())
}

pub(in crate::control) async fn resume(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Handled<Response> {
    shared.may_exec(&caller, &id)?;
    let (tasks, id) = (shared.handle.tasks(), task_id(&id)?);
    tasks.resume(id).await?;
    Ok(axum::Json(tasks.status(id).await?).into_response())
}

pub(in crate::control) async fn cleanup(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
) -> Handled<Response> {
    shared.may_exec(&caller, "cleanup")?;
    let removed = shared.handle.tasks().cleanup().await?;
    Ok(axum::Json(Removed { removed }).into_response())
}

pub(in crate::control) async fn clear_cache(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
) -> Handled<Response> {
    shared.may_exec(&caller, "cache")?;
    let removed = shared.handle.tasks().clear_cache().await?;
    shared.handle.written().await;
    Ok(axum::Json(Removed { removed }).into_response())
}

pub(in crate::control) async fn set_pool(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    json: Result<axum::Json<SetPool>, JsonRejection>,
) -> Handled<Response> {
    let SetPool { min, max, auto, workers } = body(json)?;
    shared.may_exec(&caller, "pool")?;
    let tasks = shared.handle.tasks();
    tasks.set_bounds(PoolSettings { min, max, auto }).await?;
    if let Some(workers) = workers {
        tasks.scale(workers).await?;
    }
    let (pool, _) = tasks.snapshot().await?;
    Ok(axum::Json(pool).into_response())
}
