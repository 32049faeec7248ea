//! Refill: a damaged SSTable gets what it lost from another copy of the database, while both are in use.
//!
//! For copies to which the same operations were applied, as in [`external`](crate::external): they have the same
//! keys under the same versions, in other files. What cannot be read of an SSTable ([`Damage`]), because it is not what
//! was written or because the disk does not give it back, is asked for by ranges of keys; a copy answers what is
//! visible there and as of when ([`RangeView`]); [`refill`] writes the table anew, in its level, with
//!
//! * every entry of it that can be read;
//! * for each key of which the view has a version that is not found here: that version. It was in the table, as all
//!   that the view sees was written before and nothing else is damaged there;
//! * for each key that the view has not, and which is visible here: a tombstone of the table's newest sequence number,
//!   and one for all of them where several follow each other. The table had one that was older or of that age, and
//!   everything above the table is newer still.
//!
//! Nothing is taken from a file that turns out to be another table than the manifest says.
//!
//! What the table had besides, older versions and tombstones that hide nothing, no reader misses.
//!
//! # When it may be done
//!
//! *The view is as new as the table, and the files here are as new as the view* ([`Refill::NotYet`] until then). The
//! first, or the table could have entries that the view cannot know. The second because, where another log is
//! applied again after a crash, it is applied to the files, which must be what they were after one entry: a version
//! that was overwritten since then and left out would be missing to it. *No snapshot is older than the files*
//! ([`Refill::Busy`]), for the same reason. Values that have expired are in views like others, as long as the copy has
//! them: copies drop them at different times. So a view says up to when what expired may be missing
//! ([`RangeView::time_ms`]), and the files here must be as new as that, too.
//!
//! If the two contradict each other (a version here that the view should have, a version in the view that the table
//! cannot have had), something else is wrong, and nothing is changed.
//!
//! A crash before the manifest has the new table leaves the old one and an orphan, one after it the new table.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::{Arc, atomic};

use firn_io::fs::OpenMode;

use crate::compaction::output::{OutputOptions, Outputs, Place, Written};
use crate::compaction::run::{counted, pointer_of};
use crate::core::{Core, closing, remove_quietly};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::iterator::InternalIterator;
use crate::key::{FileId, Kind, NamespaceId, SeqNo, Trailer};
use crate::merge::visible::Moved;
use crate::names;
use crate::options::LEVELS;
use crate::range_del::{RangeTombstone, RangeTombstones};
use crate::read::ScanOptions;
use crate::sstable::ReadOptions;
use crate::sstable::salvage::{Parts, Walk, show_key};
use crate::tree::{Tree, TreeState};
use crate::verify::is_foreign;
use crate::version::edit::{Op, VersionEdit};
use crate::version::{FileMeta, KeyRange, VersionBuilder};
use crate::work::CompactionPause;

/// An SSTable that cannot be read as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The namespace that it belongs to.
    pub namespace: NamespaceId,
    /// Its number.
    pub file: FileId,
    /// A view from before this operation does not help.
    pub newest: SeqNo,
    /// Where entries may be missing, ascending.
    pub ranges: Vec<KeyRange>,
}

/// A key that a copy has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewEntry {
    /// The key.
    pub key: Vec<u8>,
    /// The operation that wrote it.
    pub version: SeqNo,
    /// When it ceases to exist, in Unix milliseconds; possibly in the past.
    pub expires_at_ms: Option<u64>,
    /// Its value.
    pub value: Vec<u8>,
}

/// What a copy has in a range of keys, at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeView {
    /// The keys that were looked at: those that were asked for, or the first of them.
    pub range: KeyRange,
    /// The last operation that it sees.
    pub seqno: SeqNo,
    /// What had expired by then (Unix milliseconds) may be missing.
    pub time_ms: u64,
    /// All of them, ascending.
    pub entries: Vec<ViewEntry>,
    /// Where to go on, if this is not all.
    pub next: Option<Vec<u8>>,
}

