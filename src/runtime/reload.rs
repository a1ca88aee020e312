//! One plan made of another while it runs, by the commands that a user has.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Handle;
use crate::actors::messages::SupervisorMsg;
use crate::decide::reload::{self, PlanDiff, ReloadPlan};
use crate::model::cause::FailureReason;
use crate::model::plan::PlanChange;
use crate::model::status::FaultyManifest;
use crate::model::{
    Addition, Answer, Command, Denial, DenialCode, Goal, InstanceAnswer, IssuedCommand, Name, Plan,
    Requester, Selector, ServiceSpec, State,
};

/// What a reload has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Reloaded {
    /// What there was to do.
    #[serde(flatten)]
    pub difference: PlanDiff,
    /// Whether all of it was done, and what was started is ready.
    pub ok: bool,
    /// What became of everything that was started, stopped or restarted.
    pub results: Vec<InstanceAnswer>,
    /// Manifests that can't be used as they are: what they said before runs on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faulty: Vec<FaultyManifest>,
}

type Pending = oneshot::Receiver<Result<Answer, Denial>>;

impl Handle {
    /// Makes the tree that of another plan, and touches only what differs. Returns when what was
    /// added and restarted is ready, or says why not. The plan is read when it is this one's turn: of
    /// two, the later one is the one that stands.
    pub async fn change_to<E: From<Denial>>(
        &self,
        plan: impl Future<Output = Result<Plan, E>>,
        by: Option<Requester>,
    ) -> Result<Reloaded, E> {
        let changing = self.begin_change_to(plan, by).await?;
        Ok(self.changed(changing).await)
    }

    /// The same, up to where only what was started has to become ready, which holds up no other
    /// change.
    pub async fn begin_change_to<E: From<Denial>>(
        &self,
        plan: impl Future<Output = Result<Plan, E>>,
        by: Option<Requester>,
    ) -> Result<Changing, E> {
        let _one_at_a_time = self.inner.reloading.lock().await;
        Ok(self.begin_change(plan.await?, by.as_ref()).await?)
    }

    /// Waits for what a change has started.
    pub async fn changed(&self, changing: Changing) -> Reloaded {
        let Changing { mut reloaded, starting } = changing;
        for pending in starting {
            reloaded.note_or_denied(answered(pending).await);
        }
        self.written().await;
        let Answer { results, .. } = self.shown(Answer { ok: reloaded.ok, results: reloaded.results });
        Reloaded { results, ..reloaded }
    }

    async fn begin_change(&self, plan: Plan, by: Option<&Requester>) -> Result<Changing, Denial> {
        let way = reload::way(&self.plan(), &plan, |service| self.spawn_fingerprint(service));
        let ReloadPlan { difference, add, change, remove, put_back, restart, scale, renamed } = way;
        let mut reloaded = Reloaded { difference, ok: true, results: Vec::new(), faulty: Vec::new() };
        // Each is on the board before the next is looked at: they go through one mailbox.
        let mut starting: Vec<Pending> = Vec::new();
        for addition in add {
            starting.push(self.submit(Command::Add { addition: Arc::new(addition) }, by)?);
        }
        if !change.is_empty() {
            let change = Arc::new(change);
            let changed = self.submit(Command::Reconfigure { change }, by)?;
            answered(changed).await?;
        }
        let (services, groups) = remove;
        // Of those that were stopped by hand the copies that come back stay down.
        let now = |name: &Name| {
            let by_another = renamed.iter().find(|(before, _)| before == name).map(|(_, after)| after);
            by_another.unwrap_or(name).clone()
        };
        let down: Vec<Name> = services.iter().filter(|name| self.is_kept_down(name)).map(now).collect();
        let mut removed_all = true;
        if !services.is_empty() || !groups.is_empty() {
            let words = |names: Vec<Name>| names.into_iter().map(String::from).collect::<Vec<String>>();
            let select = Selector { services: words(services), groups: words(groups), ..Selector::default() };
            let removed = self.submit(Command::Remove { select }, by)?;
            let answer = answered(removed).await?;
            removed_all = answer.ok;
            reloaded.note(answer);
        }
        // Nothing can be put in the place of what would not go.
        for addition in put_back.into_iter().filter(|_| removed_all) {
            let (addition, later) = without_start(addition, &down);
            starting.push(self.submit(Command::Add { addition: Arc::new(addition) }, by)?);
            if !later.is_empty() {
                let select = Selector::named(later.iter().map(|spec| spec.name.as_str()));
                let change = Arc::new(PlanChange { services: later, ..PlanChange::default() });
                answered(self.submit(Command::Reconfigure { change }, by)?).await?;
                // So that the next supervisor knows of the wish, too.
                answered(self.submit(Command::Stop { select, force: true }, by)?).await?;
            }
        }
        let running: Vec<Name> =
            restart.into_iter().filter(|name| self.wants_another_process(name)).collect();
        if !running.is_empty() {
            let select = Selector::named(running.iter().map(Name::as_str));
            starting.push(self.submit(Command::Restart { select }, by)?);
        }
        // What could not be started may be possible now: its folder or its program may have come with the
        // manifests.
        let lost = self.tree_state(|tree_state| {
            let lost = tree_state.entries().iter().filter(|entry| {
                entry.goal == Goal::Up
                    && entry.state == State::Failed
                    && matches!(entry.failed, Some(FailureReason::Spawn { .. }))
                    && reloaded.difference.unchanged.contains(&entry.spec.name)
            });
            lost.map(|entry| entry.id.to_string()).collect::<Vec<_>>()
        });
        if !lost.is_empty() {
            let select = Selector::named(lost.iter().map(String::as_str));
            starting.push(self.submit(Command::Start { select, no_deps: false }, by)?);
        }
        for (service, to) in scale {
            let mut events = self.events();
            let mut pending = self.submit(Command::Scale { service: service.clone(), replicas: to }, by)?;
            // Those that go are down first: whoever changes it next is to find what there is then.
            let is = || self.plan().service(service.as_str()).is_some_and(|spec| spec.replicas == to);
            let early = loop {
                if is() {
                    break None;
                }
                tokio::select! {
                    answer = &mut pending => break Some(answer.unwrap_or_else(|_| Err(gone()))),
                    _ = events.next() => {}
                }
            };
            match early {
                Some(answer) => reloaded.note_or_denied(answer),
                None => starting.push(pending),
            }
        }
        Ok(Changing { reloaded, starting })
    }

