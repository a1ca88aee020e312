//! The vault: encrypted values that a manifest refers to by name.
//!
//! One file holds all values, encrypted with XChaCha20-Poly1305. Each has a nonce of its own and is
//! bound to its name. The key lies beside the file, readable by its owner alone, or comes from the
//! environment or from systemd. A value leaves the vault only for the environment of a process
//! whose manifest names it, and nothing here prints one.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fmt, fs};

use cipher::{KEY, NONCE};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::model::{Name, SpawnFailure, SpawnStage};
use crate::sys::files;

/// The largest value, in bytes.
const LARGEST: usize = 64 * 1024;
/// The environment variable with the key: 32 bytes as 64 hexadecimal digits.
const FROM_ENVIRONMENT: &str = "REGROW_SECRET_KEY";
/// The name of the key among systemd's credentials (systemd.exec(5), LoadCredential=).
const CREDENTIAL: &str = "regrow-secret-key";

/// A secret value. It is never printed, and its memory is wiped when it is dropped.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// A secret with this text. The memory of the text is wiped when the secret is dropped.
    pub fn new(text: String) -> Secret {
        Secret(Zeroizing::new(text))
    }

    fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What may be shown of a secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SecretInfo {
    /// The name of the secret.
    pub name: Name,
    /// When it was last set.
    #[serde(with = "crate::model::time::rfc3339")]
    pub updated: SystemTime,
}

/// The folder in which secrets are kept.
#[derive(Debug, Clone)]
pub struct Vault {
    folder: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
struct Written {
    version: u32,
    secrets: BTreeMap<Name, Sealed>,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    #[serde(with = "crate::model::time::rfc3339")]
    updated: SystemTime,
    nonce: String,
    text: String,
}

impl Sealed {
    fn open(&self, key: &[u8; KEY], name: &Name) -> io::Result<Secret> {
        let damaged = || invalid("the vault is damaged");
        let nonce: [u8; NONCE] =
            unhex(&self.nonce).and_then(|nonce| nonce.try_into().ok()).ok_or_else(damaged)?;
        let text = unhex(&self.text).ok_or_else(damaged)?;
        cipher::open(key, name.as_str(), nonce, &text)
    }
}

impl Vault {
    /// The vault in this folder. The folder is made when the first value is put there.
    pub fn at(folder: PathBuf) -> Vault {
        Vault { folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.join("vault.json")
    }

    fn read(&self) -> io::Result<Written> {
        match files::read_own(&self.file()) {
            Ok(text) => serde_json::from_slice(&text).map_err(|_| invalid("the vault is damaged")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Written { version: 1, ..Written::default() })
            }
            Err(error) => Err(of(&self.file())(error)),
        }
    }

