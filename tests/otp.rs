//! The cases of OTP's supervisor suite restated for this tree (each test names those it covers),
//! and races that other supervisors have shipped, on a fake host and in paused time.

use std::sync::Arc;
use std::time::Duration;

use regrow::actors::event_log::{EventReader, NextEvent};
use regrow::host::ProcessKey;
use regrow::host::fake::{FakeBehaviour, FakeCall, FakeHost};
use regrow::model::cause::FailureReason;
use regrow::model::plan::GiveUp;
use regrow::model::{
    Addition, Child, Command, Condition, DenialCode, Dependency, Exit, Fact, GroupFact, GroupSpec,
    InstanceFact, Kind, Name, Plan, Policy, Selector, ServiceSpec, SpawnFailure, SpawnStage, State, Strategy,
};
use regrow::runtime::Handle;

const KILLED: Exit = Exit::Signal { signal: 9, core_dumped: false };

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A service that is restarted without delay, since OTP has no backoff.
fn service(text: &str, policy: Policy) -> ServiceSpec {
    let mut spec = ServiceSpec::new(name(text), [text]);
    spec.restart.policy = policy;
    spec.restart.backoff.initial = Duration::ZERO;
    spec.restart.backoff.max = Duration::ZERO;
    spec
}

struct Bench {
    host: Arc<FakeHost>,
    handle: Handle,
    events: EventReader,
}

impl Bench {
    /// A bench with a group `g` of these services, with this strategy, that gives up after more than
    /// `intensity` restarts.
    async fn group(strategy: Strategy, intensity: Option<u32>, services: Vec<ServiceSpec>) -> Bench {
        let children = services.iter().map(|s| Child::Service(s.name.clone())).collect();
        let mut plan = Plan::of("otp", services);
        plan.root.children = vec![Child::Group(name("g"))];
        let group = GroupSpec { children, strategy, intensity, ..GroupSpec::default() };
        plan.groups.insert(name("g"), group);
        Bench::of(plan).await
    }

    async fn of(plan: Plan) -> Bench {
        let host = Arc::new(FakeHost::new());
        let names: Vec<String> = plan.services.iter().map(|s| s.name.to_string()).collect();
        let handle = Handle::start_on(plan, Arc::clone(&host) as Arc<_>, None).await.unwrap();
        let events = handle.events_from(0);
        let mut bench = Bench { host, handle, events };
        for text in names {
            bench
                .until(|fact| {
                    matches!(fact, Fact::Instance(InstanceFact::Ready { .. })) && about(fact, &text)
                })
                .await;
            bench.events = bench.handle.events_from(0);
        }
        bench.events = bench.handle.events();
        bench
    }

    /// The next event that fits, from the current position on.
    async fn until(&mut self, fits: impl Fn(&Fact) -> bool) -> Fact {
        loop {
            if let NextEvent::Event(event) = self.events.next().await
                && fits(&event.fact)
            {
                return event.fact.clone();
            }
        }
    }

    fn key(&self, text: &str) -> ProcessKey {
        let alive = self.host.alive(text);
        assert_eq!(alive.len(), 1, "{text} lives once");
        alive[0]
    }

    fn end(&self, text: &str, exit: Exit) {
        self.host.exit(self.key(text), exit);
    }

    /// Waits until a condition is true, checking it again at each event.
    async fn comes_true(&mut self, what: &str, is: impl Fn(&Bench) -> bool) {
        while !is(self) {
            let next = tokio::time::timeout(Duration::from_secs(60), self.events.next()).await;
            assert!(next.is_ok(), "never: {what}");
        }
    }

    /// Waits until each of these services runs as its nth process.
    async fn run_as(&mut self, names: &[&str], nth: usize) {
        let up = |bench: &Bench, text: &&str| bench.state(text) == State::Running && bench.count(text) == nth;
        self.comes_true("they run", |bench| names.iter().all(|text| up(bench, text))).await;
    }

