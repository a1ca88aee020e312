//! regrow is a supervision-tree runtime for OS processes: every managed process is an actor
//! in a tree of supervisors; cut a process down and it grows back.
//!
//! The command line of the same name is one use of this crate; a program can embed the tree
//! instead (`default-features = false` leaves the command line and its packages out):
//!
//! ```no_run
//! use regrow::model::{Name, Plan, ServiceSpec};
//! use regrow::runtime::{Handle, Options};
//!
//! # async fn embed() -> Result<(), Box<dyn std::error::Error>> {
//! let ticker = ServiceSpec::new(Name::new("ticker")?, ["sh", "-c", "date; sleep 1; exit 1"]);
//! let tree = Handle::start(Plan::of("mine", vec![ticker]), Options::default()).await?;
//! let mut events = tree.events();
//! println!("{:?}", events.next().await);
//! tree.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`model`] | the nouns: plans, services, commands, events, states |
//! | [`manifest`] | from TOML text to a plan, with every fault and its place |
//! | [`decide`] | pure decisions: life of an instance, restarts, groups, dependencies |
//! | [`sys`] | thin calls to the kernel |
//! | [`logs`], [`vault`], [`measure`] | log files; secrets and tokens; what the machine and the trees use |
//! | [`host`] | the processes of this machine, behind one trait |
//! | [`runner`] | the seam to what is no process of this machine |
//! | [`actors`] | the shell of actors around the decisions |
//! | [`record`] | what is kept of output |
//! | [`runtime`] | wiring, and the handle to a running tree |
//!
//! Linux 5.4 or later.

/// The examples of the documents, which must compile.
#[cfg(doctest)]
#[doc = include_str!("../docs/embedding.md")]
struct Documents;

pub mod actors;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "control")]
pub mod control;
pub mod decide;
pub mod host;
pub mod logs;
pub mod manifest;
pub mod measure;
pub mod model;
pub mod present;
pub mod record;
pub mod runner;
pub mod runtime;
pub mod sys;
pub mod vault;
