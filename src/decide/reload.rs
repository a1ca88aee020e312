//! The reload of a manifest: the difference between two plans, and the steps from one to the other.
//!
//! A change that concerns only how the supervisor treats a service (its policy, checks and time
//! limits) is made while the service runs. A change of what its process is started with restarts
//! the service. A change of its place in the tree (its kind, its group) removes the service and
//! adds it again, and with it what depends on it. Deliberately absent: carrying out the steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::graph::Graph;
use crate::model::keys::{ChangeNeeds, SERVICE};
use crate::model::plan::PlanChange;
use crate::model::spec::RunAs;
use crate::model::{Addition, Child, EnvSpec, GroupSpec, InstanceId, Name, Plan, ServiceSpec, spec};

/// A service that differs, and the keys of its manifest that do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ChangedService {
    /// The service that differs.
    pub service: Name,
    /// The keys of its manifest that differ.
    pub keys: Vec<String>,
}

/// What a reload changes, as people are told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct PlanDiff {
    /// Services that are new.
    pub added: Vec<Name>,
    /// Services that are removed.
    pub removed: Vec<Name>,
    /// Services that are restarted for the change, if they run.
    pub restarted: Vec<ChangedService>,
    /// Services that are changed while they run.
    pub changed: Vec<ChangedService>,
    /// Groups that are changed while they run.
    pub groups: Vec<Name>,
    /// Services that stay as they are.
    pub unchanged: Vec<Name>,
}

/// The steps from one plan to another, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct ReloadPlan {
    /// The difference between the plans, for people.
    pub difference: PlanDiff,
    /// Step 1: add what is new, with one addition for each existing group that it goes into.
    pub add: Vec<Addition>,
    /// Step 2: change what stays in place.
    pub change: PlanChange,
    /// Step 3: remove these services and groups.
    pub remove: (Vec<Name>, Vec<Name>),
    /// Step 4: add what was removed only to come back in another form.
    pub put_back: Vec<Addition>,
    /// Step 5: restart the services that need other processes.
    pub restart: Vec<Name>,
    /// Step 6: scale these services to these numbers of copies.
    pub scale: Vec<(Name, u32)>,
    /// Services that come back under another name, because another project now has theirs as well,
    /// or has it no longer: the old name and the new one.
    pub renamed: Vec<(Name, Name)>,
}

/// The key that stands for a move to another group.
const MEMBERS: &str = "members";
/// The word that stands for a process started by another manifest, of which nothing else is known.
const MANIFEST: &str = "manifest";

/// What a change of a key of a service needs, as the table of keys says.
fn change_needs(key: &str) -> ChangeNeeds {
    match (SERVICE.key(key), key) {
        (Some(key), _) => key.change,
        (None, MEMBERS) => ChangeNeeds::Regroup,
        (None, _) => ChangeNeeds::Restart,
    }
}

/// Whether a change of these keys needs no other process.
fn is_live(keys: &[&str]) -> bool {
    keys.iter().all(|key| change_needs(key) == ChangeNeeds::Nothing)
}

/// The keys of a service's manifest that differ.
///
/// The declaration is taken apart without a rest: a field that is added does not compile until it is
/// said here which key it comes from.
pub fn changed_keys(old: &ServiceSpec, new: &ServiceSpec) -> Vec<&'static str> {
    let ServiceSpec {
        // What is compared has one name, and its project is part of it.
        name: _,
        project: _,
        command,
        kind,
        dir,
        run_as: RunAs { user, group, umask, nice },
        env: EnvSpec { clear, deny, set, secrets },
        depends_on,
        ready,
        health,
        restart,
        stop,
        on,
        log,
        replicas,
        scale,
        autostart,
        on_dependency_restart,
        rerun,
        significant,
        profiles,
        tags,
        runner,
        fault,
        renewal,
    } = old;
    let same = [
        (if new.command.shell { "shell" } else { "command" }, *command == new.command && *fault == new.fault),
        ("dir", *dir == new.dir),
        ("env", *set == new.env.set && *secrets == new.env.secrets),
        // The resulting environment may be equal now, and differ at the next start.
        ("env_file", *renewal == new.renewal),
        ("env_clear", *clear == new.env.clear),
        ("env_deny", *deny == new.env.deny),
        ("user", *user == new.run_as.user),
        ("group", *group == new.run_as.group),
        ("umask", *umask == new.run_as.umask),
        ("nice", *nice == new.run_as.nice),
        ("kind", *kind == new.kind),
        ("replicas", *replicas == new.replicas && *scale == new.scale),
        ("depends_on", *depends_on == new.depends_on),
        ("ready", *ready == new.ready),
        ("health", *health == new.health),
        ("restart", *restart == new.restart),
        ("stop", *stop == new.stop),
        ("on", *on == new.on),
        ("log", *log == new.log),
        ("autostart", *autostart == new.autostart),
        ("on_dependency_restart", *on_dependency_restart == new.on_dependency_restart),
        ("rerun", *rerun == new.rerun),
        ("significant", *significant == new.significant),
        ("profiles", *profiles == new.profiles),
        ("tags", *tags == new.tags),
        ("runner", *runner == new.runner),
    ];
    same.into_iter().filter(|(_, same)| !same).map(|(key, _)| key).collect()
}

