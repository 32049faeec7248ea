//! Drives a mix: threads, the schedule, histograms.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use firn_client::blocking::Client;
use firn_engine::{Db, Namespace, ScanOptions, WriteBatch, WriteOptions};
use hdrhistogram::Histogram;

use crate::bench::report::{self, Outcome};
use crate::bench::workload::{Chooser, Permutation, Random, Values, write_key, write_missing_key};
use crate::exit::{Exit, Failure, Result};
use crate::flags::{BenchArgs, Distribution, Durability, Mix};
use crate::host::{self, TempDir};
use crate::output::note;
use crate::store::{self, Access, Batch, Op, Range, Store};

/// `firn bench`
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    const LEAST_KEY: usize = 8;
    if args.key_size < LEAST_KEY || args.key_size > firn_engine::options::MAX_KEY_BYTES {
        return Err(Failure::usage(
            "--key-size must be from 8 bytes to the longest key",
        ));
    }
    if args.value_size > firn_engine::options::MAX_VALUE_BYTES {
        return Err(Failure::usage("--value-size is larger than a value may be"));
    }
    let temporary = match (&args.server, &args.data_dir) {
        (None, None) => Some(TempDir::new("firn-bench")?),
        _ => None,
    };
    let dir = args
        .data_dir
        .as_deref()
        .or(temporary.as_ref().map(TempDir::path));
    let target = match (&args.server, dir) {
        (None, Some(dir)) => {
            let db = store::open_db(dir, args.memory, Access::Create)?;
            let ns = db.namespace_or_create(&args.ns)?;
            Target(Store::Embedded { db, ns })
        }
        (server, _) => {
            let client = Client::connect(server.as_deref().unwrap_or(store::DEFAULT_SERVER))?;
            if args.ns != store::DEFAULT_NAMESPACE {
                client.create_namespace(&args.ns)?;
            }
            Target(Store::Remote(client.namespace(&args.ns)))
        }
    };
    let mut outcomes = Vec::new();
    let first_reads = args.mix.first().is_some_and(|mix| !fills(*mix));
    if first_reads && !args.no_load && target.is_empty()? {
        note(format_args!(
            "loading {} keys",
            crate::text::count(args.keys)
        ));
        target.load(args)?;
    }
    let values = Values::new(args.value_size, args.entropy, args.seed);
    for &mix in &args.mix {
        outcomes.push(Run::new(args, mix, &target, &values).go()?);
        if fills(mix) {
            target.settle(args.compact)?;
        }
    }
    report::print(args, dir, &outcomes)?;
    target.0.close()
}

/// Whether a mix makes the keys that others read.
fn fills(mix: Mix) -> bool {
    matches!(mix, Mix::Fillseq | Mix::Fillrandom)
}

/// The store that is measured.
struct Target(Store);

impl Target {
    fn is_empty(&self) -> Result<bool> {
        let mut empty = true;
        let first = Range {
            keys_only: true,
            limit: Some(1),
            ..Range::default()
        };
        self.0.scan(&first, &mut |_, _, _, _| {
            empty = false;
            Ok(false)
        })?;
        Ok(empty)
    }

    /// Every key once, in random order, in large batches; durable at the end.
    fn load(&self, args: &BenchArgs) -> Result<()> {
        const BATCH: u64 = 200;
        let values = Values::new(args.value_size, args.entropy, args.seed);
        let permutation = Permutation::new(args.keys, args.seed);
        let mut random = Random::new(args.seed);
        let mut key = vec![0; args.key_size];
        for first in (0..args.keys).step_by(BATCH as usize) {
            let mut batch = Batch::default();
            for i in first..args.keys.min(first + BATCH) {
                write_key(&mut key, permutation.at(i));
                let value = values.next(&mut random).to_vec();
                batch.ops.push(Op::Put {
                    key: key.clone(),
                    value,
                    expiry: None,
                });
            }
            let last = first + BATCH >= args.keys;
            self.0.write(
                batch,
                if last {
                    Durability::Sync
                } else {
                    Durability::Buffered
                },
            )?;
        }
        self.settle(args.compact)
    }

    /// Lets background work end, so that the next mix is measured alone.
    fn settle(&self, compact: bool) -> Result<()> {
        if let Store::Embedded { db, ns } = &self.0 {
            if compact {
                db.flush()?;
                db.compact_range(ns, None, None)?;
            }
            db.wait_idle()?;
        }
        Ok(())
    }
}

