//! What a run shows: it turns events into lines, and names the instances that take long.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::actors::event_log::NextEvent;
use crate::cli::console::Console;
use crate::cli::format::Tint;
use crate::decide::tree_state::InstanceState;
use crate::decide::why;
use crate::model::cause::{CheckKind, StartCause, StopCause};
use crate::model::event::{GroupFact, InstanceFact, PoolFact, TreeFact};
use crate::model::plan::GiveUp;
use crate::model::{Event, Fact, InstanceId, Name, State, spec};
use crate::present::fact_in_words;
use crate::present::units::{
    crashes, few, forks_away, goes_elsewhere, in_time, kept_again, lost_sight, not_kept, short,
};
use crate::runtime::Handle;
use crate::sys::memory;

/// Turns events into lines.
pub(super) struct Screen {
    pub(super) console: Arc<Console>,
    pub(super) names: Vec<InstanceId>,
    /// The instances that have not been ready yet for the first time.
    pub(super) pending: HashSet<InstanceId>,
    pub(super) all_ready: bool,
    pub(super) gave_up: bool,
    /// Whether a shutdown is under way.
    pub(super) stopping: bool,
    pub(super) uptimes: HashMap<InstanceId, Duration>,
    pub(super) failures: HashMap<InstanceId, String>,
    pub(super) starting: usize,
    pub(super) with_check: HashSet<InstanceId>,
    pub(super) pids: HashMap<InstanceId, u32>,
}

impl Screen {
    pub(super) fn new(handle: &Handle, console: Arc<Console>, names: Vec<InstanceId>) -> Screen {
        let plan = handle.plan();
        let services = &plan.services;
        let started = services.iter().filter(|s| s.autostart);
        let pending: HashSet<InstanceId> = started.flat_map(|s| s.instances().collect::<Vec<_>>()).collect();
        let checked = services.iter().filter(|s| s.ready.is_some());
        Screen {
            console,
            names,
            all_ready: pending.is_empty(),
            starting: pending.len(),
            pending,
            gave_up: false,
            stopping: false,
            uptimes: HashMap::new(),
            failures: HashMap::new(),
            with_check: checked.flat_map(|s| s.instances().collect::<Vec<_>>()).collect(),
            pids: HashMap::new(),
        }
    }

    /// Shows an event, and returns whether it made a line.
    pub(super) fn show(&mut self, read: &NextEvent) -> bool {
        let event = match read {
            NextEvent::Event(event) => event,
            NextEvent::Missed(count) => {
                self.console.say(&format!("{count} events were not shown"), Tint::Warn);
                return true;
            }
        };
        let line = self.line(event);
        let told = line.is_some();
        if let Some((name, text, tint)) = line {
            match name {
                Some(name) => self.console.about(&name, &text, tint),
                None => self.console.say(&text, tint),
            }
        }
        self.count(event);
        told
    }

