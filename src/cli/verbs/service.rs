//! `service`: manages single services, each with a manifest of its own in the daemon's folder.

use format::{Table, Tint};
use toml_edit::{Array, DocumentMut, InlineTable, Item, TableLike, Value};

use crate::cli::args::Common;
use crate::cli::args::daemon::{
    ServiceConfigArgs, ServiceCreateArgs, ServiceListArgs, ServiceNameArgs, ServiceVerb,
};
use crate::cli::connect::{Conversation, print_json, say, talk};
use crate::cli::verbs::admin::{called, reloaded_in_words, tell_reloaded, tell_trouble};
use crate::cli::{code, format, usage_error};
use crate::control::client::{Client, encode};
use crate::control::protocol::{Manifest, Write};
use crate::model::keys::{Form, Key, SERVICE};
use crate::model::{Name, ServiceStatus, StatusReport};
use crate::runtime::reload::Reloaded;
use crate::sys::terminal;

pub(in crate::cli) fn service(verb: ServiceVerb) -> u8 {
    match verb {
        ServiceVerb::Create(args) => create(args),
        ServiceVerb::List(args) => list(args),
        ServiceVerb::Config(args) => config(args),
        ServiceVerb::Remove(args) => remove(args),
        ServiceVerb::Start(args) => super::control::start(args),
        ServiceVerb::Stop(args) => super::control::stop(args),
        ServiceVerb::Restart(args) => super::control::restart(args),
    }
}

fn create(args: ServiceCreateArgs) -> u8 {
    let name = match Name::new(&args.name) {
        Ok(name) => name,
        Err(error) => {
            return usage_error("service", &format!("{:?} is not a valid name: {error}", args.name));
        }
    };
    if let Err(why) = manifest_of(&name, &args, &args.depends_on) {
        return usage_error("service", &why);
    }
    talk(&args.common, async |mut client: Client| {
        let status: StatusReport = client.get("/v1/status").await?;
        let needed: Vec<String> = args.depends_on.iter().map(|word| full_name(&status, word)).collect();
        let Ok(text) = manifest_of(&name, &args, &needed) else {
            return Ok(code::USAGE);
        };
        let path = format!("/v1/manifests/{name}");
        let done: Reloaded = client.put(&path, &Write { text, create: true }).await?;
        tell_written(&mut client, &args.common, &path, &done).await
    })
}

/// The full name of a service, as another project refers to it. A word that is unknown or ambiguous
/// is left for the daemon to refuse.
fn full_name(status: &StatusReport, word: &str) -> String {
    let mut ids: Vec<&str> = status
        .services
        .iter()
        .filter(|row| row.service.as_str() == word || row.service.short() == word)
        .map(|row| row.service.as_str())
        .collect();
    ids.dedup();
    match ids[..] {
        [one] => one.to_owned(),
        _ => word.to_owned(),
    }
}

/// The result of a change: the file that was written, and what became of the service.
#[derive(Debug, serde::Serialize)]
struct Written<'a> {
    file: std::path::PathBuf,
    #[serde(flatten)]
    done: &'a Reloaded,
    services: Vec<ServiceStatus>,
}

async fn tell_written(client: &mut Client, common: &Common, path: &str, done: &Reloaded) -> Conversation {
    let Manifest { file, .. } = client.get(path).await?;
    let difference = &done.difference;
    let changed = difference.restarted.iter().chain(&difference.changed).map(|changed| &changed.service);
    let touched: Vec<&Name> = difference.added.iter().chain(changed).collect();
    let status: StatusReport = client.get("/v1/status").await?;
    let is_touched = |row: &ServiceStatus| touched.contains(&&row.service);
    let services: Vec<ServiceStatus> = status.services.into_iter().filter(is_touched).collect();
    let ended = if done.ok { code::DONE } else { code::FAILED };
    if common.json {
        print_json(&Written { file, done, services });
        return Ok(ended);
    }
    say(&format!("wrote {}", file.display()));
    let words = reloaded_in_words(difference, called(client, done).await?);
    words.iter().filter(|line| !line.starts_with("unchanged")).for_each(|line| say(line));
    for row in &services {
        let ready = if row.ready { ", ready" } else { "" };
        let pid = row.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        say(&format!("{}: {}{ready}{pid}", row.name, row.state));
    }
    tell_trouble(done);
    Ok(ended)
}

