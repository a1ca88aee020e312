//! What the tree does, whatever its instances are: in paused time, without real processes.

use std::sync::Arc;
use std::time::Duration;

use regrow::actors::event_log::NextEvent;
use regrow::host::ProcessKey;
use regrow::host::fake::{FakeBehaviour, FakeCall};
use regrow::model::cause::FailureReason;
use regrow::model::plan::AutoShutdown;
use regrow::model::spec::Hook;
use regrow::model::{
    Child, Command, DenialCode, Event, Exit, Fact, GroupSpec, InstanceFact, InstanceId, Kind,
    OnDependencyRestart, Plan, Policy, ReadySpec, ReadyTarget, Selector, ServiceSpec, SpawnFailure,
    SpawnStage, State, Strategy,
};
use regrow::runtime::Handle;

use super::{Fake, bring_up};
use crate::fake::{name, service};

/// A program that does not exist, as a behaviour of the fake host.
fn missing() -> FakeBehaviour {
    FakeBehaviour::Fails(SpawnFailure {
        stage: SpawnStage::Exec,
        errno: 2,
        errno_name: "ENOENT".into(),
        message: "no program".into(),
    })
}

async fn tree(services: Vec<ServiceSpec>) -> (Arc<Fake>, Handle) {
    tree_on(Arc::new(Fake::new()), services).await
}

async fn tree_on(host: Arc<Fake>, services: Vec<ServiceSpec>) -> (Arc<Fake>, Handle) {
    let handle = bring_up(&host, Plan::of("test", services)).await;
    (host, handle)
}

/// Waits for the first event that fits, from the beginning.
pub(super) async fn event(handle: &Handle, fits: impl Fn(&Fact) -> bool) -> Arc<Event> {
    let mut events = handle.events_from(0);
    loop {
        match events.next().await {
            NextEvent::Event(event) if fits(&event.fact) => return event,
            NextEvent::Event(_) | NextEvent::Missed(_) => {}
        }
    }
}

pub(super) fn about(fact: &Fact, text: &str) -> bool {
    fact.instance().is_some_and(|instance| instance.to_string() == text)
}

pub(super) async fn all_ready(handle: &Handle, names: &[&str]) {
    for text in names {
        event(handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Ready { .. })) && about(fact, text))
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn starts_go_up_the_graph_and_stops_go_down() {
    let (host, handle) =
        tree(vec![service("web", &["api"]), service("api", &["db"]), service("db", &[])]).await;
    all_ready(&handle, &["db", "api", "web"]).await;
    handle.begin_shutdown("test");
    handle.wait_down().await.unwrap();
    let order: Vec<String> = host
        .told()
        .into_iter()
        .map(|told| match told {
            FakeCall::Spawn(key, argv) => format!("{} {key}", argv[0]),
            FakeCall::Signal(key, signal) => format!("{signal} to {key}"),
            FakeCall::Kill(key) => format!("kill {key}"),
            FakeCall::Pause(key) | FakeCall::Resume(key) => format!("neither of {key}"),
        })
        .collect();
    assert_eq!(order, ["db 1", "api 2", "web 3", "15 to 3", "15 to 2", "15 to 1"]);
}

