//! Many sorted sources become one truth.
//!
//! ```text
//!   memtable   immutable   L0 table  L0 table   L1 tables    L2 tables      newest to oldest:
//!      |          |           |         |      [ concat ]   [ concat ]      rank 0, 1, 2, ...
//!      +----------+-----------+---------+---------+-------------+
//!                                  |
//!                             [ merging ]   one stream in internal order, all versions;
//!                                  |        ranges deleted by a newer source are jumped over
//!                             [ visible ]   what a reader at a snapshot sees
//! ```
//!
//! - [`mod@concat`]: the tables of one level, which do not overlap, one after another.
//! - [`merging`]: sources that overlap, entry by entry, with their range tombstones.
//! - [`visible`]: newest visible version of each key; tombstones and expired entries left out.
//!
//! A compaction uses the first two without range tombstones and `compaction::drop` instead of the
//! third. All are generic over the iterators below them, so a scan makes no dynamic call.

use crate::key::window;

pub mod concat;
pub mod merging;
pub mod visible;

/// The first eight bytes of a key as a number; see [`window`].
#[inline(always)]
fn prefix_of(key: &[u8]) -> u64 {
    window(key, 0)
}

/// The source that the tests of this folder merge.
#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::prefix_of;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn prefixes_order_as_keys(
            a in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..12),
            b in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..12),
        ) {
            if prefix_of(&a) != prefix_of(&b) {
                prop_assert_eq!(prefix_of(&a) < prefix_of(&b), a < b);
            }
            if a == b {
                prop_assert_eq!(prefix_of(&a), prefix_of(&b));
            }
        }
    }
}
