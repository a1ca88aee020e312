//! Private folders and files, locks, and the sockets of the control interface.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// The folder of the state that outlives a command: `$REGROW_STATE_DIR`, else
/// `$XDG_STATE_HOME/regrow`, else `~/.local/state/regrow`; for root `/var/lib/regrow`.
pub fn state_dir() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = var("REGROW_STATE_DIR") {
        return dir;
    }
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/regrow");
    }
    if let Some(dir) = var("XDG_STATE_HOME") {
        return dir.join("regrow");
    }
    let home = var("HOME").unwrap_or_else(|| PathBuf::from("/tmp"));
    home.join(".local/state/regrow")
}

/// The folder of a user's own configuration: `$XDG_CONFIG_HOME/regrow`, else `~/.config/regrow`;
/// for root `/etc/regrow`.
pub fn config_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/etc/regrow");
    }
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = var("XDG_CONFIG_HOME").or_else(|| var("HOME").map(|home| home.join(".config")));
    base.unwrap_or_else(|| PathBuf::from("/etc")).join("regrow")
}

/// The path of the program that this process runs, as it was when the process started. Another file
/// may lie there by now.
pub fn own_program() -> Option<PathBuf> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let path = fs::read_link("/proc/self/exe").ok()?;
    let bytes = path.as_os_str().as_bytes();
    let named = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    Some(PathBuf::from(std::ffi::OsString::from_vec(named.to_vec())))
}

/// Whether a process runs the program in this file. `None` when that can't be read.
pub fn runs(pid: u32, program: &Path) -> Option<bool> {
    let at = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    Some(at(&PathBuf::from(format!("/proc/{pid}/exe")))? == at(program)?)
}

/// Makes a folder and its parents, with mode 0700. Fails when the path is a link, is not a folder,
/// or belongs to another user. A folder of ours that others may enter gets mode 0700.
pub fn private_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let found = fs::symlink_metadata(path)?;
    let denied = |what: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    if !found.is_dir() {
        return denied(format!("{} is not a folder of its own", path.display()));
    }
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return denied(format!("{} belongs to another user", path.display()));
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(path, PermissionsExt::from_mode(0o700))?;
    }
    Ok(())
}

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

/// Opens a file of our own for appending, and makes it when it is missing. Never follows a link.
pub fn own_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
        .open(path)
}

/// Replaces the content of a file atomically: writes a new file beside it and renames it. The new
/// content is on the disk when this returns.
pub fn replace(path: &Path, content: &str) -> io::Result<()> {
    replace_and(path, content, File::sync_all)
}

/// Like [`replace`], without waiting for the disk. The content survives a crash of any process, but
/// not a power cut.
pub fn replace_quickly(path: &Path, content: &str) -> io::Result<()> {
    replace_and(path, content, |_| Ok(()))
}

fn replace_and(path: &Path, content: &str, then: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // An earlier attempt may have left a file behind.
    let _ = fs::remove_file(&beside);
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let written = own_file(&beside).and_then(|mut file| {
        io::Write::write_all(&mut file, content.as_bytes())?;
        // The new file keeps the permissions of the old one.
        if let Ok(old) = fs::metadata(path) {
            file.set_permissions(old.permissions())?;
        }
        then(&file)
    });
    written.and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}

/// Makes the folder of a file, with mode 0700, when it is missing. An existing folder stays as it
/// is: it may be the machine's (`/run`).
pub fn private_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.is_dir() => private_dir(folder),
        Some(_) | None => Ok(()),
    }
}

/// Has a command begin a session of its own, apart from this terminal.
pub fn in_own_session(command: &mut std::process::Command) -> &mut std::process::Command {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec it makes one system call, which is safe there.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        })
    }
}

/// How long a program may take to print its version.
const ANSWERING: Duration = Duration::from_secs(5);

