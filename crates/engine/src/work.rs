//! Background work: what runs, when, and what happens when it fails.
//!
//! [`schedule`] is called whenever something may have become due (a memtable was retired, a job
//! ended, a retry timer fired) and submits at most one flush per tree and as many compactions as
//! there are threads to spare. Jobs never call each other; the end of one schedules the next.
//!
//! A failed job leaves the database as it was, is told to the listener, and is tried again after a
//! delay that doubles up to half a minute. Flushes and compactions fail apart: a damaged SSTable, of
//! which no compaction is possible, holds up no flush. Nor does a failure block writes by itself:
//! writers wait only when memtables cannot be flushed. When the reason is a full disk, the ballast is
//! given back, puts are refused, and while jobs are tried again a timer looks whether there is room,
//! and has the deletes that came in flushed and compacted: they are what frees space.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use firn_io::exec::Priority;

use crate::compaction::run::{self, Job};
use crate::core::{Attempts, Core, WorkState};
use crate::error::Result;
use crate::event::Event;
use crate::external::flush::flush_oldest;
use crate::external::state::External;
use crate::flush;
use crate::names;
use crate::tree::Tree;

/// First delay before a failed job is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest delay.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often a full disk is looked at.
const DISK_FULL_RETRY: Duration = Duration::from_millis(500);

/// Starts whatever is due.
pub fn schedule(core: &Arc<Core>) {
    let mut work = core.work.lock();
    if core.closed.load(Ordering::Acquire) {
        return;
    }
    // What rests comes back here by its timer.
    if !work.flush.must_rest() {
        match &core.external {
            Some(external) => submit_cut(core, &mut work, external),
            None => {
                for tree in core.trees.load().iter() {
                    submit_flush(core, &mut work, tree);
                }
            }
        }
    }
    let most = core.env.exec.threads().saturating_sub(1).max(1);
    while work.compactions < most && work.compaction_paused == 0 && !work.compaction.must_rest() {
        let Some(job) = run::pick(core) else { break };
        work.compactions += 1;
        let core = Arc::clone(core);
        let exec = Arc::clone(&core.env.exec);
        let priority = match job.spares_reads() {
            true => Priority::Medium,
            false => Priority::Low,
        };
        exec.submit(priority, Box::new(move || run_compaction(&core, job)));
    }
    core.note_jobs(&work);
    update_pacing(core);
}

fn submit_flush(core: &Arc<Core>, work: &mut WorkState, tree: &Arc<Tree>) {
    let state = tree.state();
    let Some(oldest) = state.immutables.last() else {
        return;
    };
    if work
        .flush_only_up_to
        .is_some_and(|most| oldest.last_seqno > most)
    {
        return;
    }
    if tree.flushing.swap(true, Ordering::AcqRel) {
        return;
    }
    work.flushes += 1;
    let (core, tree) = (Arc::clone(core), Arc::clone(tree));
    let exec = Arc::clone(&core.env.exec);
    exec.submit(Priority::High, Box::new(move || run_flush(&core, &tree)));
}

fn run_flush(core: &Arc<Core>, tree: &Arc<Tree>) {
    let result = flush::flush_oldest(core, tree);
    core.recount_memtables();
    trim(core);
    let mut work = core.work.lock();
    work.flushes -= 1;
    tree.flushing.store(false, Ordering::Release);
    finish(core, work, Task::Flush, result);
}

/// Has the oldest cut of the replicated log flushed, if there is one.
fn submit_cut(core: &Arc<Core>, work: &mut WorkState, external: &External) {
    if !external.begin_flush() {
        return;
    }
    work.flushes += 1;
    let core = Arc::clone(core);
    let exec = Arc::clone(&core.env.exec);
    exec.submit(Priority::High, Box::new(move || run_cut(&core)));
}

fn run_cut(core: &Arc<Core>) {
    let result = flush_oldest(core);
    core.recount_memtables();
    trim(core);
    let mut work = core.work.lock();
    work.flushes -= 1;
    if let Some(external) = &core.external {
        external.end_flush();
    }
    finish(core, work, Task::Flush, result);
}

fn run_compaction(core: &Arc<Core>, job: Job) {
    let result = match run::run(core, &job) {
        // Its namespace was dropped under it.
        Err(_) if job.is_obsolete() => Ok(()),
        result => result,
    };
    trim(core);
    let mut work = core.work.lock();
    // Under the lock: who picks must not read the levels of before, then find the marks gone.
    job.release();
    drop(job);
    work.compactions -= 1;
    finish(core, work, Task::Compaction, result);
}

/// Gives the memory of a job's buffers back: they come and go as megabytes between the small blocks of
/// the cache, and the general allocator would keep them.
fn trim(core: &Core) {
    const LARGE_BYTES: usize = 4 << 20;
    if core.settings.memtable_bytes >= LARGE_BYTES && !core.env.exec.is_stepped() {
        firn_io::pages::trim_allocator();
    }
}

/// What a background job does.
#[derive(Clone, Copy)]
enum Task {
    Flush,
    Compaction,
}

