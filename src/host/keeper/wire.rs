//! The protocol between a keeper and its daemon, over a stream socket.
//!
//! A frame is three lengths (little-endian, four bytes each), a JSON object, bytes, and descriptors
//! (SCM_RIGHTS): the lengths count the JSON, the bytes and the descriptors. A side that speaks an
//! older [`VERSION`] skips fields that it does not know. The keeper tells its version first, and is
//! not sent what it could not do, so a keeper serves daemons that are newer than itself.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::{Exit, SpawnStage};
use crate::sys::credentials::Credentials;

/// The version of this protocol.
pub(crate) const VERSION: u32 = 2;
/// From this version on a keeper answers [`ToKeeper::Replace`] by [`FromKeeper::Noted`].
pub(crate) const NOTES: u32 = 2;

/// The largest JSON or byte part of a frame, in bytes; no environment is larger.
const LARGEST: usize = 64 << 20;
/// The most descriptors of a frame; no frame carries more.
const MOST_DESCRIPTORS: usize = 16;

/// A message from a daemon to its keeper.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum ToKeeper {
    /// The daemon is up and takes over.
    Hello { version: u32 },
    /// Spawn a process. The bytes are the program; the descriptors are those of `takes`, in this
    /// order.
    Spawn {
        key: u64,
        /// The mark for its limits, by which its tree is known.
        mark: u64,
        /// The note for a later daemon.
        about: String,
        takes: Vec<Takes>,
        #[serde(default)]
        credentials: Credentials,
    },
    /// The output of the process is kept in these files from now on. Descriptors: the two log
    /// files.
    Logs { key: u64 },
    /// Keep this process, whose keeper is dead. Descriptors: its pidfd, its output, its error
    /// output.
    Adopt {
        key: u64,
        pid: u32,
        about: String,
        /// Which of its two output pipes are there.
        pipes: [bool; 2],
    },
    /// Drop what is kept of this process.
    Forget { key: u64 },
    /// Hold this text for the daemons that follow, in place of what was held under the name.
    /// Descriptors: one, or none.
    Hold { name: String, text: String },
    /// Pass this text on to the service manager that started the keeper (sd_notify(3)).
    Notify { text: String },
    /// The daemon is about to end, and the keeper must end with this exit code.
    Bye { code: u8 },
    /// The daemon is about to end, and is to be started again from this program.
    Replace { program: PathBuf },
    /// Re-execute the keeper as this program, and go on as this daemon's keeper.
    Renew { program: PathBuf },
    /// A message of a newer daemon; it is skipped.
    #[serde(other)]
    Unknown,
}

/// A descriptor that comes with an order to spawn a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Takes {
    /// The cgroup in which to spawn it.
    Cgroup,
    /// The log file of its standard output.
    Out,
    /// The log file of its standard error.
    Err,
}

/// A message from a keeper to its daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum FromKeeper {
    /// The answer to a greeting; `kept` messages of the kind `Kept` follow.
    Welcome {
        version: u32,
        pid: u32,
        /// The highest key that was ever used, as far as the keeper knows.
        last_key: u64,
        /// When the first keeper started, by the monotonic clock, in nanoseconds.
        since: u64,
        kept: usize,
        /// Whether no daemon has greeted this keeper, or one before it, until now.
        #[serde(default)]
        first: bool,
        /// Whether the keeper before this one was killed: processes that it spawned and did not
        /// report are known by their marks alone.
        #[serde(default)]
        orphaned: bool,
        /// What earlier daemons had the keeper hold: the name, the text, and whether a descriptor
        /// comes with it.
        #[serde(default)]
        held: Vec<(String, String, bool)>,
    },
    /// A process that an earlier daemon asked for. Descriptors: its pidfd, its output, its error
    /// output.
    Kept {
        key: u64,
        pid: u32,
        about: String,
        exit: Option<Exit>,
        /// Which of its two output pipes are there.
        pipes: [bool; 2],
        /// Whether it is a child of an earlier keeper, which is dead.
        #[serde(default)]
        foreign: bool,
    },
    /// The process was spawned. Descriptors: as with `Kept`.
    Spawned {
        key: u64,
        pid: u32,
        in_cgroup: bool,
        /// The error number if the kernel would not spawn it in its cgroup.
        refused: Option<i32>,
    },
    /// The process could not be spawned.
    Failed { key: u64, stage: SpawnStage, errno: i32 },
    /// The process ended.
    Exited { key: u64, exit: Exit },
    /// The keeper has noted what follows this daemon, so the daemon may end.
    Noted,
    #[serde(other)]
    Unknown,
}

