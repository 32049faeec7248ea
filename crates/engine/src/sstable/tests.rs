//! Tables as a whole, against a sorted list of entries.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use firn_io::fs::{Advice, File, MappedFile};
use proptest::prelude::*;

use crate::cache::BlockCache;
use crate::error::{Error, Result};
use crate::iterator::InternalIterator;
use crate::key::{FileId, Kind, SeqNo, Trailer};
use crate::options::Compression;
use crate::range_del::{RangeTombstone, RangeTombstones};
use crate::sstable::{
    ReadOptions, Table, TableIter, TableOptions, TableSummary, TableWriter, Wanted, key_hash,
};

/// A file that is a vector.
#[derive(Debug, Default)]
pub(crate) struct VecFile(pub(crate) Mutex<Vec<u8>>);

impl File for VecFile {
    fn path(&self) -> &Path {
        Path::new("/t/000007.sst")
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> firn_io::Result<usize> {
        let bytes = self.0.lock().unwrap();
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> firn_io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        assert_eq!(
            bytes.len() as u64,
            offset,
            "tables are written front to back"
        );
        bytes.extend_from_slice(buf);
        Ok(())
    }
    fn len(&self) -> firn_io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }
    fn set_len(&self, len: u64) -> firn_io::Result<()> {
        self.0.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }
    fn allocate(&self, _: u64) -> firn_io::Result<()> {
        Ok(())
    }
    fn sync_data(&self) -> firn_io::Result<()> {
        Ok(())
    }
    fn advise(&self, _: u64, _: u64, _: Advice) {}
    fn start_writeback(&self, _: u64, _: u64) {}
    fn map(&self, _: u64) -> firn_io::Result<Option<Box<dyn MappedFile>>> {
        Ok(None)
    }
}

pub(crate) fn file_of(bytes: Vec<u8>) -> Arc<VecFile> {
    Arc::new(VecFile(Mutex::new(bytes)))
}

type Item = (Vec<u8>, Trailer, Vec<u8>);

fn open(bytes: &[u8], cache_bytes: u64) -> Result<Arc<Table>> {
    let cache = Arc::new(BlockCache::new(cache_bytes));
    Table::open(file_of(bytes.to_vec()), FileId(7), cache).map(Arc::new)
}

fn write(
    items: &[Item],
    tombstones: &[RangeTombstone],
    options: TableOptions,
) -> (Vec<u8>, TableSummary) {
    let file = file_of(Vec::new());
    let mut writer = TableWriter::new(file.clone(), options).unwrap();
    for (key, trailer, value) in items {
        writer.add(key, *trailer, value).unwrap();
    }
    for tombstone in tombstones {
        writer.add_range_tombstone(tombstone.clone()).unwrap();
    }
    let summary = writer.finish().unwrap();
    let bytes = file.0.lock().unwrap().clone();
    (bytes, summary)
}

fn sorted(mut items: Vec<Item>) -> Vec<Item> {
    items.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    items.dedup_by(|a, b| a.0 == b.0 && a.1.seqno() == b.1.seqno());
    items
}

fn put(key: impl Into<Vec<u8>>, seqno: u64, value: impl Into<Vec<u8>>) -> Item {
    (
        key.into(),
        Trailer::new(SeqNo(seqno), Kind::Put),
        value.into(),
    )
}

fn tombstone(start: &[u8], end: &[u8], seqno: u64) -> RangeTombstone {
    RangeTombstone {
        start: start.to_vec(),
        end: end.to_vec(),
        seqno: SeqNo(seqno),
    }
}

fn compressions() -> Vec<Compression> {
    let mut all = vec![Compression::None, Compression::Lz4];
    if cfg!(feature = "zstd") {
        all.push(Compression::Zstd);
    }
    all
}

fn get(table: &Table, key: &[u8], snapshot: u64) -> Result<Option<(Trailer, Vec<u8>)>> {
    let found = table.get(key, key_hash(key), SeqNo(snapshot))?;
    Ok(found.map(|entry| (entry.trailer, entry.value.to_vec())))
}

