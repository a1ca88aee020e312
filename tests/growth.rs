//! A tree that services and groups are added to and removed from while it runs, on a fake host and
//! in paused time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use regrow::decide::tree_state::TreeState;
use regrow::host::fake::{FakeCall, FakeHost};
use regrow::model::{
    Addition, Child, Command, DenialCode, Event, Exit, Fact, GroupFact, GroupSpec, InstanceFact, Plan,
    Selector, State, Strategy,
};
use regrow::runtime::Handle;

#[path = "support/fake.rs"]
mod fake;
use fake::{name, service};

/// A tree with `db` under the root and a rest-for-one group `web` with `api` in it, all ready; and
/// the plan that it was made from.
async fn tree() -> (Arc<FakeHost>, Handle, Plan) {
    let mut plan = Plan::of("growth", vec![service("db", &[]), service("api", &["db"])]);
    plan.root.children = vec![Child::Service(name("db")), Child::Group(name("web"))];
    let web = GroupSpec {
        children: vec![Child::Service(name("api"))],
        strategy: Strategy::RestForOne,
        ..GroupSpec::default()
    };
    plan.groups = BTreeMap::from([(name("web"), web)]);
    let host = Arc::new(FakeHost::new());
    let handle = Handle::start_on(plan.clone(), Arc::clone(&host) as Arc<_>, None).await.unwrap();
    let answer = handle.command(Command::Start { select: Selector::all(), no_deps: false }).await.unwrap();
    assert!(answer.ok, "{answer:?}");
    (host, handle, plan)
}

fn words(answer: &regrow::model::Answer) -> Vec<String> {
    answer.results.iter().map(|result| format!("{}: {}", result.name, result.message)).collect()
}

fn states(tree_state: &TreeState) -> Vec<(String, State, Option<String>)> {
    let of = |e: &regrow::decide::tree_state::InstanceState| {
        (e.id.to_string(), e.state, e.group.as_ref().map(ToString::to_string))
    };
    tree_state.entries().iter().map(of).collect()
}

/// Asserts that the events alone fold to the tree state that the tree has.
fn the_fold_is_true(handle: &Handle, plan: Plan) {
    let mut folded = TreeState::new(Arc::new(plan), SystemTime::UNIX_EPOCH).unwrap();
    for event in handle.kept_events() {
        // The event passes through JSON, as for a reader of the socket.
        let text = serde_json::to_string(&*event).unwrap();
        folded.apply(&serde_json::from_str::<Event>(&text).unwrap());
    }
    assert_eq!(states(&folded), handle.tree_state(states));
    assert_eq!(folded.tree(None), handle.tree(None));
}

