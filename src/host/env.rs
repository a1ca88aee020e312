//! The environment of a child, made from what is inherited and what its manifest says.

use std::collections::HashSet;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::model::spec::RunAs;
use crate::model::{EnvSpec, ServiceSpec};
use crate::vault::secrets::Vault;

/// What a child without any `PATH` of its own searches.
pub const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// What a child's environment is made from.
#[derive(Debug, Clone)]
pub struct EnvRecipe {
    /// The supervisor's own.
    pub inherited: Arc<Vec<(OsString, OsString)>>,
    /// What is made of it.
    pub of: EnvFor,
    /// regrow's own variables.
    pub given: Vec<(&'static str, String)>,
    /// Where the secrets are that it names.
    pub vault: Arc<Vault>,
}

/// Whose environment it is.
#[derive(Debug, Clone)]
pub enum EnvFor {
    /// A service's, by its manifest.
    Service(Arc<ServiceSpec>),
    /// That of a service which starts: program, folder and environment are what its manifest makes of the
    /// env files as they are when its turn comes.
    Start(Arc<ServiceSpec>),
    /// A task's, with its priority where that is not ours.
    Task(EnvSpec, Option<i32>),
}

impl EnvRecipe {
    /// What is made of the inherited.
    pub fn env(&self) -> &EnvSpec {
        match &self.of {
            EnvFor::Service(spec) | EnvFor::Start(spec) => &spec.env,
            EnvFor::Task(env, _) => env,
        }
    }

    /// Whom it is run as.
    pub fn run_as(&self) -> RunAs {
        match &self.of {
            EnvFor::Service(spec) | EnvFor::Start(spec) => spec.run_as.clone(),
            EnvFor::Task(_, nice) => RunAs { nice: *nice, ..RunAs::default() },
        }
    }

    /// `NAME=VALUE` of each variable. `of_user`: what belongs to the user that it runs as, where the
    /// manifest says nothing else.
    pub fn compose_for(&self, of_user: &[(&'static str, String)]) -> Vec<CString> {
        let said = |name: &str| self.env().set.iter().any(|(own, _)| own == name);
        let of_user = of_user.iter().filter(|(name, _)| !said(name));
        let given: Vec<(&str, &str)> =
            self.given.iter().chain(of_user).map(|(name, value)| (*name, value.as_str())).collect();
        compose(&self.inherited, self.env(), &given)
    }
}

/// `NAME=VALUE` of each variable. `given` are regrow's own and win over all.
///
/// Variables that begin with `REGROW_` are not inherited, since they may hold secrets of
/// the supervisor's; only the state folder, which is none, passes.
pub fn compose(inherited: &[(OsString, OsString)], spec: &EnvSpec, given: &[(&str, &str)]) -> Vec<CString> {
    let own: HashSet<&OsStr> = spec
        .set
        .iter()
        .map(|(name, _)| OsStr::new(name))
        .chain(spec.secrets.iter().map(|(name, _)| OsStr::new(name)))
        .chain(given.iter().map(|(name, _)| OsStr::new(*name)))
        .collect();
    let mut made = Vec::with_capacity(inherited.len() + own.len());
    for (name, value) in inherited {
        let bytes = name.as_bytes();
        let secret = bytes.starts_with(b"REGROW_") && bytes != b"REGROW_STATE_DIR";
        let passes = match spec.clear {
            true => name == "PATH",
            false => !secret && !spec.deny.iter().any(|pattern| matches(pattern.as_bytes(), bytes)),
        };
        if passes && !own.contains(name.as_os_str()) {
            made.extend(assignment(bytes, value.as_bytes()));
        }
    }
    for (name, value) in &spec.set {
        if !given.iter().any(|(own, _)| own == name) {
            made.extend(assignment(name.as_bytes(), value.as_bytes()));
        }
    }
    for (name, value) in given {
        made.extend(assignment(name.as_bytes(), value.as_bytes()));
    }
    made
}

/// The value of a variable in a composed environment.
pub(crate) fn value_of<'a>(env: &'a [CString], name: &str) -> Option<&'a OsStr> {
    env.iter().find_map(|entry| {
        let rest = entry.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(OsStr::from_bytes(rest))
    })
}

fn assignment(name: &[u8], value: &[u8]) -> Option<CString> {
    CString::new([name, b"=", value].concat()).ok()
}

/// Whether a name fits a pattern in which `*` stands for any run of characters.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|at| matches(rest, &name[at..])),
        Some((first, rest)) => name.split_first().is_some_and(|(n, tail)| n == first && matches(rest, tail)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(spec: &EnvSpec) -> Vec<String> {
        let inherited: Vec<(OsString, OsString)> = [
            ("PATH", "/bin"),
            ("HOME", "/root"),
            ("AWS_KEY", "k"),
            ("AWS_SECRET", "s"),
            ("REGROW_TOKEN", "t"),
            ("REGROW_STATE_DIR", "/s"),
        ]
        .iter()
        .map(|(n, v)| (OsString::from(n), OsString::from(v)))
        .collect();
        let given = [("REGROW_SERVICE", "web")];
        let mut words: Vec<String> = compose(&inherited, spec, &given)
            .iter()
            .map(|entry| entry.to_string_lossy().into_owned())
            .collect();
        words.sort();
        words
    }

    #[test]
    fn all_but_the_supervisors_secrets_is_inherited() {
        assert_eq!(
            words(&EnvSpec::default()),
            [
                "AWS_KEY=k",
                "AWS_SECRET=s",
                "HOME=/root",
                "PATH=/bin",
                "REGROW_SERVICE=web",
                "REGROW_STATE_DIR=/s"
            ]
        );
    }

    #[test]
    fn denied_cleared_and_set() {
        let deny = EnvSpec { deny: vec!["AWS_*".into(), "H*E".into()], ..EnvSpec::default() };
        assert_eq!(words(&deny), ["PATH=/bin", "REGROW_SERVICE=web", "REGROW_STATE_DIR=/s"]);
        let set = vec![("PATH".into(), "/opt".into()), ("REGROW_SERVICE".into(), "forged".into())];
        let clear = EnvSpec { clear: true, set, ..EnvSpec::default() };
        assert_eq!(words(&clear), ["PATH=/opt", "REGROW_SERVICE=web"]);
    }
}