/// Many keys together are found as one by one, at each of the snapshots, whether their blocks are
/// cached or not.
fn check_many(table: &Table, keys: &[&[u8]], snapshots: &[u64]) {
    let mut keys = keys.to_vec();
    keys.sort_unstable();
    for _ in 0..2 {
        for &snapshot in snapshots {
            let wanted = keys.iter().map(|key| Wanted::new(key, key_hash(key)));
            let mut wanted: Vec<_> = wanted.collect();
            table.get_many(&mut wanted, SeqNo(snapshot)).unwrap();
            for w in wanted {
                let found = w.found.map(|entry| (entry.trailer, entry.value.to_vec()));
                assert_eq!(found, get(table, w.key, snapshot).unwrap(), "{:?}", w.key);
            }
        }
    }
}

/// All entries, forward.
fn dump(iter: &mut TableIter) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    iter.seek_to_first()?;
    while iter.valid() {
        items.push((iter.key().to_vec(), iter.trailer(), iter.value().to_vec()));
        iter.next()?;
    }
    Ok(items)
}

/// All entries, backward, in ascending order.
fn dump_backward(iter: &mut TableIter) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    iter.seek_to_last()?;
    while iter.valid() {
        items.push((iter.key().to_vec(), iter.trailer(), iter.value().to_vec()));
        iter.prev()?;
    }
    items.reverse();
    Ok(items)
}

fn keys() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(255), any::<u8>()], 0..5),
        3 => "user/[a-d]{0,5}".prop_map(String::into_bytes),
        3 => (0_u32..300).prop_map(|n| format!("key{n:08}").into_bytes()),
        1 => (100_usize..400, any::<u8>()).prop_map(|(n, end)| [vec![b'k'; n], vec![end]].concat()),
    ]
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let value = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..30),
        2 => (0_usize..300, any::<u8>()).prop_map(|(n, b)| vec![b; n]),
        1 => Just(Vec::new()),
    ];
    let item = (keys(), 1_u64..60, 0_u8..5, value).prop_map(|(key, seqno, kind, value)| {
        (
            key,
            Trailer::new(SeqNo(seqno), Kind::from_u8(kind).unwrap()),
            value,
        )
    });
    proptest::collection::vec(item, 0..250).prop_map(sorted)
}

fn options() -> impl Strategy<Value = TableOptions> {
    (
        prop_oneof![Just(64_usize), 64_usize..500, Just(4096)],
        prop_oneof![Just(1_usize), 1_usize..40],
        prop_oneof![Just(0_u32), Just(10), 1_u32..20],
        0..compressions().len(),
    )
        .prop_map(
            |(block_bytes, restart_interval, filter_bits_per_key, compression)| TableOptions {
                block_bytes,
                restart_interval,
                filter_bits_per_key,
                compression: compressions()[compression],
            },
        )
}

/// A move of an iterator.
#[derive(Clone, Debug)]
enum Move {
    First,
    Last,
    Seek(Vec<u8>),
    SeekBefore(Vec<u8>),
    Next,
    Prev,
    NextKey,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        1 => Just(Move::First),
        1 => Just(Move::Last),
        3 => keys().prop_map(Move::Seek),
        3 => keys().prop_map(Move::SeekBefore),
        8 => Just(Move::Next),
        8 => Just(Move::Prev),
        4 => Just(Move::NextKey),
    ];
    proptest::collection::vec(one, 0..120)
}

/// Where the move leads in a sorted list; `None` is nowhere.
fn model_move(items: &[Item], at: Option<usize>, step: &Move) -> Option<usize> {
    let to = match step {
        Move::First => Some(0),
        Move::Last => items.len().checked_sub(1),
        Move::Seek(key) => Some(items.partition_point(|item| item.0 < *key)),
        Move::SeekBefore(key) => items.partition_point(|item| item.0 < *key).checked_sub(1),
        Move::Next => at.map(|i| i + 1),
        Move::Prev => at.and_then(|i| i.checked_sub(1)),
        Move::NextKey => at.map(|i| items.partition_point(|item| item.0 <= items[i].0)),
    };
    to.filter(|&i| i < items.len())
}

