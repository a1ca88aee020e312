//! How fast the built program is, compared with what the kernel needs in the same run.
//!
//! `cargo bench --bench tree` prints every figure; `cargo bench --bench tree -- boot status` prints
//! only some. Absolute figures vary between runs; the ratios vary less.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::libc;

const ROUNDS: usize = 5;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()));
    let bench = Bench::new();
    for (name, run) in [
        ("boot-1000", Bench::boot_1000 as fn(&Bench)),
        ("boot-10", Bench::boot_10),
        ("chain-50", Bench::chain_50),
        ("return", Bench::kill_to_replacement),
        ("memory", Bench::memory),
        ("status", Bench::status),
        ("idle", Bench::idle),
    ] {
        if is_wanted(name) {
            run(&bench);
        }
    }
}

struct Bench {
    folder: tempfile::TempDir,
}

struct Tree {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { folder: tempfile::tempdir().unwrap() };
        let tiny = "long call(long n, long a, long b, long c) { long r; __asm__ volatile(\"syscall\" : \"=a\"(r) : \"a\"(n), \"D\"(a), \"S\"(b), \"d\"(c) : \"rcx\", \"r11\", \"memory\"); return r; }\n";
        bench.compile("tiny", &format!("{tiny}void _start(void) {{ for (;;) call(34, 0, 0, 0); }}"));
        // The program opens the FIFO in its folder and writes to it that it runs.
        let fifo = bench.path("fifo");
        bench.compile(
            "tell",
            &format!(
                "{tiny}void _start(void) {{ long f = call(2, (long)\"{}\", 1, 0); call(1, f, (long)\"x\", 1); call(3, f, 0, 0); for (;;) call(34, 0, 0, 0); }}",
                fifo.display()
            ),
        );
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Compiles a static program without a C library, whose cost is that of the kernel alone.
    fn compile(&self, name: &str, text: &str) {
        let source = self.path(&format!("{name}.c"));
        std::fs::write(&source, text).unwrap();
        let status = Command::new("cc")
            .args(["-O2", "-static", "-nostdlib", "-fno-stack-protector", "-o"])
            .arg(self.path(name))
            .arg(&source)
            .status()
            .unwrap();
        assert!(status.success(), "cc (x86-64) is needed");
    }

    fn manifest(&self, name: &str, count: usize, more: impl Fn(usize) -> String) -> PathBuf {
        let folder = self.path(name);
        std::fs::create_dir_all(&folder).unwrap();
        let text: String = (0..count)
            .map(|n| {
                format!(
                    "[service.s{n}]\ncommand = [{:?}]\n{}",
                    self.path("tiny").display().to_string(),
                    more(n)
                )
            })
            .collect();
        std::fs::write(folder.join("regrow.toml"), text).unwrap();
        folder
    }

    fn regrow(&self, folder: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_regrow"));
        command
            .args(args)
            .current_dir(folder)
            .env("REGROW_STATE_DIR", self.path("state"))
            .stdin(Stdio::null());
        command
    }

