//! The whole way from a file to a plan: reading, decoding, expanding, validating.
//!
//! Faults are collected over all of these steps, so that one run shows them all. Nothing is started
//! here.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

use super::decode::{self, Health, Hooks, Log, Ready, Run, Service, Stop, Target, Words};
use super::dotenv;
use super::fault::{Fault, LoadError, Source};
use super::interpolate::Trouble;
use super::reader::{At, Collector};
use super::validate::{self, ExternalNames};
use crate::decide::graph::Graph;
use crate::model::plan::StopTimes;
use crate::model::spec::INHERIT;
use crate::model::{
    Addition, Check, CheckTarget, CommandLine, EnvSpec, HealthSpec, HookSpec, Kind, LogSpec, LogTarget, Plan,
    ReadySpec, ReadyTarget, ServiceSpec, StopSpec,
};

mod given;
mod scope;

use given::{Given, renewable};
use scope::Scope;

/// The default time between two readiness checks. The first attempts come quicker, so that a
/// service that is ready at once is seen at once.
const READY_INTERVAL: Duration = Duration::from_millis(250);
/// The default time between two health checks.
const HEALTH_INTERVAL: Duration = Duration::from_secs(30);
/// The default time that one attempt of a check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
const HOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// The default number of failures in a row that make a service unhealthy.
const HEALTH_FAILURES: u32 = 3;

/// What a manifest may read besides its own file.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// The variables of the process, which services inherit and manifests may use.
    pub vars: Vec<(OsString, OsString)>,
    /// The env files of the command line; they win over the project's.
    pub env_files: Vec<PathBuf>,
    /// What the env files said when the manifest was last right. It counts for those that can't be read
    /// now.
    pub(super) before: BTreeMap<PathBuf, String>,
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Environment {
        Environment { vars: std::env::vars_os().collect(), ..Environment::default() }
    }

    /// An environment of these variables, without env files.
    pub fn of_vars(vars: Vec<(OsString, OsString)>) -> Environment {
        Environment { vars, ..Environment::default() }
    }

    /// The same environment with these env files.
    pub fn with_files(self, env_files: Vec<PathBuf>) -> Environment {
        Environment { env_files, ..self }
    }
}

/// A manifest without faults.
#[derive(Debug)]
pub struct Loaded {
    /// The plan that the manifest describes.
    pub plan: Plan,
    /// The dependency graph of the plan.
    pub graph: Graph,
    /// Warnings: what is allowed, and still worth a look.
    pub warnings: Vec<Fault>,
    /// Whether the manifest names its project itself.
    pub named: bool,
    /// The text that the manifest was read from.
    pub(super) source: Arc<Source>,
    /// The texts of its env files, by their paths.
    pub(super) env_texts: BTreeMap<PathBuf, String>,
}

/// A manifest without faults, of services and groups to add to a tree.
#[derive(Debug)]
pub struct LoadedAddition {
    /// The services and groups to add; the caller chooses the group that they go into.
    pub addition: Addition,
    /// Warnings: what is allowed, and still worth a look.
    pub warnings: Vec<Fault>,
}

/// Finds the manifest as `regrow run` without FILE does: `regrow.toml`, then
/// `dev-env.toml`, in this folder or the nearest parent that has one.
pub fn discover(from: &Path) -> Option<PathBuf> {
    from.ancestors().find_map(|folder| {
        ["regrow.toml", "dev-env.toml"].iter().map(|name| folder.join(name)).find(|path| path.is_file())
    })
}

/// Reads and checks a manifest.
pub fn load(path: &Path, environment: &Environment) -> Result<Loaded, LoadError> {
    load_among(path, environment, &ExternalNames::default())
}

/// Reads and checks a manifest whose services may depend on `others`.
pub(super) fn load_among(
    path: &Path,
    environment: &Environment,
    others: &ExternalNames,
) -> Result<Loaded, LoadError> {
    let unreadable = |error| LoadError::Unreadable { path: path.to_owned(), error };
    let file = path.canonicalize().map_err(unreadable)?;
    let bytes = read_bounded(&file).map_err(unreadable)?;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let source = Arc::new(Source::new(path.to_owned(), text));
            return Err(LoadError::Faulty(vec![Fault {
                source,
                span: at..at + 3,
                message: "the manifest is not UTF-8 text".to_owned(),
                label: "invalid UTF-8".to_owned(),
                also: None,
                hint: Some("save it as UTF-8".to_owned()),
            }]));
        }
    };
    let source = Arc::new(Source::new(path.to_owned(), text));
    let folder = file.parent().unwrap_or(Path::new("/"));
    load_in(&source, Some(&file), folder, environment, others).map_err(LoadError::Faulty)
}

