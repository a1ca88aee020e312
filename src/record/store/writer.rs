//! The thread that does all writing to the database.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use rusqlite::{Connection, params};

use super::schema::{self, millis, set_meta};
use super::{ANSWERS, AuditEntry, Retention, StoreError, StoredAnswer};
use crate::decide::history::ClosedPoint;
use crate::decide::ledger::{KeptResult, KeptTask};
use crate::model::event::{InstanceFact, TreeFact};
use crate::model::{Event, Fact, Incarnation, InstanceId, InstanceRecord, Name, ServiceSpec, State, spec};
use crate::record::store::schema::Database;
use crate::sys::files;

/// How many commands one transaction takes at most, so that readers see new rows soon.
const GROUP: usize = 2_000;
/// How many events trigger a removal of old rows, which also happens after [`TIDY_EVERY`].
const TIDY_AFTER: u64 = 5_000;
const TIDY_EVERY: Duration = Duration::from_secs(60);
/// How many results of commands are kept.
const RESULTS: i64 = 2_000;
/// How long to wait before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Groups and projects that have given up and were not started since.
pub(super) struct GaveUp {
    pub(super) groups: Vec<Name>,
    pub(super) projects: Vec<String>,
}

/// A command to the writer.
pub(super) enum StoreCommand {
    Begin {
        boot: String,
        since: Duration,
        /// Instances that nobody supervises now and whose processes still run.
        alone: Vec<String>,
    },
    Plan(Vec<Arc<ServiceSpec>>),
    Event {
        event: Arc<Event>,
        past: Option<Box<InstanceRecord>>,
        /// The groups and projects that have given up, if that may have changed.
        failed: Option<Box<GaveUp>>,
    },
    /// The goals that were set by hand, for the file beside the database.
    Goals(String),
    /// The records of these instances.
    All(Vec<InstanceRecord>),
    /// How many events were too many to store, and the record of every instance since.
    Lost(u64, Vec<InstanceRecord>),
    Life(String, Incarnation, String),
    Resources(Vec<ClosedPoint>),
    /// A result of a command, under the hash of its key.
    KeepResult([u8; 32], Box<KeptResult>),
    ForgetResults,
    KeepTask(Box<KeptTask>),
    ForgetTasks,
    Tally(String),
    Audit(AuditEntry),
    Answer(StoredAnswer),
    /// A change by hand, under its number.
    ByHand(i64, String),
    /// Removes the change of this number. `None`: removes all changes.
    NotByHand(Option<i64>),
    After(Box<dyn FnOnce() + Send>),
    ReportTo(Report),
}

/// Reports that nothing can be written (`None` and the reason), or that writing works again (the
/// number of lost events).
type Report = Box<dyn Fn(Option<u64>, String) + Send>;

pub(super) struct Writer {
    database: Database,
    path: PathBuf,
    retention: Retention,
    waiting: Arc<AtomicU64>,
    /// Whether writing works.
    well: Arc<AtomicBool>,
    /// The file with the goals, beside the database.
    goals: Option<PathBuf>,
    /// The boot and the start of the tree's clock, which a new file needs at its beginning.
    circumstances: Option<(String, Duration)>,
    /// Instances that nobody supervises now and whose processes still run.
    alone: HashSet<String>,
    /// Whether this supervisor has reported what it takes over.
    took_over: bool,
    plan: Vec<Arc<ServiceSpec>>,
    /// The last record of each instance, for a new file or after a time of failed writes.
    stands: HashMap<String, InstanceRecord>,
    /// What identifies each instance's process, so that it can be found again.
    lives: HashMap<String, (Incarnation, String)>,
    /// The device and inode of the file that is written. Another file may get its name.
    file: Option<(u64, u64)>,
    /// All results of commands must be removed, and that is not written yet.
    forgets: bool,
    /// All finished tasks must be removed, and that is not written yet.
    forgets_tasks: bool,
    trouble: Option<Trouble>,
    /// When the last trouble ended.
    recovered: Option<Instant>,
    report: Option<Report>,
    since_tidy: u64,
    tidied: Instant,
}

/// A time in which nothing can be written.
struct Trouble {
    lost: u64,
    next_try: Instant,
}

