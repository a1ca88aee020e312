//! Thin wrappers around the kernel's calls: processes, signals, limits, users, files and their
//! locks, the terminal, the clock.
//!
//! Each file holds one family of system calls and the code that reads their answers. `unsafe` may
//! stand here and in `host`, each block with the reason why it is sound. Deliberately absent: any
//! knowledge of services or trees, and any decision about which process to end.

pub mod clock;
pub(crate) mod clone3;
pub(crate) mod credentials;
pub mod files;
pub mod ids;
pub mod limits;
pub mod locks;
pub mod memory;
pub(crate) mod pidfd;
pub(crate) mod proc;
pub mod programs;
pub mod signals;
pub mod sockets;
pub mod terminal;
pub mod users;
