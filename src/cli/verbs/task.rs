//! `exec` and `task`: one-shot commands through the worker pool of a running tree.

use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::cli::args::Common;
use crate::cli::connect::{Conversation, print_json, say, talk};
use crate::cli::format::{self, Table, Tint};
use crate::cli::progress::{Moving, in_words, narrow};
use crate::cli::{CacheVerb, ExecArgs, TaskArgs, TaskVerb, code, usage_error};
use crate::control::client::{Client, Error};
use crate::control::protocol::{
    CancelTask, Removed, StreamName, Submit, Submitted, TaskList, TaskOutput, TasksDone,
};
use crate::model::task::{ProgressReport, TaskEnd};
use crate::model::{
    Denial, DenialCode, Exit, SpawnStage, TaskId, TaskInput, TaskResult, TaskSpec, TaskState, TaskStatus,
};
use crate::present::units::short;
use crate::sys::terminal;

/// The exit code after a timeout, as timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// The exit code where the program does not exist, as a shell has it.
const NO_PROGRAM: u8 = 127;
/// The exit code where the program exists but can't be run, as a shell has it.
const UNABLE: u8 = 126;
/// The number of the error ENOENT.
const NO_SUCH_FILE: i32 = 2;

pub(in crate::cli) fn exec(args: ExecArgs) -> u8 {
    let ExecArgs { run, command, common } = args;
    let mut spec = match spec(&run, command) {
        Ok(spec) => spec,
        Err(wrong) => return usage_error("exec", &wrong),
    };
    spec.env.splice(0..0, environment());
    talk(&common, async |mut client| {
        if common.json {
            let result: TaskResult = client.post_unrepeated("/v1/run", &spec).await?;
            print_json(&result);
            return Ok(ends_as(&result));
        }
        let mut stream = client.follow_posted("/v1/exec", &spec).await?;
        let (mut moving, mut passed) = (Moving::default(), 0);
        while let Some(event) = stream.next().await? {
            let unreadable = |error: serde_json::Error| Error::Unreadable(error.to_string());
            match event.name.as_str() {
                "output" => {
                    let output = serde_json::from_str(&event.data).map_err(unreadable)?;
                    passed += moving.aside(|| pass_on(&output))?;
                }
                "progress" => moving.show(&serde_json::from_str(&event.data).map_err(unreadable)?),
                "result" => {
                    moving.end();
                    let result: TaskResult = serde_json::from_str(&event.data).map_err(unreadable)?;
                    let (all, ended) = (result.stdout.total + result.stderr.total, told(&result));
                    if passed < all {
                        tell!(
                            "{}: of {all} bytes of output only {passed} could be kept; the others are lost",
                            format::error_word()
                        );
                    }
                    // The exit code tells a reader of the output that some of it is lost.
                    return Ok(if passed < all { ended.max(code::FAILED) } else { ended });
                }
                _ => {}
            }
        }
        Err(Error::Broken("it ended before the command did, which was ended with it".to_owned()))
    })
}

/// Writes the bytes of an output event as they are, and returns how many there were.
fn pass_on(output: &TaskOutput) -> Result<u64, Error> {
    let bytes = STANDARD.decode(&output.data).map_err(|error| Error::Unreadable(error.to_string()))?;
    write_out(output.stream, &bytes);
    Ok(bytes.len() as u64)
}

fn write_out(stream: StreamName, bytes: &[u8]) {
    let written = match stream {
        StreamName::Stdout => {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        }
        StreamName::Stderr => std::io::stderr().write_all(bytes),
    };
    if let Err(error) = written {
        crate::cli::unwritten(error);
    }
}

/// Prints what the output of the command does not say, and returns the exit code of the command.
fn told(result: &TaskResult) -> u8 {
    if let Some(error) = &result.error {
        tell!("regrow: {error}");
    }
    ends_as(result)
}

fn ends_as(result: &TaskResult) -> u8 {
    match (result.ended, result.exit) {
        (TaskEnd::TimedOut, _) => TIMED_OUT,
        (TaskEnd::NotStarted, _) => match &result.failure {
            Some(failure) if failure.errno == NO_SUCH_FILE && failure.stage == SpawnStage::Exec => NO_PROGRAM,
            Some(_) | None => UNABLE,
        },
        (TaskEnd::Cancelled, _) => code::INTERRUPTED,
        (TaskEnd::Exited | TaskEnd::Lost, Some(Exit::Code(code))) => {
            u8::try_from(code).unwrap_or(code::FAILED)
        }
        (TaskEnd::Exited | TaskEnd::Lost, Some(Exit::Signal { signal, .. })) => {
            u8::try_from(128 + signal).unwrap_or(code::FAILED)
        }
        (TaskEnd::Exited | TaskEnd::Lost, Some(Exit::Unknown) | None) => code::FAILED,
    }
}

