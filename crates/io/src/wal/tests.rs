//! The log as a whole: what survives what.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::ManualClock;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::exec::{Executor, Stepper, ThreadPool};
use crate::fs::Fs;
use crate::fs::fault::{Fault, FaultFs, OpKind, Rule, Verdict};
use crate::fs::mem::{CrashMode, MemFs};
use crate::fs::trace::{Detail, TraceFs};
use crate::rng::{Rng, SeededEntropy};
use crate::wal::reader::{scan, verify};
use crate::wal::record::Lsn;
use crate::wal::segment::SEGMENT_HEADER_BYTES;
use crate::wal::writer::{Entry, Log, LogOptions};

const DIR: &str = "/db/wal";

struct World {
    env: Env,
    stepper: Arc<Stepper>,
    clock: Arc<ManualClock>,
}

fn world(fs: impl Fs + 'static, seed: u64) -> World {
    let clock = Arc::new(ManualClock::new(0));
    let stepper = Arc::new(Stepper::new(seed, clock.clone()));
    let env = Env {
        fs: Arc::new(fs),
        clock: clock.clone(),
        entropy: Arc::new(SeededEntropy::new(seed)),
        exec: stepper.clone(),
    };
    World {
        env,
        stepper,
        clock,
    }
}

fn mem() -> MemFs {
    let fs = MemFs::new();
    fs.create_dir_all(Path::new("/db")).unwrap();
    fs.sync_dir(Path::new("/")).unwrap();
    fs
}

fn small(mapped: bool) -> LogOptions {
    LogOptions {
        segment_bytes: 4096,
        mapped,
        spare_segments: 2,
        spare_segments_synced: 2,
        ..LogOptions::default()
    }
}

type Records = Vec<(Lsn, Lsn, u8, Vec<u8>)>;

fn open(env: &Env, options: LogOptions) -> Result<(Log, Records)> {
    let mut records = Records::new();
    let (log, _) = Log::open(env.clone(), Path::new(DIR), options, |record| {
        records.push((
            record.start,
            record.end,
            record.kind,
            record.payload.to_vec(),
        ));
        Ok::<_, Error>(())
    })?;
    Ok((log, records))
}

fn read(fs: &MemFs) -> Result<Records> {
    let mut records = Records::new();
    scan(fs, Path::new(DIR), None, |record| {
        records.push((
            record.start,
            record.end,
            record.kind,
            record.payload.to_vec(),
        ));
        Ok::<_, Error>(())
    })?;
    Ok(records)
}

fn payloads(records: &Records) -> Vec<Vec<u8>> {
    records.iter().map(|record| record.3.clone()).collect()
}

fn payload(rng: &mut Rng, i: u64, max: u64) -> Vec<u8> {
    let mut bytes = vec![0; rng.below(max + 1) as usize];
    rng.fill_bytes(&mut bytes);
    bytes.extend_from_slice(&i.to_le_bytes());
    bytes
}

#[test]
fn records_come_back_over_segments_and_openings() {
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        let fs = mem();
        let mut all: Records = Vec::new();
        for round in 0..5 {
            let w = world(fs.clone(), seed * 10 + round);
            let (log, found) = open(&w.env, small(rng.chance(0.5))).unwrap();
            assert_eq!(found, all, "seed {seed}");
            for i in 0..rng.below(60) {
                let bytes = payload(&mut rng, i, 700);
                let kind = 1 + rng.below(200) as u8;
                let (a, b) = bytes.split_at(bytes.len() / 2);
                let end = log.append(kind, &[a, b]).unwrap();
                assert_eq!(log.appended(), end);
                all.push((Lsn::ZERO, end, kind, bytes));
                if rng.one_in(7) {
                    w.stepper.run_all();
                }
                if rng.one_in(9) {
                    log.sync_to(end).unwrap();
                    assert_eq!(log.synced(), end);
                }
            }
            if rng.chance(0.5) {
                log.close().unwrap();
                assert!(log.append(1, &[b"late"]).is_err());
            }
            drop(log);
            let now = read(&fs).unwrap();
            for (known, read) in all.iter_mut().zip(&now) {
                known.0 = read.0;
            }
            assert_eq!(now, all);
        }
        assert!(all.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    }
}

#[test]
fn replay_starts_where_it_is_told() {
    let fs = mem();
    let w = world(fs.clone(), 1);
    let (log, _) = open(&w.env, small(true)).unwrap();
    let ends: Vec<_> = (0..40u8)
        .map(|i| log.append(1, &[&[i; 300]]).unwrap())
        .collect();
    log.close().unwrap();
    drop(log);
    for (i, &from) in ends.iter().enumerate() {
        let options = LogOptions {
            from: Some(from),
            ..small(true)
        };
        let disk = fs.fork();
        let (log, found) = open(&world(disk, 2).env, options).unwrap();
        assert_eq!(found.len(), 39 - i);
        assert!(log.appended() >= from);
    }
    // Beyond the end of the log: what is appended now must not be skipped by the next replay.
    let end = ends[39];
    let beyond = Lsn::new(end.segment(), end.offset() + 40);
    let options = LogOptions {
        from: Some(beyond),
        ..small(true)
    };
    let (log, found) = open(&world(fs.clone(), 3).env, options.clone()).unwrap();
    assert!(found.is_empty());
    log.append(1, &[b"new"]).unwrap();
    drop(log);
    let (_, found) = open(&world(fs.clone(), 4).env, options).unwrap();
    assert_eq!(payloads(&found), [b"new".to_vec()]);
    // A missing segment is damage.
    let options = LogOptions {
        from: Some(Lsn::new(1000, 64)),
        ..small(true)
    };
    assert!(
        open(&world(fs, 5).env, options)
            .unwrap_err()
            .is_corruption()
    );
}

