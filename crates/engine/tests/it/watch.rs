//! The changefeed: exactly the committed batches, in order, from any version on, and a defined end
//! where that cannot be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use firn_engine::watch::Step;
use firn_engine::{
    Change, Db, Error, Options, SeqNo, Watch, WatchBatch, WatchOptions, WriteBatch, WriteOptions,
};
use firn_io::fs::Fs;
use firn_io::fs::fault::{Fault, FaultFs, OpKind, Rule};
use firn_io::fs::mem::{CrashMode, MemFs};
use firn_io::rng::Rng;

use crate::world::{World, tiny};

/// An event with everything in it owned.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    version: u64,
    commit: u64,
    namespace: String,
    change: Owned,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Owned {
    Put(Vec<u8>, Vec<u8>, Option<u64>),
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
    Drop,
}

fn told(batch: &WatchBatch) -> Vec<Told> {
    let own = |change: Change<'_>| match change {
        Change::Put {
            key,
            value,
            expires_at_ms,
        } => Owned::Put(key.to_vec(), value.to_vec(), expires_at_ms),
        Change::Delete { key } => Owned::Delete(key.to_vec()),
        Change::DeleteRange { start, end } => Owned::DeleteRange(start.to_vec(), end.to_vec()),
        Change::DropNamespace => Owned::Drop,
    };
    let mut walk = batch.events();
    while let Some(event) = walk.next() {
        let after = batch.events_at(walk.place()).next();
        assert_eq!(
            after,
            walk.clone().next(),
            "a place leads elsewhere after {event:?}"
        );
    }
    let events = batch.events().map(|event| Told {
        version: event.version.0,
        commit: batch.version().0,
        namespace: event.namespace.to_owned(),
        change: own(event.change),
    });
    events.collect()
}

/// Up to `most` batches, without waiting.
fn take(watch: &mut Watch, most: usize) -> Result<Vec<Told>, Error> {
    let mut out = Vec::new();
    for _ in 0..most {
        match watch.step()? {
            Step::Batch(batch) => out.extend(told(&batch)),
            Step::Passed => {}
            Step::CaughtUp => break,
        }
    }
    Ok(out)
}

fn all(watch: &mut Watch) -> Vec<Told> {
    take(watch, usize::MAX).unwrap()
}

fn from(version: u64) -> WatchOptions {
    WatchOptions::from(SeqNo(version))
}

/// The whole log is kept.
fn kept() -> Options {
    Options {
        changefeed_bytes: 1 << 40,
        changefeed_age: Duration::MAX,
        ..tiny()
    }
}

/// Random writes, and what a watch must tell of them.
struct History {
    db: Db,
    rng: Rng,
    expected: Vec<Told>,
    namespaces: Vec<String>,
}

impl History {
    fn new(db: Db, seed: u64) -> Self {
        Self {
            db,
            rng: Rng::new(seed),
            expected: Vec::new(),
            namespaces: vec!["default".into()],
        }
    }

    fn write(&mut self) {
        let operations = if self.rng.one_in(4) { 9 } else { 1 };
        let mut batch = WriteBatch::new();
        let mut events = Vec::new();
        for _ in 0..operations {
            let name = self.namespaces[self.rng.index(self.namespaces.len())].clone();
            let ns = self.db.namespace(&name).unwrap();
            let key = format!("k{:02}", self.rng.below(50)).into_bytes();
            let change = match self.rng.below(8) {
                0 => {
                    batch.delete(&ns, &key).unwrap();
                    Owned::Delete(key)
                }
                1 => {
                    let end = [&key[..], b"5"].concat();
                    batch.delete_range(&ns, &key, &end).unwrap();
                    Owned::DeleteRange(key, end)
                }
                2 => {
                    batch
                        .put_expiring(&ns, &key, b"soon", 5_000_000_000_000)
                        .unwrap();
                    Owned::Put(key, b"soon".to_vec(), Some(5_000_000_000_000))
                }
                _ => {
                    // Some are for blob files: the changefeed has them whole all the same.
                    let len = if self.rng.one_in(8) {
                        3000
                    } else {
                        self.rng.below(300)
                    };
                    let mut value = vec![0; len as usize];
                    self.rng.fill_bytes(&mut value);
                    batch.put(&ns, &key, &value).unwrap();
                    Owned::Put(key, value, None)
                }
            };
            events.push((name, change));
        }
        let options = if self.rng.one_in(3) {
            WriteOptions::sync()
        } else {
            WriteOptions::buffered()
        };
        let commit = self.db.write(batch, &options).unwrap();
        for (index, (namespace, change)) in events.into_iter().enumerate() {
            self.expected.push(Told {
                version: commit.first.0 + index as u64,
                commit: commit.last.0,
                namespace,
                change,
            });
        }
    }

