//! The DependencyGraph actor: it holds the start gate, which releases starts as their conditions
//! come true.
//!
//! It receives questions and changes, reads the tree state, and sends the answers to the root
//! supervisor, from where they go down the tree like every directive.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::messages::SupervisorMsg;
use super::{ActorContext, tell};
use crate::actors::messages::GraphMsg;
use crate::decide::lifecycle::InstanceInput;
use crate::decide::message::{Address, Message, Step};
use crate::decide::start_gate::StartGate;

pub(crate) struct DependencyGraph;

pub(crate) struct GraphState {
    context: Arc<ActorContext>,
    gate: StartGate,
    root: Option<ActorRef<SupervisorMsg>>,
}

impl Actor for DependencyGraph {
    type Msg = GraphMsg;
    type State = GraphState;
    type Arguments = Arc<ActorContext>;

    async fn pre_start(
        &self,
        _myself: ActorRef<GraphMsg>,
        context: Arc<ActorContext>,
    ) -> Result<GraphState, ActorProcessingErr> {
        Ok(GraphState { context, gate: StartGate::default(), root: None })
    }

    async fn handle(
        &self,
        _myself: ActorRef<GraphMsg>,
        message: GraphMsg,
        state: &mut GraphState,
    ) -> Result<(), ActorProcessingErr> {
        let GraphState { context, gate, root } = state;
        let input = match message {
            GraphMsg::Root(actor) => {
                *root = Some(actor);
                return Ok(());
            }
            GraphMsg::Input(input) => input,
        };
        let step = context.log.describe(|| Step {
            at: context.clock.now(),
            to: Address::Graph,
            message: Message::Graph(input.clone()),
        });
        let replies = context.log.decide(step, |tree_state| (gate.step(tree_state, &input), Vec::new()));
        let Some(root) = root else {
            return Ok(());
        };
        for (instance, request, reply) in replies {
            let message = Message::Relay(instance, InstanceInput::Answered(request, reply));
            tell(root, SupervisorMsg::Node(message));
        }
        Ok(())
    }
}
