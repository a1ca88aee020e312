//! Hooks: commands that run when something has happened to an instance. Nothing waits for them
//! except the end of the tree.
//!
//! A service that restarts many times a second could otherwise pile up hooks while the slowest of
//! them runs. So the number of running hooks is limited per instance and per tree, the number of
//! waiting ones is limited too, and the log says when hooks were left out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::ActorContext;
use super::oneshot::{Oneshot, Outcome};
use crate::host::{OutputTarget, env};
use crate::model::event::InstanceFact;
use crate::model::exit::signal_name;
use crate::model::spec::Hook;
use crate::model::{CommandLine, Exit, Fact, InstanceId};

/// How many hooks run at once in a tree.
pub(crate) const IN_ALL: usize = 32;
/// How many hooks of one instance run at once.
const OF_AN_INSTANCE: usize = 4;
/// How many hooks of one instance may run or wait. Further ones are left out.
const KEPT: usize = 16;

/// The hooks of one instance.
pub(crate) struct InstanceHooks {
    turns: Arc<Semaphore>,
    kept: AtomicUsize,
    /// Whether a hook was reported as left out, since the instance last had none running or waiting.
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
    /// A description for people: "the stop hook of web".
    pub name: String,
    instance: InstanceId,
    limit: Duration,
}

/// How long these hooks may take at most, given how many run at once.
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

/// A hook to run.
pub(crate) struct HookRun<'a> {
    pub(crate) instance: &'a InstanceId,
    pub(crate) hook: Hook,
    pub(crate) command: &'a CommandLine,
    pub(crate) fact: &'a Fact,
    /// The time limit, from the start of the command on.
    pub(crate) limit: Duration,
    pub(crate) dir: std::path::PathBuf,
    pub(crate) env: env::EnvRecipe,
    pub(crate) output: OutputTarget,
}

impl InstanceHooks {
    /// Runs a hook when its turn comes. The hook is no part of the service: a stop does not end it.
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
                // The report is appended later, since the step that caused it is still under way.
                tokio::spawn(async move {
                    told.log.append([Fact::Instance(InstanceFact::HookFailed {
                        instance: id,
                        hook,
                        message,
                    })]);
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
                // Neither semaphore is ever closed.
                let _mine = mine.turns.acquire().await;
                let _one = context.hook_turns.acquire().await;
                errand.run(limit).await
            };
            let outcome = tokio::select! {
                outcome = in_turn => outcome,
                // Dropping the unfinished run kills the command.
                _ = killed.wait_for(|killed| *killed) => return,
            };
            let message = match outcome {
                Outcome::Ended(Exit::SUCCESS, _) => return,
                Outcome::Ended(exit, _) => format!("{command} ended with {exit}"),
                Outcome::Unable(reason) => format!("{command}: {reason}"),
                Outcome::TimedOut => format!("{command} did not end within {limit:?}"),
            };
            context.log.append([Fact::Instance(InstanceFact::HookFailed { instance: id, hook, message })]);
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

/// The variables that tell a hook about the event, in addition to the service's own environment.
fn hook_variables(hook: Hook, fact: &Fact) -> Vec<(&'static str, String)> {
    let mut given = vec![("REGROW_EVENT", hook.to_string())];
    let exit = match fact {
        Fact::Instance(InstanceFact::Exited { exit, .. }) => Some(exit),
        Fact::Instance(InstanceFact::Crashed { exit, retry_in, attempt, .. }) => {
            given.push(("REGROW_RETRY_IN", retry_in.as_secs_f64().to_string()));
            given.push(("REGROW_ATTEMPT", attempt.to_string()));
            Some(exit)
        }
        Fact::Instance(InstanceFact::Failed { why, .. }) => {
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
