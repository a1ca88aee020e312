//! The keys of a manifest: one table of what may be written, for everything that deals with keys.
//!
//! The manifest's reader takes its bounds and its known keys from here, a reload takes from here what
//! a change needs, `regrow service config` how a word that was typed is read, and the JSON schema and
//! the reference in `docs/manifest.md` are printed from it. Deliberately absent: what a key does, which
//! is said by the field that it fills.

use std::time::Duration;

pub mod project;
pub mod service;

pub use project::{GROUP, MANIFEST, PROJECT};
pub use service::SERVICE;

/// One key of a manifest.
#[derive(Debug)]
pub struct Key {
    /// The name of the key.
    pub name: &'static str,
    /// The values that the key takes.
    pub form: Form,
    /// The value that counts where the key is not written, as it would be written; empty where that is
    /// none, or depends on something else.
    pub default: &'static str,
    /// A value as it might be written, which is not the default.
    pub example: &'static str,
    /// What a change of the key needs in a tree that runs.
    pub change: ChangeNeeds,
    /// What the key is for, in a sentence.
    pub about: &'static str,
}

/// What a change of a key needs in a tree that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeNeeds {
    /// The change counts at once, while the processes run on.
    Nothing,
    /// The service needs other processes: it is restarted.
    Restart,
    /// The service needs another place in the tree: it is removed and added again, and with it what
    /// depends on it.
    Regroup,
}

impl ChangeNeeds {
    /// The word for this in the reference of the keys.
    pub fn word(self) -> &'static str {
        match self {
            ChangeNeeds::Nothing => "live",
            ChangeNeeds::Restart => "restart",
            ChangeNeeds::Regroup => "regroup",
        }
    }
}

/// The values that a key takes.
#[derive(Debug)]
pub enum Form {
    /// A string.
    Text,
    /// `true` or `false`.
    Boolean,
    /// A whole number within bounds.
    Integer {
        /// The least number.
        least: i64,
        /// The greatest number.
        most: i64,
    },
    /// A number within bounds, with or without a point.
    Number {
        /// The least number.
        least: f64,
        /// The greatest number.
        most: f64,
    },
    /// A duration as humantime writes it, such as `250ms`, that is not shorter than this.
    Duration(Duration),
    /// A number of bytes, such as `"64KiB"`.
    Size,
    /// An octal number, such as `"640"` or `0o640`.
    Octal,
    /// A signal by its name or number.
    Signal,
    /// A user or a group, by name or number.
    Account,
    /// A command line: a list of words, or a string that is split into words as a shell would.
    Words,
    /// A list of strings.
    Texts,
    /// A string or a list of strings.
    TextOrTexts,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A list of exit codes.
    ExitCodes,
    /// A list of exit codes and names of signals.
    Exits,
    /// A table of variables: texts, numbers, booleans, and names of secrets.
    Variables(&'static Section),
    /// A list of names, or a table whose values are conditions or tables of this section.
    Dependencies(&'static Section),
    /// A table of these keys.
    Table(&'static Section),
    /// A table of named tables of these keys, as in `[service.NAME]`.
    Named(&'static Section),
    /// A table of these keys, or something shorter.
    Short {
        /// What may stand in place of the table.
        plain: &'static Form,
        /// The key of the table that the shorter form sets; `None` where it is not one of them.
        sets: Option<&'static str>,
        /// The keys of the table.
        table: &'static Section,
    },
}

impl Form {
    /// The keys of the table that the form takes; `None` where it takes none.
    pub fn section(&self) -> Option<&'static Section> {
        match self {
            Form::Table(section)
            | Form::Named(section)
            | Form::Dependencies(section)
            | Form::Variables(section)
            | Form::Short { table: section, .. } => Some(section),
            Form::Text
            | Form::Boolean
            | Form::Integer { .. }
            | Form::Number { .. }
            | Form::Duration(_)
            | Form::Size
            | Form::Octal
            | Form::Signal
            | Form::Account
            | Form::Words
            | Form::Texts
            | Form::TextOrTexts
            | Form::OneOf(_)
            | Form::ExitCodes
            | Form::Exits => None,
        }
    }
}

/// A table of a manifest.
#[derive(Debug)]
pub struct Section {
    /// The name of the table, as messages and documents write it.
    pub title: &'static str,
    /// What the table is for, in a sentence.
    pub about: &'static str,
    /// The keys that the table may have, in the order of the documents.
    pub keys: &'static [Key],
    /// The keys of which exactly one is needed; may be empty.
    pub one_of: &'static [&'static str],
    /// The keys that are needed.
    pub required: &'static [&'static str],
}

impl Section {
    /// The key of that name; `None` for an unknown one.
    ///
    /// ```
    /// use regrow::model::keys::{ChangeNeeds, SERVICE};
    /// assert_eq!(SERVICE.key("nice").unwrap().change, ChangeNeeds::Restart);
    /// assert!(SERVICE.key("nize").is_none());
    /// ```
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// The names of the keys, in the order of the documents.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.keys.iter().map(|key| key.name)
    }
}

/// A key whose change needs no new process.
const fn key(
    name: &'static str,
    form: Form,
    default: &'static str,
    example: &'static str,
    about: &'static str,
) -> Key {
    Key { name, form, default, example, change: ChangeNeeds::Nothing, about }
}

/// A key whose change restarts the service.
const fn restarts(
    name: &'static str,
    form: Form,
    default: &'static str,
    example: &'static str,
    about: &'static str,
) -> Key {
    Key { change: ChangeNeeds::Restart, ..key(name, form, default, example, about) }
}

/// A key whose change removes the service from the tree and adds it again.
const fn regroups(
    name: &'static str,
    form: Form,
    default: &'static str,
    example: &'static str,
    about: &'static str,
) -> Key {
    Key { change: ChangeNeeds::Regroup, ..key(name, form, default, example, about) }
}

/// A duration that may be zero.
const ANY_DURATION: Form = Form::Duration(Duration::ZERO);
/// A duration that may not be zero.
const SOME_DURATION: Form = Form::Duration(Duration::from_nanos(1));

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(section: &'static Section, path: &str, visit: &mut impl FnMut(&str, &'static Section)) {
        visit(path, section);
        for key in section.keys {
            if let Some(inner) = key.form.section() {
                walk(inner, &format!("{path}.{}", key.name), visit);
            }
        }
    }

    #[test]
    fn no_table_names_a_key_twice_or_needs_an_unknown_one() {
        walk(&MANIFEST, "", &mut |path, section| {
            for (at, name) in section.names().enumerate() {
                assert_eq!(section.names().position(|other| other == name), Some(at), "{path}.{name}");
            }
            for name in section.one_of.iter().chain(section.required) {
                assert!(section.key(name).is_some(), "{path}.{name}");
            }
        });
    }

    #[test]
    fn a_key_within_a_key_needs_what_that_one_needs() {
        for key in SERVICE.keys {
            let Some(inner) = key.form.section() else { continue };
            walk(inner, key.name, &mut |path, section| {
                for inner in section.keys {
                    assert_eq!(inner.change, key.change, "{path}.{}", inner.name);
                }
            });
        }
    }

    #[test]
    fn a_short_form_sets_a_key_that_is_there() {
        walk(&MANIFEST, "", &mut |path, section| {
            for key in section.keys {
                if let Form::Short { sets: Some(name), table, .. } = &key.form {
                    assert!(table.key(name).is_some(), "{path}.{}: {name}", key.name);
                }
                assert!(key.about.ends_with('.'), "{path}.{}: a sentence ends with a point", key.name);
                assert_ne!(key.default, key.example, "{path}.{}", key.name);
            }
        });
    }
}
