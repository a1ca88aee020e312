//! Memory that is not needed at the moment.

use nix::poll::{PollFd, PollTimeout, poll};

/// Has the allocator give large blocks back when they are free. By itself it takes each for a sign that more
/// will come, and keeps up to 64 MiB of every thread that ever had one. For a process of regrow's own, before
/// it has threads.
pub fn keep_little() {
    // SAFETY: both take two numbers, and change what the allocator does from the next block on.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, 256 * 1024);
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, 512 * 1024);
    }
}

/// Gives memory that reading the manifest and starting took, and that is free again, back
/// to the kernel: a supervisor then rests for days.
pub fn give_back() {
    // SAFETY: takes a number, touches only the allocator's own free lists, under its locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// The same, and the pages of programs and libraries that reading the manifest and starting has looked at:
/// most of them are not looked at again, and the others are mapped again from the page cache.
pub fn settle() {
    give_back();
    for part in unneeded() {
        if let Unneeded::File(from, to) = part {
            forget(from, to);
        }
    }
}

/// Gives the pages of programs and libraries that this process has looked at back, and those of
/// its stack that no call needs any more, and sleeps: what it needs again is mapped again, from the page
/// cache. For a process with one thread that sleeps most of its life. Returns as poll(2) does.
pub(crate) fn shed_and_sleep(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> nix::Result<i32> {
    give_back();
    // All are known before the first one is given back: reading on would bring them again.
    let unneeded = unneeded();
    for Unneeded::File(from, to) | Unneeded::Stack(from, to) in &unneeded {
        forget(*from, *to);
    }
    // From here, so that nothing but this function is mapped again.
    poll(fds, timeout)
}

/// What is mapped and not needed.
enum Unneeded {
    /// Read only, and as the file has it.
    File(usize, usize),
    /// The part of this thread's stack that no frame uses.
    Stack(usize, usize),
}

/// Nothing but a look at it brings it again. Inlined: see [`shed_and_sleep`].
#[inline(always)]
fn forget(from: usize, to: usize) {
    let at = std::ptr::with_exposed_provenance_mut(from);
    // SAFETY: each range is a mapping of this process that is read only and holds what the file holds, so
    // that the next look at a page of it finds the same again; or, where there is one thread only, a part
    // of the stack that lies below all of its frames. Children that are being made and share our memory
    // have stacks of their own.
    unsafe { nix::libc::madvise(at, to - from, nix::libc::MADV_DONTNEED) };
}

/// Signal handlers and the calls that are made meanwhile get so much of the stack.
const CALLS: usize = 16 * 1024;

fn unneeded() -> Vec<Unneeded> {
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
                unneeded.push(Unneeded::Stack(from, below));
            }
        } else if line.starts_with("Anonymous:") && line.split_whitespace().nth(1) != Some("0") {
            // Something was written there: relocations.
            region = None;
        } else if let (Some((from, to)), true) = (region, line.starts_with("Swap:")) {
            // Nor does anything that was written lie in swap: the file has all of it.
            if line.split_whitespace().nth(1) == Some("0") {
                unneeded.push(Unneeded::File(from, to));
            }
            region = None;
        }
    }
    unneeded
}
