//! The tables of the database, the steps that migrate them, and the reading at the start.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::StoreError;
use crate::decide::ledger::Memory;
use crate::model::{Incarnation, InstanceRecord, Name};
use crate::sys::files;

/// The migration steps. Each is applied once, in order; the number of applied steps is the
/// database's `user_version`.
const STEPS: &[&str] = &["
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE services (
    name TEXT PRIMARY KEY, project TEXT, spec TEXT NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE instances (
    id TEXT PRIMARY KEY, service TEXT NOT NULL, state TEXT NOT NULL, goal TEXT NOT NULL, pid INTEGER,
    incarnation INTEGER NOT NULL, restarts INTEGER NOT NULL, error TEXT, heartbeat INTEGER, past TEXT NOT NULL,
    created INTEGER NOT NULL, updated INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX instances_by_state ON instances (state);
CREATE INDEX instances_by_service ON instances (service);
CREATE INDEX instances_by_heartbeat ON instances (heartbeat);
CREATE TABLE incarnations (
    instance TEXT NOT NULL, number INTEGER NOT NULL, pid INTEGER, cause TEXT, started_at TEXT, ended_at TEXT,
    exit TEXT, uptime_s REAL, life TEXT, PRIMARY KEY (instance, number)
) WITHOUT ROWID;
CREATE INDEX incarnations_alive ON incarnations (ended_at) WHERE ended_at IS NULL;
CREATE TABLE events (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, name TEXT NOT NULL, instance TEXT, body TEXT NOT NULL);
CREATE INDEX events_by_instance ON events (instance, seq);
CREATE INDEX events_by_time ON events (at);
CREATE TABLE commands (
    seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, who TEXT, verb TEXT NOT NULL, command TEXT NOT NULL,
    accepted INTEGER NOT NULL, reason TEXT
);
CREATE TABLE samples (
    at INTEGER NOT NULL, instance TEXT NOT NULL, cpu_percent REAL, memory_bytes INTEGER, processes INTEGER,
    PRIMARY KEY (at, instance)
) WITHOUT ROWID;
", "
ALTER TABLE events ADD COLUMN state TEXT;
UPDATE events SET state = CASE
    WHEN name IN ('waiting', 'starting', 'running', 'paused', 'stopping', 'stopped', 'completed', 'crashed', 'failed')
        THEN name
    WHEN name = 'resumed' THEN 'running' WHEN name IN ('left_behind', 'killed') THEN 'stopping' END;
CREATE INDEX events_by_state ON events (state, seq) WHERE state IS NOT NULL;
ALTER TABLE commands ADD COLUMN key TEXT;
CREATE INDEX commands_by_key ON commands (key, who) WHERE key IS NOT NULL;
CREATE TABLE audit (
    id INTEGER PRIMARY KEY, at INTEGER NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL, resource TEXT NOT NULL,
    allowed INTEGER NOT NULL, reason TEXT
);
CREATE INDEX audit_by_time ON audit (at);
CREATE INDEX audit_by_verdict ON audit (allowed, id);
CREATE TABLE answers (
    who TEXT NOT NULL, key TEXT NOT NULL, asked TEXT NOT NULL, at INTEGER NOT NULL, status INTEGER NOT NULL,
    body TEXT NOT NULL, PRIMARY KEY (who, key)
) WITHOUT ROWID;
CREATE INDEX answers_by_time ON answers (at);
CREATE TABLE by_hand (id INTEGER PRIMARY KEY, change TEXT NOT NULL);
", "
DROP TABLE samples;
CREATE TABLE resources (
    at INTEGER NOT NULL, instance TEXT NOT NULL, samples INTEGER NOT NULL, levels TEXT NOT NULL,
    PRIMARY KEY (at, instance)
) WITHOUT ROWID;
CREATE TABLE results (key BLOB PRIMARY KEY, since INTEGER NOT NULL, until INTEGER NOT NULL, result TEXT NOT NULL)
    WITHOUT ROWID;
CREATE INDEX results_by_time ON results (since);
", "
UPDATE OR IGNORE incarnations SET instance = (SELECT s.project FROM instances i JOIN services s ON s.name = i.service
    WHERE i.id = incarnations.instance) || '/' || instance
    WHERE instr(instance, '/') = 0 AND EXISTS (SELECT 1 FROM instances i JOIN services s ON s.name = i.service
    WHERE i.id = incarnations.instance AND s.project IS NOT NULL);
UPDATE events SET
    body = json_set(body, '$.instance', (SELECT s.project FROM instances i JOIN services s ON s.name = i.service
        WHERE i.id = events.instance) || '/' || instance),
    instance = (SELECT s.project FROM instances i JOIN services s ON s.name = i.service
        WHERE i.id = events.instance) || '/' || instance
    WHERE instr(instance, '/') = 0 AND EXISTS (SELECT 1 FROM instances i JOIN services s ON s.name = i.service
    WHERE i.id = events.instance AND s.project IS NOT NULL);
UPDATE OR IGNORE resources SET instance = (SELECT s.project FROM instances i JOIN services s ON s.name = i.service
    WHERE i.id = resources.instance) || '/' || instance
    WHERE instr(instance, '/') = 0 AND EXISTS (SELECT 1 FROM instances i JOIN services s ON s.name = i.service
    WHERE i.id = resources.instance AND s.project IS NOT NULL);
UPDATE OR IGNORE instances SET
    id = (SELECT s.project FROM services s WHERE s.name = instances.service) || '/' || id,
    service = (SELECT s.project FROM services s WHERE s.name = instances.service) || '/' || service
    WHERE instr(service, '/') = 0
    AND EXISTS (SELECT 1 FROM services s WHERE s.name = instances.service AND s.project IS NOT NULL);
UPDATE OR IGNORE services SET name = project || '/' || name WHERE instr(name, '/') = 0 AND project IS NOT NULL;
", "
CREATE TABLE tasks (id TEXT PRIMARY KEY, over INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX tasks_by_time ON tasks (over);
"];

const NEWER: &str = "it was written by a newer build of regrow";

/// The size in bytes up to which a database is checked at the start.
const CHECKED: u64 = 256 << 20;

/// Milliseconds since 1970.
pub(super) fn millis(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The end of the name of an in-memory database, which all connections of this process share
/// (SQLite's memdb).
const IN_MEMORY: &str = "?vfs=memdb";

/// The place of the database that a configuration names. Each `:memory:` is a new one.
pub(super) fn place_of(path: &Path) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    if path.as_os_str() != ":memory:" {
        return path.to_owned();
    }
    format!("file:/regrow-{}{IN_MEMORY}", NUMBER.fetch_add(1, Ordering::Relaxed)).into()
}

pub(super) fn is_in_memory(place: &Path) -> bool {
    place.as_os_str().as_encoded_bytes().ends_with(IN_MEMORY.as_bytes())
}

/// Opens a database. A damaged one is set aside, which the result reports.
pub(super) fn open(path: &Path) -> Result<(Database, Memory), StoreError> {
    let memory = is_in_memory(path);
    if !memory {
        super::private_folder(path).map_err(|error| StoreError(error.to_string()))?;
    }
    match prepared(path) {
        Ok((connection, memory)) => Ok((Database::Open(connection), memory)),
        Err(error) if !memory && is_beyond_use(&error) => {
            let aside = set_aside(path)?;
            let (connection, memory) = prepared(path)?;
            let trouble = format!(
                "the store can't be read ({error}); it was set aside as {}, and a new one is begun",
                aside.display()
            );
            Ok((Database::Open(connection), Memory { trouble: Some(trouble), ..memory }))
        }
        // Most likely the disk accepts no writes at the moment. The stored data is read all the same.
        Err(error) if !memory && is_only_unwritable(&error) => {
            let memory = only_read(path).unwrap_or_default();
            let trouble = format!("events are not recorded for now: {}: {error}", path.display());
            Ok((Database::Unopened, Memory { trouble: Some(trouble), ..memory }))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether only the place can't be written, while the database itself may be whole.
fn is_only_unwritable(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, ReadOnly, SystemIoFailure};
    match error {
        rusqlite::Error::SqliteFailure(failure, what) => {
            let newer = what.as_ref().is_some_and(|what| what.contains(NEWER));
            matches!(failure.code, CannotOpen | DiskFull | ReadOnly | SystemIoFailure) && !newer
        }
        _ => false,
    }
}

/// Reads a database that can't be written, with its write-ahead log if possible, and without it
/// otherwise.
fn only_read(path: &Path) -> Result<Memory, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let whole = Connection::open_with_flags(path, flags).and_then(|connection| remembered(&connection));
    whole.or_else(|_| {
        let uri = format!("file:{}?immutable=1", path.display());
        let connection = Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?;
        remembered(&connection)
    })
}

/// Whether an error means that the database is damaged.
pub(super) fn is_beyond_use(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, SchemaChanged};
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            matches!(failure.code, DatabaseCorrupt | NotADatabase | SchemaChanged)
        }
        _ => false,
    }
}

/// Sets a database aside if it exists. Otherwise removes the log files that a removed one has left.
pub(super) fn set_aside_if_there(path: &Path) -> Result<(), StoreError> {
    if path.exists() {
        return set_aside(path).map(drop);
    }
    for suffix in ["-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let _ = fs::remove_file(name);
    }
    super::private_folder(path).map_err(|error| StoreError(error.to_string()))
}

/// Renames a database together with its log files. Returns the new path.
pub(super) fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(':', "");
    let name = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = (0..100)
        .map(|n| name(&format!(".corrupt-{at}{}", if n == 0 { String::new() } else { format!("-{n}") })))
        .find(|aside| !aside.exists())
        .unwrap_or_else(|| name(".corrupt"));
    fs::rename(path, &aside).map_err(|error| StoreError(format!("{}: {error}", path.display())))?;
    for suffix in ["-wal", "-shm"] {
        let mut to = aside.as_os_str().to_owned();
        to.push(suffix);
        // The log files help to repair the old database by hand. Left in place, they would damage the
        // new one.
        if fs::rename(name(suffix), to).is_err() {
            let _ = fs::remove_file(name(suffix));
        }
    }
    Ok(aside)
}

/// Opens a connection for writing, and applies the missing migration steps.
pub(super) fn connect(path: &Path) -> Result<Connection, rusqlite::Error> {
    if !is_in_memory(path) {
        // SQLite itself would make the file with the mode that the umask leaves.
        if let Err(error) = files::own_file(path) {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
            return Err(rusqlite::Error::SqliteFailure(code, Some(error.to_string())));
        }
    }
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // A commit reaches the kernel: it survives a crash of any process, and a power cut leaves no torn
    // state.
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.set_prepared_statement_cache_capacity(32);
    let applied: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let applied = usize::try_from(applied).unwrap_or_default();
    if applied > STEPS.len() {
        // A newer build's database is neither changed nor set aside: that build may come back.
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_READONLY);
        let what = NEWER.to_owned();
        return Err(rusqlite::Error::SqliteFailure(code, Some(what)));
    }
    for (number, step) in (1usize..).zip(STEPS).skip(applied) {
        connection.execute_batch(&format!("BEGIN; {step} PRAGMA user_version = {number}; COMMIT;"))?;
    }
    Ok(connection)
}

