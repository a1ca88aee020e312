//! The tree of a manifest: each service and group has one place, and no circle of groups or of
//! dependencies is left.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use crate::manifest::decode::{Declared, Group, Service, Supervision};
use crate::manifest::reader::{At, Collector};
use crate::manifest::validate::{also, is_there, known_names};
use crate::model::{Child, GroupSpec, Name, Plan};

/// The tree of groups: the root, and the groups by name.
pub(in crate::manifest) struct Tree {
    pub(in crate::manifest) root: GroupSpec,
    pub(in crate::manifest) groups: BTreeMap<Name, GroupSpec>,
}

/// Gives every service and group its place in the tree, and notes what has none or several.
pub(in crate::manifest) fn tree(
    declared: &Declared,
    there: Option<&Plan>,
    collector: &mut Collector,
) -> Tree {
    let mut places = Places {
        services: declared.services.iter().map(|s| (s.name.value.as_str(), s)).collect(),
        groups: declared.groups.iter().enumerate().map(|(at, g)| (g.name.value.as_str(), at)).collect(),
        parent: HashMap::new(),
        declared,
        there,
    };
    places.check_names_of_groups(collector);
    let mut groups: BTreeMap<Name, GroupSpec> = BTreeMap::new();
    for (at, group) in declared.groups.iter().enumerate() {
        let children = places.children_of(at, group, collector);
        groups.insert(group.name.value.clone(), spec(children, &group.supervision, group.significant));
    }
    // A group with a service's name was reported above; it can't nest anything.
    let nesting = places.parent.iter().filter(|(name, _)| !places.services.contains_key(*name));
    nested_in_itself(declared, &nesting.map(|(name, (at, _))| (*name, *at)).collect(), collector);
    Tree { root: spec(places.top(), &declared.project.supervision, false), groups }
}

/// Where the services and groups of a manifest stand.
struct Places<'a> {
    declared: &'a Declared,
    /// The running tree, where the manifest is to be added to one.
    there: Option<&'a Plan>,
    services: HashMap<&'a str, &'a Service>,
    groups: HashMap<&'a str, usize>,
    /// The group that each one is a member of so far, and where it is named there.
    parent: HashMap<&'a str, (usize, Range<usize>)>,
}

impl<'a> Places<'a> {
    fn check_names_of_groups(&self, collector: &mut Collector) {
        for group in &self.declared.groups {
            if group.name.value.as_str() == "root" {
                let hint = "choose another name: \"root\" is the root group, which [project] configures";
                collector.fault_with(
                    group.name.span.clone(),
                    "no group can be named \"root\"",
                    "reserved name",
                    hint,
                );
            }
            if let Some(service) = self.services.get(group.name.value.as_str()) {
                also(
                    collector,
                    group.name.span.clone(),
                    format!("{:?} is the name of both a service and a group", group.name.value.as_str()),
                    "name already taken",
                    service.name.span.clone(),
                    "the service",
                );
            }
        }
    }

    /// The members of the group at this place, each of which gets its place there.
    fn children_of(&mut self, at: usize, group: &'a Group, collector: &mut Collector) -> Vec<Child> {
        let mut children = Vec::new();
        for member in &group.members {
            let text = member.value.as_str();
            if let Some((other, first)) = self.parent.get(text) {
                let one = self.declared.groups[*other].name.value.as_str();
                let two = group.name.value.as_str();
                let message = match one == two {
                    true => format!("{text:?} is a member of {one:?} twice"),
                    false => format!("{text:?} is a member of {one:?} and of {two:?}"),
                };
                let (here, first) = (member.span.clone(), first.clone());
                also(collector, here, message, "named again here", first, "first named here");
                continue;
            }
            if let Some(child) = self.child(text) {
                self.parent.insert(text, (at, member.span.clone()));
                children.push(child);
            } else {
                self.unknown_member(group, member, collector);
            }
        }
        children
    }

    fn child(&self, name: &str) -> Option<Child> {
        match (self.services.get(name), self.groups.get(name)) {
            (Some(service), _) => Some(Child::Service(service.name.value.clone())),
            (None, Some(&at)) => Some(Child::Group(self.declared.groups[at].name.value.clone())),
            (None, None) => None,
        }
    }

