//! Power loss at every file operation of a scripted history.
//!
//! The history (puts, batches over two namespaces, range deletes, flushes, compactions, a checkpoint,
//! namespaces made and dropped) runs on a disk in memory. Before each operation that changes the disk,
//! and after each store to the log, an image is taken of what the disk would be if power went now:
//! unsynced data dropped, kept, or torn by seed. Each image is opened and must hold:
//!
//! * every write acknowledged as `sync`;
//! * whole batches, and of the writes after the last acknowledged one a prefix, in order;
//! * nothing that was not written;
//! * every version that a watch was told;
//! * a changefeed which, where the log is kept, leads from the empty database to what is there, and can
//!   be followed from the oldest version that it has wherever it is not;
//! * files that `verify` finds clean.
//!
//! `FIRN_CRASH_POINTS=n` takes n images (with new seeds) instead of a few thousand.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use firn_engine::watch::Step;
use firn_engine::{
    Change, Db, Error, Options, ScanOptions, SeqNo, Watch, WatchOptions, WriteBatch, WriteOptions,
};
use firn_io::fs::Fs;
use firn_io::fs::fault::{FaultFs, OpKind, Verdict};
use firn_io::fs::mem::{CrashMode, MemFs};
use firn_io::rng::Rng;

use crate::world::{World, tiny};

type State = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

/// What the history has done so far, seen by the images.
#[derive(Default)]
struct Progress {
    /// The state after each write, in order; the first is the empty database.
    states: Vec<State>,
    /// The write that was last acknowledged as durable: its position in `states`.
    durable: usize,
    /// The last version that a watch was told.
    told: u64,
    /// The checkpoint directory exists from here on, with this state.
    checkpoint: Option<usize>,
}

struct Image {
    operation: u64,
    disk: MemFs,
    /// `durable` when it was taken.
    durable: usize,
    told: u64,
    /// How many states existed or were being made when it was taken.
    known: usize,
    checkpoint: Option<usize>,
}

struct Script<'a> {
    db: Db,
    watch: Watch,
    world: &'a World,
    progress: Arc<Mutex<Progress>>,
    state: State,
    rng: Rng,
    /// One batch in so many is durable.
    durable: u64,
    /// Long stretches of the history write to one namespace, so that its SSTables may be ahead of the
    /// durable log; now and then one batch strays. Which namespace it is.
    favourite: Option<usize>,
}

