//! Hooks: commands that are run beside everything else when something has happened to an instance. They
//! hold nothing up, but the end of the tree waits for them.
//!
//! A service that is restarted many times a second would otherwise have as many hooks at work as it had
//! restarts while the slowest of them ran: so few run at once, of one instance and in all, few wait, and
//! that some were left out is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::ActorContext;
use super::oneshot::{Oneshot, Outcome};
use crate::host::{OutputTarget, env};
use crate::model::exit::signal_name;
use crate::model::spec::Hook;
use crate::model::{CommandLine, Exit, Fact, InstanceId};

/// So many hooks run at once in a tree.
pub(crate) const IN_ALL: usize = 32;
/// And of one instance.
const OF_AN_INSTANCE: usize = 4;
/// So many hooks of an instance are at work or wait for it; more are left out.
const KEPT: usize = 16;

/// The hooks of one instance.
pub(crate) struct InstanceHooks {
    turns: Arc<Semaphore>,
    kept: AtomicUsize,
    /// That some were left out has been told, since when none was taken.
    told: AtomicBool,
}

impl Default for InstanceHooks {
    fn default() -> InstanceHooks {
        InstanceHooks {
            turns: Arc::new(Semaphore::new(OF_AN_INSTANCE)),
            kept: AtomicUsize::new(0),
            told: AtomicBool::new(false),
        }
    }
}

/// A hook that runs or waits for its turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingHook {
    /// For people: "the stop hook of web".
    pub name: String,
    instance: InstanceId,
    limit: Duration,
}

/// How long these may take at most, all of them, as few as run at once.
pub(crate) fn longest(kept: &[PendingHook]) -> Duration {
    let turns = |count: usize, at_once: usize| u32::try_from(count.div_ceil(at_once)).unwrap_or(u32::MAX);
    let of_one = kept.iter().map(|hook| {
        let same = kept.iter().filter(|other| other.instance == hook.instance);
        let limit = same.clone().map(|other| other.limit).max().unwrap_or_default();
        limit.saturating_mul(turns(same.count(), OF_AN_INSTANCE))
    });
    let slowest = kept.iter().map(|hook| hook.limit).max().unwrap_or_default();
    let for_others = slowest.saturating_mul(turns(kept.len(), IN_ALL).saturating_sub(1));
    of_one.max().unwrap_or_default().saturating_add(for_others)
}

/// One hook that is to be run.
pub(crate) struct HookRun<'a> {
    pub(crate) instance: &'a InstanceId,
    pub(crate) hook: Hook,
    pub(crate) command: &'a CommandLine,
    pub(crate) fact: &'a Fact,
    /// From its start on.
    pub(crate) limit: Duration,
    pub(crate) dir: std::path::PathBuf,
    pub(crate) env: env::EnvRecipe,
    pub(crate) output: OutputTarget,
}

impl InstanceHooks {
    /// Runs one when its turn comes. It is not the service's: a stop does not end it.
    pub(crate) fn run(self: &Arc<InstanceHooks>, context: &Arc<ActorContext>, run: HookRun<'_>) {
        let HookRun { instance, hook, command, fact, limit, dir, mut env, output } = run;
        let (id, command) = (instance.clone(), command.clone());
        if self.kept.load(Ordering::Relaxed) >= KEPT {
            if !self.told.swap(true, Ordering::Relaxed) {
                let message = format!(
                    "{command} was not run: {KEPT} hooks of {id} are at work or wait already; \
                     others may be left out too"
                );
                let told = Arc::clone(context);
                // Not within the step that told of what happened.
                tokio::spawn(async move {
                    told.log.append([Fact::HookFailed { instance: id, hook, message }]);
                });
            }
            return;
        }
        self.kept.fetch_add(1, Ordering::Relaxed);
        env.given.extend(hook_variables(hook, fact));
        let name = format!("the {hook} hook of {id}");
        let kept = PendingHook { name, instance: id.clone(), limit };
        context.hooks.send_modify(|all| all.push(kept.clone()));
        let mut killed = context.no_hooks.subscribe();
        let (context, mine) = (Arc::clone(context), Arc::clone(self));
        tokio::spawn(async move {
            let _running = Running { context: &context, of: &mine, kept };
            let errand = Oneshot { host: &context.host, dir: &dir, env: &env, command: &command, output };
            let in_turn = async {
                // Neither is ever closed.
                let _mine = mine.turns.acquire().await;
                let _one = context.hook_turns.acquire().await;
                errand.run(limit).await
            };
            let outcome = tokio::select! {
                outcome = in_turn => outcome,
                // Dropped half way, it is killed.
                _ = killed.wait_for(|killed| *killed) => return,
            };
            let message = match outcome {
                Outcome::Ended(Exit::SUCCESS, _) => return,
                Outcome::Ended(exit, _) => format!("{command} ended with {exit}"),
                Outcome::Unable(reason) => format!("{command}: {reason}"),
                Outcome::TimedOut => format!("{command} did not end within {limit:?}"),
            };
            context.log.append([Fact::HookFailed { instance: id, hook, message }]);
        });
    }
}

/// Lists a hook while it runs or waits.
struct Running<'a> {
    context: &'a ActorContext,
    of: &'a InstanceHooks,
    kept: PendingHook,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.of.kept.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.of.told.store(false, Ordering::Relaxed);
        }
        self.context.hooks.send_modify(|all| {
            if let Some(at) = all.iter().position(|kept| *kept == self.kept) {
                all.remove(at);
            }
        });
    }
}

/// What a hook is told of the event, beside what every process of the service gets.
fn hook_variables(hook: Hook, fact: &Fact) -> Vec<(&'static str, String)> {
    let mut given = vec![("REGROW_EVENT", hook.to_string())];
    let exit = match fact {
        Fact::Exited { exit, .. } => Some(exit),
        Fact::Crashed { exit, retry_in, attempt, .. } => {
            given.push(("REGROW_RETRY_IN", retry_in.as_secs_f64().to_string()));
            given.push(("REGROW_ATTEMPT", attempt.to_string()));
            Some(exit)
        }
        Fact::Failed { why, .. } => {
            given.push(("REGROW_REASON", why.to_string()));
            why.exit()
        }
        _ => None,
    };
    if let Some(exit) = exit {
        given.push(("REGROW_EXIT", exit.to_string()));
        match exit.exit() {
            Some(Exit::Code(code)) => given.push(("REGROW_EXIT_CODE", code.to_string())),
            Some(Exit::Signal { signal, .. }) => given.push(("REGROW_EXIT_SIGNAL", signal_name(signal))),
            Some(Exit::Unknown) | None => {}
        }
    }
    given
}
