//! A folder of manifests as one tree, in which each file is a project.
//!
//! Each file stands for itself: a faulty one keeps none of the others from starting. It counts as
//! it was when it was last right. Where it never was, its services are in the tree all the same,
//! and can't be started.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use toml::de::DeTable;

use super::fault::{Fault, LoadError, Source};
use super::last_good::{Good, LastGood};
use super::load::{Environment, Loaded, load_among, load_in, load_text};
use super::validate::ExternalNames;
use crate::decide::graph::Graph;
use crate::model::plan::GiveUp;
use crate::model::{Child, GroupSpec, Kind, Name, Plan, ServiceSpec};

/// What a folder of manifests says.
#[derive(Debug)]
pub struct Folder {
    /// The plan of all files, as one tree.
    pub plan: Plan,
    /// The dependency graph of the plan.
    pub graph: Graph,
    /// What is wrong, one error for each file.
    pub faults: Vec<LoadError>,
    /// Warnings: what is allowed, and still worth a look.
    pub warnings: Vec<Fault>,
    /// The manifest files, in order of their paths.
    pub files: Vec<PathBuf>,
    /// The texts of the files that are right.
    right: Vec<(PathBuf, Good)>,
    /// The projects whose files are faulty.
    faulty: Vec<String>,
    projects: HashMap<PathBuf, String>,
}

/// One file, before it becomes a part of the whole plan.
struct Part {
    project: String,
    services: Vec<Arc<ServiceSpec>>,
    root: GroupSpec,
    groups: BTreeMap<Name, GroupSpec>,
    /// How long a stop of the whole project may take.
    stop: Option<Duration>,
}

/// Reads a folder again and again, beside the plan that runs.
pub struct FolderReader {
    folder: PathBuf,
    environment: Environment,
    before: Mutex<Before>,
}

/// What an earlier reading of the folder found.
#[derive(Debug, Default)]
struct Before {
    /// The project of each file, as it was last read. A file that can't be read does not name its
    /// project.
    projects: HashMap<PathBuf, String>,
    texts: LastGood,
}

impl FolderReader {
    /// Makes a reader of this folder. `texts` is what its manifests said when they were last right.
    pub fn new(folder: PathBuf, environment: Environment, texts: LastGood) -> FolderReader {
        let before = Before { texts, ..Before::default() };
        FolderReader { folder, environment, before: Mutex::new(before) }
    }

    /// Reads the folder. The project of a faulty file keeps what it has in `now`, the plan that runs.
    pub fn read(&self, now: Option<&Plan>) -> std::io::Result<Folder> {
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let mut folder = load_folder_after(&self.folder, &self.environment, &before)?;
        before.projects = folder.projects.clone();
        if self.folder.is_dir() {
            before.texts.now(&folder.files, std::mem::take(&mut folder.right));
        }
        if let Some(now) = now {
            for project in &folder.faulty {
                keep_last_good(&mut folder.plan, now, project);
            }
            folder.graph = whole(&mut folder.plan);
        }
        Ok(folder)
    }
}

/// Puts what a project has in the running plan in the place of what its faulty file declares, if
/// the file ever was right.
fn keep_last_good(plan: &mut Plan, now: &Plan, project: &str) {
    let of_it = |name: &Name| name.project() == Some(project) || name.as_str() == project;
    let good: Vec<Arc<ServiceSpec>> =
        now.services.iter().filter(|spec| of_it(&spec.name) && spec.fault.is_none()).cloned().collect();
    if good.is_empty() {
        return;
    }
    plan.services.retain(|spec| !of_it(&spec.name));
    plan.services.extend(good);
    plan.root.children.retain(|child| !of_it(child.name()));
    let there = |child: &&Child| match child {
        Child::Service(name) => plan.services.iter().any(|spec| spec.name == *name),
        Child::Group(_) => true,
    };
    let children: Vec<Child> =
        now.root.children.iter().filter(|child| of_it(child.name())).filter(there).cloned().collect();
    plan.root.children.extend(children);
    plan.stop.projects.extend(now.stop.projects.get(project).map(|stop| (project.to_owned(), *stop)));
    let groups = now.groups.iter().filter(|(name, _)| of_it(name));
    plan.groups.extend(groups.map(|(name, group)| (name.clone(), group.clone())));
}

