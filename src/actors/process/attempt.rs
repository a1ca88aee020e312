//! One attempt of a check, and the environment of what an instance runs beside itself.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::actors::ActorContext;
use crate::actors::oneshot::{self, Oneshot};
use crate::decide::probe::{CheckOutcome, one_line};
use crate::host::{Host, OutputTarget, env};
use crate::model::{CommandLine, Exit, InstanceId, ServiceSpec};

/// How many bytes of a check command's output are kept for its message.
pub(super) const CHECK_OUTPUT: usize = 2_000;

/// Runs one attempt of a check command.
pub(super) async fn attempt(
    host: &Arc<dyn Host>,
    dir: &Path,
    env: &env::EnvRecipe,
    command: &CommandLine,
    limit: Duration,
) -> CheckOutcome {
    let errand = Oneshot { host, dir, env, command, output: OutputTarget::Capture(CHECK_OUTPUT) };
    match errand.run(limit).await {
        oneshot::Outcome::Ended(Exit::SUCCESS, _) => CheckOutcome::Pass,
        oneshot::Outcome::Ended(exit, captured) => {
            let text = one_line(&captured);
            let text = if text.is_empty() { text } else { format!(": {text}") };
            CheckOutcome::Fail(format!("{command} ended with {exit}{text}"))
        }
        oneshot::Outcome::Unable(reason) => CheckOutcome::Unable(format!("{command}: {reason}")),
        oneshot::Outcome::TimedOut => CheckOutcome::Fail(format!("{command} did not end within {limit:?}")),
    }
}

/// The environment of a process of an instance.
pub(super) fn environment(
    context: &ActorContext,
    spec: &Arc<ServiceSpec>,
    id: &InstanceId,
    pid: Option<u32>,
) -> env::EnvRecipe {
    let mut given = vec![("REGROW_SERVICE", spec.name.short().to_owned()), ("REGROW_INSTANCE", id.short())];
    given.extend(spec.project.iter().map(|project| ("REGROW_PROJECT", project.clone())));
    given.extend(context.socket.as_ref().map(|path| ("REGROW_SOCKET", path.to_string_lossy().into_owned())));
    given.extend(pid.map(|pid| ("REGROW_PID", pid.to_string())));
    let (inherited, vault) = (Arc::clone(&context.inherited), Arc::clone(&context.vault));
    env::EnvRecipe { inherited, of: env::EnvFor::Service(Arc::clone(spec)), given, vault }
}
