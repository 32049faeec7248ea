//! A disk in memory that can lose power.
//!
//! [`MemFs`] keeps two pictures of everything: what the process sees (*visible*) and what a sync
//! has promised to keep (*durable*).
//!
//! * A file's durable picture is a copy of its visible bytes and length, taken by
//!   [`File::sync_data`]. Copies share their pages (see `content`), so taking one is cheap.
//! * A directory's durable picture changes only by [`Fs::sync_dir`]. Until then creations, links,
//!   renames and removals stand in one list in the order in which they were done. A sync of a
//!   directory applies those that touch it, and with a rename between two directories everything
//!   before it in the other one.
//! * Bytes belong to files, not to names: synced bytes whose name was not synced are lost, and a
//!   synced name of a file whose bytes were not synced leads to an old or empty file.
//!
//! [`MemFs::crash`] is the disk after power loss, [`MemFs::fork`] after the death of the process.
//! Both are new disks; the old one goes on as if nothing had happened, so a test can look at the
//! crash after every single operation. All is decided by the seed. Paths start at the root whether
//! they say so or not; the root is there from the start and durable.
//!
//! It is stricter than real disks in four ways, all of which POSIX permits: syncing a new file does
//! not make its name durable, a new directory must be synced in its parent, a length can be lost or
//! kept independently of the bytes, and a range that is to be mapped must be allocated (elsewhere a
//! store there may end the process). It does not model a sync that lies, nor a disk that refuses
//! directory operations for want of space. Of a sector that was written several times since the
//! last sync it knows the synced and the newest bytes (and the newest up to some byte, which covers
//! every earlier state of a sector that was only appended to), not the versions between.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug};
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fs::mem::content::{Content, Full, PAGE_BYTES};
use crate::fs::{Advice, DirEntry, File, FileLock, Fs, MappedFile, OpenMode, Space};
use crate::rng::Rng;

mod content;

/// What a power loss leaves of everything that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashMode {
    /// Nothing: the disk is at its last syncs.
    DropUnsynced,
    /// All: it had reached the disk by chance.
    KeepAll,
    /// A part, by the seed. Of each directory's operations some number of the first ones; of each
    /// file's 512-byte sectors any, each whole or up to some byte; of a changed length the old one,
    /// the new one or one between. A rename happened or did not.
    Torn,
}

/// A number of a file or directory, as an inode number.
type NodeId = u64;

const ROOT: NodeId = 0;

/// The names in one directory.
type Names = BTreeMap<Arc<str>, NodeId>;

#[derive(Clone, Debug)]
struct FileNode {
    visible: Arc<Content>,
    durable: Arc<Content>,
    /// Visible names.
    links: u32,
    /// Handles and mappings.
    opens: u32,
}

#[derive(Clone, Debug)]
struct DirNode {
    visible: Arc<Names>,
    durable: Arc<Names>,
}

#[derive(Clone, Debug)]
enum Node {
    File(FileNode),
    Dir(DirNode),
}

/// In directory `dir`, `name` now leads to `node`, or to nothing.
#[derive(Clone, Debug)]
struct NameChange {
    dir: NodeId,
    name: Arc<str>,
    node: Option<NodeId>,
}

/// A directory operation that is visible and not durable. It becomes durable as a whole.
#[derive(Clone, Debug)]
struct PendingOp {
    changes: Vec<NameChange>,
    /// The directory that a rename moved: it is touched too, as its parent changed.
    moved_dir: Option<NodeId>,
}

impl PendingOp {
    fn touched(&self) -> impl Iterator<Item = NodeId> {
        self.changes
            .iter()
            .map(|change| change.dir)
            .chain(self.moved_dir)
    }
}

#[derive(Clone, Debug)]
struct State {
    nodes: BTreeMap<NodeId, Node>,
    next_id: NodeId,
    pending: Vec<PendingOp>,
    /// Pages of files that have a visible name or an open handle.
    used_pages: u64,
    capacity_pages: u64,
    locked: BTreeSet<NodeId>,
    /// The number of nodes at which the next sweep for unreachable ones is worth its while.
    sweep_at: usize,
}

