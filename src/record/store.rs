//! The store: the events and the state of every instance, in an SQLite database.
//!
//! One thread does all writing, in groups: commands that arrive during a transaction go into the
//! next one. It never blocks an actor. Readers open connections of their own and see a consistent
//! snapshot (write-ahead log). A database that can't be read is set aside, and writing to a full
//! disk is retried; services are not affected by either.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OpenFlags, params};
use schema::{Database, millis};
use writer::{GaveUp, StoreCommand, Writer};

use crate::decide::goals::ManualGoals;
use crate::decide::history::ClosedPoint;
use crate::decide::ledger::{KeptResult, KeptTask, Ledger, Memory};
use crate::decide::tree_state::TreeState;
use crate::model::cause::StartCause;
use crate::model::event::{GroupFact, InstanceFact, TreeFact};
use crate::model::history::HistoryPoint;
use crate::model::{Event, Fact, Incarnation, InstanceId, Name, Plan, State};
use crate::sys::files;

mod schema;
mod writer;

/// How much the store keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The number of events, and of entries in the audit trail.
    pub events: u64,
    /// How long resource samples are kept.
    pub samples: Duration,
    /// Finished tasks: the largest number of them, and how long they are kept.
    pub tasks: (usize, Duration),
}

impl Default for Retention {
    fn default() -> Retention {
        let (day, hour) = (Duration::from_secs(24 * 3600), Duration::from_secs(3600));
        Retention { events: 100_000, samples: day, tasks: (1_000, hour) }
    }
}

/// How many commands may wait to be written. Events beyond that are counted and not stored.
const WAITING: u64 = 200_000;

/// A store that is open for writing.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    writer: mpsc::Sender<StoreCommand>,
    waiting: Arc<AtomicU64>,
    lost: AtomicU64,
    well: Arc<AtomicBool>,
    goals: Mutex<Goals>,
}

/// The goals that were set by hand, and another holder that gets each change.
#[derive(Default)]
struct Goals {
    held: ManualGoals,
    hold: Option<Box<dyn Fn(String) + Send + Sync>>,
}

/// The file with the goals, beside the database.
const GOALS: &str = "goals.json";

/// An error of the store.
#[derive(Debug)]
pub struct StoreError(String);

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StoreError {}

/// How many bytes of finished tasks are read back, at most.
const MOST_OF_TASKS: usize = 16 << 20;

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        StoreError(error.to_string())
    }
}

impl Store {
    /// Opens the store in a file, or in memory for `:memory:`, and reads what an earlier supervisor has
    /// left.
    pub fn open(path: &Path, retention: Retention) -> Result<(Store, Memory), StoreError> {
        let place = schema::place_of(path);
        let path = place.as_path();
        let (database, mut memory) = schema::open(path)?;
        let goals = (!schema::is_in_memory(path)).then(|| path.with_file_name(GOALS));
        if let Some(text) = goals.as_ref().and_then(|goals| files::read_own(goals).ok()) {
            memory.goals = serde_json::from_slice(&text).unwrap_or_default();
        }
        let (writer, told) = mpsc::channel();
        let waiting = Arc::new(AtomicU64::new(0));
        let lives = memory.lives.iter().cloned();
        let lives = lives.map(|(instance, incarnation, life)| (instance, (incarnation, life))).collect();
        let well = Arc::new(AtomicBool::new(matches!(database, Database::Open(_))));
        let circumstances = (Arc::clone(&waiting), Arc::clone(&well), goals);
        let work = Writer::new(database, path.to_owned(), retention, circumstances, lives);
        std::thread::Builder::new()
            .name("regrow-store".into())
            .stack_size(512 * 1024)
            .spawn(move || work.run(&told))
            .map_err(|error| StoreError(error.to_string()))?;
        let lost = AtomicU64::new(0);
        let inner = Inner { path: path.to_owned(), writer, waiting, lost, well, goals: Mutex::default() };
        Ok((Store { inner: Arc::new(inner) }, memory))
    }

