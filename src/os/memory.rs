//! Memory that is not needed at the moment.

/// Gives memory that reading the manifest and starting took, and that is free again, back
/// to the kernel: a supervisor then rests for days.
pub fn give_back() {
    // SAFETY: takes a number, touches only the allocator's own free lists, under its locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Gives the pages of programs and libraries that this process has looked at back as well: those
/// that it needs again are mapped again, from the page cache. For a process that sleeps most of its
/// life.
pub(super) fn shed() {
    give_back();
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let mut region: Option<(usize, usize)> = None;
    for line in maps.lines() {
        if let Some((range, rest)) = line.split_once(' ')
            && let Some((from, to)) = range.split_once('-')
            && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
        {
            let is_file = rest.contains(" /");
            let read_only = rest.starts_with("r-xp") || rest.starts_with("r--p");
            region = (is_file && read_only).then_some((from, to));
        } else if line.starts_with("Anonymous:") && line.split_whitespace().nth(1) != Some("0") {
            // Something was written there: relocations.
            region = None;
        } else if let (Some((from, to)), true) = (region, line.starts_with("Swap:")) {
            // Nor does anything that was written lie in swap: the file has all of it.
            if line.split_whitespace().nth(1) == Some("0") {
                let at = std::ptr::with_exposed_provenance_mut(from);
                // What is looked at again comes alone, without the pages around it.
                for advice in [nix::libc::MADV_RANDOM, nix::libc::MADV_DONTNEED] {
                    // SAFETY: the range is a mapping of this process that is read only and holds
                    // what the file holds; the next look at a page of it finds the same again.
                    unsafe { nix::libc::madvise(at, to - from, advice) };
                }
            }
            region = None;
        }
    }
}
