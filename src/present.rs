//! How events, states, durations and sizes are put into words: once, for everything that shows them.
//!
//! The room knows only `model`, so that a decision may use the same words in its reasons as a screen does.
//! Deliberately absent: colours, tables and terminals, which each screen has for itself.

mod events;
pub mod machine;
pub mod units;

pub use events::fact_in_words;
