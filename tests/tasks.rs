//! One-shot commands through the worker pool of an embedded tree, with real processes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use regrow::actors::event_log::{EventReader, NextEvent};
use regrow::actors::worker_pool::{Running, Stage, TaskRules, Ticket};
use regrow::decide::pool::PoolSize;
use regrow::model::plan::PlanChange;
use regrow::model::spec::{ScaleOn, ScaleSpec};
use regrow::model::task::{ProgressReport, TaskEnd, TaskInput, TaskState};
use regrow::model::{Command, DenialCode, Exit, Fact, Name, ServiceSpec, TaskSpec, TreeFact};
use regrow::runtime::blocking::BlockingSize;

#[path = "support/pool.rs"]
mod pool;

use pool::{run, shell, tree, tree_of};

#[test]
fn a_result_has_all_that_is_known_of_a_run() {
    run(async {
        let tree = tree(|_| {}).await;
        let tasks = tree.handle.tasks();
        let mut spec = shell("cat; pwd; echo $WHO; echo no >&2; exit 3");
        (spec.dir, spec.input) = (Some("/".into()), TaskInput::Text("in\n".into()));
        spec.env = vec![("WHO".into(), "me".into())];
        let result = tasks.run(spec, "").await.unwrap();
        assert_eq!(result.stdout.bytes, b"in\n/\nme\n");
        assert_eq!(result.stderr.bytes, b"no\n");
        assert_eq!(
            (result.exit, result.ended, result.success()),
            (Some(Exit::Code(3)), TaskEnd::Exited, false)
        );
        let usage = result.usage.unwrap();
        assert!(usage.peak_memory_bytes > 100_000 && usage.minor_faults > 0, "{usage:?}");
        assert!(result.pid.is_some() && !result.cached && result.duration < Duration::from_secs(60));

        let killed = tasks.run(shell("kill -SEGV $$"), "").await.unwrap();
        assert!(matches!(killed.exit, Some(Exit::Signal { signal: 11, .. })), "{killed:?}");
        let json = serde_json::to_value(&killed).unwrap();
        assert_eq!((&json["exit_code"], &json["signal"]), (&serde_json::Value::Null, &11.into()));

        // A program that does not exist makes neither a crash nor a wait.
        let missing = tasks.run(TaskSpec::new(["/no/such/program"]), "").await.unwrap();
        assert_eq!((missing.ended, missing.exit, missing.pid), (TaskEnd::NotStarted, None, None));
        assert!(missing.error.unwrap().contains("there is no program"), "why");
        let mut nowhere = shell("true");
        nowhere.dir = Some("/no/such/folder".into());
        assert!(tasks.run(nowhere, "").await.unwrap().error.unwrap().contains("folder"));
        let mut unread = shell("cat");
        unread.input = TaskInput::File("/no/such/file".into());
        assert!(tasks.run(unread, "").await.unwrap().error.unwrap().contains("its input /no/such/file"));
        tree.handle.shutdown().await.unwrap();
    });
}

#[test]
fn bytes_stay_bytes() {
    run(async {
        let tree = tree(|_| {}).await;
        let tasks = tree.handle.tasks();
        let result = tasks.run(shell("printf '\\377\\376ok'"), "").await.unwrap();
        assert_eq!(result.stdout.bytes, b"\xff\xfeok");
        let json = serde_json::to_value(&result).unwrap();
        assert_eq!((&json["stdout"], &json["stdout_encoding"]), (&"//5vaw==".into(), &"base64".into()));
        let again: regrow::model::TaskResult = serde_json::from_value(json).unwrap();
        assert_eq!(again.stdout, result.stdout);
        tree.handle.shutdown().await.unwrap();
    });
}

