//! What each verb does, a file for a verb or a family: `run` and `daemon` have rooms of their own.

pub(super) mod admin;
pub(super) mod control;
pub(super) mod down;
pub(super) mod events;
pub(super) mod init;
pub(super) mod logs;
pub(super) mod ls;
pub(super) mod plan;
pub(super) mod replay;
pub(super) mod resources;
pub(super) mod secret;
pub(super) mod service;
pub(super) mod stats;
pub(super) mod status;
pub(super) mod task;
pub(super) mod token;
pub(super) mod wait;
pub(super) mod why;
