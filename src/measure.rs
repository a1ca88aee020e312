//! What is measured: the machine as a whole, and each managed tree of processes.
//!
//! The room reads `/proc` and `/sys` by way of `sys`, and remembers what it read last, since rates are
//! differences. Deliberately absent: when to measure, and what follows from a measurement.

pub(crate) mod machine;
pub mod sample;