    /// Stores every service of a plan, without its environment.
    pub fn register(&self, plan: &Plan) {
        self.tell(StoreCommand::Plan(plan.services.clone()));
    }

    /// Stores the goals when they change. They are stored apart from the events: they change rarely,
    /// and must survive the loss of the database.
    fn note_goals(&self, event: &Event, tree_state: &TreeState) {
        let mut goals = self.inner.goals.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = match &event.fact {
            Fact::Tree(TreeFact::TakenOver { .. })
            | Fact::Tree(TreeFact::SupervisorStarted { .. })
            | Fact::Tree(TreeFact::Added { .. })
            | Fact::Tree(TreeFact::Removed { .. })
            | Fact::Tree(TreeFact::Reconfigured { .. })
            | Fact::Tree(TreeFact::Scaled { .. }) => {
                let now = ManualGoals::of(tree_state);
                let changed = now.goals != goals.held.goals;
                goals.held = now;
                changed
            }
            fact => fact
                .instance()
                .and_then(|id| tree_state.entry(id))
                .is_some_and(|entry| goals.held.note(entry)),
        };
        // `SupervisorStarted` stores them in any case: the stored goals are an earlier supervisor's.
        if changed || matches!(event.fact, Fact::Tree(TreeFact::SupervisorStarted { .. })) {
            goals.held.seq = event.seq;
            let text = serde_json::to_string(&goals.held).unwrap_or_default();
            if let Some(hold) = &goals.hold {
                hold(text.clone());
            }
            self.tell(StoreCommand::Goals(text));
        }
    }

    fn tell(&self, told: StoreCommand) {
        // The writer lives as long as the store, so the send succeeds.
        self.inner.waiting.fetch_add(1, Ordering::Relaxed);
        let _ = self.inner.writer.send(told);
    }

    /// The last `most` events after a sequence number that the filter accepts, oldest first.
    pub fn last_events(
        &self,
        after: u64,
        wanted: &EventFilter,
        most: usize,
    ) -> Result<Vec<Event>, StoreError> {
        let (mut events, _) = self.events(after, u64::MAX, wanted, most, "DESC")?;
        events.reverse();
        Ok(events)
    }

    /// The first `most` events between two sequence numbers that the filter accepts, and whether there
    /// may be more.
    pub fn first_events(
        &self,
        after: u64,
        before: u64,
        wanted: &EventFilter,
        most: usize,
    ) -> Result<(Vec<Event>, bool), StoreError> {
        let (events, rows) = self.events(after, before, wanted, most, "ASC")?;
        Ok((events, rows == most))
    }

    fn events(
        &self,
        after: u64,
        before: u64,
        wanted: &EventFilter,
        most: usize,
        order: &str,
    ) -> Result<(Vec<Event>, usize), StoreError> {
        let connection = self.reader()?;
        let mut statement = connection.prepare(&format!(
            "SELECT body FROM events WHERE seq > ?1 AND seq < ?2 AND at >= ?3 \
             AND (?4 IS NULL OR instance IN (SELECT value FROM json_each(?4))) \
             AND (?5 IS NULL OR state IN (SELECT value FROM json_each(?5))) ORDER BY seq {order} LIMIT ?6",
        ))?;
        let json = |names: Vec<String>| serde_json::to_string(&names).unwrap_or_default();
        let names = wanted.instances.as_ref().map(|names| json(names.iter().cloned().collect()));
        let states = (!wanted.states.is_empty())
            .then(|| json(wanted.states.iter().map(ToString::to_string).collect()));
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let since = wanted.since.map_or(i64::MIN, millis);
        let rows = statement
            .query_map(params![number(after), number(before), since, names, states, most], |row| {
                row.get::<_, String>(0)
            })?;
        let (mut events, mut count) = (Vec::new(), 0);
        for body in rows {
            count += 1;
            // An event in an unknown form, from an older or newer build, is skipped.
            if let Ok(event) = serde_json::from_str(&body?) {
                events.push(event);
            }
        }
        Ok((events, count))
    }

