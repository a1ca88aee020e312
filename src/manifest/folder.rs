//! A folder of manifests as one tree: a project each.
//!
//! Each file stands for itself: what is wrong with one keeps none of the others from starting. The
//! services of a faulty one are in the tree all the same, and can't be started.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::DeTable;

use super::fault::{Fault, LoadError};
use super::load::{Environment, Loaded, load};
use crate::decide::graph::Graph;
use crate::model::{Child, GroupSpec, Name, Plan, ServiceSpec};

/// What a folder holds.
#[derive(Debug)]
pub struct Folder {
    /// All of it as one tree.
    pub plan: Plan,
    /// Its dependency graph.
    pub graph: Graph,
    /// What is wrong, a file each.
    pub faults: Vec<LoadError>,
    /// What is allowed and still worth a word.
    pub warnings: Vec<Fault>,
    /// The files that it comes from, in their order.
    pub files: Vec<PathBuf>,
}

/// One file, before it is a part of the whole.
struct Part {
    project: String,
    services: Vec<Arc<ServiceSpec>>,
    root: GroupSpec,
    groups: BTreeMap<Name, GroupSpec>,
}

/// Reads every `*.toml` of a folder. An error where the folder can't be read; one that is not there
/// is empty.
///
/// `known`: names that services had before. Where a file can't be read, nobody can tell whose names it
/// has: those that were `project/name` stay so.
pub fn load_folder(
    folder: &Path,
    environment: &Environment,
    known: &HashSet<String>,
) -> std::io::Result<Folder> {
    let mut files: Vec<PathBuf> = Vec::new();
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                let path = entry?.path();
                let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
                // A pipe would never end, a device neither; a link to nothing is told.
                let readable = path.metadata().map_or(true, |at| at.is_file());
                if path.extension().is_some_and(|kind| kind == "toml") && !hidden && readable {
                    files.push(path);
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    files.sort();
    let (mut parts, mut faults, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    for file in &files {
        match load(file, environment) {
            Ok(loaded) => {
                warnings.extend(loaded.warnings.iter().cloned());
                parts.push(sound(file, loaded));
            }
            Err(error) => {
                parts.push(faulty(file, &error));
                faults.push(error);
            }
        }
    }
    let none = HashSet::new();
    let plan = joined(folder, parts, environment, if faults.is_empty() { &none } else { known });
    // Each part's was made: names differ between them, and nothing depends on another's.
    let graph = Graph::new(&plan.services).unwrap_or_default();
    Ok(Folder { plan, graph, faults, warnings, files })
}

/// A project is called by its file, unless it says otherwise: the folder's name is that of all.
fn project_of(file: &Path, named: Option<&str>) -> String {
    let stem = || file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let text = named.map(str::to_owned).or_else(stem).unwrap_or_default();
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let mut name: String =
        text.chars().map(|c| c.to_ascii_lowercase()).map(|c| if fits(c) { c } else { '-' }).collect();
    name.truncate(crate::model::id::NAME_MAX);
    let name = name.trim_start_matches(['.', '_', '-']).to_owned();
    if name.is_empty() { "project".to_owned() } else { name }
}

fn sound(file: &Path, loaded: Loaded) -> Part {
    let Loaded { plan, named, .. } = loaded;
    let project = project_of(file, named.then_some(plan.project.as_str()));
    Part { project, services: plan.services, root: plan.root, groups: plan.groups }
}

/// What can be known of a faulty file: the names of its services.
fn faulty(file: &Path, error: &LoadError) -> Part {
    let (text, what) = match error {
        LoadError::Unreadable { error, .. } => (String::new(), format!("{}: {error}", file.display())),
        LoadError::Faulty(faults) => {
            let first = faults.first();
            let text = first.map(|fault| fault.source.text.clone()).unwrap_or_default();
            let what = first.map(|fault| {
                let (line, column) = fault.place();
                format!("{}:{line}:{column}: {}", fault.source.path.display(), fault.message)
            });
            (text, what.unwrap_or_default())
        }
    };
    let (table, _) = DeTable::parse_recoverable(&text);
    let table = table.get_ref();
    let part = |key: &str| table.get(key).and_then(|value| value.get_ref().as_table());
    let services: Vec<Arc<ServiceSpec>> = part("service")
        .into_iter()
        .flat_map(|services| services.keys())
        .filter_map(|name| Name::new(name.get_ref()).ok())
        .map(|name| {
            let spec = ServiceSpec::new(name, [""]);
            Arc::new(ServiceSpec { fault: Some(what.clone()), ..spec })
        })
        .collect();
    let named =
        part("project").and_then(|project| project.get("name")?.get_ref().as_str().map(str::to_owned));
    let children = services.iter().map(|spec| Child::Service(spec.name.clone())).collect();
    Part {
        project: project_of(file, named.as_deref()),
        services,
        root: GroupSpec { children, ..GroupSpec::default() },
        groups: BTreeMap::new(),
    }
}

fn joined(folder: &Path, mut parts: Vec<Part>, environment: &Environment, known: &HashSet<String>) -> Plan {
    // Two files may call their projects alike.
    let mut projects: HashSet<String> = HashSet::new();
    for part in &mut parts {
        let first = part.project.clone();
        let mut number = 2;
        while !projects.insert(part.project.clone()) {
            part.project = format!("{first}-{number}");
            number += 1;
        }
    }
    let mut count: HashMap<String, usize> = HashMap::new();
    for part in &parts {
        for name in names_of(part) {
            *count.entry(name).or_default() += 1;
        }
    }
    let clashes = |name: &str| count.get(name).is_some_and(|count| *count > 1);
    let mut plan = Plan::of(&folder.file_name().unwrap_or_default().to_string_lossy(), Vec::new());
    plan.folder = folder.to_owned();
    plan.inherited = Arc::new(environment.vars.clone());
    for part in parts {
        let was_qualified = |name: &str| known.contains(&format!("{}/{name}", part.project));
        let is = |name: &String| clashes(name) || was_qualified(name);
        let clashing: HashSet<String> = names_of(&part).into_iter().filter(is).collect();
        // Copies of a service clash with it, and it with them.
        let clashing: HashSet<Name> = part
            .services
            .iter()
            .filter(|spec| {
                clashing.contains(spec.name.as_str())
                    || spec.instances().any(|id| clashing.contains(&id.to_string()))
            })
            .map(|spec| spec.name.clone())
            .chain(part.groups.keys().filter(|name| clashing.contains(name.as_str())).cloned())
            .collect();
        let project = part.project;
        let rename = |name: &Name| match clashing.contains(name) {
            true => Name::qualified(&project, name),
            false => name.clone(),
        };
        let rename_child = |child: &Child| match child {
            Child::Service(name) => Child::Service(rename(name)),
            Child::Group(name) => Child::Group(rename(name)),
        };
        let mut names: Vec<Name> = Vec::new();
        for spec in part.services {
            let mut spec = Arc::unwrap_or_clone(spec);
            spec.name = rename(&spec.name);
            for dependency in &mut spec.depends_on {
                dependency.on = rename(&dependency.on);
            }
            spec.project = Some(project.clone());
            names.push(spec.name.clone());
            plan.services.push(Arc::new(spec));
        }
        for (name, mut group) in part.groups {
            group.children = group.children.iter().map(rename_child).collect();
            names.push(rename(&name));
            plan.groups.insert(rename(&name), group);
        }
        let children: Vec<Child> = part.root.children.iter().map(rename_child).collect();
        let plain = GroupSpec { children: part.root.children.clone(), ..GroupSpec::default() };
        if part.root == plain {
            plan.root.children.extend(children);
        } else {
            // What its root is to do is a group's here.
            let Some(mut name) = Name::new(&project).ok().or_else(|| names.first().cloned()) else {
                continue;
            };
            if count.contains_key(name.as_str()) || plan.groups.contains_key(&name) {
                name = Name::qualified(&project, &name);
            }
            plan.root.children.push(Child::Group(name.clone()));
            plan.groups.insert(name, GroupSpec { children, ..part.root });
        }
    }
    plan
}

/// By what the services, their copies and the groups of a file are known.
fn names_of(part: &Part) -> HashSet<String> {
    crate::decide::growth::printed(&part.services, part.groups.keys()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let loaded = load_folder(dir.path(), &Environment::default(), &HashSet::new()).unwrap();
        (dir, loaded)
    }

    fn names(folder: &Folder) -> Vec<String> {
        folder.plan.services.iter().map(|spec| spec.name.to_string()).collect()
    }

    #[test]
    fn names_are_qualified_where_they_clash_and_only_there() {
        let shop = "[service.db]\ncommand = \"a\"\n[service.web]\ncommand = \"a\"\ndepends_on = [\"db\"]\n";
        let blog = "[project]\nname = \"My Blog\"\n[service.db]\ncommand = \"b\"\n";
        let (_dir, loaded) = folder(&[("shop.toml", shop), ("b.toml", blog), ("notes.txt", "no")]);
        assert_eq!(names(&loaded), ["my-blog/db", "shop/db", "web"]);
        assert_eq!(loaded.plan.services[2].depends_on[0].on.as_str(), "shop/db");
        assert!(loaded.faults.is_empty() && loaded.plan.groups.is_empty());
        assert_eq!(loaded.graph.services().len(), 3);
    }

    #[test]
    fn a_copy_clashes_with_a_service_of_its_name() {
        let web = "[service.web]\ncommand = \"a\"\nreplicas = 2\n";
        let other = "[service.\"web.1\"]\ncommand = \"b\"\n";
        let (_dir, loaded) = folder(&[("a.toml", web), ("b.toml", other)]);
        assert_eq!(names(&loaded), ["a/web", "b/web.1"]);
    }

    #[test]
    fn a_faulty_file_keeps_its_services_and_harms_no_other() {
        let good = "[service.good]\ncommand = \"a\"\n";
        let bad = "[service.bad]\ncomand = \"a\"\n[service.worse]\ncommand = 3\n";
        let (_dir, loaded) = folder(&[("good.toml", good), ("bad.toml", bad), ("torn.toml", "[service")]);
        assert_eq!(names(&loaded), ["bad", "worse", "good"]);
        assert_eq!(loaded.faults.len(), 2);
        let fault = loaded.plan.services[0].fault.clone().unwrap();
        assert!(fault.contains("bad.toml:1:10: service \"bad\" has no command"), "{fault}");
        assert!(loaded.plan.services[2].fault.is_none());
    }

    #[test]
    fn a_project_with_a_strategy_is_a_group() {
        let text = "[project]\nstrategy = \"one-for-all\"\n[service.a]\ncommand = \"a\"\n";
        let (_dir, loaded) = folder(&[("duo.toml", text)]);
        let duo = Name::new("duo").unwrap();
        assert_eq!(loaded.plan.root.children, [Child::Group(duo.clone())]);
        assert_eq!(loaded.plan.groups[&duo].strategy, crate::model::Strategy::OneForAll);
    }
}
