//! Which instances a selector means, and the denial of a name that is unknown or ambiguous.

use std::collections::HashSet;

use super::tree_state::{InstanceState, TreeState};
use crate::model::nearest::nearest;
use crate::model::{Denial, DenialCode, InstanceId, Name, Plan, Selector};

/// The instances that a selector means, in declared order.
pub fn resolve(tree_state: &TreeState, select: &Selector) -> Result<Vec<InstanceId>, Denial> {
    let plan = tree_state.plan();
    if select.is_empty() {
        return Err(Denial {
            code: DenialCode::Invalid,
            reason: "no service was named".to_owned(),
            hint: Some("name services, or use --all, --group or --tag".to_owned()),
        });
    }
    let mut meant: HashSet<InstanceId> = HashSet::new();
    if select.all {
        meant.extend(tree_state.entries().iter().map(|e| e.id.clone()));
    }
    for text in &select.services {
        meant.extend(named(tree_state, text)?);
    }
    for group in &select.groups {
        let group = group_named(plan, group)?;
        for service in plan.services_below(group.as_str()) {
            meant.extend(tree_state.instances_of(&service).map(|e| e.id.clone()));
        }
    }
    for tag in &select.tags {
        let tagged: Vec<_> = tree_state.entries().iter().filter(|e| e.spec.tags.contains(tag)).collect();
        if tagged.is_empty() {
            let tags = plan.services.iter().flat_map(|s| s.tags.iter().map(String::as_str));
            return Err(not_found("tag", tag, tags));
        }
        meant.extend(tagged.into_iter().map(|e| e.id.clone()));
    }
    Ok(tree_state.entries().iter().filter(|e| meant.contains(&e.id)).map(|e| e.id.clone()).collect())
}

/// The instances that a text names: a service or one of its copies, by `project/name`, or by the
/// name alone where only one service has it.
fn named(tree_state: &TreeState, text: &str) -> Result<Vec<InstanceId>, Denial> {
    let fits =
        |entry: &&InstanceState, text: &str| entry.spec.name.as_str() == text || entry.id.to_string() == text;
    let ids = |text: &str| -> Vec<InstanceId> {
        tree_state.entries().iter().filter(|entry| fits(entry, text)).map(|entry| entry.id.clone()).collect()
    };
    let found = ids(text);
    if !found.is_empty() {
        return Ok(found);
    }
    // In a tree of one project, names carry no project; a text may name it all the same.
    if let Some(rest) =
        text.strip_prefix(tree_state.plan().project.as_str()).and_then(|rest| rest.strip_prefix('/'))
        && tree_state.entries().iter().all(|entry| entry.spec.project.is_none())
    {
        let found = ids(rest);
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let short = |entry: &&InstanceState| entry.spec.name.short() == text || entry.id.short() == text;
    let found: Vec<&InstanceState> = tree_state.entries().iter().filter(short).collect();
    let mut services: Vec<&str> = found.iter().map(|entry| entry.spec.name.as_str()).collect();
    services.dedup();
    match services.len() {
        0 => {
            let names = tree_state.plan().services.iter();
            let known = names.flat_map(|spec| [spec.name.short(), spec.name.as_str()]);
            Err(not_found("service", text, known))
        }
        1 => Ok(found.into_iter().map(|entry| entry.id.clone()).collect()),
        _ => Err(ambiguous(text, services)),
    }
}

/// The group that a text names: by its full name, or by its short name where only one group has
/// it.
pub fn group_named<'a>(plan: &'a Plan, text: &str) -> Result<&'a Name, Denial> {
    if let Some((name, _)) = plan.groups.get_key_value(text) {
        return Ok(name);
    }
    let short: Vec<&Name> = plan.groups.keys().filter(|name| name.short() == text).collect();
    match short[..] {
        [] => {
            let known = plan.groups.keys().flat_map(|name| [name.short(), name.as_str()]);
            Err(not_found("group", text, known))
        }
        [name] => Ok(name),
        _ => Err(ambiguous(text, short.into_iter().map(Name::as_str).collect())),
    }
}

/// The denial of a name that several services or groups have.
fn ambiguous(text: &str, mut meant: Vec<&str>) -> Denial {
    meant.sort_unstable();
    let shown: String = text.chars().take(80).collect();
    Denial {
        code: DenialCode::Ambiguous,
        reason: format!("{shown:?} is ambiguous: {}", meant.join(", ")),
        hint: Some(format!("name it with its project: {}", meant.first().copied().unwrap_or_default())),
    }
}

/// The denial of an unknown name, with the nearest known one.
pub fn not_found<'a>(what: &str, text: &str, known: impl Iterator<Item = &'a str>) -> Denial {
    let shown: String = text.chars().take(80).collect();
    Denial {
        code: DenialCode::NotFound,
        reason: format!("there is no {what} {shown:?}"),
        hint: nearest(text, known).map(|near| format!("did you mean {near:?}?")),
    }
}
