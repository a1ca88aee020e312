//! The output of all processes: the most recent part for late readers, and all of it for followers.
//!
//! Whole lines arrive on the host's thread. Each follower has a bounded queue. Lines that a slow
//! follower can't take are dropped for that follower alone, which is told how many.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::SystemTime;

use tokio::sync::Notify;

use crate::host::{OutputSink, SourceNames};
use crate::logs::{self, LogConfig, LogRange};
use crate::model::{InstanceId, SourceId, Stream};

/// How many bytes of each instance's output are kept in memory.
pub const KEPT: usize = 256 * 1024;
/// How many bytes of each stream's earlier output are loaded into the ring.
const RECALLED: u64 = 16 * 1024;
/// How many bytes of each stream are read from files at most.
const READ: u64 = 16 << 20;
/// How many bytes of each stream are read first, when not all of it is wanted.
const FIRST_READ: u64 = 64 * 1024;
/// The length in bytes from which on a line is delivered in parts.
const LONGEST_LINE: usize = 1 << 20;
/// How many bytes may wait in one follower's queue.
const QUEUE: usize = 4 * 1024 * 1024;

/// The whole lines of one read, all with the same time.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The source that printed the lines.
    pub source: SourceId,
    /// The instance that printed the lines.
    pub name: InstanceId,
    /// The number of the chunk among those of its source, from 1. Chunks that were read back from files
    /// have 0.
    pub number: u64,
    /// The stream that the lines were printed to.
    pub stream: Stream,
    /// When the lines were read from the pipe.
    pub at: SystemTime,
    /// The lines, each with its newline.
    pub bytes: Arc<[u8]>,
}

impl Chunk {
    /// The lines, without their newlines.
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        let text = self.bytes.strip_suffix(b"\n").unwrap_or(&self.bytes);
        text.split(|b| *b == b'\n')
    }
}

/// Receives each chunk on the host's thread. The console of `regrow run` is one.
pub trait ChunkSink: Send + Sync + 'static {
    /// Receives one chunk.
    fn chunk(&self, chunk: &Chunk);
}

/// The output of all instances of a tree.
#[derive(Default)]
pub struct OutputHub {
    index: RwLock<Index>,
    followers: Mutex<Vec<Weak<Queue>>>,
    console: Option<Arc<dyn ChunkSink>>,
    /// Receives the output of instances that inherit this process's own output.
    own: Option<Arc<dyn ChunkSink>>,
}

/// The sources by instance. A source number is never used twice, so that late output reaches no
/// other instance.
#[derive(Default)]
struct Index {
    names: HashMap<InstanceId, SourceId>,
    rings: HashMap<SourceId, Arc<Source>>,
    next: u32,
}

struct Source {
    name: InstanceId,
    /// Held while files are read, whose disk may not answer. New output does not wait for this lock.
    recalls: Mutex<()>,
    ring: Mutex<Ring>,
}

#[derive(Default)]
struct Ring {
    chunks: VecDeque<Chunk>,
    size: usize,
    /// How many chunks the source has printed.
    count: u64,
    /// Whether the output goes to this process's own output too.
    inherits: bool,
    /// Where the output is kept in files. `None`: nowhere.
    keep: Option<LogConfig>,
    earlier: Earlier,
}

/// Where the output is that was printed before this hub existed.
#[derive(Default, PartialEq, Eq)]
enum Earlier {
    /// There is none, or it is in the ring.
    #[default]
    Here,
    /// It is in files only.
    InFiles,
}

