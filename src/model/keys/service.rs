//! The keys of `[service.NAME]`.

use std::time::Duration;

use super::{ANY_DURATION, Form, Key, SOME_DURATION, Section, key, regroups, restarts};
use crate::model::spec::MOST_FILES;
use crate::model::{Condition, Kind, OnDependencyRestart, Policy};

/// The shortest time between two attempts of a check.
pub const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// `[service.NAME]`.
pub static SERVICE: Section = Section {
    title: "[service.NAME]",
    about: "A service: what it runs, when it starts and stops, and how it is looked after.",
    keys: &[
        restarts(
            "command",
            Form::Words,
            "",
            r#"["redis-server", "--port", "6379"]"#,
            "The program and its arguments. A string is split into words as a shell would; no shell runs it.",
        ),
        restarts("shell", Form::Text, "", r#""make && ./server""#, "A text for `/bin/sh -c`."),
        regroups(
            "kind",
            Form::OneOf(Kind::NAMES),
            r#""service""#,
            r#""task""#,
            "A service stays up; a task runs to completion.",
        ),
        restarts(
            "dir",
            Form::Text,
            r#"".""#,
            r#""backend""#,
            "The working directory, relative to the manifest's folder.",
        ),
        restarts(
            "env",
            Form::Variables(&SECRET),
            "{}",
            r#"{ PORT = 8080, DB_PASSWORD = { secret = "db" } }"#,
            "Variables of the service's environment: strings, numbers, booleans, or names of secrets.",
        ),
        key(
            "env_file",
            Form::TextOrTexts,
            "[]",
            r#"[".env", "local.env"]"#,
            "Files with variables, read at each start; a later one wins, and `env` wins over all of them.",
        ),
        restarts(
            "env_clear",
            Form::Boolean,
            "false",
            "true",
            "Start from an empty environment but for `PATH`.",
        ),
        restarts(
            "env_deny",
            Form::Texts,
            "[]",
            r#"["AWS_*"]"#,
            "Patterns of variables that are not inherited; `*` matches any characters.",
        ),
        restarts("user", Form::Account, "", r#""nobody""#, "The user that the processes run as."),
        restarts(
            "group",
            Form::Account,
            "",
            r#""nogroup""#,
            "The group that the processes run as, in place of the user's own.",
        ),
        restarts("umask", Form::Octal, "", r#""027""#, "The file mode creation mask."),
        restarts(
            "nice",
            Form::Integer { least: -20, most: 19 },
            "",
            "10",
            "The scheduling priority, from -20 (highest) to 19.",
        ),
        key(
            "depends_on",
            Form::Dependencies(&DEPENDENCY),
            "[]",
            r#"{ db = "ready" }"#,
            "What must be there before the service starts: names, or names with conditions.",
        ),
        key(
            "ready",
            Form::Table(&READY),
            "",
            r#"{ tcp = "127.0.0.1:6379" }"#,
            "The sign that the service is ready; without it, it is ready once it runs.",
        ),
        key(
            "health",
            Form::Table(&HEALTH),
            "",
            r#"{ http = "http://127.0.0.1:5000/health" }"#,
            "A check that is repeated while the service runs; when it fails too often, the service is ended and the restart policy decides.",
        ),
        key(
            "restart",
            Form::Short { plain: &Form::OneOf(Policy::NAMES), sets: Some("policy"), table: &RESTART },
            r#""on-failure""#,
            r#""always""#,
            "When and after what delay the service comes back.",
        ),
        key(
            "stop",
            Form::Short { plain: &Form::Signal, sets: Some("signal"), table: &STOP },
            r#""SIGTERM""#,
            r#""SIGINT""#,
            "How the service is asked to stop.",
        ),
        key(
            "on",
            Form::Table(&ON),
            "",
            r#"{ fail = "./tell.sh" }"#,
            "Commands that run when something happens to the service.",
        ),
        key("log", Form::Table(&LOG), "", r#"{ file = "logs/web.log" }"#, "How the output is kept in files."),
        key(
            "replicas",
            Form::Short { plain: &Form::Integer { least: 1, most: 10_000 }, sets: None, table: &REPLICAS },
            "1",
            "3",
            "The number of instances, or the bounds within which regrow chooses it.",
        ),
        key(
            "autostart",
            Form::Boolean,
            "true",
            "false",
            "Whether the service starts with the tree, without being asked to.",
        ),
        key(
            "on_dependency_restart",
            Form::OneOf(OnDependencyRestart::NAMES),
            r#""restart""#,
            r#""ignore""#,
            "What happens to the service when something that it depends on crashes and comes back.",
        ),
        key(
            "rerun",
            Form::Boolean,
            "false",
            "true",
            "Whether a restart of its group runs the service again when it has completed, or its policy would keep it down.",
        ),
        key(
            "significant",
            Form::Boolean,
            "false",
            "true",
            "Whether the service's own end counts for `auto_shutdown` of its group.",
        ),
        key(
            "profiles",
            Form::Texts,
            "[]",
            r#"["debug"]"#,
            "The profiles that the service belongs to; with none it always belongs to the tree.",
        ),
        key("tags", Form::Texts, "[]", r#"["edge"]"#, "Labels that commands select services by."),
    ],
    one_of: &["command", "shell"],
    required: &[],
};

static SECRET: Section = Section {
    title: "env.NAME",
    about: "A variable that holds a secret.",
    keys: &[restarts("secret", Form::Text, "", r#""db""#, "The name of the secret (`regrow secret set`).")],
    one_of: &[],
    required: &["secret"],
};

static DEPENDENCY: Section = Section {
    title: "depends_on.NAME",
    about: "A dependency with its condition.",
    keys: &[
        key(
            "on",
            Form::OneOf(Condition::NAMES),
            "",
            r#""started""#,
            "The condition to wait for; without it `ready` for a service and `completed` for a task.",
        ),
        key(
            "required",
            Form::Boolean,
            "true",
            "false",
            "Whether the service stays down when the other one failed for good or is not to run.",
        ),
    ],
    one_of: &[],
    required: &[],
};

const TCP: Key = key("tcp", Form::Text, "", r#""127.0.0.1:6379""#, "Connects to `HOST:PORT`.");
const HTTP: Key = key(
    "http",
    Form::Text,
    "",
    r#""http://127.0.0.1:5000/health""#,
    "Gets an `http://` URL; 200 to 399 is a success.",
);
const EXEC: Key =
    key("exec", Form::Words, "", r#"["pg_isready", "-q"]"#, "Runs a command; exit code 0 is a success.");
const TIMEOUT: Key =
    key("timeout", SOME_DURATION, r#""5s""#, r#""2s""#, "The longest time that one attempt may take.");
const SUCCESSES: Key = key(
    "successes",
    Form::Integer { least: 1, most: 1_000 },
    "1",
    "3",
    "The number of successes in a row that count as good.",
);

static READY: Section = Section {
    title: "ready",
    about: "The sign that a service is ready: one of `tcp`, `http`, `exec`, `log` and `after`.",
    keys: &[
        TCP,
        HTTP,
        EXEC,
        key(
            "log",
            Form::Text,
            "",
            r#""listening on""#,
            "A regular expression; the service is ready when its output matches, on either stream.",
        ),
        key("after", ANY_DURATION, "", r#""2s""#, "The service is ready when it has run for this long."),
        key(
            "interval",
            Form::Duration(SHORTEST_INTERVAL),
            r#""250ms""#,
            r#""1s""#,
            "The time between two attempts; the first ones come quicker.",
        ),
        TIMEOUT,
        key(
            "deadline",
            SOME_DURATION,
            "",
            r#""30s""#,
            "The latest time after the start; a service that is not ready by then is stopped, and its restart policy decides.",
        ),
        SUCCESSES,
    ],
    one_of: &["tcp", "http", "exec", "log", "after"],
    required: &[],
};

static HEALTH: Section = Section {
    title: "health",
    about: "A check that is repeated while a service runs: one of `tcp`, `http` and `exec`.",
    keys: &[
        TCP,
        HTTP,
        EXEC,
        key(
            "interval",
            Form::Duration(SHORTEST_INTERVAL),
            r#""30s""#,
            r#""10s""#,
            "The time between two attempts.",
        ),
        TIMEOUT,
        key(
            "failures",
            Form::Integer { least: 1, most: 1_000 },
            "3",
            "5",
            "The number of failures in a row that make the service unhealthy.",
        ),
        SUCCESSES,
        key(
            "start_period",
            ANY_DURATION,
            r#""0s""#,
            r#""20s""#,
            "The time after the start in which failures do not count.",
        ),
    ],
    one_of: &["tcp", "http", "exec"],
    required: &[],
};

static RESTART: Section = Section {
    title: "restart",
    about: "When and after what delay a service comes back.",
    keys: &[
        key(
            "policy",
            Form::OneOf(Policy::NAMES),
            r#""on-failure""#,
            r#""always""#,
            "The ends after which the service restarts.",
        ),
        key(
            "max_retries",
            Form::Integer { least: 0, most: 1_000_000 },
            "",
            "5",
            "The most restarts in a row before the service is `failed`; without it there is no limit.",
        ),
        key(
            "reset_after",
            ANY_DURATION,
            r#""60s""#,
            r#""10m""#,
            "How long the service must have been ready for earlier failures to be forgotten.",
        ),
        key(
            "backoff",
            Form::Table(&BACKOFF),
            "{}",
            r#"{ initial = "1s", max = "1m" }"#,
            "The delay before a restart, which grows from one to the next.",
        ),
        key("success_codes", Form::ExitCodes, "[0]", "[0, 3]", "The exit codes that count as a success."),
        key(
            "never_on",
            Form::Exits,
            "[]",
            r#"[2, "SIGSEGV"]"#,
            "Exits after which the service never restarts; asked first.",
        ),
        key(
            "always_on",
            Form::Exits,
            "[]",
            "[75]",
            "Exits after which the service always restarts; asked before the policy.",
        ),
    ],
    one_of: &[],
    required: &[],
};

static BACKOFF: Section = Section {
    title: "restart.backoff",
    about: "Restart n, from 0, waits `initial * factor^n`, at most `max`, spread by `jitter`.",
    keys: &[
        key("initial", ANY_DURATION, r#""100ms""#, r#""1s""#, "The delay before the first restart."),
        key("max", ANY_DURATION, r#""30s""#, r#""5m""#, "The longest delay."),
        key(
            "factor",
            Form::Number { least: 1.0, most: 1_000.0 },
            "2",
            "1.5",
            "The growth of the delay from one restart to the next.",
        ),
        key(
            "jitter",
            Form::Number { least: 0.0, most: 1.0 },
            "0.25",
            "0.1",
            "The spread of the delay: 0.25 makes it 75 % to 125 % of itself.",
        ),
    ],
    one_of: &[],
    required: &[],
};

static STOP: Section = Section {
    title: "stop",
    about: "How a service is asked to stop.",
    keys: &[
        key(
            "signal",
            Form::Signal,
            r#""SIGTERM""#,
            r#""SIGINT""#,
            "The first signal, sent to every process of the service's tree.",
        ),
        key("timeout", ANY_DURATION, r#""10s""#, r#""30s""#, "The time after which SIGKILL follows."),
        key(
            "command",
            Form::Words,
            "",
            r#"["redis-cli", "shutdown"]"#,
            "A command that asks the service to stop; the signal follows when it has ended.",
        ),
    ],
    one_of: &[],
    required: &[],
};

static ON: Section = Section {
    title: "on",
    about: "Commands that run when something happens to a service.",
    keys: &[
        key("ready", Form::Words, "", r#""./tell.sh""#, "Runs when the service became ready."),
        key(
            "fail",
            Form::Words,
            "",
            r#""./tell.sh""#,
            "Runs when the service failed and will not come back.",
        ),
        key("retry", Form::Words, "", r#""./tell.sh""#, "Runs when the service crashed and will come back."),
        key(
            "stop",
            Form::Words,
            "",
            r#""./tell.sh""#,
            "Runs when the service was stopped because somebody asked.",
        ),
        key(
            "exit",
            Form::Words,
            "",
            r#""./tell.sh""#,
            "Runs when the process and its whole tree are gone, for whatever reason.",
        ),
        key("timeout", SOME_DURATION, r#""30s""#, r#""5s""#, "The longest time that each command may take."),
    ],
    one_of: &[],
    required: &[],
};

static LOG: Section = Section {
    title: "log",
    about: "How the output of a service is kept in files.",
    keys: &[
        key(
            "file",
            Form::Text,
            "",
            r#""logs/web.log""#,
            "The file for both streams, relative to the manifest's folder; `inherit` keeps no file; without it each stream has a file in the state folder.",
        ),
        key("max_size", Form::Size, "", r#""10MiB""#, "The size from which a file is rotated (100 MiB)."),
        key(
            "max_files",
            Form::Integer { least: 1, most: MOST_FILES as i64 },
            "",
            "3",
            "The number of files to keep, with the one that is being written (5).",
        ),
        key("compress", Form::Boolean, "", "true", "Whether rotated files are compressed."),
        key(
            "owner",
            Form::Text,
            "",
            r#""adm""#,
            "The owner of the file: `user`, `user:group` or `:group`, by name or number.",
        ),
        key(
            "mode",
            Form::Octal,
            "",
            r#""640""#,
            "The permissions of the file, which let its owner read and write and nobody execute; without it nobody else may read it.",
        ),
    ],
    one_of: &[],
    required: &[],
};

static REPLICAS: Section = Section {
    title: "replicas",
    about: "The bounds within which regrow chooses the number of instances.",
    keys: &[
        key("min", Form::Integer { least: 1, most: 10_000 }, "1", "2", "The smallest number of instances."),
        key("max", Form::Integer { least: 1, most: 10_000 }, "", "4", "The largest number of instances."),
        key(
            "scale_on",
            Form::Short { plain: &Form::OneOf(&["cpu"]), sets: None, table: &SCALE_ON },
            r#""cpu""#,
            r#"{ memory = "512MiB" }"#,
            "The target for the average usage of one instance.",
        ),
    ],
    one_of: &[],
    required: &["max"],
};

static SCALE_ON: Section = Section {
    title: "replicas.scale_on",
    about: "The target for the average usage of one instance: one of `cpu` and `memory`.",
    keys: &[
        key(
            "cpu",
            Form::Integer { least: 1, most: 100_000 },
            "",
            "60",
            "The CPU of the whole process tree of an instance, in percent of one core.",
        ),
        key("memory", Form::Size, "", r#""512MiB""#, "The resident memory of an instance."),
    ],
    one_of: &["cpu", "memory"],
    required: &[],
};
