//! The record of an instance that an earlier supervisor left.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::cause::{FailureReason, StopCause};
use super::exit::ExitOutcome;
use super::id::{Incarnation, InstanceId};
use super::status::{Goal, State};
use super::time::{opt_seconds, rfc3339};

/// The last known status of an instance when its supervisor ended, for whatever reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct InstanceRecord {
    /// The instance that the record describes.
    pub instance: InstanceId,
    /// What the user wanted of the instance; the end of a supervisor doesn't change that.
    pub goal: Goal,
    /// The state of the instance at that time.
    pub state: State,
    /// Whether the instance was ready; of a paused one, whether it is ready again once it resumes.
    pub ready: bool,
    /// The number of the current or last process.
    pub incarnation: Incarnation,
    /// How often the restart policy or the group restarted the instance.
    pub restarts: u64,
    /// The number of restarts in a row, for `max_retries` and the backoff.
    pub attempts: u32,
    /// The pid of the process, while one runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When the process was started, counted from the start of the tree, within the present boot.
    #[serde(rename = "started_s", with = "opt_seconds", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "control", schemars(with = "Option<f64>"))]
    pub started: Option<Duration>,
    /// When the next restart was due, by the same clock.
    #[serde(rename = "retry_at_s", with = "opt_seconds", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "control", schemars(with = "Option<f64>"))]
    pub retry_at: Option<Duration>,
    /// The time at which the instance entered its state.
    #[serde(with = "rfc3339")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub since: SystemTime,
    /// How the last process ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitOutcome>,
    /// Why the instance failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<FailureReason>,
    /// Why the instance was last stopped, or is being stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_for: Option<StopCause>,
    /// The fingerprint that the process was started with
    /// ([`ServiceSpec::spawn_fingerprint`](super::spec::ServiceSpec::spawn_fingerprint)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spawn_fingerprint: Option<u32>,
    /// What is wrong with the files that keep the output; `None` when nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

impl InstanceRecord {
    /// The record of an instance that has never run.
    pub fn new(instance: InstanceId, now: SystemTime) -> InstanceRecord {
        InstanceRecord {
            instance,
            goal: Goal::Down,
            state: State::Registered,
            ready: false,
            incarnation: Incarnation(0),
            restarts: 0,
            attempts: 0,
            pid: None,
            started: None,
            retry_at: None,
            since: now,
            exit: None,
            failed: None,
            stopped_for: None,
            spawn_fingerprint: None,
            output: None,
        }
    }
}