#[test]
fn segments_are_recycled_and_their_old_bytes_never_taken() {
    let fs = mem();
    let w = world(fs.clone(), 1);
    let (log, _) = open(&w.env, small(true)).unwrap();
    let mut last = Vec::new();
    for i in 0..500u64 {
        // All frames of one size: an old frame lies wherever a new one could end.
        let bytes = [i.to_le_bytes(), [7; 8]].concat();
        let end = log.append(1, &[&bytes]).unwrap();
        last.push((end, bytes));
        w.stepper.run_all();
        if i % 50 == 0 {
            log.sync_to(end).unwrap();
            log.remove_before(end).unwrap();
            assert!(log.stats().segments <= 2);
        }
        if i % 17 == 0 {
            let found = read(&fs.fork()).unwrap();
            let skip = last.len() - found.len();
            let known = last.iter().skip(skip).map(|entry| entry.1.clone());
            assert_eq!(payloads(&found), known.collect::<Vec<_>>());
        }
    }
    assert!(fs.files().len() <= 8, "{:?}", fs.files());
}

/// What was given up before it was synced need not reach the disk: the files are dropped, but for the
/// reserve, and the log goes on in new ones.
#[test]
fn segments_that_were_never_synced_are_not_used_again() {
    let fs = mem();
    let w = world(fs.clone(), 1);
    let options = LogOptions {
        sync_filled: false,
        ..small(true)
    };
    let (log, _) = open(&w.env, options.clone()).unwrap();
    let mut end = Lsn::ZERO;
    for i in 0..2000u64 {
        end = log.append(1, &[&[i as u8; 24]]).unwrap();
        w.stepper.run_all();
    }
    assert_eq!(log.stats().syncs, 0);
    let segments = log.segments();
    assert!(segments.len() > 10, "{segments:?}");
    log.remove_before(end).unwrap();
    assert_eq!(log.segments().len(), 1);
    // The current one, the next one and the reserve.
    assert!(fs.files().len() <= 3, "{:?}", fs.files());

    // After a power loss it goes on at the position where its user wants it to.
    let image = fs.crash(1, CrashMode::DropUnsynced);
    let options = LogOptions {
        from: Some(end),
        whole_from: Some(end),
        ..options
    };
    let (log, found) = open(&world(image.clone(), 2).env, options.clone()).unwrap();
    assert_eq!(found.len(), 0);
    let next = log.append(1, &[b"next"]).unwrap();
    assert!(next > end);
    log.sync_to(next).unwrap();
    drop(log);
    let (_, found) = open(&world(image, 3).env, options).unwrap();
    assert_eq!(payloads(&found), [b"next".to_vec()]);
}

/// A hole before the position where recovery begins, of which the user of the log says that it may be there,
/// is filled when the log is opened: no later recovery takes it for damage, wherever that one begins.
#[test]
fn a_hole_that_a_power_loss_may_have_left_is_filled() {
    for (crash, holes) in [(false, 1), (false, 0), (true, 1)] {
        let fs = mem();
        let w = world(fs.clone(), 1);
        let options = LogOptions {
            segment_bytes: 4 << 20,
            ..small(true)
        };
        let (log, _) = open(&w.env, options.clone()).unwrap();
        // The first segments are smaller.
        while log.segments().last().unwrap().1 < 4 << 20 {
            log.append(1, &[&[0; 100_000]]).unwrap();
            w.stepper.run_all();
        }
        let mut ends = Vec::new();
        for i in 0..20u8 {
            // Fillers are at most 1 MiB.
            let len = if i == 5 { 1_200_000 } else { 24 };
            ends.push(log.append(1, &[&vec![i; len]]).unwrap());
            w.stepper.run_all();
        }
        drop(log);
        let number = ends[19].segment();
        assert_eq!(ends[2].segment(), number);
        let path = Path::new(DIR).join(format!("{number:016x}.wal"));
        let mut bytes = fs.read_file(&path).unwrap();
        if holes > 0 {
            bytes[ends[3].offset() as usize + 8..ends[8].offset() as usize].fill(0xaa);
        }
        fs.write_file(&path, &bytes).unwrap();
        let options = LogOptions {
            from: Some(ends[10]),
            whole_from: Some(ends[9]),
            ..options
        };
        if crash {
            // Power goes at each step of the filling.
            for steps in 1..12 {
                let disk = fs.fork();
                let faulty = FaultFs::new(Arc::new(disk.clone()), steps);
                faulty.add_rule(
                    Rule::new(Fault::Io)
                        .on(OpKind::Write)
                        .on(OpKind::Sync)
                        .skip(steps),
                );
                let _ = open(&world(faulty, 1).env, options.clone());
                let image = disk.crash(steps, CrashMode::Torn);
                let (_, found) = open(&world(image, 2).env, options.clone()).unwrap();
                assert_eq!(found.len(), 9, "after {steps} steps");
            }
            continue;
        }
        let (log, found) = open(&w.env, options.clone()).unwrap();
        assert_eq!(found.len(), 9);
        let last = log.append(1, &[b"durable"]).unwrap();
        log.sync_to(last).unwrap();
        let stating = log.append(1, &[b"states that"]).unwrap();
        drop(log);
        // Where recovery begins now there is no frame, so that it reads from the first one on.
        let options = LogOptions {
            from: Some(stating),
            whole_from: Some(stating),
            ..options
        };
        let found = read(&fs).unwrap();
        // What was before in other segments is given up; the one that began this one is not.
        assert_eq!(found.len(), 1 + if holes > 0 { 15 } else { 22 });
        let (_, found) = open(&w.env, options).unwrap();
        assert_eq!(found.len(), 0);
    }
}

