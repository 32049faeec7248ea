//! Random histories of every operation against an ordered map, under many option sets.
//!
//! The same seed gives the same history whatever the options, so a difference between two option
//! sets is a bug in one of them even where the model is silent. A failure prints the seed and the
//! option set; `FIRN_MODEL_SEED=n` runs that seed alone, `FIRN_MODEL_SEEDS=n` runs more of them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use firn_engine::{
    Compression, Condition, Db, Durability, Error, Namespace, Options, ScanOptions, SeqNo,
    Snapshot, WriteBatch, WriteOptions,
};
use firn_io::clock::Clock;
use firn_io::rng::Rng;

use crate::world::{World, tiny};

#[derive(Clone, Debug, PartialEq)]
struct Cell {
    value: Vec<u8>,
    version: SeqNo,
    expires_at_ms: Option<u64>,
}

type Map = BTreeMap<Vec<u8>, Cell>;
type Model = BTreeMap<String, Map>;
/// What an acknowledged operation does to the model.
type Change = Box<dyn FnOnce(&mut Map, SeqNo)>;

fn option_sets() -> Vec<(&'static str, Options)> {
    let tiny = tiny();
    vec![
        ("tiny", tiny.clone()),
        (
            "no filter, no compression, no blobs",
            Options {
                filter_bits_per_key: 0,
                compression: Compression::None,
                min_blob_bytes: usize::MAX,
                ..tiny.clone()
            },
        ),
        (
            "every value a blob",
            Options {
                min_blob_bytes: 1,
                ..tiny.clone()
            },
        ),
        (
            "one restart each, positional log",
            Options {
                restart_interval: 1,
                log_mapped: false,
                ..tiny.clone()
            },
        ),
        (
            "one entry a block",
            Options {
                block_bytes: 64,
                ..tiny.clone()
            },
        ),
        (
            "lazy",
            Options {
                l0_compaction_trigger: 8,
                memtable_bytes: Some(64 << 10),
                ..tiny.clone()
            },
        ),
        (
            "roomy",
            Options {
                ballast_bytes: 0,
                ..Options::default()
            },
        ),
    ]
}

fn key(rng: &mut Rng) -> Vec<u8> {
    match rng.below(20) {
        0 => Vec::new(),
        1 => vec![0xff; rng.below(4) as usize],
        2 => vec![b'k'; 1 + rng.below(300) as usize],
        _ => {
            let number = rng.below(200);
            let mut key = format!("key{:03}", number).into_bytes();
            if rng.one_in(8) {
                key.push(0);
            }
            key
        }
    }
}

fn value(rng: &mut Rng) -> Vec<u8> {
    let len = match rng.below(10) {
        0 => 0,
        1 => 600 + rng.below(3000),
        _ => rng.below(120),
    };
    let byte = rng.below(256) as u8;
    let mut value = vec![byte; len as usize];
    for slot in value.iter_mut().step_by(3) {
        *slot = rng.below(256) as u8;
    }
    value
}

struct Run {
    world: World,
    options: Options,
    db: Option<Db>,
    model: Model,
    snapshots: Vec<(Snapshot, Model)>,
    /// What the clock said when each snapshot's model was taken does not matter: expiry is judged
    /// when reading.
    rng: Rng,
}

impl Run {
    fn db(&self) -> &Db {
        self.db.as_ref().unwrap()
    }

    fn now(&self) -> u64 {
        self.world.clock.unix_ms()
    }

    fn namespace(&mut self) -> Namespace {
        let names: Vec<String> = self.model.keys().cloned().collect();
        let name = &names[self.rng.index(names.len())];
        self.db().namespace(name).unwrap()
    }

    fn write_options(&mut self) -> WriteOptions {
        if self.rng.one_in(2) {
            WriteOptions::sync()
        } else {
            WriteOptions::buffered()
        }
    }

    fn visible(&self, map: &Map, key: &[u8]) -> Option<Cell> {
        map.get(key)
            .filter(|cell| cell.expires_at_ms.is_none_or(|at| at > self.now()))
            .cloned()
    }

