//! Who may do what: permissions as `action:resource`, both with globs.
//!
//! Pure: authentication, which finds out who somebody is, happens elsewhere (`control`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::model::nearest::nearest;
use crate::model::{Command, InstanceId};

/// An action that a permission can cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read the status, tree, history, events and causes of a service.
    Read,
    /// Read what a service prints.
    Logs,
    /// Start a service.
    Start,
    /// Stop a service.
    Stop,
    /// Restart a service.
    Restart,
    /// Pause a service.
    Pause,
    /// Let a paused service run on.
    Resume,
    /// Add services to a group; without a group, the resource is `root`.
    Add,
    /// Take services out of the tree.
    Remove,
    /// Read and write a manifest.
    Manifest,
    /// Read the manifests again.
    Reload,
    /// Replace the daemon.
    Upgrade,
    /// Take everything down.
    Down,
    /// Read the audit trail: who did what.
    Audit,
    /// Run commands as tasks, and every other request about tasks.
    Exec,
}

/// The resource of actions that concern no single service.
pub const DAEMON: &str = "daemon";
/// The resource of tasks: commands that are no services.
pub const TASKS: &str = "tasks";
/// The resource of an addition under no group.
pub const ROOT: &str = "root";

impl Action {
    /// All actions.
    pub const ALL: [Action; 15] = [
        Action::Read,
        Action::Logs,
        Action::Start,
        Action::Stop,
        Action::Restart,
        Action::Pause,
        Action::Resume,
        Action::Add,
        Action::Remove,
        Action::Manifest,
        Action::Reload,
        Action::Upgrade,
        Action::Down,
        Action::Audit,
        Action::Exec,
    ];

