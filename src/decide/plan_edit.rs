//! Plan edits: what may be added, changed, scaled and removed while a tree runs, and the plan
//! that results.
//!
//! Works on plans alone. Deliberately absent: when something is down and may be removed, which
//! [`operation`](super::operation) decides, and the state machines of what is new, which the
//! supervisors make when they are told of their [`Branch`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::graph::Graph;
use super::resolve::not_found;
use super::tree_state::TreeState;
use crate::model::plan::PlanChange;
use crate::model::{
    Addition, Child, Denial, DenialCode, GroupSpec, InstanceId, Name, Plan, Selector, ServiceSpec, spec,
};

/// Children of one supervisor that are added or removed, as the supervisors above it are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// The groups from the supervisor that is told down to the one meant; empty: itself.
    pub path: Vec<Name>,
    /// The children that are added or removed.
    pub children: Vec<Child>,
    /// All instances among these children and below them.
    pub instances: Vec<InstanceId>,
}

/// What a command removes from the tree. The services are kept as they were then: one that is
/// added later under the same name is not meant.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Removal {
    pub(super) services: BTreeMap<Name, Arc<ServiceSpec>>,
    pub(super) groups: BTreeSet<Name>,
}

/// The plan with an addition, and its graph. `Err`: why the addition is denied.
pub(super) fn with_graph(plan: &Plan, addition: &Addition) -> Result<(Plan, Graph), Denial> {
    let invalid = |reason: String| Denial { code: DenialCode::Invalid, reason, hint: None };
    if let Some(into) = &addition.into
        && !plan.groups.contains_key(into)
    {
        return Err(not_found("group", into.as_str(), plan.groups.keys().map(Name::as_str)));
    }
    if addition.services.is_empty() && addition.groups.is_empty() {
        return Err(invalid("there is nothing to add".to_owned()));
    }
    let mut taken: HashSet<String> = printed(&plan.services, plan.groups.keys()).collect();
    for name in printed(&addition.services, addition.groups.keys()) {
        if !taken.insert(name.clone()) {
            return Err(Denial {
                code: DenialCode::Exists,
                reason: format!("{name} already exists in the tree"),
                hint: Some(format!("\"{}\" removes it from the tree", removes(plan, &name))),
            });
        }
    }
    every_one_has_a_place(addition).map_err(invalid)?;

    let mut extended = plan.clone();
    extended.services.extend(addition.services.iter().cloned());
    extended.groups.extend(addition.groups.iter().map(|(name, group)| (name.clone(), group.clone())));
    let parent = match &addition.into {
        Some(into) => extended.groups.get_mut(into),
        None => Some(&mut extended.root),
    };
    if let Some(parent) = parent {
        parent.children.extend(addition.children.iter().cloned());
    }
    let graph = Graph::new(&extended.services).map_err(|cycles| invalid(in_a_circle(&cycles)))?;
    for spec in &addition.services {
        depends_on_what_is_there(spec, &graph)?;
    }
    Ok((extended, graph))
}

/// The plan with an addition. `Err`: why the addition is denied.
pub fn with(plan: &Plan, addition: &Addition) -> Result<Plan, Denial> {
    with_graph(plan, addition).map(|(plan, _)| plan)
}