/// The graph of a plan of which a part is older than the rest. A service that depends on one that
/// is missing can't be started.
fn whole(plan: &mut Plan) -> Graph {
    let names: HashSet<Name> = plan.services.iter().map(|spec| spec.name.clone()).collect();
    for spec in &mut plan.services {
        let missing = spec.depends_on.iter().find(|dependency| !names.contains(&dependency.on));
        if let Some(missing) = missing.map(|dependency| dependency.on.clone()) {
            let spec = Arc::make_mut(spec);
            spec.fault = Some(format!("it depends on {missing}, which no readable manifest declares"));
            spec.depends_on.retain(|dependency| names.contains(&dependency.on));
        }
    }
    Graph::new(&plan.services).unwrap_or_default()
}

/// Reads every `*.toml` file of a folder. It fails where the folder can't be read; a missing folder
/// counts as empty.
pub fn load_folder(folder: &Path, environment: &Environment) -> std::io::Result<Folder> {
    load_folder_after(folder, environment, &Before::default())
}

fn load_folder_after(folder: &Path, environment: &Environment, before: &Before) -> std::io::Result<Folder> {
    let mut files: Vec<PathBuf> = Vec::new();
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                let path = entry?.path();
                let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
                // A pipe or a device would never end, so it is skipped; a link to nothing becomes a fault.
                let readable = path.metadata().map_or(true, |at| at.is_file());
                if path.extension().is_some_and(|kind| kind == "toml") && !hidden && readable {
                    files.push(path);
                }
            }
        }
        // The folder is gone; what it held when it was last right goes on.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => files = before.texts.files(),
        Err(error) => return Err(error),
    }
    files.sort();
    let names = Declared::of(&files, before);
    let mut faulty_projects = Vec::new();
    let (mut parts, mut faults, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    let mut right = Vec::new();
    for (file, declared) in files.iter().zip(&names) {
        let others = others(&names, &declared.project);
        match load_among(file, environment, &others) {
            Ok(loaded) => {
                warnings.extend(loaded.warnings.iter().cloned());
                let Plan { services, root, groups, stop, .. } = loaded.plan;
                let (project, stop) = (declared.project.clone(), stop.tree);
                parts.push(Part { project, services, root, groups, stop });
                let (text, env_files) = (loaded.source.text.clone(), loaded.env_texts);
                right.push((file.clone(), Good { text, env_files }));
            }
            Err(error) => {
                let good = before.texts.of_file(file).and_then(|good| {
                    let source = Arc::new(Source::new(file.clone(), good.text.clone()));
                    let environment = &Environment { before: good.env_files.clone(), ..environment.clone() };
                    // As for the file itself, paths count from where it lies, not from a link to it.
                    let lies = file.canonicalize().unwrap_or_else(|_| file.clone());
                    load_in(&source, Some(&lies), lies.parent()?, environment, &others).ok()
                });
                match good {
                    Some(Loaded { plan: Plan { services, root, groups, stop, .. }, .. }) => {
                        let (project, stop) = (declared.project.clone(), stop.tree);
                        parts.push(Part { project, services, root, groups, stop });
                    }
                    None => parts.push(faulty(file, declared, &error)),
                }
                faulty_projects.push(declared.project.clone());
                faults.push(error);
            }
        }
    }
    let mut plan = joined(folder, parts, environment);
    let graph = match Graph::new(&plan.services) {
        Ok(graph) => graph,
        Err(cycles) => {
            faults.extend(break_cycles(&mut plan, &cycles, &names));
            Graph::new(&plan.services).unwrap_or_default()
        }
    };
    let projects = files.iter().cloned().zip(names.into_iter().map(|declared| declared.project)).collect();
    Ok(Folder { plan, graph, faults, warnings, files, right, faulty: faulty_projects, projects })
}

/// Checks a text that is to become a file of a folder. Its services may depend on those of the
/// other files.
pub fn check_text_in(
    text: &str,
    folder: &Path,
    file: &Path,
    environment: &Environment,
) -> Result<Loaded, Vec<Fault>> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|kind| kind == "toml") && path != file).collect();
    files.sort();
    let project = Declared::of_text(file, text.to_owned()).project;
    let others = others(&Declared::of(&files, &Before::default()), &project);
    load_text(text, folder, environment, &others)
}

/// The file in a folder that is the manifest of this project.
pub fn file_of_project(folder: &Path, project: &str) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|kind| kind == "toml")).collect();
    files.sort();
    let declared = Declared::of(&files, &Before::default());
    let at = declared.iter().position(|declared| declared.project == project)?;
    files.into_iter().nth(at)
}

fn others(names: &[Declared], project: &str) -> ExternalNames {
    let others = names.iter().filter(|declared| declared.project != project);
    let kinds = others.flat_map(|declared| {
        declared
            .services
            .iter()
            .map(|(name, kind)| (Name::qualified(&declared.project, name).to_string(), *kind))
    });
    ExternalNames::of_projects(project, kinds.collect())
}

