//! Every interleaving of readers and writers of a tiny tree, up to a bound on preemptions, under the
//! memory model: `cargo xtask loom`.
//!
//! Nodes hold two keys, so that one insert splits, and rest not at all before they are used again,
//! so that the next one reuses. Beside what the tests assert, the model fails when a reader reaches
//! a node or an entry whose writing did not happen before.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::sync::Arc;

use super::btree::{Cursor, Tree};
use crate::key::{Kind, SeqNo};

type Tiny = Tree<2, 4>;

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // A descent is a dozen loads, each of them a branch.
    builder.max_branches = 10_000;
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(run);
}

fn value(key: &str, seqno: u64) -> Vec<u8> {
    format!("{key}@{seqno}").into_bytes()
}

fn insert(tree: &Tiny, key: &str, seqno: u64) {
    let value = value(key, seqno);
    tree.insert(key.as_bytes(), SeqNo(seqno), Kind::Put, [&value, b""]);
}

fn filled(keys: &[&str]) -> Arc<Tiny> {
    let tree = Arc::new(Tiny::new(None));
    for key in keys {
        insert(&tree, key, 1);
    }
    tree
}

/// Reads the newest version of a key at or below `snapshot`. An entry that is found is whole.
fn get(tree: &Tiny, key: &str, snapshot: u64) -> Option<u64> {
    let entry = tree.head(key.as_bytes())?.visible(SeqNo(snapshot))?;
    assert_eq!(entry.key(), key.as_bytes());
    assert_eq!(entry.value(), value(key, entry.seqno().0));
    Some(entry.seqno().0)
}

/// The same for the newest versions of keys that are looked for together.
fn get_many<const N: usize>(tree: &Tiny, keys: [&str; N]) -> [Option<u64>; N] {
    let mut seen = [None; N];
    tree.heads(&keys.map(str::as_bytes), &mut Vec::new(), |at, head| {
        seen[at] = head.map(|entry| {
            assert_eq!(entry.key(), keys[at].as_bytes());
            assert_eq!(entry.value(), value(keys[at], entry.seqno().0));
            entry.seqno().0
        });
    });
    seen
}

/// All keys, in order of the walk. Entries are whole, no (key, number) comes twice.
fn walk(tree: &Arc<Tiny>, forward: bool) -> Vec<(String, u64)> {
    let mut cursor = Cursor::new(Arc::clone(tree));
    if forward {
        cursor.seek_to_first()
    } else {
        cursor.seek_to_last()
    }
    let mut seen = Vec::new();
    while let Some(entry) = cursor.entry() {
        let key = String::from_utf8(entry.key().to_vec()).unwrap();
        assert_eq!(entry.value(), value(&key, entry.seqno().0));
        seen.push((key, entry.seqno().0));
        if forward {
            cursor.next()
        } else {
            cursor.prev()
        }
    }
    if !forward {
        seen.reverse();
    }
    let order = |(key, seqno): &(String, u64)| (key.clone(), std::cmp::Reverse(*seqno));
    assert!(seen.is_sorted_by(|a, b| order(a) < order(b)), "{seen:?}");
    seen
}

fn has(seen: &[(String, u64)], keys: &[&str]) {
    for key in keys {
        assert!(seen.iter().any(|(k, _)| k == key), "{key} in {seen:?}");
    }
}

/// Runs `reader` beside one writer that inserts `new` into a tree of `old`; then checks the tree.
fn beside_inserts(
    old: &'static [&'static str],
    new: &'static [&'static str],
    reader: impl Fn(&Arc<Tiny>) + Send + Sync + 'static,
) {
    model(move || {
        let tree = filled(old);
        let writer = {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || new.iter().for_each(|key| insert(&tree, key, 2)))
        };
        reader(&tree);
        writer.join().unwrap();
        let seen = walk(&tree, true);
        assert_eq!(seen, walk(&tree, false));
        assert_eq!(seen.len(), old.len() + new.len());
    });
}

#[test]
fn the_first_insert_beside_a_get() {
    beside_inserts(&[], &["a"], |tree| {
        let first = get(tree, "a", 9);
        assert!(first.is_none() || get(tree, "a", 9) == first);
    });
}

#[test]
fn an_insert_into_a_leaf_beside_gets() {
    beside_inserts(&["b"], &["a"], |tree| {
        assert_eq!(get(tree, "b", 9), Some(1));
        let first = get(tree, "a", 9);
        assert!(first.is_none() || get(tree, "a", 9) == first);
        assert_eq!(get(tree, "c", 9), None);
    });
}

#[test]
fn an_insert_into_a_leaf_beside_walks() {
    beside_inserts(&["b"], &["a"], |tree| has(&walk(tree, true), &["b"]));
    beside_inserts(&["b"], &["a"], |tree| has(&walk(tree, false), &["b"]));
}

#[test]
fn a_split_beside_gets() {
    beside_inserts(&["b", "d"], &["c"], |tree| {
        assert_eq!(get(tree, "b", 9), Some(1));
        assert_eq!(get(tree, "d", 9), Some(1));
    });
}

#[test]
fn a_split_beside_walks() {
    beside_inserts(&["b", "d"], &["c"], |tree| {
        has(&walk(tree, true), &["b", "d"])
    });
    beside_inserts(&["b", "d"], &["c"], |tree| {
        has(&walk(tree, false), &["b", "d"])
    });
}

