//! What the daemon reads of its manifests: at its start, at a reload, and when its folder has changed.

use std::path::Path;
use std::sync::Arc;

use super::journal::log;
use crate::cli::report;
use crate::cli::verbs::admin::reloaded_in_words;
use crate::control::server::{self, Load};
use crate::decide::graph::Graph;
use crate::decide::plan_edit;
use crate::decide::select::{Selection, select};
use crate::host::files_changed::FolderWatch;
use crate::manifest::config::Config;
use crate::manifest::folder::{Folder, FolderReader};
use crate::manifest::last_good::LastGood;
use crate::manifest::{Environment, LoadError, load_addition};
use crate::model::{Addition, Denial, DenialCode, Plan, Requester, SpecRefresh};
use crate::record::store::{ManualChange, Store};
use crate::runtime::Handle;
use crate::sys::files;

pub(super) fn loader(config: &Config, manifests: Arc<FolderReader>) -> Load {
    let (folder, profiles) = (config.manifests.clone(), config.profiles.clone());
    let stop_timeout = config.stop_timeout;
    Arc::new(move |now| {
        let unreadable = |error| LoadError::Unreadable { path: folder.clone(), error };
        // At the start the folder may not exist yet; at a reload a missing folder is an error.
        std::fs::read_dir(&folder).map_err(unreadable)?;
        let Folder { mut plan, graph, faults, .. } = manifests.read(Some(now)).map_err(unreadable)?;
        plan.stop.tree = stop_timeout;
        Ok(server::LoadedManifests { plan: selected(plan, &graph, &profiles), faults })
    })
}

pub(super) fn selected(plan: Plan, graph: &Graph, profiles: &[String]) -> Plan {
    let selection = Selection { profiles: profiles.to_vec(), ..Selection::default() };
    // A profile that no service has does not keep the rest from starting.
    select(&plan, graph, &selection).unwrap_or(plan)
}

/// Reloads that no client asked for: by SIGHUP, or because the folder has changed.
pub(super) struct Reloads {
    pub(super) watch: Option<FolderWatch>,
    /// The plan whose env files are watched.
    pub(super) plan: Option<Arc<Plan>>,
    pub(super) load: Load,
    pub(super) store: Option<Store>,
}

pub(super) fn watch_folder(config: &Config) -> Option<FolderWatch> {
    match config.watch.then(|| FolderWatch::new(&config.manifests))? {
        Ok(watch) => Some(watch),
        Err(error) => {
            tell!("regrow: {} can't be watched: {error}", config.manifests.display());
            None
        }
    }
}

impl Reloads {
    /// Returns when the folder, or an env file that one of its services names, has changed.
    pub(super) async fn wanted(&mut self, handle: &Handle) {
        match &mut self.watch {
            Some(watch) => {
                let plan = handle.plan();
                if !self.plan.as_ref().is_some_and(|known| Arc::ptr_eq(known, &plan)) {
                    let renewals = plan.services.iter().filter_map(|spec| spec.renewal.as_ref());
                    watch.also(renewals.flat_map(SpecRefresh::files));
                    self.plan = Some(plan);
                }
                if let Err(error) = watch.changed().await {
                    tell!("regrow: the manifests can't be watched any more: {error}");
                    self.watch = None;
                }
            }
            None => std::future::pending().await,
        }
    }

    pub(super) fn begin(&self, handle: &Handle, by: &'static str) {
        let (load, handle, store) = (Arc::clone(&self.load), handle.clone(), self.store.clone());
        let told = handle.clone();
        tokio::spawn(async move {
            let plan = async move {
                let now = told.plan();
                match tokio::task::spawn_blocking(move || load(&now)).await {
                    Ok(Ok(server::LoadedManifests { plan, faults })) => {
                        faults.iter().for_each(report::tell_beside_others);
                        told.tell_faulty(faults.iter().map(LoadError::in_short).collect());
                        Ok(plan)
                    }
                    Ok(Err(fault)) => {
                        report::tell_beside_others(&fault);
                        let reason = "the manifests can't be read; nothing was changed".to_owned();
                        Err(Denial { code: DenialCode::Faulty, reason, hint: None })
                    }
                    Err(error) => {
                        Err(Denial { code: DenialCode::Internal, reason: error.to_string(), hint: None })
                    }
                }
            };
            match handle.change_to(plan, Some(Requester::new(by))).await {
                Ok(done) => {
                    if let Some(store) = store {
                        store.forget_change(None);
                    }
                    log(&format!(
                        "reloaded: {}",
                        reloaded_in_words(&done.difference, |name| handle
                            .tree_state(|tree_state| tree_state.shown_service(name)))
                        .join("; ")
                    ));
                }
                Err(denial) => log(&format!("not reloaded: {}", denial.reason)),
            }
        });
    }
}

/// The last good text of manifests that can't be read now. Only a daemon that follows another uses
/// it.
pub(super) fn last_good(path: &Path, follows: bool) -> LastGood {
    let written = follows.then(|| files::read_own(path).ok()).flatten();
    let to = path.to_owned();
    LastGood::of(written.as_deref(), move |text| files::replace_quickly(&to, text))
}

/// The plan with the services and groups that were added and removed by hand since the manifests
/// were last read.
pub(super) fn changed_by_hand(mut plan: Plan, store: &Store, environment: &Environment) -> Plan {
    let changes = store.changes().unwrap_or_else(|error| {
        tell!("regrow: the services added and removed by hand can't be read: {error}");
        Vec::new()
    });
    for change in changes {
        let made = match &change {
            ManualChange::Removed { services, groups } => Ok(plan_edit::without(&plan, services, groups)),
            ManualChange::Added { manifest, file, group } => {
                load_addition(manifest, file, environment, &plan)
                    .map_err(|faults| faults.first().map(|fault| fault.message.clone()).unwrap_or_default())
                    .and_then(|loaded| {
                        let addition = Addition { into: group.clone(), ..loaded.addition };
                        plan_edit::with(&plan, &addition).map_err(|denial| denial.reason)
                    })
            }
        };
        match made {
            Ok(made) => plan = made,
            Err(why) => tell!("regrow: a change made by hand can't be applied again: {why}"),
        }
    }
    plan
}