    /// Stores an entry of the audit trail.
    pub fn audit(&self, entry: AuditEntry) {
        self.tell(StoreCommand::Audit(entry));
    }

    /// The last `most` entries of the audit trail, oldest first.
    pub fn audited(&self, since: Option<SystemTime>, most: usize) -> Result<Vec<AuditEntry>, StoreError> {
        let connection = self.reader()?;
        let mut statement = connection.prepare(
            "SELECT at, who, action, resource, allowed, reason FROM audit WHERE at >= ?1 ORDER BY id DESC LIMIT ?2",
        )?;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![since.map_or(i64::MIN, millis), most], |row| {
            Ok(AuditEntry {
                at: SystemTime::UNIX_EPOCH + Duration::from_millis(row.get::<_, i64>(0)?.unsigned_abs()),
                who: row.get(1)?,
                action: row.get(2)?,
                resource: row.get(3)?,
                allowed: row.get(4)?,
                reason: row.get(5)?,
            })
        })?;
        let mut entries = rows.collect::<Result<Vec<_>, _>>()?;
        entries.reverse();
        Ok(entries)
    }

    /// Stores the answer to a command that came with an idempotency key.
    pub fn keep_answer(&self, who: &str, key: &str, asked: &str, status: u16, body: String) {
        let (who, key, asked) = (who.to_owned(), key.to_owned(), asked.to_owned());
        self.tell(StoreCommand::Answer(StoredAnswer { who, key, asked, status, body }));
    }

    /// Stores a change of the tree that is in no manifest, so that the next supervisor makes it too.
    /// Returns the number of the change.
    pub fn keep_change(&self, change: &ManualChange) -> i64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let number = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
        self.tell(StoreCommand::ByHand(number, serde_json::to_string(change).unwrap_or_default()));
        number
    }

    /// Removes the change of this number, which was not made. With `None` all changes are removed, and
    /// only the manifests count.
    pub fn forget_change(&self, number: Option<i64>) {
        self.tell(StoreCommand::NotByHand(number));
    }

    /// The changes that were made by hand, in their order.
    pub fn changes(&self) -> Result<Vec<ManualChange>, StoreError> {
        let connection = self.reader()?;
        let mut statement = connection.prepare("SELECT change FROM by_hand ORDER BY id")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        let texts = rows.collect::<Result<Vec<_>, _>>()?;
        Ok(texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
    }

    /// The stored answer to the command that `who` sent with this key.
    pub fn answer(&self, who: &str, key: &str) -> Result<Option<StoredAnswer>, StoreError> {
        let connection = self.reader()?;
        let mut statement =
            connection.prepare("SELECT asked, status, body FROM answers WHERE who = ?1 AND key = ?2")?;
        let mut rows = statement.query_map(params![who, key], |row| {
            let (who, key) = (who.to_owned(), key.to_owned());
            Ok(StoredAnswer { who, key, asked: row.get(0)?, status: row.get(1)?, body: row.get(2)? })
        })?;
        Ok(rows.next().transpose()?)
    }

    /// The command that `who` sent with this key, if it was accepted within the last day.
    pub fn was_taken(
        &self,
        who: &str,
        since: Option<SystemTime>,
        key: &str,
    ) -> Result<Option<AcceptedCommand>, StoreError> {
        let connection = self.reader()?;
        let mut statement = connection.prepare(
            "SELECT seq, command FROM commands WHERE key = ?2 AND who = ?1 AND accepted = 1 AND at >= ?3 \
             ORDER BY seq LIMIT 1",
        )?;
        let oldest = SystemTime::now().checked_sub(ANSWERS).map_or(0, millis);
        let since = since.map_or(oldest, |since| millis(since).max(oldest));
        let mut rows = statement.query_map(params![who, key, since], |row| {
            Ok(AcceptedCommand { seq: row.get::<_, i64>(0)?.cast_unsigned(), command: row.get(1)? })
        })?;
        Ok(rows.next().transpose()?)
    }

    fn results(&self, keys: &[&[u8]]) -> Result<Vec<Option<KeptResult>>, StoreError> {
        let connection = self.reader()?;
        let mut statement = connection.prepare("SELECT since, until, result FROM results WHERE key = ?1")?;
        let mut results = Vec::with_capacity(keys.len());
        let at = |millis: i64| SystemTime::UNIX_EPOCH + Duration::from_millis(millis.unsigned_abs());
        for key in keys {
            let mut rows = statement.query_map([digest(key).as_slice()], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?))
            })?;
            let row = rows.next().transpose()?;
            // A result in an unknown form counts as absent.
            results.push(row.and_then(|(since, until, result)| {
                let result = serde_json::from_str(&result).ok()?;
                Some(KeptResult { result, since: at(since), until: at(until) })
            }));
        }
        Ok(results)
    }

    /// The most recently finished tasks, as far as [`MOST_OF_TASKS`] bytes reach.
    fn tasks(&self, within: Duration, most: usize) -> Result<Vec<KeptTask>, StoreError> {
        let connection = self.reader()?;
        let mut statement = connection
            .prepare("SELECT body FROM tasks WHERE over >= ?1 ORDER BY over DESC, id DESC LIMIT ?2")?;
        let since = SystemTime::now().checked_sub(within).map_or(0, millis);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![since, most], |row| row.get::<_, String>(0))?;
        let (mut tasks, mut bytes) = (Vec::new(), 0);
        for body in rows {
            let body = body?;
            bytes += body.len();
            if bytes > MOST_OF_TASKS {
                break;
            }
            tasks.extend(serde_json::from_str::<KeptTask>(&body).ok());
        }
        tasks.reverse();
        Ok(tasks)
    }

    /// Passes on the resource points of this last span of time, oldest first.
    fn measured(&self, within: Duration, each: &mut dyn FnMut(ClosedPoint)) -> Result<(), StoreError> {
        let connection = self.reader()?;
        let mut statement = connection
            .prepare("SELECT at, instance, samples, levels FROM resources WHERE at >= ?1 ORDER BY at")?;
        let since = SystemTime::now().checked_sub(within).map_or(0, millis);
        let rows = statement.query_map([since], |row| {
            let at: i64 = row.get(0)?;
            Ok((at, row.get::<_, String>(1)?, row.get(2)?, row.get::<_, String>(3)?))
        })?;
        for row in rows {
            let (at, of, samples, levels) = row?;
            // A point in an unknown form, from another build, is skipped.
            let Ok(levels) = serde_json::from_str(&levels) else {
                continue;
            };
            let of = Some(of).filter(|of| !of.is_empty());
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at.unsigned_abs());
            each((of, HistoryPoint { at, samples, levels }));
        }
        Ok(())
    }

    /// The last `most` incarnations of an instance, newest first.
    pub fn incarnations(&self, instance: &str, most: usize) -> Result<Vec<IncarnationRecord>, StoreError> {
        let connection = self.reader()?;
        let mut statement = connection.prepare(
            "SELECT number, pid, cause, started_at, ended_at, exit, uptime_s FROM incarnations \
             WHERE instance = ?1 ORDER BY number DESC LIMIT ?2",
        )?;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![instance, most], |row| {
            Ok(IncarnationRecord {
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
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(&self.inner.path, flags)?;
        connection.busy_timeout(Duration::from_secs(2))?;
        Ok(connection)
    }
}

/// A change of the tree by a command that no manifest contains.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManualChange {
    /// A manifest's services were added.
    Added {
        /// The text of the manifest.
        manifest: String,
        /// The file that the manifest came from.
        file: PathBuf,
        /// The group that the services were added to. `None`: the top of the tree.
        group: Option<Name>,
    },
    /// Services and groups were removed.
    Removed {
        /// The removed services.
        services: Vec<Name>,
        /// The removed groups.
        groups: Vec<Name>,
    },
}

/// A selection of events.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EventFilter {
    /// Only events that are not older than this.
    pub since: Option<SystemTime>,
    /// Only events about these instances. `None`: all events, also those about no instance.
    pub instances: Option<HashSet<String>>,
    /// Only events that bring an instance into one of these states. Empty: all events.
    pub states: Vec<State>,
}