    fn submit(&self, command: Command, by: Option<&Requester>) -> Result<Pending, Denial> {
        let (reply, answer) = oneshot::channel();
        let asked = IssuedCommand { command, by: by.cloned() };
        self.inner.root.cast(SupervisorMsg::Command(asked, reply)).map_err(|_| gone())?;
        Ok(answer)
    }

    fn is_kept_down(&self, service: &Name) -> bool {
        self.tree_state(|tree_state| {
            tree_state
                .instances_of(service)
                .all(|entry| entry.goal == Goal::Down && entry.state == State::Stopped)
        })
    }

    /// With what each process of a service was made.
    fn spawn_fingerprint(&self, service: &Name) -> Vec<u32> {
        self.tree_state(|tree_state| {
            let live = tree_state.instances_of(service).filter(|entry| entry.state.has_process());
            live.filter_map(|entry| entry.spawn_fingerprint).collect()
        })
    }

    /// Whether it has a process that is another by now, or could not have one.
    fn wants_another_process(&self, service: &Name) -> bool {
        self.tree_state(|tree_state| {
            tree_state.instances_of(service).any(|entry| {
                let there = entry.state.has_process()
                    || matches!(entry.state, State::Waiting | State::Crashed | State::Failed);
                there && entry.goal == Goal::Up
            })
        })
    }
}

/// A change that is made, but for what it has started.
pub struct Changing {
    reloaded: Reloaded,
    starting: Vec<Pending>,
}

impl Reloaded {
    fn note_or_denied(&mut self, answer: Result<Answer, Denial>) {
        self.note(answer.unwrap_or_else(|denial| {
            let message = denial.reason;
            let result = InstanceAnswer { name: "reload".to_owned(), ok: false, message };
            Answer { ok: false, results: vec![result] }
        }));
    }

    fn note(&mut self, answer: Answer) {
        self.ok &= answer.ok;
        self.results.extend(answer.results);
    }
}

fn gone() -> Denial {
    Denial { code: DenialCode::Internal, reason: "the tree is gone".to_owned(), hint: None }
}

async fn answered(pending: Pending) -> Result<Answer, Denial> {
    pending.await.unwrap_or_else(|_| Err(gone()))
}

/// The addition in which these services don't start by themselves, and how they are to be after it.
fn without_start(mut addition: Addition, down: &[Name]) -> (Addition, Vec<Arc<ServiceSpec>>) {
    let mut later = Vec::new();
    for spec in &mut addition.services {
        if spec.autostart && down.contains(&spec.name) {
            later.push(Arc::clone(spec));
            Arc::make_mut(spec).autostart = false;
        }
    }
    (addition, later)
}