/// A disk in memory. A clone is another handle to the same disk.
#[derive(Clone)]
pub struct MemFs {
    state: Arc<Mutex<State>>,
}

fn err<T>(kind: ErrorKind) -> io::Result<T> {
    Err(io::Error::from(kind))
}

fn invalid(detail: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, detail)
}

fn full(_: Full) -> io::Error {
    io::Error::from(ErrorKind::StorageFull)
}

/// The longest file, in bytes: a wrong offset should be an error, not a table that fills the memory.
const MAX_FILE_BYTES: u64 = 1 << 40;

fn check_len(len: Option<u64>) -> io::Result<()> {
    match len {
        Some(len) if len <= MAX_FILE_BYTES => Ok(()),
        _ => err(ErrorKind::FileTooLarge),
    }
}

/// The components of a path below the root.
fn components(path: &Path) -> io::Result<Vec<&str>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                names.push(
                    name.to_str()
                        .ok_or_else(|| invalid("the path is not UTF-8"))?,
                );
            }
            Component::ParentDir | Component::Prefix(_) => {
                return Err(invalid("paths with `..` or a drive are not supported"));
            }
        }
    }
    Ok(names)
}

impl State {
    fn new() -> Self {
        let mut state = Self {
            nodes: BTreeMap::new(),
            next_id: ROOT,
            pending: Vec::new(),
            used_pages: 0,
            capacity_pages: u64::MAX,
            locked: BTreeSet::new(),
            sweep_at: 64,
        };
        state.add(Node::Dir(DirNode {
            visible: Arc::default(),
            durable: Arc::default(),
        }));
        state
    }

    fn add(&mut self, node: Node) -> NodeId {
        let id = self.next_id;
        self.next_id += 1;
        self.nodes.insert(id, node);
        id
    }

