//! How a process ended, or why it never started.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the kernel reports the end of a process. An exit code and a signal are different things and
/// are never folded into one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// The process ended by itself with this code, 0 to 255.
    Code(i32),
    /// A signal ended the process.
    Signal {
        /// The signal's number.
        signal: i32,
        /// Whether the kernel wrote a core dump.
        core_dumped: bool,
    },
    /// The exit status is lost: the keeper, which would have received it, was killed, and the kernel
    /// (before Linux 6.15) doesn't store it.
    Unknown,
}

impl Exit {
    /// The exit of a process that ended with code 0.
    pub const SUCCESS: Exit = Exit::Code(0);
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal { signal, core_dumped } => {
                f.write_str(&signal_name(signal))?;
                if core_dumped {
                    f.write_str(" (core dumped)")?;
                }
                Ok(())
            }
            Exit::Unknown => f.write_str("an unknown exit"),
        }
    }
}

/// Whether a process ended by itself or regrow ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// The process ended without regrow asking.
    ByItself,
    /// The process ended on request, within the stop timeout.
    Gracefully,
    /// regrow had to send SIGKILL.
    ByForce,
}

/// Why regrow ended a process that should have lived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The instance did not become ready before its deadline.
    Timeout,
    /// The health check failed too often in a row.
    Health,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EndReason::Timeout => "not ready in time",
            EndReason::Health => "unhealthy",
        })
    }
}

/// The end of a process, or its failed start, as every output prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitOutcome {
    /// A process ran and ended.
    Process {
        /// The exit status from the kernel.
        exit: Exit,
        /// Whether the process ended by itself or regrow ended it.
        ended: EndedBy,
        /// Why regrow ended the process; `None` unless a deadline or a health check made it do so.
        reason: Option<EndReason>,
    },
    /// The process could not be started. Boxed because it is rare and large, and every event reserves
    /// the room for it.
    Spawn(Box<SpawnFailure>),
}

impl ExitOutcome {
    /// The exit status from the kernel; `None` when no process ran.
    pub fn exit(&self) -> Option<Exit> {
        match self {
            ExitOutcome::Process { exit, .. } => Some(*exit),
            ExitOutcome::Spawn(_) => None,
        }
    }
}

impl fmt::Display for ExitOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitOutcome::Process { exit, reason: Some(reason), .. } => {
                write!(f, "{reason}, ended with {exit}")
            }
            ExitOutcome::Process { exit, reason: None, .. } => write!(f, "{exit}"),
            ExitOutcome::Spawn(failure) => write!(f, "{failure}"),
        }
    }
}

/// The wire form of [`ExitOutcome`].
#[derive(Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
struct ExitWire {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    core_dumped: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unknown: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<EndedBy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stage: Option<SpawnStage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    errno: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    errno_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl Serialize for ExitOutcome {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut wire = ExitWire::default();
        match self {
            ExitOutcome::Process { exit, ended, reason } => {
                match *exit {
                    Exit::Code(code) => wire.code = Some(code),
                    Exit::Signal { signal, core_dumped } => {
                        wire.signal = Some(signal);
                        wire.name = Some(signal_name(signal));
                        wire.core_dumped = Some(core_dumped);
                    }
                    Exit::Unknown => wire.unknown = Some(true),
                }
                wire.ended = Some(*ended);
                wire.reason = reason.map(|r| {
                    match r {
                        EndReason::Timeout => "timeout",
                        EndReason::Health => "health",
                    }
                    .to_owned()
                });
            }
            ExitOutcome::Spawn(failure) => {
                wire.reason = Some("spawn".to_owned());
                wire.stage = Some(failure.stage);
                wire.errno = Some(failure.errno);
                wire.errno_name = Some(failure.errno_name.clone());
                wire.message = Some(failure.message.clone());
            }
        }
        wire.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ExitOutcome {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ExitOutcome, D::Error> {
        let wire = ExitWire::deserialize(deserializer)?;
        if let (Some(stage), Some(errno)) = (wire.stage, wire.errno) {
            return Ok(ExitOutcome::Spawn(Box::new(SpawnFailure {
                stage,
                errno,
                errno_name: wire.errno_name.unwrap_or_default(),
                message: wire.message.unwrap_or_default(),
            })));
        }
        let exit = match (wire.code, wire.signal) {
            (None, None) if wire.unknown == Some(true) => Exit::Unknown,
            (Some(code), None) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal { signal, core_dumped: wire.core_dumped.unwrap_or(false) },
            _ => return Err(serde::de::Error::custom("an exit has a code, a signal, or a spawn stage")),
        };
        Ok(ExitOutcome::Process {
            exit,
            ended: wire.ended.unwrap_or(EndedBy::ByItself),
            reason: match wire.reason.as_deref() {
                Some("timeout") => Some(EndReason::Timeout),
                Some("health") => Some(EndReason::Health),
                _ => None,
            },
        })
    }
}

/// The step of a start that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SpawnStage {
    /// Setting up pipes, descriptors and memory in the supervisor.
    Prepare,
    /// Making the process; the kernel refused.
    Fork,
    /// Moving the process to a session of its own.
    Session,
    /// Switching to the user and the groups of the service.
    User,
    /// Reading a secret that the environment names.
    Secret,
    /// Reading the env files of the environment.
    EnvFile,
    /// Changing to the working directory.
    Chdir,
    /// Connecting standard input, output and error.
    Stdio,
    /// Finding or running the program.
    Exec,
}

impl fmt::Display for SpawnStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SpawnStage::Prepare => "prepare",
            SpawnStage::Fork => "fork",
            SpawnStage::Session => "session",
            SpawnStage::User => "user",
            SpawnStage::Secret => "secret",
            SpawnStage::EnvFile => "env_file",
            SpawnStage::Chdir => "chdir",
            SpawnStage::Stdio => "stdio",
            SpawnStage::Exec => "exec",
        })
    }
}