#[test]
fn a_timeout_ends_the_whole_tree_and_force_what_is_deaf() {
    run(async {
        let tree = tree(|_| {}).await;
        let tasks = tree.handle.tasks();
        let mut spec = shell("trap '' TERM; sleep 4321 & while :; do sleep 0.01; done");
        (spec.timeout, spec.grace) = (Some(Duration::from_millis(300)), Duration::from_millis(200));
        let begun = Instant::now();
        let result = tasks.run(spec, "").await.unwrap();
        assert_eq!((result.ended, result.by_force), (TaskEnd::TimedOut, true));
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(result.error.unwrap().contains("not done within 300ms"));
        // A process that forks away is ended too; the result does not wait for what it left.
        let away = tasks.run(shell("setsid sleep 4321 & echo gone"), "").await.unwrap();
        assert!(away.success() && away.stdout.bytes == b"gone\n");
        assert!(away.error.unwrap().contains("left processes behind"));
        let left = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let line = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
            line.starts_with(b"sleep\x004321").then_some(())
        });
        assert_eq!(left.count(), 0);
        let denied = tasks.run(TaskSpec { timeout: Some(Duration::ZERO), ..shell("true") }, "").await;
        assert_eq!(denied.unwrap_err().code, DenialCode::Invalid);
        tree.handle.shutdown().await.unwrap();
    });
}

#[test]
fn ten_thousand_at_once_run_in_order_and_a_full_queue_says_so() {
    run(async {
        let tree =
            tree(|rules| (rules.size, rules.kept) = (PoolSize { min: 4, max: 4, queue: 2_000 }, 5_000)).await;
        let tasks = tree.handle.tasks();
        let specs = |count: usize| vec![TaskSpec::new(["/bin/true"]); count];
        let denied = tasks.submit(specs(10_000), "").await.unwrap_err();
        assert_eq!(denied.code, DenialCode::TooManyRequests);
        assert_eq!(denied.reason, "10000 tasks at once do not fit: 0 tasks wait, of at most 2000");
        let ids = tasks.submit(specs(2_000), "").await.unwrap();
        assert!(ids.is_sorted() && ids.len() == 2_000, "ids are in the order of time");
        let denied = tasks.submit(specs(2_000), "").await.unwrap_err();
        assert!(
            denied.reason.starts_with("2000 tasks at once do not fit: ")
                && denied.reason.ends_with(", of at most 2000"),
            "{denied}"
        );
        for id in &ids {
            assert!(tasks.result(*id, 0).await.unwrap().success());
        }
        let list = tasks.list().await.unwrap();
        assert!(list.len() == 2_000 && list.iter().all(|task| task.state == TaskState::Finished));
        assert_eq!(tasks.cleanup().await.unwrap(), 2_000);
        assert!(tasks.list().await.unwrap().is_empty());
        let gone = tasks.result(ids[0], 0).await.unwrap_err();
        assert_eq!(gone.code, DenialCode::NotFound);
        tree.handle.shutdown().await.unwrap();
    });
}

#[test]
fn what_waits_and_what_runs_is_cancelled_paused_and_goes_on() {
    run(async {
        let tree = tree(|rules| rules.size = PoolSize { min: 1, max: 1, queue: 10 }).await;
        let tasks = tree.handle.tasks();
        let ids =
            tasks.submit(vec![shell("echo up; exec sleep 1000"), shell("echo never")], "").await.unwrap();
        let mut stages = tasks.follow(ids[0]).await.unwrap();
        let collector = loop {
            if let Stage::Running(Running { collector, .. }) = &*stages.borrow_and_update() {
                break collector.clone();
            }
            stages.changed().await.unwrap();
        };
        collector.follow().wait_for(|bytes| *bytes > 0).await.unwrap();
        tasks.cancel(ids[1], false).await.unwrap();
        let never = tasks.result(ids[1], 100).await.unwrap();
        assert_eq!((never.ended, never.attempts), (TaskEnd::Cancelled, 0));
        tasks.pause(ids[0]).await.unwrap();
        let state = |tasks: Vec<regrow::model::TaskStatus>| tasks[0].state;
        assert_eq!(state(tasks.list().await.unwrap()), TaskState::Paused);
        assert_eq!(tasks.pause(ids[0]).await.unwrap_err().code, DenialCode::WrongState);
        tasks.resume(ids[0]).await.unwrap();
        tasks.pause(ids[0]).await.unwrap();
        // A paused task is ended in time, too.
        tasks.cancel(ids[0], false).await.unwrap();
        let ended = tasks.result(ids[0], 100).await.unwrap();
        assert_eq!(
            (ended.ended, ended.by_force, &*ended.stdout.bytes),
            (TaskEnd::Cancelled, false, &b"up\n"[..])
        );
        let over = tasks.cancel(ids[0], false).await.unwrap_err();
        assert!(over.reason.contains("has already finished"), "{over}");
        tree.handle.shutdown().await.unwrap();
    });
}

