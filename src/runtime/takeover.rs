//! Starts a tree below a keeper: it takes over what an earlier supervisor has left with the keeper
//! and in the ledger, and goes on from there.
//!
//! The rules of recovery are in [`recovery`](crate::decide::recovery); this module gathers what
//! they need and carries them out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Handle, Options, RuntimeBuilder, StartError};
use crate::actors::{Inheritance, UnclaimedProcess, end_unwanted};
use crate::decide::goals::ManualGoals;
use crate::decide::ledger::{Ledger, Memory};
use crate::decide::recovery::{
    StartKind, SurvivingProcess, UnrecordedExit, continuation, release_orphaned_holds, untold, up_again,
};
use crate::decide::reload::scaled_as_before;
use crate::decide::succession::is_over;
use crate::decide::tree_state::{InstanceState, TreeState};
use crate::host::keeper::KeeperSocket;
use crate::host::native::{Joined, NativeHost};
use crate::host::{Host, KeptProcess, OutputSink, ProcessKey};
use crate::model::event::TreeFact;
use crate::model::{Fact, Goal, InstanceId, InstanceRecord, Name, Plan, ServiceSpec, State};
use crate::record::output::OutputHub;
use crate::sys::clock::{self, Clock};

/// The settings of a tree below a keeper, beside [`Options`].
pub struct KeeperOptions {
    /// The socket of the keeper.
    pub keeper_socket: KeeperSocket,
    /// The identity that successive supervisors of one tree share, and no others: it says where they
    /// keep their state.
    pub identity: String,
    /// The file in which processes are noted, apart from the ledger.
    pub journal: PathBuf,
    /// The ledger that events are written to, and what it held when it was opened; `None` where nothing
    /// is written down.
    pub ledger: Option<(Arc<dyn Ledger>, Memory)>,
    /// What becomes of processes that no service of the plan claims.
    pub strangers: UnclaimedPolicy,
}

/// What becomes of unclaimed processes: those of services that an earlier supervisor had and that
/// no plan has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnclaimedPolicy {
    /// Unclaimed processes are asked to stop, then killed: no plan wants them any more.
    End,
    /// Unclaimed processes are left alone until a supervisor knows them again: part of the plan could
    /// not be read, so it may well want them.
    Leave,
}

/// The names under which the keeper holds the goals set by hand, the control socket, and the
/// waiting tasks.
const GOALS: &str = "goals";
pub(super) const LISTENER: &str = "control socket";
pub(super) const TASKS: &str = "tasks";

/// The time that an unclaimed process has to end before SIGKILL.
const FAREWELL: Duration = Duration::from_secs(10);

/// What an earlier supervisor has left.
#[derive(Default)]
pub(super) struct Taken {
    /// The facts that the new supervisor tells first.
    pub(super) facts: Vec<Fact>,
    pub(super) lives: HashMap<InstanceId, Inheritance>,
    pub(super) strangers: HashMap<String, UnclaimedProcess>,
    pub(super) last_event: u64,
    /// The cause of the shutdown that the earlier supervisor had begun and not finished.
    pub(super) going_down: Option<String>,
}

/// What the keeper holds for its daemons.
struct Held {
    /// The control socket, with its path.
    listener: Option<(PathBuf, OwnedFd)>,
    /// The file of the tasks that are not over.
    tasks: Option<OwnedFd>,
    /// The goals set by hand, even where they could not be written to the disk.
    goals: Option<ManualGoals>,
}

impl Held {
    fn of(held: Vec<(String, String, Option<OwnedFd>)>) -> Held {
        let mut found = Held { listener: None, tasks: None, goals: None };
        for (name, text, fd) in held {
            match name.as_str() {
                LISTENER => found.listener = fd.map(|fd| (PathBuf::from(text), fd)),
                TASKS => found.tasks = fd,
                GOALS => found.goals = serde_json::from_str(&text).ok(),
                _ => {}
            }
        }
        found
    }
}

