//! The log: framed, checksummed, group-committed, in segments that are allocated ahead and
//! recycled. The engine uses it as its WAL, a replica as its Raft log.
//!
//! * [`record`]: the frame around a record, and [`Lsn`], a position.
//! * [`segment`]: the files, their headers, how they come and go.
//! * [`reader`]: replay; what is a torn tail and what is damage.
//! * [`writer`]: [`Log`], append and group commit.
//! * [`lookup`]: single records, by position.
//! * [`tail`]: reading the log while it is written.
//!
//! # How a record becomes durable
//!
//! 1. [`Log::append`] frames it and copies it into the mapping of the current segment (or writes it with one
//!    call where it is long, the log is synced often, or files cannot be mapped). It now survives the death of
//!    the process.
//! 2. If it does not fit, an end frame that names the next segment goes before, and the next
//!    segment, prepared in the background since the current one was half full, takes its place.
//! 3. [`Log::sync_to`] makes it durable. One thread syncs for all who wait: it notes the end of the
//!    log, syncs the segments that were filled since the last sync, oldest first, then the current
//!    one, and publishes the position. Appends go on meanwhile.
//! 4. Every later frame states how far the log is synced; that is how recovery knows damage from a
//!    torn tail.
//!
//! # Invariants
//!
//! * What remains of a log after a crash is a prefix of what was appended, and at least all that
//!   was synced; anything else is reported as damage and never cut.
//! * A frame is written only into a segment that is durable under its name.
//! * After a failed write or sync the log is poisoned: nothing is appended or synced any more, and
//!   no sync is ever tried twice. A full disk while a segment is prepared is not a failure of the
//!   log: the append is refused, later ones try again.
//! * No two segments ever have the same number.
//!
//! # Recovery
//!
//! [`Log::open`] replays, then makes its decision physical, so that the next recovery takes it too:
//!
//! 1. Segments behind the end of the log are given up, the directory synced. (Crash here: the same
//!    end is found again, as what was given up held no evidence of a sync.)
//!    So are those before the position of which the caller says that the log may have lost what was before;
//!    if reading began behind a hole in that segment, fillers take the hole's place. (Crash: the hole is
//!    there again, and the caller says the same of it.)
//! 2. What looks like a frame behind the end is overwritten with zeros. (Crash: the same end.)
//! 3. If the caller's start of replay is beyond the end (records that it made durable elsewhere
//!    and that the log lost), a filler frame leads up to it: no position is given out that the
//!    caller would skip in its next replay.
//! 4. What no frame states to be synced is read, written again and synced. Reading it proves only
//!    that it is in the page cache; after a failed sync of an earlier process the kernel may hold it
//!    as clean without the disk having it.
//! 5. The log goes on in the same segment. No step needs disk space.

pub mod lookup;
pub mod reader;
pub mod record;
pub mod segment;
pub mod tail;
pub mod writer;

pub use crate::wal::lookup::{Lookup, starts_of};
pub use crate::wal::reader::{Record, ScanReport};
pub use crate::wal::record::{Lsn, MAX_KIND, MAX_PAYLOAD_BYTES};
pub use crate::wal::tail::{Tail, TailError};
pub use crate::wal::writer::{Entry, Log, LogOptions, LogStats, Replayed, SyncListener};

#[cfg(test)]
mod tests;
