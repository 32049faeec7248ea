//! The segment after the current one: how it is prepared, when the log goes on in it.
//!
//! It is prepared by a background job, or by the append that needs it if the job is late ([`Next`]). A log
//! that comes to be synced often while its segments are merely reserved has the next one prepared with its
//! blocks written, and goes on in that at once (*renewal*).

use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use crate::error::{Error, Result};
use crate::exec::Priority;
use crate::wal::record::KIND_END;
use crate::wal::segment::{END_RESERVE_BYTES, GROWTH, SEGMENT_HEADER_BYTES, Segment, Usage};
use crate::wal::writer::{Inner, Shared};

/// The log is synced often if there was a sync for so many bytes: without zeros each of them would
/// have metadata to write.
const SYNCED_OFTEN_BYTES: u64 = 256 << 10;
/// After so many syncs in a segment whose blocks are merely reserved, the log goes on in another one: each
/// sync writes metadata here, which takes half as long again.
const RENEWED_SYNCS: u64 = 32;

/// The segment after the current one.
#[derive(Debug)]
pub(super) enum Next {
    None,
    /// A job is queued that will prepare it.
    Queued,
    /// Some thread is at it.
    Preparing,
    Ready(Segment),
    /// The background job failed; whoever needs the segment tries again.
    Failed,
}

/// Whether the log is to go on in a segment whose blocks were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    /// It is in one, or in the segment that it was opened with: a process that lives for a few writes would
    /// fill a segment with zeros each time.
    No,
    /// The log came into the current segment while it was seldom synced.
    Possible,
    /// The next segment is gone on in as soon as it is ready, if its blocks were written before. Asked for
    /// once: if nothing comes of it, syncs take longer and that is all.
    Wanted,
}