    fn namespace(&mut self) {
        let name = format!("ns{}", self.rng.below(3));
        if let Some(index) = self.namespaces.iter().position(|known| *known == name) {
            self.db.drop_namespace(&name).unwrap();
            self.namespaces.remove(index);
            let version = self.db.stats().last_seqno.0;
            self.expected.push(Told {
                version,
                commit: version,
                namespace: name,
                change: Owned::Drop,
            });
        } else {
            self.db.create_namespace(&name).unwrap();
            self.namespaces.push(name);
        }
    }

    /// What a watch with these options must tell.
    fn expected(&self, options: &WatchOptions) -> Vec<Told> {
        let first = options.from.unwrap().0;
        let start = options.start.clone().unwrap_or_default();
        let before_end = |key: &[u8]| options.end.as_deref().is_none_or(|end| key < end);
        let wanted = |told: &&Told| {
            let named = options
                .namespace
                .as_ref()
                .is_none_or(|ns| *ns == told.namespace);
            let touched = match &told.change {
                Owned::Put(key, ..) | Owned::Delete(key) => *key >= start && before_end(key),
                Owned::DeleteRange(from, to) => *to > start && before_end(from),
                Owned::Drop => true,
            };
            told.version >= first && named && touched
        };
        self.expected.iter().filter(wanted).cloned().collect()
    }
}

/// Watches from random versions with random filters, read at random times, while namespaces come and
/// go, memtables are flushed and the database is closed and opened.
#[test]
fn a_watch_tells_exactly_what_was_committed() {
    for seed in 0..12 {
        let mut world = World::new(seed);
        let mut history = History::new(world.open(kept()).unwrap(), seed);
        let mut watches: Vec<(WatchOptions, Option<Watch>, Vec<Told>)> = Vec::new();
        for step in 0..400 {
            match history.rng.below(40) {
                0 => history.namespace(),
                1 => history.db.flush().unwrap(),
                2 => history.db.sync().unwrap(),
                3 => {
                    let next = history.db.stats().last_seqno.0 + 1;
                    let mut options = from(1 + history.rng.below(next));
                    match history.rng.below(4) {
                        0 => options.namespace = Some("default".into()),
                        1 => options = options.prefix(b"k1"),
                        2 => {
                            options.start = Some(b"k20".to_vec());
                            options.end = Some(b"k30".to_vec());
                        }
                        _ => {}
                    }
                    let watch = history.db.watch(options.clone()).unwrap();
                    watches.push((options, Some(watch), Vec::new()));
                }
                4 if step % 3 == 0 => {
                    // A restart, clean or not: each watch goes on where it was.
                    let places: Vec<SeqNo> = watches
                        .iter_mut()
                        .map(|(_, watch, _)| watch.take().unwrap().next_version())
                        .collect();
                    if history.rng.one_in(2) {
                        history.db.close().unwrap();
                    } else {
                        history.db.sync().unwrap();
                    }
                    // What a dead process would do at its end must not reach the disk.
                    world = World::on(world.disk.fork(), seed);
                    let db = world.open(kept()).unwrap();
                    for ((options, watch, _), place) in watches.iter_mut().zip(places) {
                        let options = WatchOptions {
                            from: Some(place),
                            ..options.clone()
                        };
                        *watch = Some(db.watch(options).unwrap());
                    }
                    history.db = db;
                }
                5..=9 => {
                    let most = history.rng.index(60);
                    if !watches.is_empty() {
                        let index = history.rng.index(watches.len());
                        let (_, watch, got) = &mut watches[index];
                        got.extend(take(watch.as_mut().unwrap(), most).unwrap());
                    }
                }
                10 => world.step(3),
                _ => history.write(),
            }
        }
        history.db.sync().unwrap();
        assert!(watches.len() > 3);
        for (options, watch, got) in &mut watches {
            got.extend(all(watch.as_mut().unwrap()));
            assert_eq!(*got, history.expected(options), "seed {seed}, {options:?}");
        }
        let everything = from(1);
        let mut watch = history.db.watch(everything.clone()).unwrap();
        assert_eq!(
            all(&mut watch),
            history.expected(&everything),
            "seed {seed}"
        );
    }
}

