//! The variables of a service: where each comes from, and its value.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::manifest::interpolate::{self, Trouble};

/// The most steps in which variables may be made of each other.
const DEEPEST: usize = 100;

/// The sources of variables: the process, env files, and the service's own `env`; a later one wins.
pub(super) struct Scope<'a> {
    pub(super) process: &'a HashMap<String, String>,
    pub(super) files: HashMap<&'a str, &'a str>,
    pub(super) own: HashMap<&'a str, &'a str>,
    /// The service's own variables that were expanded already, so that each is expanded once.
    pub(super) known: RefCell<HashMap<String, String>>,
}

impl Scope<'_> {
    pub(super) fn expand(&self, text: &str) -> Result<String, Trouble> {
        interpolate::expand(text, &mut |name| self.lookup(name, &mut Vec::new()))
    }

    fn lookup(&self, name: &str, path: &mut Vec<String>) -> Result<Option<String>, Trouble> {
        if self.own.contains_key(name) && path.last().is_none_or(|last| last != name) {
            return self.own(name, path).map(Some);
        }
        Ok(self.outer(name))
    }

    /// The value of a variable of the service's own. Its own name in it means the outer one, as in PATH
    /// = "bin:${PATH}".
    pub(super) fn own(&self, name: &str, path: &mut Vec<String>) -> Result<String, Trouble> {
        if let Some(known) = self.known.borrow().get(name) {
            return Ok(known.clone());
        }
        path.push(name.to_owned());
        if let Some(first) = path[..path.len() - 1].iter().position(|n| n == name) {
            return Err(Trouble::Circular(path[first..].to_vec()));
        }
        let Some(value) = self.own.get(name) else {
            return Err(Trouble::Undefined(name.to_owned()));
        };
        if path.len() > DEEPEST {
            let message = format!(
                "\"{name}\" refers to other variables, which refer to others: more than {DEEPEST} levels deep"
            );
            return Err(Trouble::Malformed(message));
        }
        let expanded = interpolate::expand(value, &mut |inner| self.lookup(inner, path));
        path.pop();
        if let Ok(value) = &expanded {
            self.known.borrow_mut().insert(name.to_owned(), value.clone());
        }
        expanded
    }

    fn outer(&self, name: &str) -> Option<String> {
        let file = self.files.get(name).map(|value| (*value).to_owned());
        file.or_else(|| self.process.get(name).cloned())
    }
}