/// The plan in which each scaled service keeps the copies it had before, within its new bounds.
pub fn scaled_as_before(plan: &Plan, before: impl Fn(&Name) -> Option<u32>) -> Plan {
    let mut plan = plan.clone();
    for spec in &mut plan.services {
        if let (Some(scale), Some(before)) = (spec.scale, before(&spec.name)) {
            let replicas = before.clamp(scale.min, scale.max);
            *spec = Arc::new(ServiceSpec { replicas, ..ServiceSpec::clone(spec) });
        }
    }
    plan
}

/// The steps from `old` to `new`, which has no faults. `spawn_fingerprint` returns the
/// fingerprints of a service's processes, as far as they are known: a supervisor that took over
/// the processes may have read another manifest than the one they were started by.
pub fn reload_plan(old: &Plan, new: &Plan, spawn_fingerprint: impl Fn(&Name) -> Vec<u32>) -> ReloadPlan {
    let was: Services<'_> = old.services.iter().map(|spec| (&spec.name, spec)).collect();
    let new = &scaled_as_before(new, |name| was.get(name).map(|before| before.replicas));
    let is: Services<'_> = new.services.iter().map(|spec| (&spec.name, spec)).collect();
    let comparison = Comparison { old, new, was, is, spawn_fingerprint: &spawn_fingerprint };
    // A group stays if both plans have it, below the same groups.
    let stays = |group: &Name| old.groups.contains_key(group) && path(old, group) == path(new, group);
    let mut difference = PlanDiff::default();
    let mut differ = comparison.services(&mut difference);
    let renamed = comparison.renamed();
    let replaced = comparison.replaced(&differ, &renamed);
    let back: Vec<&Name> = replaced.iter().filter(|name| comparison.are_both(name)).collect();
    for name in &back {
        difference.unchanged.retain(|other| other != *name);
        differ.entry((*name).clone()).or_insert_with(|| vec!["depends_on"]);
    }
    let InPlace { services, restart, scale } = comparison.in_place(differ, &replaced, &mut difference);
    let bare = |group: &GroupSpec| GroupSpec { children: Vec::new(), ..group.clone() };
    let groups: BTreeMap<Name, GroupSpec> = new
        .groups
        .iter()
        .filter(|(name, group)| stays(name) && old.groups.get(*name).is_some_and(|b| bare(b) != bare(group)))
        .map(|(name, group)| (name.clone(), bare(group)))
        .collect();
    difference.groups = groups.keys().cloned().collect();
    let root = (bare(&old.root) != bare(&new.root)).then(|| bare(&new.root));
    let gone_groups: Vec<Name> =
        old.groups.keys().filter(|name| !new.groups.contains_key(*name) || !stays(name)).cloned().collect();
    let gone: Vec<Name> = difference.removed.iter().chain(back).cloned().collect();
    let fresh: BTreeSet<Name> =
        difference.added.iter().filter(|name| !replaced.contains(*name)).cloned().collect();
    ReloadPlan {
        add: additions(new, &fresh, &stays, &gone_groups),
        put_back: additions_of_replaced(new, &replaced, &fresh, &stays, &gone_groups),
        change: PlanChange { services, groups, root, stop: (old.stop != new.stop).then(|| new.stop.clone()) },
        remove: (gone, gone_groups),
        restart,
        scale,
        renamed,
        difference,
    }
}