impl Task {
    const fn name(self) -> &'static str {
        match self {
            Self::Flush => "flush",
            Self::Compaction => "compaction",
        }
    }

    const fn attempts(self, work: &mut WorkState) -> &mut Attempts {
        match self {
            Self::Flush => &mut work.flush,
            Self::Compaction => &mut work.compaction,
        }
    }

    const fn running(self, work: &WorkState) -> usize {
        match self {
            Self::Flush => work.flushes,
            Self::Compaction => work.compactions,
        }
    }
}

/// Ends a job: notes how it went, wakes who waits, starts what is next.
fn finish(
    core: &Arc<Core>,
    mut work: parking_lot::MutexGuard<'_, WorkState>,
    task: Task,
    result: Result<()>,
) {
    match result {
        Ok(()) => {
            let attempts = task.attempts(&mut work);
            attempts.failures = 0;
            attempts.last_error = None;
            core.work_done.notify_all();
            drop(work);
            if core.disk_full.load(Ordering::Acquire) {
                look_for_room(core);
            }
            schedule(core);
        }
        Err(_) if core.closed.load(Ordering::Acquire) => {
            core.work_done.notify_all();
        }
        Err(error) => {
            core.observer.counters.background_failures.add(1);
            let full = error.is_out_of_space();
            core.note_jobs(&work);
            let attempts = task.attempts(&mut work);
            let delay = if full {
                DISK_FULL_RETRY
            } else {
                let doubled = RETRY_FIRST * 2u32.saturating_pow(attempts.failures.min(16));
                doubled.min(RETRY_MAX)
            };
            attempts.failures = attempts.failures.saturating_add(1);
            attempts.last_error = Some(error.duplicate());
            let armed = std::mem::replace(&mut attempts.retry_armed, true);
            core.work_done.notify_all();
            drop(work);
            core.note_error(&error);
            core.observer.emit(Event::BackgroundError {
                task: task.name(),
                error: error.to_string(),
                retry_ms: delay.as_millis() as u64,
            });
            if full {
                disk_full(core, &error.to_string());
            }
            if !armed {
                retry_after(core, task, delay);
            }
        }
    }
}

fn retry_after(core: &Arc<Core>, task: Task, delay: Duration) {
    let weak = Arc::downgrade(core);
    core.env.exec.submit_after(
        delay,
        Priority::High,
        Box::new(move || {
            let Some(core) = weak.upgrade() else { return };
            task.attempts(&mut core.work.lock()).retry_armed = false;
            schedule(&core);
            let mut work = core.work.lock();
            if task.running(&work) == 0 {
                // What failed is not due any more: its namespace was dropped, for example.
                *task.attempts(&mut work) = Attempts::default();
                core.work_done.notify_all();
            }
        }),
    );
}

/// Looks for room later, if that is not arranged already.
fn look_for_room_later(core: &Arc<Core>) {
    if std::mem::replace(&mut core.work.lock().room_armed, true) {
        return;
    }
    let weak = Arc::downgrade(core);
    core.env.exec.submit_after(
        DISK_FULL_RETRY,
        Priority::High,
        Box::new(move || {
            let Some(core) = weak.upgrade() else { return };
            core.work.lock().room_armed = false;
            if core.disk_full.load(Ordering::Acquire) {
                look_for_room(&core);
            }
            if core.disk_full.load(Ordering::Acquire) {
                retire_for_room(&core);
            }
            schedule(&core);
        }),
    );
}

/// Retires what memtables hold while the disk is full. Nearly all of it is deletes, which free space
/// only once they are flushed and compacted, and no put will fill the memtable up.
fn retire_for_room(core: &Core) {
    let work = core.work.lock();
    if work.flush.last_error.is_some() || work.flushes > 0 {
        return;
    }
    drop(work);
    let commit = core.lock_commit();
    for tree in core.trees.load().iter() {
        // Without a log nothing was written, and at the next tick there is another try.
        let _ = core.rotate(&commit, tree);
    }
}

/// Goes into the state in which puts are refused: gives the ballast back, so that deletes can be
/// logged and memtables flushed, and looks for room from time to time.
pub fn disk_full(core: &Arc<Core>, detail: &str) {
    if core.disk_full.swap(true, Ordering::AcqRel) {
        return;
    }
    core.observer.emit(Event::DiskFull {
        detail: detail.to_string(),
    });
    // If there is no ballast there is nothing to give back.
    let _ = core.env.fs.remove_file(&core.dir.join(names::BALLAST));
    // Nor is log that only watches want worth more than writes. What fails here fails again, and is
    // reported, after the next flush.
    let _ = core.trim_log();
    core.work_done.notify_all();
    look_for_room_later(core);
}

/// Leaves the disk-full state if there is room for the ballast and a memtable's flush.
fn look_for_room(core: &Arc<Core>) {
    match make_room(core) {
        Ok(true) => {
            core.disk_full.store(false, Ordering::Release);
            let mut work = core.work.lock();
            work.flush.last_error = None;
            work.compaction.last_error = None;
            drop(work);
            core.observer.emit(Event::DiskRecovered);
        }
        Ok(false) | Err(_) => look_for_room_later(core),
    }
}

