//! Which services of a plan start with the tree: `--only`, `--no-deps`, `--profile`.

use std::collections::HashSet;
use std::sync::Arc;

use super::graph::Graph;
use super::resolve::not_found;
use crate::model::{Denial, Name, Plan};

/// What the command line says about the services to start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// The services and groups to start, with what they depend on; empty: those with autostart.
    pub only: Vec<String>,
    /// Whether to leave out what they depend on.
    pub no_deps: bool,
    /// The active profiles.
    pub profiles: Vec<String>,
}

/// The plan in which `autostart` says what starts. Services that don't start stay in the plan,
/// to be started by hand. `Err`: the denial of an unknown name or profile.
pub fn select(plan: &Plan, graph: &Graph, selection: &Selection) -> Result<Plan, Denial> {
    for profile in &selection.profiles {
        let known = || plan.services.iter().flat_map(|s| s.profiles.iter().map(String::as_str));
        if !known().any(|p| p == profile) {
            return Err(not_found("profile", profile, known()));
        }
    }
    let chosen: Vec<Name> = if selection.only.is_empty() {
        let starts = |profiles: &[String], autostart: bool| {
            autostart && (profiles.is_empty() || profiles.iter().any(|p| selection.profiles.contains(p)))
        };
        plan.services.iter().filter(|s| starts(&s.profiles, s.autostart)).map(|s| s.name.clone()).collect()
    } else {
        let mut chosen = Vec::new();
        for text in &selection.only {
            match plan.service(text) {
                Some(service) => chosen.push(service.name.clone()),
                None if plan.groups.contains_key(text.as_str()) => chosen.extend(plan.services_below(text)),
                None => {
                    let known = plan.services.iter().map(|s| s.name.as_str());
                    return Err(not_found("service", text, known));
                }
            }
        }
        chosen
    };
    let active: HashSet<Name> = if selection.no_deps {
        chosen.into_iter().collect()
    } else {
        graph.with_dependencies(&chosen).into_iter().collect()
    };
    let mut selected = plan.clone();
    for service in &mut selected.services {
        let starts = active.contains(&service.name);
        let pruned = selection.no_deps && service.depends_on.iter().any(|d| !active.contains(&d.on));
        if service.autostart != starts || pruned {
            let mut spec = service.as_ref().clone();
            spec.autostart = starts;
            if selection.no_deps {
                spec.depends_on.retain(|d| active.contains(&d.on));
            }
            *service = Arc::new(spec);
        }
    }
    Ok(selected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Condition, Dependency, ServiceSpec};

    fn plan() -> (Plan, Graph) {
        let name = |text: &str| Name::new(text).unwrap();
        let service = |text: &str, on: &[&str], profiles: &[&str], autostart| {
            let mut spec = ServiceSpec::new(name(text), ["true"]);
            let needs = |on: &&str| Dependency { on: name(on), condition: Condition::Ready, required: true };
            spec.depends_on = on.iter().map(needs).collect();
            spec.profiles = profiles.iter().map(|p| (*p).to_owned()).collect();
            spec.autostart = autostart;
            spec
        };
        let plan = Plan::of(
            "test",
            vec![
                service("db", &[], &[], false),
                service("api", &["db"], &[], true),
                service("debug", &["api"], &["dev"], true),
                service("lone", &[], &[], true),
            ],
        );
        let graph = Graph::new(&plan.services).unwrap();
        (plan, graph)
    }

    fn started(selection: &Selection) -> String {
        let (plan, graph) = plan();
        let selected = select(&plan, &graph, selection).unwrap();
        let names: Vec<&str> =
            selected.services.iter().filter(|s| s.autostart).map(|s| s.name.as_str()).collect();
        names.join(" ")
    }

    #[test]
    fn selections() {
        let only = |names: &[&str], no_deps| Selection {
            only: names.iter().map(|n| (*n).to_owned()).collect(),
            no_deps,
            profiles: Vec::new(),
        };
        assert_eq!(started(&Selection::default()), "db api lone", "a dependency comes along");
        assert_eq!(started(&only(&["debug"], false)), "db api debug");
        assert_eq!(started(&only(&["debug"], true)), "debug");
        let dev = Selection { profiles: vec!["dev".into()], ..Selection::default() };
        assert_eq!(started(&dev), "db api debug lone");
        let (plan, graph) = plan();
        let wrong = select(&plan, &graph, &only(&["debgu"], false)).unwrap_err();
        assert_eq!(wrong.hint.as_deref(), Some("did you mean \"debug\"?"));
    }
}
