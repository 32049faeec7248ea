//! Measures the log: buffered appends of one thread, and synced appends of 1 and 16 threads.
//!
//! `cargo run --release -p firn-io --example wal_append [directory]`

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "it measures and prints"
)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use firn_io::wal::{Log, LogOptions};
use firn_io::{Env, Error, Result};

fn open(dir: &Path, mapped: bool) -> Result<Log> {
    let options = LogOptions {
        mapped,
        ..LogOptions::default()
    };
    Ok(Log::open(Env::os(2), dir, options, |_| Ok::<_, Error>(()))?.0)
}

fn buffered(dir: &Path, mapped: bool, len: usize, count: u32) -> Result<()> {
    let log = open(dir, mapped)?;
    let payload = vec![7; len];
    let mut rates = Vec::new();
    for _ in 0..5 {
        let begin = Instant::now();
        for _ in 0..count {
            log.append(1, &[&payload])?;
        }
        rates.push(f64::from(count) / begin.elapsed().as_secs_f64());
        log.sync_to(log.appended())?;
        log.remove_before(log.appended())?;
    }
    rates.sort_by(f64::total_cmp);
    println!(
        "buffered, mapped {mapped}, {len} B: median {:.2} M/s, best {:.2} M/s",
        rates[2] / 1e6,
        rates[4] / 1e6
    );
    log.close()
}

fn synced(dir: &Path, threads: u32, duration: Duration) -> Result<()> {
    let log = open(dir, true)?;
    let before = log.stats().syncs;
    let begin = Instant::now();
    let total = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut done = 0u64;
                    while begin.elapsed() < duration {
                        let result = log.append(1, &[&[7; 132]]).and_then(|end| log.sync_to(end));
                        if result.is_err() {
                            break;
                        }
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or(0))
            .sum::<u64>()
    });
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "synced, {threads} threads: {:.0} appends/s, {:.0} syncs/s",
        total as f64 / seconds,
        (log.stats().syncs - before) as f64 / seconds
    );
    log.close()
}

fn replay(dir: &Path) -> Result<()> {
    let begin = Instant::now();
    let mut bytes = 0u64;
    let report = firn_io::wal::reader::scan(&*Env::os(1).fs, dir, None, |record| {
        bytes += record.payload.len() as u64;
        Ok::<_, Error>(())
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "replay: {} records, {:.2} GB/s of frames",
        report.records,
        report.bytes as f64 / seconds / 1e9
    );
    Ok(())
}

fn main() -> Result<()> {
    let base = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = base.join(format!("firn-wal-append-{}", std::process::id()));
    for mapped in [true, false] {
        for len in [24, 132] {
            let count = if mapped { 2_000_000 } else { 200_000 };
            buffered(&dir.join(format!("{mapped}-{len}")), mapped, len, count)?;
        }
    }
    for threads in [1, 16] {
        synced(
            &dir.join(format!("synced-{threads}")),
            threads,
            Duration::from_secs(2),
        )?;
    }
    let log = open(&dir.join("replay"), true)?;
    for _ in 0..2_000_000 {
        log.append(1, &[&[7; 132]])?;
    }
    log.close()?;
    drop(log);
    replay(&dir.join("replay"))?;
    replay(&dir.join("replay"))?;
    std::fs::remove_dir_all(&dir).map_err(|error| Error::new("remove", &dir, error))
}
