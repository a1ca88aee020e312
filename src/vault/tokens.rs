//! Tokens of the network API: their names, hashes and permissions, in one private file.
//!
//! A token is 256 random bits, too many to guess, so one round of SHA-256 is enough to store it.
//! The token itself is shown once, when it is made, and never stored.

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

/// The prefix by which a token is recognised in a place where it should not be.
const PREFIX: &str = "regrow_";
/// The version of the file format.
const VERSION: u32 = 1;
/// The number of random bytes in a token.
const CHANCE: usize = 32;

/// What may be shown of a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// The name of the token.
    pub name: Name,
    /// The permissions that the token grants.
    pub permissions: Vec<Permission>,
    /// When the token was made.
    #[serde(with = "crate::model::time::rfc3339")]
    pub created: SystemTime,
    /// The time from which on the token is no longer valid. `None`: it never expires.
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

/// A token in plain text, as its holder has it.
pub struct Plain(Zeroizing<String>);

impl Plain {
    /// The text of the token, to be shown once.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plain(..)")
    }
}

/// The device, the inode and the modification time of a file, by which a change to it is noticed.
type Stamp = Option<(u64, u64, i64, i64)>;

/// The tokens of one file.
pub struct Tokens {
    path: PathBuf,
    /// The tokens as they were last read from the file.
    read: Mutex<(Stamp, Arc<Vec<Kept>>)>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({})", self.path.display())
    }
}

impl Tokens {
    /// The tokens in this file. The file is made with the first token.
    pub fn at(path: PathBuf) -> Tokens {
        Tokens { path, read: Mutex::new((None, Arc::new(Vec::new()))) }
    }

    /// Makes a token. Fails when a token of that name exists.
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
                let what = format!("a token {name} already exists");
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
            }
            let token = Token { name: name.clone(), permissions, created: SystemTime::now(), expires };
            written.tokens.push(Kept { token, sha256: hex(&Sha256::digest(plain.reveal())) });
            Ok(())
        })?;
        Ok(plain)
    }

    /// All tokens, expired ones included.
    pub fn list(&self) -> io::Result<Vec<Token>> {
        Ok(read(&self.path)?.tokens.into_iter().map(|kept| kept.token).collect())
    }

    /// Removes a token, which is invalid from now on. `false` when there was none of that name.
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

    /// The valid token with this text. The time that the comparison takes does not depend on how much
    /// of the text is right.
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

    /// Whether this very token still exists and has not expired.
    pub fn holds(&self, token: &Token, now: SystemTime) -> bool {
        let there = self.current().is_ok_and(|all| all.iter().any(|kept| kept.token == *token));
        there && token.expires.is_none_or(|at| at > now)
    }

    /// The tokens as the file has them now. The file is read again only when it has changed.
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
        let _alone = crate::sys::locks::lock_waiting(&folder.join("tokens.lock"))?;
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

        // Another process revokes the token.
        assert!(Tokens::at(path).revoke("ci").unwrap());
        assert!(!tokens.holds(&found, now));
        assert_eq!(tokens.find(plain.reveal(), now).unwrap(), None);
        assert!(tokens.find(other.reveal(), now).unwrap().is_some());
        // A new token of the same name is a different token.
        tokens.create(&ci, read(), None).unwrap();
        assert!(!tokens.holds(&found, now) && !tokens.revoke("nobody").unwrap());
    }
}
