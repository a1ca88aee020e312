//! Spawns real children.

use std::io::Read;
use std::os::fd::AsFd;

use std::path::Path;

use super::*;

/// How a test waits for a start.
#[derive(Debug, Clone, Copy)]
enum Way {
    StandStill,
    GoOn,
}

fn make(
    spawner: &mut Spawner,
    program: Program,
    cgroup: Option<BorrowedFd<'_>>,
    way: Way,
) -> Result<Spawned, Failed> {
    match way {
        Way::StandStill => spawner.spawn(&program, [None, None], 1 << 62, cgroup),
        Way::GoOn => {
            let begun = spawner.begin(program, 1 << 62, cgroup)?;
            let mut look = [PollFd::new(begun.status(), PollFlags::POLLIN)];
            nix::poll::poll(&mut look, PollTimeout::from(20_000u16)).unwrap();
            spawner.settle(begun)
        }
    }
}

fn run(
    spawner: &mut Spawner,
    argv: &[&str],
    cgroup: Option<BorrowedFd<'_>>,
    way: Way,
) -> (String, crate::model::Exit) {
    let argv: Vec<String> = argv.iter().map(|w| (*w).to_owned()).collect();
    let env = vec![CString::new("PATH=/usr/bin:/bin").unwrap(), CString::new("X=1").unwrap()];
    let program = Program::find(&argv, Path::new("/"), env).unwrap();
    let program = Program::from_bytes(&program.to_bytes()).unwrap();
    let made = make(spawner, program, cgroup, way).unwrap();
    let mut text = String::new();
    let mut pipe = std::fs::File::from(made.stdout);
    nix::fcntl::fcntl(&pipe, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
    pipe.read_to_string(&mut text).unwrap();
    let exit = loop {
        if let Some(exit) = crate::sys::pidfd::reap(&made.pidfd).unwrap() {
            break exit;
        }
        std::thread::yield_now();
    };
    (text, exit)
}

const ALONE: Ties = Ties { die_with_us: true, outlive_readers: false };
const KEPT: Ties = Ties { die_with_us: false, outlive_readers: true };

#[test]
fn every_way_of_sharing_makes_the_same_child() {
    let cgroups = super::super::cgroup::Cgroups::make(1);
    let sharings = [Sharing::All, Sharing::Memory, Sharing::Nothing];
    let ways = [(Way::StandStill, ALONE), (Way::GoOn, KEPT)];
    let all = sharings.iter().flat_map(|sharing| [false, true].map(|inside| (*sharing, inside)));
    let all = all.flat_map(|(sharing, inside)| ways.map(|(way, ties)| (sharing, inside, way, ties)));
    for (key, (sharing, in_cgroup, way, ties)) in (0u64..).zip(all) {
        let cgroup = cgroups
            .as_ref()
            .filter(|_| in_cgroup)
            .and_then(|cgroups| cgroups.fresh(key, super::super::cgroup::Use::Once));
        if in_cgroup && cgroup.is_none() {
            eprintln!("SKIPPED {sharing:?} in a cgroup: none can be made here");
            continue;
        }
        let mut spawner = Spawner::new(Limits::of_this_process(), ties).unwrap();
        spawner.sharing = sharing;
        let script = "ls /proc/self/fd | tr '\\n' ' '; grep -E 'SigBlk|SigIgn' /proc/self/status; \
                      cat /proc/self/cgroup; echo \"$X $(ps -o sid= -p $$ | tr -d ' ') $$\"; exit 7";
        let inside = cgroup.as_ref().map(AsFd::as_fd);
        let (text, exit) = run(&mut spawner, &["sh", "-c", script], inside, way);
        let lines: Vec<&str> = text.lines().collect();
        let how = format!("{sharing:?} {way:?}: {text}");
        assert!(text.starts_with("0 1 2 3 "), "ls itself opens 3: {how}");
        assert_eq!(text.matches("0000000000000000").count(), 2, "{how}");
        let last: Vec<&str> = lines.last().unwrap().split(' ').collect();
        assert_eq!((last[0], last[1]), ("1", last[2]), "its own session: {how}");
        assert_eq!(exit, crate::model::Exit::Code(7), "{how}");
        assert_eq!(spawner.sharing, sharing, "no silent fallback");
        let own = lines.iter().any(|line| line.starts_with("0::") && line.ends_with(&format!("/{key}")));
        assert_eq!(own, in_cgroup, "{how}");
    }
}

#[test]
fn a_pipe_that_outlives_its_readers_still_ends() {
    let mut spawner = Spawner::new(Limits::of_this_process(), KEPT).unwrap();
    let env = vec![CString::new("PATH=/usr/bin:/bin").unwrap()];
    let script =
        "trap '' PIPE; read x < /proc/$PPID/stat; for i in 1 2 3; do echo $i || exit 9; done; exit 3";
    let argv = ["sh", "-c", script].map(str::to_owned);
    let program = Program::find(&argv, Path::new("/"), env).unwrap();
    let Spawned { pidfd, stdout, .. } = make(&mut spawner, program, None, Way::GoOn).unwrap();
    drop(stdout);
    let exit = loop {
        if let Some(exit) = crate::sys::pidfd::reap(&pidfd).unwrap() {
            break exit;
        }
        std::thread::yield_now();
    };
    assert_eq!(exit, crate::model::Exit::Code(3), "nobody read, and nothing broke");
}

#[test]
fn failures_name_stage_and_reason() {
    let mut spawner = Spawner::new(Limits::of_this_process(), ALONE).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "echo hi\n").unwrap();
    let chmod = |path: &Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    chmod(&script, 0o755);
    chmod(&plain, 0o644);
    let mut fails = |program: &str, dir: &Path| {
        let env = vec![CString::new("PATH=/usr/bin:/bin").unwrap()];
        let told = [Way::StandStill, Way::GoOn].map(|way| {
            let failure = Program::find(&[program.to_owned()], dir, env.clone()).and_then(|found| {
                make(&mut spawner, found.clone(), None, way).map_err(|failed| found.explain(failed))
            });
            match failure {
                Ok(_) => panic!("{program} should not start"),
                Err(failure) => (failure.stage, failure.errno_name, failure.message),
            }
        });
        assert_eq!(told[0], told[1]);
        told.into_iter().next().unwrap()
    };
    let root = Path::new("/");
    let path = |p: &Path| p.display().to_string();
    let (stage, errno, message) = fails("no-such-program", root);
    assert_eq!((stage, errno.as_str()), (SpawnStage::Exec, "ENOENT"));
    assert_eq!(message, "there is no program \"no-such-program\" in PATH");
    let (stage, errno, message) = fails(&path(&script), root);
    assert_eq!((stage, errno.as_str()), (SpawnStage::Exec, "ENOENT"));
    assert!(message.contains("interpreter /no/such/interpreter"), "{message}");
    let (_, errno, message) = fails(&path(&plain), root);
    assert_eq!(errno, "EACCES");
    assert!(message.ends_with("is not executable"), "{message}");
    chmod(&plain, 0o755);
    let (_, errno, _) = fails(&path(&plain), root);
    assert_eq!(errno, "ENOEXEC");
    let (stage, errno, message) = fails("true", Path::new("/no/such/folder"));
    assert_eq!((stage, errno.as_str()), (SpawnStage::Chdir, "ENOENT"));
    assert_eq!(message, "its folder /no/such/folder does not exist");
    let (stage, errno, _) = fails("true", &plain);
    assert_eq!((stage, errno.as_str()), (SpawnStage::Chdir, "ENOTDIR"));
}
