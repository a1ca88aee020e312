//! The named pools of an embedding program: pools for commands, and pools for functions that block.
//! Each kind has one pool named `default`, which exists from the start of the tree.
//!
//! This module creates, lists and removes pools. How a pool runs its work is in
//! [`tasks`](super::tasks) and [`blocking`](super::blocking).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ractor::ActorRef;
use tokio::sync::watch;

use super::blocking::{BlockingPool, BlockingSize, BlockingSnapshot};
use super::{StartError, Tasks};
use crate::actors::ActorContext;
use crate::actors::messages::SupervisorMsg;
use crate::actors::system::SystemMsg;
use crate::actors::worker_pool::{TaskContext, TaskPersistence, TaskRules};
use crate::model::sample::Sample;
use crate::model::stats::PoolStats;
use crate::model::{Denial, DenialCode, Name};

/// The name of the two pools that exist from the start of the tree.
pub const DEFAULT: &str = "default";

/// The pools of a tree. The handle is cheap to clone.
#[derive(Clone)]
pub struct Pools {
    inner: Arc<Inner>,
}

struct Inner {
    rules: TaskRules,
    task_context: Arc<TaskContext>,
    context: Arc<ActorContext>,
    samples: watch::Sender<Option<Arc<Sample>>>,
    system: ActorRef<SystemMsg>,
    tasks: Tasks,
    blocking: BlockingPool,
    named: Mutex<BTreeMap<Name, Named>>,
    /// The flag turns true at the end of the tree: from then on no pool is created.
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

/// The status of a pool, by its kind.
#[derive(Debug, Clone, PartialEq)]
pub enum PoolStatus {
    /// A pool that runs commands.
    Commands(PoolStats),
    /// A pool that runs blocking functions.
    Blocking(BlockingSize, BlockingSnapshot),
}

/// Everything that [`Pools::start`] needs.
pub(super) struct PoolsArgs {
    pub(super) rules: TaskRules,
    pub(super) task_context: TaskContext,
    pub(super) context: Arc<ActorContext>,
    pub(super) samples: watch::Sender<Option<Arc<Sample>>>,
    pub(super) root: ActorRef<SupervisorMsg>,
    pub(super) system: ActorRef<SystemMsg>,
    pub(super) lasting: TaskPersistence,
}

impl Pools {
    pub(super) async fn start(args: PoolsArgs) -> Result<Pools, StartError> {
        let PoolsArgs { rules, task_context, context, samples, root, system, lasting } = args;
        let task_context = Arc::new(task_context);
        let args = (rules.clone(), Arc::clone(&task_context), None);
        let above = (Some(root), lasting);
        let tasks = Tasks::start(args, above, &context, samples.subscribe(), &system).await?;
        let name = Name::new(DEFAULT).map_err(|error| StartError::Tree(error.to_string()))?;
        let blocking = BlockingPool::new(name, BlockingSize::default());
        let named = Mutex::default();
        let ended = AtomicBool::new(false);
        let inner = Inner { rules, task_context, context, samples, system, tasks, blocking, named, ended };
        Ok(Pools { inner: Arc::new(inner) })
    }

    fn named(&self) -> MutexGuard<'_, BTreeMap<Name, Named>> {
        self.inner.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The default pool for commands.
    pub fn commands(&self) -> &Tasks {
        &self.inner.tasks
    }

    /// The default pool for blocking functions.
    pub fn blocking(&self) -> &BlockingPool {
        &self.inner.blocking
    }

    /// The rules of the default pool for commands, as a base for those of another pool.
    pub fn rules(&self) -> &TaskRules {
        &self.inner.rules
    }

    /// Makes a pool for commands, with workers, a queue and a cache (in memory) of its own. Refused
    /// where the name is in use.
    pub async fn create_commands(&self, name: Name, rules: TaskRules) -> Result<Tasks, Denial> {
        self.free(&name)?;
        let Inner { task_context, context, samples, system, .. } = &*self.inner;
        let mut rules = rules;
        // The scaler decides on every sample, as in the default pool. Only the default pool's results
        // outlive the supervisor.
        rules.scale.pause = self.inner.rules.scale.pause;
        let args = (rules, Arc::clone(task_context), Some(name.clone()));
        let above = (None, TaskPersistence::default());
        let tasks = Tasks::start(args, above, context, samples.subscribe(), system).await;
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
            // A concurrent caller has created a pool of this name meanwhile.
            tasks.end();
            return Err(exists(&name));
        }
        Ok(tasks)
    }

    /// Makes a pool for blocking functions. Refused where the name is in use.
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

    /// The pool for commands with this name.
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

    /// The pool for blocking functions with this name.
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

    /// The names and the status of all pools, the two default ones first.
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
                    // The pool's actor has ended with the tree.
                    Err(_) => continue,
                },
                Named::Blocking(pool) => PoolStatus::Blocking(pool.size(), pool.snapshot()),
            };
            list.push((name, status));
        }
        list
    }

    /// Closes a named pool and forgets it. With `wait`, everything that the pool has accepted runs to
    /// its end first. Otherwise waiting work is cancelled and running commands are ended; running
    /// functions go on by themselves.
    pub async fn remove(&self, name: &str, wait: bool) -> Result<(), Denial> {
        if name == DEFAULT {
            let reason = "the pool default can't be removed: it lives as long as its tree".to_owned();
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
        // A new pool may have taken the name meanwhile; that one is kept.
        self.named().retain(|of, other| of.as_str() != name || !other.is(&pool));
        Ok(())
    }

    /// All pools that run commands, for the end of the tree.
    pub(super) fn of_commands(&self) -> Vec<Tasks> {
        let named = self.named();
        let named = named.values().filter_map(|pool| match pool {
            Named::Commands(tasks) => Some(tasks.clone()),
            Named::Blocking(_) => None,
        });
        std::iter::once(self.inner.tasks.clone()).chain(named).collect()
    }

    /// Closes all pools for blocking functions, and lets no new pool be created.
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
    denial(DenialCode::Exists, format!("a pool {name} already exists"))
}

fn denial(code: DenialCode, reason: String) -> Denial {
    Denial { code, reason, hint: None }
}