fn apply(iter: &mut TableIter, step: &Move) -> Result<()> {
    match step {
        Move::First => iter.seek_to_first(),
        Move::Last => iter.seek_to_last(),
        Move::Seek(key) => iter.seek(key),
        Move::SeekBefore(key) => iter.seek_before(key),
        Move::Next if iter.valid() => iter.next(),
        Move::Prev if iter.valid() => iter.prev(),
        Move::NextKey if iter.valid() => iter.next_key(),
        Move::Next | Move::Prev | Move::NextKey => Ok(()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_table_is_the_sorted_list(
        items in items(),
        options in options(),
        moves in moves(),
        probes in proptest::collection::vec((keys(), 0_u64..70), 30),
        cache_bytes in prop_oneof![Just(0_u64), Just(20_000), Just(1 << 20)],
        fill_cache: bool,
        readahead_bytes in prop_oneof![Just(0_usize), 1_usize..5000],
        seek_bytes in prop_oneof![Just(0_usize), 1_usize..3000],
    ) {
        let (bytes, summary) = write(&items, &[], options);
        let table = open(&bytes, cache_bytes).unwrap();
        prop_assert_eq!(summary.file_bytes, bytes.len() as u64);
        prop_assert_eq!(summary.entry_count, items.len() as u64);
        prop_assert_eq!(table.properties().entry_count(), items.len() as u64);
        if let (Some(first), Some(last)) = (items.first(), items.last()) {
            prop_assert_eq!((&summary.smallest, &summary.largest), (&first.0, &last.0));
            prop_assert_eq!(table.smallest(), &first.0[..]);
            prop_assert_eq!(table.largest(), (&last.0[..], false));
        }
        let mut told = 0;
        let check = table.verify(&mut |n| told += n).unwrap();
        prop_assert_eq!((check.entries, check.bytes), (items.len() as u64, bytes.len() as u64));
        prop_assert_eq!(told, check.bytes);

        let keys = items.iter().map(|item| &item.0[..]);
        let keys: Vec<&[u8]> = keys.chain(probes.iter().map(|(key, _)| &key[..])).collect();
        check_many(&table, &keys, &[1, 20, 60, SeqNo::MAX.0]);
        let around = items.iter().flat_map(|item| {
            let seqno = item.1.seqno().0;
            [(item.0.clone(), seqno), (item.0.clone(), seqno - 1), (item.0.clone(), SeqNo::MAX.0)]
        });
        for (key, snapshot) in around.chain(probes) {
            let expected = items.iter().find(|i| i.0 == key && i.1.seqno().0 <= snapshot);
            let expected = expected.map(|i| (i.1, i.2.clone()));
            prop_assert_eq!(get(&table, &key, snapshot).unwrap(), expected);
        }

        let mut iter = table.iter(ReadOptions { fill_cache, readahead_bytes, seek_bytes });
        prop_assert!(!iter.valid());
        prop_assert_eq!(&dump(&mut iter).unwrap(), &items);
        prop_assert_eq!(&dump_backward(&mut iter).unwrap(), &items);
        let mut iter = table.iter(ReadOptions { fill_cache, readahead_bytes, seek_bytes });
        let mut at = None;
        for step in &moves {
            apply(&mut iter, step).unwrap();
            at = model_move(&items, at, step);
            match at {
                Some(i) => {
                    prop_assert!(iter.valid(), "{:?}", step);
                    let (key, trailer, value) = &items[i];
                    prop_assert_eq!((iter.key(), iter.trailer(), iter.value()), (&key[..], *trailer, &value[..]), "{:?}", step);
                }
                None => prop_assert!(!iter.valid(), "{:?}", step),
            }
        }

        let mut offset = 0;
        for (key, ..) in &items {
            let next = table.approximate_offset_of(key);
            prop_assert!(next >= offset && next <= summary.data_bytes);
            offset = next;
        }
    }

    #[test]
    fn random_files_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), magic: bool) {
        let mut bytes = bytes;
        if magic {
            bytes.extend(crate::names::SSTABLE_MAGIC);
        }
        prop_assert!(open(&bytes, 0).is_err());
    }
}