/// The manifest of a service as the command line describes it.
fn manifest_of(name: &Name, args: &ServiceCreateArgs, needed: &[String]) -> Result<String, String> {
    let mut service = toml_edit::Table::new();
    match &args.shell {
        Some(text) => service["shell"] = toml_edit::value(text),
        None => {
            let words = args.command.iter().map(|word| escaped(word));
            service["command"] = toml_edit::value(words.collect::<Array>());
        }
    }
    let dir = match &args.dir {
        Some(dir) => std::path::absolute(dir).map_err(|error| format!("--dir: {error}"))?,
        None => crate::cli::here()?,
    };
    service["dir"] = toml_edit::value(escaped(dir.to_str().ok_or("the folder's name is not UTF-8")?));
    if !args.env.is_empty() {
        let mut env = InlineTable::new();
        for pair in &args.env {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| format!("--env: write NAME=VALUE, not {pair:?}"))?;
            env.insert(name, escaped(value).into());
        }
        service["env"] = toml_edit::value(env);
    }
    if !needed.is_empty() {
        service["depends_on"] = toml_edit::value(needed.iter().collect::<Array>());
    }
    if args.no_autostart {
        service["autostart"] = toml_edit::value(false);
    }
    let mut restart = InlineTable::new();
    restart.insert("policy", args.restart.as_str().into());
    restart.insert("max_retries", i64::from(args.max_retries).into());
    let mut backoff = InlineTable::new();
    backoff.insert("initial", span(args.delay).into());
    if args.delay > std::time::Duration::from_secs(30) {
        backoff.insert("max", span(args.delay).into());
    }
    restart.insert("backoff", backoff.into());
    service["restart"] = toml_edit::value(restart);
    if let Some(url) = &args.health_url {
        let mut health = InlineTable::new();
        health.insert("http", escaped(url).into());
        service["health"] = toml_edit::value(health);
    }
    let mut services = toml_edit::Table::new();
    services.set_implicit(true);
    services.insert(name.as_str(), Item::Table(service));
    let mut document = DocumentMut::new();
    document.insert("service", Item::Table(services));
    Ok(format!("# Made by \"regrow service create\".\n{document}"))
}

/// Escapes a value that the shell has already expanded, so that it is not expanded again.
fn escaped(value: &str) -> String {
    value.replace('$', "$$")
}

fn span(span: std::time::Duration) -> String {
    humantime::format_duration(span).to_string()
}

/// The object that `service list --json` prints.
#[derive(Debug, serde::Serialize)]
struct Services {
    services: Vec<ServiceStatus>,
}

fn list(args: ServiceListArgs) -> u8 {
    let ServiceListArgs { common } = args;
    talk(&common, async |mut client: Client| {
        let status: StatusReport = client.get("/v1/status").await?;
        if common.json {
            print_json(&Services { services: status.services });
            return Ok(code::DONE);
        }
        let mut table = Table::new(&["PROJECT", "SERVICE", "STATE", ">PID", "GOAL"]);
        let cell = |text: String| (text, Tint::None);
        for row in &status.services {
            table.row(vec![
                cell(row.project.clone().unwrap_or_else(|| "-".to_owned())),
                cell(row.name.clone()),
                cell(row.state.to_string()),
                cell(row.pid.map_or("-".to_owned(), |pid| pid.to_string())),
                cell(row.goal.to_string()),
            ]);
        }
        say(&table.render(terminal::width(), format::colour_on_stdout()));
        Ok(code::DONE)
    })
}

fn remove(args: ServiceNameArgs) -> u8 {
    let ServiceNameArgs { name, common } = args;
    talk(&common, async |mut client: Client| {
        let done: Reloaded = client.delete(&format!("/v1/manifests/{}", encode(&name))).await?;
        tell_reloaded(&mut client, &common, &done).await
    })
}

