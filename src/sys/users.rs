//! Users of this machine, as its user database knows them. Each look-up may ask a directory server,
//! and so may block.

use std::ffi::CString;

use nix::unistd::{Gid, Group, Uid, User};

/// A user of this machine, with the groups that the user is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalUser {
    /// The user id.
    pub uid: u32,
    /// The user's name, or the user id as text when the user database has no name.
    pub name: String,
    groups: Vec<u32>,
}

impl LocalUser {
    /// The user whose process has this user id and group id.
    pub fn of(uid: u32, gid: u32) -> LocalUser {
        let known = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
        let listed = known.as_deref().and_then(|name| CString::new(name).ok());
        let listed = listed.and_then(|name| nix::unistd::getgrouplist(&name, Gid::from_raw(gid)).ok());
        let mut groups: Vec<u32> = listed.unwrap_or_default().into_iter().map(Gid::as_raw).collect();
        groups.push(gid);
        LocalUser { uid, name: known.unwrap_or_else(|| uid.to_string()), groups }
    }

    /// Whether this is the user's name or user id.
    pub fn is(&self, name: &str) -> bool {
        self.name == name || name.parse() == Ok(self.uid)
    }

    /// Whether the user is in the group of this name or group id.
    pub fn is_in(&self, group: &str) -> bool {
        let number = match group.parse() {
            Ok(number) => Some(number),
            Err(_) => Group::from_name(group).ok().flatten().map(|group| group.gid.as_raw()),
        };
        number.is_some_and(|number| self.groups.contains(&number))
    }
}

/// The ids of the process at the other end of a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerIds {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
    /// The pid of the process that connected.
    pub pid: i32,
}

impl PeerIds {
    /// Asks the kernel, which recorded the ids when the other end connected.
    pub fn of(socket: &impl std::os::fd::AsFd) -> std::io::Result<PeerIds> {
        let peer = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)?;
        Ok(PeerIds { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() })
    }

    /// The ids of this process.
    pub fn own() -> PeerIds {
        use nix::unistd::{getegid, geteuid, getpid};
        PeerIds { uid: geteuid().as_raw(), gid: getegid().as_raw(), pid: getpid().as_raw() }
    }

    /// Whether the other end runs as root or as this process's user.
    pub fn is_trusted(self) -> bool {
        self.uid == 0 || self.uid == nix::unistd::geteuid().as_raw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_goes_by_name_and_by_number() {
        let root = LocalUser::of(0, 0);
        assert!(root.is("root") && root.is("0") && !root.is("nobody"));
        assert!(root.is_in("root") && root.is_in("0") && !root.is_in("4294967294"));
        let nobody_knows = LocalUser::of(4_000_000_000, 4_000_000_001);
        assert!(nobody_knows.is("4000000000") && nobody_knows.is_in("4000000001"));
    }
}
