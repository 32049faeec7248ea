//! The memtable against a sorted map, with small nodes too, so that a few keys make a deep tree.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

type Model = BTreeMap<(Vec<u8>, Reverse<u64>), (Kind, Vec<u8>)>;

/// Keys that collide in windows and prefixes.
fn key() -> impl Strategy<Value = Vec<u8>> {
    let letter = prop_oneof![Just(0_u8), Just(1), Just(b'a'), Just(0xff)];
    prop_oneof![
        prop::collection::vec(letter.clone(), 0..4),
        prop::collection::vec(letter.clone(), 0..12),
        (prop::collection::vec(letter, 0..5))
            .prop_map(|tail| [b"long-shared-prefix/", &*tail].concat()),
        (0_u32..40).prop_map(|n| format!("user{n:012}").into_bytes()),
        any::<[u8; 2]>().prop_map(|b| b.to_vec()),
        (any::<u8>(), 30_usize..50).prop_map(|(b, n)| vec![b; n]),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Vec<u8>, u64, bool, Vec<u8>),
    Get(Vec<u8>, u64),
    First,
    Last,
    Seek(Vec<u8>),
    SeekBefore(Vec<u8>),
    Next,
    Prev,
    NextKey,
    PrevKey,
    SeekVersion(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (key(), 1_u64..60, any::<bool>(), prop::collection::vec(any::<u8>(), 0..5))
            .prop_map(|(k, s, d, v)| Step::Insert(k, s, d, v)),
        2 => (key(), 0_u64..70).prop_map(|(k, s)| Step::Get(k, s)),
        1 => Just(Step::First),
        1 => Just(Step::Last),
        2 => key().prop_map(Step::Seek),
        2 => key().prop_map(Step::SeekBefore),
        6 => Just(Step::Next),
        6 => Just(Step::Prev),
        2 => Just(Step::NextKey),
        2 => Just(Step::PrevKey),
        1 => (0_u64..70).prop_map(Step::SeekVersion),
    ]
}

/// Runs the steps. Iterator moves are compared only while nothing was inserted since its last
/// seek, since it may or may not see what came later; in between it must stay in order.
fn run<const L: usize, const I: usize>(steps: Vec<Step>) {
    let tree = Arc::new(Tree::<L, I>::new(None));
    let mut model = Model::new();
    let mut cursor = Cursor::new(Arc::clone(&tree));
    let mut at: Option<(Vec<u8>, Reverse<u64>)> = None;
    let mut fresh = true;
    for step in steps {
        let moved = match step {
            Step::Insert(key, seqno, delete, value) => {
                let kind = if delete { Kind::Delete } else { Kind::Put };
                let half = value.len() / 2;
                tree.insert(&key, SeqNo(seqno), kind, [&value[..half], &value[half..]]);
                model.entry((key, Reverse(seqno))).or_insert((kind, value));
                fresh = false;
                continue;
            }
            Step::Get(key, snapshot) => {
                let want = model
                    .range((key.clone(), Reverse(snapshot))..=(key.clone(), Reverse(0)))
                    .next()
                    .map(|((_, seqno), (kind, value))| (seqno.0, *kind, value.clone()));
                let got = tree
                    .head(&key)
                    .and_then(|e| e.visible(SeqNo(snapshot)))
                    .map(|e| {
                        assert_eq!(e.key(), key);
                        (e.seqno().0, e.trailer().kind().unwrap(), e.value().to_vec())
                    });
                assert_eq!(got, want);
                continue;
            }
            Step::First => {
                cursor.seek_to_first();
                fresh = true;
                model.keys().next()
            }
            Step::Last => {
                cursor.seek_to_last();
                fresh = true;
                model.keys().next_back()
            }
            Step::Seek(key) => {
                cursor.seek(&key);
                fresh = true;
                model
                    .range((key, Reverse(u64::MAX))..)
                    .next()
                    .map(|(k, _)| k)
            }
            Step::SeekBefore(key) => {
                cursor.seek_before(&key);
                fresh = true;
                model
                    .range(..(key, Reverse(u64::MAX)))
                    .next_back()
                    .map(|(k, _)| k)
            }
            _ if at.is_none() || cursor.entry().is_none() => continue,
            Step::Next => {
                cursor.next();
                let at = at.clone().unwrap();
                model
                    .range((std::ops::Bound::Excluded(at), std::ops::Bound::Unbounded))
                    .next()
                    .map(|(k, _)| k)
            }
            Step::Prev => {
                cursor.prev();
                let at = at.clone().unwrap();
                model.range(..at).next_back().map(|(k, _)| k)
            }
            Step::NextKey => {
                cursor.next_key();
                let key = at.clone().unwrap().0;
                model.keys().find(|(k, _)| *k > key)
            }
            Step::PrevKey => {
                cursor.prev_key();
                let key = at.clone().unwrap().0;
                model
                    .range(..(key, Reverse(u64::MAX)))
                    .next_back()
                    .map(|((k, _), _)| k)
                    .and_then(|k| model.range((k.clone(), Reverse(u64::MAX))..).next())
                    .map(|(k, _)| k)
            }
            Step::SeekVersion(snapshot) => {
                let (key, current) = at.clone().unwrap();
                let want = model
                    .range((key.clone(), Reverse(snapshot.min(current.0)))..=(key, Reverse(0)))
                    .next()
                    .map(|(k, _)| k);
                assert!(cursor.seek_version(SeqNo(snapshot)) == want.is_some() || !fresh);
                want.or(at.as_ref())
            }
        };
        let got = cursor
            .entry()
            .map(|e| (e.key().to_vec(), Reverse(e.seqno().0)));
        if fresh {
            assert_eq!(got.as_ref(), moved);
        }
        if let Some(got) = &got {
            let (kind, value) = &model[got];
            let entry = cursor.entry().unwrap();
            assert_eq!(
                (entry.trailer().kind(), entry.value()),
                (Some(*kind), &**value)
            );
        }
        at = got;
    }
    check(&tree, &model);
    // Many at once are found as one by one, those that are not there too.
    let mut keys: Vec<Vec<u8>> = model.into_keys().map(|(key, _)| key).collect();
    keys.extend((0..8_u8).map(|byte| vec![byte; 3]));
    let keys: Vec<&[u8]> = keys.iter().rev().map(Vec::as_slice).collect();
    let mut told = 0;
    tree.heads(&keys, &mut Vec::new(), |at, head| {
        let one = tree.head(keys[at]).map(super::arena::Entry::raw);
        assert_eq!(head.map(super::arena::Entry::raw), one);
        told += 1;
    });
    assert_eq!(told, keys.len());
}

