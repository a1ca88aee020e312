//! The table of all requests that are answered. The routes and the OpenAPI document are both made
//! from it, so that neither can miss a request.
//!
//! What a request does is in `requests`; how it is carried out once is in `middleware`.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, post, put};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::protocol::{
    Add, Added, Audit, CancelTask, Down, ErrorBody, Events, History, LogLine, Logs, Manifest, Manifests,
    Removed, ResourceHistories, SetPool, Submit, Submitted, TaskList, TaskOutput, Upgrade, Upgrading, Wait,
    Waited, WhyReport, Write,
};
use super::refused::refuse;
use super::requests::query::{LARGEST, Parameter, ParameterKind};
use super::requests::{admin, events, logs, manifests, resources, tasks, tree};
use super::shared::Shared;
use crate::decide::access::Action;
use crate::model::stats::{PoolStats, Stats};
use crate::model::status::TreeStatus;
use crate::model::task::{ProgressReport, TaskProgress};
use crate::model::{
    Answer, Command, DenialCode, Event, State, StatusReport, TaskResult, TaskSpec, TaskStatus,
};
use crate::runtime::reload::Reloaded;

/// Makes the JSON schema of a body.
type Shape = fn(&mut SchemaGenerator) -> Schema;

/// The form of the answer to a request.
enum Answered {
    /// One JSON object.
    Json(Shape),
    /// One JSON object of the first type; where `follow` is asked for, server-sent events of the
    /// second.
    JsonOrEvents(Shape, Shape),
    /// Server-sent events of this type.
    Events(Shape),
}

/// How often a request may be carried out.
enum Idempotency {
    /// The request may be carried out any number of times.
    Look,
    /// The request is carried out once for each `Idempotency-Key`.
    Once,
    /// The same, for a request whose body may be a whole manifest.
    OnceLarge,
}

struct Operation {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    about: &'static str,
    /// The permission that the request needs: an action, and what it is about.
    needs: Option<(Action, &'static str)>,
    query: &'static [Parameter],
    body: Option<Shape>,
    answered: Answered,
    way: Idempotency,
    route: fn() -> MethodRouter<Shared>,
}

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The schema of `Command`, without the commands that can't be sent as data.
fn command(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = Command::json_schema(generator);
    let own = |variant: &Value| {
        let verb = variant.pointer("/properties/verb/const").and_then(Value::as_str);
        matches!(verb, Some("add" | "reconfigure" | "scale"))
    };
    if let Some(variants) = schema.get_mut("oneOf").and_then(Value::as_array_mut) {
        variants.retain(|variant| !own(variant));
    }
    schema
}

/// The schema of an answer that is described elsewhere.
fn any_object(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "object" })
}

/// The schema of the data of a task's server-sent events.
fn task_events(generator: &mut SchemaGenerator) -> Schema {
    let output = generator.subschema_for::<TaskOutput>();
    let progress = generator.subschema_for::<TaskProgress>();
    let result = generator.subschema_for::<TaskResult>();
    schemars::json_schema!({ "anyOf": [output, progress, result] })
}

const EACH: &str = "each service";
const DAEMON: &str = "`daemon`";
const NAME: &str = "the manifest's name";

