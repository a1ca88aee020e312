//! The control socket: HTTP/1.1 with JSON over a Unix socket, server-sent events for what
//! follows, so that `curl --unix-socket` is a client too.
//!
//! May use `model`, the fold in `decide`, and the runtime's [`Handle`](crate::runtime::Handle);
//! the socket's file is `os`'s.

pub mod client;
mod manifests;
pub mod place;
pub mod protocol;
pub mod server;
