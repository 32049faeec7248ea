//! The one small trait that every engine is driven through, and its adapters.
//!
//! To add an engine: write `src/engines/NAME.rs` with a struct that implements
//! [`Engine`], gate it behind a cargo feature, and add it to [`open`].

use std::path::PathBuf;

#[cfg(feature = "fjall")]
mod fjall;
#[cfg(feature = "lmdb")]
mod lmdb;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "rocksdb")]
mod rocks;
#[cfg(feature = "firn")]
mod firn;

#[derive(Clone, Debug)]
pub struct Cfg {
    pub dir: PathBuf,
    /// Block cache (LSM), page cache of the engine (redb). LMDB has none: it maps the file.
    pub cache: usize,
    /// Size of one write buffer (memtable).
    pub memtable: usize,
    pub bg_threads: usize,
    /// Writes of this run are durable: only LMDB needs to know at open time.
    pub sync: bool,
    /// Key/value separation on (the `-blob` variants).
    pub blob: bool,
    /// O_DIRECT reads, where the engine can (the `-direct` variant).
    pub direct: bool,
}

pub trait Engine: Send + Sync {
    /// One put. `sync`: on the disk when it returns. Otherwise: handed to the OS
    /// (survives a process crash) where the engine can do that.
    fn put(&self, k: &[u8], v: &[u8], sync: bool);
    fn delete(&self, k: &[u8]);
    /// One atomic batch of puts.
    fn batch(&self, kvs: &[(Vec<u8>, &[u8])], sync: bool);
    /// One point read of the latest value. The bytes are valid inside `f` only.
    fn get(&self, k: &[u8], f: &mut dyn FnMut(&[u8])) -> bool;
    /// Several point reads at one snapshot; returns how many were found.
    fn multi_get(&self, ks: &[Vec<u8>], f: &mut dyn FnMut(&[u8])) -> usize;
    /// Ordered scan from `start` (the first or last key if None) until `f` says false.
    fn scan(&self, start: Option<&[u8]>, reverse: bool, f: &mut dyn FnMut(&[u8], &[u8]) -> bool);
    /// Everything written so far is on the disk when it returns.
    fn sync(&self);
    /// Flushes write buffers and waits until background work is done.
    fn settle(&self);
    /// Free text, e.g. the number of files per level.
    fn info(&self) -> String {
        String::new()
    }
}

pub fn open(name: &str, cfg: &Cfg) -> Box<dyn Engine> {
    let mut cfg = cfg.clone();
    std::fs::create_dir_all(&cfg.dir).unwrap();
    let (base, variant) = name.split_once('-').unwrap_or((name, ""));
    match variant {
        "" => {}
        "blob" => cfg.blob = true,
        "direct" => cfg.direct = true,
        v => panic!("unknown variant {v}"),
    }
    match base {
        #[cfg(feature = "rocksdb")]
        "rocksdb" => Box::new(rocks::Rocks::open(&cfg)),
        #[cfg(feature = "fjall")]
        "fjall" => Box::new(fjall::Fjall::open(&cfg)),
        #[cfg(feature = "redb")]
        "redb" => Box::new(redb::Redb::open(&cfg)),
        #[cfg(feature = "lmdb")]
        "lmdb" => Box::new(lmdb::Lmdb::open(&cfg)),
        #[cfg(feature = "firn")]
        "firn" => Box::new(firn::Firn::open(&cfg)),
        _ => panic!("unknown engine {name} (or its feature is off)"),
    }
}
