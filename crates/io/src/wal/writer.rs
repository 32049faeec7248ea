//! Append and group commit.
//!
//! Three locks, taken in this order and never held across each other's I/O:
//!
//! * `pool`, held while the directory changes (a segment is prepared or given up);
//! * `sync`, held for moments: who syncs now;
//! * `inner`, held for moments: the current segment. An append holds nothing else, and nobody holds
//!   it across a sync or a change of the directory.
//!
//! When the log goes on in the next segment a sync is asked for, unless the log's user does that
//! ([`LogOptions::sync_filled`]). If the log is seldom synced it leaves the new segment out. A segment is
//! left before it is full if a record does not fit, or if it was made for a log that is seldom synced and
//! this one no longer is.
//!
//! A sync is done by one of the threads that want it; the others wait and find either that it has
//! covered them too, or that they can be the next. So one sync runs at a time, and each takes all
//! that was appended while the one before it ran.
//!
//! The next segment is prepared by a background job. The job may be late, or its executor may be
//! one that is stepped by the very thread that waits; so an append that needs the segment never
//! waits for a queued job, it does the work itself, and waits only if another thread is at it.
//! Nothing here ever runs other jobs while it waits, as the caller may hold locks that they need.

mod next;

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::env::Env;
use crate::error::{Error, Result};
use crate::exec::Priority;
use crate::fs::OpenMode;
use crate::wal::reader::{self, Record, ScanReport, Walk};
use crate::wal::record::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKey, KIND_FILLER, KIND_MARKER, Lsn, MAX_KIND,
    MAX_PAYLOAD_BYTES, Synced, frame_bytes,
};
use crate::wal::segment::{
    CALL_BYTES, END_RESERVE_BYTES, FIRST_SEGMENT_BYTES, FileName, Kept, Pool, SEGMENT_HEADER_BYTES,
    Segment, SpareLimits, Usage,
};
use crate::wal::writer::next::{Next, Renewal};

/// Appends up to this size are put together in memory and stored at once.
const GATHER_BYTES: u64 = 128 << 10;
/// The same where all of it is written by calls: many small records are one.
const GATHER_FOR_CALL_BYTES: u64 = 4 << 20;
/// What [`Log::start_sync`] starts at most.
const EARLY_BYTES: u64 = 1 << 20;
/// The next segment is prepared when one part in so many of the current one is filled: early, as a
/// segment may be filled in not much more time than it takes to make one durable, the more so while
/// segments grow.
const PREPARE: u64 = 16;
/// Memory that is kept for putting appends together.
const SCRATCH_KEPT_BYTES: usize = 1 << 20;

/// Told after every sync, on the thread that did it: everything before the position is durable, or
/// the log has failed. Calls come one at a time, in order, and before the waiting
/// [`Log::sync_to`] calls return and before [`Log::synced`] moves. The next sync waits for it, so it
/// should be short; it must not call [`Log::sync_to`] or [`Log::close`].
pub type SyncListener = Arc<dyn Fn(Result<Lsn>) + Send + Sync>;

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The size of a segment in bytes; the first ones of a new log are smaller, one for a record
    /// that does not fit is larger. At most 1 GiB; raised to 4 KiB if less.
    pub segment_bytes: u64,
    /// Whether segments are written through a mapping where the file system can do that and the log is
    /// not synced often.
    pub mapped: bool,
    /// How many files of given-up segments are kept for reuse, at least 1. The last one is the
    /// reserve for a full disk.
    pub spare_segments: usize,
    /// The same while the log is synced often: blocks that were written once make syncs shorter.
    pub spare_segments_synced: usize,
    /// Where replay starts; what is before is not needed. `None`: at the beginning.
    pub from: Option<Lsn>,
    /// The log may have lost records before this position, which its user has elsewhere: a hole there is
    /// filled and segments before are given up when it is opened. Not behind `from`.
    pub whole_from: Option<Lsn>,
    /// Whether a segment that is filled is synced without being asked for. If not, the user bounds what a
    /// power loss can take, by [`Log::request_sync_of_filled`] or other syncs.
    pub sync_filled: bool,
    /// How long after a sync without further appends a marker is left that lets recovery find
    /// damage to the last batch; `None`: only when the log is closed.
    pub idle_marker: Option<Duration>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 8 << 20,
            mapped: true,
            spare_segments: 1,
            spare_segments_synced: 8,
            from: None,
            whole_from: None,
            sync_filled: true,
            idle_marker: Some(Duration::from_secs(1)),
        }
    }
}

/// A record to be appended.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// From 1 to [`MAX_KIND`]; the log gives it no meaning.
    pub kind: u8,
    /// The payload is their concatenation, at most [`MAX_PAYLOAD_BYTES`].
    pub parts: &'a [&'a [u8]],
}

/// Figures about a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Segments in use.
    pub segments: u64,
    /// Bytes of their files and of the spares.
    pub disk_bytes: u64,
    /// Bytes from the beginning of the oldest segment to the end of the log: what would be less if segments
    /// were given up.
    pub used_bytes: u64,
    /// Bytes of frames appended since the opening.
    pub appended_bytes: u64,
    /// Bytes of frames appended and not synced yet.
    pub unsynced_bytes: u64,
    /// Syncs since the opening.
    pub syncs: u64,
    /// Time spent in them, in microseconds.
    pub sync_micros: u64,
    /// The longest of them, in microseconds.
    pub sync_max_micros: u64,
}