/// Every entry, forward and backward, and every key by point reads.
fn check<const L: usize, const I: usize>(tree: &Arc<Tree<L, I>>, model: &Model) {
    let mut cursor = Cursor::new(Arc::clone(tree));
    cursor.seek_to_first();
    for ((key, seqno), (kind, value)) in model {
        let entry = cursor.entry().expect("entry");
        assert_eq!((entry.key(), entry.seqno().0), (&**key, seqno.0));
        assert_eq!(
            (entry.trailer().kind(), entry.value()),
            (Some(*kind), &**value)
        );
        assert_eq!(
            tree.head(key)
                .unwrap()
                .visible(SeqNo(seqno.0))
                .unwrap()
                .value(),
            value
        );
        cursor.next();
    }
    assert!(cursor.entry().is_none());
    cursor.seek_to_last();
    for (key, seqno) in model.keys().rev() {
        let entry = cursor.entry().expect("entry");
        assert_eq!((entry.key(), entry.seqno().0), (&**key, seqno.0));
        cursor.prev();
    }
    assert!(cursor.entry().is_none());
    assert_eq!(tree.entry_count(), model.len());
    let tombstones = model
        .values()
        .filter(|(kind, _)| *kind == Kind::Delete)
        .count();
    assert_eq!(tree.tombstone_count(), tombstones);
    let mut keys: Vec<_> = model.keys().map(|(key, _)| key).collect();
    keys.dedup();
    assert_eq!(tree.key_count(), keys.len());
}

proptest! {
    #[test]
    fn behaves_like_a_sorted_map(steps in prop::collection::vec(step(), 0..400)) {
        run::<2, 4>(steps.clone());
        run::<3, 4>(steps.clone());
        run::<LEAF, INNER>(steps);
    }
}