impl Source {
    /// Loads the last earlier output into the ring. May block.
    fn recall(&self, source: SourceId) {
        let _one = lock(&self.recalls);
        let keep = {
            let mut ring = lock(&self.ring);
            if std::mem::take(&mut ring.earlier) == Earlier::Here {
                return;
            }
            ring.keep.clone()
        };
        let Some(keep) = keep else {
            return;
        };
        let mut past: Vec<Chunk> = Vec::new();
        for stream in [Stream::Out, Stream::Err] {
            // When the files can't be read, there is nothing to load.
            let (whole, _) = whole_lines(
                logs::last_of(&keep, stream, RECALLED, LogRange::Plain).unwrap_or_default().parts,
            );
            past.extend(whole.into_iter().map(|part| old_chunk(source, &self.name, stream, part)));
        }
        past.sort_by_key(|chunk| chunk.at);
        let mut ring = lock(&self.ring);
        for chunk in past.into_iter().rev() {
            ring.size += chunk.bytes.len();
            ring.chunks.push_front(chunk);
        }
    }
}

fn old_chunk(source: SourceId, name: &InstanceId, stream: Stream, part: logs::Part) -> Chunk {
    let logs::Part { at, bytes } = part;
    Chunk { source, name: name.clone(), number: 0, stream, at, bytes: Arc::from(bytes) }
}

/// Joins parts into whole lines, each group with the time of its first byte. The unfinished last
/// line is returned apart.
fn whole_lines(parts: Vec<logs::Part>) -> (Vec<logs::Part>, Option<logs::Part>) {
    let (mut whole, mut begun): (Vec<logs::Part>, Option<logs::Part>) = (Vec::new(), None);
    for mut part in parts {
        // The unfinished line so far contains no newline.
        let end = part.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let rest = part.bytes.split_off(end);
        let came = part.at;
        if end > 0 {
            whole.push(match begun.take() {
                Some(mut begun) => {
                    begun.bytes.append(&mut part.bytes);
                    begun
                }
                None => part,
            });
        }
        if rest.is_empty() {
            continue;
        }
        let line = begun.get_or_insert_with(|| logs::Part { at: came, bytes: Vec::new() });
        line.bytes.extend_from_slice(&rest);
        // An overlong line is delivered in parts, as followers get it.
        if line.bytes.len() >= LONGEST_LINE {
            whole.extend(begun.take());
        }
    }
    (whole, begun)
}

impl OutputHub {
    /// A hub without any source yet.
    pub fn new(console: Option<Arc<dyn ChunkSink>>) -> OutputHub {
        OutputHub { console, ..OutputHub::default() }
    }

    /// Sends the output of services that ask for it to this sink too.
    pub fn with_own(self, own: Option<Arc<dyn ChunkSink>>) -> OutputHub {
        OutputHub { own, ..self }
    }

