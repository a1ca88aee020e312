//! `service`: single services, each a manifest of its own in the daemon's folder.

use toml_edit::{Array, DocumentMut, InlineTable, Item, TableLike, Value};

use super::remote::{self, Conversation};
use super::{
    ServiceConfigArgs, ServiceCreateArgs, ServiceListArgs, ServiceNameArgs, ServiceVerb, code, format,
    usage_error,
};
use crate::control::client::{Client, encode};
use crate::control::protocol::{Manifest, Write};
use crate::model::{Name, ServiceStatus, StatusReport};
use crate::os::terminal;
use crate::runtime::reload::Reloaded;

use format::{Table, Tint};

pub(super) fn service(verb: ServiceVerb) -> u8 {
    match verb {
        ServiceVerb::Create(args) => create(args),
        ServiceVerb::List(args) => list(args),
        ServiceVerb::Config(args) => config(args),
        ServiceVerb::Remove(args) => remove(args),
        ServiceVerb::Start(args) => remote::start(args),
        ServiceVerb::Stop(args) => remote::stop(args),
        ServiceVerb::Restart(args) => remote::restart(args),
    }
}

fn create(args: ServiceCreateArgs) -> u8 {
    let name = match Name::new(&args.name) {
        Ok(name) => name,
        Err(error) => return usage_error("service", &format!("{:?} is no name: {error}", args.name)),
    };
    let text = match manifest_of(&name, &args) {
        Ok(text) => text,
        Err(why) => return usage_error("service", &why),
    };
    remote::talk(&args.common, async |mut client: Client| {
        let write = Write { text, create: true };
        let done: Reloaded = client.put(&format!("/v1/manifests/{name}"), &write).await?;
        remote::tell_reloaded(&args.common, &done)
    })
}

/// The manifest of a service as the command line describes it.
fn manifest_of(name: &Name, args: &ServiceCreateArgs) -> Result<String, String> {
    let mut service = toml_edit::Table::new();
    match &args.shell {
        Some(text) => service["shell"] = toml_edit::value(text),
        None => service["command"] = toml_edit::value(args.command.iter().collect::<Array>()),
    }
    let dir = match &args.dir {
        Some(dir) => std::path::absolute(dir).map_err(|error| format!("--dir: {error}"))?,
        None => super::here()?,
    };
    service["dir"] = toml_edit::value(dir.to_str().ok_or("the folder's name is not UTF-8")?);
    if !args.env.is_empty() {
        let mut env = InlineTable::new();
        for pair in &args.env {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| format!("--env: write NAME=VALUE, not {pair:?}"))?;
            env.insert(name, escaped(value).into());
        }
        service["env"] = toml_edit::value(env);
    }
    if !args.depends_on.is_empty() {
        service["depends_on"] = toml_edit::value(args.depends_on.iter().collect::<Array>());
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
        health.insert("http", url.as_str().into());
        service["health"] = toml_edit::value(health);
    }
    let mut services = toml_edit::Table::new();
    services.set_implicit(true);
    services.insert(name.as_str(), Item::Table(service));
    let mut document = DocumentMut::new();
    document.insert("service", Item::Table(services));
    Ok(format!("# Made by \"regrow service create\".\n{document}"))
}

/// What a shell has expanded already is not to be expanded once more.
fn escaped(value: &str) -> String {
    value.replace('$', "$$")
}

fn span(span: std::time::Duration) -> String {
    humantime::format_duration(span).to_string()
}

/// `service list --json`.
#[derive(Debug, serde::Serialize)]
struct Services {
    services: Vec<ServiceStatus>,
}