#[tokio::test(start_paused = true)]
async fn the_backoff_grows_in_the_clock_that_nobody_can_set() {
    let (host, handle) = tree(vec![service("web", &[])]).await;
    all_ready(&handle, &["web"]).await;
    let mut waits = Vec::new();
    for _ in 0..4 {
        let before = handle.uptime();
        host.exit(host.alive("web")[0], Exit::Code(1));
        host.until(|told| told.len() > waits.len() + 1).await;
        waits.push((handle.uptime() - before).as_millis());
    }
    assert_eq!(waits, [100, 200, 400, 800]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_is_not_obeyed_is_forced_at_its_time() {
    let host = Arc::new(Fake::new());
    host.let_behave("deaf", FakeBehaviour::IgnoresSignals);
    let (host, handle) = tree_on(host, vec![service("deaf", &[])]).await;
    all_ready(&handle, &["deaf"]).await;
    let before = handle.uptime();
    let stop = Command::Stop { select: Selector::named(["deaf"]), force: false };
    let answer = handle.command(stop).await.unwrap();
    assert!(answer.ok);
    assert_eq!(handle.uptime() - before, Duration::from_secs(10));
    assert!(matches!(host.told().last(), Some(FakeCall::Kill(_))));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_commands_each_get_one_answer_and_one_copy_lives() {
    let (host, handle) = tree(vec![service("web", &[])]).await;
    all_ready(&handle, &["web"]).await;
    let mut asked = Vec::new();
    for n in 0..1_000 {
        let handle = handle.clone();
        let select = Selector::named(["web"]);
        let command = match n % 3 {
            0 => Command::Stop { select, force: false },
            1 => Command::Start { select, no_deps: false },
            _ => Command::Restart { select },
        };
        asked.push(tokio::spawn(async move { handle.command(command).await }));
    }
    for answer in asked {
        assert_eq!(answer.await.unwrap().unwrap().results.len(), 1);
    }
    let start = Command::Start { select: Selector::named(["web"]), no_deps: false };
    assert!(handle.command(start).await.unwrap().ok);
    assert_eq!(host.alive("web").len(), 1);
    let stop = Command::Stop { select: Selector::all(), force: false };
    assert!(handle.command(stop).await.unwrap().ok);
    assert!(host.alive("web").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dependent_never_wedges_whatever_its_dependency_does() {
    let host = Arc::new(Fake::new());
    host.let_behave("db", missing());
    let (host, handle) =
        tree_on(host, vec![service("db", &[]), service("api", &["db"]), service("web", &["api"])]).await;
    event(&handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Failed { .. })) && about(fact, "web"))
        .await;
    host.let_behave("db", FakeBehaviour::Obeys);
    let start = Command::Start { select: Selector::named(["db"]), no_deps: false };
    assert!(handle.command(start).await.unwrap().ok);
    all_ready(&handle, &["api", "web"]).await;
    // Both crash at once: the dependent waits until its dependency is back.
    host.exit(host.alive("db")[0], Exit::Code(1));
    host.exit(host.alive("api")[0], Exit::Code(1));
    let mut events = handle.events();
    let mut back = Vec::new();
    while back.len() < 2 {
        if let NextEvent::Event(event) = events.next().await
            && let Fact::Instance(InstanceFact::Ready { instance, .. }) = &event.fact
        {
            back.push(instance.to_string());
        }
    }
    assert_eq!(back, ["db", "api"]);
}

#[tokio::test(start_paused = true)]
async fn the_tree_state_is_the_fold_of_the_events() {
    let mut never = service("never", &[]);
    never.restart.policy = Policy::Never;
    let (host, handle) = tree(vec![service("web", &[]), never]).await;
    all_ready(&handle, &["web", "never"]).await;
    host.exit(host.alive("never")[0], Exit::Code(3));
    event(&handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Failed { .. }))).await;
    let mut folded =
        regrow::decide::tree_state::TreeState::new(handle.plan(), std::time::SystemTime::UNIX_EPOCH).unwrap();
    for event in handle.kept_events() {
        folded.apply(&event);
    }
    let states = |tree_state: &regrow::decide::tree_state::TreeState| -> Vec<(String, State, bool)> {
        tree_state.entries().iter().map(|e| (e.id.to_string(), e.state, e.ready)).collect()
    };
    assert_eq!(states(&folded), handle.tree_state(states));
    assert_eq!(states(&folded)[1].1, State::Failed);
}

#[tokio::test(start_paused = true)]
async fn while_the_tree_goes_down_commands_are_denied() {
    let (_, handle) = tree(vec![service("web", &[])]).await;
    all_ready(&handle, &["web"]).await;
    handle.begin_shutdown("test");
    handle.wait_down().await.unwrap();
    let denied = handle.command(Command::Restart { select: Selector::all() }).await.unwrap_err();
    assert_eq!(denied.code, DenialCode::ShuttingDown);
}

#[tokio::test(start_paused = true)]
async fn two_trees_live_side_by_side() {
    let (one, first) = tree(vec![service("web", &[])]).await;
    let (two, second) = tree(vec![service("web", &[])]).await;
    all_ready(&first, &["web"]).await;
    all_ready(&second, &["web"]).await;
    first.shutdown().await.unwrap();
    assert!(one.alive("web").is_empty());
    assert_eq!(two.alive("web").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_right_after_the_start_leaves_nothing() {
    let (host, handle) = tree(vec![service("web", &["db"]), service("db", &[])]).await;
    handle.shutdown().await.unwrap();
    assert!(host.alive("db").is_empty() && host.alive("web").is_empty(), "{:?}", host.told());
}

#[tokio::test(start_paused = true)]
async fn a_start_while_what_it_needs_is_being_stopped_brings_both() {
    let host = Arc::new(Fake::new());
    host.let_behave("db", FakeBehaviour::IgnoresSignals);
    let (_, handle) = tree_on(host, vec![service("db", &[]), service("web", &["db"])]).await;
    all_ready(&handle, &["db", "web"]).await;
    let stop = Command::Stop { select: Selector::all(), force: false };
    let stopping = tokio::spawn({
        let handle = handle.clone();
        async move { handle.command(stop).await }
    });
    event(&handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Stopping { .. })) && about(fact, "db"))
        .await;
    let start = Command::Start { select: Selector::named(["web"]), no_deps: false };
    assert!(handle.command(start).await.unwrap().ok);
    assert!(!stopping.await.unwrap().unwrap().ok, "overtaken");
}

#[tokio::test(start_paused = true)]
async fn a_start_of_failed_ones_is_answered_by_what_becomes_of_them() {
    let host = Arc::new(Fake::new());
    host.let_behave("b", missing());
    let (host, handle) =
        tree_on(host, vec![service("c", &["b"]), service("b", &["a"]), service("a", &[])]).await;
    event(&handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Failed { .. })) && about(fact, "c"))
        .await;
    host.let_behave("b", FakeBehaviour::Obeys);
    let start = Command::Start { select: Selector::named(["c"]), no_deps: false };
    let answer = handle.command(start).await.unwrap();
    assert!(answer.ok, "{answer:?}");
}

