//! The current version of every namespace, and the one way to change them: an edit, logged and
//! synced to the manifest first, then published.
//!
//! The set also hands out the numbers of files and namespaces. A number that was handed out is never
//! handed out again, not even after a crash: an edit records the next free number, recovery starts
//! behind every number it sees, and files without an edit are removed before their number can be
//! used again.
//!
//! # Failures
//!
//! When an append to the manifest fails, nobody knows whether the edit is durable. The set then
//! keeps its old state, keeps the edit's new files (a restart may find the edit), and begins a new
//! manifest, without the edit, before the next one is logged. Once the new manifest is in use the
//! doubtful files are garbage and go. So a full disk is survived without a restart. The new files of an
//! edit that fails before it is appended go at once.
//!
//! A new manifest is also begun at each open (the tail of the old one may be torn) and when the
//! edits have grown to several times the state that they describe.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use firn_io::Env;
use firn_io::wal::Lsn;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::key::{FileId, NamespaceId, SeqNo};
use crate::names::{self, FileKind};
use crate::version::edit::{Applied, Op, VersionEdit};
use crate::version::manifest::{self, ManifestWriter};
use crate::version::{BlobFile, FileClass, LevelFile, Purger, Version, VersionBuilder};

/// The name of the namespace that always exists, with number 0.
pub const DEFAULT_NAMESPACE: &str = "default";

/// A manifest shorter than this is not replaced.
const ROLL_BYTES: u64 = 1 << 20;
/// A manifest is replaced when it is this many times as long as the state it began with.
const ROLL_FACTOR: u64 = 4;

struct NamespaceState<T, B> {
    name: String,
    flushed: SeqNo,
    version: Arc<Version<T, B>>,
}

impl<T, B> Clone for NamespaceState<T, B> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            flushed: self.flushed,
            version: Arc::clone(&self.version),
        }
    }
}

/// Everything that edits change.
struct State<T, B> {
    namespaces: BTreeMap<NamespaceId, NamespaceState<T, B>>,
    next_namespace: NamespaceId,
    last_seqno: SeqNo,
    log_start: Option<u64>,
    log_whole_from: Option<u64>,
    applied: Option<Applied>,
    applied_state: Option<Arc<[u8]>>,
}

impl<T, B> Clone for State<T, B> {
    fn clone(&self) -> Self {
        Self {
            namespaces: self.namespaces.clone(),
            applied_state: self.applied_state.clone(),
            ..*self
        }
    }
}

impl<T, B> Default for State<T, B> {
    fn default() -> Self {
        Self {
            namespaces: BTreeMap::new(),
            next_namespace: NamespaceId(0),
            last_seqno: SeqNo::ZERO,
            log_start: None,
            log_whole_from: None,
            applied: None,
            applied_state: None,
        }
    }
}

/// The state after an edit, and what it no longer has.
struct Staged<T, B> {
    state: State<T, B>,
    removed: Vec<Arc<LevelFile<T>>>,
    removed_blobs: Vec<Arc<BlobFile<B>>>,
}

impl<T, B> State<T, B> {
    /// The state after `edit`. The error says what does not fit.
    fn stage(
        &self,
        edit: &VersionEdit,
        purger: Option<&Purger>,
    ) -> std::result::Result<Staged<T, B>, String> {
        let mut staged = Staged {
            state: self.clone(),
            removed: Vec::new(),
            removed_blobs: Vec::new(),
        };
        let mut builders: BTreeMap<NamespaceId, VersionBuilder<T, B>> = BTreeMap::new();
        for op in &edit.ops {
            staged.apply(op, &mut builders, purger)?;
        }
        for (id, builder) in builders {
            let built = builder.finish()?;
            staged.removed.extend(built.removed);
            staged.removed_blobs.extend(built.removed_blobs);
            if let Some(namespace) = staged.state.namespaces.get_mut(&id) {
                namespace.version = Arc::new(built.version);
            }
        }
        let state = &mut staged.state;
        state.next_namespace = state
            .next_namespace
            .max(edit.next_namespace.unwrap_or_default());
        state.last_seqno = state.last_seqno.max(edit.last_seqno.unwrap_or_default());
        state.log_start = state.log_start.max(edit.log_start);
        state.log_whole_from = state.log_whole_from.max(edit.log_whole_from);
        state.applied = state.applied.max(edit.applied);
        if edit.applied_state.is_some() {
            state.applied_state.clone_from(&edit.applied_state);
        }
        Ok(staged)
    }

