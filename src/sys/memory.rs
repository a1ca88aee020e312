//! Gives memory that this process does not need back to the kernel.

use nix::poll::{PollFd, PollTimeout, poll};

/// Has the allocator return large free blocks to the kernel. By default it takes each large block
/// for a sign that more will come, and keeps up to 64 MiB for every thread that ever had one. Only
/// for a process that runs regrow and nothing else, and before it has threads.
pub fn keep_little() {
    // SAFETY: both take two numbers, and change what the allocator does from the next block on.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, 256 * 1024);
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, 512 * 1024);
    }
}

/// Returns free memory, such as that of reading the manifest and starting, to the kernel. A
/// supervisor may then rest for days.
pub fn give_back() {
    // SAFETY: takes a number, touches only the allocator's own free lists, under its locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Like [`give_back`], and also gives back the pages of programs and libraries that reading the
/// manifest and starting has touched. Most of them are never needed again; the kernel maps the
/// others again from the page cache.
pub fn settle() {
    give_back();
    for part in unneeded() {
        if let Unneeded::File(from, to) = part {
            forget(from, to);
        }
    }
}

/// Gives back the pages of programs and libraries that this process has touched, and the unused
/// part of its stack, then sleeps in poll(2) and returns what poll returns. The kernel maps what
/// the process needs again from the page cache. For a process with one thread that sleeps most of
/// its life.
pub(crate) fn shed_and_sleep(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> nix::Result<i32> {
    give_back();
    // The whole list is read first: reading on would map the pages again.
    let unneeded = unneeded();
    for Unneeded::File(from, to) | Unneeded::Stack(from, to) in &unneeded {
        forget(*from, *to);
    }
    // The process sleeps inside this function, so that no other code is mapped again first.
    poll(fds, timeout)
}

/// A mapped range, from its first address to its end, that is not needed.
enum Unneeded {
    /// A read-only mapping of a file whose pages are all as in the file.
    File(usize, usize),
    /// The part of this thread's stack that no frame uses.
    Stack(usize, usize),
}

/// Has the kernel drop the pages of a range, until they are next touched. Inlined: see
/// [`shed_and_sleep`].
#[inline(always)]
fn forget(from: usize, to: usize) {
    let at = std::ptr::with_exposed_provenance_mut(from);
    // SAFETY: each range is a mapping of this process that is read only and holds what the file holds, so
    // that the next look at a page of it finds the same again; or, where there is one thread only, a part
    // of the stack that lies below all of its frames. Children that are being made and share our memory
    // have stacks of their own.
    unsafe { nix::libc::madvise(at, to - from, nix::libc::MADV_DONTNEED) };
}

/// The bytes of stack that are kept for signal handlers and for the calls made meanwhile.
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
            // The mapping has pages that were written (relocations): the file does not hold their
            // content.
            region = None;
        } else if let (Some((from, to)), true) = (region, line.starts_with("Swap:")) {
            // No written page may lie in swap either; then the file holds the whole content.
            if line.split_whitespace().nth(1) == Some("0") {
                unneeded.push(Unneeded::File(from, to));
            }
            region = None;
        }
    }
    unneeded
}
