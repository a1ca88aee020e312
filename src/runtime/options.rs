//! What a runtime is started with, and why it may not come up.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::actors::LogRetention;
use crate::actors::worker_pool::TaskRules;
use crate::decide::message::StepSink;
use crate::host::native::HostOptions;
use crate::model::Name;
use crate::record::output::ChunkSink;
use crate::runner::Runner;
use crate::sys::files;

/// The interval between two samples of the ResourceMonitor, unless told otherwise.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(15);

/// The settings that a runtime is started with.
pub struct Options {
    /// How the process that the runtime lives in is treated.
    pub host: HostOptions,
    /// The interval between two samples of the resources.
    pub sample_interval: Duration,
    /// The sink that gets all output of the processes as it comes.
    pub console: Option<Arc<dyn ChunkSink>>,
    /// The sink that takes the output of services whose `log` says `inherit`.
    pub own_output: Option<Arc<dyn ChunkSink>>,
    /// The path of the control socket, which services find in their environment.
    pub socket: Option<PathBuf>,
    /// The recorder of every step and event of the run.
    pub recorder: Option<Box<dyn StepSink>>,
    /// The folder of the secrets that environments name; `None`: `secrets` in the state folder.
    pub secrets: Option<PathBuf>,
    /// The rules by which the worker pool runs tasks. With `None` the rules are those of the contract,
    /// and output that exceeds the limit in memory goes to `tasks` in the state folder.
    pub tasks: Option<TaskRules>,
    /// Runners of other things than processes of this machine, by the name that services give
    /// (`ServiceSpec::runner`). What they start prints to the screens; it has no log files.
    pub runners: BTreeMap<Name, Arc<dyn Runner>>,
    /// How output is kept in files. Unless told otherwise, only services with `log` have files; those
    /// without a `file` have theirs in `logs` in the state folder, where two programs must not use the
    /// same service names.
    pub keep: LogRetention,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            host: HostOptions::default(),
            sample_interval: SAMPLE_INTERVAL,
            console: None,
            own_output: None,
            socket: None,
            recorder: None,
            secrets: None,
            tasks: None,
            runners: BTreeMap::new(),
            keep: LogRetention::declared(files::state_dir().join("logs")),
        }
    }
}

/// The reason why a tree did not come up.
#[derive(Debug)]
pub enum StartError {
    /// The dependencies form circles: each path leads back to its first name.
    Cycles(Vec<Vec<Name>>),
    /// A group names something that is not in the plan, or an actor did not start.
    Tree(String),
    /// The kernel refused something that every run needs.
    Host(io::Error),
    /// The supervisor before this one ended in order but could no longer tell its keeper so. Nothing is
    /// to be started.
    Over,
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::Cycles(cycles) => {
                f.write_str("dependency cycle:")?;
                for cycle in cycles {
                    let words: Vec<&str> = cycle.iter().map(Name::as_str).collect();
                    write!(f, " {}", words.join(" -> "))?;
                }
                Ok(())
            }
            StartError::Tree(reason) => f.write_str(reason),
            StartError::Host(error) => write!(f, "the host can't start: {error}"),
            StartError::Over => f.write_str("everything is down already"),
        }
    }
}

impl std::error::Error for StartError {}

/// The root of a tree crashed: this is a fault in regrow itself, which the program's log reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeBroke;

impl std::fmt::Display for TreeBroke {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the tree has ended because of a fault in regrow itself")
    }
}

impl std::error::Error for TreeBroke {}