/// Checks the text of a manifest that is in no file. Its relative paths count from `folder`.
pub fn load_text(
    text: &str,
    folder: &Path,
    environment: &Environment,
    others: &ExternalNames,
) -> Result<Loaded, Vec<Fault>> {
    let source = Arc::new(Source::new(folder.join("regrow.toml"), text.to_owned()));
    load_in(&source, None, folder, environment, others)
}

/// Checks a manifest of what is to be added to a tree. It may depend on services of the running
/// tree, and must not clash with its names. `file` is where the text comes from.
pub fn load_addition(
    text: &str,
    file: &Path,
    environment: &Environment,
    there: &Plan,
) -> Result<LoadedAddition, Vec<Fault>> {
    let source = Arc::new(Source::new(file.to_owned(), text.to_owned()));
    let folder = file.parent().unwrap_or(Path::new("/"));
    let others = ExternalNames::there(there);
    let Sound { services, tree, warnings, .. } = read(&source, folder, environment, Some(there), &others)?;
    let addition = Addition { into: None, children: tree.root.children, services, groups: tree.groups };
    Ok(LoadedAddition { addition, warnings })
}

/// Checks the text of a manifest. `file` is its path, where it has one.
pub(super) fn load_in(
    source: &Arc<Source>,
    file: Option<&Path>,
    folder: &Path,
    environment: &Environment,
    others: &ExternalNames,
) -> Result<Loaded, Vec<Fault>> {
    let read = read(source, folder, environment, None, others)?;
    let Sound { name, stop, shared, env_texts, services, graph, tree, warnings } = read;
    let named = name.is_some();
    let name = name.or_else(|| {
        let name = folder.file_name()?.to_string_lossy().into_owned();
        Some(name)
    });
    let plan = Plan {
        project: name.unwrap_or_else(|| "project".to_owned()),
        file: file.map(Path::to_owned),
        folder: folder.to_owned(),
        services,
        root: tree.root,
        groups: tree.groups,
        stop: StopTimes { tree: stop, ..StopTimes::default() },
        inherited: Arc::new(environment.vars.clone()),
        shared: Arc::new(shared),
    };
    Ok(Loaded { plan, graph, warnings, named, source: Arc::clone(source), env_texts })
}

/// What is read from a text without faults.
struct Sound {
    /// The project's name; `None` where the manifest gives none.
    name: Option<String>,
    /// How long a stop of the whole project may take.
    stop: Option<Duration>,
    /// What the project's env files set.
    shared: Assignments,
    /// The texts of all env files, by their paths.
    env_texts: BTreeMap<PathBuf, String>,
    services: Vec<Arc<ServiceSpec>>,
    graph: Graph,
    tree: validate::Tree,
    warnings: Vec<Fault>,
}

