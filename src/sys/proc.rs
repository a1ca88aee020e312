//! `/proc`: the parent and children of a process, its state, and what it uses.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// The fields of `/proc/PID/stat` that regrow uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: u32,
    pub(crate) state: u8,
    pub(crate) parent: u32,
    pub(crate) group: u32,
    pub(crate) session: u32,
    /// User and system time of the process, in clock ticks.
    pub(crate) ticks: u64,
    /// User and system time of its children that have ended and were waited for, in clock ticks.
    pub(crate) child_ticks: u64,
    /// When the process started, in ticks since boot. With the pid this identifies one process for
    /// ever.
    pub(crate) started: u64,
    /// Resident memory, in pages.
    pub(crate) pages: u64,
}

/// Reads `/proc/PID/stat`. `None` when the process is gone.
pub(crate) fn stat(pid: u32) -> Option<Stat> {
    let mut buffer = [0u8; 1024];
    let mut file = fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    let length = file.read(&mut buffer).ok()?;
    parse(&buffer[..length])
}

/// How a zombie ended. `None` when the process is gone or still runs.
pub(crate) fn exit_of_zombie(pid: u32) -> Option<crate::model::Exit> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    if *fields.first()? != "Z" {
        return None;
    }
    Some(super::pidfd::of_status(fields.get(49)?.parse().ok()?))
}

pub(crate) fn parse(text: &[u8]) -> Option<Stat> {
    // The command name may hold any byte, a parenthesis too: the last `)` ends it. The numbers are
    // ASCII.
    let open = text.iter().position(|byte| *byte == b'(')?;
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let ascii = |bytes| std::str::from_utf8(bytes).ok();
    let pid = ascii(&text[..open])?.trim().parse().ok()?;
    let mut fields = ascii(&text[close + 1..])?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let mut number = |skipped: usize| fields.nth(skipped)?.parse::<u64>().ok();
    let mut id = || u32::try_from(number(0)?).ok();
    let (parent, group, session) = (id()?, id()?, id()?);
    let ticks = number(7)? + number(0)?;
    // Some kernels have printed negative numbers for children; such a number counts as 0.
    let child_ticks = number(0).unwrap_or(0) + number(0).unwrap_or(0);
    let (started, pages) = (number(4)?, number(1)?);
    Some(Stat { pid, state, parent, group, session, ticks, child_ticks, started, pages })
}

/// The cgroup (version 2) of a process, as a path in the cgroup hierarchy.
pub(crate) fn cgroup(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

/// Every process of the machine whose `stat` can be read.
pub(crate) fn all() -> Vec<Stat> {
    pids().into_iter().filter_map(stat).collect()
}

pub(crate) fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The children of every thread of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    tasks
        .filter_map(|task| task.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .flat_map(|task| children_of_thread(pid, task))
        .collect()
}

/// The children of one thread, adopted ones included. Empty where the kernel does not list them.
fn children_of_thread(pid: u32, thread: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Reads the children of a process's main thread repeatedly, and keeps the list open in between.
pub(crate) struct Children(Option<(u32, fs::File)>);

impl Children {
    /// Opens the list of that process, if a descriptor is free.
    pub(crate) fn of(pid: u32) -> Children {
        let mut children = Children(None);
        children.of_main_thread(pid);
        children
    }

    /// The children of a process's main thread. Empty for another user's process, or where the kernel
    /// does not list them.
    pub(crate) fn of_main_thread(&mut self, pid: u32) -> Vec<u32> {
        let mut text = Vec::new();
        if self.read(pid, &mut text).is_err() {
            // The text may be cut within a number.
            text.clear();
            self.0 = None;
        }
        String::from_utf8_lossy(&text).split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
    }

    fn read(&mut self, pid: u32, text: &mut Vec<u8>) -> std::io::Result<()> {
        let file = match &self.0 {
            Some((of, file)) if *of == pid => file,
            _ => &self.0.insert((pid, fs::File::open(format!("/proc/{pid}/task/{pid}/children"))?)).1,
        };
        let mut piece = [0; 4096];
        loop {
            match file.read_at(&mut piece, text.len() as u64)? {
                0 => return Ok(()),
                length => text.extend_from_slice(&piece[..length]),
            }
        }
    }
}

/// All descendants of a process, without the process itself.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut todo = children(pid);
    while let Some(next) = todo.pop() {
        if !found.contains(&next) {
            found.push(next);
            todo.extend(children(next));
        }
    }
    found
}

/// The pipes that are a process's standard output and standard error, by their inode numbers.
pub(crate) fn output_pipes(pid: u32) -> impl Iterator<Item = u64> {
    [1, 2].into_iter().filter_map(move |fd| {
        let target = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
        target.to_str()?.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()
    })
}

/// The value of a variable in the environment that a process was started with.
pub(crate) fn variable(pid: u32, name: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    bytes.split(|b| *b == 0).find_map(|entry| {
        let rest = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        String::from_utf8(rest.to_vec()).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_is_skipped() {
        let line =
            b"42 (a) \xff) S 7 42 42 0 -1 4194560 1 0 0 0 11 22 3 4 20 0 1 0 777 1000 33 18446744073709551615";
        let stat = parse(line).unwrap();
        assert_eq!((stat.pid, stat.state, stat.parent, stat.group, stat.session), (42, b'S', 7, 42, 42));
        assert_eq!((stat.ticks, stat.child_ticks, stat.started, stat.pages), (33, 7, 777, 33));
    }

    #[test]
    fn this_process_is_listed_with_its_parent() {
        let me = stat(std::process::id()).unwrap();
        assert_eq!(me.parent, nix::unistd::getppid().as_raw().cast_unsigned());
        assert!(all().iter().any(|s| s.pid == me.pid));
    }
}
