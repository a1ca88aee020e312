//! Ports that services listen on, and the addresses of checks.

use std::collections::HashMap;
use std::sync::Arc;

use crate::manifest::decode::{Declared, Target};
use crate::manifest::reader::Collector;
use crate::manifest::validate::also;
use crate::model::{CheckTarget, ReadyTarget, ServiceSpec};

/// The host and port that a service listens on, as its readiness check says.
fn listens_on(spec: &ServiceSpec) -> Option<(String, u16)> {
    let ReadyTarget::Check(check) = &spec.ready.as_ref()?.target else {
        return None;
    };
    let (host, port) = match &check.target {
        CheckTarget::Tcp(text) => address(text),
        CheckTarget::Http(url) => self::url(url),
        CheckTarget::Exec(_) => return None,
    }
    .ok()?;
    Some((local(&host), port))
}

/// Notes the ports that two services say they listen on.
pub(super) fn ports(
    declared: &Declared,
    services: &[ServiceSpec],
    there: &[Arc<ServiceSpec>],
    collector: &mut Collector,
) {
    let mut asked: HashMap<(String, u16), Vec<usize>> = HashMap::new();
    for (at, spec) in services.iter().enumerate() {
        let Some((host, port)) = listens_on(spec) else { continue };
        let asking = asked.entry((host.clone(), port)).or_default();
        let first = asking.iter().find(|other| together(spec, &services[**other]));
        let span = |at: usize| {
            let declared = declared.services.iter().find(|s| s.name.value == services[at].name)?;
            match &declared.ready.as_ref()?.target {
                Target::Tcp(at) | Target::Http(at) => Some(at.span.clone()),
                Target::Exec(_) | Target::Log(_) | Target::After(_) => None,
            }
        };
        if let (Some(&first), Some(here)) = (first, span(at)) {
            also(
                collector,
                here,
                format!(
                    "port {port} is used by two services: {:?} and {:?}",
                    services[first].name, spec.name
                ),
                format!("also used by {}", spec.name),
                span(first).unwrap_or(0..0),
                "first used here",
            );
        }
        asking.push(at);
        let beside = |other: &&Arc<ServiceSpec>| {
            together(spec, other) && listens_on(other) == Some((host.clone(), port))
        };
        if let (Some(other), Some(here)) = (there.iter().find(beside), span(at)) {
            let message = format!(
                "port {port} is used by two services: {:?}, which is in the running tree, and {:?}",
                other.name, spec.name
            );
            collector.fault(here, message, format!("also used by {}", spec.name));
        }
    }
}

/// Whether two services can run at the same time. They can't if both have profiles and share none.
fn together(a: &ServiceSpec, b: &ServiceSpec) -> bool {
    a.profiles.is_empty() || b.profiles.is_empty() || a.profiles.iter().any(|p| b.profiles.contains(p))
}

/// The host in one spelling, so that all names of this machine's loopback are the same.
fn local(host: &str) -> String {
    match host {
        "localhost" | "127.0.0.1" | "0.0.0.0" | "[::1]" | "[::]" => "localhost".to_owned(),
        other => other.to_ascii_lowercase(),
    }
}

/// The host and port of `HOST:PORT`. `Err` says what would help.
pub(in crate::manifest) fn address(text: &str) -> Result<(String, u16), String> {
    let help = || "write it as HOST:PORT, such as \"127.0.0.1:6379\"".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(help)?;
    let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if host.is_empty() || bare_v6 || host.contains(char::is_whitespace) || host.contains('/') {
        return Err(help());
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok((host.to_owned(), port)),
        _ => Err("write a port from 1 to 65535".to_owned()),
    }
}

/// The host and port of an `http://` URL. `Err` says what would help.
pub(in crate::manifest) fn url(text: &str) -> Result<(String, u16), String> {
    let help = || "write it as \"http://127.0.0.1:5000/health\"".to_owned();
    if text.starts_with("https://") {
        return Err(
            "an http check does not support https; write exec = [\"curl\", \"-f\", URL] instead".to_owned()
        );
    }
    let rest = text.strip_prefix("http://").ok_or_else(help)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if text.contains(char::is_whitespace) || text.contains(char::is_control) || authority.contains('@') {
        return Err(help());
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    if has_port { address(authority) } else { address(&format!("{authority}:80")) }
}
