//! The cost of running commands through the worker pool.
//!
//! `cargo bench --bench tasks` prints every figure, with the kernel's own cost from the same run.
//! Absolute figures vary between runs; the ratios vary less.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use regrow::actors::worker_pool::TaskRules;
use regrow::decide::pool::PoolSize;
use regrow::host::native::HostOptions;
use regrow::model::{Name, Plan, TaskSpec};
use regrow::runtime::blocking::BlockingSize;
use regrow::runtime::{Handle, Options};

const TASKS: usize = 2_000;
const ROUNDS: usize = 5;

fn main() {
    let (mut plain, mut pool, mut batch, mut xargs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let machine = Machine::started();
    // The measurements take turns, since the speed of the machine varies.
    for _ in 0..ROUNDS {
        plain.push(spawned(2));
        pool.push(pooled());
        batch.push(machine.batch());
        xargs.push(with_xargs());
    }
    let floor = median(plain);
    let rate = |time: Duration| TASKS as f64 / time.as_secs_f64();
    println!("/bin/true, spawned and waited for by 2 threads {:>20.0}/s", rate(floor));
    for (what, times) in [
        ("through a pool of 4, in process", pool),
        ("task submit --batch --wait, through the daemon", batch),
        ("xargs -P4", xargs),
    ] {
        let time = median(times);
        println!("{what:<48} {:>18.0}/s {:>6.0} %", rate(time), 100.0 * rate(time) / rate(floor));
    }
    cached_in_process();
    blocking();
    machine.cached();
    machine.down();
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn spawned(threads: usize) -> Duration {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..TASKS / threads {
                    Command::new("/bin/true").status().unwrap();
                }
            });
        }
    });
    begin.elapsed()
}

fn in_tree<T>(test: impl AsyncFnOnce(Handle) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let mut rules = TaskRules::usual(folder.path().to_owned());
        rules.size = PoolSize { min: 4, max: 4, queue: 10_000 };
        let host = HostOptions { subreaper: true, owns_process: false, die_with_us: true };
        let options = Options { host, tasks: Some(rules), ..Options::default() };
        let mut plan = Plan::of("bench", Vec::new());
        plan.inherited = Arc::new(std::env::vars_os().collect());
        plan.folder = "/".into();
        let tree = Handle::start(plan, options).await.unwrap();
        let done = test(tree.clone()).await;
        tree.shutdown().await.unwrap();
        done
    })
}

fn pooled() -> Duration {
    in_tree(async |tree| {
        // The first command makes the threads, so that they are not measured.
        tree.tasks().run(TaskSpec::new(["/bin/true"]), "").await.unwrap();
        let begin = Instant::now();
        let specs = vec![TaskSpec::new(["/bin/true"]); TASKS];
        let mut tickets = tree.tasks().begin(specs, "").await.unwrap();
        for ticket in &mut tickets {
            assert!(ticket.over().await.unwrap().success());
        }
        begin.elapsed()
    })
}

fn with_xargs() -> Duration {
    let begin = Instant::now();
    let lines = "x\n".repeat(TASKS);
    let mut child =
        Command::new("xargs").args(["-P4", "-n1", "/bin/true"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    begin.elapsed()
}

/// Functions that do nothing, from submission to value, in a pool and by tokio alone.
fn blocking() {
    const JOBS: usize = 300_000;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (mut ours, mut tokios) = (Vec::new(), Vec::new());
    runtime.block_on(async {
        let tree = Handle::start(Plan::of("bench", Vec::new()), Options::default()).await.unwrap();
        let size = BlockingSize { workers: 4, queue: JOBS };
        let pool = tree.pools().create_blocking(Name::new("bench").unwrap(), size).unwrap();
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            let jobs: Vec<_> = (0..JOBS).map(|_| pool.submit(|| ()).unwrap()).collect();
            for job in jobs {
                job.await.unwrap();
            }
            ours.push(begin.elapsed());
            let begin = Instant::now();
            let jobs: Vec<_> = (0..JOBS).map(|_| tokio::task::spawn_blocking(|| ())).collect();
            for job in jobs {
                job.await.unwrap();
            }
            tokios.push(begin.elapsed());
        }
        tree.shutdown().await.unwrap();
    });
    for (what, times) in
        [("a function through a blocking pool of 4", ours), ("tokio's spawn_blocking", tokios)]
    {
        println!("{what:<48} {:>18.0}/s", JOBS as f64 / median(times).as_secs_f64());
    }
}

fn cached_in_process() {
    in_tree(async |tree| {
        let spec = TaskSpec { cache: Some(Duration::from_secs(600)), ..TaskSpec::new(["/bin/echo", "x"]) };
        tree.tasks().run(spec.clone(), "").await.unwrap();
        let begin = Instant::now();
        const LOOKS: u32 = 100_000;
        for _ in 0..LOOKS {
            assert!(tree.tasks().remembered(&spec, "").await.unwrap().cached);
        }
        println!("a cached result, in process {:>43.2?}", begin.elapsed() / LOOKS);
    });
}

/// A daemon in a folder of its own.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn started() -> Machine {
        let machine = Machine { folder: tempfile::tempdir().unwrap() };
        std::fs::write(machine.path("daemon.toml"), "manifests = \"services\"\n").unwrap();
        std::fs::write(machine.path("batch"), "/bin/true\n".repeat(TASKS)).unwrap();
        let started = machine.regrow(&["daemon", "--config", "daemon.toml", "--detach"]).status().unwrap();
        assert!(started.success());
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn regrow(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_regrow"));
        command.args(args).current_dir(self.folder.path()).env("REGROW_STATE_DIR", self.path("state"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn batch(&self) -> Duration {
        let begin = Instant::now();
        let batch = self.regrow(&["task", "submit", "--batch", "batch", "--wait"]).status().unwrap();
        assert!(batch.success());
        begin.elapsed()
    }

    /// Sends all requests on one connection, as a program would.
    fn cached(&self) {
        let mut stream = UnixStream::connect(self.path("state/daemon/control.sock")).unwrap();
        let body = r#"{"command":{"argv":["/bin/echo","x"],"shell":false},"dir":"/","cache":600}"#;
        let request = format!(
            "POST /v1/run HTTP/1.1\r\nHost: regrow\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut buffer = [0; 8192];
        let mut ask = || {
            let begin = Instant::now();
            stream.write_all(request.as_bytes()).unwrap();
            let length = stream.read(&mut buffer).unwrap();
            let took = begin.elapsed();
            let answer = String::from_utf8_lossy(&buffer[..length]);
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""success":true"#), "{answer}");
            (answer.contains(r#""cached":true"#), took)
        };
        ask();
        let mut ask = || {
            let (cached, took) = ask();
            assert!(cached);
            took
        };
        println!("a cached result, over the socket {:>38.1?}", median((0..2_000).map(|_| ask()).collect()));
    }

    fn down(&self) {
        assert!(self.regrow(&["down"]).status().unwrap().success());
    }
}