    /// Asserts that nothing happens for this time.
    async fn silent_for(&mut self, time: Duration) {
        while self.events.try_next().is_some() {}
        let next = tokio::time::timeout(time, self.events.next()).await;
        assert!(next.is_err(), "{next:?}");
    }

    fn state(&self, text: &str) -> State {
        self.handle.status().services.iter().find(|s| s.name == text).unwrap().state
    }

    fn count(&self, text: &str) -> usize {
        self.host
            .told()
            .iter()
            .filter(|told| matches!(told, FakeCall::Spawn(_, argv) if argv[0] == text))
            .count()
    }
}

fn about(fact: &Fact, text: &str) -> bool {
    fact.instance().is_some_and(|instance| instance.to_string() == text)
}

/// permanent_normal, transient_normal, temporary_normal, and the same with abnormal ends and
/// signals: which children are there again, and how often each was made.
#[tokio::test(start_paused = true)]
async fn kinds_of_children_by_kinds_of_ends() {
    use Policy::{Always, Never, OnFailure};
    use State::{Completed, Failed, Running};
    for (policy, exit, state, made) in [
        (Always, Exit::SUCCESS, Running, 2),
        (Always, Exit::Code(1), Running, 2),
        (Always, KILLED, Running, 2),
        (OnFailure, Exit::SUCCESS, Completed, 1),
        (OnFailure, Exit::Code(1), Running, 2),
        (OnFailure, KILLED, Running, 2),
        (Never, Exit::SUCCESS, Completed, 1),
        (Never, Exit::Code(1), Failed, 1),
        (Never, KILLED, Failed, 1),
    ] {
        let mut bench = Bench::group(Strategy::OneForOne, None, vec![service("a", policy)]).await;
        bench.end("a", exit);
        let what = format!("{policy} {exit}: {state}, made {made} times");
        bench.comes_true(&what, |bench| (bench.state("a"), bench.count("a")) == (state, made)).await;
        bench.silent_for(Duration::from_secs(60)).await;
    }
}

/// child_adm: a child is stopped, started and restarted by hand, and none of it counts as a
/// restart.
#[tokio::test(start_paused = true)]
async fn children_are_administered_by_hand() {
    let bench = Bench::group(
        Strategy::OneForAll,
        Some(0),
        vec![service("a", Policy::Always), service("b", Policy::Always)],
    )
    .await;
    for _ in 0..5 {
        let restart = Command::Restart { select: Selector::named(["a"]) };
        assert!(bench.handle.command(restart).await.unwrap().ok);
    }
    assert_eq!((bench.count("a"), bench.count("b")), (6, 1));
    let tree = bench.handle.tree(Some(&name("g"))).unwrap();
    assert_eq!((tree.count.specs, tree.count.active, tree.count.workers), (2, 2, 2));
    let stop = Command::Stop { select: Selector::named(["a"]), force: false };
    assert!(bench.handle.command(stop).await.unwrap().ok);
    assert_eq!(bench.handle.tree(Some(&name("g"))).unwrap().count.active, 1);
    assert!(bench.handle.tree(Some(&name("none"))).is_none());
    // start_child, and terminate_child with delete_child.
    let added = Addition::of(service("c", Policy::Always)).under(name("g"));
    assert!(bench.handle.add(added.clone()).await.unwrap().ok);
    let counts = || {
        let count = bench.handle.tree(Some(&name("g"))).unwrap().count;
        (count.specs, count.active, count.workers)
    };
    assert_eq!(counts(), (3, 2, 3));
    assert_eq!(bench.handle.add(added).await.unwrap_err().code, DenialCode::Exists, "already_present");
    assert!(bench.handle.remove(Selector::named(["c"])).await.unwrap().ok);
    assert_eq!(counts(), (2, 1, 2));
}

