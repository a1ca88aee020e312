//! A tree with a worker pool and real processes, in a folder that is removed afterwards.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use regrow::actors::worker_pool::TaskRules;
use regrow::host::native::HostOptions;
use regrow::model::{Plan, ServiceSpec, TaskSpec};
use regrow::runtime::{Handle, Options};

pub(crate) struct Tree {
    pub(crate) handle: Handle,
    folder: tempfile::TempDir,
}

impl Tree {
    pub(crate) fn dir(&self) -> &Path {
        self.folder.path()
    }
}

pub(crate) async fn tree(change: impl FnOnce(&mut TaskRules)) -> Tree {
    tree_of(Vec::new(), Duration::from_millis(100), change).await
}

pub(crate) async fn tree_of(
    services: Vec<ServiceSpec>,
    sample_interval: Duration,
    change: impl FnOnce(&mut TaskRules),
) -> Tree {
    let folder = tempfile::tempdir().unwrap();
    let mut rules = TaskRules::usual(folder.path().join("tasks"));
    change(&mut rules);
    let host = HostOptions { subreaper: true, owns_process: false, die_with_us: true };
    let options = Options { host, tasks: Some(rules), sample_interval, ..Options::default() };
    let mut plan = Plan::of("tasks", services);
    plan.inherited = Arc::new(std::env::vars_os().collect());
    plan.folder = folder.path().to_owned();
    Tree { handle: Handle::start(plan, options).await.unwrap(), folder }
}

pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test);
}

pub(crate) fn shell(text: &str) -> TaskSpec {
    TaskSpec::shell(text)
}