#[test]
fn from_now_on_means_what_is_committed_later() {
    let world = World::new(1);
    let db = world.open(tiny()).unwrap();
    db.put(b"before", b"").unwrap();
    let mut watch = db.watch(WatchOptions::default()).unwrap();
    assert_eq!(watch.next_version(), SeqNo(2));
    assert!(all(&mut watch).is_empty());
    db.put(b"after", b"1").unwrap();
    let events = all(&mut watch);
    assert_eq!(events.len(), 1);
    assert_eq!(
        events[0].change,
        Owned::Put(b"after".to_vec(), b"1".to_vec(), None)
    );
    let beyond = db.watch(from(4)).unwrap_err();
    assert!(
        beyond.to_string().contains("beyond the next one, 3"),
        "{beyond}"
    );
    assert!(db.watch(WatchOptions::default().namespace("none")).is_err());
}

/// The version that a watch begins after is not given out again after a power loss, though the writes
/// before it did not ask for a sync.
#[test]
fn where_a_watch_begins_survives_power_loss() {
    let world = World::new(1);
    let db = world.open(tiny()).unwrap();
    let mut batch = WriteBatch::new();
    batch.put(&db.default_namespace(), b"a", b"").unwrap();
    db.write(batch, &WriteOptions::buffered()).unwrap();
    let watch = db.watch(WatchOptions::default()).unwrap();
    let next = watch.next_version();
    assert_eq!(next, SeqNo(2));
    let after = World::on(world.disk.crash(1, CrashMode::DropUnsynced), 2);
    let db = after.open(tiny()).unwrap();
    let mut resumed = db.watch(from(next.0)).unwrap();
    assert_eq!(db.put(b"b", b"").unwrap(), next);
    assert_eq!(all(&mut resumed).len(), 1);
}

/// Who rests in the middle of a large record does not keep it for itself, and goes on where it was.
#[test]
fn resting_watches_share_what_is_large() {
    let world = World::new(1);
    let db = world.open(kept()).unwrap();
    for round in 0..3 {
        let mut batch = WriteBatch::new();
        for key in 0..100_u8 {
            let ns = db.default_namespace();
            batch.put(&ns, &[round, key], &[key; 1000]).unwrap();
        }
        db.write(batch, &WriteOptions::sync()).unwrap();
    }
    fill(&db, 20);
    let mut watches: Vec<_> = (0..5).map(|_| db.watch(from(1)).unwrap()).collect();
    let read = db.stats().counters.watch_records;
    for _ in 0..3 {
        let mut held = Vec::new();
        for watch in &mut watches {
            let Step::Batch(batch) = watch.step().unwrap() else {
                panic!("there is more");
            };
            watch.rest();
            held.push(batch);
        }
        assert!(held.iter().all(|batch| told(batch) == told(&held[0])));
    }
    assert_eq!(
        db.stats().counters.watch_records - read,
        3,
        "copied once each"
    );
    let left: Vec<_> = watches.iter_mut().map(all).collect();
    assert!(
        left.iter()
            .all(|events| events.len() == 400 && *events == left[0])
    );
}

