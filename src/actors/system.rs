//! The SystemSupervisor: it supervises the actors that the tree itself consists of, which are the
//! dependency graph, the monitor, and the pools with their caches and Scalers.
//!
//! One that breaks is made again, at first at once, then after growing pauses; what it lost is an event.
//! Others know it by a [`Registered`] reference, which leads to the new actor. Deliberately absent: the
//! supervision of services (`supervisor`), and how each of these actors goes on (its own file).

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, Message, SpawnErr, SupervisionEvent};
use tokio::sync::oneshot;

use super::ActorContext;
use crate::model::{Fact, TreeFact};

/// The first pause, which follows the second break in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// An actor that lived as long as this has no earlier breaks.
const FORGIVEN: Duration = Duration::from_secs(60);

/// A reference to an actor that is another one after it broke. Cheap to clone.
pub(crate) struct Registered<M: Message> {
    current: Arc<RwLock<Current<M>>>,
}

enum Current<M: Message> {
    /// The first one is still to be made.
    Nobody,
    Actor(ActorRef<M>),
    /// The last one has ended on purpose, and none follows.
    Released,
}

impl<M: Message> Clone for Registered<M> {
    fn clone(&self) -> Registered<M> {
        Registered { current: Arc::clone(&self.current) }
    }
}

impl<M: Message> Default for Registered<M> {
    fn default() -> Registered<M> {
        Registered { current: Arc::new(RwLock::new(Current::Nobody)) }
    }
}

impl<M: Message> Registered<M> {
    /// Puts an actor in the place of the last one. `false`: none is wanted any more.
    fn replace(&self, actor: &ActorRef<M>) -> bool {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let is_wanted = !matches!(*current, Current::Released);
        if is_wanted {
            *current = Current::Actor(actor.clone());
        }
        is_wanted
    }

    /// Takes the last actor out; none follows.
    fn release(&self) -> Option<ActorRef<M>> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *current, Current::Released) {
            Current::Actor(actor) => Some(actor),
            Current::Nobody | Current::Released => None,
        }
    }

    /// Sends a message to the present actor. Returns whether it was there to take it.
    pub(crate) fn send(&self, message: M) -> bool {
        match &*self.current.read().unwrap_or_else(PoisonError::into_inner) {
            Current::Actor(actor) => actor.cast(message).is_ok(),
            Current::Nobody | Current::Released => false,
        }
    }

    /// Sends a request to the present actor and waits for the answer; `None` where the actor ended
    /// before it answered.
    pub(crate) async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> M) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.send(message(answer)).then_some(())?;
        answered.await.ok()
    }

    /// Whether both lead to the same actors.
    pub(crate) fn is(&self, other: &Registered<M>) -> bool {
        Arc::ptr_eq(&self.current, &other.current)
    }
}

/// Whether an actor is the first of its kind, or follows one that broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Life {
    #[default]
    First,
    Again,
}

/// Gives the actor that was made; `None` where none is wanted any more.
type Making = Pin<Box<dyn Future<Output = Result<Option<ActorCell>, SpawnErr>> + Send>>;
type Make = Box<dyn Fn(ActorCell, Life) -> Making + Send + Sync>;

/// One of the actors that are supervised here.
pub(crate) struct Part {
    /// Its name, as in "the monitor".
    name: String,
    /// What is lost with it, as in "one sample".
    lost: &'static str,
    make: Make,
}

struct Supervised {
    #[cfg(test)]
    actor: ActorCell,
    part: Part,
    /// When the present actor was made, on the tree's clock.
    since: Duration,
    /// The pause before the next one is made.
    pause: Duration,
}

