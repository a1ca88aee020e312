//! The ResourceMonitor: samples the machine and every tree of processes, and broadcasts.
//!
//! Subscribers may be slow: the latest sample wins. It decides nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;

use super::Context;
use crate::model::sample::Sample;
use crate::os::sample::Sampler;

/// What the monitor is told.
pub enum MonitorMsg {
    /// Sample now.
    Sample,
    /// A sample was taken.
    Taken(Box<(Sampler, Sample)>),
}

pub(crate) struct ResourceMonitor;

pub(crate) struct MonitorState {
    context: Arc<Context>,
    interval: Duration,
    /// Away while a reading is under way.
    sampler: Option<Sampler>,
    /// CPU needs two readings: the second one follows soon.
    readings: u64,
    latest: watch::Sender<Option<Arc<Sample>>>,
}

/// How soon after the start, and after the first reading, one is taken.
const FIRST: Duration = Duration::from_secs(1);

impl Actor for ResourceMonitor {
    type Msg = MonitorMsg;
    type State = MonitorState;
    type Arguments = (Arc<Context>, Duration, watch::Sender<Option<Arc<Sample>>>);

    async fn pre_start(
        &self,
        myself: ActorRef<MonitorMsg>,
        (context, interval, latest): Self::Arguments,
    ) -> Result<MonitorState, ActorProcessingErr> {
        myself.send_after(FIRST.min(interval), || MonitorMsg::Sample);
        Ok(MonitorState { context, interval, sampler: Some(Sampler::new()), readings: 0, latest })
    }

    async fn handle(
        &self,
        myself: ActorRef<MonitorMsg>,
        message: MonitorMsg,
        state: &mut MonitorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            MonitorMsg::Sample => {
                let Some(mut sampler) = state.sampler.take() else {
                    return Ok(());
                };
                let leaders: HashMap<_, _> = state.context.log.board(|board| {
                    board.entries().iter().filter_map(|e| Some((e.pid?, e.id.clone()))).collect()
                });
                let now = state.context.clock.now();
                // Reading all of /proc takes milliseconds: not on the actors' thread. A thread
                // of its own, since where the kernel allows none this is an error to go on from.
                let (again, interval) = (myself.clone(), state.interval);
                let read = move || {
                    let sample = sampler.read(now, &leaders);
                    let _ = myself.cast(MonitorMsg::Taken(Box::new((sampler, sample))));
                };
                let thread = std::thread::Builder::new().name("regrow-sample".into()).stack_size(256 * 1024);
                if let Err(error) = thread.spawn(read) {
                    tracing::warn!(%error, "no thread for a sample; the next one is tried in time");
                    state.sampler = Some(Sampler::new());
                    again.send_after(interval, || MonitorMsg::Sample);
                }
            }
            MonitorMsg::Taken(taken) => {
                let (sampler, sample) = *taken;
                state.sampler = Some(sampler);
                state.readings += 1;
                state.latest.send_replace(Some(Arc::new(sample)));
                let pause = if state.readings == 1 { FIRST.min(state.interval) } else { state.interval };
                myself.send_after(pause, || MonitorMsg::Sample);
            }
        }
        Ok(())
    }
}
