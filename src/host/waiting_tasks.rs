//! The tasks that a daemon has accepted and that are not over, in a file without a name that its
//! keeper holds. The next daemon runs the tasks that waited. The file is in memory only, because it
//! contains the environments of clients, and it ends with the keeper.
//!
//! Each step is one line, appended before the step is answered. Tasks that are over are left out
//! when the file is rewritten.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::model::digest::fnv;
use crate::model::task::{TaskId, TaskSpec};

/// A task that is not over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// The id that its client knows it by.
    pub id: TaskId,
    /// The client that it runs for: cached results are kept apart by client.
    pub who: String,
    /// The command, with the environment that its client gave it.
    pub spec: TaskSpec,
    /// When the task was submitted, in milliseconds since 1970.
    pub submitted: u64,
    /// How many times the task was run.
    #[serde(default)]
    pub attempts: u32,
    /// The number of the common environment that it was accepted with; `None` if that is empty.
    env: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    /// An environment that many tasks share, with its number; it is written once.
    Env(u64, Arc<Vec<(String, String)>>),
    Taken(Box<Waiting>),
    /// The task runs, with the number of this attempt.
    Runs(TaskId, u32),
    Over(TaskId),
}

/// The file is rewritten when more than this many bytes are about tasks that are over.
const SPENT: u64 = 1 << 20;

/// The file of waiting tasks.
pub struct WaitingTasks {
    written: Mutex<Written>,
    hold: Hold,
}

/// The function that has a keeper hold the file.
type Hold = Box<dyn Fn(OwnedFd) + Send + Sync>;

struct Written {
    file: File,
    /// Environments by their number: how many tasks have each, and how many bytes its line takes.
    envs: HashMap<u64, (usize, u64)>,
    bytes: u64,
    /// How many of the bytes are about tasks that are over.
    spent: u64,
    /// How many bytes the line of each task takes, and the number of its environment.
    sizes: BTreeMap<TaskId, (u64, Option<u64>)>,
}

impl WaitingTasks {
    /// Continues the file of an earlier daemon, or begins one. Returns the tasks that were not
    /// over, in the order in which they were accepted.
    pub fn open(earlier: Option<OwnedFd>, hold: Hold) -> io::Result<(WaitingTasks, Vec<Waiting>)> {
        let found = match earlier {
            Some(earlier) => read(&mut File::from(earlier))?,
            None => Vec::new(),
        };
        let tasks = WaitingTasks { written: Mutex::new(Written::begin(&found)?), hold };
        tasks.hold_it(&tasks.lock())?;
        Ok((tasks, found))
    }

    /// The tasks that are not over, in the order in which they were accepted.
    pub fn left(&self) -> io::Result<Vec<Waiting>> {
        let mut written = self.lock();
        let left = read(&mut written.file);
        // What is written next goes behind all of it, whatever the reading came to.
        written.file.seek(SeekFrom::End(0))?;
        left
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold_it(&self, written: &Written) -> io::Result<()> {
        (self.hold)(written.file.try_clone()?.into());
        Ok(())
    }

    /// Notes that a task was accepted.
    pub fn taken(&self, id: TaskId, who: &str, spec: &TaskSpec, submitted: u64) -> io::Result<()> {
        let waiting =
            Waiting { id, who: who.to_owned(), spec: spec.clone(), submitted, attempts: 0, env: None };
        self.lock().take(waiting)
    }

    /// Notes that a task runs, with the number of this attempt.
    pub fn runs(&self, id: TaskId, attempt: u32) -> io::Result<()> {
        let mut written = self.lock();
        // A task that ends with its client was never noted.
        if !written.sizes.contains_key(&id) {
            return Ok(());
        }
        let line = written.write(&Step::Runs(id, attempt))?;
        if let Some((size, _)) = written.sizes.get_mut(&id) {
            *size += line;
        }
        Ok(())
    }

    /// Notes that a task is over.
    pub fn over(&self, id: TaskId) -> io::Result<()> {
        let mut written = self.lock();
        let Some((size, env)) = written.sizes.remove(&id) else {
            return Ok(());
        };
        let line = written.write(&Step::Over(id))?;
        written.spent += size + line;
        if let Some(number) = env
            && let Some((uses, size)) = written.envs.get_mut(&number)
        {
            *uses -= 1;
            if *uses == 0 {
                let size = *size;
                written.spent += size;
                written.envs.remove(&number);
            }
        }
        if written.spent > SPENT && written.spent > written.bytes / 2 {
            let left = read(&mut written.file)?;
            *written = Written::begin(&left)?;
            self.hold_it(&written)?;
        }
        Ok(())
    }
}

impl Written {
    fn begin(tasks: &[Waiting]) -> io::Result<Written> {
        let file = File::from(memfd_create(c"regrow-tasks", MFdFlags::MFD_CLOEXEC)?);
        let (envs, sizes) = (HashMap::new(), BTreeMap::new());
        let mut written = Written { file, envs, bytes: 0, spent: 0, sizes };
        for task in tasks {
            written.take(task.clone())?;
        }
        Ok(written)
    }

