//! The DependencyGraph actor: releases starts as conditions come true.
//!
//! It hears that a service changed, reads the board, and sends what follows to the root
//! supervisor, from where it goes down the tree like every wish.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::supervisor::SupervisorMsg;
use super::{Context, tell};
use crate::decide::frontier::{Frontier, Input};
use crate::decide::lifecycle;
use crate::decide::world::{Message, Node, Step};

/// What the graph is told.
#[derive(Debug)]
pub enum GraphMsg {
    /// The root, to which releases go; first of all.
    Root(ActorRef<SupervisorMsg>),
    /// Of an instance or a service.
    Input(Input),
}

pub(crate) struct DependencyGraph;

pub(crate) struct GraphState {
    context: Arc<Context>,
    frontier: Frontier,
    root: Option<ActorRef<SupervisorMsg>>,
}

impl Actor for DependencyGraph {
    type Msg = GraphMsg;
    type State = GraphState;
    type Arguments = Arc<Context>;

    async fn pre_start(
        &self,
        _myself: ActorRef<GraphMsg>,
        context: Arc<Context>,
    ) -> Result<GraphState, ActorProcessingErr> {
        Ok(GraphState { context, frontier: Frontier::default(), root: None })
    }

    async fn handle(
        &self,
        _myself: ActorRef<GraphMsg>,
        message: GraphMsg,
        state: &mut GraphState,
    ) -> Result<(), ActorProcessingErr> {
        let GraphState { context, frontier, root } = state;
        let input = match message {
            GraphMsg::Root(actor) => {
                *root = Some(actor);
                return Ok(());
            }
            GraphMsg::Input(input) => input,
        };
        let step = context.log.describe(|| Step {
            at: context.clock.now(),
            to: Node::Graph,
            message: Message::Graph(input.clone()),
        });
        let replies = context.log.decide(step, |board| (frontier.step(board, &input), Vec::new()));
        let Some(root) = root else {
            return Ok(());
        };
        for (instance, question, reply) in replies {
            tell(root, SupervisorMsg::Answer(instance, lifecycle::Input::Answered(question, reply)));
        }
        Ok(())
    }
}
