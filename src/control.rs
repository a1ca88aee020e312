//! The control socket, and the API on the network: HTTP/1.1 with JSON, and server-sent events for
//! what a client follows, so that `curl` is a client too.
//!
//! A request passes `connections` (who is at the other end), `middleware` with `auth` (whose
//! request it is, and whether it is one too many), for commands `idempotency`, and then its handler
//! in `requests`, which asks whether the caller may do this. `operations` lists every request.
//!
//! May use every room below the command line: `model`, `decide`, `manifest`, `record` and the
//! runtime's [`Handle`](crate::runtime::Handle) above all. System calls, SQL and actor messages are
//! deliberately absent; they are made by `sys`, `record` and the runtime.

mod auth;
mod body;
pub mod client;
mod connections;
mod idempotency;
pub mod instance_dir;
mod middleware;
mod operations;
pub mod protocol;
mod refused;
mod requests;
mod seats;
pub mod server;
pub(crate) mod shared;
mod timed;
pub mod tls;