#[test]
fn a_command_runs_once_for_all_while_its_result_counts() {
    run(async {
        let tree = tree(|_| {}).await;
        let folder = tempfile::tempdir().unwrap();
        let runs = folder.path().join("runs");
        let text = format!("echo x >> {}; sleep 0.1; echo done", runs.display());
        let cached = |text: &str| TaskSpec { cache: Some(Duration::from_secs(60)), ..shell(text) };
        let ids = tree.handle.tasks().submit(vec![cached(&text); 1_000], "me").await.unwrap();
        let mut shared = 0;
        for id in ids {
            let result = tree.handle.tasks().result(id, 100).await.unwrap();
            assert_eq!((result.id, &*result.stdout.bytes), (id, &b"done\n"[..]));
            shared += usize::from(result.cached);
        }
        let count = || std::fs::read_to_string(&runs).unwrap().lines().count();
        assert_eq!((shared, count()), (999, 1));
        let tasks = tree.handle.tasks();
        assert!(tasks.run(cached(&text), "me").await.unwrap().cached);
        // Another folder, environment, input or requester makes it another command.
        let others = [
            TaskSpec { dir: Some("/".into()), ..cached(&text) },
            TaskSpec { env: vec![("A".into(), "1".into())], ..cached(&text) },
            TaskSpec { input: TaskInput::Text("1".into()), ..cached(&text) },
        ];
        for other in others {
            assert!(!tasks.run(other, "me").await.unwrap().cached);
        }
        assert!(!tasks.run(cached(&text), "you").await.unwrap().cached);
        assert_eq!(count(), 5);
        // The result of a failure is not kept.
        let fails = format!("echo x >> {}; exit 1", runs.display());
        for n in 6..8 {
            assert!(!tasks.run(cached(&fails), "me").await.unwrap().cached);
            assert_eq!(count(), n);
        }
        let counts = tasks.cache().await.unwrap();
        assert_eq!((counts.hits, counts.joined), (1, 999));
        assert_eq!(tasks.clear_cache().await.unwrap(), 5);
        assert!(!tasks.run(cached(&text), "me").await.unwrap().cached);
        tree.handle.shutdown().await.unwrap();
    });
}

#[test]
fn who_waits_for_one_that_is_cancelled_gets_a_run_of_its_own() {
    run(async {
        let tree = tree(|_| {}).await;
        let tasks = tree.handle.tasks();
        let spec = TaskSpec { cache: Some(Duration::from_secs(60)), ..shell("sleep 0.3; echo done") };
        let ids = tasks.submit(vec![spec; 3], "").await.unwrap();
        tasks.cancel(ids[0], true).await.unwrap();
        assert_eq!(tasks.result(ids[0], 9).await.unwrap().ended, TaskEnd::Cancelled);
        let (second, third) =
            (tasks.result(ids[1], 9).await.unwrap(), tasks.result(ids[2], 9).await.unwrap());
        assert!(second.success() && !second.cached && third.success() && third.cached);
        tree.handle.shutdown().await.unwrap();
    });
}

#[test]
fn failures_are_tried_again_and_a_draining_pool_runs_the_rest() {
    run(async {
        let tree = tree(|_| {}).await;
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark").display().to_string();
        let spec = TaskSpec {
            retries: 3,
            retry_delay: Duration::from_millis(1),
            ..shell(&format!("echo x >> {mark}; test $(wc -l < {mark}) -ge 3"))
        };
        let tasks = tree.handle.tasks();
        let result = tasks.run(spec, "").await.unwrap();
        assert_eq!((result.success(), result.attempts), (true, 3));
        let ids = tasks.submit(vec![shell("sleep 0.05"); 20], "").await.unwrap();
        tasks.drain().await.unwrap();
        assert!(tasks.result(ids[19], 0).await.unwrap().success());
        assert_eq!(tasks.submit(vec![shell("true")], "").await.unwrap_err().code, DenialCode::ShuttingDown);
        tree.handle.shutdown().await.unwrap();
    });
}

