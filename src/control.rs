//! The control socket, and the API on the network: HTTP/1.1 with JSON, server-sent events for what
//! follows, so that `curl` is a client too.
//!
//! A request passes the `door` (who is at the other end), the `guard` (whose request it is, and
//! whether it is one too many), for commands `once`, and then its handler in `requests`, which asks
//! whether they may. `operations` lists them all.
//!
//! May use `model`, the fold in `decide`, the configuration in `manifest`, and the runtime's
//! [`Handle`](crate::runtime::Handle); the files are `os`'s.

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
pub mod server;
pub(crate) mod shared;
pub mod tls;
