//! Nodes over real sockets.

mod cluster;
mod common;
mod hostile;
mod loopback;
mod tls;