    fn dir(&self, id: NodeId) -> io::Result<&DirNode> {
        match self.nodes.get(&id) {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(_)) => err(ErrorKind::NotADirectory),
            None => err(ErrorKind::NotFound),
        }
    }

    fn file(&self, id: NodeId) -> io::Result<&FileNode> {
        match self.nodes.get(&id) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir(_)) => err(ErrorKind::IsADirectory),
            None => err(ErrorKind::NotFound),
        }
    }

    fn file_mut(&mut self, id: NodeId) -> io::Result<&mut FileNode> {
        match self.nodes.get_mut(&id) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir(_)) => err(ErrorKind::IsADirectory),
            None => err(ErrorKind::NotFound),
        }
    }

    fn is_dir(&self, id: NodeId) -> bool {
        matches!(self.nodes.get(&id), Some(Node::Dir(_)))
    }

    fn child(&self, dir: NodeId, name: &str) -> io::Result<Option<NodeId>> {
        Ok(self.dir(dir)?.visible.get(name).copied())
    }

    fn walk(&self, names: &[&str]) -> io::Result<NodeId> {
        let mut id = ROOT;
        for name in names {
            id = self
                .child(id, name)?
                .ok_or_else(|| io::Error::from(ErrorKind::NotFound))?;
        }
        Ok(id)
    }

    fn resolve(&self, path: &Path) -> io::Result<NodeId> {
        self.walk(&components(path)?)
    }

    /// The directory of `path` and its last component.
    fn resolve_parent<'p>(&self, path: &'p Path) -> io::Result<(NodeId, &'p str)> {
        let names = components(path)?;
        let (name, parents) = names
            .split_last()
            .ok_or_else(|| invalid("this is the root"))?;
        let dir = self.walk(parents)?;
        self.dir(dir)?;
        Ok((dir, name))
    }

    /// Applies the changes to the visible names and notes them for the next sync.
    fn change_names(&mut self, changes: Vec<NameChange>, moved_dir: Option<NodeId>) {
        for change in &changes {
            let Some(Node::Dir(dir)) = self.nodes.get_mut(&change.dir) else {
                continue;
            };
            let names = Arc::make_mut(&mut dir.visible);
            let before = match change.node {
                Some(node) => names.insert(Arc::clone(&change.name), node),
                None => names.remove(&change.name),
            };
            // A rename adds the new name before it takes the old one away, so a moved file always
            // has one, and its pages stay counted.
            if let Some(id) = change.node {
                self.count_link(id, 1);
            }
            if let Some(id) = before {
                self.count_link(id, -1);
            }
        }
        self.pending.push(PendingOp { changes, moved_dir });
        self.sweep();
    }

    fn count_link(&mut self, id: NodeId, change: i32) {
        if let Some(Node::File(file)) = self.nodes.get_mut(&id) {
            file.links = file.links.saturating_add_signed(change);
            if file.links == 0 && file.opens == 0 {
                self.used_pages -= file.visible.pages();
            }
        }
    }

    fn close(&mut self, id: NodeId) {
        if let Some(Node::File(file)) = self.nodes.get_mut(&id) {
            file.opens -= 1;
            if file.links == 0 && file.opens == 0 {
                self.used_pages -= file.visible.pages();
            }
        }
    }

    /// Changes the visible bytes of a file within the free space.
    fn modify<T>(
        &mut self,
        id: NodeId,
        change: impl FnOnce(&mut Content, &mut u64) -> T,
    ) -> io::Result<T> {
        let free = self.capacity_pages.saturating_sub(self.used_pages);
        let file = self.file_mut(id)?;
        let content = Arc::make_mut(&mut file.visible);
        let before = content.pages();
        let mut budget = free;
        let result = change(content, &mut budget);
        let after = content.pages();
        self.used_pages = self.used_pages + after - before;
        Ok(result)
    }

    /// Forgets nodes that neither a name, a handle nor a crash can lead to.
    fn sweep(&mut self) {
        if self.nodes.len() < self.sweep_at {
            return;
        }
        let mut reached = BTreeSet::new();
        let mut todo = vec![ROOT];
        for op in &self.pending {
            todo.extend(op.touched());
            todo.extend(op.changes.iter().filter_map(|change| change.node));
        }
        for (&id, node) in &self.nodes {
            if matches!(node, Node::File(file) if file.opens > 0) {
                todo.push(id);
            }
        }
        while let Some(id) = todo.pop() {
            if !reached.insert(id) {
                continue;
            }
            if let Some(Node::Dir(dir)) = self.nodes.get(&id) {
                todo.extend(dir.visible.values().chain(dir.durable.values()));
            }
        }
        self.nodes.retain(|id, _| reached.contains(id));
        self.sweep_at = self.nodes.len() * 2 + 64;
    }

    /// The pending operations that a sync of `dir` must apply: those that touch it, and those that
    /// come before one of these in another directory that it touches.
    fn sync_dir(&mut self, dir: NodeId) {
        let mut touched = BTreeSet::from([dir]);
        let mut applied = vec![false; self.pending.len()];
        for (op, applied) in self.pending.iter().zip(&mut applied).rev() {
            if op.touched().any(|id| touched.contains(&id)) {
                *applied = true;
                touched.extend(op.touched());
            }
        }
        let mut kept = Vec::new();
        for (op, applied) in std::mem::take(&mut self.pending).into_iter().zip(applied) {
            if !applied {
                kept.push(op);
                continue;
            }
            for change in op.changes {
                if let Some(Node::Dir(dir)) = self.nodes.get_mut(&change.dir) {
                    apply(Arc::make_mut(&mut dir.durable), change.name, change.node);
                }
            }
        }
        self.pending = kept;
    }

    /// The names that each directory has after a power loss that kept a part of the pending
    /// operations.
    fn torn_names(&self, rng: &mut Rng) -> BTreeMap<NodeId, Arc<Names>> {
        let mut names: BTreeMap<NodeId, Arc<Names>> = BTreeMap::new();
        for (&id, node) in &self.nodes {
            if let Node::Dir(dir) = node {
                names.insert(id, Arc::clone(&dir.durable));
            }
        }
        // Of each directory's operations the first few happened. One that touches a second
        // directory happened only if it is among the first few there as well; where it is not,
        // nothing after it happened either.
        let mut counts: BTreeMap<NodeId, u64> = BTreeMap::new();
        for id in self.pending.iter().flat_map(PendingOp::touched) {
            *counts.entry(id).or_default() += 1;
        }
        let mut left = counts;
        for count in left.values_mut() {
            *count = rng.between(0, *count);
        }
        for op in &self.pending {
            let happened = op
                .touched()
                .all(|id| left.get(&id).is_some_and(|&count| count > 0));
            for id in op.touched() {
                let count = left.entry(id).or_default();
                *count = if happened { count.saturating_sub(1) } else { 0 };
            }
            if !happened {
                continue;
            }
            for change in &op.changes {
                if let Some(dir) = names.get_mut(&change.dir) {
                    apply(Arc::make_mut(dir), Arc::clone(&change.name), change.node);
                }
            }
        }
        names
    }

    /// The disk after a power loss.
    fn crashed(&self, seed: u64, mode: CrashMode) -> Self {
        let mut rng = Rng::new(seed);
        let torn_names = match mode {
            CrashMode::Torn => self.torn_names(&mut rng),
            _ => BTreeMap::new(),
        };
        let mut nodes = BTreeMap::new();
        let mut todo = vec![ROOT];
        while let Some(id) = todo.pop() {
            if let Some(Node::File(file)) = nodes.get_mut(&id) {
                let file: &mut FileNode = file;
                file.links += 1;
            }
            let (false, Some(node)) = (nodes.contains_key(&id), self.nodes.get(&id)) else {
                continue;
            };
            let survivor = match node {
                Node::Dir(dir) => {
                    let names = match mode {
                        CrashMode::DropUnsynced => &dir.durable,
                        CrashMode::KeepAll => &dir.visible,
                        CrashMode::Torn => torn_names.get(&id).unwrap_or(&dir.durable),
                    };
                    todo.extend(names.values());
                    Node::Dir(DirNode {
                        visible: Arc::clone(names),
                        durable: Arc::clone(names),
                    })
                }
                Node::File(file) => Node::File(FileNode {
                    links: 1,
                    opens: 0,
                    ..FileNode::clone(file)
                }),
            };
            nodes.insert(id, survivor);
        }
        let mut used_pages = 0;
        for node in nodes.values_mut() {
            let Node::File(file) = node else {
                continue;
            };
            let is_synced = Arc::ptr_eq(&file.durable, &file.visible);
            match mode {
                CrashMode::DropUnsynced => file.visible = Arc::clone(&file.durable),
                CrashMode::KeepAll => file.durable = Arc::clone(&file.visible),
                CrashMode::Torn if is_synced => {}
                CrashMode::Torn => {
                    file.durable = Arc::new(file.durable.torn(&file.visible, &mut rng));
                    file.visible = Arc::clone(&file.durable);
                }
            }
            used_pages += file.visible.pages();
        }
        Self {
            sweep_at: nodes.len() * 2 + 64,
            nodes,
            next_id: self.next_id,
            pending: Vec::new(),
            used_pages,
            capacity_pages: self.capacity_pages,
            locked: BTreeSet::new(),
        }
    }

    /// The disk after the death of the process.
    fn forked(&self) -> Self {
        let mut state = self.clone();
        state.locked.clear();
        state.used_pages = 0;
        for node in state.nodes.values_mut() {
            if let Node::File(file) = node {
                file.opens = 0;
                if file.links > 0 {
                    state.used_pages += file.visible.pages();
                }
            }
        }
        state
    }

    fn collect_files(&self, dir: NodeId, path: &Path, found: &mut Vec<PathBuf>) {
        let Ok(node) = self.dir(dir) else {
            return;
        };
        for (name, &id) in node.visible.iter() {
            let path = path.join(&**name);
            if self.is_dir(id) {
                self.collect_files(id, &path, found);
            } else {
                found.push(path);
            }
        }
    }

    fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<NodeId> {
        let create = match mode {
            OpenMode::Read | OpenMode::ReadWrite => {
                let id = self.resolve(path)?;
                self.file(id)?;
                return Ok(id);
            }
            OpenMode::CreateNew | OpenMode::Create => self.resolve_parent(path)?,
        };
        let (dir, name) = create;
        match self.child(dir, name)? {
            Some(_) if mode == OpenMode::CreateNew => err(ErrorKind::AlreadyExists),
            Some(id) => {
                self.modify(id, |content, _| content.set_len(0))?;
                Ok(id)
            }
            None => Ok(self.create(dir, name)),
        }
    }

    fn create(&mut self, dir: NodeId, name: &str) -> NodeId {
        let empty = Arc::<Content>::default();
        let id = self.add(Node::File(FileNode {
            visible: Arc::clone(&empty),
            durable: empty,
            links: 0,
            opens: 0,
        }));
        self.change_names(
            vec![NameChange {
                dir,
                name: name.into(),
                node: Some(id),
            }],
            None,
        );
        id
    }

    fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let mut dir = ROOT;
        let mut names = components(path)?.into_iter().peekable();
        while let Some(name) = names.next() {
            dir = match self.child(dir, name)? {
                Some(id) if self.is_dir(id) => id,
                Some(_) if names.peek().is_some() => return err(ErrorKind::NotADirectory),
                Some(_) => return err(ErrorKind::AlreadyExists),
                None => {
                    let names = Arc::<Names>::default();
                    let node = DirNode {
                        visible: Arc::clone(&names),
                        durable: names,
                    };
                    let id = self.add(Node::Dir(node));
                    let change = NameChange {
                        dir,
                        name: name.into(),
                        node: Some(id),
                    };
                    self.change_names(vec![change], None);
                    id
                }
            };
        }
        Ok(())
    }

    fn remove(&mut self, path: &Path, is_dir: bool) -> io::Result<()> {
        let (dir, name) = self.resolve_parent(path)?;
        let id = self
            .child(dir, name)?
            .ok_or_else(|| io::Error::from(ErrorKind::NotFound))?;
        match self.nodes.get(&id) {
            Some(Node::File(_)) if is_dir => return err(ErrorKind::NotADirectory),
            Some(Node::Dir(_)) if !is_dir => return err(ErrorKind::IsADirectory),
            Some(Node::Dir(node)) if !node.visible.is_empty() => {
                return err(ErrorKind::DirectoryNotEmpty);
            }
            _ => {}
        }
        self.change_names(
            vec![NameChange {
                dir,
                name: name.into(),
                node: None,
            }],
            None,
        );
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_dir, from_name) = self.resolve_parent(from)?;
        let (to_dir, to_name) = self.resolve_parent(to)?;
        let moved = self
            .child(from_dir, from_name)?
            .ok_or_else(|| io::Error::from(ErrorKind::NotFound))?;
        let replaced = self.child(to_dir, to_name)?;
        if replaced == Some(moved) {
            return Ok(()); // Two names of one file: POSIX says that both stay.
        }
        let moved_dir = self.is_dir(moved).then_some(moved);
        if moved_dir.is_some() && components(to)?.starts_with(&components(from)?) {
            return Err(invalid("a directory cannot move into itself"));
        }
        if let Some(id) = replaced {
            match (moved_dir.is_some(), self.is_dir(id)) {
                (false, true) => return err(ErrorKind::IsADirectory),
                (true, false) => return err(ErrorKind::NotADirectory),
                (true, true) if !self.dir(id)?.visible.is_empty() => {
                    return err(ErrorKind::DirectoryNotEmpty);
                }
                _ => {}
            }
        }
        let changes = vec![
            NameChange {
                dir: to_dir,
                name: to_name.into(),
                node: Some(moved),
            },
            NameChange {
                dir: from_dir,
                name: from_name.into(),
                node: None,
            },
        ];
        self.change_names(changes, moved_dir);
        Ok(())
    }

    fn hard_link(&mut self, existing: &Path, new: &Path) -> io::Result<()> {
        let id = self.resolve(existing)?;
        if self.is_dir(id) {
            return err(ErrorKind::PermissionDenied);
        }
        let (dir, name) = self.resolve_parent(new)?;
        if self.child(dir, name)?.is_some() {
            return err(ErrorKind::AlreadyExists);
        }
        self.change_names(
            vec![NameChange {
                dir,
                name: name.into(),
                node: Some(id),
            }],
            None,
        );
        Ok(())
    }
}