#[test]
fn the_end_of_the_tree_is_the_end_of_its_tasks() {
    run(async {
        let tree = tree(|_| {}).await;
        let ids =
            tree.handle.tasks().submit(vec![shell("trap '' TERM; while :; do sleep 0.01; done")], "").await;
        let mut stages = tree.handle.tasks().follow(ids.unwrap()[0]).await.unwrap();
        stages.wait_for(|stage| matches!(stage, Stage::Running(_))).await.unwrap();
        tree.handle.shutdown().await.unwrap();
        let over = stages.borrow().clone();
        assert!(matches!(over, Stage::Over(_)), "{over:?}");
    });
}

#[test]
fn while_there_is_much_to_do_new_commands_get_a_lower_priority() {
    run(async {
        // With this threshold, any use of the CPU counts as high load.
        let tree = tree(|rules| rules.scale.cpu_high = -1.0).await;
        let mut samples = tree.handle.samples();
        let is_known = |sample: &Option<Arc<regrow::model::sample::Sample>>| {
            sample.as_ref().is_some_and(|sample| sample.machine.cpu_percent.is_some())
        };
        samples.wait_for(is_known).await.unwrap();
        let ours = std::process::Command::new("nice").output().unwrap().stdout;
        let nice = tree.handle.tasks().run(TaskSpec::new(["nice"]), "").await.unwrap();
        let number = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().parse::<i32>().unwrap();
        assert_eq!(number(&nice.stdout.bytes), 10.max(number(&ours)));
        tree.handle.shutdown().await.unwrap();
    });
}

#[test]
fn a_program_has_its_own_named_pools_that_end_with_the_tree() {
    run(async {
        let tree = tree(|_| {}).await;
        let pools = tree.handle.pools();
        let name = |text: &str| Name::new(text).unwrap();
        let size = |workers: u32| PoolSize { min: workers, max: workers, queue: 10 };
        let rules = TaskRules { size: size(1), ..pools.rules().clone() };
        let builds = pools.create_commands(name("builds"), rules.clone()).await.unwrap();
        let again = pools.create_commands(name("builds"), rules.clone()).await.err().unwrap();
        assert_eq!((again.code, again.reason.as_str()), (DenialCode::Exists, "a pool builds already exists"));
        assert_eq!(
            pools.create_blocking(name("default"), BlockingSize::default()).err().unwrap().code,
            DenialCode::Exists
        );
        assert_eq!(pools.remove("default", true).await.unwrap_err().code, DenialCode::Invalid);
        assert_eq!(pools.remove("other", true).await.unwrap_err().code, DenialCode::NotFound);

        // The pool has workers, a queue and a cache of its own.
        let slow = builds.submit(vec![shell("sleep 1000"), shell("echo built")], "").await.unwrap();
        tree.handle.tasks().run(shell("true"), "").await.unwrap();
        assert_eq!(builds.status(slow[1]).await.unwrap().state, TaskState::Queued);
        assert_eq!(tree.handle.tasks().status(slow[1]).await.unwrap_err().code, DenialCode::NotFound);
        builds.cancel(slow[0], true).await.unwrap();
        assert_eq!(builds.result(slow[1], 100).await.unwrap().stdout.bytes, b"built\n");

        let sums = pools.create_blocking(name("sums"), BlockingSize { workers: 2, queue: 5 }).unwrap();
        assert_eq!(sums.submit(|| 1 + 1).unwrap().await, Ok(2));
        let listed = pools.list().await;
        let names: Vec<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["default", "default", "builds", "sums"]);
        assert!(pools.commands_named("builds").is_some() && pools.blocking_named("builds").is_none());

        // The pool is closed without waiting: running commands are ended.
        let ended = builds.submit(vec![shell("exec sleep 1000")], "").await.unwrap()[0];
        let follow = builds.follow(ended).await.unwrap();
        pools.remove("builds", false).await.unwrap();
        let Stage::Over(finished) = follow.borrow().clone() else { panic!("it goes on") };
        assert_eq!(finished.ended(), TaskEnd::Cancelled);
        assert_eq!(builds.list().await.unwrap_err().code, DenialCode::ShuttingDown);
        // The pool is drained: everything that was accepted runs.
        let more = pools.create_commands(name("builds"), rules).await.unwrap();
        let last = more.begin(vec![shell("echo last")], "").await.unwrap().pop().unwrap();
        pools.remove("builds", true).await.unwrap();
        let Stage::Over(finished) = last.stages.borrow().clone() else { panic!("it goes on") };
        assert!(finished.success());

        // When the tree ends, all pools end with it, and so does what they run.
        let rules = TaskRules { size: size(1), ..pools.rules().clone() };
        let left = pools.create_commands(name("left"), rules).await.unwrap();
        let mut ticket = left.begin(vec![shell("exec sleep 1000")], "").await.unwrap().pop().unwrap();
        tree.handle.shutdown().await.unwrap();
        assert!(ticket.over().await.is_some_and(|over| over.ended() == TaskEnd::Cancelled));
        assert_eq!(sums.submit(|| ()).err().unwrap().code, DenialCode::ShuttingDown);
    });
}

