//! The documents: their links lead somewhere, and every manifest in them is right.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::harness::{Project, skip};
use super::sources::function_names;

/// Every document, with its text.
fn documents() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => walk(&path, into),
                false if path.extension().is_some_and(|e| e == "md") => into.push(path),
                false => {}
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    let mut paths: Vec<PathBuf> = top.iter().map(|name| root.join(name)).collect();
    walk(&root.join("docs"), &mut paths);
    paths.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// The blocks of a document in one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).map(str::to_owned).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for (path, text) in documents() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            let outside = target.contains("://") || file.is_empty();
            if !outside && !path.parent().unwrap().join(file).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_manifest_in_a_document_is_right() {
    let mut checked = 0;
    for (path, text) in documents() {
        for block in blocks(&text, "toml").into_iter().filter(|block| block.contains("[service.")) {
            let project = Project::new(&block);
            project.write(".env", "");
            std::fs::create_dir_all(project.dir().join("backend")).unwrap();
            let output = project.regrow(&["check"]);
            assert_eq!(output.code, 0, "{}: {}\n{block}", path.display(), output.stderr);
            checked += 1;
        }
    }
    assert!(checked >= 2, "{checked} manifests were found");
}

#[test]
fn every_rust_example_of_a_document_is_compiled() {
    let library = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for (path, text) in documents() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_compiled = library.contains(&format!("/{name}\")]"));
        assert!(!text.contains("```rust") || is_compiled, "{}", path.display());
    }
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let tests: BTreeSet<String> = function_names().into_iter().map(|(_, name)| name).collect();
    let mut missing = Vec::new();
    for (path, text) in documents() {
        let file = path.file_name().unwrap().to_str().unwrap();
        if !["faults.md", "ARCHITECTURE.md"].contains(&file) {
            continue;
        }
        for word in text.split('`').skip(1).step_by(2) {
            let name = word.rsplit("::").next().unwrap();
            let is_test = name.matches('_').count() >= 3
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if is_test && !tests.contains(name) {
                missing.push(format!("{file}: {word}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Whether Python can check JSON against a schema here.
fn python_checks_schemas(test: &str) -> bool {
    let modules = ["-c", "import jsonschema, tomllib"];
    let found = Command::new("python3").args(modules).stderr(Stdio::null()).status();
    let is_there = found.is_ok_and(|status| status.success());
    if !is_there {
        skip(test, "python3 with jsonschema is not installed");
    }
    is_there
}

#[test]
fn the_schema_takes_what_check_takes_and_refuses_the_rest() {
    if !python_checks_schemas("the_schema_takes_what_check_takes_and_refuses_the_rest") {
        return;
    }
    let project = Project::new("");
    let printed = project.regrow(&["manifest-schema"]);
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    project.write("regrow.schema.json", &printed.stdout);
    let starter = include_str!("../../config/starter.toml");
    let mut right: Vec<String> = vec![starter.to_owned()];
    for (_, text) in documents() {
        right.extend(blocks(&text, "toml").into_iter().filter(|block| block.contains("[service.")));
    }
    let wrong = [
        "[service.a]\ncommand = 7",
        "[service.a]\ncommand = \"a\"\nshell = \"b\"",
        "[service.a]\ndir = \".\"",
        "[service.a]\ncommand = \"a\"\nreplcas = 2",
        "[service.a]\ncommand = \"a\"\nreplicas = 0",
        "[service.a]\ncommand = \"a\"\nrestart = \"sometimes\"",
        "[service.a]\ncommand = \"a\"\nready = { tcp = \"127.0.0.1:1\", log = \"x\" }",
        "[service.a]\ncommand = \"a\"\nstop = { timeout = 5 }",
        "[group.a]\nstrategy = \"one-for-all\"",
        "[servce.a]\ncommand = \"a\"",
    ];
    for (at, text) in right.iter().map(String::as_str).chain(wrong).enumerate() {
        project.write(&format!("{at}.toml"), text);
    }
    let program = "import json, sys, tomllib, jsonschema\n\
        schema = json.load(open('regrow.schema.json'))\n\
        jsonschema.Draft7Validator.check_schema(schema)\n\
        for at in range(int(sys.argv[1])):\n    \
            manifest = tomllib.load(open(f'{at}.toml', 'rb'))\n    \
            print(jsonschema.Draft7Validator(schema).is_valid(manifest))\n";
    let all = right.len() + wrong.len();
    let checked = Command::new("python3")
        .args(["-c", program, &all.to_string()])
        .current_dir(project.dir())
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let said = String::from_utf8(checked.stdout).unwrap();
    let wanted: Vec<&str> = right.iter().map(|_| "True").chain(wrong.map(|_| "False")).collect();
    assert_eq!(said.lines().collect::<Vec<_>>(), wanted);
    // Nothing of what the schema refuses passes the check.
    for at in right.len()..all {
        let output = project.regrow(&["check", &format!("{at}.toml")]);
        assert_eq!(output.code, 3, "{at}.toml: {}", output.stdout);
    }
}