/// The plan with a change in place, and its graph. `Err`: why the change is denied.
pub(super) fn reconfigured(plan: &Plan, change: &PlanChange) -> Result<(Plan, Graph), Denial> {
    let invalid = |reason: String| Denial { code: DenialCode::Invalid, reason, hint: None };
    let mut changed = plan.clone();
    for spec in &change.services {
        let Some(old) = changed.services.iter_mut().find(|old| old.name == spec.name) else {
            let names = plan.services.iter().map(|s| s.name.as_str());
            return Err(not_found("service", spec.name.as_str(), names));
        };
        let spec = match (old.scale, spec.scale) {
            // The scaler decides the number of copies, and may have changed it meanwhile.
            (Some(_), Some(_)) if old.replicas != spec.replicas => {
                &Arc::new(ServiceSpec { replicas: old.replicas, ..ServiceSpec::clone(spec) })
            }
            _ => spec,
        };
        if old.instances().ne(spec.instances()) || old.kind != spec.kind {
            return Err(invalid(format!(
                "the instances and the kind of {} can't be changed in place",
                spec.name
            )));
        }
        *old = Arc::clone(spec);
    }
    for (name, group) in &change.groups {
        let Some(old) = changed.groups.get_mut(name) else {
            return Err(not_found("group", name.as_str(), plan.groups.keys().map(Name::as_str)));
        };
        *old = GroupSpec { children: std::mem::take(&mut old.children), ..group.clone() };
    }
    if let Some(root) = &change.root {
        let children = std::mem::take(&mut changed.root.children);
        changed.root = GroupSpec { children, ..root.clone() };
    }
    if let Some(stop) = &change.stop {
        changed.stop.clone_from(stop);
    }
    let graph = Graph::new(&changed.services).map_err(|cycles| invalid(in_a_circle(&cycles)))?;
    for spec in &change.services {
        depends_on_what_is_there(spec, &graph)?;
    }
    Ok((changed, graph))
}

/// The plan with another number of copies of a service. `Err`: why that is denied.
pub(super) fn scaled(plan: &Plan, service: &Name, replicas: u32) -> Result<Plan, Denial> {
    let mut scaled = plan.clone();
    let Some(at) = scaled.services.iter().position(|spec| spec.name == *service) else {
        return Err(not_found("service", service.as_str(), plan.services.iter().map(|s| s.name.as_str())));
    };
    let spec = &mut scaled.services[at];
    let (_, came) = spec::scaled(service, spec.replicas, replicas, spec.naming());
    let mut others = plan.services.clone();
    others.remove(at);
    let taken: HashSet<String> = printed(&others, plan.groups.keys()).collect();
    if let Some(id) = came.iter().find(|id| taken.contains(&id.to_string())) {
        let reason = format!("{id} already exists in the tree");
        return Err(Denial { code: DenialCode::Exists, reason, hint: None });
    }
    *spec = Arc::new(ServiceSpec { replicas: replicas.max(1), ..ServiceSpec::clone(spec) });
    Ok(scaled)
}

fn in_a_circle(cycles: &[Vec<Name>]) -> String {
    let shown: Vec<String> =
        cycles.iter().map(|cycle| cycle.iter().map(Name::as_str).collect::<Vec<_>>().join(" -> ")).collect();
    format!("dependency cycle: {}", shown.join("; "))
}

fn depends_on_what_is_there(spec: &ServiceSpec, graph: &Graph) -> Result<(), Denial> {
    for dependency in &spec.depends_on {
        if graph.service(&dependency.on).is_none() {
            let names = graph.services().iter().map(|s| s.name.as_str());
            let Denial { hint, .. } = not_found("service", dependency.on.as_str(), names);
            let reason = format!("{} depends on {}, which is not in the tree", spec.name, dependency.on);
            return Err(Denial { code: DenialCode::NotFound, reason, hint });
        }
    }
    Ok(())
}

/// The command line that removes a name from the tree, for people.
pub fn removes(plan: &Plan, name: &str) -> String {
    if plan.groups.contains_key(name) {
        return format!("regrow remove --group {name}");
    }
    let is_of = |spec: &&Arc<ServiceSpec>| spec.instances().any(|id| id.to_string() == name);
    let service = plan.services.iter().find(is_of).map_or(name, |spec| spec.name.as_str());
    format!("regrow remove {service}")
}

/// The printed names of services, their instances and groups, each once.
pub fn printed<'a>(
    services: &'a [Arc<ServiceSpec>],
    groups: impl IntoIterator<Item = &'a Name>,
) -> impl Iterator<Item = String> {
    let of = |spec: &Arc<ServiceSpec>| -> BTreeSet<String> {
        // The copies up to the largest number have their names reserved.
        let instances = spec::copies(&spec.name, spec.most_copies(), spec.naming()).map(|id| id.to_string());
        instances.chain([spec.name.to_string()]).collect()
    };
    services.iter().flat_map(of).chain(groups.into_iter().map(ToString::to_string))
}

