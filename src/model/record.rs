//! What is known of an instance from an earlier life of its supervisor.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::cause::{FailureReason, StopCause};
use super::exit::ExitOutcome;
use super::id::{Incarnation, InstanceId};
use super::status::{Goal, State};
use super::time::{opt_seconds, rfc3339};

/// How an instance stood when its supervisor ended, by whatever.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct InstanceRecord {
    /// Whose.
    pub instance: InstanceId,
    /// What the user wanted of it; the end of a supervisor changes nothing about that.
    pub goal: Goal,
    /// How it stood.
    pub state: State,
    /// Whether it was ready; of one that was paused, whether it is when it goes on.
    pub ready: bool,
    /// Its current or last process.
    pub incarnation: Incarnation,
    /// Returns that nobody asked for.
    pub restarts: u64,
    /// The same in a row, for `max_retries` and the backoff.
    pub attempts: u32,
    /// Its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When its process was made, since the tree came up; of this boot.
    #[serde(rename = "started_s", with = "opt_seconds", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "control", schemars(with = "Option<f64>"))]
    pub started: Option<Duration>,
    /// When it was to come back, by the same clock.
    #[serde(rename = "retry_at_s", with = "opt_seconds", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "control", schemars(with = "Option<f64>"))]
    pub retry_at: Option<Duration>,
    /// When it came into its state.
    #[serde(with = "rfc3339")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub since: SystemTime,
    /// How its last process ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitOutcome>,
    /// Why it had failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<FailureReason>,
    /// Why it was last stopped, or is being.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_for: Option<StopCause>,
    /// What its process was made with ([`ServiceSpec::spawn_fingerprint`](super::spec::ServiceSpec::makings)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spawn_fingerprint: Option<u32>,
    /// What is wrong with where its output is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

impl InstanceRecord {
    /// Of one that has never run.
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
