//! How fast a log is replayed: fills a log that no flush has covered, dies, opens the database again.
//!
//! `cargo run --release --example recovery -- DIR MIB VALUE_BYTES`
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement, not the database"
)]

use std::process::Command;
use std::time::Instant;

use firn_engine::{Db, Options, Result, WriteBatch, WriteOptions};

fn options(log_bytes: u64) -> Options {
    Options {
        memory_bytes: 4 << 30,
        // Nothing is flushed before the process dies.
        memtable_bytes: Some(4 * log_bytes as usize),
        log_segment_bytes: Some(64 << 20),
        log_bytes: Some(8 * log_bytes),
        ..Options::default()
    }
}

fn fill(dir: &str, log_bytes: u64, value_bytes: usize) -> Result<()> {
    let db = Db::open(dir, options(log_bytes))?;
    let ns = db.default_namespace();
    let mut state = 1_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut value = vec![0; value_bytes];
    let mut batch = WriteBatch::new();
    while db.stats().counters.log_bytes < log_bytes {
        for _ in 0..1000 {
            let key = format!("{:016}", random() % 10_000_000_000_000_000);
            value.fill_with(|| random() as u8);
            batch.clear();
            batch.put(&ns, key.as_bytes(), &value)?;
            db.write_reusing(&mut batch, &WriteOptions::buffered())?;
        }
    }
    std::process::abort();
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, mib, value_bytes] = &args[..4] else {
        return Ok(());
    };
    let log_bytes = mib.parse::<u64>().unwrap() << 20;
    let value_bytes = value_bytes.parse().unwrap();
    if args.len() > 4 {
        return fill(dir, log_bytes, value_bytes);
    }
    for _ in 0..3 {
        let _ = std::fs::remove_dir_all(dir);
        let filler = Command::new(&args[0]).args(&args[1..]).arg("fill").output();
        filler.unwrap();
        let started = Instant::now();
        let db = Db::open(dir, options(log_bytes))?;
        let seconds = started.elapsed().as_secs_f64();
        let bytes = log_bytes as f64 / 1e6;
        println!(
            "{bytes:.0} MB of log in {seconds:.3} s: {:.0} MB/s",
            bytes / seconds
        );
        drop(db);
    }
    std::fs::remove_dir_all(dir).unwrap();
    Ok(())
}
