//! Weaknesses that must not come back: each test names one of earlier task runners, and fails where
//! it is present.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use regrow::actors::worker_pool::{Stage, Ticket};
use regrow::decide::pool::PoolSize;
use regrow::model::task::{TaskEnd, TaskInput, TaskState};
use regrow::model::{DenialCode, TaskSpec};
use regrow::sys::ids;

#[path = "support/pool.rs"]
mod pool;

use pool::{run, shell, tree, tree_of};

async fn over(ticket: &mut Ticket) -> TaskEnd {
    let over = tokio::time::timeout(Duration::from_secs(60), ticket.over()).await;
    over.expect("it ends").expect("its pool is there").ended()
}

async fn runs(ticket: &mut Ticket) {
    ticket.stages.wait_for(|stage| matches!(stage, Stage::Running(_))).await.unwrap();
}

/// The weakness: every command waited a second for a reading of the CPU.
#[test]
fn no_command_waits_for_a_sample() {
    run(async {
        let tree = tree_of(Vec::new(), Duration::from_secs(3600), |_| {}).await;
        let ids = tree.handle.tasks().submit(vec![shell("true"); 20], "").await.unwrap();
        for id in ids {
            assert!(tree.handle.tasks().result(id, 0).await.unwrap().success());
        }
        assert!(tree.handle.samples().borrow().is_none(), "all of it before the first sample");
        tree.handle.shutdown().await.unwrap();
    });
}

/// The weakness: task ids collided.
#[test]
fn ids_are_unique_and_in_the_order_of_time_from_many_threads() {
    let threads: Vec<_> =
        (0..4).map(|_| std::thread::spawn(|| (0..25_000).map(|_| ids::task()).collect::<Vec<_>>())).collect();
    let mut all = HashSet::new();
    for thread in threads {
        let ids = thread.join().unwrap();
        assert!(ids.is_sorted(), "those of one thread follow each other");
        all.extend(ids);
    }
    assert_eq!(all.len(), 100_000);
}

/// The weakness: cache keys ignored the folder, the environment, the input and the user.
#[test]
fn a_result_is_shared_only_if_all_that_shapes_it_is_the_same() {
    run(async {
        let tree = tree(|_| {}).await;
        let tasks = tree.handle.tasks();
        let base = TaskSpec { cache: Some(Duration::from_secs(60)), ..shell("pwd; echo $A; cat") };
        let mut others = vec![base.clone(); 5];
        others[0].command = TaskSpec::shell("pwd; echo $A; cat; true").command;
        others[1].dir = Some("/".into());
        others[2].env = vec![("A".into(), "1".into())];
        others[3].input = TaskInput::Text("in".into());
        others[4].env_clear = true;
        assert!(!tasks.run(base.clone(), "me").await.unwrap().cached);
        for (number, other) in others.into_iter().enumerate() {
            assert!(!tasks.run(other, "me").await.unwrap().cached, "{number} is another command");
        }
        assert!(!tasks.run(base.clone(), "you").await.unwrap().cached, "another user's");
        assert!(tasks.run(base, "me").await.unwrap().cached);
        tree.handle.shutdown().await.unwrap();
    });
}

/// The weakness: nice was put before the command as text. A command at a low priority is still the
/// same command.
#[test]
fn a_low_priority_changes_no_word_of_the_command() {
    run(async {
        let tree = tree(|rules| rules.scale.cpu_high = -1.0).await;
        tree.handle
            .samples()
            .wait_for(|sample| sample.as_ref().is_some_and(|sample| sample.machine.cpu_percent.is_some()))
            .await
            .unwrap();
        let spec = TaskSpec::new([
            "sh",
            "-c",
            "tr '\\0' ' ' < /proc/$$/cmdline; cut -d' ' -f19 /proc/$$/stat; exit 0",
            "a  b",
        ]);
        let result = tree.handle.tasks().run(spec, "").await.unwrap();
        let text = String::from_utf8(result.stdout.bytes).unwrap();
        assert!(text.starts_with("sh -c tr ") && text.contains("a  b"), "{text}");
        assert!(text.ends_with("10\n"), "{text}");
        tree.handle.shutdown().await.unwrap();
    });
}

/// The weakness: a lock was held while a task was killed. A command that ignores SIGTERM holds up
/// nothing else during its grace.
#[test]
fn while_a_deaf_command_is_being_ended_everything_else_goes_on() {
    run(async {
        let tree = tree(|_| {}).await;
        let tasks = tree.handle.tasks();
        let deaf = TaskSpec {
            grace: Duration::from_secs(600),
            ..shell("trap '' TERM; echo up; sleep 1000 & wait; wait")
        };
        let mut ticket = tasks.begin(vec![deaf], "").await.unwrap().pop().unwrap();
        runs(&mut ticket).await;
        let running = ticket.stages.borrow().clone();
        let Stage::Running(running) = running else { panic!("{running:?}") };
        let mut follow = running.collector.follow();
        follow.wait_for(|bytes| *bytes > 0).await.unwrap();
        tasks.cancel(ticket.id, false).await.unwrap();
        for _ in 0..20 {
            assert!(tasks.run(shell("true"), "").await.unwrap().success());
            assert_eq!(tasks.status(ticket.id).await.unwrap().state, TaskState::Stopping);
        }
        tasks.cancel(ticket.id, true).await.unwrap();
        assert_eq!(over(&mut ticket).await, TaskEnd::Cancelled);
        tree.handle.shutdown().await.unwrap();
    });
}

