//! Scaling of services whose `replicas` is a range.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::oneshot;

use super::ScalerMsg;
use crate::actors::messages::SupervisorMsg;
use crate::actors::{ActorContext, tell};
use crate::decide::scaler::{CopiesObservation, ScalePolicy, ScaleStep, decide_copies};
use crate::decide::tree_state::{InstanceState, TreeState};
use crate::model::event::TreeFact;
use crate::model::sample::Sample;
use crate::model::spec::{ScaleOn, ScaleSpec};
use crate::model::stats::ServiceScale;
use crate::model::{Answer, Command, Denial, DenialCode, Fact, Goal, Name, State};

/// The scaled services, and what was last done about each.
pub(super) struct Copies {
    context: Arc<ActorContext>,
    root: ActorRef<SupervisorMsg>,
    services: HashMap<Name, Scaled>,
}

/// What was last done about one service.
#[derive(Default)]
struct Scaled {
    /// When the last decision was made, on the tree's clock.
    stepped: Option<Duration>,
    last: Option<String>,
    directive: ScaleRequest,
}

impl Scaled {
    /// The last decision in words, and whether it is still under way.
    fn words(&self) -> Option<String> {
        let last = self.last.as_ref()?;
        Some(match self.directive {
            ScaleRequest::Asked(_) => format!("{last}; it is not done yet"),
            ScaleRequest::None | ScaleRequest::Denied(..) => last.clone(),
        })
    }
}

/// The request for another number of copies.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum ScaleRequest {
    #[default]
    None,
    /// A request has been under way since this time.
    Asked(Duration),
    /// The request to go from the first number to the second was refused.
    Denied(u32, u32),
}

/// After how many pauses an unanswered request is no longer waited for.
const LAPSE: u32 = 20;

impl Copies {
    pub(super) fn new(context: Arc<ActorContext>, root: ActorRef<SupervisorMsg>) -> Copies {
        Copies { context, root, services: HashMap::new() }
    }

    /// Decides on each scaled service by a sample.
    pub(super) fn look(&mut self, myself: &ActorRef<ScalerMsg>, policy: &ScalePolicy, sample: &Sample) {
        if self.context.log.tree_state(TreeState::shutting_down) {
            return;
        }
        let now = self.context.clock.now();
        let seen: Vec<(Name, ScaleSpec, u32, Option<f64>)> = self.context.log.tree_state(|tree_state| {
            let scaled = tree_state.plan().services.iter().filter_map(|spec| Some((spec, spec.scale?)));
            let seen = scaled.map(|(spec, scale)| {
                let each = average(tree_state.instances_of(&spec.name), scale.on, sample);
                (spec.name.clone(), scale, spec.replicas, each)
            });
            seen.collect()
        });
        self.services.retain(|name, _| seen.iter().any(|(seen, ..)| seen == name));
        let machine = &sample.machine;
        for (service, scale, from, each) in seen {
            let known = self.services.entry(service.clone()).or_default();
            // An answer may never come, for instance when a copy never gets ready.
            let lapsed = |since: Duration| now.saturating_sub(since) >= policy.pause * LAPSE;
            if matches!(known.directive, ScaleRequest::Asked(since) if !lapsed(since)) {
                continue;
            }
            let seen = CopiesObservation { cpu: machine.cpu_percent, memory: machine.memory_percent(), each };
            let step = decide_copies(policy, &scale, now, known.stepped, from, seen);
            let Some(ScaleStep { to, reason }) = step else {
                continue;
            };
            // A request that was refused would be refused again.
            if known.directive == ScaleRequest::Denied(from, to) {
                continue;
            }
            let last = Some(format!("from {from} to {to}: {reason}"));
            *known = Scaled { stepped: Some(now), last, directive: ScaleRequest::Asked(now) };
            self.context.log.append([Fact::Tree(TreeFact::ScaleDecided {
                service: service.clone(),
                from,
                to,
                reason,
            })]);
            let (reply, answered) = oneshot::channel();
            let command = Command::Scale { service: service.clone(), replicas: to };
            tell(&self.root, SupervisorMsg::Command(command.into(), reply));
            let myself = myself.clone();
            tokio::spawn(async move {
                let (code, reason) = (DenialCode::Internal, "the tree is gone".to_owned());
                let gone = |_| Err(Denial { code, reason, hint: None });
                let answer = answered.await.unwrap_or_else(gone);
                tell(&myself, ScalerMsg::Scaled(service, (from, to), answer));
            });
        }
    }

    /// Notes the answer to a request.
    pub(super) fn hear(&mut self, service: Name, (from, to): (u32, u32), answer: Result<Answer, Denial>) {
        let directive = match &answer {
            Ok(_) => ScaleRequest::None,
            Err(denial) => {
                tracing::warn!(%service, "could not be scaled from {from} to {to}: {}", denial.reason);
                ScaleRequest::Denied(from, to)
            }
        };
        if let Some(known) = self.services.get_mut(&service) {
            if let Err(denial) = answer {
                known.last = Some(format!("from {from} to {to} was refused: {}", denial.reason));
            }
            known.directive = directive;
        }
    }

    /// The state of each scaled service.
    pub(super) fn stats(&self) -> Vec<ServiceScale> {
        self.context.log.tree_state(|tree_state| {
            let stats = tree_state.plan().services.iter().filter_map(|spec| {
                let ScaleSpec { min, max, .. } = spec.scale?;
                let last = self.services.get(&spec.name).and_then(Scaled::words);
                Some(ServiceScale { service: spec.name.clone(), replicas: spec.replicas, min, max, last })
            });
            stats.collect()
        })
    }
}

/// The average usage of a service's copies. `None` while some of them are not ready or not measured
/// yet. Copies that were stopped, and failed ones, are left out.
fn average<'a>(copies: impl Iterator<Item = &'a InstanceState>, on: ScaleOn, sample: &Sample) -> Option<f64> {
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
