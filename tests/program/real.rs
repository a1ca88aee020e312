//! Real programs: the development environment of `config/`, and redis with PostgreSQL.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::harness::{Project, free_port, installed};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_development_environment_works_with_what_debian_has() {
    if !installed("the_development_environment_works_with_what_debian_has", &program("python3")) {
        return;
    }
    let project = Project::new("");
    let manifest = root().join("config/dev-env.toml").display().to_string();
    let mut command = project.command(&["run", &manifest]);
    command.env("SHOP_DATABASE", project.file("shop.db"));
    let mut run = project.start(&mut command);
    run.line("all 5 are up");
    run.line("{\"visits\": 1}");
    assert_eq!(project.status("backend")["health"], "healthy");
    super::harness::end(project.pid("backend"));
    run.line("group web (rest-for-one): backend crashed, restarting backend, frontend");
    run.next_line("frontend * ready");
    assert_eq!(project.regrow(&["down"]).code, 0);
    assert_eq!(run.code(), 0);
}

/// The path of a program, or a path that does not exist.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.is_file()).unwrap_or_else(|| name.into())
}

/// The folder of PostgreSQL's programs: Debian keeps them in a folder named by their version.
fn postgres_bin() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> =
        versions.map(|v| v.path().join("bin")).filter(|b| b.join("initdb").is_file()).collect();
    folders.sort();
    folders.pop().unwrap_or_else(|| "/usr/lib/postgresql/bin".into())
}

#[test]
fn redis_and_postgresql_start_restart_under_load_and_stop() {
    let test = "redis_and_postgresql_start_restart_under_load_and_stop";
    let bin = postgres_bin();
    if !installed(test, &program("redis-server")) || !installed(test, &bin.join("initdb")) {
        return;
    }
    let project = Project::new("");
    // PostgreSQL refuses to run as root and gives up root's rights, so it must be able to reach its
    // data.
    let data = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap();
    let (redis_port, postgres_port) = (free_port().to_string(), free_port().to_string());
    let manifest = root().join("examples/redis-postgres.toml").display().to_string();
    let mut command = project.command(&["run", &manifest, "--profile", "load"]);
    command
        .env("DATA", data.path())
        .env("PG_BIN", &bin)
        .env("REDIS_PORT", &redis_port)
        .env("PG_PORT", &postgres_port);
    let mut run = project.start(&mut command);
    run.line("all 5 are up");
    let query = |sql: &str| {
        let output = Command::new(bin.join("psql"))
            .args(["-h", "127.0.0.1", "-p", &postgres_port, "-U", "postgres", "-Atc", sql])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let redis = |words: &[&str]| {
        let output = Command::new("redis-cli").args(["-p", &redis_port]).args(words).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(query("select 6 * 7"), "42");
    assert_eq!(redis(&["ping"]), "PONG");
    run.line("load-sql | inserted");
    run.line("load-kv  | counted");
    let rows: u64 = query("select count(*) from load").parse().unwrap();
    let (old_redis, old_postgres) = (project.pid("redis"), project.pid("postgres"));
    let restart = project.regrow(&["restart", "redis", "postgres"]);
    assert_eq!(restart.code, 0, "{}{}", restart.stdout, restart.stderr);
    assert_ne!((project.pid("redis"), project.pid("postgres")), (old_redis, old_postgres));
    run.next_line("load-sql | inserted");
    run.next_line("load-kv  | counted");
    assert!(query("select count(*) from load").parse::<u64>().unwrap() >= rows, "committed rows stay");
    assert_eq!(redis(&["ping"]), "PONG");
    assert_eq!(project.status("postgres")["restarts"], 0, "by hand counts for nothing");
    run.interrupt();
    assert_eq!(run.code(), 130);
    let text = run.text();
    assert!(!text.contains("SIGKILL after"), "all stop when asked:\n{text}");
    let at = |words: &str| text.rfind(words).unwrap_or_else(|| panic!("no {words:?} in\n{text}"));
    assert!(at("load-sql * stopped") < at("postgres * stopped"), "{text}");
}