/// one_for_one, one_for_all, rest_for_one: the pids tell which children were replaced.
#[tokio::test(start_paused = true)]
async fn who_is_replaced_by_strategy() {
    for (strategy, fallen, replaced) in [
        (Strategy::OneForOne, "b", &["b"][..]),
        (Strategy::OneForAll, "b", &["a", "b", "c"]),
        (Strategy::RestForOne, "a", &["a", "b", "c"]),
        (Strategy::RestForOne, "b", &["b", "c"]),
        (Strategy::RestForOne, "c", &["c"]),
    ] {
        let services = ["a", "b", "c"].map(|text| service(text, Policy::Always)).to_vec();
        let mut bench = Bench::group(strategy, None, services).await;
        let before = ["a", "b", "c"].map(|text| bench.key(text));
        bench.end(fallen, KILLED);
        bench.run_as(replaced, 2).await;
        bench.silent_for(Duration::from_secs(60)).await;
        for (text, before) in ["a", "b", "c"].into_iter().zip(before) {
            assert_eq!(bench.key(text) != before, replaced.contains(&text), "{strategy} {fallen}: {text}");
        }
    }
}

/// one_for_all_other_child_fails_restart, rest_for_one_other_child_fails_restart: another member
/// can't be started while the group restarts; that counts as a further restart, and no process is
/// left behind.
#[tokio::test(start_paused = true)]
async fn another_fails_to_start_during_a_restart() {
    for strategy in [Strategy::OneForAll, Strategy::RestForOne] {
        let services = ["a", "b", "c"].map(|text| service(text, Policy::Always)).to_vec();
        let mut bench = Bench::group(strategy, Some(3), services).await;
        let full = SpawnFailure {
            stage: SpawnStage::Fork,
            errno: 11,
            errno_name: "EAGAIN".into(),
            message: "full".into(),
        };
        bench.host.let_behave("b", FakeBehaviour::Fails(full));
        bench.end("a", Exit::Code(1));
        let gave_up = bench.until(|fact| matches!(fact, Fact::Group(GroupFact::GaveUp { .. }))).await;
        assert!(
            matches!(gave_up, Fact::Group(GroupFact::GaveUp { restarts: 4, .. })),
            "{strategy}: {gave_up:?}"
        );
        for text in ["a", "b", "c"] {
            bench.comes_true("all are failed", |bench| bench.state(text) == State::Failed).await;
            assert!(bench.host.alive(text).is_empty(), "{strategy} {text}");
        }
        // The member can be made again, so the group is started by hand.
        bench.host.let_behave("b", FakeBehaviour::Obeys);
        let start = Command::Start { select: Selector::all(), no_deps: false };
        assert!(bench.handle.command(start).await.unwrap().ok);
    }
}

/// Several deaths at once make one restart of the group.
#[tokio::test(start_paused = true)]
async fn several_deaths_at_once_are_one_restart() {
    for strategy in [Strategy::OneForAll, Strategy::RestForOne] {
        let services = ["a", "b", "c"].map(|text| service(text, Policy::Always)).to_vec();
        let mut bench = Bench::group(strategy, Some(1), services).await;
        for text in ["a", "b", "c"] {
            bench.end(text, KILLED);
        }
        bench.run_as(&["a", "b", "c"], 2).await;
        bench.silent_for(Duration::from_secs(60)).await;
    }
}

