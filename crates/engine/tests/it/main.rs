//! The engine as embedders meet it: through its public API, on disks that fail.

mod crash;
mod faults;
mod model;
mod verify;
mod world;
