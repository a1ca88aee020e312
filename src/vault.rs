//! What is kept secret: the encrypted values of services' environments, and the API's tokens.
//!
//! Both are files that only their owner can read, written whole and renamed into place. The room
//! may use `sys`. Deliberately absent: who may read a secret, which `decide::access` says.

pub mod secrets;
#[cfg(feature = "control")]
pub mod tokens;