    fn take(&mut self, mut task: Waiting) -> io::Result<()> {
        let env = &task.spec.common_env;
        if !env.is_empty() {
            let number = fnv(&serde_json::to_vec(&**env)?);
            if !self.envs.contains_key(&number) {
                let size = self.write(&Step::Env(number, Arc::clone(env)))?;
                self.envs.insert(number, (0, size));
            }
            task.env = Some(number);
        }
        let (id, env) = (task.id, task.env);
        let size = self.write(&Step::Taken(Box::new(task)))?;
        self.sizes.insert(id, (size, env));
        if let Some((uses, _)) = env.and_then(|number| self.envs.get_mut(&number)) {
            *uses += 1;
        }
        Ok(())
    }

    fn write(&mut self, step: &Step) -> io::Result<u64> {
        let mut line = serde_json::to_vec(step)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.bytes += line.len() as u64;
        Ok(line.len() as u64)
    }
}

/// Returns the tasks that are not over, in the order in which they were accepted. A line that a
/// killed daemon left unfinished is the last one, and is ignored.
fn read(file: &mut File) -> io::Result<Vec<Waiting>> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut text)?;
    let mut envs: BTreeMap<u64, Arc<Vec<(String, String)>>> = BTreeMap::new();
    let mut tasks: Vec<Option<Waiting>> = Vec::new();
    let mut places: BTreeMap<TaskId, usize> = BTreeMap::new();
    for step in text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()) {
        match step {
            Step::Env(number, env) => drop(envs.insert(number, env)),
            Step::Taken(mut task) => {
                let env = task.env.and_then(|number| envs.get(&number));
                task.spec.common_env = env.cloned().unwrap_or_default();
                places.insert(task.id, tasks.len());
                tasks.push(Some(*task));
            }
            Step::Runs(id, attempt) => {
                if let Some(Some(task)) = places.get(&id).and_then(|at| tasks.get_mut(*at)) {
                    task.attempts = attempt;
                }
            }
            Step::Over(id) => {
                if let Some(at) = places.remove(&id) {
                    tasks[at] = None;
                }
            }
        }
    }
    Ok(tasks.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(number: u64) -> TaskId {
        TaskId(Uuid::from_u64_pair(7, number))
    }

    /// The next daemon finds the tasks that are not over, with their environments, however often
    /// the file was rewritten.
    #[test]
    fn the_next_one_finds_what_is_not_over() {
        let held: Arc<Mutex<Option<OwnedFd>>> = Arc::default();
        let hold = |held: &Arc<Mutex<Option<OwnedFd>>>| -> Hold {
            let held = Arc::clone(held);
            Box::new(move |file| *held.lock().unwrap() = Some(file))
        };
        let (tasks, found) = WaitingTasks::open(None, hold(&held)).unwrap();
        assert!(found.is_empty());
        let env = Arc::new(vec![("A".to_owned(), "x".repeat(5_000))]);
        let mut spec = TaskSpec::new(["echo", "hello"]);
        spec.common_env = Arc::clone(&env);
        for number in 0..5_000 {
            // Most clients have an environment of their own.
            let own = Arc::new(vec![("OWN".to_owned(), format!("{number}{}", "y".repeat(2_000)))]);
            spec.common_env = if number % 1_000 == 0 { Arc::clone(&env) } else { own };
            tasks.taken(id(number), "ada", &spec, number).unwrap();
            if number % 1_000 != 0 {
                tasks.over(id(number)).unwrap();
            }
        }
        tasks.runs(id(1_000), 2).unwrap();
        drop(tasks);
        let mut file = File::from(held.lock().unwrap().take().unwrap());
        assert!(file.metadata().unwrap().len() < 3 * SPENT);
        // A line that was cut by a kill.
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(b"{\"over\":\"").unwrap();
        let (_, found) = WaitingTasks::open(Some(file.into()), hold(&held)).unwrap();
        let all: Vec<(TaskId, u32)> = found.iter().map(|task| (task.id, task.attempts)).collect();
        assert_eq!(all, [0, 1_000, 2_000, 3_000, 4_000].map(|n| (id(n), if n == 1_000 { 2 } else { 0 })));
        assert!(found.iter().all(|task| task.spec.common_env == env && task.who == "ada"));
    }
}
