//! The faults of a manifest as a person reads them: with the line, a caret and a hint.

use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

use super::{code, format};
use crate::manifest::{Environment, Fault, LoadError, Loaded, discover, load};

/// Finds and loads a manifest. With `Err` the fault has been printed, and the code is the exit
/// code.
pub(super) fn load_or_tell(file: Option<&Path>, env_files: &[PathBuf]) -> Result<(PathBuf, Loaded), u8> {
    let path = match file {
        Some(path) => path.to_owned(),
        None => found()?,
    };
    let environment = Environment::of_process().with_files(env_files.to_vec());
    match load(&path, &environment) {
        Ok(loaded) => {
            warn(&loaded.warnings);
            Ok((path, loaded))
        }
        Err(error) => {
            tell(&error);
            Err(code::MANIFEST)
        }
    }
}

/// The path of the manifest in this folder or one above, relative to this folder.
pub(super) fn found() -> Result<PathBuf, u8> {
    let cwd = super::here().map_err(|words| {
        tell!("{}: {words}", format::error_word());
        code::MANIFEST
    })?;
    let Some(path) = discover(&cwd) else {
        tell!(
            "{}: there is no regrow.toml or dev-env.toml in {} or above it",
            format::error_word(),
            cwd.display()
        );
        tell!("  = help: name a manifest, or let \"regrow init\" write one");
        return Err(code::MANIFEST);
    };
    Ok(path.strip_prefix(&cwd).map(Path::to_owned).unwrap_or(path))
}

/// Prints warnings about a manifest to standard error.
pub(super) fn warn(warnings: &[Fault]) {
    for warning in warnings {
        tell!("{}\n", render(warning, Level::WARNING));
    }
}

/// Prints what is wrong with one of several manifests.
pub(super) fn tell_beside_others(error: &LoadError) {
    match error {
        LoadError::Unreadable { .. } => tell(error),
        LoadError::Faulty(faults) => {
            for fault in faults {
                tell!("{}\n", render(fault, Level::ERROR));
            }
        }
    }
}

/// Prints what is wrong to standard error.
pub(super) fn tell(error: &LoadError) {
    tell_and(error, "nothing was started");
}

/// Prints what is wrong to standard error, followed by the outcome.
pub(super) fn tell_and(error: &LoadError, outcome: &str) {
    match error {
        LoadError::Unreadable { path, error } => {
            let words = match error.kind() {
                std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
                std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
                std::io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
                _ => error.to_string(),
            };
            tell!("{}: can't read the manifest {}: {words}", format::error_word(), path.display());
        }
        LoadError::Faulty(faults) => {
            for fault in faults {
                tell!("{}\n", render(fault, Level::ERROR));
            }
            let (count, noun) = (faults.len(), if faults.len() == 1 { "fault" } else { "faults" });
            let mut paths: Vec<String> = faults.iter().map(|f| f.source.path.display().to_string()).collect();
            paths.dedup();
            let verb = if paths.len() == 1 { "has" } else { "have" };
            tell!("{}: {} {verb} {count} {noun}; {outcome}", format::error_word(), paths.join(" and "));
        }
    }
}

fn render(fault: &Fault, level: Level<'static>) -> String {
    let renderer = if format::colour_on_stderr() { Renderer::styled() } else { Renderer::plain() };
    let text = &fault.source.text;
    // Only the lines around the fault are shown: a manifest may be megabytes long.
    let window = |start: usize, end: usize| {
        let mut from = start.min(text.len());
        while !text.is_char_boundary(from) {
            from -= 1;
        }
        let mut to = end.clamp(from, text.len());
        while !text.is_char_boundary(to) {
            to += 1;
        }
        let first = text[..from].rfind('\n').map_or(0, |n| n + 1);
        let last = text[to..].find('\n').map_or(text.len(), |n| to + n);
        (first, last, from, to)
    };
    let snippet = |span: &std::ops::Range<usize>, label: &str, kind: AnnotationKind| {
        let (first, last, from, to) = window(span.start, span.end);
        // An empty span still gets its caret.
        let to = if to == from && to < last { to + 1 } else { to };
        Snippet::source(text[first..last].to_owned())
            .line_start(fault.source.place(first).0)
            .path(fault.source.path.display().to_string())
            .annotation(kind.span(from - first..to - first).label(label.to_owned()))
    };
    let title = level.primary_title(fault.message.clone());
    let mut group = title.element(snippet(&fault.span, &fault.label, AnnotationKind::Primary));
    if let Some(hint) = &fault.hint {
        group = group.element(Level::HELP.message(hint.clone()));
    }
    let mut report = vec![group];
    if let Some((span, label)) = &fault.also {
        let note = Group::with_title(Level::NOTE.secondary_title(label.clone()));
        report.push(note.element(snippet(span, label, AnnotationKind::Context)));
    }
    renderer.render(&report)
}

/// The entry of one manifest in the object that `check --json` prints.
#[derive(Debug, Serialize)]
pub(super) struct CheckReport {
    pub(super) file: String,
    pub(super) ok: bool,
    pub(super) services: usize,
    pub(super) faults: Vec<FaultReport>,
    pub(super) warnings: Vec<FaultReport>,
}

/// One fault, for programs that read JSON.
#[derive(Debug, Serialize)]
pub(super) struct FaultReport {
    file: String,
    line: usize,
    column: usize,
    message: String,
    hint: Option<String>,
}

/// The faults of a load error, for programs that read JSON.
pub(super) fn objects(error: &LoadError) -> Vec<FaultReport> {
    match error {
        LoadError::Unreadable { path, error } => vec![FaultReport {
            file: path.display().to_string(),
            line: 0,
            column: 0,
            message: format!("the manifest can't be read: {error}"),
            hint: None,
        }],
        LoadError::Faulty(faults) => places(faults),
    }
}

/// Faults or warnings with their places in the file.
pub(super) fn places(faults: &[Fault]) -> Vec<FaultReport> {
    let report = |fault: &Fault| {
        let (line, column) = fault.place();
        FaultReport {
            file: fault.source.path.display().to_string(),
            line,
            column,
            message: fault.message.clone(),
            hint: fault.hint.clone(),
        }
    };
    faults.iter().map(report).collect()
}