/// The names that a file declares, which can be read even where the rest is faulty.
struct Declared {
    project: String,
    /// The project's name as the file gives it; `None` where it gives none, or can't be read that far.
    named: Option<String>,
    services: Vec<(Name, Kind)>,
    source: Arc<Source>,
    /// Whether the file as a whole is not TOML.
    torn: bool,
}

impl Declared {
    /// Reads the names of each file. Where two files name their projects alike, the later one gets a
    /// number.
    fn of(files: &[PathBuf], before: &Before) -> Vec<Declared> {
        let mut projects: HashSet<String> = HashSet::new();
        let mut all = Vec::new();
        for file in files {
            let good = || before.texts.text(file).unwrap_or_default().into();
            let text = std::fs::read(file).unwrap_or_else(|_| good());
            let text = String::from_utf8_lossy(&text[..text.len().min(LARGEST)]).into_owned();
            let mut declared = Declared::of_text(file, text);
            let known = || {
                let known = before.projects.get(file).cloned();
                known.or_else(|| Some(Declared::of_text(file, before.texts.text(file)?.to_owned()).project))
            };
            // A torn file may not name its project, so the last known name counts.
            if let (None, Some(known)) = (&declared.named, known()) {
                declared.project = known;
            }
            // Nor may it name all of its services, so those of its last right text count.
            if let (true, Some(good)) = (declared.torn, before.texts.text(file)) {
                declared.services = Declared::of_text(file, good.to_owned()).services;
            }
            let first = declared.project.clone();
            let mut number = 2;
            while !projects.insert(declared.project.clone()) {
                declared.project = format!("{first}-{number}");
                number += 1;
            }
            all.push(declared);
        }
        all
    }

    fn of_text(file: &Path, text: String) -> Declared {
        let (table, errors) = DeTable::parse_recoverable(&text);
        let (table, torn) = (table.get_ref(), !errors.is_empty());
        let part = |key: &str| table.get(key).and_then(|value| value.get_ref().as_table());
        let named = part("project").and_then(|project| project.get("name")?.get_ref().as_str());
        let project = project_of(file, named);
        let services = part("service").into_iter().flat_map(|services| services.iter());
        let services = services
            .filter_map(|(name, service)| {
                let kind = service.get_ref().as_table().and_then(|keys| keys.get("kind")?.get_ref().as_str());
                let kind = if kind == Some("task") { Kind::Task } else { Kind::Service };
                Some((Name::new(name.get_ref()).ok()?, kind))
            })
            .collect();
        let named = named.map(str::to_owned);
        Declared {
            project,
            named,
            services,
            torn,
            source: Arc::new(Source::new(file.to_owned(), text.clone())),
        }
    }
}

/// The most bytes of a file that are read for its names.
const LARGEST: usize = 16 << 20;

/// Takes cycles of dependencies apart that go over several files, and notes them as faults. A
/// service in such a cycle can't be started.
fn break_cycles(plan: &mut Plan, cycles: &[Vec<Name>], names: &[Declared]) -> Vec<LoadError> {
    let mut faults = Vec::new();
    for cycle in cycles {
        let words: Vec<&str> = cycle.iter().map(Name::as_str).collect();
        let message = format!("dependency cycle: {}", words.join(" -> "));
        for spec in &mut plan.services {
            if cycle.contains(&spec.name) {
                let spec = Arc::make_mut(spec);
                spec.fault = Some(message.clone());
                spec.depends_on.retain(|dependency| !cycle.contains(&dependency.on));
            }
        }
        for declared in names {
            let Some(next) = words.windows(2).find(|pair| {
                pair[0].split_once('/').is_some_and(|(project, _)| project == declared.project)
                    && !pair[1].starts_with(&format!("{}/", declared.project))
            }) else {
                continue;
            };
            let at = declared.source.text.find(next[1]).unwrap_or(0);
            faults.push(LoadError::Faulty(vec![Fault {
                source: Arc::clone(&declared.source),
                span: at..at + if at == 0 { 0 } else { next[1].len() },
                message: message.clone(),
                label: "part of the cycle".to_owned(),
                also: None,
                hint: Some("remove one of these dependencies".to_owned()),
            }]));
        }
    }
    faults
}

/// The name of a file's project: the one that the file gives, else the file's own name.
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