#[test]
fn every_interval_and_compression() {
    let items: Vec<Item> = (0..500)
        .map(|i| {
            put(
                format!("k{:05}", i / 3 * 7),
                1000 - i,
                vec![b'v'; i as usize % 50],
            )
        })
        .collect();
    for compression in compressions() {
        for restart_interval in (1..=20).chain([1000]) {
            let options = TableOptions {
                block_bytes: 700,
                restart_interval,
                filter_bits_per_key: 10,
                compression,
            };
            let (bytes, _) = write(&items, &[], options);
            let table = open(&bytes, 1 << 20).unwrap();
            assert_eq!(
                dump(&mut table.iter(ReadOptions::default())).unwrap(),
                items
            );
            assert_eq!(
                dump_backward(&mut table.iter(ReadOptions::default())).unwrap(),
                items
            );
            for (key, trailer, value) in &items {
                let found = get(&table, key, trailer.seqno().0).unwrap();
                assert_eq!(found, Some((*trailer, value.clone())));
            }
            table.verify(&mut |_| {}).unwrap();
        }
    }
    #[cfg(not(feature = "zstd"))]
    {
        let options = TableOptions {
            compression: Compression::Zstd,
            ..TableOptions::default()
        };
        let refused = TableWriter::new(file_of(Vec::new()), options);
        assert!(matches!(refused, Err(Error::UnsupportedFormat(_))));
    }
}

#[test]
fn versions_of_one_key_cross_blocks() {
    let mut items = vec![put("a", 1, "x"), put("m", 9999, "newest")];
    items.extend((0..2000).map(|i| put("m", 5000 - i, format!("value {i}"))));
    items.extend([put("n", 3, "y"), put("n", 2, "z"), put("o", 1, "")]);
    let items = sorted(items);
    let options = TableOptions {
        block_bytes: 256,
        ..TableOptions::default()
    };
    let (bytes, _) = write(&items, &[], options);
    let table = open(&bytes, 1 << 20).unwrap();
    assert_eq!(table.properties().key_count, 4);
    assert!(table.properties().block_count > 50);
    for snapshot in [
        0, 1, 3000, 3001, 3002, 4000, 4999, 5000, 5001, 9998, 9999, 10_000,
    ] {
        let expected = items
            .iter()
            .find(|i| i.0 == b"m" && i.1.seqno().0 <= snapshot);
        assert_eq!(
            get(&table, b"m", snapshot).unwrap(),
            expected.map(|i| (i.1, i.2.clone()))
        );
    }
    let snapshots = [0, 1, 3001, 4000, 4999, 5001, 9999];
    for cache_bytes in [0, 1 << 20] {
        let table = open(&bytes, cache_bytes).unwrap();
        let keys: [&[u8]; 8] = [b"", b"a", b"b", b"m", b"m", b"n", b"o", b"p"];
        check_many(&table, &keys, &snapshots);
    }
    let mut iter = table.iter(ReadOptions::default());
    iter.seek(b"m").unwrap();
    assert_eq!(iter.trailer().seqno(), SeqNo(9999));
    iter.next_key().unwrap();
    assert_eq!((iter.key(), iter.value()), (&b"n"[..], &b"y"[..]));
    iter.next_key().unwrap();
    assert_eq!(iter.key(), b"o");
    iter.next_key().unwrap();
    assert!(!iter.valid());
    iter.seek_before(b"n").unwrap();
    assert_eq!(
        (iter.key(), iter.trailer().seqno()),
        (&b"m"[..], SeqNo(3001))
    );
    iter.seek_before(b"m").unwrap();
    assert_eq!(iter.key(), b"a");
    iter.seek_before(b"a").unwrap();
    assert!(!iter.valid());
    table.verify(&mut |_| {}).unwrap();
}

