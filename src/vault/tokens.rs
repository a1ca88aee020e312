//! Tokens of the network API: names, hashes and permissions in one file of our own.
//!
//! A token is 256 random bits, so one round of SHA-256 is enough to keep it by: there is nothing to
//! guess. The token itself is shown once, where it is made, and never kept.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use std::{fmt, fs, io};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::decide::access::Permission;
use crate::model::Name;
use crate::sys::files;

/// So that a token is known for one where it should not be.
const PREFIX: &str = "regrow_";
/// The form of the file.
const VERSION: u32 = 1;
/// Bytes of chance.
const CHANCE: usize = 32;

/// What may be known of a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Its name.
    pub name: Name,
    /// What it allows.
    pub permissions: Vec<Permission>,
    /// When it was made.
    #[serde(with = "crate::model::time::rfc3339")]
    pub created: SystemTime,
    /// From when on it is worth nothing; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_time")]
    pub expires: Option<SystemTime>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    token: Token,
    sha256: String,
}

#[derive(Default, Serialize, Deserialize)]
struct Written {
    version: u32,
    tokens: Vec<Kept>,
}

/// A token as its holder has it.
pub struct Plain(Zeroizing<String>);

impl Plain {
    /// To be shown once.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plain(..)")
    }
}

/// By what a file is known to be another.
type Stamp = Option<(u64, u64, i64, i64)>;

/// The file of the tokens.
pub struct Tokens {
    path: PathBuf,
    /// As it was read last.
    read: Mutex<(Stamp, Arc<Vec<Kept>>)>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({})", self.path.display())
    }
}

impl Tokens {
    /// Of this file, which is made with the first token.
    pub fn at(path: PathBuf) -> Tokens {
        Tokens { path, read: Mutex::new((None, Arc::new(Vec::new()))) }
    }

    /// Makes one; an error where there is one of that name.
    pub fn create(
        &self,
        name: &Name,
        permissions: Vec<Permission>,
        expires: Option<SystemTime>,
    ) -> io::Result<Plain> {
        let mut chance = Zeroizing::new([0u8; CHANCE]);
        getrandom::fill(chance.as_mut_slice()).map_err(|error| io::Error::other(error.to_string()))?;
        let plain = Plain(Zeroizing::new(format!("{PREFIX}{}", hex(chance.as_slice()))));
        self.change(|written| {
            if written.tokens.iter().any(|kept| kept.token.name == *name) {
                let what = format!("there is a token {name} already");
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
            }
            let token = Token { name: name.clone(), permissions, created: SystemTime::now(), expires };
            written.tokens.push(Kept { token, sha256: hex(&Sha256::digest(plain.reveal())) });
            Ok(())
        })?;
        Ok(plain)
    }

    /// All of them.
    pub fn list(&self) -> io::Result<Vec<Token>> {
        Ok(read(&self.path)?.tokens.into_iter().map(|kept| kept.token).collect())
    }

    /// Makes one worth nothing, from now on; `false`: there was none.
    pub fn revoke(&self, name: &str) -> io::Result<bool> {
        let mut was = false;
        if self.path.exists() {
            self.change(|written| {
                let before = written.tokens.len();
                written.tokens.retain(|kept| kept.token.name.as_str() != name);
                was = written.tokens.len() < before;
                Ok(())
            })?;
        }
        Ok(was)
    }

    /// The token that somebody shows. How long that takes says nothing of how much of it is right.
    pub fn find(&self, shown: &str, now: SystemTime) -> io::Result<Option<Token>> {
        let hash = hex(&Sha256::digest(shown));
        let mut found = None;
        for kept in self.current()?.iter() {
            if bool::from(kept.sha256.as_bytes().ct_eq(hash.as_bytes())) {
                found = Some(&kept.token).filter(|token| token.expires.is_none_or(|at| at > now)).cloned();
            }
        }
        Ok(found)
    }

    /// Whether this very token is still there.
    pub fn holds(&self, token: &Token, now: SystemTime) -> bool {
        let there = self.current().is_ok_and(|all| all.iter().any(|kept| kept.token == *token));
        there && token.expires.is_none_or(|at| at > now)
    }

    /// As the file is now; it is read only when it has changed.
    fn current(&self) -> io::Result<Arc<Vec<Kept>>> {
        let stamp = fs::metadata(&self.path)
            .ok()
            .map(|file| (file.dev(), file.ino(), file.mtime(), file.mtime_nsec()));
        let mut last = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != stamp || stamp.is_none() {
            *last = (stamp, Arc::new(read(&self.path)?.tokens));
        }
        Ok(Arc::clone(&last.1))
    }

    fn change(&self, change: impl FnOnce(&mut Written) -> io::Result<()>) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        files::private_dir(folder)?;
        let _alone = files::lock_waiting(&folder.join("tokens.lock"))?;
        let mut written = read(&self.path)?;
        change(&mut written)?;
        files::replace(&self.path, &serde_json::to_string(&written)?)
    }
}

fn read(path: &Path) -> io::Result<Written> {
    match files::read_own(path) {
        Ok(text) => match serde_json::from_slice::<Written>(&text) {
            Ok(written) if written.version <= VERSION => Ok(written),
            Ok(_) => Err(invalid(path, "was written by a newer build of regrow")),
            Err(_) => Err(invalid(path, "is damaged")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Written { version: VERSION, tokens: Vec::new() })
        }
        Err(error) => Err(error),
    }
}

fn invalid(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} {what}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

mod optional_time {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "serde hands it a reference to the field")]
    pub(crate) fn serialize<S: Serializer>(
        at: &Option<SystemTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => serializer.collect_str(&humantime::format_rfc3339_millis(*at)),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| humantime::parse_rfc3339(&text)).transpose().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash_until_it_expires_or_is_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own/tokens.json");
        let tokens = Tokens::at(path.clone());
        let (ci, ops) = (Name::new("ci").unwrap(), Name::new("ops").unwrap());
        let now = SystemTime::now();
        let read = || vec!["read:*".parse().unwrap()];
        let plain = tokens.create(&ci, read(), Some(now + Duration::from_secs(60))).unwrap();
        let other = tokens.create(&ops, read(), None).unwrap();
        assert!(tokens.create(&ci, read(), None).is_err());
        assert_eq!(format!("{plain:?}"), "Plain(..)");
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(plain.reveal()) && !text.contains(&plain.reveal()[7..20]), "{text}");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        let found = tokens.find(plain.reveal(), now).unwrap().unwrap();
        assert_eq!(found.name, ci);
        assert!(tokens.holds(&found, now));
        assert_eq!(tokens.find(&plain.reveal()[..70], now).unwrap(), None);
        assert_eq!(tokens.find("", now).unwrap(), None);
        assert_eq!(tokens.find(plain.reveal(), now + Duration::from_secs(61)).unwrap(), None);

        // By another process.
        assert!(Tokens::at(path).revoke("ci").unwrap());
        assert!(!tokens.holds(&found, now));
        assert_eq!(tokens.find(plain.reveal(), now).unwrap(), None);
        assert!(tokens.find(other.reveal(), now).unwrap().is_some());
        // Another of the same name is another.
        tokens.create(&ci, read(), None).unwrap();
        assert!(!tokens.holds(&found, now) && !tokens.revoke("nobody").unwrap());
    }
}