#[test]
fn more_is_kept_and_zeros_are_written_where_syncs_are_frequent() {
    for (often, spares) in [(false, 1), (true, 3)] {
        let fs = mem();
        let trace = TraceFs::new(Arc::new(fs.clone()), DIR, Detail::Full);
        let w = world(trace.clone(), 1);
        let options = LogOptions {
            segment_bytes: 1 << 20,
            spare_segments: 1,
            spare_segments_synced: 3,
            ..small(true)
        };
        let (log, _) = open(&w.env, options).unwrap();
        w.stepper.run_all();
        trace.take();
        let payload = [7; 4000];
        for i in 0..2000 {
            let end = log.append(1, &[&payload]).unwrap();
            if often && i % 10 == 0 {
                log.sync_to(end).unwrap();
            }
            w.stepper.run_all();
        }
        let made = trace.take();
        assert_eq!(made.contains(".tmp 262144 +"), often, "{made}");
        log.remove_before(log.appended()).unwrap();
        let is_spare = |path: &&std::path::PathBuf| path.extension().is_some_and(|e| e == "spare");
        assert_eq!(fs.files().iter().filter(is_spare).count(), spares);
        // They are files of the log, but no part of what it holds.
        let stats = log.stats();
        assert!(stats.used_bytes <= 1 << 20, "{stats:?}");
        let known = stats.used_bytes + spares as u64 * (1 << 20);
        assert!(stats.disk_bytes >= known, "{stats:?}");
    }
}

#[test]
fn a_log_that_comes_to_be_synced_often_leaves_a_segment_that_was_not_made_for_it() {
    for (every, expected) in [(1, true), (100, false)] {
        let fs = mem();
        let trace = TraceFs::new(Arc::new(fs.clone()), DIR, Detail::Full);
        let w = world(trace.clone(), 1);
        let options = LogOptions {
            segment_bytes: 4 << 20,
            spare_segments_synced: 2,
            ..small(true)
        };
        let (log, _) = open(&w.env, options.clone()).unwrap();
        let payload = [7; 4000];
        let append = |times: usize, every: usize| {
            for i in 1..=times {
                let end = log.append(1, &[&payload]).unwrap();
                if i % every == 0 {
                    log.sync_to(end).unwrap();
                }
                w.stepper.run_all();
            }
            log.appended().segment()
        };
        // Half of a second segment, and the third is ready.
        let before = append(800, usize::MAX);
        assert_eq!(log.segments().len(), 2);
        trace.take();
        let after = append(200, every);
        assert_eq!(after > before, expected);
        assert_eq!(log.segments().len(), if expected { 3 } else { 2 });
        let made = trace.take();
        assert_eq!(made.contains(".tmp 1048576 +"), expected, "{made}");
        assert_eq!(read(&fs.fork()).unwrap().len(), 1000);
        if expected {
            // Into one that is written, so it stays there until that is full.
            assert_eq!(append(500, 1), after);
            // What was left early has blocks that were never written: it is no spare for this log.
            trace.take();
            log.remove_before(log.appended()).unwrap();
            append(1500, 1);
            let made = trace.take();
            assert!(made.contains(".tmp 1048576 +"), "{made}");
            drop(log);
            // The segment that a log was opened with is not left early.
            let (log, _) = open(&w.env, options).unwrap();
            let opened = log.appended().segment();
            for _ in 0..100 {
                log.sync_to(log.append(1, &[b"one"]).unwrap()).unwrap();
                w.stepper.run_all();
            }
            assert_eq!(log.appended().segment(), opened);
        }
    }
}

/// A log of a few segments, synced in the middle and at its end, with some unsynced records behind;
/// its directory's files and its records.
fn sample(fs: &MemFs, marked: bool) -> Vec<Vec<u8>> {
    let w = world(fs.clone(), 9);
    let options = LogOptions {
        segment_bytes: 4096,
        mapped: false,
        ..LogOptions::default()
    };
    let (log, _) = open(&w.env, options).unwrap();
    let mut all = Vec::new();
    for i in 0..30u8 {
        let bytes = vec![i; usize::from(i) * 17 % 301];
        let end = log.append(1, &[&bytes]).unwrap();
        all.push(bytes);
        if i % 4 == 0 {
            log.sync_to(end).unwrap();
        }
    }
    if marked {
        log.close().unwrap();
    }
    all
}

fn check_damaged(fs: &MemFs, all: &[Vec<u8>], must_find_all: bool, what: &str) -> bool {
    match read(fs) {
        Ok(found) => {
            let found = payloads(&found);
            assert!(all.starts_with(&found), "{what}: a wrong record");
            assert!(
                !must_find_all || found.len() == all.len(),
                "{what}: records are missing"
            );
            // Recovery sees the same, twice.
            for seed in 0..2 {
                let (log, again) = open(&world(fs.clone(), seed).env, small(true)).unwrap();
                assert_eq!(payloads(&again), found, "{what}");
                log.close().unwrap();
            }
            false
        }
        Err(error) => {
            assert!(
                error.is_corruption() && error.offset.is_some(),
                "{what}: {error}"
            );
            assert!(
                open(&world(fs.clone(), 1).env, small(true)).is_err(),
                "{what}"
            );
            let report = verify(fs, Path::new(DIR), None, |_| Ok::<_, Error>(())).unwrap();
            assert!(!report.problems.is_empty(), "{what}");
            true
        }
    }
}