#[test]
fn a_version_among_many_is_found_by_few_reads() {
    let items: Vec<Item> = (0..20_000).map(|i| put("k", 30_000 - i, "value")).collect();
    let options = TableOptions {
        block_bytes: 256,
        ..TableOptions::default()
    };
    let (bytes, _) = write(&items, &[], options);
    let table = open(&bytes, 64 << 20).unwrap();
    assert!(table.properties().block_count > 500);
    for seqno in [10_001, 10_002, 20_000, 29_999, 30_000] {
        table.cache().clear();
        let before = table.cache().stats().misses;
        assert_eq!(
            get(&table, b"k", seqno).unwrap().unwrap().0.seqno(),
            SeqNo(seqno)
        );
        // Two searches by halves, if the version is the first of its block.
        assert!(table.cache().stats().misses - before < 24);
    }
    for seqno in 10_001..10_400 {
        assert_eq!(
            get(&table, b"k", seqno).unwrap().unwrap().0.seqno(),
            SeqNo(seqno)
        );
    }
    assert!(get(&table, b"k", 10_000).unwrap().is_none());
}

#[test]
fn two_entries_of_one_operation_are_damage() {
    // The writer trusts its caller here: no entry but the second differs from a sound table.
    let second = (b"k".to_vec(), Trailer::new(SeqNo(7), Kind::Delete), vec![]);
    let (bytes, _) = write(&[put("k", 7, "v"), second], &[], TableOptions::default());
    let table = open(&bytes, 0).unwrap();
    let error = table.verify(&mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("not in order"), "{error}");
}

#[test]
fn threads_share_a_table_and_a_small_cache() {
    let items: Vec<Item> = (0..5000)
        .map(|i| put(format!("key{i:06}"), 5, format!("value {i}")))
        .collect();
    let (bytes, _) = write(&items, &[], TableOptions::default());
    let table = open(&bytes, 100_000).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (table, items) = (&table, &items);
            scope.spawn(move || {
                for i in 0..3000 {
                    let n =
                        key_hash(&[&thread.to_le_bytes()[..], &[i as u8, (i >> 8) as u8]].concat());
                    let (key, trailer, value) = &items[n as usize % items.len()];
                    assert_eq!(get(table, key, 9).unwrap(), Some((*trailer, value.clone())));
                }
            });
        }
        scope.spawn(|| {
            assert_eq!(
                dump(&mut table.iter(ReadOptions::default())).unwrap(),
                items
            )
        });
    });
    assert!(table.cache().stats().bytes <= 100_000);
}

#[test]
fn golden_bytes_of_range_tombstones() {
    let bytes = crate::sstable::writer::encode_range_tombstones(&[
        tombstone(b"a", b"bc", 7),
        tombstone(b"", b"x", 0x0102),
    ]);
    let expected: &[u8] = b"\x02\x01a\x02bc\x07\0\0\0\0\0\0\0\x00\x01x\x02\x01\0\0\0\0\0\0";
    assert_eq!(bytes, expected);
}

#[test]
fn golden_file() {
    // The whole of a small table, as it came out when the format was made. If this changes, files
    // written before cannot be read: raise the format version instead.
    let items = small_items();
    let options = TableOptions {
        block_bytes: 300,
        restart_interval: 4,
        filter_bits_per_key: 10,
        compression: Compression::None,
    };
    let (mut bytes, _) = write(&items, &[tombstone(b"key1", b"key2", 50)], options);
    // But for the writer's version, in the properties, which may change.
    let writer = concat!("firn-engine ", env!("CARGO_PKG_VERSION")).as_bytes();
    let at = bytes
        .windows(writer.len())
        .position(|w| w == writer)
        .unwrap();
    bytes.truncate(at - 2);
    let sum = firn_io::checksum::crc32c(&bytes);
    assert_eq!((bytes.len(), sum), (GOLDEN_LEN, GOLDEN_CRC));
}

