//! Values in the words that people read: durations, counts, lists and notices about an instance.

/// When something happens that is due after this time: at once, or in so many seconds.
pub fn in_time(left: std::time::Duration) -> String {
    if left.is_zero() { "at once".to_owned() } else { format!("in {}", short(left)) }
}

/// A duration, rounded to about three digits, and to whole seconds from a minute on.
pub fn short(duration: std::time::Duration) -> String {
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
        humantime::format_duration(std::time::Duration::from_secs(seconds.round() as u64)).to_string()
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
        "gone as far as can be seen; {of} {processes} of it {have} shed its marks and ended, and may have left others: a cgroup would tell"
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
        lost => format!("its output is kept again; {lost} bytes were not"),
    }
}

/// The first names of a list, and how many more there are.
///
/// ```
/// use regrow::decide::humanize::few;
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
pub fn falls(count: u32) -> String {
    format!("{count} fall{}", if count == 1 { "" } else { "s" })
}