impl EventFilter {
    /// Whether the filter selects an event.
    pub fn fits(&self, event: &Event) -> bool {
        self.since.is_none_or(|at| event.at >= at)
            && (self.states.is_empty()
                || event.fact.state().is_some_and(|state| self.states.contains(&state)))
            && self.instances.as_ref().is_none_or(|instances| {
                event.fact.instance().is_some_and(|instance| instances.contains(&instance.to_string()))
            })
    }
}

/// One entry of the audit trail: a request to change something, allowed or refused.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct AuditEntry {
    /// When the request was made.
    #[serde(with = "crate::model::time::rfc3339")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub at: SystemTime,
    /// Who made the request: `user:NAME`, `token:NAME`, or `address:IP` for a client without a token.
    pub who: String,
    /// The action that was requested, by the name of its permission.
    pub action: String,
    /// The resource that the request was about.
    pub resource: String,
    /// Whether the request was allowed.
    pub allowed: bool,
    /// Why the request was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How long the answer to a command is kept for a client that repeats it with the same key.
const ANSWERS: Duration = Duration::from_secs(24 * 3600);

/// A command that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedCommand {
    /// The sequence number of the event that records it.
    pub seq: u64,
    /// The command as JSON.
    pub command: String,
}

/// The answer to a command that came with an `Idempotency-Key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// Who sent the command.
    pub who: String,
    /// The idempotency key.
    pub key: String,
    /// A hash of the command.
    pub asked: String,
    /// The HTTP status of the answer.
    pub status: u16,
    /// The body of the answer.
    pub body: String,
}

