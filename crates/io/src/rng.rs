//! Entropy: from the kernel in production, from a seed in tests.

use std::fmt::Debug;

/// A source of random numbers that threads may share.
pub trait Entropy: Send + Sync + Debug {
    /// The next 64 random bits. Not for secrets.
    fn next_u64(&self) -> u64;
}