/// one_for_one_escalation, one_for_all_escalation, rest_for_one_escalation: the group's members
/// are stopped, and its parent restarts it as a child that died, by its own strategy.
#[tokio::test(start_paused = true)]
async fn giving_up_escalates() {
    for strategy in [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne] {
        let services = ["before", "a", "b", "after"].map(|text| service(text, Policy::Always)).to_vec();
        let mut plan = Plan::of("otp", services);
        let children = ["a", "b"].map(|text| Child::Service(name(text))).to_vec();
        let group = GroupSpec {
            children,
            strategy,
            intensity: Some(0),
            on_give_up: GiveUp::Escalate,
            ..GroupSpec::default()
        };
        plan.groups.insert(name("g"), group);
        plan.root.strategy = Strategy::RestForOne;
        plan.root.intensity = Some(1);
        plan.root.children =
            vec![Child::Service(name("before")), Child::Group(name("g")), Child::Service(name("after"))];
        let mut bench = Bench::of(plan).await;
        bench.end("a", KILLED);
        bench.run_as(&["a", "b", "after"], 2).await;
        bench.silent_for(Duration::from_secs(5)).await;
        let made = ["before", "a", "b", "after"].map(|text| bench.count(text));
        assert_eq!(made, [1, 2, 2, 2], "{strategy}");
        // One more restart is more than the root allows, whose intensity is the default.
        bench.end("b", KILLED);
        bench.until(|fact| matches!(fact, Fact::Group(GroupFact::GaveUp { group: None, .. }))).await;
        for text in ["before", "a", "b", "after"] {
            bench.comes_true("all are failed", |bench| bench.state(text) == State::Failed).await;
            assert!(bench.host.alive(text).is_empty(), "{strategy} {text}");
        }
    }
}

/// count restarts, and their window: as many as the intensity allows, and one more.
#[tokio::test(start_paused = true)]
async fn intensity_trips_at_more_than_n_in_the_period() {
    let mut bench = Bench::group(Strategy::OneForOne, Some(3), vec![service("a", Policy::Always)]).await;
    for nth in 2..=4 {
        bench.end("a", KILLED);
        bench.run_as(&["a"], nth).await;
    }
    bench.silent_for(Duration::from_secs(11)).await;
    // Restarts that lie outside the period no longer count.
    for nth in 5..=7 {
        bench.end("a", KILLED);
        bench.run_as(&["a"], nth).await;
    }
    bench.end("a", KILLED);
    let failed = bench.until(|fact| matches!(fact, Fact::Instance(InstanceFact::Failed { .. }))).await;
    assert!(
        matches!(
            failed,
            Fact::Instance(InstanceFact::Failed { why: FailureReason::Group { group: Some(_) }, .. })
        ),
        "{failed:?}"
    );
}

/// Shutdown by timeout and brutal kill.
#[tokio::test(start_paused = true)]
async fn a_deaf_child_is_killed_at_its_time() {
    let mut deaf = service("deaf", Policy::Always);
    deaf.stop.timeout = Duration::from_secs(3);
    let mut bench = Bench::group(Strategy::OneForAll, None, vec![deaf, service("b", Policy::Always)]).await;
    bench.host.let_behave("deaf", FakeBehaviour::IgnoresSignals);
    let begin = bench.handle.uptime();
    bench.end("b", KILLED);
    bench.host.until(|told| told.iter().any(|told| matches!(told, FakeCall::Kill(_)))).await;
    assert_eq!(bench.handle.uptime() - begin, Duration::from_secs(3));
    bench.run_as(&["deaf", "b"], 2).await;
}

/// tree: a supervisor of supervisors is stopped from the leaves up, in reverse order.
#[tokio::test(start_paused = true)]
async fn a_tree_stops_in_reverse_order() {
    let services = ["a", "b", "c", "d"].map(|text| service(text, Policy::Always)).to_vec();
    let mut plan = Plan::of("otp", services);
    let of = |names: &[&str]| names.iter().map(|text| Child::Service(name(text))).collect();
    plan.groups.insert(name("left"), GroupSpec { children: of(&["a", "b"]), ..GroupSpec::default() });
    plan.groups.insert(name("right"), GroupSpec { children: of(&["c", "d"]), ..GroupSpec::default() });
    plan.root.children = vec![Child::Group(name("left")), Child::Group(name("right"))];
    plan.root.intensity = Some(0);
    plan.root.on_give_up = GiveUp::Mark;
    plan.groups.get_mut(&name("left")).unwrap().intensity = Some(0);
    plan.groups.get_mut(&name("left")).unwrap().on_give_up = GiveUp::Escalate;
    let mut bench = Bench::of(plan).await;
    let keys = ["b", "c", "d"].map(|text| bench.key(text));
    bench.end("a", KILLED);
    bench.until(|fact| matches!(fact, Fact::Group(GroupFact::GaveUp { group: None, .. }))).await;
    for text in ["a", "b", "c", "d"] {
        bench.comes_true("all are failed", |bench| bench.state(text) == State::Failed).await;
    }
    let stopped: Vec<ProcessKey> = bench
        .host
        .told()
        .iter()
        .filter_map(|told| match told {
            FakeCall::Signal(key, _) => Some(*key),
            _ => None,
        })
        .collect();
    assert_eq!(stopped, [keys[0], keys[2], keys[1]]);
}

