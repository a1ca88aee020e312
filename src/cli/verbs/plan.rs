//! `check` and `plan`: show what a manifest says, before anything runs.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::args::develop::{CheckArgs, PlanArgs, PlanFormat};
use crate::cli::report::{CheckReport, load_or_tell, objects, tell};
use crate::cli::{code, report, usage_error};
use crate::decide::graph::Graph;
use crate::decide::select::{Selection, select};
use crate::manifest::{Environment, load};
use crate::model::spec::ScaleSpec;
use crate::model::{Child, GroupSpec, Kind, Name, Plan, ReadyTarget, ServiceSpec};
use crate::present::units::short;

pub(in crate::cli) fn check(args: &CheckArgs) -> u8 {
    let mut files = args.files.clone();
    if files.is_empty() {
        match report::found() {
            Ok(path) => files.push(path),
            Err(code) => return code,
        }
    }
    let environment = Environment::of_process().with_files(args.env_file.clone());
    let mut reports = Vec::new();
    for file in &files {
        let shown = file.display().to_string();
        match load(file, &environment) {
            Ok(loaded) => {
                if !args.json {
                    let (services, groups) = (loaded.plan.services.len(), loaded.plan.groups.len());
                    let noun = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
                    let groups =
                        if groups > 0 { format!(", {}", noun(groups, "group")) } else { String::new() };
                    say!("{shown}: ok ({}{groups})", noun(services, "service"));
                    report::warn(&loaded.warnings);
                }
                reports.push(CheckReport {
                    file: shown,
                    ok: true,
                    services: loaded.plan.services.len(),
                    faults: Vec::new(),
                    warnings: report::places(&loaded.warnings),
                });
            }
            Err(error) => {
                if !args.json {
                    tell(&error);
                }
                reports.push(CheckReport {
                    file: shown,
                    ok: false,
                    services: 0,
                    faults: objects(&error),
                    warnings: Vec::new(),
                });
            }
        }
    }
    let ok = reports.iter().all(|r| r.ok);
    if args.json {
        #[derive(Serialize)]
        struct All {
            ok: bool,
            files: Vec<CheckReport>,
        }
        crate::cli::connect::print_json(&All { ok, files: reports });
    }
    if ok { code::DONE } else { code::MANIFEST }
}

pub(in crate::cli) fn plan(args: &PlanArgs) -> u8 {
    let mut only = args.only.clone();
    let mut file = args.file.clone();
    if file.is_none() && only.len() > 1 && only.last().is_some_and(|last| last.ends_with(".toml")) {
        file = only.pop().map(PathBuf::from);
    }
    let json = args.json || matches!(args.format, PlanFormat::Json);
    let (path, loaded) = match load_or_tell(file.as_deref(), &args.env_file) {
        Ok(loaded) => loaded,
        Err(code) => {
            // With JSON, the same object as that of `check` goes to standard output; the words went to
            // standard error.
            if json && let Ok(found) = file.map_or_else(report::found, Ok) {
                return check(&CheckArgs { files: vec![found], env_file: args.env_file.clone(), json: true });
            }
            return code;
        }
    };
    let selection = Selection { only, no_deps: args.no_deps, profiles: args.profile.clone() };
    let plan = match select(&loaded.plan, &loaded.graph, &selection) {
        Ok(plan) => plan,
        Err(denial) => {
            let hint = denial.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
            return usage_error("plan", &format!("{}{hint}", denial.reason));
        }
    };
    let starting: Vec<_> = plan.services.iter().filter(|s| s.autostart).cloned().collect();
    let waves = match Graph::new(&starting) {
        Ok(graph) => graph,
        // A part of an acyclic graph has no cycle either.
        Err(_) => return code::MANIFEST,
    };
    match if args.json { PlanFormat::Json } else { args.format } {
        PlanFormat::Text => text(&path, &plan, &waves),
        PlanFormat::Json => crate::cli::connect::print_json(&PlanReport::new(&path, &plan, &waves)),
        PlanFormat::Dot => dot(&plan),
        PlanFormat::Mermaid => mermaid(&plan),
    }
    code::DONE
}

fn text(path: &Path, plan: &Plan, graph: &Graph) {
    say!("{} ({})", plan.project, path.display());
    say!();
    say!("tree");
    branch(plan, &plan.root, "  ");
    say!();
    say!("start");
    for (at, wave) in graph.start_waves().iter().enumerate() {
        say!("  {}. {}", at + 1, joined(wave));
    }
    say!();
    say!("stop");
    for (at, wave) in graph.stop_waves().iter().enumerate() {
        say!("  {}. {}", at + 1, joined(wave));
    }
    let idle: Vec<Name> = plan.services.iter().filter(|s| !s.autostart).map(|s| s.name.clone()).collect();
    if !idle.is_empty() {
        say!();
        say!("not started");
        say!("  {}", joined(&idle));
    }
}