pub(super) fn start(text: &str) -> Command {
    Command::Start { select: Selector::named([text]), no_deps: false }
}

pub(super) fn stop(text: &str) -> Command {
    Command::Stop { select: Selector::named([text]), force: true }
}

/// The messages of answers to commands that were given at the same instant, in that order.
async fn at_once(handle: &Handle, commands: Vec<Command>) -> Vec<Vec<String>> {
    let asked: Vec<_> = commands
        .into_iter()
        .map(|command| {
            let handle = handle.clone();
            tokio::spawn(async move { handle.command(command).await.unwrap() })
        })
        .collect();
    let mut answers = Vec::new();
    for answer in asked {
        let results = answer.await.unwrap().results;
        answers.push(results.into_iter().map(|r| format!("{}: {}", r.name, r.message)).collect());
    }
    answers
}

#[tokio::test(start_paused = true)]
async fn of_simultaneous_commands_the_last_wins_and_answers_say_so() {
    let (host, handle) = tree(vec![service("db", &[]), service("web", &["db"])]).await;
    all_ready(&handle, &["db", "web"]).await;
    let answers = at_once(&handle, vec![stop("web"), start("web")]).await;
    assert_eq!(answers, [["web: superseded by a later command"], ["web: ready after 0 us"]]);
    assert_eq!(host.alive("web").len(), 1);
    let answers = at_once(&handle, vec![start("web"), stop("web")]).await;
    assert_eq!(answers, [["web: superseded by a later command"], ["web: stopped"]]);
    assert!(host.alive("web").is_empty());
    let answers = at_once(&handle, vec![start("web"), stop("web"), start("web")]).await;
    assert_eq!(answers[2], ["web: ready after 0 us"]);
    assert_eq!(host.alive("web").len(), 1);
    // The stop of db waits for that of web; a start of web needs db, and so overtakes both.
    let all = Command::Stop { select: Selector::all(), force: false };
    let answers = at_once(&handle, vec![all, start("web")]).await;
    let overtaken = ["db: superseded by a later command", "web: superseded by a later command"];
    assert_eq!(answers[0], overtaken);
    assert_eq!(answers[1], ["web: ready after 0 us"]);
    assert_eq!((host.alive("db").len(), host.alive("web").len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stop_of_what_a_restart_has_brought_down_holds() {
    let host = Arc::new(Fake::new());
    host.let_behave("slow", FakeBehaviour::IgnoresSignals);
    let services = vec![service("a", &[]), service("slow", &[]), service("b", &["a", "slow"])];
    let (host, handle) = tree_on(host, services).await;
    all_ready(&handle, &["a", "slow", "b"]).await;
    let restarting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.command(Command::Restart { select: Selector::all() }).await.unwrap() }
    });
    event(&handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Stopped { .. })) && about(fact, "a"))
        .await;
    let answer = handle.command(stop("a")).await.unwrap();
    assert_eq!(answer.results[0].message, "already stopped");
    let answer = restarting.await.unwrap();
    let messages: Vec<String> = answer.results.iter().map(|r| format!("{}: {}", r.name, r.message)).collect();
    let in_vain = "b: waits for a, which is down by request";
    assert_eq!(messages, ["a: superseded by a later command", "slow: ready after 0 us", in_vain]);
    assert!(host.alive("a").is_empty());
    // The same happens with a stop of the whole tree.
    assert!(handle.command(start("b")).await.unwrap().ok);
    let mut events = handle.events();
    let restarting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.command(Command::Restart { select: Selector::all() }).await }
    });
    loop {
        if let NextEvent::Event(event) = events.next().await
            && matches!(event.fact, Fact::Instance(InstanceFact::Stopping { .. }))
            && about(&event.fact, "slow")
        {
            break;
        }
    }
    handle.shutdown().await.unwrap();
    assert!(["a", "slow", "b"].iter().all(|name| host.alive(name).is_empty()), "{:?}", host.told());
    assert!(!restarting.await.unwrap().unwrap().ok);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_waits_in_vain_is_answered() {
    let mut db = service("db", &[]);
    db.ready = Some(ReadySpec { target: ReadyTarget::After(Duration::from_secs(1)), deadline: None });
    let (_, handle) = tree(vec![db, service("web", &["db"])]).await;
    all_ready(&handle, &["db", "web"]).await;
    assert!(handle.command(Command::Stop { select: Selector::all(), force: false }).await.unwrap().ok);
    let answers = at_once(&handle, vec![start("web"), stop("db")]).await;
    assert_eq!(
        answers[0],
        ["db: superseded by a later command", "web: waits for db, which is down by request",]
    );
    // The service goes on waiting, and comes up when it can.
    assert!(handle.command(start("db")).await.unwrap().ok);
    event(&handle, |fact| {
        matches!(fact, Fact::Instance(InstanceFact::Ready { incarnation, .. }) if incarnation.0 == 2)
            && about(fact, "web")
    })
    .await;
}

