//! Events as sentences for people.

use crate::model::event::{GroupFact, InstanceFact, PoolFact, TreeFact};
use crate::model::{Child, Command, Fact, Name, Requester};
use crate::present::units::{
    crashes, few, forks_away, goes_elsewhere, kept_again, lost_sight, not_kept, short,
};

/// A fact as a sentence without a full stop.
pub fn fact_in_words(fact: &Fact) -> String {
    match fact {
        Fact::Instance(fact) => instance_in_words(fact),
        Fact::Group(fact) => group_in_words(fact),
        Fact::Tree(fact) => tree_in_words(fact),
        Fact::Pool(fact) => pool_in_words(fact),
    }
}

fn instance_in_words(fact: &InstanceFact) -> String {
    match fact {
        InstanceFact::GoalSet { instance, goal } => format!("{instance}: goal {goal}"),
        InstanceFact::Waiting { instance, for_ } if for_.is_empty() => {
            format!("{instance}: wants to start")
        }
        InstanceFact::Waiting { instance, for_ } => {
            let list: Vec<String> = for_.iter().map(ToString::to_string).collect();
            format!("{instance}: waiting for {}", list.join(", "))
        }
        InstanceFact::Starting { instance, incarnation, cause } => {
            let cause = serde_json::to_value(cause).ok().and_then(|v| v.as_str().map(str::to_owned));
            format!("{instance}: starting {incarnation} ({})", cause.unwrap_or_default())
        }
        InstanceFact::Running { instance, incarnation, pid } => {
            let pid = pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
            format!("{instance}: running {incarnation}{pid}")
        }
        InstanceFact::Ready { instance, after, .. } => {
            format!("{instance}: ready after {}", short(*after))
        }
        InstanceFact::CheckFailed { instance, check, in_a_row, message, .. } => {
            format!("{instance}: {check} check failed ({in_a_row} in a row): {message}")
        }
        InstanceFact::CheckUnable { instance, check, message, .. } => {
            format!("{instance}: {check} check could not be run: {message}")
        }
        InstanceFact::HealthChanged { instance, health, .. } => {
            format!("{instance}: {health}")
        }
        InstanceFact::Stopping { instance, cause, signal, timeout, .. } => {
            let how = signal.clone().unwrap_or_else(|| "stop command".to_owned());
            format!("{instance}: stopping ({cause}) by {how}, SIGKILL after {}", short(*timeout))
        }
        InstanceFact::StopCommandFailed { instance, message, .. } => {
            format!("{instance}: its stop command failed: {message}")
        }
        InstanceFact::LeftBehind { instance, exit, .. } => {
            format!("{instance}: {exit}, and left processes behind, which are ended")
        }
        InstanceFact::Killed { instance, after, .. } => {
            format!("{instance}: SIGKILL after {}", short(*after))
        }
        InstanceFact::Stuck { instance, .. } => {
            format!("{instance}: SIGKILL has not ended it")
        }
        InstanceFact::Paused { instance, .. } => format!("{instance}: paused"),
        InstanceFact::Resumed { instance, .. } => format!("{instance}: resumed"),
        InstanceFact::HookFailed { instance, hook, message } => {
            format!("{instance}: its {hook} hook failed: {message}")
        }
        InstanceFact::EnvRenewed { instance, .. } => {
            format!("{instance}: starts with the current contents of its env files")
        }
        InstanceFact::ForksAway { instance, left, .. } => {
            format!("{instance}: {}", forks_away(*left))
        }
        InstanceFact::LostSight { instance, of, .. } => {
            format!("{instance}: {}", lost_sight(*of))
        }
        InstanceFact::OutputElsewhere { instance, file, reason } => {
            format!("{instance}: {}", goes_elsewhere(file, reason))
        }
        InstanceFact::OutputLost { instance, lost_bytes: None, reason } => {
            format!("{instance}: {}", not_kept(reason))
        }
        InstanceFact::OutputLost { instance, lost_bytes: Some(lost), .. } => {
            format!("{instance}: {}", kept_again(*lost))
        }
        InstanceFact::ActorBroke { instance, message } => {
            format!("{instance}: a fault in regrow itself: {message}")
        }
        InstanceFact::Exited { instance, exit, uptime, .. } => {
            format!("{instance}: ended after {}: {exit}", short(*uptime))
        }
        InstanceFact::Stopped { instance, held: false } => format!("{instance}: stopped"),
        InstanceFact::Stopped { instance, held: true } => {
            format!("{instance}: stopped, to be started again")
        }
        InstanceFact::Completed { instance } => format!("{instance}: completed"),
        InstanceFact::Crashed { instance, exit, retry_in, attempt } => {
            format!("{instance}: crashed ({exit}), restart {attempt} in {}", short(*retry_in))
        }
        InstanceFact::Failed { instance, why } => format!("{instance}: failed: {why}"),
    }
}