/// One message with its bytes and descriptors.
pub(crate) struct Frame<T> {
    pub(crate) say: T,
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

fn encode(say: &impl Serialize, bytes: &[u8], fds: usize) -> Vec<u8> {
    // Our own types always serialize.
    let json = serde_json::to_vec(say).unwrap_or_default();
    let mut frame = Vec::with_capacity(12 + json.len() + bytes.len());
    for length in [json.len(), bytes.len(), fds] {
        frame.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    }
    frame.extend_from_slice(&json);
    frame.extend_from_slice(bytes);
    frame
}

/// Sends a frame, and waits until the socket has taken all of it.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    say: &impl Serialize,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let frame = encode(say, bytes, fds.len());
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut sent = 0;
    while sent < frame.len() {
        let with: &[RawFd] = if sent == 0 { &raw } else { &[] };
        match send_some(socket, &frame[sent..], with, MsgFlags::empty()) {
            Ok(count) => sent += count,
            Err(Errno::EINTR) => {}
            // Too many descriptors are in flight; wait until the other side takes some.
            Err(Errno::ETOOMANYREFS) => std::thread::sleep(std::time::Duration::from_micros(200)),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd], flags: MsgFlags) -> Result<usize, Errno> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let parts = [IoSlice::new(bytes)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &parts, control, flags | MsgFlags::MSG_NOSIGNAL, None)
}

/// Frames to a receiver that may be slow to take them.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