    /// The source of an instance, if it has one already.
    pub fn source_of(&self, instance: &InstanceId) -> Option<SourceId> {
        self.index().names.get(instance).copied()
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chunks of a source that are kept, oldest first. The first call reads files.
    pub fn kept(&self, source: SourceId) -> Vec<Chunk> {
        self.begins(source);
        self.in_ring(source)
    }

    fn in_ring(&self, source: SourceId) -> Vec<Chunk> {
        let of = self.index().rings.get(&source).cloned();
        of.map(|of| lock(&of.ring).chunks.iter().cloned().collect()).unwrap_or_default()
    }

    /// The last lines of a source from its files, oldest first: at least `lines` of each stream, as far
    /// as 16 MiB reach. The flag says whether these are as many as were asked for, or all that exist.
    /// `None` when the source keeps no files. Reads files.
    pub fn last_in_files(&self, source: SourceId, lines: usize) -> Option<(Vec<Chunk>, bool)> {
        let of = self.index().rings.get(&source).cloned()?;
        let keep = lock(&of.ring).keep.clone()?;
        let (mut chunks, mut all) = (Vec::new(), true);
        for stream in [Stream::Out, Stream::Err] {
            let (mut most, mut reach) = (FIRST_READ, LogRange::Plain);
            let parts = loop {
                let logs::Tail { parts, complete } =
                    logs::last_of(&keep, stream, most, reach).unwrap_or_default();
                let (whole, rest) = whole_lines(parts);
                let parts: Vec<logs::Part> = whole.into_iter().chain(rest).collect();
                let ends = |part: &logs::Part| part.bytes.iter().filter(|byte| **byte == b'\n').count();
                // The first line may be incomplete.
                let enough = || parts.iter().map(ends).sum::<usize>() > lines;
                if complete || enough() || (most >= READ && reach == LogRange::All) {
                    all &= complete || enough();
                    break parts;
                }
                // A compressed file is decompressed as a whole on each read, so it is read only once.
                let bytes: u64 = parts.iter().map(|part| part.bytes.len() as u64).sum();
                (most, reach) = match reach {
                    LogRange::Plain if bytes >= most / 2 && most < READ => ((most * 8).min(READ), reach),
                    LogRange::Plain | LogRange::All => (READ, LogRange::All),
                };
            };
            chunks.extend(parts.into_iter().map(|part| old_chunk(source, &of.name, stream, part)));
        }
        Some((chunks, all))
    }

    /// The log file of a source's standard output. `None` when its output is not kept in files.
    pub fn file_of(&self, source: SourceId) -> Option<PathBuf> {
        let of = self.index().rings.get(&source).cloned()?;
        let keep = lock(&of.ring).keep.clone()?;
        Some(keep.file(Stream::Out))
    }

    /// The last lines of a source as text, oldest first.
    pub fn last_lines(&self, source: SourceId, count: usize) -> Vec<String> {
        let kept = self.kept(source);
        let mut lines: Vec<String> = kept
            .iter()
            .rev()
            .flat_map(|chunk| chunk.lines().rev())
            .take(count)
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect();
        lines.reverse();
        lines
    }

    /// Follows these sources, or with `None` all sources, later ones too. Returns the chunks that are
    /// kept, each source's oldest first, and the follower. No chunk is lost between the two or
    /// contained in both.
    pub fn follow(&self, sources: Option<HashSet<SourceId>>) -> (Vec<Chunk>, Follower) {
        let mut order: Vec<SourceId> = match &sources {
            Some(sources) => sources.iter().copied().collect(),
            None => self.index().rings.keys().copied().collect(),
        };
        order.sort_unstable();
        order.iter().for_each(|source| self.begins(*source));
        // The lock is held while looking back: new output waits before it reaches the followers.
        let mut followers = lock(&self.followers);
        let past: Vec<Chunk> = order.into_iter().flat_map(|source| self.in_ring(source)).collect();
        // A chunk that waits for the lock is in the ring already.
        let told = past.iter().map(|chunk| (chunk.source, chunk.number)).collect();
        let queue = Arc::new(Queue { sources, told, state: Mutex::default(), filled: Notify::new() });
        followers.retain(|follower| follower.strong_count() > 0);
        followers.push(Arc::downgrade(&queue));
        (past, Follower { queue })
    }
}

impl SourceNames for OutputHub {
    fn source(&self, instance: &InstanceId) -> SourceId {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = index.names.get(instance) {
            return *source;
        }
        let source = SourceId(index.next);
        index.next += 1;
        index.names.insert(instance.clone(), source);
        index.rings.insert(
            source,
            Arc::new(Source { name: instance.clone(), recalls: Mutex::default(), ring: Mutex::default() }),
        );
        source
    }

    fn kept_in(&self, source: SourceId, keep: LogConfig) {
        self.moves(source, &keep);
    }

    fn inherits(&self, source: SourceId, inherits: bool) {
        if let Some(of) = self.index().rings.get(&source) {
            lock(&of.ring).inherits = inherits;
        }
    }

    fn forget(&self, instance: &InstanceId) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = index.names.remove(instance) {
            index.rings.remove(&source);
        }
    }
}

impl OutputSink for OutputHub {
    fn begins(&self, source: SourceId) {
        let of = self.index().rings.get(&source).cloned();
        if let Some(of) = of {
            of.recall(source);
        }
    }

