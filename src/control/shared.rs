//! What every handler works with: the tree, the daemon's store and manifests, and the answers that
//! were given lately.
//!
//! Permissions are asked and written to the audit trail here.

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

/// What every handler works with.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) handle: Handle,
    pub(super) closing: watch::Receiver<bool>,
    pub(super) daemon: Option<Arc<Daemon>>,
    pub(super) guard: Option<Arc<Guard>>,
    pub(super) answers: Answers,
    /// The permits to read log files; only a few requests do so at a time.
    pub(super) reading: Arc<Semaphore>,
    /// The largest body of a request from the network, in bytes, and how long it may take.
    pub(super) remote_body: (u64, Duration),
}

/// The largest body, in bytes, of a local user other than root and this process's own.
const OF_OTHERS: u64 = 1 << 20;

/// The largest number of rows in one answer, except to root and to this process's own user.
const ROWS: usize = 10_000;

/// How long the body of a request on the control socket may take.
const LOCAL_BODY: Duration = Duration::from_secs(30);

/// What only a daemon has, beyond a tree.
pub struct Daemon {
    /// The store of events, histories and answers; `None` where there is none.
    pub store: Option<Store>,
    /// Reads the daemon's manifests again, beside the plan that runs. It fails where the folder can't
    /// be read.
    pub load: Load,
    /// The folder of the daemon's manifests.
    pub manifests: PathBuf,
    /// The lock that is held while a manifest is changed.
    pub writing: tokio::sync::Mutex<()>,
    /// Takes the program that is to replace the daemon.
    pub upgrade: mpsc::UnboundedSender<PathBuf>,
}

/// Reads a daemon's manifests beside the plan that runs.
pub type Load = Arc<dyn Fn(&Plan) -> Result<LoadedManifests, LoadError> + Send + Sync>;

/// What a daemon's manifests say.
pub struct LoadedManifests {
    /// The plan of all manifests. A faulty manifest is in it as it was when it was last right.
    pub plan: Plan,
    /// What is wrong with the manifests, one error for each file.
    pub faults: Vec<LoadError>,
}

impl Shared {
    pub(super) fn store(&self) -> Option<Store> {
        self.daemon.as_ref().and_then(|daemon| daemon.store.clone())
    }

    /// The largest body of this request, in bytes, and how long it may take. `local` is the size for
    /// callers with all rights on the control socket.
    pub(super) fn largest_body(&self, request: &Request, local: u64) -> (u64, Duration) {
        let caller = request.extensions().get::<Caller>();
        match caller {
            Some(caller) if caller.is_remote() => self.remote_body,
            Some(caller) if caller.may_everything() => (local, LOCAL_BODY),
            Some(_) | None => (local.min(OF_OTHERS), LOCAL_BODY),
        }
    }

    /// The number of rows for one answer: what was asked for, and for callers other than root and this
    /// process's own user [`ROWS`] at most.
    pub(super) fn at_most(&self, caller: &Caller, asked: Option<usize>) -> usize {
        match caller.may_everything() && !caller.is_remote() {
            true => asked.unwrap_or(usize::MAX),
            false => asked.unwrap_or(ROWS).min(ROWS),
        }
    }

    /// Writes to the audit trail what the caller did, or was refused.
    pub(super) fn audit(&self, who: &str, action: &str, resource: &str, allowed: Result<(), &str>) {
        // The text is the caller's, so it is cut short, and control characters are escaped.
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

    /// Refuses the request unless the caller may do this. Refusals and changes go into the audit trail.
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

    /// Whether the caller may do this with an instance. A permission names `project/name`; one that
    /// names a service without its project counts while no other project has a service of that name.
    pub(super) fn granted(&self, caller: &Caller, action: Action, id: &InstanceId) -> bool {
        caller.may_with(action, id) || {
            let shown = self.handle.tree_state(|tree_state| tree_state.shown(id));
            let service = self.handle.tree_state(|tree_state| tree_state.shown_service(id.service()));
            [&shown, &service].iter().any(|name| !name.contains('/') && caller.may(action, name))
        }
    }

    /// The instances that the request is about, where the caller may do this with them. A named
    /// instance that the caller has no right to is refused. Without names, all instances that the
    /// caller has a right to are meant.
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
            // A caller who may not see the services must not learn from the refusal which ones exist.
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

    /// The stored answer to this key, and the hash of the command that it was for. A store that can't
    /// be read keeps no caller from giving commands.
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

    /// The command that was already taken with this key.
    ///
    /// Commands from before `since` belong to an earlier token of the same name.
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

    /// Forgets the changes that were made by hand, since the tree is now what the manifests say.
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

/// Reads the store on another thread.
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
