//! Log files: no two services have the same, and each can be one.

use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::manifest::decode::Declared;
use crate::manifest::fault::Fault;
use crate::manifest::reader::Collector;
use crate::manifest::validate::also;
use crate::model::spec::put_aside_of;
use crate::model::{Name, ServiceSpec};

/// Notes the files that two instances would write their output to, each over the other's.
pub(super) fn log_files(
    declared: &Declared,
    services: &[ServiceSpec],
    there: &[Arc<ServiceSpec>],
    collector: &mut Collector,
) {
    let files = |spec: &ServiceSpec| -> Vec<PathBuf> {
        let log = spec.log.clone().unwrap_or_default();
        spec.instances().filter_map(|instance| log.file_of(&instance)).map(|file| plain(&file)).collect()
    };
    // A rotated file such as `web.log.1` must not be another's log file either.
    let mut taken: HashMap<PathBuf, (&Name, Option<Range<usize>>)> = HashMap::new();
    let mut put_aside: HashMap<PathBuf, PathBuf> = HashMap::new();
    let mut take = |spec, span: Option<&Range<usize>>, files: Vec<PathBuf>| {
        let clash = files.iter().find_map(|file| {
            let names = [Some(file.as_path()), put_aside_of(file), put_aside.get(file).map(PathBuf::as_path)];
            let found = names.into_iter().flatten().find_map(|name| taken.get(name))?;
            Some((file.clone(), found.clone()))
        });
        if clash.is_none() {
            for file in files {
                if let Some(of) = put_aside_of(&file) {
                    put_aside.insert(of.to_owned(), file.clone());
                }
                taken.insert(file, (spec, span.cloned()));
            }
        }
        clash
    };
    for spec in there {
        take(&spec.name, None, files(spec));
    }
    for (spec, declared) in services.iter().zip(&declared.services) {
        let Some(span) = declared.log.as_ref().and_then(|log| Some(log.file.as_ref()?.span.clone())) else {
            continue;
        };
        let Some((file, (first, at))) = take(&spec.name, Some(&span), files(spec)) else {
            continue;
        };
        let (file, first, second) = (file.display(), first.as_str(), spec.name.as_str());
        let message = format!("log file {file} is used by two services: {first:?} and {second:?}");
        let label = format!("also used by {}", spec.name);
        match at {
            Some(at) => also(collector, span, message, label, at, "first used here"),
            None => collector.fault(span, message, label),
        }
    }
}

/// A path without `..`, for comparing. Symbolic links are not followed; they are seen when the file
/// is opened.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

/// Warnings about paths that can't be log files. Such output goes into the state folder instead.
pub(in crate::manifest) fn useless_log_files(
    declared: &Declared,
    services: &[ServiceSpec],
    collector: &Collector,
) -> Vec<Fault> {
    let mut warnings = Vec::new();
    for (spec, declared) in services.iter().zip(&declared.services) {
        let (Some(log), Some(span)) = (&spec.log, declared.log.as_ref().and_then(|log| log.file.as_ref()))
        else {
            continue;
        };
        let why = spec.instances().find_map(|id| {
            let file = log.file_of(&id)?;
            let (why, hint) = useless(&file)?;
            Some((format!("{} can't be a log file: {why}", file.display()), hint))
        });
        if let Some((message, hint)) = why {
            warnings.push(Fault {
                source: Arc::clone(&collector.source),
                span: span.span.clone(),
                message,
                label: "its output will go to the state folder".to_owned(),
                also: None,
                hint: Some(hint.to_owned()),
            });
        }
    }
    warnings
}

/// Why a path can't be a log file, as far as that can be seen before it is opened, and what to do
/// instead.
fn useless(path: &Path) -> Option<(String, &'static str)> {
    const ANOTHER: &str = "name a regular file in a folder that the supervisor owns";
    let own = ["/dev/stdout", "/dev/stderr", "/dev/stdin"].iter().any(|own| path == Path::new(own));
    let by_number = ["/dev/fd", "/proc/self/fd"].iter().any(|folder| path.starts_with(folder));
    let device = || std::fs::metadata(path).is_ok_and(|at| at.file_type().is_char_device());
    if own || by_number || device() {
        let hint = "write file = \"inherit\" to send the output to the daemon's own output";
        return Some(("it is a device".to_owned(), hint));
    }
    match std::fs::symlink_metadata(path) {
        Ok(at) if at.is_dir() => return Some(("it is a folder".to_owned(), ANOTHER)),
        Ok(at) if at.is_symlink() => return Some(("it is a symbolic link".to_owned(), ANOTHER)),
        Ok(at) if at.file_type().is_fifo() => return Some(("it is a pipe".to_owned(), ANOTHER)),
        Ok(at) if !at.is_file() => return Some(("it is not a regular file".to_owned(), ANOTHER)),
        Ok(at) if at.nlink() > 1 => {
            return Some(("it has another name as well (a hard link)".to_owned(), ANOTHER));
        }
        Ok(_) | Err(_) => {}
    }
    let by_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let folder = path.ancestors().skip(1).find_map(|folder| Some((folder, std::fs::metadata(folder).ok()?)));
    let (folder, about) = folder?;
    let whose = match (about.uid(), about.mode() & 0o1002 == 0o002) {
        _ if !about.is_dir() => format!("{} is not a folder", folder.display()),
        (_, true) if by_root => format!("everybody may write to {}", folder.display()),
        (1.., _) if by_root => {
            format!("{} belongs to another user, who could make root write elsewhere", folder.display())
        }
        _ => return None,
    };
    Some((whose, "name a file in a folder that root owns; \"owner\" and \"mode\" let others read it"))
}
