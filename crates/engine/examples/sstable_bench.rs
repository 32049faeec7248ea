//! Measures one SSTable: building, point reads, filter misses, scans, seeks.
//!
//! `cargo run --release -p firn-engine --example sstable_bench [entries] [none|lz4|zstd]`
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measuring program"
)]

use std::sync::Arc;

use firn_engine::cache::BlockCache;
use firn_engine::iterator::InternalIterator;
use firn_engine::key::{FileId, Kind, SeqNo, Trailer};
use firn_engine::options::Compression;
use firn_engine::sstable::{ReadOptions, Table, TableOptions, TableWriter, key_hash};
use firn_io::clock::{Clock, SystemClock};
use firn_io::fs::os::OsFs;
use firn_io::fs::{Fs, OpenMode};

fn mix(n: u64) -> u64 {
    firn_io::checksum::xxh3_64(&n.to_le_bytes())
}

fn key(i: u64) -> [u8; 16] {
    let mut key = *b"0000000000000000";
    let mut n = i;
    for digit in key.iter_mut().rev() {
        *digit = b'0' + (n % 10) as u8;
        n /= 10;
    }
    key
}

/// Half noise, half zeros, as the product's benchmark.
fn value(i: u64) -> [u8; 100] {
    let mut value = [0; 100];
    for (n, chunk) in value[..50].chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&mix(i * 8 + n as u64).to_le_bytes()[..chunk.len()]);
    }
    value
}

fn main() {
    let mut args = std::env::args().skip(1);
    let n: u64 = args.next().map_or(1_000_000, |s| s.parse().unwrap());
    let compression = match args.next().as_deref() {
        Some("none") => Compression::None,
        Some("zstd") => Compression::Zstd,
        _ => Compression::Lz4,
    };
    let only = args.next();
    let want = |name: &str| only.as_deref().is_none_or(|o| o == name);
    let clock = SystemClock::new();
    let dir = tempfile::tempdir().unwrap();
    let fs = OsFs::new();
    let file = fs
        .open(&dir.path().join("000001.sst"), OpenMode::CreateNew)
        .unwrap();

    let values: Vec<[u8; 100]> = (0..1000).map(value).collect();
    let started = clock.monotonic();
    let options = TableOptions {
        compression,
        ..TableOptions::default()
    };
    let mut writer = TableWriter::new(file.clone(), options).unwrap();
    for i in 0..n {
        let trailer = Trailer::new(SeqNo(i + 1), Kind::Put);
        writer
            .add(&key(2 * i), trailer, &values[(mix(i) % 1000) as usize])
            .unwrap();
    }
    let before_finish = clock.monotonic();
    let summary = writer.finish().unwrap();
    let took = clock.monotonic() - started;
    let finish = clock.monotonic() - before_finish;
    println!(
        "build        {:8.2} M entries/s, {} MB raw to {} MB, finish {:?}",
        n as f64 / took.as_secs_f64() / 1e6,
        n * 116 / 1_000_000,
        summary.file_bytes / 1_000_000,
        finish,
    );

    let started = clock.monotonic();
    let cache = Arc::new(BlockCache::new(4 << 30));
    let table = Arc::new(Table::open(file, FileId(1), cache.clone()).unwrap());
    println!(
        "open         {:8.2} ms, {} bytes pinned, {} blocks",
        (clock.monotonic() - started).as_secs_f64() * 1e3,
        table.pinned_bytes(),
        table.properties().block_count
    );

    let ops = 1_000_000;
    let report = |name: &str, count: u64, f: &mut dyn FnMut() -> u64| {
        if !want(name) {
            return;
        }
        let started = clock.monotonic();
        let check = f();
        let took = (clock.monotonic() - started).as_secs_f64();
        println!(
            "{name:12} {:8.1} ns, {:6.2} M/s  ({check})",
            took * 1e9 / count as f64,
            count as f64 / took / 1e6
        );
    };
    let get = |seed: u64, miss: u64| {
        let mut found = 0;
        for i in 0..ops {
            let key = key(2 * (mix(i ^ seed) % n) + miss);
            let entry = table.get(&key, key_hash(&key), SeqNo::MAX).unwrap();
            found += entry.map_or(0, |e| u64::from(e.value.len() == 100));
        }
        found
    };
    report("keys only", ops, &mut || {
        (0..ops)
            .map(|i| key_hash(&key(2 * (mix(i ^ 7) % n))) & 1)
            .sum()
    });
    report("get disk", n / 35, &mut || {
        // Mostly first touches: page cache, checksum, decompression, index, insertion.
        let mut found = 0;
        for i in 0..n / 35 {
            let key = key(2 * (i * 35));
            found += u64::from(
                table
                    .get(&key, key_hash(&key), SeqNo::MAX)
                    .unwrap()
                    .is_some(),
            );
        }
        found
    });
    {
        let mut iter = table.iter(ReadOptions::default());
        iter.seek_to_first().unwrap();
        while iter.valid() {
            iter.next().unwrap();
        }
    }
    println!("cache        {:?}", cache.stats());
    report("get cached", ops, &mut || get(1, 0));
    report("get cached", ops, &mut || get(2, 0));
    report("get hot", ops, &mut || {
        let mut found = 0;
        for i in 0..ops {
            let key = key(2 * (mix(i) % 1000));
            found += table
                .get(&key, key_hash(&key), SeqNo::MAX)
                .unwrap()
                .map_or(0, |e| e.value[0] as u64 & 1);
        }
        found
    });
    report("filter miss", ops, &mut || get(3, 1));
    let forward = |options: ReadOptions| {
        let mut iter = table.iter(options);
        iter.seek_to_first().unwrap();
        let mut sum = 0;
        while iter.valid() {
            sum += iter.key().len() as u64 + iter.value().len() as u64;
            iter.next().unwrap();
        }
        sum
    };
    report("forward", n, &mut || forward(ReadOptions::default()));
    report("forward", n, &mut || forward(ReadOptions::default()));
    report("backward", n, &mut || {
        let mut iter = table.iter(ReadOptions::default());
        iter.seek_to_last().unwrap();
        let mut sum = 0;
        while iter.valid() {
            sum += iter.key().len() as u64 + iter.value().len() as u64;
            iter.prev().unwrap();
        }
        sum
    });
    report("next_key", n, &mut || {
        let mut iter = table.iter(ReadOptions::default());
        iter.seek_to_first().unwrap();
        let mut sum = 0;
        while iter.valid() {
            sum += 1;
            iter.next_key().unwrap();
        }
        sum
    });
    report("compaction", n, &mut || {
        forward(ReadOptions::sequential(512 << 10))
    });
    report("seek+10", ops / 4, &mut || {
        let mut iter = table.iter(ReadOptions::default());
        let mut sum = 0;
        for i in 0..ops / 4 {
            iter.seek(&key(2 * (mix(i ^ 99) % n))).unwrap();
            for _ in 0..10 {
                if !iter.valid() {
                    break;
                }
                sum += iter.value().len() as u64;
                iter.next().unwrap();
            }
        }
        sum
    });
    report("verify", n, &mut || {
        table.verify(&mut |_| {}).unwrap().entries
    });
    cache.clear();
    report("scan cold", n, &mut || forward(ReadOptions::default()));
    cache.set_capacity(16 << 20);
    report("get evicting", ops, &mut || get(4, 0));
}
