//! The data types that every other module speaks of: specs, plans, commands, events and status.
//!
//! The types have no behaviour beyond construction, comparison and printing. Nothing here reads a
//! clock, a file or the kernel; the module may not depend on any other module of the crate.

pub mod cause;
pub mod command;
pub mod digest;
pub mod event;
pub mod exit;
pub mod history;
pub mod id;
pub mod keys;
pub mod nearest;
pub mod output;
pub mod plan;
pub mod record;
pub mod sample;
#[cfg(feature = "control")]
mod schema;
pub mod spec;
pub mod stats;
pub mod status;
pub mod task;
pub mod time;
pub(crate) mod words;

pub use self::cause::StopCause;
pub use command::{Answer, Command, Denial, DenialCode, InstanceAnswer, IssuedCommand, Requester, Selector};
pub use event::{Event, Fact, GroupFact, InstanceFact, PoolFact, TreeFact};
pub use exit::{EndedBy, Exit, ExitOutcome, SpawnFailure, SpawnStage};
pub use id::{Incarnation, InstanceId, Name, NameError};
pub use output::{SourceId, Stream};
pub use plan::{Addition, Child, GroupSpec, Plan, Strategy};
pub use record::InstanceRecord;
pub use spec::{
    Backoff, Check, CheckTarget, CommandLine, Condition, Dependency, EnvSpec, HealthSpec, HookSpec, Kind,
    LogSpec, LogTarget, OnDependencyRestart, Policy, ReadySpec, ReadyTarget, RestartSpec, ServiceSpec,
    SpecRefresh, StopSpec,
};
pub use status::{Goal, Health, ServiceStatus, State, StatusReport};
pub use task::{ResourceUsage, TaskEnd, TaskId, TaskInput, TaskResult, TaskSpec, TaskState, TaskStatus};
