//! What the declarations of a manifest mean together: every name resolves, each service and group
//! has one place in the tree, there is no cycle, and no port or log file is asked for twice.
//!
//! May look at files of the machine to warn about log files; nothing is written or started.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::decode::{Declared, Service};
use super::fault::Fault;
use super::reader::Collector;
use crate::decide::plan_edit;
use crate::model::nearest::did_you_mean;
use crate::model::{Condition, Dependency, Kind, Name, Plan, ServiceSpec};

mod log_files;
mod ports;
mod tree;
mod warnings;

pub(super) use log_files::useless_log_files;
pub(super) use ports::{address, url};
pub(super) use tree::{Tree, cycles, tree};
pub(super) use warnings::{idle_keys, unreachable_limits};

use log_files::log_files;
use ports::ports;

/// Services that are not declared in the manifest itself, and that its services may depend on.
#[derive(Debug, Clone, Default)]
pub struct ExternalNames {
    /// The project that the manifest belongs to, where that is known already.
    pub(super) project: Option<String>,
    kinds: HashMap<String, Kind>,
    /// The services by their short names; `None` where several share one.
    shorts: HashMap<String, Option<Name>>,
}

impl ExternalNames {
    /// The services of other projects by `project/name`, for a manifest of this project.
    pub(super) fn of_projects(project: &str, kinds: HashMap<String, Kind>) -> ExternalNames {
        ExternalNames { project: Some(project.to_owned()), kinds, shorts: HashMap::new() }
    }

    /// The services of a tree that something is added to.
    pub(super) fn there(plan: &Plan) -> ExternalNames {
        let mut others = ExternalNames::default();
        for spec in &plan.services {
            others.kinds.insert(spec.name.to_string(), spec.kind);
            let one = others.shorts.entry(spec.name.short().to_owned());
            one.and_modify(|one| *one = None).or_insert_with(|| Some(spec.name.clone()));
        }
        others
    }

    /// The external service that a word means, by its full or its short name.
    fn meant(&self, word: &str) -> Option<Name> {
        match self.kinds.contains_key(word) {
            true => Name::try_from(word.to_owned()).ok(),
            false => self.shorts.get(word).cloned().flatten(),
        }
    }

    fn kind(&self, name: &Name) -> Option<Kind> {
        self.kinds.get(name.as_str()).copied()
    }

    /// The word without the name of its own project.
    fn own<'a>(&self, word: &'a str) -> &'a str {
        let own = self.project.as_deref().and_then(|project| word.strip_prefix(project)?.strip_prefix('/'));
        own.unwrap_or(word)
    }
}

/// The dependencies of a service. One without a condition waits for what is natural to the other's
/// kind: a service is to be ready, a task completed.
pub(super) fn dependencies(
    service: &Service,
    kinds: &HashMap<&str, Kind>,
    others: &ExternalNames,
) -> Vec<Dependency> {
    let mut seen = HashSet::new();
    service
        .depends_on
        .iter()
        .filter_map(|depends| {
            let word = others.own(&depends.on.value);
            let on = match kinds.contains_key(word) {
                true => Name::new(word).ok()?,
                false => others.meant(word)?,
            };
            let kind = kinds.get(on.as_str()).copied().or_else(|| others.kind(&on));
            let natural = || match kind.unwrap_or(Kind::Service) {
                Kind::Service => Condition::Ready,
                Kind::Task => Condition::Completed,
            };
            let condition = depends.condition.unwrap_or_else(natural);
            seen.insert(on.clone()).then_some(Dependency { on, condition, required: depends.required })
        })
        .collect()
}