/// What the host was told after the first `from` entries, as `start NAME` and `stop NAME`.
fn story(host: &Fake, from: usize) -> Vec<String> {
    let told = host.told();
    let name_of = |key: ProcessKey| {
        told.iter().find_map(|told| match told {
            FakeCall::Spawn(of, argv) if *of == key => Some(argv[0].clone()),
            _ => None,
        })
    };
    told[from..]
        .iter()
        .map(|told| match told {
            FakeCall::Spawn(_, argv) => format!("start {}", argv[0]),
            FakeCall::Signal(key, _) | FakeCall::Kill(key) => format!("stop {}", name_of(*key).unwrap()),
            FakeCall::Pause(key) => format!("pause {}", name_of(*key).unwrap()),
            FakeCall::Resume(key) => format!("resume {}", name_of(*key).unwrap()),
        })
        .collect()
}

/// The chain db <- api <- web, each depending on the one before being ready.
async fn chain(of: impl Fn(&mut ServiceSpec)) -> (Arc<Fake>, Handle, usize) {
    let mut services = vec![service("db", &[]), service("api", &["db"]), service("web", &["api"])];
    services.iter_mut().for_each(of);
    let (host, handle) = tree(services).await;
    all_ready(&handle, &["web"]).await;
    let told = host.told().len();
    (host, handle, told)
}

