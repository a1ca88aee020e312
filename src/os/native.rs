//! The host that makes processes itself: the one of `regrow run` and of programs that
//! embed the tree.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use super::cgroup::{self, Cgroups};
use super::spawn::{Placed, Spawner, raise_descriptor_limit};
use super::watch::{self, Line, MARK, Order, Watched};
use super::{Host, News, OutputSink, ProcessKey, SpawnOrder};

/// How a [`NativeHost`] treats the process it lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostOptions {
    /// Become child subreaper (prctl(2)), so that what a service leaves behind comes to us
    /// and is ended with it. It concerns every child of the process.
    pub subreaper: bool,
    /// Every child left to this process is ours to reap, because nothing else in it makes
    /// any. Right for `regrow`, wrong for a program with children of its own.
    pub owns_process: bool,
    /// The kernel sends SIGKILL to services when this process dies.
    pub die_with_us: bool,
}

impl Default for HostOptions {
    fn default() -> HostOptions {
        HostOptions { subreaper: true, owns_process: false, die_with_us: true }
    }
}

/// Makes processes of its own.
pub struct NativeHost {
    line: Line,
    spawns: Option<mpsc::Sender<SpawnOrder>>,
    /// How many of them no spawner has taken yet.
    waiting: Arc<AtomicUsize>,
    keys: AtomicU64,
    chance: AtomicU64,
}

impl NativeHost {
    /// Starts its threads: the watcher, and a few spawners.
    pub fn start(sink: Arc<dyn OutputSink>, options: HostOptions) -> io::Result<NativeHost> {
        if options.subreaper {
            nix::sys::prctl::set_child_subreaper(true)?;
        }
        let files = raise_descriptor_limit();
        cgroup::sweep();
        let mark = RandomState::new().build_hasher().finish();
        let cgroups = Cgroups::make(number_of(mark)).map(Arc::new);
        let line = watch::start(sink, options.owns_process, cgroups.clone())?;
        let (spawns, orders) = mpsc::channel::<SpawnOrder>();
        let orders = Arc::new(Mutex::new(orders));
        let waiting = Arc::new(AtomicUsize::new(0));
        // One more than cores: in vfork a spawner sleeps while its child executes.
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(3)) + 1;
        for _ in 0..threads {
            let mut spawner = Spawner::new(files, options.die_with_us)?;
            let (orders, waiting) = (Arc::clone(&orders), Arc::clone(&waiting));
            let (line, cgroups) = (line.clone(), cgroups.clone());
            let work = move || {
                while let Some(order) = next(&orders, &waiting, &line) {
                    let burst = waiting.load(Ordering::Relaxed) >= BURST;
                    let cgroups = cgroups.as_deref().filter(|_| !burst);
                    run(&mut spawner, &line, cgroups, order, mark);
                }
            };
            std::thread::Builder::new().name("regrow-spawn".into()).stack_size(256 * 1024).spawn(work)?;
        }
        Ok(NativeHost {
            line,
            spawns: Some(spawns),
            waiting,
            keys: AtomicU64::new(1),
            chance: AtomicU64::new(RandomState::new().build_hasher().finish()),
        })
    }

    /// A child of this process died, as SIGCHLD says: it may be one that was left to us.
    pub fn child_died(&self) {
        self.line.send(Order::ChildDied);
    }

    /// When the process behind this pidfd dies, everything is ended and this process exits.
    pub fn die_with(&self, process: OwnedFd) {
        self.line.send(Order::DieWith(process));
    }

    /// Ends what services have left to this process and nobody owns; `done` is called when
    /// there is nothing of the kind any more.
    pub fn end_strays(&self, done: impl FnOnce() + Send + 'static) {
        self.line.send(Order::EndStrays(Box::new(done)));
    }
}

impl Drop for NativeHost {
    fn drop(&mut self) {
        // The spawners end with their channel, and with them, by PR_SET_PDEATHSIG, whatever
        // still runs: an orderly shutdown came before this.
        self.spawns = None;
        self.line.send(Order::Quit);
    }
}

/// With so many starts waiting, those that come first are made without a cgroup, which costs an
/// eighth of the time that a thousand take. They are still known by their marks.
const BURST: usize = 16;

