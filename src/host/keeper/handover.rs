//! Hands a keeper's knowledge to the program that is executed in its place: another build of the
//! keeper, or a daemon that takes the place of a killed keeper.
//!
//! Descriptors stay open across the execution; a file in memory says what each one is. A process
//! that has nothing to hand over says so in the variable itself, and the running processes are then
//! found again by the store and by their marks.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ForkResult;
use serde::{Deserialize, Serialize};

use super::standby::Standby;
use super::wire::VERSION;
use crate::host::{processes, stall};
use crate::model::Exit;

/// The environment variable that names the descriptor of the file in memory.
const HANDOVER: &str = "REGROW_KEEPER_HANDOVER";

/// The state that is handed over.
pub(crate) struct State<'a> {
    pub(crate) since: Duration,
    pub(crate) last_key: u64,
    /// The pid of the daemon that goes on, its socket, and the pipe that its death closes.
    pub(crate) daemon: Option<(u32, BorrowedFd<'a>, Option<BorrowedFd<'a>>)>,
    /// The program that is executed as the keeper.
    pub(crate) program: &'a CStr,
    /// The program that the next daemon is to run, if it is another one.
    pub(crate) next: Option<&'a Path>,
    /// Whether the keeper before was killed.
    pub(crate) orphaned: bool,
    pub(crate) standby: Option<&'a Standby>,
    /// The name, the text and the descriptor of everything that is held.
    pub(crate) held: Vec<(&'a str, &'a str, Option<BorrowedFd<'a>>)>,
    pub(crate) args: &'a [CString],
    pub(crate) entries: Vec<Lent<'a>>,
}

/// One process, lent to the handover.
pub(crate) struct Lent<'a> {
    pub(crate) key: u64,
    pub(crate) pid: u32,
    pub(crate) about: &'a str,
    pub(crate) exit: Option<Exit>,
    pub(crate) foreign: bool,
    pub(crate) pidfd: BorrowedFd<'a>,
    pub(crate) pipes: [Option<BorrowedFd<'a>>; 2],
    pub(crate) logs: [Option<BorrowedFd<'a>>; 2],
}

/// The state that this process was handed.
pub(super) struct Handed {
    pub(super) since: Duration,
    pub(super) last_key: u64,
    pub(super) daemon: Option<(u32, OwnedFd, Option<OwnedFd>)>,
    pub(super) next: Option<PathBuf>,
    /// Whether the keeper before was killed: processes that it spawned and did not report are known
    /// by their marks alone.
    pub(super) orphaned: bool,
    pub(super) standby: Option<Standby>,
    pub(super) held: Vec<(String, String, Option<OwnedFd>)>,
    pub(super) entries: Vec<HandedEntry>,
}

pub(super) struct HandedEntry {
    pub(super) key: u64,
    pub(super) pid: u32,
    pub(super) about: String,
    pub(super) exit: Option<Exit>,
    pub(super) foreign: bool,
    pub(super) pidfd: OwnedFd,
    pub(super) pipes: [Option<OwnedFd>; 2],
    pub(super) logs: [Option<OwnedFd>; 2],
}

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    since: u64,
    last_key: u64,
    #[serde(default)]
    daemon: Option<(u32, RawFd)>,
    #[serde(default)]
    pulse: Option<RawFd>,
    #[serde(default)]
    next: Option<PathBuf>,
    #[serde(default)]
    orphaned: bool,
    #[serde(default)]
    held: Vec<(String, String, Option<RawFd>)>,
    entries: Vec<WrittenEntry>,
}

#[derive(Serialize, Deserialize)]
struct WrittenEntry {
    key: u64,
    pid: u32,
    about: String,
    #[serde(default)]
    exit: Option<Exit>,
    foreign: bool,
    pidfd: RawFd,
    pipes: [Option<RawFd>; 2],
    #[serde(default)]
    logs: [Option<RawFd>; 2],
}

