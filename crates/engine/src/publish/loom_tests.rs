//! Writers, syncs that may fail, readers and callbacks in every interleaving, up to a bound on
//! preemptions. The log is a model of the real one; what is durable is kept beside, in variables
//! that the model checker does not see.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::sync::Arc;
use std::sync::Mutex as Plain;
use std::sync::atomic::{AtomicU64 as PlainU64, Ordering::SeqCst};

use super::*;

const OPS: u64 = 2;

#[derive(Default)]
struct Commit {
    batches: u64,
    queue: Queue,
}

#[derive(Clone, Copy)]
struct Placed {
    last: SeqNo,
    lsn: Lsn,
    acked: bool,
}

/// What `commit` does, with batches of two operations; batch `n` ends at position `n` of the log.
struct World {
    commit: Mutex<Commit>,
    published: Published,
    acks: Acks,
    /// By sequence number: what the memtables hold.
    memtable: [AtomicU64; 7],
    /// Held by the one who syncs; true once the log has failed.
    sync: Mutex<bool>,
    appended: AtomicU64,
    synced: AtomicU64,
    /// Which sync fails, counted from 1.
    fails: Option<u64>,
    syncs: PlainU64,
    durable: PlainU64,
    /// By batch: must it be durable before it is seen (or does it stand behind one that must)?
    needs: Plain<Vec<u64>>,
    results: Plain<Vec<(u64, bool)>>,
}

impl World {
    fn new(fails: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            commit: Mutex::new(Commit::default()),
            published: Published::default(),
            acks: Acks::default(),
            memtable: std::array::from_fn(|_| AtomicU64::new(0)),
            sync: Mutex::new(false),
            appended: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            fails,
            syncs: PlainU64::new(0),
            durable: PlainU64::new(0),
            needs: Plain::default(),
            results: Plain::default(),
        })
    }

    fn place(&self, sync: bool) -> Placed {
        let mut commit = self.commit.lock();
        commit.batches += 1;
        let batch = commit.batches;
        let (last, lsn) = (SeqNo(batch * OPS), Lsn(batch));
        self.appended.store(batch, Ordering::Release);
        for seqno in last.0 + 1 - OPS..=last.0 {
            self.memtable[seqno as usize].store(seqno, Ordering::Relaxed);
        }
        {
            let mut needs = self.needs.lock().unwrap();
            let before = needs.last().copied().unwrap_or(0);
            needs.push(if sync { batch } else { before });
        }
        let acked = commit.queue.place(&self.published, last, lsn, sync);
        Placed { last, lsn, acked }
    }

    /// One sync for all that is appended, with the listener's call in it.
    fn sync_to(&self, lsn: Lsn) -> Result<()> {
        if self.synced.load(Ordering::Acquire) >= lsn.0 {
            return Ok(());
        }
        let mut failed = self.sync.lock();
        if self.synced.load(Ordering::Acquire) >= lsn.0 {
            return Ok(());
        }
        let target = self.appended.load(Ordering::Acquire);
        if *failed || self.fails == Some(self.syncs.fetch_add(1, SeqCst) + 1) {
            *failed = true;
            self.acks.fail(&self.published, &error());
            return Err(error());
        }
        self.durable.store(target, SeqCst);
        self.publish_synced(Lsn(target));
        self.synced.store(target, Ordering::Release);
        Ok(())
    }

    fn publish_synced(&self, synced: Lsn) {
        self.commit.lock().queue.advance(&self.published, synced);
        self.acks.run(&self.published);
    }

    fn sync_log(&self, lsn: Lsn) -> Result<()> {
        self.make_durable(lsn)?;
        self.publish_synced(Lsn(self.synced.load(Ordering::Acquire)));
        Ok(())
    }

    /// Who waited for a sync publishes nothing: the one who synced has.
    fn make_durable(&self, lsn: Lsn) -> Result<()> {
        self.sync_to(lsn)
            .inspect_err(|error| self.acks.fail(&self.published, error))
    }

    fn write(&self, sync: bool) {
        let placed = self.place(sync);
        let is_acked = placed.acked
            || self.published.get() >= placed.last
            || self.make_durable(placed.lsn).is_ok();
        if is_acked {
            assert!(self.read() >= placed.last, "acknowledged, not visible");
        }
    }

    fn submit(self: &Arc<Self>, sync: bool) {
        let placed = self.place(sync);
        let (world, last) = (Arc::downgrade(self), placed.last);
        let done = Box::new(move |result: Result<()>| {
            let world = world.upgrade().unwrap();
            if result.is_ok() {
                assert!(world.read() >= last, "acknowledged, not visible");
            }
            world.results.lock().unwrap().push((last.0, result.is_ok()));
        });
        if self.acks.add(&self.published, last, done) {
            // The background sync.
            let _ = self.sync_log(placed.lsn);
        }
    }

    /// A reader: all of what the number allows is there, and durable if it must be.
    fn read(&self) -> SeqNo {
        let published = self.published.get();
        assert_eq!(published.0 % OPS, 0, "a part of a batch");
        for seqno in 1..=published.0 {
            let found = self.memtable[seqno as usize].load(Ordering::Relaxed);
            assert_eq!(found, seqno, "visible, not there");
        }
        if published.0 > 0 {
            let needs = self.needs.lock().unwrap()[(published.0 / OPS - 1) as usize];
            let durable = self.durable.load(SeqCst);
            assert!(durable >= needs, "visible, not durable");
        }
        published
    }

    fn read_twice(&self) {
        let first = self.read();
        assert!(self.read() >= first, "the number went down");
    }

    /// After all threads: every callback ran once, with the right result.
    fn end(&self, submitted: usize) {
        self.acks.fail(&self.published, &error());
        let mut results = self.results.lock().unwrap().clone();
        results.sort_unstable();
        assert_eq!(results.len(), submitted, "{results:?}");
        assert!(results.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let published = self.published.get().0;
        for (last, is_ok) in results {
            assert_eq!(is_ok, last <= published, "batch up to {last}");
        }
        if self.fails.is_none() {
            assert!(self.commit.lock().queue.is_empty());
        }
    }
}

