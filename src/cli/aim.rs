//! Which tree each verb means, where no option says it. Where that tree's socket lies, `control::instance_dir` knows.

use std::sync::OnceLock;

use super::{PoolVerb, Verb};

/// Which tree a verb means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// The one of this folder; who only looks is shown the daemon's where there is none.
    Looks,
    /// The one of this folder's manifest and no other; outside of any project the daemon's.
    Own,
    /// The daemon's.
    Daemon,
}

/// That of the verb that was given: a process has one, and asks for it far below.
static GIVEN: OnceLock<Aim> = OnceLock::new();

/// Once the verb is known.
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
        // What changes something never falls back to another tree.
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
        // These ask nobody.
        Verb::Run(_)
        | Verb::Daemon(_)
        | Verb::Check(_)
        | Verb::Plan(_)
        | Verb::Init(_)
        | Verb::ApiSchema
        | Verb::Replay(_) => Aim::Looks,
    }
}
