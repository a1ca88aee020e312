//! How fast crashed services come back, compared with what the kernel needs in the same run, and
//! the cost of a decision.
//!
//! `cargo bench --bench supervision` prints every figure; names after `--` choose some.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use regrow::decide::group::GroupInput;
use regrow::decide::lifecycle::{InstanceInput, Machine};
use regrow::decide::message::{Address, Message};
use regrow::decide::simulation::{Simulation, SimulationOutput};
use regrow::host::fake::FakeHost;
use regrow::model::cause::StartCause;
use regrow::model::{Exit, Incarnation, InstanceId, Name, Plan, ServiceSpec};
use regrow::runtime::Handle;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let benches: [(&str, fn()); 6] = [
        ("step", step),
        ("boot-10000-decided", boot_decided),
        ("boot-10000-fake", boot_fake),
        ("storm", storm),
        ("backoff", backoff),
        ("one-for-all-500", one_for_all),
    ];
    for (name, bench) in benches {
        if wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str())) {
            bench();
        }
    }
}

/// One life of a machine, from its start to its restart, over and over.
fn step() {
    let spec = ServiceSpec::new(Name::new("web").unwrap(), ["web"]);
    let mut machine = Machine::new(InstanceId::sole(spec.name.clone()), None);
    let mut out = Vec::new();
    let rounds = 200_000u64;
    machine.step(&spec, Duration::ZERO, InstanceInput::Start(StartCause::Boot), &mut out);
    let begin = Instant::now();
    for round in 1..=rounds {
        let incarnation = Incarnation(round);
        let now = Duration::from_secs(round * 100);
        out.clear();
        machine.step(&spec, now, InstanceInput::Spawned { incarnation, pid: Some(1) }, &mut out);
        let exit = Exit::Code(1);
        let ended = InstanceInput::Exited { incarnation, exit, remains: false, roll: 0.5 };
        machine.step(&spec, now + Duration::from_secs(70), ended, &mut out);
        machine.step(&spec, now + Duration::from_secs(70), InstanceInput::Permit, &mut out);
        machine.step(&spec, now + Duration::from_secs(71), InstanceInput::Tick, &mut out);
    }
    let each = begin.elapsed().as_secs_f64() / (rounds as f64 * 4.0);
    println!("a step of the machine: {:.2} us (wanted: under 1 us)", each * 1e6);
}

/// Delivers every message of a boot to the machines alone.
fn boot_decided() {
    let mut times = Vec::new();
    for _ in 0..5 {
        let services = (0..10_000).map(|n| ServiceSpec::new(Name::new(&format!("s{n}")).unwrap(), ["x"]));
        let plan = Arc::new(Plan::of("idle", services.collect()));
        let begin = Instant::now();
        let mut world = Simulation::new(plan).unwrap();
        let boot = Message::Group(GroupInput::Start(StartCause::Boot));
        let mut todo = VecDeque::from([(Address::Group(None), boot)]);
        let mut spawned = 0;
        let mut out = Vec::new();
        while let Some((to, message)) = todo.pop_front() {
            world.deliver(Duration::ZERO, &to, message, &mut out);
            for output in out.drain(..) {
                match output {
                    SimulationOutput::Send(to, message) => todo.push_back((to, message)),
                    SimulationOutput::Host(..) => spawned += 1,
                    SimulationOutput::Fact(_)
                    | SimulationOutput::Answer(..)
                    | SimulationOutput::Again(_)
                    | SimulationOutput::Ended(_)
                    | SimulationOutput::Down => {}
                }
            }
        }
        times.push(begin.elapsed());
        assert_eq!(spawned, 10_000);
    }
    println!("10,000 services, their boot decided: {:.0} ms (wanted: under 100 ms)", ms(&mut times));
}

fn boot_fake() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut times = Vec::new();
    for _ in 0..5 {
        let services = (0..10_000).map(|n| ServiceSpec::new(Name::new(&format!("s{n}")).unwrap(), ["x"]));
        let plan = Plan::of("idle", services.collect());
        let host = Arc::new(FakeHost::new());
        times.push(runtime.block_on(async {
            let begin = Instant::now();
            let handle = Handle::start_on(plan, Arc::clone(&host) as Arc<_>, None).await.unwrap();
            host.until(|told| told.len() == 10_000).await;
            let took = begin.elapsed();
            handle.shutdown().await.unwrap();
            took
        }));
    }
    println!("the same with an actor each, on a fake host: {:.0} ms", ms(&mut times));
}

struct Tree {
    folder: tempfile::TempDir,
    child: Child,
    out: Option<BufReader<std::process::ChildStdout>>,
}

impl Tree {
    fn up(manifest: &str, until: &str) -> Tree {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("regrow.toml"), manifest).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_regrow"))
            .arg("run")
            .current_dir(folder.path())
            .env("REGROW_STATE_DIR", folder.path().join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::with_capacity(1 << 16, child.stdout.take().unwrap());
        let mut tree = Tree { folder, child, out: Some(out) };
        tree.wait_for(until);
        tree
    }

    fn wait_for(&mut self, text: &str) {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            let out = self.out.as_mut().unwrap();
            assert!(out.read_line(&mut line).unwrap() > 0, "it ended");
        }
    }

    fn regrow(&self, args: &[&str]) -> Vec<u8> {
        let output = Command::new(env!("CARGO_BIN_EXE_regrow"))
            .args(args)
            .current_dir(self.folder.path())
            .env("REGROW_STATE_DIR", self.folder.path().join("state"))
            .output()
            .unwrap();
        output.stdout
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.regrow(&["status", "--json"])).unwrap()
    }

    fn supervisor(&self) -> u32 {
        u32::try_from(self.status()["daemon"]["pid"].as_u64().unwrap()).unwrap()
    }

    /// Restarts of each service so far.
    fn restarts(&self) -> Vec<u64> {
        let status = self.status();
        status["services"].as_array().unwrap().iter().map(|s| s["restarts"].as_u64().unwrap()).collect()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        if let Some(out) = &mut self.out {
            let _ = std::io::copy(out, &mut std::io::sink());
        }
        let _ = self.child.wait();
    }
}