fn error() -> Error {
    Error::Poisoned("the log failed".into())
}

/// Two threads that do `first` and `second`, this one reads; then the end is checked.
fn two(fails: Option<u64>, submitted: usize, first: fn(&Arc<World>), second: fn(&Arc<World>)) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(move || {
        let world = World::new(fails);
        let threads = [first, second].map(|work| {
            let world = Arc::clone(&world);
            loom::thread::spawn(move || work(&world))
        });
        world.read_twice();
        for thread in threads {
            thread.join().unwrap();
        }
        world.read();
        world.end(submitted);
    });
}

#[test]
fn two_durable_writes() {
    two(
        None,
        0,
        |world| world.write(true),
        |world| world.write(true),
    );
}

#[test]
fn a_buffered_write_beside_a_durable_one() {
    two(
        None,
        0,
        |world| world.write(true),
        |world| world.write(false),
    );
}

#[test]
fn a_buffered_write_behind_a_durable_one_of_the_same_thread() {
    two(
        None,
        2,
        |world| {
            world.submit(true);
            world.submit(false);
        },
        |world| world.write(false),
    );
}

#[test]
fn callbacks_beside_a_durable_write() {
    two(
        None,
        1,
        |world| world.submit(true),
        |world| world.write(true),
    );
    two(
        None,
        1,
        |world| world.submit(false),
        |world| world.write(true),
    );
}

#[test]
fn callbacks_when_the_first_sync_fails() {
    two(
        Some(1),
        1,
        |world| world.submit(true),
        |world| world.write(true),
    );
    two(
        Some(1),
        2,
        |world| world.submit(true),
        |world| world.submit(false),
    );
}

#[test]
fn callbacks_when_the_second_sync_fails() {
    two(
        Some(2),
        1,
        |world| world.submit(true),
        |world| world.write(true),
    );
    two(
        Some(2),
        2,
        |world| world.submit(true),
        |world| world.submit(true),
    );
    two(
        Some(2),
        2,
        |world| world.submit(true),
        |world| world.submit(false),
    );
}
