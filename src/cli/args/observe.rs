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
    /// Only those in one of these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state)]
    pub(in crate::cli) state: Vec<State>,
    /// Print it again whenever something changes
    #[arg(long)]
    pub(in crate::cli) watch: bool,
    /// Show the supervisors and what hangs under each
    #[arg(long, conflicts_with_all = ["services", "watch", "state"])]
    pub(in crate::cli) tree: bool,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct LogsArgs {
    /// Services or instances [default: all]
    pub(in crate::cli) services: Vec<String>,
    /// Go on as more is printed
    #[arg(short, long)]
    pub(in crate::cli) follow: bool,
    /// Only the last so many lines
    #[arg(short = 'n', long, value_name = "N")]
    pub(in crate::cli) lines: Option<usize>,
    /// Only what is not older
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) since: Option<Duration>,
    /// Only lines that match this regular expression
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
    /// Only those about these services
    pub(in crate::cli) services: Vec<String>,
    /// Go on as more happens
    #[arg(short, long)]
    pub(in crate::cli) follow: bool,
    /// Only those that bring a service into one of these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state)]
    pub(in crate::cli) state: Vec<State>,
    /// Only those after this event number, or not older than this duration
    #[arg(long, value_name = "NUMBER|DURATION")]
    pub(in crate::cli) since: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct AuditArgs {
    /// Only what is not older
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) since: Option<Duration>,
    /// The last so many
    #[arg(short = 'n', long, value_name = "N", default_value = "100")]
    pub(in crate::cli) lines: usize,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct HistoryArgs {
    /// Services or instances [default: all]
    pub(in crate::cli) services: Vec<String>,
    /// So many of each at most
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
    /// For what
    #[arg(long = "for", value_enum, default_value = "ready")]
    pub(in crate::cli) for_: WaitWord,
    /// How long at most (exit code 5)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) timeout: Option<Duration>,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in crate::cli) enum WaitWord {
    /// Ready; a task also when completed
    Ready,
    /// Ended with success
    Completed,
    /// No process, and none to come
    Stopped,
}