const GOLDEN_LEN: usize = 937;
const GOLDEN_CRC: u32 = 1_525_731_808;

#[test]
fn only_range_tombstones() {
    let tombstones = [
        tombstone(b"d", b"f", 7),
        tombstone(b"b", b"e", 4),
        tombstone(b"x", b"x", 5),
    ];
    let (bytes, summary) = write(&[], &tombstones, TableOptions::default());
    assert_eq!((summary.entry_count, summary.range_tombstone_count), (0, 2));
    assert_eq!(
        (&summary.smallest[..], &summary.largest[..]),
        (&b"b"[..], &b"f"[..])
    );
    assert!(summary.largest_exclusive);
    assert_eq!((summary.min_seqno, summary.max_seqno), (SeqNo(4), SeqNo(7)));
    let table = open(&bytes, 0).unwrap();
    let expected = RangeTombstones::from_unfragmented(tombstones.to_vec());
    assert_eq!(**table.range_tombstones(), expected);
    assert_eq!(
        table.range_tombstones().covering(b"d", SeqNo::MAX),
        Some(SeqNo(7))
    );
    assert_eq!(table.largest(), (&b"f"[..], true));
    assert_eq!(get(&table, b"d", 10).unwrap(), None);
    let mut iter = table.iter(ReadOptions::default());
    for step in [
        Move::First,
        Move::Last,
        Move::Seek(vec![]),
        Move::SeekBefore(b"z".to_vec()),
    ] {
        apply(&mut iter, &step).unwrap();
        assert!(!iter.valid());
    }
    assert_eq!(table.verify(&mut |_| {}).unwrap().entries, 0);

    // Nothing at all.
    let (bytes, summary) = write(&[], &[], TableOptions::default());
    assert_eq!((summary.entry_count, summary.min_seqno), (0, SeqNo::ZERO));
    let table = open(&bytes, 0).unwrap();
    assert_eq!(get(&table, b"", 10).unwrap(), None);
    table.verify(&mut |_| {}).unwrap();
}

#[test]
fn bounds_cover_entries_and_tombstones() {
    let items = [put("c", 5, ""), put("k", 6, "")];
    let (_, s) = write(&items, &[tombstone(b"a", b"b", 9)], TableOptions::default());
    assert_eq!(
        (&s.smallest[..], &s.largest[..], s.largest_exclusive),
        (&b"a"[..], &b"k"[..], false)
    );
    assert_eq!((s.min_seqno, s.max_seqno), (SeqNo(5), SeqNo(9)));
    let (_, s) = write(&items, &[tombstone(b"d", b"k", 1)], TableOptions::default());
    assert_eq!(
        (&s.smallest[..], &s.largest[..], s.largest_exclusive),
        (&b"c"[..], &b"k"[..], false)
    );
    let (_, s) = write(
        &items,
        &[tombstone(b"d", b"k\0", 1)],
        TableOptions::default(),
    );
    assert_eq!((&s.largest[..], s.largest_exclusive), (&b"k\0"[..], true));
}

#[test]
fn long_keys_and_values() {
    let long = |end: u8| [vec![b'k'; 65_535], vec![end]].concat();
    let noise: Vec<u8> = (0..5_000_000_u64)
        .map(|i| key_hash(&(i / 8).to_le_bytes()) as u8)
        .collect();
    let items = sorted(vec![
        put("", 4, ""),
        put("", 3, "the empty key"),
        put("a", 9, vec![b'z'; 3 << 20]),
        put("b", 9, noise),
        put("c", 9, "small"),
        put(long(1), 5, "one"),
        put(long(2), 6, vec![7; 70_000]),
        put(long(2), 5, "two"),
        put(long(3), 6, ""),
    ]);
    for compression in compressions() {
        let options = TableOptions {
            compression,
            ..TableOptions::default()
        };
        let (bytes, _) = write(&items, &[tombstone(b"", &long(9), 3)], options);
        let table = open(&bytes, 32 << 20).unwrap();
        for (key, trailer, value) in &items {
            let found = get(&table, key, trailer.seqno().0).unwrap();
            assert!(found == Some((*trailer, value.clone())));
        }
        for options in [ReadOptions::default(), ReadOptions::sequential(1 << 20)] {
            assert!(dump(&mut table.iter(options)).unwrap() == items);
            assert!(dump_backward(&mut table.iter(options)).unwrap() == items);
        }
        table.verify(&mut |_| {}).unwrap();
    }
}