    fn moves(&self, source: SourceId, keep: &LogConfig) {
        if let Some(of) = self.index().rings.get(&source) {
            let mut ring = lock(&of.ring);
            if ring.keep.replace(keep.clone()).is_none() {
                ring.earlier = Earlier::InFiles;
            }
        }
    }

    fn lines(&self, source: SourceId, stream: Stream, lines: &[u8]) {
        let Some(of) = self.index().rings.get(&source).cloned() else {
            return;
        };
        let Source { name, ring, .. } = &*of;
        let (at, bytes) = (SystemTime::now(), Arc::from(lines));
        let mut chunk = Chunk { source, name: name.clone(), number: 0, stream, at, bytes };
        let inherits = {
            let mut ring = lock(ring);
            ring.count += 1;
            chunk.number = ring.count;
            ring.size += lines.len();
            ring.chunks.push_back(chunk.clone());
            while ring.size > KEPT && ring.chunks.len() > 1 {
                let dropped = ring.chunks.pop_front().map_or(0, |c| c.bytes.len());
                ring.size -= dropped;
            }
            ring.inherits
        };
        lock(&self.followers).retain(|follower| match follower.upgrade() {
            Some(queue) => {
                queue.push(&chunk);
                true
            }
            None => false,
        });
        if let Some(console) = &self.console {
            console.chunk(&chunk);
        }
        if let Some(own) = self.own.as_ref().filter(|_| inherits) {
            own.chunk(&chunk);
        }
    }
}

struct Queue {
    /// The sources that are followed. `None`: all.
    sources: Option<HashSet<SourceId>>,
    /// The last chunk number of each source that the follower got at the beginning.
    told: HashMap<SourceId, u64>,
    state: Mutex<QueueState>,
    filled: Notify,
}

#[derive(Default)]
struct QueueState {
    chunks: VecDeque<Chunk>,
    size: usize,
    dropped: u64,
}

impl Queue {
    fn push(&self, chunk: &Chunk) {
        let told = self.told.get(&chunk.source).is_some_and(|last| chunk.number <= *last);
        if told || self.sources.as_ref().is_some_and(|sources| !sources.contains(&chunk.source)) {
            return;
        }
        let mut state = lock(&self.state);
        if state.size + chunk.bytes.len() > QUEUE {
            state.dropped += chunk.lines().count() as u64;
            return;
        }
        state.size += chunk.bytes.len();
        state.chunks.push_back(chunk.clone());
        drop(state);
        self.filled.notify_one();
    }
}

/// An item that a follower receives.
#[derive(Debug, Clone)]
pub enum Followed {
    /// The next chunk.
    Chunk(Chunk),
    /// This number of lines was dropped because the follower was too slow.
    Dropped(u64),
}

/// A follower of a tree's output.
pub struct Follower {
    queue: Arc<Queue>,
}