/// Reads a text to its end. `there` is the running tree, where the text is to be added to one.
fn read(
    source: &Arc<Source>,
    folder: &Path,
    environment: &Environment,
    there: Option<&Plan>,
    others: &ExternalNames,
) -> Result<Sound, Vec<Fault>> {
    let mut collector = Collector::new(Arc::clone(source));
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    if !errors.is_empty() {
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            collector.fault(span, format!("invalid TOML: {}", error.message()), "syntax error");
        }
        return Err(sorted(collector.faults));
    }
    let declared = decode::document(table.get_ref(), &mut collector);
    let there_already = there.map_or(&[][..], |plan| &plan.services);
    let given = Given {
        source: Arc::clone(source),
        folder: folder.to_owned(),
        declared,
        env_files: environment.env_files.clone(),
        there: there.map(|plan| Arc::clone(&plan.shared)).unwrap_or_default(),
        process: text_of(&environment.vars),
    };
    let declared = &given.declared;
    let mut warnings = Vec::new();
    let mut loader = Loader::new(&given, collector, &mut warnings);
    loader.before.clone_from(&environment.before);
    let shared = loader.project();
    let services = loader.services(&shared, others);
    let (mut collector, env_texts) = (loader.collector, loader.texts);
    validate::services(declared, &services, there_already, others, &mut collector);
    if let Some(plan) = there {
        validate::beside(declared, plan, &mut collector);
    }
    warnings.extend(validate::unreachable_limits(declared, &services, &collector));
    warnings.extend(validate::useless_log_files(declared, &services, &collector));
    let tree = validate::tree(declared, there, &mut collector);
    if there.is_none() {
        warnings.extend(validate::idle_keys(declared, &services, &tree, &collector));
    }
    let all: Vec<Arc<ServiceSpec>> =
        there_already.iter().cloned().chain(services.iter().cloned().map(Arc::new)).collect();
    let graph = match Graph::new(&all) {
        Ok(graph) => graph,
        Err(cycles) => {
            validate::cycles(declared, &cycles, &mut collector);
            Graph::default()
        }
    };
    if !collector.faults.is_empty() {
        return Err(sorted(collector.faults));
    }
    let (name, stop) = (declared.project.name.clone(), declared.project.stop_timeout);
    let services = renewable(given, services);
    Ok(Sound { name, stop, shared, env_texts, services, graph, tree, warnings })
}

/// The faults in the order of the text. Those of other files come after the manifest's.
fn sorted(mut faults: Vec<Fault>) -> Vec<Fault> {
    if let Some(first) = faults.first().map(|f| f.source.path.clone()) {
        faults.sort_by_key(|f| (f.source.path != first, f.span.start));
    }
    faults
}

/// Pairs of name and value, in order; a later one of the same name wins.
type Assignments = Vec<(String, String)>;

/// The variables whose name and value are UTF-8.
fn text_of(vars: &[(OsString, OsString)]) -> HashMap<String, String> {
    let text = |(name, value): &(OsString, OsString)| Some((name.to_str()?.into(), value.to_str()?.into()));
    vars.iter().filter_map(text).collect()
}

struct Loader<'a> {
    given: &'a Given,
    collector: Collector,
    warnings: &'a mut Vec<Fault>,
    /// The env files that were read already, so that each is reported once.
    files: HashMap<PathBuf, Assignments>,
    /// The earlier texts of env files, for those that can't be read now.
    before: BTreeMap<PathBuf, String>,
    /// The texts of the env files that could be read.
    texts: BTreeMap<PathBuf, String>,
}

impl<'a> Loader<'a> {
    fn new(given: &'a Given, collector: Collector, warnings: &'a mut Vec<Fault>) -> Loader<'a> {
        let (files, before, texts) = (HashMap::new(), BTreeMap::new(), BTreeMap::new());
        Loader { given, collector, warnings, files, before, texts }
    }
}