impl Writer {
    pub(super) fn new(
        database: Database,
        path: PathBuf,
        retention: Retention,
        (waiting, well, goals): (Arc<AtomicU64>, Arc<AtomicBool>, Option<PathBuf>),
        lives: HashMap<String, (Incarnation, String)>,
    ) -> Writer {
        let file = identity(&path);
        Writer {
            trouble: match database {
                Database::Open(_) => None,
                Database::Spoiled | Database::Unopened => {
                    Some(Trouble { lost: 0, next_try: Instant::now() + RETRY })
                }
            },
            database,
            path,
            retention,
            waiting,
            well,
            goals,
            circumstances: None,
            alone: HashSet::new(),
            took_over: false,
            plan: Vec::new(),
            stands: HashMap::new(),
            lives,
            file,
            forgets: false,
            forgets_tasks: false,
            recovered: None,
            report: None,
            since_tidy: 0,
            tidied: Instant::now(),
        }
    }

    pub(super) fn run(mut self, told: &Receiver<StoreCommand>) {
        let mut group = Vec::new();
        loop {
            let pause = if self.trouble.is_some() { RETRY } else { TIDY_EVERY };
            match told.recv_timeout(pause) {
                Ok(first) => group.push(first),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while group.len() < GROUP
                && let Ok(more) = told.try_recv()
            {
                group.push(more);
            }
            self.waiting.fetch_sub(group.len() as u64, Ordering::Relaxed);
            let group = std::mem::take(&mut group);
            self.remember(&group);
            let events =
                group.iter().filter(|told| matches!(told, StoreCommand::Event { .. })).count() as u64;
            let tasks = group.iter().filter(|told| matches!(told, StoreCommand::KeepTask(_))).count() as u64;
            // A task's output is much larger than an event, so a task counts for ten.
            self.since_tidy += events + tasks * 10;
            if self.trouble.is_none() && identity(&self.path) != self.file {
                self.lost_its_file();
            }
            if self.trouble.is_some() {
                self.try_again(events);
            } else if let Err(error) = self.write(&group) {
                self.in_trouble(&error, events);
            }
            self.well.store(self.trouble.is_none(), Ordering::Relaxed);
            let goals = group.iter().rev().find_map(|told| match told {
                StoreCommand::Goals(text) => Some(text),
                _ => None,
            });
            if let (Some(text), Some(path)) = (goals, &self.goals)
                && let Err(error) = files::replace_quickly(path, text)
            {
                tracing::warn!(%error, "goals can't be written down beside the store");
            }
            for told in group {
                match told {
                    StoreCommand::After(then) => then(),
                    StoreCommand::ReportTo(report) => self.report = Some(report),
                    _ => {}
                }
            }
            let tidy = self.since_tidy >= TIDY_AFTER || self.tidied.elapsed() > TIDY_EVERY;
            if tidy && self.trouble.is_none() {
                (self.since_tidy, self.tidied) = (0, Instant::now());
                if let Err(error) = self.tidy() {
                    self.in_trouble(&error, 0);
                }
            }
        }
    }

    /// Notes everything that a new database would need.
    fn remember(&mut self, group: &[StoreCommand]) {
        for told in group {
            match told {
                StoreCommand::Begin { boot, since, alone } => {
                    self.circumstances = Some((boot.clone(), *since));
                    self.alone = alone.iter().cloned().collect();
                }
                StoreCommand::Plan(services) => self.plan.clone_from(services),
                StoreCommand::Event { past: Some(past), .. } => {
                    self.stands.insert(past.instance.to_string(), (**past).clone());
                }
                StoreCommand::Event { event, past: None, .. } => {
                    if let Fact::Tree(TreeFact::Removed { services, .. }) = &event.fact {
                        self.stands.retain(|_, past| !services.contains(past.instance.service()));
                    }
                    if let Fact::Tree(TreeFact::Scaled { service, from, to, naming }) = &event.fact {
                        for id in spec::scaled(service, *from, *to, *naming).0 {
                            self.stands.remove(&id.to_string());
                        }
                    }
                }
                StoreCommand::All(pasts) | StoreCommand::Lost(_, pasts) => {
                    if let StoreCommand::Lost(count, _) = told {
                        tracing::warn!(count, "events came faster than the store could take them");
                    }
                    for past in pasts {
                        self.stands.insert(past.instance.to_string(), past.clone());
                    }
                }
                StoreCommand::ForgetResults => self.forgets = true,
                StoreCommand::ForgetTasks => self.forgets_tasks = true,
                StoreCommand::Life(instance, incarnation, life) => {
                    self.lives.insert(instance.clone(), (*incarnation, life.clone()));
                }
                StoreCommand::Resources(_)
                | StoreCommand::KeepResult(..)
                | StoreCommand::KeepTask(_)
                | StoreCommand::Tally(_)
                | StoreCommand::Audit(_)
                | StoreCommand::Answer(_)
                | StoreCommand::Goals(_)
                | StoreCommand::ByHand(..)
                | StoreCommand::NotByHand(_)
                | StoreCommand::After(_)
                | StoreCommand::ReportTo(_) => {}
            }
        }
    }

    /// Begins a new database after the file was removed or replaced: nobody would read the old one.
    fn lost_its_file(&mut self) {
        tracing::error!(store = %self.path.display(), "the store was removed and is begun anew");
        self.database = Database::Spoiled;
        if let Err(error) = self.begin_again() {
            tracing::error!(%error, "the store can't be begun anew");
            self.trouble = Some(Trouble { lost: 0, next_try: Instant::now() });
            if let Some(report) = &self.report {
                report(None, error.to_string());
            }
        }
    }

    fn in_trouble(&mut self, error: &rusqlite::Error, lost: u64) {
        if schema::is_beyond_use(error) {
            tracing::error!(%error, "the store can't be written any more and is begun anew");
            self.database = Database::Spoiled;
        } else {
            tracing::error!(%error, "the store can't be written; services are not affected");
        }
        // On an almost full disk the first write may succeed and the next one fail, over and over.
        let soon = self.recovered.filter(|at| at.elapsed() < RETRY);
        let next_try = soon.map_or_else(Instant::now, |at| at + RETRY);
        self.trouble = Some(Trouble { lost, next_try });
        if let Some(report) = &self.report {
            report(None, error.to_string());
        }
        self.try_again(0);
    }

    /// Writes the record of every instance, if writing works again.
    fn try_again(&mut self, lost: u64) {
        let Some(trouble) = &mut self.trouble else {
            return;
        };
        trouble.lost += lost;
        if trouble.next_try > Instant::now() {
            return;
        }
        trouble.next_try = Instant::now() + RETRY;
        let lost = trouble.lost;
        match self.begin_again() {
            Ok(()) => {
                (self.trouble, self.recovered) = (None, Some(Instant::now()));
                tracing::warn!(lost_events = lost, "the store is written again");
                if let Some(report) = &self.report {
                    report(Some(lost), String::new());
                }
            }
            Err(error) => tracing::debug!(%error, "the store still can't be written"),
        }
    }

    fn begin_again(&mut self) -> Result<(), StoreError> {
        match self.database {
            Database::Open(_) => {}
            Database::Spoiled => {
                schema::set_aside_if_there(&self.path)?;
                self.database = Database::Open(schema::connect(&self.path)?);
                self.file = identity(&self.path);
            }
            Database::Unopened => {
                let opened = schema::connect(&self.path);
                if let Err(error) = &opened
                    && schema::is_beyond_use(error)
                {
                    self.database = Database::Spoiled;
                }
                self.database = Database::Open(opened?);
                self.file = identity(&self.path);
            }
        }
        let mut group = vec![StoreCommand::Plan(self.plan.clone())];
        group.push(StoreCommand::All(self.stands.values().cloned().collect()));
        if let Some((boot, since)) = self.circumstances.clone() {
            group.push(StoreCommand::Begin { boot, since, alone: self.alone.iter().cloned().collect() });
        }
        for (instance, (incarnation, life)) in &self.lives {
            if self.stands.get(instance).is_some_and(|past| past.incarnation == *incarnation) {
                group.push(StoreCommand::Life(instance.clone(), *incarnation, life.clone()));
            }
        }
        if self.forgets {
            group.push(StoreCommand::ForgetResults);
        }
        if self.forgets_tasks {
            group.push(StoreCommand::ForgetTasks);
        }
        self.write(&group)?;
        Ok(())
    }

    fn write(&mut self, group: &[StoreCommand]) -> Result<(), rusqlite::Error> {
        let Database::Open(connection) = &mut self.database else {
            return Ok(());
        };
        if group.iter().all(|told| {
            matches!(told, StoreCommand::After(_) | StoreCommand::ReportTo(_) | StoreCommand::Goals(_))
        }) {
            return Ok(());
        }
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        // Of several records of an instance in one group only the last is written.
        let mut last: HashMap<String, &InstanceRecord> = HashMap::new();
        for told in group {
            match told {
                StoreCommand::Begin { boot, since, .. } => {
                    set_meta(&transaction, "boot", boot)?;
                    set_meta(&transaction, "since", &since.as_nanos().to_string())?;
                    transaction.execute("DELETE FROM meta WHERE key = 'ended'", [])?;
                }
                StoreCommand::Plan(services) => write_plan(&transaction, services)?,
                StoreCommand::Event { event, past, failed } => {
                    write_event(&transaction, event)?;
                    if let Some(past) = past {
                        last.insert(past.instance.to_string(), past);
                    }
                    if let Some(failed) = failed {
                        let groups = serde_json::to_string(&failed.groups).unwrap_or_default();
                        set_meta(&transaction, "failed_groups", &groups)?;
                        let projects = serde_json::to_string(&failed.projects).unwrap_or_default();
                        set_meta(&transaction, "failed_projects", &projects)?;
                    }
                    if let Fact::Tree(TreeFact::Scaled { service, from, to, naming }) = &event.fact {
                        for id in spec::scaled(service, *from, *to, *naming).0.iter().map(ToString::to_string)
                        {
                            last.remove(&id);
                            transaction
                                .prepare_cached("DELETE FROM instances WHERE id = ?1")?
                                .execute([id])?;
                        }
                    }
                    if let Fact::Tree(TreeFact::Removed { services, .. }) = &event.fact {
                        last.retain(|_, past| !services.contains(past.instance.service()));
                        for service in services {
                            transaction
                                .prepare_cached("DELETE FROM instances WHERE service = ?1")?
                                .execute([service.as_str()])?;
                        }
                    }
                }
                StoreCommand::All(pasts) | StoreCommand::Lost(_, pasts) => {
                    last.extend(pasts.iter().map(|past| (past.instance.to_string(), past)));
                    if matches!(told, StoreCommand::All(_)) {
                        // The first one names everything that was taken over; a later one speaks only
                        // for its own instances.
                        let of_all = (!std::mem::replace(&mut self.took_over, true)).then_some(&self.alone);
                        close_lost(&transaction, pasts, of_all)?;
                    }
                    // For some of them a running process may not have been stored yet.
                    for past in pasts.iter().filter(|past| past.pid.is_some()) {
                        write_pid(&transaction, &past.instance, past.incarnation, past.pid)?;
                    }
                }
                StoreCommand::Life(instance, incarnation, life) => {
                    transaction
                        .prepare_cached(
                            "INSERT INTO incarnations (instance, number, life) VALUES (?1, ?2, ?3) \
                             ON CONFLICT DO UPDATE SET life = excluded.life",
                        )?
                        .execute(params![instance, incarnation.0.cast_signed(), life])?;
                }
                StoreCommand::Resources(points) => write_resources(&transaction, points)?,
                StoreCommand::KeepResult(key, kept) => write_result(&transaction, key, kept)?,
                StoreCommand::ForgetResults => drop(transaction.execute("DELETE FROM results", [])?),
                StoreCommand::KeepTask(task) => {
                    let body = serde_json::to_string(task).unwrap_or_default();
                    transaction
                        .prepare_cached("INSERT OR REPLACE INTO tasks VALUES (?1, ?2, ?3)")?
                        .execute(params![task.result.id.to_string(), millis(task.over), body])?;
                }
                StoreCommand::ForgetTasks => drop(transaction.execute("DELETE FROM tasks", [])?),
                StoreCommand::Tally(text) => set_meta(&transaction, "tally", text)?,
                StoreCommand::Audit(entry) => write_audit(&transaction, entry)?,
                StoreCommand::Answer(answer) => write_answer(&transaction, answer)?,
                StoreCommand::ByHand(id, change) => {
                    transaction
                        .prepare_cached("INSERT OR REPLACE INTO by_hand VALUES (?1, ?2)")?
                        .execute(params![id, change])?;
                }
                StoreCommand::NotByHand(id) => {
                    transaction
                        .prepare_cached("DELETE FROM by_hand WHERE ?1 IS NULL OR id = ?1")?
                        .execute([id])?;
                }
                StoreCommand::Goals(_) | StoreCommand::After(_) | StoreCommand::ReportTo(_) => {}
            }
        }
        let now = millis(SystemTime::now());
        for (id, past) in last {
            transaction
                .prepare_cached(
                    "INSERT INTO instances (id, service, state, goal, pid, incarnation, restarts, error, past, \
                     created, updated) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?10) \
                     ON CONFLICT (id) DO UPDATE SET state = ?3, goal = ?4, pid = ?5, incarnation = ?6, \
                     restarts = ?7, error = ?8, past = ?9, updated = ?10",
                )?
                .execute(params![
                    id,
                    past.instance.service().as_str(),
                    past.state.to_string(),
                    past.goal.to_string(),
                    past.pid,
                    past.incarnation.0.cast_signed(),
                    past.restarts.cast_signed(),
                    past.failed.as_ref().map(ToString::to_string),
                    serde_json::to_string(past).unwrap_or_default(),
                    now,
                ])?;
        }
        transaction.commit()?;
        (self.forgets, self.forgets_tasks) = (false, false);
        Ok(())
    }

    /// Removes rows that are older than the retention allows.
    fn tidy(&mut self) -> Result<(), rusqlite::Error> {
        let Database::Open(connection) = &mut self.database else {
            return Ok(());
        };
        let events = i64::try_from(self.retention.events).unwrap_or(i64::MAX);
        connection
            .execute("DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ?1", params![events])?;
        connection.execute("DELETE FROM commands WHERE seq < (SELECT min(seq) FROM events)", [])?;
        // Keeps the last hundred incarnations of each instance.
        connection.execute(
            "DELETE FROM incarnations WHERE ended_at IS NOT NULL AND number < (SELECT incarnation FROM instances \
             WHERE id = instance) - 100",
            [],
        )?;
        let oldest = SystemTime::now().checked_sub(self.retention.samples).unwrap_or(SystemTime::UNIX_EPOCH);
        connection.execute("DELETE FROM resources WHERE at < ?1", params![millis(oldest)])?;
        connection.execute(
            "DELETE FROM results WHERE until < ?1 OR since <= (SELECT since FROM results ORDER BY since DESC \
             LIMIT 1 OFFSET ?2)",
            params![millis(SystemTime::now()), RESULTS],
        )?;
        let (most, within) = self.retention.tasks;
        let oldest = SystemTime::now().checked_sub(within).unwrap_or(SystemTime::UNIX_EPOCH);
        connection.execute(
            "DELETE FROM tasks WHERE over < ?1 OR over < (SELECT over FROM tasks ORDER BY over DESC LIMIT 1 OFFSET ?2)",
            params![millis(oldest), i64::try_from(most).unwrap_or(i64::MAX)],
        )?;
        // Allowed and refused requests are counted apart, so that a flood of refusals does not remove
        // the record of what was done.
        for allowed in [true, false] {
            connection.execute(
                "DELETE FROM audit WHERE allowed = ?2 AND id <= (SELECT id FROM audit WHERE allowed = ?2 \
                 ORDER BY id DESC LIMIT 1 OFFSET ?1)",
                params![events, allowed],
            )?;
        }
        connection.execute(
            "DELETE FROM answers WHERE at <= (SELECT at FROM answers ORDER BY at DESC LIMIT 1 OFFSET ?1)",
            params![events],
        )?;
        let oldest = SystemTime::now().checked_sub(ANSWERS).unwrap_or(SystemTime::UNIX_EPOCH);
        connection.execute("DELETE FROM answers WHERE at < ?1", params![millis(oldest)])?;
        Ok(())
    }
}

/// The device and inode of a file. `None` when the file is missing or empty.
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().filter(|file| file.len() > 0).map(|file| (file.dev(), file.ino()))
}