    pub(super) fn line(&mut self, event: &Event) -> Option<(Option<String>, String, Tint)> {
        let about = |id: &InstanceId, text: String, tint| Some((Some(id.to_string()), text, tint));
        match &event.fact {
            Fact::Instance(InstanceFact::Waiting { for_, .. }) if for_.is_empty() => None,
            Fact::Instance(InstanceFact::Waiting { instance, for_ }) => {
                let words: Vec<String> = for_.iter().map(ToString::to_string).collect();
                about(instance, format!("waiting for {}", words.join(", ")), Tint::Faint)
            }
            Fact::Instance(InstanceFact::Starting { instance, cause, .. }) => match cause {
                StartCause::Boot => None,
                StartCause::Policy => about(instance, "starting again".to_owned(), Tint::Warn),
                StartCause::Group => about(instance, "starting again with its group".to_owned(), Tint::Warn),
                StartCause::Command => None,
                StartCause::Dependency => {
                    about(instance, "starting: its dependencies are back".to_owned(), Tint::Faint)
                }
            },
            Fact::Instance(InstanceFact::Running { instance, pid, .. }) => {
                match pid {
                    Some(pid) => self.pids.insert(instance.clone(), *pid),
                    None => self.pids.remove(instance),
                };
                None
            }
            Fact::Instance(InstanceFact::Ready { instance, after, .. }) => {
                let word = if self.with_check.contains(instance) { "ready" } else { "running" };
                let pid = self.pids.get(instance).map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                about(instance, format!("{word} after {}{pid}", short(*after)), Tint::Good)
            }
            Fact::Instance(InstanceFact::CheckFailed {
                instance, check: CheckKind::Health, message, ..
            }) => about(instance, format!("health check failed: {message}"), Tint::Warn),
            // A readiness check exists to wait for a server that does not answer yet.
            Fact::Instance(InstanceFact::CheckFailed { check: CheckKind::Ready, .. }) => None,
            Fact::Instance(InstanceFact::CheckUnable { instance, check, message, .. }) => {
                about(instance, format!("{check} check could not be run: {message}"), Tint::Warn)
            }
            Fact::Instance(InstanceFact::Stopping { instance, cause, .. }) => match cause {
                StopCause::Timeout | StopCause::Health => {
                    about(instance, format!("{cause}: ending it"), Tint::Bad)
                }
                StopCause::Command
                | StopCause::Restart
                | StopCause::Removed
                | StopCause::Group
                | StopCause::GaveUp
                | StopCause::ProjectGaveUp
                | StopCause::Dependency
                | StopCause::AutoShutdown => about(instance, format!("stopping ({cause})"), Tint::Faint),
                StopCause::Shutdown | StopCause::LeftBehind | StopCause::Internal => None,
            },
            Fact::Instance(InstanceFact::StopCommandFailed { instance, message, .. }) => {
                about(instance, format!("its stop command failed: {message}"), Tint::Warn)
            }
            Fact::Instance(InstanceFact::LeftBehind { instance, exit, .. }) => {
                about(instance, format!("{exit}, and left processes behind: ending them"), Tint::Warn)
            }
            Fact::Instance(InstanceFact::Killed { instance, after, .. }) => {
                let text = if after.is_zero() {
                    "SIGKILL".to_owned()
                } else {
                    format!("SIGKILL after {}", short(*after))
                };
                about(instance, text, Tint::Bad)
            }
            Fact::Instance(InstanceFact::Stuck { instance, .. }) => {
                about(instance, "SIGKILL has not ended it: stuck in the kernel".to_owned(), Tint::Bad)
            }
            Fact::Instance(InstanceFact::Paused { instance, .. }) => {
                about(instance, "paused".to_owned(), Tint::Warn)
            }
            Fact::Instance(InstanceFact::Resumed { instance, .. }) => {
                about(instance, "resumed".to_owned(), Tint::Good)
            }
            Fact::Instance(InstanceFact::HookFailed { instance, hook, message }) => {
                about(instance, format!("its {hook} hook failed: {message}"), Tint::Warn)
            }
            Fact::Instance(InstanceFact::ActorBroke { instance, message }) => {
                about(instance, format!("a fault in regrow itself: {message}"), Tint::Bad)
            }
            Fact::Instance(InstanceFact::Exited { instance, uptime, .. }) => {
                self.uptimes.insert(instance.clone(), *uptime);
                None
            }
            Fact::Instance(InstanceFact::Stopped { instance, .. }) => match self.uptimes.remove(instance) {
                Some(uptime) => about(instance, format!("stopped, ran {}", short(uptime)), Tint::Faint),
                // The instance never ran, so its stop is no news in a shutdown.
                None if self.stopping => None,
                None => about(instance, "stopped".to_owned(), Tint::Faint),
            },
            Fact::Instance(InstanceFact::Completed { instance }) => {
                let after = self.uptimes.remove(instance).map(|u| format!(" after {}", short(u)));
                about(instance, format!("completed{}", after.unwrap_or_default()), Tint::Good)
            }
            Fact::Instance(InstanceFact::Crashed { instance, exit, retry_in, .. }) => {
                self.uptimes.remove(instance);
                about(instance, format!("{exit}; comes back {}", in_time(*retry_in)), Tint::Bad)
            }
            Fact::Instance(InstanceFact::Failed { instance, why }) => {
                self.failures.insert(instance.clone(), why.to_string());
                self.uptimes.remove(instance);
                about(instance, format!("failed: {why}"), Tint::Bad)
            }
            Fact::Group(GroupFact::Restarting { group, strategy, fallen, starting, .. }) => {
                let group = group.as_ref().map_or("the root group".to_owned(), |g| format!("group {g}"));
                let text = format!("{group} ({strategy}): {fallen} crashed, restarting {}", few(starting));
                Some((None, text, Tint::Warn))
            }
            Fact::Group(GroupFact::ShutDown { group, ended }) => {
                let group = group.as_ref().map_or("the root group".to_owned(), |g| format!("group {g}"));
                Some((None, format!("{group} goes down: {ended} has ended"), Tint::Faint))
            }
            Fact::Group(GroupFact::GaveUp { group, restarts, period, then }) => {
                let group = group.as_ref().map_or("the root group".to_owned(), |g| format!("group {g}"));
                let then = match then {
                    GiveUp::Mark => "its members are failed until started by hand",
                    GiveUp::Escalate => "its parent decides",
                    GiveUp::Exit => "everything goes down",
                };
                let text =
                    format!("{group} gave up after {} within {}: {then}", crashes(*restarts), short(*period));
                Some((None, text, Tint::Bad))
            }
            Fact::Tree(TreeFact::CommandDenied { command, denial, .. }) => {
                Some((None, format!("{} was refused: {}", command.verb(), denial.reason), Tint::Faint))
            }
            Fact::Tree(TreeFact::Added { addition }) => {
                for spec in addition.services.iter().filter(|spec| spec.ready.is_some()) {
                    self.with_check.extend(spec.instances());
                }
                let names = addition.children.iter().map(|child| child.name().as_str());
                Some((None, format!("added: {}", few(names)), Tint::Faint))
            }
            Fact::Tree(TreeFact::Removed { services, groups }) => {
                self.forget(|id| services.contains(id.service()));
                let names = services.iter().chain(groups).map(Name::as_str);
                Some((None, format!("removed: {}", few(names)), Tint::Faint))
            }
            Fact::Tree(TreeFact::Scaled { service, from, to, naming }) => {
                let (gone, _) = spec::scaled(service, *from, *to, *naming);
                self.forget(|id| gone.contains(id));
                Some((None, format!("{service} now has {to} instances"), Tint::Faint))
            }
            Fact::Tree(TreeFact::ScaleDecided { service, from, to, reason }) => {
                Some((None, format!("{service}: from {from} to {to} instances: {reason}"), Tint::Faint))
            }
            Fact::Tree(TreeFact::ActorBroke { .. }) => Some((None, fact_in_words(&event.fact), Tint::Bad)),
            Fact::Tree(TreeFact::ShutdownStarted { cause }) => {
                self.stopping = true;
                (cause == "regrow down").then(|| (None, "regrow down: stopping".to_owned(), Tint::Warn))
            }
            Fact::Instance(InstanceFact::OutputElsewhere { instance, file, reason }) => {
                about(instance, goes_elsewhere(file, reason), Tint::Warn)
            }
            Fact::Instance(InstanceFact::OutputLost { instance, lost_bytes: None, reason }) => {
                about(instance, not_kept(reason), Tint::Warn)
            }
            Fact::Instance(InstanceFact::OutputLost { instance, lost_bytes: Some(lost), .. }) => {
                about(instance, kept_again(*lost), Tint::Good)
            }
            Fact::Instance(InstanceFact::LostSight { instance, of, .. }) => {
                about(instance, lost_sight(*of), Tint::Warn)
            }
            Fact::Instance(InstanceFact::ForksAway { instance, left, .. }) => {
                about(instance, forks_away(*left), Tint::Bad)
            }
            Fact::Tree(TreeFact::SupervisorStarted { .. })
            | Fact::Tree(TreeFact::TakenOver { .. })
            | Fact::Instance(InstanceFact::EnvRenewed { .. })
            | Fact::Tree(TreeFact::ProjectGaveUp { .. })
            | Fact::Tree(TreeFact::StoreLost { .. })
            | Fact::Pool(PoolFact::Scaled { .. })
            | Fact::Tree(TreeFact::Reconfigured { .. })
            | Fact::Tree(TreeFact::CommandAccepted { .. })
            | Fact::Instance(InstanceFact::GoalSet { .. })
            | Fact::Instance(InstanceFact::HealthChanged { .. })
            | Fact::Tree(TreeFact::ShutdownDone) => None,
        }
    }