#[tokio::test(start_paused = true)]
async fn a_fall_restarts_dependents_in_order_and_counts_for_itself() {
    let (host, handle, from) = chain(|_| {}).await;
    host.exit(host.alive("db")[0], Exit::Code(1));
    host.until(|told| told.len() == from + 5).await;
    assert_eq!(story(&host, from), ["stop web", "stop api", "start db", "start api", "start web"]);
    let restarts: Vec<u64> = handle.status().services.iter().map(|s| s.restarts).collect();
    assert_eq!(restarts, [1, 0, 0]);
    // The one in the middle crashes; its dependency is left alone.
    host.exit(host.alive("api")[0], Exit::Code(1));
    host.until(|told| told.len() == from + 8).await;
    assert_eq!(story(&host, from)[5..], ["stop web", "start api", "start web"]);
}

#[tokio::test(start_paused = true)]
async fn who_ignores_a_fall_runs_on() {
    let (host, handle, from) = chain(|spec| {
        if spec.name.as_str() == "api" {
            spec.on_dependency_restart = OnDependencyRestart::Ignore;
        }
    })
    .await;
    host.exit(host.alive("db")[0], Exit::Code(1));
    host.until(|told| told.len() == from + 1).await;
    handle.shutdown().await.unwrap();
    assert_eq!(story(&host, from), ["start db", "stop web", "stop api", "stop db"]);
}

#[tokio::test(start_paused = true)]
async fn a_fall_for_good_fails_what_depends_on_it_until_it_returns() {
    let (host, handle, from) = chain(|spec| {
        if spec.name.as_str() == "db" {
            spec.restart.policy = Policy::Never;
        }
    })
    .await;
    host.exit(host.alive("db")[0], Exit::Code(1));
    event(&handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Failed { .. })) && about(fact, "web"))
        .await;
    assert_eq!(story(&host, from), ["stop web", "stop api"]);
    let why =
        |text: &str| handle.tree_state(|b| b.entry(&InstanceId::sole(name(text))).unwrap().failed.clone());
    assert_eq!(why("api"), Some(FailureReason::Dependency { on: name("db") }));
    assert_eq!(why("web"), Some(FailureReason::Dependency { on: name("api") }));
    // A stop by hand is not a crash: it is refused, or forced, and the dependents stay up.
    assert!(handle.command(start("db")).await.unwrap().ok);
    host.until(|told| told.len() == from + 5).await;
    assert!(handle.command(stop("db")).await.unwrap().ok);
    assert_eq!(story(&host, from)[2..], ["start db", "start api", "start web", "stop db"]);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_left_serves_on() {
    let (host, handle, from) = chain(|spec| {
        if spec.name.as_str() == "db" {
            spec.replicas = 2;
        }
    })
    .await;
    host.exit(host.alive("db")[0], Exit::Code(1));
    host.until(|told| told.len() == from + 1).await;
    handle.shutdown().await.unwrap();
    assert_eq!(story(&host, from)[..2], ["start db", "stop web"]);
}

/// A one-for-all group of a task and a service.
async fn group_of(more: impl Fn(&mut Plan)) -> (Arc<Fake>, Handle) {
    let mut task = service("task", &[]);
    task.kind = Kind::Task;
    let mut plan = Plan::of("test", vec![task, service("one", &[]), service("two", &[])]);
    let group = GroupSpec { strategy: Strategy::OneForAll, ..GroupSpec::default() };
    plan.root.children = vec![Child::Group(name("g"))];
    let children = ["task", "one", "two"].map(|text| Child::Service(name(text))).to_vec();
    plan.groups.insert(name("g"), GroupSpec { children, ..group });
    more(&mut plan);
    let host = Arc::new(Fake::new());
    let handle = bring_up(&host, plan).await;
    all_ready(&handle, &["task", "one", "two"]).await;
    (host, handle)
}

fn change(plan: &mut Plan, text: &str, change: impl Fn(&mut ServiceSpec)) {
    let spec = plan.services.iter_mut().find(|spec| spec.name.as_str() == text).unwrap();
    change(Arc::make_mut(spec));
}