impl Follower {
    /// Waits for the next item.
    pub async fn next(&mut self) -> Followed {
        loop {
            {
                let mut state = lock(&self.queue.state);
                // Reported at once: a reader that never catches up must learn of it too.
                if state.dropped > 0 {
                    return Followed::Dropped(std::mem::take(&mut state.dropped));
                }
                if let Some(chunk) = state.chunks.pop_front() {
                    state.size -= chunk.bytes.len();
                    return Followed::Chunk(chunk);
                }
            }
            self.queue.filled.notified().await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under these locks leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;

    fn hub() -> OutputHub {
        let hub = OutputHub::new(None);
        assert_eq!(hub.source(&InstanceId::sole(Name::new("web").unwrap())), SourceId(0));
        hub
    }

    #[tokio::test]
    async fn what_was_printed_in_an_earlier_life_comes_first_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let place = logs::LogPaths::Streams(folder.path().join("web"));
        let keep = LogConfig {
            otherwise: None,
            access: logs::FileAccess::default(),
            place,
            max_size: 1 << 20,
            max_files: 2,
            compress: false,
        };
        std::fs::write(keep.file(Stream::Out), "one\ntwo\nbeg").unwrap();
        let hub = hub();
        hub.kept_in(SourceId(0), keep.clone());
        assert_eq!(hub.last_lines(SourceId(0), 9), ["one", "two"]);
        hub.begins(SourceId(0));
        // Like the host: the rest of the line goes to the file, and the whole line goes to the hub.
        std::fs::write(keep.file(Stream::Out), "one\ntwo\nbegun\n").unwrap();
        let (past, mut follower) = hub.follow(None);
        hub.lines(SourceId(0), Stream::Out, b"begun\n");
        assert_eq!(past.len(), 1);
        let Followed::Chunk(chunk) = follower.next().await else { panic!("nothing was dropped") };
        assert_eq!(&*chunk.bytes, b"begun\n");
        assert_eq!(hub.last_lines(SourceId(0), 9), ["one", "two", "begun"]);
        let (all, whole) = hub.last_in_files(SourceId(0), usize::MAX).unwrap();
        assert!(whole);
        assert_eq!(
            all.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect::<Vec<_>>(),
            b"one\ntwo\nbegun\n"
        );
    }

    #[test]
    fn the_last_is_kept_within_its_bound() {
        let hub = hub();
        for n in 0..5_000 {
            hub.lines(SourceId(0), Stream::Out, format!("line {n} {}\n", "x".repeat(100)).as_bytes());
        }
        let size: usize = hub.kept(SourceId(0)).iter().map(|c| c.bytes.len()).sum();
        assert!(size <= KEPT);
        let last = hub.last_lines(SourceId(0), 2);
        assert!(last[0].starts_with("line 4998 ") && last[1].starts_with("line 4999 "), "{last:?}");
    }

    #[tokio::test]
    async fn a_follower_hears_only_its_sources_in_numbered_chunks() {
        let names = ["a", "b"].map(|name| InstanceId::sole(Name::new(name).unwrap()));
        let hub = OutputHub::new(None);
        for name in &names {
            hub.source(name);
        }
        hub.lines(SourceId(1), Stream::Out, b"before\n");
        let (past, mut follower) = hub.follow(Some(HashSet::from([SourceId(1)])));
        assert_eq!(past.iter().map(|c| c.number).collect::<Vec<_>>(), [1]);
        hub.lines(SourceId(0), Stream::Out, b"of another\n");
        hub.lines(SourceId(1), Stream::Err, b"mine\n");
        let Followed::Chunk(chunk) = follower.next().await else { panic!("nothing was dropped") };
        assert_eq!((chunk.number, &*chunk.bytes), (2, &b"mine\n"[..]));
        assert_eq!(hub.kept(SourceId(1)).last().map(|c| c.number), Some(2));
    }

    #[tokio::test]
    async fn a_slow_follower_loses_lines_and_is_told_how_many() {
        let hub = hub();
        let (_, mut slow) = hub.follow(Some(HashSet::from([SourceId(0)])));
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let sent = QUEUE / 1024 + 7;
        for _ in 0..sent {
            hub.lines(SourceId(0), Stream::Out, &line);
        }
        assert!(matches!(slow.next().await, Followed::Dropped(7)));
        for _ in 0..QUEUE / 1024 {
            assert!(matches!(slow.next().await, Followed::Chunk(_)));
        }
    }
    #[tokio::test]
    async fn who_follows_all_hears_new_sources_and_forgotten_ones_go() {
        let hub = hub();
        let (_, mut follower) = hub.follow(None);
        let late = InstanceId::sole(Name::new("late").unwrap());
        let source = hub.source(&late);
        hub.lines(source, Stream::Out, b"here\n");
        let Followed::Chunk(chunk) = follower.next().await else { panic!("nothing was dropped") };
        assert_eq!(chunk.name, late);
        hub.forget(&late);
        assert!(hub.kept(source).is_empty() && hub.source_of(&late).is_none());
        assert_ne!(hub.source(&late), source, "the next of that name is another");
    }
}
