//! The Scaler: it resizes the worker pool, by each sample of the machine or by hand, and changes
//! the number of copies of services whose `replicas` has bounds (`copies`). No other actor does either.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use copies::Copies;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{oneshot, watch};

use super::messages::SupervisorMsg;
use super::system::Registered;
use super::worker_pool::{PoolMsg, ScalingMode};
use super::{ActorContext, tell};
use crate::decide::pool::{PoolCounts, PoolInput};
use crate::decide::scaler::{PoolObservation, ScalePolicy, ScaleStep, decide};
use crate::model::event::PoolFact;
use crate::model::sample::Sample;
use crate::model::stats::ScalerStats;
use crate::model::{Answer, Denial, Fact, Name};

/// A message to the Scaler.
pub enum ScalerMsg {
    /// A new sample of the machine exists.
    Sampled,
    /// The answer to the request for another number of copies of a service, with the old and the new
    /// number.
    Scaled(Name, (u32, u32), Result<Answer, Denial>),
    /// The state of the pool, with the sample that it is to be judged by.
    Looked(PoolCounts, Arc<Sample>),
    /// Changes the bounds or the mode. Answered when the pool has them.
    Set(PoolSettings, oneshot::Sender<()>),
    /// Sets the number of workers by hand. Answered when the pool has it.
    Scale(u32, oneshot::Sender<()>),
    /// The pool is another one, which has the bounds of the configuration.
    PoolIsNew,
    /// Asks for the Scaler's state and policy.
    Stand(oneshot::Sender<(ScalerStats, ScalePolicy)>),
}

/// Changes to a pool's settings. A `None` leaves the setting as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolSettings {
    /// The smallest number of workers.
    pub min: Option<u32>,
    /// The largest number of workers.
    pub max: Option<u32>,
    /// Whether the pool scales by itself.
    pub auto: Option<bool>,
}

#[derive(Default)]
pub(crate) struct Scaler;

pub(crate) struct ScalerArgs {
    pub(crate) context: Arc<ActorContext>,
    /// The name of the pool. `None`: it is the tree's own pool.
    pub(crate) name: Option<Name>,
    pub(crate) pool: Registered<PoolMsg>,
    /// The root supervisor, for the Scaler that also scales services. Of several Scalers only one gets
    /// it.
    pub(crate) root: Option<ActorRef<SupervisorMsg>>,
    /// What is to hold, which outlives a Scaler that breaks.
    pub(crate) settings: ScalerSettings,
    pub(crate) samples: watch::Receiver<Option<Arc<Sample>>>,
}

/// The policy and the mode that were set last. The Scaler alone changes them.
pub(crate) type ScalerSettings = Arc<Mutex<(ScalePolicy, ScalingMode)>>;

pub(crate) struct ScalerState {
    context: Arc<ActorContext>,
    name: Option<Name>,
    pool: Registered<PoolMsg>,
    /// The services to scale. Of several Scalers only one has them.
    copies: Option<Copies>,
    settings: ScalerSettings,
    policy: ScalePolicy,
    samples: watch::Receiver<Option<Arc<Sample>>>,
    mode: ScalingMode,
    stepped: Option<Duration>,
    last: Option<String>,
}