fn config(args: ServiceConfigArgs) -> u8 {
    let ServiceConfigArgs { name, set, unset, common } = args;
    let path = format!("/v1/manifests/{}", encode(&name));
    let edit = async |mut client: Client| -> Conversation {
        let Manifest { text, file, name: manifest } = client.get(&path).await?;
        if set.is_empty() && unset.is_empty() {
            if common.json {
                print_json(&Manifest { name: manifest, file, text });
            } else {
                say(text.trim_end());
            }
            return Ok(code::DONE);
        }
        let service = name.rsplit('/').next().unwrap_or(&name);
        let text = match edited(&text, service, &manifest, &set, &unset) {
            Ok(text) => text,
            Err(why) => {
                tell!("{}: {why}", format::error_word());
                return Ok(code::USAGE);
            }
        };
        let path = format!("/v1/manifests/{}", encode(&manifest));
        let done: Reloaded = client.put(&path, &Write { text, create: false }).await?;
        tell_written(&mut client, &common, &path, &done).await
    };
    talk(&common, edit)
}

/// The text of a manifest with keys of its service set and removed; everything else, including
/// comments and order, stays as it was.
fn edited(
    text: &str,
    name: &str,
    manifest: &str,
    set: &[String],
    unset: &[String],
) -> Result<String, String> {
    let mut document: DocumentMut =
        text.parse().map_err(|error| format!("the manifest is not valid TOML: {error}"))?;
    let service = document
        .get_mut("service")
        .and_then(|services| services.as_table_like_mut()?.get_mut(name)?.as_table_like_mut())
        .ok_or_else(|| format!("there is no [service.{name}] in the manifest {manifest}"))?;
    for assignment in set {
        let (key, value) =
            assignment.split_once('=').ok_or_else(|| format!("write KEY=VALUE, not {assignment:?}"))?;
        put(service, key.trim(), typed(key.trim(), value))?;
    }
    for key in unset {
        take(service, key)?;
    }
    Ok(document.to_string())
}

/// The key that a dotted path leads to in the table of keys; `None` for an unknown one, which the
/// daemon refuses with its place, and for what the user named: a variable, or a dependency.
fn key_at(path: &str) -> Option<&'static Key> {
    let mut section = &SERVICE;
    let mut words = path.split('.').peekable();
    loop {
        let key = section.key(words.next()?)?;
        match &key.form {
            _ if words.peek().is_none() => return Some(key),
            Form::Variables(_) | Form::Dependencies(_) => return None,
            form => section = form.section()?,
        }
    }
}

/// The TOML value of a word as it was typed: as its key takes it, otherwise a number, list or table
/// where it reads as one. The value of a variable is always a text. Nothing in it is expanded later.
fn typed(path: &str, text: &str) -> Value {
    let literal = || Value::from(escaped(text));
    let is_a_variable = path.starts_with("env.");
    let is_text = key_at(path).is_some_and(|key| {
        matches!(
            key.form,
            Form::Text | Form::Octal | Form::Duration(_) | Form::Size | Form::Signal | Form::OneOf(_)
        )
    });
    let Ok(mut value) = text.trim().parse::<Value>() else { return literal() };
    let is_meant = match &value {
        Value::String(_) => !is_a_variable,
        Value::InlineTable(_) => !is_text,
        // A number with a prefix, as 0o640, is meant as one.
        Value::Integer(_) => !is_a_variable && (!is_text || text.trim().starts_with("0o")),
        Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) | Value::Array(_) => {
            !is_a_variable && !is_text
        }
    };
    if !is_meant {
        return literal();
    }
    // Only the shell itself expands the text of `shell`.
    if path != "shell" {
        escape_all(&mut value);
    }
    value
}