/// A small generator, so that a test says which numbers it had.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn many_keys_in_every_order() {
    fn fill<const L: usize, const I: usize>(keys: impl Iterator<Item = u64>, prefix: &str) {
        let tree = Arc::new(Tree::<L, I>::new(None));
        let mut model = Model::new();
        for (seqno, key) in keys.enumerate() {
            let key = format!("{prefix}{key:08}").into_bytes();
            tree.insert(&key, SeqNo(seqno as u64), Kind::Put, [&key, b"!"]);
            let value = [&*key, b"!"].concat();
            model.insert((key, Reverse(seqno as u64)), (Kind::Put, value));
        }
        check(&tree, &model);
        let absent = format!("{prefix}0000000").into_bytes();
        assert!(tree.head(&absent).is_none());
        assert!(tree.head(b"").is_none());
        assert!(tree.head(b"\xff").is_none());
    }
    for prefix in ["", "a prefix longer than two windows/"] {
        fill::<LEAF, INNER>(0..20_000, prefix);
        fill::<LEAF, INNER>((0..20_000).rev(), prefix);
        fill::<LEAF, INNER>((0..20_000).map(|i| i * 7919 % 20_011), prefix);
        // Several ascending runs at once.
        fill::<LEAF, INNER>((0..20_000).map(|i| i % 8 * 10_000_000 + i), prefix);
        fill::<2, 4>((0..3_000).map(|i| i * 7919 % 20_011), prefix);
        fill::<3, 5>(0..3_000, prefix);
        fill::<3, 5>((0..3_000).rev(), prefix);
    }
}

#[test]
fn long_keys_and_values() {
    let memtable = Memtable::new();
    let long = |last: u8| [vec![7; 64 << 10], vec![last]].concat();
    for n in 0..40_u8 {
        memtable.insert(&long(n), SeqNo(n.into()), Kind::Put, &[n]);
        memtable.insert(&long(n), SeqNo(100 + u64::from(n)), Kind::Put, &[n, n]);
    }
    let huge = vec![3; 32 << 20];
    let before = memtable.memory_bytes();
    memtable.insert_parts(b"", SeqNo(500), Kind::PutExpiring, [&[1; 8], &huge]);
    assert!(memtable.memory_bytes() - before < (32 << 20) + (1 << 13));
    for n in 0..40_u8 {
        assert_eq!(memtable.get(&long(n), SeqNo(99)).unwrap().1, [n]);
        assert_eq!(memtable.get(&long(n), SeqNo::MAX).unwrap().1, [n, n]);
        assert_eq!(
            memtable.latest_seqno(&long(n)),
            Some(SeqNo(100 + u64::from(n)))
        );
    }
    let (trailer, value) = memtable.get(b"", SeqNo::MAX).unwrap();
    assert_eq!(trailer, Trailer::new(SeqNo(500), Kind::PutExpiring));
    assert_eq!((&value[..8], &value[8..]), (&[1; 8][..], &huge[..]));
    assert_eq!(
        (memtable.min_seqno(), memtable.max_seqno()),
        (Some(SeqNo(0)), Some(SeqNo(500)))
    );
}

#[test]
fn small_memtables_are_small() {
    let memtable = Memtable::new();
    assert_eq!((memtable.memory_bytes(), memtable.is_empty()), (0, true));
    memtable.insert(b"key", SeqNo(1), Kind::Put, b"value");
    assert!(memtable.memory_bytes() <= 8 << 10);
    for i in 0..1000_u32 {
        memtable.insert(&i.to_le_bytes(), SeqNo(2), Kind::Put, &[0; 3000]);
    }
    assert!(
        memtable.memory_bytes() < 3000 * 1000 * 3 / 2,
        "{}",
        memtable.memory_bytes()
    );
}

#[test]
fn old_snapshots_of_hot_keys_are_found_fast() {
    // Quadratic work here would take minutes.
    let memtable = Arc::new(Memtable::new());
    let n = 200_000;
    for seqno in 1..=n {
        memtable.insert(b"hot", SeqNo(2 * seqno), Kind::Put, &seqno.to_le_bytes());
    }
    for seqno in 1..=n {
        let (trailer, value) = memtable.get(b"hot", SeqNo(2 * seqno + 1)).unwrap();
        assert_eq!(
            (trailer.seqno(), value),
            (SeqNo(2 * seqno), &seqno.to_le_bytes()[..])
        );
    }
    assert!(memtable.get(b"hot", SeqNo(1)).is_none());
    let mut iter = memtable.iter();
    iter.seek_to_last().unwrap();
    for seqno in 1..=n {
        assert_eq!(iter.trailer().seqno(), SeqNo(2 * seqno));
        iter.prev().unwrap();
    }
    assert!(!iter.valid());
}