#[tokio::test(start_paused = true)]
async fn what_is_added_starts_in_order_and_is_supervised() {
    let (host, handle, plan) = tree().await;
    let mut addition = Addition::of(service("worker", &["queue", "db"]));
    addition.services.push(Arc::new(service("queue", &[])));
    addition.children.push(Child::Service(name("queue")));
    let answer = handle.add(addition).await.unwrap();
    assert!(answer.ok);
    assert_eq!(words(&answer), ["queue: ready after 0 us", "worker: ready after 0 us"]);
    let spawned: Vec<String> = host
        .told()
        .into_iter()
        .filter_map(|told| if let FakeCall::Spawn(_, argv) = told { Some(argv[0].clone()) } else { None })
        .collect();
    assert_eq!(spawned, ["db", "api", "queue", "worker"], "what is needed comes first");
    // It crashes and returns like any other, and the services that depend on it follow.
    let mut events = handle.events();
    host.exit(host.alive("queue")[0], Exit::Code(1));
    let mut back = Vec::new();
    while back.len() < 2 {
        if let regrow::actors::event_log::NextEvent::Event(event) = events.next().await
            && let Fact::Instance(InstanceFact::Ready { instance, .. }) = &event.fact
        {
            back.push(instance.to_string());
        }
    }
    assert_eq!(back, ["queue", "worker"]);
    the_fold_is_true(&handle, plan);
    handle.shutdown().await.unwrap();
    assert!(host.alive("worker").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_member_joins_its_group_behind_the_others() {
    let (host, handle, plan) = tree().await;
    assert!(handle.add(Addition::of(service("cron", &[])).under(name("web"))).await.unwrap().ok);
    let before = host.alive("cron")[0];
    let mut events = handle.events();
    host.exit(host.alive("api")[0], Exit::Code(1));
    loop {
        if let regrow::actors::event_log::NextEvent::Event(event) = events.next().await
            && let Fact::Group(GroupFact::Restarting { fallen, stopping, starting, .. }) = &event.fact
        {
            assert_eq!((fallen.as_str(), stopping.join(" ")), ("api", "cron".to_owned()));
            assert_eq!(starting.join(" "), "api cron", "rest-for-one: behind api");
            break;
        }
    }
    let both = Command::Start { select: Selector::named(["api", "cron"]), no_deps: false };
    assert!(handle.command(both).await.unwrap().ok);
    assert_ne!(host.alive("cron"), [before]);
    the_fold_is_true(&handle, plan);
}

#[tokio::test(start_paused = true)]
async fn a_group_is_added_and_goes_with_all_below_it() {
    let (host, handle, plan) = tree().await;
    let group = GroupSpec { strategy: Strategy::OneForAll, ..GroupSpec::default() };
    let mut addition =
        Addition::of_group(name("jobs"), group, vec![service("a", &["api"]), service("b", &[])])
            .under(name("web"));
    // The added group has a group of its own inside.
    addition.groups.get_mut(&name("jobs")).unwrap().children.push(Child::Group(name("inner")));
    let inner = GroupSpec { children: vec![Child::Service(name("c"))], ..GroupSpec::default() };
    addition.groups.insert(name("inner"), inner);
    let mut lazy = service("c", &[]);
    (lazy.autostart, lazy.replicas) = (false, 2);
    addition.services.push(Arc::new(lazy));
    let answer = handle.add(addition).await.unwrap();
    assert_eq!(words(&answer), ["b: ready after 0 us", "a: ready after 0 us", "c.1: added", "c.2: added"]);
    the_fold_is_true(&handle, plan.clone());
    let start = Command::Start { select: Selector::named(["c"]), no_deps: false };
    assert!(handle.command(start).await.unwrap().ok);
    assert_eq!(host.alive("c").len(), 2);

    let jobs = Selector { groups: vec!["jobs".to_owned()], ..Selector::default() };
    let answer = handle.remove(jobs.clone()).await.unwrap();
    assert!(answer.ok);
    let gone = ["a", "b", "c.1", "c.2", "inner", "jobs"].map(|text| format!("{text}: removed"));
    assert_eq!(words(&answer), gone);
    for program in ["a", "b", "c"] {
        assert!(host.alive(program).is_empty(), "{program} is down");
    }
    assert_eq!(handle.remove(jobs).await.unwrap_err().code, DenialCode::NotFound);
    assert_eq!(handle.status().services.len(), 2);
    the_fold_is_true(&handle, plan);
}

#[tokio::test(start_paused = true)]
async fn who_is_needed_stays_and_removal_frees_a_name() {
    let (host, handle, plan) = tree().await;
    let denied = handle.remove(Selector::named(["db"])).await.unwrap_err();
    assert_eq!((denied.code, denied.reason.as_str()), (DenialCode::HasDependents, "api depends on db"));
    let mut several = service("several", &[]);
    several.replicas = 2;
    assert!(handle.add(Addition::of(several)).await.unwrap().ok);
    let denied = handle.remove(Selector::named(["several.1"])).await.unwrap_err();
    assert_eq!(denied.code, DenialCode::Invalid, "{}", denied.reason);

    for round in 0..3 {
        let answer = handle.remove(Selector::named(["several"])).await.unwrap();
        assert_eq!(words(&answer), ["several.1: removed", "several.2: removed"], "{round}");
        let start = Command::Start { select: Selector::named(["several"]), no_deps: false };
        assert_eq!(handle.command(start).await.unwrap_err().code, DenialCode::NotFound);
        assert!(handle.output().source_of(&handle.plan().services[0].instances().next().unwrap()).is_some());
        let mut again = service("several", &["db"]);
        again.replicas = 2;
        assert!(handle.add(Addition::of(again)).await.unwrap().ok);
        assert_eq!(host.alive("several").len(), 2);
    }
    assert!(handle.remove(Selector::all()).await.unwrap().ok, "all together");
    assert!(handle.plan().services.is_empty() && handle.plan().groups.is_empty());
    the_fold_is_true(&handle, plan);
}

#[tokio::test(start_paused = true)]
async fn what_has_no_place_is_refused_with_its_reason() {
    let (_, handle, _) = tree().await;
    let refused = async |addition: Addition| {
        let denied = handle.add(addition).await.unwrap_err();
        (denied.code, denied.reason)
    };
    let invalid = |reason: &str| (DenialCode::Invalid, reason.to_owned());
    assert_eq!(refused(Addition::default()).await, invalid("there is nothing to add"));
    assert_eq!(
        refused(Addition::of(service("api", &[]))).await,
        (DenialCode::Exists, "api already exists in the tree".to_owned())
    );
    assert_eq!(
        refused(Addition::of(service("x", &["bd"]))).await,
        (DenialCode::NotFound, "x depends on bd, which is not in the tree".to_owned())
    );
    assert_eq!(
        refused(Addition::of(service("x", &[])).under(name("wbe"))).await,
        (DenialCode::NotFound, "there is no group \"wbe\"".to_owned())
    );
    let circle =
        Addition::of_group(name("g"), GroupSpec::default(), vec![service("x", &["y"]), service("y", &["x"])]);
    assert_eq!(refused(circle).await, invalid("dependency cycle: x -> y -> x"));
    let mut homeless = Addition::of(service("x", &[]));
    homeless.children.clear();
    assert_eq!(refused(homeless).await, invalid("x is a member of no group"));
    let mut twice = Addition::of_group(name("g"), GroupSpec::default(), vec![service("x", &[])]);
    twice.children.push(Child::Service(name("x")));
    assert_eq!(refused(twice).await, invalid("x is a member of more than one group"));
    let mut ring = Addition::of_group(name("g"), GroupSpec::default(), vec![]);
    ring.children.clear();
    ring.groups.get_mut(&name("g")).unwrap().children.push(Child::Group(name("g")));
    assert_eq!(refused(ring).await, invalid("the groups contain each other"));
    assert_eq!(handle.plan().services.len(), 2, "nothing of it was added");
}

#[tokio::test(start_paused = true)]
async fn a_removal_and_a_restart_at_once_are_both_answered_truly() {
    for removal_first in [true, false] {
        let (host, handle, plan) = tree().await;
        let (one, two) = (handle.clone(), handle.clone());
        let remove = async move { one.remove(Selector::named(["api"])).await };
        let start = Command::Restart { select: Selector::named(["api"]) };
        let restart = async move { two.command(start).await };
        let (removed, restarted) = if removal_first {
            tokio::join!(remove, restart)
        } else {
            let (restarted, removed) = tokio::join!(restart, remove);
            (removed, restarted)
        };
        let removed = removed.unwrap().ok;
        assert_eq!(removed, !removal_first, "the last one wins");
        assert_eq!(restarted.unwrap().ok, removal_first);
        assert_eq!(host.alive("api").len(), usize::from(removal_first));
        the_fold_is_true(&handle, plan);
    }
}