/// A number for a tree that its processes hand on without knowing: a soft limit on real-time
/// computing (RLIMIT_RTTIME, in microseconds) of over a hundred thousand years.
fn limit_mark(run: u64, key: u64) -> u64 {
    1 << 62 | u64::from(number_of(run)) << 32 | (key & 0xffff_ffff)
}

/// The part of a run's mark that goes into limits.
fn number_of(run: u64) -> u32 {
    u32::try_from(run & 0x3fff_ffff).unwrap_or_default()
}

/// The run that a limit is a mark of, if it is one.
pub(super) fn run_of(mark: u64) -> Option<u32> {
    // Unlimited has every bit set.
    (mark >> 62 == 1).then(|| number_of(mark >> 32))
}

/// The next order. In a burst of them the watcher is woken for many at once; but before a
/// wait, and before an order behind which no other comes, it is woken: making a process may
/// take long (a folder on a network), and what was made before is to be heard of.
fn next(
    orders: &Mutex<mpsc::Receiver<SpawnOrder>>,
    waiting: &AtomicUsize,
    line: &Line,
) -> Option<SpawnOrder> {
    if let Ok(orders) = orders.try_lock()
        && let Ok(order) = orders.try_recv()
    {
        if waiting.fetch_sub(1, Ordering::Relaxed) == 1 {
            line.wake();
        } else {
            line.wake_if_late();
        }
        return Some(order);
    }
    line.wake();
    let order = orders.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
    waiting.fetch_sub(1, Ordering::Relaxed);
    order
}

fn run(spawner: &mut Spawner, line: &Line, cgroups: Option<&Cgroups>, order: SpawnOrder, mark: u64) {
    let SpawnOrder { key, argv, dir, env, output, news } = order;
    let mut env = env.compose();
    let number = limit_mark(mark, key.0);
    let mark = format!("{mark:016x}.{key}");
    if let Ok(entry) = std::ffi::CString::new(format!("{MARK}={mark}")) {
        env.push(entry);
    }
    let cgroup = cgroups.and_then(|cgroups| cgroups.fresh(key.0));
    let made = spawner.spawn(&argv, &dir, &env, number, cgroup.as_ref().map(AsFd::as_fd));
    let placed = made.as_ref().map_or(Placed::WithUs, |made| made.placed);
    if let (Some(cgroups), Some(_)) = (cgroups, cgroup)
        && placed != Placed::InCgroup
    {
        cgroups.remove(key.0);
        if let Placed::Refused(errno) = placed {
            cgroups.refused(errno);
        }
    }
    match made {
        Ok(made) => {
            line.send_later(Order::Watch(Box::new(Watched {
                key,
                pid: made.pid,
                pidfd: made.pidfd,
                stdout: made.stdout,
                stderr: made.stderr,
                output,
                mark: mark.into_bytes(),
                limit_mark: number,
                in_cgroup: placed == Placed::InCgroup,
                news,
            })));
        }
        Err(failure) => news(News::SpawnFailed { key, failure }),
    }
}

impl Host for NativeHost {
    fn roll(&self) -> f64 {
        // SplitMix64: jitter needs spread, not secrecy.
        let mut z = self.chance.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // 53 bits are exact in an f64.
        (z >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next_key(&self) -> ProcessKey {
        ProcessKey(self.keys.fetch_add(1, Ordering::Relaxed))
    }

    fn spawn(&self, order: SpawnOrder) {
        let Some(spawns) = &self.spawns else {
            return;
        };
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // Only a panic of every spawner closes the channel; then the order is answered here.
        if let Err(mpsc::SendError(order)) = spawns.send(order) {
            let failure = crate::model::SpawnFailure {
                stage: crate::model::SpawnStage::Prepare,
                errno: 0,
                errno_name: String::new(),
                message: "the threads that make processes are gone".to_owned(),
            };
            (order.news)(News::SpawnFailed { key: order.key, failure });
        }
    }

    fn signal(&self, key: ProcessKey, signal: i32) {
        self.line.send(Order::Signal(key, signal));
    }

    fn pause(&self, key: ProcessKey) {
        self.line.send(Order::Pause(key));
    }

    fn resume(&self, key: ProcessKey) {
        self.line.send(Order::Resume(key));
    }

    fn kill(&self, key: ProcessKey) {
        self.line.send(Order::Kill(key));
    }
}
