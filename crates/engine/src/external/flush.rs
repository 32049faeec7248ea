//! Flush of a cut: all retired memtables become SSTables, with one manifest edit. The steps are in
//! the page of [`crate::external`].

use std::path::PathBuf;
use std::sync::Arc;

use crate::core::{Core, remove_quietly};
use crate::error::Result;
use crate::event::Event;
use crate::external::state::{Cut, External};
use crate::flush;
use crate::names;
use crate::version::edit::{Op, VersionEdit};

/// Flushes the oldest cut; nothing to do is no error.
pub fn flush_oldest(core: &Arc<Core>) -> Result<()> {
    let Some(external) = &core.external else {
        return Ok(());
    };
    let Some(cut) = external.due() else {
        return Ok(());
    };
    external.log.sync_to(cut.applied.index)?;
    let mut made = Vec::new();
    let ops = match write(core, &cut, &mut made) {
        Ok(ops) => ops,
        Err(error) => {
            // Nothing names them, and the next try makes others: on a full disk they must go.
            made.iter().for_each(|path| remove_quietly(&core.env, path));
            return Err(error);
        }
    };
    let mut edit = VersionEdit::of(ops);
    edit.last_seqno = Some(cut.last_seqno);
    edit.next_namespace = Some(cut.next_namespace);
    edit.applied = Some(cut.applied);
    edit.applied_state = Some(cut.state.encode());
    core.versions.apply(edit)?;
    finish(core, external, &cut);
    Ok(())
}

/// Writes the files of a cut and notes them in `made`; returns the operations of the edit.
fn write(core: &Arc<Core>, cut: &Cut, made: &mut Vec<PathBuf>) -> Result<Vec<Op>> {
    // First those that went: one that came may have the name of one that went.
    let dropped = cut.dropped.iter();
    let mut ops: Vec<Op> = dropped.map(|&id| Op::DropNamespace { id }).collect();
    ops.extend(cut.created.iter().map(|(id, name)| Op::CreateNamespace {
        id: *id,
        name: name.clone(),
    }));
    for (tree, immutable) in &cut.memtables {
        let started = core.env.clock.monotonic();
        core.observer.emit(Event::FlushBegin {
            namespace: tree.id,
            memtable_bytes: immutable.memtable.memory_bytes() as u64,
        });
        let written = flush::write(core, tree, immutable)?;
        let bytes = written.bytes;
        let namespace = tree.id;
        for meta in written.blobs {
            made.push(names::blob_path(&core.dir, meta.id));
            ops.push(Op::AddBlob { namespace, meta });
        }
        for meta in written.tables {
            made.push(names::sstable_path(&core.dir, meta.id));
            ops.push(Op::AddFile {
                namespace,
                level: 0,
                meta,
            });
        }
        ops.push(Op::Flushed {
            namespace,
            seqno: cut.last_seqno,
        });
        core.observer.counters.flushes.add(1);
        core.observer.counters.flush_bytes.add(bytes);
        let now = core.env.clock.monotonic();
        core.observer.emit(Event::FlushEnd {
            namespace,
            bytes,
            micros: now.saturating_sub(started).as_micros() as u64,
        });
    }
    Ok(ops)
}

/// The edit is durable: readers read the files, and whoever has the log is told.
fn finish(core: &Arc<Core>, external: &External, cut: &Arc<Cut>) {
    for (tree, flushed) in &cut.memtables {
        tree.update(|state| {
            state.levels = core.versions.current(tree.id);
            state
                .immutables
                .retain(|immutable| !Arc::ptr_eq(immutable, flushed));
        });
    }
    external.finish_cut(cut);
    external.log.flushed(cut.applied);
}
