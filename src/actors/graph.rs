//! The DependencyGraph actor: it holds the start gate, which releases starts as their conditions
//! come true.
//!
//! It receives questions and changes, reads the tree state, and sends the answers to the root
//! supervisor, from where they go down the tree like every directive. One that follows a broken one has
//! every instance repeat its request.

use std::sync::{Arc, OnceLock};

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::messages::SupervisorMsg;
use super::{ActorContext, tell};
use crate::actors::messages::GraphMsg;
use crate::decide::lifecycle::InstanceInput;
use crate::decide::message::{Address, Message, Step};
use crate::decide::start_gate::StartGate;

#[derive(Default)]
pub(crate) struct DependencyGraph;

/// The root supervisor, which passes the answers down; it is made after the first dependency graph.
pub(crate) type RootPlace = Arc<OnceLock<ActorRef<SupervisorMsg>>>;

pub(crate) struct GraphState {
    context: Arc<ActorContext>,
    gate: StartGate,
    root: RootPlace,
}

impl Actor for DependencyGraph {
    type Msg = GraphMsg;
    type State = GraphState;
    type Arguments = (Arc<ActorContext>, RootPlace);

    async fn pre_start(
        &self,
        _myself: ActorRef<GraphMsg>,
        (context, root): Self::Arguments,
    ) -> Result<GraphState, ActorProcessingErr> {
        Ok(GraphState { context, gate: StartGate::default(), root })
    }

    async fn handle(
        &self,
        _myself: ActorRef<GraphMsg>,
        message: GraphMsg,
        state: &mut GraphState,
    ) -> Result<(), ActorProcessingErr> {
        let GraphState { context, gate, root } = state;
        let GraphMsg::Input(input) = message;
        let step = context.log.describe(|| Step {
            at: context.clock.now(),
            to: Address::Graph,
            message: Message::Graph(input.clone()),
        });
        let replies = context.log.decide(step, |tree_state| (gate.step(tree_state, &input), Vec::new()));
        let Some(root) = root.get() else {
            return Ok(());
        };
        for (instance, request, reply) in replies {
            let message = Message::Relay(instance, InstanceInput::Answered(request, reply));
            tell(root, SupervisorMsg::Node(message));
        }
        Ok(())
    }
}
