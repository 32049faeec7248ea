//! The files that a flush or a compaction writes: SSTables cut at key boundaries, and a blob file
//! for large values.
//!
//! [`Outputs::add`] takes surviving entries in internal order. A new SSTable is begun when the
//! present one has its size, always between two user keys, so that all versions of a key are in one
//! file. Range tombstones are clipped to the keys of the file that carries them: the files of a run
//! then cover disjoint ranges, tombstones included.
//!
//! Nothing here is known to any reader before the caller has put it into the manifest. Dropping
//! [`Outputs`] without [`Outputs::finish`] removes the files; after a crash they are orphans that the
//! next open removes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use firn_io::Env;
use firn_io::fs::OpenMode;

use crate::blob::{BlobPointer, BlobWriter};
use crate::core::{Core, remove_quietly};
use crate::error::{Error, Result};
use crate::key::{FileId, Kind, NamespaceId, Trailer};
use crate::names;
use crate::range_del::RangeTombstones;
use crate::sstable::{TableOptions, TableSummary, TableWriter};
use crate::version::{BlobMeta, BlobRef, FileMeta};

/// How outputs are written.
#[derive(Clone, Debug)]
pub struct OutputOptions {
    /// How the tables are.
    pub table: TableOptions,
    /// Bytes after which an SSTable is ended; `u64::MAX` for one file.
    pub table_bytes: u64,
    /// Values of at least this size go to the blob file.
    pub min_blob_bytes: usize,
    /// The namespace whose tree they are for.
    pub namespace: NamespaceId,
    /// Its name.
    pub namespace_name: Arc<str>,
}

/// Where outputs are made.
pub struct Place<'a> {
    /// The world outside.
    pub env: &'a Env,
    /// The directory.
    pub dir: &'a Path,
    /// Numbers new files.
    pub next_file: Box<dyn Fn() -> FileId + 'a>,
}

impl std::fmt::Debug for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl<'a> Place<'a> {
    /// An open database.
    pub fn of(core: &'a Core) -> Self {
        Self {
            env: &core.env,
            dir: &core.dir,
            next_file: Box::new(|| core.next_file_id()),
        }
    }
}

/// An SSTable being written.
struct OpenTable {
    id: FileId,
    writer: TableWriter,
    /// Where its range of keys starts; `None` for the first.
    start: Option<Vec<u8>>,
}

/// A blob file being written.
struct OpenBlob {
    id: FileId,
    writer: BlobWriter,
}

/// What was written.
#[derive(Debug, Default)]
pub struct Written {
    /// The SSTables, in key order.
    pub tables: Vec<FileMeta>,
    /// The blob files.
    pub blobs: Vec<BlobMeta>,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes of the values that went to blob files.
    pub blob_value_bytes: u64,
}

