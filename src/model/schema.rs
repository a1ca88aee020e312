//! The JSON Schema of types that serialize in a form of their own.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::exit::{EndedBy, ExitOutcome, SpawnStage};
use super::id::{InstanceId, Name};
use super::spec::ExitMatch;

impl JsonSchema for Name {
    fn schema_name() -> Cow<'static, str> {
        "Name".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A name: `[a-z0-9][a-z0-9._-]{0,62}`, of several projects `PROJECT/NAME`.",
            "pattern": "^[a-z0-9][a-z0-9._-]{0,62}(/[a-z0-9][a-z0-9._-]{0,62})?$",
        })
    }
}

impl JsonSchema for InstanceId {
    fn schema_name() -> Cow<'static, str> {
        "InstanceId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "An instance: its service's name, with `.N` where there are several replicas.",
        })
    }
}

impl JsonSchema for ExitMatch {
    fn schema_name() -> Cow<'static, str> {
        "ExitMatch".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An exit code, or a signal's name.",
            "anyOf": [{ "type": "integer" }, { "type": "string" }],
        })
    }
}

impl JsonSchema for ExitOutcome {
    fn schema_name() -> Cow<'static, str> {
        "Exit".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let ended = generator.subschema_for::<EndedBy>();
        let stage = generator.subschema_for::<SpawnStage>();
        json_schema!({
            "type": "object",
            "description": "How a process ended, by a code or a signal, or why there was none.",
            "properties": {
                "code": { "type": "integer", "description": "The exit code." },
                "signal": { "type": "integer", "description": "The signal that ended it." },
                "name": { "type": "string", "description": "The signal's name." },
                "core_dumped": { "type": "boolean" },
                "unknown": { "type": "boolean", "description": "Nobody was there to be told how." },
                "ended": ended,
                "reason": {
                    "type": "string",
                    "description": "`timeout` or `health`: why regrow ended it. `spawn`: it did not come to be.",
                },
                "stage": stage,
                "errno": { "type": "integer" },
                "errno_name": { "type": "string" },
                "message": { "type": "string" },
            },
        })
    }
}