    fn batch(&mut self) {
        let operations = if self.rng.one_in(10) {
            40
        } else {
            1 + self.rng.below(4)
        };
        let mut batch = WriteBatch::new();
        let mut changes: Vec<(String, Change)> = Vec::new();
        let mut should_hold = true;
        if self.rng.one_in(4) {
            let ns = self.namespace();
            let key = key(&mut self.rng);
            let present = self.visible(&self.model[ns.name()], &key);
            let condition = match self.rng.below(4) {
                0 => Condition::Absent,
                1 => Condition::Exists,
                2 => Condition::VersionEquals(present.as_ref().map_or(SeqNo(1), |c| c.version)),
                _ => Condition::VersionEquals(SeqNo(self.rng.below(100))),
            };
            should_hold = match condition {
                Condition::Absent => present.is_none(),
                Condition::Exists => present.is_some(),
                Condition::VersionEquals(v) => present.is_some_and(|c| c.version == v),
            };
            batch.require(&ns, &key, condition).unwrap();
        }
        for _ in 0..operations {
            let ns = self.namespace();
            let name = ns.name().to_string();
            let key = key(&mut self.rng);
            match self.rng.below(12) {
                0..=6 => {
                    let value = value(&mut self.rng);
                    batch.put(&ns, &key, &value).unwrap();
                    changes.push((
                        name,
                        Box::new(move |map, version| {
                            map.insert(
                                key,
                                Cell {
                                    value,
                                    version,
                                    expires_at_ms: None,
                                },
                            );
                        }),
                    ));
                }
                7 => {
                    let value = value(&mut self.rng);
                    let at = self.now() - 5 + self.rng.below(2000);
                    batch.put_expiring(&ns, &key, &value, at).unwrap();
                    changes.push((
                        name,
                        Box::new(move |map, version| {
                            map.insert(
                                key,
                                Cell {
                                    value,
                                    version,
                                    expires_at_ms: Some(at),
                                },
                            );
                        }),
                    ));
                }
                8..=10 => {
                    batch.delete(&ns, &key).unwrap();
                    changes.push((
                        name,
                        Box::new(move |map, _| {
                            map.remove(&key);
                        }),
                    ));
                }
                _ => {
                    let other = self::key(&mut self.rng);
                    let (start, end) = if key < other {
                        (key, other)
                    } else {
                        (other, key)
                    };
                    if start == end || !self.rng.one_in(3) {
                        continue;
                    }
                    batch.delete_range(&ns, &start, &end).unwrap();
                    changes.push((
                        name,
                        Box::new(move |map, _| map.retain(|k, _| *k < start || *k >= end)),
                    ));
                }
            }
        }
        let options = self.write_options();
        match self.db().write(batch, &options) {
            Ok(commit) => {
                assert!(should_hold, "a batch whose condition is false was written");
                for (index, (name, change)) in changes.into_iter().enumerate() {
                    let version = SeqNo(commit.first.0 + index as u64);
                    change(self.model.get_mut(&name).unwrap(), version);
                }
            }
            Err(Error::ConditionFailed { .. }) => {
                assert!(!should_hold, "a batch whose condition is true was refused");
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn check_get(&mut self) {
        let ns = self.namespace();
        let key = key(&mut self.rng);
        let expected = self.visible(&self.model[ns.name()], &key);
        let found = self.db().get_entry(&ns, &key).unwrap().map(|entry| Cell {
            value: entry.value.to_vec(),
            version: entry.version,
            expires_at_ms: entry.expires_at_ms,
        });
        assert_eq!(found, expected, "get {:?}", key.escape_ascii().to_string());
    }

    fn check_scan(&mut self, snapshot: Option<usize>) {
        let ns = self.namespace();
        let (a, b) = (key(&mut self.rng), key(&mut self.rng));
        let bound = |rng: &mut Rng, key: Vec<u8>| match rng.below(3) {
            0 => Bound::Unbounded,
            1 => Bound::Included(key),
            _ => Bound::Excluded(key),
        };
        let mut options = ScanOptions::all();
        options.start = bound(&mut self.rng, a);
        options.end = bound(&mut self.rng, b);
        options.reverse = self.rng.one_in(2);
        let seek = self.rng.one_in(3).then(|| key(&mut self.rng));
        let stop_after = if self.rng.one_in(2) {
            self.rng.below(20)
        } else {
            u64::MAX
        };
        let now = self.now();

        let (map, mut scan) = match snapshot {
            Some(index) => {
                let (snapshot, model) = &self.snapshots[index];
                let Some(map) = model.get(ns.name()) else {
                    return;
                };
                (map, snapshot.scan(&ns, options.clone()).unwrap())
            }
            None => (
                &self.model[ns.name()],
                self.db().scan(&ns, options.clone()).unwrap(),
            ),
        };
        let inside = |key: &[u8]| {
            (match &options.start {
                Bound::Included(s) => key >= &s[..],
                Bound::Excluded(s) => key > &s[..],
                Bound::Unbounded => true,
            }) && (match &options.end {
                Bound::Included(e) => key <= &e[..],
                Bound::Excluded(e) => key < &e[..],
                Bound::Unbounded => true,
            })
        };
        let mut expected: Vec<_> = map
            .iter()
            .filter(|(k, c)| inside(k) && c.expires_at_ms.is_none_or(|at| at > now))
            .collect();
        if options.reverse {
            expected.reverse();
        }
        if let Some(target) = &seek {
            scan.seek(target).unwrap();
            expected.retain(|(k, _)| {
                if options.reverse {
                    *k <= target
                } else {
                    *k >= target
                }
            });
        }
        for (count, (key, cell)) in (0..).zip(expected) {
            if count == stop_after {
                return;
            }
            assert!(
                scan.next().unwrap(),
                "the scan ended before {:?}",
                key.escape_ascii().to_string()
            );
            assert_eq!(
                scan.key().escape_ascii().to_string(),
                key.escape_ascii().to_string()
            );
            assert_eq!(
                scan.value(),
                cell.value,
                "value of {:?}",
                key.escape_ascii().to_string()
            );
            assert_eq!(
                (scan.version(), scan.expires_at_ms()),
                (cell.version, cell.expires_at_ms)
            );
        }
        assert!(
            !scan.next().unwrap(),
            "the scan goes on at {:?}",
            scan.key().escape_ascii().to_string()
        );
    }

    fn check_everything(&mut self) {
        for name in self.model.keys().cloned().collect::<Vec<_>>() {
            let ns = self.db().namespace(&name).unwrap();
            let now = self.now();
            for reverse in [false, true] {
                let mut options = ScanOptions::all();
                options.reverse = reverse;
                let scan = self.db().scan(&ns, options).unwrap();
                let found: Vec<_> = scan.into_iter().map(|pair| pair.unwrap()).collect();
                let mut expected: Vec<_> = self.model[&name]
                    .iter()
                    .filter(|(_, c)| c.expires_at_ms.is_none_or(|at| at > now))
                    .map(|(k, c)| (k.clone(), c.value.clone()))
                    .collect();
                if reverse {
                    expected.reverse();
                }
                assert!(found == expected, "namespace {name}, reverse {reverse}");
            }
        }
    }

    fn reopen(&mut self) {
        self.snapshots.clear();
        let db = self.db.take().unwrap();
        if self.rng.one_in(2) {
            db.close().unwrap();
        }
        drop(db);
        self.world.step(u64::MAX);
        self.db = Some(self.world.open(self.options.clone()).unwrap());
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..=49 => self.batch(),
            50..=64 => self.check_get(),
            65..=74 => self.check_scan(None),
            75..=79 => {
                let jobs = self.rng.below(4);
                self.world.step(jobs);
            }
            80..=82 => {
                if self.snapshots.len() < 3 {
                    let snapshot = self.db().snapshot();
                    self.snapshots.push((snapshot, self.model.clone()));
                }
            }
            83..=87 => {
                if !self.snapshots.is_empty() {
                    let index = self.rng.index(self.snapshots.len());
                    self.check_scan(Some(index));
                }
            }
            88 => {
                if !self.snapshots.is_empty() {
                    let index = self.rng.index(self.snapshots.len());
                    self.snapshots.swap_remove(index);
                }
            }
            89 => self.db().flush().unwrap(),
            90 => {
                let ns = self.namespace();
                let (a, b) = (key(&mut self.rng), key(&mut self.rng));
                let whole = self.rng.one_in(2);
                let (start, end) = if whole {
                    (None, None)
                } else {
                    (Some(&a[..]), Some(&b[..]))
                };
                self.db().compact_range(&ns, start, end).unwrap();
            }
            91..=92 => {
                let ms = self.rng.below(500);
                self.world.clock.advance(Duration::from_millis(ms));
            }
            93..=94 => self.reopen(),
            95 => {
                let name = format!("ns{}", self.rng.below(3));
                match self.db().create_namespace(&name) {
                    Ok(_) => assert!(self.model.insert(name, Map::new()).is_none()),
                    Err(Error::NamespaceExists(_)) => assert!(self.model.contains_key(&name)),
                    Err(other) => panic!("{other}"),
                }
            }
            96 => {
                let name = format!("ns{}", self.rng.below(3));
                match self.db().drop_namespace(&name) {
                    Ok(()) => {
                        assert!(self.model.remove(&name).is_some());
                        for (_, model) in &mut self.snapshots {
                            model.remove(&name);
                        }
                    }
                    Err(Error::NamespaceNotFound(_)) => assert!(!self.model.contains_key(&name)),
                    Err(other) => panic!("{other}"),
                }
            }
            97 => self.check_everything(),
            98 => {
                let ns = self.namespace();
                let count = self.rng.below(40);
                let keys: Vec<Vec<u8>> = (0..count).map(|_| key(&mut self.rng)).collect();
                let slices: Vec<&[u8]> = keys.iter().map(|k| &k[..]).collect();
                // Now, and as a snapshot has it.
                let mut found = vec![(self.db().multi_get(&ns, &slices).unwrap(), &self.model)];
                if let Some((snapshot, model)) = self.snapshots.first() {
                    found.push((snapshot.multi_get(&ns, &slices).unwrap(), model));
                }
                let found = found.into_iter().flat_map(|(found, model)| {
                    keys.iter()
                        .zip(found)
                        .map(move |(key, entry)| (model, key, entry))
                });
                for (model, key, entry) in found {
                    let Some(model) = model.get(ns.name()) else {
                        continue;
                    };
                    let expected = self.visible(model, key);
                    assert_eq!(
                        entry.map(|e| e.value.to_vec()),
                        expected.map(|c| c.value),
                        "multi_get {:?}",
                        key.escape_ascii().to_string()
                    );
                }
            }
            _ => self.db().wait_idle().unwrap(),
        }
    }
}

fn history(seed: u64, name: &str, options: &Options, steps: u64) {
    let options = options.clone();
    let result = std::panic::catch_unwind(move || {
        let world = World::new(seed);
        let db = world.open(options.clone()).unwrap();
        let model = Model::from([("default".to_string(), Map::new())]);
        let rng = Rng::new(seed);
        let mut run = Run {
            world,
            options,
            db: Some(db),
            model,
            snapshots: Vec::new(),
            rng,
        };
        for _ in 0..steps {
            run.step();
        }
        run.check_everything();
        run.db().wait_idle().unwrap();
        run.check_everything();
        run.reopen();
        run.check_everything();
    });
    if let Err(panic) = result {
        #[allow(clippy::print_stderr, reason = "how to repeat the failure")]
        let () = eprintln!("FIRN_MODEL_SEED={seed} fails with options {name:?}");
        std::panic::resume_unwind(panic);
    }
}

fn seeds(default: u64) -> Vec<u64> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    match number("FIRN_MODEL_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("FIRN_MODEL_SEEDS").unwrap_or(default)).collect(),
    }
}

#[test]
fn random_histories_agree_with_an_ordered_map() {
    for seed in seeds(12) {
        for (name, options) in option_sets() {
            history(seed, name, &options, 1500);
        }
    }
}

/// Buffered and durable writes in any order become visible in order.
#[test]
fn a_buffered_write_behind_a_durable_one_is_seen_when_it_is_acknowledged() {
    let world = World::new(1);
    let db = world.open(tiny()).unwrap();
    let ns = db.default_namespace();
    let mut first = WriteBatch::new();
    first.put(&ns, b"a", b"1").unwrap();
    let first = db.submit(first, &WriteOptions::sync()).unwrap();
    assert_eq!(db.get(b"a").unwrap(), None, "seen before it is durable");
    let mut second = WriteBatch::new();
    second.put(&ns, b"b", b"2").unwrap();
    let options = WriteOptions {
        durability: Durability::Buffered,
        max_delay: None,
    };
    let second = db.submit(second, &options).unwrap();
    second.wait().unwrap();
    assert_eq!(db.get(b"b").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(db.get(b"a").unwrap().as_deref(), Some(&b"1"[..]));
    first.wait().unwrap();
}