impl RangeView {
    /// Whether the keys ascend and are in the range.
    fn is_ordered(&self) -> bool {
        let keys = || self.entries.iter().map(|entry| &entry.key[..]);
        let ascend = keys().zip(keys().skip(1)).all(|(a, b)| a < b);
        let is_after = keys()
            .next()
            .is_none_or(|first| first >= &self.range.start[..]);
        let is_seen = self.entries.iter().all(|entry| entry.version <= self.seqno);
        ascend
            && is_seen
            && is_after
            && keys()
                .next_back()
                .is_none_or(|last| !self.range.ends_before(last))
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refill {
    /// The table is whole again, with so many entries from elsewhere.
    Done(u64),
    /// The table is no longer in use.
    Gone,
    /// The files here are older than the view, and are to be flushed. Nothing was done.
    NotYet,
    /// A snapshot is older than the files, or compaction runs: to be asked again later. Nothing was done.
    Busy,
}

/// A view looks at so many keys and tombstones, visible or not, before it has somebody ask again: a range may be
/// full of what was deleted.
const VIEW_STEPS: u64 = if cfg!(test) { 8 } else { 64 << 10 };

/// What is visible in `range`, up to about `most` bytes of keys and values. It is of one key at least, which need
/// not exist.
pub fn view(core: &Arc<Core>, tree: &Arc<Tree>, range: KeyRange, most: usize) -> Result<RangeView> {
    // The number first: the picture has all up to it, and what compaction replaces meanwhile stays readable at it. The
    // time last: nothing was dropped that expired later.
    let seqno = core.snapshots.pin();
    let state = tree.pin_state();
    let time_ms = core.droppable_ms();
    let scan = core.scan_regardless(tree, state, seqno, Some(seqno), scan_options(&range));
    let mut scan = scan.inspect_err(|_| core.snapshots.unpin(seqno))?;
    let mut found = RangeView {
        range,
        seqno,
        time_ms,
        entries: Vec::new(),
        next: None,
    };
    let mut bytes = 0;
    scan.allow(VIEW_STEPS)?;
    loop {
        let moved = scan.next_allowed()?;
        if moved == Moved::Ended {
            break;
        }
        if moved == Moved::Spent || (bytes >= most && !found.entries.is_empty()) {
            let next = scan.key().to_vec();
            found.range.end = Some(next.clone());
            found.range.end_exclusive = true;
            found.next = Some(next);
            break;
        }
        bytes += scan.key().len() + scan.value().len();
        found.entries.push(ViewEntry {
            key: scan.key().to_vec(),
            version: scan.version(),
            expires_at_ms: scan.expires_at_ms(),
            value: scan.value().to_vec(),
        });
    }
    Ok(found)
}

fn scan_options(range: &KeyRange) -> ScanOptions {
    ScanOptions {
        start: Bound::Included(range.start.clone()),
        end: match (&range.end, range.end_exclusive) {
            (None, _) => Bound::Unbounded,
            (Some(end), true) => Bound::Excluded(end.clone()),
            (Some(end), false) => Bound::Included(end.clone()),
        },
        ..ScanOptions::all()
    }
}

/// The SSTables in use that were found damaged so far, all of each read once more.
pub fn damages(core: &Core) -> Result<Vec<Damage>> {
    let noted = core.damaged.lock().clone();
    let mut damages = Vec::new();
    let mut left = BTreeSet::new();
    for tree in core.trees.load().iter().filter(|_| !noted.is_empty()) {
        let levels = Arc::clone(&tree.state().levels);
        for (_, file) in levels
            .all_files()
            .filter(|(_, f)| noted.contains_key(&f.meta.id))
        {
            let mut salvage = Salvage::open(core, &file.meta);
            if let Err(error) = salvage.walk(|_, _, _| Ok(())) {
                left.insert(file.meta.id); // Of a format that is not known here.
                core.note_not_refilled(file.meta.id, &error.to_string());
                continue;
            }
            // A disk that could not be read may be read again.
            if salvage.is_damaged {
                left.insert(file.meta.id);
                damages.push(Damage {
                    namespace: tree.id,
                    file: file.meta.id,
                    newest: file.meta.max_seqno,
                    ranges: salvage.ranges(),
                });
            }
        }
    }
    let mut damaged = core.damaged.lock();
    damaged.retain(|id, _| left.contains(id) || !noted.contains_key(id));
    Ok(damages)
}

/// A damaged table as far as it can be read.
struct Salvage {
    meta: FileMeta,
    /// `None`: not even the file can be opened, or it is another table.
    walk: Option<Walk>,
    tombstones: Arc<RangeTombstones>,
    is_damaged: bool,
    /// Entries may be missing anywhere.
    lacks_all: bool,
}

impl Salvage {
    fn open(core: &Core, meta: &FileMeta) -> Self {
        let path = names::sstable_path(&core.dir, meta.id);
        let file = core.env.fs.open(&path, OpenMode::Read).map_err(Error::from);
        let mut salvage = Self {
            meta: meta.clone(),
            walk: None,
            tombstones: Arc::default(),
            is_damaged: true,
            lacks_all: true,
        };
        if let Ok(mut parts) = file.and_then(|file| Parts::read(file, meta.id))
            && !is_foreign(meta, &parts)
        {
            // Without the properties nobody knows that it is not another one. Its entries are compared with all that
            // the others have then; of its range tombstones one cannot tell.
            // (Without the footer they are guessed.)
            let is_known = parts.footer.is_some()
                && parts.properties.is_some()
                && parts.range_tombstones.is_some();
            let tombstones = parts.range_tombstones.take().filter(|_| is_known);
            salvage.tombstones = tombstones.unwrap_or_default();
            salvage.is_damaged = !parts.damage.is_empty();
            salvage.lacks_all = parts.index.is_none() || !is_known;
            salvage.walk = Some(Walk::new(parts));
        }
        salvage
    }

    /// Goes through the entries that can be read, once.
    fn walk(&mut self, mut each: impl FnMut(&[u8], Trailer, &[u8]) -> Result<()>) -> Result<()> {
        let Some(walk) = &mut self.walk else {
            return Ok(());
        };
        let mut errors = 0;
        let mut unsupported = None;
        let mut note = |error| match error {
            Error::UnsupportedFormat(_) => unsupported = Some(error),
            _ => errors += 1,
        };
        let meta = &self.meta;
        let mut strange = false;
        while walk.next(&mut note) {
            let seqno = walk.trailer().seqno();
            if seqno < meta.min_seqno || seqno > meta.max_seqno || !meta.covers(walk.key()) {
                strange = true;
                continue;
            }
            each(walk.key(), walk.trailer(), walk.value())?;
        }
        if let Some(error) = unsupported {
            return Err(error);
        }
        self.is_damaged |= errors > 0 || strange;
        // What is wrong besides blocks that cannot be read may be anything.
        self.lacks_all |= errors > walk.unread().len() || strange;
        Ok(())
    }

    /// Where entries may be missing, as far as the walk has come.
    fn ranges(&self) -> Vec<KeyRange> {
        let whole = KeyRange::of_file(&self.meta);
        let Some(walk) = self.walk.as_ref().filter(|_| !self.lacks_all) else {
            return vec![whole];
        };
        let mut ranges: Vec<KeyRange> = Vec::new();
        for &block in walk.unread() {
            let Some((after, last)) = walk.parts().bounds_of_block(block) else {
                return vec![whole];
            };
            let range = clip(after.unwrap_or_default(), last, &whole);
            match ranges.last_mut() {
                // One begins with the key that the other ends with.
                Some(before) if before.overlaps(&range) => {
                    (before.end, before.end_exclusive) = (range.end, range.end_exclusive);
                }
                _ => ranges.push(range),
            }
        }
        ranges
    }
}

/// From `first` to `last`, both included, as far as it is in `whole`.
fn clip(first: Vec<u8>, last: Vec<u8>, whole: &KeyRange) -> KeyRange {
    let (end, end_exclusive) = match &whole.end {
        Some(end) if *end <= last => (end.clone(), whole.end_exclusive),
        _ => (last, false),
    };
    KeyRange {
        start: first.max(whole.start.clone()),
        end: Some(end),
        end_exclusive,
    }
}

/// Files that are no part of the database, removed in the end.
struct Scratch<'a> {
    core: &'a Core,
    written: Written,
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        for table in &self.written.tables {
            remove_quietly(
                &self.core.env,
                &names::sstable_path(&self.core.dir, table.id),
            );
        }
    }
}

