//! The documents: their links lead somewhere, and every manifest in them is right.

use std::path::{Path, PathBuf};

use super::harness::Project;

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
