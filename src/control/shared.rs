//! What every request works with: the tree, the daemon's store and manifests, and the answers of late.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::Request;
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, watch};

use super::auth::Guard;
use super::connections::Caller;
use super::idempotency::{Answers, Given};
use super::refused::{Handled, Refused, refuse};
use crate::decide::access::Action;
use crate::decide::resolve::resolve;
use crate::manifest::LoadError;
use crate::model::{Denial, DenialCode, InstanceId, Plan, Selector};
use crate::record::store::{AcceptedCommand, AuditEntry, Store, StoreError};
use crate::runtime::Handle;

/// What every request works with.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) handle: Handle,
    pub(super) closing: watch::Receiver<bool>,
    pub(super) daemon: Option<Arc<Daemon>>,
    pub(super) guard: Option<Arc<Guard>>,
    pub(super) answers: Answers,
    /// Who reads log files.
    pub(super) reading: Arc<Semaphore>,
    /// Of those who come by the network, and how long they may take for it.
    pub(super) remote_body: (u64, Duration),
}

/// Bytes of the largest body of a local user who is not ourselves or root.
const OF_OTHERS: u64 = 1 << 20;

/// Rows of one answer to others than ourselves and root; more come in pages.
const ROWS: usize = 10_000;

/// So long the body of a request by the control socket may take.
const LOCAL_BODY: Duration = Duration::from_secs(30);

/// What only a daemon can do.
pub struct Daemon {
    /// What happened before.
    pub store: Option<Store>,
    /// Reads its manifests again, beside the plan that runs. An error where the folder can't be read.
    pub load: Load,
    /// The folder of its manifests.
    pub manifests: PathBuf,
    /// Held while one of them is changed.
    pub writing: tokio::sync::Mutex<()>,
    /// It is to be replaced by this program.
    pub upgrade: mpsc::UnboundedSender<PathBuf>,
}

/// Reads a daemon's manifests beside the plan that runs.
pub type Load = Arc<dyn Fn(&Plan) -> Result<LoadedManifests, LoadError> + Send + Sync>;

/// What a daemon's manifests say.
pub struct LoadedManifests {
    /// All of it, as far as it can be used; of what is faulty, what was right before.
    pub plan: Plan,
    /// What is wrong, a file each.
    pub faults: Vec<LoadError>,
}

impl Shared {
    pub(super) fn store(&self) -> Option<Store> {
        self.daemon.as_ref().and_then(|daemon| daemon.store.clone())
    }

    /// Bytes of the largest body that a request may have, and how long that may take.
    pub(super) fn largest_body(&self, request: &Request, local: u64) -> (u64, Duration) {
        let caller = request.extensions().get::<Caller>();
        match caller {
            Some(caller) if caller.is_remote() => self.remote_body,
            Some(caller) if caller.may_everything() => (local, LOCAL_BODY),
            Some(_) | None => (local.min(OF_OTHERS), LOCAL_BODY),
        }
    }

    /// So many rows one answer has: as many as are asked for; to others than ourselves and root not
    /// without end.
    pub(super) fn at_most(&self, caller: &Caller, asked: Option<usize>) -> usize {
        match caller.may_everything() && !caller.is_remote() {
            true => asked.unwrap_or(usize::MAX),
            false => asked.unwrap_or(ROWS).min(ROWS),
        }
    }

    /// Writes down who did, or was not let do, what.
    pub(super) fn audit(&self, who: &str, action: &str, resource: &str, allowed: Result<(), &str>) {
        // It is the caller's text: short, and nothing that a terminal would obey.
        let resource: String = resource.chars().take(200).flat_map(char::escape_debug).collect();
        if let Err(why) = allowed {
            tracing::warn!(who, "{action}:{resource} was refused: {why}");
        }
        if let Some(store) = self.store() {
            store.audit(AuditEntry {
                at: SystemTime::now(),
                who: who.to_owned(),
                action: action.to_owned(),
                resource,
                allowed: allowed.is_ok(),
                reason: allowed.err().map(str::to_owned),
            });
        }
    }

    pub(super) fn refuse(&self, caller: &Caller, action: Action, resource: &str) -> Refused {
        self.audit(&caller.who, action.word(), resource, Err("not granted"));
        let shown: String = resource.chars().take(200).collect();
        refuse(DenialCode::Forbidden, format!("{} may not {action}:{shown}", caller.who), None)
    }