#[test]
fn range_tombstones_are_kept_apart() {
    let memtable = Memtable::new();
    assert!(!memtable.has_range_tombstones() && memtable.range_tombstones().is_empty());
    memtable.add_range_tombstone(b"b", b"b", SeqNo(1));
    assert!(memtable.is_empty());
    memtable.add_range_tombstone(b"b", b"d", SeqNo(5));
    assert!(!memtable.is_empty() && memtable.has_range_tombstones());
    let one = memtable.range_tombstones();
    assert_eq!(one.covering(b"c", SeqNo::MAX), Some(SeqNo(5)));
    memtable.add_range_tombstone(b"c", b"e", SeqNo(7));
    let two = memtable.range_tombstones();
    assert_eq!(two.covering(b"c", SeqNo::MAX), Some(SeqNo(7)));
    assert_eq!(one.covering(b"c", SeqNo::MAX), Some(SeqNo(5)));
    assert!(Arc::ptr_eq(&two, &memtable.range_tombstones()));
    assert_eq!(
        (memtable.min_seqno(), memtable.max_seqno()),
        (Some(SeqNo(5)), Some(SeqNo(7)))
    );
    assert!(memtable.get(b"c", SeqNo::MAX).is_none());
}

/// Writers insert; readers check that whatever was announced is there, and that iteration is in
/// order and misses nothing announced before it began.
fn stress<const L: usize, const I: usize>(writers: u64, keys_each: u64) {
    let tree = Arc::new(Tree::<L, I>::new(None));
    let key_of = |writer: u64, n: u64| {
        let mut state = writer << 32 | n;
        let random = random(&mut state);
        // Half of the keys share a long prefix; the last bytes make them distinct.
        let head = if random & 1 == 0 {
            ""
        } else {
            "a shared prefix/"
        };
        [
            head.as_bytes(),
            &(random % 1000).to_le_bytes()[..2],
            &(writer << 32 | n).to_le_bytes(),
        ]
        .concat()
    };
    let announced: Vec<AtomicU64> = (0..writers).map(|_| AtomicU64::new(0)).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..writers)
            .map(|writer| {
                let (tree, announced) = (&tree, &announced);
                scope.spawn(move || {
                    for n in 0..keys_each {
                        let key = key_of(writer, n);
                        tree.insert(&key, SeqNo(2 * n + 2), Kind::Put, [&key, &[]]);
                        if n % 4 == 0 {
                            // Below and above: the middle and the end of the list.
                            tree.insert(&key, SeqNo(2 * n + 1), Kind::Delete, [&[], &[]]);
                            tree.insert(&key, SeqNo(2 * n + 3), Kind::Put, [&[], &key]);
                        }
                        announced[writer as usize].store(n + 1, Ordering::Release);
                    }
                })
            })
            .collect();
        for reader in 0..3_u64 {
            let (tree, announced, done) = (&tree, &announced, &done);
            scope.spawn(move || {
                let mut state = reader;
                let mut cursor = Cursor::new(Arc::clone(tree));
                while !done.load(Ordering::Acquire) {
                    for _ in 0..200 {
                        let writer = random(&mut state) % writers;
                        let count = announced[writer as usize].load(Ordering::Acquire);
                        if count == 0 {
                            continue;
                        }
                        let n = random(&mut state) % count;
                        let key = key_of(writer, n);
                        let entry = tree.head(&key).expect("announced");
                        assert_eq!((entry.key(), entry.value()), (&*key, &*key));
                        let entry = entry.visible(SeqNo(2 * n + 2)).unwrap();
                        assert_eq!(entry.seqno(), SeqNo(2 * n + 2));
                        cursor.seek(&key);
                        assert_eq!(cursor.entry().unwrap().key(), key);
                    }
                    // Several together.
                    let mut wanted = Vec::new();
                    for (writer, announced) in (0..writers).zip(announced) {
                        let count = announced.load(Ordering::Acquire);
                        let some = (0..count.min(20)).map(|_| random(&mut state) % count);
                        wanted.extend(some.map(|n| key_of(writer, n)));
                    }
                    let keys: Vec<&[u8]> = wanted.iter().map(Vec::as_slice).collect();
                    let mut told = 0;
                    tree.heads(&keys, &mut Vec::new(), |at, head| {
                        let entry = head.expect("announced");
                        assert_eq!((entry.key(), entry.value()), (keys[at], keys[at]));
                        told += 1;
                    });
                    assert_eq!(told, keys.len());
                    let counts: Vec<_> = announced
                        .iter()
                        .map(|a| a.load(Ordering::Acquire))
                        .collect();
                    let expected: u64 = counts.iter().sum();
                    let forward = reader % 2 == 0;
                    if forward {
                        cursor.seek_to_first()
                    } else {
                        cursor.seek_to_last()
                    }
                    let mut seen = 0;
                    let mut previous: Option<(Vec<u8>, u64)> = None;
                    while let Some(entry) = cursor.entry() {
                        let at = (entry.key().to_vec(), entry.seqno().0);
                        if let Some(previous) = previous {
                            let order = previous.0.cmp(&at.0).then(at.1.cmp(&previous.1));
                            let want = if forward {
                                std::cmp::Ordering::Less
                            } else {
                                std::cmp::Ordering::Greater
                            };
                            assert_eq!(order, want);
                        }
                        let id = u64::from_le_bytes(*at.0.last_chunk().unwrap());
                        let (writer, n) = (id >> 32, id & 0xffff_ffff);
                        if at.1 == 2 * n + 2 && n < counts[writer as usize] {
                            seen += 1;
                        }
                        previous = Some(at);
                        if forward {
                            cursor.next()
                        } else {
                            cursor.prev()
                        }
                    }
                    assert_eq!(seen, expected);
                }
            });
        }
        for handle in handles {
            handle.join().unwrap();
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(tree.key_count() as u64, writers * keys_each);
}

