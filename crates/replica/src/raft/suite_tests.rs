//! The library's own tests of a log storage and a state machine, run on ours.

use std::path::Path;
use std::sync::Arc;

use firn_engine::Options;
use firn_io::Env;
use firn_io::clock::SystemClock;
use firn_io::exec::ThreadPool;
use firn_io::fs::mem::MemFs;
use firn_io::rng::SeededEntropy;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use crate::home::Home;
use crate::log_store::{LogStore, LogStoreOptions};
use crate::machine::{LogLink, Machine};
use crate::raft::config::Types;
use crate::raft::log::RaftLog;
use crate::raft::machine::RaftMachine;

struct Builder;

fn env(disk: &MemFs) -> Env {
    Env {
        fs: Arc::new(disk.clone()),
        clock: Arc::new(SystemClock::new()),
        entropy: Arc::new(SeededEntropy::new(1)),
        exec: Arc::new(ThreadPool::new(2)),
    }
}

impl StoreBuilder<Types, RaftLog, RaftMachine> for Builder {
    async fn build(&self) -> Result<((), RaftLog, RaftMachine), StorageError<Types>> {
        let disk = MemFs::new();
        let root = Path::new("/node");
        let env = env(&disk);
        let options = Options {
            memory_bytes: 8 << 20,
            ballast_bytes: 0,
            ..Options::default()
        };
        let home =
            Home::open(Arc::clone(&env.fs), root, 1, &*env.entropy).expect("a fresh directory");
        let log_dir = home.log_dir();
        let link = Arc::new(LogLink::default());
        let machine = Machine::open(env.clone(), home, options, Arc::clone(&link), None);
        let machine = machine.expect("a fresh engine");
        let log_options = LogStoreOptions {
            segment_bytes: 64 << 10,
            ..LogStoreOptions::default()
        };
        let log = LogStore::open(env, &log_dir, 1, None, &log_options).expect("a fresh log");
        link.set_log(log.clone());
        Ok(((), RaftLog(log), RaftMachine(machine)))
    }
}

#[test]
fn our_storage_does_what_the_library_expects() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        Suite::test_all(Builder).await.unwrap();
    });
}