/// The version that a program prints, if that program is regrow. Any other answer is an error.
pub fn version_of(program: &Path) -> io::Result<String> {
    use std::process::{Command, Stdio};
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let until = Instant::now() + ANSWERING;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() > until => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not say its version"));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let mut text = String::new();
    if let Some(out) = child.stdout.take() {
        io::Read::read_to_string(&mut io::Read::take(out, 1000), &mut text)?;
    }
    match text.trim().strip_prefix("regrow ") {
        Some(version) if status.success() => Ok(version.to_owned()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regrow")),
    }
}

/// Reads a file of our own, never through a link.
pub fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
        .open(path)?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut file, &mut bytes)?;
    Ok(bytes)
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

/// Makes the folder of a socket that other users may reach, with mode 0755, when it is missing.
pub fn open_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.is_dir() => {
            DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
            // The mode that was asked for, whatever the umask took from it.
            fs::set_permissions(folder, PermissionsExt::from_mode(0o755))
        }
        Some(_) | None => Ok(()),
    }
}

/// Which users may connect to a socket. Each connection is checked for its user all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketAccess {
    /// Only the user that owns the socket.
    Owner,
    /// Every user of this machine.
    Everybody,
}

/// Listens on a Unix socket. Replaces a left-over socket that nobody listens on.
pub fn listen(path: &Path, reach: SocketAccess) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let what = format!("{} is there and is no socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        Ok(_) if connect(path).is_ok() => {
            let what = format!("somebody listens on {}", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
        }
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = through_folder(path, |short| UnixListener::bind(short))?;
    let mode = match reach {
        SocketAccess::Owner => 0o600,
        SocketAccess::Everybody => 0o666,
    };
    fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Whether a file of any kind still exists at a socket's path.
pub fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// The seconds after which a listener that accepts no connection counts as absent.
const TAKEN_IN: i64 = 10;

/// Connects to a Unix socket. `TimedOut`: the queue of the listener is full, and it accepts nobody.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(TAKEN_IN))?;
    through_folder(path, |short| {
        let address = UnixAddr::new(short)?;
        match nix::sys::socket::connect(socket.as_raw_fd(), &address) {
            Err(Errno::EAGAIN) => Err(io::ErrorKind::TimedOut.into()),
            other => Ok(other?),
        }
    })?;
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::zero())?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// A datagram socket in the abstract namespace, so that no limit on a path's length applies, and
/// its name as sd_notify(3) takes it. The kernel chooses a name that is free.
pub fn abstract_socket() -> io::Result<(std::os::unix::net::UnixDatagram, std::ffi::OsString)> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStringExt;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // The kernel gives a name to a socket that is bound without one (unix(7), "autobind").
    nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new_unnamed())?;
    let socket = std::os::unix::net::UnixDatagram::from(socket);
    let address = socket.local_addr()?;
    let name = address.as_abstract_name().ok_or_else(|| io::Error::other("it has no name"))?;
    Ok((socket, std::ffi::OsString::from_vec([b"@", name].concat())))
}

/// Calls `act` with a short path for the same socket: a socket's path has at most 107 bytes, and by
/// way of an open folder any depth will do.
fn through_folder<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().len() < 100 {
        return act(path);
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return act(path);
    };
    let folder = File::open(folder)?;
    act(&Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_folder_is_made_private_and_never_through_a_link() {
        let base = tempfile::tempdir().unwrap();
        let fresh = base.path().join("a/b");
        private_dir(&fresh).unwrap();
        assert_eq!(fs::metadata(&fresh).unwrap().mode() & 0o777, 0o700);
        let open = base.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, PermissionsExt::from_mode(0o755)).unwrap();
        private_dir(&open).unwrap();
        assert_eq!(fs::metadata(&open).unwrap().mode() & 0o777, 0o700);
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&fresh, &link).unwrap();
        assert!(private_dir(&link).is_err());
    }

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

    #[test]
    fn sockets_work_however_deep_their_folder_lies() {
        let base = tempfile::tempdir().unwrap();
        let deep = base.path().join("x".repeat(120));
        private_dir(&deep).unwrap();
        let path = deep.join("control.sock");
        let listener = listen(&path, SocketAccess::Owner).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let client = connect(&path).unwrap();
        let _server = loop {
            match listener.accept() {
                Ok(pair) => break pair,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        drop(client);
    }
}
