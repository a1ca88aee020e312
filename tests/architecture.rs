//! The module boundaries of `src/`: which module may use which other module and which package. A
//! forbidden import fails here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

#[path = "support/sources.rs"]
mod sources;

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
        "runner",
        &["model", "present", "decide", "sys", "logs", "host"],
        &["ractor", "axum", "clap", "toml", "rusqlite", "nix", "hyper", "sysinfo"],
    ),
    (
        "actors",
        &["model", "present", "decide", "sys", "logs", "vault", "measure", "host", "runner"],
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

/// Where the tests of a file begin, or where it ends.
fn end_of_code(text: &str) -> usize {
    let starts = ["#[cfg(test)]\nmod ", "#[cfg(all(test"];
    starts.iter().filter_map(|start| text.find(start)).min().unwrap_or(text.len())
}

/// Code without its comments and its tests.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text[..end_of_code(text)]
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
        if !matches!(room_of(&path), Some("decide" | "model" | "present")) {
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

/// A comment that says nothing: a pronoun, or a word that only satisfies a lint.
const BARE: &[&str] =
    &["which", "whose", "how", "what", "why", "who", "when", "where", "that", "it", "so many", "so long"];

#[test]
fn every_doc_comment_says_something() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            let Some(words) = line.strip_prefix("///") else { continue };
            let alone = !at.checked_sub(1).is_some_and(|before| lines[before].starts_with("///"))
                && !lines.get(at + 1).is_some_and(|after| after.starts_with("///"));
            let words = words.trim().trim_end_matches('.').to_lowercase();
            let pronoun = words.split_whitespace().count() == 2 && words.starts_with("its ");
            if alone && (words.is_empty() || BARE.contains(&words.as_str()) || pronoun) {
                wrong.push(format!("{}:{}: {line}", path.display(), at + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_tests_import_all_of_their_parent() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let in_tests = path.components().any(|part| part.as_os_str() == "tests");
        for (number, line) in code(&text).filter(|_| !in_tests) {
            if line.contains("super::*") {
                wrong.push(format!("{}:{number}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Text without comments, strings and characters, which are blanked: so that braces and paths are code's.
fn blanked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let taken = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(raw) = ["r#\"", "r\""].iter().find(|start| rest.starts_with(**start)) {
            let end = if raw.len() == 3 { "\"#" } else { "\"" };
            rest[raw.len()..].find(end).map_or(rest.len(), |at| raw.len() + at + end.len())
        } else if first == '"' {
            let mut escaped = false;
            let end = rest[1..].char_indices().find(|(_, c)| {
                let ends = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |(at, _)| at + 2)
        } else if first == '\'' {
            // A character, not a lifetime.
            let inner: Vec<char> = rest.chars().skip(1).take(12).collect();
            let end = match inner.first() {
                Some('\\') => inner.iter().skip(2).position(|c| *c == '\'').map(|at| at + 2),
                Some(_) if inner.get(1) == Some(&'\'') => Some(1),
                _ => None,
            };
            end.map_or(1, |end| 1 + inner[..=end].iter().map(|c| c.len_utf8()).sum::<usize>())
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        out.extend(rest[..taken].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[taken..];
    }
    out
}

/// Where a block ends that begins at this brace.
fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (at, c) in code[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + at;
        }
    }
    code.len()
}

/// The functions of a file: name, lines, and whether the body is one `match` and nothing else.
fn functions(text: &str) -> Vec<(String, usize, bool)> {
    let code = blanked(text);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '(') {
            continue;
        }
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let Some(open) = code[at..].find(['{', ';']).map(|open| at + open) else { continue };
        if name.is_empty() || code[open..].starts_with(';') {
            continue;
        }
        let end = block_end(&code, open);
        let body = code[open + 1..end].trim();
        let one_match = body.starts_with("match ")
            && body.find('{').is_some_and(|inner| block_end(body, inner) + 1 == body.len());
        found.push((name, code[at..end].matches('\n').count() + 1, one_match));
    }
    found
}

/// The most lines of a function, but for one that is a `match` and nothing else.
const LONGEST: usize = 80;

/// Functions that are longer, and are still to be divided: none may be added.
const STILL_LONG: &[&str] = &[
    "actors/process.rs: heard",
    "cli/connect.rs: talk",
    "cli/run/screen.rs: line",
    "control/operations.rs: described",
    "control/requests/events.rs: events",
    "control/requests/logs.rs: logs",
    "control/server.rs: by_socket",
    "decide/lifecycle/turn.rs: stop",
    "host/native.rs: below",
    "host/reaper/keeper_side.rs: take_the_keepers_place",
    "host/spawn.rs: clone_child",
    "host/spawn/child.rs: child",
    "record/store/writer.rs: write",
];

#[test]
fn no_function_is_longer_than_a_screen() {
    let (mut wrong, mut long) = (Vec::new(), BTreeSet::new());
    for (path, text) in sources() {
        if path.components().any(|part| part.as_os_str() == "tests") {
            continue;
        }
        let end = end_of_code(&text);
        let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
        for (name, lines, one_match) in functions(&text[..end]) {
            let place = format!("{}: {name}", inside.display());
            if lines > LONGEST && !one_match {
                if !STILL_LONG.contains(&place.as_str()) {
                    wrong.push(format!("{place} has {lines} lines"));
                }
                long.insert(place);
            }
        }
    }
    let divided = STILL_LONG.iter().filter(|place| !long.contains(**place));
    wrong.extend(divided.map(|place| format!("{place} is no longer too long: take it off the list")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The module that a file is, as a path.
fn module_of(path: &Path) -> Vec<String> {
    let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let module: Vec<String> =
        inside.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if module == ["lib"] { Vec::new() } else { module }
}

/// Every path of a `use`, as segments.
fn expanded(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.split("::").map(|part| part.trim().to_owned()).collect()];
    };
    let prefix: Vec<String> =
        tree[..open].split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect();
    let inner = &tree[open + 1..block_end(tree, open)];
    let (mut parts, mut depth, mut from) = (Vec::new(), 0, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[from..]);
    let parts = parts.into_iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(expanded).map(|path| [prefix.clone(), path].concat()).collect()
}

/// The modules that a file uses, by its imports and by paths in its code.
fn used_by(module: &[String], text: &str, modules: &BTreeMap<Vec<String>, PathBuf>) -> Vec<Vec<String>> {
    let end = end_of_code(text);
    let code = blanked(&text[..end]);
    let mut paths = Vec::new();
    for statement in code.split(';') {
        let lead = statement.rfind("use ").filter(|at| {
            let before = statement[..*at].trim_end();
            before.is_empty() || before.ends_with(['}', ']', ')']) || before.ends_with("pub")
        });
        if let Some(at) = lead {
            paths.extend(expanded(&statement[at + 4..]));
        }
    }
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for word in code.split(|c| !is_part(c)).filter(|word| word.contains("::")) {
        paths.push(word.split("::").map(str::to_owned).collect());
    }
    let mut used = Vec::new();
    for path in paths {
        let ups = path.iter().take_while(|part| *part == "super").count();
        let mut full: Vec<String> = match path.first().map(String::as_str) {
            Some("crate") => path[1..].to_vec(),
            Some("self") => [module, &path[1..]].concat(),
            Some("super") if ups <= module.len() => [&module[..module.len() - ups], &path[ups..]].concat(),
            Some(first) => {
                let child = [module, &[first.to_owned()]].concat();
                if !modules.contains_key(&child) {
                    continue;
                }
                [module, &path[..]].concat()
            }
            None => continue,
        };
        while !full.is_empty() && !modules.contains_key(&full) {
            full.pop();
        }
        if !full.is_empty() && full != module {
            used.push(full);
        }
    }
    used
}

#[test]
fn no_files_use_each_other_but_a_parent_and_its_child() {
    let files = sources();
    let modules: BTreeMap<Vec<String>, PathBuf> = files
        .keys()
        .filter(|path| !path.components().any(|part| part.as_os_str() == "tests"))
        .map(|path| (module_of(path), path.clone()))
        .collect();
    let related = |a: &[String], b: &[String]| a.starts_with(b) || b.starts_with(a);
    let uses: BTreeMap<&Vec<String>, Vec<Vec<String>>> = modules
        .iter()
        .map(|(module, path)| {
            let used = used_by(module, &files[path], &modules);
            (module, used.into_iter().filter(|other| !related(module, other)).collect())
        })
        .collect();
    // A file from which the uses lead back to itself is in a circle.
    let mut circles = Vec::new();
    for module in modules.keys() {
        let (mut seen, mut todo) = (Vec::new(), vec![module]);
        while let Some(next) = todo.pop() {
            for other in uses.get(next).into_iter().flatten() {
                if other == module {
                    circles.push(format!("{} and {}", module.join("::"), next.join("::")));
                } else if !seen.contains(&other) {
                    seen.push(other);
                    todo.push(other);
                }
            }
        }
    }
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

#[test]
fn the_checks_see_what_they_are_for() {
    let text =
        "fn a() {\n    match x {\n        '{' => \"}\",\n    }\n}\n\nfn b() {\n    c();\n    match x {}\n}\n";
    let found = functions(text);
    assert_eq!(found, [("a".to_owned(), 5, true), ("b".to_owned(), 4, false)]);
    let path = |text: &str| text.split("::").map(str::to_owned).collect::<Vec<String>>();
    assert_eq!(expanded("a::{b, c::{d as e, f}}"), [path("a::b"), path("a::c::d"), path("a::c::f")]);
    let modules = ["a", "a::b", "a::c", "d"].map(|module| (path(module), PathBuf::new()));
    let modules = BTreeMap::from(modules);
    let used =
        used_by(&path("a::b"), "use super::c::X;\nuse crate::d;\n\nfn f() { super::c::g() }\n", &modules);
    let used: BTreeSet<Vec<String>> = used.into_iter().collect();
    assert_eq!(used, BTreeSet::from([path("a::c"), path("d")]));
}

#[test]
fn test_names_are_sentences_of_less_than_60_characters() {
    let is_long = |name: &str| name.len() >= 60 && !name.contains(char::is_whitespace);
    let all = sources::function_names().into_iter();
    let long =
        all.filter(|(_, name)| is_long(name)).map(|(path, name)| format!("{}: {name}", path.display()));
    let long: Vec<String> = long.collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}
