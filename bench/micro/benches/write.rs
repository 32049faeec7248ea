//! Appending to the log and inserting into the memtable.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use firn_engine::key::{Kind, SeqNo};
use firn_engine::memtable::Memtable;
use firn_io::wal::{Entry, Log, LogOptions};
use firn_io::{Env, Error};

/// A bijection that scatters.
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

fn log_append(c: &mut Criterion) {
    const RECORD: [u8; 24] = [7; 24];
    /// A frame with its header.
    const FRAME: usize = 40;
    /// Given up so often, as by a flush.
    const KEPT: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions::default();
    let open = Log::open(Env::os(2), dir.path(), options, |_| Ok::<_, Error>(()));
    let log = open.unwrap().0;
    let mut group = c.benchmark_group("log append");
    group.throughput(Throughput::Elements(1));
    let mut appended = 0;
    group.bench_function("24 bytes", |b| {
        b.iter(|| {
            appended += 1;
            if appended % KEPT == 0 {
                log.remove_before(log.appended()).unwrap();
            }
            log.append(1, &[&RECORD]).unwrap()
        });
    });
    group.throughput(Throughput::Elements(100));
    let parts: [&[u8]; 1] = [&RECORD];
    let many: Vec<Entry<'_>> = (0..100)
        .map(|_| Entry {
            kind: 1,
            parts: &parts,
        })
        .collect();
    group.bench_function("100 of 24 bytes", |b| {
        b.iter(|| {
            appended += 100;
            if appended % KEPT < 100 {
                log.remove_before(log.appended()).unwrap();
            }
            log.append_many(&many, false).unwrap()
        });
    });
    log.close().unwrap();
    group.throughput(Throughput::Elements(1));
    let mut ring = vec![0_u8; 8 << 20];
    let mut at = 0;
    let frame = [7_u8; FRAME];
    group.bench_function("floor: copy 40 bytes", |b| {
        b.iter(|| {
            at = if at + 2 * FRAME > ring.len() {
                0
            } else {
                at + FRAME
            };
            ring[at..at + FRAME].copy_from_slice(black_box(&frame));
        });
    });
    group.bench_function("floor: crc32c of 40 bytes", |b| {
        b.iter(|| crc32c::crc32c(black_box(&frame)));
    });
    group.finish();
}

/// Time of `n` inserts into things made by `new`, each of which takes at most `most`.
fn inserts<T>(
    n: u64,
    most: u64,
    new: impl Fn() -> T,
    mut insert: impl FnMut(&mut T, u64),
) -> Duration {
    let mut took = Duration::ZERO;
    let mut left = n;
    while left > 0 {
        let count = left.min(most);
        left -= count;
        let mut into = new();
        let begin = Instant::now();
        for i in 0..count {
            insert(&mut into, i);
        }
        took += begin.elapsed();
    }
    took
}

fn memtable_insert(c: &mut Criterion) {
    const MOST: u64 = 400_000;
    const VALUE: [u8; 100] = [7; 100];
    let mut group = c.benchmark_group("memtable insert");
    group.throughput(Throughput::Elements(1));
    for (name, scatter) in [("ascending", false), ("random", true)] {
        let keys: Vec<[u8; 16]> = (0..MOST)
            .map(|i| {
                key(if scatter {
                    mix(i) % 10_000_000_000_000_000
                } else {
                    i
                })
            })
            .collect();
        group.bench_function(name, |b| {
            b.iter_custom(|n| {
                inserts(n, MOST, Memtable::new, |memtable, i| {
                    memtable.insert(&keys[i as usize], SeqNo(i + 1), Kind::Put, &VALUE);
                })
            });
        });
        group.bench_function(format!("floor: BTreeMap, {name}"), |b| {
            b.iter_custom(|n| {
                inserts(n, MOST, BTreeMap::new, |map, i| {
                    map.insert(keys[i as usize], Box::<[u8]>::from(VALUE));
                })
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .sample_size(20);
    targets = log_append, memtable_insert
}
criterion_main!(benches);