fn apply(names: &mut Names, name: Arc<str>, node: Option<NodeId>) {
    match node {
        Some(id) => names.insert(name, id),
        None => names.remove(&name),
    };
}

impl Default for MemFs {
    fn default() -> Self {
        Self::new()
    }
}

impl MemFs {
    /// An empty disk without limit.
    pub fn new() -> Self {
        Self::from_state(State::new())
    }

    fn from_state(state: State) -> Self {
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The disk after losing power now. Handles and locks of this disk mean nothing there.
    #[must_use]
    pub fn crash(&self, seed: u64, mode: CrashMode) -> Self {
        Self::from_state(self.state.lock().crashed(seed, mode))
    }

    /// The disk after the death of the process now: all that is visible is there, what is not
    /// synced is still at risk, handles and locks are gone.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self::from_state(self.state.lock().forked())
    }

    /// Limits the space to `bytes`, in whole pages of 4096. What is in use stays, even if it is
    /// more. A failed write has written the pages that fitted.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().capacity_pages = bytes / PAGE_BYTES as u64;
    }

    /// The space in use, in bytes, in whole pages of 4096.
    pub fn used_bytes(&self) -> u64 {
        self.state.lock().used_pages * PAGE_BYTES as u64
    }

    /// All files that have a name, sorted by path.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        self.state
            .lock()
            .collect_files(ROOT, Path::new("/"), &mut found);
        found.sort_unstable();
        found
    }

    /// The visible bytes of a file.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let path = path.as_ref();
        self.run("read", path, |state| {
            let id = state.resolve(path)?;
            Ok(state.file(id)?.visible.to_vec())
        })
    }

    /// Puts a file with these bytes onto the disk, durably, with its name and its directories.
    /// (Other unsynced names in these directories become durable as well.)
    pub fn write_file(&self, path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
        let path = path.as_ref();
        self.run("write", path, |state| {
            if let Some(parent) = path.parent() {
                state.create_dir_all(parent)?;
            }
            let id = state.open(path, OpenMode::Create)?;
            state.modify(id, |content, _| *content = Content::from_bytes(bytes))?;
            let file = state.file_mut(id)?;
            file.durable = Arc::clone(&file.visible);
            for dir in path.ancestors().skip(1) {
                let id = state.resolve(dir)?;
                state.sync_dir(id);
            }
            Ok(())
        })
    }

    /// Flips bit `bit` (0 to 7) of the byte at `offset`, in what is visible and in what is durable:
    /// the disk has gone bad there.
    pub fn flip_bit(&self, path: impl AsRef<Path>, offset: u64, bit: u8) -> Result<()> {
        let path = path.as_ref();
        self.run("flip a bit", path, |state| {
            let id = state.resolve(path)?;
            let file = state.file_mut(id)?;
            let is_synced = Arc::ptr_eq(&file.durable, &file.visible);
            if !Arc::make_mut(&mut file.visible).flip_bit(offset, bit) {
                return Err(invalid("there is no such byte"));
            }
            if is_synced {
                file.durable = Arc::clone(&file.visible);
            } else {
                // A byte that is not durable yet cannot go bad.
                let _ = Arc::make_mut(&mut file.durable).flip_bit(offset, bit);
            }
            Ok(())
        })
    }

    /// Puts `len` bytes from `from` over those at `to`, in what is visible and in what is durable: a
    /// write went to the wrong place, and reached the disk there.
    pub fn misdirect(&self, path: impl AsRef<Path>, from: u64, to: u64, len: usize) -> Result<()> {
        let path = path.as_ref();
        self.run("misdirect", path, |state| {
            let id = state.resolve(path)?;
            let is_synced = {
                let file = state.file(id)?;
                Arc::ptr_eq(&file.durable, &file.visible)
            };
            let mut bytes = vec![0; len];
            let read = state.file(id)?.visible.read(&mut bytes, from);
            bytes.truncate(read);
            if to.saturating_add(read as u64) > state.file(id)?.visible.len() {
                return Err(invalid("it would go beyond the file's end"));
            }
            state
                .modify(id, |content, budget| content.write(to, &bytes, budget))?
                .map_err(full)?;
            let file = state.file_mut(id)?;
            if is_synced {
                file.durable = Arc::clone(&file.visible);
            } else {
                let len = file.durable.len();
                let durable = Arc::make_mut(&mut file.durable);
                let kept = len.saturating_sub(to).min(bytes.len() as u64) as usize;
                durable
                    .write(to, &bytes[..kept], &mut u64::MAX.clone())
                    .map_err(full)?;
            }
            Ok(())
        })
    }

    /// Forgets the bytes of a file that were not synced, and keeps its length: what a kernel may do
    /// when a sync fails.
    pub fn lose_unsynced(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.run("lose", path, |state| {
            let id = state.resolve(path)?;
            let durable = Content::clone(&state.file(id)?.durable);
            state.modify(id, |content, _| {
                let len = content.len();
                *content = durable;
                content.set_len(len);
            })
        })
    }

    fn run<T>(
        &self,
        op: &'static str,
        path: &Path,
        action: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> Result<T> {
        action(&mut self.state.lock()).map_err(|source| Error::new(op, path, source))
    }
}

