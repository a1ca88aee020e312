//! The requests about the files of a daemon's manifests folder. Each file is checked, written whole
//! or not at all, and then the tree is made what the folder says.
//!
//! What makes a manifest right is `manifest`'s to say.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Extension;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path as InPath, State};
use axum::response::{IntoResponse, Response};

use super::{admin, body};
use crate::control::connections::Caller;
use crate::control::protocol::{FaultBody, Manifest, ManifestFile, Manifests, Write};
use crate::control::refused::{Handled, Refused, refuse};
use crate::control::shared::{Daemon, Shared};
use crate::decide::access::Action;
use crate::decide::resolve::resolve;
use crate::manifest::Environment;
use crate::manifest::folder::{check_text_in, file_of_project};
use crate::model::{Denial, DenialCode, Name, Requester, Selector};
use crate::runtime::reload::Changing;
use crate::sys::files;

fn named(name: Result<InPath<String>, PathRejection>) -> Handled<String> {
    let invalid = |rejection: PathRejection| refuse(DenialCode::Invalid, rejection.body_text(), None);
    name.map(|InPath(name)| name).map_err(invalid)
}

/// The path of the manifest of that name. Only a valid name becomes a path.
fn path_of(daemon: &Daemon, name: &str) -> Handled<PathBuf> {
    let name = Name::new(name).map_err(|error| {
        refuse(DenialCode::Invalid, format!("{name:?} is not a valid name: {error}"), None)
    })?;
    Ok(daemon.manifests.join(format!("{name}.toml")))
}

fn daemon(shared: &Shared) -> Handled<Arc<Daemon>> {
    shared
        .daemon
        .clone()
        .ok_or_else(|| refuse(DenialCode::Invalid, "only a daemon has a manifests folder", None))
}

fn unwritten(path: &Path, error: &std::io::Error) -> Refused {
    refuse(DenialCode::Internal, format!("{} can't be written: {error}", path.display()), None)
}

/// The text of a manifest; `None` where there is no such file.
async fn text_of(path: PathBuf) -> Handled<Option<String>> {
    let shown = path.display().to_string();
    let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await;
    match read.map_err(std::io::Error::other).and_then(|read| read) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(refuse(DenialCode::Internal, format!("{shown} can't be read: {error}"), None)),
    }
}

pub(in crate::control) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
) -> Handled<Response> {
    let daemon = daemon(&shared)?;
    let folder = daemon.manifests.clone();
    let read = move || -> std::io::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(&folder)?;
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut files: Vec<PathBuf> =
            paths.filter(|path| path.extension().is_some_and(|kind| kind == "toml")).collect();
        files.sort();
        Ok(files)
    };
    let found =
        tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other).and_then(|found| found);
    let files = match found {
        Ok(files) => files,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            return Err(refuse(
                DenialCode::Internal,
                format!("the manifests folder can't be read: {error}"),
                None,
            ));
        }
    };
    let named = |path: PathBuf| {
        let name = path.file_stem()?.to_string_lossy().into_owned();
        Some(ManifestFile { name, file: path })
    };
    let seen = |file: &ManifestFile| caller.may(Action::Manifest, &file.name);
    let manifests = files.into_iter().filter_map(named).filter(seen).collect();
    Ok(axum::Json(Manifests { folder: daemon.manifests.clone(), manifests }).into_response())
}

pub(in crate::control) async fn show(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    name: Result<InPath<String>, PathRejection>,
) -> Handled<Response> {
    let asked = named(name)?;
    let daemon = daemon(&shared)?;
    // The manifest of this name; else the manifest that declares a service of this name.
    let own = match Name::new(&asked) {
        Ok(_) => {
            let file = path_of(&daemon, &asked)?;
            let text = text_of(file.clone()).await?;
            text.map(|text| Manifest { name: asked.clone(), file, text })
        }
        Err(_) => None,
    };
    let found = match own {
        Some(own) => Some(own),
        None => manifest_with(&shared, &daemon, &asked).await?,
    };
    let name = found.as_ref().map_or(&asked, |manifest| &manifest.name);
    if !caller.may(Action::Manifest, name) {
        return Err(shared.refuse(&caller, Action::Manifest, &asked));
    }
    match found {
        Some(manifest) => Ok(axum::Json(manifest).into_response()),
        None => Err(missing(&asked)),
    }
}

