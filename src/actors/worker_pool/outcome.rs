//! How far a task has come and what became of it, as those see it who wait; and what its result is one of.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use super::worker::RunReport;
use crate::decide::cache::Cache;
use crate::host::collect::{Collector, fingerprint};
use crate::model::task::{OutputText, TaskEnd, TaskId, TaskInput, TaskProgress, TaskResult, TaskSpec};
use crate::model::{Exit, Stream};

/// How far a task has come, for those who follow it.
#[derive(Debug, Clone)]
pub enum Stage {
    /// It is not run at the moment.
    Waiting,
    /// It runs.
    Running(Running),
    /// It is over.
    Over(Arc<Finished>),
}

impl Stage {
    /// What it prints has come to its end.
    pub(super) fn close(&self) {
        if let Stage::Running(running) = self {
            running.collector.close();
        }
    }
}

/// A task that runs.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its output so far, and what comes.
    pub collector: Arc<Collector>,
    /// How far it has come, where it says so.
    pub progress: Option<TaskProgress>,
}

/// A task that was taken.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// Which.
    pub id: TaskId,
    /// How far it comes.
    pub stages: watch::Receiver<Stage>,
}

impl Ticket {
    /// What became of it, when it is over. `None`: the pool is gone.
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
    /// Its result, with at most so many bytes of each stream; `as_of`: whose it is, where that is not
    /// the task that ran.
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

    /// How it ended.
    pub fn ended(&self) -> TaskEnd {
        self.ended
    }

    /// Whether its process ended by itself with code 0.
    pub fn success(&self) -> bool {
        self.ended == TaskEnd::Exited && self.report.exit == Some(Exit::SUCCESS)
    }

    /// What it printed.
    pub fn collector(&self) -> Option<&Arc<Collector>> {
        self.collector.as_ref()
    }

    /// One that another supervisor has run.
    pub(crate) fn restored(result: TaskResult) -> Finished {
        let TaskResult { id, stdout, stderr, exit, ended, by_force, duration, pid, attempts, .. } = result;
        let (usage, error, failure) = (result.usage, result.error, result.failure);
        // What had another one's result has it still.
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

/// What a command is one of: all that its result may depend on.
pub(crate) type CacheKey = Arc<[u8]>;

/// Results of earlier commands, and who waits for one that is being made.
pub(crate) type Results = Cache<CacheKey, Arc<Finished>, TaskId>;

/// The key of a command, for somebody.
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
        // Which they are counts, too: one may have no value.
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

/// Variables that differ from shell to shell, and that no command is about.
const VOLATILE: [&str; 3] = ["_", "SHLVL", "OLDPWD"];
