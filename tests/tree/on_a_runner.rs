//! The tree over a runner that starts nothing: what a test says becomes of it, becomes of it. The
//! things have no pids, and the host is never asked to start one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use regrow::host::fake::{FakeBehaviour, FakeCall, FakeHost};
use regrow::host::{HostEvent, HostEventSink, OutputSink, ProcessKey, SpawnOrder};
use regrow::model::{
    Exit, Fact, InstanceFact, InstanceId, Name, Plan, ReadySpec, ReadyTarget, ServiceSpec, Stream,
};
use regrow::runner::{Runner, RunnerOutput};
use regrow::runtime::Handle;
use tokio::sync::Notify;

use crate::fake::{name, service};

#[path = "cases.rs"]
mod cases;

use cases::{all_ready, event};

/// A runner of things that are started by being noted.
#[derive(Default)]
pub(crate) struct Fake {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    told: Vec<FakeCall>,
    alive: BTreeMap<ProcessKey, (Vec<String>, HostEventSink, RunnerOutput)>,
    behaviours: BTreeMap<String, FakeBehaviour>,
}

impl Fake {
    fn new() -> Fake {
        Fake::default()
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = act(&mut self.state.lock().unwrap());
        self.changed.notify_waiters();
        result
    }

    fn let_behave(&self, program: &str, behaviour: FakeBehaviour) {
        self.with(|state| state.behaviours.insert(program.to_owned(), behaviour));
    }

    fn told(&self) -> Vec<FakeCall> {
        self.with(|state| state.told.clone())
    }

    fn alive(&self, program: &str) -> Vec<ProcessKey> {
        let of = |argv: &[String]| argv[0] == program;
        self.with(|state| {
            state.alive.iter().filter(|(_, (argv, ..))| of(argv)).map(|(key, _)| *key).collect()
        })
    }

    fn exit(&self, key: ProcessKey, exit: Exit) {
        if let Some((_, news, _)) = self.with(|state| state.alive.remove(&key)) {
            let (captured, lasted) = (Vec::new(), Duration::ZERO);
            news(HostEvent::Exited { key, exit, remains: false, captured, usage: None, lasted });
        }
    }

    async fn until(&self, mut what: impl FnMut(&[FakeCall]) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if what(&self.state.lock().unwrap().told) {
                return;
            }
            changed.await;
        }
    }

    fn behaves(&self, key: ProcessKey, call: FakeCall) -> Option<FakeBehaviour> {
        self.with(|state| {
            state.told.push(call);
            let (argv, ..) = state.alive.get(&key)?;
            state.behaviours.get(&argv[0]).cloned()
        })
    }
}

impl Runner for Fake {
    fn start(&self, order: SpawnOrder, sink: &Arc<dyn OutputSink>) {
        let output = RunnerOutput::new(&order, sink);
        let SpawnOrder { key, argv, news, .. } = order;
        self.with(|state| state.alive.insert(key, (argv.clone(), news.clone(), output)));
        match self.behaves(key, FakeCall::Spawn(key, argv)) {
            Some(FakeBehaviour::Fails(failure)) => {
                self.with(|state| state.alive.remove(&key));
                news(HostEvent::SpawnFailed { key, failure });
            }
            Some(FakeBehaviour::Obeys | FakeBehaviour::IgnoresSignals) | None => {
                news(HostEvent::Spawned { key, pid: None, life: None });
            }
        }
    }

    fn signal(&self, key: ProcessKey, signal: i32) {
        if self.behaves(key, FakeCall::Signal(key, signal)) != Some(FakeBehaviour::IgnoresSignals) {
            self.exit(key, Exit::Signal { signal, core_dumped: false });
        }
    }

    fn pause(&self, key: ProcessKey) {
        self.behaves(key, FakeCall::Pause(key));
        let news = self.with(|state| state.alive.get(&key).map(|(_, news, _)| news.clone()));
        news.into_iter().for_each(|news| news(HostEvent::Paused { key }));
    }

    fn resume(&self, key: ProcessKey) {
        self.behaves(key, FakeCall::Resume(key));
    }

    fn kill(&self, key: ProcessKey) {
        self.behaves(key, FakeCall::Kill(key));
        self.exit(key, Exit::Signal { signal: 9, core_dumped: false });
    }
}

/// Brings a plan up, each service of which is started by the runner.
async fn bring_up(runner: &Arc<Fake>, mut plan: Plan) -> Handle {
    let host = Arc::new(FakeHost::new());
    host.let_behave("", FakeBehaviour::Obeys);
    let of_runner = |spec: &Arc<ServiceSpec>| {
        Arc::new(ServiceSpec { runner: Some(name("dummy")), ..ServiceSpec::clone(spec) })
    };
    plan.services = plan.services.iter().map(of_runner).collect();
    let runners: BTreeMap<Name, Arc<dyn Runner>> =
        BTreeMap::from([(name("dummy"), Arc::clone(runner) as Arc<dyn Runner>)]);
    Handle::start_with(plan, host, runners).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_has_no_pid_is_shown_without_one_and_its_output_is_read() {
    let runner = Arc::new(Fake::new());
    let mut web = service("web", &[]);
    web.ready = Some(ReadySpec { target: ReadyTarget::Log("up on".to_owned()), deadline: None });
    let handle = bring_up(&runner, Plan::of("test", vec![web])).await;
    runner.until(|told| !told.is_empty()).await;
    let output = runner.with(|state| state.alive.values().next().unwrap().2.clone());
    output.write(Stream::Out, b"begins\nup ");
    output.write(Stream::Out, b"on 80\nunfinished");
    all_ready(&handle, &["web"]).await;
    let status = handle.status();
    assert_eq!((status.services[0].pid, status.services[0].ready), (None, true));
    let running = event(&handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Running { .. }))).await;
    assert!(!serde_json::to_string(&*running).unwrap().contains("pid"));
    let source = handle.output().source_of(&InstanceId::sole(name("web"))).unwrap();
    assert_eq!(handle.output().last_lines(source, 9), ["begins", "up on 80"]);
    drop(output);
    handle.shutdown().await.unwrap();
    assert_eq!(handle.output().last_lines(source, 1), ["unfinished"]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_runner_starts_nothing_and_says_so() {
    let mut web = service("web", &[]);
    web.runner = Some(name("docker"));
    let handle =
        Handle::start_on(Plan::of("test", vec![web]), Arc::new(FakeHost::new()), None).await.unwrap();
    let failed = event(&handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Failed { .. }))).await;
    assert!(serde_json::to_string(&*failed).unwrap().contains("this program has no runner docker"));
    handle.shutdown().await.unwrap();
}