/// The middle of a batch is a place to go on from, too.
#[test]
fn a_watch_can_begin_inside_a_batch() {
    let world = World::new(1);
    let db = world.open(tiny()).unwrap();
    let mut batch = WriteBatch::new();
    for key in 0..5_u8 {
        batch.put(&db.default_namespace(), &[key], b"").unwrap();
    }
    db.write(batch, &WriteOptions::buffered()).unwrap();
    let mut watch = db.watch(from(3)).unwrap();
    assert!(all(&mut watch).is_empty(), "it is not durable yet");
    db.put(b"x", b"").unwrap();
    let versions: Vec<_> = all(&mut watch)
        .iter()
        .map(|told| (told.version, told.commit))
        .collect();
    assert_eq!(versions, [(3, 5), (4, 5), (5, 5), (6, 6)]);
}

/// What a watch was told, power loss does not take back: a buffered write is told once it is durable.
#[test]
fn only_durable_writes_are_told() {
    let world = World::new(1);
    let db = world.open(tiny()).unwrap();
    let mut watch = db.watch(from(1)).unwrap();
    let mut batch = WriteBatch::new();
    batch
        .put(&db.default_namespace(), b"key", b"buffered")
        .unwrap();
    db.write(batch.clone(), &WriteOptions::buffered()).unwrap();
    assert!(db.get(b"key").unwrap().is_some(), "a read sees it");
    assert!(all(&mut watch).is_empty());
    let lost = world.disk.crash(1, CrashMode::DropUnsynced);
    let after = World::on(lost, 2).open(tiny()).unwrap();
    assert!(after.get(b"key").unwrap().is_none());
    // The background sync makes it durable, and the watch is woken.
    let (sent, woken) = std::sync::mpsc::channel();
    watch.on_ready(Box::new(move || sent.send(()).unwrap()));
    assert!(woken.try_recv().is_err());
    world.clock.advance(Duration::from_secs(2));
    world.exec.run_all();
    assert!(woken.try_recv().is_ok());
    assert_eq!(all(&mut watch).len(), 1);
    let kept = world.disk.crash(1, CrashMode::DropUnsynced);
    let after = World::on(kept, 2).open(tiny()).unwrap();
    assert!(after.get(b"key").unwrap().is_some());
}

fn fill(db: &Db, rounds: u32) {
    for round in 0..rounds {
        for key in 0..20_u32 {
            let mut batch = WriteBatch::new();
            let key = format!("{round:04}/{key:04}");
            batch
                .put(&db.default_namespace(), key.as_bytes(), &[7; 100])
                .unwrap();
            db.write(batch, &WriteOptions::buffered()).unwrap();
        }
        db.flush().unwrap();
    }
}

/// Log is kept up to the configured bytes; who wants older versions is told the oldest there is.
#[test]
fn retention_by_bytes_and_a_defined_answer_behind_it() {
    let world = World::new(1);
    let options = Options {
        changefeed_bytes: 40 << 10,
        ..tiny()
    };
    let db = world.open(options.clone()).unwrap();
    let mut slow = db.watch(from(1)).unwrap();
    fill(&db, 60);
    world.exec.run_all();
    let stats = db.stats();
    assert!(stats.watch.kept_bytes > 20 << 10, "{:?}", stats.watch);
    assert!(stats.watch.kept_bytes <= 40 << 10, "{:?}", stats.watch);
    assert_eq!((stats.watch.watches, stats.watch.lag), (1, 1200));
    let oldest = db.oldest_watchable().unwrap();
    assert!(oldest > SeqNo(1));
    for error in [
        db.watch(from(1)).unwrap_err(),
        take(&mut slow, 1).unwrap_err(),
    ] {
        match error {
            Error::WatchTooOld {
                wanted: 1,
                oldest: told,
            } => assert_eq!(told, oldest.0),
            error => panic!("{error}"),
        }
    }
    assert_eq!(db.stats().counters.watch_too_old, 2);
    let until_now = |db: &Db, first: SeqNo| {
        let versions: Vec<_> = all(&mut db.watch(from(first.0)).unwrap())
            .iter()
            .map(|t| t.version)
            .collect();
        assert_eq!(versions, (first.0..=1200).collect::<Vec<_>>());
    };
    until_now(&db, oldest);
    db.close().unwrap();
    drop((slow, db));
    let db = world.open(options).unwrap();
    until_now(&db, oldest);
}

