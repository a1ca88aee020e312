//! A tree below a keeper, which goes on where an earlier supervisor's stood.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::{Handle, Made, Options, StartError};
use crate::actors::{Inheritance, KeepRule};
use crate::decide::continuation::{Left, Start, continuation};
use crate::decide::ledger::{Ledger, Memory};
use crate::decide::status::Board;
use crate::model::{Fact, InstanceId, Plan};
use crate::os::clock::{self, Clock};
use crate::os::keeper::Tether;
use crate::os::native::NativeHost;
use crate::os::{Found, Host, News, NewsSink, Output, OutputSink, ProcessKey};
use crate::record::output::OutputHub;

/// What a tree below a keeper is made with.
pub struct Below {
    /// The line to the keeper.
    pub tether: Tether,
    /// What all supervisors that follow each other have in common, and no others: where they keep
    /// their state.
    pub identity: String,
    /// What happens is written down there; and what was before.
    pub ledger: Option<(Arc<dyn Ledger>, Memory)>,
    /// How output is kept in files.
    pub keep: Option<KeepRule>,
}

/// What was left by an earlier supervisor.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) fact: Option<Fact>,
    pub(super) lives: HashMap<InstanceId, Inheritance>,
    pub(super) last_event: u64,
}

impl Handle {
    /// Brings a plan up below a keeper, and goes on with what earlier supervisors have left there and
    /// in the ledger. Otherwise as [`Handle::start`].
    pub async fn start_below(plan: Plan, options: Options, below: Below) -> Result<Handle, StartError> {
        let Below { tether, identity, ledger, keep } = below;
        let today = SystemTime::now();
        let board = Board::new(Arc::new(plan), today).map_err(StartError::Cycles)?;
        let output = Arc::new(OutputHub::new(options.console));
        let (ledger, memory) = match ledger {
            Some((ledger, memory)) => (Some(ledger), memory),
            None => (None, Memory::default()),
        };
        let flushed = ledger.clone();
        let before_change = Arc::new(move || {
            if let Some(ledger) = &flushed {
                ledger.flush();
            }
        });
        let sink: Arc<dyn OutputSink> = Arc::clone(&output) as Arc<dyn OutputSink>;
        let lives: Vec<String> = memory.lives.iter().map(|(_, _, life)| life.clone()).collect();
        let (native, since, found) =
            NativeHost::below(tether, &identity, &lives, sink, before_change).map_err(StartError::Host)?;
        let same_boot = memory.boot.is_some() && memory.boot == clock::boot();
        let start =
            if !found.is_empty() || (same_boot && !memory.ended) { Start::Follows } else { Start::Afresh };
        let since = memory.since.filter(|_| same_boot && start == Start::Follows).unwrap_or(since);
        let clock = Clock::since(since);
        let native = Arc::new(native);
        let host: Arc<dyn Host> = Arc::clone(&native) as Arc<dyn Host>;
        if let Some(ledger) = &ledger {
            ledger.begin(&clock::boot().unwrap_or_default(), since);
        }
        let taken = take_over(&board, &host, start, memory, found, clock, today);
        let made = Made {
            socket: options.socket,
            native: Some(native),
            recorder: options.recorder,
            secrets: options.secrets,
            clock,
            keep,
            ledger,
            taken,
            ..Made::new(board, host, output)
        };
        made.start(options.sample_interval).await
    }
}

fn take_over(
    board: &Board,
    host: &Arc<dyn Host>,
    start: Start,
    mut memory: Memory,
    found: Vec<Found>,
    clock: Clock,
    today: SystemTime,
) -> Taken {
    // The newest of each: an older one is what could not be forgotten any more.
    let mut newest: HashMap<String, Found> = HashMap::new();
    let mut strays = Vec::new();
    for found in found {
        let Some(owner) = &found.owner else {
            strays.push(found.key);
            continue;
        };
        let older = newest.insert(owner.instance.clone(), found);
        strays.extend(older.map(|older| older.key));
    }
    let (mut lives, mut instances) = (HashMap::new(), Vec::new());
    for entry in board.entries() {
        let name = entry.id.to_string();
        let left = newest.remove(&name);
        let found = left.as_ref().and_then(|found| {
            let owner = found.owner.as_ref()?;
            Some(Left { incarnation: owner.incarnation, pid: found.pid })
        });
        let written = memory.pasts.remove(&name);
        let goes_on = continuation(&entry.id, &entry.spec, start, written, found, clock.now(), today);
        let process = left.map(|found| found.key);
        strays.extend(process.filter(|_| !goes_on.adopts));
        if let Some(past) = goes_on.past {
            let process = process.filter(|_| goes_on.adopts);
            lives.insert(entry.id.clone(), Inheritance { past: past.clone(), process });
            instances.push(past);
        }
    }
    // Of services that are in no manifest any more.
    strays.extend(newest.into_values().map(|found| found.key));
    for key in strays {
        end(host, key);
    }
    let failed_groups = if start == Start::Follows { memory.failed_groups } else { Vec::new() };
    let fact = (!instances.is_empty()).then_some(Fact::TakenOver { instances, failed_groups });
    Taken { fact, lives, last_event: memory.last_event }
}

/// Ends a process that nobody goes on with, and all of its tree.
fn end(host: &Arc<dyn Host>, key: ProcessKey) {
    let settled = Arc::clone(host);
    let news: NewsSink = Arc::new(move |news| match news {
        News::Exited { remains: false, .. } | News::TreeGone { .. } => settled.settle(key),
        _ => {}
    });
    host.adopt(key, Output::Capture(0), None, news);
    host.kill(key);
}
