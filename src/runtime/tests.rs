//! What a tree consists of comes back when it breaks: each of these actors is broken here.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::actors::scaler::PoolSettings;
use crate::actors::system::SystemMsg;
use crate::actors::worker_pool::TaskRules;
use crate::host::fake::{FakeBehaviour, FakeCall, FakeHost};
use crate::model::event::InstanceFact;
use crate::model::spec::{Kind, Policy};
use crate::model::{
    Condition, Dependency, Exit, ServiceSpec, SpawnFailure, SpawnStage, State, TaskEnd, TaskSpec,
};

fn service(name: &str, kind: Kind, needs: &[(&str, Condition)]) -> ServiceSpec {
    let on = |(on, condition): &(&str, Condition)| Dependency {
        on: Name::new(on).unwrap(),
        condition: *condition,
        required: true,
    };
    let mut spec = ServiceSpec::new(Name::new(name).unwrap(), [name]);
    (spec.kind, spec.depends_on) = (kind, needs.iter().map(on).collect());
    spec.restart.policy = Policy::Never;
    spec
}

async fn tree(services: Vec<ServiceSpec>) -> (Arc<FakeHost>, Handle) {
    let host = Arc::new(FakeHost::new());
    let plan = Plan::of("test", services);
    let handle = Handle::start_on(plan, Arc::clone(&host) as Arc<_>, None).await.unwrap();
    (host, handle)
}

/// Breaks an actor, and waits until that is an event.
async fn breaks(handle: &Handle, name: &'static str) -> String {
    let mut events = handle.events();
    handle.tasks().system.cast(SystemMsg::Break(name)).unwrap();
    loop {
        if let NextEvent::Event(event) = events.next().await
            && let Fact::Tree(TreeFact::ActorBroke { actor, lost, .. }) = &event.fact
        {
            assert_eq!(actor, name);
            return lost.clone();
        }
    }
}

async fn is(handle: &Handle, name: &str, state: State) {
    let mut events = handle.events_from(0);
    let id = InstanceId::sole(Name::new(name).unwrap());
    while handle.tree_state(|tree_state| tree_state.entry(&id).map(|entry| entry.state)) != Some(state) {
        events.next().await;
    }
}

fn cached(text: &str) -> TaskSpec {
    TaskSpec { cache: Some(Duration::from_secs(600)), ..TaskSpec::new([text]) }
}

fn spawned(host: &FakeHost, program: &str) -> usize {
    let of = |call: &&FakeCall| matches!(call, FakeCall::Spawn(_, argv) if argv[0] == program);
    host.told().iter().filter(of).count()
}

/// Waits for the process of a task, and ends it with success.
async fn ends(host: &FakeHost, program: &str) {
    while host.alive(program).is_empty() {
        tokio::task::yield_now().await;
    }
    host.exit(host.alive(program)[0], Exit::SUCCESS);
}

