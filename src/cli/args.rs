//! The arguments of the command line, as clap reads them, and the help that it prints.
//!
//! Only shapes and texts stand here: what a verb does is in `verbs`, `run` and `daemon`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

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

/// The verbs in the groups in which `regrow --help` shows them.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Develop", &["run", "check", "plan", "init", "manifest-schema", "replay"]),
    ("Observe", &["status", "logs", "why", "events", "wait", "stats", "resources", "ls"]),
    ("Control", &["start", "stop", "restart", "pause", "resume", "add", "remove", "down"]),
    ("Commands", &["exec", "task", "pool", "cache"]),
    (
        "Daemon",
        &["daemon", "service", "reload", "upgrade", "history", "audit", "secret", "token", "api-schema"],
    ),
];

const TEMPLATE: &str =
    "{about-with-newline}\n{usage-heading} {usage}\n\n{before-help}Options:\n{options}{after-help}";

/// A supervision-tree runtime for processes: cut a process down and it grows back.
#[derive(Debug, Parser)]
#[command(name = "regrow", version, about, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(in crate::cli) struct Cli {
    #[command(subcommand)]
    pub(in crate::cli) verb: Verb,
}

impl Cli {
    /// The whole command line, with its verbs in groups.
    pub(in crate::cli) fn grouped() -> clap::Command {
        let command = Cli::command();
        let about = |verb: &str| {
            let found = command.find_subcommand(verb).and_then(clap::Command::get_about);
            found.map(ToString::to_string).unwrap_or_default()
        };
        let width = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter()).map(|verb| verb.len()).max();
        let width = width.unwrap_or_default() + 1;
        let lines = |(title, verbs): (&str, &[&str])| {
            let lines: String =
                verbs.iter().map(|verb| format!("  {verb:<width$} {}\n", about(verb))).collect();
            format!("{title}:\n{lines}\n")
        };
        let groups: String = GROUPS.into_iter().map(lines).collect();
        let hint = "\nEvery verb has an example and its defaults in its own help: regrow run --help";
        command.before_help(groups.trim_end().to_owned()).after_help(hint).help_template(TEMPLATE)
    }

    /// The arguments of this process.
    pub(in crate::cli) fn read() -> Result<Cli, clap::Error> {
        let mut command = Cli::grouped();
        let matches = command.try_get_matches_from_mut(std::env::args_os())?;
        Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Verb {
    /// Start a manifest in the foreground; Ctrl-C stops it in reverse order
    #[command(after_help = "Examples:\n  regrow run dev-env.toml\n  regrow run --only web,db")]
    Run(RunArgs),
    /// Validate manifests without starting anything
    #[command(after_help = "Example:\n  regrow check dev-env.toml")]
    Check(CheckArgs),
    /// Show the tree, the start waves and the stop order of a manifest
    #[command(after_help = "Examples:\n  regrow plan dev-env.toml\n  regrow plan --format mermaid")]
    Plan(PlanArgs),
    /// Write a commented starter manifest
    #[command(after_help = "Example:\n  regrow init")]
    Init(InitArgs),
    /// Print the JSON schema of manifests, for editors
    #[command(after_help = "Example:\n  regrow manifest-schema > regrow.schema.json")]
    ManifestSchema,
    /// Tell a recorded run again step by step, and check it
    #[command(after_help = "Example:\n  regrow replay night.recording web")]
    Replay(ReplayArgs),
    /// Show the services of a running tree
    #[command(after_help = "Example:\n  regrow status --watch")]
    Status(StatusArgs),
    /// Show what services print
    #[command(after_help = "Example:\n  regrow logs web -f -n 50")]
    Logs(LogsArgs),
    /// Explain why a service is in its state
    #[command(after_help = "Example:\n  regrow why web")]
    Why(WhyArgs),
    /// Show what happened, as numbered events
    #[command(after_help = "Example:\n  regrow events web --since 10m")]
    Events(EventsArgs),
    /// Wait until services are ready, completed or stopped
    #[command(after_help = "Example:\n  regrow wait web db --timeout 30s")]
    Wait(WaitArgs),
    /// Show the worker pool, the result cache, the machine and the durations of commands
    #[command(after_help = "Example:\n  regrow stats --watch")]
    Stats(StatsArgs),
    /// Show what the machine or services used over the last day
    #[command(after_help = "Example:\n  regrow resources web")]
    Resources(ResourcesArgs),
    /// List every running tree of this user
    #[command(after_help = "Example:\n  regrow ls")]
    Ls(LsArgs),
    /// Start services and what they depend on
    #[command(after_help = "Example:\n  regrow start web")]
    Start(StartArgs),
    /// Stop services; refused while running services depend on them
    #[command(after_help = "Examples:\n  regrow stop web\n  regrow stop --group backend")]
    Stop(StopArgs),
    /// Stop services, then start them again
    #[command(after_help = "Example:\n  regrow restart web")]
    Restart(PlainArgs),
    /// Halt the processes of services, with their timers and checks
    #[command(after_help = "Example:\n  regrow pause worker")]
    Pause(PlainArgs),
    /// Let paused services go on
    #[command(after_help = "Example:\n  regrow resume worker")]
    Resume(PlainArgs),
    /// Add the services of a manifest to the running tree and start them
    #[command(after_help = "Example:\n  regrow add extra.toml --group backend")]
    Add(AddArgs),
    /// Stop services and take them out of the running tree
    #[command(after_help = "Example:\n  regrow remove extra")]
    Remove(PlainArgs),
    /// Stop everything in reverse order, then the supervisor
    #[command(after_help = "Example:\n  regrow down")]
    Down(DownArgs),
    /// Run a command through the worker pool and end with its exit code
    #[command(after_help = "Example:\n  regrow exec -- make -j4")]
    Exec(ExecArgs),
    /// Submit commands to the worker pool, follow them and end them
    #[command(subcommand, after_help = "Example:\n  regrow task submit --wait -- ./import.sh")]
    Task(TaskVerb),
    /// Show or set how many commands run at a time
    #[command(subcommand, after_help = "Example:\n  regrow pool set --min 2 --max 8")]
    Pool(PoolVerb),
    /// Drop the kept results of commands
    #[command(subcommand, after_help = "Example:\n  regrow cache clear")]
    Cache(CacheVerb),
    /// Supervise the manifests of a folder; services outlive its death
    #[command(after_help = "Example:\n  regrow daemon --detach")]
    Daemon(DaemonArgs),
    /// Create, list, configure and remove single services of the daemon
    #[command(subcommand, after_help = "Example:\n  regrow service create web -- python3 -m http.server")]
    Service(ServiceVerb),
    /// Apply the daemon's manifests as they are now; only what changed restarts
    #[command(after_help = "Example:\n  regrow reload --strict")]
    Reload(ReloadArgs),
    /// Replace the daemon and its keeper by another build; services run on
    #[command(after_help = "Example:\n  regrow upgrade --binary ./regrow")]
    Upgrade(UpgradeArgs),
    /// Show the past processes of services and how each ended
    #[command(after_help = "Example:\n  regrow history web -n 5")]
    History(HistoryArgs),
    /// Show who asked the daemon for a change, and whether it was allowed
    #[command(after_help = "Example:\n  regrow audit --since 1h")]
    Audit(AuditArgs),
    /// Keep values that manifests only name: { secret = "db" }
    #[command(subcommand, after_help = "Example:\n  regrow secret set db < password.txt")]
    Secret(SecretVerb),
    /// Create, list and revoke tokens of the daemon's network API
    #[command(
        subcommand,
        after_help = "Example:\n  regrow token create ci --allow \"restart:shop/*\" --expires 30d"
    )]
    Token(TokenVerb),
    /// Print the OpenAPI document of the API
    #[command(after_help = "Example:\n  regrow api-schema > openapi.json")]
    ApiSchema,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Common {
    /// The path of the control socket [default: the daemon's for the verbs of the daemon, else that of
    /// the tree of this folder]
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) socket: Option<PathBuf>,
    /// Address the daemon, whatever runs in this folder
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
    /// Select all services
    #[arg(long, conflicts_with_all = ["services", "group", "tag"])]
    pub(in crate::cli) all: bool,
    /// Select the services below a group (remove: and the group itself)
    #[arg(long, value_name = "GROUP")]
    pub(in crate::cli) group: Vec<String>,
    /// Select the services with a tag
    #[arg(long, value_name = "TAG")]
    pub(in crate::cli) tag: Vec<String>,
}

