//! The arguments of the verbs of a daemon: `daemon`, `service`, `secret`, `token`, `reload`, `upgrade`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cli::args::control::{PlainArgs, StartArgs, StopArgs};
use crate::cli::args::{Common, Patience, duration};

#[derive(Debug, Args)]
pub(in crate::cli) struct DaemonArgs {
    /// The configuration [default: $REGROW_CONFIG, /etc/regrow/regrow.toml or
    /// ~/.config/regrow/regrow.toml]
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) config: Option<PathBuf>,
    /// Return when it is up, and leave it running
    #[arg(long)]
    pub(in crate::cli) detach: bool,
    /// Print the default configuration, with comments
    #[arg(long)]
    pub(in crate::cli) print_config: bool,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ServiceVerb {
    /// Make a service, and start it
    Create(ServiceCreateArgs),
    /// Show the services of every manifest
    List(ServiceListArgs),
    /// Show a service's manifest, or change keys of it; comments stay
    Config(ServiceConfigArgs),
    /// Stop a service and delete its manifest
    Remove(ServiceNameArgs),
    /// As "regrow start"
    Start(StartArgs),
    /// As "regrow stop"
    Stop(StopArgs),
    /// As "regrow restart"
    Restart(PlainArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ServiceCreateArgs {
    /// Its name
    pub(in crate::cli) name: String,
    /// The program and its arguments, behind "--"
    #[arg(last = true, required_unless_present = "shell", value_name = "COMMAND")]
    pub(in crate::cli) command: Vec<String>,
    /// Run this text by /bin/sh instead
    #[arg(long, value_name = "TEXT", conflicts_with = "command")]
    pub(in crate::cli) shell: Option<String>,
    /// Working folder [default: this one]
    #[arg(long, value_name = "FOLDER")]
    pub(in crate::cli) dir: Option<PathBuf>,
    /// A variable of its environment; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    pub(in crate::cli) env: Vec<String>,
    /// What it waits for, until that is ready
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    pub(in crate::cli) depends_on: Vec<String>,
    /// When it comes back: never, on-failure, always or unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "on-failure")]
    pub(in crate::cli) restart: String,
    /// How often in a row, before it stays failed
    #[arg(long, value_name = "N", default_value = "3")]
    pub(in crate::cli) max_retries: u32,
    /// How long after its end; doubles from time to time
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "5s")]
    pub(in crate::cli) delay: Duration,
    /// Its health is asked at this http:// address
    #[arg(long, value_name = "URL")]
    pub(in crate::cli) health_url: Option<String>,
    /// Don't start it, now or with the daemon
    #[arg(long)]
    pub(in crate::cli) no_autostart: bool,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ServiceListArgs {
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ServiceNameArgs {
    /// The manifest's name
    pub(in crate::cli) name: String,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ServiceConfigArgs {
    /// The manifest's name, which is the service's
    pub(in crate::cli) name: String,
    /// What to change: restart.max_retries=5, env.DEBUG=true [default: show it]
    #[arg(value_name = "KEY=VALUE")]
    pub(in crate::cli) set: Vec<String>,
    /// A key to take out; may be given several times
    #[arg(long, value_name = "KEY")]
    pub(in crate::cli) unset: Vec<String>,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum SecretVerb {
    /// Keep a value, read from standard input, under this name
    Set(SecretArgs),
    /// Show the names
    List(SecretListArgs),
    /// Forget one
    Remove(SecretArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SecretArgs {
    /// Its name
    pub(in crate::cli) name: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SecretListArgs {
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum TokenVerb {
    /// Make a token and print it, once; only a hash of it is kept
    Create(TokenCreateArgs),
    /// Show the tokens, without what they are
    List(TokenListArgs),
    /// Make a token worth nothing, at once
    Revoke(TokenRevokeArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct TokenCreateArgs {
    /// Its name
    pub(in crate::cli) name: String,
    /// What it allows, like "read:*", "restart:shop/*" or "*:*"; may be given several times
    #[arg(long, value_name = "ACTION:RESOURCE", required = true)]
    pub(in crate::cli) allow: Vec<String>,
    /// For how long [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) expires: Option<Duration>,
    /// The daemon's configuration [default: as for daemon]
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct TokenListArgs {
    /// The daemon's configuration [default: as for daemon]
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct TokenRevokeArgs {
    /// Its name
    pub(in crate::cli) name: String,
    /// The daemon's configuration [default: as for daemon]
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct UpgradeArgs {
    /// The program that takes over [default: what lies now where the daemon's own lay]
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) binary: Option<PathBuf>,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ReloadArgs {
    /// Change nothing where any manifest is faulty [default: only the faulty ones stay as they were]
    #[arg(long)]
    pub(in crate::cli) strict: bool,
    #[command(flatten)]
    pub(in crate::cli) patience: Patience,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}
