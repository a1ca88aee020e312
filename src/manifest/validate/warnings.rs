//! What is allowed and has no effect, or cannot come about.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::manifest::decode::Declared;
use crate::manifest::fault::Fault;
use crate::manifest::reader::Collector;
use crate::manifest::validate::tree::Tree;
use crate::model::plan::AutoShutdown;
use crate::model::{Child, GroupSpec, Kind, Policy, ServiceSpec};

/// Warnings about settings of automatic shutdown that can have no effect.
pub(in crate::manifest) fn idle_keys(
    declared: &Declared,
    services: &[ServiceSpec],
    tree: &Tree,
    collector: &Collector,
) -> Vec<Fault> {
    let mut warnings = Vec::new();
    let mut warn = |span: &Range<usize>, message: String, label: &str, hint: &str| {
        warnings.push(Fault {
            source: Arc::clone(&collector.source),
            span: span.clone(),
            message,
            label: label.to_owned(),
            also: None,
            hint: Some(hint.to_owned()),
        });
    };
    let groups = tree.groups.iter().map(|(name, spec)| (Some(name), spec)).chain([(None, &tree.root)]);
    for (name, group) in groups {
        let shuts_down = group.auto_shutdown != AutoShutdown::Never;
        let shown = name.map_or("the root group".to_owned(), |name| format!("group {:?}", name.as_str()));
        let mut counted = false;
        for child in &group.children {
            let (span, significant, always) = match child {
                Child::Service(child) => {
                    let Some(at) = declared.services.iter().position(|s| s.name.value == *child) else {
                        continue;
                    };
                    let (declared, spec) = (&declared.services[at], &services[at]);
                    let always = matches!(spec.restart.policy, Policy::Always | Policy::UnlessStopped)
                        && spec.kind == Kind::Service;
                    (&declared.name.span, spec.significant, always)
                }
                Child::Group(child) => {
                    let Some(inner) = declared.groups.iter().find(|g| g.name.value == *child) else {
                        continue;
                    };
                    (&inner.name.span, inner.significant, false)
                }
            };
            if !significant {
                continue;
            }
            counted |= !always;
            let child = child.name().as_str();
            if !shuts_down {
                let message = format!("{child:?} is significant, and {shown} has no \"auto_shutdown\"");
                warn(
                    span,
                    message,
                    "its exit has no effect",
                    "write auto_shutdown = \"any\" or \"all\" in the group",
                );
            } else if always {
                let message = format!("{child:?} is significant, but its restart policy always restarts it");
                warn(span, message, "always restarted", "write restart = \"on-failure\" or \"never\"");
            }
        }
        let span = match name {
            Some(name) => declared.groups.iter().find(|g| g.name.value == *name).map(|g| &g.name.span),
            None => declared.project.span.as_ref(),
        };
        if let Some(span) = span.filter(|_| shuts_down && !counted) {
            let message =
                format!("{shown} has \"auto_shutdown\", but no significant member whose exit could cause it");
            warn(span, message, "never shuts down automatically", "write significant = true in a member");
        }
    }
    warnings
}

/// Warnings about groups whose members restart so slowly that the restart limit can't be reached.
pub(in crate::manifest) fn unreachable_limits(
    declared: &Declared,
    services: &[ServiceSpec],
    collector: &Collector,
) -> Vec<Fault> {
    let known: HashMap<&str, &ServiceSpec> = services.iter().map(|s| (s.name.as_str(), s)).collect();
    let mut warnings = Vec::new();
    for group in &declared.groups {
        let Some(intensity) = group.supervision.intensity else { continue };
        let period = group.supervision.period.unwrap_or(GroupSpec::default().period);
        // How often a nested group crashes is bounded by its own limit, not here.
        let members: Option<Vec<&&ServiceSpec>> =
            group.members.iter().map(|m| known.get(m.value.as_str())).collect();
        let Some(members) = members else { continue };
        let crashes: u64 =
            members.iter().map(|m| most_falls(m, period, intensity) * u64::from(m.most_copies())).sum();
        if crashes <= u64::from(intensity) {
            warnings.push(Fault {
                source: Arc::clone(&collector.source),
                span: group.name.span.clone(),
                message: format!(
                    "group {:?} never gives up: with their backoff, its members crash at most {crashes} times within {}, and it gives up after more than {intensity}",
                    group.name.value.as_str(),
                    humantime::format_duration(period)
                ),
                label: "this limit can't be reached".to_owned(),
                also: None,
                hint: Some("write a longer \"period\", a smaller \"intensity\" or a shorter backoff".to_owned()),
            });
        }
    }
    warnings
}

/// How often a service that ends at once can crash within a period: the first time at once, then
/// after each delay at its shortest. The count stops at one more than the limit.
fn most_falls(spec: &ServiceSpec, period: std::time::Duration, intensity: u32) -> u64 {
    let mut crashes = 1;
    let mut time = std::time::Duration::ZERO;
    for attempt in 0..=intensity {
        if spec.restart.max_retries.is_some_and(|max| attempt >= max) {
            break;
        }
        time += crate::decide::restart::delay(&spec.restart.backoff, attempt, 0.0);
        if time > period {
            break;
        }
        crashes += 1;
    }
    crashes
}