#[test]
fn retention_by_age_and_none_at_all() {
    let world = World::new(1);
    let options = Options {
        changefeed_bytes: 1 << 40,
        changefeed_age: Duration::from_secs(60),
        ..tiny()
    };
    let db = world.open(options).unwrap();
    fill(&db, 30);
    assert_eq!(db.oldest_watchable().unwrap(), SeqNo(1));
    world.clock.advance(Duration::from_secs(61));
    fill(&db, 2);
    assert!(db.oldest_watchable().unwrap() > SeqNo(500));

    let world = World::new(1);
    let db = world.open(tiny()).unwrap();
    fill(&db, 30);
    assert_eq!(db.stats().watch.kept_bytes, 0);
}

/// A full disk lets go of log that only watches want.
#[test]
fn a_full_disk_comes_before_the_changefeed() {
    let world = World::new(1);
    let db = world.open(kept()).unwrap();
    fill(&db, 40);
    let kept = db.stats().watch.kept_bytes;
    assert!(kept > 100 << 10);
    world.disk.set_capacity(world.disk.used_bytes() + (8 << 10));
    let mut batch = WriteBatch::new();
    batch
        .put(&db.default_namespace(), b"large", &[1; 60 << 10])
        .unwrap();
    assert!(
        db.write(batch, &WriteOptions::sync())
            .unwrap_err()
            .is_out_of_space()
    );
    assert!(db.stats().watch.kept_bytes < kept / 4);
    assert!(matches!(db.watch(from(1)), Err(Error::WatchTooOld { .. })));
}

/// A reader far behind, beyond what memory keeps, reads the segments and then meets the others.
#[test]
fn a_slow_reader_reads_the_segments_and_misses_nothing() {
    let world = World::new(1);
    let db = world.open(kept()).unwrap();
    let mut slow = db.watch(from(1)).unwrap();
    let mut quick = db.watch(from(1)).unwrap();
    let (mut slow_got, mut quick_got) = (Vec::new(), Vec::new());
    for _ in 0..15 {
        fill(&db, 8);
        quick_got.extend(all(&mut quick));
        slow_got.extend(take(&mut slow, 40).unwrap());
        assert!(db.stats().watch.memory_bytes <= 8 << 20 >> 6);
    }
    slow_got.extend(all(&mut slow));
    assert_eq!(quick_got.len(), 15 * 8 * 20);
    assert_eq!(slow_got, quick_got);
    db.put(b"last", b"").unwrap();
    assert_eq!(all(&mut slow), all(&mut quick));
}

#[test]
fn a_dropped_namespace_is_told_and_its_name_survives() {
    let world = World::new(1);
    let db = world.open(kept()).unwrap();
    let mut watch = db.watch(from(1)).unwrap();
    let ns = db.create_namespace("gone").unwrap();
    let mut named = db.watch(from(1).namespace("gone").prefix(b"x")).unwrap();
    let mut batch = WriteBatch::new();
    batch.put(&ns, b"a", b"1").unwrap();
    batch.put(&db.default_namespace(), b"b", b"2").unwrap();
    db.write(batch, &WriteOptions::sync()).unwrap();
    db.drop_namespace("gone").unwrap();
    db.put(b"c", b"3").unwrap();
    let events = all(&mut watch);
    let shown: Vec<_> = events
        .iter()
        .map(|t| (t.version, t.namespace.as_str()))
        .collect();
    assert_eq!(
        shown,
        [(1, "gone"), (2, "default"), (3, "gone"), (4, "default")]
    );
    assert_eq!(events[2].change, Owned::Drop);
    assert_eq!(all(&mut named), [events[2].clone()], "whatever the range");
    assert!(matches!(
        db.watch(from(1).namespace("gone")),
        Err(Error::NamespaceNotFound(_))
    ));
    // Nobody remembers the name now: it is found further on in the log.
    fill(&db, 20);
    db.close().unwrap();
    drop((watch, named, db));
    let db = world.open(kept()).unwrap();
    let mut again = db.watch(from(1)).unwrap();
    let mut got = all(&mut again);
    got.truncate(4);
    assert_eq!(got, events);
}

