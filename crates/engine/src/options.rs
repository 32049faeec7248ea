//! Every option of the engine, its default, and the reason for it. Two numbers are meant to be
//! tuned: [`Options::memory_bytes`] and the size of the disk; the rest has defaults that tests and
//! benchmarks vary.

use std::time::Duration;

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 64 << 10;
/// Longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 256 << 20;
/// Largest batch, encoded, in bytes. It is one log record and must fit into memory.
pub const MAX_BATCH_BYTES: usize = 512 << 20;
/// Longest name of a namespace, in bytes.
pub const MAX_NAMESPACE_BYTES: usize = 255;
/// The number of levels of a tree.
pub const LEVELS: usize = 7;

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Durability {
    /// When it survives the death of the process. Power loss may take the writes of the last
    /// [`Options::background_sync`].
    Buffered,
    /// When it survives power loss: the log was synced.
    #[default]
    Sync,
}

/// How blocks and blobs are compressed. **Stored on disk: never change these values.**
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Compression {
    /// As they are.
    None = 0,
    /// LZ4 block format: fast, about half the size.
    Lz4 = 1,
    /// Zstandard: slower, smaller. Only in builds with the `zstd` feature.
    Zstd = 2,
}

/// How a database is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Make the database if it is not there. Default: true.
    pub create_if_missing: bool,
    /// Memory for memtables, caches, indexes and filters together, in bytes. Default: 512 MiB.
    pub memory_bytes: usize,
    /// Bytes of one memtable and of what is written beside it while it is flushed: seven tenths of it are
    /// filled before, or all of it where the log is somebody else's ([`crate::external`]). Default
    /// (`None`): an eighth of the memory, at least 1 MiB, at most 64 MiB: larger ones make recovery longer
    /// than they make writes faster.
    pub memtable_bytes: Option<usize>,
    /// Bytes of the block cache. Default (`None`): what the memtables leave, less a reserve for
    /// work in flight.
    pub cache_bytes: Option<usize>,
    /// Background jobs at a time. Default: 2, one of which flushes; the log has a thread of its own.
    pub background_threads: usize,
    /// Uncompressed bytes of a data block, about; a block of less than four entries may have four
    /// times as many. Default: 2 KiB. Smaller blocks make random reads of small values faster, larger
    /// ones long scans; indexes take 17 bytes of memory a block.
    pub block_bytes: usize,
    /// Entries between restart points in a block. Default: 16.
    pub restart_interval: usize,
    /// Filter bits per key; 0 turns filters off. Default: 10, about 1 % false positives.
    pub filter_bits_per_key: u32,
    /// Compression of data blocks and blobs. Default: LZ4.
    pub compression: Compression,
    /// Compression of the bottom level, where most data is. Default (`None`): as the others.
    pub bottom_compression: Option<Compression>,
    /// Values of at least this many bytes go to blob files. Default: 4 KiB.
    pub min_blob_bytes: usize,
    /// Share of a blob file that must be garbage before its live values are moved. Default: 0.5.
    pub blob_garbage_ratio: f64,
    /// Target size of an SSTable. Default (`None`): [`Self::memtable_bytes`], at least 2 MiB.
    pub sstable_bytes: Option<u64>,
    /// Number of L0 runs that starts a compaction. Default: 6, which are about as many bytes as four
    /// full memtables.
    pub l0_compaction_trigger: usize,
    /// Size ratio between levels. Default: 10.
    pub level_ratio: u64,
    /// Bytes of one log segment. Default (`None`): an eighth of a memtable, so that little more log is
    /// kept than memtables need.
    pub log_segment_bytes: Option<u64>,
    /// Bytes of log kept before the trees that hold it back are flushed. Default (`None`): four
    /// memtables.
    pub log_bytes: Option<u64>,
    /// Bytes of log kept for the changefeed beyond what recovery needs, so that a watch can go on
    /// where it was after a disconnect or a restart. Default: 0, what recovery needs and no more;
    /// the server's is 64 MiB. Where the log is somebody else's ([`crate::external`]) it is the bytes
    /// of batches in memory, at most a sixteenth of [`Self::memory_bytes`] and at least a sixty-fourth
    /// of it (up to 8 MiB).
    pub changefeed_bytes: u64,
    /// How long log is kept for the changefeed after it was filled, if the bytes allow it; looked
    /// at when memtables are flushed. Default: 10 minutes.
    pub changefeed_age: Duration,
    /// Write the log through a shared mapping, unless it is synced often: a buffered write costs no system
    /// call. Turn off on copy-on-write file systems, where a store to a mapping can run out of space, which
    /// ends the process. Default: true.
    pub log_mapped: bool,
    /// How long a buffered write may stay unsynced. Default: 1 s. `None`: until the next sync write or
    /// close, or until it is in an SSTable; a loss of power can then take several memtables.
    pub background_sync: Option<Duration>,
    /// Disk space held in reserve, so that a full disk leaves room for deletes and compaction.
    /// Default: 64 MiB, less on small disks. 0 turns it off.
    pub ballast_bytes: u64,
    /// The longest a write is delayed by backpressure before it is refused as overloaded.
    /// Default: `None`, as long as it takes.
    pub max_write_delay: Option<Duration>,
    /// Open for reading only: no lock, no recovery writes, no background work. Default: false.
    pub read_only: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            create_if_missing: true,
            memory_bytes: 512 << 20,
            memtable_bytes: None,
            cache_bytes: None,
            background_threads: 2,
            block_bytes: 2 << 10,
            restart_interval: 16,
            filter_bits_per_key: 10,
            compression: Compression::Lz4,
            bottom_compression: None,
            min_blob_bytes: 4 << 10,
            blob_garbage_ratio: 0.5,
            sstable_bytes: None,
            l0_compaction_trigger: 6,
            level_ratio: 10,
            log_segment_bytes: None,
            log_bytes: None,
            changefeed_bytes: 0,
            changefeed_age: Duration::from_secs(600),
            log_mapped: true,
            background_sync: Some(Duration::from_secs(1)),
            ballast_bytes: 64 << 20,
            max_write_delay: None,
            read_only: false,
        }
    }
}
