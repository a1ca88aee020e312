//! What happens to a group.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::plan::GiveUp;
use crate::model::time::seconds;
use crate::model::{Name, Strategy};

/// A fact about a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum GroupFact {
    /// A group restarts several of its members.
    #[serde(rename = "group_restarting")]
    Restarting {
        /// The group; `None` for the root.
        group: Option<Name>,
        /// The restart strategy of the group.
        strategy: Strategy,
        /// The name of the member whose crash the group answers.
        fallen: String,
        /// The members that are stopped, in that order.
        stopping: Vec<String>,
        /// The members that are then started, in that order.
        starting: Vec<String>,
    },
    /// A group shuts down, because significant members have ended by themselves.
    #[serde(rename = "group_shut_down")]
    ShutDown {
        /// The group; `None` for the root.
        group: Option<Name>,
        /// The name of the member whose end the group answers.
        ended: String,
    },
    /// A group exceeded its restart limit.
    #[serde(rename = "group_gave_up")]
    GaveUp {
        /// The group; `None` for the root.
        group: Option<Name>,
        /// The number of restarts within the period.
        restarts: u32,
        /// The period in which restarts are counted, in seconds.
        #[serde(rename = "period_s", with = "seconds")]
        #[cfg_attr(feature = "control", schemars(with = "f64"))]
        period: Duration,
        /// What follows when the group gives up.
        then: GiveUp,
    },
}
