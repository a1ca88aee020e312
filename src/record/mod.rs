//! Sinks of what happens and of what is printed. Log files and the store come here later.

pub mod output;
pub mod recording;