/// How long a command may take.
#[derive(Debug, Args)]
pub(in crate::cli) struct Patience {
    /// Stop waiting after this long, with exit code 5; the command goes on [default: no limit]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) timeout: Option<Duration>,
}

pub(in crate::cli) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error} (write \"30s\" or \"1m 30s\")"))
}

/// Reads one of a few words.
pub(in crate::cli) fn word<T: Copy + Send + Sync + 'static>(
    words: &'static [(&'static str, T)],
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    |text| {
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, found)| *found);
        found.ok_or_else(|| match nearest(text, words.iter().map(|(word, _)| *word)) {
            Some(near) => format!("did you mean {near:?}?"),
            None => {
                format!("there are {}", words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", "))
            }
        })
    }
}

pub(in crate::cli) fn state(text: &str) -> Result<State, String> {
    State::ALL.into_iter().find(|state| state.to_string() == text).ok_or_else(|| {
        let words = State::ALL.map(|state| state.to_string());
        match nearest(text, words.iter().map(String::as_str)) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("the states are {}", words.join(", ")),
        }
    })
}

pub(in crate::cli) fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < Duration::from_millis(100) {
        return Err("the duration must be at least 100ms".to_owned());
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_in_one_group_and_its_examples_parse() {
        let command = Cli::grouped();
        let listed: Vec<&str> = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter().copied()).collect();
        let verbs: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        for verb in &verbs {
            let times = listed.iter().filter(|listed| listed == &verb).count();
            assert_eq!(times, 1, "{verb} stands in {times} groups");
        }
        assert_eq!(listed.len(), verbs.len(), "a group names a verb that is not there");
        for verb in command.get_subcommands() {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("  regrow")).collect();
            assert!(!examples.is_empty(), "{} has no example", verb.get_name());
            for example in examples {
                // What the shell would do with the rest of the line is not ours.
                let line = format!("regrow{example}");
                let line = line.split(['<', '>']).next().unwrap_or_default();
                let words = shlex::split(line).unwrap_or_default();
                let read = Cli::grouped().try_get_matches_from(words);
                assert!(read.is_ok(), "{line}: {}", read.err().map(|e| e.to_string()).unwrap_or_default());
            }
        }
    }

    /// Every `$ regrow ...` line of the documents, with the document it stands in.
    fn documented() -> Vec<(String, String)> {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
        let documents = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
        let mut lines = Vec::new();
        for path in documents.chain([root.join("README.md")]) {
            let text = std::fs::read_to_string(&path).unwrap();
            let commands = text.lines().filter_map(|line| line.strip_prefix("$ regrow"));
            lines.extend(commands.map(|line| (path.display().to_string(), format!("regrow{line}"))));
        }
        lines
    }

    #[test]
    fn every_command_line_in_a_document_parses() {
        let lines = documented();
        assert!(lines.len() > 15, "{lines:?}");
        for (document, line) in lines {
            // Comments and redirections are the shell's.
            let own = line.split(" #").next().unwrap_or_default();
            let words = shlex::split(own).unwrap_or_default();
            let own: Vec<String> = words.into_iter().take_while(|word| word != ">" && word != "<").collect();
            let read = Cli::grouped().try_get_matches_from(own);
            let why = read.err().map(|error| error.to_string());
            assert!(why.is_none(), "{document}: {line}: {}", why.unwrap_or_default());
        }
    }
}
