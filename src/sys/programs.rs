//! Programs of this machine: which one this process or another runs, and what version another has.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

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
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it did not report its version in time"));
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
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not regrow")),
    }
}