#[derive(Debug)]
struct Inner {
    current: Segment,
    /// Where the next frame goes.
    position: u64,
    next: Next,
    /// Filled and not synced, oldest first, with their mappings.
    unsynced: VecDeque<Segment>,
    /// Those before the current one, oldest first.
    older: VecDeque<Kept>,
    renewal: Renewal,
    poison: Option<Error>,
    closed: bool,
    /// The last frame is a marker.
    is_marked: bool,
    marker_armed: bool,
    /// The last append was as long as those that go by a system call.
    appends_long: bool,
    appended_bytes: u64,
    /// Of `appended_bytes` and of the syncs, how many there were when the current segment began.
    segment_began: (u64, u64),
    scratch: Vec<u8>,
}

#[derive(Debug, Default)]
struct SyncState {
    running: bool,
    /// Threads that wait for the sync that runs, or for its end.
    waiting: usize,
    /// How many there were when the last one ended: they may all be back soon.
    woken: usize,
}

/// How often a thread that is about to sync lets others run first, for each that it expects.
const GATHER_TRIES: usize = 2;

/// A request for a background sync.
const IDLE: u8 = 0;
const SUBMITTED: u8 = 1;
const RESUBMIT: u8 = 2;

struct Shared {
    /// Itself, for the jobs that it submits.
    me: Weak<Shared>,
    env: Env,
    dir: PathBuf,
    options: LogOptions,
    pool: Mutex<Pool>,
    /// Those of the pool, whose lock is held while a segment is made.
    spare_bytes: Arc<AtomicU64>,
    sync: std::sync::Mutex<SyncState>,
    /// With `sync`: a sync ended.
    /// Not parking_lot's, which lets those whom it wakes through its lock one by one, each when the one
    /// before has been scheduled: with sixteen threads that made a fifth fewer synced writes.
    sync_done: std::sync::Condvar,
    inner: Mutex<Inner>,
    /// With `inner`: a preparation ended.
    prepared: Condvar,
    appended: AtomicU64,
    synced: AtomicU64,
    /// Segments below this number are given up, or are about to be.
    oldest: AtomicU32,
    /// Of `appended_bytes`, how many were there at the last sync.
    synced_bytes: AtomicU64,
    poisoned: AtomicBool,
    background: AtomicU8,
    listener: Mutex<Option<SyncListener>>,
    syncs: AtomicU64,
    sync_micros: AtomicU64,
    sync_max_micros: AtomicU64,
}

/// An open log. One process, one `Log` a directory: its user holds a lock on it.
///
/// All methods can be called from many threads. Dropping it without [`Log::close`] waits for the
/// work that is under way and syncs nothing.
pub struct Log {
    shared: Arc<Shared>,
}

/// A log whose records have been handed out, and which is not yet open.
pub struct Replayed {
    env: Env,
    dir: PathBuf,
    options: LogOptions,
    walk: Walk,
}

impl fmt::Debug for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replayed")
            .field("dir", &self.dir)
            .field("report", &self.walk.report)
            .finish_non_exhaustive()
    }
}

impl Replayed {
    /// The second half of [`Log::open`]: makes the end of the log physical and everything replayed
    /// durable.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn open(self) -> Result<(Log, ScanReport)> {
        Log::recover(self.env, &self.dir, self.options, self.walk)
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("dir", &self.shared.dir)
            .field("appended", &self.appended())
            .field("synced", &self.synced())
            .finish_non_exhaustive()
    }
}

fn invalid(op: &'static str, path: &Path, detail: String) -> Error {
    Error::new(
        op,
        path,
        std::io::Error::new(std::io::ErrorKind::InvalidInput, detail),
    )
}