fn branch(plan: &Plan, group: &GroupSpec, indent: &str) {
    for (at, child) in group.children.iter().enumerate() {
        let last = at + 1 == group.children.len();
        let (fork, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        match child {
            Child::Service(name) => {
                if let Some(service) = plan.service(name.as_str()) {
                    say!("{indent}{fork}{}", line(service));
                }
            }
            Child::Group(name) => {
                let Some(inner) = plan.groups.get(name) else { continue };
                let limit = inner
                    .intensity
                    .map(|n| format!(", at most {n} restarts in {}", short(inner.period)))
                    .unwrap_or_default();
                say!("{indent}{fork}[{name}] {}{limit}", inner.strategy);
                branch(plan, inner, &format!("{indent}{below}"));
            }
        }
    }
}

fn line(service: &ServiceSpec) -> String {
    let mut line = service.name.to_string();
    if let Some(ScaleSpec { min, max, .. }) = service.scale {
        line.push_str(&format!(" x{min} to {max}"));
    } else if service.replicas > 1 {
        line.push_str(&format!(" x{}", service.replicas));
    }
    if service.kind == Kind::Task {
        line.push_str(" (task)");
    }
    line.push_str(&format!(": {}", crate::cli::format::shorten(&service.command.to_string(), 60)));
    if !service.depends_on.is_empty() {
        let needs: Vec<String> =
            service.depends_on.iter().map(|d| format!("{} {}", d.on, d.condition)).collect();
        line.push_str(&format!("; after {}", needs.join(", ")));
    }
    if let Some(ready) = &service.ready {
        let how = match &ready.target {
            ReadyTarget::Check(check) => check.target.to_string(),
            other => other.to_string(),
        };
        line.push_str(&format!("; ready: {how}"));
    }
    line
}

fn joined(names: &[Name]) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

/// The object that `plan --format json` prints.
#[derive(Debug, Serialize)]
struct PlanReport<'a> {
    project: &'a str,
    manifest: String,
    services: Vec<&'a ServiceSpec>,
    root: &'a GroupSpec,
    groups: &'a std::collections::BTreeMap<Name, GroupSpec>,
    start_waves: Vec<Vec<Name>>,
    stop_waves: Vec<Vec<Name>>,
}

impl<'a> PlanReport<'a> {
    fn new(path: &Path, plan: &'a Plan, graph: &Graph) -> PlanReport<'a> {
        PlanReport {
            project: &plan.project,
            manifest: path.display().to_string(),
            services: plan.services.iter().map(AsRef::as_ref).collect(),
            root: &plan.root,
            groups: &plan.groups,
            start_waves: graph.start_waves(),
            stop_waves: graph.stop_waves(),
        }
    }
}

fn dot(plan: &Plan) {
    say!("digraph {:?} {{", plan.project);
    say!("  rankdir = LR;");
    say!("  node [shape = box];");
    for (at, (name, group)) in plan.groups.iter().enumerate() {
        say!("  subgraph cluster_{at} {{");
        say!("    label = {:?};", format!("{name} ({})", group.strategy));
        for child in &group.children {
            if let Child::Service(service) = child {
                say!("    {:?};", service.as_str());
            }
        }
        say!("  }}");
    }
    for service in &plan.services {
        let style = if service.kind == Kind::Task { " [style = rounded]" } else { "" };
        say!("  {:?}{style};", service.name.as_str());
        for dependency in &service.depends_on {
            say!(
                "  {:?} -> {:?} [label = {:?}];",
                service.name.as_str(),
                dependency.on.as_str(),
                dependency.condition.to_string()
            );
        }
    }
    say!("}}");
}

fn mermaid(plan: &Plan) {
    // Services have generated ids, since a name may be a keyword of Mermaid.
    let id = |name: &Name| {
        let at = plan.services.iter().position(|s| s.name == *name).unwrap_or(0);
        format!("s{at}")
    };
    say!("flowchart LR");
    for (name, group) in &plan.groups {
        say!("  subgraph {name} [\"{name} ({})\"]", group.strategy);
        for child in &group.children {
            if let Child::Service(service) = child {
                say!("    {}", id(service));
            }
        }
        say!("  end");
    }
    for service in &plan.services {
        let (open, close) = if service.kind == Kind::Task { ("([", "])") } else { ("[", "]") };
        say!("  {}{open}\"{}\"{close}", id(&service.name), service.name);
        for dependency in &service.depends_on {
            say!("  {} -->|{}| {}", id(&service.name), dependency.condition, id(&dependency.on));
        }
    }
}
