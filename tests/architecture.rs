//! The module boundaries of `src/`: which module may use which other module and which package. A
//! forbidden import fails here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The packages that do I/O, parse text or make threads: none is for a module that only models and
/// decides.
const PURE: &[&str] = &[
    "tokio",
    "ractor",
    "nix",
    "signal_hook_registry",
    "sysinfo",
    "tracing",
    "hyper",
    "axum",
    "clap",
    "toml",
    "regex",
    "rusqlite",
];

/// What each module may use of the others, and which packages it must not use.
const ROOMS: &[(&str, &[&str], &[&str])] = &[
    ("model", &[], PURE),
    ("present", &["model"], PURE),
    ("decide", &["model", "present"], PURE),
    (
        "manifest",
        &["model", "present", "decide"],
        &["tokio", "ractor", "nix", "signal_hook_registry", "sysinfo", "hyper", "axum", "clap", "rusqlite"],
    ),
    ("sys", &["model"], &["ractor", "axum", "clap", "toml", "rusqlite", "hyper"]),
    ("logs", &["model", "present", "sys"], &["ractor", "axum", "clap", "toml", "rusqlite", "hyper", "tokio"]),
    (
        "vault",
        &["model", "present", "decide", "sys"],
        &["ractor", "axum", "clap", "toml", "rusqlite", "hyper", "tokio"],
    ),
    (
        "measure",
        &["model", "present", "decide", "sys"],
        &["ractor", "axum", "clap", "toml", "rusqlite", "hyper", "tokio"],
    ),
    (
        "host",
        &["model", "present", "decide", "sys", "logs", "vault"],
        &["ractor", "axum", "clap", "toml", "rusqlite"],
    ),
    (
        "actors",
        &["model", "present", "decide", "sys", "logs", "vault", "measure", "host"],
        &["nix", "signal_hook_registry", "sysinfo", "hyper", "axum", "clap", "toml", "rusqlite"],
    ),
    (
        "record",
        &["model", "present", "decide", "sys", "logs", "host"],
        &["ractor", "nix", "signal_hook_registry", "sysinfo", "hyper", "axum", "clap", "toml"],
    ),
    (
        "control",
        &[
            "model", "present", "decide", "sys", "logs", "vault", "measure", "host", "actors", "record",
            "manifest", "runtime",
        ],
        &["ractor", "nix", "signal_hook_registry", "sysinfo", "clap", "toml", "rusqlite"],
    ),
    (
        "cli",
        &[
            "model", "present", "decide", "sys", "logs", "vault", "measure", "host", "actors", "record",
            "control", "manifest", "runtime",
        ],
        &["ractor", "nix", "signal_hook_registry", "sysinfo", "axum", "toml", "rusqlite"],
    ),
];

/// Words that no line of a pure module may contain: time and chance reach such a module as
/// arguments.
const IMPURE: &[&str] =
    &["Instant", "SystemTime::now", "thread_rng", "std::fs", "std::net", "std::process", "std::thread"];

fn sources() -> BTreeMap<PathBuf, String> {
    fn walk(folder: &Path, into: &mut BTreeMap<PathBuf, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                into.insert(path.clone(), std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

fn room_of(path: &Path) -> Option<&str> {
    let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).ok()?;
    let first = inside.iter().next()?.to_str()?;
    let first = first.strip_suffix(".rs").unwrap_or(first);
    ROOMS.iter().map(|(room, _, _)| *room).find(|room| *room == first)
}

/// Code without its comments and its tests.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]").unwrap_or(text.len());
    text[..end]
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(n, l)| (n + 1, l))
}

/// Whether a line names a package: as a whole word before `::`.
fn names(line: &str, package: &str) -> bool {
    let path = format!("{package}::");
    line.match_indices(&path)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'))
}

#[test]
fn no_room_uses_what_it_may_not() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let Some(room) = room_of(&path) else { continue };
        let (_, rooms, packages) = ROOMS.iter().find(|(name, _, _)| *name == room).unwrap();
        for (number, line) in code(&text) {
            let mut rest = line;
            while let Some(at) = rest.find("crate::") {
                rest = &rest[at + 7..];
                let used: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let is_room = ROOMS.iter().any(|(name, _, _)| *name == used) || used == "runtime";
                if is_room && used != room && !rooms.contains(&used.as_str()) {
                    wrong.push(format!("{}:{number}: {room} uses {used}", path.display()));
                }
            }
            for package in *packages {
                if names(line, package) {
                    wrong.push(format!("{}:{number}: {room} uses the package {package}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_rooms_read_no_clock_and_roll_no_dice() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        if !matches!(room_of(&path), Some("decide" | "model")) {
            continue;
        }
        for (number, line) in code(&text) {
            for word in IMPURE.iter().filter(|word| line.contains(**word)) {
                wrong.push(format!("{}:{number}: {word}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_only_in_sys_and_host_and_says_why() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let is_code = !line.trim_start().starts_with("//");
            if !is_code
                || !(line.contains("unsafe {") || line.contains("unsafe impl") || line.contains("unsafe fn"))
            {
                continue;
            }
            // A function states what its caller owes; a block states why it is sound.
            let word = if line.contains("unsafe fn") { "# Safety" } else { "SAFETY:" };
            let reasoned = lines[at.saturating_sub(8)..=at].iter().any(|l| l.contains(word));
            if !matches!(room_of(&path), Some("sys" | "host")) || !reasoned {
                wrong.push(format!("{}:{}", path.display(), at + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_command_line_prints() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        if room_of(&path) == Some("cli") {
            continue;
        }
        for (number, line) in code(&text) {
            let prints = ["println!", "eprintln!", "print!(", "eprint!("].iter().any(|p| line.contains(p));
            if prints {
                wrong.push(format!("{}:{number}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_says_what_it_is_for() {
    let silent: Vec<String> = sources()
        .iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}