/// One mix while it runs. Shared by its threads.
struct Run<'a> {
    args: &'a BenchArgs,
    mix: Mix,
    target: &'a Target,
    values: &'a Values,
    chooser: Chooser,
    permutation: Permutation,
    /// The next operation that nobody has taken.
    issued: AtomicU64,
    /// Keys that exist: inserts make more of them.
    keys: AtomicU64,
    ops: u64,
    started: Instant,
}

/// What a thread counted.
struct Tally {
    latency: Histogram<u64>,
    ops: u64,
    found: u64,
    refused: u64,
    bytes: u64,
    ended: Instant,
}

impl<'a> Run<'a> {
    fn new(args: &'a BenchArgs, mix: Mix, target: &'a Target, values: &'a Values) -> Self {
        let preset = match mix {
            Mix::YcsbA | Mix::YcsbB | Mix::YcsbC | Mix::YcsbE | Mix::YcsbF => Distribution::Zipf,
            Mix::YcsbD => Distribution::Latest,
            _ => Distribution::Uniform,
        };
        let ops = match (args.ops, args.duration) {
            (_, Some(_)) => u64::MAX,
            (Some(ops), None) => ops,
            (None, None) => args.keys,
        };
        Self {
            args,
            mix,
            target,
            values,
            chooser: Chooser::new(args.distribution.unwrap_or(preset), args.keys),
            permutation: Permutation::new(args.keys, args.seed),
            issued: AtomicU64::new(0),
            keys: AtomicU64::new(args.keys),
            ops,
            started: host::now(),
        }
    }

    fn go(mut self) -> Result<Outcome> {
        let before = self.counters();
        self.started = host::now();
        let this = &self;
        let tallies: Vec<Result<Tally>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..this.args.threads)
                .map(|thread| scope.spawn(move || this.thread(thread)))
                .collect();
            threads
                .into_iter()
                .map(|thread| match thread.join() {
                    Ok(tally) => tally,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect()
        });
        let after = self.counters();
        let mut outcome = Outcome::new(self.mix, histogram()?);
        for tally in tallies {
            let tally = tally?;
            outcome
                .latency
                .add(&tally.latency)
                .map_err(|e| Failure::new(Exit::Refused, e.to_string()))?;
            outcome.ops += tally.ops;
            outcome.found += tally.found;
            outcome.refused += tally.refused;
            outcome.bytes += tally.bytes;
            outcome.elapsed = outcome.elapsed.max(tally.ended - self.started);
        }
        outcome.stalled = Duration::from_micros(after.0 - before.0);
        outcome.written_bytes = after.1 - before.1;
        Ok(outcome)
    }

    /// Stall time and bytes written to disk, of an embedded store.
    fn counters(&self) -> (u64, u64) {
        let Store::Embedded { db, .. } = &self.target.0 else {
            return (0, 0);
        };
        let c = db.stats().counters;
        (
            c.write_stall_micros,
            c.log_bytes + c.flush_bytes + c.compaction_write_bytes,
        )
    }

    fn thread(&self, thread: u64) -> Result<Tally> {
        let mut worker = Worker {
            run: self,
            random: Random::new(self.args.seed.wrapping_mul(1_000_003).wrapping_add(thread)),
            key: vec![0; self.args.key_size],
            options: self.args.durability.durability.options(),
        };
        let mut tally = Tally {
            latency: histogram()?,
            ops: 0,
            found: 0,
            refused: 0,
            bytes: 0,
            ended: self.started,
        };
        if matches!(self.mix, Mix::Readseq | Mix::Readreverse) {
            self.sweep(&worker, thread, &mut tally)?;
            return Ok(tally);
        }
        // Reads take numbers by the dozen, so that threads do not fight for the counter; writes
        // take one, so that a sequential fill stays sequential.
        let reads = matches!(
            self.mix,
            Mix::Readrandom | Mix::Readmissing | Mix::Seek | Mix::YcsbC
        );
        let chunk = if reads && self.args.rate.is_none() {
            32
        } else {
            1
        };
        let deadline = self.args.duration.map(|duration| self.started + duration);
        let mut last = host::now();
        'work: loop {
            let first = self.issued.fetch_add(chunk, Ordering::Relaxed);
            for index in first..first.saturating_add(chunk) {
                if index >= self.ops || deadline.is_some_and(|deadline| last >= deadline) {
                    break 'work;
                }
                if let Some(rate) = self.args.rate {
                    let due = Duration::from_secs_f64(index as f64 / rate as f64);
                    last = self.started + due;
                    if deadline.is_some_and(|deadline| last >= deadline) {
                        break 'work;
                    }
                    host::wait_until(last);
                }
                match worker.operation(index, &mut tally) {
                    Ok(()) => tally.ops += 1,
                    Err(failure) if failure.is_refusal() => tally.refused += 1,
                    Err(failure) => return Err(failure),
                }
                let now = host::now();
                tally
                    .latency
                    .saturating_record((now - last).as_nanos() as u64);
                last = now;
            }
        }
        tally.ended = host::now();
        Ok(tally)
    }

    /// Reads a share of all keys in order. One entry takes less time than reading the clock, so
    /// latency is the mean over runs of entries.
    fn sweep(&self, worker: &Worker<'_, '_>, thread: u64, tally: &mut Tally) -> Result<()> {
        const RUN: u64 = 256;
        let share = |part: u64| self.args.keys * part / self.args.threads;
        let (mut start, mut end) = (worker.key.clone(), worker.key.clone());
        write_key(&mut start, share(thread));
        write_key(&mut end, share(thread + 1));
        let mut left = self.ops.div_ceil(self.args.threads);
        let deadline = self.args.duration.map(|duration| self.started + duration);
        let mut last = host::now();
        let range = Range {
            start,
            end: Some(end),
            reverse: self.mix == Mix::Readreverse,
            ..Range::default()
        };
        let mut measured = 0;
        loop {
            let before = tally.ops;
            let mut more = true;
            self.target.0.scan(&range, &mut |key, value, _, _| {
                tally.ops += 1;
                tally.bytes += (key.len() + value.len()) as u64;
                left -= 1;
                if tally.ops - measured == RUN {
                    let now = host::now();
                    let mean = (now - last).as_nanos() as u64 / RUN;
                    tally.latency.saturating_record_n(mean, RUN);
                    (last, measured) = (now, tally.ops);
                    more = deadline.is_none_or(|deadline| now < deadline);
                }
                more &= left > 0;
                Ok(more)
            })?;
            // With a time instead of a number it goes round until the time is over.
            if !more || deadline.is_none() || tally.ops == before {
                break;
            }
        }
        tally.found = tally.ops;
        tally.ended = host::now();
        // The last run, which was cut short.
        let rest = tally.ops - measured;
        if let Some(mean) = ((tally.ended - last).as_nanos() as u64).checked_div(rest) {
            tally.latency.saturating_record_n(mean, rest);
        }
        Ok(())
    }
}

