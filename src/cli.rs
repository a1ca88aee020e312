//! The command line: its verbs, what they print, and their exit codes. It is the only module that
//! prints, and it uses only the public interface of the library.

/// `eprintln!` that does not panic when standard error can't be written.
macro_rules! tell {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

/// `println!` that does not panic; a failure to write is reported at the end of the program.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        if let Err(error) = writeln!(std::io::stdout(), $($words)*) {
            $crate::cli::unwritten(error);
        }
    }};
}

mod aim;
mod commands;
mod console;
mod daemon;
mod format;
mod inherit;
mod init;
mod ls;
mod plan;
mod progress;
mod remote;
mod replay;
mod report;
mod resources;
mod run;
mod secret;
mod service;
mod stats;
mod task;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use commands::{CacheVerb, ExecArgs, PoolVerb, ResourcesArgs, StatsArgs, TaskArgs, TaskVerb};

use crate::control::protocol::WaitFor;
use crate::model::State;
use crate::model::nearest::nearest;
use crate::sys::{memory, signals};

/// The exit codes, as the contract sets them.
mod code {
    pub(super) const DONE: u8 = 0;
    pub(super) const FAILED: u8 = 1;
    pub(super) const USAGE: u8 = 2;
    pub(super) const MANIFEST: u8 = 3;
    pub(super) const NOT_RUNNING: u8 = 4;
    pub(super) const TIMED_OUT: u8 = 5;
    pub(super) const INTERRUPTED: u8 = 130;
}

/// A supervision-tree runtime for processes: cut a process down and it grows back.
#[derive(Debug, Parser)]
#[command(name = "regrow", version, about, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
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
struct RunArgs {
    /// The manifest [default: regrow.toml, then dev-env.toml, here or in a parent folder]
    file: Option<PathBuf>,
    /// Only these services and what they depend on
    #[arg(long, value_name = "SERVICE", num_args = 1.., value_delimiter = ',')]
    only: Vec<String>,
    /// With --only: leave dependencies out
    #[arg(long, requires = "only")]
    no_deps: bool,
    /// Also services of these profiles
    #[arg(long, value_name = "PROFILE", value_delimiter = ',')]
    profile: Vec<String>,
    /// Read variables from this file too; it wins over the project's
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// When this service ends, stop everything and exit with its code
    #[arg(long, value_name = "SERVICE")]
    exit_on_end: Option<String>,
    /// Give up when not everything is ready by then (exit code 5)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
    /// How often resources are sampled
    #[arg(long, value_name = "DURATION", value_parser = interval, default_value = "15s")]
    sample_interval: Duration,
    /// Where the control socket is made [default: in the state folder]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Write down in a new file what each machine is told and decides, for `regrow replay`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct DaemonArgs {
    /// The configuration [default: $REGROW_CONFIG, /etc/regrow/regrow.toml or
    /// ~/.config/regrow/regrow.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Return when it is up, and leave it running
    #[arg(long)]
    detach: bool,
    /// Print the default configuration, with comments
    #[arg(long)]
    print_config: bool,
}

