//! From the text of a manifest, which may be wrong, to a [`Plan`], which can't be. The daemon's
//! configuration is read here as well.
//!
//! May use `model`, `decide` and files. Every fault of a manifest is collected, with its place;
//! nothing is started from here and nothing is printed.

pub mod config;
mod decode;
mod dotenv;
pub mod fault;
pub mod folder;
mod interpolate;
pub mod keys;
pub mod last_good;
mod load;
mod reader;
mod size;
mod validate;

pub use fault::{Fault, LoadError, Source};
pub use load::{Environment, Loaded, LoadedAddition, discover, load, load_addition, load_text};

#[cfg(doc)]
use crate::model::Plan;
