//! Named pools of an embedding program: for commands, and for functions that block. Each kind has one that
//! is there from the beginning, named `default`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ractor::ActorRef;
use tokio::sync::watch;

use super::blocking::{BlockingPool, BlockingSize, BlockingSnapshot};
use super::{StartError, Tasks};
use crate::actors::ActorContext;
use crate::actors::messages::SupervisorMsg;
use crate::actors::worker_pool::{TaskContext, TaskPersistence, TaskRules};
use crate::model::sample::Sample;
use crate::model::stats::PoolStats;
use crate::model::{Denial, DenialCode, Name};

/// The name of the pools that are there from the beginning.
pub const DEFAULT: &str = "default";

/// The pools of a tree. Cheap to clone.
#[derive(Clone)]
pub struct Pools {
    inner: Arc<Inner>,
}

struct Inner {
    rules: TaskRules,
    task_context: Arc<TaskContext>,
    context: Arc<ActorContext>,
    samples: watch::Sender<Option<Arc<Sample>>>,
    root: ActorRef<SupervisorMsg>,
    tasks: Tasks,
    blocking: BlockingPool,
    named: Mutex<BTreeMap<Name, Named>>,
    /// Turns true at the end of the tree.
    ended: AtomicBool,
}

#[derive(Clone)]
enum Named {
    Commands(Tasks),
    Blocking(BlockingPool),
}

impl Named {
    fn is(&self, other: &Named) -> bool {
        match (self, other) {
            (Named::Commands(one), Named::Commands(other)) => one.is(other),
            (Named::Blocking(one), Named::Blocking(other)) => one.is(other),
            (Named::Commands(_), Named::Blocking(_)) | (Named::Blocking(_), Named::Commands(_)) => false,
        }
    }
}

/// How a pool stands.
#[derive(Debug, Clone, PartialEq)]
pub enum PoolStatus {
    /// It runs commands.
    Commands(PoolStats),
    /// It runs functions.
    Blocking(BlockingSize, BlockingSnapshot),
}

/// With what pools are made.
pub(super) struct PoolsArgs {
    pub(super) rules: TaskRules,
    pub(super) task_context: TaskContext,
    pub(super) context: Arc<ActorContext>,
    pub(super) samples: watch::Sender<Option<Arc<Sample>>>,
    pub(super) root: ActorRef<SupervisorMsg>,
    pub(super) lasting: TaskPersistence,
}

impl Pools {
    pub(super) async fn start(args: PoolsArgs) -> Result<Pools, StartError> {
        let PoolsArgs { rules, task_context, context, samples, root, lasting } = args;
        let task_context = Arc::new(task_context);
        let args = (rules.clone(), Arc::clone(&task_context), None);
        let above = (Some(root.clone()), lasting);
        let tasks = Tasks::start(args, above, &context, samples.subscribe(), root.get_cell()).await?;
        let name = Name::new(DEFAULT).map_err(|error| StartError::Tree(error.to_string()))?;
        let blocking = BlockingPool::new(name, BlockingSize::default());
        let named = Mutex::default();
        let ended = AtomicBool::new(false);
        let inner = Inner { rules, task_context, context, samples, root, tasks, blocking, named, ended };
        Ok(Pools { inner: Arc::new(inner) })
    }

    fn named(&self) -> MutexGuard<'_, BTreeMap<Name, Named>> {
        self.inner.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool for commands that is there from the beginning.
    pub fn commands(&self) -> &Tasks {
        &self.inner.tasks
    }

    /// The pool for blocking functions that is there from the beginning.
    pub fn blocking(&self) -> &BlockingPool {
        &self.inner.blocking
    }

    /// The rules of the first pool for commands, to begin from.
    pub fn rules(&self) -> &TaskRules {
        &self.inner.rules
    }

    /// Makes a pool for commands, with workers, queue and cache (in memory) of its own. Refused where there
    /// is one of that name.
    pub async fn create_commands(&self, name: Name, rules: TaskRules) -> Result<Tasks, Denial> {
        self.free(&name)?;
        let Inner { task_context, context, samples, root, .. } = &*self.inner;
        let mut rules = rules;
        // Each sample is decided on, as for the first pool. Results outlive the supervisor in that alone.
        rules.scale.pause = self.inner.rules.scale.pause;
        let args = (rules, Arc::clone(task_context), Some(name.clone()));
        let above = (None, TaskPersistence::default());
        let tasks = Tasks::start(args, above, context, samples.subscribe(), root.get_cell()).await;
        let tasks = tasks.map_err(|error| denial(DenialCode::ShuttingDown, error.to_string()))?;
        let taken = {
            let mut named = self.named();
            let taken = named.contains_key(&name);
            if !taken {
                named.insert(name.clone(), Named::Commands(tasks.clone()));
            }
            taken
        };
        if taken {
            // Somebody else was quicker.
            tasks.end();
            return Err(exists(&name));
        }
        Ok(tasks)
    }