/// What a table lacks.
#[derive(Default)]
struct Patch {
    /// Ascending.
    entries: Vec<(Vec<u8>, Trailer, Vec<u8>)>,
    /// There may have been one of a range of any number of keys.
    tombstones: Vec<RangeTombstone>,
    /// The first of the deleted keys behind all these, and the last if there are more.
    deleted: Option<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Patch {
    fn delete(&mut self, key: &[u8]) {
        match &mut self.deleted {
            None => self.deleted = Some((key.to_vec(), None)),
            Some((_, Some(last))) => {
                last.clear();
                last.extend_from_slice(key);
            }
            Some((_, last)) => *last = Some(key.to_vec()),
        }
    }

    /// From here on other tombstones, of this number, delete.
    fn cut(&mut self, seqno: SeqNo) {
        let Some((start, last)) = self.deleted.take() else {
            return;
        };
        let key = match last {
            Some(end) => {
                let last = end.clone();
                self.tombstones.push(RangeTombstone { start, end, seqno });
                last
            }
            None => start,
        };
        let trailer = Trailer::new(seqno, Kind::Delete);
        self.entries.push((key, trailer, Vec::new()));
    }
}

/// Makes the table whole by what another copy has in all its [`Damage::ranges`], in order. See the module's page.
///
/// Errors: the views are older than the table, or not of its ranges; they contradict what is here; the disk.
pub fn refill(
    core: &Arc<Core>,
    tree: &Arc<Tree>,
    damage: &Damage,
    views: &[RangeView],
) -> Result<Refill> {
    core.check_open()?;
    if core.external.is_none() {
        return Err(invalid(
            "only the state of a replicated log has other copies",
        ));
    }
    if views.iter().any(|view| view.seqno < damage.newest) {
        return Err(invalid("a view is older than the table"));
    }
    if !views.iter().all(RangeView::is_ordered) {
        return Err(invalid("a view has keys out of order or out of its range"));
    }
    if let Some(wait) = must_wait(core, views) {
        return Ok(wait);
    }
    let Some(_alone) = CompactionPause::now(core) else {
        return Ok(Refill::Busy);
    };
    match counted(core, || rewrite(core, tree, damage, views)) {
        // Its namespace was dropped under it.
        Err(_) if tree.is_dropped() => Ok(Refill::Gone),
        result => result,
    }
}

/// What to wait for, if the files or snapshots here are too old.
fn must_wait(core: &Core, views: &[RangeView]) -> Option<Refill> {
    let newest = views.iter().map(|view| view.seqno).max();
    let time_ms = views.iter().map(|view| view.time_ms).max();
    let durable = core.versions.last_seqno();
    if Some(durable) < newest || Some(core.droppable_ms()) < time_ms {
        return Some(Refill::NotYet);
    }
    // One between the view and the files would miss what only it can see.
    (core.snapshots.oldest() < durable).then_some(Refill::Busy)
}

/// REQUIRES: no compaction runs, nor will one begin.
fn rewrite(
    core: &Arc<Core>,
    tree: &Arc<Tree>,
    damage: &Damage,
    views: &[RangeView],
) -> Result<Refill> {
    // The files after what they must have been found new enough for, and before what snapshots must not be older than.
    if let Some(wait) = must_wait(core, views) {
        return Ok(wait);
    }
    let levels = core.versions.current(tree.id);
    if let Some(wait) = must_wait(core, views) {
        return Ok(wait);
    }
    let mut files = levels.all_files();
    let Some((level, file)) = files.find(|(_, file)| file.meta.id == damage.file) else {
        return Ok(Refill::Gone);
    };
    let mut options = OutputOptions {
        table: core.settings.table_options(level + 1 == LEVELS),
        table_bytes: u64::MAX,
        min_blob_bytes: usize::MAX,
        namespace: tree.id,
        namespace_name: Arc::clone(&tree.name),
    };

    // What can be read of it, as a table of its own.
    let mut salvage = Salvage::open(core, &file.meta);
    let tombstones = (*salvage.tombstones).clone();
    let mut outputs = Outputs::new(Place::of(core), options.clone(), tombstones.clone());
    salvage.walk(|key, trailer, value| copy(core, &mut outputs, key, trailer, value))?;
    if !covers(views, &salvage.ranges()) {
        return Err(invalid("the views are not of what the table lacks"));
    }
    let scratch = Scratch {
        core,
        written: outputs.finish()?,
    };
    let mut builder = VersionBuilder::new(Arc::clone(&levels), None);
    let inconsistent = |detail: String| Error::corruption(&core.dir, 0, detail);
    builder
        .remove_file(level, damage.file)
        .map_err(inconsistent)?;
    for meta in &scratch.written.tables {
        builder
            .add_file(level, meta.clone())
            .map_err(inconsistent)?;
    }
    let readable = Arc::new(builder.finish().map_err(inconsistent)?.version);

    // What is missing in the files without the rest of it.
    let state = Arc::new(TreeState {
        active: Arc::default(),
        immutables: Vec::new(),
        levels: Arc::clone(&readable),
    });
    let mut patch = Patch::default();
    for view in views {
        compare(core, tree, &state, &file.meta, view, &mut patch)?;
        // Nobody looked at what is between this range and the next.
        if view.next.is_none() {
            patch.cut(file.meta.max_seqno);
        }
    }
    let count = patch.entries.len() as u64;

    options.min_blob_bytes = core.settings.given.min_blob_bytes;
    let lacked = RangeTombstones::from_unfragmented(patch.tombstones);
    let tombstones = RangeTombstones::merge(&[&tombstones, &lacked]);
    let mut outputs = Outputs::new(Place::of(core), options, tombstones);
    let mut patch = patch.entries.into_iter().peekable();
    for meta in &scratch.written.tables {
        let made = readable.files(level).iter().find(|f| f.meta.id == meta.id);
        let Some(made) = made else { continue };
        let mut entries = core
            .table(made)?
            .iter(ReadOptions::sequential(READAHEAD_BYTES));
        entries.seek_to_first()?;
        while entries.valid() {
            let (key, trailer) = (entries.key(), entries.trailer());
            let order = |(other, at, _): &(Vec<u8>, Trailer, Vec<u8>)| {
                other[..].cmp(key).then(trailer.seqno().cmp(&at.seqno()))
            };
            while let Some((key, trailer, value)) = patch.next_if(|p| order(p).is_lt()) {
                outputs.add(&key, trailer, &value)?;
            }
            // What the view has and was deleted here since may be there.
            patch.next_if(|p| order(p).is_eq());
            copy(core, &mut outputs, key, trailer, entries.value())?;
            entries.next()?;
        }
    }
    for (key, trailer, value) in patch {
        outputs.add(&key, trailer, &value)?;
    }
    let written = outputs.finish()?;

    let namespace = tree.id;
    let id = damage.file;
    let mut ops = vec![Op::RemoveFile {
        namespace,
        level,
        id,
    }];
    let blobs = written.blobs.into_iter();
    ops.extend(blobs.map(|meta| Op::AddBlob { namespace, meta }));
    let tables = written.tables.into_iter();
    ops.extend(tables.map(|meta| Op::AddFile {
        namespace,
        level,
        meta,
    }));
    core.versions.apply(VersionEdit::of(ops))?;
    tree.update(|state| state.levels = core.versions.current(namespace));
    core.shrink_tables();
    core.damaged.lock().remove(&damage.file);
    core.observer.counters.tables_refilled.add(1);
    core.observer.emit(Event::TableRefilled {
        path: names::sstable_path(&core.dir, damage.file),
        entries: count,
    });
    Ok(Refill::Done(count))
}

/// What compactions read at once, too.
const READAHEAD_BYTES: usize = 256 << 10;

fn invalid(detail: &str) -> Error {
    Error::InvalidArgument(detail.into())
}

fn copy(
    core: &Core,
    outputs: &mut Outputs<'_>,
    key: &[u8],
    trailer: Trailer,
    value: &[u8],
) -> Result<()> {
    if core.closed.load(atomic::Ordering::Relaxed) {
        return Err(closing());
    }
    if trailer.kind().is_some_and(Kind::is_blob) {
        let (expiry, pointer) = pointer_of(core, trailer, value)?;
        return outputs.add_pointer(key, trailer, expiry, &pointer);
    }
    outputs.add(key, trailer, value)
}

/// Whether views that follow each other have all of the ranges.
fn covers(views: &[RangeView], ranges: &[KeyRange]) -> bool {
    let mut views = views.iter();
    ranges.iter().all(|range| {
        let mut from = range.start.clone();
        loop {
            let Some(view) = views.next().filter(|view| view.range.start == from) else {
                return false;
            };
            let end = (view.range.end.as_ref(), view.range.end_exclusive);
            match &view.next {
                Some(next) if end == (Some(next), true) && *next > from => from.clone_from(next),
                Some(_) => return false,
                None => return end == (range.end.as_ref(), range.end_exclusive),
            }
        }
    })
}

/// Adds to `patch` what the files of `state` lack of a view, for the table with this `meta`.
fn compare(
    core: &Arc<Core>,
    tree: &Arc<Tree>,
    state: &Arc<TreeState>,
    meta: &FileMeta,
    view: &RangeView,
    patch: &mut Patch,
) -> Result<()> {
    let options = scan_options(&view.range).keys_only();
    let mut here = core.scan_regardless(tree, Arc::clone(state), SeqNo::MAX, None, options)?;
    let contradiction = |key: &[u8], here: Option<SeqNo>, there: Option<SeqNo>| {
        let path = names::sstable_path(&core.dir, meta.id);
        let shown = |version: Option<SeqNo>| version.map_or("none".into(), |v| v.0.to_string());
        let (key, here, there) = (show_key(key), shown(here), shown(there));
        let detail = format!("cannot be refilled: {key} has version {here} here and {there} there");
        let error = Error::corruption(path, 0, detail);
        core.note_error(&error);
        Err(error)
    };
    let mut is_there = here.next()?;
    let mut entries = view.entries.iter().peekable();
    loop {
        let order = match (is_there, entries.peek()) {
            (false, None) => return Ok(()),
            (true, None) => Ordering::Less,
            (false, Some(_)) => Ordering::Greater,
            (true, Some(entry)) => here.key().cmp(&entry.key),
        };
        // No tombstone covers what the view has.
        if order != Ordering::Less {
            patch.cut(meta.max_seqno);
        }
        let ours = (order != Ordering::Greater).then(|| here.version());
        let theirs = match order {
            Ordering::Less => None,
            _ => entries.next(),
        };
        let in_table = |version: SeqNo| meta.min_seqno <= version && version <= meta.max_seqno;
        match (ours, theirs) {
            // Written after the view.
            (Some(ours), _) if ours > view.seqno => {}
            (Some(ours), Some(theirs)) if ours == theirs.version => {}
            // It had expired there, and has here.
            (Some(ours), theirs)
                if theirs.is_none_or(|theirs| theirs.version < ours)
                    && here.expires_at_ms().is_some_and(|at| at <= view.time_ms) => {}
            // Deleted after the view, or expired and dropped: the table never had it. If it had, what deleted it is
            // still above the table, which no compaction can have passed.
            (None, Some(theirs)) if !in_table(theirs.version) => {}
            (ours, Some(theirs)) => {
                let version = theirs.version;
                if !in_table(version) || ours.is_some_and(|ours| ours > version) {
                    return contradiction(&theirs.key, ours, Some(version));
                }
                let (kind, value) = match theirs.expires_at_ms {
                    Some(at) => {
                        let value = [&at.to_le_bytes()[..], &theirs.value].concat();
                        (Kind::PutExpiring, value)
                    }
                    None => (Kind::Put, theirs.value.clone()),
                };
                let trailer = Trailer::new(version, kind);
                patch.entries.push((theirs.key.clone(), trailer, value));
            }
            (Some(ours), None) => {
                if ours >= meta.max_seqno {
                    return contradiction(here.key(), Some(ours), None);
                }
                patch.delete(here.key());
            }
            (None, None) => {}
        }
        if order != Ordering::Greater {
            is_there = here.next()?;
        }
    }
}