/// Notes the faults between services: unknown dependencies, clashing names, ports and log files.
pub(super) fn services(
    declared: &Declared,
    services: &[ServiceSpec],
    there: &[Arc<ServiceSpec>],
    others: &ExternalNames,
    collector: &mut Collector,
) {
    let known: HashMap<&str, &Service> =
        declared.services.iter().map(|s| (s.name.value.as_str(), s)).collect();
    let groups: HashSet<&str> = declared.groups.iter().map(|g| g.name.value.as_str()).collect();
    if declared.services.is_empty() && declared.groups.is_empty() && collector.faults.is_empty() {
        collector.fault_with(
            0..0,
            "the manifest declares no service",
            "nothing to supervise",
            "add a [service.NAME] with a command, or let \"regrow init\" write an example",
        );
    }
    for service in &declared.services {
        let name = service.name.value.as_str();
        let mut seen: HashMap<&str, Range<usize>> = HashMap::new();
        for depends in &service.depends_on {
            let on = others.own(depends.on.value.as_str());
            if !known.contains_key(on) && others.meant(on).is_none() {
                let message = format!("service {name:?} depends on {on:?}, which is not declared");
                let hint = if groups.contains(on) {
                    format!("{on:?} is a group: depend on its members")
                } else if on.contains('/') && others.kinds.is_empty() {
                    "services of other projects are known only to a daemon whose folder has both manifests"
                        .to_owned()
                } else if let Some(None) = others.shorts.get(on) {
                    format!("several services are called {on:?}: write PROJECT/{on}")
                } else {
                    let names = declared.services.iter().map(|s| s.name.value.as_str());
                    known_names(on, names.chain(others.kinds.keys().map(String::as_str)))
                };
                collector.fault_with(depends.on.span.clone(), message, "no such service", hint);
            }
            if let Some(first) = seen.insert(on, depends.on.span.clone()) {
                also(
                    collector,
                    depends.on.span.clone(),
                    format!("service {name:?} depends on {on:?} twice"),
                    "named again here",
                    first,
                    "first named here",
                );
            }
        }
        if service.is_numbered() {
            for index in 1..=service.most_copies() {
                let instance = format!("{name}.{index}");
                if let Some(other) = known.get(instance.as_str()) {
                    also(
                        collector,
                        other.name.span.clone(),
                        format!("{instance:?} is also the name of instance {index} of {name:?}"),
                        "name already taken",
                        service.name.span.clone(),
                        "its instances are numbered",
                    );
                }
            }
        }
    }
    ports(declared, services, there, collector);
    log_files(declared, services, there, collector);
}

/// Notes the faults of an addition beside the tree that runs already.
pub(super) fn beside(declared: &Declared, there: &Plan, collector: &mut Collector) {
    if let Some(span) = &declared.project.span {
        collector.fault_with(
            span.clone(),
            "a manifest that is added to a running tree can't have [project]",
            "not allowed here",
            "remove it: only services and groups can be added; write \"env_file\" in each service instead",
        );
    }
    let taken: HashSet<String> = plan_edit::printed(&there.services, there.groups.keys()).collect();
    let copies = |service: &Service| if service.is_numbered() { service.most_copies() } else { 0 };
    let services = declared.services.iter().map(|s| (&s.name.value, &s.name.span, copies(s)));
    let groups = declared.groups.iter().map(|g| (&g.name.value, &g.name.span, 0));
    for (name, span, copies) in services.chain(groups) {
        let copies = (1..=copies).map(|n| format!("{name}.{n}"));
        if let Some(clash) = std::iter::once(name.to_string()).chain(copies).find(|n| taken.contains(n)) {
            let message = format!("{clash:?} already exists in the running tree");
            let command = plan_edit::removes(there, &clash);
            let hint = format!("choose another name, or remove it first: \"{command}\"");
            collector.fault_with(span.clone(), message, "name already taken", hint);
        }
    }
}

fn is_there(plan: &Plan, name: &str) -> bool {
    plan.service(name).is_some() || plan.groups.contains_key(name)
}

fn also(
    collector: &mut Collector,
    span: Range<usize>,
    message: String,
    label: impl Into<String>,
    other: Range<usize>,
    other_label: &str,
) {
    collector.faults.push(Fault {
        source: Arc::clone(&collector.source),
        span,
        message,
        label: label.into(),
        also: Some((other, other_label.to_owned())),
        hint: Some("change one of the two".to_owned()),
    });
}

/// A hint for an unknown name: the one that was probably meant, or those that exist.
fn known_names<'a>(word: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    did_you_mean(word, known.clone()).unwrap_or_else(|| {
        let mut names: Vec<&str> = Vec::new();
        for name in known {
            if !names.contains(&name) {
                names.push(name);
            }
            if names.len() > 8 {
                names[8] = "...";
                break;
            }
        }
        format!("the declared names are {}", names.join(", "))
    })
}