/// Whether there is room for writes; restores the ballast if so.
fn make_room(core: &Core) -> Result<bool> {
    let space = core.env.fs.space(&core.dir)?;
    let ballast = ballast_bytes(core, space.total);
    let flush = (core.settings.memtable_bytes as u64)
        .saturating_add(core.settings.log_segment_bytes)
        .saturating_add(ballast);
    if space.available < flush {
        return Ok(false);
    }
    place_ballast(core)?;
    Ok(true)
}

/// The ballast: as configured; on a small disk a hundredth of it, but what a flush needs.
fn ballast_bytes(core: &Core, total: u64) -> u64 {
    let given = core.settings.given.ballast_bytes;
    if given == 0 {
        return 0;
    }
    // What is given back must be enough to log deletes and to flush a memtable, or a small disk
    // would stay full.
    let log = core.settings.log_segment_bytes.saturating_mul(2);
    let flush = (core.settings.memtable_bytes as u64 * 5 / 4).saturating_add(log);
    given.min((total / 100).max(flush)).min(total / 8)
}

/// Reserves the ballast, if it is not there. Errors: no room for it.
pub fn place_ballast(core: &Core) -> Result<()> {
    let bytes = ballast_bytes(core, core.env.fs.space(&core.dir)?.total);
    let path = core.dir.join(names::BALLAST);
    if bytes == 0 || core.env.fs.exists(&path)? {
        return Ok(());
    }
    let file = core.env.fs.open(&path, firn_io::fs::OpenMode::Create)?;
    if let Err(error) = file.allocate(bytes) {
        crate::core::remove_quietly(&core.env, &path);
        return Err(error.into());
    }
    Ok(())
}

/// Tells the pacer how far behind the background is.
pub fn update_pacing(core: &Core) {
    core.pacer.update(run::load(core));
}

/// Waits until no flush is due or running; errors if one fails. What failed before is tried again at once,
/// not when its retry is due: the error is of now, not of a disk that was full a moment ago.
pub fn wait_for_flushes(core: &Arc<Core>) -> Result<()> {
    core.work.lock().flush.last_error = None;
    schedule(core);
    core.wait_for(|work| {
        if let Some(error) = &work.flush.last_error {
            return Some(Err(error.duplicate()));
        }
        let due = core.external.as_ref().is_some_and(External::has_due);
        let due = due
            || core.external.is_none()
                && core.trees.load().iter().any(|tree| {
                    let state = tree.state();
                    state.immutables.last().is_some_and(|oldest| {
                        work.flush_only_up_to
                            .is_none_or(|most| oldest.last_seqno <= most)
                    })
                });
        if due && work.flushes == 0 && core.closed.load(Ordering::Acquire) {
            return Some(Err(crate::core::closing()));
        }
        (work.flushes == 0 && !due).then_some(Ok(()))
    })
}

/// Waits until nothing is due or running and no file is left that nobody needs; errors if something
/// fails.
pub fn wait_idle(core: &Arc<Core>) -> Result<()> {
    loop {
        wait_for_flushes(core)?;
        core.wait_for(|work| {
            if let Some(error) = &work.compaction.last_error {
                return Some(Err(error.duplicate()));
            }
            (work.compactions == 0 && work.flushes == 0).then_some(Ok(()))
        })?;
        core.wait_for_removals();
        schedule(core);
        let work = core.work.lock();
        if work.compactions == 0 && work.flushes == 0 {
            return Ok(());
        }
    }
}

/// Waits until no job runs; for closing. New ones are not started once `closed` is set.
pub fn wait_stopped(core: &Core) {
    core.wait_for(|work| (work.compactions == 0 && work.flushes == 0).then_some(()));
}

/// Keeps compaction from starting while the guard lives, and waits for those that run.
#[derive(Debug)]
pub struct CompactionPause {
    core: Arc<Core>,
}

impl CompactionPause {
    /// Pauses.
    pub fn new(core: &Arc<Core>) -> Self {
        // One at a time: two that compact by themselves would not see each other's inputs.
        core.wait_for(|work| (work.compaction_paused == 0).then(|| work.compaction_paused += 1));
        let pause = Self {
            core: Arc::clone(core),
        };
        core.wait_for(|work| (work.compactions == 0).then_some(()));
        pause
    }
}

impl CompactionPause {
    /// Pauses if no compaction runs and nobody else has paused. Waits for nothing.
    pub fn now(core: &Arc<Core>) -> Option<Self> {
        let mut work = core.work.lock();
        if work.compactions > 0 || work.compaction_paused > 0 {
            return None;
        }
        work.compaction_paused += 1;
        Some(Self {
            core: Arc::clone(core),
        })
    }
}

impl Drop for CompactionPause {
    fn drop(&mut self) {
        self.core.work.lock().compaction_paused -= 1;
        self.core.work_done.notify_all();
        schedule(&self.core);
    }
}
