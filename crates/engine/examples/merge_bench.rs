//! How fast merging is by itself: sources are sorted arrays in memory, so that what is measured is
//! the merge and not what lies below it. Prints nanoseconds an entry, the best of several rounds.
//!
//! ```text
//! cargo run --release -p firn-engine --example merge_bench
//! ```
//!
//! `even` deals the entries evenly to the sources; `level` gives nine of ten to the oldest, as in a
//! tree. `hash` keys differ in the first bytes, `same` keys only after the sixteenth.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]
#![allow(clippy::disallowed_methods, reason = "measures real time")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use firn_engine::error::Result;
use firn_engine::iterator::InternalIterator;
use firn_engine::key::{Kind, SeqNo, Trailer};
use firn_engine::merge::merging::MergingIter;
use firn_engine::merge::visible::{View, VisibleIter};
use firn_engine::range_del::{RangeTombstone, RangeTombstones};

/// So few and small that they fit into a cache.
const ENTRIES: u64 = 40_000;
const VALUE_BYTES: usize = 16;
const ROUNDS: usize = 30;

/// A sorted array: keys of one length, then values.
struct Source {
    key_bytes: usize,
    bytes: Arc<Vec<u8>>,
    trailers: Arc<Vec<Trailer>>,
    at: usize,
}

impl Source {
    fn partition_point(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.trailers.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.key_at(middle) < key {
                low = middle + 1
            } else {
                high = middle
            }
        }
        low
    }

    #[inline]
    fn key_at(&self, i: usize) -> &[u8] {
        &self.bytes[i * (self.key_bytes + VALUE_BYTES)..][..self.key_bytes]
    }
}

impl InternalIterator for Source {
    #[inline]
    fn valid(&self) -> bool {
        self.at < self.trailers.len()
    }
    fn seek_to_first(&mut self) -> Result<()> {
        self.at = 0;
        Ok(())
    }
    fn seek_to_last(&mut self) -> Result<()> {
        self.at = self.trailers.len().wrapping_sub(1);
        Ok(())
    }
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.at = self.partition_point(key);
        Ok(())
    }
    fn seek_before(&mut self, key: &[u8]) -> Result<()> {
        self.at = self.partition_point(key).wrapping_sub(1);
        Ok(())
    }
    #[inline]
    fn next(&mut self) -> Result<()> {
        self.at += 1;
        Ok(())
    }
    #[inline]
    fn prev(&mut self) -> Result<()> {
        self.at = self.at.wrapping_sub(1);
        Ok(())
    }
    #[inline]
    fn key(&self) -> &[u8] {
        self.key_at(self.at)
    }
    #[inline]
    fn trailer(&self) -> Trailer {
        self.trailers[self.at]
    }
    #[inline]
    fn value(&self) -> &[u8] {
        &self.bytes[self.at * (self.key_bytes + VALUE_BYTES) + self.key_bytes..][..VALUE_BYTES]
    }
    /// As a block does it, without a copy.
    #[inline]
    fn next_key(&mut self) -> Result<()> {
        let from = self.at;
        self.at += 1;
        while self.valid() && self.key_at(self.at) == self.key_at(from) {
            self.at += 1;
        }
        Ok(())
    }
}

/// The splitmix64 finalizer: a permutation of the 64-bit numbers.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn sources(count: u64, level: bool, same: bool) -> Vec<Source> {
    let mut lists = vec![vec![]; count as usize];
    for i in 1..=ENTRIES {
        let source = if level && mix(i + (1 << 40)) % 10 < 9 {
            count - 1
        } else {
            mix(i + (1 << 41)) % count
        };
        let hash = format!("{:016x}", mix(i));
        let key = if same {
            format!("user/profile/id-{hash}")
        } else {
            hash
        };
        lists[source as usize].push((key.into_bytes(), Trailer::new(SeqNo(i), Kind::Put)));
    }
    let build = |mut list: Vec<(Vec<u8>, Trailer)>| {
        list.sort();
        let mut bytes = vec![];
        for (key, _) in &list {
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(&[b'v'; VALUE_BYTES]);
        }
        Source {
            key_bytes: list.first().map_or(0, |(key, _)| key.len()),
            bytes: Arc::new(bytes),
            trailers: Arc::new(list.iter().map(|(_, trailer)| *trailer).collect()),
            at: 0,
        }
    };
    lists.into_iter().map(build).collect()
}

fn again(sources: &[Source]) -> Vec<Source> {
    let copy = |s: &Source| Source {
        key_bytes: s.key_bytes,
        bytes: s.bytes.clone(),
        trailers: s.trailers.clone(),
        at: 0,
    };
    sources.iter().map(copy).collect()
}

/// The best time of an entry in nanoseconds.
fn measure(mut run: impl FnMut() -> Result<u64>) -> Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let count = run()?;
        assert_eq!(count, ENTRIES);
        best = best.min(begin.elapsed().as_nanos() as f64 / count as f64);
    }
    Ok(best)
}

fn merge(sources: &[Source]) -> Result<u64> {
    let mut iter = MergingIter::new(again(sources));
    iter.seek_to_first()?;
    let mut count = 0;
    while iter.valid() {
        black_box((iter.key(), iter.trailer(), iter.value()));
        count += 1;
        iter.next()?;
    }
    Ok(count)
}

fn scan<I: InternalIterator>(iter: I, reverse: bool) -> Result<u64> {
    let mut iter = VisibleIter::new(
        iter,
        View {
            reverse,
            ..View::all(SeqNo::MAX, 0)
        },
    );
    let mut count = 0;
    while iter.next()? {
        black_box((iter.key(), iter.raw_value()));
        count += 1;
    }
    Ok(count)
}

/// With a tombstone in the newest source that deletes nothing, so that each entry is checked.
fn scan_with_tombstones(sources: &[Source]) -> Result<u64> {
    let set = RangeTombstones::from_unfragmented(vec![RangeTombstone {
        start: b"zz".to_vec(),
        end: b"zzz".to_vec(),
        seqno: SeqNo(ENTRIES + 1),
    }]);
    let sources = again(sources).into_iter().collect();
    let tombstones = [(0, Arc::new(set))];
    scan(
        MergingIter::with_tombstones(sources, tombstones, SeqNo::MAX),
        false,
    )
}

fn main() -> Result<()> {
    println!("ns/entry         merge  visible  tombstones  reverse");
    for same in [false, true] {
        let bare = again(&sources(1, false, same));
        let time = measure(|| {
            again(&bare)
                .into_iter()
                .next()
                .map_or(Ok(0), |s| scan(s, false))
        })?;
        println!(
            "{} no merge        {time:8.1}",
            if same { "same" } else { "hash" }
        );
        for level in [false, true] {
            for count in [1, 2, 5, 8, 12] {
                let sources = sources(count, level, same);
                println!(
                    "{} {} {count:2}  {:8.1} {:8.1} {:11.1} {:8.1}",
                    if same { "same" } else { "hash" },
                    if level { "level" } else { "even " },
                    measure(|| merge(&sources))?,
                    measure(|| scan(MergingIter::new(again(&sources)), false))?,
                    measure(|| scan_with_tombstones(&sources))?,
                    measure(|| scan(MergingIter::new(again(&sources)), true))?,
                );
            }
        }
    }
    Ok(())
}
