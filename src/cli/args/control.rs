//! The arguments of the verbs that change a running tree: `start`, `stop`, `restart`, `pause`, `resume`, `add`, `remove`, `down`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{Common, Patience, Select};

#[derive(Debug, Args)]
pub(in crate::cli) struct StartArgs {
    #[command(flatten)]
    pub(in crate::cli) select: Select,
    #[command(flatten)]
    pub(in crate::cli) patience: Patience,
    /// Do not start dependencies that are down
    #[arg(long)]
    pub(in crate::cli) no_deps: bool,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StopArgs {
    #[command(flatten)]
    pub(in crate::cli) select: Select,
    #[command(flatten)]
    pub(in crate::cli) patience: Patience,
    /// Stop them even while running services depend on them
    #[arg(long)]
    pub(in crate::cli) force: bool,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PlainArgs {
    #[command(flatten)]
    pub(in crate::cli) select: Select,
    #[command(flatten)]
    pub(in crate::cli) patience: Patience,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct AddArgs {
    /// The manifest of what to add; it may depend on services of the tree
    pub(in crate::cli) file: PathBuf,
    /// Add it to this group [default: the root]
    #[arg(long, value_name = "GROUP")]
    pub(in crate::cli) group: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) patience: Patience,
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DownArgs {
    #[command(flatten)]
    pub(in crate::cli) common: Common,
}
