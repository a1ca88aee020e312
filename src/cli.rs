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
mod args;
mod config_file;
mod connect;
mod console;
mod daemon;
mod diagnostics;
mod format;
mod inherit;
mod progress;
mod report;
mod run;
mod verbs;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use self::args::commands::{CacheVerb, ExecArgs, ResourcesArgs, StatsArgs, TaskArgs, TaskVerb};
use crate::cli::args::observe::WaitWord;
use crate::cli::args::{Cli, Verb};
use crate::control::protocol::WaitFor;
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

impl From<WaitWord> for WaitFor {
    fn from(word: WaitWord) -> WaitFor {
        match word {
            WaitWord::Ready => WaitFor::Ready,
            WaitWord::Completed => WaitFor::Completed,
            WaitWord::Stopped => WaitFor::Stopped,
        }
    }
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    // A keeper that was replaced by this program, with its state handed over, resumes before anything
    // else.
    crate::host::keeper::resume();
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version as it prints errors; only the latter are failures.
            let _ = OUTLIVES_READERS.set(false);
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
        Verb::Check(args) => verbs::plan::check(&args),
        Verb::Plan(args) => verbs::plan::plan(&args),
        Verb::Init(args) => verbs::init::init(&args),
        Verb::ManifestSchema => verbs::init::manifest_schema(),
        Verb::Status(args) => verbs::status::status(args),
        Verb::Start(args) => verbs::control::start(args),
        Verb::Stop(args) => verbs::control::stop(args),
        Verb::Restart(args) => verbs::control::restart(args),
        Verb::Pause(args) => verbs::control::pause(args),
        Verb::Resume(args) => verbs::control::resume(args),
        Verb::Add(args) => verbs::control::add(args),
        Verb::Remove(args) => verbs::control::remove(args),
        Verb::Logs(args) => verbs::logs::logs(args),
        Verb::Why(args) => verbs::why::why(args),
        Verb::Events(args) => verbs::events::events(args),
        Verb::Exec(args) => verbs::task::exec(args),
        Verb::Task(verb) => verbs::task::task(verb),
        Verb::Pool(verb) => verbs::stats::pool(verb),
        Verb::Stats(args) => verbs::stats::stats(args),
        Verb::Resources(args) => verbs::resources::resources(args),
        Verb::Cache(verb) => verbs::task::cache(verb),
        Verb::Service(verb) => verbs::service::service(verb),
        Verb::Secret(verb) => verbs::secret::secret(verb),
        Verb::Token(verb) => verbs::token::token(verb),
        Verb::Audit(args) => verbs::admin::audit(args),
        Verb::Ls(args) => verbs::ls::ls(&args),
        Verb::ApiSchema => verbs::admin::api_schema(),
        Verb::History(args) => verbs::admin::history(args),
        Verb::Reload(args) => verbs::admin::reload(args),
        Verb::Upgrade(args) => verbs::admin::upgrade(args),
        Verb::Wait(args) => verbs::wait::wait(args),
        Verb::Down(args) => verbs::down::down(args),
        Verb::Replay(args) => verbs::replay::replay(&args),
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
        std::io::ErrorKind::NotFound => "the current folder no longer exists; change to another".to_owned(),
        _ => format!("the current folder can't be determined: {error}"),
    })
}

/// Prints a usage error of a verb, for errors that clap can't detect.
fn usage_error(verb: &str, message: &str) -> u8 {
    let mut command = Cli::grouped();
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