    /// An edit that makes this state out of nothing.
    fn describe(&self, next_file: FileId) -> VersionEdit {
        let mut ops = Vec::new();
        for (&namespace, tree) in &self.namespaces {
            ops.push(Op::CreateNamespace {
                id: namespace,
                name: tree.name.clone(),
            });
            let blobs = tree.version.blobs().iter();
            ops.extend(blobs.map(|b| Op::AddBlob {
                namespace,
                meta: b.file.meta.clone(),
            }));
            let files = tree.version.all_files();
            ops.extend(files.map(|(level, file)| Op::AddFile {
                namespace,
                level,
                meta: file.meta.clone(),
            }));
            ops.push(Op::Flushed {
                namespace,
                seqno: tree.flushed,
            });
        }
        VersionEdit {
            ops,
            next_file: Some(next_file),
            next_namespace: Some(self.next_namespace),
            last_seqno: Some(self.last_seqno),
            log_start: self.log_start,
            log_whole_from: self.log_whole_from,
            applied: self.applied,
            applied_state: self.applied_state.clone(),
            snapshot_end: false,
        }
    }
}

/// The builder of a namespace's next version, begun if need be.
fn builder_of<'b, T, B>(
    builders: &'b mut BTreeMap<NamespaceId, VersionBuilder<T, B>>,
    namespaces: &BTreeMap<NamespaceId, NamespaceState<T, B>>,
    id: NamespaceId,
    purger: Option<&Purger>,
) -> std::result::Result<&'b mut VersionBuilder<T, B>, String> {
    let tree = namespaces
        .get(&id)
        .ok_or_else(|| format!("there is no namespace {}", id.0))?;
    let begin = || VersionBuilder::new(Arc::clone(&tree.version), purger.cloned());
    Ok(builders.entry(id).or_insert_with(begin))
}

impl<T, B> Staged<T, B> {
    fn apply(
        &mut self,
        op: &Op,
        builders: &mut BTreeMap<NamespaceId, VersionBuilder<T, B>>,
        purger: Option<&Purger>,
    ) -> std::result::Result<(), String> {
        let namespaces = &mut self.state.namespaces;
        match op {
            Op::AddFile {
                namespace,
                level,
                meta,
            } => {
                builder_of(builders, namespaces, *namespace, purger)?.add_file(*level, meta.clone())
            }
            Op::RemoveFile {
                namespace,
                level,
                id,
            } => builder_of(builders, namespaces, *namespace, purger)?.remove_file(*level, *id),
            Op::AddBlob { namespace, meta } => {
                builder_of(builders, namespaces, *namespace, purger)?.add_blob(meta.clone())
            }
            Op::Flushed { namespace, seqno } => match namespaces.get_mut(namespace) {
                Some(tree) => {
                    tree.flushed = tree.flushed.max(*seqno);
                    Ok(())
                }
                None => Err(format!("there is no namespace {}", namespace.0)),
            },
            Op::CreateNamespace { id, name } => {
                if namespaces.contains_key(id) || namespaces.values().any(|n| n.name == *name) {
                    return Err(format!("namespace {} {name:?} exists already", id.0));
                }
                let version = Arc::new(Version::empty());
                let tree = NamespaceState {
                    name: name.clone(),
                    flushed: SeqNo::ZERO,
                    version,
                };
                namespaces.insert(*id, tree);
                self.state.next_namespace = self
                    .state
                    .next_namespace
                    .max(NamespaceId(id.0.saturating_add(1)));
                Ok(())
            }
            Op::DropNamespace { id } => {
                builders.remove(id);
                let Some(tree) = namespaces.remove(id) else {
                    return Err(format!("there is no namespace {}", id.0));
                };
                self.removed
                    .extend(tree.version.all_files().map(|(_, file)| Arc::clone(file)));
                let blobs = tree.version.blobs().iter();
                self.removed_blobs
                    .extend(blobs.map(|blob| Arc::clone(&blob.file)));
                Ok(())
            }
        }
    }
}

