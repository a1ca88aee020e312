//! The progress of tasks as bars: in words for tables, and as a moving bar beside the output of
//! `exec`.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::format;
use crate::model::task::TaskProgress;
use crate::present::units;

/// From this width of the terminal on, a table has room for the whole bar.
const WIDE: usize = 160;
/// The width of a bar in a table, in columns.
const BAR: usize = 20;

/// The bar with its details and message, for output with and without a terminal.
pub(super) fn in_words(progress: &TaskProgress) -> String {
    let message = progress.message.clone().filter(|message| !message.is_empty());
    std::iter::once(bar(progress)).filter(|bar| !bar.is_empty()).chain(message).collect::<Vec<_>>().join(", ")
}

/// The bar for a column of a table; only its main figure where the terminal is narrow.
pub(super) fn narrow(progress: &TaskProgress, width: Option<usize>) -> String {
    if width.is_none_or(|width| width >= WIDE) {
        return bar(progress);
    }
    match (progress.progress, progress.bytes) {
        (Some(share), _) => units::percent(share * 100.0),
        (None, Some(bytes)) => units::size(bytes),
        (None, None) => "-".to_owned(),
    }
}

/// The bar with its details, without the message, which may be long.
fn bar(progress: &TaskProgress) -> String {
    let bar = progress.progress.map(|share| {
        let full = (share * BAR as f64).round() as usize;
        let (full, rest) = ("#".repeat(full), "-".repeat(BAR.saturating_sub(full)));
        format!("[{full}{rest}] {}", units::percent(share * 100.0))
    });
    bar.into_iter().chain(details(progress)).collect::<Vec<_>>().join(", ")
}

fn details(progress: &TaskProgress) -> impl Iterator<Item = String> {
    let bytes = progress.bytes.map(units::size);
    let rate = progress.bytes_per_s.map(|rate| format!("{}/s", units::size(rate as u64)));
    let left = progress.eta_s.map(|left| format!("{} left", units::uptime(left)));
    bytes.into_iter().chain(rate).chain(left)
}

/// The number of steps of a moving bar.
const STEPS: u64 = 1_000;

/// The moving bar of one command on a terminal. There is none until the command reports progress.
#[derive(Default)]
pub(super) struct Moving(Option<ProgressBar>);

impl Moving {
    pub(super) fn show(&mut self, progress: &TaskProgress) {
        if !format::colour_on_stderr() {
            return;
        }
        let bar = self.0.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr_with_hz(10));
            let style = ProgressStyle::with_template("[{bar:30}] {percent:>3} % {elapsed} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("##-"));
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        if let Some(share) = progress.progress {
            bar.set_position((share * STEPS as f64).round() as u64);
        }
        bar.set_message(details(progress).chain(progress.message.clone()).collect::<Vec<_>>().join(", "));
    }

    /// Hides the bar while something else is printed.
    pub(super) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    pub(super) fn end(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_how_far_how_fast_and_how_long_still() {
        let progress = TaskProgress {
            progress: Some(0.4),
            bytes: Some(4 << 20),
            message: Some("unpacking".to_owned()),
            eta_s: Some(65.0),
            bytes_per_s: Some(1024.0),
        };
        assert_eq!(in_words(&progress), "[########------------] 40%, 4 MiB, 1 KiB/s, 1m 5s left, unpacking");
        assert_eq!(in_words(&TaskProgress { bytes: Some(17), ..TaskProgress::default() }), "17 B");
        let all = TaskProgress { progress: Some(1.0), ..TaskProgress::default() };
        assert_eq!(in_words(&all), "[####################] 100%");
    }
}
