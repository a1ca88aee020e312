//! Locks on files and folders, which end with the process that holds them, and on paths.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::sys::files::own_file;

/// A file lock that the kernel releases when its holder exits.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Holds the lock until this process exits, and with it every program that it executes and every
    /// process that inherits its descriptors. Services inherit none but their own.
    pub fn keep_for_ever(self) -> io::Result<()> {
        let none = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
        nix::fcntl::fcntl(&*self._file, none)?;
        std::mem::forget(self);
        Ok(())
    }
}

/// Takes the lock of a file. Waits until it is free.
pub fn lock_waiting(path: &Path) -> io::Result<Lock> {
    let file = own_file(path)?;
    match Flock::lock(file, FlockArg::LockExclusive) {
        Ok(file) => Ok(Lock { _file: file }),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Locks a folder for this process. Unlike a lock file, the lock can't be undone by removing a file
/// in the folder. `None` when another process holds it.
pub fn lock_folder(path: &Path) -> io::Result<Option<Lock>> {
    match Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(Some(Lock { _file: file })),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Takes a path for this process by an abstract socket, which exists in the kernel alone and which
/// no removed file can undo. `Err(pid)`: a process of this user or of root still holds the path
/// after `patience`; the pid is 0 when it is not known. `None`: the path can't be taken like this,
/// for instance because another user has taken the name.
pub fn take_path(path: &Path, patience: Duration) -> Option<Result<PathLock, u32>> {
    let until = Instant::now() + patience;
    let space = fs::metadata("/proc/self/ns/pid").ok()?.ino();
    let user = nix::unistd::geteuid();
    let hash = crate::model::digest::fnv(path.as_os_str().as_encoded_bytes());
    let name = format!("regrow-{user}-{space}-{hash:016x}");
    let address = UnixAddr::new_abstract(name.as_bytes()).ok()?;
    let stream = || socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).ok();
    let own = stream()?;
    let mut holder = None;
    loop {
        match nix::sys::socket::bind(own.as_raw_fd(), &address) {
            Ok(()) => {
                // A process that connects learns from the kernel who holds the path. Nobody ever
                // accepts a connection, so each one stays in the queue: the queue must be long, and
                // each process that asks connects only once.
                nix::sys::socket::listen(&own, nix::sys::socket::Backlog::MAXCONN).ok()?;
                return Some(Ok(PathLock(own)));
            }
            Err(Errno::EADDRINUSE) => {}
            Err(_) => return None,
        }
        if holder.is_none() {
            let asks = stream()?;
            setsockopt(&asks, sockopt::SendTimeout, &TimeVal::milliseconds(100)).ok()?;
            match nix::sys::socket::connect(asks.as_raw_fd(), &address) {
                Ok(()) => {
                    let peer = nix::sys::socket::getsockopt(&asks, sockopt::PeerCredentials).ok()?;
                    if peer.uid() != user.as_raw() && peer.uid() != 0 {
                        return None;
                    }
                    holder = Some(u32::try_from(peer.pid()).unwrap_or_default());
                }
                // The holder has just exited, or does not listen yet.
                Err(Errno::ECONNREFUSED) => {}
                Err(_) => return None,
            }
        }
        if Instant::now() >= until {
            return Some(Err(holder.unwrap_or_default()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A path that this process has taken with [`take_path`].
#[derive(Debug)]
pub struct PathLock(std::os::fd::OwnedFd);

impl PathLock {
    /// Holds the path until this process exits, and with it every program that it executes and every
    /// process that inherits its descriptors.
    pub fn keep_for_ever(self) -> io::Result<()> {
        let none = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
        nix::fcntl::fcntl(&self.0, none)?;
        std::mem::forget(self);
        Ok(())
    }
}

/// Whether any process holds the lock of a folder.
pub fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
}

/// Takes the lock of a file and writes `content` into it. `Ok(Err(content))`: another process holds
/// the lock, and this is what it wrote.
pub fn lock(path: &Path, content: &str) -> io::Result<Result<Lock, String>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
        .open(path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => {
            file.set_len(0)?;
            io::Write::write_all(&mut &*file, content.as_bytes())?;
            Ok(Ok(Lock { _file: file }))
        }
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut text = String::new();
            io::Read::read_to_string(&mut file, &mut text)?;
            Ok(Err(text))
        }
        Err((_, errno)) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_to_lock_is_told_what_the_first_wrote() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("lock");
        let held = lock(&path, "4711").unwrap().unwrap();
        assert_eq!(lock(&path, "4712").unwrap().unwrap_err(), "4711");
        drop(held);
        assert!(lock(&path, "4712").unwrap().is_ok());
        let held = lock_folder(base.path()).unwrap();
        assert!(held.is_some() && is_locked(base.path()));
        assert!(lock_folder(base.path()).unwrap().is_none());
        drop(held);
        assert!(!is_locked(base.path()));
    }
}
