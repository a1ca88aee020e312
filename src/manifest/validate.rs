//! What the declarations of a manifest mean together: every name resolves, each service and group
//! has one place in the tree, there is no cycle, and no port or log file is asked for twice.
//!
//! May look at files of the machine to warn about log files; nothing is written or started.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::decode::{Declared, Service, Supervision, Target};
use super::fault::Fault;
use super::reader::Collector;
use crate::decide::plan_edit;
use crate::model::nearest::did_you_mean;
use crate::model::plan::AutoShutdown;
use crate::model::spec::put_aside_of;
use crate::model::{
    CheckTarget, Child, Condition, Dependency, GroupSpec, Kind, Name, Plan, Policy, ReadyTarget, ServiceSpec,
};

/// The tree of groups: the root, and the groups by name.
pub(super) struct Tree {
    pub(super) root: GroupSpec,
    pub(super) groups: BTreeMap<Name, GroupSpec>,
}

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

/// The host and port that a service listens on, as its readiness check says.
fn listens_on(spec: &ServiceSpec) -> Option<(String, u16)> {
    let ReadyTarget::Check(check) = &spec.ready.as_ref()?.target else {
        return None;
    };
    let (host, port) = match &check.target {
        CheckTarget::Tcp(text) => address(text),
        CheckTarget::Http(url) => self::url(url),
        CheckTarget::Exec(_) => return None,
    }
    .ok()?;
    Some((local(&host), port))
}

/// Notes the ports that two services say they listen on.
fn ports(
    declared: &Declared,
    services: &[ServiceSpec],
    there: &[Arc<ServiceSpec>],
    collector: &mut Collector,
) {
    let mut asked: HashMap<(String, u16), Vec<usize>> = HashMap::new();
    for (at, spec) in services.iter().enumerate() {
        let Some((host, port)) = listens_on(spec) else { continue };
        let asking = asked.entry((host.clone(), port)).or_default();
        let first = asking.iter().find(|other| together(spec, &services[**other]));
        let span = |at: usize| {
            let declared = declared.services.iter().find(|s| s.name.value == services[at].name)?;
            match &declared.ready.as_ref()?.target {
                Target::Tcp(at) | Target::Http(at) => Some(at.span.clone()),
                Target::Exec(_) | Target::Log(_) | Target::After(_) => None,
            }
        };
        if let (Some(&first), Some(here)) = (first, span(at)) {
            also(
                collector,
                here,
                format!(
                    "port {port} is used by two services: {:?} and {:?}",
                    services[first].name, spec.name
                ),
                format!("also used by {}", spec.name),
                span(first).unwrap_or(0..0),
                "first used here",
            );
        }
        asking.push(at);
        let beside = |other: &&Arc<ServiceSpec>| {
            together(spec, other) && listens_on(other) == Some((host.clone(), port))
        };
        if let (Some(other), Some(here)) = (there.iter().find(beside), span(at)) {
            let message = format!(
                "port {port} is used by two services: {:?}, which is in the running tree, and {:?}",
                other.name, spec.name
            );
            collector.fault(here, message, format!("also used by {}", spec.name));
        }
    }
}

/// Notes the files that two instances would write their output to, each over the other's.
fn log_files(
    declared: &Declared,
    services: &[ServiceSpec],
    there: &[Arc<ServiceSpec>],
    collector: &mut Collector,
) {
    let files = |spec: &ServiceSpec| -> Vec<PathBuf> {
        let log = spec.log.clone().unwrap_or_default();
        spec.instances().filter_map(|instance| log.file_of(&instance)).map(|file| plain(&file)).collect()
    };
    // A rotated file such as `web.log.1` must not be another's log file either.
    let mut taken: HashMap<PathBuf, (&Name, Option<Range<usize>>)> = HashMap::new();
    let mut put_aside: HashMap<PathBuf, PathBuf> = HashMap::new();
    let mut take = |spec, span: Option<&Range<usize>>, files: Vec<PathBuf>| {
        let clash = files.iter().find_map(|file| {
            let names = [Some(file.as_path()), put_aside_of(file), put_aside.get(file).map(PathBuf::as_path)];
            let found = names.into_iter().flatten().find_map(|name| taken.get(name))?;
            Some((file.clone(), found.clone()))
        });
        if clash.is_none() {
            for file in files {
                if let Some(of) = put_aside_of(&file) {
                    put_aside.insert(of.to_owned(), file.clone());
                }
                taken.insert(file, (spec, span.cloned()));
            }
        }
        clash
    };
    for spec in there {
        take(&spec.name, None, files(spec));
    }
    for (spec, declared) in services.iter().zip(&declared.services) {
        let Some(span) = declared.log.as_ref().and_then(|log| Some(log.file.as_ref()?.span.clone())) else {
            continue;
        };
        let Some((file, (first, at))) = take(&spec.name, Some(&span), files(spec)) else {
            continue;
        };
        let (file, first, second) = (file.display(), first.as_str(), spec.name.as_str());
        let message = format!("log file {file} is used by two services: {first:?} and {second:?}");
        let label = format!("also used by {}", spec.name);
        match at {
            Some(at) => also(collector, span, message, label, at, "first used here"),
            None => collector.fault(span, message, label),
        }
    }
}

