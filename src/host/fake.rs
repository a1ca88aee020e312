//! A host without processes, for tests: it records every order, and the test decides what happens.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Host, HostEvent, HostEventSink, OutputTarget, ProcessKey, SpawnOrder};
use crate::logs;
use crate::model::{Exit, SpawnFailure};

/// An order that a fake host was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FakeCall {
    /// Spawn a process with these arguments.
    Spawn(ProcessKey, Vec<String>),
    /// Send a signal to a process.
    Signal(ProcessKey, i32),
    /// Halt a process.
    Pause(ProcessKey),
    /// Let a process continue.
    Resume(ProcessKey),
    /// Kill a process.
    Kill(ProcessKey),
}

/// What a fake process does by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FakeBehaviour {
    /// The process runs, and dies of the first signal.
    Obeys,
    /// The process runs, and only SIGKILL ends it.
    IgnoresSignals,
    /// The process can't be spawned.
    Fails(SpawnFailure),
}

/// A [`Host`] that records orders while a test plays the kernel.
pub struct FakeHost {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    next: u64,
    told: Vec<FakeCall>,
    alive: BTreeMap<ProcessKey, (Vec<String>, HostEventSink)>,
    behaviours: BTreeMap<String, FakeBehaviour>,
}

impl Default for FakeHost {
    fn default() -> FakeHost {
        FakeHost::new()
    }
}

impl FakeHost {
    /// Makes a host on which every process obeys.
    pub fn new() -> FakeHost {
        FakeHost { state: Mutex::new(State::default()), changed: Notify::new() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_waiters();
        result
    }

    /// Makes processes of this program behave like this from now on.
    pub fn let_behave(&self, program: &str, behaviour: FakeBehaviour) {
        self.with(|state| state.behaviours.insert(program.to_owned(), behaviour));
    }

    /// All orders so far.
    pub fn told(&self) -> Vec<FakeCall> {
        self.with(|state| state.told.clone())
    }

    /// The living processes of a program.
    pub fn alive(&self, program: &str) -> Vec<ProcessKey> {
        let of = |argv: &[String]| argv.first().is_some_and(|p| p == program);
        self.with(|state| state.alive.iter().filter(|(_, (argv, _))| of(argv)).map(|(key, _)| *key).collect())
    }

    /// Ends a process, as if it had exited by itself.
    pub fn exit(&self, key: ProcessKey, exit: Exit) {
        if let Some((_, news)) = self.with(|state| state.alive.remove(&key)) {
            news(HostEvent::Exited {
                key,
                exit,
                remains: false,
                captured: Vec::new(),
                usage: None,
                lasted: Duration::ZERO,
            });
        }
    }

    /// Waits until the orders so far satisfy a condition.
    pub async fn until(&self, mut what: impl FnMut(&[FakeCall]) -> bool) {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if self.state.lock().map(|state| what(&state.told)).unwrap_or(true) {
                return;
            }
            changed.await;
        }
    }
}

impl Host for FakeHost {
    fn roll(&self) -> f64 {
        0.5
    }

    fn next_key(&self) -> ProcessKey {
        self.with(|state| {
            state.next += 1;
            ProcessKey(state.next)
        })
    }

    fn spawn(&self, order: SpawnOrder) {
        let SpawnOrder { key, argv, news, .. } = order;
        let behaviour = self.with(|state| {
            state.told.push(FakeCall::Spawn(key, argv.clone()));
            let behaviour = argv.first().and_then(|program| state.behaviours.get(program).cloned());
            if !matches!(behaviour, Some(FakeBehaviour::Fails(_))) {
                state.alive.insert(key, (argv, news.clone()));
            }
            behaviour
        });
        match behaviour {
            Some(FakeBehaviour::Fails(failure)) => news(HostEvent::SpawnFailed { key, failure }),
            Some(FakeBehaviour::Obeys | FakeBehaviour::IgnoresSignals) | None => {
                let pid = u32::try_from(1_000 + key.0).unwrap_or(u32::MAX);
                news(HostEvent::Spawned { key, pid: Some(pid), life: None });
            }
        }
    }

    fn signal(&self, key: ProcessKey, signal: i32) {
        let obeys = self.with(|state| {
            state.told.push(FakeCall::Signal(key, signal));
            let program = state.alive.get(&key).and_then(|(argv, _)| argv.first().cloned());
            let behaviour = program.and_then(|program| state.behaviours.get(&program).cloned());
            behaviour != Some(FakeBehaviour::IgnoresSignals)
        });
        if obeys {
            self.exit(key, Exit::Signal { signal, core_dumped: false });
        }
    }

    fn pause(&self, key: ProcessKey) {
        let news = self.with(|state| {
            state.told.push(FakeCall::Pause(key));
            state.alive.get(&key).map(|(_, news)| news.clone())
        });
        if let Some(news) = news {
            news(HostEvent::Paused { key });
        }
    }

    fn resume(&self, key: ProcessKey) {
        self.with(|state| state.told.push(FakeCall::Resume(key)));
    }

    fn kill(&self, key: ProcessKey) {
        self.with(|state| state.told.push(FakeCall::Kill(key)));
        self.exit(key, Exit::Signal { signal: 9, core_dumped: false });
    }

    fn adopt(&self, key: ProcessKey, _: OutputTarget, _: Option<logs::LogConfig>, news: HostEventSink) {
        self.with(|state| state.alive.insert(key, (vec!["adopted".to_owned()], news)));
    }
}