#[test]
fn every_flipped_bit_is_an_error_or_harmless() {
    for marked in [true, false] {
        let fs = mem();
        let all = sample(&fs, marked);
        let mut errors = 0;
        for path in fs.files() {
            if path.extension().is_none_or(|extension| extension != "wal") {
                continue;
            }
            let len = fs.read_file(&path).unwrap().len() as u64;
            for offset in 0..len {
                let disk = fs.fork();
                disk.flip_bit(&path, offset, (offset % 8) as u8).unwrap();
                let what = format!("{} {offset}", path.display());
                errors += u64::from(check_damaged(&disk, &all, marked, &what));
            }
        }
        assert!(errors > 4000, "{errors}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    let fs = mem();
    let all = sample(&fs, true);
    for path in fs.files() {
        if path.extension().is_none_or(|extension| extension != "wal") {
            continue;
        }
        let bytes = fs.read_file(&path).unwrap();
        for len in 0..bytes.len() {
            let disk = fs.fork();
            disk.write_file(&path, &bytes[..len]).unwrap();
            assert!(check_damaged(
                &disk,
                &all,
                true,
                &format!("{} {len}", path.display())
            ));
        }
        let disk = fs.fork();
        disk.remove_file(&path).unwrap();
        let is_first = path.ends_with("0000000000000001.wal");
        if !is_first {
            assert!(check_damaged(&disk, &all, true, "missing"));
        }
    }
}

#[test]
fn zeroed_ranges_are_found() {
    let fs = mem();
    let all = sample(&fs, true);
    let mut rng = Rng::new(1);
    for round in 0..300 {
        let files = fs.files();
        let path = &files[rng.index(files.len())];
        let mut bytes = fs.read_file(path).unwrap();
        let start = rng.index(bytes.len());
        let end = (start + 1 + rng.index(600)).min(bytes.len());
        bytes[start..end].fill(0);
        let disk = fs.fork();
        disk.write_file(path, &bytes).unwrap();
        // Only a hole that swallows the last batch together with its marker goes unseen.
        check_damaged(&disk, &all, false, &format!("round {round}"));
    }
}

#[test]
fn verify_reports_all_damage_and_goes_on() {
    let fs = mem();
    let all = sample(&fs, true);
    let records = read(&fs).unwrap();
    for index in [3, 10, 20] {
        let start = records[index].0;
        let path = format!("{DIR}/{:016x}.wal", start.segment());
        fs.flip_bit(path, u64::from(start.offset()), 1).unwrap();
    }
    let mut found = Vec::new();
    let report = verify(&fs, Path::new(DIR), None, |record| {
        found.push(record.payload.to_vec());
        Ok::<_, Error>(())
    });
    assert_eq!(report.unwrap().problems.len(), 3);
    assert_eq!(found.len(), all.len() - 3);
    assert!(read(&fs).is_err());
}

#[test]
fn power_loss_keeps_what_was_synced_and_invents_nothing() {
    for seed in 0..400u64 {
        let mut rng = Rng::new(seed);
        let mut fs = mem();
        let mut all: Vec<Vec<u8>> = Vec::new();
        let mut synced;
        let mut first = Lsn::ZERO;
        for round in 0..4 {
            let w = world(fs.clone(), seed * 31 + round);
            let mapped = rng.chance(0.5);
            let options = LogOptions {
                from: Some(first),
                spare_segments: 1 + rng.index(3),
                ..small(mapped)
            };
            let (log, found) = open(&w.env, options).unwrap_or_else(|error| {
                panic!("seed {seed} round {round}: {error}");
            });
            let kept = all.len() - found.len();
            assert_eq!(payloads(&found), all[kept..], "seed {seed} round {round}");
            synced = all.len();
            for i in 0..rng.below(80) {
                let max = if rng.one_in(30) { 9000 } else { 500 };
                let bytes = payload(&mut rng, i, max);
                log.append(1, &[&bytes]).unwrap();
                all.push(bytes);
                if rng.one_in(5) {
                    w.env.exec.run_one();
                    w.clock.advance(Duration::from_millis(300));
                }
                if rng.one_in(6) {
                    log.sync_to(log.appended()).unwrap();
                    synced = all.len();
                }
                if rng.one_in(40) {
                    first = log.appended();
                    log.sync_to(first).unwrap();
                    synced = all.len();
                    log.remove_before(first).unwrap();
                }
            }
            if rng.one_in(8) {
                log.close().unwrap();
                synced = all.len();
            }
            let mode = match rng.below(8) {
                0 => CrashMode::DropUnsynced,
                1 => CrashMode::KeepAll,
                _ => CrashMode::Torn,
            };
            let crashed = fs.crash(seed + round, mode);
            drop(log);
            let reopen = |disk: &MemFs| {
                let options = LogOptions {
                    from: Some(first),
                    ..small(true)
                };
                let (log, found) = open(&world(disk.clone(), 77).env, options).unwrap();
                (log, payloads(&found))
            };
            // How many records lie before `first` and are not replayed.
            let base = all.len() - reopen(&fs.fork()).1.len();
            let disk = crashed.fork();
            let (log, found) = reopen(&disk);
            let end = base + found.len();
            assert!(
                end >= synced,
                "seed {seed} round {round}: a synced record is lost"
            );
            assert_eq!(all[base..end], found, "seed {seed} round {round}");
            // The next recovery agrees, even if power is lost again before anything is synced.
            log.append(1, &[b"later"]).unwrap();
            let (_, mut again) = reopen(&disk.crash(seed, CrashMode::Torn));
            if again.last().is_some_and(|last| last == b"later") {
                again.pop();
            }
            assert_eq!(
                again, found,
                "seed {seed} round {round}: the second recovery disagrees"
            );
            all.truncate(end);
            fs = crashed;
        }
    }
}

/// At each operation on the disk: the disk after a power loss just before it, how many records were
/// synced then, and where replay starts, with the number of records before.
type Image = (MemFs, usize, Lsn, usize);

#[test]
fn power_may_fail_before_any_operation() {
    for seed in 0..12u64 {
        let mut rng = Rng::new(seed);
        let fs = mem();
        let faulty = FaultFs::new(Arc::new(fs.clone()), seed);
        let images: Arc<Mutex<Vec<Image>>> = Arc::default();
        let known = Arc::new(Mutex::new((0, Lsn::ZERO, 0)));
        let (sink, now) = (Arc::clone(&images), Arc::clone(&known));
        faulty.set_hook(Box::new(move |number, op| {
            if op.kind.is_mutation() {
                let (synced, first, base) = *now.lock();
                let mode = if number % 3 == 0 {
                    CrashMode::DropUnsynced
                } else {
                    CrashMode::Torn
                };
                sink.lock()
                    .push((fs.crash(number, mode), synced, first, base));
            }
            Verdict::Proceed
        }));
        let w = world(faulty, seed);
        let (log, _) = open(&w.env, small(rng.chance(0.5))).unwrap();
        let mut all = Vec::new();
        for i in 0..120 {
            let max = if rng.one_in(40) { 9000 } else { 400 };
            let bytes = payload(&mut rng, i, max);
            all.push(bytes.clone());
            let end = log.append(1, &[&bytes]).unwrap();
            if rng.one_in(4) {
                w.clock.advance(Duration::from_millis(400));
                w.stepper.run_one();
            }
            if rng.one_in(5) {
                log.sync_to(end).unwrap();
                known.lock().0 = all.len();
            }
            if rng.one_in(20) {
                log.sync_to(end).unwrap();
                *known.lock() = (all.len(), end, all.len());
                log.remove_before(end).unwrap();
            }
        }
        log.close().unwrap();
        let images = std::mem::take(&mut *images.lock());
        assert!(images.len() > 150, "{}", images.len());
        for (number, (disk, synced, first, base)) in images.into_iter().enumerate() {
            // Before the first sync of the directory there may be none.
            if disk.exists(Path::new(DIR)).unwrap() || synced > 0 {
                let options = LogOptions {
                    from: Some(first),
                    ..small(true)
                };
                let opened = open(&world(disk, 5).env, options);
                let found = payloads(&opened.unwrap_or_else(|e| panic!("{seed} {number}: {e}")).1);
                assert!(
                    base + found.len() >= synced,
                    "seed {seed} image {number}: lost"
                );
                assert_eq!(
                    found,
                    all[base..base + found.len()],
                    "seed {seed} image {number}"
                );
            }
        }
    }
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    let mut survivors = 0;
    for seed in 0..100u64 {
        let fs = mem();
        let (log, _) = open(&world(fs.clone(), seed).env, small(true)).unwrap();
        // Frames of one size: what is appended after recovery ends where an old frame begins.
        for i in 0..14u8 {
            log.append(1, &[&[i; 500]]).unwrap();
        }
        let disk = fs.crash(seed, CrashMode::Torn);
        let (log, found) = open(&world(disk.clone(), seed + 1).env, small(true)).unwrap();
        let segments = disk
            .files()
            .iter()
            .filter(|path| path.extension().unwrap() == "wal")
            .count();
        assert_eq!(
            segments as u64,
            log.stats().segments,
            "a segment behind the end is left"
        );
        let mut expected = payloads(&found);
        survivors += 14 - found.len();
        for _ in 0..2 {
            log.append(1, &[&[99; 500]]).unwrap();
            expected.push(vec![99; 500]);
            assert_eq!(
                payloads(&read(&disk.fork()).unwrap()),
                expected,
                "seed {seed}"
            );
        }
    }
    assert!(survivors > 0);
}

#[test]
fn a_crash_at_any_operation_of_recovery_changes_nothing() {
    for seed in 0..60u64 {
        let mut rng = Rng::new(seed);
        let fs = mem();
        let w = world(fs.clone(), seed);
        let (log, _) = open(&w.env, small(rng.chance(0.5))).unwrap();
        for i in 0..40 {
            let bytes = payload(&mut rng, i, 500);
            log.append(1, &[&bytes]).unwrap();
            if rng.one_in(12) {
                log.sync_to(log.appended()).unwrap();
            }
        }
        let disk = fs.crash(seed, CrashMode::Torn);
        drop(log);
        let end = Lsn::ZERO;
        let from = if rng.chance(0.3) {
            read(&disk).unwrap().last().map(|last| last.1)
        } else {
            None
        };
        let from = from.map(|last| Lsn(last.0 + 8 * rng.below(5)));
        let from = from.filter(|from| from.offset() <= 4096 - 32).or(Some(end));
        let expected = payloads(&read(&disk).unwrap());
        let images: Arc<Mutex<Vec<MemFs>>> = Arc::default();
        let faulty = FaultFs::new(Arc::new(disk.clone()), seed);
        let (sink, source) = (Arc::clone(&images), disk.clone());
        faulty.set_hook(Box::new(move |number, op| {
            if op.kind.is_mutation() {
                sink.lock().push(source.crash(number, CrashMode::Torn));
            }
            Verdict::Proceed
        }));
        let options = LogOptions {
            from,
            ..small(true)
        };
        drop(open(&world(faulty, seed).env, options).unwrap());
        let images = std::mem::take(&mut *images.lock());
        assert!(!images.is_empty());
        for image in images {
            assert_eq!(payloads(&read(&image).unwrap()), expected, "seed {seed}");
        }
    }
}

#[test]
fn a_failed_sync_poisons_for_good() {
    for (kind, mapped) in [
        (OpKind::Sync, true),
        (OpKind::Sync, false),
        (OpKind::Write, false),
    ] {
        let fs = mem();
        let faulty = FaultFs::new(Arc::new(fs.clone()), 1);
        let w = world(faulty.clone(), 1);
        let (log, _) = open(&w.env, small(mapped)).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&told);
        log.set_sync_listener(Arc::new(move |result| {
            sink.lock().push(result.map_err(|error| error.to_string()));
        }));
        let first = log.append(1, &[b"kept"]).unwrap();
        log.sync_to(first).unwrap();
        faulty.add_rule(Rule::new(Fault::Io).on(kind).path_ends(".wal").times(1));
        let failed = log
            .append(1, &[b"lost"])
            .and_then(|end| log.sync_to(end))
            .unwrap_err();
        assert!(failed.path.ends_with("0000000000000001.wal"), "{failed}");
        faulty.clear_rules();
        let ops = faulty.op_count();
        for _ in 0..3 {
            assert_eq!(
                log.append(1, &[b"x"]).unwrap_err().to_string(),
                failed.to_string()
            );
        }
        if kind == OpKind::Sync {
            let error = log.sync_to(Lsn::MAX).unwrap_err();
            assert_eq!(error.to_string(), failed.to_string());
        }
        assert_eq!(faulty.op_count(), ops, "something was tried again");
        log.request_sync();
        w.stepper.run_all();
        assert_eq!(log.synced(), first);
        let told = told.lock();
        assert_eq!(told[0], Ok(first));
        assert_eq!(told[1], Err(failed.to_string()));
        assert!(log.poison().is_some());
        assert!(log.close().is_err() || kind == OpKind::Write);
        assert_eq!(payloads(&read(&fs).unwrap())[0], b"kept");
    }
}

#[test]
fn a_full_disk_refuses_and_then_goes_on() {
    for mapped in [true, false] {
        let fs = mem();
        let w = world(fs.clone(), 1);
        let (log, _) = open(&w.env, small(mapped)).unwrap();
        w.stepper.run_all();
        fs.set_capacity(fs.used_bytes());
        let mut all = Vec::new();
        let refused = loop {
            let bytes = vec![all.len() as u8; 200];
            match log.append(1, &[&bytes]) {
                Ok(_) => all.push(bytes),
                Err(error) => break error,
            }
            w.stepper.run_all();
        };
        assert!(refused.is_out_of_space(), "{refused}");
        log.sync_to(log.appended()).unwrap();
        assert!(log.append(1, &[&[0; 200]]).unwrap_err().is_out_of_space());
        // The reserve is for those who ask for it, also once it is in use.
        let entry = Entry {
            kind: 2,
            parts: &[b"delete"],
        };
        let before = log.appended();
        all.push(b"delete".to_vec());
        let end = log
            .append_many(
                &[Entry {
                    kind: 2,
                    parts: &[b"delete"],
                }],
                true,
            )
            .unwrap();
        assert!(end.segment() > before.segment() || log.append(1, &[&[0; 3000]]).is_err());
        for _ in 0..5 {
            log.append_many(&[entry], true).unwrap();
            all.push(b"delete".to_vec());
            w.stepper.run_all();
        }
        assert!(log.append(1, &[&[0; 3900]]).unwrap_err().is_out_of_space());
        fs.set_capacity(1 << 30);
        for i in 0..50u8 {
            log.append(1, &[&[i; 200]]).unwrap();
            all.push(vec![i; 200]);
        }
        log.close().unwrap();
        assert_eq!(payloads(&read(&fs).unwrap()), all);
    }
}

#[test]
fn recovery_needs_no_space() {
    for seed in 0..30u64 {
        let fs = mem();
        let (log, _) = open(&world(fs.clone(), seed).env, small(true)).unwrap();
        for i in 0..30u8 {
            log.append(1, &[&[i; 500]]).unwrap();
        }
        let disk = fs.crash(seed, CrashMode::Torn);
        let expected = payloads(&read(&disk).unwrap());
        disk.set_capacity(0);
        let (log, found) = open(&world(disk, seed).env, small(true)).unwrap();
        assert_eq!(payloads(&found), expected);
        log.close().unwrap();
    }
}

#[test]
fn a_failed_preparation_poisons_only_if_a_sync_failed() {
    let cases = [
        (OpKind::Create, false),
        (OpKind::Allocate, false),
        (OpKind::Rename, false),
    ];
    for (kind, poisons) in cases
        .into_iter()
        .chain([(OpKind::Sync, true), (OpKind::SyncDir, true)])
    {
        let fs = mem();
        let faulty = FaultFs::new(Arc::new(fs.clone()), 1);
        let w = world(faulty.clone(), 1);
        let (log, _) = open(&w.env, small(true)).unwrap();
        w.stepper.run_all();
        for i in 0..7u8 {
            log.append(1, &[&[i; 500]]).unwrap();
        }
        faulty.add_rule(Rule::new(Fault::Io).on(kind));
        assert!(log.append(1, &[&[7; 500]]).is_err());
        faulty.clear_rules();
        assert_eq!(log.append(1, &[&[7; 500]]).is_err(), poisons, "{kind:?}");
        assert_eq!(log.poison().is_some(), poisons);
        assert_eq!(read(&fs).unwrap().len(), if poisons { 7 } else { 8 });
    }
}

#[test]
fn a_record_larger_than_a_segment_gets_one_of_its_own() {
    for mapped in [true, false] {
        let fs = mem();
        let w = world(fs.clone(), 1);
        let (log, _) = open(&w.env, small(mapped)).unwrap();
        let mut all = Vec::new();
        for (i, len) in [10, 100_000, 3000, 3_000_000, 5000, 10]
            .into_iter()
            .enumerate()
        {
            let bytes = vec![i as u8 + 1; len];
            log.append(1, &[&bytes]).unwrap();
            all.push(bytes);
            w.stepper.run_all();
        }
        assert_eq!(payloads(&read(&fs).unwrap()), all);
        log.close().unwrap();
        drop(log);
        let (log, found) = open(&w.env, small(mapped)).unwrap();
        assert_eq!(payloads(&found), all);
        assert!(log.append(0, &[b""]).is_err());
        assert!(log.append(240, &[b""]).is_err());
        log.append(1, &[]).unwrap();
    }
}

#[test]
fn a_marker_is_left_when_the_log_falls_idle() {
    let fs = mem();
    let w = world(fs.clone(), 1);
    let (log, _) = open(&w.env, small(true)).unwrap();
    let end = log.append(1, &[b"record"]).unwrap();
    log.sync_to(end).unwrap();
    w.stepper.run_all();
    assert_eq!(log.appended(), end);
    w.clock.advance(Duration::from_secs(1));
    w.stepper.run_all();
    assert!(log.synced() > end);
    let marked = log.synced();
    w.clock.advance(Duration::from_secs(100));
    w.stepper.run_all();
    assert_eq!(log.appended(), marked);
    assert_eq!(w.stepper.pending(), 0);
    fs.flip_bit(format!("{DIR}/0000000000000001.wal"), 64 + 20, 0)
        .unwrap();
    assert!(read(&fs).unwrap_err().is_corruption());
}

#[test]
fn a_marker_that_speaks_for_a_part_only_is_followed_by_another() {
    let fs = mem();
    let w = world(fs.clone(), 1);
    let (log, _) = open(&w.env, small(true)).unwrap();
    let end = log.append(1, &[b"eight by"]).unwrap();
    log.sync_to(end).unwrap();
    log.append(1, &[b"unsynced"]).unwrap();
    log.leave_marker().unwrap();
    let first = log.appended();
    w.stepper.run_all();
    assert_eq!(log.synced(), first);
    w.clock.advance(Duration::from_secs(1));
    w.stepper.run_all();
    assert!(log.appended() > first);
    let second = 64 + 24;
    fs.flip_bit(format!("{DIR}/0000000000000001.wal"), second + 20, 0)
        .unwrap();
    assert!(read(&fs).unwrap_err().is_corruption());
}

#[test]
fn a_background_sync_is_one_at_a_time() {
    let fs = mem();
    let w = world(fs, 1);
    // No segment is to be prepared meanwhile.
    let options = LogOptions {
        segment_bytes: 1 << 20,
        ..small(true)
    };
    let (log, _) = open(&w.env, options).unwrap();
    w.stepper.run_all();
    let told = Arc::new(AtomicU64::new(0));
    let sink = Arc::clone(&told);
    log.set_sync_listener(Arc::new(move |result| {
        sink.store(result.unwrap().0, Ordering::SeqCst);
    }));
    for _ in 0..10 {
        log.append(1, &[b"x"]).unwrap();
        log.request_sync();
    }
    assert_eq!(w.stepper.run_all(), 1);
    assert_eq!(log.synced(), log.appended());
    assert_eq!(told.load(Ordering::SeqCst), log.appended().0);
    log.append(1, &[b"x"]).unwrap();
    log.request_sync();
    w.stepper.run_all();
    assert_eq!(log.synced(), log.appended());
    assert_eq!(log.stats().syncs, 2);
    assert_eq!(log.stats().unsynced_bytes, 0);
}

#[test]
fn many_threads_share_syncs() {
    let fs = mem();
    let faulty = FaultFs::new(Arc::new(fs.clone()), 1);
    let mut env = world(faulty.clone(), 1).env;
    env.exec = Arc::new(ThreadPool::new(2));
    let options = LogOptions {
        segment_bytes: 16 << 10,
        ..LogOptions::default()
    };
    let (log, _) = open(&env, options).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let log = &log;
            scope.spawn(move || {
                for i in 0..200u64 {
                    let end = log.append(1 + thread, &[&i.to_le_bytes()]).unwrap();
                    if i % 3 == 0 {
                        log.request_sync();
                    } else {
                        log.sync_to(end).unwrap();
                        assert!(log.synced() >= end);
                    }
                    if i % 50 == 49 {
                        log.remove_before(Lsn::new(2, 0)).unwrap();
                    }
                }
            });
        }
    });
    // One fails while the others wait: all must learn of it.
    faulty.add_rule(Rule::new(Fault::Io).on(OpKind::Sync).path_ends(".wal"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let result = log.append(1, &[b"lost"]).and_then(|end| log.sync_to(end));
                assert!(result.is_err());
            });
        }
    });
    let before = log.synced();
    drop(log);
    let disk = fs.crash(1, CrashMode::Torn);
    let found = read(&disk).unwrap();
    assert!(found.last().unwrap().1 >= before || before.offset() == 64);
    for thread in 0..8u8 {
        let of_thread = found.iter().filter(|record| record.2 == 1 + thread);
        let numbers: Vec<_> = of_thread.map(|record| record.3.clone()).collect();
        assert!(
            numbers
                .windows(2)
                .all(|pair| pair[0] < pair[1] || pair[1] == b"lost")
        );
    }
}