impl Handle {
    /// Brings a plan up below a keeper, and goes on with what earlier supervisors have left there and
    /// in the ledger. Apart from that it works as [`Handle::start`].
    pub async fn start_below(
        plan: Plan,
        options: Options,
        below: KeeperOptions,
    ) -> Result<Handle, StartError> {
        let KeeperOptions { keeper_socket, identity, journal, ledger, strangers } = below;
        let output = Arc::new(OutputHub::new(options.console).with_own(options.own_output));
        let (ledger, mut memory) = match ledger {
            Some((ledger, memory)) => (Some(ledger), memory),
            None => (None, Memory::default()),
        };
        let today = SystemTime::now();
        let plan = with_known_copies(&plan, &memory);
        let tree_state = TreeState::new(Arc::new(plan), today).map_err(StartError::Cycles)?;
        let flushed = ledger.clone();
        let before_change = Arc::new(move || {
            if let Some(ledger) = &flushed {
                ledger.flush();
            }
        });
        let sink: Arc<dyn OutputSink> = Arc::clone(&output) as Arc<dyn OutputSink>;
        let lives: Vec<String> = memory.lives.iter().map(|(_, _, life)| life.clone()).collect();
        let joined = NativeHost::below(keeper_socket, &identity, &lives, &journal, sink, before_change);
        let Joined { host: native, since, found, first, held } = joined.map_err(StartError::Host)?;
        let same_boot = memory.boot.is_some() && memory.boot == clock::boot();
        if is_over(first, same_boot && memory.ended, !found.is_empty()) {
            native.bye(0);
            return Err(StartError::Over);
        }
        let start = if !found.is_empty() || (same_boot && !memory.ended) {
            StartKind::Follows
        } else {
            StartKind::Afresh
        };
        let since = memory.since.filter(|_| same_boot && start == StartKind::Follows).unwrap_or(since);
        let clock = Clock::since(since);
        let Held { listener, tasks: tasks_held, goals } = Held::of(held);
        if let Some(goals) = goals.filter(|goals| goals.seq > memory.goals.seq) {
            memory.goals = goals;
        }
        let native = Arc::new(native);
        if let Some(ledger) = &ledger {
            let keeper = Arc::clone(&native);
            ledger.hold_goals_by(Box::new(move |text| keeper.hold(GOALS, text, None)));
        }
        let host: Arc<dyn Host> = Arc::clone(&native) as Arc<dyn Host>;
        let taken = take_over(&tree_state, &host, (start, strangers, first), memory, found, clock, today);
        if let Some(ledger) = &ledger {
            let alone = taken.strangers.iter().filter(|(_, stranger)| stranger.left.is_some());
            let alone = alone.map(|(name, _)| name.clone()).collect();
            ledger.begin(&clock::boot().unwrap_or_default(), since, alone);
        }
        let made = RuntimeBuilder {
            listener,
            tasks_held,
            socket: options.socket,
            native: Some(native),
            recorder: options.recorder,
            secrets: options.secrets,
            clock,
            keep: options.keep,
            tasks: options.tasks,
            runners: options.runners,
            tasks_apart: Some(identity),
            ledger,
            taken,
            ..RuntimeBuilder::new(tree_state, host, output)
        };
        made.start(options.sample_interval).await
    }
}

/// The plan in which the scaled numbers of replicas carry over from the earlier supervisor.
fn with_known_copies(plan: &Plan, memory: &Memory) -> Plan {
    let known = |spec: &Arc<ServiceSpec>| Some((spec.name.clone(), copies_of(spec, memory)?));
    let before: BTreeMap<Name, u32> = plan.services.iter().filter_map(known).collect();
    scaled_as_before(plan, |service| before.get(service).copied())
}

/// The number of copies that a service had: the highest number among the known instances.
fn copies_of(spec: &ServiceSpec, memory: &Memory) -> Option<u32> {
    let number = |of: &str, text: &String| {
        text.strip_prefix(of)?.strip_prefix('.').and_then(|number| number.parse::<u32>().ok())
    };
    let count = |of: &str| memory.pasts.keys().filter_map(|text| number(of, text)).max();
    count(spec.name.as_str())
}

/// Whether all known copies of a service were stopped by hand.
fn was_kept_down(spec: &ServiceSpec, memory: &Memory) -> bool {
    let of = |text: &str| match text.strip_prefix(spec.name.as_str()) {
        Some("") => true,
        Some(copy) => copy.strip_prefix('.').is_some_and(|number| number.parse::<u32>().is_ok()),
        None => false,
    };
    let mut pasts = memory.pasts.iter().filter(|(text, _)| of(text)).map(|(_, past)| past).peekable();
    pasts.peek().is_some() && pasts.all(|past| past.state == State::Stopped && past.goal == Goal::Down)
}