type Services<'a> = BTreeMap<&'a Name, &'a Arc<ServiceSpec>>;

/// Two plans side by side.
struct Comparison<'a> {
    old: &'a Plan,
    new: &'a Plan,
    /// The services of the old plan.
    was: Services<'a>,
    /// The services of the new plan.
    is: Services<'a>,
    spawn_fingerprint: &'a dyn Fn(&Name) -> Vec<u32>,
}

/// What is changed of services that stay in their places.
#[derive(Default)]
struct InPlace {
    services: Vec<Arc<ServiceSpec>>,
    restart: Vec<Name>,
    scale: Vec<(Name, u32)>,
}

impl Comparison<'_> {
    fn are_both(&self, name: &Name) -> bool {
        self.was.contains_key(name) && self.is.contains_key(name)
    }

    /// The services that differ, with the keys that do. Tells those that are new, removed and unchanged.
    fn services(&self, difference: &mut PlanDiff) -> BTreeMap<Name, Vec<&'static str>> {
        let mut differ = BTreeMap::new();
        for spec in &self.new.services {
            let Some(before) = self.was.get(&spec.name) else {
                difference.added.push(spec.name.clone());
                continue;
            };
            // A manifest that can't be read says nothing about what runs.
            if spec.fault.is_some() && before.fault.is_some() {
                difference.unchanged.push(spec.name.clone());
                continue;
            }
            let mut keys = changed_keys(before, spec);
            if path(self.old, &spec.name) != path(self.new, &spec.name) {
                keys.push(MEMBERS);
            }
            if is_live(&keys) && made_by(&(self.spawn_fingerprint)(&spec.name), spec) == Some(false) {
                keys.push(MANIFEST);
            }
            if keys.is_empty() {
                difference.unchanged.push(spec.name.clone());
            } else {
                differ.insert(spec.name.clone(), keys);
            }
        }
        let gone = self.old.services.iter().filter(|spec| !self.is.contains_key(&spec.name));
        difference.removed = gone.map(|spec| spec.name.clone()).collect();
        differ
    }

    /// The services that have another name now, because another project has theirs as well, or has it
    /// no longer: the old name and the new one.
    fn renamed(&self) -> Vec<(Name, Name)> {
        let fresh = self.new.services.iter().filter(|spec| !self.was.contains_key(&spec.name));
        let pair = |spec: &Arc<ServiceSpec>| {
            let before = self.old.services.iter().find(|old| {
                !self.is.contains_key(&old.name)
                    && old.project.is_some()
                    && old.project == spec.project
                    && own_name(&old.name) == own_name(&spec.name)
            })?;
            Some((before.name.clone(), spec.name.clone()))
        };
        fresh.filter_map(pair).collect()
    }

    /// Whether the copies of a service get other names even if their number stays.
    fn gets_other_names(&self, name: &Name) -> bool {
        match (self.was.get(name), self.is.get(name)) {
            (Some(before), Some(spec)) => {
                let as_many = spec::copies(name, before.replicas, spec.naming());
                before.naming() != spec.naming() && before.instances().ne(as_many)
            }
            _ => false,
        }
    }

    /// The services that are removed and added again: those that move, and what depends on them.
    fn replaced(
        &self,
        differ: &BTreeMap<Name, Vec<&'static str>>,
        renamed: &[(Name, Name)],
    ) -> BTreeSet<Name> {
        let moves = |name: &Name, keys: &[&'static str]| {
            keys.iter().any(|key| change_needs(key) == ChangeNeeds::Regroup) || self.gets_other_names(name)
        };
        let moved = differ.iter().filter(|(name, keys)| moves(name, keys)).map(|(name, _)| name.clone());
        let names = renamed.iter().flat_map(|(before, after)| [before.clone(), after.clone()]);
        let mut replaced: BTreeSet<Name> = moved.chain(names).collect();
        let graphs = [Graph::new(&self.old.services), Graph::new(&self.new.services)];
        loop {
            let more: Vec<Name> = graphs
                .iter()
                .flatten()
                .flat_map(|graph| {
                    replaced.iter().flat_map(|name| graph.dependents(name)).map(|spec| spec.name.clone())
                })
                .filter(|name| self.are_both(name) && !replaced.contains(name))
                .collect();
            if more.is_empty() {
                return replaced;
            }
            replaced.extend(more);
        }
    }

    /// What is changed, restarted and scaled of the services that differ and stay. Tells which.
    fn in_place(
        &self,
        differ: BTreeMap<Name, Vec<&'static str>>,
        replaced: &BTreeSet<Name>,
        difference: &mut PlanDiff,
    ) -> InPlace {
        let mut changes = InPlace::default();
        for (name, keys) in differ {
            let told = ChangedService {
                service: name.clone(),
                keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            };
            let (Some(before), Some(spec)) = (self.was.get(&name), self.is.get(&name)) else {
                difference.restarted.push(told);
                continue;
            };
            if replaced.contains(&name) {
                difference.restarted.push(told);
                continue;
            }
            // The number of copies changes last, in a step of its own.
            let replicas = before.replicas;
            changes.services.push(match spec.replicas == replicas {
                true => Arc::clone(spec),
                false => Arc::new(ServiceSpec { replicas, ..ServiceSpec::clone(spec) }),
            });
            if spec.replicas != replicas {
                changes.scale.push((name.clone(), spec.replicas));
                // A single copy has another name than numbered ones: then every copy is replaced.
                let stays: BTreeSet<InstanceId> = before.instances().collect();
                if !spec.instances().any(|id| stays.contains(&id)) {
                    difference.restarted.push(told);
                    continue;
                }
            }
            // A service whose fault is mended starts by itself; its old processes count by their
            // fingerprint.
            let is_mended = before.fault.is_some() && spec.fault.is_none();
            let known = made_by(&(self.spawn_fingerprint)(&name), spec);
            if known.unwrap_or_else(|| is_mended || is_live(&keys)) {
                difference.changed.push(told);
            } else {
                difference.restarted.push(told);
                changes.restart.push(name);
            }
        }
        changes
    }
}