/// The task that the arguments ask for.
fn spec(args: &TaskArgs, command: Vec<String>) -> Result<TaskSpec, String> {
    let mut spec = match (args.shell, &command[..]) {
        (true, [text]) => TaskSpec::shell(text),
        (true, words) => TaskSpec::shell(&words.join(" ")),
        (false, _) => TaskSpec::new(command),
    };
    let here = crate::cli::here()?;
    spec.dir = Some(match &args.dir {
        Some(dir) => here.join(dir),
        None => here,
    });
    if let Some(dir) = spec.dir.as_ref().filter(|dir| dir.to_str().is_none()) {
        return Err(format!("the name of the folder {} is not UTF-8 text", dir.display()));
    }
    for pair in &args.env {
        let (name, value) =
            pair.split_once('=').ok_or_else(|| format!("--env {pair:?}: write NAME=VALUE"))?;
        spec.env.push((name.to_owned(), value.to_owned()));
    }
    spec.env_clear = true;
    spec.input = input(args.input.as_deref())?;
    spec.timeout = args.timeout;
    if let Some(grace) = args.grace {
        spec.grace = grace;
    }
    spec.priority = args.priority;
    spec.retries = args.retries;
    if let Some(delay) = args.retry_delay {
        spec.retry_delay = delay;
    }
    spec.cache = args.cache.filter(|_| !args.no_cache);
    spec.cache_env.clone_from(&args.cache_env);
    if spec.timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err("--timeout must be longer than 0".to_owned());
    }
    Ok(spec)
}

/// The environment that is passed on to the command: this process's own, without the variables that
/// only concern regrow.
fn environment() -> Vec<(String, String)> {
    let text = |(name, value): (OsString, OsString)| match (name.into_string(), value.into_string()) {
        (Ok(name), Ok(value)) => Some((name, value)),
        (Ok(name), Err(_)) => {
            tell!("regrow: the variable {name} is not UTF-8 text and is not passed on");
            None
        }
        (Err(_), _) => None,
    };
    let pairs = std::env::vars_os().filter_map(text);
    pairs.filter(|(name, _)| !name.starts_with("REGROW_") || name == "REGROW_STATE_DIR").collect()
}