/// The weakness: grandchildren survived.
#[test]
fn who_has_left_session_and_environment_ends_with_the_task() {
    run(async {
        let tree = tree(|_| {}).await;
        let mark = tree.dir().join("pid");
        let spec = TaskSpec {
            timeout: Some(Duration::from_millis(300)),
            grace: Duration::ZERO,
            dir: Some(tree.dir().to_owned()),
            ..shell("setsid env -i PATH=/bin:/usr/bin sh -c 'echo $$ > pid; exec sleep 1000' & sleep 1000")
        };
        let result = tree.handle.tasks().run(spec, "").await.unwrap();
        assert_eq!(result.ended, TaskEnd::TimedOut);
        let pid = std::fs::read_to_string(mark).unwrap();
        assert!(!std::path::Path::new("/proc").join(pid.trim()).exists(), "{pid} lives");
        tree.handle.shutdown().await.unwrap();
    });
}

/// The weakness: a pipe was not read. Both streams are read at once, however much comes.
#[test]
fn both_streams_are_read_while_the_command_runs() {
    run(async {
        let tree = tree(|_| {}).await;
        let spec =
            shell("head -c 3000000 /dev/zero >&2; head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2");
        let result = tree.handle.tasks().run(spec, "").await.unwrap();
        assert_eq!((result.stdout.total, result.stderr.total), (3_000_000, 6_000_000));
        tree.handle.shutdown().await.unwrap();
    });
}

/// The weakness: the status still said running after the end.
#[test]
fn whoever_has_the_result_sees_it_finished() {
    run(async {
        let tree = tree(|_| {}).await;
        let tasks = tree.handle.tasks();
        for _ in 0..50 {
            let id = tasks.submit(vec![shell("true")], "").await.unwrap()[0];
            tasks.result(id, 0).await.unwrap();
            let status = tasks.status(id).await.unwrap();
            assert_eq!((status.state, status.pid), (TaskState::Finished, None));
        }
        tree.handle.shutdown().await.unwrap();
    });
}

/// The weakness: submitting from a place where results arrive led to a deadlock, and pools filled
/// up with their own waiters.
#[test]
fn tasks_may_be_submitted_from_wherever_a_task_is_heard_of() {
    run(async {
        let tree = tree(|rules| rules.size = PoolSize { min: 1, max: 1, queue: 100 }).await;
        let tasks = tree.handle.tasks().clone();
        let inner = tasks.clone();
        let chain = tokio::spawn(async move {
            for _ in 0..5 {
                let mut ticket = inner.begin(vec![shell("true")], "").await.unwrap().pop().unwrap();
                ticket.over().await.unwrap();
            }
        });
        tokio::time::timeout(Duration::from_secs(60), chain).await.expect("no deadlock").unwrap();
        let blocking = tree.handle.pools().blocking();
        let (inner, runtime) = (tasks.clone(), tokio::runtime::Handle::current());
        let job = blocking.submit(move || runtime.block_on(inner.run(shell("echo in"), ""))).unwrap();
        assert_eq!(job.await.unwrap().unwrap().stdout.bytes, b"in\n");
        tree.handle.shutdown().await.unwrap();
    });
}

/// The weakness: results were never freed.
#[test]
fn finished_tasks_go_by_number_by_age_and_on_request() {
    run(async {
        let tree = tree(|rules| (rules.kept, rules.kept_for) = (3, Duration::from_millis(600))).await;
        let tasks = tree.handle.tasks();
        let ids = tasks.submit(vec![shell("true"); 10], "").await.unwrap();
        for id in &ids {
            // Some results are already forgotten by now.
            let _ = tasks.result(*id, 0).await;
        }
        assert_eq!(tasks.list().await.unwrap().len(), 3, "by number");
        let begin = Instant::now();
        while !tasks.list().await.unwrap().is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(30), "by age");
            tokio::task::yield_now().await;
        }
        tasks.run(shell("true"), "").await.unwrap();
        assert_eq!(tasks.cleanup().await.unwrap(), 1, "by hand");
        assert_eq!(tasks.status(ids[0]).await.unwrap_err().code, DenialCode::NotFound);
        tree.handle.shutdown().await.unwrap();
    });
}

/// The weakness: two autoscalers. A size that is set by hand stays, whatever the load of the
/// machine.
#[test]
fn only_the_scaler_scales_and_not_against_a_hand() {
    run(async {
        // The scaler would go down at each sample.
        let tree =
            tree(|rules| (rules.scale.cpu_high, rules.size) = (-1.0, PoolSize { min: 1, max: 9, queue: 9 }))
                .await;
        let tasks = tree.handle.tasks();
        tasks.scale(5).await.unwrap();
        let mut samples = tree.handle.samples();
        for _ in 0..4 {
            samples.changed().await.unwrap();
        }
        let (pool, _) = tasks.snapshot().await.unwrap();
        assert_eq!(pool.wanted, 5);
        tree.handle.shutdown().await.unwrap();
    });
}