impl Loader<'_> {
    /// What the project's env files set, which every service starts from.
    fn project(&mut self) -> Assignments {
        let given = self.given;
        let mut project = given.there.to_vec();
        for path in &given.declared.project.env_file {
            let absolute = given.absolute(&path.value);
            if absolute.exists() || self.before.contains_key(&absolute) {
                project.extend(self.env_file(&absolute, Some(path)));
            } else {
                // Not every checkout has a .env file. A variable that is missing then is reported where it is used.
                self.warnings.push(Fault {
                    source: Arc::clone(&self.collector.source),
                    span: path.span.clone(),
                    message: format!("there is no env file {}", path.value),
                    label: "named here".to_owned(),
                    also: None,
                    hint: None,
                });
            }
        }
        for path in &given.env_files {
            project.extend(self.env_file(path, None));
        }
        project
    }

    fn services(&mut self, project: &Assignments, others: &ExternalNames) -> Vec<ServiceSpec> {
        let declared = &self.given.declared.services;
        let kinds: HashMap<&str, Kind> = declared.iter().map(|s| (s.name.value.as_str(), s.kind)).collect();
        declared.iter().map(|service| self.service(service, project, &kinds, others)).collect()
    }

    fn service(
        &mut self,
        service: &Service,
        project: &Assignments,
        kinds: &HashMap<&str, Kind>,
        others: &ExternalNames,
    ) -> ServiceSpec {
        let mut files = project.clone();
        for path in &service.env_file {
            let absolute = self.given.absolute(&path.value);
            files.extend(self.env_file(&absolute, Some(path)));
        }
        let scope = Scope {
            process: &self.given.process,
            files: files.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
            own: service
                .env
                .iter()
                .map(|(name, value)| (name.value.as_str(), value.value.as_str()))
                .collect(),
            known: RefCell::default(),
        };
        let mut faults = Faults { collector: &mut self.collector, service: service.name.value.as_str() };
        let mut set = files.clone();
        for (name, value) in &service.env {
            if let Some(expanded) = faults.note(scope.own(&name.value, &mut Vec::new()), value) {
                set.push((name.value.clone(), expanded));
            }
        }
        // The order has no meaning: a variable that moves within the manifest must not make another
        // process.
        let mut set = last_wins(set);
        set.sort_unstable();

        let secret: HashSet<&String> = service.secrets.iter().map(|(name, _)| name).collect();
        let command = faults.command(&scope, service.run.as_ref());
        let dir = match &service.dir {
            Some(dir) => faults.text(&scope, dir).map(|dir| absolute(&self.given.folder, &dir)),
            None => Some(self.given.folder.clone()),
        };
        let ready = service.ready.as_ref().and_then(|ready| faults.ready(&scope, ready));
        let health = service.health.as_ref().and_then(|health| faults.health(&scope, health));
        let stop = faults.stop(&scope, &service.stop);
        let on = service.on.as_ref().map(|on| faults.hooks(&scope, on));
        let log = service.log.as_ref().map(|log| faults.log(&scope, log, &self.given.folder));
        // The service exists even without a command or a folder, since others may depend on it.
        ServiceSpec {
            name: service.name.value.clone(),
            command: command.unwrap_or_else(|| CommandLine { argv: vec![String::new()], shell: false }),
            kind: service.kind,
            dir: dir.unwrap_or_else(|| self.given.folder.clone()),
            run_as: service.run_as.clone(),
            env: EnvSpec {
                clear: service.env_clear,
                deny: sorted_words(&service.env_deny),
                // A variable that is to hold a secret has no other value.
                set: set.into_iter().filter(|(name, _)| !secret.contains(name)).collect(),
                secrets: sorted_words(&service.secrets),
            },
            depends_on: validate::dependencies(service, kinds, others),
            ready,
            health,
            restart: service.restart.clone(),
            stop,
            on,
            log,
            replicas: service.replicas,
            scale: service.scale,
            autostart: service.autostart,
            on_dependency_restart: service.on_dependency_restart,
            rerun: service.rerun,
            significant: service.significant,
            profiles: service.profiles.clone(),
            tags: service.tags.clone(),
            project: None,
            runner: None,
            fault: None,
            renewal: None,
        }
    }

    /// The assignments of an env file. `named` is its place in the manifest; `None` for one of the
    /// command line.
    fn env_file(&mut self, path: &Path, named: Option<&At<String>>) -> Assignments {
        if let Some(known) = self.files.get(path) {
            return known.clone();
        }
        // Reading a pipe might never end.
        let is_file = std::fs::metadata(path).and_then(|at| match at.is_file() {
            true => Ok(()),
            false => Err(std::io::Error::other("it is not a regular file")),
        });
        let text = is_file.and_then(|()| read_bounded(path)).and_then(|bytes| {
            String::from_utf8(bytes).map_err(|_| std::io::Error::other("it is not UTF-8 text"))
        });
        let text = text.or_else(|error| self.before.get(path).cloned().ok_or(error));
        let found = match text {
            Ok(text) => {
                self.texts.insert(path.to_owned(), text.clone());
                let (found, bad) = dotenv::parse(&text);
                let source = Arc::new(Source::new(path.to_owned(), text));
                for (span, message) in bad {
                    self.collector.faults.push(Fault {
                        source: Arc::clone(&source),
                        span,
                        message,
                        label: "invalid line".to_owned(),
                        also: None,
                        hint: None,
                    });
                }
                found
            }
            Err(error) => {
                let message = format!("can't read the env file {}: {error}", path.display());
                let span = named.map_or(0..0, |n| n.span.clone());
                let label = if named.is_some() { "named here" } else { "asked for by --env-file" };
                self.collector.fault(span, message, label);
                Assignments::new()
            }
        };
        self.files.insert(path.to_owned(), found.clone());
        found
    }
}

