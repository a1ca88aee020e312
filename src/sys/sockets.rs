//! Unix sockets, however deep their folder lies, and who may connect to them.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

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
            let what = format!("{} exists and is not a socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        Ok(_) if connect(path).is_ok() => {
            let what = format!("another process listens on {}", path.display());
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
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::sys::files::private_dir;

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
