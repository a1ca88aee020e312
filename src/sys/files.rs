//! Private folders and files, locks, and the sockets of the control interface.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The folder of the state that outlives a command: `$REGROW_STATE_DIR`, else
/// `$XDG_STATE_HOME/regrow`, else `~/.local/state/regrow`; for root `/var/lib/regrow`.
pub fn state_dir() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = var("REGROW_STATE_DIR") {
        return dir;
    }
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/regrow");
    }
    if let Some(dir) = var("XDG_STATE_HOME") {
        return dir.join("regrow");
    }
    let home = var("HOME").unwrap_or_else(|| PathBuf::from("/tmp"));
    home.join(".local/state/regrow")
}

/// The folder of a user's own configuration: `$XDG_CONFIG_HOME/regrow`, else `~/.config/regrow`;
/// for root `/etc/regrow`.
pub fn config_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/etc/regrow");
    }
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = var("XDG_CONFIG_HOME").or_else(|| var("HOME").map(|home| home.join(".config")));
    base.unwrap_or_else(|| PathBuf::from("/etc")).join("regrow")
}

/// Makes a folder and its parents, with mode 0700. Fails when the path is a link, is not a folder,
/// or belongs to another user. A folder of ours that others may enter gets mode 0700.
pub fn private_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let found = fs::symlink_metadata(path)?;
    let denied = |what: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    if !found.is_dir() {
        return denied(format!("{} is not a real folder", path.display()));
    }
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return denied(format!("{} belongs to another user", path.display()));
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(path, PermissionsExt::from_mode(0o700))?;
    }
    Ok(())
}

/// Opens a file of our own for appending, and makes it when it is missing. Never follows a link.
pub fn own_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
        .open(path)
}

/// Replaces the content of a file atomically: writes a new file beside it and renames it. The new
/// content is on the disk when this returns.
pub fn replace(path: &Path, content: &str) -> io::Result<()> {
    replace_and(path, content, File::sync_all)
}

/// Like [`replace`], without waiting for the disk. The content survives a crash of any process, but
/// not a power cut.
pub fn replace_quickly(path: &Path, content: &str) -> io::Result<()> {
    replace_and(path, content, |_| Ok(()))
}

fn replace_and(path: &Path, content: &str, then: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // An earlier attempt may have left a file behind.
    let _ = fs::remove_file(&beside);
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let written = own_file(&beside).and_then(|mut file| {
        io::Write::write_all(&mut file, content.as_bytes())?;
        // The new file keeps the permissions of the old one.
        if let Ok(old) = fs::metadata(path) {
            file.set_permissions(old.permissions())?;
        }
        then(&file)
    });
    written.and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}

/// Makes the folder of a file, with mode 0700, when it is missing. An existing folder stays as it
/// is: it may be the machine's (`/run`).
pub fn private_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.is_dir() => private_dir(folder),
        Some(_) | None => Ok(()),
    }
}

/// Reads a file of our own, never through a link.
pub fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
        .open(path)?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut file, &mut bytes)?;
    Ok(bytes)
}

/// Makes the folder of a socket that other users may reach, with mode 0755, when it is missing.
pub fn open_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.is_dir() => {
            DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
            // The mode that was asked for, whatever the umask took from it.
            fs::set_permissions(folder, PermissionsExt::from_mode(0o755))
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_folder_is_made_private_and_never_through_a_link() {
        let base = tempfile::tempdir().unwrap();
        let fresh = base.path().join("a/b");
        private_dir(&fresh).unwrap();
        assert_eq!(fs::metadata(&fresh).unwrap().mode() & 0o777, 0o700);
        let open = base.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, PermissionsExt::from_mode(0o755)).unwrap();
        private_dir(&open).unwrap();
        assert_eq!(fs::metadata(&open).unwrap().mode() & 0o777, 0o700);
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&fresh, &link).unwrap();
        assert!(private_dir(&link).is_err());
    }
}
