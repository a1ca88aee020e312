//! The verbs that change a running tree: `start`, `stop`, `restart`, `pause`, `resume`, `add`, `remove`.

use super::super::{code, report};
use crate::cli::args::control::{AddArgs, PlainArgs, StartArgs, StopArgs};
use crate::cli::connect::{ask, command, selector, with_text};
use crate::control::protocol::{Add, Added};
use crate::manifest::fault::LoadError;
use crate::model::Command;

pub(in crate::cli) fn start(args: StartArgs) -> u8 {
    let StartArgs { select, patience, no_deps, common } = args;
    command("start", Command::Start { select: selector(select), no_deps }, &patience, &common)
}

pub(in crate::cli) fn stop(args: StopArgs) -> u8 {
    let StopArgs { select, patience, force, common } = args;
    command("stop", Command::Stop { select: selector(select), force }, &patience, &common)
}

pub(in crate::cli) fn restart(args: PlainArgs) -> u8 {
    let PlainArgs { select, patience, common } = args;
    command("restart", Command::Restart { select: selector(select) }, &patience, &common)
}

pub(in crate::cli) fn pause(args: PlainArgs) -> u8 {
    let PlainArgs { select, patience, common } = args;
    command("pause", Command::Pause { select: selector(select) }, &patience, &common)
}

pub(in crate::cli) fn resume(args: PlainArgs) -> u8 {
    let PlainArgs { select, patience, common } = args;
    command("resume", Command::Resume { select: selector(select) }, &patience, &common)
}

pub(in crate::cli) fn add(args: AddArgs) -> u8 {
    let AddArgs { file, group, patience, common } = args;
    let unreadable = |error| {
        report::tell(&LoadError::Unreadable { path: file.clone(), error });
        code::MANIFEST
    };
    let read = file.canonicalize().and_then(|file| {
        if std::fs::metadata(&file)?.len() > LARGEST_ADDITION {
            return Err(std::io::Error::other("it is larger than 16 MiB; add it in parts"));
        }
        Ok((std::fs::read_to_string(&file)?, file))
    });
    let (manifest, file) = match read {
        Ok(read) => read,
        Err(error) => return unreadable(error),
    };
    let body = Add { manifest, file, group };
    ask("/v1/add", &body, &patience, &common, |added: &Added| {
        if let Some(warnings) = with_text(&added.warnings) {
            report::warn(&warnings);
        }
        &added.answer
    })
}

/// The size of the largest manifest that is sent, in bytes.
const LARGEST_ADDITION: u64 = 16 << 20;

pub(in crate::cli) fn remove(args: PlainArgs) -> u8 {
    let PlainArgs { select, patience, common } = args;
    command("remove", Command::Remove { select: selector(select) }, &patience, &common)
}
