//! The daemon's side of the keeper's socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::wire::{self, Came, Frame, FromKeeper, Inbox, NOTES, Takes, ToKeeper, VERSION};
use crate::host::spawn::Program;
use crate::model::Exit;

/// The connection to the keeper. Any thread may send orders; one thread reads the answers, see
/// [`Client::socket`].
pub(crate) struct Client {
    line: OwnedFd,
    sending: Mutex<()>,
    version: AtomicU32,
}

/// What the keeper sent in answer to the greeting.
pub(crate) struct Welcome {
    pub(crate) keeper: u32,
    pub(crate) last_key: u64,
    pub(crate) since: Duration,
    pub(crate) kept: Vec<Kept>,
    /// See [`FromKeeper::Welcome`] for this field and the next two.
    pub(crate) first: bool,
    pub(crate) orphaned: bool,
    pub(crate) held: Vec<Held>,
    /// The bytes that have already arrived behind the welcome.
    pub(crate) inbox: Inbox,
}

/// A text and a descriptor that an earlier daemon had the keeper hold.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) fd: Option<OwnedFd>,
}

/// A process that an earlier daemon asked for.
pub(crate) struct Kept {
    pub(crate) key: u64,
    pub(crate) pid: u32,
    pub(crate) about: String,
    pub(crate) exit: Option<Exit>,
    pub(crate) pidfd: OwnedFd,
    pub(crate) pipes: [Option<OwnedFd>; 2],
    /// Whether it is a child of an earlier keeper, which is dead.
    pub(crate) foreign: bool,
}

impl Client {
    /// Greets the keeper, and reads all that it keeps.
    pub(crate) fn greet(line: OwnedFd) -> io::Result<(Client, Welcome)> {
        let client = Client { line, sending: Mutex::new(()), version: AtomicU32::new(0) };
        client.say(&ToKeeper::Hello { version: VERSION }, &[], &[])?;
        let mut inbox = Inbox::default();
        let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "the keeper is gone");
        let mut next = || -> io::Result<Frame<FromKeeper>> {
            loop {
                if let Some(frame) = inbox.next::<FromKeeper>()? {
                    return Ok(frame);
                }
                if inbox.fill(client.line.as_fd(), true)? == Came::End {
                    return Err(gone());
                }
            }
        };
        let (keeper, last_key, since, count, first, orphaned, held) = loop {
            let Frame { say, fds, .. } = next()?;
            if let FromKeeper::Welcome { version, pid, last_key, since, kept, first, orphaned, held } = say {
                client.version.store(version, Ordering::Relaxed);
                let mut fds = fds.into_iter();
                let held = held.into_iter().map(|(name, text, there)| {
                    let fd = if there { fds.next() } else { None };
                    Held { name, text, fd }
                });
                let held = held.collect::<Vec<_>>();
                break (pid, last_key, Duration::from_nanos(since), kept, first, orphaned, held);
            }
        };
        let mut kept = Vec::with_capacity(count);
        while kept.len() < count {
            let Frame { say, fds, .. } = next()?;
            let FromKeeper::Kept { key, pid, about, exit, pipes, foreign } = say else {
                continue;
            };
            let mut fds = fds.into_iter();
            let Some(pidfd) = fds.next() else {
                return Err(gone());
            };
            let pipes = pipes.map(|there| if there { fds.next() } else { None });
            kept.push(Kept { key, pid, about, exit, pidfd, pipes, foreign });
        }
        Ok((client, Welcome { keeper, last_key, since, kept, first, orphaned, held, inbox }))
    }

    /// The socket, which is readable when the keeper sent something.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }

    fn say(&self, order: &ToKeeper, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(self.line.as_fd(), order, bytes, fds)
    }

    /// Like `say`, but errors are ignored: a keeper that is gone shows by the end of its socket.
    fn tell(&self, order: &ToKeeper, fds: &[BorrowedFd<'_>]) {
        if let Err(error) = self.say(order, &[], fds) {
            tracing::debug!(%error, "the keeper does not hear");
        }
    }

    pub(crate) fn spawn(
        &self,
        key: u64,
        mark: u64,
        about: String,
        program: &Program,
        cgroup: Option<BorrowedFd<'_>>,
        logs: Option<[BorrowedFd<'_>; 2]>,
    ) -> io::Result<()> {
        let (mut takes, mut fds) = (Vec::new(), Vec::new());
        if let Some(cgroup) = cgroup {
            takes.push(Takes::Cgroup);
            fds.push(cgroup);
        }
        if let Some([out, err]) = logs {
            takes.extend([Takes::Out, Takes::Err]);
            fds.extend([out, err]);
        }
        let credentials = program.credentials().clone();
        self.say(&ToKeeper::Spawn { key, mark, about, takes, credentials }, &program.to_bytes(), &fds)
    }

    pub(crate) fn adopt(&self, kept: &Kept) {
        let order = ToKeeper::Adopt {
            key: kept.key,
            pid: kept.pid,
            about: kept.about.clone(),
            pipes: [kept.pipes[0].is_some(), kept.pipes[1].is_some()],
        };
        let pipes = kept.pipes.iter().flatten().map(AsFd::as_fd);
        let fds: Vec<BorrowedFd<'_>> = [kept.pidfd.as_fd()].into_iter().chain(pipes).collect();
        self.tell(&order, &fds);
    }

    pub(crate) fn logs(&self, key: u64, logs: [BorrowedFd<'_>; 2]) {
        self.tell(&ToKeeper::Logs { key }, &logs);
    }

    pub(crate) fn forget(&self, key: u64) {
        self.tell(&ToKeeper::Forget { key }, &[]);
    }

    /// Returns `false` if the keeper's build can't hold anything.
    pub(crate) fn hold(&self, name: &str, text: &str, fd: Option<BorrowedFd<'_>>) -> bool {
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        self.tell(&ToKeeper::Hold { name: name.to_owned(), text: text.to_owned() }, &fds);
        self.version.load(Ordering::Relaxed) >= NOTES
    }

    pub(crate) fn notify(&self, text: &str) {
        self.tell(&ToKeeper::Notify { text: text.to_owned() }, &[]);
    }

    pub(crate) fn bye(&self, code: u8) {
        self.tell(&ToKeeper::Bye { code }, &[]);
    }

    /// Returns `false` if the keeper's build does not confirm that it noted the program.
    pub(crate) fn replace(&self, program: &Path) -> bool {
        self.tell(&ToKeeper::Replace { program: program.to_owned() }, &[]);
        self.version.load(Ordering::Relaxed) >= NOTES
    }

    pub(crate) fn renew(&self, program: &Path) {
        self.tell(&ToKeeper::Renew { program: program.to_owned() }, &[]);
    }
}