    /// Forgets instances about which nothing more is to be told.
    fn forget(&mut self, gone: impl Fn(&InstanceId) -> bool) {
        let before = self.pending.len();
        self.pending.retain(|id| !gone(id));
        self.starting -= before - self.pending.len();
        self.with_check.retain(|id| !gone(id));
        self.pids.retain(|id, _| !gone(id));
        self.uptimes.retain(|id, _| !gone(id));
        self.failures.retain(|id, _| !gone(id));
    }

    pub(super) fn count(&mut self, event: &Event) {
        if let Fact::Group(GroupFact::GaveUp { then: GiveUp::Exit | GiveUp::Escalate, group: None, .. })
        | Fact::Group(GroupFact::GaveUp { then: GiveUp::Exit, .. }) = &event.fact
        {
            self.gave_up = true;
        }
        let arrived = match &event.fact {
            Fact::Instance(InstanceFact::Ready { instance, .. })
            | Fact::Instance(InstanceFact::Completed { instance }) => self.pending.remove(instance),
            Fact::Tree(TreeFact::Removed { .. }) | Fact::Tree(TreeFact::Scaled { .. })
                if self.pending.is_empty() =>
            {
                self.all_ready = true;
                self.console.status(None);
                false
            }
            _ => false,
        };
        if arrived && self.pending.is_empty() && !self.all_ready {
            self.all_ready = true;
            self.console.status(None);
            memory::settle();
            if !self.stopping && self.starting > 1 {
                let after = short(event.since_start);
                self.console.say(
                    &format!("all {} are up after {after}; Ctrl-C stops them", self.starting),
                    Tint::Good,
                );
            }
        }
    }