/// What the lock guards.
struct Inner<T, B> {
    state: State<T, B>,
    /// `None` if open for reading only, or until a new one is begun after a failure.
    manifest: Option<ManifestWriter>,
    /// The manifest in use as far as is known.
    manifest_id: FileId,
    /// Manifests that are not in use any more once a new one is.
    old_manifests: Vec<FileId>,
    /// New files of edits of which nobody knows whether they are durable.
    doubtful: Vec<(FileId, FileClass)>,
}

/// See the module's page. `T` reads an SSTable, `B` a blob file.
pub struct VersionSet<T = (), B = ()> {
    env: Env,
    dir: PathBuf,
    purger: Purger,
    read_only: bool,
    next_file: AtomicU64,
    inner: Mutex<Inner<T, B>>,
}

impl<T, B> std::fmt::Debug for VersionSet<T, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VersionSet")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl<T, B> VersionSet<T, B> {
    /// Reads the state that CURRENT leads to, or makes an empty one with the default namespace, and
    /// begins a new manifest. `purger` is told of every file that nobody needs any more.
    ///
    /// Errors: damage, or there are data files but no CURRENT: they are not taken for garbage.
    pub fn open(env: Env, dir: &Path, purger: Purger) -> Result<Self> {
        let exists = env.fs.exists(&dir.join(names::CURRENT))?;
        let set = if exists {
            Self::recover(env, dir, purger, false)?
        } else {
            check_empty(&env, dir)?;
            let mut state = State::default();
            let create = Op::CreateNamespace {
                id: NamespaceId::default(),
                name: DEFAULT_NAMESPACE.to_string(),
            };
            let edit = VersionEdit::of(vec![create]);
            if let Ok(staged) = state.stage(&edit, None) {
                state = staged.state;
            }
            Self::new(env, dir, purger, false, state, FileId(1), FileId(0))
        };
        set.begin_manifest(&mut set.inner.lock())?;
        Ok(set)
    }

    /// Reads the state that CURRENT leads to; writes nothing, now or later.
    pub fn recover_read_only(env: Env, dir: &Path, purger: Purger) -> Result<Self> {
        Self::recover(env, dir, purger, true)
    }

    fn new(
        env: Env,
        dir: &Path,
        purger: Purger,
        read_only: bool,
        state: State<T, B>,
        next_file: FileId,
        manifest_id: FileId,
    ) -> Self {
        let inner = Inner {
            state,
            manifest: None,
            manifest_id,
            old_manifests: Vec::new(),
            doubtful: Vec::new(),
        };
        Self {
            env,
            dir: dir.to_path_buf(),
            purger,
            read_only,
            next_file: AtomicU64::new(next_file.0),
            inner: Mutex::new(inner),
        }
    }

    /// The same from manifest `id`, whatever CURRENT says.
    pub fn recover_manifest(env: Env, dir: &Path, id: FileId, purger: Purger) -> Result<Self> {
        Self::recover_from(env, dir, id, purger, true)
    }

    fn recover(env: Env, dir: &Path, purger: Purger, read_only: bool) -> Result<Self> {
        let id = manifest::read_current(&*env.fs, dir)?;
        Self::recover_from(env, dir, id, purger, read_only)
    }

    fn recover_from(
        env: Env,
        dir: &Path,
        id: FileId,
        purger: Purger,
        read_only: bool,
    ) -> Result<Self> {
        let path = dir.join(names::manifest_name(id));
        let mut state: State<T, B> = State::default();
        let mut next_file = FileId(id.0 + 1);
        // The description of the state may come in pieces of which only the whole fits together.
        let mut description = Some(VersionEdit::default());
        manifest::read(&*env.fs, dir, id, |offset, mut edit| {
            let after = |id: FileId| FileId(id.0.saturating_add(1));
            for op in &edit.ops {
                match op {
                    Op::AddFile { meta, .. } => next_file = next_file.max(after(meta.id)),
                    Op::AddBlob { meta, .. } => next_file = next_file.max(after(meta.id)),
                    _ => {}
                }
            }
            next_file = next_file.max(edit.next_file.unwrap_or_default());
            if let Some(mut whole) = description.take() {
                whole.ops.append(&mut edit.ops);
                if !edit.snapshot_end {
                    description = Some(whole);
                    return Ok(());
                }
                edit.ops = whole.ops;
            }
            let purger = (!read_only).then_some(&purger);
            let staged = state
                .stage(&edit, purger)
                .map_err(|detail| Error::corruption(&path, offset, detail))?;
            state = staged.state;
            Ok(())
        })?;
        for tree in state.namespaces.values() {
            tree.version
                .check()
                .map_err(|detail| Error::corruption(&path, 0, detail))?;
        }
        if !state.namespaces.contains_key(&NamespaceId::default()) {
            return Err(Error::corruption(
                &path,
                0,
                "the default namespace is missing",
            ));
        }
        Ok(Self::new(env, dir, purger, read_only, state, next_file, id))
    }

    /// Makes an edit durable, then visible. Files that it removes go when their last user is gone.
    ///
    /// Errors: the edit does not fit the state (a bug, or its namespace was dropped meanwhile):
    /// nothing happened. The disk failed: the set is as before; the edit may be found by a restart
    /// but by nothing else, and the next call starts on a new manifest. In any case its new files are
    /// the set's to remove.
    pub fn apply(&self, edit: VersionEdit) -> Result<()> {
        let inner = &mut *self.inner.lock();
        self.apply_locked(inner, edit)
    }

    fn apply_locked(&self, inner: &mut Inner<T, B>, mut edit: VersionEdit) -> Result<()> {
        let mut is_logged = false;
        let result = self.log_and_apply(inner, &mut edit, &mut is_logged);
        if result.is_err() && !is_logged {
            // No manifest names them, and whoever made them makes others. (What is live already is there by mistake.)
            let live = inner.live_files();
            for (file, class) in new_files(&edit) {
                if !live.contains(&file) {
                    // Now, as no manifest says that the number is taken: after the next open it may be another file's.
                    let path = match class {
                        FileClass::Sstable => names::sstable_path(&self.dir, file),
                        FileClass::Blob => names::blob_path(&self.dir, file),
                    };
                    // Left over it costs space until that open removes it as an orphan.
                    let _ = self.env.fs.remove_file(&path);
                }
            }
        }
        result
    }

    /// `is_logged` is set once the edit may be durable.
    fn log_and_apply(
        &self,
        inner: &mut Inner<T, B>,
        edit: &mut VersionEdit,
        is_logged: &mut bool,
    ) -> Result<()> {
        let staged = inner
            .state
            .stage(edit, Some(&self.purger))
            .map_err(|detail| Error::InvalidArgument(format!("version edit: {detail}")))?;
        edit.next_file = Some(self.peek_file_id());
        edit.next_namespace = Some(staged.state.next_namespace);
        let due = inner.manifest.as_ref().is_none_or(|manifest| {
            manifest.file_bytes() > ROLL_BYTES.max(ROLL_FACTOR * manifest.snapshot_bytes())
        });
        if due {
            self.begin_manifest(inner)?;
        }
        let Some(manifest) = &mut inner.manifest else {
            return Err(Error::Closed("the database is open for reading only"));
        };
        *is_logged = true;
        if let Err(error) = manifest.append(edit) {
            inner.manifest = None;
            inner.doubtful.extend(new_files(edit));
            return Err(error);
        }
        inner.state = staged.state;
        staged.removed.iter().for_each(|file| file.mark_obsolete());
        staged
            .removed_blobs
            .iter()
            .for_each(|file| file.mark_obsolete());
        Ok(())
    }

    /// Begins a new manifest with the present state and puts it into use.
    fn begin_manifest(&self, inner: &mut Inner<T, B>) -> Result<()> {
        if self.read_only {
            return Err(Error::Closed("the database is open for reading only"));
        }
        inner.manifest = None;
        let fs = &*self.env.fs;
        let id = self.next_file_id();
        let state = inner.state.describe(self.peek_file_id());
        let writer = match ManifestWriter::create(fs, &self.dir, id, state) {
            Ok(writer) => writer,
            Err(error) => {
                // Nothing names it yet.
                let _ = fs.remove_file(&self.dir.join(names::manifest_name(id)));
                return Err(error);
            }
        };
        // From here on it may be the one in use, also after an error.
        let old = std::mem::replace(&mut inner.manifest_id, id);
        // A new database has none: files are numbered from 1.
        if old != FileId(0) {
            inner.old_manifests.push(old);
        }
        manifest::set_current(fs, &self.dir, id)?;
        inner.manifest = Some(writer);
        for old in inner.old_manifests.drain(..) {
            // Left over it does no harm; the next open tries again.
            let _ = fs.remove_file(&self.dir.join(names::manifest_name(old)));
        }
        for (file, class) in inner.doubtful.drain(..) {
            (self.purger)(file, class);
        }
        Ok(())
    }

    /// A number for a new file.
    pub fn next_file_id(&self) -> FileId {
        FileId(self.next_file.fetch_add(1, Ordering::Relaxed))
    }

    fn peek_file_id(&self) -> FileId {
        FileId(self.next_file.load(Ordering::Relaxed))
    }

    /// The version of a namespace; an empty one if there is no such namespace.
    pub fn current(&self, id: NamespaceId) -> Arc<Version<T, B>> {
        let inner = self.inner.lock();
        let tree = inner.state.namespaces.get(&id);
        tree.map_or_else(
            || Arc::new(Version::empty()),
            |tree| Arc::clone(&tree.version),
        )
    }

    /// All namespaces, by number.
    pub fn namespaces(&self) -> Vec<(NamespaceId, String)> {
        let inner = self.inner.lock();
        inner
            .state
            .namespaces
            .iter()
            .map(|(&id, tree)| (id, tree.name.clone()))
            .collect()
    }

    /// Adds an empty namespace; durable on return. Errors: there is one of this name, or the disk
    /// failed (then a restart may find it).
    pub fn create_namespace(&self, name: &str) -> Result<(NamespaceId, Arc<Version<T, B>>)> {
        let inner = &mut *self.inner.lock();
        if inner
            .state
            .namespaces
            .values()
            .any(|tree| tree.name == name)
        {
            return Err(Error::NamespaceExists(name.to_string()));
        }
        let id = inner.state.next_namespace;
        let edit = VersionEdit::of(vec![Op::CreateNamespace {
            id,
            name: name.to_string(),
        }]);
        let result = self.apply_locked(inner, edit);
        if result.is_err() {
            // The number may be in a manifest that a restart reads.
            inner.state.next_namespace = NamespaceId(id.0.saturating_add(1));
        }
        result?;
        let version = inner
            .state
            .namespaces
            .get(&id)
            .map(|tree| Arc::clone(&tree.version));
        Ok((id, version.unwrap_or_else(|| Arc::new(Version::empty()))))
    }

    /// Removes a namespace and all its files; durable on return. `last` is the newest operation that
    /// is durable in the log: with the namespace its need for the log goes, and no number may be
    /// given out again.
    pub fn drop_namespace(&self, id: NamespaceId, last: SeqNo) -> Result<()> {
        let mut edit = VersionEdit::of(vec![Op::DropNamespace { id }]);
        edit.last_seqno = Some(last);
        self.apply(edit)
    }

    /// Numbers of all SSTables and blob files of all current versions, and of those of which nobody
    /// knows whether the manifest has them.
    pub fn live_files(&self) -> Vec<FileId> {
        self.inner.lock().live_files()
    }

    /// Checks that every file of the current versions is in the directory with its length. One
    /// listing, no file is opened. Errors: the first that is not, as damage.
    pub fn check_files_exist(&self) -> Result<()> {
        let present: BTreeMap<String, u64> = self
            .env
            .fs
            .list(&self.dir)?
            .into_iter()
            .map(|e| (e.name, e.len))
            .collect();
        let check = |path: PathBuf, want: u64| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            match present.get(name) {
                None => Err(Error::corruption(
                    path,
                    0,
                    "the manifest names it, but it is missing",
                )),
                Some(&len) if len != want => Err(Error::corruption(
                    path,
                    len.min(want),
                    format!("the manifest says {want} bytes, but it has {len}"),
                )),
                Some(_) => Ok(()),
            }
        };
        let inner = self.inner.lock();
        for tree in inner.state.namespaces.values() {
            for (_, file) in tree.version.all_files() {
                check(
                    names::sstable_path(&self.dir, file.meta.id),
                    file.meta.file_bytes,
                )?;
            }
            for blob in tree.version.blobs() {
                let meta = &blob.file.meta;
                check(names::blob_path(&self.dir, meta.id), meta.file_bytes)?;
            }
        }
        Ok(())
    }

    /// The number of the manifest in use.
    pub fn manifest_id(&self) -> FileId {
        self.inner.lock().manifest_id
    }

    /// Up to here the SSTables of a namespace have all its operations.
    pub fn flushed_seqno(&self, id: NamespaceId) -> SeqNo {
        self.inner
            .lock()
            .state
            .namespaces
            .get(&id)
            .map_or(SeqNo::ZERO, |tree| tree.flushed)
    }

    /// No SSTable has a later operation.
    pub fn last_seqno(&self) -> SeqNo {
        self.inner.lock().state.last_seqno
    }

    /// The lowest log position that recovery needs; `None` if no edit said one yet.
    pub fn log_start(&self) -> Option<Lsn> {
        self.inner.lock().state.log_start.map(Lsn)
    }

    /// The log may have lost what was before this position, which SSTables have.
    pub fn log_whole_from(&self) -> Option<Lsn> {
        self.inner.lock().state.log_whole_from.map(Lsn)
    }

    /// Namespaces from this number on were never made.
    pub fn next_namespace(&self) -> NamespaceId {
        self.inner.lock().state.next_namespace
    }

    /// The last replicated command that the SSTables have.
    pub fn applied(&self) -> Option<Applied> {
        self.inner.lock().state.applied
    }

    /// What goes with [`VersionSet::applied`]; see [`VersionEdit::applied_state`].
    pub fn applied_state(&self) -> Option<Arc<[u8]>> {
        self.inner.lock().state.applied_state.clone()
    }

    /// Writes a manifest and CURRENT into another directory, with `edit` as the whole state; durable
    /// on return, but for the names that other calls made there. The number of the next namespace
    /// is this set's where the edit has none.
    pub fn write_copy(&self, dir: &Path, mut edit: VersionEdit) -> Result<()> {
        let id = self.next_file_id();
        edit.next_file = Some(FileId(id.0 + 1));
        {
            let inner = self.inner.lock();
            edit.next_namespace
                .get_or_insert(inner.state.next_namespace);
        }
        ManifestWriter::create(&*self.env.fs, dir, id, edit)?;
        manifest::set_current(&*self.env.fs, dir, id)
    }
}

