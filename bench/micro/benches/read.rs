//! Gets, and the steps that they and scans are made of.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use firn_engine::cache::{BlockCache, Hint};
use firn_engine::iterator::InternalIterator;
use firn_engine::key::{FileId, Kind, SeqNo, Trailer};
use firn_engine::memtable::Memtable;
use firn_engine::merge::merging::MergingIter;
use firn_engine::sstable::{ReadOptions, Table, TableOptions, TableWriter, key_hash};
use firn_engine::{Db, Durability, Options, WriteBatch, WriteOptions};
use firn_io::fs::os::OsFs;
use firn_io::fs::{Fs, OpenMode};
use hashbrown::{HashMap, HashSet};

const VALUE: [u8; 100] = [7; 100];
/// What fits into a processor's outer cache.
const KEYS: u64 = 100_000;

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn key(x: u64) -> [u8; 16] {
    let mut key = *b"0000000000000000";
    let text = format!("{x:016}");
    key.copy_from_slice(&text.as_bytes()[text.len() - 16..]);
    key
}

/// Keys to ask for, in random order.
fn asked() -> Vec<[u8; 16]> {
    (0..KEYS).map(|i| key(mix(i) % KEYS)).collect()
}

/// Measures `f` with one of `keys` after the other.
fn each<R>(b: &mut criterion::Bencher<'_>, keys: &[[u8; 16]], mut f: impl FnMut(&[u8; 16]) -> R) {
    let mut keys = keys.iter().cycle();
    b.iter(|| f(keys.next().unwrap()));
}

fn memtable_get(c: &mut Criterion) {
    let memtable = Memtable::new();
    let mut tree = BTreeMap::new();
    let mut hash = HashMap::new();
    for i in 0..KEYS {
        let key = key(mix(i) % KEYS);
        memtable.insert(&key, SeqNo(i + 1), Kind::Put, &VALUE);
        tree.insert(key, Box::<[u8]>::from(VALUE));
        hash.insert(key, Box::<[u8]>::from(VALUE));
    }
    let asked = asked();
    let mut group = c.benchmark_group("memtable get");
    group.bench_function("random", |b| {
        each(b, &asked, |key| memtable.get(key, SeqNo::MAX).unwrap().1[0]);
    });
    group.bench_function("floor: BTreeMap", |b| each(b, &asked, |key| tree[key][0]));
    group.bench_function("floor: hashbrown", |b| each(b, &asked, |key| hash[key][0]));
    group.finish();
}

fn hot_get(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(dir.path(), Options::default()).unwrap();
    let ns = db.default_namespace();
    let options = WriteOptions {
        durability: Durability::Buffered,
        max_delay: None,
    };
    let write = |from: u64, to: u64| {
        let mut batch = WriteBatch::new();
        for i in from..to {
            batch.put(&ns, &key(i), &VALUE).unwrap();
        }
        db.write(batch, &options).unwrap();
    };
    write(0, KEYS);
    db.flush().unwrap();
    db.wait_idle().unwrap();
    let (stored, written) = (key(KEYS / 2), key(KEYS));
    write(KEYS, KEYS + 1);
    let mut group = c.benchmark_group("hot get");
    group.bench_function("from the memtable", |b| {
        b.iter(|| db.get(black_box(&written)).unwrap().unwrap()[0]);
    });
    group.bench_function("from a cached block", |b| {
        b.iter(|| db.get(black_box(&stored)).unwrap().unwrap()[0]);
    });
    let hash: HashMap<[u8; 16], Box<[u8]>> =
        (0..KEYS).map(|i| (key(i), Box::from(VALUE))).collect();
    group.bench_function("floor: hashbrown", |b| {
        b.iter(|| hash[black_box(&stored)][0]);
    });
    group.finish();
    db.close().unwrap();
}

/// A table all of whose blocks are in a cache.
fn table_of(dir: &tempfile::TempDir, keys: u64) -> (Arc<Table>, Arc<BlockCache>) {
    let path = dir.path().join(format!("{keys}.sst"));
    let file = OsFs::new().open(&path, OpenMode::CreateNew).unwrap();
    let mut writer = TableWriter::new(file.clone(), TableOptions::default()).unwrap();
    for i in 0..keys {
        let trailer = Trailer::new(SeqNo(i + 1), Kind::Put);
        writer.add(&key(i), trailer, &VALUE).unwrap();
    }
    writer.finish().unwrap();
    let cache = Arc::new(BlockCache::new(1 << 30));
    let table = Arc::new(Table::open(file, FileId(1), Arc::clone(&cache)).unwrap());
    let mut entries = table.iter(ReadOptions::default());
    entries.seek_to_first().unwrap();
    while entries.valid() {
        entries.next().unwrap();
    }
    (table, cache)
}