    /// Asks whether somebody may do this, and writes it down.
    pub(super) fn permit(&self, caller: &Caller, action: Action, resource: &str) -> Handled<()> {
        if !caller.may(action, resource) {
            return Err(self.refuse(caller, action, resource));
        }
        self.note(caller, action, resource);
        Ok(())
    }

    pub(super) fn note(&self, caller: &Caller, action: Action, resource: &str) {
        if !action.only_looks() {
            self.audit(&caller.who, action.word(), resource, Ok(()));
        }
    }

    /// Whether somebody may do this with an instance. A permission names `project/name`; one that names
    /// a service without its project is good as long as no other project has one of that name.
    pub(super) fn granted(&self, caller: &Caller, action: Action, id: &InstanceId) -> bool {
        caller.may_with(action, id) || {
            let shown = self.handle.tree_state(|tree_state| tree_state.shown(id));
            let service = self.handle.tree_state(|tree_state| tree_state.shown_service(id.service()));
            [&shown, &service].iter().any(|name| !name.contains('/') && caller.may(action, name))
        }
    }

    /// Asks whether somebody may do this with each of them. Those they named, and have no right to,
    /// are refused; of all, those they have a right to are meant.
    pub(super) fn instances(
        &self,
        caller: &Caller,
        action: Action,
        named: Vec<String>,
    ) -> Handled<Vec<InstanceId>> {
        let all = named.is_empty();
        let select = if all { Selector::all() } else { Selector::named(named.clone()) };
        let found = self.handle.tree_state(|tree_state| resolve(tree_state, &select));
        let found = match found {
            Ok(found) => found,
            // What there is, is nobody's business who may not see it.
            Err(denial) => {
                return Err(match named.iter().find(|name| !caller.may(action, name)) {
                    Some(name) => self.refuse(caller, action, name),
                    None if caller.may_everywhere(Action::Read) => denial.into(),
                    None => Denial { hint: None, ..denial }.into(),
                });
            }
        };
        if all {
            return Ok(found.into_iter().filter(|id| self.granted(caller, action, id)).collect());
        }
        match found.iter().find(|id| !self.granted(caller, action, id)) {
            Some(id) => Err(self.refuse(caller, action, &id.to_string())),
            None => Ok(found),
        }
    }

    /// The answer that a key has got, by an earlier daemon or long ago, and to what. A store that can't
    /// be read keeps nobody from commanding.
    pub(super) async fn answered_before(&self, who: &str, key: &str) -> Option<(String, Given)> {
        let store = self.store()?;
        let (who, key) = (who.to_owned(), key.to_owned());
        let read = from_store(move || store.answer(&who, &key)).await;
        let kept = read.unwrap_or_else(|refused| {
            tracing::warn!("{}", refused.denial.reason);
            None
        })?;
        Some((kept.asked, Given { status: kept.status, body: Bytes::from(kept.body) }))
    }

    /// The command with this key that was taken already.
    ///
    /// `since`: earlier ones are somebody else's of the same name.
    pub(super) async fn was_taken(
        &self,
        who: &str,
        since: Option<SystemTime>,
        key: &str,
    ) -> Option<AcceptedCommand> {
        let store = self.store()?;
        let (who, key) = (who.to_owned(), key.to_owned());
        from_store(move || store.was_taken(&who, since, &key)).await.ok().flatten()
    }

    /// The tree is what the manifests say: what was changed by hand before counts no more.
    pub(super) fn as_the_folder_says(&self) {
        if let Some(store) = self.store() {
            store.forget_change(None);
        }
    }

    pub(super) fn keep_answer(&self, who: &str, key: &str, asked: &str, given: &Given) {
        if let Some(store) = self.store() {
            let body = String::from_utf8_lossy(&given.body).into_owned();
            store.keep_answer(who, key, asked, given.status, body);
        }
    }
}

/// Reads the store, beside everything else.
pub(super) async fn from_store<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Handled<T> {
    let broken = |why: String| refuse(DenialCode::Internal, format!("the store can't be read: {why}"), None);
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(broken(error.to_string())),
        Err(error) => Err(broken(error.to_string())),
    }
}