const OPERATIONS: &[Operation] = &[
    Operation {
        method: "get",
        path: "/v1/status",
        id: "status",
        about: "The state of every instance",
        needs: Some((Action::Read, EACH)),
        query: tree::STATUS,
        body: None,
        answered: Answered::Json(of::<StatusReport>),
        way: Idempotency::Look,
        route: || get(tree::status),
    },
    Operation {
        method: "get",
        path: "/v1/tree",
        id: "tree",
        about: "The supervision tree: every group and its children",
        needs: Some((Action::Read, "`*`")),
        query: &[],
        body: None,
        answered: Answered::Json(of::<Option<TreeStatus>>),
        way: Idempotency::Look,
        route: || get(tree::tree),
    },
    Operation {
        method: "get",
        path: "/v1/why",
        id: "why",
        about: "Why services are in their current state",
        needs: Some((Action::Read, EACH)),
        query: tree::WHY,
        body: None,
        answered: Answered::Json(of::<WhyReport>),
        way: Idempotency::Look,
        route: || get(tree::explain),
    },
    Operation {
        method: "get",
        path: "/v1/events",
        id: "events",
        about: "Past events, and new ones as they happen",
        needs: Some((Action::Read, EACH)),
        query: events::EVENTS,
        body: None,
        answered: Answered::JsonOrEvents(of::<Events>, of::<Event>),
        way: Idempotency::Look,
        route: || get(events::events),
    },
    Operation {
        method: "get",
        path: "/v1/logs",
        id: "logs",
        about: "The output of services",
        needs: Some((Action::Logs, EACH)),
        query: logs::LOGS,
        body: None,
        answered: Answered::JsonOrEvents(of::<Logs>, of::<LogLine>),
        way: Idempotency::Look,
        route: || get(logs::logs),
    },
    Operation {
        method: "get",
        path: "/v1/history",
        id: "history",
        about: "The incarnations of services, newest first (daemon only)",
        needs: Some((Action::Read, EACH)),
        query: events::HISTORY,
        body: None,
        answered: Answered::Json(of::<History>),
        way: Idempotency::Look,
        route: || get(events::history),
    },
    Operation {
        method: "get",
        path: "/v1/audit",
        id: "audit",
        about: "The audit trail: who was allowed or refused what (daemon only)",
        needs: Some((Action::Audit, DAEMON)),
        query: events::AUDIT,
        body: None,
        answered: Answered::Json(of::<Audit>),
        way: Idempotency::Look,
        route: || get(events::audit),
    },
    Operation {
        method: "post",
        path: "/v1/wait",
        id: "wait",
        about: "Wait until services are ready, completed or stopped, or can no longer become so",
        needs: Some((Action::Read, EACH)),
        query: &[],
        body: Some(of::<Wait>),
        answered: Answered::Json(of::<Waited>),
        way: Idempotency::Look,
        route: || post(tree::wait),
    },
    Operation {
        method: "post",
        path: "/v1/command",
        id: "command",
        about: "Start, stop, restart, pause, resume or remove services; answered when it is done",
        needs: Some((Action::Start, "each service, and likewise the other verbs")),
        query: &[],
        body: Some(command),
        answered: Answered::Json(of::<Answer>),
        way: Idempotency::Once,
        route: || post(tree::command),
    },
    Operation {
        method: "post",
        path: "/v1/add",
        id: "add",
        about: "Add the services and groups of a manifest to the tree; no file is changed",
        needs: Some((Action::Add, "the group, or `root`")),
        query: &[],
        body: Some(of::<Add>),
        answered: Answered::Json(of::<Added>),
        way: Idempotency::OnceLarge,
        route: || post(tree::add),
    },
    Operation {
        method: "post",
        path: "/v1/down",
        id: "down",
        about: "Stop everything in reverse order, then the supervisor; answered when everything is gone",
        needs: Some((Action::Down, DAEMON)),
        query: &[],
        body: None,
        answered: Answered::Json(of::<Down>),
        way: Idempotency::Once,
        route: || post(tree::down),
    },
    Operation {
        method: "get",
        path: "/v1/manifests",
        id: "list_manifests",
        about: "The manifests in the daemon's folder",
        needs: Some((Action::Manifest, "each name")),
        query: &[],
        body: None,
        answered: Answered::Json(of::<Manifests>),
        way: Idempotency::Look,
        route: || get(manifests::list),
    },
    Operation {
        method: "get",
        path: "/v1/manifests/{name}",
        id: "show_manifest",
        about: "The text of a manifest",
        needs: Some((Action::Manifest, NAME)),
        query: &[],
        body: None,
        answered: Answered::Json(of::<Manifest>),
        way: Idempotency::Look,
        route: || get(manifests::show),
    },
    Operation {
        method: "put",
        path: "/v1/manifests/{name}",
        id: "write_manifest",
        about: "Check a manifest, write it, and reload the folder",
        needs: Some((Action::Manifest, NAME)),
        query: &[],
        body: Some(of::<Write>),
        answered: Answered::Json(of::<Reloaded>),
        way: Idempotency::OnceLarge,
        route: || put(manifests::write),
    },
    Operation {
        method: "delete",
        path: "/v1/manifests/{name}",
        id: "remove_manifest",
        about: "Delete a manifest, and reload the folder",
        needs: Some((Action::Manifest, NAME)),
        query: &[],
        body: None,
        answered: Answered::Json(of::<Reloaded>),
        way: Idempotency::Once,
        route: || delete(manifests::remove),
    },
    Operation {
        method: "post",
        path: "/v1/reload",
        id: "reload",
        about: "Read the manifests again and change only what differs (daemon only)",
        needs: Some((Action::Reload, DAEMON)),
        query: admin::RELOAD,
        body: None,
        answered: Answered::Json(of::<Reloaded>),
        way: Idempotency::Once,
        route: || post(admin::reload),
    },
    Operation {
        method: "post",
        path: "/v1/upgrade",
        id: "upgrade",
        about: "Replace the daemon and its keeper by another build; answered just before that",
        needs: Some((Action::Upgrade, DAEMON)),
        query: &[],
        body: Some(of::<Upgrade>),
        answered: Answered::Json(of::<Upgrading>),
        way: Idempotency::Once,
        route: || post(admin::upgrade),
    },
    Operation {
        method: "post",
        path: "/v1/tasks",
        id: "submit_tasks",
        about: "Run commands through the worker pool; answered when they are accepted, or have finished",
        needs: Some((Action::Exec, "`tasks`")),
        query: &[],
        body: Some(of::<Submit>),
        answered: Answered::Json(of::<Submitted>),
        way: Idempotency::OnceLarge,
        route: || post(tasks::submit),
    },
    Operation {
        method: "get",
        path: "/v1/tasks",
        id: "list_tasks",
        about: "The state of every task, oldest first",
        needs: Some((Action::Exec, "`tasks`")),
        query: &[],
        body: None,
        answered: Answered::Json(of::<TaskList>),
        way: Idempotency::Look,
        route: || get(tasks::list),
    },
    Operation {
        method: "delete",
        path: "/v1/tasks",
        id: "forget_tasks",
        about: "Forget the tasks that have finished",
        needs: Some((Action::Exec, "`tasks`")),
        query: &[],
        body: None,
        answered: Answered::Json(of::<Removed>),
        way: Idempotency::Once,
        route: || delete(tasks::cleanup),
    },
    Operation {
        method: "post",
        path: "/v1/run",
        id: "run",
        about: "Run a command to its end, or take a cached result; closing the connection cancels it",
        needs: Some((Action::Exec, "`tasks`")),
        query: &[],
        body: Some(of::<TaskSpec>),
        answered: Answered::Json(of::<TaskResult>),
        way: Idempotency::Look,
        route: || post(tasks::run),
    },
    Operation {
        method: "post",
        path: "/v1/exec",
        id: "exec",
        about: "Run a command and stream its `output` and `progress` events, then a `result` without output",
        needs: Some((Action::Exec, "`tasks`")),
        query: &[],
        body: Some(of::<TaskSpec>),
        answered: Answered::Events(task_events),
        way: Idempotency::Look,
        route: || post(tasks::exec),
    },
    Operation {
        method: "get",
        path: "/v1/tasks/{id}",
        id: "task",
        about: "The state of a task",
        needs: Some((Action::Exec, "`tasks`")),
        query: &[],
        body: None,
        answered: Answered::Json(of::<TaskStatus>),
        way: Idempotency::Look,
        route: || get(tasks::status),
    },
    Operation {
        method: "get",
        path: "/v1/tasks/{id}/result",
        id: "task_result",
        about: "The result of a task, once it has finished",
        needs: Some((Action::Exec, "`tasks`")),
        query: tasks::RESULT,
        body: None,
        answered: Answered::Json(of::<TaskResult>),
        way: Idempotency::Look,
        route: || get(tasks::result),
    },
    Operation {
        method: "post",
        path: "/v1/tasks/{id}/cancel",
        id: "cancel_task",
        about: "Cancel a task: SIGTERM, and SIGKILL after its grace period",
        needs: Some((Action::Exec, "`tasks`")),
        query: &[],
        body: Some(of::<CancelTask>),
        answered: Answered::Json(of::<Removed>),
        way: Idempotency::Once,
        route: || post(tasks::cancel),
    },
    Operation {
        method: "post",
        path: "/v1/tasks/{id}/progress",
        id: "report_progress",
        about: "Report the progress of a running task",
        needs: Some((Action::Exec, "`tasks`")),
        query: &[],
        body: Some(of::<ProgressReport>),
        answered: Answered::Json(of::<TaskStatus>),
        way: Idempotency::Once,
        route: || post(tasks::progress),
    },
    Operation {
        method: "post",
        path: "/v1/tasks/{id}/pause",
        id: "pause_task",
        about: "Pause a task and its timeout",
        needs: Some((Action::Exec, "`tasks`")),
        query: &[],
        body: None,
        answered: Answered::Json(of::<TaskStatus>),
        way: Idempotency::Once,
        route: || post(tasks::pause),
    },
    Operation {
        method: "post",
        path: "/v1/tasks/{id}/resume",
        id: "resume_task",
        about: "Resume a paused task",
        needs: Some((Action::Exec, "`tasks`")),
        query: &[],
        body: None,
        answered: Answered::Json(of::<TaskStatus>),
        way: Idempotency::Once,
        route: || post(tasks::resume),
    },
    Operation {
        method: "delete",
        path: "/v1/cache",
        id: "clear_cache",
        about: "Clear the cache of command results",
        needs: Some((Action::Exec, "`tasks`")),
        query: &[],
        body: None,
        answered: Answered::Json(of::<Removed>),
        way: Idempotency::Once,
        route: || delete(tasks::clear_cache),
    },
    Operation {
        method: "post",
        path: "/v1/pool",
        id: "set_pool",
        about: "Set the number of workers, and whether the pool scales automatically",
        needs: Some((Action::Exec, "`tasks`")),
        query: &[],
        body: Some(of::<SetPool>),
        answered: Answered::Json(of::<PoolStats>),
        way: Idempotency::Once,
        route: || post(tasks::set_pool),
    },
    Operation {
        method: "get",
        path: "/v1/stats",
        id: "stats",
        about: "Statistics of the pool, the cache, the machine and the commands that were run",
        needs: Some((Action::Read, "`*`")),
        query: &[],
        body: None,
        answered: Answered::Json(of::<Stats>),
        way: Idempotency::Look,
        route: || get(resources::stats),
    },
    Operation {
        method: "get",
        path: "/v1/resources",
        id: "resources",
        about: "The resource usage of the machine or of services over the last day, with its trend",
        needs: Some((Action::Read, "`*`, or each that is named")),
        query: resources::RESOURCES,
        body: None,
        answered: Answered::Json(of::<ResourceHistories>),
        way: Idempotency::Look,
        route: || get(resources::resources),
    },
    Operation {
        method: "get",
        path: "/v1/openapi.json",
        id: "openapi",
        about: "This document",
        needs: None,
        query: &[],
        body: None,
        answered: Answered::Json(any_object),
        way: Idempotency::Look,
        route: || get(|| async { axum::Json(DOCUMENT.clone()) }),
    },
];

