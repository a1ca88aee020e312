//! The stages and the result of a task, as its clients see them, and the key of its result in the
//! cache.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use super::worker::RunReport;
use crate::host::collect::{Collector, fingerprint};
use crate::model::task::{OutputText, TaskEnd, TaskId, TaskInput, TaskProgress, TaskResult, TaskSpec};
use crate::model::{Exit, Stream};

/// How far a task has come.
#[derive(Debug, Clone)]
pub enum Stage {
    /// The task is not running at the moment.
    Waiting,
    /// The task is running.
    Running(Running),
    /// The task is over.
    Over(Arc<Finished>),
}

impl Stage {
    /// Ends the output of a running task, so that its readers see the end.
    pub(super) fn close(&self) {
        if let Stage::Running(running) = self {
            running.collector.close();
        }
    }
}

/// A running task.
#[derive(Debug, Clone)]
pub struct Running {
    /// The output so far, and the output to come.
    pub collector: Arc<Collector>,
    /// The progress that the task has reported. `None`: it reports none.
    pub progress: Option<TaskProgress>,
}

/// An accepted task.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// The id of the task.
    pub id: TaskId,
    /// The stages of the task, as they come.
    pub stages: watch::Receiver<Stage>,
}

impl Ticket {
    /// Waits until the task is over. `None`: the pool is gone.
    pub async fn over(&mut self) -> Option<Arc<Finished>> {
        match &*self.stages.wait_for(|stage| matches!(stage, Stage::Over(_))).await.ok()? {
            Stage::Over(finished) => Some(Arc::clone(finished)),
            Stage::Waiting | Stage::Running(_) => None,
        }
    }
}

/// A task that is over.
#[derive(Debug)]
pub struct Finished {
    pub(super) id: TaskId,
    pub(super) ended: TaskEnd,
    pub(super) by_force: bool,
    pub(super) report: RunReport,
    pub(super) attempts: u32,
    pub(super) collector: Option<Arc<Collector>>,
}

impl Finished {
    /// The result for task `as_of`, with at most `most` bytes of each stream. `as_of` differs from the
    /// task that ran when the result came from the cache.
    pub fn result(&self, as_of: TaskId, most: usize) -> TaskResult {
        let printed = |stream| {
            let Some(collector) = &self.collector else {
                return OutputText::default();
            };
            let (kept, dropped) = collector.size(stream);
            OutputText { bytes: collector.read(stream, 0, most).unwrap_or_default(), total: kept + dropped }
        };
        let RunReport { exit, pid, usage, duration, error, failure } = self.report.clone();
        TaskResult {
            id: as_of,
            stdout: printed(Stream::Out),
            stderr: printed(Stream::Err),
            exit,
            ended: self.ended,
            by_force: self.by_force,
            duration,
            pid,
            cached: as_of != self.id,
            attempts: self.attempts,
            usage,
            error,
            failure,
        }
    }

    /// How the task ended.
    pub fn ended(&self) -> TaskEnd {
        self.ended
    }

    /// Whether the task's process exited by itself with code 0.
    pub fn success(&self) -> bool {
        self.ended == TaskEnd::Exited && self.report.exit == Some(Exit::SUCCESS)
    }

    /// The output of the task. `None`: no output is kept.
    pub fn collector(&self) -> Option<&Arc<Collector>> {
        self.collector.as_ref()
    }

    /// A finished task that an earlier supervisor has run.
    pub(crate) fn restored(result: TaskResult) -> Finished {
        let TaskResult { id, stdout, stderr, exit, ended, by_force, duration, pid, attempts, .. } = result;
        let (usage, error, failure) = (result.usage, result.error, result.failure);
        // A task whose result came from another one must still show that.
        let id = if result.cached { TaskId(uuid::Uuid::nil()) } else { id };
        let collector = Collector::of([(&stdout.bytes, stdout.total), (&stderr.bytes, stderr.total)]);
        Finished {
            id,
            ended,
            by_force,
            report: RunReport { exit, pid, usage, duration, error, failure },
            attempts,
            collector: Some(Arc::new(collector)),
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        let of = |collector: &Arc<Collector>| {
            [Stream::Out, Stream::Err].iter().map(|stream| collector.size(*stream).0).sum::<u64>()
        };
        256 + self.collector.as_ref().map_or(0, of)
    }
}

/// The key of a command's result: everything that the result may depend on.
pub(crate) type CacheKey = Arc<[u8]>;

/// The cache key of a command that `who` runs.
pub(crate) fn key_of(spec: &TaskSpec, who: &str) -> CacheKey {
    let mut key = Vec::with_capacity(256);
    let mut add = |kind: u8, bytes: &[u8]| {
        key.push(kind);
        key.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        key.extend_from_slice(bytes);
    };
    add(0, who.as_bytes());
    add(1, &[u8::from(spec.command.shell), u8::from(spec.env_clear)]);
    for word in &spec.command.argv {
        add(2, word.as_bytes());
    }
    add(3, spec.dir.as_ref().map_or(&b""[..], |dir| dir.as_os_str().as_encoded_bytes()));
    let counts = |name: &String| match &spec.cache_env {
        None => !VOLATILE.contains(&name.as_str()),
        Some(chosen) => chosen.contains(name),
    };
    let mut env: Vec<&(String, String)> =
        spec.common_env.iter().chain(&spec.env).filter(|(name, _)| counts(name)).collect();
    env.sort_unstable();
    for (name, value) in env {
        add(4, name.as_bytes());
        add(5, value.as_bytes());
    }
    if let Some(chosen) = &spec.cache_env {
        // The set of names counts as well, since a variable may be unset.
        for name in chosen.iter().collect::<BTreeSet<_>>() {
            add(10, name.as_bytes());
        }
    }
    match &spec.input {
        TaskInput::Nothing => {}
        TaskInput::Text(text) => add(6, text.as_bytes()),
        TaskInput::Base64(text) => add(7, text.as_bytes()),
        TaskInput::File(path) => {
            add(8, path.as_os_str().as_encoded_bytes());
            add(9, fingerprint(path).as_bytes());
        }
    }
    key.into()
}

/// Variables that change from shell to shell and that commands do not depend on.
const VOLATILE: [&str; 3] = ["_", "SHLVL", "OLDPWD"];
