//! Checkpoint: a consistent copy of the whole database, made while it is in use.
//!
//! 1. One cut through all trees: under the commit lock every active memtable is retired. From then
//!    until 3 only memtables from before the cut are flushed.
//! 2. Wait for their flush: everything before the cut is then in SSTables, nothing after it is.
//! 3. Pin the levels of all trees; let flushes go on.
//! 4. Link (or, across file systems, copy) the pinned files into a directory beside the target,
//!    write a manifest and CURRENT there, sync, and rename the directory into place.
//!
//! Writers go on throughout; they wait only if they fill a whole memtable during 2. A crash leaves at
//! worst the half-made directory, whose name ends in `.partial`; the target appears whole or not at
//! all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use firn_io::fs::{OpenMode, parent_of};

use crate::core::Core;
use crate::error::{Error, Result};
use crate::external::state::External;
use crate::key::{NamespaceId, SeqNo};
use crate::names;
use crate::tree::{Levels, Tree};
use crate::version::edit::{Op, VersionEdit};
use crate::work;

/// Makes a checkpoint in `dir`, which must not exist. Returns where the replicated log stood, if
/// another log is the database's.
pub fn checkpoint(core: &Arc<Core>, dir: &Path) -> Result<Option<VersionEdit>> {
    core.check_writable()?;
    let _one_at_a_time = core.checkpoint.lock();
    if core.env.fs.exists(dir)? {
        return Err(Error::InvalidArgument(format!(
            "{} exists already",
            dir.display()
        )));
    }
    let pinned = pin(core)?;
    let mut partial = dir.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    clear(core, &partial)?;
    let result = fill(core, &partial, &pinned).and_then(|()| {
        core.env.fs.rename(&partial, dir)?;
        if let Some(parent) = parent_of(dir) {
            core.env.fs.sync_dir(parent)?;
        }
        Ok(())
    });
    if result.is_err() {
        // The first error is the one to report.
        let _ = clear(core, &partial);
    }
    result.map(|()| pinned.position)
}

/// The state at one instant.
struct Pinned {
    trees: Vec<(NamespaceId, String, Arc<Levels>)>,
    /// The newest operation.
    last_seqno: SeqNo,
    /// Where the replicated log stood and which namespace would have been next, if another log is
    /// the database's. Otherwise the copy is told by the time it is written: it knows no log.
    position: Option<VersionEdit>,
}

/// Lifts the restriction on flushes, however the checkpoint ends.
struct FlushGate<'a>(&'a Arc<Core>);

impl Drop for FlushGate<'_> {
    fn drop(&mut self) {
        self.0.work.lock().flush_only_up_to = None;
        if let Some(external) = &self.0.external {
            external.lift_gate();
        }
        work::schedule(self.0);
    }
}

/// Steps 1 to 3: the levels of all trees at one instant.
fn pin(core: &Arc<Core>) -> Result<Pinned> {
    if let Some(external) = &core.external {
        return pin_external(core, external);
    }
    let _no_namespace_change = core.namespace_change.lock();
    core.check_open()?;
    let cut = {
        let commit = core.lock_commit();
        for tree in core.trees.load().iter() {
            core.rotate(&commit, tree)?;
        }
        core.work.lock().flush_only_up_to = Some(commit.last_seqno);
        commit.last_seqno
    };
    let _gate = FlushGate(core);
    work::wait_for_flushes(core)?;
    let trees = core.trees.load();
    let levels = |t: &Arc<Tree>| (t.id, t.name.to_string(), Arc::clone(&t.state().levels));
    Ok(Pinned {
        trees: trees.iter().map(levels).collect(),
        last_seqno: cut,
        position: None,
    })
}

/// The same where another log is the database's: the state at one cut of that log. Namespaces come
/// and go with the cuts, so the manifest has those of this one.
fn pin_external(core: &Arc<Core>, external: &External) -> Result<Pinned> {
    core.check_open()?;
    external.check_whole()?;
    {
        let commit = core.lock_commit();
        external.cut(core.trees.load().iter(), commit.last_seqno);
        external.close_gate();
    }
    let _gate = FlushGate(core);
    work::wait_for_flushes(core)?;
    let versions = &core.versions;
    let namespaces = versions.namespaces().into_iter();
    Ok(Pinned {
        trees: namespaces
            .map(|(id, name)| (id, name, versions.current(id)))
            .collect(),
        last_seqno: versions.last_seqno(),
        position: Some(VersionEdit {
            applied: versions.applied(),
            applied_state: versions.applied_state(),
            next_namespace: Some(versions.next_namespace()),
            ..VersionEdit::default()
        }),
    })
}

/// Step 4, but for the rename.
fn fill(core: &Arc<Core>, dir: &Path, pinned: &Pinned) -> Result<()> {
    let fs = &core.env.fs;
    fs.create_dir_durable(dir)?;
    let mut ops = Vec::new();
    for (namespace, name, levels) in &pinned.trees {
        let namespace = *namespace;
        ops.push(Op::CreateNamespace {
            id: namespace,
            name: name.clone(),
        });
        for blob in levels.blobs() {
            let meta = blob.file.meta.clone();
            let id = meta.id;
            link(
                core,
                &names::blob_path(&core.dir, id),
                &names::blob_path(dir, id),
            )?;
            ops.push(Op::AddBlob { namespace, meta });
        }
        for (level, file) in levels.all_files() {
            let meta = file.meta.clone();
            let id = meta.id;
            link(
                core,
                &names::sstable_path(&core.dir, id),
                &names::sstable_path(dir, id),
            )?;
            ops.push(Op::AddFile {
                namespace,
                level,
                meta,
            });
        }
        ops.push(Op::Flushed {
            namespace,
            seqno: pinned.last_seqno,
        });
    }
    let mut edit = VersionEdit {
        ops,
        ..pinned.position.clone().unwrap_or_default()
    };
    edit.last_seqno = Some(pinned.last_seqno);
    core.versions.write_copy(dir, edit)?;
    fs.sync_dir(dir)?;
    Ok(())
}

/// Gives a file a second name, or copies it where that cannot be.
fn link(core: &Arc<Core>, from: &Path, to: &Path) -> Result<()> {
    if core.env.fs.hard_link(from, to).is_ok() {
        return Ok(());
    }
    let source = core.env.fs.open(from, OpenMode::Read)?;
    // Never into a file that is there: it could be the same one by another name.
    let target = core.env.fs.open(to, OpenMode::CreateNew)?;
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        let read = source.read_at(&mut buffer, offset)?;
        if read == 0 {
            break;
        }
        target.write_at(&buffer[..read], offset)?;
        offset += read as u64;
    }
    target.sync_data()?;
    Ok(())
}

/// Removes a half-made copy, if there is one. A copy has no directories in it: one that has is
/// somebody else's, and stays, which is an error.
fn clear(core: &Arc<Core>, dir: &Path) -> Result<()> {
    if !core.env.fs.exists(dir)? {
        return Ok(());
    }
    let entries = core.env.fs.list(dir)?;
    if entries.iter().all(|entry| !entry.is_dir) {
        for entry in &entries {
            core.env.fs.remove_file(&dir.join(&entry.name))?;
        }
    }
    core.env.fs.remove_dir(dir)?;
    Ok(())
}
