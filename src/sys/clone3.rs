//! `clone3`, for the one thing that `clone` can't do: make a child inside a cgroup.
//!
//! To make a process in a cgroup of its own costs next to nothing. To move a process there later
//! waits for every other fork on the machine, and misses the children that it has forked before.
//! The call returns twice, on two stacks, which no library offers; hence the few lines of assembler
//! here, for the architectures that they were tried on. Elsewhere [`AVAILABLE`] is false, and
//! services are started without a cgroup.

use nix::errno::Errno;
use nix::libc::{self, c_int, c_void};

/// Whether this build can make the call: only on x86-64.
pub(crate) const AVAILABLE: bool = cfg!(target_arch = "x86_64");

/// `struct clone_args` of clone3(2), with the fields that Linux 5.7 has.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

/// CLONE_INTO_CGROUP of clone3(2).
pub(crate) const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Makes a child that calls `run(with)` on the stack that `args` names. Returns the child's pid.
///
/// # Safety
/// The stack is unused, 16-byte aligned at its end, and large enough; `run` never returns; all
/// that it touches stays valid until it has executed or ended; and it makes no call of libc's
/// unless CLONE_VFORK in `args` waits for that.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn clone3(
    args: &CloneArgs,
    run: extern "C" fn(*mut c_void) -> c_int,
    with: *mut c_void,
) -> Result<i32, Errno> {
    let result: i64;
    // SAFETY: in the parent this is a system call that clobbers what is said. The child comes out
    // of it with all registers alike but its stack, calls `run`, and never leaves this block.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") std::ptr::from_ref(args),
            in("rsi") size_of::<CloneArgs>(),
            in("r12") run,
            in("r13") with,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    // The kernel returns its errors as -4095 to -1.
    if result < 0 {
        let number = i32::try_from(-result).unwrap_or(libc::EINVAL);
        return Err(Errno::from_raw(number));
    }
    Ok(i32::try_from(result).unwrap_or(i32::MAX))
}

/// Always fails with ENOSYS on this architecture: see [`AVAILABLE`].
///
/// # Safety
/// The same as on x86-64.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn clone3(
    _: &CloneArgs,
    _: extern "C" fn(*mut c_void) -> c_int,
    _: *mut c_void,
) -> Result<i32, Errno> {
    Err(Errno::ENOSYS)
}
