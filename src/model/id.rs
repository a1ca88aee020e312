//! Names and identities of services, groups, instances and their processes.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The name of a service or a group: `[a-z0-9][a-z0-9._-]{0,62}`.
///
/// The alphabet is narrow on purpose: a name becomes part of file names, environment
/// variables and terminal lines, and none of them should need escaping.
///
/// ```
/// use regrow::model::Name;
/// assert!(Name::new("redis-cache.1").is_ok());
/// assert!(Name::new("../x").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// Longest accepted name, in bytes.
pub const NAME_MAX: usize = 63;

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameError {
    /// The text is empty.
    Empty,
    /// The text has more than [`NAME_MAX`] bytes; carries the number of them.
    TooLong(usize),
    /// The text has a character outside the alphabet, or one that may not stand first.
    BadCharacter(char),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Empty => f.write_str("a name can't be empty"),
            NameError::TooLong(n) => {
                write!(f, "a name must have at most {NAME_MAX} characters, but this one has {n}")
            }
            NameError::BadCharacter(c) => write!(
                f,
                "{c:?} is not allowed there: a name starts with a-z or 0-9 and goes on with a-z, 0-9, '.', '_' or '-'"
            ),
        }
    }
}

impl std::error::Error for NameError {}

/// The part of a printed service or instance name that follows the project.
pub(crate) fn short_of(printed: &str) -> &str {
    printed.split_once('/').map_or(printed, |(_, name)| name)
}

impl Name {
    /// Checks a text and makes a name of it.
    pub fn new(text: &str) -> Result<Name, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        for (at, c) in text.char_indices() {
            let fine =
                c.is_ascii_lowercase() || c.is_ascii_digit() || (at > 0 && matches!(c, '.' | '_' | '-'));
            if !fine {
                return Err(NameError::BadCharacter(c));
            }
        }
        if text.len() > NAME_MAX {
            return Err(NameError::TooLong(text.len()));
        }
        Ok(Name(Arc::from(text)))
    }

    /// The name of a service or a group in a tree of several projects: `project/name`. It belongs to
    /// its project alone, whatever other projects come and go. `project` must keep to the alphabet of
    /// names.
    pub fn qualified(project: &str, name: &Name) -> Name {
        Name(Arc::from(format!("{project}/{name}")))
    }

    /// The whole name, with the project where it is qualified.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name within its project. As an address it may match services of several projects.
    ///
    /// ```
    /// use regrow::model::Name;
    /// let web = Name::new("web").unwrap();
    /// assert_eq!(Name::qualified("shop", &web).short(), "web");
    /// assert_eq!(web.short(), "web");
    /// ```
    pub fn short(&self) -> &str {
        short_of(&self.0)
    }

    /// The project of a qualified name; `None` for an unqualified one.
    pub fn project(&self) -> Option<&str> {
        self.0.split_once('/').map(|(project, _)| project)
    }
}

/// Accepts qualified names, too.
impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Name, NameError> {
        match text.split_once('/') {
            Some((project, name)) => Ok(Name::qualified(Name::new(project)?.as_str(), &Name::new(name)?)),
            None => Name::new(&text),
        }
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0.to_string()
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One running copy of a service.
///
/// A service with one replica has one instance that carries the service's name; with
/// more they are `web.1`, `web.2` and so on.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId {
    service: Name,
    index: u32,
}

impl InstanceId {
    /// The only instance of a service with one replica.
    pub fn sole(service: Name) -> InstanceId {
        InstanceId { service, index: 0 }
    }

    /// Instance number `index`, counted from 1, of a service with several replicas.
    pub fn numbered(service: Name, index: u32) -> InstanceId {
        InstanceId { service, index: index.max(1) }
    }

    /// The service this is a copy of.
    pub fn service(&self) -> &Name {
        &self.service
    }

    /// The printed form of the instance without its project.
    pub fn short(&self) -> String {
        short_of(&self.to_string()).to_owned()
    }

    /// The number of the copy, from 1; `None` for a sole instance.
    pub fn index(&self) -> Option<u32> {
        (self.index > 0).then_some(self.index)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            0 => f.pad(self.service.as_str()),
            n => f.pad(&format!("{}.{n}", self.service)),
        }
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for InstanceId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads the printed form. The text doesn't show whether `web.1` is a replica or a service of that
/// name, so the result equals only an id that was read the same way. It is for display, not for
/// lookups.
impl<'de> Deserialize<'de> for InstanceId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<InstanceId, D::Error> {
        let text = String::deserialize(deserializer)?;
        // A number may follow a name of full length, so only the alphabet is checked here.
        if text.is_empty() || text.contains(|c: char| c.is_control()) {
            return Err(serde::de::Error::custom("not an instance's name"));
        }
        Ok(InstanceId::sole(Name(Arc::from(text))))
    }
}

/// The number of an OS process in the life of an instance: 1 for the first, one more for each
/// restart. A message with an older number is late and is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// The number of the process after this one.
    #[must_use]
    pub fn next(self) -> Incarnation {
        Incarnation(self.0 + 1)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_refused() {
        let long = "x".repeat(5_000);
        for (text, want) in [
            ("", NameError::Empty),
            ("../x", NameError::BadCharacter('.')),
            ("a/b", NameError::BadCharacter('/')),
            ("a\nb", NameError::BadCharacter('\n')),
            ("a\0b", NameError::BadCharacter('\0')),
            ("Web", NameError::BadCharacter('W')),
            ("-x", NameError::BadCharacter('-')),
            (&long, NameError::TooLong(5_000)),
            (&long[..64], NameError::TooLong(64)),
        ] {
            assert_eq!(Name::new(text), Err(want), "{text:?}");
        }
        assert!(Name::new(&long[..63]).is_ok());
    }

    #[test]
    fn instances_print_as_the_contract_says() {
        let web = Name::new("web").unwrap();
        assert_eq!(InstanceId::sole(web.clone()).to_string(), "web");
        assert_eq!(InstanceId::numbered(web, 2).to_string(), "web.2");
    }
}
