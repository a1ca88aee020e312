//! The progress of a task, as the task itself reports it: how its lines are read, and the
//! estimates that follow from them.
//!
//! A line holds a number from 0 to 1 or a percentage, `bytes=N`, and `message=` with the rest of
//! the line, each of them at most once: `0.4 bytes=1048576 message=unpacking`.

use std::time::Duration;

use crate::model::task::{ProgressReport, TaskProgress};

/// The longest message that is kept, in characters.
const MESSAGE: usize = 200;

/// The shortest run time from which a pace is estimated.
const PACE: Duration = Duration::from_millis(100);

/// Reads one line. `Err`: what is wrong with it, in words.
pub fn parse(line: &str) -> Result<ProgressReport, String> {
    let mut report = ProgressReport::default();
    let mut rest = line.trim();
    while !rest.is_empty() {
        if let Some(message) = rest.strip_prefix("message=") {
            report.message = Some(message.to_owned());
            break;
        }
        let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        rest = after.trim_start();
        match word.strip_prefix("bytes=") {
            Some(bytes) if report.bytes.is_none() => {
                let bytes = bytes.parse().map_err(|_| format!("{bytes:?} is not a number of bytes"))?;
                report.bytes = Some(bytes);
            }
            None if report.progress.is_none() => report.progress = Some(share(word)?),
            Some(_) | None => return Err(format!("{word:?} is one value too many")),
        }
    }
    if report == ProgressReport::default() {
        return Err("the report is empty".to_owned());
    }
    sane(report)
}

/// Reads a number from 0 to 1, or a percentage. `Err`: what is wrong with it, in words.
pub fn share(word: &str) -> Result<f64, String> {
    let wrong = || format!("{word:?} is neither a number from 0 to 1 nor a percentage such as 40%");
    let (number, whole) = match word.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (word, 1.0),
    };
    let share = number.parse::<f64>().map_err(|_| wrong())? / whole;
    if (0.0..=1.0).contains(&share) { Ok(share.abs()) } else { Err(wrong()) }
}

/// The report, with its message cut and made safe for a terminal. `Err`: the progress is not from
/// 0 to 1, in words.
pub fn sane(mut report: ProgressReport) -> Result<ProgressReport, String> {
    if let Some(progress) = report.progress
        && !(0.0..=1.0).contains(&progress)
    {
        return Err(format!("the progress must be from 0 to 1, not {progress}"));
    }
    if let Some(message) = &mut report.message {
        *message = shown(message).take(MESSAGE).collect();
    }
    Ok(report)
}

/// The characters of an untrusted text that are safe to show in a terminal: no control
/// characters, and none that change the direction of the text.
pub fn shown(text: &str) -> impl Iterator<Item = char> + '_ {
    let turns =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().filter(move |c| !c.is_control() && !turns(*c))
}

/// Adds a report to what is known; what the report leaves out stays as it was.
pub fn fold(known: &mut ProgressReport, report: ProgressReport) {
    let ProgressReport { progress, bytes, message } = report;
    known.progress = progress.or(known.progress);
    known.bytes = bytes.or(known.bytes);
    known.message = message.or_else(|| known.message.take());
}

/// The progress to show for a task that has run for `runtime`. Estimates assume the pace so far.
pub fn seen(known: &ProgressReport, runtime: Duration) -> TaskProgress {
    let has_pace = runtime >= PACE;
    let runtime = runtime.as_secs_f64();
    let eta = known.progress.filter(|progress| *progress > 0.0 && has_pace);
    TaskProgress {
        progress: known.progress,
        bytes: known.bytes,
        message: known.message.clone(),
        eta_s: eta.map(|progress| runtime / progress * (1.0 - progress)),
        bytes_per_s: known.bytes.filter(|_| has_pace).map(|bytes| bytes as f64 / runtime),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_say_what_they_say() {
        let report = |progress: Option<f64>, bytes, message: Option<&str>| {
            Ok(ProgressReport { progress, bytes, message: message.map(str::to_owned) })
        };
        for (line, want) in [
            ("0.4", report(Some(0.4), None, None)),
            (" 40% ", report(Some(0.4), None, None)),
            ("1", report(Some(1.0), None, None)),
            ("bytes=17", report(None, Some(17), None)),
            (
                "0.5 bytes=17 message=half of it = done",
                report(Some(0.5), Some(17), Some("half of it = done")),
            ),
            ("message=\u{1b}[2Jgone", report(None, None, Some("[2Jgone"))),
        ] {
            assert_eq!(parse(line), want, "{line:?}");
        }
        for line in ["", " ", "1.5", "-0.1", "NaN", "inf", "140%", "bytes=-1", "bytes=1e9", "0.1 0.2", "what"]
        {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn the_rest_takes_as_long_as_the_part_before_did() {
        let mut known = parse("0.25 bytes=1000").unwrap();
        fold(&mut known, parse("message=on").unwrap());
        let seen = seen(&known, Duration::from_secs(10));
        assert_eq!((seen.eta_s, seen.bytes_per_s, seen.progress), (Some(30.0), Some(100.0), Some(0.25)));
        assert_eq!(seen.message.as_deref(), Some("on"));
        let nothing = super::seen(&parse("0").unwrap(), Duration::from_secs(10));
        assert_eq!(nothing.eta_s, None, "nothing is no pace");
        let soon = super::seen(&known, Duration::from_millis(1));
        assert_eq!((soon.eta_s, soon.bytes_per_s), (None, None), "a moment is none either");
    }

    proptest! {
        /// Whatever a task writes, reading it does not panic, and a progress is from 0 to 1.
        #[test]
        fn any_line_is_read(line in ".{0,80}") {
            if let Ok(report) = parse(&line) {
                prop_assert!(report.progress.is_none_or(|progress| (0.0..=1.0).contains(&progress)));
                prop_assert!(report.message.is_none_or(|text| !text.contains(char::is_control)));
            }
        }
    }
}
