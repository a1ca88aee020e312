//! What each manifest of a folder said when it was last right. It is kept beside the store, so that
//! a daemon that finds a manifest torn, or the whole folder gone, goes on with what the daemon
//! before it had.
//!
//! Texts are kept, not plans: variables are those of the process that reads. What env files said
//! counts only for those that can't be read any more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A manifest that was right: its text, and the texts of its env files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Good {
    pub(super) text: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) env_files: BTreeMap<PathBuf, String>,
}

/// The texts of the manifests that were right, by their files.
#[derive(Debug, Default)]
pub struct LastGood {
    /// Writes the texts down when they change; `None`: they are kept in memory only.
    kept_in: Option<Keeper>,
    texts: BTreeMap<PathBuf, Good>,
}

type Keep = dyn Fn(&str) -> std::io::Result<()> + Send;

struct Keeper(Box<Keep>);

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keeper")
    }
}

impl LastGood {
    /// The texts as an earlier daemon wrote them down, which `keep` writes down again at each change.
    /// `written` is `None` where there are none, or where they don't count any more.
    pub fn of(
        written: Option<&[u8]>,
        keep: impl Fn(&str) -> std::io::Result<()> + Send + 'static,
    ) -> LastGood {
        let texts = written.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default();
        LastGood { kept_in: Some(Keeper(Box::new(keep))), texts }
    }

    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.texts.keys().cloned().collect()
    }

    pub(super) fn of_file(&self, file: &Path) -> Option<&Good> {
        self.texts.get(file)
    }

    pub(super) fn text(&self, file: &Path) -> Option<&str> {
        self.of_file(file).map(|good| good.text.as_str())
    }

    /// Notes the manifests that are right now. Other files of `all` keep their last texts, and files
    /// outside of `all` are forgotten.
    pub(super) fn now(&mut self, all: &[PathBuf], right: Vec<(PathBuf, Good)>) {
        let before = self.texts.clone();
        self.texts.retain(|file, _| all.contains(file));
        self.texts.extend(right);
        if self.texts == before {
            return;
        }
        if let Some(Keeper(keep)) = &self.kept_in {
            let text = serde_json::to_string(&self.texts).unwrap_or_default();
            if let Err(error) = keep(&text) {
                tracing::warn!(%error, "the manifests can't be saved for the next daemon");
            }
        }
    }
}