/// Checks that each new service and group is a child of exactly one group of the addition, or of
/// the group that it is added to.
fn every_one_has_a_place(addition: &Addition) -> Result<(), String> {
    let mut places: BTreeMap<&Child, usize> = BTreeMap::new();
    let groups = addition.groups.values().map(|group| &group.children);
    for child in groups.chain([&addition.children]).flatten() {
        *places.entry(child).or_default() += 1;
    }
    let services = addition.services.iter().map(|spec| Child::Service(spec.name.clone()));
    for child in services.chain(addition.groups.keys().map(|name| Child::Group(name.clone()))) {
        match places.remove(&child) {
            Some(1) => {}
            Some(_) => return Err(format!("{} is a member of more than one group", child.name())),
            None => return Err(format!("{} is a member of no group", child.name())),
        }
    }
    if let Some(child) = places.into_keys().next() {
        return Err(format!("{} is not declared in the addition", child.name()));
    }
    // Groups that are children of each other can't be reached from the top of the addition.
    let mut reached: Vec<&Child> = addition.children.iter().collect();
    let mut count = 0;
    while let Some(child) = reached.pop() {
        if let Child::Group(name) = child {
            count += 1;
            reached.extend(addition.groups.get(name).into_iter().flat_map(|group| &group.children));
        }
    }
    if count == addition.groups.len() { Ok(()) } else { Err("the groups contain each other".to_owned()) }
}

/// What a selector removes from the tree. `Err`: why the removal is denied.
pub(super) fn removal(tree_state: &TreeState, select: &Selector) -> Result<Removal, Denial> {
    let plan = tree_state.plan();
    let mut gone = Removal::default();
    for id in super::resolve::resolve(tree_state, select)? {
        if let Some(spec) = tree_state.graph().service(id.service()) {
            gone.services.insert(spec.name.clone(), Arc::clone(spec));
        }
    }
    let is_service = |text: &String| {
        let named = |spec: &Arc<ServiceSpec>| {
            spec.name.as_str() == text
                || spec.name.short() == text
                || text.strip_prefix(&plan.project).and_then(|rest| rest.strip_prefix('/'))
                    == Some(spec.name.as_str())
        };
        plan.services.iter().any(named)
    };
    if let Some(text) = select.services.iter().find(|text| !is_service(text)) {
        return Err(Denial {
            code: DenialCode::Invalid,
            reason: format!("{text} is one instance of a service: only a whole service can be removed"),
            hint: Some(format!("\"regrow stop {text}\" stops this instance")),
        });
    }
    let mut groups: Vec<Name> = if select.all {
        plan.groups.keys().cloned().collect()
    } else {
        let named = select.groups.iter().filter_map(|text| super::resolve::group_named(plan, text).ok());
        named.cloned().collect()
    };
    while let Some(name) = groups.pop() {
        for child in plan.groups.get(&name).into_iter().flat_map(|group| &group.children) {
            if let Child::Group(inner) = child {
                groups.push(inner.clone());
            }
        }
        gone.groups.insert(name);
    }
    match gone.refusal(tree_state) {
        Some(denial) => Err(denial),
        None => Ok(gone),
    }
}

impl Removal {
    /// Whether the removal means this very service, not a later one of the same name.
    pub(super) fn has(&self, spec: &Arc<ServiceSpec>) -> bool {
        self.services.get(&spec.name).is_some_and(|meant| Arc::ptr_eq(meant, spec))
    }

    /// Whether the removal takes this child of a supervisor.
    fn takes(&self, tree_state: &TreeState, child: &Child) -> bool {
        match child {
            Child::Service(name) => tree_state.graph().service(name).is_some_and(|spec| self.has(spec)),
            Child::Group(name) => self.groups.contains(name),
        }
    }