#[test]
fn only_a_task_itself_says_by_its_pipe_how_far_it_has_come() {
    run(async {
        let tree = tree(|rules| rules.size = PoolSize { min: 1, max: 1, queue: 10 }).await;
        let tasks = tree.handle.tasks();
        let said = async |ticket: &mut Ticket, wanted: f64| {
            let fits = |stage: &Stage| match stage {
                Stage::Running(running) => {
                    running.progress.as_ref().is_some_and(|progress| progress.progress == Some(wanted))
                }
                Stage::Waiting | Stage::Over(_) => false,
            };
            ticket.stages.wait_for(fits).await.unwrap().clone()
        };
        // Each attempt reads before it ends, so that all is in order; what it leaves unread, or behind, is
        // not taken for that of the next one. There is one FIFO for each stop: a process that opens a FIFO
        // again may meet the earlier writer, which has not closed it yet.
        let gates = ["first", "second", "third"].map(|name| tree.dir().join(name));
        for gate in &gates {
            nix::unistd::mkfifo(gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let open = |gate: usize| std::fs::write(&gates[gate], "go\n").unwrap();
        let script = "fd=$REGROW_PROGRESS_FD; echo 0.25 bytes=1000 message=on >&$fd; read go < first; \
                      echo nonsense >&$fd; echo 50% >&$fd; read go < second; \
                      (while :; do echo 0.99 >&$fd; done) & printf 0.7 >&$fd";
        let mut specs = vec![shell(script), shell("echo 0.1 >&$REGROW_PROGRESS_FD; read go < third")];
        specs[0].dir = Some(tree.dir().to_owned());
        specs[1].dir = Some(tree.dir().to_owned());
        let mut tickets = tasks.begin(specs, "").await.unwrap();
        let (mut second, mut first) = (tickets.pop().unwrap(), tickets.pop().unwrap());
        said(&mut first, 0.25).await;
        let status = tasks.status(first.id).await.unwrap().progress.unwrap();
        assert_eq!((status.bytes, status.message.as_deref()), (Some(1000), Some("on")));
        // Progress is reported by the API; a waiting task has none.
        let report = |progress: f64| ProgressReport { progress: Some(progress), ..ProgressReport::default() };
        tasks.report_progress(first.id, report(0.3)).await.unwrap();
        assert_eq!(tasks.status(first.id).await.unwrap().progress.unwrap().progress, Some(0.3));
        assert_eq!(tasks.report_progress(first.id, report(1.1)).await.unwrap_err().code, DenialCode::Invalid);
        let waits = tasks.report_progress(second.id, report(0.3)).await.unwrap_err();
        assert!(waits.reason.ends_with("is not running: it is queued"), "{}", waits.reason);
        open(0);
        said(&mut first, 0.5).await;
        open(1);
        first.over().await.unwrap();
        said(&mut second, 0.1).await;
        assert_eq!(tasks.status(second.id).await.unwrap().progress.unwrap().bytes, None);
        open(2);
        second.over().await.unwrap();
        assert_eq!(tasks.status(second.id).await.unwrap().progress.unwrap().progress, Some(0.1));
        let over = tasks.report_progress(second.id, report(0.3)).await.unwrap_err();
        assert!(over.reason.ends_with("has already finished"), "{}", over.reason);
        let open = tasks.run(shell("ls /proc/self/fd | wc -l; test -e /proc/self/fd/3"), "").await.unwrap();
        assert_eq!(open.stdout.bytes, b"5\n", "0 to 3, and the folder that ls reads");
        tree.handle.shutdown().await.unwrap();
    });
}

/// A cancellation that comes while the process is being made is not lost.
#[test]
fn what_is_cancelled_while_it_starts_ends_all_the_same() {
    run(async {
        let tree = tree(|_| {}).await;
        let tasks = tree.handle.tasks();
        for round in 0..60 {
            let patient = TaskSpec { grace: Duration::from_secs(3600), ..shell("exec sleep 1000") };
            let mut ticket = tasks.begin(vec![patient], "").await.unwrap().pop().unwrap();
            if round % 3 > 0 {
                ticket.stages.wait_for(|stage| matches!(stage, Stage::Running(_))).await.unwrap();
            }
            tasks.cancel(ticket.id, round % 2 == 0).await.unwrap();
            let over = tokio::time::timeout(Duration::from_secs(60), ticket.over()).await;
            assert_eq!(over.expect("not after its grace, nor never").unwrap().ended(), TaskEnd::Cancelled);
        }
        tree.handle.shutdown().await.unwrap();
    });
}

/// Every copy of `sleep` uses more than 1 MiB of memory and less than 100 MiB.
#[test]
fn copies_come_and_go_one_by_one_and_the_rest_stay_untouched() {
    run(async {
        let mut spec = ServiceSpec::new(Name::new("web").unwrap(), ["sleep", "1000"]);
        let bounds = |on| ScaleSpec { min: 1, max: 3, on };
        spec.scale = Some(bounds(ScaleOn::Memory(1 << 20)));
        let tree =
            tree_of(vec![spec.clone()], Duration::from_millis(100), |rules| rules.scale.cpu_high = 101.0)
                .await;
        let handle = &tree.handle;
        let mut events = handle.events_from(0);
        let scaled = async |events: &mut EventReader, want: &[(u32, u32)]| {
            let mut seen = Vec::new();
            let mut reasons = Vec::new();
            while seen.len() < want.len() {
                let NextEvent::Event(event) = events.next().await else { panic!("missed some") };
                match &event.fact {
                    Fact::Tree(TreeFact::ScaleDecided { from, to, reason, .. }) => {
                        reasons.push((*from, *to, reason.clone()));
                    }
                    Fact::Tree(TreeFact::Scaled { from, to, .. }) => seen.push((*from, *to)),
                    _ => {}
                }
            }
            assert_eq!(seen, want);
            let decided: Vec<(u32, u32)> = reasons.iter().map(|(from, to, _)| (*from, *to)).collect();
            assert_eq!(decided, want, "each is told with its reason before it is done: {reasons:?}");
            reasons.pop().unwrap().2
        };
        let reason = tokio::time::timeout(Duration::from_secs(60), scaled(&mut events, &[(1, 2), (2, 3)]));
        let reason = reason.await.expect("it grows");
        assert!(
            reason.starts_with("an instance uses ") && reason.ends_with(" of memory, above 1 MiB"),
            "{reason}"
        );
        let rows = handle.status().services;
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["web.1", "web.2", "web.3"]);
        let first = rows[0].pid;
        let stats = handle.stats().await.unwrap().scaler.services;
        assert_eq!((stats[0].replicas, stats[0].min, stats[0].max), (3, 1, 3));
        let mut relaxed = ServiceSpec::clone(handle.plan().service("web").unwrap());
        relaxed.scale = Some(bounds(ScaleOn::Memory(100 << 20)));
        let change = PlanChange { services: vec![Arc::new(relaxed)], ..PlanChange::default() };
        handle.command(Command::Reconfigure { change: Arc::new(change) }).await.unwrap();
        let reason = tokio::time::timeout(Duration::from_secs(60), scaled(&mut events, &[(3, 2), (2, 1)]));
        let reason = reason.await.expect("it shrinks");
        assert!(reason.ends_with("and with one fewer it would stay below 100 MiB"), "{reason}");
        let rows = handle.status().services;
        assert_eq!((rows.len(), rows[0].name.as_str(), rows[0].pid), (1, "web.1", first));
        handle.shutdown().await.unwrap();
    });
}
