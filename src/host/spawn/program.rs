//! The program to run: its file, its directory, and the explanation if it can't be run.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

use super::{Failed, descriptor_limit, failure};
use crate::host::env;
use crate::model::{SpawnFailure, SpawnStage};
use crate::sys::credentials::Credentials;

/// A program whose file was found, with its arguments, environment, directory and credentials as
/// plain bytes.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(super) path: CString,
    pub(super) argv: Vec<CString>,
    pub(super) env: Vec<CString>,
    pub(super) dir: CString,
    pub(super) credentials: Credentials,
}

impl Program {
    /// Looks a program up in the file system, which may take time.
    pub(crate) fn find(argv: &[String], dir: &Path, env: Vec<CString>) -> Result<Program, SpawnFailure> {
        let folder =
            CString::new(dir.as_os_str().as_bytes()).map_err(|_| explain_folder(Errno::EINVAL, dir))?;
        let path = find(argv.first().map_or("", String::as_str), dir, &env)?;
        let words = argv.iter().map(|word| CString::new(word.as_str())).collect::<Result<Vec<_>, _>>();
        let argv = words.map_err(|_| {
            failure(SpawnStage::Prepare, Errno::EINVAL, "an argument contains a NUL character")
        })?;
        Ok(Program { path, argv, env, dir: folder, credentials: Credentials::default() })
    }

    /// Returns the program to be run with these credentials.
    pub(crate) fn with(mut self, credentials: Credentials) -> Program {
        self.credentials = credentials;
        self
    }

    /// The credentials to run it with.
    pub(crate) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Encodes the program for a keeper, without its credentials: the number of arguments, then
    /// file, directory, arguments and environment, each followed by a NUL.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let words = [&self.path, &self.dir].into_iter().chain(&self.argv);
        let count = u32::try_from(self.argv.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&count.to_le_bytes());
        for word in words.chain(&self.env) {
            bytes.extend_from_slice(word.as_bytes_with_nul());
        }
        bytes
    }

    /// Decodes what [`Program::to_bytes`] encoded. `None` if the bytes are not such an encoding.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Program> {
        let (count, rest) = bytes.split_first_chunk::<4>()?;
        let rest = rest.strip_suffix(b"\0")?;
        let mut words = rest.split(|byte| *byte == 0).map(|word| CString::new(word).ok());
        let (path, dir) = (words.next()??, words.next()??);
        let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
        let argv: Vec<CString> = words.by_ref().take(count).collect::<Option<_>>()?;
        (argv.len() == count && count > 0).then(|| {
            let env = words.collect::<Option<_>>()?;
            Some(Program { path, argv, dir, env, credentials: Credentials::default() })
        })?
    }

    /// Explains in words why the program could not be run.
    pub(crate) fn explain(&self, failed: Failed) -> SpawnFailure {
        let Failed { stage, errno } = failed;
        let dir = Path::new(OsStr::from_bytes(self.dir.as_bytes()));
        let shown = dir.join(OsStr::from_bytes(self.path.as_bytes()));
        match stage {
            SpawnStage::Fork => {
                let message = match errno {
                    Errno::EAGAIN => "the kernel allows no further process (a limit on processes is reached)",
                    Errno::ENOMEM => "there is not enough memory for another process",
                    Errno::EMFILE | Errno::ENFILE => "there are no descriptors left for another process",
                    _ => "the kernel refused to create another process",
                };
                failure(stage, errno, message)
            }
            SpawnStage::Prepare => {
                let limit = descriptor_limit();
                let message = format!(
                    "there are no descriptors left for its output (this process may open {limit} files)"
                );
                failure(stage, errno, &message)
            }
            SpawnStage::User => {
                let message = match errno {
                    Errno::EPERM | Errno::EACCES => {
                        "this supervisor may not run it as that user or with that priority"
                    }
                    _ => "the user or the groups can't be set",
                };
                failure(stage, errno, message)
            }
            stage => explain(stage, errno, &shown, dir),
        }
    }
}