/// A path without `..`, for comparing. Symbolic links are not followed; they are seen when the file
/// is opened.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

/// Whether two services can run at the same time. They can't if both have profiles and share none.
fn together(a: &ServiceSpec, b: &ServiceSpec) -> bool {
    a.profiles.is_empty() || b.profiles.is_empty() || a.profiles.iter().any(|p| b.profiles.contains(p))
}

/// The host in one spelling, so that all names of this machine's loopback are the same.
fn local(host: &str) -> String {
    match host {
        "localhost" | "127.0.0.1" | "0.0.0.0" | "[::1]" | "[::]" => "localhost".to_owned(),
        other => other.to_ascii_lowercase(),
    }
}

/// The host and port of `HOST:PORT`. `Err` says what would help.
pub(super) fn address(text: &str) -> Result<(String, u16), String> {
    let help = || "write it as HOST:PORT, such as \"127.0.0.1:6379\"".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(help)?;
    let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if host.is_empty() || bare_v6 || host.contains(char::is_whitespace) || host.contains('/') {
        return Err(help());
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok((host.to_owned(), port)),
        _ => Err("write a port from 1 to 65535".to_owned()),
    }
}

/// The host and port of an `http://` URL. `Err` says what would help.
pub(super) fn url(text: &str) -> Result<(String, u16), String> {
    let help = || "write it as \"http://127.0.0.1:5000/health\"".to_owned();
    if text.starts_with("https://") {
        return Err(
            "an http check does not support https; write exec = [\"curl\", \"-f\", URL] instead".to_owned()
        );
    }
    let rest = text.strip_prefix("http://").ok_or_else(help)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if text.contains(char::is_whitespace) || text.contains(char::is_control) || authority.contains('@') {
        return Err(help());
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    if has_port { address(authority) } else { address(&format!("{authority}:80")) }
}

/// Gives every service and group its place in the tree, and notes what has none or several.
pub(super) fn tree(declared: &Declared, there: Option<&Plan>, collector: &mut Collector) -> Tree {
    let services: HashMap<&str, &Service> =
        declared.services.iter().map(|s| (s.name.value.as_str(), s)).collect();
    let groups: HashMap<&str, usize> =
        declared.groups.iter().enumerate().map(|(at, g)| (g.name.value.as_str(), at)).collect();
    for group in &declared.groups {
        if group.name.value.as_str() == "root" {
            let hint = "choose another name: \"root\" is the root group, which [project] configures";
            collector.fault_with(
                group.name.span.clone(),
                "no group can be named \"root\"",
                "reserved name",
                hint,
            );
        }
        if let Some(service) = services.get(group.name.value.as_str()) {
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
    let mut parent: HashMap<&str, (usize, Range<usize>)> = HashMap::new();
    let mut specs: BTreeMap<Name, GroupSpec> = BTreeMap::new();
    for (at, group) in declared.groups.iter().enumerate() {
        let mut children = Vec::new();
        for member in &group.members {
            let text = member.value.as_str();
            if let Some((other, first)) = parent.get(text) {
                let (one, two) = (declared.groups[*other].name.value.as_str(), group.name.value.as_str());
                let message = if one == two {
                    format!("{text:?} is a member of {one:?} twice")
                } else {
                    format!("{text:?} is a member of {one:?} and of {two:?}")
                };
                also(
                    collector,
                    member.span.clone(),
                    message,
                    "named again here",
                    first.clone(),
                    "first named here",
                );
                continue;
            }
            let child = match (services.get(text), groups.get(text)) {
                (Some(service), _) => Child::Service(service.name.value.clone()),
                (None, Some(&at)) => Child::Group(declared.groups[at].name.value.clone()),
                (None, None) if there.is_some_and(|plan| is_there(plan, text)) => {
                    collector.fault_with(
                        member.span.clone(),
                        format!("{text:?} is already in the running tree"),
                        "not declared in this manifest",
                        "remove it from the members: what runs is not moved; --group adds to a group of the running tree",
                    );
                    continue;
                }
                (None, None) => {
                    let message = format!(
                        "group {:?} names {text:?}, which is not declared",
                        group.name.value.as_str()
                    );
                    let names = declared.services.iter().map(|s| s.name.value.as_str());
                    let names = names.chain(declared.groups.iter().map(|g| g.name.value.as_str()));
                    collector.fault_with(
                        member.span.clone(),
                        message,
                        "no such service",
                        known_names(text, names),
                    );
                    continue;
                }
            };
            parent.insert(text, (at, member.span.clone()));
            children.push(child);
        }
        specs.insert(group.name.value.clone(), spec(children, &group.supervision, group.significant));
    }
    // A group with a service's name was reported above; it can't nest anything.
    let nesting = parent.iter().filter(|(name, _)| !services.contains_key(*name));
    nested_in_itself(declared, &nesting.map(|(name, (at, _))| (*name, *at)).collect(), collector);
    let mut top: Vec<(usize, Child)> = Vec::new();
    for service in &declared.services {
        if !parent.contains_key(service.name.value.as_str()) {
            top.push((service.name.span.start, Child::Service(service.name.value.clone())));
        }
    }
    for group in &declared.groups {
        if !parent.contains_key(group.name.value.as_str()) {
            top.push((group.name.span.start, Child::Group(group.name.value.clone())));
        }
    }
    top.sort_by_key(|(at, _)| *at);
    let children = top.into_iter().map(|(_, child)| child).collect();
    Tree { root: spec(children, &declared.project.supervision, false), groups: specs }
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
pub(super) fn cycles(declared: &Declared, cycles: &[Vec<Name>], collector: &mut Collector) {
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

/// Warnings about settings of automatic shutdown that can have no effect.
pub(super) fn idle_keys(
    declared: &Declared,
    services: &[ServiceSpec],
    tree: &Tree,
    collector: &Collector,
) -> Vec<Fault> {
    let mut warnings = Vec::new();
    let mut warn = |span: &Range<usize>, message: String, label: &str, hint: &str| {
        warnings.push(Fault {
            source: Arc::clone(&collector.source),
            span: span.clone(),
            message,
            label: label.to_owned(),
            also: None,
            hint: Some(hint.to_owned()),
        });
    };
    let groups = tree.groups.iter().map(|(name, spec)| (Some(name), spec)).chain([(None, &tree.root)]);
    for (name, group) in groups {
        let shuts_down = group.auto_shutdown != AutoShutdown::Never;
        let shown = name.map_or("the root group".to_owned(), |name| format!("group {:?}", name.as_str()));
        let mut counted = false;
        for child in &group.children {
            let (span, significant, always) = match child {
                Child::Service(child) => {
                    let Some(at) = declared.services.iter().position(|s| s.name.value == *child) else {
                        continue;
                    };
                    let (declared, spec) = (&declared.services[at], &services[at]);
                    let always = matches!(spec.restart.policy, Policy::Always | Policy::UnlessStopped)
                        && spec.kind == Kind::Service;
                    (&declared.name.span, spec.significant, always)
                }
                Child::Group(child) => {
                    let Some(inner) = declared.groups.iter().find(|g| g.name.value == *child) else {
                        continue;
                    };
                    (&inner.name.span, inner.significant, false)
                }
            };
            if !significant {
                continue;
            }
            counted |= !always;
            let child = child.name().as_str();
            if !shuts_down {
                let message = format!("{child:?} is significant, and {shown} has no \"auto_shutdown\"");
                warn(
                    span,
                    message,
                    "its exit has no effect",
                    "write auto_shutdown = \"any\" or \"all\" in the group",
                );
            } else if always {
                let message = format!("{child:?} is significant, but its restart policy always restarts it");
                warn(span, message, "always restarted", "write restart = \"on-failure\" or \"never\"");
            }
        }
        let span = match name {
            Some(name) => declared.groups.iter().find(|g| g.name.value == *name).map(|g| &g.name.span),
            None => declared.project.span.as_ref(),
        };
        if let Some(span) = span.filter(|_| shuts_down && !counted) {
            let message =
                format!("{shown} has \"auto_shutdown\", but no significant member whose exit could cause it");
            warn(span, message, "never shuts down automatically", "write significant = true in a member");
        }
    }
    warnings
}

/// Warnings about paths that can't be log files. Such output goes into the state folder instead.
pub(super) fn useless_log_files(
    declared: &Declared,
    services: &[ServiceSpec],
    collector: &Collector,
) -> Vec<Fault> {
    let mut warnings = Vec::new();
    for (spec, declared) in services.iter().zip(&declared.services) {
        let (Some(log), Some(span)) = (&spec.log, declared.log.as_ref().and_then(|log| log.file.as_ref()))
        else {
            continue;
        };
        let why = spec.instances().find_map(|id| {
            let file = log.file_of(&id)?;
            let (why, hint) = useless(&file)?;
            Some((format!("{} can't be a log file: {why}", file.display()), hint))
        });
        if let Some((message, hint)) = why {
            warnings.push(Fault {
                source: Arc::clone(&collector.source),
                span: span.span.clone(),
                message,
                label: "its output will go to the state folder".to_owned(),
                also: None,
                hint: Some(hint.to_owned()),
            });
        }
    }
    warnings
}

/// Why a path can't be a log file, as far as that can be seen before it is opened, and what to do
/// instead.
fn useless(path: &Path) -> Option<(String, &'static str)> {
    const ANOTHER: &str = "name a regular file in a folder that the supervisor owns";
    let own = ["/dev/stdout", "/dev/stderr", "/dev/stdin"].iter().any(|own| path == Path::new(own));
    let by_number = ["/dev/fd", "/proc/self/fd"].iter().any(|folder| path.starts_with(folder));
    let device = || std::fs::metadata(path).is_ok_and(|at| at.file_type().is_char_device());
    if own || by_number || device() {
        let hint = "write file = \"inherit\" to send the output to the daemon's own output";
        return Some(("it is a device".to_owned(), hint));
    }
    match std::fs::symlink_metadata(path) {
        Ok(at) if at.is_dir() => return Some(("it is a folder".to_owned(), ANOTHER)),
        Ok(at) if at.is_symlink() => return Some(("it is a symbolic link".to_owned(), ANOTHER)),
        Ok(at) if at.file_type().is_fifo() => return Some(("it is a pipe".to_owned(), ANOTHER)),
        Ok(at) if !at.is_file() => return Some(("it is not a regular file".to_owned(), ANOTHER)),
        Ok(at) if at.nlink() > 1 => {
            return Some(("it has another name as well (a hard link)".to_owned(), ANOTHER));
        }
        Ok(_) | Err(_) => {}
    }
    let by_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let folder = path.ancestors().skip(1).find_map(|folder| Some((folder, std::fs::metadata(folder).ok()?)));
    let (folder, about) = folder?;
    let whose = match (about.uid(), about.mode() & 0o1002 == 0o002) {
        _ if !about.is_dir() => format!("{} is not a folder", folder.display()),
        (_, true) if by_root => format!("everybody may write to {}", folder.display()),
        (1.., _) if by_root => {
            format!("{} belongs to another user, who could make root write elsewhere", folder.display())
        }
        _ => return None,
    };
    Some((whose, "name a file in a folder that root owns; \"owner\" and \"mode\" let others read it"))
}

/// Warnings about groups whose members restart so slowly that the restart limit can't be reached.
pub(super) fn unreachable_limits(
    declared: &Declared,
    services: &[ServiceSpec],
    collector: &Collector,
) -> Vec<Fault> {
    let known: HashMap<&str, &ServiceSpec> = services.iter().map(|s| (s.name.as_str(), s)).collect();
    let mut warnings = Vec::new();
    for group in &declared.groups {
        let Some(intensity) = group.supervision.intensity else { continue };
        let period = group.supervision.period.unwrap_or(GroupSpec::default().period);
        // How often a nested group crashes is bounded by its own limit, not here.
        let members: Option<Vec<&&ServiceSpec>> =
            group.members.iter().map(|m| known.get(m.value.as_str())).collect();
        let Some(members) = members else { continue };
        let crashes: u64 =
            members.iter().map(|m| most_falls(m, period, intensity) * u64::from(m.most_copies())).sum();
        if crashes <= u64::from(intensity) {
            warnings.push(Fault {
                source: Arc::clone(&collector.source),
                span: group.name.span.clone(),
                message: format!(
                    "group {:?} never gives up: with their backoff, its members crash at most {crashes} times within {}, and it gives up after more than {intensity}",
                    group.name.value.as_str(),
                    humantime::format_duration(period)
                ),
                label: "this limit can't be reached".to_owned(),
                also: None,
                hint: Some("write a longer \"period\", a smaller \"intensity\" or a shorter backoff".to_owned()),
            });
        }
    }
    warnings
}

/// How often a service that ends at once can crash within a period: the first time at once, then
/// after each delay at its shortest. The count stops at one more than the limit.
fn most_falls(spec: &ServiceSpec, period: std::time::Duration, intensity: u32) -> u64 {
    let mut crashes = 1;
    let mut time = std::time::Duration::ZERO;
    for attempt in 0..=intensity {
        if spec.restart.max_retries.is_some_and(|max| attempt >= max) {
            break;
        }
        time += crate::decide::restart::delay(&spec.restart.backoff, attempt, 0.0);
        if time > period {
            break;
        }
        crashes += 1;
    }
    crashes
}