/// Writes the files of one flush or compaction.
pub struct Outputs<'a> {
    place: Place<'a>,
    options: OutputOptions,
    /// All surviving range tombstones.
    tombstones: RangeTombstones,
    table: Option<OpenTable>,
    /// The key range of the next table starts here.
    next_start: Option<Vec<u8>>,
    last_key: Vec<u8>,
    blob: Option<OpenBlob>,
    /// Every file made so far, for removal if this fails.
    paths: Vec<PathBuf>,
    written: Written,
    /// The encoded blob value, kept for its memory.
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Outputs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outputs")
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl<'a> Outputs<'a> {
    /// Nothing written yet. `tombstones` are those that the outputs must carry.
    pub fn new(place: Place<'a>, options: OutputOptions, tombstones: RangeTombstones) -> Self {
        Self {
            place,
            options,
            tombstones,
            table: None,
            next_start: None,
            last_key: Vec::new(),
            blob: None,
            paths: Vec::new(),
            written: Written::default(),
            scratch: Vec::new(),
        }
    }

    /// Adds an entry; a large value is put into the blob file. REQUIRES: internal order.
    pub fn add(&mut self, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<()> {
        let large = value.len() >= self.options.min_blob_bytes;
        if large && let Some(kind @ (Kind::Put | Kind::PutExpiring)) = trailer.kind() {
            let expiry = if kind == Kind::PutExpiring { 8 } else { 0 };
            let Some((expiry, user)) = value.split_at_checked(expiry) else {
                return self.add_plain(key, trailer, value);
            };
            let pointer = self.write_blob(key, user)?;
            return self.add_pointer(key, trailer, expiry, &pointer);
        }
        self.add_plain(key, trailer, value)
    }

    /// Adds an entry whose value is in a blob file. `trailer` may have the kind of the plain value.
    pub fn add_pointer(
        &mut self,
        key: &[u8],
        trailer: Trailer,
        expiry: &[u8],
        pointer: &BlobPointer,
    ) -> Result<()> {
        let kind = if expiry.is_empty() {
            Kind::BlobPut
        } else {
            Kind::BlobPutExpiring
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.extend_from_slice(expiry);
        pointer.encode(&mut scratch);
        let result = self.add_plain(key, Trailer::new(trailer.seqno(), kind), &scratch);
        self.scratch = scratch;
        result?;
        if let Some(table) = &mut self.table {
            table
                .writer
                .add_blob_ref(pointer.file, pointer.record_bytes(key.len()));
        }
        Ok(())
    }

    /// Puts a value into the blob file.
    pub fn write_blob(&mut self, key: &[u8], value: &[u8]) -> Result<BlobPointer> {
        if self.blob.is_none() {
            let id = (self.place.next_file)();
            let path = names::blob_path(self.place.dir, id);
            self.paths.push(path.clone());
            let file = self.place.env.fs.open(&path, OpenMode::CreateNew)?;
            let writer = BlobWriter::new(file, id, self.options.table.compression)?;
            self.blob = Some(OpenBlob { id, writer });
        }
        // Made above if it was not there.
        let Some(blob) = &mut self.blob else {
            return Err(crate::core::closing());
        };
        self.written.blob_value_bytes += value.len() as u64;
        blob.writer.add(key, value)
    }

    fn add_plain(&mut self, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<()> {
        let full = self
            .table
            .as_ref()
            .is_some_and(|table| table.writer.estimated_bytes() >= self.options.table_bytes);
        if full && self.last_key != key {
            self.end_table(Some(key))?;
        }
        if self.table.is_none() {
            self.begin_table()?;
        }
        if let Some(table) = &mut self.table {
            table.writer.add(key, trailer, value)?;
        }
        if self.last_key != key {
            self.last_key.clear();
            self.last_key.extend_from_slice(key);
        }
        Ok(())
    }

    /// Whether the present table has at least `bytes`.
    pub fn table_has(&self, bytes: u64) -> bool {
        self.table
            .as_ref()
            .is_some_and(|table| table.writer.estimated_bytes() >= bytes)
    }

    /// Ends the present table before `key`, which comes next, unless it holds versions of it.
    pub fn cut_before(&mut self, key: &[u8]) -> Result<()> {
        if self.table.is_some() && self.last_key != key {
            self.end_table(Some(key))?;
        }
        Ok(())
    }

    fn begin_table(&mut self) -> Result<()> {
        let id = (self.place.next_file)();
        let path = names::sstable_path(self.place.dir, id);
        self.paths.push(path.clone());
        let file = self.place.env.fs.open(&path, OpenMode::CreateNew)?;
        let mut writer = TableWriter::new(file, self.options.table)?;
        writer.set_namespace(self.options.namespace, &self.options.namespace_name);
        self.table = Some(OpenTable {
            id,
            writer,
            start: self.next_start.take(),
        });
        Ok(())
    }

    /// Ends the present table. It carries the range tombstones from its start up to `next`.
    fn end_table(&mut self, next: Option<&[u8]>) -> Result<()> {
        let Some(mut table) = self.table.take() else {
            return Ok(());
        };
        if !self.tombstones.is_empty() {
            let clipped = self.tombstones.clip(table.start.as_deref(), next);
            for tombstone in clipped.iter_raw() {
                table.writer.add_range_tombstone(tombstone.to_owned())?;
            }
        }
        let summary = table.writer.finish()?;
        self.written.bytes += summary.file_bytes;
        self.written.tables.push(file_meta(table.id, summary));
        self.next_start = next.map(<[u8]>::to_vec);
        Ok(())
    }

    /// Ends all files, makes them and their names durable, and hands them over.
    pub fn finish(mut self) -> Result<Written> {
        if self.table.is_none() && !self.tombstones.is_empty() {
            let rest = self.tombstones.clip(self.next_start.as_deref(), None);
            if !rest.is_empty() {
                self.begin_table()?;
            }
        }
        self.end_table(None)?;
        if let Some(blob) = self.blob.take() {
            let summary = blob.writer.finish()?;
            self.written.bytes += summary.file_bytes;
            self.written.blobs.push(BlobMeta {
                id: blob.id,
                file_bytes: summary.file_bytes,
                value_count: summary.count,
                value_bytes: summary.record_bytes,
            });
        }
        if !self.paths.is_empty() {
            self.place.env.fs.sync_dir(self.place.dir)?;
        }
        self.paths.clear();
        Ok(std::mem::take(&mut self.written))
    }
}

impl Drop for Outputs<'_> {
    fn drop(&mut self) {
        for path in &self.paths {
            remove_quietly(self.place.env, path);
        }
    }
}

/// What the manifest says of a table.
fn file_meta(id: FileId, summary: TableSummary) -> FileMeta {
    FileMeta {
        id,
        file_bytes: summary.file_bytes,
        entry_count: summary.entry_count,
        tombstone_count: summary.tombstone_count,
        range_tombstone_count: summary.range_tombstone_count,
        smallest: summary.smallest.into(),
        largest: summary.largest.into(),
        largest_exclusive: summary.largest_exclusive,
        min_seqno: summary.min_seqno,
        max_seqno: summary.max_seqno,
        raw_bytes: summary.raw_key_bytes + summary.raw_value_bytes,
        blob_refs: summary
            .blob_refs
            .into_iter()
            .map(|(file, count, bytes)| BlobRef { file, count, bytes })
            .collect(),
    }
}

/// A value that does not have the form that its kind prescribes.
pub fn bad_value(core: &Core, what: &str) -> Error {
    Error::corruption(&core.dir, 0, format!("{what} in a compaction's input"))
}
