//! The user and group that a service runs as. Names become numbers here, in the order and with the
//! meaning of systemd.exec(5).

use std::ffi::CString;

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User};
use serde::{Deserialize, Serialize};

use crate::model::spec::RunAs;
use crate::model::{SpawnFailure, SpawnStage};

/// The credentials that a child sets for itself before it executes its program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Credentials {
    /// The user, group and supplementary groups. `None`: the child keeps those of this process.
    #[serde(default)]
    pub(crate) ids: Option<Ids>,
    #[serde(default)]
    pub(crate) umask: Option<u32>,
    #[serde(default)]
    pub(crate) nice: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ids {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// The credentials as numbers, and the variables HOME, USER and LOGNAME for the child's
/// environment.
pub(crate) struct Resolved {
    pub(crate) credentials: Credentials,
    pub(crate) env: Vec<(&'static str, String)>,
}

/// Looks the names up in the user database. This may ask a directory server, and so may block.
pub(crate) fn resolve(run_as: &RunAs) -> Result<Resolved, SpawnFailure> {
    let mut credentials = Credentials { ids: None, umask: run_as.umask, nice: run_as.nice };
    let mut env = Vec::new();
    if run_as.user.is_none() && run_as.group.is_none() {
        return Ok(Resolved { credentials, env });
    }
    let user = match &run_as.user {
        Some(text) => Some(user(text)?),
        None => None,
    };
    let gid = match (&run_as.group, &user) {
        (Some(text), _) => group(text)?,
        (None, Some(Who { gid: Some(gid), .. })) => *gid,
        (None, _) => nix::unistd::getgid(),
    };
    let uid = user.as_ref().map_or_else(nix::unistd::getuid, |user| user.uid);
    let groups = match user.as_ref().and_then(|user| user.name.as_deref()) {
        Some(name) => {
            let name = CString::new(name).map_err(|_| unknown("user", name))?;
            nix::unistd::getgrouplist(&name, gid).unwrap_or_else(|_| vec![gid])
        }
        None => vec![gid],
    };
    let groups = groups.into_iter().map(Gid::as_raw).collect();
    credentials.ids = Some(Ids { uid: uid.as_raw(), gid: gid.as_raw(), groups });
    if let Some(Who { uid, name, home, .. }) = user {
        // The variables of the process that starts the child are never used: a user that the user
        // database does not know has no name and no home of its own.
        let name = name.unwrap_or_else(|| uid.to_string());
        let home = home.unwrap_or_else(|| "/".to_owned());
        env.extend([("HOME", home), ("USER", name.clone()), ("LOGNAME", name)]);
    }
    Ok(Resolved { credentials, env })
}

struct Who {
    uid: Uid,
    gid: Option<Gid>,
    name: Option<String>,
    home: Option<String>,
}

fn user(text: &str) -> Result<Who, SpawnFailure> {
    let number = text.parse::<u32>().ok();
    let found = match number {
        Some(number) => User::from_uid(Uid::from_raw(number)),
        None => User::from_name(text),
    };
    match (found, number) {
        (Ok(Some(user)), _) => Ok(Who {
            uid: user.uid,
            gid: Some(user.gid),
            home: Some(user.dir.display().to_string()),
            name: Some(user.name),
        }),
        // A user id needs no entry in the user database.
        (_, Some(number)) => {
            Ok(Who { uid: Uid::from_raw(number), gid: Some(Gid::from_raw(number)), name: None, home: None })
        }
        (Ok(None) | Err(_), None) => Err(unknown("user", text)),
    }
}

/// The user id and group id of `user`, `user:group` or `:group`, each by name or number. For a user
/// alone the group is the user's primary group.
pub(crate) fn of_owner(text: &str) -> std::io::Result<(Option<u32>, Option<u32>)> {
    let (name, group_name) = text.split_once(':').unwrap_or((text, ""));
    let unknown = |failure: SpawnFailure| std::io::Error::other(failure.message);
    let who = if name.is_empty() { None } else { Some(user(name).map_err(unknown)?) };
    let gid = match (group_name, &who) {
        ("", who) => who.as_ref().and_then(|who| who.gid),
        (name, _) => Some(group(name).map_err(unknown)?),
    };
    Ok((who.map(|who| who.uid.as_raw()), gid.map(Gid::as_raw)))
}

fn group(text: &str) -> Result<Gid, SpawnFailure> {
    match text.parse::<u32>() {
        Ok(number) => Ok(Gid::from_raw(number)),
        Err(_) => match Group::from_name(text) {
            Ok(Some(group)) => Ok(group.gid),
            Ok(None) | Err(_) => Err(unknown("group", text)),
        },
    }
}

fn unknown(what: &str, name: &str) -> SpawnFailure {
    SpawnFailure {
        stage: SpawnStage::User,
        errno: Errno::ENOENT as i32,
        errno_name: "ENOENT".to_owned(),
        message: format!("there is no {what} {name:?} here"),
    }
}