/// One thread of a run.
struct Worker<'r, 'a> {
    run: &'r Run<'a>,
    random: Random,
    key: Vec<u8>,
    options: WriteOptions,
}

/// What an operation of a mix turns out to be.
enum Act {
    Get,
    Put,
    Insert,
    Scan(u64),
    Modify,
}

impl Worker<'_, '_> {
    fn operation(&mut self, index: u64, tally: &mut Tally) -> Result<()> {
        let (args, mix) = (self.run.args, self.run.mix);
        let share = |random: &mut Random, percent, common, rare| {
            if random.below(100) < percent {
                common
            } else {
                rare
            }
        };
        let act = match mix {
            Mix::Fillseq | Mix::Fillrandom => return self.fill(index, tally),
            Mix::Readmissing => return self.miss(tally),
            Mix::Deleterandom => return self.delete(),
            Mix::Overwrite => Act::Put,
            Mix::Readrandom | Mix::YcsbC | Mix::Readseq | Mix::Readreverse => Act::Get,
            Mix::Seek => Act::Scan(args.scan_length),
            Mix::Mixed | Mix::YcsbA => share(&mut self.random, 50, Act::Get, Act::Put),
            Mix::YcsbB => share(&mut self.random, 95, Act::Get, Act::Put),
            Mix::YcsbD => share(&mut self.random, 95, Act::Get, Act::Insert),
            Mix::YcsbE => {
                let entries = 1 + self.random.below(100);
                share(&mut self.random, 95, Act::Scan(entries), Act::Insert)
            }
            Mix::YcsbF => share(&mut self.random, 50, Act::Get, Act::Modify),
        };
        let keys = match act {
            Act::Insert => self.run.keys.fetch_add(1, Ordering::Relaxed),
            _ => {
                let keys = self.run.keys.load(Ordering::Relaxed);
                self.run.chooser.next(&mut self.random, keys)
            }
        };
        write_key(&mut self.key, keys);
        match act {
            Act::Get => self.get(tally),
            Act::Put | Act::Insert => self.put(tally),
            Act::Scan(entries) => self.scan(entries, tally),
            Act::Modify => {
                self.get(tally)?;
                self.put(tally)
            }
        }
    }

    fn get(&mut self, tally: &mut Tally) -> Result<()> {
        let bytes = match &self.run.target.0 {
            Store::Embedded { db, ns } => db.get_in(ns, &self.key)?.map(|value| value.len()),
            Store::Remote(client) => client.get(&self.key)?.map(|entry| entry.value.len()),
        };
        if let Some(bytes) = bytes {
            tally.found += 1;
            tally.bytes += (self.key.len() + bytes) as u64;
        }
        Ok(())
    }