fn fifty(restart: &str) -> String {
    (0..50).map(|n| format!("[service.s{n}]\ncommand = \"/bin/true\"\nrestart = {restart}\n")).collect()
}

/// Reads the output while `measure` runs, so that the tree never waits for its reader.
fn drained(tree: &mut Tree, measure: impl FnOnce(&Tree)) {
    let out = tree.out.take();
    let reader = std::thread::spawn(move || {
        if let Some(mut out) = out {
            let _ = std::io::copy(&mut out, &mut std::io::sink());
        }
    });
    measure(tree);
    let pid = nix::unistd::Pid::from_raw(tree.child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    reader.join().unwrap();
}

/// Fifty services that exit at once and are restarted without delay.
fn storm() {
    let floor = spawns_and_waits(2);
    let mut tree =
        Tree::up(&fifty("{ policy = \"always\", backoff = { initial = \"0s\", max = \"0s\" } }"), "s49");
    drained(&mut tree, |tree| {
        std::thread::sleep(Duration::from_secs(1));
        let (before, begin) = (tree.restarts(), Instant::now());
        let mut status = Vec::new();
        while begin.elapsed() < Duration::from_secs(4) {
            let asked = Instant::now();
            tree.regrow(&["status"]);
            status.push(asked.elapsed());
            std::thread::sleep(Duration::from_millis(100));
        }
        let took = begin.elapsed();
        let after = tree.restarts();
        let each: Vec<u64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        let total: u64 = each.iter().sum();
        let (least, most) = (each.iter().min().unwrap(), each.iter().max().unwrap());
        println!(
            "a storm of 50: {:.0} restarts/s (wanted: 2,000; spawning and waiting on two threads alone: {floor:.0}/s); least and most of a service {least} and {most} (wanted: none under half); status meanwhile {:.1} ms (wanted: under 10 ms)",
            total as f64 / took.as_secs_f64(),
            ms(&mut status)
        );
    });
}

/// The same fifty services with the default backoff: after ten seconds they seldom restart.
fn backoff() {
    let mut tree = Tree::up(&fifty("\"always\""), "s49");
    let supervisor = tree.supervisor();
    drained(&mut tree, |_| {
        std::thread::sleep(Duration::from_secs(10));
        let before = cpu_ms(supervisor);
        std::thread::sleep(Duration::from_secs(10));
        let used = cpu_ms(supervisor) - before;
        println!(
            "the same with the default backoff, after ten seconds: {:.2} % CPU (wanted: under 1 %)",
            used / 100.0
        );
    });
}

/// A group of 500: one member is killed, and all are stopped and started.
fn one_for_all() {
    let names: Vec<String> = (0..500).map(|n| format!("\"s{n}\"")).collect();
    let services: String = (0..500)
        .map(|n| format!("[service.s{n}]\ncommand = \"sleep 100000\"\nrestart = {{ backoff = {{ initial = \"0s\" }} }}\n"))
        .collect();
    let manifest =
        format!("{services}[group.g]\nmembers = [{}]\nstrategy = \"one-for-all\"\n", names.join(", "));
    let mut floors = Vec::new();
    for _ in 0..3 {
        floors.push(kill_and_spawn(500));
    }
    let mut tree = Tree::up(&manifest, "all 500 are up");
    let mut times = Vec::new();
    for _ in 0..5 {
        let pid = tree.status()["services"][0]["pid"].as_i64().unwrap();
        let begin = Instant::now();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        // Each member reports that it is there again.
        for _ in 0..500 {
            tree.wait_for("running after");
        }
        times.push(begin.elapsed());
    }
    let (took, floor) = (ms(&mut times), ms(&mut floors));
    println!(
        "500 one-for-all, all dead and all back: {took:.0} ms, floor of killing and spawning {floor:.0} ms: {:.2} x (wanted: at most 2)",
        took / floor
    );
}

/// The number of spawns and waits of a tiny program in a second, on this many threads.
fn spawns_and_waits(threads: usize) -> f64 {
    let until = Instant::now() + Duration::from_secs(2);
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            std::thread::spawn(move || {
                let mut count = 0u32;
                while Instant::now() < until {
                    Command::new("/bin/true").stdin(Stdio::null()).status().unwrap();
                    count += 1;
                }
                count
            })
        })
        .collect();
    workers.into_iter().map(|worker| f64::from(worker.join().unwrap())).sum::<f64>() / 2.0
}

/// The time to kill and reap `count` processes, and to spawn as many until all run.
fn kill_and_spawn(count: usize) -> Duration {
    let program = which("sleep");
    let spawn = || Command::new(&program).arg("100000").stdin(Stdio::null()).spawn().unwrap();
    let mut children: Vec<Child> = (0..count).map(|_| spawn()).collect();
    let begin = Instant::now();
    children.iter_mut().for_each(|child| child.kill().unwrap());
    children.iter_mut().for_each(|child| assert!(!child.wait().unwrap().success()));
    let mut children: Vec<Child> = (0..count).map(|_| spawn()).collect();
    let took = begin.elapsed();
    children.iter_mut().for_each(|child| child.kill().unwrap());
    children.iter_mut().for_each(|child| assert!(!child.wait().unwrap().success()));
    took
}

fn which(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file()).unwrap()
}

fn cpu_ms(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks * 10.0
}

/// The median, in milliseconds.
fn ms(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}
