//! Ids that nobody else gives: from the clock and from chance.

use crate::model::TaskId;

/// The next task's: later than all before it in this process.
pub fn task() -> TaskId {
    TaskId(uuid::Uuid::now_v7())
}
