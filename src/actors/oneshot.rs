//! One-shot commands beside a service: an attempt of a check, or a hook. Each has a time limit, and
//! processes that it leaves behind are killed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::host::{Host, HostEvent, HostEventSink, OutputTarget, ProcessKey, SpawnOrder, env};
use crate::model::{CommandLine, Exit};

/// A command to run once.
pub(super) struct Oneshot<'a> {
    pub(super) host: &'a Arc<dyn Host>,
    pub(super) dir: &'a Path,
    pub(super) env: &'a env::EnvRecipe,
    pub(super) command: &'a CommandLine,
    pub(super) output: OutputTarget,
}

/// The result of the command.
pub(super) enum Outcome {
    /// The command ended. The bytes are its captured output.
    Ended(Exit, Vec<u8>),
    /// The command could not be started, for this reason.
    Unable(String),
    /// The command did not end in time.
    TimedOut,
}

impl Oneshot<'_> {
    /// Runs the command to its end. Dropping the future kills it.
    pub(super) async fn run(self, limit: Duration) -> Outcome {
        let (told, mut hear) = tokio::sync::mpsc::unbounded_channel();
        let key = self.host.next_key();
        let host = Arc::clone(self.host);
        let news: HostEventSink = Arc::new(move |news| {
            let made = matches!(news, HostEvent::Spawned { .. });
            // The process was made after the run was given up: nobody else would end it.
            if told.send(news).is_err() && made {
                host.kill(key);
            }
        });
        let mut guard = KillOnDrop { host: self.host, key: Some(key) };
        self.host.spawn(SpawnOrder {
            key,
            argv: self.command.argv.clone(),
            dir: self.dir.to_owned(),
            env: self.env.clone(),
            input: None,
            extra: None,
            output: self.output,
            owner: None,
            keep: None,
            news,
        });
        let ended = async {
            loop {
                match hear.recv().await {
                    Some(HostEvent::Exited { exit, captured, .. }) => return Outcome::Ended(exit, captured),
                    Some(HostEvent::SpawnFailed { failure, .. }) => {
                        return Outcome::Unable(failure.to_string());
                    }
                    Some(
                        HostEvent::Renewed { .. }
                        | HostEvent::Spawned { .. }
                        | HostEvent::LogMatched { .. }
                        | HostEvent::Paused { .. }
                        | HostEvent::TreeGone { .. }
                        | HostEvent::KeptElsewhere { .. }
                        | HostEvent::ForksAway { .. }
                        | HostEvent::LostSight { .. }
                        | HostEvent::Unkept { .. },
                    ) => {}
                    None => return Outcome::Unable("the host is gone".to_owned()),
                }
            }
        };
        let outcome = tokio::time::timeout(limit, ended).await.unwrap_or(Outcome::TimedOut);
        if matches!(outcome, Outcome::Unable(_)) {
            guard.key = None;
        }
        outcome
    }
}

struct KillOnDrop<'a> {
    host: &'a Arc<dyn Host>,
    key: Option<ProcessKey>,
}

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        // This also applies after a normal end: processes that the command left behind are killed.
        if let Some(key) = self.key {
            self.host.kill(key);
        }
    }
}