#[test]
fn the_writer_refuses_disorder() {
    let mut writer = TableWriter::new(file_of(Vec::new()), TableOptions::default()).unwrap();
    let at = |seqno| Trailer::new(SeqNo(seqno), Kind::Put);
    writer.add(b"b", at(5), b"").unwrap();
    assert!(writer.add(b"a", at(5), b"").is_err());
    assert!(writer.add(b"", at(5), b"").is_err());
    assert!(writer.add(b"b", at(5), b"").is_err());
    assert!(writer.add(b"b", at(6), b"").is_err());
    writer.add(b"b", at(4), b"").unwrap();
    writer.add(b"ba", at(9), b"").unwrap();
    assert!(writer.add(b"b", at(1), b"").is_err());
    assert!(writer.add(b"c", Trailer(0xff), b"").is_err());
    let long = writer.add(&vec![b'x'; 65_537], at(9), b"");
    assert!(matches!(
        long,
        Err(Error::LimitExceeded {
            limit: "key_bytes",
            ..
        })
    ));
    writer.add_blob_ref(FileId(3), 100);
    writer.add_blob_ref(FileId(3), 50);
    assert!(writer.estimated_bytes() > 0 && !writer.is_empty());
    let summary = writer.finish().unwrap();
    assert_eq!(summary.entry_count, 3);
    assert_eq!(summary.blob_refs, [(FileId(3), 2, 150)]);
}

fn small_items() -> Vec<Item> {
    let mut items: Vec<Item> = (0..40)
        .map(|i| put(format!("key{i:03}"), 100 + i, vec![b'v'; 10]))
        .collect();
    items.push(put("key007", 3, "old"));
    items.push((
        b"key009".to_vec(),
        Trailer::new(SeqNo(7), Kind::Delete),
        Vec::new(),
    ));
    sorted(items)
}

/// Reads everything that a damaged table still gives; the first error, or whether an answer was
/// wrong.
fn use_damaged(bytes: &[u8], items: &[Item], tombstones: &RangeTombstones) -> Result<()> {
    let table = open(bytes, 1 << 20)?;
    assert_eq!(**table.range_tombstones(), *tombstones);
    for (key, trailer, value) in items {
        if let Ok(found) = get(&table, key, trailer.seqno().0) {
            assert_eq!(found, Some((*trailer, value.clone())));
        }
        if let Ok(found) = get(&table, &[key, &b"x"[..]].concat(), 999) {
            assert_eq!(found, None);
        }
    }
    for options in [ReadOptions::default(), ReadOptions::sequential(4096)] {
        assert_eq!(dump(&mut table.iter(options))?, items);
        assert_eq!(dump_backward(&mut table.iter(options))?, items);
    }
    let check = table.verify(&mut |_| {})?;
    assert_eq!(check.entries, items.len() as u64);
    Ok(())
}

