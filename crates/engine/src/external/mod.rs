//! A database whose only log is somebody else's: the state of a replicated log.
//!
//! The engine's own log is off. Whoever owns the other log hands its entries, one after the other,
//! to the [`apply::Applier`]; readers use [`Db`](crate::Db) as always; every other write is refused.
//!
//! # What must be deterministic
//!
//! Two databases to which the same entries were applied have the same keys, values, versions and
//! namespaces, and answer every read alike, whatever was flushed, compacted or restarted in between:
//!
//! * Sequence numbers count the operations that were written, from the first entry on. Conditions
//!   are decided at the entry, so every copy decides alike.
//! * Numbers of namespaces count too, and namespaces come and go by entries only.
//! * Time is what the entries say ([`state::LogClock`]): the greatest time of any entry so far. It
//!   decides which values have expired. The wall clock is not asked.
//!
//! # Cuts
//!
//! After a crash the entries behind the durable position are applied again, to the state at that
//! position and to no other: a condition that saw its own effect would be decided otherwise the
//! second time. So the files always hold exactly the state after one entry:
//!
//! 1. *Cut* ([`state::External::cut`]): between two entries, the memtables of all trees are retired
//!    together, with the position, the time and the namespaces that came or went since the last cut.
//! 2. *Wait* until the other log is durable up to the position. The files are never ahead of it.
//! 3. *Write* the SSTables of all retired memtables, sync them.
//! 4. *One manifest edit*: all new files, created and dropped namespaces, the position. Synced.
//! 5. Swap the trees' pictures; tell the log's owner, who may now let go of the log before it.
//!
//! A crash before 4 leaves files that no manifest names and the position of the cut before; a crash
//! after 4 the new position. An error before 4 removes the files that were written and is tried
//! again. Compaction changes no content; it drops what expired only up to the time of the last cut
//! that is durable, as entries that will be applied again may still ask for it.

pub mod apply;
pub mod flush;
pub mod own_log;
pub mod state;

#[cfg(test)]
mod tests;