    /// The instances that are not ready yet, with the reasons, in declared order.
    pub(super) fn not_ready(&self, handle: &Handle) -> String {
        let now = handle.uptime();
        let pending: Vec<&InstanceId> = self.names.iter().filter(|id| self.pending.contains(id)).collect();
        handle.tree_state(|tree_state| {
            let words = pending.iter().filter_map(|id| {
                let entry = tree_state.entry(id)?;
                Some(format!("{id}: {}", why::because(tree_state, entry, now)))
            });
            listed(words, pending.len(), 4)
        })
    }

    /// The instances that have not stopped yet, with the time that each has left.
    pub(super) fn lingering(&self, handle: &Handle) -> String {
        let now = handle.uptime();
        let hooks = handle.running_hooks();
        handle.tree_state(|tree_state| {
            let lingering: Vec<&InstanceState> =
                tree_state.entries().iter().filter(|e| e.state == State::Stopping).collect();
            let words = lingering.iter().map(|entry| match entry.kill_at.filter(|at| *at > now) {
                Some(at) => {
                    format!("{} (SIGKILL in {:.0} s)", entry.id, (at - now).as_secs_f64().ceil())
                }
                None => format!("{} (SIGKILL sent)", entry.id),
            });
            listed(words.chain(hooks.iter().cloned()), lingering.len() + hooks.len(), 6)
        })
    }
}

/// The first few words, and how many more there are.
fn listed(words: impl Iterator<Item = String>, count: usize, most: usize) -> String {
    let first = words.take(most).collect::<Vec<_>>().join("; ");
    if count <= most { first } else { format!("{first} and {} more", count - most) }
}
