//! What regrow tells about itself, beside events: how much of it, and in what form.

use serde::Deserialize;

use crate::model::words::words;

/// What regrow tells about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiagnosticsConfig {
    /// The least important lines that are told.
    pub level: LogLevel,
    /// The form of the lines.
    pub format: LogFormat,
}

/// The least important lines that are told, as `tracing` orders them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What is lost or can't be done.
    Error,
    /// What works only in part, too.
    #[default]
    Warn,
    /// Starts, stops, requests and tasks with their durations, too.
    Info,
    /// Details that help to find a fault, too.
    Debug,
    /// Everything.
    Trace,
}

words!(LogLevel {
    Off = "off",
    Error = "error",
    Warn = "warn",
    Info = "info",
    Debug = "debug",
    Trace = "trace",
});

/// The form of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object on each line.
    Json,
}

words!(LogFormat { Text = "text", Json = "json" });
