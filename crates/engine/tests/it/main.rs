//! The engine as embedders meet it: through its public API, on disks that fail.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod crash;
mod faults;
mod golden_db;
mod inspect;
mod model;
mod order;
mod repair;
mod upkeep;
mod verify;
mod watch;
mod world;