/// The part of a faulty file: its services, which can't be started.
fn faulty(file: &Path, declared: &Declared, error: &LoadError) -> Part {
    let what = match error {
        LoadError::Unreadable { error, .. } => format!("{}: {error}", file.display()),
        LoadError::Faulty(faults) => {
            let first = faults.first().map(|fault| {
                let (line, column) = fault.place();
                format!("{}:{line}:{column}: {}", fault.source.path.display(), fault.message)
            });
            first.unwrap_or_default()
        }
    };
    let services: Vec<Arc<ServiceSpec>> = declared
        .services
        .iter()
        .map(|(name, kind)| {
            let spec = ServiceSpec::new(name.clone(), [""]);
            Arc::new(ServiceSpec { fault: Some(what.clone()), kind: *kind, ..spec })
        })
        .collect();
    let children = services.iter().map(|spec| Child::Service(spec.name.clone())).collect();
    Part {
        project: declared.project.clone(),
        services,
        root: GroupSpec { children, ..GroupSpec::default() },
        groups: BTreeMap::new(),
        stop: None,
    }
}

fn joined(folder: &Path, parts: Vec<Part>, environment: &Environment) -> Plan {
    let mut plan = Plan::of(&folder.file_name().unwrap_or_default().to_string_lossy(), Vec::new());
    plan.folder = folder.to_owned();
    plan.inherited = Arc::new(environment.vars.clone());
    for part in parts {
        let project = part.project;
        plan.stop.projects.extend(part.stop.map(|stop| (project.clone(), stop)));
        let rename = |name: &Name| match name.project() {
            // A dependency may name a service of another project.
            Some(_) => name.clone(),
            None => Name::qualified(&project, name),
        };
        let rename_child = |child: &Child| match child {
            Child::Service(name) => Child::Service(rename(name)),
            Child::Group(name) => Child::Group(rename(name)),
        };
        for spec in part.services {
            let mut spec = Arc::unwrap_or_clone(spec);
            spec.name = rename(&spec.name);
            for dependency in &mut spec.depends_on {
                dependency.on = rename(&dependency.on);
            }
            spec.project = Some(project.clone());
            plan.services.push(Arc::new(spec));
        }
        for (name, mut group) in part.groups {
            group.children = group.children.iter().map(rename_child).collect();
            plan.groups.insert(rename(&name), group);
        }
        let children: Vec<Child> = part.root.children.iter().map(rename_child).collect();
        let plain = GroupSpec { children: part.root.children.clone(), ..GroupSpec::default() };
        if part.root == plain {
            plan.root.children.extend(children);
        } else {
            // The settings of the project's root become those of a group that no manifest can declare.
            let Ok(name) = Name::new(&project) else {
                continue;
            };
            plan.root.children.push(Child::Group(name.clone()));
            // A project's root has no parent, so that `escalate` means `exit`, which takes the project down.
            let on_give_up = match part.root.on_give_up {
                GiveUp::Escalate => GiveUp::Exit,
                other => other,
            };
            plan.groups.insert(name, GroupSpec { children, on_give_up, ..part.root });
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Condition;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let loaded = load_folder(dir.path(), &Environment::default()).unwrap();
        (dir, loaded)
    }

    fn names(folder: &Folder) -> Vec<String> {
        folder.plan.services.iter().map(|spec| spec.name.to_string()).collect()
    }

    #[test]
    fn every_name_belongs_to_its_project() {
        let shop = "[service.db]\ncommand = \"a\"\n[service.web]\ncommand = \"a\"\ndepends_on = [\"db\"]\n";
        let blog = "[project]\nname = \"My Blog\"\n[service.db]\ncommand = \"b\"\n";
        let (_dir, loaded) = folder(&[("shop.toml", shop), ("b.toml", blog), ("notes.txt", "no")]);
        assert_eq!(names(&loaded), ["my-blog/db", "shop/db", "shop/web"]);
        assert_eq!(loaded.plan.services[2].depends_on[0].on.as_str(), "shop/db");
        assert!(loaded.faults.is_empty() && loaded.plan.groups.is_empty());
        assert_eq!(loaded.graph.services().len(), 3);
        let (_dir, alone) = folder(&[("shop.toml", shop)]);
        assert_eq!(names(&alone), ["shop/db", "shop/web"], "whoever else is there");
        let (_dir, alike) = folder(&[("a.toml", blog), ("b.toml", blog)]);
        assert_eq!(names(&alike), ["my-blog/db", "my-blog-2/db"]);
    }

    #[test]
    fn a_service_depends_on_another_projects_by_its_full_name() {
        let shop = "[service.db]\ncommand = \"a\"\n[service.load]\nkind = \"task\"\ncommand = \"a\"\n";
        let blog = "[service.web]\ncommand = \"b\"\ndepends_on = [\"shop/db\", \"shop/load\", \"blog/own\"]\n\
                    [service.own]\ncommand = \"c\"\n";
        let (_dir, loaded) = folder(&[("blog.toml", blog), ("shop.toml", shop)]);
        assert!(loaded.faults.is_empty(), "{:?}", loaded.faults);
        let web = loaded.plan.services.iter().find(|spec| spec.name.as_str() == "blog/web").unwrap();
        let on: Vec<(&str, Condition)> =
            web.depends_on.iter().map(|on| (on.on.as_str(), on.condition)).collect();
        assert_eq!(
            on,
            [
                ("shop/db", Condition::Ready),
                ("shop/load", Condition::Completed),
                ("blog/own", Condition::Ready)
            ]
        );
        for unknown in ["db", "shop/none", "shop/"] {
            let text = format!("[service.web]\ncommand = \"b\"\ndepends_on = [\"{unknown}\"]\n");
            let (_dir, loaded) = folder(&[("blog.toml", &text), ("shop.toml", shop)]);
            assert_eq!(loaded.faults.len(), 1, "{unknown}");
            assert!(loaded.plan.services[0].fault.is_some());
        }
    }

    #[test]
    fn a_circle_over_files_is_told_of_each_and_harms_no_other() {
        let a = "[service.x]\ncommand = \"a\"\ndepends_on = [\"b/y\"]\n[service.z]\ncommand = \"a\"\n";
        let b = "[service.y]\ncommand = \"a\"\ndepends_on = [\"a/x\"]\n";
        let (_dir, loaded) = folder(&[("a.toml", a), ("b.toml", b)]);
        assert_eq!(loaded.faults.len(), 2);
        let LoadError::Faulty(faults) = &loaded.faults[0] else { panic!("{:?}", loaded.faults) };
        assert_eq!(faults[0].place(), (3, 16));
        assert!(faults[0].message.contains("a/x -> b/y -> a/x"), "{}", faults[0].message);
        let faulty: Vec<bool> = loaded.plan.services.iter().map(|spec| spec.fault.is_some()).collect();
        assert_eq!(faulty, [true, false, true]);
        assert_eq!(loaded.graph.services().len(), 3);
    }

    #[test]
    fn a_faulty_file_keeps_its_services_and_harms_no_other() {
        let good = "[service.good]\ncommand = \"a\"\n";
        let bad = "[service.bad]\ncomand = \"a\"\n[service.worse]\ncommand = 3\n";
        let (_dir, loaded) = folder(&[("good.toml", good), ("bad.toml", bad), ("torn.toml", "[service")]);
        assert_eq!(names(&loaded), ["bad/bad", "bad/worse", "good/good"]);
        assert_eq!(loaded.faults.len(), 2);
        let fault = loaded.plan.services[0].fault.clone().unwrap();
        assert!(fault.contains("bad.toml:1:10: service \"bad\" has no command"), "{fault}");
        assert!(loaded.plan.services[2].fault.is_none());
    }

    #[test]
    fn a_file_that_turns_faulty_keeps_what_was_right_once() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let reader = FolderReader::new(dir.path().to_owned(), Environment::default(), LastGood::default());
        write(
            "shop.toml",
            "[project]\nname = \"store\"\n[service.web]\ncommand = \"a\"\n[group.g]\nmembers = [\"web\"]\n",
        );
        write("blog.toml", "[service.x]\ncommand = \"a\"\ndepends_on = [\"store/web\"]\n");
        let first = reader.read(None).unwrap();
        assert!(first.faults.is_empty());
        for torn in ["[project]\nname = \"store\"\n[service.web]\ncomand = \"b\"\n", "[servi", "\u{0}"] {
            write("shop.toml", torn);
            write("blog.toml", "[service.x]\ncommand = \"b\"\n[service.y]\ncommand = \"a\"\n");
            let now = reader.read(Some(&first.plan)).unwrap();
            assert_eq!(now.faults.len(), 1, "{torn:?}");
            assert_eq!(names(&now), ["blog/x", "blog/y", "store/web"], "{torn:?}");
            assert!(now.plan.services.iter().all(|spec| spec.fault.is_none()));
            assert_eq!(now.plan.services[2], first.plan.services[1], "as it was");
            assert_eq!(now.plan.services[0].command.argv, ["b"], "the others as they are");
            assert_eq!(now.plan.groups, first.plan.groups);
        }
        // What was never right stays as it is told.
        write("new.toml", "[service.z]\ncomand = \"b\"\n");
        let now = reader.read(Some(&first.plan)).unwrap();
        assert!(now.plan.services.iter().any(|spec| spec.name.as_str() == "new/z" && spec.fault.is_some()));
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
