//! A whole checked manifest: the plan from which the supervision tree is built.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::Name;
use super::spec::ServiceSpec;
use super::words::words;

/// A manifest that passed its checks: names resolve, the dependency graph has no cycle, and every
/// service is a child of exactly one group.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The project's name: `[project] name`, by default the name of the manifest's folder.
    pub project: String,
    /// The absolute path of the manifest; `None` for a plan built in a program.
    pub file: Option<PathBuf>,
    /// The folder that relative paths start from.
    pub folder: PathBuf,
    /// The services in declared order.
    pub services: Vec<Arc<ServiceSpec>>,
    /// The supervisor at the top; its children are the services and groups that no group names.
    pub root: GroupSpec,
    /// The groups by their names, without the root.
    pub groups: BTreeMap<Name, GroupSpec>,
    /// The time limits for a stop of the whole tree and of whole projects.
    #[serde(default, skip_serializing_if = "StopTimes::is_empty")]
    pub stop: StopTimes,
    /// The environment that services inherit. It is never written to disk, since it may hold secrets.
    #[serde(skip)]
    pub inherited: Arc<Vec<(OsString, OsString)>>,
    /// The variables (name and value) that the project's env files set, for services added later. They
    /// are never written to disk either.
    #[serde(skip)]
    pub shared: Arc<Vec<(String, String)>>,
}

impl Plan {
    /// A plan for programs that embed the tree: every service is a child of a one-for-one root.
    ///
    /// The services inherit only the variables in `inherited`, which is empty here.
    pub fn of(project: &str, services: Vec<ServiceSpec>) -> Plan {
        let children = services.iter().map(|s| Child::Service(s.name.clone())).collect();
        Plan {
            project: project.to_owned(),
            file: None,
            folder: PathBuf::from("."),
            services: services.into_iter().map(Arc::new).collect(),
            root: GroupSpec { children, ..GroupSpec::default() },
            groups: BTreeMap::new(),
            stop: StopTimes::default(),
            inherited: Arc::new(Vec::new()),
            shared: Arc::new(Vec::new()),
        }
    }

    /// The service of that name; `None` for an unknown one.
    pub fn service(&self, name: &str) -> Option<&Arc<ServiceSpec>> {
        self.services.iter().find(|s| s.name.as_str() == name)
    }

    /// The group of that name; the name `None` stands for the root.
    pub fn group(&self, name: Option<&Name>) -> Option<&GroupSpec> {
        match name {
            Some(name) => self.groups.get(name),
            None => Some(&self.root),
        }
    }

    /// The group whose child the service or group is; `None` when that is the root.
    pub fn parent_of(&self, child: &str) -> Option<&Name> {
        self.groups
            .iter()
            .find(|(_, group)| group.children.iter().any(|c| c.name().as_str() == child))
            .map(|(name, _)| name)
    }

    /// All services below a group, in declared order; empty for an unknown one.
    pub fn services_below(&self, group: &str) -> Vec<Name> {
        fn walk(plan: &Plan, group: &GroupSpec, into: &mut Vec<Name>) {
            for child in &group.children {
                match child {
                    Child::Service(name) => into.push(name.clone()),
                    Child::Group(name) => {
                        if let Some(inner) = plan.groups.get(name) {
                            walk(plan, inner, into);
                        }
                    }
                }
            }
        }
        let mut found = Vec::new();
        if let Some(group) = self.groups.get(group) {
            walk(self, group, &mut found);
        }
        found
    }
}

/// Services and groups that are to be added to a running tree.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Addition {
    /// The group that the children are added to; `None` for the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<Name>,
    /// The new children of that group, appended after its present ones.
    pub children: Vec<Child>,
    /// Every new service, in declared order, also those of new groups.
    pub services: Vec<Arc<ServiceSpec>>,
    /// Every new group by its name.
    #[serde(default)]
    pub groups: BTreeMap<Name, GroupSpec>,
}

impl Addition {
    /// An addition of one service under the root.
    pub fn of(service: ServiceSpec) -> Addition {
        Addition {
            children: vec![Child::Service(service.name.clone())],
            services: vec![Arc::new(service)],
            ..Addition::default()
        }
    }

    /// An addition of a group under the root, with these services as its members in this order.
    pub fn of_group(name: Name, mut group: GroupSpec, services: Vec<ServiceSpec>) -> Addition {
        group.children = services.iter().map(|s| Child::Service(s.name.clone())).collect();
        Addition {
            children: vec![Child::Group(name.clone())],
            services: services.into_iter().map(Arc::new).collect(),
            groups: BTreeMap::from([(name, group)]),
            ..Addition::default()
        }
    }