/// The input of the command: a named file, or with `-` this process's standard input, which is read
/// to its end. Without a name, standard input is used where it is a regular file.
fn input(named: Option<&Path>) -> Result<TaskInput, String> {
    let wrong = |error: std::io::Error| format!("the input can't be read: {error}");
    let read = |bytes: std::io::Result<Vec<u8>>| bytes.map(TaskInput::of).map_err(wrong);
    let to_its_end = |from: &mut dyn Read| {
        let mut bytes = Vec::new();
        from.take(LARGEST_INPUT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LARGEST_INPUT {
            return Err(std::io::Error::other("it is larger than 8 MiB; give a file with --input FILE"));
        }
        Ok(bytes)
    };
    let all = || to_its_end(&mut std::io::stdin().lock());
    match named {
        Some(path) if path == Path::new("-") => read(all()),
        Some(path) => {
            let path = std::path::absolute(path).map_err(wrong)?;
            let mut file = std::fs::File::open(&path).map_err(wrong)?;
            // Only this process can read what is not a regular file, like a pipe or /dev/fd/63, so it is
            // read here.
            if !file.metadata().map_err(wrong)?.is_file() {
                return read(to_its_end(&mut file));
            }
            Ok(TaskInput::File(path))
        }
        None if terminal::input_is_a_file() && !std::io::stdin().is_terminal() => read(all()),
        None => Ok(TaskInput::Nothing),
    }
}

/// The size of the largest input that is sent, in bytes.
const LARGEST_INPUT: u64 = 8 << 20;

pub(in crate::cli) fn task(verb: TaskVerb) -> u8 {
    match verb {
        TaskVerb::Submit { run, batch, wait, command, common } => {
            let specs = match (batch, command.is_empty()) {
                (Some(batch), true) => read_batch(&batch, &run),
                (None, false) => spec(&run, command).map(|spec| vec![spec]),
                (Some(_), false) => Err("give either a command or --batch, not both".to_owned()),
                (None, true) => Err("name a command, or give --batch FILE".to_owned()),
            };
            match specs {
                Ok(tasks) => submit(tasks, wait, &common),
                Err(wrong) => usage_error("task", &wrong),
            }
        }
        TaskVerb::List { state, common } => list(&state, &common),
        TaskVerb::Status { id, common } => talk(&common, async |mut client| {
            let task: TaskStatus = client.get(&format!("/v1/tasks/{id}")).await?;
            if common.json {
                print_json(&task);
            } else {
                show(&[task]);
            }
            Ok(code::DONE)
        }),
        TaskVerb::Result { id, timeout, common } => talk(&common, async |mut client| {
            let result = wait_for(&mut client, id, timeout).await?;
            if common.json {
                print_json(&result);
                return Ok(ends_as(&result));
            }
            write_out(StreamName::Stdout, &result.stdout.bytes);
            write_out(StreamName::Stderr, &result.stderr.bytes);
            if result.stdout.is_cut() || result.stderr.is_cut() {
                let (out, err) = (result.stdout.total, result.stderr.total);
                tell!(
                    "regrow: only the beginning is shown: there were {out} bytes of standard output and {err} of standard error"
                );
            }
            Ok(told(&result))
        }),
        TaskVerb::Progress { id, progress, bytes, message, common } => talk(&common, async |mut client| {
            let report = ProgressReport { progress, bytes, message };
            let task: TaskStatus = match report == ProgressReport::default() {
                true => client.get(&format!("/v1/tasks/{id}")).await?,
                false => client.post(&format!("/v1/tasks/{id}/progress"), &report).await?,
            };
            if common.json {
                print_json(&task.progress);
            } else {
                let words = task
                    .progress
                    .as_ref()
                    .map_or("the task has not reported any progress yet".to_owned(), in_words);
                say(&format::shorten(&words, terminal::width().unwrap_or(usize::MAX)));
            }
            Ok(code::DONE)
        }),
        TaskVerb::Cancel { ids, force, common } => talk(&common, async |mut client| {
            for id in &ids {
                let path = format!("/v1/tasks/{id}/cancel");
                let _: Removed = client.post(&path, &CancelTask { at_once: force }).await?;
            }
            done(&common, ids.len(), "cancelled")
        }),
        TaskVerb::Pause { ids, common } => each(&ids, "pause", "paused", &common),
        TaskVerb::Resume { ids, common } => each(&ids, "resume", "resumed", &common),
        TaskVerb::Cleanup { common } => talk(&common, async |mut client| {
            let removed: Removed = client.delete("/v1/tasks").await?;
            done(&common, removed.removed, "forgotten")
        }),
    }
}

pub(in crate::cli) fn cache(verb: CacheVerb) -> u8 {
    match verb {
        CacheVerb::Clear { common } => talk(&common, async |mut client| {
            let removed: Removed = client.delete("/v1/cache").await?;
            done(&common, removed.removed, "dropped")
        }),
    }
}

fn each(ids: &[TaskId], verb: &str, what: &str, common: &Common) -> u8 {
    talk(common, async |mut client| {
        for id in ids {
            let _: TaskStatus = client.post(&format!("/v1/tasks/{id}/{verb}"), &()).await?;
        }
        done(common, ids.len(), what)
    })
}

fn done(common: &Common, count: usize, what: &str) -> Conversation {
    if common.json {
        print_json(&serde_json::json!({ what: count }));
    } else {
        say(&format!("{what}: {count}"));
    }
    Ok(code::DONE)
}

/// Reads one command from each line; blank lines and lines that begin with `#` are skipped.
fn read_batch(path: &Path, args: &TaskArgs) -> Result<Vec<TaskSpec>, String> {
    let shown = path.display();
    let text = match path == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(path),
    };
    let text = text.map_err(|error| format!("--batch {shown}: {error}"))?;
    let mut specs = Vec::new();
    // What all commands share is worked out once.
    let same = spec(args, vec!["true".to_owned()])?;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let command = match args.shell {
            true => TaskSpec::shell(line).command,
            false => {
                let words = shlex::split(line).filter(|words| !words.is_empty());
                let wrong = || format!("{shown}:{}: an unclosed quote or a trailing backslash", number + 1);
                TaskSpec::new(words.ok_or_else(wrong)?).command
            }
        };
        specs.push(TaskSpec { command, ..same.clone() });
    }
    if specs.is_empty() { Err(format!("--batch {shown}: the file has no command")) } else { Ok(specs) }
}

