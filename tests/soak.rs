//! Large output and many tasks, and what the process that runs them still holds afterwards. These
//! tests have a process of their own and run one at a time, since they count what is open in it.

use std::sync::Mutex;
use std::time::Duration;

use regrow::model::TaskSpec;

#[path = "support/pool.rs"]
mod pool;

use pool::{run, shell, tree};

static ALONE: Mutex<()> = Mutex::new(());

/// A command prints 300 MB, which must not stay in memory.
#[test]
fn three_hundred_megabytes_of_output_are_no_memory() {
    let _alone = ALONE.lock().unwrap();
    run(async {
        let tree = tree(|rules| rules.output = 100 << 20).await;
        let memory = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
        };
        let before = memory();
        let flood = shell("head -c 300000000 /dev/zero; echo end >&2");
        let flood = tree.handle.tasks().run(flood, "").await.unwrap();
        assert!(flood.success());
        assert_eq!((flood.stdout.total, flood.stdout.bytes.len()), (300_000_000, 1 << 20));
        assert!(flood.stdout.is_cut() && flood.stderr.bytes == b"end\n");
        let grown = memory().saturating_sub(before);
        assert!(grown < 32 << 20, "{grown} bytes for 300 MB of output");
        let left = std::fs::read_dir(tree.dir().join("tasks")).unwrap().count();
        assert_eq!(left, 0, "what lies in files has no name there");
        tree.handle.shutdown().await.unwrap();
    });
}

/// What this process holds does not grow with the number of tasks, whatever their kind.
/// `REGROW_TEST_TASKS=100000` makes the test long.
#[test]
fn memory_and_descriptors_stay_flat_over_any_number_of_tasks() {
    let _alone = ALONE.lock().unwrap();
    let tasks: usize = std::env::var("REGROW_TEST_TASKS").ok().and_then(|n| n.parse().ok()).unwrap_or(3_000);
    run(async {
        let tree = tree(|rules| (rules.kept, rules.size.queue) = (200, 5_000)).await;
        let pool = tree.handle.tasks();
        let kind = |number: usize| match number % 10 {
            0 => shell("exit 3"),
            1 => shell("head -c 100000 /dev/zero"),
            2 => TaskSpec::new(["/no/such/program"]),
            3 => TaskSpec {
                cache: Some(Duration::from_secs(3600)),
                ..shell(&format!("echo {}", number % 500))
            },
            4 => shell("sleep 0.01 & exit 0"),
            5 => TaskSpec { timeout: Some(Duration::from_millis(20)), ..shell("exec sleep 10") },
            6 => shell("echo 0.5 >&$REGROW_PROGRESS_FD"),
            _ => TaskSpec::new(["true"]),
        };
        let held = || {
            let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
            (open, pages * 4096)
        };
        let mut after_a_third = None;
        let mut done = 0;
        while done < tasks {
            let part: Vec<TaskSpec> = (done..done + 500).map(kind).collect();
            let tickets = pool.begin(part, "").await.unwrap();
            for mut ticket in tickets {
                assert!(ticket.over().await.is_some());
            }
            done += 500;
            if done >= tasks / 3 && after_a_third.is_none() {
                after_a_third = Some(held());
            }
        }
        let ((before, less), (open, more)) = (after_a_third.unwrap(), held());
        println!(
            "{done} tasks: {before} descriptors and {less} bytes after a third, {open} and {more} at the end"
        );
        assert!(open <= before + 50, "{before} descriptors, then {open}");
        assert!(more < less + (8 << 20), "{less} bytes, then {more}");
        assert_eq!(pool.snapshot().await.unwrap().0.busy, 0);
        tree.handle.shutdown().await.unwrap();
    });
}
