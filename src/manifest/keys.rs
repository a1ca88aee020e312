//! What is printed from the table of keys ([`crate::model::keys`]): the JSON schema of a manifest, for
//! editors, and the reference in `docs/manifest.md`.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::model::keys::{Form, Key, MANIFEST, Section};

/// The JSON schema of a manifest (draft 7, which editors of TOML know best).
///
/// ```
/// let schema = regrow::manifest::keys::schema();
/// assert_eq!(schema["properties"]["service"]["type"], "object");
/// ```
pub fn schema() -> Value {
    let mut schema = table(&MANIFEST);
    schema.insert("$schema".to_owned(), json!("http://json-schema.org/draft-07/schema#"));
    schema.insert("title".to_owned(), json!("A manifest of regrow"));
    Value::Object(schema)
}

fn table(section: &Section) -> Map<String, Value> {
    let mut properties = Map::new();
    for key in section.keys {
        properties.insert(key.name.to_owned(), property(key));
    }
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("description".to_owned(), json!(section.about));
    schema.insert("properties".to_owned(), Value::Object(properties));
    schema.insert("additionalProperties".to_owned(), json!(false));
    if !section.required.is_empty() {
        schema.insert("required".to_owned(), json!(section.required));
    }
    if !section.one_of.is_empty() {
        let each: Vec<Value> = section.one_of.iter().map(|key| json!({ "required": [key] })).collect();
        schema.insert("oneOf".to_owned(), Value::Array(each));
    }
    schema
}

fn property(key: &Key) -> Value {
    let mut schema = form(&key.form);
    schema.insert("description".to_owned(), json!(key.about));
    if let Some(default) = value_of(key.default) {
        schema.insert("default".to_owned(), default);
    }
    if let Some(example) = value_of(key.example) {
        schema.insert("examples".to_owned(), json!([example]));
    }
    Value::Object(schema)
}

/// The value of a piece of TOML.
fn value_of(text: &str) -> Option<Value> {
    let mut table: toml::Table = format!("it = {text}").parse().ok()?;
    serde_json::to_value(table.remove("it")?).ok()
}

fn form(form: &Form) -> Map<String, Value> {
    let texts = json!({ "type": "array", "items": { "type": "string" } });
    let schema = match form {
        Form::Text => json!({ "type": "string" }),
        Form::Boolean => json!({ "type": "boolean" }),
        Form::Integer { least, most } => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Form::Number { least, most } => json!({ "type": "number", "minimum": least, "maximum": most }),
        Form::Duration(_) => json!({ "type": "string", "pattern": r"^\s*(0|([0-9.]+\s*[a-zA-Zµ]+\s*)+)$" }),
        Form::Size => json!({ "anyOf": [
            { "type": "string", "pattern": r"^\s*[0-9]+\s*([bB]|[kKmMgG]([iI]?[bB])?)?\s*$" }, { "type": "integer", "minimum": 1 }
        ] }),
        Form::Octal => {
            json!({ "anyOf": [{ "type": "string", "pattern": "^[0-7]+$" }, { "type": "integer", "minimum": 0 }] })
        }
        Form::Signal => json!({ "type": ["string", "integer"] }),
        Form::Account => {
            json!({ "anyOf": [{ "type": "string", "minLength": 1 }, { "type": "integer", "minimum": 0, "maximum": u32::MAX - 1 }] })
        }
        Form::Words => {
            let words = json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 });
            json!({ "anyOf": [{ "type": "string", "minLength": 1 }, words] })
        }
        Form::TextOrTexts => json!({ "anyOf": [{ "type": "string" }, texts] }),
        Form::Texts => texts,
        Form::OneOf(words) => json!({ "enum": words }),
        Form::ExitCodes => json!({
            "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": 255 }
        }),
        Form::Exits => json!({
            "type": "array",
            "items": { "anyOf": [{ "type": "integer", "minimum": 0, "maximum": 255 }, { "type": "string" }] }
        }),
        Form::Variables(section) => json!({
            "type": "object",
            "additionalProperties": { "anyOf": [{ "type": ["string", "number", "boolean"] }, table(section)] }
        }),
        Form::Dependencies(section) => {
            let conditions = section.key("on").map(|key| self::form(&key.form)).unwrap_or_default();
            json!({ "anyOf": [
                texts,
                { "type": "object", "additionalProperties": { "anyOf": [conditions, table(section)] } }
            ] })
        }
        Form::Table(section) => Value::Object(table(section)),
        Form::Named(section) => json!({ "type": "object", "additionalProperties": table(section) }),
        Form::Short { plain, table: section, .. } => {
            json!({ "anyOf": [self::form(plain), table(section)] })
        }
    };
    match schema {
        Value::Object(schema) => schema,
        _ => Map::new(),
    }
}

