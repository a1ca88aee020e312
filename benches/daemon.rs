//! The cost of a daemon's death and of a status request, with a thousand services.
//!
//! `cargo bench --bench daemon` prints every figure; `cargo bench --bench daemon -- death` prints
//! only some. Absolute figures vary between runs; the ratios vary less.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use regrow::decide::ledger::Ledger;
use regrow::decide::tree_state::TreeState;
use regrow::model::{InstanceId, Name, Plan, ServiceSpec};
use regrow::record::store::{Retention, Store};

const ROUNDS: usize = 7;
const SERVICES: usize = 1_000;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()));
    if is_wanted("death") || is_wanted("status") || is_wanted("memory") {
        machine();
    }
    if is_wanted("look-ups") {
        look_ups();
    }
    if is_wanted("registrations") {
        registrations();
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A daemon in a folder of its own.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn regrow(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_regrow"));
        command.args(args).current_dir(self.folder.path()).env("REGROW_STATE_DIR", self.path("state"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Makes one request on the socket.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.path("state/daemon/control.sock")).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: regrow\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(answer)
    }

    fn daemon(&self) -> u32 {
        let answer = self.get("/v1/status?service=s0").unwrap();
        let at = answer.find("\"pid\":").unwrap() + 6;
        answer[at..].split(',').next().unwrap().parse().unwrap()
    }

    fn running(&self) -> usize {
        self.get("/v1/status").map_or(0, |answer| answer.matches("\"state\":\"running\"").count())
    }
}

fn parent_of(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

fn pss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn machine() {
    let machine = Machine { folder: tempfile::tempdir().unwrap() };
    std::fs::create_dir(machine.path("services")).unwrap();
    std::fs::write(machine.path("daemon.toml"), "manifests = \"services\"\n").unwrap();
    let manifest: String =
        (0..SERVICES).map(|n| format!("[service.s{n}]\ncommand = [\"/bin/sleep\", \"100000\"]\n")).collect();
    std::fs::write(machine.path("services/many.toml"), manifest).unwrap();
    let begin = Instant::now();
    let mut child = machine.regrow(&["daemon", "--config", "daemon.toml"]).spawn().unwrap();
    while machine.running() < SERVICES {
        std::thread::sleep(Duration::from_millis(2));
    }
    println!("daemon: {SERVICES} services running {:>38.0?} after the start of the command", begin.elapsed());

    let deaths = (0..ROUNDS).map(|_| {
        let daemon = machine.daemon();
        let begin = Instant::now();
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(daemon).unwrap()),
            nix::sys::signal::Signal::SIGKILL,
        );
        // The daemon is ready when it answers, and with another pid.
        while machine.get("/v1/status?service=s0").is_none_or(|a| a.contains(&format!("\"pid\":{daemon},"))) {
            std::thread::sleep(Duration::from_micros(500));
        }
        let took = begin.elapsed();
        assert_eq!(machine.running(), SERVICES);
        took
    });
    println!("daemon killed -> ready again with {SERVICES} services {:>25.1?}", median(deaths.collect()));

    let ask = |path: &str| {
        let times = (0..50).map(|_| {
            let begin = Instant::now();
            machine.get(path).unwrap();
            begin.elapsed()
        });
        median(times.collect())
    };
    println!("status of one of {SERVICES} on the socket {:>34.2?}", ask("/v1/status?service=s7"));
    println!("status of all {SERVICES} on the socket {:>37.2?}", ask("/v1/status"));
    // A keeper is idle most of its life; after a second it releases what it does not need while idle.
    std::thread::sleep(Duration::from_secs(3));
    let daemon = machine.daemon();
    println!(
        "memory (PSS) of the keeper, of the daemon {:>21} KiB, {} KiB",
        pss(parent_of(daemon)),
        pss(daemon)
    );
    assert!(machine.regrow(&["down"]).status().unwrap().success());
    child.wait().unwrap();
}

fn services() -> Plan {
    let services = (0..SERVICES).map(|n| ServiceSpec::new(Name::new(&format!("s{n}")).unwrap(), ["x"]));
    Plan::of("bench", services.collect())
}

fn look_ups() {
    let plan = services();
    let ids: Vec<InstanceId> =
        plan.services.iter().flat_map(|spec| spec.instances().collect::<Vec<_>>()).collect();
    let tree_state = TreeState::new(Arc::new(plan), SystemTime::now()).unwrap();
    let times = (0..ROUNDS).map(|_| {
        let begin = Instant::now();
        let found = (0..10_000).filter(|n| tree_state.entry(&ids[n % ids.len()]).is_some()).count();
        assert_eq!(found, 10_000);
        begin.elapsed()
    });
    println!("10,000 look-ups by name in process {:>40.2?}", median(times.collect()));
}

fn registrations() {
    let base = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    let plan = services();
    let times = (0..ROUNDS).map(|_| {
        let folder = tempfile::tempdir_in(base).unwrap();
        let (store, _) = Store::open(&folder.path().join("regrow.db"), Retention::default()).unwrap();
        store.flush();
        let begin = Instant::now();
        store.register(&plan);
        store.flush();
        begin.elapsed()
    });
    println!("1,000 registrations into the store ({base}) {:>28.1?}", median(times.collect()));
}