fn group_in_words(fact: &GroupFact) -> String {
    match fact {
        GroupFact::Restarting { group, strategy, fallen, stopping, starting } => {
            let group = group.as_ref().map_or("the root group".to_owned(), |g| format!("group {g}"));
            format!(
                "{group} ({strategy}) restarts because {fallen} crashed: stopping [{}], starting [{}]",
                stopping.join(", "),
                starting.join(", ")
            )
        }
        GroupFact::ShutDown { group, ended } => {
            let group = group.as_ref().map_or("the root group".to_owned(), |g| format!("group {g}"));
            format!("{group} goes down: {ended} has ended")
        }
        GroupFact::GaveUp { group, restarts, period, .. } => {
            let group = group.as_ref().map_or("the root group".to_owned(), |g| format!("group {g}"));
            format!("{group} gave up: {} within {}", crashes(*restarts), short(*period))
        }
    }
}

fn tree_in_words(fact: &TreeFact) -> String {
    match fact {
        TreeFact::SupervisorStarted { pid, version, project, services } => {
            format!("regrow {version} (pid {pid}) supervises {project}: {}", counted(*services, "service"))
        }
        TreeFact::TakenOver { instances, .. } => {
            let live = instances.iter().filter(|past| past.pid.is_some()).count();
            format!("took over {}, {live} with a process", counted(instances.len(), "instance"))
        }
        TreeFact::CommandAccepted { command, by } => {
            format!("{} {} accepted{}", command.verb(), selected(command), of_whom(by.as_deref()))
        }
        TreeFact::CommandDenied { command, by, denial } => {
            let whom = of_whom(by.as_deref());
            format!("{} {} denied{whom}: {}", command.verb(), selected(command), denial.reason)
        }
        TreeFact::StoreLost { lost_events: None, reason } => {
            format!("events can't be recorded: {reason}; services are not affected")
        }
        TreeFact::StoreLost { lost_events: Some(lost), .. } => {
            format!("events are recorded again; {lost} events were lost")
        }
        TreeFact::Added { addition } => {
            let at = addition.into.as_ref().map_or("the root group".to_owned(), |g| format!("group {g}"));
            format!("added to {at}: {}", names(addition.children.iter().map(Child::name)))
        }
        TreeFact::Reconfigured { change } => {
            let services = change.services.iter().map(|spec| &spec.name);
            format!("changed: {}", names(services.chain(change.groups.keys())))
        }
        TreeFact::Scaled { service, from, to, .. } => {
            format!("{service}: scaled from {from} to {to}")
        }
        TreeFact::ScaleDecided { service, from, to, reason } => {
            format!("{service}: to be scaled from {from} to {to}: {reason}")
        }
        TreeFact::Removed { services, groups } => {
            format!("removed: {}", names(services.iter().chain(groups)))
        }
        TreeFact::ProjectGaveUp { project, group } => match group {
            Some(group) => format!("project {project} goes down: group {group} gave up"),
            None => format!("project {project} goes down: it gave up"),
        },
        TreeFact::ActorBroke { actor, reason, lost } => {
            format!(
                "a fault in regrow itself: the {actor} broke ({reason}) and is started again; lost: {lost}"
            )
        }
        TreeFact::ShutdownStarted { cause } => format!("going down: {cause}"),
        TreeFact::ShutdownDone => "the shutdown is done".to_owned(),
    }
}

fn pool_in_words(fact: &PoolFact) -> String {
    match fact {
        PoolFact::Scaled { pool, from, to, reason } => {
            let pool = pool.as_ref().map(|pool| format!(" {pool}")).unwrap_or_default();
            format!("the worker pool{pool}: from {from} to {to}: {reason}")
        }
    }
}

fn of_whom(by: Option<&Requester>) -> String {
    by.map_or(String::new(), |by| format!(" ({})", by.who))
}

fn names<'a>(names: impl Iterator<Item = &'a Name>) -> String {
    few(names.map(Name::as_str))
}

fn selected(command: &Command) -> String {
    let select = match command {
        Command::Add { addition } => return names(addition.children.iter().map(Child::name)),
        Command::Reconfigure { change } => {
            return names(change.services.iter().map(|spec| &spec.name).chain(change.groups.keys()));
        }
        Command::Scale { service, replicas } => return format!("{service} {replicas}"),
        other => other.select().cloned().unwrap_or_default(),
    };
    let mut words: Vec<String> = select.services.clone();
    words.extend(select.all.then(|| "--all".to_owned()));
    words.extend(select.groups.iter().map(|g| format!("--group {g}")));
    words.extend(select.tags.iter().map(|t| format!("--tag {t}")));
    words.join(" ")
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
