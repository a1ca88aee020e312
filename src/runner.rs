//! The seam between an instance and the thing that it stands for: how that is started, ended and
//! observed.
//!
//! What is started need not be a process of this machine: a [`Runner`] says how one kind of thing is
//! started, signalled, paused and killed, hands on what it prints, and reports what becomes of it in
//! [`HostEvent`]s. The tree treats all of them alike. May use `host`, for the processes of this machine
//! ([`ProcessRunner`]). Deliberately absent: when something is started or ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::host::lines::{any_matches, cut};
use crate::host::{Host, HostEvent, HostEventSink, OutputSink, OutputTarget, ProcessKey, SpawnOrder};
use crate::model::{Name, ServiceSpec, SourceId, SpawnFailure, SpawnStage, Stream};

/// Starts one kind of thing, ends it, and reports what becomes of it.
///
/// No method waits: each takes an order, which is answered by a [`HostEvent`] to the order's `news`.
pub trait Runner: Send + Sync + 'static {
    /// Starts what the order describes; answered once, by [`HostEvent::Spawned`] (without a pid where
    /// it is no process of this machine) or [`HostEvent::SpawnFailed`]. Its end is reported by
    /// [`HostEvent::Exited`]. What it prints goes to a [`RunnerOutput`] of the order and the sink.
    fn start(&self, order: SpawnOrder, sink: &Arc<dyn OutputSink>);
    /// Asks it to end, as this signal does for a process.
    fn signal(&self, key: ProcessKey, signal: i32);
    /// Halts it; answered by [`HostEvent::Paused`].
    fn pause(&self, key: ProcessKey);
    /// Lets it go on.
    fn resume(&self, key: ProcessKey);
    /// Ends it without asking, with everything that belongs to it.
    fn kill(&self, key: ProcessKey);
    /// Everything about its end has been recorded durably.
    fn settle(&self, _key: ProcessKey) {}
}

/// Takes what a started thing prints, for the screens and for `ready = { log }`. Cheap to clone; an
/// unfinished line is handed on when the last clone is dropped.
#[derive(Clone)]
pub struct RunnerOutput {
    inner: Arc<Output>,
}

struct Output {
    sink: Arc<dyn OutputSink>,
    source: Option<SourceId>,
    key: ProcessKey,
    news: HostEventSink,
    state: Mutex<Printed>,
}

#[derive(Default)]
struct Printed {
    /// The unfinished line of each stream.
    partial: [Vec<u8>; 2],
    /// What is searched for until it was found.
    pattern: Option<regex::bytes::Regex>,
}

impl RunnerOutput {
    /// The place for what an order's thing prints.
    pub fn new(order: &SpawnOrder, sink: &Arc<dyn OutputSink>) -> RunnerOutput {
        let (source, pattern) = match &order.output {
            OutputTarget::Lines(source, pattern) => (Some(*source), pattern.clone()),
            OutputTarget::Beside(source) => (Some(*source), None),
            OutputTarget::Capture(_) | OutputTarget::Collect(_) => (None, None),
        };
        let (sink, news) = (Arc::clone(sink), Arc::clone(&order.news));
        let state = Mutex::new(Printed { pattern, ..Printed::default() });
        RunnerOutput { inner: Arc::new(Output { sink, source, key: order.key, news, state }) }
    }

    /// Takes bytes of a stream as they come; lines are handed on when they are whole.
    pub fn write(&self, stream: Stream, bytes: &[u8]) {
        let Output { sink, source: Some(source), key, news, state } = &*self.inner else {
            return;
        };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let Printed { partial, pattern } = &mut *state;
        let partial = &mut partial[stream as usize];
        let matches = |lines: &[u8]| pattern.as_ref().is_some_and(|pattern| any_matches(pattern, lines));
        let mut matched = false;
        cut(partial, bytes, &mut |lines| {
            sink.lines(*source, stream, lines);
            matched |= matches(lines);
        });
        matched |= !partial.is_empty() && matches(partial);
        if matched {
            *pattern = None;
            drop(state);
            news(HostEvent::LogMatched { key: *key });
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (stream, partial) in [Stream::Out, Stream::Err].into_iter().zip(&mut state.partial) {
            if let (Some(source), false) = (self.source, partial.is_empty()) {
                partial.push(b'\n');
                self.sink.lines(source, stream, partial);
            }
        }
    }
}

/// Runs processes of this machine. The host reads what they print itself, and keeps it in files.
pub struct ProcessRunner {
    host: Arc<dyn Host>,
}

impl ProcessRunner {
    /// The runner of a host's processes.
    pub fn new(host: Arc<dyn Host>) -> ProcessRunner {
        ProcessRunner { host }
    }
}

impl Runner for ProcessRunner {
    fn start(&self, order: SpawnOrder, _sink: &Arc<dyn OutputSink>) {
        self.host.spawn(order);
    }

    fn signal(&self, key: ProcessKey, signal: i32) {
        self.host.signal(key, signal);
    }

    fn pause(&self, key: ProcessKey) {
        self.host.pause(key);
    }

    fn resume(&self, key: ProcessKey) {
        self.host.resume(key);
    }

    fn kill(&self, key: ProcessKey) {
        self.host.kill(key);
    }

    fn settle(&self, key: ProcessKey) {
        self.host.settle(key);
    }
}

/// Every runner of a tree.
pub(crate) struct Runners {
    processes: Arc<dyn Runner>,
    others: BTreeMap<Name, Arc<dyn Runner>>,
    output: Arc<dyn OutputSink>,
}

impl Runners {
    pub(crate) fn new(
        host: &Arc<dyn Host>,
        others: BTreeMap<Name, Arc<dyn Runner>>,
        output: Arc<dyn OutputSink>,
    ) -> Runners {
        Runners { processes: Arc::new(ProcessRunner::new(Arc::clone(host))), others, output }
    }

    /// The runner of this machine's processes.
    pub(crate) fn processes(&self) -> &Arc<dyn Runner> {
        &self.processes
    }

    /// The runner of a service. A runner that nobody has brought along fails to start anything.
    pub(crate) fn of(&self, spec: &ServiceSpec) -> Arc<dyn Runner> {
        match &spec.runner {
            None => Arc::clone(&self.processes),
            Some(name) => match self.others.get(name) {
                Some(runner) => Arc::clone(runner),
                None => Arc::new(Missing(name.clone())),
            },
        }
    }

    /// Has a runner start something.
    pub(crate) fn start(&self, runner: &dyn Runner, order: SpawnOrder) {
        runner.start(order, &self.output);
    }
}

/// Stands for a runner that is not there.
struct Missing(Name);

impl Runner for Missing {
    fn start(&self, order: SpawnOrder, _sink: &Arc<dyn OutputSink>) {
        const NO_SUCH_THING: i32 = 2;
        let failure = SpawnFailure {
            stage: SpawnStage::Exec,
            errno: NO_SUCH_THING,
            errno_name: "ENOENT".to_owned(),
            message: format!("this program has no runner {}", self.0),
        };
        (order.news)(HostEvent::SpawnFailed { key: order.key, failure });
    }

    fn signal(&self, _: ProcessKey, _: i32) {}
    fn pause(&self, _: ProcessKey) {}
    fn resume(&self, _: ProcessKey) {}
    fn kill(&self, _: ProcessKey) {}
}