#[tokio::test(start_paused = true)]
async fn what_has_completed_runs_again_with_its_group_where_it_is_to() {
    for (rerun, want) in
        [(false, vec!["start one", "start two"]), (true, vec!["start task", "start one", "start two"])]
    {
        let (host, handle) = group_of(|plan| change(plan, "task", |spec| spec.rerun = rerun)).await;
        host.exit(host.alive("task")[0], Exit::SUCCESS);
        event(&handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Completed { .. }))).await;
        let from = host.told().len();
        host.exit(host.alive("one")[0], Exit::Code(1));
        host.until(|told| told.len() == from + 1 + want.len()).await;
        assert_eq!(story(&host, from)[0], "stop two");
        assert_eq!(story(&host, from)[1..], want);
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_goes_down_when_its_significant_members_have_ended() {
    let significant = |plan: &mut Plan, names: &[&str], auto_shutdown| {
        for text in names {
            change(plan, text, |spec| spec.significant = true);
        }
        plan.groups.get_mut(&name("g")).unwrap().auto_shutdown = auto_shutdown;
    };
    // With `any`, the first end is enough, whatever its policy says about success.
    let (host, handle) = group_of(|plan| significant(plan, &["task", "one"], AutoShutdown::Any)).await;
    let from = host.told().len();
    host.exit(host.alive("task")[0], Exit::SUCCESS);
    event(&handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Stopped { .. })) && about(fact, "one"))
        .await;
    assert_eq!(story(&host, from), ["stop two", "stop one"]);
    let why = handle.tree_state(|tree_state| {
        let entry = tree_state.entries().iter().find(|entry| entry.id.to_string() == "one").unwrap();
        regrow::decide::why::because(tree_state, entry, Duration::ZERO)
    });
    assert_eq!(why, "it was stopped: its group is done");
    assert!(handle.status().services.iter().all(|s| s.state != State::Failed));
    // With `all`, each member must end, and a crash with a restart is no end.
    let (host, handle) = group_of(|plan| significant(plan, &["task", "one"], AutoShutdown::All)).await;
    host.exit(host.alive("task")[0], Exit::SUCCESS);
    event(&handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Completed { .. }))).await;
    assert_eq!(host.alive("two").len(), 1);
    let from = host.told().len();
    host.exit(host.alive("one")[0], Exit::SUCCESS);
    event(&handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Stopped { .. })) && about(fact, "two"))
        .await;
    assert_eq!(story(&host, from), ["stop two"]);
    // After a start by hand the count begins anew.
    assert!(handle.command(start("two")).await.unwrap().ok);
    // At the root, the whole tree goes down.
    let (host, handle) = group_of(|plan| {
        significant(plan, &["task"], AutoShutdown::Any);
        plan.groups.get_mut(&name("g")).unwrap().significant = true;
        plan.root.auto_shutdown = AutoShutdown::All;
    })
    .await;
    host.exit(host.alive("task")[0], Exit::SUCCESS);
    handle.wait_down().await.unwrap();
    assert!(host.alive("one").is_empty() && host.alive("two").is_empty());
}

fn pause(text: &str) -> Command {
    Command::Pause { select: Selector::named([text]) }
}

fn resume(text: &str) -> Command {
    Command::Resume { select: Selector::named([text]) }
}

/// Asserts that nothing happens for this time.
async fn silent_for(handle: &Handle, time: Duration) {
    let mut events = handle.events();
    let next = tokio::time::timeout(time, events.next()).await;
    assert!(next.is_err(), "{next:?}");
}

async fn say(handle: &Handle, command: Command) -> (bool, String) {
    let answer = handle.command(command).await.unwrap();
    (answer.ok, answer.results[0].message.clone())
}

