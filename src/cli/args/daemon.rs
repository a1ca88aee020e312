//! The arguments of the verbs of a daemon: `daemon`, `service`, `secret`, `token`, `reload`, `upgrade`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cli::args::control::{PlainArgs, StartArgs, StopArgs};
use crate::cli::args::{Common, Patience, duration};

#[derive(Debug, Args)]
pub(in crate::cli) struct DaemonArgs {
    /// The configuration file [default: $REGROW_CONFIG, /etc/regrow/regrow.toml or
    /// ~/.config/regrow/regrow.toml]
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) config: Option<PathBuf>,
    /// Return once the daemon is up, and leave it running
    #[arg(long)]
    pub(in crate::cli) detach: bool,
    /// Print the default configuration with comments, and exit
    #[arg(long)]
    pub(in crate::cli) print_config: bool,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ServiceVerb {
    /// Create a service and start it
    Create(ServiceCreateArgs),
    /// Show the services of every manifest
    List(ServiceListArgs),
    /// Show a service's manifest, or change keys in it; comments are kept
    Config(ServiceConfigArgs),
    /// Stop a service and delete its manifest
    Remove(ServiceNameArgs),
    /// Start services of the daemon, like "regrow start --daemon"
    Start(StartArgs),
    /// Stop services of the daemon, like "regrow stop --daemon"
    Stop(StopArgs),
    /// Restart services of the daemon, like "regrow restart --daemon"
    Restart(PlainArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ServiceCreateArgs {
    /// The name of the service
    pub(in crate::cli) name: String,
    /// The program and its arguments, after "--"
    #[arg(last = true, required_unless_present = "shell", value_name = "COMMAND")]
    pub(in crate::cli) command: Vec<String>,
    /// Run this text with /bin/sh instead of a program
    #[arg(long, value_name = "TEXT", conflicts_with = "command")]
    pub(in crate::cli) shell: Option<String>,
    /// The working folder [default: the current one]
    #[arg(long, value_name = "FOLDER")]
    pub(in crate::cli) dir: Option<PathBuf>,
    /// Set an environment variable; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    pub(in crate::cli) env: Vec<String>,
    /// Start only when these services are ready
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    pub(in crate::cli) depends_on: Vec<String>,
    /// The restart policy: never, on-failure, always or unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "on-failure")]
    pub(in crate::cli) restart: String,
    /// Restart this many times in a row before the service stays failed
    #[arg(long, value_name = "N", default_value = "3")]
    pub(in crate::cli) max_retries: u32,
    /// The delay before the first restart; it doubles each time
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "5s")]
    pub(in crate::cli) delay: Duration,
    /// Check the health of the service at this http:// address
    #[arg(long, value_name = "URL")]
    pub(in crate::cli) health_url: Option<String>,
    /// Do not start it, neither now nor with the daemon
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
    /// The name of the manifest
    pub(in crate::cli) name: String,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ServiceConfigArgs {
    /// The name of the manifest, which is that of the service
    pub(in crate::cli) name: String,
    /// The keys to set, like restart.max_retries=5 env.DEBUG=true [default: show the manifest]
    #[arg(value_name = "KEY=VALUE")]
    pub(in crate::cli) set: Vec<String>,
    /// Remove this key; may be given several times
    #[arg(long, value_name = "KEY")]
    pub(in crate::cli) unset: Vec<String>,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum SecretVerb {
    /// Keep a value, read from standard input, under a name
    Set(SecretArgs),
    /// Show the names of the secrets
    List(SecretListArgs),
    /// Forget a secret
    Remove(SecretArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SecretArgs {
    /// The name of the secret
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
    /// Create a token and print it once; only its hash is kept
    Create(TokenCreateArgs),
    /// Show the tokens, without their values
    List(TokenListArgs),
    /// Revoke a token at once
    Revoke(TokenRevokeArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct TokenCreateArgs {
    /// The name of the token
    pub(in crate::cli) name: String,
    /// A permission, like "read:*", "restart:shop/*" or "*:*"; may be given several times
    #[arg(long, value_name = "ACTION:RESOURCE", required = true)]
    pub(in crate::cli) allow: Vec<String>,
    /// The time until the token expires [default: never]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) expires: Option<Duration>,
    /// The configuration file of the daemon [default: as for daemon]
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct TokenListArgs {
    /// The configuration file of the daemon [default: as for daemon]
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct TokenRevokeArgs {
    /// The name of the token
    pub(in crate::cli) name: String,
    /// The configuration file of the daemon [default: as for daemon]
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct UpgradeArgs {
    /// The program that takes over [default: the one now at the path of the running daemon]
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) binary: Option<PathBuf>,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ReloadArgs {
    /// Change nothing if any manifest is faulty [default: only the faulty ones stay as they were]
    #[arg(long)]
    pub(in crate::cli) strict: bool,
    #[command(flatten)]
    pub(in crate::cli) patience: Patience,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}
