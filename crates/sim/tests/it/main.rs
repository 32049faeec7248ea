//! The simulator's tests: scenarios with a script, seeds, and bugs that must be found.

mod scenarios;
mod seeds;

#[cfg(feature = "planted-bugs")]
mod planted;