impl Outbox {
    /// Sends a frame, or keeps it until it can be sent.
    pub(super) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        say: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = encode(say, &[], fds.len());
        let mut sent = 0;
        if self.waiting.is_empty() {
            let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
            sent = match send_some(socket, &bytes, &raw, MsgFlags::MSG_DONTWAIT) {
                Ok(sent) => sent,
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ETOOMANYREFS) => 0,
                Err(errno) => return Err(errno.into()),
            };
        }
        if sent < bytes.len() {
            // A frame that was partly sent took its descriptors along.
            let kept: &[BorrowedFd<'_>] = if sent == 0 { fds } else { &[] };
            let fds = kept.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<Vec<_>>>()?;
            self.waiting.push_back(Waiting { bytes, sent, fds });
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many frames wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Sends as much as the socket takes now.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while let Some(first) = self.waiting.front_mut() {
            let raw: Vec<RawFd> = first.fds.iter().map(AsRawFd::as_raw_fd).collect();
            match send_some(socket, &first.bytes[first.sent..], &raw, MsgFlags::MSG_DONTWAIT) {
                Ok(count) => {
                    first.sent += count;
                    first.fds.clear();
                    if first.sent == first.bytes.len() {
                        self.waiting.pop_front();
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ETOOMANYREFS) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Received bytes and descriptors, until a frame is whole.
#[derive(Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    given_up: bool,
}

/// The result of a look into the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    Something,
    Nothing,
    /// The other side has closed the connection.
    End,
}

impl Inbox {
    /// Takes what has arrived; with `wait`, waits until something arrives.
    pub(crate) fn fill(&mut self, socket: BorrowedFd<'_>, wait: bool) -> io::Result<Came> {
        if self.given_up {
            return Ok(Came::End);
        }
        let mut buffer = [0u8; 16 * 1024];
        let mut space = nix::cmsg_space!([RawFd; MOST_DESCRIPTORS]);
        let flags = if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let came = match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Ok(message) => {
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(fds) = control {
                        // SAFETY: the kernel just made these for us, and nobody else has them.
                        self.fds.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                message.bytes
            }
            Err(Errno::EAGAIN) => return Ok(Came::Nothing),
            Err(Errno::EINTR) => return Ok(Came::Something),
            Err(Errno::ECONNRESET) => return Ok(Came::End),
            Err(errno) => return Err(errno.into()),
        };
        if came == 0 {
            return Ok(Came::End);
        }
        self.bytes.extend_from_slice(&buffer[..came]);
        Ok(Came::Something)
    }

    /// Drops everything, now and from now on, because what was received can't be understood.
    pub(super) fn give_up(&mut self) {
        *self = Inbox { given_up: true, ..Inbox::default() };
    }

    /// Gives back the memory that a burst needed.
    pub(super) fn rest(&mut self) {
        self.bytes.shrink_to_fit();
        self.fds.shrink_to_fit();
    }

    /// Whether no part of a frame is waiting.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the next whole frame, if there is one. An error means that the bytes are no frames.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<Frame<T>>> {
        let broken = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        let Some((head, _)) = self.bytes.split_first_chunk::<12>() else {
            return Ok(None);
        };
        let length = |at: usize| {
            let four = [head[at], head[at + 1], head[at + 2], head[at + 3]];
            usize::try_from(u32::from_le_bytes(four)).unwrap_or(usize::MAX)
        };
        let (json, bytes, fds) = (length(0), length(4), length(8));
        if json > LARGEST || bytes > LARGEST || fds > MOST_DESCRIPTORS {
            return broken("a frame is too large".to_owned());
        }
        let whole = 12 + json + bytes;
        if self.bytes.len() < whole {
            return Ok(None);
        }
        if self.fds.len() < fds {
            return broken("a frame came without its descriptors".to_owned());
        }
        let say = match serde_json::from_slice(&self.bytes[12..12 + json]) {
            Ok(say) => say,
            Err(error) => return broken(format!("a frame can't be read: {error}")),
        };
        let frame =
            Frame { say, bytes: self.bytes[12 + json..whole].to_vec(), fds: self.fds.drain(..fds).collect() };
        self.bytes.drain(..whole);
        if self.bytes.is_empty() {
            // The buffer is large after a burst.
            self.bytes.shrink_to(64 * 1024);
        }
        Ok(Some(frame))
    }
}

/// Makes the two ends of a socket; an executed program inherits neither.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    Ok(socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn frames_come_whole_and_with_their_descriptors() {
        let (here, there) = pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let (about, credentials) = ("{}".into(), Credentials::default());
        let takes = vec![Takes::Out, Takes::Err];
        let spawn = ToKeeper::Spawn { key: 7, mark: 1, about, takes, credentials };
        send(here.as_fd(), &ToKeeper::Hello { version: 1 }, b"", &[]).unwrap();
        let large = vec![b'x'; 100_000];
        let sending = std::thread::spawn(move || {
            send(here.as_fd(), &spawn, &large, &[file.as_fd(), file.as_fd()]).unwrap();
        });
        let (mut inbox, mut frames) = (Inbox::default(), Vec::new());
        while frames.len() < 2 {
            assert_eq!(inbox.fill(there.as_fd(), true).unwrap(), Came::Something);
            while let Some(frame) = inbox.next::<ToKeeper>().unwrap() {
                frames.push(frame);
            }
        }
        sending.join().unwrap();
        assert_eq!(frames[0].say, ToKeeper::Hello { version: 1 });
        assert!(matches!(&frames[1].say, ToKeeper::Spawn { key: 7, .. }));
        assert_eq!((frames[1].bytes.len(), frames[1].fds.len()), (100_000, 2));
        assert_eq!(inbox.fill(there.as_fd(), true).unwrap(), Came::End);
    }

    #[test]
    fn what_a_newer_one_says_is_skipped() {
        let (here, there) = pair().unwrap();
        let newer = serde_json::json!({"say": "fly", "height": 3});
        send(here.as_fd(), &newer, b"", &[]).unwrap();
        let more = serde_json::json!({"say": "forget", "key": 3, "why": "new field"});
        send(here.as_fd(), &more, b"", &[]).unwrap();
        let mut inbox = Inbox::default();
        inbox.fill(there.as_fd(), true).unwrap();
        assert_eq!(inbox.next::<ToKeeper>().unwrap().unwrap().say, ToKeeper::Unknown);
        assert_eq!(inbox.next::<ToKeeper>().unwrap().unwrap().say, ToKeeper::Forget { key: 3 });
    }

    #[test]
    fn a_slow_reader_gets_everything_in_the_end() {
        let (here, there) = pair().unwrap();
        let (mut outbox, mut sent) = (Outbox::default(), 0u64);
        let file = std::fs::File::open("/dev/null").unwrap();
        while outbox.len() < 10 {
            outbox.send(here.as_fd(), &ToKeeper::Forget { key: sent }, &[file.as_fd()]).unwrap();
            sent += 1;
        }
        let (mut inbox, mut next) = (Inbox::default(), 0);
        while next < sent {
            inbox.fill(there.as_fd(), false).unwrap();
            while let Some(frame) = inbox.next::<ToKeeper>().unwrap() {
                assert_eq!((frame.say, frame.fds.len()), (ToKeeper::Forget { key: next }, 1));
                next += 1;
            }
            outbox.flush(here.as_fd()).unwrap();
        }
        assert!(outbox.is_empty());
    }
}
