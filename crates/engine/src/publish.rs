//! Which batches readers see, and who is told of it.
//!
//! Three small things that [`crate::commit`] puts together: the [`Published`] number up to which
//! readers see operations; the [`Queue`] of batches that are in the log and the memtables but are
//! not visible yet, guarded by the commit lock; the [`Acks`], callbacks that wait for publication.
//!
//! 1. A batch that is placed is published at once if it need not be durable and no batch before it
//!    waits; else it joins the queue.
//! 2. After a sync, batches leave the front of the queue up to the first that must be durable and is
//!    not; the number goes to the last of them. Then callbacks of published batches run.
//! 3. When the log has failed, callbacks of batches that are published still get their success, all
//!    others, and all that come later, the error.
//!
//! Invariants: the number only grows; both it and the queue change under the commit lock only. A
//! callback runs exactly once, without a lock held: whoever takes it out of the list runs it, and
//! whether a new one must wait is decided under the lock of the list.
//!
//! `cargo xtask loom` runs the interleavings of this module.

use std::collections::VecDeque;

use firn_io::wal::Lsn;

use crate::error::{Error, Result};
use crate::key::SeqNo;
use crate::sync::{AtomicU64, Mutex, Ordering};

/// The newest operation that readers see.
#[derive(Debug, Default)]
pub struct Published(AtomicU64);

impl Published {
    /// The number. What was put into memtables before it was set is seen after this.
    #[inline]
    pub fn get(&self) -> SeqNo {
        SeqNo(self.0.load(Ordering::Acquire))
    }

    /// Lets readers see operations up to `seqno`. REQUIRES: one caller at a time, ascending numbers.
    pub fn set(&self, seqno: SeqNo) {
        debug_assert!(seqno >= self.get());
        self.0.store(seqno.0, Ordering::Release);
    }
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    last: SeqNo,
    lsn: Lsn,
    sync: bool,
}

/// Batches that wait for their publication, in order.
#[derive(Debug, Default)]
pub struct Queue(VecDeque<Waiting>);

impl Queue {
    /// A batch is in the log, up to `lsn`, and in the memtables, up to number `last`. With `sync` it
    /// must be durable before it is seen. Returns whether it is seen now.
    pub fn place(&mut self, published: &Published, last: SeqNo, lsn: Lsn, sync: bool) -> bool {
        if !sync && self.0.is_empty() {
            published.set(last);
            return true;
        }
        self.0.push_back(Waiting { last, lsn, sync });
        false
    }

    /// The log is durable up to `synced`: publishes every batch up to the first that must wait.
    pub fn advance(&mut self, published: &Published, synced: Lsn) {
        let mut last = None;
        while let Some(batch) = self.0.front() {
            if batch.sync && batch.lsn > synced {
                break;
            }
            last = Some(batch.last);
            self.0.pop_front();
        }
        if let Some(last) = last {
            published.set(last);
        }
    }

    /// Whether every batch is published.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where the log must be durable for every batch to be published; `None` if they are.
    pub fn needs(&self) -> Option<Lsn> {
        self.0.back().map(|batch| batch.lsn)
    }
}

/// Runs when a write is acknowledged or has failed.
pub type AckFn = Box<dyn FnOnce(Result<()>) + Send>;

struct Ack {
    last: SeqNo,
    run: AckFn,
}

#[derive(Default)]
struct AckList {
    waiting: VecDeque<Ack>,
    /// What those that did not come before get.
    failed: Option<Error>,
}

/// Callbacks that wait for the publication of their batches.
#[derive(Default)]
pub struct Acks(Mutex<AckList>);

impl std::fmt::Debug for Acks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acks").finish_non_exhaustive()
    }
}

impl Acks {
    /// Runs `run` once the batch that ends with `last` is published or has failed: now, if that is
    /// known. Returns whether it waits.
    pub fn add(&self, published: &Published, last: SeqNo, run: AckFn) -> bool {
        let result = {
            let mut list = self.0.lock();
            // A publisher sets the number before it takes this lock: either it finds the new
            // callback, or this finds the number.
            if published.get() >= last {
                Ok(())
            } else if let Some(error) = &list.failed {
                Err(error.duplicate())
            } else {
                list.waiting.push_back(Ack { last, run });
                return true;
            }
        };
        run(result);
        false
    }

    /// Runs the callbacks of published batches.
    pub fn run(&self, published: &Published) {
        let ready: Vec<Ack> = {
            let mut list = self.0.lock();
            let published = published.get();
            let mut ready = Vec::new();
            let mut index = 0;
            while index < list.waiting.len() {
                if list.waiting[index].last <= published {
                    ready.extend(list.waiting.swap_remove_back(index));
                } else {
                    index += 1;
                }
            }
            ready
        };
        for ack in ready {
            (ack.run)(Ok(()));
        }
    }

    /// The log has failed: runs all callbacks, and from now on those that come without waiting.
    pub fn fail(&self, published: &Published, error: &Error) {
        let (acks, published) = {
            let mut list = self.0.lock();
            list.failed.get_or_insert_with(|| error.duplicate());
            (std::mem::take(&mut list.waiting), published.get())
        };
        for ack in acks {
            // Published by another thread that has not come to its callback yet: it is no failure.
            let is_published = ack.last <= published;
            (ack.run)(if is_published {
                Ok(())
            } else {
                Err(error.duplicate())
            });
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
