//! Which tree each verb means where no option says it. Finding the socket of that tree is the task
//! of `control::instance_dir`.

use std::sync::OnceLock;

use super::args::Verb;
use super::args::commands::PoolVerb;

/// The tree that a verb means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// The tree of this folder; where there is none, the daemon's, since the verb only looks.
    Looks,
    /// The tree of this folder's manifest and no other; outside of any project, the daemon's.
    Own,
    /// The daemon's tree.
    Daemon,
}

/// The aim of the verb that this process was started with; it is static because it is needed deep
/// in the call tree.
static GIVEN: OnceLock<Aim> = OnceLock::new();

/// Sets the aim, once the verb is known.
pub(super) fn set(verb: &Verb) {
    let _ = GIVEN.set(of(verb));
}

/// The aim of this process's verb.
pub(super) fn given() -> Aim {
    GIVEN.get().copied().unwrap_or(Aim::Looks)
}

fn of(verb: &Verb) -> Aim {
    match verb {
        Verb::Service(_)
        | Verb::Token(_)
        | Verb::Upgrade(_)
        | Verb::Audit(_)
        | Verb::Secret(_)
        | Verb::History(_)
        | Verb::Reload(_) => Aim::Daemon,
        Verb::Status(_)
        | Verb::Ls(_)
        | Verb::Logs(_)
        | Verb::Why(_)
        | Verb::Events(_)
        | Verb::Wait(_)
        | Verb::Stats(_)
        | Verb::Resources(_)
        | Verb::Pool(PoolVerb::Status { .. }) => Aim::Looks,
        // A verb that changes something never falls back to another tree.
        Verb::Start(_)
        | Verb::Stop(_)
        | Verb::Restart(_)
        | Verb::Pause(_)
        | Verb::Resume(_)
        | Verb::Add(_)
        | Verb::Remove(_)
        | Verb::Down(_)
        | Verb::Exec(_)
        | Verb::Task(_)
        | Verb::Cache(_)
        | Verb::Pool(_) => Aim::Own,
        // These verbs ask no running tree.
        Verb::Run(_)
        | Verb::Daemon(_)
        | Verb::Check(_)
        | Verb::Plan(_)
        | Verb::Init(_)
        | Verb::ManifestSchema
        | Verb::ApiSchema
        | Verb::Replay(_) => Aim::Looks,
    }
}