fn submit(tasks: Vec<TaskSpec>, wait: bool, common: &Common) -> u8 {
    let body = Submit { tasks, env: environment(), wait };
    talk(common, async |mut client| {
        let submitted: Submitted = match client.post_unrepeated("/v1/tasks", &body).await {
            Err(Error::Broken(reason)) if wait => {
                let goes_on = "the tasks that waited continue; \"regrow task list\" shows them";
                return Err(Error::Broken(format!("{reason}; {goes_on}")));
            }
            other => other?,
        };
        if common.json {
            print_json(&submitted);
        } else if !wait {
            submitted.ids.iter().for_each(|id| say(&id.to_string()));
        }
        let Some(TasksDone { succeeded, failed }) = submitted.done else {
            return Ok(code::DONE);
        };
        if !common.json {
            let noun = if succeeded + failed == 1 { "task" } else { "tasks" };
            say(&format!("{} {noun}: {succeeded} succeeded, {failed} failed", succeeded + failed));
        }
        Ok(if failed == 0 { code::DONE } else { code::FAILED })
    })
}

async fn wait_for(client: &mut Client, id: TaskId, timeout: Option<Duration>) -> Result<TaskResult, Error> {
    let begun = tokio::time::Instant::now();
    loop {
        // A supervisor answers a request within seconds, unless it is in trouble.
        let left = timeout.map(|timeout| timeout.saturating_sub(begun.elapsed()));
        let wait = left.map_or(PATIENCE, |left| left.min(PATIENCE));
        let path = format!("/v1/tasks/{id}/result?wait_s={}&bytes={}", wait.as_secs_f64(), 64 << 20);
        match client.get(&path).await {
            Err(Error::Denied(Denial { code: DenialCode::TimedOut, .. }))
                if left.is_none_or(|l| l > PATIENCE) => {}
            Err(Error::Denied(Denial { code: DenialCode::TimedOut, .. })) => {
                let reason =
                    format!("task {id} has not finished after {}", short(timeout.unwrap_or_default()));
                return Err(Error::Denied(Denial { code: DenialCode::TimedOut, reason, hint: None }));
            }
            other => return other,
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(5);

fn list(states: &[TaskState], common: &Common) -> u8 {
    talk(common, async |mut client| {
        let mut found: TaskList = client.get("/v1/tasks").await?;
        found.tasks.retain(|task| states.is_empty() || states.contains(&task.state));
        if common.json {
            print_json(&found);
        } else if found.tasks.is_empty() {
            say("no tasks");
        } else {
            show(&found.tasks);
        }
        Ok(code::DONE)
    })
}

fn runtime(task: &TaskStatus) -> String {
    match Duration::try_from_secs_f64(task.runtime_s) {
        Ok(runtime) if !runtime.is_zero() => short(runtime),
        _ => "-".to_owned(),
    }
}

fn show(tasks: &[TaskStatus]) {
    let mut columns = vec!["ID", "STATE", ">RUNTIME", ">PID", "RESULT", "COMMAND"];
    // The column is left out where no task reports progress, as most don't.
    let width = terminal::width();
    let says = tasks.iter().any(|task| task.progress.is_some());
    if says {
        columns.insert(5, "PROGRESS");
    }
    let mut table = Table::new(&columns);
    for task in tasks {
        let (result, tint) = match (task.success, task.ended, task.exit_code, task.signal) {
            (None, ..) => ("-".to_owned(), Tint::None),
            (Some(true), ..) if task.cached => ("ok, cached".to_owned(), Tint::Good),
            (Some(true), ..) => ("ok".to_owned(), Tint::Good),
            (Some(false), Some(TaskEnd::Exited), Some(code), _) => (format!("exit code {code}"), Tint::Bad),
            (Some(false), Some(TaskEnd::Exited), None, Some(signal)) => {
                (crate::model::exit::signal_name(signal), Tint::Bad)
            }
            (Some(false), ended, ..) => (ended.map_or("failed", TaskEnd::word).replace('_', " "), Tint::Bad),
        };
        let mut row = vec![
            (task.id.to_string(), Tint::None),
            (task.state.to_string(), Tint::None),
            (runtime(task), Tint::None),
            (task.pid.map_or("-".to_owned(), |pid| pid.to_string()), Tint::None),
            (result, tint),
            (task.command.clone(), Tint::None),
        ];
        if says {
            let progress = task.progress.as_ref().map_or("-".to_owned(), |of| narrow(of, width));
            row.insert(5, (progress, Tint::None));
        }
        table.row(row);
    }
    say(&table.render(width, format::colour_on_stdout()));
}