#[tokio::test(start_paused = true)]
async fn who_waits_goes_on_when_the_dependency_graph_broke() {
    let needs = [("prepare", Condition::Completed)];
    let (host, handle) =
        tree(vec![service("api", Kind::Service, &needs), service("prepare", Kind::Task, &[])]).await;
    is(&handle, "prepare", State::Running).await;
    is(&handle, "api", State::Waiting).await;
    assert_eq!(breaks(&handle, "dependency graph").await, "nothing: every instance asks again");
    ends(&host, "prepare").await;
    is(&handle, "api", State::Running).await;
    handle.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_failed_by_a_dependency_returns_though_the_graph_broke() {
    let missing = SpawnFailure {
        stage: SpawnStage::Exec,
        errno: 2,
        errno_name: "ENOENT".to_owned(),
        message: "no program".to_owned(),
    };
    let host = Arc::new(FakeHost::new());
    host.let_behave("db", FakeBehaviour::Fails(missing));
    let services =
        vec![service("api", Kind::Service, &[("db", Condition::Ready)]), service("db", Kind::Service, &[])];
    let plan = Plan::of("test", services);
    let handle = Handle::start_on(plan, Arc::clone(&host) as Arc<_>, None).await.unwrap();
    is(&handle, "api", State::Failed).await;
    breaks(&handle, "dependency graph").await;
    host.let_behave("db", FakeBehaviour::Obeys);
    let start = Command::Start { select: Selector::named(["db"]), no_deps: false };
    assert!(handle.command(start).await.unwrap().ok);
    is(&handle, "api", State::Running).await;
    handle.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_broken_cache_returns_empty_and_nobody_waits_in_vain() {
    let (host, handle) = tree(Vec::new()).await;
    let tasks = handle.tasks();
    let mut tickets = tasks.begin(vec![cached("make"), cached("make")], "me").await.unwrap();
    breaks(&handle, "cache").await;
    // Who comes now joins, too.
    tickets.extend(tasks.begin(vec![cached("make")], "me").await.unwrap());
    ends(&host, "make").await;
    for ticket in &mut tickets {
        assert!(ticket.over().await.unwrap().success());
    }
    assert_eq!(spawned(&host, "make"), 1);
    assert!(tasks.run(cached("make"), "me").await.unwrap().cached);
    assert_eq!(breaks(&handle, "cache").await, "results that were not in the store");
    // It broke for the second time in a row, and takes a moment; what comes meanwhile runs all the same.
    let meanwhile = tokio::join!(tasks.run(cached("make"), "me"), ends(&host, "make")).0;
    assert!(!meanwhile.unwrap().cached);
    while tasks.cache().await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let again = tokio::join!(tasks.run(cached("make"), "me"), ends(&host, "make")).0;
    assert!(!again.unwrap().cached);
    assert_eq!(spawned(&host, "make"), 3);
    assert_eq!(tasks.cache().await.unwrap().entries, 1);
    handle.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_pool_gives_up_the_results_that_it_refuses_to_make() {
    let (host, handle) = tree(Vec::new()).await;
    let mut rules = TaskRules::usual(std::env::temp_dir());
    (rules.size.min, rules.size.max, rules.size.queue) = (1, 1, 0);
    let pool = handle.pools().create_commands(Name::new("small").unwrap(), rules).await.unwrap();
    let mut first = pool.begin(vec![cached("first")], "me").await.unwrap();
    for _ in 0..2 {
        let refused = pool.begin(vec![cached("second")], "me").await.unwrap_err();
        assert_eq!(refused.code, DenialCode::TooManyRequests);
    }
    ends(&host, "first").await;
    first[0].over().await.unwrap();
    // Nobody makes it, so the next one does.
    let second = tokio::join!(pool.run(cached("second"), "me"), ends(&host, "second")).0;
    assert!(!second.unwrap().cached);
    assert!(pool.run(cached("second"), "me").await.unwrap().cached);
    handle.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_broke_ends_its_commands_and_takes_others() {
    let (host, handle) = tree(Vec::new()).await;
    let tasks = handle.tasks();
    tasks.set_bounds(PoolSettings { min: Some(2), max: Some(3), auto: Some(false) }).await.unwrap();
    let mut lost = tasks.begin(vec![TaskSpec::new(["lost"])], "me").await.unwrap();
    host.until(|told| told.iter().any(|call| matches!(call, FakeCall::Spawn(..)))).await;
    assert_eq!(breaks(&handle, "worker pool").await, "its tasks");
    assert!(lost[0].over().await.is_none());
    host.until(|told| told.iter().any(|call| matches!(call, FakeCall::Kill(_)))).await;
    let next = tokio::join!(tasks.run(TaskSpec::new(["next"]), "me"), ends(&host, "next")).0;
    assert_eq!(next.unwrap().ended, TaskEnd::Exited);
    // What was set by hand still holds.
    let (pool, _) = tasks.snapshot().await.unwrap();
    assert_eq!((pool.min, pool.max), (2, 3));
    handle.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_scaler_that_broke_keeps_what_was_set_by_hand() {
    let (_, handle) = tree(Vec::new()).await;
    let tasks = handle.tasks();
    tasks.set_bounds(PoolSettings { min: Some(2), max: Some(3), auto: Some(false) }).await.unwrap();
    assert_eq!(breaks(&handle, "Scaler").await, "its last decision");
    let (scaler, _) = tasks.scaler().await.unwrap();
    assert!(!scaler.auto);
    assert!(tasks.scale(9).await.unwrap_err().reason.contains("2 to 3"));
    tasks.scale(2).await.unwrap();
    handle.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_monitor_that_broke_goes_on_to_measure() {
    let (_, handle) = tree(Vec::new()).await;
    let mut samples = handle.samples();
    samples.changed().await.unwrap();
    assert_eq!(breaks(&handle, "monitor").await, "one sample");
    samples.borrow_and_update();
    samples.changed().await.unwrap();
    handle.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_breaks_again_and_again_is_made_after_growing_pauses() {
    let (_, handle) = tree(Vec::new()).await;
    let mut took = Vec::new();
    for _ in 0..5 {
        breaks(&handle, "cache").await;
        let broke = handle.uptime();
        while handle.tasks().cache().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        took.push((handle.uptime() - broke).as_millis());
    }
    assert!(took[0] < 10, "{took:?}");
    assert!(took.windows(2).skip(1).all(|two| two[1] > two[0]), "{took:?}");
    handle.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_removed_while_it_is_away_does_not_come_back() {
    let (_, handle) = tree(Vec::new()).await;
    let builds = || Name::new("builds").unwrap();
    let rules = TaskRules::usual(std::env::temp_dir());
    let pool = handle.pools().create_commands(builds(), rules.clone()).await.unwrap();
    for _ in 0..2 {
        breaks(&handle, "worker pool of the pool builds").await;
    }
    // It broke twice in a row, so the next one takes a moment.
    pool.end();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(pool.snapshot().await.is_err());
    handle.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_removed_has_not_broken() {
    let (_, handle) = tree(Vec::new()).await;
    let name = Name::new("builds").unwrap();
    let rules = TaskRules::usual(std::env::temp_dir());
    handle.pools().create_commands(name, rules).await.unwrap();
    handle.pools().remove("builds", true).await.unwrap();
    breaks(&handle, "cache").await;
    let events = handle.kept_events();
    let broke = events.iter().filter(|event| matches!(event.fact, Fact::Tree(TreeFact::ActorBroke { .. })));
    assert_eq!(broke.count(), 1);
    assert!(!events.iter().any(|event| matches!(event.fact, Fact::Instance(InstanceFact::Failed { .. }))));
    handle.shutdown().await.unwrap();
}
