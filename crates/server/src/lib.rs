//! FirnDB as a server: doors around one service.
//!
//! | Module | Owns |
//! |---|---|
//! | [`config`] | the one table of settings; file, environment, flags |
//! | [`cluster`] | the node of a cluster that the server is: who it is, who else there is
//! | [`service`] | meaning: limits, conditions, time to live, durability, cursors, errors |
//! | [`http`] | the HTTP door: routes, headers, bodies; translates and nothing else |
//! | [`dialect`] | HTTP as the systems before spoke it |
//! | [`grpc`] | the gRPC door, on the same port: methods, messages, statuses |
//! | [`resp`] | the RESP door: the protocol of Redis; translates and nothing else |
//! | [`metrics`] | what is counted, and `/metrics` |
//! | [`health`] | alive, ready |
//! | [`connection`] | a socket that watches its client's pace |
//! | [`multiplex`] | what a connection of HTTP/2 needs: the pace of each reply, its rest |
//! | [`serve`] | listens, limits connections and slow clients, drains, stops |
//!
//! A request goes `serve` -> `http` -> `service` -> engine and back; nothing is kept between
//! requests of a connection.
#![recursion_limit = "256"]
#![deny(missing_docs)]

pub mod cluster;
pub mod config;
pub mod connection;
pub mod dialect;
pub mod grpc;
pub mod health;
pub mod http;
pub mod metrics;
pub mod multiplex;
pub mod resp;
pub mod serve;
pub mod service;
