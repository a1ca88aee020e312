//! The verbs that only a daemon answers: `history`, `reload`, `upgrade` and their like.

use std::collections::HashSet;
use std::time::Duration;

use crate::cli::args::Common;
use crate::cli::args::daemon::{ReloadArgs, UpgradeArgs};
use crate::cli::args::observe::{AuditArgs, HistoryArgs};
use crate::cli::connect::{Conversation, print_json, query, say, talk, within};
use crate::cli::format::{self, Table, Tint};
use crate::cli::{code, usage_error};
use crate::control::client::{Client, Error};
use crate::control::protocol::{Audit, History, Upgrade, Upgrading};
use crate::control::server::document;
use crate::decide::reload::{ChangedService, PlanDiff};
use crate::model::status::FaultyManifest;
use crate::model::{ExitOutcome, Name, StatusReport};
use crate::present::units::{self, few};
use crate::runtime::reload::Reloaded;
use crate::sys::{programs, terminal};

/// The time that the new daemon has to answer.
const UPGRADING: Duration = Duration::from_secs(30);

pub(in crate::cli) fn history(args: HistoryArgs) -> u8 {
    let HistoryArgs { services, lines, common } = args;
    let path = format!("/v1/history?limit={lines}{}", query(&services));
    talk(&common, async |mut client| {
        let found: History = client.get(&path).await?;
        if common.json {
            print_json(&found);
            return Ok(code::DONE);
        }
        let head = ["NAME", ">PROCESS", ">PID", "BY", "STARTED", ">UPTIME", "END"];
        let mut table = Table::new(&head);
        for service in &found.services {
            for life in &service.incarnations {
                let exit =
                    life.exit.clone().and_then(|exit| serde_json::from_value::<ExitOutcome>(exit).ok());
                let end = match (&life.ended_at, exit) {
                    (_, Some(exit)) => exit.to_string(),
                    (Some(_), None) => "ended".to_owned(),
                    (None, None) => "lives".to_owned(),
                };
                table.row(
                    [
                        service.name.clone(),
                        format!("#{}", life.incarnation),
                        life.pid.map_or("-".to_owned(), |pid| pid.to_string()),
                        life.cause.clone().unwrap_or_else(|| "-".to_owned()),
                        life.started_at.clone().unwrap_or_else(|| "-".to_owned()),
                        life.uptime_s.map_or("-".to_owned(), units::uptime),
                        end,
                    ]
                    .map(|text| (text, Tint::None))
                    .to_vec(),
                );
            }
        }
        say(&table.render(terminal::width(), format::colour_on_stdout()));
        Ok(code::DONE)
    })
}

pub(in crate::cli) fn audit(args: AuditArgs) -> u8 {
    let AuditArgs { since, lines, common } = args;
    let since = since.map_or(String::new(), |since| format!("&since_s={}", since.as_secs_f64()));
    talk(&common, async |mut client| {
        let found: Audit = client.get(&format!("/v1/audit?limit={lines}{since}")).await?;
        if common.json {
            print_json(&found);
            return Ok(code::DONE);
        }
        let mut table = Table::new(&["AT", "WHO", "WHAT", "ALLOWED"]);
        for entry in &found.entries {
            let (allowed, tint) = match (&entry.reason, entry.allowed) {
                (_, true) => ("yes".to_owned(), Tint::None),
                (Some(reason), false) => (format!("no: {reason}"), Tint::Bad),
                (None, false) => ("no".to_owned(), Tint::Bad),
            };
            table.row(vec![
                (humantime::format_rfc3339_millis(entry.at).to_string(), Tint::None),
                (entry.who.clone(), Tint::None),
                (format!("{}:{}", entry.action, entry.resource), Tint::None),
                (allowed, tint),
            ]);
        }
        say(&table.render(terminal::width(), format::colour_on_stdout()));
        Ok(code::DONE)
    })
}

pub(in crate::cli) fn api_schema() -> u8 {
    match serde_json::to_string_pretty(&document()) {
        Ok(text) => say(&text),
        Err(error) => {
            tell!("{}: {error}", format::error_word());
            return code::FAILED;
        }
    }
    code::DONE
}

pub(in crate::cli) fn reload(args: ReloadArgs) -> u8 {
    let ReloadArgs { strict, patience, common } = args;
    let path = if strict { "/v1/reload?strict=true" } else { "/v1/reload" };
    talk(&common, async |mut client| {
        let done: Reloaded = within(&patience, client.post(path, &())).await?;
        tell_reloaded(&mut client, &common, &done).await
    })
}

/// Prints what a reload of manifests has changed, and returns its exit code.
pub(in crate::cli) async fn tell_reloaded(
    client: &mut Client,
    common: &Common,
    done: &Reloaded,
) -> Conversation {
    if common.json {
        print_json(done);
    } else {
        let called = called(client, done).await?;
        for line in reloaded_in_words(&done.difference, called) {
            match (line.as_str(), done.faulty.len()) {
                (NOTHING, 1) => say(&format!("{line}; a faulty manifest was left as it was")),
                (NOTHING, 2..) => say(&format!("{line}; faulty manifests were left as they were")),
                (line, _) => say(line),
            }
        }
        tell_trouble(done);
    }
    // Services may also have failed because their manifest is faulty; the exit code is then that of a
    // faulty manifest.
    Ok(match (done.ok, done.faulty.is_empty()) {
        (_, false) => code::MANIFEST,
        (false, true) => code::FAILED,
        (true, true) => code::DONE,
    })
}