/// The routes of all requests, behind the middleware.
pub(super) fn router(shared: Shared) -> Router {
    let mut router = Router::new();
    for operation in OPERATIONS {
        let route = (operation.route)();
        let route = match operation.way {
            Idempotency::Look if operation.body.is_none() => route,
            Idempotency::Look => {
                route.layer(from_fn_with_state(shared.clone(), super::middleware::any_number))
            }
            Idempotency::Once => route.layer(from_fn_with_state(shared.clone(), super::middleware::usual)),
            Idempotency::OnceLarge => {
                route.layer(from_fn_with_state(shared.clone(), super::middleware::large))
            }
        };
        router = router.route(operation.path, route);
    }
    router
        .fallback(|| async {
            let mut paths: Vec<&str> = OPERATIONS.iter().map(|operation| operation.path).collect();
            paths.dedup();
            let hint = format!("{}; GET /v1/openapi.json describes them", paths.join(", "));
            refuse(DenialCode::NotFound, "there is no such path", Some(&hint))
        })
        .method_not_allowed_fallback(|| async {
            let hint = Some("GET /v1/openapi.json lists the methods of every path");
            refuse(DenialCode::NoSuchMethod, "this path does not support that method", hint)
        })
        // The middleware that reads a body bounds it.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(shared.clone(), super::middleware::enter))
        .with_state(shared)
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

/// The OpenAPI document of all requests.
pub fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    let mut generator = settings.into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for operation in OPERATIONS {
        let described = operation.described(&mut generator);
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = described;
    }
    generator.subschema_for::<ErrorBody>();
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "regrow",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A supervision-tree runtime for processes. Served on the control socket of a run or a \
                            daemon, and where it is configured on a TCP address with a token. Durations are \
                            seconds, sizes bytes, times RFC 3339 in UTC.",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "Made by \"regrow token create\". The control socket needs none.",
            } },
        },
    })
}

