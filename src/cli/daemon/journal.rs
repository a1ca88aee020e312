//! What the daemon prints for its operator's journal.

use crate::model::event::{GroupFact, InstanceFact, PoolFact, TreeFact};
use crate::model::{Event, Fact};
use crate::present::fact_in_words;

/// Logs the events that an operator looks for in the journal.
pub(super) fn tell_event(event: &Event) {
    match &event.fact {
        Fact::Instance(InstanceFact::Crashed { .. })
        | Fact::Instance(InstanceFact::Failed { .. })
        | Fact::Group(GroupFact::Restarting { .. })
        | Fact::Group(GroupFact::GaveUp { .. })
        | Fact::Group(GroupFact::ShutDown { .. })
        | Fact::Instance(InstanceFact::Stuck { .. })
        | Fact::Instance(InstanceFact::ActorBroke { .. })
        | Fact::Instance(InstanceFact::HookFailed { .. })
        | Fact::Instance(InstanceFact::EnvRenewed { .. })
        | Fact::Instance(InstanceFact::OutputElsewhere { .. })
        | Fact::Instance(InstanceFact::ForksAway { .. })
        | Fact::Instance(InstanceFact::LostSight { .. })
        | Fact::Instance(InstanceFact::OutputLost { .. })
        | Fact::Tree(TreeFact::StoreLost { .. })
        | Fact::Tree(TreeFact::ActorBroke { .. })
        | Fact::Instance(InstanceFact::StopCommandFailed { .. })
        | Fact::Tree(TreeFact::Added { .. })
        | Fact::Tree(TreeFact::Reconfigured { .. })
        | Fact::Tree(TreeFact::Scaled { .. })
        | Fact::Tree(TreeFact::ScaleDecided { .. })
        | Fact::Pool(PoolFact::Scaled { .. })
        | Fact::Tree(TreeFact::Removed { .. })
        | Fact::Tree(TreeFact::ProjectGaveUp { .. })
        | Fact::Tree(TreeFact::ShutdownStarted { .. })
        | Fact::Tree(TreeFact::ShutdownDone) => log(&fact_in_words(&event.fact)),
        _ => {}
    }
}

pub(super) fn log(words: &str) {
    let now = humantime::format_rfc3339_millis(std::time::SystemTime::now());
    say!("{now}  {words}");
}