/// New copies of services all of whose copies before were stopped by hand: they stay down.
fn kept_down(tree_state: &TreeState, memory: &Memory) -> HashSet<InstanceId> {
    let is_new = |entry: &&InstanceState| !memory.pasts.contains_key(&entry.id.to_string());
    let new = tree_state.entries().iter().filter(is_new);
    new.filter(|entry| was_kept_down(&entry.spec, memory)).map(|entry| entry.id.clone()).collect()
}

/// The full name of a process's owner: an earlier build named it without its project.
fn qualified(tree_state: &TreeState, memory: &Memory, name: &str, pid: u32) -> String {
    let is_there = tree_state.entries().iter().any(|entry| entry.id.to_string() == name);
    if is_there || name.contains('/') {
        return name.to_owned();
    }
    let same = || tree_state.entries().iter().map(|entry| &entry.id).filter(|id| id.short() == name);
    let its = same().find(|id| memory.pasts.get(&id.to_string()).is_some_and(|past| past.pid == Some(pid)));
    its.or_else(|| same().next()).map_or_else(|| name.to_owned(), ToString::to_string)
}

/// The processes that an earlier supervisor has left.
struct Survivors {
    /// The newest process of each instance, by its owner's full name.
    newest: HashMap<String, KeptProcess>,
    /// Processes that nobody is to go on with.
    strays: Vec<ProcessKey>,
    /// Ends of older processes that may not have been told.
    before: HashMap<String, Vec<UnrecordedExit>>,
}

/// Sorts what the keeper has kept: the newest process of each instance counts; older ones are those that
/// the keeper was no longer told to forget.
fn survivors(tree_state: &TreeState, memory: &Memory, found: Vec<KeptProcess>) -> Survivors {
    let (newest, strays, before) = (HashMap::new(), Vec::new(), HashMap::new());
    let mut survivors = Survivors { newest, strays, before };
    for mut found in found {
        let Some(owner) = &mut found.owner else {
            survivors.strays.push(found.key);
            continue;
        };
        owner.instance = qualified(tree_state, memory, &owner.instance, found.pid);
        let name = owner.instance.clone();
        let Some(older) = survivors.newest.insert(name.clone(), found) else {
            continue;
        };
        survivors.strays.push(older.key);
        if let (Some(owner), Some(exit)) = (&older.owner, older.exit) {
            let left = SurvivingProcess { incarnation: owner.incarnation, pid: older.pid };
            survivors.before.entry(name).or_default().push(UnrecordedExit { left, exit });
        }
    }
    survivors
}

/// What is left of instances that no plan has: it is ended, or kept for a manifest that can't be read now.
fn unclaimed(
    host: &Arc<dyn Host>,
    strangers: UnclaimedPolicy,
    pasts: HashMap<String, InstanceRecord>,
    left: HashMap<String, KeptProcess>,
) -> HashMap<String, UnclaimedProcess> {
    let mut unknown = HashMap::new();
    match strangers {
        UnclaimedPolicy::End => {
            for (name, found) in &left {
                tracing::warn!(pid = found.pid, "{name} is no longer in any manifest and is stopped");
                end_unwanted(host, found.key, FAREWELL);
            }
        }
        UnclaimedPolicy::Leave => {
            for (name, past) in pasts {
                unknown.insert(name, UnclaimedProcess { written: Some(past), left: None });
            }
            for (name, found) in left {
                tracing::warn!(pid = found.pid, "{name} is in no readable manifest and is left running");
                let Some(owner) = found.owner else {
                    continue;
                };
                let left = SurvivingProcess { incarnation: owner.incarnation, pid: found.pid };
                let stranger = unknown.entry(name).or_insert(UnclaimedProcess { written: None, left: None });
                stranger.left = Some((left, found.key));
            }
        }
    }
    unknown
}