#[derive(Debug, Args)]
struct ReplayArgs {
    /// What `run --record` wrote
    file: PathBuf,
    /// Only the steps of these services, instances and groups [default: all]
    services: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Manifests [default: as for run]
    files: Vec<PathBuf>,
    /// Read variables from this file too
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct PlanArgs {
    /// The manifest [default: as for run]
    file: Option<PathBuf>,
    /// How it is printed
    #[arg(long, value_enum, default_value = "text")]
    format: PlanFormat,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Only these services and what they depend on
    #[arg(long, value_name = "SERVICE", num_args = 1.., value_delimiter = ',')]
    only: Vec<String>,
    /// With --only: leave dependencies out
    #[arg(long, requires = "only")]
    no_deps: bool,
    /// Also services of these profiles
    #[arg(long, value_name = "PROFILE", value_delimiter = ',')]
    profile: Vec<String>,
    /// Read variables from this file too
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PlanFormat {
    /// For people
    Text,
    /// One JSON object
    Json,
    /// For Graphviz
    Dot,
    /// For Markdown
    Mermaid,
}

#[derive(Debug, Args)]
struct InitArgs {
    /// Where it is written
    #[arg(default_value = "regrow.toml")]
    file: PathBuf,
    /// Overwrite a file that is there
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct Common {
    /// The control socket [default: found by the folder]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The machine's daemon, whatever runs in this folder
    #[arg(long, conflicts_with = "socket")]
    daemon: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct LsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Services or instances [default: all]
    services: Vec<String>,
    /// Only those in one of these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state)]
    state: Vec<State>,
    /// Print it again whenever something changes
    #[arg(long)]
    watch: bool,
    /// Show the supervisors and what hangs under each
    #[arg(long, conflicts_with_all = ["services", "watch", "state"])]
    tree: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Select {
    /// Services or instances
    services: Vec<String>,
    /// All services
    #[arg(long, conflicts_with_all = ["services", "group", "tag"])]
    all: bool,
    /// The services below a group (remove: and the group)
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// The services with a tag
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
}

/// How long a command may take.
#[derive(Debug, Args)]
struct Patience {
    /// How long to wait for it at most (exit code 5); it goes on all the same
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
}

#[derive(Debug, Args)]
struct StartArgs {
    #[command(flatten)]
    select: Select,
    #[command(flatten)]
    patience: Patience,
    /// Leave dependencies alone that are down
    #[arg(long)]
    no_deps: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct StopArgs {
    #[command(flatten)]
    select: Select,
    #[command(flatten)]
    patience: Patience,
    /// Also while running services depend on them
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct PlainArgs {
    #[command(flatten)]
    select: Select,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct AddArgs {
    /// A manifest of what is new; it may depend on what is there
    file: PathBuf,
    /// Add it to this group [default: the root]
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct LogsArgs {
    /// Services or instances [default: all]
    services: Vec<String>,
    /// Go on as more is printed
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
    /// Only what is not older
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<Duration>,
    /// Only lines that match this regular expression
    #[arg(long, value_name = "RE")]
    grep: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct WhyArgs {
    /// The service or instance
    service: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct EventsArgs {
    /// Only those about these services
    services: Vec<String>,
    /// Go on as more happens
    #[arg(short, long)]
    follow: bool,
    /// Only those that bring a service into one of these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state)]
    state: Vec<State>,
    /// Only those after this event number, or not older than this duration
    #[arg(long, value_name = "NUMBER|DURATION")]
    since: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum ServiceVerb {
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
struct ServiceCreateArgs {
    /// Its name
    name: String,
    /// The program and its arguments, behind "--"
    #[arg(last = true, required_unless_present = "shell", value_name = "COMMAND")]
    command: Vec<String>,
    /// Run this text by /bin/sh instead
    #[arg(long, value_name = "TEXT", conflicts_with = "command")]
    shell: Option<String>,
    /// Working folder [default: this one]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// A variable of its environment; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// What it waits for, until that is ready
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    depends_on: Vec<String>,
    /// When it comes back: never, on-failure, always or unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "on-failure")]
    restart: String,
    /// How often in a row, before it stays failed
    #[arg(long, value_name = "N", default_value = "3")]
    max_retries: u32,
    /// How long after its end; doubles from time to time
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "5s")]
    delay: Duration,
    /// Its health is asked at this http:// address
    #[arg(long, value_name = "URL")]
    health_url: Option<String>,
    /// Don't start it, now or with the daemon
    #[arg(long)]
    no_autostart: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct ServiceListArgs {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct ServiceNameArgs {
    /// The manifest's name
    name: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct ServiceConfigArgs {
    /// The manifest's name, which is the service's
    name: String,
    /// What to change: restart.max_retries=5, env.DEBUG=true [default: show it]
    #[arg(value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// A key to take out; may be given several times
    #[arg(long, value_name = "KEY")]
    unset: Vec<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum SecretVerb {
    /// Keep a value, read from standard input, under this name
    Set(SecretArgs),
    /// Show the names
    List(SecretListArgs),
    /// Forget one
    Remove(SecretArgs),
}

#[derive(Debug, Args)]
struct SecretArgs {
    /// Its name
    name: String,
}

#[derive(Debug, Args)]
struct SecretListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// Make a token and print it, once; only a hash of it is kept
    Create(TokenCreateArgs),
    /// Show the tokens, without what they are
    List(TokenListArgs),
    /// Make a token worth nothing, at once
    Revoke(TokenRevokeArgs),
}

#[derive(Debug, Args)]
struct TokenCreateArgs {
    /// Its name
    name: String,
    /// What it allows, like "read:*", "restart:shop/*" or "*:*"; may be given several times
    #[arg(long, value_name = "ACTION:RESOURCE", required = true)]
    allow: Vec<String>,
    /// For how long [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    expires: Option<Duration>,
    /// The daemon's configuration [default: as for daemon]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct TokenListArgs {
    /// The daemon's configuration [default: as for daemon]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct TokenRevokeArgs {
    /// Its name
    name: String,
    /// The daemon's configuration [default: as for daemon]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct AuditArgs {
    /// Only what is not older
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<Duration>,
    /// The last so many
    #[arg(short = 'n', long, value_name = "N", default_value = "100")]
    lines: usize,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct HistoryArgs {
    /// Services or instances [default: all]
    services: Vec<String>,
    /// So many of each at most
    #[arg(short = 'n', long, value_name = "N", default_value = "20")]
    lines: usize,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct UpgradeArgs {
    /// The program that takes over [default: what lies now where the daemon's own lay]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct WaitArgs {
    /// Services or instances
    #[arg(required = true)]
    services: Vec<String>,
    /// For what
    #[arg(long = "for", value_enum, default_value = "ready")]
    for_: WaitWord,
    /// How long at most (exit code 5)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum WaitWord {
    /// Ready; a task also when completed
    Ready,
    /// Ended with success
    Completed,
    /// No process, and none to come
    Stopped,
}

impl From<WaitWord> for WaitFor {
    fn from(word: WaitWord) -> WaitFor {
        match word {
            WaitWord::Ready => WaitFor::Ready,
            WaitWord::Completed => WaitFor::Completed,
            WaitWord::Stopped => WaitFor::Stopped,
        }
    }
}

#[derive(Debug, Args)]
struct ReloadArgs {
    /// Change nothing where any manifest is faulty [default: only the faulty ones stay as they were]
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct DownArgs {
    #[command(flatten)]
    common: Common,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error} (write \"30s\" or \"1m 30s\")"))
}

fn state(text: &str) -> Result<State, String> {
    State::ALL.into_iter().find(|state| state.to_string() == text).ok_or_else(|| {
        let words = State::ALL.map(|state| state.to_string());
        match nearest(text, words.iter().map(String::as_str)) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("there are {}", words.join(", ")),
        }
    })
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < Duration::from_millis(100) {
        return Err("at least 100ms".to_owned());
    }
    Ok(interval)
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    // A keeper that was replaced by this program, with its state handed over, resumes before anything
    // else.
    crate::host::keeper::resume();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version as it prints errors; only the latter are failures.
            if let Err(error) = error.print() {
                unwritten(error);
            }
            let ended = if error.use_stderr() { code::USAGE } else { code::DONE };
            return ExitCode::from(if all_is_written() { ended } else { ended.max(code::FAILED) });
        }
    };
    aim::set(&cli.verb);
    let _ = OUTLIVES_READERS.set(matches!(cli.verb, Verb::Run(_) | Verb::Daemon(_)));
    let ended = match cli.verb {
        Verb::Run(args) => run::run(args),
        Verb::Daemon(args) => daemon::daemon(&args),
        Verb::Check(args) => plan::check(&args),
        Verb::Plan(args) => plan::plan(&args),
        Verb::Init(args) => init::init(&args),
        Verb::Status(args) => remote::status(args),
        Verb::Start(args) => remote::start(args),
        Verb::Stop(args) => remote::stop(args),
        Verb::Restart(args) => remote::restart(args),
        Verb::Pause(args) => remote::pause(args),
        Verb::Resume(args) => remote::resume(args),
        Verb::Add(args) => remote::add(args),
        Verb::Remove(args) => remote::remove(args),
        Verb::Logs(args) => remote::logs(args),
        Verb::Why(args) => remote::why(args),
        Verb::Events(args) => remote::events(args),
        Verb::Exec(args) => task::exec(args),
        Verb::Task(verb) => task::task(verb),
        Verb::Pool(verb) => stats::pool(verb),
        Verb::Stats(args) => stats::stats(args),
        Verb::Resources(args) => resources::resources(args),
        Verb::Cache(verb) => task::cache(verb),
        Verb::Service(verb) => service::service(verb),
        Verb::Secret(verb) => secret::secret(verb),
        Verb::Token(verb) => token::token(verb),
        Verb::Audit(args) => remote::audit(args),
        Verb::Ls(args) => ls::ls(&args),
        Verb::ApiSchema => remote::api_schema(),
        Verb::History(args) => remote::history(args),
        Verb::Reload(args) => remote::reload(args),
        Verb::Upgrade(args) => remote::upgrade(args),
        Verb::Wait(args) => remote::wait(args),
        Verb::Down(args) => remote::down(args),
        Verb::Replay(args) => replay::replay(&args),
    };
    ExitCode::from(if all_is_written() { ended } else { ended.max(code::FAILED) })
}

/// The first error in writing to standard output.
static UNWRITTEN: OnceLock<std::io::Error> = OnceLock::new();

/// Whether this process is a supervisor: its services outlive a reader of its output.
static OUTLIVES_READERS: OnceLock<bool> = OnceLock::new();

fn unwritten(error: std::io::Error) {
    if error.kind() == std::io::ErrorKind::BrokenPipe && OUTLIVES_READERS.get() == Some(&false) {
        signals::end_by_broken_pipe();
    }
    // Only the first error is kept, and reported.
    let _ = UNWRITTEN.set(error);
}

/// Whether everything printed was written; reports the error if not.
fn all_is_written() -> bool {
    use std::io::Write as _;
    if let Err(error) = std::io::stdout().flush() {
        unwritten(error);
    }
    if let Some(error) = UNWRITTEN.get() {
        tell!("{}: can't write the output: {error}", format::error_word());
    }
    UNWRITTEN.get().is_none()
}

/// The working folder of this process.
fn here() -> Result<PathBuf, String> {
    std::env::current_dir().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "the folder that you are in is gone; go to another".to_owned(),
        _ => format!("the folder that you are in can't be told: {error}"),
    })
}

/// Prints a usage error of a verb, for errors that clap can't detect.
fn usage_error(verb: &str, message: &str) -> u8 {
    let mut command = Cli::command();
    command.build();
    let error = match command.find_subcommand_mut(verb) {
        Some(sub) => sub.error(clap::error::ErrorKind::ValueValidation, message),
        None => command.error(clap::error::ErrorKind::ValueValidation, message),
    };
    let _ = error.print();
    code::USAGE
}

/// The most threads of a supervisor for work that blocks (files, the user database, host names).
/// Threads that were made are kept.
const BLOCKING: usize = 16;
/// The number of these threads that are made at the start: when no more threads can be made, these
/// do the work.
const RESERVED: usize = 3;

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// The tokio runtime of a supervisor, which still answers when no more threads can be made.
fn supervisors_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    memory::keep_little();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING)
        .thread_stack_size(512 * 1024)
        .thread_keep_alive(Duration::from_secs(100 * 365 * 24 * 3600))
        .build()?;
    // Each of these jobs waits for the others, so each gets a thread of its own.
    let together = std::sync::Arc::new(std::sync::Barrier::new(RESERVED));
    for _ in 0..RESERVED {
        let together = std::sync::Arc::clone(&together);
        runtime.spawn_blocking(move || together.wait());
    }
    Ok(runtime)
}
