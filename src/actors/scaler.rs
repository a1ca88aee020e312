//! The Scaler: makes the worker pool larger and smaller, by each sample of the machine, or by hand, and
//! gives services that say so more and fewer copies (`copies`). Nobody else does.

use std::sync::Arc;
use std::time::Duration;

use copies::Copies;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{oneshot, watch};

use super::messages::SupervisorMsg;
use super::worker_pool::{PoolMsg, ScalingMode};
use super::{ActorContext, tell};
use crate::decide::pool::{PoolCounts, PoolInput};
use crate::decide::scaler::{PoolObservation, ScalePolicy, ScaleStep, decide};
use crate::model::sample::Sample;
use crate::model::stats::ScalerStats;
use crate::model::{Answer, Denial, Fact, Name};

/// What the Scaler is told.
pub enum ScalerMsg {
    /// The machine was looked at.
    Sampled,
    /// What became of the wish for other copies of a service.
    Scaled(Name, (u32, u32), Result<Answer, Denial>),
    /// The pool stands like this, and so was the machine.
    Looked(PoolCounts, Arc<Sample>),
    /// Other bounds, or whether it scales by itself; answered when the pool has them.
    Set(PoolSettings, oneshot::Sender<()>),
    /// So many workers, by hand.
    Scale(u32, oneshot::Sender<()>),
    /// How it stands.
    Stand(oneshot::Sender<(ScalerStats, ScalePolicy)>),
}

/// What is to be another; `None`: as it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolSettings {
    /// So many workers at least.
    pub min: Option<u32>,
    /// And at most.
    pub max: Option<u32>,
    /// Whether it scales by itself.
    pub auto: Option<bool>,
}

pub(crate) struct Scaler;

pub(crate) struct ScalerArgs {
    pub(crate) context: Arc<ActorContext>,
    /// That of the pool; `None`: it is the tree's own.
    pub(crate) name: Option<Name>,
    pub(crate) pool: ActorRef<PoolMsg>,
    /// Who scales services: of several Scalers, one.
    pub(crate) root: Option<ActorRef<SupervisorMsg>>,
    pub(crate) policy: ScalePolicy,
    pub(crate) mode: ScalingMode,
    pub(crate) samples: watch::Receiver<Option<Arc<Sample>>>,
}

pub(crate) struct ScalerState {
    context: Arc<ActorContext>,
    name: Option<Name>,
    pool: ActorRef<PoolMsg>,
    /// Of several Scalers, one has them.
    copies: Option<Copies>,
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
        let ScalerArgs { context, name, pool, root, policy, mode, samples } = args;
        let copies = root.map(|root| Copies::new(Arc::clone(&context), root));
        let mut news = samples.clone();
        // Ends with the monitor, or with this actor.
        tokio::spawn(async move {
            while news.changed().await.is_ok() && myself.cast(ScalerMsg::Sampled).is_ok() {}
        });
        Ok(ScalerState { context, name, pool, copies, policy, samples, mode, stepped: None, last: None })
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
                tell(&state.pool, PoolMsg::Stand(answer));
                if let Some(copies) = &mut state.copies {
                    copies.look(&myself, &state.policy, &sample);
                }
                // The pool's answer comes as a message.
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
                // Who says a number means it to stay.
                state.mode = ScalingMode::ByHand;
                state.directive(PoolInput::Scale(workers), answer);
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
        self.context.log.append([Fact::PoolScaled { pool: self.name.clone(), from, to, reason }]);
        let (answer, _) = oneshot::channel();
        tell(&self.pool, PoolMsg::Directive(PoolInput::Scale(to), answer));
    }

    /// Passes a wish on; the answer comes when the pool has it.
    fn directive(&self, input: PoolInput, answer: oneshot::Sender<()>) {
        let (done, is_done) = oneshot::channel();
        tell(&self.pool, PoolMsg::Directive(input, done));
        tokio::spawn(async move {
            if is_done.await.is_ok() {
                let _ = answer.send(());
            }
        });
    }
}

mod copies;