fn take_over(
    tree_state: &TreeState,
    host: &Arc<dyn Host>,
    (start, strangers, first): (StartKind, UnclaimedPolicy, bool),
    mut memory: Memory,
    found: Vec<KeptProcess>,
    clock: Clock,
    today: SystemTime,
) -> Taken {
    // The store is lost, or is older than the goals that the keeper holds. New event numbers continue
    // after both.
    let newer_goals = (memory.goals.seq > memory.last_event).then(|| memory.goals.clone());
    memory.last_event = memory.last_event.max(memory.goals.seq);
    let Survivors { mut newest, mut strays, mut before } = survivors(tree_state, &memory, found);
    // The first supervisor below a keeper has no shutdown to go on with: the keeper that was asked for
    // it has ended.
    let going_down = memory.going_down.take().filter(|_| start == StartKind::Follows && !first);
    let (mut processes, mut instances, mut facts) = (HashMap::new(), Vec::new(), Vec::new());
    let kept_down = kept_down(tree_state, &memory);
    for entry in tree_state.entries() {
        let name = entry.id.to_string();
        let left = newest.remove(&name);
        let found = left.as_ref().and_then(|found| {
            let owner = found.owner.as_ref()?;
            Some(SurvivingProcess { incarnation: owner.incarnation, pid: found.pid })
        });
        let mut written = memory.pasts.remove(&name);
        if let Some(goals) = &newer_goals {
            written = goals.correct(entry, written, today);
        }
        if kept_down.contains(&entry.id) {
            written = Some(InstanceRecord {
                state: State::Stopped,
                ..InstanceRecord::new(entry.id.clone(), today)
            });
        }
        let gone = before.remove(&name).unwrap_or_default();
        facts.extend(untold(&entry.id, &mut written, gone, clock.now()));
        let goes_on = continuation(&entry.id, &entry.spec, start, written, found, clock.now(), today);
        let process = left.map(|found| found.key);
        strays.extend(process.filter(|_| !goes_on.adopts));
        if let Some(past) = goes_on.past {
            processes.extend(process.filter(|_| goes_on.adopts).map(|key| (entry.id.clone(), key)));
            instances.push(past);
        }
    }
    if going_down.is_some() {
        // An instance that is already down is not started again; its goal does not change by that.
        for past in instances.iter_mut().filter(|past| !past.state.has_process()) {
            past.state = State::Registered;
        }
    } else {
        up_again(&mut instances);
        // Groups restart each other's members where one of them escalates, so instances belong together by
        // their outermost group.
        let outermost = |id: &InstanceId| {
            tree_state.entry(id).and_then(|entry| tree_state.path_to(entry.group.as_ref()).into_iter().next())
        };
        release_orphaned_holds(&mut instances, |one, other| outermost(one) == outermost(other));
    }
    let life = |past: &InstanceRecord| Inheritance {
        past: past.clone(),
        process: processes.get(&past.instance).copied(),
    };
    let lives = instances.iter().map(|past| (past.instance.clone(), life(past))).collect();
    strays.into_iter().for_each(|key| end_unwanted(host, key, Duration::ZERO));
    let unknown = unclaimed(host, strangers, std::mem::take(&mut memory.pasts), newest);
    let (failed_groups, failed_projects) = match start {
        StartKind::Follows => (memory.failed_groups, memory.failed_projects),
        _ => (Vec::new(), Vec::new()),
    };
    let taken_over = (!instances.is_empty()).then_some(Fact::Tree(TreeFact::TakenOver {
        instances,
        failed_groups,
        failed_projects,
    }));
    let facts = taken_over.into_iter().chain(facts).collect();
    Taken { facts, lives, strangers: unknown, last_event: memory.last_event, going_down }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_counted_by_their_numbers() {
        let mut memory = Memory::default();
        for name in ["web.1", "web.3", "webs.7", "web", "web.x", "other.9"] {
            memory.pasts.insert(
                name.to_owned(),
                InstanceRecord::new(InstanceId::sole(name_of(name)), SystemTime::now()),
            );
        }
        let service = |name: &str| ServiceSpec::new(name_of(name), ["x"]);
        assert_eq!(copies_of(&service("web"), &memory), Some(3));
        assert_eq!(copies_of(&service("none"), &memory), None);
    }

    fn name_of(text: &str) -> Name {
        Name::new(text.split('.').next().unwrap()).unwrap()
    }
}
