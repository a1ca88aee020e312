//! The arguments of the verbs for a manifest that is being worked on: `run`, `check`, `plan`, `init`, `replay`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cli::args::{duration, interval, word};
use crate::manifest::config::{LogFormat, LogLevel};

#[derive(Debug, Args)]
pub(in crate::cli) struct RunArgs {
    /// The manifest [default: regrow.toml, then dev-env.toml, here or in a parent folder]
    pub(in crate::cli) file: Option<PathBuf>,
    /// Take only these services and what they depend on
    #[arg(long, value_name = "SERVICE", num_args = 1.., value_delimiter = ',')]
    pub(in crate::cli) only: Vec<String>,
    /// With --only: leave their dependencies out
    #[arg(long, requires = "only")]
    pub(in crate::cli) no_deps: bool,
    /// Also take the services of these profiles
    #[arg(long, value_name = "PROFILE", value_delimiter = ',')]
    pub(in crate::cli) profile: Vec<String>,
    /// Also read variables from this file; they win over the project's
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) env_file: Vec<PathBuf>,
    /// Stop everything when this service ends, and exit with its code
    #[arg(long, value_name = "SERVICE")]
    pub(in crate::cli) exit_on_end: Option<String>,
    /// Give up when not everything is ready after this long, with exit code 5 [default: no limit]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) timeout: Option<Duration>,
    /// Sample resources this often
    #[arg(long, value_name = "DURATION", value_parser = interval, default_value = "15s")]
    pub(in crate::cli) sample_interval: Duration,
    /// Make the control socket at this path [default: in the state folder]
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) socket: Option<PathBuf>,
    /// Record every decision in this new file, for `regrow replay`
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) record: Option<PathBuf>,
    /// Write this much about regrow itself: off, error, warn, info, debug or trace
    /// [default: $RUST_LOG, then warn]
    #[arg(long, value_name = "LEVEL", value_parser = word(LogLevel::WORDS))]
    pub(in crate::cli) log_level: Option<LogLevel>,
    /// The form of these lines: text or json
    #[arg(long, value_name = "FORMAT", value_parser = word(LogFormat::WORDS), default_value = "text")]
    pub(in crate::cli) log_format: LogFormat,
    /// Write them to this file; "-" is standard error [default: diagnostics.log in the run's folder of
    /// the state folder]
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) log_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ReplayArgs {
    /// The file that `regrow run --record` wrote
    pub(in crate::cli) file: PathBuf,
    /// Show only the steps of these services, instances and groups [default: all]
    pub(in crate::cli) services: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct CheckArgs {
    /// The manifests [default: as for run]
    pub(in crate::cli) files: Vec<PathBuf>,
    /// Also read variables from this file
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) env_file: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PlanArgs {
    /// The manifest [default: as for run]
    pub(in crate::cli) file: Option<PathBuf>,
    /// The output format
    #[arg(long, value_enum, default_value = "text")]
    pub(in crate::cli) format: PlanFormat,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    pub(in crate::cli) json: bool,
    /// Take only these services and what they depend on
    #[arg(long, value_name = "SERVICE", num_args = 1.., value_delimiter = ',')]
    pub(in crate::cli) only: Vec<String>,
    /// With --only: leave their dependencies out
    #[arg(long, requires = "only")]
    pub(in crate::cli) no_deps: bool,
    /// Also take the services of these profiles
    #[arg(long, value_name = "PROFILE", value_delimiter = ',')]
    pub(in crate::cli) profile: Vec<String>,
    /// Also read variables from this file
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) env_file: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in crate::cli) enum PlanFormat {
    /// Text for people
    Text,
    /// One JSON object
    Json,
    /// A graph for Graphviz
    Dot,
    /// A graph for Markdown
    Mermaid,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct InitArgs {
    /// The file to write
    #[arg(default_value = "regrow.toml")]
    pub(in crate::cli) file: PathBuf,
    /// Overwrite the file if it exists
    #[arg(long)]
    pub(in crate::cli) force: bool,
}