/// One incarnation of an instance.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct IncarnationRecord {
    /// The number of the incarnation.
    pub incarnation: u64,
    /// The pid of its process. Absent when no process was made.
    pub pid: Option<u32>,
    /// Why it was started.
    pub cause: Option<String>,
    /// When it was started, as RFC 3339.
    pub started_at: Option<String>,
    /// When it ended, as RFC 3339. Absent while it lives.
    pub ended_at: Option<String>,
    /// How it ended.
    pub exit: Option<serde_json::Value>,
    /// How long it ran, in seconds.
    pub uptime_s: Option<f64>,
}

impl Ledger for Store {
    fn begin(&self, boot: &str, since: Duration, alone: Vec<String>) {
        self.tell(StoreCommand::Begin { boot: boot.to_owned(), since, alone });
    }

    fn report_to(&self, told: Box<dyn Fn(Option<u64>, String) + Send>) {
        self.tell(StoreCommand::ReportTo(told));
    }

    fn hold_goals_by(&self, hold: Box<dyn Fn(String) + Send + Sync>) {
        self.inner.goals.lock().unwrap_or_else(PoisonError::into_inner).hold = Some(hold);
    }

    fn is_well(&self) -> bool {
        self.inner.well.load(Ordering::Relaxed)
    }

    fn event(&self, event: &Arc<Event>, tree_state: &TreeState) {
        self.note_goals(event, tree_state);
        if self.inner.waiting.load(Ordering::Relaxed) > WAITING {
            self.inner.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let lost = self.inner.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.tell(StoreCommand::Lost(
                lost,
                tree_state.entries().iter().map(|entry| entry.past()).collect(),
            ));
        }
        let past = event.fact.instance().and_then(|id| tree_state.entry(id)).map(|entry| entry.past());
        match &event.fact {
            Fact::Tree(TreeFact::TakenOver { instances, .. }) => {
                let entries = instances.iter().filter_map(|past| tree_state.entry(&past.instance));
                self.tell(StoreCommand::All(entries.map(|entry| entry.past()).collect()));
            }
            Fact::Tree(TreeFact::Added { .. })
            | Fact::Tree(TreeFact::Reconfigured { .. })
            | Fact::Tree(TreeFact::Scaled { .. })
            | Fact::Tree(TreeFact::Removed { .. }) => {
                self.tell(StoreCommand::Plan(tree_state.plan().services.clone()));
            }
            _ => {}
        }
        let failed = match &event.fact {
            // A mark is cleared only by a start by hand, or when the supervisor starts anew.
            Fact::Tree(TreeFact::SupervisorStarted { .. })
            | Fact::Tree(TreeFact::TakenOver { .. })
            | Fact::Group(GroupFact::GaveUp { .. })
            | Fact::Tree(TreeFact::ProjectGaveUp { .. })
            | Fact::Instance(InstanceFact::Starting { cause: StartCause::Command, .. }) => {
                let failed = tree_state.groups().filter(|group| group.failed);
                let groups = failed.map(|group| group.name.clone()).collect();
                Some(Box::new(GaveUp { groups, projects: tree_state.failed_projects().cloned().collect() }))
            }
            _ => None,
        };
        self.tell(StoreCommand::Event { event: Arc::clone(event), past: past.map(Box::new), failed });
    }