    /// The same addition, but under this group.
    #[must_use]
    pub fn under(mut self, group: Name) -> Addition {
        self.into = Some(group);
        self
    }
}

/// Services and groups of a running tree as they are to be from now on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct PlanChange {
    /// The changed services by their names; each keeps its number of copies and its place in the tree.
    pub services: Vec<Arc<ServiceSpec>>,
    /// The changed groups; their members stay the same.
    #[serde(default)]
    pub groups: BTreeMap<Name, GroupSpec>,
    /// The root group, if it changes; its members stay the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<GroupSpec>,
    /// The time limits for a stop of everything, if they change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopTimes>,
}

impl PlanChange {
    /// Whether the change is empty.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.groups.is_empty() && self.root.is_none() && self.stop.is_none()
    }
}

/// `stop_timeout` of a project and of the daemon: the longest time that a stop of everything may
/// take, from the first signal to the last SIGKILL. Without it, each service has its own timeout,
/// one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct StopTimes {
    /// The limit for the whole tree; `None` for no limit.
    #[serde(with = "super::time::opt_seconds", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "control", schemars(with = "Option<f64>"))]
    pub tree: Option<Duration>,
    /// The limits of single projects by name, where the tree has several projects.
    #[serde(with = "super::time::seconds_by_name", skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "control", schemars(with = "BTreeMap<String, f64>"))]
    pub projects: BTreeMap<String, Duration>,
}

impl StopTimes {
    /// Whether no limit is set.
    pub fn is_empty(&self) -> bool {
        self.tree.is_none() && self.projects.is_empty()
    }
}

/// A child of a group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Child {
    /// A service with all its instances, in order.
    Service(Name),
    /// A nested group.
    Group(Name),
}

impl Child {
    /// The name of the child; services and groups share one namespace.
    pub fn name(&self) -> &Name {
        match self {
            Child::Service(name) | Child::Group(name) => name,
        }
    }
}

/// One `[group.NAME]`, or the root group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct GroupSpec {
    /// The members in declared order.
    pub children: Vec<Child>,
    /// What the crash of one member means for the others.
    pub strategy: Strategy,
    /// The most restarts within `period`: with one more the group gives up. `None` for no limit.
    pub intensity: Option<u32>,
    /// The time window in which `intensity` counts.
    #[serde(with = "super::time::seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub period: Duration,
    /// What follows when the group gives up.
    pub on_give_up: GiveUp,
    /// Whether the group shuts down when significant members have ended by themselves.
    #[serde(default)]
    pub auto_shutdown: AutoShutdown,
    /// Whether the group's own auto-shutdown counts as the end of a significant member of its parent.
    #[serde(default)]
    pub significant: bool,
}

impl Default for GroupSpec {
    fn default() -> GroupSpec {
        GroupSpec {
            children: Vec::new(),
            strategy: Strategy::OneForOne,
            intensity: None,
            period: Duration::from_secs(10),
            on_give_up: GiveUp::Mark,
            auto_shutdown: AutoShutdown::Never,
            significant: false,
        }
    }
}

/// What happens to the siblings of a member that crashed (OTP's restart strategies).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Only the crashed member restarts.
    OneForOne,
    /// All members are stopped in reverse order and started in order.
    OneForAll,
    /// The members declared after the crashed one are stopped in reverse order and started in order
    /// with it.
    RestForOne,
}

words!(Strategy { OneForOne = "one-for-one", OneForAll = "one-for-all", RestForOne = "rest-for-one" });

/// `auto_shutdown`: when a group shuts down because its significant members have ended by
/// themselves (OTP's supervisor flag of that name).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum AutoShutdown {
    /// The group never shuts down for that reason.
    #[default]
    Never,
    /// The group shuts down when the first significant member has ended.
    Any,
    /// The group shuts down when all its significant members have ended.
    All,
}

words!(AutoShutdown { Never = "never", Any = "any", All = "all" });

/// `on_give_up`: what follows when a group restarted too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum GiveUp {
    /// The group and its members are `failed` until somebody starts them.
    Mark,
    /// The group counts as a crashed child of its parent, as in OTP. For the root, this is `Exit`.
    Escalate,
    /// The whole tree shuts down with exit code 1; in a tree of several projects, only the group's
    /// project.
    Exit,
}

words!(GiveUp { Mark = "mark", Escalate = "escalate", Exit = "exit" });