/// Notes the faults of one service.
struct Faults<'a> {
    collector: &'a mut Collector,
    service: &'a str,
}

impl Faults<'_> {
    fn command(&mut self, scope: &Scope<'_>, run: Option<&Run>) -> Option<CommandLine> {
        match run? {
            Run::Command(words) => Some(CommandLine { argv: self.words(scope, words), shell: false }),
            Run::Shell(text) => Some(CommandLine {
                argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), text.value.clone()],
                shell: true,
            }),
        }
    }

    fn ready(&mut self, scope: &Scope<'_>, ready: &Ready) -> Option<ReadySpec> {
        let target = match &ready.target {
            Target::Log(pattern) => {
                if let Err(error) = regex::bytes::Regex::new(&pattern.value) {
                    self.collector.fault_with(
                        pattern.span.clone(),
                        format!("{:?} is not a valid regular expression", pattern.value),
                        "invalid regular expression",
                        last_line(&error.to_string()),
                    );
                }
                ReadyTarget::Log(pattern.value.clone())
            }
            Target::After(delay) => ReadyTarget::After(*delay),
            target @ (Target::Tcp(_) | Target::Http(_) | Target::Exec(_)) => ReadyTarget::Check(Check {
                target: self.target(scope, target)?,
                interval: ready.interval.unwrap_or(READY_INTERVAL),
                timeout: ready.timeout.unwrap_or(CHECK_TIMEOUT),
                successes: ready.successes.unwrap_or(1),
            }),
        };
        Some(ReadySpec { target, deadline: ready.deadline })
    }

    fn health(&mut self, scope: &Scope<'_>, health: &Health) -> Option<HealthSpec> {
        Some(HealthSpec {
            check: Check {
                target: self.target(scope, &health.target)?,
                interval: health.interval.unwrap_or(HEALTH_INTERVAL),
                timeout: health.timeout.unwrap_or(CHECK_TIMEOUT),
                successes: health.successes.unwrap_or(1),
            },
            failures: health.failures.unwrap_or(HEALTH_FAILURES),
            start_period: health.start_period.unwrap_or_default(),
        })
    }

    fn stop(&mut self, scope: &Scope<'_>, stop: &Stop) -> StopSpec {
        let usual = StopSpec::default();
        let command = stop.command.as_ref();
        StopSpec {
            signal: stop.signal.unwrap_or(usual.signal),
            timeout: stop.timeout.unwrap_or(usual.timeout),
            command: command.map(|words| CommandLine { argv: self.words(scope, words), shell: false }),
        }
    }

    fn hooks(&mut self, scope: &Scope<'_>, on: &Hooks) -> HookSpec {
        let commands = on.commands.iter();
        HookSpec {
            commands: commands
                .map(|(hook, words)| (*hook, CommandLine { argv: self.words(scope, words), shell: false }))
                .collect(),
            timeout: on.timeout.unwrap_or(HOOK_TIMEOUT),
        }
    }

    fn log(&mut self, scope: &Scope<'_>, log: &Log, folder: &Path) -> LogSpec {
        LogSpec {
            file: match &log.file {
                Some(file) if file.value == INHERIT => LogTarget::Inherit,
                file => LogTarget::from(file.as_ref().and_then(|file| self.file(scope, file, folder))),
            },
            max_size: log.max_size,
            max_files: log.max_files,
            compress: log.compress,
            owner: log.owner.clone(),
            mode: log.mode,
        }
    }

    fn note(&mut self, result: Result<String, Trouble>, at: &At<String>) -> Option<String> {
        let trouble = match result {
            Ok(text) => return Some(text),
            Err(trouble) => trouble,
        };
        let service = self.service;
        match trouble {
            Trouble::Undefined(name) => self.collector.fault_with(
                at.span.clone(),
                format!("service {service:?}: undefined variable \"{name}\""),
                "used here",
                format!("set it, or give a default: ${{{name}:-...}}"),
            ),
            Trouble::Malformed(message) => self.collector.fault_with(
                at.span.clone(),
                format!("service {service:?}: {message}"),
                "used here",
                "write $$ for a dollar",
            ),
            Trouble::Circular(path) => self.collector.fault(
                at.span.clone(),
                format!(
                    "service {service:?}: variables refer to each other in a cycle: {}",
                    path.join(" -> ")
                ),
                "part of the cycle",
            ),
        }
        None
    }

    fn text(&mut self, scope: &Scope<'_>, at: &At<String>) -> Option<String> {
        let expanded = scope.expand(&at.value);
        self.note(expanded, at)
    }

    /// The path of a file, which need not exist yet.
    fn file(&mut self, scope: &Scope<'_>, at: &At<String>, folder: &Path) -> Option<PathBuf> {
        let text = self.text(scope, at)?;
        let path = absolute(folder, &text);
        if text == "~" || text.starts_with("~/") {
            let hint = format!("write ${{HOME}}{}", &text[1..]);
            self.collector.fault_with(
                at.span.clone(),
                "\"~\" is not expanded in a path",
                "taken literally",
                hint,
            );
            return None;
        }
        let named = Path::new(&text).file_name().is_some() && !text.ends_with("/.");
        if text.is_empty() || text.ends_with('/') || text.contains('\0') || !named {
            self.collector.fault_with(
                at.span.clone(),
                format!("{text:?} is not a file path"),
                "not a file path",
                "write a path such as \"logs/web.log\", relative to the manifest's folder",
            );
            return None;
        }
        Some(path)
    }

    fn words(&mut self, scope: &Scope<'_>, words: &Words) -> Vec<String> {
        let found: Vec<String> = words.words.iter().filter_map(|word| self.text(scope, word)).collect();
        if let (Some(first), Some(place)) = (found.first(), words.words.first())
            && first.is_empty()
        {
            self.collector.fault(place.span.clone(), "the program's name is empty", "nothing to run");
        }
        found
    }

    fn target(&mut self, scope: &Scope<'_>, target: &Target) -> Option<CheckTarget> {
        match target {
            Target::Tcp(at) => {
                let text = self.text(scope, at)?;
                if let Err(hint) = validate::address(&text) {
                    self.collector.fault_with(
                        at.span.clone(),
                        format!("{text:?} is not a valid address"),
                        "invalid address",
                        hint,
                    );
                }
                Some(CheckTarget::Tcp(text))
            }
            Target::Http(at) => {
                let text = self.text(scope, at)?;
                if let Err(hint) = validate::url(&text) {
                    self.collector.fault_with(
                        at.span.clone(),
                        format!("{text:?} is not a URL that can be checked"),
                        "unsupported URL",
                        hint,
                    );
                }
                Some(CheckTarget::Http(text))
            }
            Target::Exec(words) => {
                Some(CheckTarget::Exec(CommandLine { argv: self.words(scope, words), shell: false }))
            }
            // The caller reads these, since they are no repeated checks.
            Target::Log(_) | Target::After(_) => None,
        }
    }
}

/// The words in an order that does not depend on how they were written.
fn sorted_words<T: Ord + Clone>(words: &[T]) -> Vec<T> {
    let mut words = words.to_vec();
    words.sort_unstable();
    words.dedup();
    words
}

fn last_wins(all: Assignments) -> Assignments {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut kept: Assignments = Vec::new();
    for (name, value) in all {
        match places.get(&name) {
            Some(&at) => kept[at].1 = value,
            None => {
                places.insert(name.clone(), kept.len());
                kept.push((name, value));
            }
        }
    }
    kept
}

/// A path counted from a folder, without `.` parts.
fn absolute(folder: &Path, path: &str) -> PathBuf {
    let joined = folder.join(path);
    joined.components().filter(|part| !matches!(part, Component::CurDir)).collect()
}

/// The largest manifest or env file, in bytes; nothing that a person wrote is larger.
const LARGEST: u64 = 64 << 20;

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(std::io::Error::other("it is larger than 64 MiB"));
    }
    Ok(bytes)
}

fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim().to_owned()
}