/// Whether all processes of a service were started as the spec says; `None`: not known.
fn made_by(spawn_fingerprint: &[u32], spec: &ServiceSpec) -> Option<bool> {
    let wanted = spec.spawn_fingerprint();
    (!spawn_fingerprint.is_empty()).then(|| spawn_fingerprint.iter().all(|made| *made == wanted))
}

/// A name without its project.
fn own_name(name: &Name) -> &str {
    name.as_str().rsplit('/').next().unwrap_or_default()
}

/// The groups above a name, from the root on.
fn path<'a>(plan: &'a Plan, name: &Name) -> Vec<&'a Name> {
    let mut path = Vec::new();
    let mut at = plan.parent_of(name.as_str());
    while let Some(group) = at {
        path.push(group);
        at = plan.parent_of(group.as_str());
    }
    path.reverse();
    path
}

/// The additions of new services to groups that stay. A whole new group is included only where
/// all below it is new and no group of its name is removed first.
fn additions(
    new: &Plan,
    fresh: &BTreeSet<Name>,
    stays: &impl Fn(&Name) -> bool,
    gone: &[Name],
) -> Vec<Addition> {
    let whole = |group: &Name| {
        !gone.contains(group) && new.services_below(group.as_str()).iter().all(|name| fresh.contains(name))
    };
    collect(new, stays, &|child| match child {
        Child::Service(name) => fresh.contains(name),
        Child::Group(name) => !stays(name) && whole(name),
    })
}

/// The additions of what was removed to come back, with the new groups that it goes into.
fn additions_of_replaced(
    new: &Plan,
    replaced: &BTreeSet<Name>,
    fresh: &BTreeSet<Name>,
    stays: &impl Fn(&Name) -> bool,
    gone: &[Name],
) -> Vec<Addition> {
    collect(new, stays, &|child| match child {
        Child::Service(name) => replaced.contains(name),
        Child::Group(name) => {
            let all_new = new.services_below(name.as_str()).iter().all(|name| fresh.contains(name));
            !stays(name) && (gone.contains(name) || !all_new)
        }
    })
}

