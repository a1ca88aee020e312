//! The tree over a host of fake processes, and over hosts that break or are stuck.

use std::sync::Arc;

use regrow::host::fake::FakeHost as Fake;
use regrow::host::{Host, ProcessKey, SpawnOrder};
use regrow::model::cause::FailureReason;
use regrow::model::{Command, Exit, Fact, InstanceFact, Plan, Selector, State};
use regrow::runtime::Handle;

use crate::fake::service;

#[path = "cases.rs"]
mod cases;

use cases::{all_ready, event, start, stop};

/// Brings a plan up on a host.
async fn bring_up(host: &Arc<Fake>, plan: Plan) -> Handle {
    Handle::start_on(plan, Arc::clone(host) as Arc<_>, None).await.unwrap()
}

/// A host that breaks the actor that asks it for a signal.
struct Breaks {
    fake: Fake,
    kills: std::sync::atomic::AtomicBool,
}

impl Host for Breaks {
    fn roll(&self) -> f64 {
        self.fake.roll()
    }
    fn next_key(&self) -> ProcessKey {
        self.fake.next_key()
    }
    fn spawn(&self, order: SpawnOrder) {
        self.fake.spawn(order);
    }
    fn signal(&self, _: ProcessKey, _: i32) {
        panic!("the test breaks this actor");
    }
    fn pause(&self, key: ProcessKey) {
        self.fake.pause(key);
    }
    fn resume(&self, key: ProcessKey) {
        self.fake.resume(key);
    }
    fn kill(&self, key: ProcessKey) {
        // Kills only take effect where `kills` is set, as a real tree takes its time to die.
        if self.kills.load(std::sync::atomic::Ordering::SeqCst) {
            self.fake.kill(key);
        }
    }
}

/// A host whose kills end nothing.
struct Stuck(Fake);

impl Host for Stuck {
    fn roll(&self) -> f64 {
        self.0.roll()
    }
    fn next_key(&self) -> ProcessKey {
        self.0.next_key()
    }
    fn spawn(&self, order: SpawnOrder) {
        self.0.spawn(order);
    }
    fn signal(&self, _: ProcessKey, _: i32) {}
    fn pause(&self, _: ProcessKey) {}
    fn resume(&self, _: ProcessKey) {}
    fn kill(&self, _: ProcessKey) {}
}

#[tokio::test(start_paused = true)]
async fn what_a_broken_actor_leaves_is_gone_before_another_is_made() {
    let host = Arc::new(Breaks { fake: Fake::new(), kills: false.into() });
    let plan = Plan::of("test", vec![service("web", &[])]);
    let handle = Handle::start_on(plan, Arc::clone(&host) as Arc<_>, None).await.unwrap();
    all_ready(&handle, &["web"]).await;
    let first = host.fake.alive("web")[0];
    let stopping = tokio::spawn({
        let handle = handle.clone();
        async move { handle.command(stop("web")).await }
    });
    event(&handle, |fact| matches!(fact, Fact::Instance(InstanceFact::Killed { .. }))).await;
    let answer = stopping.await.unwrap().unwrap();
    assert_eq!(answer.results[0].message, "a fault in regrow itself: the test breaks this actor");
    let starting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.command(start("web")).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(host.fake.alive("web"), [first], "no second one while the first lives");
    host.fake.exit(first, Exit::Signal { signal: 9, core_dumped: false });
    assert!(starting.await.unwrap().unwrap().ok);
    let second = host.fake.alive("web")[0];
    assert_ne!(first, second);
    // The service is not started again this time.
    host.kills.store(true, std::sync::atomic::Ordering::SeqCst);
    let answer = handle.command(stop("web")).await.unwrap();
    assert_eq!(answer.results[0].message, "a fault in regrow itself: the test breaks this actor");
    assert!(!answer.ok);
    event(&handle, |fact| {
        matches!(fact, Fact::Instance(InstanceFact::Failed { why: FailureReason::Internal { .. }, .. }))
    })
    .await;
    assert!(host.fake.alive("web").is_empty());
    assert_eq!(handle.status().services[0].state, State::Failed);
    assert!(handle.command(start("web")).await.unwrap().ok);
    assert_eq!(host.fake.alive("web").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_stuck_is_told_to_each_who_asks() {
    let host = Arc::new(Stuck(Fake::new()));
    let plan = Plan::of("test", vec![service("stuck", &[])]);
    let handle = Handle::start_on(plan, Arc::clone(&host) as Arc<_>, None).await.unwrap();
    all_ready(&handle, &["stuck"]).await;
    for _ in 0..2 {
        let answer = handle.command(stop("stuck")).await.unwrap();
        assert!(answer.results[0].message.contains("stuck in the kernel"), "{answer:?}");
    }
    let answer = handle.command(Command::Restart { select: Selector::all() }).await.unwrap();
    assert!(answer.results[0].message.contains("stuck in the kernel"), "{answer:?}");
    handle.begin_shutdown("test");
    handle.wait_down().await.unwrap();
}
