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
    /// Use the result of the same command if it is at most this old, and keep this result as long
    #[arg(long, value_name = "TTL", value_parser = ttl, num_args = 0..=1, default_missing_value = "30m")]
    pub(in crate::cli) cache: Option<Duration>,
    /// With --cache: only these variables tell commands apart [default: the whole environment]
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "cache")]
    pub(in crate::cli) cache_env: Option<Vec<String>>,
    /// Run the command even if a result is kept
    #[arg(long)]
    pub(in crate::cli) no_cache: bool,
    /// End the command after this long by SIGTERM, then SIGKILL, with exit code 124 [default: no limit]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) timeout: Option<Duration>,
    /// Wait this long between SIGTERM and SIGKILL [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) grace: Option<Duration>,
    /// Run the command with /bin/sh
    #[arg(long)]
    pub(in crate::cli) shell: bool,
    /// The working folder [default: the current one]
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) dir: Option<PathBuf>,
    /// Set an environment variable; the rest of the environment is that of this shell
    #[arg(long, value_name = "NAME=VALUE")]
    pub(in crate::cli) env: Vec<String>,
    /// A file for its standard input; "-" reads this standard input to its end
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) input: Option<PathBuf>,
    /// The priority: commands with a higher one run first
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(in crate::cli) priority: i32,
    /// Run the command again up to N times if it fails
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(in crate::cli) retries: u32,
    /// The delay before the first retry; it doubles each time [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) retry_delay: Option<Duration>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ExecArgs {
    #[command(flatten)]
    pub(in crate::cli) run: TaskArgs,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(in crate::cli) command: Vec<String>,
}

const PROGRESS_HELP: &str = "A task says it itself by a line on the descriptor that REGROW_PROGRESS_FD names: a \
number from 0 to 1 or a percentage, bytes=N, message=TEXT, each as it likes. In a shell:\n\n    \
echo \"40% bytes=1048576 message=unpacking\" >&$REGROW_PROGRESS_FD";

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum TaskVerb {
    /// Submit a command and print its id
    Submit {
        #[command(flatten)]
        run: TaskArgs,
        /// Read one command from each line of this file; "-" is standard input
        #[arg(long, value_name = "FILE")]
        batch: Option<PathBuf>,
        /// Return when the commands are over, with exit code 1 if one failed
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        common: Common,
        /// The program and its arguments
        #[arg(trailing_var_arg = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// List tasks, oldest first
    List {
        /// Show only tasks in one of these states
        #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = task_state)]
        state: Vec<TaskState>,
        #[command(flatten)]
        common: Common,
    },
    /// Show one task
    Status {
        /// The id of the task
        id: TaskId,
        #[command(flatten)]
        common: Common,
    },
    /// Wait for a task, print its output, and exit with its code
    Result {
        /// The id of the task
        id: TaskId,
        /// Stop waiting after this long, with exit code 5 [default: no limit]
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        timeout: Option<Duration>,
        #[command(flatten)]
        common: Common,
    },
    /// Show the progress of a task, or report it for a running one
    #[command(after_help = PROGRESS_HELP)]
    Progress {
        /// The id of the task
        id: TaskId,
        /// The progress, from 0 to 1 or as a percentage
        #[arg(value_parser = share)]
        progress: Option<f64>,
        /// The number of bytes done so far
        #[arg(long, value_name = "N")]
        bytes: Option<u64>,
        /// What the task is doing now
        #[arg(long, value_name = "TEXT")]
        message: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// End tasks by SIGTERM, then SIGKILL; waiting ones never run
    Cancel {
        /// The id of the task
        #[arg(required = true)]
        ids: Vec<TaskId>,
        /// Send SIGKILL at once
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Halt running tasks, and their timeouts
    Pause {
        /// The id of the task
        #[arg(required = true)]
        ids: Vec<TaskId>,
        #[command(flatten)]
        common: Common,
    },
    /// Let paused tasks go on
    Resume {
        /// The id of the task
        #[arg(required = true)]
        ids: Vec<TaskId>,
        #[command(flatten)]
        common: Common,
    },
    /// Forget the tasks that are over
    Cleanup {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum PoolVerb {
    /// Show the size and the load of the pool
    Status {
        #[command(flatten)]
        common: Common,
    },
    /// Set the bounds of the pool, and whether it scales by itself
    Set {
        /// The least number of workers
        #[arg(long, value_name = "N")]
        min: Option<u32>,
        /// The most workers
        #[arg(long, value_name = "N")]
        max: Option<u32>,
        /// Scale between the bounds by the load of the machine
        #[arg(long, value_name = "on|off", value_parser = on_or_off)]
        auto: Option<bool>,
        #[command(flatten)]
        common: Common,
    },
    /// Set the number of workers, and turn automatic scaling off
    Scale {
        /// The number of workers
        workers: u32,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StatsArgs {
    /// Redraw until Ctrl-C
    #[arg(long)]
    pub(in crate::cli) watch: bool,
    /// With --watch: the time between two drawings
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = interval)]
    pub(in crate::cli) every: Duration,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ResourcesArgs {
    /// Services or instances [default: the machine]
    pub(in crate::cli) services: Vec<String>,
    /// Show what was measured within this time
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub(in crate::cli) since: Duration,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum CacheVerb {
    /// Drop every kept result
    Clear {
        #[command(flatten)]
        common: Common,
    },
}

fn ttl(text: &str) -> Result<Duration, String> {
    duration(text)
        .map_err(|error| format!("{error}; to use the default time, write \"--cache --\" before the command"))
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".to_owned()),
    }
}

fn task_state(text: &str) -> Result<TaskState, String> {
    let found = TaskState::ALL.into_iter().find(|state| state.word() == text);
    found.ok_or_else(|| format!("the states are {}", TaskState::ALL.map(TaskState::word).join(", ")))
}