fn needs(mut spec: ServiceSpec, on: &str) -> ServiceSpec {
    spec.depends_on.push(Dependency { on: name(on), condition: Condition::Ready, required: true });
    spec
}

/// Other supervisors restarted a parked dependent twice, or never started one because its
/// dependency had recovered meanwhile.
#[tokio::test(start_paused = true)]
async fn a_parked_dependent_starts_once_when_its_dependency_recovers() {
    let services = vec![service("db", Policy::Always), needs(service("api", Policy::Always), "db")];
    let mut bench = Bench::of(Plan::of("race", services)).await;
    // Both crash at once, the dependency again and again.
    bench.end("api", KILLED);
    for round in 0..20 {
        bench.end("db", KILLED);
        bench.run_as(&["db"], round + 2).await;
        bench.comes_true("the dependent is up again", |bench| bench.state("api") == State::Running).await;
    }
    bench.silent_for(Duration::from_secs(60)).await;
    assert_eq!(bench.host.alive("api").len(), 1);
    // It starts once for its own crash, and once for each crash of the dependency after which it was up
    // again.
    assert!(bench.count("api") <= 22, "{}", bench.count("api"));
}

/// Other supervisors had three copies after concurrent restarts, or two retry loops for one
/// service.
#[tokio::test(start_paused = true)]
async fn concurrent_restarts_and_falls_leave_one_copy_and_one_loop() {
    let mut spec = service("web", Policy::Always);
    spec.restart.backoff.initial = Duration::from_secs(1);
    spec.restart.backoff.max = Duration::from_secs(1);
    spec.restart.backoff.jitter = 0.0;
    let mut bench = Bench::of(Plan::of("race", vec![spec])).await;
    bench.end("web", KILLED);
    let asked: Vec<_> = (0..10)
        .map(|_| {
            let handle = bench.handle.clone();
            let restart = Command::Restart { select: Selector::named(["web"]) };
            tokio::spawn(async move { handle.command(restart).await.unwrap() })
        })
        .collect();
    for answer in asked {
        assert_eq!(answer.await.unwrap().results.len(), 1);
    }
    assert_eq!(bench.host.alive("web").len(), 1);
    // The backoff that was under way is cancelled: nothing more is made when its time comes.
    let made = bench.count("web");
    bench.silent_for(Duration::from_secs(30)).await;
    bench.end("web", KILLED);
    bench.run_as(&["web"], made + 1).await;
    bench.silent_for(Duration::from_secs(30)).await;
}

/// A task that completes while its group restarts is not run again.
#[tokio::test(start_paused = true)]
async fn what_completes_during_a_restart_stays_completed() {
    let mut task = service("task", Policy::OnFailure);
    task.kind = Kind::Task;
    let services = vec![service("a", Policy::Always), service("deaf", Policy::Always), task];
    let mut bench = Bench::group(Strategy::RestForOne, None, services).await;
    bench.host.let_behave("deaf", FakeBehaviour::IgnoresSignals);
    bench.end("task", Exit::SUCCESS);
    bench.end("a", KILLED);
    bench.run_as(&["a", "deaf"], 2).await;
    bench.silent_for(Duration::from_secs(60)).await;
    assert_eq!((bench.state("task"), bench.count("task")), (State::Completed, 1));
}
