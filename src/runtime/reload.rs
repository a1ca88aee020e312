//! Changes a running tree into that of another plan, with the same commands that a user has.
//!
//! What differs between two plans, and the way from one to the other, is decided in
//! [`crate::decide::reload`]; this module issues the commands and collects their answers.

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

/// The result of a reload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Reloaded {
    /// The differences between the two plans.
    #[serde(flatten)]
    pub difference: PlanDiff,
    /// Whether all of it was done, and everything that was started is ready.
    pub ok: bool,
    /// The outcome for every instance that was started, stopped or restarted.
    pub results: Vec<InstanceAnswer>,
    /// The manifests that can't be used as they are; their services keep running as before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faulty: Vec<FaultyManifest>,
}

type Pending = oneshot::Receiver<Result<Answer, Denial>>;

impl Handle {
    /// Changes the tree into that of another plan, and touches only what differs. Returns when
    /// everything added and restarted is ready, or says why not. Changes go one at a time, and the plan
    /// is read only when its turn comes, so the later of two changes wins.
    pub async fn change_to<E: From<Denial>>(
        &self,
        plan: impl Future<Output = Result<Plan, E>>,
        by: Option<Requester>,
    ) -> Result<Reloaded, E> {
        let changing = self.begin_change_to(plan, by).await?;
        Ok(self.changed(changing).await)
    }

    /// Does the same up to the point where the started instances only have to become ready; that wait
    /// holds up no other change.
    pub async fn begin_change_to<E: From<Denial>>(
        &self,
        plan: impl Future<Output = Result<Plan, E>>,
        by: Option<Requester>,
    ) -> Result<Changing, E> {
        let _one_at_a_time = self.inner.reloading.lock().await;
        Ok(self.begin_change(plan.await?, by.as_ref()).await?)
    }

    /// Waits until everything that a change has started is ready, or has failed.
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
        let steps = reload::reload_plan(&self.plan(), &plan, |service| self.spawn_fingerprint(service));
        let ReloadPlan { difference, add, change, remove, put_back, restart, scale, renamed } = steps;
        let mut reloaded = Reloaded { difference, ok: true, results: Vec::new(), faulty: Vec::new() };
        // Each command is in the tree state before the next one is carried out, since all go through one
        // mailbox.
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
        // The copies of a service that was stopped by hand stay down when they come back.
        let now = |name: &Name| {
            let by_another = renamed.iter().find(|(before, _)| before == name).map(|(_, after)| after);
            by_another.unwrap_or(name).clone()
        };
        let down: Vec<Name> = services.iter().filter(|name| self.is_kept_down(name)).map(now).collect();
        let removed_all = self.remove_for(services, groups, by, &mut reloaded).await?;
        // A service that was not removed can't be replaced.
        for addition in put_back.into_iter().filter(|_| removed_all) {
            starting.push(self.put_back(addition, &down, by).await?);
        }
        let running: Vec<Name> =
            restart.into_iter().filter(|name| self.wants_another_process(name)).collect();
        if !running.is_empty() {
            let select = Selector::named(running.iter().map(Name::as_str));
            starting.push(self.submit(Command::Restart { select }, by)?);
        }
        // A spawn that failed may succeed now: the folder or the program may have come with the manifests.
        let lost = self.failed_to_spawn(&reloaded.difference.unchanged);
        if !lost.is_empty() {
            let select = Selector::named(lost.iter().map(String::as_str));
            starting.push(self.submit(Command::Start { select, no_deps: false }, by)?);
        }
        for (service, to) in scale {
            match self.scale_for(&service, to, by).await? {
                Ok(answer) => reloaded.note_or_denied(answer),
                Err(pending) => starting.push(pending),
            }
        }
        Ok(Changing { reloaded, starting })
    }

    /// Removes services and groups. Returns whether all of them are gone.
    async fn remove_for(
        &self,
        services: Vec<Name>,
        groups: Vec<Name>,
        by: Option<&Requester>,
        reloaded: &mut Reloaded,
    ) -> Result<bool, Denial> {
        if services.is_empty() && groups.is_empty() {
            return Ok(true);
        }
        let words = |names: Vec<Name>| names.into_iter().map(String::from).collect::<Vec<String>>();
        let select = Selector { services: words(services), groups: words(groups), ..Selector::default() };
        let answer = answered(self.submit(Command::Remove { select }, by)?).await?;
        let removed_all = answer.ok;
        reloaded.note(answer);
        Ok(removed_all)
    }

    /// Adds what was removed to come back; services that were kept `down` stay down.
    async fn put_back(
        &self,
        addition: Addition,
        down: &[Name],
        by: Option<&Requester>,
    ) -> Result<Pending, Denial> {
        let (addition, later) = without_start(addition, down);
        let starting = self.submit(Command::Add { addition: Arc::new(addition) }, by)?;
        if !later.is_empty() {
            let select = Selector::named(later.iter().map(|spec| spec.name.as_str()));
            let change = Arc::new(PlanChange { services: later, ..PlanChange::default() });
            answered(self.submit(Command::Reconfigure { change }, by)?).await?;
            // The command tells the next supervisor, too, that the service is to stay down.
            answered(self.submit(Command::Stop { select, force: true }, by)?).await?;
        }
        Ok(starting)
    }

    /// The instances of these services that are to be up and could not be spawned.
    fn failed_to_spawn(&self, services: &[Name]) -> Vec<String> {
        self.tree_state(|tree_state| {
            let lost = tree_state.entries().iter().filter(|entry| {
                entry.goal == Goal::Up
                    && entry.state == State::Failed
                    && matches!(entry.failed, Some(FailureReason::Spawn { .. }))
                    && services.contains(&entry.spec.name)
            });
            lost.map(|entry| entry.id.to_string()).collect()
        })
    }

    /// Scales a service. Copies that are scaled away are down first, so that the next change finds the
    /// tree as it will stay: then the answer is still to come (`Err`), unless it is there already.
    async fn scale_for(
        &self,
        service: &Name,
        to: u32,
        by: Option<&Requester>,
    ) -> Result<Result<Result<Answer, Denial>, Pending>, Denial> {
        let mut events = self.events();
        let mut pending = self.submit(Command::Scale { service: service.clone(), replicas: to }, by)?;
        let is = || self.plan().service(service.as_str()).is_some_and(|spec| spec.replicas == to);
        loop {
            if is() {
                return Ok(Err(pending));
            }
            tokio::select! {
                answer = &mut pending => return Ok(Ok(answer.unwrap_or_else(|_| Err(gone())))),
                _ = events.next() => {}
            }
        }
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

    /// The spawn fingerprint of each running process of a service.
    fn spawn_fingerprint(&self, service: &Name) -> Vec<u32> {
        self.tree_state(|tree_state| {
            let live = tree_state.instances_of(service).filter(|entry| entry.state.has_process());
            live.filter_map(|entry| entry.spawn_fingerprint).collect()
        })
    }

    /// Whether an instance of the service is to be up and has a process, or failed to get or keep one.
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

/// A change that is made, except that what it has started may not be ready yet.
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

/// Returns the addition with the services named in `down` not started by themselves, and the specs
/// that these are to have afterwards.
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