#[test]
fn a_real_disk_with_real_threads() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("wal");
    let mut all = Vec::new();
    for mapped in [true, false, true] {
        let env = Env::os(2);
        let options = LogOptions {
            segment_bytes: 64 << 10,
            mapped,
            ..LogOptions::default()
        };
        let mut found = Vec::new();
        let (log, report) = Log::open(env, &dir, options, |record| {
            found.push(record.payload.to_vec());
            Ok::<_, Error>(())
        })
        .unwrap();
        assert_eq!(found, all);
        assert_eq!(report.end, log.appended());
        for i in 0..1500u32 {
            let bytes = i.to_le_bytes().repeat(30);
            log.append(1, &[&bytes]).unwrap();
            all.push(bytes);
        }
        // Dropped without a close, as if the process had been killed: nothing is lost.
    }
    let report = verify(&*Env::os(1).fs, &dir, None, |_| Ok::<_, Error>(())).unwrap();
    assert_eq!(report.records, all.len() as u64);
    assert!(report.problems.is_empty());
}

#[test]
fn file_operations_are_in_order() {
    let trace = TraceFs::new(Arc::new(mem()), DIR, Detail::Folded);
    let w = world(trace.clone(), 1);
    let (log, _) = open(&w.env, small(true)).unwrap();
    w.stepper.run_all();
    trace.note("# append, sync");
    let end = log.append(1, &[&[1; 1000]]).unwrap();
    log.sync_to(end).unwrap();
    trace.note("# append over the half, prepare");
    log.append(1, &[&[1; 1500]]).unwrap();
    w.stepper.run_all();
    trace.note("# append into the next segment, sync");
    let end = log.append(1, &[&[1; 1600]]).unwrap();
    log.sync_to(end).unwrap();
    trace.note("# remove");
    log.remove_before(end).unwrap();
    trace.note("# close");
    log.close().unwrap();
    drop(log);
    trace.note("# open");
    drop(open(&w.env, small(true)).unwrap());
    let golden = include_str!("golden_order.txt");
    let lines = trace.take();
    if std::env::var_os("UPDATE").is_some() {
        #[allow(
            clippy::disallowed_methods,
            reason = "a test re-records its golden file"
        )]
        std::fs::write(
            concat!(env!("CARGO_MANIFEST_DIR"), "/src/wal/golden_order.txt"),
            &lines,
        )
        .unwrap();
    } else {
        assert_eq!(lines, golden);
    }
}