#[test]
fn readers_among_writers() {
    stress::<LEAF, INNER>(3, 20_000);
    // Tiny nodes: splits and reuse all the time.
    stress::<2, 4>(2, 5_000);
    stress::<3, 4>(3, 5_000);
}

/// What an iterator says, front to back.
fn contents(memtable: &Arc<Memtable>) -> Vec<(Vec<u8>, Trailer, Vec<u8>)> {
    let mut entries = memtable.iter();
    entries.seek_to_first().unwrap();
    let mut all = Vec::new();
    while entries.valid() {
        let (key, value) = (entries.key().to_vec(), entries.value().to_vec());
        all.push((key, entries.trailer(), value));
        entries.next().unwrap();
    }
    all
}

fn check_load(entries: &[(Vec<u8>, u64, Vec<u8>)], run: usize) {
    let inserted = Arc::new(Memtable::new());
    let loaded = Arc::new(Memtable::new());
    let mut loader = Loader::new(&loaded);
    let mut runs = Vec::new();
    for (at, (key, seqno, value)) in entries.iter().enumerate() {
        let kind = if value.is_empty() {
            Kind::Delete
        } else {
            Kind::Put
        };
        inserted.insert(key, SeqNo(*seqno), kind, value);
        loader.push(key, SeqNo(*seqno), kind, value);
        if at % run == run - 1 {
            let mut run = loader.take_any_run();
            run.sort();
            runs.push(run);
        }
    }
    assert!(loaded.is_empty());
    loader.finish(runs);
    assert_eq!(contents(&loaded), contents(&inserted));
    let figures = |m: &Memtable| {
        let counts = (m.entry_count(), m.key_count(), m.tombstone_count());
        (counts, m.min_seqno(), m.max_seqno())
    };
    assert_eq!(figures(&loaded), figures(&inserted));
    // Every version is found, and it takes further ones.
    for (key, seqno, _) in entries {
        let snapshot = SeqNo(*seqno);
        assert_eq!(loaded.get(key, snapshot), inserted.get(key, snapshot));
        for memtable in [&loaded, &inserted] {
            memtable.insert(&[key, &b"+"[..]].concat(), SeqNo(1000), Kind::Put, b"new");
            memtable.insert(key, SeqNo(1001), Kind::Put, b"newest");
        }
    }
    assert_eq!(contents(&loaded), contents(&inserted));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn loading_is_inserting(
        entries in prop::collection::vec((key(), 1..20_u64, prop::collection::vec(1..9_u8, 0..3)), 0..300),
        run in 1..200_usize,
        prefix in prop::collection::vec(0..3_u8, 0..20),
    ) {
        // Of one sequence number there is one value only.
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(key, seqno, _)| {
                let value = vec![seqno as u8; seqno as usize % 3];
                ([&prefix[..], &key].concat(), seqno, value)
            })
            .collect();
        check_load(&entries, run);
    }
}

#[test]
fn many_keys_are_loaded() {
    let mut state = 7;
    // The keys of the first runs share more than those of the later ones.
    let entries: Vec<_> = (0..30_000_u64)
        .map(|i| {
            let key = match i / 10_000 {
                0 => format!("user:common:{:08}", random(&mut state) % 100_000),
                1 => format!("user:{:08}", random(&mut state) % 1_000_000),
                _ => format!("{:08}", random(&mut state) % 1_000_000),
            };
            (key.into_bytes(), 1 + i % 900, b"value".to_vec())
        })
        .collect();
    check_load(&entries, 4000);
    check_load(&entries, usize::MAX);
}