impl Operation {
    fn described(&self, generator: &mut SchemaGenerator) -> Value {
        let mut parameters: Vec<Value> = self.query.iter().map(Parameter::described).collect();
        if self.path.contains("{name}") {
            parameters.push(json!({
                "name": "name", "in": "path", "required": true,
                "description": "The file's name, without `.toml`",
                "schema": { "type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,62}$" },
            }));
        }
        if self.path.contains("{id}") {
            parameters.push(json!({
                "name": "id", "in": "path", "required": true,
                "description": "The task's id",
                "schema": { "type": "string", "format": "uuid" },
            }));
        }
        if !matches!(self.way, Idempotency::Look) {
            parameters.push(json!({
                "name": "Idempotency-Key", "in": "header", "required": false,
                "description": "A request with the key of an earlier one is not carried out again, but answered \
                                as that one was (for a day). A different request with the same key is refused.",
                "schema": { "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$" },
            }));
        }
        if self.id == "events" {
            parameters.push(json!({
                "name": "Last-Event-ID", "in": "header", "required": false,
                "description": "Like `since`: the stream continues after this event.",
                "schema": { "type": "integer", "minimum": 0, "maximum": LARGEST },
            }));
        }
        let content = match &self.answered {
            Answered::Json(shape) => json!({ "application/json": { "schema": shape(generator) } }),
            Answered::Events(event) => json!({
                "text/event-stream": { "schema": {
                    "type": "object",
                    "description": "One server-sent event.",
                    "properties": {
                        "event": { "type": "string", "enum": ["output", "progress", "result"] },
                        "data": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": event(generator),
                        },
                    },
                } },
            }),
            Answered::JsonOrEvents(shape, event) => json!({
                "application/json": { "schema": shape(generator) },
                "text/event-stream": { "schema": {
                    "type": "object",
                    "description": "One server-sent event. `missed` and `dropped` carry the number of those \
                                    that were not sent; `reset`: the numbers began anew, since the \
                                    store was lost.",
                    "properties": {
                        "event": { "type": "string", "enum": ["event", "line", "missed", "dropped", "reset"] },
                        "id": { "type": "string", "description": "The number of an event." },
                        "data": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": { "anyOf": [event(generator), { "type": "integer" }] },
                        },
                    },
                } },
            }),
        };
        let needs = match self.needs {
            Some((action, what)) => format!("Needs `{action}` of {what}."),
            None => "Needs no permission.".to_owned(),
        };
        let mut described = json!({
            "operationId": self.id,
            "summary": self.about,
            "description": needs,
            "responses": {
                "200": { "description": "The request was carried out", "content": content },
                "default": {
                    "description": "The request was refused, with a stable code",
                    "content": { "application/json": { "schema": generator.subschema_for::<ErrorBody>() } },
                },
            },
        });
        if !parameters.is_empty() {
            described["parameters"] = parameters.into();
        }
        if let Some(shape) = self.body {
            described["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": shape(generator) } } });
        }
        described
    }
}