/// A message to the SystemSupervisor.
pub(crate) enum SystemMsg {
    /// Make this actor and supervise it.
    Start(Part, oneshot::Sender<Result<(), SpawnErr>>),
    /// Make this actor again.
    Again(Box<Part>, Duration),
    /// This actor ends on purpose.
    Release(ActorId),
    /// End the actor of this name, as a fault would.
    #[cfg(test)]
    Break(&'static str),
}

pub(crate) struct SystemSupervisor;

pub(crate) struct SystemState {
    context: Arc<ActorContext>,
    actors: HashMap<ActorId, Supervised>,
}

/// Has an actor made and supervised. `args` gives what each one is made with; `replaced` is called when
/// one has taken the place of a broken one.
pub(crate) async fn supervise<A: Actor + Default>(
    system: &ActorRef<SystemMsg>,
    (name, lost): (String, &'static str),
    registered: &Registered<A::Msg>,
    args: impl Fn(Life) -> A::Arguments + Send + Sync + 'static,
    replaced: impl Fn() + Send + Sync + 'static,
) -> Result<(), SpawnErr> {
    let (registered, replaced) = (registered.clone(), Arc::new(replaced));
    let make: Make = Box::new(move |system, life| {
        let (args, registered, replaced) = (args(life), registered.clone(), Arc::clone(&replaced));
        Box::pin(async move {
            let (actor, _) = A::spawn_linked(None, A::default(), args, system).await?;
            if !registered.replace(&actor) {
                // It was released while it was away.
                actor.stop(None);
                return Ok(None);
            }
            if life == Life::Again {
                replaced();
            }
            Ok(Some(actor.get_cell()))
        })
    });
    let (answer, answered) = oneshot::channel();
    let gone = || SpawnErr::StartupFailed("the tree has ended".into());
    system.cast(SystemMsg::Start(Part { name, lost, make }, answer)).map_err(|_| gone())?;
    answered.await.map_err(|_| gone())?
}

/// Ends a supervised actor on purpose.
pub(crate) fn release<M: Message>(system: &ActorRef<SystemMsg>, registered: &Registered<M>) {
    if let Some(actor) = registered.release() {
        super::tell(system, SystemMsg::Release(actor.get_id()));
        actor.stop(None);
    }
}

impl Actor for SystemSupervisor {
    type Msg = SystemMsg;
    type State = SystemState;
    type Arguments = Arc<ActorContext>;

    async fn pre_start(
        &self,
        _myself: ActorRef<SystemMsg>,
        context: Arc<ActorContext>,
    ) -> Result<SystemState, ActorProcessingErr> {
        Ok(SystemState { context, actors: HashMap::new() })
    }

    async fn handle(
        &self,
        myself: ActorRef<SystemMsg>,
        message: SystemMsg,
        state: &mut SystemState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SystemMsg::Start(part, answer) => {
                let made = (part.make)(myself.get_cell(), Life::First).await;
                let made = made.map(|made| {
                    if let Some(actor) = made {
                        state.supervises(actor, part, Duration::ZERO);
                    }
                });
                let _ = answer.send(made);
            }
            SystemMsg::Again(part, pause) => state.again(&myself, *part, pause).await,
            SystemMsg::Release(actor) => drop(state.actors.remove(&actor)),
            #[cfg(test)]
            SystemMsg::Break(name) => {
                let broken = state.actors.values().find(|supervised| supervised.part.name == name);
                broken.expect("an actor of that name").actor.kill();
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SystemMsg>,
        event: SupervisionEvent,
        state: &mut SystemState,
    ) -> Result<(), ActorProcessingErr> {
        let (gone, reason) = match event {
            SupervisionEvent::ActorFailed(actor, error) => (actor, error.to_string()),
            SupervisionEvent::ActorTerminated(actor, _, reason) => (actor, reason.unwrap_or_default()),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        let Some(Supervised { part, since, pause, .. }) = state.actors.remove(&gone.get_id()) else {
            return Ok(());
        };
        let reason = if reason.is_empty() { "ended".to_owned() } else { reason };
        tracing::error!(actor = part.name, lost = part.lost, "an actor broke: {reason}");
        let (actor, lost) = (part.name.clone(), part.lost.to_owned());
        state.context.log.append([Fact::Tree(TreeFact::ActorBroke { actor, reason, lost })]);
        let lived = state.context.clock.now().saturating_sub(since);
        let pause = if lived >= FORGIVEN { Duration::ZERO } else { pause };
        if pause.is_zero() {
            state.again(&myself, part, pause).await;
        } else {
            myself.send_after(pause, move || SystemMsg::Again(Box::new(part), pause));
        }
        Ok(())
    }
}

impl SystemState {
    fn supervises(&mut self, actor: ActorCell, part: Part, pause: Duration) {
        let (id, since) = (actor.get_id(), self.context.clock.now());
        let supervised = Supervised {
            #[cfg(test)]
            actor,
            part,
            since,
            pause,
        };
        self.actors.insert(id, supervised);
    }

    /// Makes an actor in the place of one that broke.
    async fn again(&mut self, myself: &ActorRef<SystemMsg>, part: Part, pause: Duration) {
        let next = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        match (part.make)(myself.get_cell(), Life::Again).await {
            Ok(Some(actor)) => self.supervises(actor, part, next),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(actor = part.name, %error, "an actor can't be made again yet");
                myself.send_after(next, move || SystemMsg::Again(Box::new(part), next));
            }
        }
    }
}
