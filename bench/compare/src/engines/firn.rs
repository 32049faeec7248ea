//! FirnDB, with the settings that the README gives for all engines.

use super::{Cfg, Engine};
use firn_engine::{Db, Durability, Namespace, Options, ScanOptions, WriteBatch, WriteOptions};
use std::cell::RefCell;
use std::ops::Bound;

pub struct Firn {
    db: Db,
    ns: Namespace,
}

thread_local! {
    static BATCH: RefCell<WriteBatch> = RefCell::new(WriteBatch::new());
}

impl Firn {
    pub fn open(c: &Cfg) -> Self {
        let mut o = Options::default();
        o.memory_bytes = c.cache + 4 * c.memtable;
        o.memtable_bytes = Some(c.memtable);
        o.cache_bytes = Some(c.cache);
        o.background_threads = c.bg_threads;
        // The others separate large values only in their `-blob` variants.
        o.min_blob_bytes = if c.blob { 4 << 10 } else { usize::MAX };
        o.background_sync = None;
        // The others keep no log for those who follow it.
        o.changefeed_bytes = 0;
        let db = Db::open(&c.dir, o).unwrap();
        let ns = db.default_namespace();
        Firn { db, ns }
    }

    fn write(&self, sync: bool, fill: impl FnOnce(&mut WriteBatch)) {
        let durability = if sync { Durability::Sync } else { Durability::Buffered };
        BATCH.with(|batch| {
            let mut batch = batch.borrow_mut();
            batch.clear();
            fill(&mut batch);
            let options = WriteOptions { durability, max_delay: None };
            self.db.write_reusing(&mut batch, &options).unwrap();
        });
    }
}

impl Engine for Firn {
    fn put(&self, k: &[u8], v: &[u8], sync: bool) {
        self.write(sync, |b| {
            b.put(&self.ns, k, v).unwrap();
        });
    }
    fn delete(&self, k: &[u8]) {
        self.write(false, |b| {
            b.delete(&self.ns, k).unwrap();
        });
    }
    fn batch(&self, kvs: &[(Vec<u8>, &[u8])], sync: bool) {
        self.write(sync, |b| {
            for (k, v) in kvs {
                b.put(&self.ns, k, v).unwrap();
            }
        });
    }
    fn get(&self, k: &[u8], f: &mut dyn FnMut(&[u8])) -> bool {
        match self.db.get(k).unwrap() {
            Some(v) => {
                f(&v);
                true
            }
            None => false,
        }
    }
    fn multi_get(&self, ks: &[Vec<u8>], f: &mut dyn FnMut(&[u8])) -> usize {
        let keys: Vec<&[u8]> = ks.iter().map(|k| &k[..]).collect();
        let mut n = 0;
        for entry in self.db.multi_get(&self.ns, &keys).unwrap().into_iter().flatten() {
            f(&entry.value);
            n += 1;
        }
        n
    }
    fn scan(&self, start: Option<&[u8]>, reverse: bool, f: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        let bound = start.map_or(Bound::Unbounded, |s| Bound::Included(s.to_vec()));
        let mut options = ScanOptions::all();
        options.reverse = reverse;
        if reverse {
            options.end = bound;
        } else {
            options.start = bound;
        }
        let mut scan = self.db.scan(&self.ns, options).unwrap();
        while scan.next().unwrap() {
            if !f(scan.key(), scan.value()) {
                return;
            }
        }
    }
    fn sync(&self) {
        self.db.sync().unwrap();
    }
    fn settle(&self) {
        self.db.flush().unwrap();
        self.db.wait_idle().unwrap();
    }
    fn info(&self) -> String {
        let stats = self.db.stats();
        let levels: Vec<String> =
            stats.levels.iter().filter(|l| l.files > 0).map(|l| format!("L{}:{}", l.level, l.files)).collect();
        format!("{} {:?}", levels.join(" "), stats.counters)
    }
}
