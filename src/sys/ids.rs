//! Ids that nobody else gives, made from the clock and random bits.

use crate::model::TaskId;

/// The next task's id. It sorts after all earlier ones of this process.
pub fn task() -> TaskId {
    TaskId(uuid::Uuid::now_v7())
}
