//! Composes the environment of a child from what is inherited and what its manifest says.

use std::collections::HashSet;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::model::spec::RunAs;
use crate::model::{EnvSpec, ServiceSpec};
use crate::vault::secrets::Vault;

/// The `PATH` in which a child's program is searched if its environment has none.
pub const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// The parts from which a child's environment is composed.
#[derive(Debug, Clone)]
pub struct EnvRecipe {
    /// The supervisor's own environment.
    pub inherited: Arc<Vec<(OsString, OsString)>>,
    /// The service or task that it is composed for.
    pub of: EnvFor,
    /// regrow's own variables, which win over all others.
    pub given: Vec<(&'static str, String)>,
    /// The vault with the secrets that the manifest names.
    pub vault: Arc<Vault>,
}

/// The service or task that an environment is composed for.
#[derive(Debug, Clone)]
pub enum EnvFor {
    /// A service, by its manifest.
    Service(Arc<ServiceSpec>),
    /// A service that is about to start: program, directory and environment follow from its
    /// manifest and from its env files as they are when its turn comes.
    Start(Arc<ServiceSpec>),
    /// A task, with its nice value if that differs from the supervisor's.
    Task(EnvSpec, Option<i32>),
}

impl EnvRecipe {
    /// What the manifest or the task says about the environment.
    pub fn env(&self) -> &EnvSpec {
        match &self.of {
            EnvFor::Service(spec) | EnvFor::Start(spec) => &spec.env,
            EnvFor::Task(env, _) => env,
        }
    }

    /// The user, groups and priority that the child runs with.
    pub fn run_as(&self) -> RunAs {
        match &self.of {
            EnvFor::Service(spec) | EnvFor::Start(spec) => spec.run_as.clone(),
            EnvFor::Task(_, nice) => RunAs { nice: *nice, ..RunAs::default() },
        }
    }

    /// Composes the environment, as `NAME=VALUE` entries. `of_user`: variables of the user that the
    /// child runs as; the manifest's own values win over them.
    pub fn compose_for(&self, of_user: &[(&'static str, String)]) -> Vec<CString> {
        let said = |name: &str| self.env().set.iter().any(|(own, _)| own == name);
        let of_user = of_user.iter().filter(|(name, _)| !said(name));
        let given: Vec<(&str, &str)> =
            self.given.iter().chain(of_user).map(|(name, value)| (*name, value.as_str())).collect();
        compose(&self.inherited, self.env(), &given)
    }
}

/// Composes an environment, as `NAME=VALUE` entries. `given` are regrow's own variables and win
/// over all.
///
/// Variables that begin with `REGROW_` are not inherited, since they may hold secrets of the
/// supervisor's. Only the state directory, which is no secret, passes.
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