impl Debug for MemFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("MemFs")
            .field("nodes", &state.nodes.len())
            .field("used_pages", &state.used_pages)
            .field("pending", &state.pending.len())
            .finish_non_exhaustive()
    }
}

impl Fs for MemFs {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        let op = match mode {
            OpenMode::Read | OpenMode::ReadWrite => "open",
            OpenMode::CreateNew | OpenMode::Create => "create",
        };
        let id = self.run(op, path, |state| {
            let id = state.open(path, mode)?;
            state.file_mut(id)?.opens += 1;
            Ok(id)
        })?;
        Ok(Arc::new(MemFile {
            handle: Handle {
                fs: self.clone(),
                id,
            },
            path: path.to_path_buf(),
            writable: mode != OpenMode::Read,
        }))
    }

    fn create_dir_all(&self, path: &Path) -> Result<()> {
        self.run("create directory", path, |state| state.create_dir_all(path))
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        self.run("remove", path, |state| state.remove(path, false))
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        self.run("remove directory", path, |state| state.remove(path, true))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.run("rename", from, |state| state.rename(from, to))
    }

    fn hard_link(&self, existing: &Path, new: &Path) -> Result<()> {
        self.run("link", new, |state| state.hard_link(existing, new))
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        self.run("list", dir, |state| {
            let id = state.resolve(dir)?;
            let mut entries = Vec::new();
            for (name, id) in state.dir(id)?.visible.iter() {
                let len = state.file(*id).map(|file| file.visible.len());
                entries.push(DirEntry {
                    name: name.to_string(),
                    is_dir: len.is_err(),
                    len: len.unwrap_or(0),
                });
            }
            Ok(entries)
        })
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.run("look up", path, |state| match state.resolve(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        })
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.run("sync directory", dir, |state| {
            let id = state.resolve(dir)?;
            state.dir(id)?;
            state.sync_dir(id);
            Ok(())
        })
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn FileLock>> {
        let id = self.run("lock", path, |state| {
            let (dir, name) = state.resolve_parent(path)?;
            let id = match state.child(dir, name)? {
                Some(id) => id,
                None => state.create(dir, name),
            };
            if state.locked.contains(&id) {
                return err(ErrorKind::WouldBlock);
            }
            state.file_mut(id)?.opens += 1;
            state.locked.insert(id);
            Ok(id)
        })?;
        Ok(Box::new(MemLock {
            handle: Handle {
                fs: self.clone(),
                id,
            },
        }))
    }

    fn space(&self, path: &Path) -> Result<Space> {
        self.run("query space", path, |state| {
            state.resolve(path)?;
            let bytes = |pages: u64| pages.saturating_mul(PAGE_BYTES as u64);
            let available = state.capacity_pages.saturating_sub(state.used_pages);
            Ok(Space {
                available: bytes(available),
                total: bytes(state.capacity_pages),
            })
        })
    }
}