    /// Stores a value under this name, and replaces an earlier one.
    pub fn set(&self, name: &Name, value: &Secret) -> io::Result<()> {
        if value.text().len() > LARGEST {
            return Err(invalid("a secret has at most 64 KiB"));
        }
        if value.text().contains('\0') {
            return Err(invalid("a secret can't contain a NUL character"));
        }
        files::private_dir(&self.folder)?;
        let _alone = self.lock()?;
        let mut written = self.read()?;
        // A new or different key would make the stored values unreadable for ever.
        let key = self.key(written.secrets.is_empty()).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData if !written.secrets.is_empty() => {
                invalid(&format!("{error}; what is in the vault was sealed with it: put it back"))
            }
            _ => error,
        })?;
        if let Some((other, sealed)) = written.secrets.iter().next()
            && sealed.open(&key, other).is_err()
        {
            return Err(invalid("what is in the vault was sealed with another key: put that one back"));
        }
        let (nonce, text) = cipher::seal(&key, name.as_str(), value.text())?;
        let sealed = Sealed { updated: SystemTime::now(), nonce: hex(&nonce), text: hex(&text) };
        written.secrets.insert(name.clone(), sealed);
        self.write(&written)
    }

    /// Removes a secret. `false` when there was none of that name.
    pub fn remove(&self, name: &Name) -> io::Result<bool> {
        if !self.file().exists() {
            return Ok(false);
        }
        let _alone = self.lock()?;
        let mut written = self.read()?;
        let was = written.secrets.remove(name).is_some();
        if was {
            self.write(&written)?;
        }
        Ok(was)
    }

    /// Every secret's name and the time of its last change.
    pub fn list(&self) -> io::Result<Vec<SecretInfo>> {
        let secrets = self.read()?.secrets.into_iter();
        Ok(secrets.map(|(name, sealed)| SecretInfo { name, updated: sealed.updated }).collect())
    }

    fn lock(&self) -> io::Result<crate::sys::locks::Lock> {
        let path = self.folder.join("lock");
        crate::sys::locks::lock_waiting(&path).map_err(of(&path))
    }

    fn write(&self, written: &Written) -> io::Result<()> {
        files::replace(&self.file(), &serde_json::to_string(written)?).map_err(of(&self.file()))
    }

    /// The value of each environment variable that is a secret, with the name of the variable.
    pub(crate) fn assignments(
        &self,
        wanted: &[(String, Name)],
    ) -> Result<Vec<(String, Secret)>, SpawnFailure> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let trouble = |what: &str| SpawnFailure {
            stage: SpawnStage::Secret,
            errno: nix::libc::ENOENT,
            errno_name: "ENOENT".to_owned(),
            message: what.to_owned(),
        };
        let written = self.read().map_err(|error| trouble(&format!("the secrets can't be read: {error}")))?;
        let mut found = Vec::new();
        for (variable, name) in wanted {
            let sealed = written.secrets.get(name).ok_or_else(|| {
                trouble(&format!("there is no secret {name} (\"regrow secret set {name}\" makes it)"))
            })?;
            let opened = self.key(false).and_then(|key| sealed.open(&key, name));
            match opened {
                Ok(value) => found.push((variable.clone(), value)),
                Err(error) => return Err(trouble(&format!("the secret {name} can't be read: {error}"))),
            }
        }
        Ok(found)
    }

    /// The key: from the environment, from systemd's credentials, or from the file beside the vault.
    /// With `make`, a missing file is made.
    fn key(&self, make: bool) -> io::Result<Zeroizing<[u8; KEY]>> {
        if let Ok(text) = std::env::var(FROM_ENVIRONMENT) {
            return key_of(&Zeroizing::new(text), FROM_ENVIRONMENT);
        }
        if let Some(folder) = std::env::var_os("CREDENTIALS_DIRECTORY")
            && let Ok(text) = fs::read_to_string(Path::new(&folder).join(CREDENTIAL))
        {
            return key_of(&Zeroizing::new(text), CREDENTIAL);
        }
        let path = self.folder.join("key");
        match files::read_own(&path) {
            Ok(bytes) => {
                if fs::metadata(&path)?.mode() & 0o077 != 0 {
                    return Err(invalid(
                        "the key file can be read by others: run chmod 600 on it, and consider the key compromised",
                    ));
                }
                let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
                key_of(&text, "the key file")
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && make => {
                let key = cipher::new_key()?;
                let mut file = fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                    .map_err(of(&path))?;
                io::Write::write_all(&mut file, Zeroizing::new(hex(&*key)).as_bytes())?;
                file.sync_all()?;
                Ok(key)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(invalid("there is neither a key file nor another source of the key"))
            }
            Err(error) => Err(of(&path)(error)),
        }
    }
}

