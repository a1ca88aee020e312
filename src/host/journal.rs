//! The journal of a daemon's processes, a file beside its store and independent of it. Each process
//! is noted before the keeper is asked for it, again when it runs, and again when it is gone. If
//! daemon and keeper are killed together, the next daemon knows from the journal and from the marks
//! of the processes which process is whose, whatever became of the store. That includes a process
//! that was being spawned at that moment.
//!
//! Lines are appended without waiting for the disk: the journal need not outlive a power failure,
//! which no process outlives either.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::sys::files;

/// What the journal says about one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Noted {
    pub(crate) key: u64,
    /// The note that a keeper would hold about it.
    pub(crate) about: String,
    /// The text by which the process is found again, once it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) life: Option<String>,
}

/// One line of the journal.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Noted(Noted),
    Gone { gone: u64 },
}

/// The journal as this daemon writes it.
pub(crate) struct Journal(Mutex<Inner>);

struct Inner {
    path: PathBuf,
    /// The open file; `None` after an error, and opened again with the next line.
    file: Option<File>,
    length: usize,
    live: BTreeMap<u64, Noted>,
}

/// From this length in bytes on, the file is rewritten if most of it is about processes that are
/// gone.
const WORTH_IT: usize = 1 << 20;

/// Reads what the last daemon noted, in the order of the keys. A line that was cut short is
/// ignored.
pub(crate) fn read(path: &Path) -> Vec<Noted> {
    let text = files::read_own(path).unwrap_or_default();
    let mut live = BTreeMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Line::Noted(noted)) => {
                live.insert(noted.key, noted);
            }
            Ok(Line::Gone { gone }) => {
                live.remove(&gone);
            }
            Err(_) => {}
        }
    }
    live.into_values().collect()
}

impl Journal {
    /// Begins a new journal with the processes that live.
    pub(crate) fn begin(path: PathBuf, live: impl IntoIterator<Item = Noted>) -> Journal {
        let live = live.into_iter().map(|noted| (noted.key, noted)).collect();
        let mut inner = Inner { path, file: None, length: 0, live };
        if let Err(error) = inner.rewrite() {
            tracing::warn!(%error, path = %inner.path.display(), "the journal of processes can't be written");
        }
        Journal(Mutex::new(inner))
    }

    /// Notes that the keeper is about to be asked for a process.
    pub(crate) fn asked(&self, key: u64, about: &str) {
        let noted = Noted { key, about: about.to_owned(), life: None };
        self.note(|inner| {
            inner.live.insert(key, noted.clone());
            Some(Line::Noted(noted))
        });
    }

    /// Notes that a process runs.
    pub(crate) fn runs(&self, key: u64, life: &str) {
        self.note(|inner| {
            let noted = inner.live.get_mut(&key)?;
            noted.life = Some(life.to_owned());
            Some(Line::Noted(noted.clone()))
        });
    }

    /// Notes that nothing of a process is left, or that it was never spawned.
    pub(crate) fn gone(&self, key: u64) {
        self.note(|inner| inner.live.remove(&key).map(|_| Line::Gone { gone: key }));
    }

    fn note(&self, change: impl FnOnce(&mut Inner) -> Option<Line>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = change(&mut inner)
            && let Err(error) = inner.append(&line)
        {
            tracing::debug!(%error, "the journal of processes can't be written");
        }
    }
}

impl Inner {
    fn append(&mut self, line: &Line) -> io::Result<()> {
        let lives: usize = self.live.len() * 512;
        if self.file.is_none() || (self.length > WORTH_IT && self.length > 4 * lives) {
            return self.rewrite();
        }
        let text = text_of(line)?;
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        // A single write: a line is either whole, or cut short and then the last.
        if let Err(error) = file.write_all(&text) {
            self.file = None;
            return Err(error);
        }
        self.length += text.len();
        Ok(())
    }

    fn rewrite(&mut self) -> io::Result<()> {
        self.file = None;
        let mut text = Vec::new();
        for noted in self.live.values() {
            text.extend(text_of(&Line::Noted(noted.clone()))?);
        }
        files::replace_quickly(&self.path, &String::from_utf8_lossy(&text))?;
        self.file = Some(files::own_file(&self.path)?);
        self.length = text.len();
        Ok(())
    }
}

fn text_of(line: &Line) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(path: &Path) -> Vec<(u64, bool)> {
        read(path).into_iter().map(|noted| (noted.key, noted.life.is_some())).collect()
    }

    #[test]
    fn who_lives_is_known_wherever_the_file_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("processes.jsonl");
        let journal = Journal::begin(path.clone(), [Noted { key: 1, about: "a".into(), life: None }]);
        journal.asked(2, "b");
        journal.runs(2, "life");
        journal.asked(3, "c");
        journal.gone(1);
        journal.gone(9);
        assert_eq!(keys(&path), [(2, true), (3, false)]);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(keys(&path).iter().all(|(key, _)| (1..=3).contains(key)), "cut at {length}");
        }
        // The file was replaced: a journal that can no longer append rewrites it with the next
        // line.
        let again = Journal::begin(path.clone(), read(&path));
        again.asked(4, "d");
        assert!(keys(&path).contains(&(4, false)));
    }

    #[test]
    fn the_file_does_not_grow_with_what_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("processes.jsonl");
        let journal = Journal::begin(path.clone(), []);
        for key in 0..20_000 {
            journal.asked(key, &"x".repeat(100));
            journal.gone(key);
        }
        assert!(std::fs::metadata(&path).unwrap().len() < 2 * WORTH_IT as u64);
        assert_eq!(keys(&path), []);
    }
}
