//! A world for one test: a disk in memory, a clock that is told the time, and background work that
//! runs when the test says so.

use std::path::Path;
use std::sync::Arc;

use firn_engine::{Db, Options, Result};
use firn_io::Env;
use firn_io::clock::ManualClock;
use firn_io::exec::{Executor, Stepper};
use firn_io::fs::Fs;
use firn_io::fs::mem::MemFs;
use firn_io::rng::SeededEntropy;

/// Where the database is in every test.
pub(crate) const DIR: &str = "/db";

/// When every test begins, in Unix milliseconds.
pub(crate) const START_MS: u64 = 1_700_000_000_000;

pub(crate) struct World {
    pub(crate) disk: MemFs,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) exec: Arc<Stepper>,
    pub(crate) env: Env,
}

impl World {
    /// A world with an empty disk.
    pub(crate) fn new(seed: u64) -> Self {
        Self::on(MemFs::new(), seed)
    }

    /// A world with this disk.
    pub(crate) fn on(disk: MemFs, seed: u64) -> Self {
        let fs: Arc<dyn Fs> = Arc::new(disk.clone());
        Self::through(disk, fs, seed)
    }

    /// A world with this disk, seen through `fs`.
    pub(crate) fn through(disk: MemFs, fs: Arc<dyn Fs>, seed: u64) -> Self {
        let clock = Arc::new(ManualClock::new(START_MS));
        let exec = Arc::new(Stepper::new(seed, clock.clone()));
        let env = Env {
            fs,
            clock: clock.clone(),
            entropy: Arc::new(SeededEntropy::new(seed)),
            exec: exec.clone(),
        };
        Self {
            disk,
            clock,
            exec,
            env,
        }
    }

    pub(crate) fn open(&self, options: Options) -> Result<Db> {
        Db::open_with(self.env.clone(), Path::new(DIR), options)
    }

    /// Runs up to `jobs` background jobs.
    pub(crate) fn step(&self, jobs: u64) {
        for _ in 0..jobs {
            if !self.exec.run_one() {
                break;
            }
        }
    }
}

/// Options under which a few hundred small writes fill memtables, levels and log segments.
pub(crate) fn tiny() -> Options {
    Options {
        memory_bytes: 8 << 20,
        memtable_bytes: Some(16 << 10),
        cache_bytes: Some(64 << 10),
        block_bytes: 256,
        restart_interval: 4,
        min_blob_bytes: 512,
        sstable_bytes: Some(8 << 10),
        l0_compaction_trigger: 2,
        level_ratio: 3,
        log_segment_bytes: Some(8 << 10),
        log_bytes: Some(32 << 10),
        ballast_bytes: 0,
        changefeed_bytes: 0,
        ..Options::default()
    }
}