fn write_plan(connection: &Connection, services: &[Arc<ServiceSpec>]) -> Result<(), rusqlite::Error> {
    let now = millis(SystemTime::now());
    let mut statement = connection.prepare_cached(
        "INSERT INTO services VALUES (?1, ?2, ?3, ?4, ?4) ON CONFLICT (name) DO UPDATE SET \
         project = excluded.project, spec = excluded.spec, updated = CASE WHEN spec = excluded.spec THEN \
         updated ELSE excluded.updated END",
    )?;
    for spec in services {
        // The environment is left out: it is never written down.
        let text = serde_json::to_string(spec.as_ref()).unwrap_or_default();
        statement.execute(params![spec.name.as_str(), spec.project, text, now])?;
    }
    let names: Vec<&str> = services.iter().map(|spec| spec.name.as_str()).collect();
    connection.execute(
        "DELETE FROM services WHERE name NOT IN (SELECT value FROM json_each(?1))",
        [serde_json::to_string(&names).unwrap_or_default()],
    )?;
    Ok(())
}

fn write_event(connection: &Connection, event: &Event) -> Result<(), rusqlite::Error> {
    let body = serde_json::to_value(event).unwrap_or_default();
    let name = body.get("event").and_then(|name| name.as_str()).unwrap_or_default().to_owned();
    let instance = event.fact.instance().map(ToString::to_string);
    let seq = event.seq.cast_signed();
    let state = event.fact.state().map(|state| state.to_string());
    connection
        .prepare_cached("INSERT OR REPLACE INTO events VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![seq, millis(event.at), name, instance, body.to_string(), state])?;
    let at = || humantime::format_rfc3339_millis(event.at).to_string();
    match &event.fact {
        Fact::Instance(InstanceFact::Starting { instance, incarnation, cause }) => {
            let cause = serde_json::to_value(cause).ok();
            connection
                .prepare_cached(
                    "INSERT INTO incarnations (instance, number, cause, started_at) VALUES (?1, ?2, ?3, ?4) \
                     ON CONFLICT DO UPDATE SET cause = excluded.cause, started_at = excluded.started_at, \
                     pid = NULL, ended_at = NULL, exit = NULL, uptime_s = NULL, life = NULL",
                )?
                .execute(params![
                    instance.to_string(),
                    incarnation.0.cast_signed(),
                    cause.as_ref().and_then(|cause| cause.as_str()),
                    at(),
                ])?;
        }
        Fact::Instance(InstanceFact::Running { instance, incarnation, pid }) => {
            write_pid(connection, instance, *incarnation, *pid)?;
        }
        Fact::Instance(InstanceFact::Exited { instance, incarnation, exit, uptime }) => {
            connection
                .prepare_cached(
                    "INSERT INTO incarnations (instance, number, ended_at, exit, uptime_s) \
                     VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET ended_at = excluded.ended_at, \
                     exit = excluded.exit, uptime_s = excluded.uptime_s, life = NULL",
                )?
                .execute(params![
                    instance.to_string(),
                    incarnation.0.cast_signed(),
                    at(),
                    serde_json::to_string(exit).ok(),
                    uptime.as_secs_f64(),
                ])?;
        }
        Fact::Tree(TreeFact::CommandAccepted { command, by }) => {
            connection
                .prepare_cached("INSERT OR REPLACE INTO commands VALUES (?1, ?2, ?3, ?4, ?5, 1, NULL, ?6)")?
                .execute(params![
                    seq,
                    millis(event.at),
                    by.as_ref().map(|by| &by.who),
                    command.verb(),
                    serde_json::to_string(command).ok(),
                    by.as_ref().and_then(|by| by.key.as_ref()),
                ])?;
        }
        Fact::Tree(TreeFact::CommandDenied { command, by, denial }) => {
            connection
                .prepare_cached("INSERT OR REPLACE INTO commands VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7)")?
                .execute(params![
                    seq,
                    millis(event.at),
                    by.as_ref().map(|by| &by.who),
                    command.verb(),
                    serde_json::to_string(command).ok(),
                    denial.reason,
                    by.as_ref().and_then(|by| by.key.as_ref()),
                ])?;
        }
        Fact::Tree(TreeFact::ShutdownStarted { cause }) => set_meta(connection, "going_down", cause)?,
        Fact::Tree(TreeFact::ShutdownDone) => {
            set_meta(connection, "ended", "1")?;
            connection.execute("DELETE FROM meta WHERE key = 'going_down'", [])?;
        }
        _ => {}
    }
    Ok(())
}

/// Closes incarnations whose end was never stored and that no longer run. Concerns the instances of
/// `pasts` and, with `of_all_but`, every other instance except those it names.
fn close_lost(
    connection: &Connection,
    pasts: &[InstanceRecord],
    of_all_but: Option<&HashSet<String>>,
) -> Result<(), rusqlite::Error> {
    let named: HashSet<String> = pasts.iter().map(|past| past.instance.to_string()).collect();
    let live: HashSet<(String, u64)> = pasts
        .iter()
        .filter(|past| past.state.has_process() || past.state == State::Starting)
        .map(|past| (past.instance.to_string(), past.incarnation.0))
        .collect();
    let mut open =
        connection.prepare_cached("SELECT instance, number FROM incarnations WHERE ended_at IS NULL")?;
    let rows = open.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
    let mut lost: Vec<(String, i64)> = rows.collect::<Result<_, _>>()?;
    lost.retain(|(id, number)| {
        let concerned = named.contains(id) || of_all_but.is_some_and(|alone| !alone.contains(id));
        concerned && !live.contains(&(id.clone(), number.cast_unsigned()))
    });
    let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    for (instance, number) in lost {
        connection
            .prepare_cached(
                "UPDATE incarnations SET ended_at = ?3, exit = ?4, life = NULL WHERE instance = ?1 AND number = ?2",
            )?
            .execute(params![instance, number, now, r#"{"unknown":true,"ended":"by_itself"}"#])?;
    }
    Ok(())
}

fn write_pid(
    connection: &Connection,
    instance: &InstanceId,
    incarnation: Incarnation,
    pid: Option<u32>,
) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached(
            "INSERT INTO incarnations (instance, number, pid) VALUES (?1, ?2, ?3) \
             ON CONFLICT DO UPDATE SET pid = excluded.pid",
        )?
        .execute(params![instance.to_string(), incarnation.0.cast_signed(), pid])
        .map(drop)
}

fn write_audit(connection: &Connection, entry: &AuditEntry) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached(
            "INSERT INTO audit (at, who, action, resource, allowed, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            millis(entry.at),
            entry.who,
            entry.action,
            entry.resource,
            entry.allowed,
            entry.reason
        ])
        .map(drop)
}

fn write_answer(connection: &Connection, kept: &StoredAnswer) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO answers VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![kept.who, kept.key, kept.asked, millis(SystemTime::now()), kept.status, kept.body])
        .map(drop)
}

fn write_result(connection: &Connection, key: &[u8; 32], kept: &KeptResult) -> Result<(), rusqlite::Error> {
    let result = serde_json::to_string(&kept.result).unwrap_or_default();
    connection
        .prepare_cached("INSERT OR REPLACE INTO results VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![key.as_slice(), millis(kept.since), millis(kept.until), result])
        .map(drop)
}

/// Stores resource points. Points of the machine are stored under an empty instance name.
fn write_resources(connection: &Connection, points: &[ClosedPoint]) -> Result<(), rusqlite::Error> {
    let mut statement =
        connection.prepare_cached("INSERT OR REPLACE INTO resources VALUES (?1, ?2, ?3, ?4)")?;
    for (of, point) in points {
        let of = of.as_deref().unwrap_or_default();
        let levels = serde_json::to_string(&point.levels).unwrap_or_default();
        statement.execute(params![millis(point.at), of, point.samples, levels])?;
    }
    Ok(())
}
