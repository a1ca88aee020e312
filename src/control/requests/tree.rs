//! The requests about the tree: its status, the commands that change it, and waiting for services.
//!
//! Commands are checked against the caller's permissions here, and carried out by the runtime.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, RawQuery, Request, State};
use axum::response::{IntoResponse, Response};

use super::body;
use super::query::{Parameter, ParameterKind, Query};
use crate::control::connections::Caller;
use crate::control::idempotency::WasTaken;
use crate::control::protocol::{
    Add, Added, Down, FaultBody, LostSight, StuckProcess, Wait, WaitFor, Waited, WhyReport,
};
use crate::control::refused::{Handled, Refused, refuse};
use crate::control::shared::{Shared, from_store};
use crate::decide::access::{Action, DAEMON, ROOT};
use crate::decide::resolve::{group_named, resolve};
use crate::decide::why::{self, Why};
use crate::manifest::{Environment, LoadedAddition as Loaded, load_addition};
use crate::model::{
    Addition, Answer, Command, Denial, DenialCode, InstanceId, IssuedCommand, Kind, Name, Requester,
    Selector, ServiceStatus, State as Is,
};
use crate::record::store::{AcceptedCommand, EventFilter, ManualChange};
use crate::runtime::Handle;

pub(in crate::control) const STATUS: &[Parameter] = &[
    Parameter { name: "service", kind: ParameterKind::Names, about: "Only these services or instances" },
    Parameter { name: "state", kind: ParameterKind::States, about: "Only those in one of these states" },
];