/// A function that names services for people: by their short names where these are unambiguous.
pub(in crate::cli) async fn called(
    client: &mut Client,
    done: &Reloaded,
) -> Result<impl Fn(&Name) -> String + use<>, Error> {
    let status: StatusReport = client.get("/v1/status").await?;
    let removed = done.difference.removed.iter().cloned();
    let all: HashSet<Name> = status.services.into_iter().map(|row| row.service).chain(removed).collect();
    Ok(move |name: &Name| match all.iter().filter(|other| other.short() == name.short()).count() {
        0 | 1 => name.short().to_owned(),
        _ => name.to_string(),
    })
}

/// Prints what went wrong in a reload of manifests.
pub(in crate::cli) fn tell_trouble(done: &Reloaded) {
    for result in done.results.iter().filter(|result| !result.ok) {
        tell!("{}: {}", result.name, result.message);
    }
    done.faulty.iter().for_each(tell_faulty);
}

const NOTHING: &str = "nothing has changed";

/// What a reload has changed, with one line for each kind of change.
pub(in crate::cli) fn reloaded_in_words(
    difference: &PlanDiff,
    called: impl Fn(&Name) -> String,
) -> Vec<String> {
    let names = |what: &str, names: &[Name]| {
        let words: Vec<String> = names.iter().map(&called).collect();
        (!names.is_empty()).then(|| format!("{what}: {}", few(words.iter().map(String::as_str))))
    };
    let because = |what: &str, changed: &[ChangedService]| {
        let words: Vec<String> =
            changed.iter().map(|c| format!("{} ({})", called(&c.service), c.keys.join(", "))).collect();
        (!changed.is_empty()).then(|| format!("{what}: {}", few(words.iter().map(String::as_str))))
    };
    let lines = [
        names("added", &difference.added),
        names("removed", &difference.removed),
        because("restarted", &difference.restarted),
        because("changed in place", &difference.changed),
        names("groups changed in place", &difference.groups),
    ];
    let mut lines: Vec<String> = lines.into_iter().flatten().collect();
    let unchanged = difference.unchanged.len();
    match (lines.is_empty(), unchanged) {
        (true, _) => lines.push(NOTHING.to_owned()),
        (false, 0) => {}
        (false, count) => lines.push(format!("unchanged: {count}")),
    }
    lines
}

/// Prints one line about a manifest that can't be used as it is.
pub(in crate::cli) fn tell_faulty(faulty: &FaultyManifest) {
    tell!("{}: {}", format::warning_word(), faulty_in_words(faulty));
}

pub(in crate::cli) fn faulty_in_words(faulty: &FaultyManifest) -> String {
    let FaultyManifest { file, line, message } = faulty;
    format!("{}:{line}: {message}; its running services continue unchanged", file.display())
}

pub(in crate::cli) fn upgrade(args: UpgradeArgs) -> u8 {
    let UpgradeArgs { binary, common } = args;
    let binary = match binary.map(std::path::absolute).transpose() {
        Ok(binary) => binary,
        Err(error) => return usage_error("upgrade", &format!("--binary: {error}")),
    };
    talk(&common, async |mut client| {
        let before: StatusReport = client.get("/v1/status").await?;
        let upgrading: Upgrading = client.post("/v1/upgrade", &Upgrade { binary }).await?;
        drop(client);
        let after = async {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                // While the daemon is replaced there is no connection for a moment.
                let Ok(mut client) = crate::cli::connect::client(&common).await else { continue };
                if let Ok(status) = client.get::<StatusReport>("/v1/status").await
                    && status.daemon.pid != before.daemon.pid
                {
                    return status;
                }
            }
        };
        let Ok(after) = tokio::time::timeout(UPGRADING, after).await else {
            tell!("{}: no daemon answers after {UPGRADING:?}", format::error_word());
            return Ok(code::TIMED_OUT);
        };
        if programs::runs(after.daemon.pid, &upgrading.binary) == Some(false) {
            let path = upgrading.binary.display();
            tell!("{}: {path} did not start; the previous build continues", format::error_word());
            return Ok(code::FAILED);
        }
        if common.json {
            print_json(&after.daemon);
        } else {
            let noun = |count: usize| if count == 1 { "command" } else { "commands" };
            let ended = match upgrading.tasks_running {
                0 => String::new(),
                count => format!("; {count} {} ended with it", noun(count)),
            };
            let waiting = match upgrading.tasks_waiting {
                0 => String::new(),
                count => format!("; {count} {} that waited will be run", noun(count)),
            };
            say(&format!(
                "regrow {} (pid {}) was replaced by {} (pid {}), from {}{ended}{waiting}",
                before.daemon.version,
                before.daemon.pid,
                after.daemon.version,
                after.daemon.pid,
                upgrading.binary.display()
            ));
        }
        Ok(code::DONE)
    })
}
