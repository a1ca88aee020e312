//! The store: what happened, and how everything stands, in an SQLite database.
//!
//! One thread writes, in groups: what has come while a transaction was under way goes into the
//! next. It never holds an actor up. Readers open connections of their own and see a snapshot
//! (write-ahead log). A file that can't be read is set aside, a disk that is full is tried again;
//! services notice neither.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OpenFlags, params};

use crate::decide::ledger::{Ledger, Memory};
use crate::decide::status::Board;
use crate::model::event::StartCause;
use crate::model::sample::Sample;
use crate::model::{Event, Fact, Incarnation, InstanceId, Plan};
use crate::os::files;

use schema::millis;
use writer::{Told, Writer};

mod schema;
mod writer;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Events, and ends of processes.
    pub events: u64,
    /// Samples of resources.
    pub samples: Duration,
}

impl Default for Retention {
    fn default() -> Retention {
        Retention { events: 100_000, samples: Duration::from_secs(24 * 3600) }
    }
}

/// So many events may wait to be written; what comes beyond is lost to the store, and counted.
const WAITING: u64 = 200_000;

/// A store that is written.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    writer: mpsc::Sender<Told>,
    waiting: Arc<AtomicU64>,
    lost: AtomicU64,
}

/// What a store could not do.
#[derive(Debug)]
pub struct StoreError(String);

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StoreError {}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        StoreError(error.to_string())
    }
}

impl Store {
    /// Opens the store of a file, or one in memory for `:memory:`, and reads what there is.
    pub fn open(path: &Path, retention: Retention) -> Result<(Store, Memory), StoreError> {
        let (connection, memory) = schema::open(path)?;
        let (writer, told) = mpsc::channel();
        let waiting = Arc::new(AtomicU64::new(0));
        let work = Writer::new(connection, path.to_owned(), retention, Arc::clone(&waiting));
        std::thread::Builder::new()
            .name("regrow-store".into())
            .stack_size(512 * 1024)
            .spawn(move || work.run(&told))
            .map_err(|error| StoreError(error.to_string()))?;
        let inner = Inner { path: path.to_owned(), writer, waiting, lost: AtomicU64::new(0) };
        Ok((Store { inner: Arc::new(inner) }, memory))
    }

    /// Writes down what there is: every service, whose environment is left out.
    pub fn register(&self, plan: &Plan) {
        self.tell(Told::Plan(plan.services.clone()));
    }

    /// Keeps a sample.
    pub fn sample(&self, sample: &Arc<Sample>) {
        self.tell(Told::Sample(SystemTime::now(), Arc::clone(sample)));
    }

    fn tell(&self, told: Told) {
        // The writer lives as long as this does.
        self.inner.waiting.fetch_add(1, Ordering::Relaxed);
        let _ = self.inner.writer.send(told);
    }

    /// Events that are kept, oldest first: those after a number, not older than a time, about
    /// these instances (none: all); the last so many of them.
    pub fn events(
        &self,
        after: u64,
        since: Option<SystemTime>,
        instances: Option<&[String]>,
        most: usize,
    ) -> Result<Vec<Event>, StoreError> {
        let connection = self.reader()?;
        let mut statement = connection.prepare(
            "SELECT body FROM events WHERE seq > ?1 AND at >= ?2 AND (?3 IS NULL OR instance IN \
             (SELECT value FROM json_each(?3))) ORDER BY seq DESC LIMIT ?4",
        )?;
        let names = instances.map(|names| serde_json::to_string(names).unwrap_or_default());
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let rows = statement
            .query_map(params![after.cast_signed(), since.map_or(i64::MIN, millis), names, most], |row| {
                row.get::<_, String>(0)
            })?;
        let mut events = Vec::new();
        for body in rows {
            // One that an older or newer build wrote in another form is passed over.
            if let Ok(event) = serde_json::from_str(&body?) {
                events.push(event);
            }
        }
        events.reverse();
        Ok(events)
    }

    /// The processes that an instance has had, newest first.
    pub fn incarnations(&self, instance: &str, most: usize) -> Result<Vec<Lived>, StoreError> {
        let connection = self.reader()?;
        let mut statement = connection.prepare(
            "SELECT number, pid, cause, started_at, ended_at, exit, uptime_s FROM incarnations \
             WHERE instance = ?1 ORDER BY number DESC LIMIT ?2",
        )?;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![instance, most], |row| {
            Ok(Lived {
                incarnation: row.get::<_, i64>(0)?.cast_unsigned(),
                pid: row.get(1)?,
                cause: row.get(2)?,
                started_at: row.get(3)?,
                ended_at: row.get(4)?,
                exit: row.get::<_, Option<String>>(5)?.and_then(|text| serde_json::from_str(&text).ok()),
                uptime_s: row.get(6)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn reader(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.inner.path, flags)?;
        connection.busy_timeout(Duration::from_secs(2))?;
        Ok(connection)
    }
}

/// One process in the life of an instance.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Lived {
    /// Its number.
    pub incarnation: u64,
    /// Its process id, if it came to be.
    pub pid: Option<u32>,
    /// Why it was made.
    pub cause: Option<String>,
    /// When, as RFC 3339.
    pub started_at: Option<String>,
    /// When it ended.
    pub ended_at: Option<String>,
    /// How.
    pub exit: Option<serde_json::Value>,
    /// How long it ran, in seconds.
    pub uptime_s: Option<f64>,
}

impl Ledger for Store {
    fn begin(&self, boot: &str, since: Duration) {
        self.tell(Told::Begin { boot: boot.to_owned(), since });
    }

    fn report_to(&self, told: Box<dyn Fn(Option<u64>, String) + Send>) {
        self.tell(Told::ReportTo(told));
    }

    fn event(&self, event: &Arc<Event>, board: &Board) {
        if self.inner.waiting.load(Ordering::Relaxed) > WAITING {
            self.inner.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let lost = self.inner.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.tell(Told::Lost(lost, board.entries().iter().map(|entry| entry.past()).collect()));
        }
        let past = event.fact.instance().and_then(|id| board.entry(id)).map(|entry| entry.past());
        match &event.fact {
            Fact::TakenOver { .. } => {
                let all = board.entries().iter().map(|entry| entry.past()).collect();
                self.tell(Told::All(all));
            }
            Fact::Added { .. } | Fact::Reconfigured { .. } | Fact::Removed { .. } => {
                self.tell(Told::Plan(board.plan().services.clone()));
            }
            _ => {}
        }
        let failed_groups = match &event.fact {
            // Only a start by hand clears a mark.
            Fact::GroupGaveUp { .. } | Fact::Starting { cause: StartCause::Command, .. } => {
                let failed = board.groups().filter(|group| group.failed);
                Some(failed.map(|group| group.name.clone()).collect())
            }
            _ => None,
        };
        self.tell(Told::Event { event: Arc::clone(event), past: past.map(Box::new), failed_groups });
    }

    fn life(&self, instance: &InstanceId, incarnation: Incarnation, life: String) {
        self.tell(Told::Life(instance.to_string(), incarnation, life));
    }

    fn after(&self, then: Box<dyn FnOnce() + Send>) {
        // Everything before it is in the queue already.
        self.tell(Told::After(then));
    }

    fn flush(&self) {
        let (done, wait) = mpsc::channel();
        self.tell(Told::After(Box::new(move || {
            let _ = done.send(());
        })));
        let _ = wait.recv_timeout(Duration::from_secs(2));
    }
}

/// Makes the folder of a store, ours alone.
pub fn private_folder(path: &Path) -> std::io::Result<()> {
    files::private_parent(path)
}

#[cfg(test)]
mod tests;
