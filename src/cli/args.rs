//! The arguments of the command line, as clap reads them, and the help that it prints.
//!
//! Only shapes and texts stand here: what a verb does is in `verbs`, `run` and `daemon`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::cli::args::commands::{CacheVerb, ExecArgs, PoolVerb, ResourcesArgs, StatsArgs, TaskVerb};
use crate::cli::args::control::{AddArgs, DownArgs, PlainArgs, StartArgs, StopArgs};
use crate::cli::args::daemon::{DaemonArgs, ReloadArgs, SecretVerb, ServiceVerb, TokenVerb, UpgradeArgs};
use crate::cli::args::develop::{CheckArgs, InitArgs, PlanArgs, ReplayArgs, RunArgs};
use crate::cli::args::observe::{
    AuditArgs, EventsArgs, HistoryArgs, LogsArgs, LsArgs, StatusArgs, WaitArgs, WhyArgs,
};
use crate::model::State;
use crate::model::nearest::nearest;

pub(super) mod commands;
pub(super) mod control;
pub(super) mod daemon;
pub(super) mod develop;
pub(super) mod observe;

/// A supervision-tree runtime for processes: cut a process down and it grows back.
#[derive(Debug, Parser)]
#[command(name = "regrow", version, about, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(in crate::cli) struct Cli {
    #[command(subcommand)]
    pub(in crate::cli) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Verb {
    /// Start everything in the foreground; Ctrl-C stops it in reverse order
    Run(RunArgs),
    /// Supervise the manifests of a folder; services live on when it is killed or replaced
    Daemon(DaemonArgs),
    /// Validate manifests, without starting anything
    Check(CheckArgs),
    /// Show the tree, the start waves and the stop order, before anything runs
    Plan(PlanArgs),
    /// Write a commented starter manifest
    Init(InitArgs),
    /// Show the services of a running tree
    Status(StatusArgs),
    /// Start services, and what they depend on
    Start(StartArgs),
    /// Stop services; refused while running services depend on them
    Stop(StopArgs),
    /// Stop services, then start them
    Restart(PlainArgs),
    /// Halt what runs, with its whole tree; its timers and checks stand still
    Pause(PlainArgs),
    /// Let it go on
    Resume(PlainArgs),
    /// Add the services and groups of a manifest to the running tree, and start them
    Add(AddArgs),
    /// Stop services and take them out of the running tree; --group takes the group itself too
    Remove(PlainArgs),
    /// Show what services print
    Logs(LogsArgs),
    /// Explain why a service is as it is
    Why(WhyArgs),
    /// Show what happened, as numbered facts
    Events(EventsArgs),
    /// Run a command through the worker pool of a running tree, and end as it does
    Exec(ExecArgs),
    /// Run commands through the worker pool, and see to them
    #[command(subcommand)]
    Task(TaskVerb),
    /// How many commands run at a time
    #[command(subcommand)]
    Pool(PoolVerb),
    /// Show the pool, the cache, the machine, and what commands have come to
    Stats(StatsArgs),
    /// Show what the machine, or services, used over the last day, and what became of it
    Resources(ResourcesArgs),
    /// The results of commands that need not be run again
    #[command(subcommand)]
    Cache(CacheVerb),
    /// Single services, each a manifest of its own in a daemon's folder
    #[command(subcommand)]
    Service(ServiceVerb),
    /// Values that manifests only name: env = { PASSWORD = { secret = "db" } }
    #[command(subcommand)]
    Secret(SecretVerb),
    /// Who may use a daemon's network API
    #[command(subcommand)]
    Token(TokenVerb),
    /// Show who did, and was not let do, what (a daemon's)
    Audit(AuditArgs),
    /// Print the OpenAPI document of the socket and the network API
    ApiSchema,
    /// Show the processes that services have had, how each ended and why (a daemon's)
    History(HistoryArgs),
    /// Make a daemon's tree what its manifests say now; touches only what changed
    Reload(ReloadArgs),
    /// List every tree of this user that runs
    Ls(LsArgs),
    /// Replace a daemon, and its keeper, by another build; services are not touched
    Upgrade(UpgradeArgs),
    /// Wait until services are ready, completed or stopped
    Wait(WaitArgs),
    /// Stop everything in reverse order, then the supervisor
    Down(DownArgs),
    /// Tell a recorded run again, step by step, and check it
    Replay(ReplayArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Common {
    /// The control socket [default: found by the folder]
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) socket: Option<PathBuf>,
    /// The machine's daemon, whatever runs in this folder
    #[arg(long, conflicts_with = "socket")]
    pub(in crate::cli) daemon: bool,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Select {
    /// Services or instances
    pub(in crate::cli) services: Vec<String>,
    /// All services
    #[arg(long, conflicts_with_all = ["services", "group", "tag"])]
    pub(in crate::cli) all: bool,
    /// The services below a group (remove: and the group)
    #[arg(long, value_name = "GROUP")]
    pub(in crate::cli) group: Vec<String>,
    /// The services with a tag
    #[arg(long, value_name = "TAG")]
    pub(in crate::cli) tag: Vec<String>,
}

/// How long a command may take.
#[derive(Debug, Args)]
pub(in crate::cli) struct Patience {
    /// How long to wait for it at most (exit code 5); it goes on all the same
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) timeout: Option<Duration>,
}

pub(in crate::cli) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error} (write \"30s\" or \"1m 30s\")"))
}

pub(in crate::cli) fn state(text: &str) -> Result<State, String> {
    State::ALL.into_iter().find(|state| state.to_string() == text).ok_or_else(|| {
        let words = State::ALL.map(|state| state.to_string());
        match nearest(text, words.iter().map(String::as_str)) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("there are {}", words.join(", ")),
        }
    })
}

pub(in crate::cli) fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < Duration::from_millis(100) {
        return Err("at least 100ms".to_owned());
    }
    Ok(interval)
}
