//! The arguments of the verbs that run commands: `exec`, `task`, `pool`, `stats`, `cache`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Common, duration, interval};
use crate::decide::progress::share;
use crate::model::{TaskId, TaskState};

/// How a command is run.
#[derive(Debug, Args)]
pub(in crate::cli) struct TaskArgs {
    /// Take the result of the same command that ran within so long, and keep this one's as long
    #[arg(long, value_name = "TTL", value_parser = ttl, num_args = 0..=1, default_missing_value = "30m")]
    pub(in crate::cli) cache: Option<Duration>,
    /// With --cache: only these variables make it another command [default: all that it gets]
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "cache")]
    pub(in crate::cli) cache_env: Option<Vec<String>>,
    /// Run it, whatever is kept
    #[arg(long)]
    pub(in crate::cli) no_cache: bool,
    /// End it after so long: SIGTERM, then SIGKILL (exit code 124)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) timeout: Option<Duration>,
    /// Who is ended has so long before SIGKILL [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) grace: Option<Duration>,
    /// Let /bin/sh run it
    #[arg(long)]
    pub(in crate::cli) shell: bool,
    /// Its folder [default: this one]
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) dir: Option<PathBuf>,
    /// A variable of its environment, which is this one's otherwise
    #[arg(long, value_name = "NAME=VALUE")]
    pub(in crate::cli) env: Vec<String>,
    /// What it reads; -: standard input, to its end
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) input: Option<PathBuf>,
    /// Higher ones are run first
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(in crate::cli) priority: i32,
    /// Run it again so often when it fails
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(in crate::cli) retries: u32,
    /// After so long the first time, each time twice as long [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) retry_delay: Option<Duration>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ExecArgs {
    #[command(flatten)]
    pub(in crate::cli) run: TaskArgs,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
    /// The command
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(in crate::cli) command: Vec<String>,
}

const PROGRESS_HELP: &str = "A task says it itself by a line on the descriptor that REGROW_PROGRESS_FD names: a \
number from 0 to 1 or a percentage, bytes=N, message=TEXT, each as it likes. In a shell:\n\n    \
echo \"40% bytes=1048576 message=unpacking\" >&$REGROW_PROGRESS_FD";

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum TaskVerb {
    /// Have a command run, and print its id
    Submit {
        #[command(flatten)]
        run: TaskArgs,
        /// A command a line; -: standard input
        #[arg(long, value_name = "FILE")]
        batch: Option<PathBuf>,
        /// Return when it is over (exit code 1 where one fails)
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        common: Common,
        /// The command
        #[arg(trailing_var_arg = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Show tasks, oldest first
    List {
        /// Only those in one of these states
        #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = task_state)]
        state: Vec<TaskState>,
        #[command(flatten)]
        common: Common,
    },
    /// Show one
    Status {
        /// Which
        id: TaskId,
        #[command(flatten)]
        common: Common,
    },
    /// Print what it printed, when it is over, and end as it did
    Result {
        /// Which
        id: TaskId,
        /// Give up when it is not over by then (exit code 5)
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        timeout: Option<Duration>,
        #[command(flatten)]
        common: Common,
    },
    /// Show how far one has come, or say it for one that runs
    #[command(after_help = PROGRESS_HELP)]
    Progress {
        /// Which
        id: TaskId,
        /// From 0 to 1, or a percentage
        #[arg(value_parser = share)]
        progress: Option<f64>,
        /// Bytes that it has worked on
        #[arg(long, value_name = "N")]
        bytes: Option<u64>,
        /// What it is at
        #[arg(long, value_name = "TEXT")]
        message: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// End them: SIGTERM, then SIGKILL; one that waits is not run
    Cancel {
        /// Which
        #[arg(required = true)]
        ids: Vec<TaskId>,
        /// SIGKILL at once
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Halt them, and their time
    Pause {
        /// Which
        #[arg(required = true)]
        ids: Vec<TaskId>,
        #[command(flatten)]
        common: Common,
    },
    /// Let them go on
    Resume {
        /// Which
        #[arg(required = true)]
        ids: Vec<TaskId>,
        #[command(flatten)]
        common: Common,
    },
    /// Forget those that are over
    Cleanup {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum PoolVerb {
    /// Show how it stands
    Status {
        #[command(flatten)]
        common: Common,
    },
    /// Set its bounds, and whether it scales by itself
    Set {
        /// So many workers at least
        #[arg(long, value_name = "N")]
        min: Option<u32>,
        /// And at most
        #[arg(long, value_name = "N")]
        max: Option<u32>,
        /// Whether there are more and fewer of them as the machine allows
        #[arg(long, value_name = "on|off", value_parser = on_or_off)]
        auto: Option<bool>,
        #[command(flatten)]
        common: Common,
    },
    /// So many workers from now on; it does not scale by itself then
    Scale {
        /// Workers
        workers: u32,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StatsArgs {
    /// Show them again and again, until Ctrl-C
    #[arg(long)]
    pub(in crate::cli) watch: bool,
    /// With --watch: how often
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = interval)]
    pub(in crate::cli) every: Duration,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ResourcesArgs {
    /// Services or instances [default: the machine]
    pub(in crate::cli) services: Vec<String>,
    /// Of the last so long
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub(in crate::cli) since: Duration,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum CacheVerb {
    /// Drop all of them
    Clear {
        #[command(flatten)]
        common: Common,
    },
}

fn ttl(text: &str) -> Result<Duration, String> {
    duration(text)
        .map_err(|error| format!("{error}; before a command without a time of its own write \"--cache --\""))
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".to_owned()),
    }
}

fn task_state(text: &str) -> Result<TaskState, String> {
    let found = TaskState::ALL.into_iter().find(|state| state.word() == text);
    found.ok_or_else(|| format!("there are {}", TaskState::ALL.map(TaskState::word).join(", ")))
}
