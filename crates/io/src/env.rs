//! Everything that the outside world is to the store, in one value.

use std::sync::Arc;

use crate::clock::{Clock, SystemClock};
use crate::exec::{Executor, ThreadPool};
use crate::fs::Fs;
use crate::fs::os::OsFs;
use crate::rng::{Entropy, OsEntropy};

/// The file system, the clock, the source of chance and the background executor that a store uses.
/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Env {
    /// Where files are.
    pub fs: Arc<dyn Fs>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where chance comes from.
    pub entropy: Arc<dyn Entropy>,
    /// Who does the background work.
    pub exec: Arc<dyn Executor>,
}

impl Env {
    /// The real disk, the real clock, the kernel's entropy and `threads` background threads.
    pub fn os(threads: usize) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        Self {
            fs: Arc::new(OsFs::new()),
            entropy: Arc::new(OsEntropy::new()),
            exec: Arc::new(ThreadPool::new(threads)),
            clock,
        }
    }
}