    /// Makes a pool for blocking functions. Refused where there is one of that name.
    pub fn create_blocking(&self, name: Name, size: BlockingSize) -> Result<BlockingPool, Denial> {
        self.free(&name)?;
        let pool = BlockingPool::new(name.clone(), size);
        let mut named = self.named();
        if named.contains_key(&name) {
            return Err(exists(&name));
        }
        named.insert(name, Named::Blocking(pool.clone()));
        Ok(pool)
    }

    fn free(&self, name: &Name) -> Result<(), Denial> {
        if self.inner.ended.load(Ordering::SeqCst) {
            return Err(denial(DenialCode::ShuttingDown, "the tree is going down".to_owned()));
        }
        let taken = name.as_str() == DEFAULT || self.named().contains_key(name);
        if taken { Err(exists(name)) } else { Ok(()) }
    }

    /// The pool for commands of this name.
    pub fn commands_named(&self, name: &str) -> Option<Tasks> {
        if name == DEFAULT {
            return Some(self.inner.tasks.clone());
        }
        let named = self.named();
        named.iter().find(|(of, _)| of.as_str() == name).and_then(|(_, pool)| match pool {
            Named::Commands(tasks) => Some(tasks.clone()),
            Named::Blocking(_) => None,
        })
    }

    /// The pool for blocking functions of this name.
    pub fn blocking_named(&self, name: &str) -> Option<BlockingPool> {
        if name == DEFAULT {
            return Some(self.inner.blocking.clone());
        }
        let named = self.named();
        named.iter().find(|(of, _)| of.as_str() == name).and_then(|(_, pool)| match pool {
            Named::Commands(_) => None,
            Named::Blocking(pool) => Some(pool.clone()),
        })
    }

    /// All there are, the two from the beginning first, and how they stand.
    pub async fn list(&self) -> Vec<(String, PoolStatus)> {
        let named: Vec<(Name, Named)> =
            self.named().iter().map(|(name, pool)| (name.clone(), pool.clone())).collect();
        let first = [Named::Commands(self.inner.tasks.clone()), Named::Blocking(self.inner.blocking.clone())];
        let all = first.into_iter().map(|pool| (DEFAULT.to_owned(), pool));
        let all = all.chain(named.into_iter().map(|(name, pool)| (name.to_string(), pool)));
        let mut list = Vec::new();
        for (name, pool) in all {
            let status = match pool {
                Named::Commands(tasks) => match tasks.snapshot().await {
                    Ok((snapshot, _)) => PoolStatus::Commands(snapshot),
                    // Its actor has ended with the tree.
                    Err(_) => continue,
                },
                Named::Blocking(pool) => PoolStatus::Blocking(pool.size(), pool.snapshot()),
            };
            list.push((name, status));
        }
        list
    }

    /// Closes a named pool and forgets it. `wait`: all that it has taken is run to its end first; otherwise
    /// what waits is cancelled, commands that run are ended, and functions that run go on alone.
    pub async fn remove(&self, name: &str, wait: bool) -> Result<(), Denial> {
        if name == DEFAULT {
            let reason = "the pool default lives as long as its tree".to_owned();
            return Err(denial(DenialCode::Invalid, reason));
        }
        let found = self.named().iter().find(|(of, _)| of.as_str() == name).map(|(_, pool)| pool.clone());
        let Some(pool) = found else {
            return Err(denial(DenialCode::NotFound, format!("there is no pool {name:?}")));
        };
        match &pool {
            Named::Commands(tasks) => {
                if wait {
                    tasks.drain().await?;
                } else {
                    tasks.close(false).await?;
                }
                tasks.end();
            }
            Named::Blocking(pool) if wait => pool.drain().await,
            Named::Blocking(pool) => pool.close(),
        }
        // Another one may have its name by now.
        self.named().retain(|of, other| of.as_str() != name || !other.is(&pool));
        Ok(())
    }

    /// At the end of the tree: those that run commands.
    pub(super) fn of_commands(&self) -> Vec<Tasks> {
        let named = self.named();
        let named = named.values().filter_map(|pool| match pool {
            Named::Commands(tasks) => Some(tasks.clone()),
            Named::Blocking(_) => None,
        });
        std::iter::once(self.inner.tasks.clone()).chain(named).collect()
    }

    /// And those that run functions take nothing more.
    pub(super) fn close_blocking(&self) {
        self.inner.ended.store(true, Ordering::SeqCst);
        self.inner.blocking.close();
        for pool in self.named().values() {
            if let Named::Blocking(pool) = pool {
                pool.close();
            }
        }
    }
}

fn exists(name: &Name) -> Denial {
    denial(DenialCode::Exists, format!("there is a pool {name} already"))
}

fn denial(code: DenialCode, reason: String) -> Denial {
    Denial { code, reason, hint: None }
}