/// The second split uses the leaf again that the first one replaced.
#[test]
fn a_leaf_that_is_used_again_beside_gets() {
    beside_inserts(&["b", "f"], &["d", "e"], |tree| {
        assert_eq!(get(tree, "b", 9), Some(1));
    });
    beside_inserts(&["b", "f"], &["d", "e"], |tree| {
        assert_eq!(get(tree, "f", 9), Some(1));
    });
    beside_inserts(&["b", "f"], &["d", "e"], |tree| {
        assert!(get(tree, "d", 9).is_none_or(|seqno| seqno == 2));
    });
}

#[test]
fn a_leaf_that_is_used_again_beside_a_walk_forward() {
    beside_inserts(&["b", "f"], &["d", "e"], |tree| {
        has(&walk(tree, true), &["b", "f"]);
    });
}

#[test]
fn a_leaf_that_is_used_again_beside_a_walk_backward() {
    beside_inserts(&["b", "f"], &["d", "e"], |tree| {
        has(&walk(tree, false), &["b", "f"]);
    });
}

/// Two splits below an inner node: the second uses the node again that the first replaced.
#[test]
fn an_inner_node_that_is_used_again_beside_gets() {
    // Leaves: b | d h (after a split).
    beside_inserts(&["b", "h", "d"], &["f", "g"], |tree| {
        assert_eq!(get(tree, "h", 9), Some(1));
    });
    beside_inserts(&["b", "h", "d"], &["f", "g"], |tree| {
        assert_eq!(get(tree, "b", 9), Some(1));
    });
}

#[test]
fn leaves_that_are_split_and_used_again_beside_keys_together() {
    beside_inserts(&["b", "f"], &["d", "e"], |tree| {
        let [b, d, f] = get_many(tree, ["b", "d", "f"]);
        assert_eq!((b, f), (Some(1), Some(1)));
        assert!(d.is_none_or(|seqno| seqno == 2));
        // What was seen stays.
        assert!(d.is_none() || get(tree, "d", 9) == d);
    });
}

#[test]
fn an_inner_node_that_is_used_again_beside_keys_together() {
    beside_inserts(&["b", "h", "d"], &["f", "g"], |tree| {
        assert_eq!(get_many(tree, ["h", "b"]), [Some(1), Some(1)]);
    });
}

#[test]
fn an_inner_node_that_is_used_again_beside_a_walk_forward() {
    beside_inserts(&["b", "h", "d"], &["f", "g"], |tree| {
        has(&walk(tree, true), &["b", "d", "h"]);
    });
}

#[test]
fn an_inner_node_that_is_used_again_beside_a_walk_backward() {
    beside_inserts(&["b", "h", "d"], &["f", "g"], |tree| {
        has(&walk(tree, false), &["b", "d", "h"]);
    });
}

/// What was there before a seek is found by it, whatever came after.
#[test]
fn a_reader_sees_what_another_thread_finished() {
    model(|| {
        let tree = filled(&["b", "f"]);
        let done = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let writer = {
            let (tree, done) = (Arc::clone(&tree), Arc::clone(&done));
            loom::thread::spawn(move || {
                insert(&tree, "d", 2);
                done.store(true, loom::sync::atomic::Ordering::Release);
                insert(&tree, "e", 3);
            })
        };
        if done.load(loom::sync::atomic::Ordering::Acquire) {
            assert_eq!(get(&tree, "d", 9), Some(2));
        }
        writer.join().unwrap();
    });
}

/// Versions above, below and between: the list's head is replaced, an old entry by its twin.
#[test]
fn versions_of_a_key_beside_a_get() {
    for late in [[7, 3], [3, 7], [3, 4]] {
        model(move || {
            let tree = Arc::new(Tiny::new(None));
            insert(&tree, "k", 5);
            let writer = {
                let tree = Arc::clone(&tree);
                loom::thread::spawn(move || {
                    late.iter().for_each(|&seqno| insert(&tree, "k", seqno))
                })
            };
            assert_eq!(get(&tree, "k", 5), Some(5));
            assert!(get(&tree, "k", 4).is_none_or(|seqno| late.contains(&seqno)));
            writer.join().unwrap();
            assert_eq!(walk(&tree, true).len(), 3);
        });
    }
}

#[test]
fn versions_of_a_key_beside_walks() {
    for forward in [true, false] {
        model(move || {
            let tree = Arc::new(Tiny::new(None));
            insert(&tree, "k", 5);
            let writer = {
                let tree = Arc::clone(&tree);
                loom::thread::spawn(move || {
                    [7, 3].iter().for_each(|&seqno| insert(&tree, "k", seqno))
                })
            };
            let seen = walk(&tree, forward);
            assert!(seen.contains(&("k".into(), 5)), "{seen:?}");
            writer.join().unwrap();
        });
    }
}

#[test]
fn two_writers_and_a_reader() {
    model(|| {
        let tree = filled(&["b", "f"]);
        let writers = ["d", "e"].map(|key| {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || {
                insert(&tree, key, 2);
                assert_eq!(get(&tree, key, 9), Some(2));
            })
        });
        assert_eq!(get(&tree, "f", 9), Some(1));
        for writer in writers {
            writer.join().unwrap();
        }
        has(&walk(&tree, true), &["b", "d", "e", "f"]);
        assert_eq!(tree.entry_count(), 4);
    });
}
