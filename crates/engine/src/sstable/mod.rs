//! SSTables: immutable sorted files of entries.
//!
//! # The file
//!
//! ```text
//!  ┌────────────────────┐ 0
//!  │ data block 0       │  entries in internal order, prefix-compressed    (`block`)
//!  │ data block 1       │
//!  │ ...                │
//!  ├────────────────────┤
//!  │ filter             │  blocked Bloom filter of the user keys, optional (`filter`)
//!  │ range tombstones   │  optional                                        (`writer`)
//!  │ index              │  a separator for each data block                 (`index`)
//!  │ properties         │  counts, bounds, blob references                 (`properties`)
//!  ├────────────────────┤
//!  │ footer, 80 bytes   │  where all of these are                          (`footer`)
//!  └────────────────────┘ end of file
//! ```
//!
//! Every block is stored in an envelope with its compression and a checksum (`stored`). There is no
//! byte in the file that no checksum covers.
//!
//! # Life
//!
//! 1. [`TableWriter`] writes the file front to back, once, and syncs it.
//! 2. A version edit names it (see `version`). Before that a crash leaves a file that nobody knows,
//!    which recovery removes.
//! 3. [`Table`] reads it: [`Table::get`], [`Table::iter`]. It never changes.
//! 4. When no version names it any more, it is removed.
//!
//! All versions of a user key are next to each other, newest first, and may cross from block to
//! block. Damage is found when bytes are read, and is an error that names file and offset; no bytes,
//! whatever they are, make a reader panic, loop, or take more memory than the file's length and the
//! limit of a block allow.

pub(crate) mod block;
pub(crate) mod filter;
pub(crate) mod footer;
pub(crate) mod index;
pub(crate) mod iter;
mod lz4;
pub(crate) mod multi;
pub(crate) mod properties;
pub(crate) mod reader;
pub(crate) mod salvage;
pub(crate) mod stored;
pub(crate) mod writer;

#[cfg(test)]
pub(crate) mod tests;

pub use crate::sstable::filter::key_hash;
pub use crate::sstable::iter::{ReadOptions, TableIter};
pub(crate) use crate::sstable::multi::Wanted;
pub use crate::sstable::properties::Properties;
pub(crate) use crate::sstable::reader::Way;
pub use crate::sstable::reader::{Table, TableCheck, TableEntry, TableValue};
pub use crate::sstable::writer::{TableOptions, TableSummary, TableWriter};