    fn life(&self, instance: &InstanceId, incarnation: Incarnation, life: String) {
        self.tell(StoreCommand::Life(instance.to_string(), incarnation, life));
    }

    fn resources(&self, points: Vec<ClosedPoint>) {
        self.tell(StoreCommand::Resources(points));
    }

    fn past_resources(&self, within: Duration, each: &mut dyn FnMut(ClosedPoint)) {
        if let Err(error) = self.measured(within, each) {
            tracing::warn!(%error, "what was measured before can't be read");
        }
    }

    fn keep_result(&self, key: &[u8], kept: KeptResult) {
        self.tell(StoreCommand::KeepResult(digest(key), Box::new(kept)));
    }

    fn kept_results(&self, keys: &[&[u8]]) -> Vec<Option<KeptResult>> {
        self.results(keys).unwrap_or_else(|error| {
            tracing::warn!(%error, "results of commands can't be read");
            vec![None; keys.len()]
        })
    }

    fn forget_results(&self) {
        self.tell(StoreCommand::ForgetResults);
    }

    fn keep_task(&self, task: KeptTask) {
        self.tell(StoreCommand::KeepTask(Box::new(task)));
    }

    fn kept_tasks(&self, within: Duration, most: usize) -> Vec<KeptTask> {
        self.tasks(within, most).unwrap_or_else(|error| {
            tracing::warn!(%error, "results of tasks can't be read");
            Vec::new()
        })
    }

    fn forget_tasks(&self) {
        self.tell(StoreCommand::ForgetTasks);
    }

    fn keep_tally(&self, text: String) {
        self.tell(StoreCommand::Tally(text));
    }

    fn kept_tally(&self) -> Option<String> {
        let read = || -> Result<Option<String>, StoreError> {
            let connection = self.reader()?;
            let mut statement = connection.prepare("SELECT value FROM meta WHERE key = 'tally'")?;
            let found = statement.query_map([], |row| row.get(0))?.next().transpose()?;
            Ok(found)
        };
        read().ok().flatten()
    }

    fn after(&self, then: Box<dyn FnOnce() + Send>) {
        // The queue is in order, so all earlier commands are written by then.
        self.tell(StoreCommand::After(then));
    }

    fn flush(&self) {
        let (done, wait) = mpsc::channel();
        self.tell(StoreCommand::After(Box::new(move || {
            let _ = done.send(());
        })));
        let _ = wait.recv_timeout(Duration::from_secs(2));
    }
}

/// The hash of a result's key. The key contains a command's environment, which is never stored.
fn digest(key: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(key).into()
}

/// Makes the private folder of a store when it is missing.
pub fn private_folder(path: &Path) -> std::io::Result<()> {
    files::private_parent(path)
}

#[cfg(test)]
mod tests;
