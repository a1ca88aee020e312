//! The Scaler: makes the worker pool larger and smaller, by each sample of the machine, or by hand, and
//! gives services that say so more and fewer copies. Nobody else does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{oneshot, watch};

use super::supervisor::SupervisorMsg;
use super::worker_pool::{Mode, PoolMsg};
use super::{Context, tell};
use crate::decide::pool::{Input, Standing};
use crate::decide::scaler::{ScalePolicy, Scaling, Seen, SeenCopies, decide, decide_copies};
use crate::decide::status::{Board, Entry};
use crate::model::sample::Sample;
use crate::model::spec::{ScaleOn, ScaleSpec};
use crate::model::stats::{ScalerStats, ServiceScale};
use crate::model::{Answer, Command, Denial, DenialCode, Fact, Goal, Name, State};

/// What the Scaler is told.
pub enum ScalerMsg {
    /// The machine was looked at.
    Sampled,
    /// What became of the wish for other copies of a service.
    Scaled(Name, (u32, u32), Result<Answer, Denial>),
    /// The pool stands like this, and so was the machine.
    Looked(Standing, Arc<Sample>),
    /// Other bounds, or whether it scales by itself; answered when the pool has them.
    Set(Bounds, oneshot::Sender<()>),
    /// So many workers, by hand.
    Scale(u32, oneshot::Sender<()>),
    /// How it stands.
    Stand(oneshot::Sender<(ScalerStats, ScalePolicy)>),
}

/// What is to be another; `None`: as it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// So many workers at least.
    pub min: Option<u32>,
    /// And at most.
    pub max: Option<u32>,
    /// Whether it scales by itself.
    pub auto: Option<bool>,
}

pub(crate) struct Scaler;

pub(crate) struct ScalerArgs {
    pub(crate) context: Arc<Context>,
    /// That of the pool; `None`: it is the tree's own.
    pub(crate) name: Option<Name>,
    pub(crate) pool: ActorRef<PoolMsg>,
    /// Who scales services: of several Scalers, one.
    pub(crate) root: Option<ActorRef<SupervisorMsg>>,
    pub(crate) policy: ScalePolicy,
    pub(crate) mode: Mode,
    pub(crate) samples: watch::Receiver<Option<Arc<Sample>>>,
}

pub(crate) struct ScalerState {
    context: Arc<Context>,
    name: Option<Name>,
    pool: ActorRef<PoolMsg>,
    root: Option<ActorRef<SupervisorMsg>>,
    services: HashMap<Name, Scaled>,
    policy: ScalePolicy,
    samples: watch::Receiver<Option<Arc<Sample>>>,
    mode: Mode,
    stepped: Option<Duration>,
    last: Option<String>,
}

/// What was done about a service.
#[derive(Default)]
struct Scaled {
    /// When it was last decided on.
    stepped: Option<Duration>,
    last: Option<String>,
    wish: Wish,
}

/// Whether a wish for other copies is under way.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Wish {
    #[default]
    None,
    /// Since then.
    Asked(Duration),
    /// From so many to so many there is no way.
    Denied(u32, u32),
}

/// After so many pauses a wish that was not answered is not waited for any more.
const LAPSE: u32 = 20;

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
        let mut news = samples.clone();
        // Ends with the monitor, or with this actor.
        tokio::spawn(async move {
            while news.changed().await.is_ok() && myself.cast(ScalerMsg::Sampled).is_ok() {}
        });
        Ok(ScalerState {
            context,
            name,
            pool,
            root,
            services: HashMap::new(),
            policy,
            samples,
            mode,
            stepped: None,
            last: None,
        })
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
                state.look_at_services(&myself, &sample);
                // The pool's answer comes as a message.
                tokio::spawn(async move {
                    if let Ok(stand) = answered.await {
                        tell(&myself, ScalerMsg::Looked(stand.standing, sample));
                    }
                });
            }
            ScalerMsg::Scaled(service, step, answer) => state.hear(service, step, answer),
            ScalerMsg::Looked(standing, sample) => state.look(standing, &sample),
            ScalerMsg::Set(bounds, answer) => {
                let ScalePolicy { min, max, .. } = &mut state.policy;
                (*min, *max) = (bounds.min.unwrap_or(*min), bounds.max.unwrap_or(*max));
                let input = Input::Bounds(*min, *max);
                if let Some(auto) = bounds.auto {
                    state.mode = if auto { Mode::Auto } else { Mode::ByHand };
                }
                state.wish(input, answer);
            }
            ScalerMsg::Scale(workers, answer) => {
                // Who says a number means it to stay.
                state.mode = Mode::ByHand;
                state.wish(Input::Scale(workers), answer);
            }
            ScalerMsg::Stand(answer) => {
                let auto = state.mode == Mode::Auto;
                let stats = ScalerStats { auto, last: state.last.clone(), services: state.service_stats() };
                let _ = answer.send((stats, state.policy));
            }
        }
        Ok(())
    }
}

