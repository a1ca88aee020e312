//! A whole manifest, typed: what the supervisor tree is built from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::Name;
use super::spec::ServiceSpec;

/// A manifest that was found to be right: names resolve, the dependency graph has no
/// cycle, every service hangs under exactly one group.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// `[project] name`, by default the folder's.
    pub project: String,
    /// The manifest, absolute; `None` for a plan built in a program.
    pub file: Option<PathBuf>,
    /// The folder that relative paths count from.
    pub folder: PathBuf,
    /// Services in declared order.
    pub services: Vec<Arc<ServiceSpec>>,
    /// The supervisor at the top; its children are what no group names.
    pub root: GroupSpec,
    /// The named groups.
    pub groups: BTreeMap<Name, GroupSpec>,
    /// How long a stop of everything may take.
    #[serde(default, skip_serializing_if = "StopTimes::is_empty")]
    pub stop: StopTimes,
    /// The environment that services inherit from. Never written down: it may hold secrets.
    #[serde(skip)]
    pub inherited: Arc<Vec<(OsString, OsString)>>,
    /// What the project's env files set, for services that are added later; name and value.
    /// Never written down either.
    #[serde(skip)]
    pub shared: Arc<Vec<(String, String)>>,
}

impl Plan {
    /// A plan for programs that embed the tree: every service under a one-for-one root.
    ///
    /// Nothing is inherited from the process environment but what `inherited` lists.
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

    /// The service of that name.
    pub fn service(&self, name: &str) -> Option<&Arc<ServiceSpec>> {
        self.services.iter().find(|s| s.name.as_str() == name)
    }

    /// A supervisor; `None` is the root.
    pub fn group(&self, name: Option<&Name>) -> Option<&GroupSpec> {
        match name {
            Some(name) => self.groups.get(name),
            None => Some(&self.root),
        }
    }

    /// The group that a service or group hangs under; `None` for the root.
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

/// Services and groups that are added to a tree while it runs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Addition {
    /// The group that they are added to; `None`: the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<Name>,
    /// What hangs there, behind what hangs there already.
    pub children: Vec<Child>,
    /// Every new service, in declared order.
    pub services: Vec<Arc<ServiceSpec>>,
    /// Every new group.
    #[serde(default)]
    pub groups: BTreeMap<Name, GroupSpec>,
}

impl Addition {
    /// One service under the root.
    pub fn of(service: ServiceSpec) -> Addition {
        Addition {
            children: vec![Child::Service(service.name.clone())],
            services: vec![Arc::new(service)],
            ..Addition::default()
        }
    }

    /// A group under the root, with these services as its members in this order.
    pub fn of_group(name: Name, mut group: GroupSpec, services: Vec<ServiceSpec>) -> Addition {
        group.children = services.iter().map(|s| Child::Service(s.name.clone())).collect();
        Addition {
            children: vec![Child::Group(name.clone())],
            services: services.into_iter().map(Arc::new).collect(),
            groups: BTreeMap::from([(name, group)]),
            ..Addition::default()
        }
    }

    /// The same, under this group.
    #[must_use]
    pub fn under(mut self, group: Name) -> Addition {
        self.into = Some(group);
        self
    }
}

/// How services and groups that are there are to be from now on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct PlanChange {
    /// Services, by their names; each has as many copies as it had, in the same place.
    pub services: Vec<Arc<ServiceSpec>>,
    /// Groups; their members stay what they are.
    #[serde(default)]
    pub groups: BTreeMap<Name, GroupSpec>,
    /// The root, if that changes; the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<GroupSpec>,
    /// How long a stop of everything may take, if that changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopTimes>,
}

impl PlanChange {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.groups.is_empty() && self.root.is_none() && self.stop.is_none()
    }
}

/// `stop_timeout` of a project and of the daemon: how long a stop of everything may take, from the first
/// signal to the last SIGKILL. Nothing is said: each service has its own time, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct StopTimes {
    /// Of the whole tree.
    #[serde(with = "super::time::opt_seconds", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "control", schemars(with = "Option<f64>"))]
    pub tree: Option<Duration>,
    /// Of a project, where the tree has several.
    #[serde(with = "super::time::seconds_by_name", skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "control", schemars(with = "BTreeMap<String, f64>"))]
    pub projects: BTreeMap<String, Duration>,
}

impl StopTimes {
    /// Nothing is said.
    pub fn is_empty(&self) -> bool {
        self.tree.is_none() && self.projects.is_empty()
    }
}

/// A child of a group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Child {
    /// A service: all its instances, in order.
    Service(Name),
    /// A nested group.
    Group(Name),
}

impl Child {
    /// Its name; services and groups share one space of names.
    pub fn name(&self) -> &Name {
        match self {
            Child::Service(name) | Child::Group(name) => name,
        }
    }
}

/// One `[group.NAME]`, or the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct GroupSpec {
    /// Members in declared order.
    pub children: Vec<Child>,
    /// What the fall of one means for the others.
    pub strategy: Strategy,
    /// More than so many restarts within `period`, and the group gives up; `None`: no limit.
    pub intensity: Option<u32>,
    /// The window that `intensity` counts in.
    #[serde(with = "super::time::seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub period: Duration,
    /// What follows giving up.
    pub on_give_up: GiveUp,
    /// Whether it goes down when significant members have ended by themselves.
    #[serde(default)]
    pub auto_shutdown: AutoShutdown,
    /// Whether its own auto-shutdown counts as the end of a significant member of its parent.
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

/// What happens to the siblings of one that fell (OTP's restart strategies).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Nothing: it comes back alone.
    OneForOne,
    /// All are stopped in reverse order and started in order.
    OneForAll,
    /// Those declared after it are, too.
    RestForOne,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Strategy::OneForOne => "one-for-one",
            Strategy::OneForAll => "one-for-all",
            Strategy::RestForOne => "rest-for-one",
        })
    }
}

/// `auto_shutdown`: a group goes down when its significant members have ended by themselves
/// (OTP's supervisor flag of that name).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum AutoShutdown {
    /// Never.
    #[default]
    Never,
    /// When the first of them has.
    Any,
    /// When all of them have.
    All,
}

/// `on_give_up`: what follows when a group restarted too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum GiveUp {
    /// It and its members are `failed` until started by hand.
    Mark,
    /// To its parent it is a child that died, as in OTP. The root's parent is `Exit`.
    Escalate,
    /// The whole tree goes down, exit code 1.
    Exit,
}