impl Actor for Scaler {
    type Msg = ScalerMsg;
    type State = ScalerState;
    type Arguments = ScalerArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<ScalerMsg>,
        args: ScalerArgs,
    ) -> Result<ScalerState, ActorProcessingErr> {
        let ScalerArgs { context, name, pool, root, settings, samples } = args;
        let (policy, mode) = *settings.lock().unwrap_or_else(PoisonError::into_inner);
        let copies = root.map(|root| Copies::new(Arc::clone(&context), root));
        let mut news = samples.clone();
        // The task ends with the monitor or with this actor.
        tokio::spawn(async move {
            while news.changed().await.is_ok() && myself.cast(ScalerMsg::Sampled).is_ok() {}
        });
        let (stepped, last) = (None, None);
        Ok(ScalerState { context, name, pool, copies, settings, policy, samples, mode, stepped, last })
    }

    async fn handle(
        &self,
        myself: ActorRef<ScalerMsg>,
        message: ScalerMsg,
        state: &mut ScalerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ScalerMsg::Sampled => {
                let Some(sample) = state.samples.borrow().clone() else {
                    return Ok(());
                };
                let (answer, answered) = oneshot::channel();
                let _ = state.pool.send(PoolMsg::Stand(answer));
                if let Some(copies) = &mut state.copies {
                    copies.look(&myself, &state.policy, &sample);
                }
                // The pool's answer comes back as a message.
                tokio::spawn(async move {
                    if let Ok(snapshot) = answered.await {
                        tell(&myself, ScalerMsg::Looked(snapshot.snapshot, sample));
                    }
                });
            }
            ScalerMsg::Scaled(service, step, answer) => {
                if let Some(copies) = &mut state.copies {
                    copies.hear(service, step, answer);
                }
            }
            ScalerMsg::Looked(snapshot, sample) => state.look(snapshot, &sample),
            ScalerMsg::Set(bounds, answer) => {
                let ScalePolicy { min, max, .. } = &mut state.policy;
                (*min, *max) = (bounds.min.unwrap_or(*min), bounds.max.unwrap_or(*max));
                let input = PoolInput::Bounds(*min, *max);
                if let Some(auto) = bounds.auto {
                    state.mode = if auto { ScalingMode::Auto } else { ScalingMode::ByHand };
                }
                state.directive(input, answer);
            }
            ScalerMsg::Scale(workers, answer) => {
                // A number that was set by hand is meant to stay.
                state.mode = ScalingMode::ByHand;
                state.directive(PoolInput::Scale(workers), answer);
            }
            ScalerMsg::PoolIsNew => {
                let ScalePolicy { min, max, .. } = state.policy;
                let (answer, _) = oneshot::channel();
                let _ = state.pool.send(PoolMsg::Directive(PoolInput::Bounds(min, max), answer));
            }
            ScalerMsg::Stand(answer) => {
                let auto = state.mode == ScalingMode::Auto;
                let services = state.copies.as_ref().map(Copies::stats).unwrap_or_default();
                let stats = ScalerStats { auto, last: state.last.clone(), services };
                let _ = answer.send((stats, state.policy));
            }
        }
        Ok(())
    }
}

impl ScalerState {
    fn look(&mut self, snapshot: PoolCounts, sample: &Sample) {
        if self.mode == ScalingMode::ByHand {
            return;
        }
        let machine = &sample.machine;
        let (cpu, memory) = (machine.cpu_percent, machine.memory_percent());
        let seen = PoolObservation { cpu, memory, waiting: snapshot.queued };
        let now = self.context.clock.now();
        let Some(ScaleStep { to, reason }) = decide(&self.policy, now, self.stepped, snapshot.wanted, seen)
        else {
            return;
        };
        let from = snapshot.wanted;
        self.stepped = Some(now);
        self.last = Some(format!("from {from} to {to}: {reason}"));
        self.context.log.append([Fact::Pool(PoolFact::Scaled { pool: self.name.clone(), from, to, reason })]);
        let (answer, _) = oneshot::channel();
        let _ = self.pool.send(PoolMsg::Directive(PoolInput::Scale(to), answer));
    }

    /// Passes a request on to the pool. The answer follows when the pool has taken it.
    fn directive(&self, input: PoolInput, answer: oneshot::Sender<()>) {
        let (done, is_done) = oneshot::channel();
        let settings = (self.policy, self.mode);
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
        let _ = self.pool.send(PoolMsg::Directive(input, done));
        tokio::spawn(async move {
            if is_done.await.is_ok() {
                let _ = answer.send(());
            }
        });
    }
}

mod copies;
