//! One run of a command beside a service: an attempt of a check, or a hook. It has a time
//! limit, and whatever it leaves behind is ended with it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::host::{Host, HostEvent, HostEventSink, OutputTarget, ProcessKey, SpawnOrder, env};
use crate::model::{CommandLine, Exit};

/// What is to be run.
pub(super) struct Oneshot<'a> {
    pub(super) host: &'a Arc<dyn Host>,
    pub(super) dir: &'a Path,
    pub(super) env: &'a env::EnvRecipe,
    pub(super) command: &'a CommandLine,
    pub(super) output: OutputTarget,
}

/// What became of it.
pub(super) enum Outcome {
    /// It ended; with what was captured.
    Ended(Exit, Vec<u8>),
    /// It could not be started, in words.
    Unable(String),
    /// It did not end in time.
    TimedOut,
}

impl Oneshot<'_> {
    /// Runs it to its end. When this is dropped half way, it is killed.
    pub(super) async fn run(self, limit: Duration) -> Outcome {
        let (told, mut hear) = tokio::sync::mpsc::unbounded_channel();
        let key = self.host.next_key();
        let host = Arc::clone(self.host);
        let news: HostEventSink = Arc::new(move |news| {
            let made = matches!(news, HostEvent::Spawned { .. });
            // Made for one that was given up meanwhile: nobody else would end it.
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
        // Also after an orderly end: what the command left behind goes with it.
        if let Some(key) = self.key {
            self.host.kill(key);
        }
    }
}