impl Log {
    /// Opens the log in `dir`, made if missing: hands every record from [`LogOptions::from`] on to
    /// `replay`, then makes the end of the log physical (see the module's page) and everything
    /// replayed durable.
    ///
    /// # Errors
    /// Damage, with file and offset; nothing has been modified then. Whatever `replay` returns.
    /// Failures of the disk.
    pub fn open<E: From<Error>>(
        env: Env,
        dir: &Path,
        options: LogOptions,
        replay: impl FnMut(Record<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(Self, ScanReport), E> {
        Ok(Self::replay(env, dir, options, replay)?.open()?)
    }

    /// The first half of [`Log::open`], after which all records have been handed out: so that the
    /// caller can go on with them while the second half waits for the disk.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn replay<E: From<Error>>(
        env: Env,
        dir: &Path,
        mut options: LogOptions,
        replay: impl FnMut(Record<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<Replayed, E> {
        options.segment_bytes = options
            .segment_bytes
            .clamp(4 << 10, 1 << 30)
            .next_multiple_of(8);
        env.fs.create_dir_all(dir)?;
        let walk = reader::walk(&*env.fs, dir, options.from, false, replay)?;
        Ok(Replayed {
            env,
            dir: dir.to_path_buf(),
            options,
            walk,
        })
    }

    fn recover(
        env: Env,
        dir: &Path,
        options: LogOptions,
        mut walk: Walk,
    ) -> Result<(Self, ScanReport)> {
        let mut pool = Pool::new(
            Arc::clone(&env.fs),
            Arc::clone(&env.entropy),
            dir,
            options.segment_bytes,
            options.mapped,
            SpareLimits {
                seldom: options.spare_segments,
                often: options.spare_segments_synced,
            },
            &walk.listing,
        )?;
        let mut report = std::mem::take(&mut walk.report);
        // Segments before may have holes.
        let first = options.whole_from.map_or(0, |from| from.segment());
        let (current, position) = match walk.chain.last() {
            Some(tail) => {
                for segment in walk.listing.segments.iter().map(Kept::found) {
                    if segment.number > tail.header.number || segment.number < first {
                        pool.retire(segment, true)?;
                    }
                }
                fill_hole(&env, dir, &walk, first)?;
                let path = FileName::Segment(tail.header.number).path(dir);
                let file = env.fs.open(&path, OpenMode::ReadWrite)?;
                let segment = Segment::new(tail.header, file, options.mapped, false)?;
                let position = seal(&segment, tail.end, walk.stale_end, options.from)?;
                for piece in &walk.chain {
                    let header = piece.header;
                    let is_tail = header.number == tail.header.number;
                    let end = if is_tail { position } else { piece.end };
                    if is_tail {
                        rewrite(&*segment.file, header.number, end, report.stated)?;
                    } else if header.number >= report.stated.segment() {
                        let path = FileName::Segment(header.number).path(dir);
                        let file = env.fs.open(&path, OpenMode::ReadWrite)?;
                        rewrite(&*file, header.number, end, report.stated)?;
                    }
                }
                (segment, position)
            }
            None => {
                if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                    env.fs.sync_dir(parent)?;
                }
                let bytes = FIRST_SEGMENT_BYTES.min(options.segment_bytes);
                pool.set_usage(Usage::UNKNOWN);
                let first = pool
                    .prepare(0, bytes, bytes, true)
                    .map_err(|failed| failed.error)?;
                (first, SEGMENT_HEADER_BYTES)
            }
        };
        let number = current.header.number;
        let older: VecDeque<_> = walk
            .listing
            .segments
            .iter()
            .map(Kept::found)
            .filter(|file| (first..number).contains(&file.number))
            .collect();
        let oldest = older.front().map_or(number, |file| file.number);
        let end = Lsn::new(number, position as u32);
        report.end = end;
        let shared = Arc::new_cyclic(|me| Shared {
            me: Weak::clone(me),
            env,
            dir: dir.to_path_buf(),
            options,
            spare_bytes: pool.spare_bytes(),
            pool: Mutex::new(pool),
            sync: std::sync::Mutex::default(),
            sync_done: std::sync::Condvar::new(),
            inner: Mutex::new(Inner {
                current,
                position,
                next: Next::None,
                unsynced: VecDeque::new(),
                older,
                appends_long: false,
                renewal: Renewal::No,
                poison: None,
                closed: false,
                is_marked: true,
                marker_armed: false,
                appended_bytes: 0,
                segment_began: (0, 0),
                scratch: Vec::new(),
            }),
            prepared: Condvar::new(),
            appended: AtomicU64::new(end.0),
            synced: AtomicU64::new(end.0),
            oldest: AtomicU32::new(oldest),
            synced_bytes: AtomicU64::new(0),
            poisoned: AtomicBool::new(false),
            background: AtomicU8::new(IDLE),
            listener: Mutex::new(None),
            syncs: AtomicU64::new(0),
            sync_micros: AtomicU64::new(0),
            sync_max_micros: AtomicU64::new(0),
        });
        shared.submit(Priority::Low, |shared| {
            let mut pool = shared.pool.lock();
            if !shared.inner.lock().closed {
                // Without a reserve the log works as well; the next preparation tries again.
                let _ = pool.ensure_reserve();
            }
        });
        Ok((Self { shared }, report))
    }

    /// Appends a record and returns the position behind it. It survives the death of the process
    /// from now on, and loss of power once [`Log::synced`] has reached that position.
    ///
    /// # Errors
    /// The disk is full ([`Error::is_out_of_space`], and [`Log::poison`] says nothing): nothing was
    /// appended, the log is as good as before. The record is too large or its kind is reserved. Or the
    /// log is poisoned: the first failure, with its file and offset. That may be for want of space, too, on
    /// a file system where it takes space to overwrite what is there.
    pub fn append(&self, kind: u8, parts: &[&[u8]]) -> Result<Lsn> {
        self.append_many(&[Entry { kind, parts }], false)
    }

    /// Appends records in order, without others between them, with one write where possible. If it
    /// fails and the log is not poisoned, none was appended; a crash can cut between them. With `use_reserve`
    /// the last spare segment may be used when the disk is full: for what frees space.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn append_many(&self, entries: &[Entry<'_>], use_reserve: bool) -> Result<Lsn> {
        let shared = &*self.shared;
        let mut total = 0;
        for entry in entries {
            let len = entry
                .parts
                .iter()
                .map(|part| part.len() as u64)
                .sum::<u64>();
            if entry.kind == 0 || entry.kind > MAX_KIND {
                let detail = format!("record kind {} is reserved", entry.kind);
                return Err(invalid("append", &shared.dir, detail));
            }
            total += frame_bytes(len);
            if len > MAX_PAYLOAD_BYTES || total > 2 * MAX_PAYLOAD_BYTES {
                let detail = format!("a record of {len} bytes, or all of them, are too large");
                return Err(invalid("append", &shared.dir, detail));
            }
        }
        let mut switched = false;
        let mut inner = shared.make_room(shared.inner.lock(), total, use_reserve, &mut switched)?;
        if let Err(error) = shared.write_frames(&mut inner, entries) {
            let error = shared.fail(&mut inner, error);
            drop(inner);
            shared.wake_after_failure();
            return Err(error);
        }
        let end = inner.end();
        let capacity = inner.current.header.capacity;
        // Who syncs often waits for a whole sync anyway, and should not wait for two.
        let often_synced = inner.current.is_written;
        let prepare = matches!(inner.next, Next::None) && inner.position * PREPARE > capacity;
        if prepare {
            inner.next = Next::Queued;
        }
        drop(inner);
        if prepare {
            shared.submit_prepare();
        }
        if switched && often_synced {
            self.request_sync();
        } else if switched && shared.options.sync_filled {
            self.request_sync_of_filled(end.segment());
        }
        Ok(end)
    }

    /// Starts writing what was appended from `from` on to the disk, for a sync that the caller will ask for
    /// when it has done something else. A hint: nothing is durable by it. Only the first mebibyte in the
    /// current segment, so that the device takes it without a wait, and only where its blocks were written
    /// before, as metadata would have to be written with them.
    pub fn start_sync(&self, from: Lsn) {
        let (file, start, end) = {
            let inner = self.shared.inner.lock();
            if !inner.current.is_written {
                return;
            }
            let begin = Lsn::new(inner.current.header.number, SEGMENT_HEADER_BYTES as u32);
            (
                Arc::clone(&inner.current.file),
                begin.max(from),
                inner.end(),
            )
        };
        if start < end {
            let len = u64::from(end.offset() - start.offset());
            file.start_writeback(start.offset().into(), len.min(EARLY_BYTES));
        }
    }

    /// Waits until everything before `lsn` is durable: syncs, or lets another thread's sync do it.
    ///
    /// # Errors
    /// A sync or write failed, now or earlier: nothing after [`Log::synced`] is durable for sure, and
    /// nothing will be.
    pub fn sync_to(&self, lsn: Lsn) -> Result<()> {
        self.shared.sync_to(lsn)
    }

    /// Asks for a background sync of everything appended so far. At most one is under way; the
    /// listener hears of its end.
    pub fn request_sync(&self) {
        self.shared.request_sync();
    }

    /// Asks for a background sync of what was appended before segment `current`, which the log has gone on
    /// in. Bounds what a power loss can take from those who never ask for a sync, and gives the mapping of
    /// the filled segment back.
    pub fn request_sync_of_filled(&self, current: u32) {
        let Some(shared) = self.shared.me() else {
            return;
        };
        shared.submit(Priority::High, move |shared| {
            if !shared.inner.lock().closed {
                // Its failure poisons the log and the listener has been told.
                let _ = shared.sync_to(Lsn::new(current, SEGMENT_HEADER_BYTES as u32));
            }
        });
    }

    /// Sets who is told of syncs and of failure. See [`SyncListener`].
    pub fn set_sync_listener(&self, listener: SyncListener) {
        *self.shared.listener.lock() = Some(listener);
    }

    /// The end of the log: where the next record will begin, or shortly before.
    pub fn appended(&self) -> Lsn {
        Lsn(self.shared.appended.load(Ordering::Acquire))
    }

    /// Everything before this position is durable.
    pub fn synced(&self) -> Lsn {
        Lsn(self.shared.synced.load(Ordering::Acquire))
    }

    /// The failure that poisoned the log, if any.
    pub fn poison(&self) -> Option<Error> {
        self.shared.poison()
    }

    /// Gives up the segments that lie wholly before `lsn` and returns how many. They are recycled or
    /// removed, oldest first, each durably before the next, so that no crash leaves a gap.
    ///
    /// # Errors
    /// Failures of the disk; they do not harm the log. What is left over goes next time.
    pub fn remove_before(&self, lsn: Lsn) -> Result<u64> {
        let shared = &*self.shared;
        let mut pool = shared.pool.lock();
        let mut removed = 0;
        loop {
            let (segment, is_synced) = {
                let inner = shared.inner.lock();
                let unsynced = inner.unsynced.front();
                match inner.older.front() {
                    Some(&oldest) if oldest.number < lsn.segment() && !inner.closed => {
                        let is_synced =
                            unsynced.is_none_or(|segment| segment.header.number > oldest.number);
                        (oldest, is_synced)
                    }
                    _ => return Ok(removed),
                }
            };
            let number = segment.number;
            // Before its file may get another name or other bytes: who reads it while it is given
            // up looks here after each read.
            shared.oldest.store(number + 1, Ordering::SeqCst);
            let result = pool.retire(segment, is_synced);
            let is_gone = match &result {
                Ok(()) => true,
                Err(_) => !shared
                    .env
                    .fs
                    .exists(&FileName::Segment(number).path(&shared.dir))?,
            };
            if is_gone {
                let dropped = {
                    let mut inner = shared.inner.lock();
                    inner.older.pop_front();
                    match inner.unsynced.front() {
                        Some(segment) if segment.header.number == number => {
                            inner.unsynced.pop_front()
                        }
                        _ => None,
                    }
                };
                drop(dropped);
                removed += 1;
            }
            result?;
        }
    }

    /// The segments in use and the bytes of their files, oldest first. The last is the current one.
    pub fn segments(&self) -> Vec<(u32, u64)> {
        let inner = self.shared.inner.lock();
        let current = (inner.current.header.number, inner.current.header.capacity);
        let older = inner.older.iter().map(|kept| (kept.number, kept.bytes));
        older
            .chain([current])
            .filter(|segment| !self.is_given_up(segment.0))
            .collect()
    }

    /// Whether a segment was given up. What was read of it before this said no is what was logged.
    pub(crate) fn is_given_up(&self, segment: u32) -> bool {
        segment < self.shared.oldest.load(Ordering::SeqCst)
    }

    pub(crate) fn fs(&self) -> &dyn crate::fs::Fs {
        &*self.shared.env.fs
    }

    /// The directory that it is in.
    pub fn path(&self) -> &Path {
        &self.shared.dir
    }

    /// Figures about the log.
    pub fn stats(&self) -> LogStats {
        let shared = &*self.shared;
        let spare_bytes = shared.spare_bytes.load(Ordering::Relaxed);
        let inner = shared.inner.lock();
        let older_bytes = inner.older.iter().map(|kept| kept.bytes).sum::<u64>();
        let mut disk_bytes = spare_bytes + older_bytes + inner.current.header.capacity;
        if let Next::Ready(next) = &inner.next {
            disk_bytes += next.header.capacity;
        }
        let synced_bytes = shared.synced_bytes.load(Ordering::Relaxed);
        LogStats {
            segments: inner.older.len() as u64 + 1,
            disk_bytes,
            used_bytes: older_bytes + inner.position,
            appended_bytes: inner.appended_bytes,
            unsynced_bytes: inner.appended_bytes.saturating_sub(synced_bytes),
            syncs: shared.syncs.load(Ordering::Relaxed),
            sync_micros: shared.sync_micros.load(Ordering::Relaxed),
            sync_max_micros: shared.sync_max_micros.load(Ordering::Relaxed),
        }
    }

    /// Leaves a frame that states how far the log is synced, and asks for a sync of it: damage before
    /// that position can no longer be taken for a torn tail. For those who read a record that is
    /// damaged while the log is still being written.
    ///
    /// # Errors
    /// The log is poisoned or closed, or the write failed, which poisons it.
    pub fn leave_marker(&self) -> Result<()> {
        self.shared.append_marker()?;
        self.request_sync();
        Ok(())
    }

    /// Makes everything durable, leaves a marker that says so, and ends background work. Later
    /// appends fail. A second call does nothing.
    ///
    /// # Errors
    /// The log is or was poisoned; it is closed nevertheless.
    pub fn close(&self) -> Result<()> {
        let shared = &*self.shared;
        if shared.inner.lock().closed {
            return Ok(());
        }
        let result = shared.sync_to(self.appended()).and_then(|()| {
            shared.append_marker()?;
            shared.sync_to(self.appended())
        });
        shared.shut_down();
        let mut pool = shared.pool.lock();
        let next = std::mem::replace(&mut shared.inner.lock().next, Next::None);
        if let Next::Ready(next) = next {
            let retired = pool.retire(next.kept(0), true);
            return result.and(retired);
        }
        result
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.shared.shut_down();
    }
}

impl Inner {
    fn end(&self) -> Lsn {
        Lsn::new(self.current.header.number, self.position as u32)
    }