/// The reference of all keys, in Markdown.
pub fn reference() -> String {
    let mut text = String::new();
    for key in MANIFEST.keys {
        if let Some(section) = key.form.section() {
            describe(section, 3, &mut text);
        }
    }
    text.trim_start().to_owned()
}

fn describe(section: &Section, level: usize, text: &mut String) {
    let tells_change = section.title.starts_with('[');
    let _ = writeln!(text, "\n{} `{}`\n\n{}\n", "#".repeat(level), section.title, section.about);
    let (head, line) = if tells_change { (" a change |", "---|") } else { ("", "") };
    let _ = writeln!(text, "| key | value | default |{head} what it is for |\n|---|---|---|{line}---|");
    for key in section.keys {
        let change = if tells_change { format!(" {} |", key.change.word()) } else { String::new() };
        let default = if key.default.is_empty() { String::new() } else { format!("`{}`", key.default) };
        let value = in_words(&key.form).replace('|', "\\|");
        let about = key.about.replace('|', "\\|");
        let _ = writeln!(text, "| `{}` | {value} | {default} |{change} {about} |", key.name);
    }
    for key in section.keys {
        if let Some(inner) = key.form.section() {
            describe(inner, 4, text);
        }
    }
}

fn in_words(form: &Form) -> String {
    match form {
        Form::Text => "string".to_owned(),
        Form::Boolean => "`true` or `false`".to_owned(),
        Form::Integer { least, most } => format!("whole number, {least} to {most}"),
        Form::Number { least, most } => format!("number, {least} to {most}"),
        Form::Duration(least) if *least >= Duration::from_millis(1) => {
            format!("duration, at least {}", humantime::format_duration(*least))
        }
        Form::Duration(least) if least.is_zero() => "duration".to_owned(),
        Form::Duration(_) => "duration, not zero".to_owned(),
        Form::Size => "size".to_owned(),
        Form::Octal => "octal number".to_owned(),
        Form::Signal => "signal".to_owned(),
        Form::Account => "name or number".to_owned(),
        Form::Words => "command".to_owned(),
        Form::Texts => "list of strings".to_owned(),
        Form::TextOrTexts => "string or list of strings".to_owned(),
        Form::OneOf(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        Form::ExitCodes => "list of exit codes".to_owned(),
        Form::Exits => "list of exit codes and signals".to_owned(),
        Form::Variables(_) => "table".to_owned(),
        Form::Dependencies(_) => "list of names, or table".to_owned(),
        Form::Table(_) | Form::Named(_) => "table".to_owned(),
        Form::Short { plain, .. } => format!("{}, or table", in_words(plain)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::LazyLock;

    use super::*;
    use crate::decide::reload::{changed_keys, reload_plan};
    use crate::manifest::{Environment, Loaded, load_text};
    use crate::model::keys::{ChangeNeeds, GROUP, PROJECT, SERVICE};

    /// The plan of a manifest in a folder that has the env files of the examples.
    fn loaded(text: &str) -> Loaded {
        static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
            let folder = tempfile::tempdir().unwrap();
            for name in [".env", "local.env"] {
                std::fs::write(folder.path().join(name), "").unwrap();
            }
            folder
        });
        match load_text(text, FOLDER.path(), &Environment::default(), &Default::default()) {
            Ok(loaded) => loaded,
            Err(faults) => panic!("{text}\n{faults:?}"),
        }
    }

    /// An inline table of a section that has what the section needs, and this key last; empty where
    /// the section can't be without the key.
    fn inline(section: &Section, key: &str, value: &str) -> String {
        if value.is_empty() && section.required.contains(&key) {
            return String::new();
        }
        let is_chosen = section.one_of.contains(&key) && !value.is_empty();
        let choice = section.one_of.iter().filter(|name| **name != key).take(usize::from(!is_chosen));
        let needed = section.required.iter().filter(|name| **name != key).chain(choice);
        let written = |name: &&str| format!("{name} = {}", section.key(name).unwrap().example);
        let mut all: Vec<String> = needed.map(written).collect();
        if !value.is_empty() {
            all.push(format!("{key} = {value}"));
        }
        format!("{{ {} }}", all.join(", "))
    }

    /// Makes a manifest of a value of a key.
    type Write<'a> = dyn Fn(&str) -> String + 'a;
    /// Is called with a key of a service, the key within it, and the means to write that one.
    type Visit<'a> = dyn FnMut(&'static Key, &'static Key, &Write) + 'a;

    /// Visits each key below a section.
    fn each(section: &'static Section, top: Option<&'static Key>, wrap: &Write, visit: &mut Visit) {
        for key in section.keys {
            let top = top.unwrap_or(key);
            let write = |value: &str| wrap(&inline(section, key.name, value));
            visit(top, key, &write);
            let Some(inner) = key.form.section() else { continue };
            let within = |table: &str| match &key.form {
                _ if table.is_empty() => write(""),
                Form::Variables(_) => write(&format!("{{ A = {table} }}")),
                Form::Dependencies(_) => write(&format!("{{ db = {table} }}")),
                _ => write(table),
            };
            each(inner, Some(top), &within, visit);
        }
    }

    /// Visits each key of a service, with the means to make a manifest of a value of it.
    fn of_a_service(visit: &mut Visit) {
        let manifest = |web: &str| format!("service.web = {web}\nservice.db = {{ command = \"db\" }}");
        each(&SERVICE, None, &manifest, visit);
    }

    #[test]
    fn every_key_that_is_set_is_a_change_that_a_reload_sees() {
        of_a_service(&mut |top, key, write| {
            let (without, with) = (loaded(&write("")), loaded(&write(key.example)));
            let web = |loaded: &Loaded| loaded.plan.service("web").unwrap().clone();
            let changed = changed_keys(&web(&without), &web(&with));
            // Of two that exclude each other, the one that is taken names the change.
            let right = changed == [top.name] || key.name == "env_file" && changed == ["env", "env_file"];
            assert!(right, "{}.{}: {changed:?}", top.name, key.name);
            // A process that was taken over is judged by its fingerprint alone.
            let is_another = web(&without).spawn_fingerprint() != web(&with).spawn_fingerprint();
            assert_eq!(is_another, top.change == ChangeNeeds::Restart, "{}.{}", top.name, key.name);
            let steps = reload_plan(&without.plan, &with.plan, |_| Vec::new());
            let difference = steps.difference;
            let (live, restarted) = (difference.changed.len(), difference.restarted.len());
            let wanted = match top.change {
                ChangeNeeds::Nothing => (1, 0),
                ChangeNeeds::Restart | ChangeNeeds::Regroup => (0, 1),
            };
            let is_replaced = steps.remove.0.iter().any(|name| name.as_str() == "web");
            // Copies that get other names are replaced, whatever the key says.
            if top.name != "replicas" {
                assert_eq!((live, restarted), wanted, "{}.{}", top.name, key.name);
                assert_eq!(is_replaced, top.change == ChangeNeeds::Regroup, "{}.{}", top.name, key.name);
            }
        });
    }

    #[test]
    fn a_default_that_is_written_changes_nothing() {
        of_a_service(&mut |top, key, write| {
            if key.default.is_empty() {
                return;
            }
            let (without, with) = (loaded(&write("")), loaded(&write(key.default)));
            let steps = reload_plan(&without.plan, &with.plan, |_| Vec::new());
            assert!(steps.difference.unchanged.len() == 2, "{}.{}: {steps:?}", top.name, key.name);
        });
    }

    #[test]
    fn keys_of_the_project_and_of_groups_are_seen_by_a_reload() {
        let services = "service.db = { command = \"db\" }\nservice.api = { command = \"api\" }";
        for (section, name) in [(&PROJECT, "project"), (&GROUP, "group.web")] {
            for key in section.keys {
                let text = |value: &str| format!("{name} = {}\n{services}", inline(section, key.name, value));
                let with = loaded(&text(key.example)).plan;
                if ["members", "name", "env_file"].contains(&key.name) {
                    continue;
                }
                let without = loaded(&text("")).plan;
                let change = reload_plan(&without, &with, |_| Vec::new()).change;
                let seen = change.root.is_some() || !change.groups.is_empty() || change.stop.is_some();
                assert!(seen, "{name}.{}", key.name);
                if key.default.is_empty() {
                    continue;
                }
                let written = loaded(&text(key.default)).plan;
                let change = reload_plan(&without, &written, |_| Vec::new()).change;
                assert_eq!(change, Default::default(), "{name}.{}", key.name);
            }
        }
    }

    #[test]
    fn the_reference_in_the_documents_is_the_table_of_keys() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/manifest.md");
        let document = std::fs::read_to_string(&path).unwrap();
        let (begin, end) = ("<!-- The table of keys begins. -->\n", "<!-- The table of keys ends. -->\n");
        let from = document.find(begin).expect("a place for the table of keys") + begin.len();
        let to = document.find(end).expect("the end of the table of keys");
        let wanted = format!("\n{}\n", reference());
        if std::env::var_os("REGROW_TEST_WRITE").is_some() {
            let text = format!("{}{wanted}{}", &document[..from], &document[to..]);
            std::fs::write(&path, text).unwrap();
            return;
        }
        assert!(
            document[from..to] == wanted,
            "docs/manifest.md differs from the table of keys; REGROW_TEST_WRITE=1 writes it"
        );
    }
}