impl<T, B> Inner<T, B> {
    fn live_files(&self) -> Vec<FileId> {
        let mut ids: Vec<FileId> = self.doubtful.iter().map(|&(id, _)| id).collect();
        for tree in self.state.namespaces.values() {
            ids.extend(tree.version.all_files().map(|(_, file)| file.meta.id));
            ids.extend(tree.version.blobs().iter().map(|blob| blob.file.meta.id));
        }
        ids
    }
}

/// The files that an edit brings.
fn new_files(edit: &VersionEdit) -> Vec<(FileId, FileClass)> {
    let moved = |id: FileId| {
        edit.ops
            .iter()
            .any(|op| matches!(op, Op::RemoveFile { id: other, .. } if *other == id))
    };
    let added = edit.ops.iter().filter_map(|op| match op {
        Op::AddFile { meta, .. } => Some((meta.id, FileClass::Sstable)),
        Op::AddBlob { meta, .. } => Some((meta.id, FileClass::Blob)),
        _ => None,
    });
    added.filter(|&(id, _)| !moved(id)).collect()
}

/// Without CURRENT nothing but what a crash in the first moments left may be there.
fn check_empty(env: &Env, dir: &Path) -> Result<()> {
    let missing = |what: &str| {
        let detail = format!("it is missing, but there is {what}: run repair");
        Err(Error::corruption(dir.join(names::CURRENT), 0, detail))
    };
    for entry in env.fs.list(dir)? {
        if let Some(FileKind::Sstable(_) | FileKind::Blob(_)) = names::parse(&entry.name) {
            return missing(&entry.name);
        }
        // The log is begun after CURRENT is durable.
        if entry.name == names::WAL_DIR && !env.fs.list(&dir.join(names::WAL_DIR))?.is_empty() {
            return missing("a log");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use firn_io::clock::ManualClock;
    use firn_io::exec::Stepper;
    use firn_io::fs::fault::{Fault, FaultFs, OpKind, Rule};
    use firn_io::fs::mem::MemFs;
    use firn_io::fs::{Fs, OpenMode};
    use firn_io::rng::SeededEntropy;

    use super::*;
    use crate::version::FileMeta;

    fn add(namespace: u32, id: FileId) -> VersionEdit {
        let key = format!("k{}", id.0).into_bytes();
        let meta = FileMeta {
            id,
            file_bytes: 1,
            raw_bytes: 1,
            entry_count: 1,
            tombstone_count: 0,
            range_tombstone_count: 0,
            smallest: key.clone().into(),
            largest: key.into(),
            largest_exclusive: false,
            min_seqno: SeqNo(id.0),
            max_seqno: SeqNo(id.0),
            blob_refs: Vec::new(),
        };
        VersionEdit::of(vec![Op::AddFile {
            namespace: NamespaceId(namespace),
            level: 0,
            meta,
        }])
    }

    #[test]
    fn new_files_of_an_edit_that_is_not_logged_go() {
        let clock = Arc::new(ManualClock::new(7));
        let fs = FaultFs::new(Arc::new(MemFs::new()), 1);
        let env = Env {
            fs: Arc::new(fs.clone()),
            exec: Arc::new(Stepper::new(1, clock.clone())),
            entropy: Arc::new(SeededEntropy::new(1)),
            clock,
        };
        fs.create_dir_all(Path::new("/db")).unwrap();
        // The way of files that somebody may read still: in the background, after a close perhaps.
        let later = Arc::new(Mutex::new(Vec::new()));
        let purged = Arc::clone(&later);
        let purger: Purger = Arc::new(move |id, _| purged.lock().push(id));
        let set: VersionSet<(), ()> = VersionSet::open(env, Path::new("/db"), purger).unwrap();
        let path = |id| names::sstable_path(Path::new("/db"), id);
        let next = || {
            let id = set.next_file_id();
            fs.open(&path(id), OpenMode::CreateNew).unwrap();
            id
        };
        let is_there = |id| fs.exists(&path(id)).unwrap();

        let kept = next();
        set.apply(add(0, kept)).unwrap();
        let refused = next();
        assert!(set.apply(add(9, refused)).is_err());
        assert!(!is_there(refused));
        // What is in use stays, whoever brings it again.
        assert!(set.apply(add(0, kept)).is_err());
        assert!(is_there(kept));

        let failing = |kind| fs.add_rule(Rule::new(Fault::Io).on(kind).path_contains("MANIFEST"));
        failing(OpKind::Write);
        failing(OpKind::Sync);
        let doubtful = next();
        assert!(set.apply(add(0, doubtful)).is_err());
        assert!(is_there(doubtful), "a restart may find it");
        let refused = next();
        assert!(set.apply(add(0, refused)).is_err());
        assert!(!is_there(refused), "there is no manifest to log it in");
        assert_eq!(*later.lock(), []);
        fs.clear_rules();
        let last = next();
        set.apply(add(0, last)).unwrap();
        assert_eq!(*later.lock(), [doubtful]);
        assert_eq!(set.live_files().len(), 2);
    }
}