/// The children that `takes` accepts in each group that stays, as an addition to that group.
fn collect(new: &Plan, stays: &impl Fn(&Name) -> bool, takes: &impl Fn(&Child) -> bool) -> Vec<Addition> {
    let there = new.groups.iter().filter(|(name, _)| stays(name)).map(|(name, group)| (Some(name), group));
    let mut found = Vec::new();
    for (into, group) in there.chain([(None, &new.root)]) {
        let children: Vec<Child> = group.children.iter().filter(|child| takes(child)).cloned().collect();
        if children.is_empty() {
            continue;
        }
        let (mut services, mut groups) = (BTreeSet::new(), BTreeMap::new());
        let mut todo: Vec<&Child> = children.iter().collect();
        while let Some(child) = todo.pop() {
            match child {
                Child::Service(name) => {
                    services.insert(name);
                }
                Child::Group(name) => {
                    if let Some(inner) = new.groups.get(name) {
                        todo.extend(&inner.children);
                        groups.insert(name.clone(), inner.clone());
                    }
                }
            }
        }
        let services = new.services.iter().filter(|spec| services.contains(&spec.name)).cloned().collect();
        found.push(Addition { into: into.cloned(), children, services, groups });
    }
    found
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::spec::{ScaleOn, ScaleSpec};

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn service(text: &str, on: &[&str]) -> ServiceSpec {
        use crate::model::{Condition, Dependency};
        let mut spec = ServiceSpec::new(name(text), ["run", text]);
        spec.depends_on = on
            .iter()
            .map(|on| Dependency { on: name(on), condition: Condition::Ready, required: true })
            .collect();
        spec
    }

    fn unknown(_: &Name) -> Vec<u32> {
        Vec::new()
    }

    fn names(names: &[Name]) -> Vec<&str> {
        names.iter().map(Name::as_str).collect()
    }

    fn told(changed: &[ChangedService]) -> Vec<String> {
        changed.iter().map(|c| format!("{}: {}", c.service, c.keys.join(" "))).collect()
    }

    #[test]
    fn nothing_is_touched_that_is_as_it_was() {
        let plan = Plan::of("p", vec![service("a", &[]), service("b", &["a"])]);
        let way = reload_plan(&plan, &plan.clone(), unknown);
        assert_eq!(names(&way.difference.unchanged), ["a", "b"]);
        assert_eq!(way.change, PlanChange::default());
        assert!(way.add.is_empty() && way.put_back.is_empty() && way.restart.is_empty());
        assert_eq!(way.remove, (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_change_names_its_keys_and_restarts_only_what_it_must() {
        let old =
            Plan::of("p", vec![service("a", &[]), service("b", &[]), service("c", &[]), service("d", &[])]);
        let mut new = old.clone();
        let edit = |new: &mut Plan, at: usize, change: &dyn Fn(&mut ServiceSpec)| {
            change(Arc::make_mut(&mut new.services[at]));
        };
        edit(&mut new, 0, &|spec| spec.restart.max_retries = Some(3));
        edit(&mut new, 0, &|spec| spec.stop.timeout = Duration::from_secs(1));
        edit(&mut new, 1, &|spec| spec.env.set.push(("A".into(), "b".into())));
        edit(&mut new, 2, &|spec| spec.command.argv.push("more".into()));
        let way = reload_plan(&old, &new, unknown);
        assert_eq!(told(&way.difference.changed), ["a: restart stop"]);
        assert_eq!(told(&way.difference.restarted), ["b: env", "c: command"]);
        assert_eq!(names(&way.difference.unchanged), ["d"]);
        assert_eq!(names(&way.restart), ["b", "c"]);
        assert_eq!(way.change.services.len(), 3);
    }

    #[test]
    fn what_is_replaced_is_put_back_with_what_depends_on_it() {
        let old = Plan::of(
            "p",
            vec![service("a", &[]), service("b", &["a"]), service("c", &[]), service("d", &[])],
        );
        let mut new = Plan::of(
            "p",
            vec![service("a", &[]), service("b", &["a"]), service("c", &[]), service("e", &["c"])],
        );
        Arc::make_mut(&mut new.services[0]).kind = crate::model::Kind::Task;
        let way = reload_plan(&old, &new, unknown);
        assert_eq!(told(&way.difference.restarted), ["a: kind", "b: depends_on"]);
        assert_eq!((names(&way.difference.added), names(&way.difference.removed)), (vec!["e"], vec!["d"]));
        assert_eq!(names(&way.remove.0), ["d", "a", "b"]);
        assert_eq!(way.add.len(), 1);
        assert_eq!(way.put_back.len(), 1);
        assert_eq!(way.put_back[0].services.len(), 2);
    }

    #[test]
    fn copies_come_and_go_and_the_others_stay() {
        let old = Plan::of("p", vec![service("a", &[]), service("b", &["a"]), service("c", &[])]);
        let with = |plan: &Plan, at: usize, replicas: u32, word: &str| {
            let mut plan = plan.clone();
            let spec = Arc::make_mut(&mut plan.services[at]);
            (spec.replicas, spec.command.argv[1]) = (replicas, word.to_owned());
            plan
        };
        let two = with(&with(&old, 0, 2, "a"), 2, 2, "c");
        // From one copy to several, the first copy gets another name.
        let came = reload_plan(&old, &two, unknown);
        assert_eq!(told(&came.difference.restarted), ["a: replicas", "c: replicas"]);
        assert_eq!(names(&came.difference.unchanged), ["b"]);
        assert_eq!(came.scale, [(name("a"), 2), (name("c"), 2)]);
        let more = with(&with(&two, 0, 5, "a"), 2, 3, "other");
        let came = reload_plan(&two, &more, unknown);
        assert_eq!(told(&came.difference.changed), ["a: replicas"]);
        assert_eq!(told(&came.difference.restarted), ["c: command replicas"]);
        assert_eq!((names(&came.restart), came.scale), (vec!["c"], vec![(name("a"), 5), (name("c"), 3)]));
        // The number of copies changes last.
        assert!(came.change.services.iter().all(|spec| spec.replicas == 2));
        assert!(came.remove == (Vec::new(), Vec::new()) && came.put_back.is_empty());
    }

    #[test]
    fn what_the_scaler_has_made_stays_within_the_new_bounds() {
        let scaled = |replicas: u32, min: u32, max: u32| {
            let mut plan = Plan::of("p", vec![service("a", &[]), service("b", &[])]);
            let spec = Arc::make_mut(&mut plan.services[0]);
            spec.scale = Some(ScaleSpec { min, max, on: ScaleOn::Cpu(80) });
            spec.replicas = replicas;
            plan
        };
        // The manifest gives the first number of copies, not the present one.
        let way_to = |old: &Plan, new: &Plan| reload_plan(old, new, unknown);
        assert!(told(&way_to(&scaled(4, 2, 5), &scaled(2, 2, 5)).difference.changed).is_empty());
        let fewer = way_to(&scaled(4, 2, 5), &scaled(2, 2, 3));
        assert_eq!(told(&fewer.difference.changed), ["a: replicas"]);
        assert_eq!((fewer.scale, fewer.restart), (vec![(name("a"), 3)], vec![]));
        let wider = way_to(&scaled(4, 2, 5), &scaled(1, 1, 9));
        assert_eq!((told(&wider.difference.changed), wider.scale), (vec!["a: replicas".to_owned()], vec![]));
        // Copies that stay are restarted for a change, like any other.
        let other = |mut plan: Plan| {
            Arc::make_mut(&mut plan.services[0]).command.argv.push("more".into());
            plan
        };
        for (old, new, to) in [(scaled(1, 1, 5), scaled(2, 2, 5), 2), (scaled(3, 1, 5), scaled(1, 1, 1), 1)] {
            let edited = way_to(&old, &other(new));
            assert_eq!((edited.restart, edited.scale), (vec![name("a")], vec![(name("a"), to)]));
        }
        // Several copies are numbered even without bounds, so they keep their names.
        let mut four = Plan::of("p", vec![service("a", &[]), service("b", &[])]);
        Arc::make_mut(&mut four.services[0]).replicas = 4;
        let bound = way_to(&four, &scaled(2, 2, 6));
        assert_eq!(told(&bound.difference.changed), ["a: replicas"]);
        assert!(bound.remove.0.is_empty() && bound.scale.is_empty() && bound.restart.is_empty());
        // With bounds even a single copy is numbered, so the unnumbered one is replaced.
        let plain = Plan::of("p", vec![service("a", &[]), service("b", &[])]);
        let bound = way_to(&plain, &scaled(1, 1, 5));
        assert_eq!(told(&bound.difference.restarted), ["a: replicas"]);
        assert!(bound.remove.0 == [name("a")] && !bound.put_back.is_empty());
    }

    #[test]
    fn what_a_process_was_made_with_outweighs_the_last_manifest() {
        let plan = Plan::of("p", vec![service("a", &[]), service("b", &[]), service("c", &[])]);
        let mut edited = plan.clone();
        Arc::make_mut(&mut edited.services[1]).command.argv.push("more".into());
        let spawn_fingerprint = |was: &'static Plan| {
            move |service: &Name| vec![was.service(service.as_str()).unwrap().spawn_fingerprint()]
        };
        let was: &'static Plan = Box::leak(Box::new(plan.clone()));
        // The supervisor read the new manifest, and took over processes of the old one.
        let stale = reload_plan(&edited, &edited, spawn_fingerprint(was));
        assert_eq!(told(&stale.difference.restarted), ["b: manifest"]);
        assert_eq!((names(&stale.restart), names(&stale.difference.unchanged)), (vec!["b"], vec!["a", "c"]));
        // Back to the manifest that they were started by: no process needs a restart.
        let back = reload_plan(&edited, &plan, spawn_fingerprint(was));
        assert_eq!(told(&back.difference.changed), ["b: command"]);
        assert!(back.restart.is_empty());
        let spec = was.service("a").unwrap();
        let mut other = ServiceSpec::clone(spec);
        other.env.set.push(("A".into(), "B".into()));
        assert_ne!(spec.spawn_fingerprint(), other.spawn_fingerprint());
        let mut live = ServiceSpec::clone(spec);
        live.restart.max_retries = Some(7);
        assert_eq!(spec.spawn_fingerprint(), live.spawn_fingerprint());
    }

    #[test]
    fn who_comes_by_another_name_comes_when_the_old_one_is_gone() {
        let of = |mut spec: ServiceSpec, project: &str, qualified: bool| {
            spec.project = Some(project.to_owned());
            if qualified {
                spec.name = Name::qualified(project, &spec.name);
            }
            spec
        };
        let mut api = of(service("api", &["db"]), "shop", false);
        let old = Plan::of("p", vec![of(service("db", &[]), "shop", false), api.clone()]);
        api.depends_on[0].on = Name::qualified("shop", &name("db"));
        let dbs = ["shop", "blog"].map(|project| of(service("db", &[]), project, true));
        let new = Plan::of("p", dbs.into_iter().chain([api]).collect());
        let there = reload_plan(&old, &new, unknown);
        let shop = Name::qualified("shop", &name("db"));
        assert_eq!(there.renamed, [(name("db"), shop.clone())]);
        let added = |additions: &[Addition]| -> Vec<String> {
            additions.iter().flat_map(|a| &a.services).map(|spec| spec.name.to_string()).collect()
        };
        assert_eq!(added(&there.add), ["blog/db"]);
        assert_eq!(added(&there.put_back), ["shop/db", "api"]);
        assert_eq!(names(&there.remove.0), ["db", "api"]);
        let back = reload_plan(&new, &old, unknown);
        assert_eq!(back.renamed, [(shop, name("db"))]);
        assert_eq!(
            (added(&back.add), added(&back.put_back)),
            (vec![], vec!["db".to_owned(), "api".to_owned()])
        );
    }

    #[test]
    fn a_service_joins_a_new_group_and_a_group_changes_in_place() {
        let mut old = Plan::of("p", vec![service("a", &[]), service("b", &[])]);
        old.root.children = vec![Child::Group(name("g")), Child::Service(name("b"))];
        old.groups.insert(
            name("g"),
            GroupSpec { children: vec![Child::Service(name("a"))], ..GroupSpec::default() },
        );
        let mut new = old.clone();
        new.root.children = vec![Child::Group(name("g")), Child::Group(name("h"))];
        new.groups.get_mut("g").unwrap().intensity = Some(2);
        new.groups.insert(
            name("h"),
            GroupSpec { children: vec![Child::Service(name("b"))], ..GroupSpec::default() },
        );
        let way = reload_plan(&old, &new, unknown);
        assert_eq!(told(&way.difference.restarted), ["b: members"]);
        assert_eq!(names(&way.difference.groups), ["g"]);
        assert_eq!(names(&way.difference.unchanged), ["a"]);
        assert!(way.add.is_empty());
        assert_eq!(way.put_back[0].groups.len(), 1);
        assert_eq!(names(&way.remove.0), ["b"]);
    }
}