impl Shared {
    /// Returns when a frame of `total` bytes fits into the current segment.
    pub(super) fn make_room<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner>,
        total: u64,
        use_reserve: bool,
        switched: &mut bool,
    ) -> Result<MutexGuard<'a, Inner>> {
        let required = SEGMENT_HEADER_BYTES + total + END_RESERVE_BYTES;
        loop {
            self.check_usable(&inner)?;
            let is_usable = |segment: &Segment| use_reserve || !segment.is_reserve;
            let is_better = |next: &Next| match next {
                Next::Ready(next) => {
                    next.is_written && next.header.capacity >= required && is_usable(next)
                }
                _ => false,
            };
            let renew = inner.renewal == Renewal::Wanted && is_better(&inner.next);
            if total <= inner.room() && is_usable(&inner.current) && !renew {
                return Ok(inner);
            }
            if matches!(inner.next, Next::Preparing) {
                self.prepared.wait(&mut inner);
                continue;
            }
            let mut unfit = None;
            match std::mem::replace(&mut inner.next, Next::None) {
                Next::Ready(next) if next.header.capacity >= required && is_usable(&next) => {
                    if let Err(error) = self.switch(&mut inner, next) {
                        let error = self.fail(&mut inner, error);
                        drop(inner);
                        self.wake_after_failure();
                        return Err(error);
                    }
                    *switched = true;
                    continue;
                }
                Next::Ready(next) => unfit = Some(next),
                _ => {}
            }
            let previous = inner.current.header.number;
            let capacity = inner.current.header.capacity;
            inner.next = Next::Preparing;
            drop(inner);
            let result = self.prepare(previous, capacity, required, use_reserve, unfit);
            inner = self.inner.lock();
            match result {
                Ok(segment) => {
                    inner.next = Next::Ready(segment);
                    self.prepared.notify_all();
                }
                Err((error, is_final)) => {
                    inner.next = Next::Failed;
                    self.prepared.notify_all();
                    if is_final {
                        let error = self.fail(&mut inner, error);
                        drop(inner);
                        self.wake_after_failure();
                        return Err(error);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Makes the segment after `previous`. The caller has set `Next::Preparing`.
    fn prepare(
        &self,
        previous: u32,
        previous_capacity: u64,
        required: u64,
        use_reserve: bool,
        unfit: Option<Segment>,
    ) -> std::result::Result<Segment, (Error, bool)> {
        let _end = EndPrepare(self);
        let usage = {
            let inner = self.inner.lock();
            Usage::new(self.counts_as_synced_often(&inner), inner.appends_long)
        };
        let mut pool = self.pool.lock();
        pool.set_usage(usage);
        if let Some(unfit) = unfit {
            let kept = unfit.kept(0);
            drop(unfit);
            pool.retire(kept, true).map_err(|error| (error, false))?;
        }
        let wanted = self
            .options
            .segment_bytes
            .min(previous_capacity.saturating_mul(GROWTH));
        let required = required.next_multiple_of(4096).min(u64::from(u32::MAX));
        pool.prepare(previous, required, wanted, use_reserve)
            .map_err(|failed| (failed.error, failed.is_final))
    }

    /// Whether the present segment was and is synced often.
    fn counts_as_synced_often(&self, inner: &Inner) -> bool {
        let bytes = inner.appended_bytes - inner.segment_began.0;
        let syncs = self.syncs.load(Ordering::Relaxed) - inner.segment_began.1;
        // The change of segments made one.
        let syncs = syncs.saturating_sub(1);
        syncs > 0 && syncs.saturating_mul(SYNCED_OFTEN_BYTES) >= bytes
    }

    pub(super) fn submit_prepare(&self) {
        let Some(shared) = self.me() else {
            return;
        };
        shared.submit(Priority::High, |shared| {
            let mut inner = shared.inner.lock();
            let is_wanted = matches!(inner.next, Next::Queued);
            if !is_wanted || inner.closed || inner.poison.is_some() {
                return;
            }
            inner.next = Next::Preparing;
            let current = inner.current.header;
            drop(inner);
            shared.prepare_in_background(current.number, current.capacity, None);
        });
    }

    /// Whether the log is synced often and its present segment was made for one that is not: then the next
    /// one is to be made with its blocks written, and the log goes on in that. Says so once a segment: if it
    /// comes to nothing, syncs take longer and that is all.
    pub(super) fn should_renew(&self, inner: &mut Inner) -> bool {
        let syncs = self.syncs.load(Ordering::Relaxed) - inner.segment_began.1;
        let should = inner.renewal == Renewal::Possible
            && !inner.closed
            && syncs >= RENEWED_SYNCS
            && self.counts_as_synced_often(inner);
        if should {
            inner.renewal = Renewal::Wanted;
        }
        should
    }

    pub(super) fn submit_renewal(&self) {
        let Some(shared) = self.me() else {
            return;
        };
        shared.submit(Priority::High, |shared| {
            let mut inner = shared.inner.lock();
            if inner.renewal != Renewal::Wanted || inner.closed || inner.poison.is_some() {
                return;
            }
            let unfit = match std::mem::replace(&mut inner.next, Next::Preparing) {
                next @ Next::Preparing => {
                    inner.next = next;
                    return;
                }
                Next::Ready(next) if next.is_written => {
                    inner.next = Next::Ready(next);
                    return;
                }
                Next::Ready(next) => Some(next),
                Next::None | Next::Queued | Next::Failed => None,
            };
            let current = inner.current.header;
            drop(inner);
            shared.prepare_in_background(current.number, current.capacity, unfit);
        });
    }

    /// Makes the segment after `previous`. The caller has set `Next::Preparing`.
    fn prepare_in_background(&self, previous: u32, capacity: u64, unfit: Option<Segment>) {
        let result = self.prepare(previous, capacity, 0, false, unfit);
        {
            let mut inner = self.inner.lock();
            inner.next = Next::Failed;
            let mut failed = false;
            match result {
                Ok(segment) => inner.next = Next::Ready(segment),
                Err((error, true)) => {
                    self.fail(&mut inner, error);
                    failed = true;
                }
                // Whoever needs the segment tries again and is told.
                Err((_, false)) => {}
            }
            self.prepared.notify_all();
            drop(inner);
            if failed {
                self.wake_after_failure();
            }
        }
        let mut pool = self.pool.lock();
        if !self.inner.lock().closed {
            // As at opening: the log works without.
            let _ = pool.ensure_reserve();
        }
    }

    /// Ends the current segment and goes on in `next`.
    fn switch(&self, inner: &mut Inner, next: Segment) -> Result<()> {
        let number = u64::from(next.header.number).to_le_bytes();
        self.write_internal(inner, KIND_END, &number)?;
        let old = std::mem::replace(&mut inner.current, next);
        inner.older.push_back(old.kept(inner.position));
        inner.position = SEGMENT_HEADER_BYTES;
        inner.renewal = if inner.current.is_written {
            Renewal::No
        } else {
            Renewal::Possible
        };
        inner.unsynced.push_back(old);
        inner.segment_began = (inner.appended_bytes, self.syncs.load(Ordering::Relaxed));
        self.appended.store(inner.end().0, Ordering::Release);
        Ok(())
    }
}

/// Lets those who wait for a preparation that panicked do it themselves.
struct EndPrepare<'a>(&'a Shared);

impl Drop for EndPrepare<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.inner.lock().next = Next::Failed;
            self.0.prepared.notify_all();
        }
    }
}