    /// The name of the action, as a permission spells it.
    pub fn word(self) -> &'static str {
        match self {
            Action::Read => "read",
            Action::Logs => "logs",
            Action::Start => "start",
            Action::Stop => "stop",
            Action::Restart => "restart",
            Action::Pause => "pause",
            Action::Resume => "resume",
            Action::Add => "add",
            Action::Remove => "remove",
            Action::Manifest => "manifest",
            Action::Reload => "reload",
            Action::Upgrade => "upgrade",
            Action::Down => "down",
            Action::Audit => "audit",
            Action::Exec => "exec",
        }
    }

    /// Whether the action changes nothing. Of such actions only refusals go into the audit trail.
    pub fn only_looks(self) -> bool {
        match self {
            Action::Read | Action::Logs | Action::Audit => true,
            Action::Start
            | Action::Stop
            | Action::Restart
            | Action::Pause
            | Action::Resume
            | Action::Add
            | Action::Remove
            | Action::Manifest
            | Action::Reload
            | Action::Upgrade
            | Action::Down
            | Action::Exec => false,
        }
    }

    /// The action that a command needs; `None` if no user gives such a command.
    pub fn of(command: &Command) -> Option<Action> {
        match command {
            Command::Start { .. } => Some(Action::Start),
            Command::Stop { .. } => Some(Action::Stop),
            Command::Restart { .. } => Some(Action::Restart),
            Command::Pause { .. } => Some(Action::Pause),
            Command::Resume { .. } => Some(Action::Resume),
            Command::Add { .. } => Some(Action::Add),
            Command::Remove { .. } => Some(Action::Remove),
            Command::Reconfigure { .. } | Command::Scale { .. } => None,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A permission, written `action:resource`. In both parts `*` stands for anything, `?` for one
/// character.
///
/// ```
/// use regrow::decide::access::{Action, Permission};
/// let permission: Permission = "re*:shop/*".parse().unwrap();
/// assert!(permission.allows(Action::Restart, "shop/web"));
/// assert!(!permission.allows(Action::Stop, "shop/web"));
/// assert!(!permission.allows(Action::Restart, "blog/web"));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Permission {
    action: WildMatch,
    resource: WildMatch,
    text: String,
}

impl Permission {
    /// Whether the permission covers this action on this resource.
    pub fn allows(&self, action: Action, resource: &str) -> bool {
        self.action.matches(action.word()) && self.resource.matches(resource)
    }

    /// Whether the permission covers this action on every resource, now and later: the resource is
    /// exactly `*`.
    fn allows_everywhere(&self, action: Action) -> bool {
        self.action.matches(action.word()) && self.text.split_once(':').is_some_and(|(_, of)| of == "*")
    }
}

impl FromStr for Permission {
    type Err = String;
    fn from_str(text: &str) -> Result<Permission, String> {
        let (action, resource) = text.split_once(':').ok_or_else(|| {
            format!(
                "{text:?} is not a permission: write ACTION:RESOURCE, such as \"restart:web\" or \"read:*\""
            )
        })?;
        let glob = WildMatch::new(action);
        if !Action::ALL.iter().any(|known| glob.matches(known.word())) {
            let words = Action::ALL.map(Action::word);
            let near = nearest(action, words);
            let help = near.map_or_else(
                || format!("the actions are {}", words.join(", ")),
                |near| format!("did you mean {near:?}?"),
            );
            return Err(format!("there is no action {action:?}; {help}"));
        }
        if resource.is_empty() || resource.chars().any(char::is_control) {
            return Err(format!("{text:?} names no resource; write \"*\" for all resources"));
        }
        Ok(Permission { action: glob, resource: WildMatch::new(resource), text: text.to_owned() })
    }
}

impl TryFrom<String> for Permission {
    type Error = String;
    fn try_from(text: String) -> Result<Permission, String> {
        text.parse()
    }
}

impl From<Permission> for String {
    fn from(permission: Permission) -> String {
        permission.text
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// What a caller may do.
#[derive(Debug, Clone, PartialEq)]
pub enum Rights {
    /// The caller may do everything: it is the owner, or root.
    All,
    /// The caller may do what any of these permissions covers.
    Granted(Vec<Permission>),
}

impl Rights {
    /// Whether this action is allowed on this resource.
    pub fn allow(&self, action: Action, resource: &str) -> bool {
        match self {
            Rights::All => true,
            Rights::Granted(permissions) => permissions.iter().any(|one| one.allows(action, resource)),
        }
    }

    /// Whether this action is allowed on an instance, by its own name or by its service's.
    pub fn allow_instance(&self, action: Action, instance: &InstanceId) -> bool {
        self.allow(action, instance.service().as_str())
            || (instance.index().is_some() && self.allow(action, &instance.to_string()))
    }

    /// Whether this action is allowed on every resource, now and later.
    pub fn allow_everywhere(&self, action: Action) -> bool {
        match self {
            Rights::All => true,
            Rights::Granted(permissions) => permissions.iter().any(|one| one.allows_everywhere(action)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;

    fn rights(words: &[&str]) -> Rights {
        Rights::Granted(words.iter().map(|word| word.parse().unwrap()).collect())
    }

    #[test]
    fn a_permission_covers_what_its_globs_say_and_nothing_else() {
        for (permission, action, resource, want) in [
            ("restart:web", Action::Restart, "web", true),
            ("restart:web", Action::Restart, "web2", false),
            ("restart:web", Action::Stop, "web", false),
            ("restart:web*", Action::Restart, "web2", true),
            ("restart:shop/*", Action::Restart, "shop/web", true),
            ("restart:shop/*", Action::Restart, "web", false),
            ("*:*", Action::Down, DAEMON, true),
            ("re*:web", Action::Read, "web", true),
            ("re*:web", Action::Logs, "web", false),
            ("stop:w?b", Action::Stop, "wob", true),
            ("stop:w?b", Action::Stop, "wb", false),
            // A permission for a service does not cover the daemon.
            ("down:web", Action::Down, DAEMON, false),
        ] {
            assert_eq!(rights(&[permission]).allow(action, resource), want, "{permission} {resource}");
        }
    }

    #[test]
    fn an_instance_goes_by_its_own_name_and_its_services() {
        let second = InstanceId::numbered(Name::new("web").unwrap(), 2);
        assert!(rights(&["stop:web"]).allow_instance(Action::Stop, &second));
        assert!(rights(&["stop:web.2"]).allow_instance(Action::Stop, &second));
        assert!(!rights(&["stop:web.1"]).allow_instance(Action::Stop, &second));
    }

    #[test]
    fn everywhere_is_a_star_and_not_what_it_happens_to_cover() {
        assert!(rights(&["remove:*"]).allow_everywhere(Action::Remove));
        assert!(!rights(&["remove:w*"]).allow_everywhere(Action::Remove));
        assert!(!rights(&[]).allow(Action::Read, "web"));
        assert!(Rights::All.allow_everywhere(Action::Down));
    }

    #[test]
    fn what_is_no_permission_says_why() {
        for (text, want) in [
            ("restart", "ACTION:RESOURCE"),
            ("restrat:web", "did you mean \"restart\"?"),
            ("xyzzy:web", "the actions are read, logs"),
            ("read:", "names no resource"),
            ("read:a\nb", "names no resource"),
        ] {
            let error = text.parse::<Permission>().unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