#[test]
fn a_mapping_is_made_ready_only_for_records_that_are_stored_through_it() {
    for (record, ready) in [(100, true), (16 << 10, false)] {
        let trace = TraceFs::new(Arc::new(mem()), DIR, Detail::Folded);
        let w = world(trace.clone(), 1);
        let options = LogOptions {
            segment_bytes: 64 << 10,
            ..small(true)
        };
        let (log, _) = open(&w.env, options).unwrap();
        for _ in 0..(1 << 20) / record {
            log.append(1, &[&vec![1; record]]).unwrap();
            w.stepper.run_all();
        }
        let lines = trace.take();
        assert_eq!(lines.contains("map-prepare"), ready, "{record}: {lines}");
        let segments = lines.matches(".wal\n").count();
        assert!(segments >= 10, "{segments}");
    }
}

#[test]
fn a_sync_is_started_where_blocks_were_written_and_promises_nothing() {
    for synced in [true, false] {
        let trace = TraceFs::new(Arc::new(mem()), DIR, Detail::Full);
        let w = world(trace.clone(), 1);
        let options = LogOptions {
            segment_bytes: 8 << 20,
            ..small(true)
        };
        let (log, _) = open(&w.env, options).unwrap();
        // Beyond the first segment, which is written before.
        while log.appended().segment() == 1 {
            let end = log.append(1, &[&[7; 5000]]).unwrap();
            w.stepper.run_all();
            if synced {
                log.sync_to(end).unwrap();
            }
        }
        let segment = log.appended().segment();
        let file = format!("{segment:016x}.wal");
        trace.take();
        let from = log.appended();
        log.start_sync(from);
        log.start_sync(Lsn::MAX);
        assert!(!trace.take().contains("start-writing"), "there is nothing");
        let end = log.append(1, &[&[7; 10_000]]).unwrap();
        trace.take();
        log.start_sync(from);
        // It began in the segment before: what of it is in this one.
        log.start_sync(Lsn::new(1, 100));
        let expected = [from.offset(), SEGMENT_HEADER_BYTES as u32].map(|start| {
            let len = end.offset() - start;
            format!("start-writing {file} {start} +{len}\n")
        });
        let expected = if synced {
            expected.concat()
        } else {
            String::new()
        };
        assert_eq!(trace.take(), expected);
        assert!(log.synced() < end);
        // What is very long is started in part.
        log.append(1, &[&vec![7; 3 << 20]]).unwrap();
        trace.take();
        log.start_sync(end);
        let lines = trace.take();
        assert_eq!(
            lines.contains(&format!("{} +1048576\n", end.offset())),
            synced,
            "{lines}"
        );
    }
}

#[test]
fn space_that_is_not_there_when_a_segment_is_overwritten_poisons() {
    let faults = FaultFs::new(Arc::new(mem()), 1);
    let w = world(faults.clone(), 1);
    let (log, _) = open(&w.env, small(true)).unwrap();
    let mut end = log.appended();
    while end.segment() < 4 {
        end = log.append(1, &[&[7; 100]]).unwrap();
        log.sync_to(end).unwrap();
        w.stepper.run_all();
    }
    let rule = Rule::new(Fault::NoSpace)
        .on(OpKind::Write)
        .path_ends(".wal");
    faults.add_rule(rule.times(1));
    let error = log.append(1, &[&[7; 100]]).unwrap_err();
    assert!(error.is_out_of_space(), "{error}");
    assert!(log.poison().is_some(), "part of it may be there");
    assert!(log.append(1, &[&[7; 100]]).is_err());
}
