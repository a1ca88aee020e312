//! The functions of the repository, by name.

use std::path::{Path, PathBuf};

/// The names of all functions of `src` and `tests`, each with its file.
pub(crate) fn function_names() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, into: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let names = text.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
                into.extend(names.map(|name| (path.clone(), name.to_owned())));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = Vec::new();
    ["src", "tests"].iter().for_each(|folder| walk(&root.join(folder), &mut names));
    names
}
