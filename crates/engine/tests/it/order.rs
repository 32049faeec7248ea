//! The order of writes, syncs and renames, which is what survives power loss by: on the main paths
//! every call that changes what is visible or durable is compared with `golden_order.txt`. A change
//! there is a change of the argument for durability and wants to be read as one.
//!
//! `UPDATE=1 cargo test -p firn-engine --test it golden` records it anew.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use firn_engine::{Db, Options, WriteBatch, WriteOptions};
use firn_io::fs::mem::{CrashMode, MemFs};
use firn_io::fs::trace::{Detail, TraceFs};

use crate::world::{DIR, World, tiny};

/// Small enough for every path, large enough for nothing to happen of itself.
fn options() -> Options {
    Options {
        memtable_bytes: Some(64 << 10),
        log_segment_bytes: Some(64 << 10),
        log_bytes: Some(1 << 20),
        l0_compaction_trigger: 3,
        ballast_bytes: 64 << 10,
        ..tiny()
    }
}

struct Story {
    trace: TraceFs,
    world: World,
}

impl Story {
    /// A world whose disk is this one, its calls written down.
    fn on(disk: MemFs) -> Self {
        let trace = TraceFs::new(Arc::new(disk.clone()), DIR, Detail::Folded);
        let world = World::through(disk, Arc::new(trace.clone()), 1);
        Self { trace, world }
    }

    fn open(&self) -> Db {
        self.world.open(options()).unwrap()
    }

    /// Runs the background work of `heading`'s part and begins the next part.
    fn part(&self, heading: &str) {
        self.world.exec.run_all();
        self.trace.note(format!("# {heading}"));
    }
}

fn fill(db: &Db, name: &str, keys: std::ops::Range<u32>) {
    let ns = db.namespace(name).unwrap();
    let mut batch = WriteBatch::new();
    for key in keys {
        let key = format!("key{key:04}");
        batch.put(&ns, key.as_bytes(), &[b'v'; 100]).unwrap();
    }
    db.write(batch, &WriteOptions::sync()).unwrap();
}

/// Changes namespaces until a change begins a new manifest; returns the lines of that change.
fn roll_the_manifest(story: &Story, db: &Db) -> String {
    let name = "n".repeat(255);
    for _ in 0..10_000 {
        db.create_namespace(&name).unwrap();
        story.trace.take();
        db.drop_namespace(&name).unwrap();
        story.world.exec.run_all();
        let lines = story.trace.take();
        if lines.contains("rename CURRENT") {
            return lines;
        }
    }
    panic!("the manifest grows forever");
}

#[test]
fn golden_order() {
    let story = Story::on(MemFs::new());
    story.trace.note("# create a database");
    let db = story.open();

    story.part("put, sync");
    db.put(b"key", b"value").unwrap();

    story.part("create a namespace");
    db.create_namespace("other").unwrap();

    story.part("batch over two namespaces, sync");
    let mut batch = WriteBatch::new();
    batch.put(&db.default_namespace(), b"a", b"1").unwrap();
    let other = db.namespace("other").unwrap();
    batch.put(&other, b"b", b"2").unwrap();
    db.write(batch, &WriteOptions::sync()).unwrap();

    story.part("put, buffered");
    let mut batch = WriteBatch::new();
    batch.put(&db.default_namespace(), b"c", b"3").unwrap();
    db.write(batch, &WriteOptions::buffered()).unwrap();

    story.part("the background sync");
    story.world.clock.advance(Duration::from_secs(2));

    story.part("flush");
    fill(&db, "default", 0..100);
    db.flush().unwrap();

    story.part("flush with a value for a blob file");
    db.put(b"large", &[b'x'; 2000]).unwrap();
    db.flush().unwrap();

    story.part("compaction that merges");
    fill(&db, "default", 0..100);
    db.flush().unwrap();
    let all = (None, None);
    db.compact_range(&db.default_namespace(), all.0, all.1)
        .unwrap();

    story.part("compaction that moves");
    fill(&db, "default", 5000..5100);
    db.flush().unwrap();
    fill(&db, "default", 6000..6100);
    db.flush().unwrap();
    fill(&db, "default", 7000..7100);
    db.flush().unwrap();

    story.part("checkpoint");
    db.checkpoint(Path::new("/checkpoint")).unwrap();

    story.part("drop a namespace");
    drop(other);
    db.drop_namespace("other").unwrap();

    story.world.exec.run_all();
    let lines = story.trace.take();
    let roll = roll_the_manifest(&story, &db);
    let lines = lines + "# an edit for which the manifest is too long\n" + &roll;

    story.part("clean close");
    db.put(b"key", b"last").unwrap();
    db.close().unwrap();
    drop(db);

    story.part("open");
    let db = story.open();

    story.part("put, sync; then the process is killed");
    db.put(b"key", b"value").unwrap();
    let lines = lines + &story.trace.take();
    // What the dead process would have done at its end must not reach the disk.
    let disk = story.world.disk.fork();
    drop(db);

    let story = Story::on(disk);
    story.trace.note("# open after a kill");
    let db = story.open();
    story.part("put, buffered; then the power fails");
    let mut batch = WriteBatch::new();
    batch.put(&db.default_namespace(), b"lost", b"3").unwrap();
    db.write(batch, &WriteOptions::buffered()).unwrap();
    let lines = lines + &story.trace.take();
    let disk = story.world.disk.crash(1, CrashMode::DropUnsynced);
    drop(db);

    let story = Story::on(disk);
    story.trace.note("# open after power loss");
    let db = story.open();
    assert_eq!(db.get(b"key").unwrap().as_deref(), Some(&b"value"[..]));
    assert!(db.get(b"lost").unwrap().is_none());
    story.part("end");
    let lines = lines + &story.trace.take();

    if std::env::var_os("UPDATE").is_some() {
        #[allow(
            clippy::disallowed_methods,
            reason = "a test re-records its golden file"
        )]
        std::fs::write(
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/golden_order.txt"),
            &lines,
        )
        .unwrap();
    } else {
        assert_eq!(lines, include_str!("golden_order.txt"));
    }
}
