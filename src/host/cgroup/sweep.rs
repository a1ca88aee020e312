//! The end of what dead owners left behind: of a run by its keeper or by the next run in the same place,
//! of a daemon's empty directories by whoever comes by.

use std::collections::HashSet;
use std::path::Path;
use std::{fs, io};

use super::lifetime::{folders_in, hold, own_cgroup, pid_namespace, remove_all};
use super::reuse::is_populated;
use crate::host::marks::{self, run_of};
use crate::sys::{pidfd, proc};

/// Ends all processes of a run whose owner is dead.
pub(crate) fn end_of(owner: u32, started: u64) {
    let Some(space) = pid_namespace() else {
        return;
    };
    let prefix = format!("regrow-{space}-{owner}-{started}-");
    for folder in own_cgroup().map(|own| folders_in(&own)).unwrap_or_default() {
        if folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
            kill_and_remove(&folder);
        }
    }
}

/// Ends what dead owners of this pid namespace left behind in this place. Runs of other namespaces
/// see their own processes, and this process does not.
pub(crate) fn sweep() {
    let space = pid_namespace();
    let own = own_cgroup();
    own.iter().for_each(|own| sweep_lasting(own, space));
    for folder in own.map(|own| folders_in(&own)).unwrap_or_default() {
        // An owner that lives holds its directory.
        if let Some((of, run)) = run_named(&folder)
            && Some(of) == space
            && let Some(_held) = hold(&folder)
        {
            tracing::warn!(cgroup = %folder.display(), "ending what a run left behind");
            // The directory goes last: as long as it exists, another run can continue where this
            // one ends.
            end_marked(run);
            kill_and_remove(&folder);
        }
    }
}

/// Removes cgroups of daemons in which no process lives and that no daemon holds, for instance
/// because their state directory is gone.
pub(super) fn sweep_lasting(own: &Path, space: Option<u64>) {
    let Some(prefix) = space.map(|space| format!("regrowd-{space}-")) else {
        return;
    };
    for folder in folders_in(own) {
        let is_one = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        let lives = || fs::read(folder.join("cgroup.events")).map_or(true, |events| is_populated(&events));
        if is_one
            && !lives()
            // A daemon shares the lock with the daemons before and after it.
            && let Some(_held) = hold(&folder)
            && !lives()
        {
            remove_all(&folder);
        }
    }
}

/// Ends every process in the cgroup of one tree, and removes it.
pub(crate) fn end_one(folder: &Path) {
    if folder.is_dir() {
        kill_and_remove(folder);
    }
}

/// The pid namespace and the run's number that a directory is named after. `None`: the name is not
/// a run's, and the directory is not ours to end.
pub(super) fn run_named(folder: &Path) -> Option<(u64, u32)> {
    let mut parts = folder.file_name()?.to_str()?.strip_prefix("regrow-")?.split('-');
    let space = parts.next()?.parse().ok()?;
    for _ in ["owner", "start"] {
        parts.next()?.parse::<u64>().ok()?;
    }
    let run = u32::from_str_radix(parts.next()?, 16).ok()?;
    parts.next().is_none().then_some((space, run))
}

/// Ends every process that carries a dead run's number in a limit, because not all had a cgroup.
fn end_marked(run: u32) {
    end_marked_but(run, &HashSet::new());
}

/// Ends every process that carries a run's number in a limit, except those of the known trees.
pub(crate) fn end_marked_but(run: u32, known: &HashSet<u64>) {
    let is_of_run = |pid: u32| {
        marks::mark(pid)
            .is_some_and(|mark| run_of(mark) == Some(run) && !known.contains(&(mark & 0xffff_ffff)))
    };
    // Processes that they fork meanwhile carry the number, too.
    for _ in 0..50 {
        let found: Vec<u32> = proc::all().iter().map(|stat| stat.pid).filter(|pid| is_of_run(*pid)).collect();
        if found.is_empty() {
            return;
        }
        for pid in found {
            // Checked again after the open: the pid may have been reused since.
            if let Ok(fd) = pidfd::open(pid)
                && is_of_run(pid)
            {
                let _ = pidfd::signal(&fd, nix::libc::SIGKILL);
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn kill_and_remove(root: &Path) {
    let killed = fs::write(root.join("cgroup.kill"), "1");
    if killed.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
        // The cgroup belongs to another user.
        return;
    }
    // Killed processes are gone within moments, unless they are stuck in the kernel.
    for _ in 0..200 {
        remove_all(root);
        if !root.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cgroup::{Cgroups, Use};

    #[test]
    fn only_folders_of_runs_are_ever_swept() {
        let run = |name: &str| run_named(&Path::new("/sys/fs/cgroup").join(name));
        assert_eq!(run("regrow-4026531836-4711-99-1f"), Some((4_026_531_836, 0x1f)));
        for other in [
            "regrow-web.service",
            "regrow-1-2-3",
            "regrow-1-2-3-4.slice",
            "regrow-1-2-3-4-5",
            "regrow-a-2-3-4",
            "system.slice",
        ] {
            assert_eq!(run(other), None, "{other}");
        }
    }

    #[test]
    fn what_a_daemon_has_left_is_removed_when_nobody_has_it() {
        let (Some(own), space) = (own_cgroup(), pid_namespace()) else {
            return;
        };
        let Some(cgroups) = Cgroups::make_lasting(0x2fff_fff3) else {
            // No cgroup can be made here, so there is nothing to test.
            return;
        };
        let folder = cgroups.folder().to_owned();
        assert!(cgroups.fresh(1, Use::Once).is_some());
        let next = Cgroups::make_lasting(0x2fff_fff3).unwrap();
        sweep_lasting(&own, space);
        assert!(folder.join("1").exists(), "two have it");
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(folder.join("1/cgroup.procs"), child.id().to_string()).unwrap();
        drop((cgroups, next));
        // The threads that hold the lock end a moment after their cgroups.
        let begun = std::time::Instant::now();
        while hold(&folder).is_none() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(30), "nobody has it");
            std::thread::yield_now();
        }
        sweep_lasting(&own, space);
        assert!(folder.join("1").exists(), "somebody lives there");
        child.kill().unwrap();
        child.wait().unwrap();
        while folder.exists() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(30), "it is removed");
            sweep_lasting(&own, space);
        }
    }
}