/// A start that failed before the program ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct SpawnFailure {
    /// The step that failed.
    pub stage: SpawnStage,
    /// The kernel's error number; 0 where the failure has none.
    pub errno: i32,
    /// The name of the error, such as `ENOENT`; empty where there is none.
    pub errno_name: String,
    /// The failure in words for a person, with the name of the file.
    pub message: String,
}

impl SpawnFailure {
    /// Whether another try can succeed without any change. Shortages can pass (fork's EAGAIN and
    /// ENOMEM, descriptors); a missing program can't appear.
    pub fn is_transient(&self) -> bool {
        match self.stage {
            SpawnStage::Prepare | SpawnStage::Fork => true,
            // A program may be in the middle of writing an env file.
            SpawnStage::EnvFile => true,
            SpawnStage::Session
            | SpawnStage::Secret
            | SpawnStage::User
            | SpawnStage::Chdir
            | SpawnStage::Stdio
            | SpawnStage::Exec => {
                // EINTR, EAGAIN, ENOMEM, EBUSY, ENFILE, EMFILE, ETXTBSY on Linux.
                matches!(self.errno, 4 | 11 | 12 | 16 | 23 | 24 | 26)
            }
        }
    }
}

impl fmt::Display for SpawnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno_name.as_str() {
            "" => write!(f, "{} ({} failed)", self.message, self.stage),
            errno => write!(f, "{} ({} failed: {errno})", self.message, self.stage),
        }
    }
}

/// The name of a signal: `SIGKILL` for 9, `SIGRTMIN+n` for real-time signals.
pub fn signal_name(signal: i32) -> String {
    SIGNALS.iter().find(|(_, number)| *number == signal).map(|(name, _)| (*name).to_owned()).unwrap_or_else(
        || if signal >= 34 { format!("SIGRTMIN+{}", signal - 34) } else { format!("signal {signal}") },
    )
}

/// The number of a signal given as `SIGTERM`, `TERM` or `15`; `None` when no such signal exists.
pub fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let offset = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse::<i32>().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    SIGNALS.iter().find(|(known, _)| &known[3..] == name).map(|(_, number)| *number)
}

/// The names of Linux's signals on the architectures regrow builds for (x86, Arm, RISC-V).
const SIGNALS: &[(&str, i32)] = &[
    ("SIGHUP", 1),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGILL", 4),
    ("SIGTRAP", 5),
    ("SIGABRT", 6),
    ("SIGBUS", 7),
    ("SIGFPE", 8),
    ("SIGKILL", 9),
    ("SIGUSR1", 10),
    ("SIGSEGV", 11),
    ("SIGUSR2", 12),
    ("SIGPIPE", 13),
    ("SIGALRM", 14),
    ("SIGTERM", 15),
    ("SIGSTKFLT", 16),
    ("SIGCHLD", 17),
    ("SIGCONT", 18),
    ("SIGSTOP", 19),
    ("SIGTSTP", 20),
    ("SIGTTIN", 21),
    ("SIGTTOU", 22),
    ("SIGURG", 23),
    ("SIGXCPU", 24),
    ("SIGXFSZ", 25),
    ("SIGVTALRM", 26),
    ("SIGPROF", 27),
    ("SIGWINCH", 28),
    ("SIGIO", 29),
    ("SIGPWR", 30),
    ("SIGSYS", 31),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_137_and_sigkill_read_differently() {
        let code = ExitOutcome::Process { exit: Exit::Code(137), ended: EndedBy::ByItself, reason: None };
        let killed = ExitOutcome::Process {
            exit: Exit::Signal { signal: 9, core_dumped: false },
            ended: EndedBy::ByItself,
            reason: None,
        };
        assert_eq!(code.to_string(), "exit code 137");
        assert_eq!(killed.to_string(), "SIGKILL");
        assert_eq!(serde_json::to_string(&code).unwrap(), r#"{"code":137,"ended":"by_itself"}"#);
        assert_eq!(
            serde_json::to_string(&killed).unwrap(),
            r#"{"signal":9,"name":"SIGKILL","core_dumped":false,"ended":"by_itself"}"#
        );
    }

    #[test]
    fn outcomes_survive_the_wire() {
        for outcome in [
            ExitOutcome::Process { exit: Exit::Code(3), ended: EndedBy::Gracefully, reason: None },
            ExitOutcome::Process { exit: Exit::Unknown, ended: EndedBy::ByItself, reason: None },
            ExitOutcome::Process {
                exit: Exit::Signal { signal: 6, core_dumped: true },
                ended: EndedBy::ByForce,
                reason: Some(EndReason::Health),
            },
            ExitOutcome::Spawn(Box::new(SpawnFailure {
                stage: SpawnStage::Exec,
                errno: 2,
                errno_name: "ENOENT".into(),
                message: "no program".into(),
            })),
        ] {
            let text = serde_json::to_string(&outcome).unwrap();
            assert_eq!(serde_json::from_str::<ExitOutcome>(&text).unwrap(), outcome, "{text}");
        }
    }

    #[test]
    fn signals_by_name_and_number() {
        for (text, want) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGNOPE", None),
            ("0", None),
            ("65", None),
        ] {
            assert_eq!(signal_number(text), want, "{text}");
        }
    }
}
