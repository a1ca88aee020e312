//! The allocator.

/// Gives memory that reading the manifest and starting took, and that is free again, back
/// to the kernel: a supervisor then rests for days.
pub fn give_back() {
    // SAFETY: takes a number, touches only the allocator's own free lists, under its locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