    fn room(&self) -> u64 {
        self.current
            .header
            .capacity
            .saturating_sub(self.position + END_RESERVE_BYTES)
    }
}

impl Shared {
    fn submit(self: &Arc<Self>, priority: Priority, job: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let weak = Arc::downgrade(self);
        self.env
            .exec
            .submit(priority, Box::new(move || run(&weak, job)));
    }

    /// `None` while the last handle is being dropped.
    fn me(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    fn synced_lsn(&self) -> Lsn {
        Lsn(self.synced.load(Ordering::Acquire))
    }

    fn poison(&self) -> Option<Error> {
        if !self.poisoned.load(Ordering::Acquire) {
            return None;
        }
        self.inner.lock().poison.as_ref().map(Error::duplicate)
    }

    /// Poisons the log, unless it is already, and returns what poisoned it.
    fn fail(&self, inner: &mut Inner, error: Error) -> Error {
        let first = inner.poison.get_or_insert(error).duplicate();
        self.poisoned.store(true, Ordering::Release);
        self.prepared.notify_all();
        first
    }

    fn check_usable(&self, inner: &Inner) -> Result<()> {
        if let Some(error) = &inner.poison {
            return Err(error.duplicate());
        }
        if inner.closed {
            let source = std::io::Error::other("the log is closed");
            return Err(Error::new("append", &self.dir, source));
        }
        Ok(())
    }

    fn write_internal(&self, inner: &mut Inner, kind: u8, payload: &[u8]) -> Result<()> {
        let parts: [&[u8]; 1] = [payload];
        // A marker that does not speak for all before it needs another one behind it.
        let speaks_for_all = inner.end() == self.synced_lsn();
        self.write_frames(
            inner,
            &[Entry {
                kind,
                parts: &parts,
            }],
        )?;
        inner.is_marked = kind == KIND_MARKER && speaks_for_all;
        Ok(())
    }

    /// Writes frames, for which there is room, to the current segment.
    fn write_frames(&self, inner: &mut Inner, entries: &[Entry<'_>]) -> Result<()> {
        const PADDING: [u8; 8] = [0; 8];
        let segment = &inner.current;
        let number = segment.header.number;
        let synced = Synced::state(self.synced_lsn(), number, segment.header.previous);
        let len_of = |entry: &Entry<'_>| entry.parts.iter().map(|part| part.len()).sum::<usize>();
        let frame = |offset: u64, entry: &Entry<'_>, len: usize| {
            let header = FrameHeader {
                len: len as u32,
                kind: entry.kind,
                synced,
            };
            segment.key.encode(offset as u32, header, entry.parts)
        };
        let start = inner.position;
        let mut position = start;
        let total: u64 = entries
            .iter()
            .map(|entry| frame_bytes(len_of(entry) as u64))
            .sum();
        let gather = match segment.is_mapped() {
            true => GATHER_BYTES,
            false => GATHER_FOR_CALL_BYTES,
        };
        if total <= gather {
            let scratch = &mut inner.scratch;
            scratch.clear();
            for entry in entries {
                let len = len_of(entry);
                scratch.extend_from_slice(&frame(position, entry, len));
                for part in entry.parts {
                    scratch.extend_from_slice(part);
                }
                position += frame_bytes(len as u64);
                scratch.resize((position - start) as usize, 0);
            }
            segment.write(start, scratch)?;
            if scratch.capacity() > SCRATCH_KEPT_BYTES {
                *scratch = Vec::new();
            }
        } else {
            for entry in entries {
                let len = len_of(entry);
                let end = position + frame_bytes(len as u64);
                segment.write(position, &frame(position, entry, len))?;
                position += FRAME_HEADER_BYTES as u64;
                for part in entry.parts {
                    segment.write(position, part)?;
                    position += part.len() as u64;
                }
                segment.write(position, &PADDING[..(end - position) as usize])?;
                position = end;
            }
        }
        inner.position = position;
        inner.is_marked = false;
        inner.appended_bytes += position - start;
        inner.appends_long = total >= CALL_BYTES as u64;
        self.appended
            .store(Lsn::new(number, position as u32).0, Ordering::Release);
        Ok(())
    }

    fn sync_to(&self, lsn: Lsn) -> Result<()> {
        let target = lsn.0.min(self.appended.load(Ordering::Acquire));
        loop {
            if self.synced.load(Ordering::Acquire) >= target {
                return Ok(());
            }
            let mut state = self.lock_sync();
            if let Some(error) = self.poison() {
                return Err(error);
            }
            if self.synced.load(Ordering::Acquire) >= target {
                return Ok(());
            }
            if state.running {
                state.waiting += 1;
                drop(self.wait_for_sync(state));
                continue;
            }
            state.running = true;
            let expected = state.woken;
            drop(state);
            // Also if the listener panics: nobody else is to wait for ever.
            let _end = EndSync(self);
            self.gather(expected);
            self.sync_now(target)?;
        }
    }

    /// The lock is held for a few instructions that cannot panic.
    fn lock_sync(&self) -> std::sync::MutexGuard<'_, SyncState> {
        self.sync.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_sync<'a>(
        &self,
        state: std::sync::MutexGuard<'a, SyncState>,
    ) -> std::sync::MutexGuard<'a, SyncState> {
        let state = self.sync_done.wait(state);
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets those who waited for the last sync append again before the next one begins: they were woken
    /// together, and whoever comes first would else sync for itself alone and make all others wait
    /// twice. Ends when as many are here as were then, or after a bounded number of turns: each is a
    /// microsecond or two while others have work, and a fraction of one if nobody has.
    fn gather(&self, expected: usize) {
        for _ in 0..GATHER_TRIES * expected {
            if self.lock_sync().waiting >= expected {
                break;
            }
            std::thread::yield_now();
        }
    }