fn escape_all(value: &mut Value) {
    match value {
        Value::String(text) => *value = escaped(text.value()).into(),
        Value::Array(list) => list.iter_mut().for_each(escape_all),
        Value::InlineTable(table) => table.iter_mut().for_each(|(_, value)| escape_all(value)),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

/// The key that a plain word stands for where a table may stand, too.
fn short_for(key: &str) -> Option<&'static str> {
    match SERVICE.key(key)?.form {
        Form::Short { sets, .. } => sets,
        _ => None,
    }
}

fn put(table: &mut dyn TableLike, key: &str, mut value: Value) -> Result<(), String> {
    match key.split_once('.') {
        None => {
            // A plain word in place of a table sets the key that it is short for; the table's other keys
            // stay.
            if let (Some(long), true) = (short_for(key), value.is_str())
                && let Some(inner) = table.get_mut(key).and_then(Item::as_table_like_mut)
            {
                return put(inner, long, value);
            }
            if let Some(old) = table.get(key).and_then(Item::as_value) {
                // The comment behind the value stays.
                *value.decor_mut() = old.decor().clone();
            }
            table.insert(key, Item::Value(value));
            Ok(())
        }
        Some((first, rest)) => {
            // A plain word, as in `restart = "always"`, is short for a table.
            let word = table.get(first).and_then(Item::as_str).map(str::to_owned);
            let short = short_for(first).zip(word);
            if let Some((long, was)) = short {
                let mut inner = InlineTable::new();
                inner.insert(long, was.into());
                table.insert(first, Item::Value(inner.into()));
            } else if table.get(first).is_none() {
                table.insert(first, Item::Value(InlineTable::new().into()));
            }
            let inner = table.get_mut(first).and_then(Item::as_table_like_mut);
            put(inner.ok_or_else(|| format!("{first} is not a table"))?, rest, value)
        }
    }
}

fn take(table: &mut dyn TableLike, key: &str) -> Result<(), String> {
    let missing = || format!("there is no {key} to remove");
    match key.split_once('.') {
        None => table.remove(key).map(drop).ok_or_else(missing),
        Some((first, rest)) => {
            let inner = table.get_mut(first).and_then(Item::as_table_like_mut).ok_or_else(missing)?;
            take(inner, rest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_leaves_everything_else_as_it_was() {
        let text = "# ours\n[service.web]\ncommand = \"a\" # the program\nrestart = \"always\"\n\n# of another\n[service.db]\ncommand = \"b\"\n";
        let set =
            ["command=[\"c\", \"d\"]", "restart.max_retries=5", "env.A=x y", "replicas=2"].map(str::to_owned);
        let after = edited(text, "web", "m", &set, &[]).unwrap();
        assert_eq!(
            after,
            "# ours\n[service.web]\ncommand = [\"c\", \"d\"] # the program\nrestart = { policy = \"always\", max_retries = 5 }\n\
             env = { A = \"x y\" }\nreplicas = 2\n\n# of another\n[service.db]\ncommand = \"b\"\n"
        );
        let back = edited(&after, "web", "m", &[], &["env.A".to_owned(), "replicas".to_owned()]).unwrap();
        assert!(!back.contains("replicas") && back.contains("# of another"), "{back}");
        let set =
            ["restart=never", "env.B=\"${X}\"", "command=[\"$$a\", \"'b'\"]", "env.C=7"].map(str::to_owned);
        let typed = edited(&after, "web", "m", &set, &[]).unwrap();
        assert!(typed.contains("restart = { policy = \"never\", max_retries = 5 }"), "{typed}");
        assert!(typed.contains("B = '\"$${X}\"'") && typed.contains("C = \"7\""), "{typed}");
        assert!(typed.contains("command = [\"$$$$a\", \"'b'\"]"), "{typed}");
        assert!(edited(text, "none", "m", &set, &[]).is_err());
        assert!(edited(text, "web", "m", &["command.x=1".to_owned()], &[]).is_err());
    }

    #[test]
    fn a_word_is_read_as_its_key_takes_it() {
        for (path, text, want) in [
            ("dir", "123", "\"123\""),
            ("dir", "\"a b\"", "\"a b\""),
            ("umask", "0640", "\"0640\""),
            ("umask", "640", "\"640\""),
            ("umask", "0o640", "0o640"),
            ("log.mode", "640", "\"640\""),
            ("stop.timeout", "5s", "\"5s\""),
            ("stop", "9", "9"),
            ("stop.signal", "9", "\"9\""),
            ("user", "1000", "1000"),
            ("nice", "-5", "-5"),
            ("replicas", "3", "3"),
            ("replicas", "{ max = 4 }", "{ max = 4 }"),
            ("autostart", "false", "false"),
            ("env.PORT", "8080", "\"8080\""),
            ("env.KEY", "{ secret = \"k\" }", "{ secret = \"k\" }"),
            ("env.A.B", "x", "\"x\""),
            ("depends_on.db", "ready", "\"ready\""),
            ("shell", "echo $HOME", "\"echo $$HOME\""),
            ("no.such.key", "7", "7"),
        ] {
            assert_eq!(typed(path, text).to_string().trim(), want, "{path}={text}");
        }
    }
}