    /// The denial of the removal, if something that stays prevents it.
    pub(super) fn refusal(&self, tree_state: &TreeState) -> Option<Denial> {
        let graph = tree_state.graph();
        for service in graph.services().iter().filter(|spec| self.has(spec)).map(|spec| &spec.name) {
            let stays = graph.dependents(service).find(|other| !self.has(other));
            if let Some(dependent) = stays {
                return Some(Denial {
                    code: DenialCode::HasDependents,
                    reason: format!("{} depends on {service}", dependent.name),
                    hint: Some(format!("remove {} too, or remove it first", dependent.name)),
                });
            }
        }
        for name in &self.groups {
            let mut members =
                tree_state.plan().groups.get(name).into_iter().flat_map(|group| &group.children);
            if let Some(child) = members.find(|child| !self.takes(tree_state, child)) {
                return Some(Denial {
                    code: DenialCode::HasDependents,
                    reason: format!("{} was added to group {name} meanwhile", child.name()),
                    hint: None,
                });
            }
        }
        None
    }
}

/// The plan without the removed services and groups.
pub fn without(plan: &Plan, services: &[Name], groups: &[Name]) -> Plan {
    let gone: HashSet<&Name> = services.iter().chain(groups).collect();
    let mut reduced = plan.clone();
    reduced.services.retain(|spec| !gone.contains(&spec.name));
    reduced.groups.retain(|name, _| !gone.contains(name));
    for group in reduced.groups.values_mut().chain([&mut reduced.root]) {
        group.children.retain(|child| !gone.contains(child.name()));
    }
    reduced
}

impl Branch {
    /// The branch of copies that an existing service gains or loses.
    pub(super) fn of_copies(tree_state: &TreeState, service: &Name, instances: Vec<InstanceId>) -> Branch {
        let group = tree_state.plan().parent_of(service.as_str());
        Branch { path: tree_state.path_to(group), children: vec![Child::Service(service.clone())], instances }
    }

    /// The branch that an addition puts into the tree.
    pub(super) fn of_addition(tree_state: &TreeState, addition: &Addition) -> Branch {
        Branch {
            path: tree_state.path_to(addition.into.as_ref()),
            children: addition.children.clone(),
            instances: addition.services.iter().flat_map(|spec| spec.instances()).collect(),
        }
    }

    /// The branches that a removal takes out of the tree, as far as they still exist: one for each
    /// supervisor that stays and loses children.
    pub(super) fn of_removal(tree_state: &TreeState, removal: &Removal) -> Vec<Branch> {
        let plan = tree_state.plan();
        let stays = plan.groups.iter().filter(|(name, _)| !removal.groups.contains(*name));
        let stays = stays.map(|(name, group)| (Some(name), group)).chain([(None, &plan.root)]);
        let mut branches = Vec::new();
        for (name, group) in stays {
            let goes = |child: &&Child| removal.takes(tree_state, child);
            let children: Vec<Child> = group.children.iter().filter(goes).cloned().collect();
            let mut services: Vec<Name> = Vec::new();
            for child in &children {
                match child {
                    Child::Service(name) => services.push(name.clone()),
                    Child::Group(name) => services.extend(plan.services_below(name.as_str())),
                }
            }
            if !children.is_empty() {
                let ids =
                    services.iter().flat_map(|name| tree_state.instances_of(name)).map(|e| e.id.clone());
                branches.push(Branch { path: tree_state.path_to(name), children, instances: ids.collect() });
            }
        }
        branches
    }

    /// The child group on the way to the branch, and what that group is told; `Err`: the branch
    /// belongs to the supervisor itself.
    pub fn descend(mut self) -> Result<(Name, Branch), Branch> {
        if self.path.is_empty() {
            return Err(self);
        }
        let next = self.path.remove(0);
        Ok((next, self))
    }
}
