//! Flush: a retired memtable becomes one SSTable in L0 (and a blob file for its large values).
//!
//! 1. Wait until the log is durable up to the memtable's last record: an SSTable must not be ahead of
//!    the log, or a batch over two trees could be lost by half, or one tree lack an older write than
//!    another has. Where no other tree needs the log up to there neither can be, and nothing is waited for:
//!    log that is given up before it was synced need not reach the disk at all.
//! 2. Write the blob file and the SSTable, sync both, sync the directory. Versions that no reader
//!    needs are left out.
//! 3. One manifest edit, synced: the new files, and "operations up to N of this tree are in
//!    SSTables".
//! 4. Swap the tree's picture: the memtable out, the new levels in.
//! 5. Let go of log that no tree needs any more.
//!
//! A crash before 3 leaves files that no manifest names; the next open removes them and replays the
//! log. A crash after 3 replays nothing twice: recovery skips operations up to N. If power is lost after
//! 3 and the log ended before N, it goes on at the position that the edit says recovery begins at. The edit
//! says, too, that the log may have holes before (*log whole from*): the next open fills them.

use std::sync::Arc;

use crate::compaction::drop::{Decision, DropFilter, surviving_range_tombstones};
use crate::compaction::output::{OutputOptions, Outputs, Place, Written};
use crate::core::Core;
use crate::error::Result;
use crate::event::Event;
use crate::iterator::InternalIterator;
use crate::key::{Kind, Trailer};
use crate::tree::{Immutable, Tree};
use crate::version::edit::{Op, VersionEdit};

/// Flushes the oldest immutable memtable of a tree; nothing to do is no error.
pub fn flush_oldest(core: &Arc<Core>, tree: &Arc<Tree>) -> Result<()> {
    let Some(oldest) = tree.state().immutables.last().cloned() else {
        return Ok(());
    };
    if tree.is_dropped() {
        return Ok(());
    }
    let started = core.env.clock.monotonic();
    let memtable_bytes = oldest.memtable.memory_bytes() as u64;
    core.observer.emit(Event::FlushBegin {
        namespace: tree.id,
        memtable_bytes,
    });

    let log = core.log()?;
    let is_ahead = log.synced() < oldest.end_lsn && core.may_be_ahead_of_log(&oldest)?;
    if !is_ahead {
        core.sync_log(log, oldest.end_lsn)?;
    }
    let written = write(core, tree, &oldest)?;
    let bytes = written.bytes;

    let namespace = tree.id;
    let mut ops = Vec::new();
    ops.extend(
        written
            .blobs
            .into_iter()
            .map(|meta| Op::AddBlob { namespace, meta }),
    );
    ops.extend(written.tables.into_iter().map(|meta| Op::AddFile {
        namespace,
        level: 0,
        meta,
    }));
    ops.push(Op::Flushed {
        namespace,
        seqno: oldest.last_seqno,
    });
    let mut edit = VersionEdit::of(ops);
    edit.last_seqno = Some(oldest.last_seqno);
    edit.log_start = Some(core.log_needed_from(Some(&oldest))?.0);
    edit.log_whole_from = edit.log_start.filter(|_| is_ahead);
    core.versions.apply(edit)?;
    tree.update(|state| {
        state.levels = core.versions.current(tree.id);
        state
            .immutables
            .retain(|immutable| !Arc::ptr_eq(immutable, &oldest));
    });

    core.observer.counters.flushes.add(1);
    core.observer.counters.flush_bytes.add(bytes);
    let micros = core
        .env
        .clock
        .monotonic()
        .saturating_sub(started)
        .as_micros() as u64;
    core.observer.emit(Event::FlushEnd {
        namespace: tree.id,
        bytes,
        micros,
    });
    // Segments that cannot be let go of now are let go of after the next flush.
    core.trim_log()?;
    Ok(())
}

/// Writes what readers may still need of a memtable.
pub(crate) fn write(core: &Arc<Core>, tree: &Tree, immutable: &Immutable) -> Result<Written> {
    let memtable = &immutable.memtable;
    let visible_at = core.snapshots.visible_at();
    let tombstones = memtable.range_tombstones();
    let now_ms = core.droppable_ms();
    let mut filter = DropFilter::new(&visible_at, &tombstones, now_ms, |_| false);
    let options = OutputOptions {
        table: core.settings.table_options(false),
        table_bytes: u64::MAX,
        min_blob_bytes: core.settings.given.min_blob_bytes,
        namespace: tree.id,
        namespace_name: Arc::clone(&tree.name),
    };
    let surviving = surviving_range_tombstones(&tombstones, &visible_at, |_, _| false);
    let mut outputs = Outputs::new(Place::of(core), options, surviving);
    let mut entries = memtable.iter();
    entries.seek_to_first()?;
    while entries.valid() {
        let (key, trailer, value) = (entries.key(), entries.trailer(), entries.value());
        match filter.decide(key, trailer, value)? {
            Decision::Keep => outputs.add(key, trailer, value)?,
            Decision::KeepAsDelete => {
                outputs.add(key, Trailer::new(trailer.seqno(), Kind::Delete), &[])?;
            }
            Decision::Drop(_) => {}
        }
        entries.next()?;
    }
    let written = outputs.finish()?;
    core.observer
        .counters
        .blob_bytes_written
        .add(written.blob_value_bytes);
    Ok(written)
}
