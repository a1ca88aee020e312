//! The DependencyGraph actor: releases starts as conditions come true.
//!
//! It hears that a service changed, reads the board, and sends what follows to the root
//! supervisor, from where it goes down the tree like every wish.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::supervisor::SupervisorMsg;
use super::{Context, tell};
use crate::decide::graph::{Frontier, Reply};
use crate::decide::lifecycle::Input;
use crate::model::{InstanceId, Name};

/// What the graph is told.
#[derive(Debug)]
pub enum GraphMsg {
    /// The root, to which releases go; first of all.
    Root(ActorRef<SupervisorMsg>),
    /// An instance wants to start.
    Ask(InstanceId),
    /// It no longer does.
    Withdraw(InstanceId),
    /// Something about a service changed.
    Changed(Name),
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
        let replies = match message {
            GraphMsg::Root(actor) => {
                *root = Some(actor);
                Vec::new()
            }
            GraphMsg::Ask(instance) => {
                let reply = context.log.board(|board| frontier.ask(&context.graph, board, &instance));
                vec![(instance, reply)]
            }
            GraphMsg::Withdraw(instance) => {
                frontier.withdraw(&instance);
                Vec::new()
            }
            GraphMsg::Changed(service) => {
                context.log.board(|board| frontier.changed(&context.graph, board, &service))
            }
        };
        let Some(root) = root else {
            return Ok(());
        };
        for (instance, reply) in replies {
            let input = match reply {
                Reply::Release => Input::Release,
                Reply::Blocked(unmet) => Input::Blocked(unmet),
                Reply::Failed(on) => Input::DependencyFailed(on),
                Reply::Back => Input::DependencyBack,
            };
            tell(root, SupervisorMsg::Answer(instance, input));
        }
        Ok(())
    }
}