    fn unknown_member(&self, group: &Group, member: &At<String>, collector: &mut Collector) {
        let text = member.value.as_str();
        if self.there.is_some_and(|plan| is_there(plan, text)) {
            collector.fault_with(
                member.span.clone(),
                format!("{text:?} is already in the running tree"),
                "not declared in this manifest",
                "remove it from the members: what runs is not moved; --group adds to a group of the running tree",
            );
            return;
        }
        let message = format!("group {:?} names {text:?}, which is not declared", group.name.value.as_str());
        let names = self.declared.services.iter().map(|s| s.name.value.as_str());
        let names = names.chain(self.declared.groups.iter().map(|g| g.name.value.as_str()));
        collector.fault_with(
            member.span.clone(),
            message,
            "no such service or group",
            known_names(text, names),
        );
    }

    /// What is a member of no group, in the order of the text.
    fn top(&self) -> Vec<Child> {
        let is_top = |name: &Name| !self.parent.contains_key(name.as_str());
        let services = self.declared.services.iter().map(|s| (&s.name, Child::Service(s.name.value.clone())));
        let groups = self.declared.groups.iter().map(|g| (&g.name, Child::Group(g.name.value.clone())));
        let top = services.chain(groups).filter(|(name, _)| is_top(&name.value));
        let mut top: Vec<(usize, Child)> = top.map(|(name, child)| (name.span.start, child)).collect();
        top.sort_by_key(|(at, _)| *at);
        top.into_iter().map(|(_, child)| child).collect()
    }
}

fn spec(children: Vec<Child>, supervision: &Supervision, significant: bool) -> GroupSpec {
    let default = GroupSpec::default();
    GroupSpec {
        children,
        strategy: supervision.strategy.unwrap_or(default.strategy),
        intensity: supervision.intensity,
        period: supervision.period.unwrap_or(default.period),
        on_give_up: supervision.on_give_up.unwrap_or(default.on_give_up),
        auto_shutdown: supervision.auto_shutdown.unwrap_or(default.auto_shutdown),
        significant,
    }
}

fn nested_in_itself(declared: &Declared, parent: &HashMap<&str, usize>, collector: &mut Collector) {
    let mut told: HashSet<usize> = HashSet::new();
    for first in 0..declared.groups.len() {
        let mut path = vec![first];
        let mut at = first;
        while let Some(above) = parent.get(declared.groups[at].name.value.as_str()) {
            at = *above;
            if at == first || path.contains(&at) {
                break;
            }
            path.push(at);
        }
        let closed = at == first && parent.contains_key(declared.groups[first].name.value.as_str());
        if !closed || path.iter().any(|p| told.contains(p)) {
            continue;
        }
        told.extend(&path);
        path.push(first);
        path.reverse();
        let words: Vec<&str> = path.iter().map(|p| declared.groups[*p].name.value.as_str()).collect();
        collector.fault_with(
            declared.groups[first].name.span.clone(),
            format!("a group can't contain itself: {}", words.join(" -> ")),
            "part of the cycle",
            "remove it from one of these groups",
        );
    }
}

/// Notes the cycles of dependencies, each at the first service of its path.
pub(in crate::manifest) fn cycles(declared: &Declared, cycles: &[Vec<Name>], collector: &mut Collector) {
    for cycle in cycles {
        let words: Vec<&str> = cycle.iter().map(Name::as_str).collect();
        let from = declared.services.iter().find(|s| s.name.value.as_str() == words[0]);
        let Some(service) = from else { continue };
        let to = service.depends_on.iter().find(|d| words.get(1).is_some_and(|next| d.on.value == *next));
        let span = to.map_or(service.name.span.clone(), |d| d.on.span.clone());
        let message = if words.len() == 2 {
            format!("service {:?} depends on itself: {}", words[0], words.join(" -> "))
        } else {
            format!("dependency cycle: {}", words.join(" -> "))
        };
        collector.fault_with(span, message, "part of the cycle", "remove one of these dependencies");
    }
}