fn block_seek(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let asked = asked();
    let (table, _) = table_of(&dir, KEYS);
    let one = key(KEYS / 2);
    let sorted: Vec<[u8; 16]> = (0..KEYS).map(key).collect();
    let mut group = c.benchmark_group("block seek");
    let get = |key: &[u8; 16]| table.get_unfiltered(key, SeqNo::MAX).unwrap().is_some();
    group.bench_function("one key", |b| b.iter(|| get(black_box(&one))));
    group.bench_function("random", |b| each(b, &asked, get));
    let find = |key: &[u8; 16]| sorted.binary_search(key).is_ok();
    group.bench_function("floor: binary search, one key", |b| {
        b.iter(|| find(black_box(&one)))
    });
    group.bench_function("floor: binary search, random", |b| each(b, &asked, find));
    group.finish();

    let hashes: HashSet<u64> = (0..KEYS).map(|i| key_hash(&key(i))).collect();
    let there: Vec<u64> = asked.iter().map(|key| key_hash(key)).collect();
    let missing: Vec<u64> = (0..KEYS).map(|i| key_hash(&key(KEYS + i))).collect();
    let mut group = c.benchmark_group("filter probe");
    for (name, asked) in [("there", &there), ("missing", &missing)] {
        group.bench_function(name, |b| {
            let mut hashes = asked.iter().cycle();
            b.iter(|| table.may_contain(*hashes.next().unwrap()));
        });
        group.bench_function(format!("floor: hashbrown, {name}"), |b| {
            let mut asked = asked.iter().cycle();
            b.iter(|| hashes.contains(asked.next().unwrap()));
        });
    }
    group.finish();
}

fn merge_step(c: &mut Criterion) {
    const SOURCES: u64 = 4;
    let memtables: Vec<Arc<Memtable>> = (0..SOURCES).map(|_| Arc::new(Memtable::new())).collect();
    let whole = Arc::new(Memtable::new());
    for i in 0..KEYS {
        let source = &memtables[(mix(i) % SOURCES) as usize];
        source.insert(&key(i), SeqNo(i + 1), Kind::Put, &VALUE);
        whole.insert(&key(i), SeqNo(i + 1), Kind::Put, &VALUE);
    }
    fn step(b: &mut criterion::Bencher<'_>, mut entries: impl InternalIterator) {
        entries.seek_to_first().unwrap();
        b.iter(|| {
            if !entries.valid() {
                entries.seek_to_first().unwrap();
            }
            let first = entries.key()[0];
            entries.next().unwrap();
            first
        });
    }
    let mut group = c.benchmark_group("merge step");
    group.bench_function("four memtables", |b| {
        step(
            b,
            MergingIter::new(memtables.iter().map(Memtable::iter).collect()),
        );
    });
    group.bench_function("floor: one memtable", |b| step(b, whole.iter()));
    group.finish();
}

fn cache_hit(c: &mut Criterion) {
    const BLOCKS: u64 = 10_000;
    const BLOCK_BYTES: u64 = 2048;
    let dir = tempfile::tempdir().unwrap();
    let (_, cache) = table_of(&dir, KEYS);
    let block = cache.get(FileId(1), 0, &Hint::default()).unwrap();
    let hints: Vec<Hint> = (0..BLOCKS).map(|_| Hint::default()).collect();
    let mut hash = HashMap::new();
    for i in 0..BLOCKS {
        let hint = &hints[i as usize];
        cache.insert(FileId(2), i * BLOCK_BYTES, hint, block.clone());
        hash.insert(
            (FileId(2), i * BLOCK_BYTES),
            Arc::<[u8]>::from([7; BLOCK_BYTES as usize]),
        );
    }
    let asked: Vec<u64> = (0..BLOCKS).map(|i| mix(i) % BLOCKS).collect();
    let mut group = c.benchmark_group("cache hit");
    group.bench_function("random", |b| {
        let mut asked = asked.iter().cycle();
        b.iter(|| {
            let i = *asked.next().unwrap();
            let hint = &hints[i as usize];
            cache.get(FileId(2), i * BLOCK_BYTES, hint).unwrap()
        });
    });
    group.bench_function("floor: hashbrown", |b| {
        let mut asked = asked.iter().cycle();
        b.iter(|| Arc::clone(&hash[&(FileId(2), *asked.next().unwrap() * BLOCK_BYTES)]));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20);
    targets = memtable_get, hot_get, block_seek, merge_step, cache_hit
}
criterion_main!(benches);