/// A drop that power loss cut after its record was durable is completed by the next open, so that
/// nobody was told of a drop that did not happen; no version is given out twice.
#[test]
fn a_drop_that_was_told_is_completed() {
    let disk = MemFs::new();
    let faults = Arc::new(FaultFs::new(Arc::new(disk.clone()) as Arc<dyn Fs>, 1));
    let world = World::through(disk, faults.clone(), 1);
    let db = world.open(tiny()).unwrap();
    let ns = db.create_namespace("gone").unwrap();
    let mut batch = WriteBatch::new();
    batch.put(&ns, b"a", b"1").unwrap();
    db.write(batch, &WriteOptions::sync()).unwrap();
    let mut watch = db.watch(from(1)).unwrap();
    let rule = Rule::new(Fault::Error(std::io::ErrorKind::Other)).on(OpKind::Write);
    faults.add_rule(rule.path_contains("MANIFEST"));
    assert!(db.drop_namespace("gone").is_err());
    let events = all(&mut watch);
    assert_eq!(events.last().unwrap().change, Owned::Drop);
    let after = World::on(world.disk.crash(1, CrashMode::DropUnsynced), 2);
    for _ in 0..2 {
        let db = after.open(tiny()).unwrap();
        assert!(db.namespace("gone").is_err());
        assert!(db.stats().last_seqno.0 >= 2);
        db.close().unwrap();
    }
    let db = after.open(tiny()).unwrap();
    assert_eq!(db.put(b"next", b"").unwrap(), SeqNo(3));
}

/// No version is used twice when the last operations were in a namespace that is gone.
#[test]
fn versions_of_a_dropped_namespace_are_not_used_again() {
    let world = World::new(1);
    let db = world.open(tiny()).unwrap();
    let ns = db.create_namespace("gone").unwrap();
    db.put(b"a", b"").unwrap();
    for key in 0..10_u8 {
        let mut batch = WriteBatch::new();
        batch.put(&ns, &[key], b"").unwrap();
        db.write(batch, &WriteOptions::sync()).unwrap();
    }
    db.drop_namespace("gone").unwrap();
    db.flush().unwrap();
    let db = World::on(world.disk.crash(1, CrashMode::DropUnsynced), 2)
        .open(tiny())
        .unwrap();
    assert_eq!(db.put(b"b", b"").unwrap(), SeqNo(13));
}

#[test]
fn a_failed_read_ends_it_and_it_goes_on_where_it_was() {
    let disk = MemFs::new();
    let faults = Arc::new(FaultFs::new(Arc::new(disk.clone()) as Arc<dyn Fs>, 1));
    let world = World::through(disk, faults.clone(), 1);
    let db = world.open(kept()).unwrap();
    fill(&db, 40);
    let mut watch = db.watch(from(1)).unwrap();
    let mut got = take(&mut watch, 10).unwrap();
    faults.add_rule(Rule::new(Fault::Error(std::io::ErrorKind::Other)).on(OpKind::Read));
    faults.add_rule(Rule::new(Fault::Error(std::io::ErrorKind::Other)).on(OpKind::Open));
    let error = loop {
        match take(&mut watch, 1) {
            Ok(more) => got.extend(more),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Io(_)), "{error}");
    assert!(error.to_string().contains(".wal"), "{error}");
    faults.clear_rules();
    got.extend(all(&mut watch));
    let versions: Vec<_> = got.iter().map(|told| told.version).collect();
    assert_eq!(versions, (1..=800).collect::<Vec<_>>());
}