impl ScalerState {
    fn look(&mut self, standing: Standing, sample: &Sample) {
        if self.mode == Mode::ByHand {
            return;
        }
        let machine = &sample.machine;
        let (cpu, memory) = (machine.cpu_percent, machine.memory_percent());
        let seen = Seen { cpu, memory, waiting: standing.queued };
        let now = self.context.clock.now();
        let Some(Scaling { to, reason }) = decide(&self.policy, now, self.stepped, standing.wanted, seen)
        else {
            return;
        };
        let from = standing.wanted;
        self.stepped = Some(now);
        self.last = Some(format!("from {from} to {to}: {reason}"));
        self.context.log.append([Fact::PoolScaled { pool: self.name.clone(), from, to, reason }]);
        let (answer, _) = oneshot::channel();
        tell(&self.pool, PoolMsg::Wish(Input::Scale(to), answer));
    }

    fn look_at_services(&mut self, myself: &ActorRef<ScalerMsg>, sample: &Sample) {
        let Some(root) = self.root.as_ref().filter(|_| !self.context.log.board(Board::shutting_down)) else {
            return;
        };
        let now = self.context.clock.now();
        let seen: Vec<(Name, ScaleSpec, u32, Option<f64>)> = self.context.log.board(|board| {
            let scaled = board.plan().services.iter().filter_map(|spec| Some((spec, spec.scale?)));
            let seen = scaled.map(|(spec, scale)| {
                let each = average(board.instances_of(&spec.name), scale.on, sample);
                (spec.name.clone(), scale, spec.replicas, each)
            });
            seen.collect()
        });
        self.services.retain(|name, _| seen.iter().any(|(seen, ..)| seen == name));
        let machine = &sample.machine;
        for (service, scale, from, each) in seen {
            let known = self.services.entry(service.clone()).or_default();
            // An answer may never come: from a copy that never gets ready.
            let lapsed = |since: Duration| now.saturating_sub(since) >= self.policy.pause * LAPSE;
            if matches!(known.wish, Wish::Asked(since) if !lapsed(since)) {
                continue;
            }
            let seen = SeenCopies { cpu: machine.cpu_percent, memory: machine.memory_percent(), each };
            let step = decide_copies(&self.policy, &scale, now, known.stepped, from, seen);
            let Some(Scaling { to, reason }) = step else {
                continue;
            };
            // What was refused would be so again.
            if known.wish == Wish::Denied(from, to) {
                continue;
            }
            let last = Some(format!("from {from} to {to}: {reason}"));
            *known = Scaled { stepped: Some(now), last, wish: Wish::Asked(now) };
            self.context.log.append([Fact::ScaleDecided { service: service.clone(), from, to, reason }]);
            let (reply, answered) = oneshot::channel();
            let command = Command::Scale { service: service.clone(), replicas: to };
            tell(root, SupervisorMsg::Command(command.into(), reply));
            let myself = myself.clone();
            tokio::spawn(async move {
                let (code, reason) = (DenialCode::Internal, "the tree is gone".to_owned());
                let gone = |_| Err(Denial { code, reason, hint: None });
                let answer = answered.await.unwrap_or_else(gone);
                tell(&myself, ScalerMsg::Scaled(service, (from, to), answer));
            });
        }
    }

    fn hear(&mut self, service: Name, (from, to): (u32, u32), answer: Result<Answer, Denial>) {
        let wish = match &answer {
            Ok(_) => Wish::None,
            Err(denial) => {
                tracing::warn!(%service, "could not be scaled from {from} to {to}: {}", denial.reason);
                Wish::Denied(from, to)
            }
        };
        if let Some(known) = self.services.get_mut(&service) {
            if let Err(denial) = answer {
                known.last = Some(format!("from {from} to {to} was refused: {}", denial.reason));
            }
            known.wish = wish;
        }
    }

    fn service_stats(&self) -> Vec<ServiceScale> {
        if self.root.is_none() {
            return Vec::new();
        }
        self.context.log.board(|board| {
            let stats = board.plan().services.iter().filter_map(|spec| {
                let ScaleSpec { min, max, .. } = spec.scale?;
                let last = self.services.get(&spec.name).and_then(|known| known.last.clone());
                Some(ServiceScale { service: spec.name.clone(), replicas: spec.replicas, min, max, last })
            });
            stats.collect()
        })
    }

    /// Passes a wish on; the answer comes when the pool has it.
    fn wish(&self, input: Input, answer: oneshot::Sender<()>) {
        let (done, is_done) = oneshot::channel();
        tell(&self.pool, PoolMsg::Wish(input, done));
        tokio::spawn(async move {
            if is_done.await.is_ok() {
                let _ = answer.send(());
            }
        });
    }
}

/// What copies use on the average; `None` while not all of them run and were measured. Those that somebody
/// has stopped, and those that will not come back, are left out.
fn average<'a>(copies: impl Iterator<Item = &'a Entry>, on: ScaleOn, sample: &Sample) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for copy in copies {
        if copy.goal == Goal::Down || copy.state == State::Failed {
            continue;
        }
        let runs = copy.state == State::Running && copy.ready;
        let usage = sample.instances.get(&copy.id).filter(|_| runs)?;
        sum += match on {
            ScaleOn::Cpu(_) => usage.cpu_percent?,
            ScaleOn::Memory(_) => usage.memory_bytes as f64,
        };
        count += 1.0;
    }
    (count > 0.0).then(|| sum / count)
}
