//! Values in the words that people read: durations, counts, lists and notices about an instance.

use std::time::Duration;

/// When something happens that is due after this time: at once, or in so many seconds.
pub fn in_time(left: Duration) -> String {
    if left.is_zero() { "at once".to_owned() } else { format!("in {}", short(left)) }
}

/// A duration, rounded to about three digits, and to whole seconds from a minute on.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.001 {
        format!("{:.0} us", seconds * 1e6)
    } else if seconds < 0.1 {
        format!("{:.1} ms", seconds * 1e3)
    } else if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        humantime::format_duration(Duration::from_secs(seconds.round() as u64)).to_string()
    }
}

/// The notice about a process tree that SIGKILL does not end, since it keeps forking.
pub fn forks_away(left: usize) -> String {
    let (noun, verb, them) =
        if left == 1 { ("process", "forks", "it") } else { ("processes", "fork", "them") };
    format!("{left} {noun} still {verb} away; a cgroup would end {them}")
}

/// The notice about a process tree that may have left processes nobody can find any more.
pub fn lost_sight(of: usize) -> String {
    let (processes, have) = if of == 1 { ("process", "has") } else { ("processes", "have") };
    format!(
        "gone as far as can be seen; {of} {processes} of it {have} shed its marks and ended, and may have left others behind: only a cgroup could show them"
    )
}

/// The notice that an instance's output goes to another file, and why.
pub fn goes_elsewhere(file: &std::path::Path, reason: &str) -> String {
    format!("its output goes to {}: {reason}", file.display())
}

/// The notice that an instance's output is kept nowhere, and why.
pub fn not_kept(reason: &str) -> String {
    format!("its output can't be kept: {reason}")
}

/// The notice that an instance's output is kept again, and how many bytes are missing.
pub fn kept_again(lost: u64) -> String {
    match lost {
        0 => "its output is kept again; nothing of it is missing".to_owned(),
        lost => format!("its output is kept again; {lost} bytes were lost"),
    }
}

/// The first names of a list, and how many more there are.
///
/// ```
/// use regrow::present::units::few;
/// assert_eq!(few(["a", "b"]), "a, b");
/// assert_eq!(few(["x"; 10]), "x, x, x, x, x, x, x, x and 2 more");
/// ```
pub fn few<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    const MOST: usize = 8;
    let names: Vec<T> = names.into_iter().collect();
    let first: Vec<&str> = names.iter().take(MOST).map(AsRef::as_ref).collect();
    let first = first.join(", ");
    match names.len().saturating_sub(MOST) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// A number of crashes, with its noun.
pub fn crashes(count: u32) -> String {
    format!("{count} crash{}", if count == 1 { "" } else { "es" })
}

/// A duration in at most two units: `4d 3h`, `2m 5s`, `12s`.
pub fn uptime(seconds: f64) -> String {
    let seconds = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default().as_secs();
    let (days, hours, minutes, rest) =
        (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m {rest}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        (_, _, _) => format!("{days}d {hours}h"),
    }
}

/// A size in a unit that leaves it below 1000.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        return format!("{value:.0} {}", units[unit]);
    }
    let text = format!("{value:.1}");
    format!("{} {}", text.strip_suffix(".0").unwrap_or(&text), units[unit])
}

/// A percentage with one decimal, which is left out where it is zero: `62.5%`, `80%`.
///
/// ```
/// use regrow::present::units::percent;
/// assert_eq!([percent(62.5), percent(80.0), percent(0.04)], ["62.5%", "80%", "0%"]);
/// ```
pub fn percent(value: f64) -> String {
    let text = format!("{value:.1}");
    let text = text.strip_suffix(".0").unwrap_or(&text);
    format!("{}%", if text == "-0" { "0" } else { text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(
            [uptime(0.4), uptime(65.0), uptime(7_300.0), uptime(200_000.0)],
            ["0s", "1m 5s", "2h 1m", "2d 7h"]
        );
        assert_eq!([size(17), size(1_500), size(12_582_912)], ["17 B", "1.5 KiB", "12 MiB"]);
    }
}