pub(in crate::control) async fn status(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Handled<Response> {
    let query = Query::parse(raw, STATUS)?;
    let ids = shared.instances(&caller, Action::Read, query.all("service"))?;
    let wanted: HashSet<&InstanceId> = ids.iter().collect();
    let states = query.states();
    let mut report = shared.handle.status_of(|id| wanted.contains(id));
    report.services.retain(|row| states.is_empty() || states.contains(&row.state));
    if !caller.may_everywhere(Action::Read) {
        let seen: HashSet<&Name> = ids.iter().map(InstanceId::service).collect();
        report.groups.retain(|group| group.members.iter().any(|member| seen.contains(member)));
        for group in &mut report.groups {
            group.members.retain(|member| seen.contains(member));
        }
    }
    Ok(axum::Json(report).into_response())
}

pub(in crate::control) async fn tree(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Handled<Response> {
    Query::parse(raw, &[])?;
    if !caller.may_everywhere(Action::Read) {
        return Err(shared.refuse(&caller, Action::Read, "*"));
    }
    Ok(axum::Json(shared.handle.tree(None)).into_response())
}

pub(in crate::control) const WHY: &[Parameter] = &[Parameter {
    name: "service",
    kind: ParameterKind::Names,
    about: "The services or instances; default: all",
}];

pub(in crate::control) async fn explain(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Handled<Response> {
    let query = Query::parse(raw, WHY)?;
    let ids = shared.instances(&caller, Action::Read, query.all("service"))?;
    let handle = &shared.handle;
    let now = handle.uptime();
    let everything = caller.may_everywhere(Action::Read);
    let readable: HashSet<String> = match everything {
        true => HashSet::new(),
        false => {
            let ids = shared.instances(&caller, Action::Read, Vec::new())?;
            ids.iter().map(ToString::to_string).collect()
        }
    };
    let logs: HashSet<InstanceId> =
        shared.instances(&caller, Action::Logs, Vec::new())?.into_iter().collect();
    let services: Vec<(Why, _)> = handle.tree_state(|tree_state| {
        ids.iter()
            .map(|id| {
                let (mut chain, end) = why::chain(tree_state, id, now);
                chain.retain(|link| everything || readable.contains(&link.name));
                for link in &mut chain {
                    link.name = tree_state.shown_text(&link.name);
                }
                let entry = tree_state.entry(id);
                let source = handle.output().source_of(&end).filter(|_| logs.contains(&end));
                let why = Why {
                    name: tree_state.shown(id),
                    chain,
                    exit: entry.and_then(|e| e.exit.clone()),
                    check: entry.and_then(|e| e.failing.clone()),
                    last_lines: Vec::new(),
                };
                (why, source)
            })
            .collect()
    });
    // The last lines may come from files, so they are read without holding the tree state.
    let last_lines = |source| handle.output().last_lines(source, 10);
    let services = services
        .into_iter()
        .map(|(why, source)| Why { last_lines: source.map(last_lines).unwrap_or_default(), ..why })
        .collect();
    Ok(axum::Json(WhyReport { services }).into_response())
}

impl Shared {
    /// The command, as far as the caller may give it. It is refused as a whole where the caller lacks a
    /// permission. A caller without all rights gives it to just the instances that were checked,
    /// whatever a group or a tag means a moment later.
    fn permitted(&self, caller: &Caller, command: Command) -> Handled<Command> {
        let invalid = |reason: &str, hint| Err(refuse(DenialCode::Invalid, reason, hint));
        let Some(action) = Action::of(&command) else {
            return invalid(
                "a command can't change a service",
                Some("change its manifest, then POST /v1/reload"),
            );
        };
        let Some(select) = command.select() else {
            // As data, a manifest would come without its environment, which is never written down.
            return invalid("a manifest is added by POST /v1/add", None);
        };
        let words = in_words(select);
        if caller.may_everywhere(action) {
            self.note(caller, action, &words);
            return Ok(command);
        }
        if !select.groups.is_empty() && action == Action::Remove {
            return Err(self.refuse(caller, action, "*"));
        }
        let found = match self.handle.tree_state(|tree_state| resolve(tree_state, select)) {
            Ok(found) => found,
            Err(denial) if denial.code == DenialCode::NotFound => {
                return Err(self.refuse(caller, action, &words));
            }
            Err(denial) => return Err(denial.into()),
        };
        // Only whole services can be removed, so the permission must be for the service.
        let may = |id: &&InstanceId| match action {
            Action::Remove => self.granted(caller, action, &InstanceId::sole(id.service().clone())),
            _ => self.granted(caller, action, id),
        };
        if !found.iter().all(|id| may(&id)) {
            // The refusal uses the caller's own words, since it must not tell what a group or a tag means.
            return Err(self.refuse(caller, action, &words));
        }
        self.note(caller, action, &words);
        let meant = match action {
            Action::Remove if select.tags.is_empty() => return Ok(command),
            Action::Remove => {
                let mut services: Vec<String> = found.iter().map(|id| id.service().to_string()).collect();
                services.dedup();
                services
            }
            _ => found.iter().map(ToString::to_string).collect(),
        };
        let command = command.about(Selector::named(meant));
        // Dependencies are started as well where the caller may start all of them.
        Ok(match command {
            Command::Start { select, no_deps } => {
                let needs = self.handle.tree_state(|tree_state| {
                    tree_state.graph().with_dependencies(found.iter().map(InstanceId::service))
                });
                let granted = needs
                    .iter()
                    .all(|service| self.granted(caller, action, &InstanceId::sole(service.clone())));
                Command::Start { select, no_deps: no_deps || !granted }
            }
            other => other,
        })
    }
}

impl Shared {
    /// What is still to be done of a command that an earlier daemon took and did not answer. `None`:
    /// nothing.
    async fn gone_on_with(&self, command: Command, taken: WasTaken) -> Handled<Option<Command>> {
        let WasTaken(AcceptedCommand { seq, command: before }) = taken;
        if serde_json::to_string(&command).ok() != Some(before) {
            let reason = "this Idempotency-Key was already used for another command";
            return Err(refuse(DenialCode::KeyReused, reason, None));
        }
        Ok(match command {
            Command::Restart { select } => {
                let targets = self.handle.tree_state(|tree_state| resolve(tree_state, &select))?;
                let begun = match self.store() {
                    Some(store) => {
                        let names = targets.iter().map(ToString::to_string).collect();
                        let wanted = EventFilter {
                            instances: Some(names),
                            states: vec![Is::Stopping, Is::Starting],
                            ..EventFilter::default()
                        };
                        from_store(move || store.last_events(seq, &wanted, usize::MAX)).await?
                    }
                    None => Vec::new(),
                };
                let has_begun = |id: &InstanceId| {
                    let name = id.to_string();
                    begun.iter().any(|e| e.fact.instance().is_some_and(|of| of.to_string() == name))
                };
                // The restart is under way, or done: only its end is to be waited for.
                match targets.iter().all(has_begun) {
                    true => Some(Command::Start { select, no_deps: true }),
                    false => Some(Command::Restart { select }),
                }
            }
            Command::Remove { select } => {
                let there = self.handle.tree_state(|tree_state| resolve(tree_state, &select)).is_ok();
                there.then_some(Command::Remove { select })
            }
            other => Some(other),
        })
    }
}

/// A selector, as the audit trail shows it.
fn in_words(select: &Selector) -> String {
    let mut words: Vec<String> = select.services.clone();
    words.extend(select.all.then(|| "*".to_owned()));
    words.extend(select.groups.iter().map(|group| format!("group {group}")));
    words.extend(select.tags.iter().map(|tag| format!("tag {tag}")));
    words.join(", ")
}

pub(in crate::control) async fn command(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Handled<Response> {
    let taken = request.extensions().get::<WasTaken>().cloned();
    let key = request
        .headers()
        .get(&crate::control::idempotency::KEY)
        .and_then(|key| key.to_str().ok())
        .map(str::to_owned);
    let json = axum::Json::<Command>::from_request(request, &()).await;
    let command = shared.permitted(&caller, body(json)?)?;
    let command = match taken {
        Some(taken) => shared.gone_on_with(command, taken).await?,
        None => Some(command),
    };
    let Some(command) = command else {
        // An earlier daemon did it, and did not answer.
        return Ok(axum::Json(Answer { ok: true, results: Vec::new() }).into_response());
    };
    let by = Some(Requester { key, ..caller.asker() });
    let before = matches!(command, Command::Remove { .. }).then(|| shared.handle.plan());
    let answer = shared.handle.command(IssuedCommand { command, by }).await;
    if let (Some(before), Some(store)) = (before, shared.store()) {
        let now = shared.handle.plan();
        let services = before.services.iter().map(|spec| &spec.name);
        let services: Vec<Name> =
            services.filter(|name| now.service(name.as_str()).is_none()).cloned().collect();
        let groups: Vec<Name> =
            before.groups.keys().filter(|name| !now.groups.contains_key(*name)).cloned().collect();
        if !services.is_empty() || !groups.is_empty() {
            store.keep_change(&ManualChange::Removed { services, groups });
        }
    }
    Ok(axum::Json(answer?).into_response())
}

pub(in crate::control) async fn add(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    json: Result<axum::Json<Add>, JsonRejection>,
) -> Handled<Response> {
    let Add { manifest, file, group } = body(json)?;
    shared.permit(&caller, Action::Add, group.as_deref().unwrap_or(ROOT))?;
    let into = match group {
        Some(group) => {
            Some(shared.handle.tree_state(|tree_state| group_named(tree_state.plan(), &group).cloned())?)
        }
        None => None,
    };
    if !file.is_absolute() {
        let reason = format!("\"file\" must be an absolute path, not {:?}", file.display().to_string());
        return Err(refuse(DenialCode::Invalid, reason, None));
    }
    let plan = shared.handle.plan();
    // On another thread, since it reads env files, and a folder on a network may hang.
    let (text, path) = (manifest.clone(), file.clone());
    let load = move || {
        let environment = Environment::of_vars(plan.inherited.to_vec());
        load_addition(&text, &path, &environment, &plan)
    };
    let gone = || refuse(DenialCode::Internal, "the manifest could not be read", None);
    let loaded = tokio::task::spawn_blocking(load).await.map_err(|_| gone())?;
    let Loaded { addition, warnings } = loaded.map_err(|faults| {
        let count = faults.len();
        let plural = if count == 1 { "" } else { "s" };
        let reason = format!("the manifest has {count} fault{plural}; nothing was started");
        let denial = Denial { code: DenialCode::Faulty, reason, hint: None };
        Refused { denial, faults: faults.iter().map(FaultBody::of).collect() }
    })?;
    // The change is kept before it is made: a service may take long to become ready, and the daemon may
    // end.
    let kept = shared.store().map(|store| {
        let change = ManualChange::Added { manifest, file, group: into.clone() };
        (store.keep_change(&change), store)
    });
    let addition = Arc::new(Addition { into, ..addition });
    let command = Command::Add { addition };
    let answer = shared.handle.command(IssuedCommand { command, by: Some(caller.asker()) }).await;
    let answer = answer.inspect_err(|_| {
        if let Some((number, store)) = kept {
            store.forget_change(Some(number));
        }
    })?;
    let warnings = warnings.iter().map(FaultBody::of).collect();
    Ok(axum::Json(Added { answer, warnings }).into_response())
}

pub(in crate::control) async fn wait(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    json: Result<axum::Json<Wait>, JsonRejection>,
) -> Handled<Response> {
    let wait = body(json)?;
    let handle = shared.handle.clone();
    let ids = shared.instances(&caller, Action::Read, wait.services)?;
    let timeout = match wait.timeout_s {
        Some(seconds) => Some(Duration::try_from_secs_f64(seconds).map_err(|_| {
            refuse(DenialCode::Invalid, "\"timeout_s\" must be a number of seconds, 0 or more", None)
        })?),
        None => None,
    };
    let mut events = handle.events();
    let come_true = async {
        loop {
            if let Some(ok) = verdict(&handle, &ids, wait.for_) {
                return Ok(ok);
            }
            tokio::select! {
                _ = events.next() => {}
                () = caller.gone() => return Err(revoked()),
            }
        }
    };
    let result = match timeout {
        Some(timeout) => tokio::time::timeout(timeout, come_true).await.ok(),
        None => Some(come_true.await),
    };
    let result = result.transpose()?;
    let services: Vec<ServiceStatus> = handle.status_of(|id| ids.contains(id)).services;
    Ok(axum::Json(Waited { ok: result == Some(true), timed_out: result.is_none(), services }).into_response())
}

fn revoked() -> Refused {
    refuse(DenialCode::Unauthorized, "the token is not valid any more", None)
}

/// `Some(true)`: the condition is true for all. `Some(false)`: it can't come true by itself any
/// more. `None`: it may still come true.
fn verdict(handle: &Handle, ids: &[InstanceId], wanted: WaitFor) -> Option<bool> {
    handle.tree_state(|tree_state| {
        let mut all = true;
        for id in ids {
            let Some(entry) = tree_state.entry(id) else {
                // The instance was removed, so it is down for good.
                match wanted {
                    WaitFor::Ready | WaitFor::Completed => return Some(false),
                    WaitFor::Stopped => continue,
                }
            };
            let is = match wanted {
                WaitFor::Ready => {
                    entry.ready || (entry.state == Is::Completed && entry.spec.kind == Kind::Task)
                }
                WaitFor::Completed => entry.state == Is::Completed,
                WaitFor::Stopped => {
                    matches!(entry.state, Is::Registered | Is::Stopped | Is::Completed | Is::Failed)
                }
            };
            let never = match wanted {
                // A tree that shuts down starts nothing any more.
                WaitFor::Ready | WaitFor::Completed => {
                    let over = entry.state == Is::Completed && entry.spec.kind == Kind::Service;
                    entry.state == Is::Failed || ((over || tree_state.shutting_down()) && !is)
                }
                WaitFor::Stopped => false,
            };
            if never {
                return Some(false);
            }
            all &= is;
        }
        all.then_some(true)
    })
}

pub(in crate::control) async fn down(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
) -> Handled<Response> {
    shared.permit(&caller, Action::Down, DAEMON)?;
    let (running, waiting) = shared.handle.tasks().left().await;
    shared.handle.begin_shutdown("regrow down");
    // Hooks are not waited for, since one of them may have sent this request.
    let ok = shared.handle.wait_stopped().await.is_ok();
    let stuck: Vec<StuckProcess> =
        shared.handle.stuck().into_iter().map(|(name, pid)| StuckProcess { name, pid }).collect();
    let lost_sight: Vec<LostSight> =
        shared.handle.lost_sight().into_iter().map(|(name, of)| LostSight { name, of }).collect();
    let hooks = shared.handle.running_hooks();
    let hooks_may_take_s = shared.handle.hooks_may_take().as_secs_f64();
    Ok(axum::Json(Down {
        ok: ok && stuck.is_empty() && lost_sight.is_empty(),
        stuck,
        lost_sight,
        hooks,
        hooks_may_take_s,
        tasks: running + waiting,
    })
    .into_response())
}