fn prepared(path: &Path) -> Result<(Connection, Memory), rusqlite::Error> {
    let connection = connect(path)?;
    if fs::metadata(path).is_ok_and(|file| file.len() <= CHECKED) {
        let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            return Err(rusqlite::Error::SqliteFailure(code, Some(verdict)));
        }
    }
    let memory = remembered(&connection)?;
    Ok((connection, memory))
}

fn remembered(connection: &Connection) -> Result<Memory, rusqlite::Error> {
    let mut memory = Memory::default();
    let mut statement = connection.prepare("SELECT id, past FROM instances")?;
    for row in statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))? {
        let (id, past) = row?;
        // A record in an unknown form is skipped. The instance's process, if any, is still found.
        if let Ok(past) = serde_json::from_str::<InstanceRecord>(&past) {
            memory.pasts.insert(id, past);
        }
    }
    let mut statement = connection.prepare(
        "SELECT instance, number, life FROM incarnations WHERE ended_at IS NULL AND life IS NOT NULL",
    )?;
    let lives = statement.query_map([], |row| {
        let number: i64 = row.get(1)?;
        Ok((row.get(0)?, Incarnation(number.cast_unsigned()), row.get(2)?))
    })?;
    memory.lives = lives.collect::<Result<_, _>>()?;
    let last: Option<i64> = connection.query_row("SELECT max(seq) FROM events", [], |row| row.get(0))?;
    memory.last_event = last.unwrap_or(0).cast_unsigned();
    let meta = |key: &str| -> Result<Option<String>, rusqlite::Error> {
        connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
    };
    memory.boot = meta("boot")?;
    memory.ended = meta("ended")?.is_some();
    memory.going_down = meta("going_down")?;
    memory.since = meta("since")?.and_then(|text| text.parse().ok()).map(Duration::from_nanos);
    if let Some(names) = meta("failed_groups")? {
        memory.failed_groups = serde_json::from_str::<Vec<Name>>(&names).unwrap_or_default();
    }
    if let Some(names) = meta("failed_projects")? {
        memory.failed_projects = serde_json::from_str(&names).unwrap_or_default();
    }
    Ok(memory)
}

pub(super) fn set_meta(connection: &Connection, key: &str, value: &str) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached(
            "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )?
        .execute(params![key, value])
        .map(drop)
}

/// The state of the database file.
pub(super) enum Database {
    Open(Connection),
    /// The database is damaged, and a new one must be made.
    Spoiled,
    /// The database could not be opened for writing, and may be whole.
    Unopened,
}