    fn miss(&mut self, tally: &mut Tally) -> Result<()> {
        let number = self.random.below(self.run.args.keys);
        write_missing_key(&mut self.key, self.run.args.key_size, number);
        self.get(tally)
    }

    fn put(&mut self, tally: &mut Tally) -> Result<()> {
        let value = self.run.values.next(&mut self.random);
        tally.bytes += (self.key.len() + value.len()) as u64;
        match &self.run.target.0 {
            Store::Embedded { db, ns } => put_one(db, ns, &self.key, value, &self.options),
            store => {
                let (key, value) = (self.key.clone(), value.to_vec());
                let ops = vec![Op::Put {
                    key,
                    value,
                    expiry: None,
                }];
                let batch = Batch {
                    requires: Vec::new(),
                    ops,
                };
                store
                    .write(batch, self.run.args.durability.durability)
                    .map(drop)
            }
        }
    }

    /// `--batch` puts at once.
    fn fill(&mut self, index: u64, tally: &mut Tally) -> Result<()> {
        let args = self.run.args;
        let mut encoded = WriteBatch::new();
        let mut batch = Batch::default();
        for i in index * args.batch..(index + 1) * args.batch {
            let number = match self.run.mix {
                Mix::Fillseq => i % args.keys,
                _ => self.run.permutation.at(i % args.keys),
            };
            write_key(&mut self.key, number);
            let value = self.run.values.next(&mut self.random);
            tally.bytes += (self.key.len() + value.len()) as u64;
            match &self.run.target.0 {
                Store::Embedded { ns, .. } => {
                    encoded.put(ns, &self.key, value)?;
                }
                Store::Remote(_) => {
                    let (key, value) = (self.key.clone(), value.to_vec());
                    batch.ops.push(Op::Put {
                        key,
                        value,
                        expiry: None,
                    });
                }
            }
        }
        match &self.run.target.0 {
            Store::Embedded { db, .. } => db.write(encoded, &self.options).map(drop)?,
            store => drop(store.write(batch, args.durability.durability)?),
        }
        Ok(())
    }

    fn delete(&mut self) -> Result<()> {
        write_key(
            &mut self.key,
            self.run.chooser.next(&mut self.random, self.run.args.keys),
        );
        match &self.run.target.0 {
            Store::Embedded { db, ns } => {
                let mut batch = WriteBatch::new();
                batch.delete(ns, &self.key)?;
                db.write(batch, &self.options)?;
            }
            store => {
                let ops = vec![Op::Delete {
                    key: self.key.clone(),
                }];
                let batch = Batch {
                    requires: Vec::new(),
                    ops,
                };
                store.write(batch, self.run.args.durability.durability)?;
            }
        }
        Ok(())
    }

    fn scan(&mut self, entries: u64, tally: &mut Tally) -> Result<()> {
        match &self.run.target.0 {
            Store::Embedded { db, ns } => {
                let start = std::ops::Bound::Included(self.key.clone());
                let mut scan = db.scan(
                    ns,
                    ScanOptions {
                        start,
                        ..ScanOptions::all()
                    },
                )?;
                let mut left = entries;
                while left > 0 && scan.next()? {
                    tally.bytes += (scan.key().len() + scan.value().len()) as u64;
                    left -= 1;
                }
                tally.found += u64::from(left < entries);
                Ok(())
            }
            store => {
                let start = self.key.clone();
                let range = Range {
                    start,
                    limit: Some(entries),
                    ..Range::default()
                };
                let mut any = false;
                store.scan(&range, &mut |key, value, _, _| {
                    any = true;
                    tally.bytes += (key.len() + value.len()) as u64;
                    Ok(true)
                })?;
                tally.found += u64::from(any);
                Ok(())
            }
        }
    }
}

fn put_one(
    db: &Db,
    ns: &Namespace,
    key: &[u8],
    value: &[u8],
    options: &WriteOptions,
) -> Result<()> {
    let mut batch = WriteBatch::new();
    batch.put(ns, key, value)?;
    db.write(batch, options)?;
    Ok(())
}

/// Nanoseconds from 1 to a minute, three digits.
fn histogram() -> Result<Histogram<u64>> {
    const LONGEST_NANOS: u64 = 60_000_000_000;
    Histogram::new_with_bounds(1, LONGEST_NANOS, 3)
        .map_err(|error| Failure::new(Exit::Refused, error.to_string()))
}
