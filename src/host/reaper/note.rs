//! The note that a keeper holds about a process for a later daemon.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::known_members::KnownMembers;
use crate::host::Owner;

/// What a later daemon needs to know about a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KeeperNote {
    pub(crate) owner: Owner,
    /// The run of the daemon that spawned it; see [`Marks`](super::Marks).
    pub(crate) run: u64,
    #[serde(default)]
    pub(crate) cgroups: Option<PathBuf>,
    /// The processes that were seen in its tree.
    #[serde(default, skip_serializing_if = "KnownMembers::is_plain")]
    #[serde(rename = "sight")]
    pub(super) known_members: KnownMembers,
}

impl KeeperNote {
    pub(crate) fn new(owner: Owner, run: u64, cgroups: Option<PathBuf>) -> KeeperNote {
        KeeperNote { owner, run, cgroups, known_members: KnownMembers::default() }
    }
}