/// Adds the path of the file to an error.
fn of(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn key_of(text: &str, from: &str) -> io::Result<Zeroizing<[u8; KEY]>> {
    let bytes = unhex(text.trim()).and_then(|bytes| <[u8; KEY]>::try_from(bytes).ok());
    bytes
        .map(Zeroizing::new)
        .ok_or_else(|| invalid(&format!("{from} does not hold a key: 64 hexadecimal digits are required")))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

/// Reads a value from standard input, without echo if that is a terminal. A newline at the end is
/// not part of the value.
pub fn read_value() -> io::Result<Secret> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let input = io::stdin();
    let before = tcgetattr(&input).ok();
    if let Some(before) = &before {
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        let _ = tcsetattr(&input, SetArg::TCSANOW, &silent);
    }
    let mut text = String::new();
    let read = match &before {
        Some(_) => input.read_line(&mut text).map(drop),
        None => input.lock().take(LARGEST as u64 + 2).read_to_string(&mut text).map(drop),
    };
    if let Some(before) = &before {
        let _ = tcsetattr(&input, SetArg::TCSANOW, before);
    }
    read?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(Secret::new(text))
}

#[cfg(feature = "secrets")]
mod cipher {
    use std::io;

    use chacha20poly1305::aead::{Aead, Generate, KeyInit, Payload};
    use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
    use zeroize::Zeroizing;

    use super::{Secret, invalid};

    pub(crate) const KEY: usize = 32;
    pub(crate) const NONCE: usize = 24;

    pub(crate) fn new_key() -> io::Result<Zeroizing<[u8; KEY]>> {
        let key = Key::try_generate().map_err(|_| invalid("the kernel gives no random numbers"))?;
        Ok(Zeroizing::new(key.into()))
    }

    pub(crate) fn seal(key: &[u8; KEY], name: &str, text: &str) -> io::Result<([u8; NONCE], Vec<u8>)> {
        let nonce = XNonce::try_generate().map_err(|_| invalid("the kernel gives no random numbers"))?;
        let payload = Payload { msg: text.as_bytes(), aad: name.as_bytes() };
        let cipher = XChaCha20Poly1305::new(&Key::from(*key));
        let sealed = cipher.encrypt(&nonce, payload).map_err(|_| invalid("the secret can't be encrypted"))?;
        Ok((nonce.into(), sealed))
    }

    pub(crate) fn open(key: &[u8; KEY], name: &str, nonce: [u8; NONCE], text: &[u8]) -> io::Result<Secret> {
        let payload = Payload { msg: text, aad: name.as_bytes() };
        let cipher = XChaCha20Poly1305::new(&Key::from(*key));
        let opened = cipher.decrypt(&XNonce::from(nonce), payload);
        let opened = opened.map_err(|_| invalid("the key is a different one, or the vault was modified"))?;
        String::from_utf8(opened).map(Secret::new).map_err(|_| invalid("the vault is damaged"))
    }
}

#[cfg(not(feature = "secrets"))]
mod cipher {
    use std::io;

    use zeroize::Zeroizing;

    use super::{Secret, invalid};

    pub(crate) const KEY: usize = 32;
    pub(crate) const NONCE: usize = 24;
    const ABSENT: &str = "this program was built without support for secrets";

    pub(crate) fn new_key() -> io::Result<Zeroizing<[u8; KEY]>> {
        Err(invalid(ABSENT))
    }

    pub(crate) fn seal(_: &[u8; KEY], _: &str, _: &str) -> io::Result<([u8; NONCE], Vec<u8>)> {
        Err(invalid(ABSENT))
    }

    pub(crate) fn open(_: &[u8; KEY], _: &str, _: [u8; NONCE], _: &[u8]) -> io::Result<Secret> {
        Err(invalid(ABSENT))
    }
}

impl Secret {
    /// `NAME=VALUE` as the environment of a process has it. `None` when the value contains a NUL.
    pub(crate) fn assignment(&self, variable: &str) -> Option<std::ffi::CString> {
        std::ffi::CString::new(format!("{variable}={}", self.text())).ok()
    }
}

#[cfg(all(test, feature = "secrets"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_encrypted_and_bound_to_its_name_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::at(folder.path().join("secrets"));
        let (db, other) = (Name::new("db").unwrap(), Name::new("other").unwrap());
        let value = Secret::new("canary-4711".to_owned());
        assert_eq!(format!("{value:?}"), "Secret(..)");
        vault.set(&db, &value).unwrap();
        vault.set(&other, &Secret::new("x".to_owned())).unwrap();
        let text = fs::read_to_string(vault.file()).unwrap();
        assert!(!text.contains("canary") && !text.contains(&hex(b"canary")), "{text}");
        for file in ["vault.json", "key"] {
            assert_eq!(fs::metadata(vault.folder.join(file)).unwrap().mode() & 0o777, 0o600, "{file}");
        }
        let wanted = [("PASSWORD".to_owned(), db.clone())];
        let found = vault.assignments(&wanted).unwrap();
        assert_eq!(found[0].1.text(), "canary-4711");
        // A value that was sealed under another name is refused.
        let mut written = vault.read().unwrap();
        let moved = written.secrets.remove(&other).unwrap();
        written.secrets.insert(db.clone(), moved);
        vault.write(&written).unwrap();
        let failure = vault.assignments(&wanted).unwrap_err();
        assert!(
            failure.message.contains("the key is a different one, or the vault was modified"),
            "{}",
            failure.message
        );
        assert!(vault.remove(&db).unwrap() && !vault.remove(&db).unwrap());
        let failure = vault.assignments(&wanted).unwrap_err();
        assert!(failure.message.starts_with("there is no secret db"), "{}", failure.message);
        fs::set_permissions(vault.folder.join("key"), std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .unwrap();
        assert!(vault.set(&db, &value).unwrap_err().to_string().contains("chmod 600"));
    }

    /// A vault whose key is missing or replaced accepts no more values, since the stored ones could
    /// never be read again.
    #[test]
    fn a_vault_keeps_to_the_key_that_it_was_sealed_with() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::at(folder.path().join("secrets"));
        let (db, other) = (Name::new("db").unwrap(), Name::new("other").unwrap());
        let value = Secret::new("canary".to_owned());
        vault.set(&db, &value).unwrap();
        let (key, aside) = (vault.folder.join("key"), vault.folder.join("aside"));
        fs::rename(&key, &aside).unwrap();
        let refused = vault.set(&other, &value).unwrap_err().to_string();
        assert!(refused.contains("was sealed with it: put it back"), "{refused}");
        assert!(!key.exists(), "no other key was made");
        let stranger = Vault::at(folder.path().join("stranger"));
        stranger.set(&db, &value).unwrap();
        fs::copy(stranger.folder.join("key"), &key).unwrap();
        let refused = vault.set(&other, &value).unwrap_err().to_string();
        assert!(refused.contains("sealed with another key"), "{refused}");
        fs::rename(&aside, &key).unwrap();
        vault.set(&other, &value).unwrap();
        assert_eq!(vault.assignments(&[("A".to_owned(), db)]).unwrap()[0].1.text(), "canary");
    }
}
