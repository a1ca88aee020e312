//! Where the configuration of a daemon lies, and what it says.

use std::path::PathBuf;

use crate::manifest::config::DefaultPaths;
use crate::sys::files;

pub(super) fn default_paths() -> DefaultPaths {
    let named = std::env::var_os("REGROW_CONFIG").filter(|path| !path.is_empty());
    DefaultPaths { state: files::state_dir(), config: files::config_dir(), named: named.map(PathBuf::from) }
}
