//! What happens to a pool of workers.

use serde::{Deserialize, Serialize};

use crate::model::Name;

/// A fact about a worker pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PoolFact {
    /// A worker pool is to have another number of workers from now on.
    #[serde(rename = "pool_scaled")]
    Scaled {
        /// The name of the pool; `None` for the tree's own pool.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pool: Option<Name>,
        /// The number of workers that the pool was to have.
        from: u32,
        /// The number of workers that the pool is to have.
        to: u32,
        /// Why the number changes, in words.
        reason: String,
    },
}