impl Parameter {
    fn described(&self) -> Value {
        let schema = match self.kind {
            ParameterKind::Names => json!({ "type": "array", "items": { "type": "string" } }),
            ParameterKind::States => {
                json!({ "type": "array", "items": { "type": "string", "enum": State::ALL } })
            }
            ParameterKind::Count => json!({ "type": "integer", "minimum": 0, "maximum": LARGEST }),
            ParameterKind::Seconds => json!({ "type": "number", "minimum": 0 }),
            ParameterKind::Flag => json!({ "type": "boolean" }),
        };
        json!({ "name": self.name, "in": "query", "required": false, "description": self.about, "schema": schema })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` leads somewhere, and every operation says what it answers.
    #[test]
    fn the_document_is_whole() {
        fn references<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
            match value {
                Value::Object(map) => {
                    into.extend(map.get("$ref").and_then(Value::as_str));
                    map.values().for_each(|value| references(value, into));
                }
                Value::Array(all) => all.iter().for_each(|value| references(value, into)),
                _ => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        let ids: std::collections::BTreeSet<&str> = OPERATIONS.iter().map(|operation| operation.id).collect();
        assert_eq!(ids.len(), OPERATIONS.len());
        let verbs =
            document.pointer("/paths/~1v1~1command/post/requestBody/content/application~1json/schema");
        let text = verbs.unwrap().to_string();
        assert!(
            text.contains("\"restart\"") && !text.contains("\"reconfigure\"") && !text.contains("\"scale\""),
            "{text}"
        );
    }
}