/// Keeps a node alive while it is open.
struct Handle {
    fs: MemFs,
    id: NodeId,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.fs.state.lock().close(self.id);
    }
}

impl Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.id)
    }
}

#[derive(Debug)]
struct MemFile {
    handle: Handle,
    path: PathBuf,
    writable: bool,
}

impl MemFile {
    fn run<T>(
        &self,
        op: &'static str,
        action: impl FnOnce(&mut State, NodeId) -> io::Result<T>,
    ) -> Result<T> {
        self.handle
            .fs
            .run(op, &self.path, |state| action(state, self.handle.id))
    }

    /// As `run`, if the file was opened for writing.
    fn change<T>(
        &self,
        op: &'static str,
        action: impl FnOnce(&mut State, NodeId) -> io::Result<T>,
    ) -> Result<T> {
        let writable = self.writable;
        self.run(op, |state, id| {
            if !writable {
                return Err(io::Error::new(
                    ErrorKind::PermissionDenied,
                    "opened for reading only",
                ));
            }
            action(state, id)
        })
    }

    fn with_offset<T>(result: Result<T>, offset: u64) -> Result<T> {
        result.map_err(|error| Error {
            offset: Some(offset),
            ..error
        })
    }
}

impl File for MemFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let result = self.run("read", |state, id| {
            Ok(state.file(id)?.visible.read(buf, offset))
        });
        Self::with_offset(result, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let result = self.change("write", |state, id| {
            check_len(offset.checked_add(buf.len() as u64))?;
            state
                .modify(id, |content, budget| content.write(offset, buf, budget))?
                .map_err(full)
        });
        Self::with_offset(result, offset)
    }

    fn len(&self) -> Result<u64> {
        self.run("query length", |state, id| {
            Ok(state.file(id)?.visible.len())
        })
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.change("set length", |state, id| {
            check_len(Some(len))?;
            state.modify(id, |content, _| content.set_len(len))
        })
    }

    fn allocate(&self, len: u64) -> Result<()> {
        self.change("allocate", |state, id| {
            check_len(Some(len))?;
            state
                .modify(id, |content, budget| content.allocate(len, budget))?
                .map_err(full)
        })
    }

    fn sync_data(&self) -> Result<()> {
        self.run("sync", |state, id| {
            let file = state.file_mut(id)?;
            file.durable = Arc::clone(&file.visible);
            Ok(())
        })
    }

    fn advise(&self, _: u64, _: u64, _: Advice) {}

    fn start_writeback(&self, _: u64, _: u64) {}

    fn map(&self, len: u64) -> Result<Option<Box<dyn MappedFile>>> {
        let mapped = self.change("map", |state, id| {
            let file = state.file_mut(id)?;
            if len > file.visible.len() {
                return Err(invalid("mapping beyond the file's end"));
            }
            if !file.visible.is_allocated(len) {
                // A real disk would give the page when it is stored to, or, when it is full, end
                // the process.
                return Err(invalid("mapping a range that is not allocated"));
            }
            file.opens += u32::from(len > 0);
            Ok(len > 0)
        })?;
        if !mapped {
            return Ok(None);
        }
        let handle = Handle {
            fs: self.handle.fs.clone(),
            id: self.handle.id,
        };
        Ok(Some(Box::new(MemMap { handle, len })))
    }
}

#[derive(Debug)]
struct MemMap {
    handle: Handle,
    len: u64,
}

impl MappedFile for MemMap {
    fn write(&self, offset: u64, bytes: &[u8]) {
        let end = offset.checked_add(bytes.len() as u64);
        let in_range = end.is_some_and(|end| end <= self.len);
        assert!(
            in_range,
            "{} bytes at {offset} of a mapping of {}",
            bytes.len(),
            self.len
        );
        let mut state = self.handle.fs.state.lock();
        let stored = state.modify(self.handle.id, |content, budget| {
            end.is_some_and(|end| end <= content.len())
                && content.write(offset, bytes, budget).is_ok()
        });
        drop(state);
        let stored = stored.unwrap_or(false);
        assert!(
            stored,
            "a store at {offset} to a mapping whose file was cut (a real one: SIGBUS)"
        );
    }

    fn prepare(&self, _: u64) {}

    fn len(&self) -> u64 {
        self.len
    }
}

#[derive(Debug)]
struct MemLock {
    handle: Handle,
}

impl FileLock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        self.handle.fs.state.lock().locked.remove(&self.handle.id);
    }
}

#[cfg(test)]
mod tests;
