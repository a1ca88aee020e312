//! `regrow logs`.

use std::time::Duration;

use super::super::code;
use super::super::connect::say;
use crate::cli::args::Common;
use crate::cli::args::observe::LogsArgs;
use crate::cli::connect::{Conversation, TURN, print_json, query, socket, talk};
use crate::cli::usage_error;
use crate::cli::verbs::events::followed_to_its_end;
use crate::control::client::{Client, Error};
use crate::control::protocol::{LogLine, Logs, LogsEnd, StreamName};
use crate::model::DenialCode;
use crate::present::units::few;

pub(in crate::cli) fn logs(args: LogsArgs) -> u8 {
    let LogsArgs { services, follow, lines, since, grep, common } = args;
    let pattern = match grep.as_deref().map(regex::Regex::new).transpose() {
        Ok(pattern) => pattern,
        Err(error) => return usage_error("logs", &format!("--grep: {error}")),
    };
    // With a pattern, the last N matching lines are meant, so all lines are asked for.
    let asked = if pattern.is_some() { None } else { lines };
    let mut path = format!("/v1/logs?{}", query(&services).trim_start_matches('&'));
    if let Some(lines) = asked {
        path.push_str(&format!("&lines={lines}"));
    }
    if let Some(since) = since {
        path.push_str(&format!("&since_s={}", since.as_secs_f64()));
    }
    let wanted = Wanted { services, pattern, lines, path: path.replace("?&", "?"), common: &common };
    talk(&common, async |client| match follow {
        true => wanted.follow(client).await,
        false => wanted.show(client).await,
    })
}

/// The lines that are wanted.
struct Wanted<'a> {
    services: Vec<String>,
    pattern: Option<regex::Regex>,
    lines: Option<usize>,
    /// The request.
    path: String,
    common: &'a Common,
}

impl Wanted<'_> {
    fn fits(&self, line: &LogLine) -> bool {
        self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(&line.text))
    }

    /// Shows what was printed so far.
    async fn show(&self, mut client: Client) -> Conversation {
        let since = tokio::time::Instant::now();
        let mut found: Logs = loop {
            match client.get(&self.path).await {
                // Other readers are being served first.
                Err(Error::Denied(denial))
                    if denial.code == DenialCode::TooManyRequests && since.elapsed() < TURN =>
                {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                found => break found?,
            }
        };
        found.lines.retain(|line| self.fits(line));
        if let Some(lines) = self.lines {
            found.lines.drain(..found.lines.len().saturating_sub(lines));
        }
        if self.common.json {
            print_json(&found);
        } else {
            let width = found.lines.iter().map(|l| l.name.len()).max().unwrap_or(0);
            found.lines.iter().for_each(|line| show_line(line, width));
        }
        let LogsEnd { cut, files } = &found.end;
        if *cut && self.lines.is_none_or(|lines| found.lines.len() < lines) {
            let files = few(files.iter().map(|file| file.display().to_string()));
            tell!(
                "regrow: older lines are left out, since they are too many for one answer; they are in {files}"
            );
        }
        Ok(code::DONE)
    }

    /// Shows what is printed, until the tree ends.
    async fn follow(&self, mut client: Client) -> Conversation {
        let at = socket(self.common).ok();
        let separator = if self.path.ends_with('?') { "" } else { "&" };
        let mut stream = client.follow(&format!("{}{separator}follow=true", self.path)).await?;
        let mut width = self.services.iter().map(String::len).max().unwrap_or(0);
        loop {
            while let Some(event) = stream.next().await? {
                match event.name.as_str() {
                    "line" => {
                        let line: LogLine =
                            serde_json::from_str(&event.data).map_err(|e| Error::Broken(e.to_string()))?;
                        if !self.fits(&line) {
                            continue;
                        }
                        width = width.max(line.name.len());
                        if self.common.json { say(&event.data) } else { show_line(&line, width) }
                    }
                    "dropped" => tell!("regrow: {} lines were not shown: they came too fast", event.data),
                    _ => {}
                }
            }
            if !crate::cli::connect::is_kept() {
                return Ok(followed_to_its_end(at.as_deref(), false).await);
            }
            // Only lines from now on are shown.
            let goes_on = format!("/v1/logs?follow=true&lines=0{}", query(&self.services));
            stream = match client.follow_again(&goes_on).await {
                Ok(stream) => stream,
                Err(Error::NotRunning(_) | Error::Broken(_)) => {
                    return Ok(followed_to_its_end(at.as_deref(), false).await);
                }
                Err(error) => return Err(error),
            };
            tell!(
                "regrow: another supervisor has taken over; \"regrow logs\" shows what was printed meanwhile"
            );
        }
    }
}

fn show_line(line: &LogLine, width: usize) {
    let bar = match line.stream {
        StreamName::Stdout => "|",
        StreamName::Stderr => "!",
    };
    say(&format!("{:width$} {bar} {}", line.name, line.text));
}