fn list(args: ServiceListArgs) -> u8 {
    let ServiceListArgs { common } = args;
    remote::talk(&common, async |mut client: Client| {
        let status: StatusReport = client.get("/v1/status").await?;
        if common.json {
            remote::print_json(&Services { services: status.services });
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
        remote::say(&table.render(terminal::width(), format::colour_on_stdout()));
        Ok(code::DONE)
    })
}

fn remove(args: ServiceNameArgs) -> u8 {
    let ServiceNameArgs { name, common } = args;
    remote::talk(&common, async |mut client: Client| {
        let done: Reloaded = client.delete(&format!("/v1/manifests/{}", encode(&name))).await?;
        remote::tell_reloaded(&common, &done)
    })
}

fn config(args: ServiceConfigArgs) -> u8 {
    let ServiceConfigArgs { name, set, unset, common } = args;
    let path = format!("/v1/manifests/{}", encode(&name));
    let edit = async |mut client: Client| -> Conversation {
        let Manifest { text, file, .. } = client.get(&path).await?;
        if set.is_empty() && unset.is_empty() {
            if common.json {
                remote::print_json(&Manifest { name: name.clone(), file, text });
            } else {
                remote::say(text.trim_end());
            }
            return Ok(code::DONE);
        }
        let text = match edited(&text, &name, &set, &unset) {
            Ok(text) => text,
            Err(why) => {
                tell!("{}: {why}", format::error_word());
                return Ok(code::USAGE);
            }
        };
        let done: Reloaded = client.put(&path, &Write { text, create: false }).await?;
        remote::tell_reloaded(&common, &done)
    };
    remote::talk(&common, edit)
}

/// The manifest with keys of its service set and taken out; everything else, comments and order, is
/// as it was.
fn edited(text: &str, name: &str, set: &[String], unset: &[String]) -> Result<String, String> {
    let mut document: DocumentMut = text.parse().map_err(|error| format!("it is no TOML: {error}"))?;
    let service = document
        .get_mut("service")
        .and_then(|services| services.as_table_like_mut()?.get_mut(name)?.as_table_like_mut())
        .ok_or_else(|| format!("there is no [service.{name}] in the manifest {name}"))?;
    for assignment in set {
        let (key, value) =
            assignment.split_once('=').ok_or_else(|| format!("write KEY=VALUE, not {assignment:?}"))?;
        // What is no TOML value is a text.
        let value: Value = value.trim().parse().unwrap_or_else(|_| value.into());
        put(service, key.trim(), value)?;
    }
    for key in unset {
        take(service, key)?;
    }
    Ok(document.to_string())
}

fn put(table: &mut dyn TableLike, key: &str, mut value: Value) -> Result<(), String> {
    match key.split_once('.') {
        None => {
            if let Some(old) = table.get(key).and_then(Item::as_value) {
                // The comment behind it stays.
                *value.decor_mut() = old.decor().clone();
            }
            table.insert(key, Item::Value(value));
            Ok(())
        }
        Some((first, rest)) => {
            // `restart = "always"` is short for a table.
            let short = match (first, table.get(first).and_then(Item::as_str)) {
                ("restart", Some(policy)) => Some(("policy", policy.to_owned())),
                ("stop", Some(signal)) => Some(("signal", signal.to_owned())),
                _ => None,
            };
            if let Some((long, was)) = short {
                let mut inner = InlineTable::new();
                inner.insert(long, was.into());
                table.insert(first, Item::Value(inner.into()));
            } else if table.get(first).is_none() {
                table.insert(first, Item::Value(InlineTable::new().into()));
            }
            let inner = table.get_mut(first).and_then(Item::as_table_like_mut);
            put(inner.ok_or_else(|| format!("{first} has no keys of its own"))?, rest, value)
        }
    }
}

fn take(table: &mut dyn TableLike, key: &str) -> Result<(), String> {
    let missing = || format!("there is no {key} to take out");
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
        let after = edited(text, "web", &set, &[]).unwrap();
        assert_eq!(
            after,
            "# ours\n[service.web]\ncommand = [\"c\", \"d\"] # the program\nrestart = { policy = \"always\", max_retries = 5 }\n\
             env = { A = \"x y\" }\nreplicas = 2\n\n# of another\n[service.db]\ncommand = \"b\"\n"
        );
        let back = edited(&after, "web", &[], &["env.A".to_owned(), "replicas".to_owned()]).unwrap();
        assert!(!back.contains("replicas") && back.contains("# of another"), "{back}");
        assert!(edited(text, "none", &set, &[]).is_err());
        assert!(edited(text, "web", &["command.x=1".to_owned()], &[]).is_err());
    }
}