fn assert_names_place(error: &Error) {
    match error {
        Error::Corruption { path, offset, .. } => {
            assert_eq!(path, &PathBuf::from("/t/000007.sst"));
            assert!(*offset < 4000, "{error}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let items = small_items();
    let tombstones = [tombstone(b"key1", b"key2", 50)];
    let expected = RangeTombstones::from_unfragmented(tombstones.to_vec());
    for compression in compressions() {
        let options = TableOptions {
            block_bytes: 300,
            compression,
            ..TableOptions::default()
        };
        let (good, _) = write(&items, &tombstones, options);
        use_damaged(&good, &items, &expected).unwrap();
        for at in 0..good.len() {
            for mask in [1 << (at % 8), 0xff] {
                let mut bytes = good.clone();
                bytes[at] ^= mask;
                // Every byte is under a checksum: there is no padding.
                assert_names_place(&use_damaged(&bytes, &items, &expected).unwrap_err());
            }
        }
    }
}

#[test]
fn every_truncation_is_found() {
    let items = small_items();
    let options = TableOptions {
        block_bytes: 300,
        ..TableOptions::default()
    };
    let (good, _) = write(&items, &[], options);
    for len in 0..good.len() {
        assert_names_place(&open(&good[..len], 0).unwrap_err());
    }
    // A tail of another table.
    for len in 1..good.len() {
        assert!(open(&good[len..], 0).is_err());
    }
    assert!(open(&[&good[..], &good[..]].concat(), 0).is_err());
}

#[test]
fn blocks_in_each_others_place_are_found() {
    let value = |i| firn_io::checksum::xxh3_64(&[i]).to_le_bytes().repeat(10);
    let items: Vec<Item> = (0..20)
        .map(|i| put(format!("key{i:03}"), 5, value(i)))
        .collect();
    let options = TableOptions {
        block_bytes: 64,
        compression: Compression::None,
        ..TableOptions::default()
    };
    let (mut bytes, summary) = write(&items, &[], options);
    // Two entries a block.
    let len = summary.data_bytes as usize / 10;
    assert_eq!(summary.data_bytes, 10 * len as u64);
    let (a, b) = bytes[..2 * len].split_at_mut(len);
    a.swap_with_slice(b);
    let table = open(&bytes, 1 << 20).unwrap();
    assert!(get(&table, b"key001", 9).unwrap_err().is_corruption());
    assert!(get(&table, b"key002", 9).unwrap_err().is_corruption());
    assert!(get(&table, b"key004", 9).unwrap().is_some());
    assert!(table.verify(&mut |_| {}).unwrap_err().is_corruption());
}

#[test]
fn an_iterator_recovers_after_an_error() {
    let items = small_items();
    let options = TableOptions {
        block_bytes: 300,
        ..TableOptions::default()
    };
    let (mut bytes, summary) = write(&items, &[], options);
    bytes[summary.data_bytes as usize / 2] ^= 1;
    let table = open(&bytes, 1 << 20).unwrap();
    for options in [ReadOptions::default(), ReadOptions::sequential(300)] {
        let mut iter = table.iter(options);
        iter.seek_to_first().unwrap();
        let error = loop {
            if let Err(error) = iter.next() {
                break error;
            }
            assert!(iter.valid());
        };
        assert_names_place(&error);
        assert!(!iter.valid());
        iter.seek_to_first().unwrap();
        assert_eq!(iter.key(), b"key000");
        iter.seek_to_last().unwrap();
        assert_eq!(iter.key(), b"key039");
    }
}

#[test]
fn scans_fill_the_cache_and_compactions_do_not() {
    let items: Vec<Item> = (0..3000)
        .map(|i| put(format!("key{i:06}"), 5, vec![1; 100]))
        .collect();
    let (bytes, _) = write(&items, &[], TableOptions::default());
    let table = open(&bytes, 8 << 20).unwrap();
    dump(&mut table.iter(ReadOptions::sequential(64 << 10))).unwrap();
    let before = table.cache().stats();
    assert_eq!((before.blocks, before.misses), (0, 0));
    dump(&mut table.iter(ReadOptions::default())).unwrap();
    assert_eq!(table.cache().stats().blocks, table.properties().block_count);
    dump_backward(&mut table.iter(ReadOptions::default())).unwrap();
    assert_eq!(table.cache().stats().hits, table.properties().block_count);
    assert!(table.pinned_bytes() > 3000 * 10 / 8);
}