    /// Syncs all that is appended, or if no more is `wanted` all but the current segment: its pages would
    /// be write-protected, and the next stores to them wait. Called by the one thread that has set
    /// `running`.
    fn sync_now(&self, wanted: u64) -> Result<()> {
        let (target, target_bytes, files, current) = {
            let inner = self.inner.lock();
            if let Some(error) = &inner.poison {
                return Err(error.duplicate());
            }
            let mut files: Vec<_> = inner
                .unsynced
                .iter()
                .map(|segment| Arc::clone(&segment.file))
                .collect();
            let current = inner.current.header.number;
            let start = Lsn::new(current, SEGMENT_HEADER_BYTES as u32);
            if wanted <= start.0 {
                (start, inner.segment_began.0, files, current)
            } else {
                files.push(Arc::clone(&inner.current.file));
                (inner.end(), inner.appended_bytes, files, current)
            }
        };
        let begin = self.env.clock.monotonic();
        // None if all that was filled was given up: what it held is durable elsewhere.
        let result = files.iter().try_for_each(|file| file.sync_data());
        let micros = self.env.clock.monotonic().saturating_sub(begin).as_micros() as u64;
        let syncs = u64::from(!files.is_empty());
        self.syncs.fetch_add(syncs, Ordering::Relaxed);
        self.sync_micros.fetch_add(micros, Ordering::Relaxed);
        self.sync_max_micros.fetch_max(micros, Ordering::Relaxed);
        if let Err(error) = result {
            let error = {
                let mut inner = self.inner.lock();
                self.fail(&mut inner, error)
            };
            self.tell(Err(error.duplicate()));
            return Err(error);
        }
        let (synced, arm_marker, renew) = {
            let mut inner = self.inner.lock();
            let is_synced = |segment: &Segment| segment.header.number < current;
            let count = inner
                .unsynced
                .iter()
                .take_while(|segment| is_synced(segment))
                .count();
            let synced: Vec<_> = inner.unsynced.drain(..count).collect();
            let arm = !inner.marker_armed && !inner.is_marked && !inner.closed;
            inner.marker_armed |= arm && self.options.idle_marker.is_some();
            (synced, arm, self.should_renew(&mut inner))
        };
        self.tell(Ok(target));
        self.synced_bytes.store(target_bytes, Ordering::Relaxed);
        self.synced.store(target.0, Ordering::Release);
        // Takes their mappings away, which is no work for an append.
        drop(synced);
        if arm_marker {
            self.arm_marker();
        }
        if renew {
            self.submit_renewal();
        }
        Ok(())
    }