#[tokio::test(start_paused = true)]
async fn what_is_paused_stands_still_with_its_timers_and_goes_on() {
    let mut slow = service("slow", &[]);
    let deadline = Some(Duration::from_secs(20));
    slow.ready = Some(ReadySpec { target: ReadyTarget::After(Duration::from_secs(10)), deadline });
    let (host, handle) = tree(vec![slow, service("web", &["slow"])]).await;
    host.until(|told| told.len() == 1).await;
    let denied = "is waiting: only a running instance can be paused".to_owned();
    assert_eq!(say(&handle, pause("web")).await, (false, denied));
    silent_for(&handle, Duration::from_secs(4)).await;
    assert_eq!(say(&handle, pause("slow")).await, (true, "paused".to_owned()));
    assert_eq!(say(&handle, pause("slow")).await, (true, "already paused".to_owned()));
    assert_eq!(handle.status().services[0].state, State::Paused);
    silent_for(&handle, Duration::from_secs(1_000)).await;
    let before = handle.uptime();
    assert_eq!(say(&handle, resume("slow")).await, (true, "resumed".to_owned()));
    assert_eq!(say(&handle, resume("slow")).await, (true, "already running".to_owned()));
    all_ready(&handle, &["slow", "web"]).await;
    assert_eq!(handle.uptime() - before, Duration::from_secs(6));
    // A service that was ready before a pause is ready after it; a stop, a start and a restart all work
    // during one.
    assert!(say(&handle, pause("slow")).await.0);
    assert!(!handle.status().services[0].ready);
    assert_eq!(say(&handle, start("slow")).await, (true, "resumed".to_owned()));
    assert!(handle.status().services[0].ready);
    assert!(say(&handle, pause("slow")).await.0);
    assert_eq!(say(&handle, stop("slow")).await, (true, "stopped".to_owned()));
    let denied = "is stopped: only a paused instance can be resumed".to_owned();
    assert_eq!(say(&handle, resume("slow")).await, (false, denied));
    assert!(say(&handle, start("slow")).await.0);
    assert!(say(&handle, pause("slow")).await.0);
    assert!(say(&handle, Command::Restart { select: Selector::named(["slow"]) }).await.0);
    assert!(say(&handle, pause("slow")).await.0);
    handle.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_program_hears_every_event_by_a_callback() {
    let (host, handle) = tree(vec![service("web", &[])]).await;
    let heard: Arc<std::sync::Mutex<Vec<Hook>>> = Arc::default();
    let hooks = Arc::clone(&heard);
    let task = handle.on_event(move |event| hooks.lock().unwrap().extend(Hook::of(&event.fact)));
    all_ready(&handle, &["web"]).await;
    host.exit(host.alive("web")[0], Exit::Code(1));
    host.until(|told| told.len() == 2).await;
    handle.shutdown().await.unwrap();
    task.await.unwrap();
    assert_eq!(
        *heard.lock().unwrap(),
        [Hook::Ready, Hook::Exit, Hook::Retry, Hook::Ready, Hook::Exit, Hook::Stop]
    );
}

#[tokio::test(start_paused = true)]
async fn a_paused_one_resumes_before_its_stop_and_all_is_what_runs() {
    let mut done = service("done", &[]);
    done.kind = Kind::Task;
    let (host, handle) = tree(vec![service("db", &[]), service("web", &["db"]), done]).await;
    all_ready(&handle, &["db", "web", "done"]).await;
    host.exit(host.alive("done")[0], Exit::SUCCESS);
    event(&handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Completed { .. }))).await;
    let all = handle.command(Command::Pause { select: Selector::all() }).await.unwrap();
    let paused: Vec<&str> = all.results.iter().map(|r| r.name.as_str()).collect();
    assert!(all.ok, "{all:?}");
    assert_eq!(paused, ["db", "web"]);
    let from = host.told().len();
    let denied = handle.command(Command::Restart { select: Selector::named(["web"]) }).await.unwrap_err();
    assert_eq!(denied.reason, "web depends on db, which is paused by request");
    assert!(say(&handle, Command::Restart { select: Selector::named(["db"]) }).await.0);
    assert_eq!(story(&host, from)[..2], ["resume db", "stop db"]);
    assert!(say(&handle, pause("db")).await.0);
    let started = handle.command(start("web")).await.unwrap();
    assert!(started.ok, "{started:?}");
    assert_eq!(handle.status().services[0].state, State::Running);
}