    /// Starts a tree and waits until all services are up; the time includes the start of the command.
    fn up(&self, folder: &Path) -> (Tree, Duration) {
        let begin = Instant::now();
        let mut child = self.regrow(folder, &["run"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::with_capacity(1 << 16, child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("all ") {
            line.clear();
            assert!(out.read_line(&mut line).unwrap() > 0, "it ended");
        }
        (Tree { child, out }, begin.elapsed())
    }

    /// The time to posix_spawn `count` processes until all run, and the time to kill and reap them.
    fn floor(&self, count: usize) -> (Duration, Duration) {
        let program = CString::new(self.path("tiny").display().to_string()).unwrap();
        let argv = [program.as_ptr().cast_mut(), std::ptr::null_mut()];
        let env: Vec<CString> =
            std::env::vars().map(|(n, v)| CString::new(format!("{n}={v}")).unwrap()).collect();
        let envp: Vec<_> = env.iter().map(|e| e.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect();
        let mut pids = Vec::with_capacity(count);
        let begin = Instant::now();
        for _ in 0..count {
            let mut pid = 0;
            // SAFETY: both arrays end with null, the strings outlive the call.
            let result = unsafe {
                libc::posix_spawn(
                    &raw mut pid,
                    program.as_ptr(),
                    std::ptr::null(),
                    std::ptr::null(),
                    argv.as_ptr(),
                    envp.as_ptr(),
                )
            };
            assert_eq!(result, 0);
            pids.push(pid);
        }
        let spawned = begin.elapsed();
        let begin = Instant::now();
        for pid in &pids {
            // SAFETY: our own unreaped children.
            unsafe { libc::kill(*pid, libc::SIGKILL) };
        }
        for pid in pids {
            // SAFETY: as above; a null status is allowed.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
        (spawned, begin.elapsed())
    }

    fn boot_1000(&self) {
        let folder = self.manifest("m1000", 1_000, |_| String::new());
        let (mut boots, mut stops, mut floors, mut kills) = (vec![], vec![], vec![], vec![]);
        let mut ratios = vec![];
        for _ in 0..ROUNDS {
            let (floor, kill) = self.floor(1_000);
            let (tree, boot) = self.up(&folder);
            stops.push(tree.down());
            ratios.push(boot.as_secs_f64() / floor.as_secs_f64());
            boots.push(boot);
            floors.push(floor);
            kills.push(kill);
        }
        ratios.sort_by(f64::total_cmp);
        println!(
            "boot of 1000: {:.0} ms, posix_spawn floor {:.0} ms: {:.2} x (wanted: at most 1.5)",
            ms(&mut boots),
            ms(&mut floors),
            ratios[ROUNDS / 2]
        );
        println!(
            "stop of 1000, command gone: {:.0} ms, floor of killing {:.0} ms (wanted: at most 150 ms)",
            ms(&mut stops),
            ms(&mut kills)
        );
    }

    fn boot_10(&self) {
        let folder = self.manifest("m10", 10, |_| String::new());
        let (mut boots, mut floors) = (vec![], vec![]);
        for _ in 0..ROUNDS * 4 {
            floors.push(self.floor(10).0);
            let (tree, boot) = self.up(&folder);
            tree.down();
            boots.push(boot);
        }
        println!(
            "boot of 10: {:.1} ms, floor {:.1} ms (wanted: at most 10 ms)",
            ms(&mut boots),
            ms(&mut floors)
        );
    }

    fn chain_50(&self) {
        let folder = self.manifest("chain", 50, |n| match n {
            0 => String::new(),
            n => format!("depends_on = [\"s{}\"]\n", n - 1),
        });
        let (mut boots, mut floors) = (vec![], vec![]);
        for _ in 0..ROUNDS {
            floors.push(self.floor(50).0);
            let (tree, boot) = self.up(&folder);
            tree.down();
            boots.push(boot);
        }
        let (boot, floor) = (ms(&mut boots), ms(&mut floors));
        println!(
            "chain of 50: {boot:.1} ms, floor of its spawns {floor:.1} ms: {:.1} ms on top (wanted: at most 50 ms)",
            boot - floor
        );
    }

    fn kill_to_replacement(&self) {
        let folder = self.path("return");
        std::fs::create_dir_all(&folder).unwrap();
        let manifest = format!(
            "[service.t]\ncommand = [{:?}]\nrestart = {{ policy = \"always\", backoff = {{ initial = \"0s\" }} }}\n[service.u]\ncommand = [{:?}]\n",
            self.path("tell").display().to_string(),
            self.path("tiny").display().to_string()
        );
        std::fs::write(folder.join("regrow.toml"), manifest).unwrap();
        nix::unistd::mkfifo(&self.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        // The FIFO is opened at both ends, so that a read never sees its end.
        let mut fifo = std::fs::OpenOptions::new().read(true).write(true).open(self.path("fifo")).unwrap();
        let (tree, _) = self.up(&folder);
        let mut byte = [0u8];
        fifo.read_exact(&mut byte).unwrap();
        let supervisor = tree.supervisor();
        let mut times = vec![];
        for _ in 0..200 {
            let pid = child_named(supervisor, "tell");
            let begin = Instant::now();
            // SAFETY: a living process of the tree that we made.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            fifo.read_exact(&mut byte).unwrap();
            times.push(begin.elapsed());
        }
        tree.down();
        let mut floors = vec![];
        for _ in 0..50 {
            let begin = Instant::now();
            let mut child = Command::new(self.path("tell")).spawn().unwrap();
            fifo.read_exact(&mut byte).unwrap();
            floors.push(begin.elapsed());
            child.kill().unwrap();
            child.wait().unwrap();
        }
        println!(
            "kill -9 to the replacement running: median {:.2} ms; a spawn alone until it runs: {:.2} ms (wanted: under 1 ms)",
            ms(&mut times),
            ms(&mut floors)
        );
    }

    fn memory(&self) {
        for count in [100usize, 1_000] {
            let folder = self.manifest(&format!("mem{count}"), count, |_| String::new());
            let (tree, _) = self.up(&folder);
            let kib = pss(tree.child.id()) + pss(tree.supervisor());
            tree.down();
            println!(
                "memory (PSS) of keeper and supervisor with {count}: {kib} KiB (wanted: at most {} KiB)",
                8 * 1024 + 10 * count
            );
        }
    }

    fn status(&self) {
        let folder = self.manifest("m100", 100, |_| String::new());
        let (tree, _) = self.up(&folder);
        let mut times = vec![];
        for _ in 0..50 {
            let begin = Instant::now();
            let output = self.regrow(&folder, &["status"]).output().unwrap();
            times.push(begin.elapsed());
            assert_eq!(output.stdout.iter().filter(|b| **b == b'\n').count(), 103);
        }
        tree.down();
        let mut versions = vec![];
        for _ in 0..50 {
            let begin = Instant::now();
            self.regrow(&folder, &["--version"]).output().unwrap();
            versions.push(begin.elapsed());
        }
        println!("status of 100, the whole command: {:.1} ms (wanted: under 5 ms)", ms(&mut times));
        println!("--version: {:.1} ms (wanted: under 2 ms)", ms(&mut versions));
    }

    fn idle(&self) {
        let folder = self.manifest("m100", 100, |_| String::new());
        let (tree, _) = self.up(&folder);
        let both = [tree.child.id(), tree.supervisor()];
        // The first two samples, which follow the start closely, are waited for.
        std::thread::sleep(Duration::from_secs(4));
        let before: f64 = both.map(cpu_ms).iter().sum();
        std::thread::sleep(Duration::from_secs(30));
        let used = both.map(cpu_ms).iter().sum::<f64>() - before;
        tree.down();
        println!("idle with 100 for 30 s: {used:.1} ms of CPU (wanted: under 10 ms)");
    }
}

impl Tree {
    /// The pid of the supervisor below the keeper.
    fn supervisor(&self) -> u32 {
        children(self.child.id()).first().copied().unwrap()
    }

    /// Sends Ctrl-C, and returns the time until the command has ended.
    fn down(mut self) -> Duration {
        let begin = Instant::now();
        // SAFETY: our own unreaped child.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGINT) };
        let mut rest = Vec::new();
        self.out.read_to_end(&mut rest).unwrap();
        self.child.wait().unwrap();
        begin.elapsed()
    }
}

/// The median, in milliseconds.
fn ms(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists =
        tasks.flatten().map(|t| std::fs::read_to_string(t.path().join("children")).unwrap_or_default());
    lists.flat_map(|l| l.split_whitespace().map(|w| w.parse().unwrap()).collect::<Vec<u32>>()).collect()
}

fn child_named(pid: u32, name: &str) -> i32 {
    loop {
        let found = children(pid).into_iter().find(|child| {
            let comm = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
            let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            comm.trim() == name && !state.contains(") Z")
        });
        if let Some(found) = found {
            return found.cast_signed();
        }
    }
}

fn pss(pid: u32) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let fields: HashMap<&str, &str> = text.lines().filter_map(|l| l.split_once(':')).collect();
    fields["Pss"].trim().trim_end_matches(" kB").parse().unwrap()
}

/// CPU time of all threads, in milliseconds.
fn cpu_ms(pid: u32) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let used = tasks.flatten().map(|t| {
        let text = std::fs::read_to_string(t.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0)
    });
    used.sum::<f64>() / 1e6
}
