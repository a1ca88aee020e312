//! Faults of a manifest: what is wrong, and where.
//!
//! How they are printed is the command line's.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use crate::model::status::FaultyManifest;

/// A text that was read, with the path that it is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The path of the file, as the user would name it.
    pub path: PathBuf,
    /// The whole text.
    pub text: String,
    /// Where each line begins, in bytes; found when it is first asked for.
    lines: OnceLock<Vec<usize>>,
}

impl Source {
    /// Makes a source of this text.
    pub fn new(path: PathBuf, text: String) -> Source {
        Source { path, text, lines: OnceLock::new() }
    }

    /// Where each line begins, in bytes.
    fn lines(&self) -> &[usize] {
        self.lines.get_or_init(|| {
            let ends = self.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
            std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect()
        })
    }

    /// The line and the column of a byte, both counted from 1. Columns count characters.
    pub fn place(&self, at: usize) -> (usize, usize) {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        let lines = self.lines();
        let line = lines.partition_point(|start| *start <= at);
        (line, self.text[lines[line - 1]..at].chars().count() + 1)
    }
}

/// One fault of a manifest or of an env file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The text that has the fault.
    pub source: Arc<Source>,
    /// The bytes of the text that the fault covers.
    pub span: Range<usize>,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// A few words that are shown at that place.
    pub label: String,
    /// Another place of the same text that has to do with the fault, and a few words for it.
    pub also: Option<(Range<usize>, String)>,
    /// What would mend the fault, if that is known.
    pub hint: Option<String>,
}

impl Fault {
    /// The line and the column where the fault begins, both counted from 1.
    pub fn place(&self) -> (usize, usize) {
        self.source.place(self.span.start)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.place();
        write!(f, "{}:{line}:{column}: {}", self.source.path.display(), self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// Why a manifest gives no plan.
#[derive(Debug)]
pub enum LoadError {
    /// The file could not be read.
    Unreadable {
        /// The file that could not be read.
        path: PathBuf,
        /// The error of the operating system.
        error: std::io::Error,
    },
    /// The manifest has faults. The list is never empty, and in the order of the text.
    Faulty(Vec<Fault>),
}

impl LoadError {
    /// The path of the file that the error is about.
    pub fn path(&self) -> &std::path::Path {
        match self {
            LoadError::Unreadable { path, .. } => path,
            LoadError::Faulty(faults) => faults.first().map_or("".as_ref(), |fault| &fault.source.path),
        }
    }

    /// The first fault alone, as `status` shows it.
    pub fn in_short(&self) -> FaultyManifest {
        let (line, message) = match self {
            LoadError::Unreadable { error, .. } => (1, format!("the manifest can't be read: {error}")),
            LoadError::Faulty(faults) => match faults.first() {
                Some(fault) => (fault.place().0, fault.message.clone()),
                None => (1, String::new()),
            },
        };
        FaultyManifest { file: self.path().to_owned(), line, message }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Unreadable { path, error } => write!(f, "can't read {}: {error}", path.display()),
            LoadError::Faulty(faults) => {
                for (at, fault) in faults.iter().enumerate() {
                    if at > 0 {
                        writeln!(f)?;
                    }
                    write!(f, "{fault}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for LoadError {}
