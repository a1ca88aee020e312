//! From TOML tables to declarations. Which keys there are, and the bounds of their values, is said by
//! the table of keys ([`crate::model::keys`]).
//!
//! What the declarations mean together (names that resolve, cycles, ports) is `validate`'s to say;
//! the values of variables are `load`'s.

use std::ops::Range;
use std::time::Duration;

use scale::replicas;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::reader::{self, At, Collector, Reader, kind_of};
use crate::model::exit::signal_number;
use crate::model::keys::{GROUP, MANIFEST, PROJECT, SERVICE, Section};
use crate::model::plan::{AutoShutdown, GiveUp};
use crate::model::spec::{ExitMatch, Hook, RunAs, ScaleSpec};
use crate::model::{Backoff, Condition, Kind, Name, OnDependencyRestart, Policy, RestartSpec, Strategy};

mod scale;

/// A manifest as it is written: names are not resolved, and variables are not expanded.
#[derive(Debug, Default)]
pub(super) struct Declared {
    pub(super) project: Project,
    pub(super) services: Vec<Service>,
    pub(super) groups: Vec<Group>,
}

#[derive(Debug, Default)]
pub(super) struct Project {
    /// The bytes of the `[project]` table; `None` where there is none.
    pub(super) span: Option<Range<usize>>,
    pub(super) name: Option<String>,
    pub(super) env_file: Vec<At<String>>,
    pub(super) supervision: Supervision,
    /// How long a stop of the whole project may take.
    pub(super) stop_timeout: Option<Duration>,
}

/// The restart settings that the root and every group may have.
#[derive(Debug, Default)]
pub(super) struct Supervision {
    pub(super) strategy: Option<Strategy>,
    pub(super) intensity: Option<u32>,
    pub(super) period: Option<Duration>,
    pub(super) on_give_up: Option<GiveUp>,
    pub(super) auto_shutdown: Option<AutoShutdown>,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: At<Name>,
    pub(super) members: Vec<At<String>>,
    pub(super) supervision: Supervision,
    pub(super) significant: bool,
}

#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: At<Name>,
    pub(super) run: Option<Run>,
    pub(super) kind: Kind,
    pub(super) dir: Option<At<String>>,
    pub(super) run_as: RunAs,
    pub(super) env: Vec<(At<String>, At<String>)>,
    pub(super) secrets: Vec<(String, Name)>,
    pub(super) env_file: Vec<At<String>>,
    pub(super) env_clear: bool,
    pub(super) env_deny: Vec<String>,
    pub(super) depends_on: Vec<Depends>,
    pub(super) ready: Option<Ready>,
    pub(super) health: Option<Health>,
    pub(super) restart: RestartSpec,
    pub(super) stop: Stop,
    pub(super) on: Option<Hooks>,
    pub(super) log: Option<Log>,
    pub(super) replicas: u32,
    pub(super) scale: Option<ScaleSpec>,
    pub(super) autostart: bool,
    pub(super) on_dependency_restart: OnDependencyRestart,
    pub(super) rerun: bool,
    pub(super) significant: bool,
    pub(super) profiles: Vec<String>,
    pub(super) tags: Vec<String>,
}

impl Service {
    /// The largest number of instances that the service may have.
    pub(super) fn most_copies(&self) -> u32 {
        self.scale.map_or(self.replicas, |scale| scale.max)
    }

    /// Whether the instances of the service have numbers.
    pub(super) fn is_numbered(&self) -> bool {
        self.scale.is_some() || self.replicas > 1
    }
}

/// What a service runs: its `command` or its `shell`.
#[derive(Debug)]
pub(super) enum Run {
    Command(Words),
    Shell(At<String>),
}

/// The words of a command line, not expanded. All have the same place where they were written as
/// one string.
#[derive(Debug, Clone)]
pub(super) struct Words {
    pub(super) words: Vec<At<String>>,
}

#[derive(Debug)]
pub(super) struct Depends {
    pub(super) on: At<String>,
    /// The condition to wait for. `None`: the one that is natural to the other's kind, as in the list
    /// form.
    pub(super) condition: Option<Condition>,
    pub(super) required: bool,
}