    fn tell(&self, result: Result<Lsn>) {
        let listener = self.listener.lock().clone();
        if let Some(listener) = listener {
            listener(result);
        }
    }

    /// After a failure outside of a sync: those who wait for a sync learn of it, the listener from
    /// the background, as the thread that failed may hold locks that it takes.
    fn wake_after_failure(&self) {
        {
            // Whoever checked before the failure is waiting by now.
            let _state = self.lock_sync();
            self.sync_done.notify_all();
        }
        if let Some(shared) = self.me() {
            shared.submit(Priority::High, |shared| {
                if let Some(error) = shared.poison() {
                    shared.tell(Err(error));
                }
            });
        }
    }

    fn request_sync(&self) {
        if self.synced.load(Ordering::Acquire) >= self.appended.load(Ordering::Acquire) {
            return;
        }
        let before = self.background.fetch_max(SUBMITTED, Ordering::AcqRel);
        if before == IDLE {
            self.submit_sync();
        } else if before == SUBMITTED {
            // If the job ends in between, it has seen everything appended so far or this finds it
            // idle and submits the next one.
            let again = self.background.compare_exchange(
                SUBMITTED,
                RESUBMIT,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if again == Err(IDLE) {
                self.request_sync();
            }
        }
    }

    fn submit_sync(&self) {
        let Some(shared) = self.me() else {
            return;
        };
        // Another round on the same thread, where one was asked for meanwhile: a new job would wake
        // another thread while this one goes to sleep.
        shared.submit(Priority::High, |shared| {
            loop {
                shared.background.store(SUBMITTED, Ordering::Release);
                if !shared.inner.lock().closed {
                    // Its failure poisons the log and the listener has been told.
                    let _ = shared.sync_to(Lsn::MAX);
                }
                let ended = shared.background.compare_exchange(
                    SUBMITTED,
                    IDLE,
                    Ordering::AcqRel,
                    Ordering::Acquire,
                );
                if ended.is_ok() {
                    break;
                }
            }
        });
    }

    fn arm_marker(&self) {
        let (Some(delay), Some(shared)) = (self.options.idle_marker, self.me()) else {
            return;
        };
        let weak = Arc::downgrade(&shared);
        let job = move || {
            run(&weak, |shared| {
                shared.inner.lock().marker_armed = false;
                // If something is under way, the next sync arms the next marker.
                if shared.appended.load(Ordering::Acquire) == shared.synced.load(Ordering::Acquire)
                    && shared.append_marker().is_ok()
                {
                    // Its failure poisons the log and the listener has been told.
                    let _ = shared.sync_to(Lsn::MAX);
                }
            });
        };
        self.env
            .exec
            .submit_after(delay, Priority::High, Box::new(job));
    }

    /// Leaves a frame that states how far the log is synced, if the last one is none and it fits.
    fn append_marker(&self) -> Result<()> {
        let mut inner = self.inner.lock();
        self.check_usable(&inner)?;
        if inner.is_marked || inner.room() < frame_bytes(0) {
            return Ok(());
        }
        if let Err(error) = self.write_internal(&mut inner, KIND_MARKER, &[]) {
            let error = self.fail(&mut inner, error);
            drop(inner);
            self.wake_after_failure();
            return Err(error);
        }
        Ok(())
    }

    /// Ends background work and waits for what is under way.
    fn shut_down(&self) {
        {
            let mut inner = self.inner.lock();
            inner.closed = true;
            while matches!(inner.next, Next::Preparing) {
                self.prepared.wait(&mut inner);
            }
        }
        // Whoever makes a reserve has the pool.
        drop(self.pool.lock());
        let mut state = self.lock_sync();
        while state.running {
            state.waiting += 1;
            state = self.wait_for_sync(state);
        }
    }
}

/// Lets the next thread sync.
struct EndSync<'a>(&'a Shared);

impl Drop for EndSync<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock_sync();
        state.running = false;
        // They are woken, but may run later: who gathers must not take them for those who came back.
        state.woken = std::mem::take(&mut state.waiting);
        let is_waited_for = state.woken > 0;
        drop(state);
        // A call of the kernel, also where there is nobody to wake.
        if is_waited_for {
            self.0.sync_done.notify_all();
        }
    }
}

