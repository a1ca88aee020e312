//! The ResourceMonitor: it samples the machine and every tree of processes, and publishes the
//! samples.
//!
//! A slow subscriber sees only the latest sample. The monitor keeps the measurements of the last
//! day. Deliberately absent: decisions that follow from a sample.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;

use super::ActorContext;
use super::system::Life;
use crate::decide::history::{ClockReading, KEPT, MetricsHistory};
use crate::measure::sample::Sampler;
use crate::model::sample::Sample;

/// A message to the monitor.
pub enum MonitorMsg {
    /// Take a sample now.
    Sample,
    /// A sample was taken. The first one comes with what earlier supervisors have measured.
    Taken(Box<Measurement>),
    /// The reading of a sample broke.
    Broke,
}

/// The result of one reading.
pub struct Measurement {
    sampler: Sampler,
    sample: Sample,
    before: Option<Box<MetricsHistory>>,
}

/// What the monitor publishes.
#[derive(Clone)]
pub(crate) struct Measured {
    /// The latest sample. `None` before the first one.
    pub(crate) latest: watch::Sender<Option<Arc<Sample>>>,
    /// The measurements of the last day.
    pub(crate) history: Arc<Mutex<MetricsHistory>>,
}

impl Default for Measured {
    fn default() -> Measured {
        Measured { latest: watch::Sender::new(None), history: Arc::default() }
    }
}

/// The current time of the wall clock and of the tree's clock.
pub(crate) fn now(context: &ActorContext) -> ClockReading {
    ClockReading { clock: context.clock.now(), wall: SystemTime::now() }
}

#[derive(Default)]
pub(crate) struct ResourceMonitor;

pub(crate) struct MonitorState {
    context: Arc<ActorContext>,
    interval: Duration,
    /// The sampler. `None` while a reading is under way.
    sampler: Option<Sampler>,
    /// How many readings were taken. CPU usage needs two, so the second follows the first soon.
    readings: u64,
    told: Measured,
    life: Life,
}

/// How soon the first reading follows the start, and the second one the first.
const FIRST: Duration = Duration::from_secs(1);

impl Actor for ResourceMonitor {
    type Msg = MonitorMsg;
    type State = MonitorState;
    type Arguments = (Arc<ActorContext>, Duration, Measured, Life);

    async fn pre_start(
        &self,
        myself: ActorRef<MonitorMsg>,
        (context, interval, told, life): Self::Arguments,
    ) -> Result<MonitorState, ActorProcessingErr> {
        myself.send_after(FIRST.min(interval), || MonitorMsg::Sample);
        Ok(MonitorState { context, interval, sampler: Some(Sampler::new()), readings: 0, told, life })
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
                let leaders: HashMap<_, _> = state.context.log.tree_state(|tree_state| {
                    tree_state.entries().iter().filter_map(|e| Some((e.pid?, e.id.clone()))).collect()
                });
                state.context.host.look_around();
                let now = state.context.clock.now();
                // One that follows a broken one goes on with the measurements of that one.
                let is_first = state.readings == 0 && state.life == Life::First;
                let first = is_first.then(|| Arc::clone(&state.context));
                // Reading all of /proc takes milliseconds, too long for the actors' thread. It gets a
                // thread of its own, because then a failure to make the thread is an error that can be
                // handled.
                let (again, interval) = (myself.clone(), state.interval);
                let read = move || {
                    let taken = catch_unwind(AssertUnwindSafe(move || {
                        let before = first.and_then(|context| past(&context));
                        let sample = sampler.read(now, &leaders);
                        Box::new(Measurement { sampler, sample, before })
                    }));
                    let _ = myself.cast(taken.map_or(MonitorMsg::Broke, MonitorMsg::Taken));
                };
                let thread = std::thread::Builder::new().name("regrow-sample".into()).stack_size(256 * 1024);
                if let Err(error) = thread.spawn(read) {
                    tracing::warn!(%error, "no thread for a sample; the next one is tried in time");
                    state.sampler = Some(Sampler::new());
                    again.send_after(interval, || MonitorMsg::Sample);
                }
            }
            // The panic was told where it came up.
            MonitorMsg::Broke => return Err("the reading of a sample broke".into()),
            MonitorMsg::Taken(taken) => {
                let Measurement { sampler, sample, before } = *taken;
                state.sampler = Some(sampler);
                state.readings += 1;
                state.remember(&sample, before);
                state.told.latest.send_replace(Some(Arc::new(sample)));
                let pause = if state.readings == 1 { FIRST.min(state.interval) } else { state.interval };
                myself.send_after(pause, || MonitorMsg::Sample);
            }
        }
        Ok(())
    }
}

/// What earlier supervisors have measured. `None` without a ledger.
fn past(context: &ActorContext) -> Option<Box<MetricsHistory>> {
    let ledger = context.ledger.as_ref()?;
    let (now, mut history) = (now(context), Box::<MetricsHistory>::default());
    ledger.past_resources(KEPT, &mut |point| history.restore(point, now));
    Some(history)
}

impl MonitorState {
    fn remember(&self, sample: &Sample, before: Option<Box<MetricsHistory>>) {
        let now = now(&self.context);
        let mut history = self.told.history.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = before {
            *history = *before;
        }
        let over = history.push(sample, now);
        drop(history);
        if let Some(ledger) = self.context.ledger.as_ref().filter(|_| !over.is_empty()) {
            ledger.resources(over);
        }
    }
}
