//! Memory that is not needed at the moment.

use nix::poll::{PollFd, PollTimeout, poll};

/// Gives memory that reading the manifest and starting took, and that is free again, back
/// to the kernel: a supervisor then rests for days.
pub fn give_back() {
    // SAFETY: takes a number, touches only the allocator's own free lists, under its locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Gives the pages of programs and libraries that this process has looked at back as well, and those of
/// its stack that no call needs any more, and sleeps: what it needs again is mapped again, from the page
/// cache. For a process with one thread that sleeps most of its life. Returns as poll(2) does.
pub(super) fn shed_and_sleep(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> nix::Result<i32> {
    give_back();
    // All are known before the first one is given back: reading on would bring them again.
    let unneeded = unneeded();
    for (from, to) in &unneeded {
        let at = std::ptr::with_exposed_provenance_mut(*from);
        // SAFETY: each range is a mapping of this process that is read only and holds what the file
        // holds, so that the next look at a page of it finds the same again; or a part of the stack that
        // lies below all frames of the only thread. Children that are being made and share our memory
        // have stacks of their own.
        unsafe { nix::libc::madvise(at, to - from, nix::libc::MADV_DONTNEED) };
    }
    // From here, so that nothing but this function is mapped again.
    poll(fds, timeout)
}

/// Signal handlers and the calls that are made meanwhile get so much of the stack.
const CALLS: usize = 16 * 1024;

fn unneeded() -> Vec<(usize, usize)> {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let mut unneeded = Vec::new();
    let mut region: Option<(usize, usize)> = None;
    for line in maps.lines() {
        if let Some((range, rest)) = line.split_once(' ')
            && let Some((from, to)) = range.split_once('-')
            && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
        {
            let is_file = rest.contains(" /");
            let read_only = rest.starts_with("r-xp") || rest.starts_with("r--p");
            region = (is_file && read_only).then_some((from, to));
            let frame = std::ptr::from_ref(&region).addr();
            let below = frame.saturating_sub(CALLS) / 4096 * 4096;
            if rest.ends_with("[stack]") && from < below && below < to {
                unneeded.push((from, below));
            }
        } else if line.starts_with("Anonymous:") && line.split_whitespace().nth(1) != Some("0") {
            // Something was written there: relocations.
            region = None;
        } else if let (Some((from, to)), true) = (region, line.starts_with("Swap:")) {
            // Nor does anything that was written lie in swap: the file has all of it.
            if line.split_whitespace().nth(1) == Some("0") {
                unneeded.push((from, to));
            }
            region = None;
        }
    }
    unneeded
}
