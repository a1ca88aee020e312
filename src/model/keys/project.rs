//! The keys of `[project]` and `[group.NAME]`, and the tables of a manifest.

use super::service::SERVICE;
use super::{Form, Key, SOME_DURATION, Section, key, regroups, restarts};
use crate::model::Strategy;
use crate::model::plan::{AutoShutdown, GiveUp};

/// A whole manifest.
pub static MANIFEST: Section = Section {
    title: "the manifest",
    about: "A project: its services and its groups.",
    keys: &[
        key(
            "project",
            Form::Table(&PROJECT),
            "",
            r#"{ name = "shop" }"#,
            "What holds for the whole project.",
        ),
        regroups(
            "service",
            Form::Named(&SERVICE),
            "",
            r#"{ web = { command = "web" } }"#,
            "The services, by their names.",
        ),
        regroups(
            "group",
            Form::Named(&GROUP),
            "",
            r#"{ web = { members = ["api"] } }"#,
            "The groups, by their names.",
        ),
    ],
    one_of: &[],
    required: &[],
};

const STRATEGY: Key = key(
    "strategy",
    Form::OneOf(Strategy::NAMES),
    r#""one-for-one""#,
    r#""one-for-all""#,
    "Which siblings restart with a member that crashed.",
);
const INTENSITY: Key = key(
    "intensity",
    Form::Integer { least: 0, most: 1_000_000 },
    "",
    "3",
    "The most restarts within `period`: with one more the group gives up. Without it there is no limit.",
);
const PERIOD: Key =
    key("period", SOME_DURATION, r#""10s""#, r#""1m""#, "The time window in which `intensity` counts.");
const ON_GIVE_UP: Key = key(
    "on_give_up",
    Form::OneOf(GiveUp::NAMES),
    r#""mark""#,
    r#""exit""#,
    "What follows when the group gives up: its members are `failed` until started by hand, it counts as a crashed member of its parent, or the whole project goes down.",
);
const AUTO_SHUTDOWN: Key = key(
    "auto_shutdown",
    Form::OneOf(AutoShutdown::NAMES),
    r#""never""#,
    r#""any""#,
    "Whether the group goes down when any or all of its significant members have ended by themselves.",
);

/// `[project]`.
pub static PROJECT: Section = Section {
    title: "[project]",
    about: "What holds for the whole project. The keys of a group hold for the root of its tree.",
    keys: &[
        regroups(
            "name",
            Form::Text,
            "",
            r#""shop""#,
            "The name of the project; without it the folder's name.",
        ),
        restarts(
            "env_file",
            Form::TextOrTexts,
            "[]",
            r#"[".env"]"#,
            "Files with variables for every service; a later one wins, and one that is not there is warned about.",
        ),
        STRATEGY,
        INTENSITY,
        PERIOD,
        ON_GIVE_UP,
        AUTO_SHUTDOWN,
        key(
            "stop_timeout",
            SOME_DURATION,
            "",
            r#""9s""#,
            "The longest time that a stop of the whole project may take.",
        ),
    ],
    one_of: &[],
    required: &[],
};

/// `[group.NAME]`.
pub static GROUP: Section = Section {
    title: "[group.NAME]",
    about: "A group: members that are supervised together.",
    keys: &[
        regroups(
            "members",
            Form::Texts,
            "",
            r#"["db", "api"]"#,
            "The services and groups in it, in their order.",
        ),
        STRATEGY,
        INTENSITY,
        PERIOD,
        ON_GIVE_UP,
        AUTO_SHUTDOWN,
        key(
            "significant",
            Form::Boolean,
            "false",
            "true",
            "Whether the group's own shutdown counts for `auto_shutdown` of its parent.",
        ),
    ],
    one_of: &[],
    required: &["members"],
};