fn run(shared: &Weak<Shared>, job: impl FnOnce(&Arc<Shared>)) {
    if let Some(shared) = shared.upgrade() {
        job(&shared);
    }
}

/// Makes the end of the log at `end` of its last segment physical and returns where it goes on:
/// nothing up to `stale_end` can be taken for a frame any more, and if `from` is beyond, a filler
/// leads there. The caller syncs.
fn seal(segment: &Segment, end: u64, stale_end: u64, from: Option<Lsn>) -> Result<u64> {
    let capacity = segment.header.capacity;
    let file = &*segment.file;
    let mut target = end;
    if let Some(from) = from
        && from.segment() == segment.header.number
        && u64::from(from.offset()) > end
    {
        target = u64::from(from.offset())
            .next_multiple_of(8)
            .max(end + FRAME_HEADER_BYTES as u64);
        if u64::from(from.offset()) > capacity - END_RESERVE_BYTES {
            let detail = format!("replay should begin at {from}, where no record can be");
            return Err(invalid("open", file.path(), detail));
        }
    }
    let wiped_end = stale_end.min(capacity).max(target);
    wipe(file, end, wiped_end)?;
    if target > end {
        // The zeros are durable before the fillers make them a part of the log.
        file.sync_data()?;
        fill(file, segment.key, end, target)?;
    }
    Ok(target)
}