#[derive(Debug)]
pub(super) enum Target {
    Tcp(At<String>),
    Http(At<String>),
    Exec(Words),
    Log(At<String>),
    After(Duration),
}

#[derive(Debug)]
pub(super) struct Ready {
    pub(super) target: Target,
    pub(super) interval: Option<Duration>,
    pub(super) timeout: Option<Duration>,
    pub(super) deadline: Option<Duration>,
    pub(super) successes: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Health {
    pub(super) target: Target,
    pub(super) interval: Option<Duration>,
    pub(super) timeout: Option<Duration>,
    pub(super) failures: Option<u32>,
    pub(super) successes: Option<u32>,
    pub(super) start_period: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct Stop {
    pub(super) signal: Option<i32>,
    pub(super) timeout: Option<Duration>,
    pub(super) command: Option<Words>,
}

/// The table `on`: commands that are run at certain events.
#[derive(Debug)]
pub(super) struct Hooks {
    pub(super) commands: Vec<(Hook, Words)>,
    pub(super) timeout: Option<Duration>,
}

/// The table `log`: where output goes, and how its files are kept.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) file: Option<At<String>>,
    pub(super) max_size: Option<u64>,
    pub(super) max_files: Option<u32>,
    pub(super) compress: Option<bool>,
    pub(super) owner: Option<String>,
    pub(super) mode: Option<u32>,
}

/// Reads the whole manifest.
pub(super) fn document(table: &DeTable<'_>, collector: &mut Collector) -> Declared {
    let mut declared = Declared::default();
    let mut reader = Reader::new(table, &MANIFEST);
    if let Some(value) = reader.get("project")
        && let Some(table) = table_of("[project]", value, collector)
    {
        declared.project = Project { span: Some(value.span()), ..project(table, collector) };
    }
    for (key, value) in named(&mut reader, "service", collector) {
        let title = format!("[service.{}]", key.value);
        if let Some(table) = table_of(&title, value, collector) {
            declared.services.push(service(key, table, collector));
        }
    }
    for (key, value) in named(&mut reader, "group", collector) {
        let title = format!("[group.{}]", key.value);
        if let Some(table) = table_of(&title, value, collector) {
            declared.groups.push(group(key, table, collector));
        }
    }
    reader.finish(collector);
    // The order is that of the text, whatever the parser's is.
    declared.services.sort_by_key(|s| s.name.span.start);
    declared.groups.sort_by_key(|g| g.name.span.start);
    declared
}

/// The tables below `service` or `group` that have valid names. Other names become faults.
fn named<'a, 'i>(
    reader: &mut Reader<'a, 'i>,
    section: &'static str,
    collector: &mut Collector,
) -> Vec<(At<Name>, &'a Spanned<DeValue<'i>>)> {
    let Some(value) = reader.get(section) else {
        return Vec::new();
    };
    let DeValue::Table(table) = value.get_ref() else {
        let is = kind_of(value.get_ref());
        collector.fault_with(
            value.span(),
            format!("{section:?} must be a table, not {is}"),
            format!("this is {is}"),
            format!("write [{section}.NAME] above its keys"),
        );
        return Vec::new();
    };
    let mut found = Vec::new();
    for (key, value) in table {
        let text = key.get_ref().as_ref();
        match Name::new(text) {
            Ok(name) => found.push((At { value: name, span: key.span() }, value)),
            Err(error) => {
                let shown: String = text.chars().take(40).collect();
                collector.fault_with(
                    key.span(),
                    format!("{shown:?} is not a valid name for a {section}: {error}"),
                    "invalid name",
                    "write a name such as \"web-api.2\"",
                );
            }
        }
    }
    found
}

fn table_of<'a, 'i>(
    title: &str,
    value: &'a Spanned<DeValue<'i>>,
    collector: &mut Collector,
) -> Option<&'a DeTable<'i>> {
    match value.get_ref() {
        DeValue::Table(table) => Some(table),
        _ => {
            collector.wrong_type(title, "a table", value);
            None
        }
    }
}

fn project(table: &DeTable<'_>, collector: &mut Collector) -> Project {
    let mut reader = Reader::new(table, &PROJECT);
    let name = reader.string("name", collector).and_then(|name| {
        let fine = !name.value.trim().is_empty()
            && name.value.len() <= 200
            && !name.value.contains(|c: char| c.is_control() || c == '/');
        if !fine {
            collector.fault(
                name.span.clone(),
                "a project's name must have 1 to 200 characters and no slash or control character",
                "invalid name",
            );
        }
        fine.then_some(name.value)
    });
    let env_file = paths("env_file", &mut reader, collector);
    let supervision = supervision(&mut reader, collector);
    let stop_timeout = reader.duration("stop_timeout", collector);
    reader.finish(collector);
    Project { span: None, name, env_file, supervision, stop_timeout }
}

fn supervision(reader: &mut Reader<'_, '_>, collector: &mut Collector) -> Supervision {
    let strategy = reader.choice("strategy", Strategy::WORDS, collector);
    let intensity = reader.integer("intensity", collector).map(|n| n.value);
    let period = reader.duration("period", collector);
    let on_give_up = reader.choice("on_give_up", GiveUp::WORDS, collector);
    let auto_shutdown = reader.choice("auto_shutdown", AutoShutdown::WORDS, collector);
    Supervision { strategy, intensity, period, on_give_up, auto_shutdown }
}

fn group(name: At<Name>, table: &DeTable<'_>, collector: &mut Collector) -> Group {
    let mut reader = Reader::named(table, &GROUP, format!("[group.{}]", name.value));
    let members = reader.strings("members", collector);
    let empty = members.as_ref().is_some_and(Vec::is_empty);
    if empty || (members.is_none() && reader.key_span("members").is_none()) {
        collector.fault_with(
            name.span.clone(),
            format!("group {:?} has no members", name.value.as_str()),
            "no members",
            "add members = [\"...\"]",
        );
    }
    let supervision = supervision(&mut reader, collector);
    let significant = reader.boolean("significant", collector).unwrap_or(false);
    reader.finish(collector);
    Group { name, members: members.unwrap_or_default(), supervision, significant }
}

fn service(name: At<Name>, table: &DeTable<'_>, collector: &mut Collector) -> Service {
    let mut reader = Reader::named(table, &SERVICE, format!("[service.{}]", name.value));
    let run = run(&name, &mut reader, collector);
    let kind = reader.choice("kind", Kind::WORDS, collector).unwrap_or(Kind::Service);
    let dir = reader.string("dir", collector);
    let run_as = RunAs {
        user: who("user", &mut reader, collector),
        group: who("group", &mut reader, collector),
        umask: umask(&mut reader, collector),
        nice: reader.integer("nice", collector).map(|n| n.value),
    };
    let mut secrets = Vec::new();
    let env = env(&mut reader, &mut secrets, collector);
    let env_file = paths("env_file", &mut reader, collector);
    let env_clear = reader.boolean("env_clear", collector).unwrap_or(false);
    let env_deny = plain("env_deny", &mut reader, collector);
    let depends_on = depends_on(&mut reader, collector);
    let ready = ready(&mut reader, collector);
    let health = health(&mut reader, collector);
    let restart = restart(&mut reader, collector);
    let stop = stop(&mut reader, collector);
    let on = hooks(&mut reader, collector);
    let log = log(&mut reader, collector);
    let (replicas, scale) = replicas(&mut reader, collector);
    let autostart = reader.boolean("autostart", collector).unwrap_or(true);
    let on_dependency_restart = reader
        .choice("on_dependency_restart", OnDependencyRestart::WORDS, collector)
        .unwrap_or(OnDependencyRestart::Restart);
    let rerun = reader.boolean("rerun", collector).unwrap_or(false);
    let significant = reader.boolean("significant", collector).unwrap_or(false);
    let profiles = plain("profiles", &mut reader, collector);
    let tags = plain("tags", &mut reader, collector);
    reader.finish(collector);
    Service {
        name,
        run,
        kind,
        dir,
        run_as,
        env,
        secrets,
        env_file,
        env_clear,
        env_deny,
        depends_on,
        ready,
        health,
        restart,
        stop,
        on,
        log,
        replicas,
        scale,
        autostart,
        on_dependency_restart,
        rerun,
        significant,
        profiles,
        tags,
    }
}

/// Reads a user or a group: a name or a number.
fn who(key: &'static str, reader: &mut Reader<'_, '_>, collector: &mut Collector) -> Option<String> {
    let value = reader.get(key)?;
    match value.get_ref() {
        DeValue::Integer(_) => account_number(key, value, collector),
        _ => {
            let text = reader.string(key, collector)?;
            let fits = !text.value.is_empty() && !text.value.contains([':', '/', '\0', '\n']);
            if !fits {
                collector.fault(
                    text.span,
                    format!("{key:?} must be a name or a number, not {:?}", text.value),
                    "invalid name",
                );
            }
            fits.then_some(text.value)
        }
    }
}

/// An octal number as chmod(1) takes it: in a string, or as TOML writes it, such as 0o027.
fn octal(value: &Spanned<DeValue<'_>>) -> Option<u32> {
    match value.get_ref() {
        DeValue::String(text) => u32::from_str_radix(text, 8).ok(),
        DeValue::Integer(number) if number.radix() == 8 => u32::from_str_radix(number.as_str(), 8).ok(),
        _ => None,
    }
}

/// The mode of a log file: the owner may read and write it, and nobody may execute it.
fn log_mode(reader: &mut Reader<'_, '_>, collector: &mut Collector) -> Option<u32> {
    let value = reader.get("mode")?;
    let mode = octal(value).filter(|mode| mode & 0o600 == 0o600 && mode & !0o666 == 0);
    if mode.is_none() {
        collector.fault_with(
            value.span(),
            "\"mode\" must be an octal number that lets the owner read and write, and lets nobody execute",
            "invalid value",
            "write \"640\" or 0o644",
        );
    }
    mode
}

fn umask(reader: &mut Reader<'_, '_>, collector: &mut Collector) -> Option<u32> {
    let value = reader.get("umask")?;
    let umask = octal(value).filter(|umask| *umask <= 0o777);
    if umask.is_none() {
        collector.fault_with(
            value.span(),
            "\"umask\" must be an octal number from 000 to 777",
            "invalid value",
            "write \"027\" or 0o027",
        );
    }
    umask
}

/// The number of a user or of a group; the greatest stands for none in the kernel's calls.
fn account_number(
    key: &'static str,
    value: &Spanned<DeValue<'_>>,
    collector: &mut Collector,
) -> Option<String> {
    let DeValue::Integer(number) = value.get_ref() else {
        return None;
    };
    let parsed = u32::from_str_radix(number.as_str(), number.radix()).ok().filter(|n| *n < u32::MAX);
    if parsed.is_none() {
        let message = format!("{key:?} must be a whole number from 0 to {}", u32::MAX - 1);
        collector.fault_with(value.span(), message, "out of bounds", "write a name or a number");
    }
    parsed.map(|number| number.to_string())
}

fn run(name: &At<Name>, reader: &mut Reader<'_, '_>, collector: &mut Collector) -> Option<Run> {
    let command = reader.get("command");
    let shell = reader.get("shell");
    match (command, shell) {
        (Some(_), Some(_)) => {
            let span = reader.key_span("shell").unwrap_or_else(|| name.span.clone());
            collector.fault_with(
                span,
                format!("service {:?} has both \"command\" and \"shell\"", name.value.as_str()),
                "conflicts with \"command\"",
                "keep one: \"shell\" runs in /bin/sh -c, \"command\" runs without a shell",
            );
            None
        }
        (None, None) => {
            collector.fault_with(
                name.span.clone(),
                format!("service {:?} has no command", name.value.as_str()),
                "neither \"command\" nor \"shell\" is set",
                "add command = \"...\" or shell = \"...\"",
            );
            None
        }
        (Some(value), None) => words("command", value, collector).map(Run::Command),
        (None, Some(value)) => {
            let text = reader::string("shell", value, collector)?;
            if text.value.trim().is_empty() {
                collector.fault(text.span, "\"shell\" is empty", "nothing to run");
                return None;
            }
            Some(Run::Shell(text))
        }
    }
}

/// Reads a command: a list of words, or a string that is split into words as a shell would.
fn words(what: &str, value: &Spanned<DeValue<'_>>, collector: &mut Collector) -> Option<Words> {
    let words = match value.get_ref() {
        DeValue::String(_) => {
            let text = reader::string(what, value, collector)?;
            let Some(split) = shlex::split(&text.value) else {
                collector.fault_with(
                    text.span,
                    format!("{what:?} has an unclosed quote or a trailing backslash"),
                    "can't split this into words",
                    "close the quote, or write a list: [\"program\", \"argument\"]",
                );
                return None;
            };
            split.into_iter().map(|word| At { value: word, span: text.span.clone() }).collect()
        }
        DeValue::Array(_) => reader::strings(what, value, collector)?,
        DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Table(_) => {
            collector.wrong_type(&format!("{what:?}"), "a string or a list of strings", value);
            return None;
        }
    };
    if words.first().is_none_or(|w: &At<String>| w.value.is_empty()) {
        collector.fault(value.span(), format!("{what:?} is empty"), "nothing to run");
        return None;
    }
    Some(Words { words })
}

/// Reads one string or a list of strings.
fn paths(what: &'static str, reader: &mut Reader<'_, '_>, collector: &mut Collector) -> Vec<At<String>> {
    let Some(value) = reader.get(what) else {
        return Vec::new();
    };
    match value.get_ref() {
        DeValue::String(_) => reader::string(what, value, collector).into_iter().collect(),
        _ => reader::strings(what, value, collector).unwrap_or_default(),
    }
}

fn plain(what: &'static str, reader: &mut Reader<'_, '_>, collector: &mut Collector) -> Vec<String> {
    reader.strings(what, collector).unwrap_or_default().into_iter().map(|s| s.value).collect()
}

fn env(
    reader: &mut Reader<'_, '_>,
    secrets: &mut Vec<(String, Name)>,
    collector: &mut Collector,
) -> Vec<(At<String>, At<String>)> {
    let Some(value) = reader.get("env") else {
        return Vec::new();
    };
    let DeValue::Table(table) = value.get_ref() else {
        collector.wrong_type("\"env\"", "a table", value);
        return Vec::new();
    };
    let mut found = Vec::new();
    for (key, value) in table {
        let name = key.get_ref().to_string();
        if name.is_empty() || name.contains(['=', '\0']) {
            collector.fault(key.span(), format!("{name:?} is not a valid variable name"), "invalid name");
            continue;
        }
        // A number or a boolean stands for its text, as in PORT = 8080.
        let text = match value.get_ref() {
            DeValue::String(_) => match reader::string(&name, value, collector) {
                Some(text) => text.value,
                None => continue,
            },
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.as_str().to_owned(),
            DeValue::Boolean(truth) => truth.to_string(),
            DeValue::Table(table) => {
                let mut inner = Reader::named(table, reader.section("env"), format!("variable {name:?}"));
                let secret = inner.string("secret", collector);
                let none = secret.is_none() && inner.key_span("secret").is_none();
                inner.finish(collector);
                if none {
                    let message = format!("variable {name:?} must be a string or a secret");
                    collector.fault_with(
                        value.span(),
                        message,
                        "no \"secret\" in this table",
                        "write { secret = \"NAME\" }",
                    );
                }
                if let Some(At { value: secret, span }) = secret {
                    match Name::new(&secret) {
                        Ok(secret) => secrets.push((name, secret)),
                        Err(error) => {
                            collector.fault(
                                span,
                                format!("{secret:?} is not a valid name for a secret: {error}"),
                                "invalid name",
                            );
                        }
                    }
                }
                continue;
            }
            DeValue::Datetime(_) | DeValue::Array(_) => {
                collector.wrong_type(&format!("variable {name:?}"), "a string", value);
                continue;
            }
        };
        found.push((At { value: name, span: key.span() }, At { value: text, span: value.span() }));
    }
    found
}

fn depends_on(reader: &mut Reader<'_, '_>, collector: &mut Collector) -> Vec<Depends> {
    let Some(value) = reader.get("depends_on") else {
        return Vec::new();
    };
    match value.get_ref() {
        DeValue::Array(_) => reader::strings("depends_on", value, collector)
            .unwrap_or_default()
            .into_iter()
            .map(|on| Depends { on, condition: None, required: true })
            .collect(),
        DeValue::Table(table) => {
            let mut found = Vec::new();
            for (key, value) in table {
                let on = At { value: key.get_ref().to_string(), span: key.span() };
                match value.get_ref() {
                    DeValue::String(_) => {
                        if let Some(condition) = reader::choice(&on.value, value, Condition::WORDS, collector)
                        {
                            found.push(Depends { on, condition: Some(condition), required: true });
                        }
                    }
                    DeValue::Table(table) => {
                        let mut inner = Reader::named(
                            table,
                            reader.section("depends_on"),
                            format!("depends_on.{}", on.value),
                        );
                        let condition = inner.choice("on", Condition::WORDS, collector);
                        let required = inner.boolean("required", collector).unwrap_or(true);
                        inner.finish(collector);
                        found.push(Depends { on, condition, required });
                    }
                    _ => collector.wrong_type(
                        &format!("the dependency on {:?}", on.value),
                        "a condition such as \"ready\" or a table { on, required }",
                        value,
                    ),
                }
            }
            found
        }
        _ => {
            collector.wrong_type("\"depends_on\"", "a list of names or a table of conditions", value);
            Vec::new()
        }
    }
}

/// Reads how something is checked: exactly one of the keys of its section.
fn target(
    what: &str,
    span: Range<usize>,
    reader: &mut Reader<'_, '_>,
    collector: &mut Collector,
) -> Option<Target> {
    let mut found: Vec<(&'static str, &Spanned<DeValue<'_>>)> = Vec::new();
    let known = reader.one_of();
    for key in known.iter().copied() {
        if let Some(value) = reader.get(key) {
            found.push((key, value));
        }
    }
    match found[..] {
        [] => {
            collector.fault_with(
                span,
                format!("{what:?} needs one of {}", known.join(", ")),
                "no check given",
                "write a check such as { tcp = \"127.0.0.1:6379\" }",
            );
            None
        }
        [(key, value)] => match key {
            "tcp" => reader::string(key, value, collector).map(Target::Tcp),
            "http" => reader::string(key, value, collector).map(Target::Http),
            "exec" => words(key, value, collector).map(Target::Exec),
            "log" => reader::string(key, value, collector).map(Target::Log),
            _ => reader::duration(key, value, collector).map(Target::After),
        },
        [(first, _), (second, value), ..] => {
            collector.fault_with(
                value.span(),
                format!("{what:?} has both {first:?} and {second:?}"),
                "a second check",
                "keep only one of the two checks",
            );
            None
        }
    }
}

fn ready(reader: &mut Reader<'_, '_>, collector: &mut Collector) -> Option<Ready> {
    let value = reader.get("ready")?;
    let DeValue::Table(table) = value.get_ref() else {
        collector.wrong_type("\"ready\"", "a table such as { tcp = \"127.0.0.1:6379\" }", value);
        return None;
    };
    let mut inner = Reader::new(table, reader.section("ready"));
    let target = target("ready", value.span(), &mut inner, collector);
    let interval = inner.duration("interval", collector);
    let timeout = inner.duration("timeout", collector);
    let deadline = inner.duration("deadline", collector);
    let successes = inner.integer("successes", collector).map(|n| n.value);
    if matches!(target, Some(Target::Log(_) | Target::After(_))) {
        for key in ["interval", "timeout", "successes"] {
            if let Some(span) = inner.key_span(key) {
                let message = format!("{key:?} has no effect on a \"ready\" that is not repeated");
                collector.fault(span, message, "only tcp, http and exec are repeated");
            }
        }
    }
    inner.finish(collector);
    Some(Ready { target: target?, interval, timeout, deadline, successes })
}

fn health(reader: &mut Reader<'_, '_>, collector: &mut Collector) -> Option<Health> {
    let value = reader.get("health")?;
    let DeValue::Table(table) = value.get_ref() else {
        collector.wrong_type("\"health\"", "a table such as { http = \"http://...\" }", value);
        return None;
    };
    let mut inner = Reader::new(table, reader.section("health"));
    let target = target("health", value.span(), &mut inner, collector);
    let interval = inner.duration("interval", collector);
    let timeout = inner.duration("timeout", collector);
    let failures = inner.integer("failures", collector).map(|n| n.value);
    let successes = inner.integer("successes", collector).map(|n| n.value);
    let start_period = inner.duration("start_period", collector);
    inner.finish(collector);
    Some(Health { target: target?, interval, timeout, failures, successes, start_period })
}

fn restart(reader: &mut Reader<'_, '_>, collector: &mut Collector) -> RestartSpec {
    let mut spec = RestartSpec::default();
    let Some(value) = reader.get("restart") else {
        return spec;
    };
    let table = match value.get_ref() {
        DeValue::String(_) => {
            if let Some(policy) = reader::choice("restart", value, Policy::WORDS, collector) {
                spec.policy = policy;
            }
            return spec;
        }
        DeValue::Table(table) => table,
        _ => {
            collector.wrong_type("\"restart\"", "a policy or a table", value);
            return spec;
        }
    };
    let mut inner = Reader::new(table, reader.section("restart"));
    if let Some(policy) = inner.choice("policy", Policy::WORDS, collector) {
        spec.policy = policy;
    }
    spec.max_retries = inner.integer("max_retries", collector).map(|n| n.value);
    if let Some(reset_after) = inner.duration("reset_after", collector) {
        spec.reset_after = reset_after;
    }
    if let Some(value) = inner.get("backoff")
        && let Some(table) = table_of("\"backoff\"", value, collector)
    {
        spec.backoff = backoff(table, inner.section("backoff"), value.span(), collector);
    }
    if let Some(value) = inner.get("success_codes") {
        spec.success_codes = codes(value, collector);
    }
    if let Some(value) = inner.get("never_on") {
        spec.never_on = exits("never_on", value, collector);
    }
    if let Some(value) = inner.get("always_on") {
        spec.always_on = exits("always_on", value, collector);
    }
    inner.finish(collector);
    spec
}

fn backoff(
    table: &DeTable<'_>,
    section: &'static Section,
    span: Range<usize>,
    collector: &mut Collector,
) -> Backoff {
    let mut backoff = Backoff::default();
    let mut reader = Reader::new(table, section);
    let initial = reader.duration("initial", collector);
    let max = reader.duration("max", collector);
    if let Some(factor) = reader.float("factor", collector) {
        backoff.factor = factor;
    }
    if let Some(jitter) = reader.float("jitter", collector) {
        backoff.jitter = jitter;
    }
    reader.finish(collector);
    if let Some(initial) = initial {
        backoff.initial = initial;
        // A first delay that is longer than the default maximum raises the maximum, unless that is set.
        backoff.max = backoff.max.max(initial);
    }
    if let Some(max) = max {
        backoff.max = max;
        if initial.is_none() {
            backoff.initial = backoff.initial.min(max);
        }
    }
    if backoff.initial > backoff.max {
        collector.fault(span, "the \"initial\" delay is longer than \"max\"", "\"initial\" exceeds \"max\"");
    }
    backoff
}

/// Reads a list of exit codes.
fn codes(value: &Spanned<DeValue<'_>>, collector: &mut Collector) -> Vec<i32> {
    let mut found = Vec::new();
    for (exit, span) in exits_at("success_codes", value, collector) {
        match exit {
            ExitMatch::Code(code) => found.push(code),
            ExitMatch::Signal(_) => {
                collector.fault(span, "a signal is not an exit code", "expected a number from 0 to 255");
            }
        }
    }
    found
}

/// Reads a list of exit codes and names of signals.
fn exits(what: &str, value: &Spanned<DeValue<'_>>, collector: &mut Collector) -> Vec<ExitMatch> {
    exits_at(what, value, collector).into_iter().map(|(exit, _)| exit).collect()
}

fn exits_at(
    what: &str,
    value: &Spanned<DeValue<'_>>,
    collector: &mut Collector,
) -> Vec<(ExitMatch, Range<usize>)> {
    let DeValue::Array(list) = value.get_ref() else {
        collector.wrong_type(&format!("{what:?}"), "a list of exit codes", value);
        return Vec::new();
    };
    let mut found = Vec::new();
    for item in list.iter() {
        let exit = match item.get_ref() {
            DeValue::Integer(number) => {
                let code = i32::from_str_radix(number.as_str(), number.radix()).ok();
                code.filter(|c| (0..=255).contains(c)).map(ExitMatch::Code)
            }
            DeValue::String(text) if text.parse::<i32>().is_err() => {
                signal_number(text).map(ExitMatch::Signal)
            }
            _ => None,
        };
        match exit {
            Some(exit) => found.push((exit, item.span())),
            None => {
                let signal = if what == "success_codes" { "" } else { " or a signal such as \"SIGSEGV\"" };
                collector.fault_with(
                    item.span(),
                    format!("an entry of {what:?} must be an exit code from 0 to 255{signal}"),
                    "invalid entry",
                    format!("write {what} = [0, 3]"),
                );
            }
        }
    }
    found
}

fn stop(reader: &mut Reader<'_, '_>, collector: &mut Collector) -> Stop {
    let Some(value) = reader.get("stop") else {
        return Stop::default();
    };
    match value.get_ref() {
        DeValue::String(_) | DeValue::Integer(_) => {
            Stop { signal: signal("stop", value, collector), ..Stop::default() }
        }
        DeValue::Table(table) => {
            let mut inner = Reader::new(table, reader.section("stop"));
            let signal = inner.get("signal").and_then(|value| signal("signal", value, collector));
            let timeout = inner.duration("timeout", collector);
            let command = inner.get("command").and_then(|value| words("command", value, collector));
            inner.finish(collector);
            Stop { signal, timeout, command }
        }
        _ => {
            collector.wrong_type("\"stop\"", "a signal or a table { signal, timeout, command }", value);
            Stop::default()
        }
    }
}

fn hooks(reader: &mut Reader<'_, '_>, collector: &mut Collector) -> Option<Hooks> {
    let value = reader.get("on")?;
    let table = table_of("\"on\"", value, collector)?;
    let mut inner = Reader::new(table, reader.section("on"));
    let mut commands = Vec::new();
    for hook in Hook::ALL {
        if let Some(value) = inner.get(hook.key())
            && let Some(command) = words(hook.key(), value, collector)
        {
            commands.push((hook, command));
        }
    }
    let timeout = inner.duration("timeout", collector);
    inner.finish(collector);
    Some(Hooks { commands, timeout })
}

fn log(reader: &mut Reader<'_, '_>, collector: &mut Collector) -> Option<Log> {
    let value = reader.get("log")?;
    let DeValue::Table(table) = value.get_ref() else {
        let want = "a table such as { file = \"web.log\", max_size = \"10MiB\" }";
        collector.wrong_type("\"log\"", want, value);
        return None;
    };
    let mut inner = Reader::new(table, reader.section("log"));
    let file = inner.string("file", collector);
    let max_size = inner.size("max_size", collector);
    let max_files = inner.integer("max_files", collector).map(|n| n.value);
    let compress = inner.boolean("compress", collector);
    let owner = inner.string("owner", collector).and_then(|owner| {
        let words: Vec<&str> = owner.value.split(':').collect();
        let fits =
            words.len() <= 2 && words.iter().all(|w| !w.contains(char::is_whitespace)) && owner.value != ":";
        if owner.value.is_empty() || !fits {
            let hint = "write \"user\", \"user:group\" or \":group\", by name or number";
            collector.fault_with(
                owner.span,
                format!("{:?} is not a valid owner", owner.value),
                "invalid owner",
                hint,
            );
            return None;
        }
        Some(owner.value)
    });
    let mode = log_mode(&mut inner, collector);
    inner.finish(collector);
    Some(Log { file, max_size, max_files, compress, owner, mode })
}

fn signal(what: &str, value: &Spanned<DeValue<'_>>, collector: &mut Collector) -> Option<i32> {
    let text = match value.get_ref() {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.as_str().to_owned(),
        _ => {
            collector.wrong_type(&format!("{what:?}"), "a signal", value);
            return None;
        }
    };
    let number = signal_number(&text);
    if number.is_none() {
        collector.fault_with(
            value.span(),
            format!("{text:?} is not a signal"),
            "unknown signal",
            "write it as \"SIGTERM\", \"SIGINT\" or \"SIGQUIT\"",
        );
    }
    number
}
