//! Thin calls to the kernel: processes, signals, limits, users, files and their locks, the terminal, the clock.
//!
//! Each file holds one family of system calls and what reads its answers. `unsafe` may stand here
//! and in `host`, each block with the reason it is sound. Deliberately absent: any knowledge of
//! services, trees, or of who is to be ended.

pub mod clock;
pub(crate) mod clone3;
pub(crate) mod credentials;
pub mod files;
pub mod ids;
pub mod limits;
pub mod memory;
pub(crate) mod pidfd;
pub(crate) mod proc;
pub mod signals;
pub mod terminal;
pub mod users;