/// If reading began behind the first frame of segment `first`, whose user said that frames before may be
/// gone, and some are: puts fillers in their place. No later recovery can then take the hole for damage,
/// whatever is synced behind it.
fn fill_hole(env: &Env, dir: &Path, walk: &Walk, first: u32) -> Result<()> {
    let Some(segment) = walk.chain.first() else {
        return Ok(());
    };
    let number = segment.header.number;
    if number != first || walk.began <= SEGMENT_HEADER_BYTES {
        return Ok(());
    }
    let Some(gap) = reader::gap_before(&*env.fs, dir, number, walk.began)? else {
        return Ok(());
    };
    let path = FileName::Segment(number).path(dir);
    let file = env.fs.open(&path, OpenMode::ReadWrite)?;
    // A crash in between leaves a hole, as before, and its user says the same of it again.
    wipe(&*file, gap, walk.began)?;
    fill(&*file, segment.header.key(), gap, walk.began)?;
    file.sync_data()
}

/// Overwrites with zeros.
fn wipe(file: &dyn crate::fs::File, mut at: u64, end: u64) -> Result<()> {
    const ZEROS: &[u8] = &[0; 64 << 10];
    while at < end {
        let len = (end - at).min(ZEROS.len() as u64);
        file.write_at(&ZEROS[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

/// Makes zeros into frames without meaning: from `at` to `end`, which are a frame's header or more apart.
fn fill(file: &dyn crate::fs::File, key: FrameKey, mut at: u64, end: u64) -> Result<()> {
    /// Readers have a whole frame in memory.
    const FILLER_BYTES: u64 = 1 << 20;
    let zeros = vec![0; (end - at).min(FILLER_BYTES) as usize];
    while at < end {
        let mut total = (end - at).min(FILLER_BYTES);
        if end - at - total < FRAME_HEADER_BYTES as u64 && end - at > total {
            // What is left must hold a frame, too.
            total -= FRAME_HEADER_BYTES as u64;
        }
        let Some(len) = (total as usize).checked_sub(FRAME_HEADER_BYTES) else {
            // Not reached: frames begin and end where frames do.
            break;
        };
        let header = FrameHeader {
            len: len as u32,
            kind: KIND_FILLER,
            synced: Synced::Unknown,
        };
        file.write_at(&key.encode(at as u32, header, &[&zeros[..len]]), at)?;
        at += total;
    }
    Ok(())
}

/// Makes the frames of a segment up to `end` durable, whether or not the kernel believes that they
/// are: those that no frame states to be synced are written again.
fn rewrite(file: &dyn crate::fs::File, number: u32, end: u64, stated: Lsn) -> Result<()> {
    let mut at = SEGMENT_HEADER_BYTES;
    if stated.segment() == number {
        at = at.max(u64::from(stated.offset()));
    } else if stated.segment() > number {
        return Ok(());
    }
    let mut buf = vec![0; (end.saturating_sub(at)).min(1 << 20) as usize];
    while at < end {
        let len = (end - at).min(buf.len() as u64) as usize;
        file.read_exact_at(&mut buf[..len], at)?;
        file.write_at(&buf[..len], at)?;
        at += len as u64;
    }
    file.sync_data()
}
