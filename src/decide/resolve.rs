//! Whom a selector means, and what is said of a name that nobody has.

use std::collections::HashSet;

use super::status::{Board, Entry};
use crate::model::nearest::nearest;
use crate::model::{Denial, DenialCode, InstanceId, Name, Selector};

/// The instances that a selector means, in declared order.
pub fn resolve(board: &Board, select: &Selector) -> Result<Vec<InstanceId>, Denial> {
    let plan = board.plan();
    if select.is_empty() {
        return Err(Denial {
            code: DenialCode::Invalid,
            reason: "no service was named".to_owned(),
            hint: Some("name services, or say --all, --group or --tag".to_owned()),
        });
    }
    let mut meant: HashSet<InstanceId> = HashSet::new();
    if select.all {
        meant.extend(board.entries().iter().map(|e| e.id.clone()));
    }
    for text in &select.services {
        let before = meant.len();
        let named = |e: &&Entry| e.spec.name.as_str() == text || e.id.to_string() == *text;
        meant.extend(board.entries().iter().filter(named).map(|e| e.id.clone()));
        let known = meant.len() > before || board.entries().iter().any(|e| named(&e));
        if !known {
            let names = plan.services.iter().map(|s| s.name.as_str());
            return Err(not_found("service", text, names));
        }
    }
    for group in &select.groups {
        if !plan.groups.contains_key(group.as_str()) {
            return Err(not_found("group", group, plan.groups.keys().map(Name::as_str)));
        }
        for service in plan.services_below(group) {
            meant.extend(board.instances_of(&service).map(|e| e.id.clone()));
        }
    }
    for tag in &select.tags {
        let tagged: Vec<_> = board.entries().iter().filter(|e| e.spec.tags.contains(tag)).collect();
        if tagged.is_empty() {
            let tags = plan.services.iter().flat_map(|s| s.tags.iter().map(String::as_str));
            return Err(not_found("tag", tag, tags));
        }
        meant.extend(tagged.into_iter().map(|e| e.id.clone()));
    }
    Ok(board.entries().iter().filter(|e| meant.contains(&e.id)).map(|e| e.id.clone()).collect())
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