/// The manifest that declares a service.
async fn manifest_with(shared: &Shared, daemon: &Daemon, service: &str) -> Handled<Option<Manifest>> {
    let select = Selector::named([service]);
    let found = shared.handle.tree_state(|tree_state| resolve(tree_state, &select));
    let project = match found {
        Ok(found) => found.first().and_then(|id| id.service().project().map(str::to_owned)),
        Err(denial) if denial.code == DenialCode::Ambiguous => return Err(denial.into()),
        Err(_) => None,
    };
    let Some(project) = project else {
        return Ok(None);
    };
    let folder = daemon.manifests.clone();
    let find = move || {
        let file = file_of_project(&folder, &project)?;
        let name = file.file_stem()?.to_str()?.to_owned();
        let text = std::fs::read_to_string(&file).ok()?;
        Some(Manifest { name, file, text })
    };
    let gone = |_| refuse(DenialCode::Internal, "the manifests could not be read", None);
    tokio::task::spawn_blocking(find).await.map_err(gone)
}

fn missing(name: &str) -> Refused {
    let hint = Some("\"regrow service list\" lists the manifests");
    refuse(DenialCode::NotFound, format!("there is no manifest {name}"), hint)
}

pub(in crate::control) async fn write(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    name: Result<InPath<String>, PathRejection>,
    json: Result<axum::Json<Write>, JsonRejection>,
) -> Handled<Response> {
    let name = named(name)?;
    let Write { text, create } = body(json)?;
    shared.permit(&caller, Action::Manifest, &name)?;
    let daemon = daemon(&shared)?;
    let path = path_of(&daemon, &name)?;
    let alone = daemon.writing.lock().await;
    let before = text_of(path.clone()).await?;
    match (&before, create) {
        // The request was sent again after a daemon wrote the file and was killed.
        (Some(before), true) if *before == text => {}
        (Some(_), true) => {
            let hint = Some("\"regrow service config\" changes it");
            let reason = format!("a manifest {name} already exists");
            return Err(refuse(DenialCode::Exists, reason, hint));
        }
        (None, false) => return Err(missing(&name)),
        (Some(_), false) | (None, true) => {}
    }
    let (checked, folder, file) = (text.clone(), daemon.manifests.clone(), path.clone());
    let check = move || match check_text_in(&checked, &folder, &file, &Environment::of_process()) {
        Ok(_) => Vec::new(),
        Err(faults) => {
            faults.iter().map(|fault| FaultBody { file: file.clone(), ..FaultBody::of(fault) }).collect()
        }
    };
    let gone = |_| refuse(DenialCode::Internal, "the manifest could not be checked", None);
    let faults: Vec<FaultBody> = tokio::task::spawn_blocking(check).await.map_err(gone)?;
    if !faults.is_empty() {
        let reason = format!("{name} would be faulty; nothing was changed");
        return Err(Refused { denial: Denial { code: DenialCode::Faulty, reason, hint: None }, faults });
    }
    let changing = put(&daemon, &shared, caller.asker(), &path, Some(text), before).await?;
    // A service that is slow to become ready holds up no other change.
    drop(alone);
    Ok(axum::Json(shared.handle.changed(changing).await).into_response())
}

pub(in crate::control) async fn remove(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    name: Result<InPath<String>, PathRejection>,
) -> Handled<Response> {
    let name = named(name)?;
    shared.permit(&caller, Action::Manifest, &name)?;
    let daemon = daemon(&shared)?;
    let path = path_of(&daemon, &name)?;
    let alone = daemon.writing.lock().await;
    let Some(before) = text_of(path.clone()).await? else {
        return Err(missing(&name));
    };
    let changing = put(&daemon, &shared, caller.asker(), &path, None, Some(before)).await?;
    drop(alone);
    Ok(axum::Json(shared.handle.changed(changing).await).into_response())
}

/// Writes the file, or removes it where `text` is `None`, and makes the tree what the folder says
/// then. If that is refused, the file is put back as it was `before`.
async fn put(
    daemon: &Daemon,
    shared: &Shared,
    by: Requester,
    path: &Path,
    text: Option<String>,
    before: Option<String>,
) -> Handled<Changing> {
    place(path, text).await?;
    let read = daemon.read(&shared.handle, admin::Refusal::Of(path.to_owned()));
    match shared.handle.begin_change_to(read, Some(by)).await {
        Ok(changing) => {
            shared.as_the_folder_says();
            Ok(changing)
        }
        Err(refused) => {
            place(path, before).await?;
            Err(refused)
        }
    }
}

async fn place(path: &Path, text: Option<String>) -> Handled<()> {
    let at = path.to_owned();
    let act = move || match text {
        Some(text) => files::replace(&at, &text),
        None => std::fs::remove_file(&at),
    };
    let done = tokio::task::spawn_blocking(act).await.map_err(std::io::Error::other).and_then(|done| done);
    done.map_err(|error| unwritten(path, &error))
}
