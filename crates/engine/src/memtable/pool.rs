//! Chunks of flushed memtables, kept for the next ones.
//!
//! A chunk that comes from the system costs the zeroing of its pages, and one that goes back there
//! the lock that every page fault of the process takes. A [`ChunkPool`] lets the memtable that fills
//! take what the flushed one gave up, at most one memtable's worth, which was part of the process a
//! moment ago. (Values that get chunks of their own do not take from it; memory is then larger by what
//! waits here.) Every [`LINGER`] what was not needed since the last time goes back to the system, until
//! the pool is empty.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use firn_io::exec::{Executor, Priority};
use firn_io::pages::Pages;
use parking_lot::Mutex;

/// Chunks of this size are kept; there are smaller and larger ones, but few.
pub(super) const POOLED_BYTES: usize = 1 << 20;
/// How long a chunk may lie unused.
const LINGER: Duration = Duration::from_millis(500);

/// Memory for the memtables of one database, shared by all of them.
pub struct ChunkPool {
    exec: Arc<dyn Executor>,
    /// Chunks that are kept at most.
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chunks: Vec<Pages>,
    /// The least number of chunks since the last trim: so many lie idle.
    idle: usize,
    /// A trim is queued.
    armed: bool,
}

impl fmt::Debug for ChunkPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkPool")
            .field("chunks", &self.state.lock().chunks.len())
            .field("most", &self.most)
            .finish_non_exhaustive()
    }
}

impl ChunkPool {
    /// An empty pool that keeps at most so many bytes.
    pub fn new(bytes: usize, exec: Arc<dyn Executor>) -> Arc<Self> {
        Arc::new(Self {
            exec,
            most: bytes / POOLED_BYTES,
            state: Mutex::default(),
        })
    }

    /// A chunk with arbitrary content, if there is one.
    pub(super) fn take(&self) -> Option<Pages> {
        let mut state = self.state.lock();
        let chunk = state.chunks.pop();
        state.idle = state.idle.min(state.chunks.len());
        chunk
    }

    /// Keeps as many of the chunks as it may; drops the others.
    pub(super) fn give(self: &Arc<Self>, mut chunks: Vec<Pages>) {
        let arm = {
            let mut state = self.state.lock();
            let room = self.most.saturating_sub(state.chunks.len());
            let kept = chunks.len().min(room);
            let surplus = chunks.split_off(kept);
            state.chunks.append(&mut chunks);
            chunks = surplus;
            !state.chunks.is_empty() && !std::mem::replace(&mut state.armed, true)
        };
        // Without the lock: this takes a while.
        drop(chunks);
        if arm {
            self.arm();
        }
    }

    fn arm(self: &Arc<Self>) {
        let pool = Arc::downgrade(self);
        let job = move || Self::trim(&pool);
        self.exec.submit_after(LINGER, Priority::Low, Box::new(job));
    }

    /// Gives back what was not needed since the last time.
    fn trim(pool: &Weak<Self>) {
        let Some(pool) = pool.upgrade() else { return };
        let (idle, arm) = {
            let mut state = pool.state.lock();
            let rest = state.chunks.len() - state.idle;
            let idle = state.chunks.split_off(rest);
            state.idle = rest;
            state.armed = rest > 0;
            (idle, state.armed)
        };
        drop(idle);
        if arm {
            pool.arm();
        }
    }
}

#[cfg(test)]
mod tests {
    use firn_io::clock::ManualClock;
    use firn_io::exec::Stepper;

    use super::*;

    fn chunks(count: usize) -> Vec<Pages> {
        (0..count)
            .map(|_| Pages::new(POOLED_BYTES).unwrap())
            .collect()
    }

    #[test]
    fn keeps_what_it_may_and_gives_back_what_nobody_needs() {
        let clock = Arc::new(ManualClock::new(0));
        let exec = Arc::new(Stepper::new(1, clock.clone()));
        let pool = ChunkPool::new(4 * POOLED_BYTES, exec.clone());
        assert!(pool.take().is_none());
        pool.give(chunks(6));
        let held = |pool: &ChunkPool| pool.state.lock().chunks.len();
        assert_eq!(held(&pool), 4);
        let taken = pool.take().unwrap();
        assert_eq!(held(&pool), 3);
        let pass = || {
            clock.advance(LINGER);
            while exec.run_one() {}
        };
        // They came since the last trim.
        pass();
        assert_eq!(held(&pool), 3);
        // One of the three was needed.
        let other = pool.take().unwrap();
        pool.give(vec![other]);
        pass();
        assert_eq!(held(&pool), 1);
        pass();
        assert_eq!(held(&pool), 0);
        // It is at rest, and wakes again.
        assert!(!pool.state.lock().armed);
        pool.give(vec![taken]);
        pass();
        pass();
        assert_eq!(held(&pool), 0);
    }
}
