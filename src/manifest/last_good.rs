//! What each manifest of a folder said when it was last right, beside the store: so a daemon that finds one
//! torn, or the whole folder gone, goes on with what the one before it had.
//!
//! The texts, not what was made of them: variables are those of who reads, and what env files said counts only
//! for those that can't be read any more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One that was right: its text, and those of its env files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Good {
    pub(super) text: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) env_files: BTreeMap<PathBuf, String>,
}

/// Texts by their files.
#[derive(Debug, Default)]
pub struct LastGood {
    /// Where they are kept; `None`: nowhere.
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
    /// As an earlier one wrote them down (`None`: there is no such, or it does not count any more), to be
    /// written down by `keep` with each change.
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

    /// These are right now; of `all`, the others keep what they were, and what is in neither is no more.
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
                tracing::warn!(%error, "what the manifests say is not kept for a daemon after this one");
            }
        }
    }
}