#[test]
fn damage_in_kept_log_is_found_and_named() {
    let world = World::new(1);
    let db = world.open(kept()).unwrap();
    fill(&db, 40);
    let mut segments: Vec<_> = world
        .disk
        .files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "wal"))
        .collect();
    segments.sort();
    world.disk.flip_bit(&segments[1], 600, 3).unwrap();
    let mut watch = db.watch(from(1)).unwrap();
    let error = take(&mut watch, usize::MAX).unwrap_err();
    let name = segments[1].display().to_string();
    assert!(error.is_corruption(), "{error}");
    assert!(
        error.to_string().contains(&name),
        "{error} does not name {name}"
    );
    assert_eq!(db.stats().counters.corruptions, 1);
}

#[test]
fn a_failed_log_and_a_closed_database_end_it_after_the_last_durable_batch() {
    let disk = MemFs::new();
    let faults = Arc::new(FaultFs::new(Arc::new(disk.clone()) as Arc<dyn Fs>, 1));
    let world = World::through(disk, faults.clone(), 1);
    let db = world.open(tiny()).unwrap();
    let mut watch = db.watch(from(1)).unwrap();
    db.put(b"a", b"1").unwrap();
    faults.add_rule(Rule::new(Fault::Error(std::io::ErrorKind::Other)).on(OpKind::Sync));
    db.put(b"b", b"2").unwrap_err();
    assert_eq!(take(&mut watch, 1).unwrap().len(), 1);
    assert!(matches!(take(&mut watch, 1), Err(Error::Poisoned(_))));

    let db = World::new(1).open(tiny()).unwrap();
    let mut watch = db.watch(from(1)).unwrap();
    assert!(all(&mut watch).is_empty());
    let (sent, woken) = std::sync::mpsc::channel();
    watch.on_ready(Box::new(move || sent.send(()).unwrap()));
    drop(db);
    assert!(woken.try_recv().is_ok(), "who waits is told");
    assert!(matches!(watch.next(), Some(Err(Error::Closed(_)))));
}

/// On threads: writers go on while watches read, wait and drop out.
#[test]
fn watches_on_threads_see_every_write_once() {
    const WRITES: u64 = 400;
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        ballast_bytes: 0,
        changefeed_bytes: 1 << 40,
        background_sync: Some(Duration::from_millis(1)),
        ..tiny()
    };
    let db = Db::open(dir.path().join("db"), options).unwrap();
    std::thread::scope(|scope| {
        for first in [1, 1, 1] {
            let watch = db.watch(from(first)).unwrap();
            scope.spawn(move || {
                let mut next = first;
                let mut keys = BTreeMap::new();
                for batch in watch {
                    for told in told(&batch.unwrap()) {
                        assert_eq!(told.version, next);
                        next += 1;
                        let Owned::Put(key, ..) = told.change else {
                            panic!()
                        };
                        assert!(keys.insert(key, told.version).is_none(), "told twice");
                    }
                    if next > 3 * WRITES {
                        break;
                    }
                }
            });
        }
        for writer in 0..3_u8 {
            let db = db.clone();
            scope.spawn(move || {
                for write in 0..WRITES {
                    let mut batch = WriteBatch::new();
                    let key = format!("{writer}/{write}");
                    batch
                        .put(&db.default_namespace(), key.as_bytes(), &[1; 50])
                        .unwrap();
                    let options = if write % 40 == 39 {
                        WriteOptions::sync()
                    } else {
                        WriteOptions::buffered()
                    };
                    db.write(batch, &options).unwrap();
                }
            });
        }
    });
    assert_eq!(db.stats().watch.watches, 0);
    assert_eq!(db.stats().watch.memory_bytes, 0);
}
