//! The arguments of the verbs that look at a tree: `status`, `logs`, `why`, `events`, `wait`, `ls`, `history`, `audit`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cli::args::{Common, duration, state};
use crate::model::State;

#[derive(Debug, Args)]
pub(in crate::cli) struct LsArgs {
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StatusArgs {
    /// Services or instances [default: all]
    pub(in crate::cli) services: Vec<String>,
    /// Show only services in one of these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state)]
    pub(in crate::cli) state: Vec<State>,
    /// Redraw whenever something changes, until Ctrl-C
    #[arg(long)]
    pub(in crate::cli) watch: bool,
    /// Show the supervision tree: each supervisor with its children
    #[arg(long, conflicts_with_all = ["services", "watch", "state"])]
    pub(in crate::cli) tree: bool,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct LogsArgs {
    /// Services or instances [default: all]
    pub(in crate::cli) services: Vec<String>,
    /// Keep printing new lines as they come
    #[arg(short, long)]
    pub(in crate::cli) follow: bool,
    /// Show only the last N lines [default: all that is kept]
    #[arg(short = 'n', long, value_name = "N")]
    pub(in crate::cli) lines: Option<usize>,
    /// Show only what is at most this old
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) since: Option<Duration>,
    /// Show only lines that match this regular expression
    #[arg(long, value_name = "RE")]
    pub(in crate::cli) grep: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct WhyArgs {
    /// The service or instance
    pub(in crate::cli) service: String,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct EventsArgs {
    /// Show only events about these services [default: all]
    pub(in crate::cli) services: Vec<String>,
    /// Keep printing new events as they come
    #[arg(short, long)]
    pub(in crate::cli) follow: bool,
    /// Show only events that bring a service into one of these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state)]
    pub(in crate::cli) state: Vec<State>,
    /// Show only events after this number, or at most this old
    #[arg(long, value_name = "NUMBER|DURATION")]
    pub(in crate::cli) since: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct AuditArgs {
    /// Show only what is at most this old
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) since: Option<Duration>,
    /// Show the last N entries
    #[arg(short = 'n', long, value_name = "N", default_value = "100")]
    pub(in crate::cli) lines: usize,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct HistoryArgs {
    /// Services or instances [default: all]
    pub(in crate::cli) services: Vec<String>,
    /// Show at most N processes of each instance
    #[arg(short = 'n', long, value_name = "N", default_value = "20")]
    pub(in crate::cli) lines: usize,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct WaitArgs {
    /// Services or instances
    #[arg(required = true)]
    pub(in crate::cli) services: Vec<String>,
    /// The condition to wait for
    #[arg(long = "for", value_enum, default_value = "ready")]
    pub(in crate::cli) for_: WaitWord,
    /// Stop waiting after this long, with exit code 5 [default: no limit]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) timeout: Option<Duration>,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in crate::cli) enum WaitWord {
    /// The service is ready; a task also counts when it has completed
    Ready,
    /// The task ended with success
    Completed,
    /// The service has no process and will not start one
    Stopped,
}