/// Whether a program can be searched from this directory. A child would report that itself, but
/// there is none yet.
fn is_folder(dir: &Path) -> Result<(), SpawnFailure> {
    let bad = |errno: Errno| Err(explain_folder(errno, dir));
    match std::fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => bad(Errno::ENOTDIR),
        Err(error) => bad(Errno::from_raw(error.raw_os_error().unwrap_or(libc::ENOENT))),
    }
}

/// The program's file: the name itself if it contains a slash, otherwise the first executable match
/// in `PATH`.
fn find(name: &str, dir: &Path, environment: &[CString]) -> Result<CString, SpawnFailure> {
    let made = |given: &OsStr| {
        CString::new(given.as_bytes()).map_err(|_| {
            failure(SpawnStage::Exec, Errno::EINVAL, "the program's name contains a NUL character")
        })
    };
    if name.contains('/') {
        return made(OsStr::new(name));
    }
    let missing = || {
        let message = format!("there is no program {name:?} in PATH");
        failure(SpawnStage::Exec, Errno::ENOENT, &message)
    };
    is_folder(dir)?;
    if name.is_empty() {
        return Err(missing());
    }
    let path = env::value_of(environment, "PATH").unwrap_or(OsStr::new(env::DEFAULT_PATH));
    let mut not_executable = None;
    for folder in std::env::split_paths(path) {
        let candidate = dir.join(folder).join(name);
        if !candidate.is_file() {
            continue;
        }
        if nix::unistd::access(&candidate, nix::unistd::AccessFlags::X_OK).is_ok() {
            return made(candidate.as_os_str());
        }
        not_executable.get_or_insert(candidate);
    }
    match not_executable {
        Some(path) => {
            let message = format!("{} is not executable", path.display());
            Err(failure(SpawnStage::Exec, Errno::EACCES, &message))
        }
        None => Err(missing()),
    }
}

fn explain(stage: SpawnStage, errno: Errno, file: &Path, dir: &Path) -> SpawnFailure {
    let shown = file.display();
    let message = match (stage, errno) {
        (SpawnStage::Chdir, errno) => return explain_folder(errno, dir),
        (SpawnStage::Exec, Errno::ENOENT) if file.exists() => match interpreter(file) {
            Some(interpreter) => format!("{shown} needs the interpreter {interpreter}, which does not exist"),
            None => format!("{shown} needs a loader that does not exist (built for another system?)"),
        },
        (SpawnStage::Exec, Errno::ENOENT) => format!("there is no program {shown}"),
        (SpawnStage::Exec, Errno::EACCES) if file.is_dir() => format!("{shown} is a folder"),
        (SpawnStage::Exec, Errno::EACCES) => format!("{shown} is not executable"),
        (SpawnStage::Exec, Errno::ENOEXEC) => {
            format!(
                "{shown} is not a program that the kernel can run (a script needs a first line such as #!/bin/sh)"
            )
        }
        (SpawnStage::Exec, Errno::ENOTDIR) => format!("part of {shown} is not a folder"),
        (SpawnStage::Exec, Errno::E2BIG) => "arguments and environment are too long together".to_owned(),
        (SpawnStage::Exec, Errno::ETXTBSY) => format!("{shown} is being written"),
        (stage, errno) => format!("{shown}: {stage} failed: {}", errno.desc()),
    };
    failure(stage, errno, &message)
}

fn explain_folder(errno: Errno, dir: &Path) -> SpawnFailure {
    let shown = dir.display();
    let message = match errno {
        Errno::ENOENT => format!("its folder {shown} does not exist"),
        Errno::ENOTDIR => format!("its folder {shown} is not a folder"),
        Errno::EACCES => format!("its folder {shown} may not be entered"),
        other => format!("its folder {shown} can't be entered: {}", other.desc()),
    };
    failure(SpawnStage::Chdir, errno, &message)
}

/// The interpreter that the first line of a script names.
fn interpreter(path: &Path) -> Option<String> {
    let mut start = [0u8; 256];
    let length = io::Read::read(&mut std::fs::File::open(path).ok()?, &mut start).ok()?;
    let line = start[..length].strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let text = String::from_utf8_lossy(line).trim().to_owned();
    text.split_whitespace().next().map(str::to_owned)
}
