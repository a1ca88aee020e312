//! Secrets: the encrypted values for services' environments, and the tokens of the network API.
//!
//! Both are files that only their owner can read. Every change writes a new file and renames it
//! into place. Uses `sys` for the files. Deliberately absent: the decision who may read a secret,
//! which is made in `decide::access`.

pub mod secrets;
#[cfg(feature = "control")]
pub mod tokens;
