//! The tasks that a daemon has taken and that are not over, in a file without a name that its keeper holds: a
//! daemon after this one runs those that waited. It is in memory alone, since it has what clients' environments
//! have, and ends with the keeper.
//!
//! Each step is one line behind the others, written before it is answered; what is over is left out when the
//! file is written anew.

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
    /// For whom it runs: cached results are kept apart by that.
    pub who: String,
    /// The command, with the environment that its client gave it.
    pub spec: TaskSpec,
    /// Milliseconds since 1970.
    pub submitted: u64,
    /// How often it was run.
    #[serde(default)]
    pub attempts: u32,
    /// The common environment that it was taken with.
    env: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    /// What many have in common is written once.
    Env(u64, Arc<Vec<(String, String)>>),
    Taken(Box<Waiting>),
    /// It runs, for the so manieth time.
    Runs(TaskId, u32),
    Over(TaskId),
}

/// They are written anew when so many bytes say nothing any more.
const SPENT: u64 = 1 << 20;

/// The file.
pub struct WaitingTasks {
    written: Mutex<Written>,
    hold: Hold,
}

/// Has a keeper hold the file.
type Hold = Box<dyn Fn(OwnedFd) + Send + Sync>;

struct Written {
    file: File,
    /// By their numbers: how many tasks have each, and how long its line is.
    envs: HashMap<u64, (usize, u64)>,
    bytes: u64,
    /// Of what is over.
    spent: u64,
    /// How long the line of each is, and which environment it has.
    sizes: BTreeMap<TaskId, (u64, Option<u64>)>,
}

impl WaitingTasks {
    /// Goes on with the file of an earlier daemon, or begins one. Returns what was not over, in its order.
    pub fn open(earlier: Option<OwnedFd>, hold: Hold) -> io::Result<(WaitingTasks, Vec<Waiting>)> {
        let found = match earlier {
            Some(earlier) => read(&mut File::from(earlier))?,
            None => Vec::new(),
        };
        let tasks = WaitingTasks { written: Mutex::new(Written::begin(&found)?), hold };
        tasks.hold_it(&tasks.lock())?;
        Ok((tasks, found))
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold_it(&self, written: &Written) -> io::Result<()> {
        (self.hold)(written.file.try_clone()?.into());
        Ok(())
    }

    /// A task was taken.
    pub fn taken(&self, id: TaskId, who: &str, spec: &TaskSpec, submitted: u64) -> io::Result<()> {
        let waiting =
            Waiting { id, who: who.to_owned(), spec: spec.clone(), submitted, attempts: 0, env: None };
        self.lock().take(waiting)
    }

    /// It runs, for the so manieth time.
    pub fn runs(&self, id: TaskId, attempt: u32) -> io::Result<()> {
        let mut written = self.lock();
        // One that lives with its client was never written down.
        match written.sizes.contains_key(&id) {
            true => written.write(&Step::Runs(id, attempt)).map(drop),
            false => Ok(()),
        }
    }

    /// It is over.
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

/// What is not over, in the order in which it was taken. A line that a killed daemon has left half written is
/// the last one, and says nothing.
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

    /// Whoever goes on finds what is not over, with its environment, however often the file was begun anew.
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
            // Most clients have one of their own.
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
        // Killed in the middle of a line.
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(b"{\"over\":\"").unwrap();
        let (_, found) = WaitingTasks::open(Some(file.into()), hold(&held)).unwrap();
        let all: Vec<(TaskId, u32)> = found.iter().map(|task| (task.id, task.attempts)).collect();
        assert_eq!(all, [0, 1_000, 2_000, 3_000, 4_000].map(|n| (id(n), if n == 1_000 { 2 } else { 0 })));
        assert!(found.iter().all(|task| task.spec.common_env == env && task.who == "ada"));
    }
}