impl Script<'_> {
    /// Announces the state that the next write leads to, makes the write, and notes the
    /// acknowledgement.
    fn write(&mut self, next: State, sync: bool, write: impl FnOnce(&Db)) {
        self.state = next.clone();
        self.progress.lock().unwrap().states.push(next);
        write(&self.db);
        if sync {
            let mut progress = self.progress.lock().unwrap();
            progress.durable = progress.states.len() - 1;
        }
        loop {
            match self.watch.step() {
                Ok(Step::Batch(batch)) => self.progress.lock().unwrap().told = batch.version().0,
                Ok(Step::Passed) => {}
                Ok(Step::CaughtUp) => break,
                // A flush let go of the log before this looked: none is kept for watches here.
                Err(Error::WatchTooOld { .. }) => {
                    self.watch = self.db.watch(WatchOptions::default()).unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn batch(&mut self, operations: u64) {
        let sync = self.rng.one_in(self.durable);
        let strays = self.rng.one_in(20);
        let mut next = self.state.clone();
        let mut batch = WriteBatch::new();
        let names: Vec<String> = self.state.keys().cloned().collect();
        for _ in 0..operations {
            let any = self.rng.index(names.len());
            let favourite = self.favourite.filter(|_| !strays);
            let name = &names[favourite.map_or(any, |index| index % names.len())];
            let ns = self.db.namespace(name).unwrap();
            let map = next.get_mut(name).unwrap();
            let key = format!("key{:02}", self.rng.below(40)).into_bytes();
            match self.rng.below(8) {
                0 => {
                    batch.delete(&ns, &key).unwrap();
                    map.remove(&key);
                }
                1 => {
                    let end = [&key[..], b"5"].concat();
                    batch.delete_range(&ns, &key, &end).unwrap();
                    map.retain(|k, _| *k < key || *k >= end);
                }
                _ => {
                    let len = if self.rng.one_in(6) {
                        700
                    } else {
                        self.rng.below(200)
                    };
                    let mut value = vec![0; len as usize];
                    self.rng.fill_bytes(&mut value);
                    batch.put(&ns, &key, &value).unwrap();
                    map.insert(key, value);
                }
            }
        }
        let options = if sync {
            WriteOptions::sync()
        } else {
            WriteOptions::buffered()
        };
        self.write(next, sync, |db| {
            db.write(batch, &options).unwrap();
        });
    }

    fn create(&mut self, name: &str) {
        let mut next = self.state.clone();
        next.insert(name.into(), BTreeMap::new());
        self.write(next, true, |db| {
            db.create_namespace(name).unwrap();
        });
    }

    fn drop_namespace(&mut self, name: &str) {
        let mut next = self.state.clone();
        next.remove(name);
        self.write(next, true, |db| db.drop_namespace(name).unwrap());
    }

    /// The history. Everything in it is decided by the seed.
    fn run(&mut self) {
        self.create("other");
        for round in 0..6 {
            self.favourite = self.favourite.map(|index| index + self.rng.index(2));
            for _ in 0..25 {
                let operations = if self.rng.one_in(5) { 12 } else { 1 };
                self.batch(operations);
                if self.rng.one_in(3) {
                    self.world.step(1);
                }
            }
            match round {
                0 => self.db.flush().unwrap(),
                1 => self.create("third"),
                2 => {
                    let ns = self.db.default_namespace();
                    self.db.compact_range(&ns, None, None).unwrap();
                }
                3 => {
                    self.db.checkpoint(Path::new("/copy")).unwrap();
                    let mut progress = self.progress.lock().unwrap();
                    progress.checkpoint = Some(progress.states.len() - 1);
                }
                4 => self.drop_namespace("third"),
                _ => self.db.wait_idle().unwrap(),
            }
        }
        self.db.close().unwrap();
        let mut progress = self.progress.lock().unwrap();
        progress.durable = progress.states.len() - 1;
    }
}

/// Runs the history of a seed and returns the images taken, one of `every` operations.
fn images(seed: u64, every: u64, options: &Options) -> (Vec<Image>, Arc<Mutex<Progress>>) {
    let disk = MemFs::new();
    let inner: Arc<dyn Fs> = Arc::new(disk.clone());
    let faults = Arc::new(FaultFs::new(inner, seed));
    let progress = Arc::new(Mutex::new(Progress {
        states: vec![first_state()],
        ..Progress::default()
    }));
    let taken = Arc::new(Mutex::new(Vec::new()));

    let (watched, sink, shown) = (disk.clone(), Arc::clone(&taken), Arc::clone(&progress));
    let take = move |operation: u64, kind: OpKind| {
        if !kind.is_mutation() || !(operation + seed).is_multiple_of(every) {
            return;
        }
        let mode = match operation / every % 4 {
            0 => CrashMode::DropUnsynced,
            1 => CrashMode::KeepAll,
            _ => CrashMode::Torn,
        };
        let progress = shown.lock().unwrap();
        sink.lock().unwrap().push(Image {
            operation,
            disk: watched.crash(seed ^ operation, mode),
            durable: progress.durable,
            told: progress.told,
            known: progress.states.len(),
            checkpoint: progress.checkpoint,
        });
    };
    faults.set_hook(Box::new(move |operation, info| {
        take(operation, info.kind);
        Verdict::Proceed
    }));

    let world = World::through(disk, faults, seed);
    let db = world.open(options.clone()).unwrap();
    let script_progress = Arc::clone(&progress);
    let rng = Rng::new(seed);
    Script {
        watch: db.watch(WatchOptions::default()).unwrap(),
        db,
        world: &world,
        progress: script_progress,
        state: first_state(),
        rng,
        durable: if seed % 4 == 2 { 40 } else { 2 },
        favourite: (seed % 4 >= 2).then_some(0),
    }
    .run();
    drop(world);
    let images = std::mem::take(&mut *taken.lock().unwrap());
    (images, progress)
}

fn first_state() -> State {
    State::from([("default".to_string(), BTreeMap::new())])
}

fn contents(db: &Db) -> State {
    db.namespaces()
        .iter()
        .map(|ns| {
            let scan = db.scan(ns, ScanOptions::all()).unwrap();
            (
                ns.name().to_string(),
                scan.into_iter().map(|pair| pair.unwrap()).collect(),
            )
        })
        .collect()
}

fn check(seed: u64, image: Image, progress: &Progress, options: &Options) {
    let context = format!("seed {seed}, operation {}", image.operation);
    let world = World::on(image.disk.clone(), seed);
    let db = match world.open(options.clone()) {
        Ok(db) => db,
        Err(error) => panic!("{context}: cannot be opened: {error}"),
    };
    let found = contents(&db);
    // The states before `durable` are gone; what is in flight at the image may be there.
    let allowed = image.durable..image.known.min(progress.states.len());
    assert!(
        progress.states[allowed.clone()].contains(&found),
        "{context}: what is there is no state from {allowed:?} of {}{}",
        progress.states.len(),
        explain(&found, &progress.states, image.durable),
    );
    let last = db.stats().last_seqno.0;
    assert!(
        last >= image.told,
        "{context}: a watch was told {} and the last version is {last}",
        image.told
    );
    if options.changefeed_bytes > 0 {
        let replayed = replay(&db).unwrap_or_else(|e| panic!("{context}: the changefeed: {e}"));
        let mut filled = found.clone();
        filled.retain(|_, map| !map.is_empty());
        assert!(
            replayed == filled,
            "{context}: the changefeed leads elsewhere"
        );
    }
    let report = db.verify().unwrap();
    assert!(report.is_clean(), "{context}: {:?}", report.problems);
    // It must go on working, and a second recovery must agree.
    db.put(b"after", b"crash").unwrap();
    db.close().unwrap();
    drop(db);
    let again = world
        .open(options.clone())
        .unwrap_or_else(|e| panic!("{context}: again: {e}"));
    let mut expected = found;
    expected
        .get_mut("default")
        .unwrap()
        .insert(b"after".to_vec(), b"crash".to_vec());
    assert!(
        contents(&again) == expected,
        "{context}: a second recovery differs"
    );
    let mut from = again.oldest_watchable().unwrap();
    let mut watch = again.watch(WatchOptions::from(from)).unwrap();
    loop {
        match watch.step() {
            Ok(Step::CaughtUp) => break,
            Ok(_) => {}
            // What a power loss took from the log is in SSTables: it goes on behind that.
            Err(Error::WatchTooOld { oldest, .. }) if oldest > from.0 => {
                from = SeqNo(oldest);
                watch = again.watch(WatchOptions::from(from)).unwrap();
            }
            Err(error) => panic!("{context}: the changefeed from {from}: {error}"),
        }
    }
    drop(watch);
    cut_again(
        &context,
        seed ^ image.operation,
        &world,
        again,
        expected,
        options,
    );

    if let Some(state) = image.checkpoint {
        let copy = Db::open_with(world.env.clone(), Path::new("/copy"), options.clone())
            .unwrap_or_else(|e| panic!("{context}: the checkpoint: {e}"));
        assert!(
            contents(&copy) == progress.states[state],
            "{context}: the checkpoint differs"
        );
    }
}

/// A second power loss, after a durable write, a buffered one and a flush: what the first one left in the
/// log must not come up again.
fn cut_again(
    context: &str,
    seed: u64,
    world: &World,
    db: Db,
    mut expected: State,
    options: &Options,
) {
    let main = db.default_namespace();
    db.put(b"durable", b"again").unwrap();
    let mut batch = WriteBatch::new();
    batch.put(&main, b"flushed", b"again").unwrap();
    db.write(batch, &WriteOptions::buffered()).unwrap();
    if seed.is_multiple_of(3) {
        db.flush().unwrap();
    }
    let map = expected.get_mut("default").unwrap();
    map.insert(b"durable".to_vec(), b"again".to_vec());
    let without = State::clone(&expected);
    let map = expected.get_mut("default").unwrap();
    map.insert(b"flushed".to_vec(), b"again".to_vec());
    for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn] {
        let image = World::on(world.disk.crash(seed, mode), seed);
        let db = image
            .open(options.clone())
            .unwrap_or_else(|e| panic!("{context}: after a second power loss: {e}"));
        let found = contents(&db);
        let is_flushed = seed.is_multiple_of(3);
        assert!(
            found == expected || !is_flushed && found == without,
            "{context}: a second power loss{}",
            explain(&found, &[without, expected], 0),
        );
        let report = db.verify().unwrap();
        assert!(report.is_clean(), "{context}: {:?}", report.problems);
    }
}

/// What the changefeed from the beginning leads to, without empty namespaces.
fn replay(db: &Db) -> Result<State, Error> {
    let mut state = State::new();
    let mut watch = db.watch(WatchOptions::from(SeqNo(1)))?;
    loop {
        let batch = match watch.step()? {
            Step::Batch(batch) => batch,
            Step::Passed => continue,
            Step::CaughtUp => break,
        };
        for event in batch.events() {
            let map = state.entry(event.namespace.to_owned()).or_default();
            match event.change {
                Change::Put { key, value, .. } => {
                    map.insert(key.to_vec(), value.to_vec());
                }
                Change::Delete { key } => {
                    map.remove(key);
                }
                Change::DeleteRange { start, end } => {
                    map.retain(|key, _| key.as_slice() < start || key.as_slice() >= end);
                }
                Change::DropNamespace => map.clear(),
            }
        }
    }
    state.retain(|_, map| !map.is_empty());
    Ok(state)
}

fn explain(found: &State, states: &[State], durable: usize) -> String {
    match states.iter().rposition(|state| state == found) {
        Some(position) if position < durable => {
            format!(": it is state {position}, acknowledged writes are lost")
        }
        Some(position) => format!(": it is state {position}, which was not written yet"),
        None => {
            let mut text = String::from(": it is none of them");
            for (name, map) in &states[durable] {
                let Some(there) = found.get(name) else {
                    text += &format!("; namespace {name} is missing");
                    continue;
                };
                for (key, value) in map {
                    if there.get(key) != Some(value) {
                        text += &format!("; {name}/{} differs", key.escape_ascii());
                    }
                }
                for key in there.keys().filter(|key| !map.contains_key(*key)) {
                    text += &format!("; {name}/{} is extra", key.escape_ascii());
                }
            }
            text.truncate(600);
            text
        }
    }
}

#[test]
fn power_loss_at_every_operation_loses_nothing_that_was_acknowledged() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let wanted = number("FIRN_CRASH_POINTS").unwrap_or(2500);
    let mut seed = number("FIRN_CRASH_SEED").unwrap_or(0);
    // A few operations in one history are looked at in each short run, all of them in a long one.
    let every = if wanted > 20_000 { 1 } else { 3 };
    let mut checked = 0;
    while checked < wanted {
        let options = if seed % 4 == 3 {
            Options {
                log_mapped: false,
                ..tiny()
            }
        } else if seed % 4 == 1 {
            // The whole log stays, for the changefeed.
            Options {
                changefeed_bytes: 1 << 40,
                changefeed_age: Duration::MAX,
                ..tiny()
            }
        } else {
            tiny()
        };
        let (images, progress) = images(seed, every, &options);
        assert!(
            images.len() > 50,
            "the history has too few operations: {}",
            images.len()
        );
        let progress = progress.lock().unwrap();
        for image in images {
            check(seed, image, &progress, &options);
            checked += 1;
            if checked == wanted {
                break;
            }
        }
        seed += 1;
    }
    println!("{checked} crash points, seeds up to {seed}");
}

/// The harness bites: an engine that acknowledges before the sync would be caught.
#[test]
fn the_check_finds_a_lost_write() {
    let disk = MemFs::new();
    let world = World::on(disk.clone(), 1);
    let db = world.open(tiny()).unwrap();
    let ns = db.default_namespace();
    db.put(b"durable", b"1").unwrap();
    let mut batch = WriteBatch::new();
    batch.put(&ns, b"buffered", b"2").unwrap();
    db.write(batch, &WriteOptions::buffered()).unwrap();
    let image = disk.crash(1, CrashMode::DropUnsynced);
    let world = World::on(image, 1);
    let db = world.open(tiny()).unwrap();
    assert_eq!(db.get(b"durable").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(db.get(b"buffered").unwrap(), None);
    // And what only a process's death took away is still there.
    let world = World::on(disk.fork(), 1);
    let db = world.open(tiny()).unwrap();
    assert_eq!(db.get(b"buffered").unwrap().as_deref(), Some(&b"2"[..]));
    assert!(matches!(
        db.namespace("none"),
        Err(Error::NamespaceNotFound(_))
    ));
}