/// Executes the keeper's program with this state; returns only if that fails.
pub(crate) fn execute(state: State<'_>) -> io::Error {
    match try_to_execute(&state) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn try_to_execute(state: &State<'_>) -> io::Result<std::convert::Infallible> {
    let raw = |fd: &Option<BorrowedFd<'_>>| fd.as_ref().map(AsRawFd::as_raw_fd);
    let written = Written {
        version: VERSION,
        since: u64::try_from(state.since.as_nanos()).unwrap_or(u64::MAX),
        last_key: state.last_key,
        daemon: state.daemon.map(|(pid, line, _)| (pid, line.as_raw_fd())),
        pulse: state.daemon.and_then(|(_, _, pulse)| Some(pulse?.as_raw_fd())),
        next: state.next.map(Path::to_owned),
        orphaned: state.orphaned,
        held: state
            .held
            .iter()
            .map(|(name, text, fd)| ((*name).to_owned(), (*text).to_owned(), fd.map(|fd| fd.as_raw_fd())))
            .collect(),
        entries: state
            .entries
            .iter()
            .map(|entry| WrittenEntry {
                key: entry.key,
                pid: entry.pid,
                about: entry.about.to_owned(),
                exit: entry.exit,
                foreign: entry.foreign,
                pidfd: entry.pidfd.as_raw_fd(),
                pipes: [raw(&entry.pipes[0]), raw(&entry.pipes[1])],
                logs: [raw(&entry.logs[0]), raw(&entry.logs[1])],
            })
            .collect(),
    };
    let file = memfd_create(c"regrow-handover", MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(file);
    serde_json::to_writer(&mut file, &written)?;
    file.flush()?;
    file.rewind()?;
    let mut stay = vec![file.as_fd()];
    stay.extend(state.daemon.iter().flat_map(|(_, line, pulse)| [Some(*line), *pulse]).flatten());
    for entry in &state.entries {
        stay.push(entry.pidfd);
        stay.extend(entry.pipes.iter().chain(&entry.logs).flatten());
    }
    stay.extend(state.held.iter().filter_map(|(_, _, fd)| *fd));
    stay.extend(state.standby.map(|standby| standby.held().as_fd()));
    let env = environment(file.as_raw_fd().to_string(), state.standby);
    for fd in &stay {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    // execve would wait for every other thread to end, and one is blocked.
    let failed = match stall::somebody_stands_still() {
        true => execute_beside(state.program, state.args, &env),
        false => nix::unistd::execve(state.program, state.args, &env),
    };
    for fd in &stay {
        let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
    Ok(failed?)
}

/// Executes the program in a forked child. This process then ends, as far as its threads let it.
fn execute_beside(
    program: &CStr,
    args: &[CString],
    env: &[CString],
) -> nix::Result<std::convert::Infallible> {
    // SAFETY: the child only executes, for which it makes two lists: fork(2) of this libc leaves its allocator
    // usable, whichever thread was at it.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            let _ = nix::unistd::execve(program, args, env);
            // SAFETY: nothing of the parent's is run at the child's end.
            unsafe { nix::libc::_exit(127) }
        }
        ForkResult::Parent { .. } => {
            processes::close_all();
            // SAFETY: the same; what was to be written is written.
            unsafe { nix::libc::_exit(0) }
        }
    }
}

/// The environment of a keeper that is executed, with this value of [`HANDOVER`].
fn environment(handover: String, standby: Option<&Standby>) -> Vec<CString> {
    std::env::vars_os()
        .filter(|(name, _)| name != HANDOVER && name != super::LINE && !Standby::is_variable(name))
        .chain([(HANDOVER.into(), handover.into())])
        .chain(standby.map(Standby::variable))
        .filter_map(|(name, value)| super::assignment(&name, &value))
        .collect()
}

/// The program that this process runs, even if its path holds another file by now.
pub(crate) const SELF: &CStr = c"/proc/self/exe";

pub(crate) fn own_args() -> Vec<CString> {
    std::env::args_os().filter_map(|arg| CString::new(arg.into_vec()).ok()).collect()
}

/// Starts a standby that would become a keeper to which nothing was handed.
pub(crate) fn standby(since: Duration) -> io::Result<Standby> {
    Standby::make(&SELF.to_owned(), &own_args(), &environment(nothing(since), None))
}

/// Becomes a keeper to which nothing was handed; returns only if that can't be executed.
pub(crate) fn execute_with_nothing(since: Duration, standby: Option<&Standby>) -> io::Error {
    let env = environment(nothing(since), standby);
    let held = standby.map(Standby::held);
    let stays = |flag: FdFlag| held.map_or(Ok(0), |fd| fcntl(fd, FcntlArg::F_SETFD(flag)));
    if let Err(errno) = stays(FdFlag::empty()) {
        return errno.into();
    }
    let failed = nix::unistd::execve(SELF, &own_args(), &env);
    let _ = stays(FdFlag::FD_CLOEXEC);
    match failed {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

/// The value of [`HANDOVER`] that hands over nothing but the start of the first keeper.
fn nothing(since: Duration) -> String {
    format!("{NOTHING}{}", since.as_nanos())
}

const NOTHING: &str = "nothing:";

/// Takes the state that this process was handed; `None` if it was not executed for that.
pub(super) fn receive() -> Option<io::Result<Handed>> {
    let text = std::env::var(HANDOVER).ok()?;
    // SAFETY: called before any thread is made.
    unsafe { std::env::remove_var(HANDOVER) };
    let standby = Standby::inherited();
    if let Some(since) = text.strip_prefix(NOTHING) {
        return Some(Ok(Handed {
            since: Duration::from_nanos(since.parse().unwrap_or_default()),
            last_key: 0,
            daemon: None,
            next: None,
            orphaned: true,
            standby,
            held: Vec::new(),
            entries: Vec::new(),
        }));
    }
    let fd: RawFd = text.parse().ok()?;
    Some(read(fd).map(|handed| Handed { standby, ..handed }))
}

fn read(fd: RawFd) -> io::Result<Handed> {
    // SAFETY: whoever executed us left it open for us, and nobody else here knows of it.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let written: Written = serde_json::from_slice(&text)?;
    let own = |fd: RawFd| -> io::Result<OwnedFd> {
        // SAFETY: as above.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok(fd)
    };
    let own_both = |fds: [Option<RawFd>; 2]| -> io::Result<[Option<OwnedFd>; 2]> {
        let [one, two] = fds.map(|fd| fd.map(own).transpose());
        Ok([one?, two?])
    };
    let daemon = match written.daemon {
        Some((pid, line)) => Some((pid, own(line)?, written.pulse.map(own).transpose()?)),
        None => None,
    };
    let mut entries = Vec::with_capacity(written.entries.len());
    for entry in written.entries {
        entries.push(HandedEntry {
            key: entry.key,
            pid: entry.pid,
            about: entry.about,
            exit: entry.exit,
            foreign: entry.foreign,
            pidfd: own(entry.pidfd)?,
            pipes: own_both(entry.pipes)?,
            logs: own_both(entry.logs)?,
        });
    }
    Ok(Handed {
        since: Duration::from_nanos(written.since),
        last_key: written.last_key,
        daemon,
        next: written.next,
        orphaned: written.orphaned,
        standby: None,
        held: written
            .held
            .into_iter()
            .map(|(name, text, fd)| Ok((name, text, fd.map(own).transpose()?)))
            .collect::<io::Result<_>>()?,
        entries,
    })
}
