//! Every decoder of FirnDB, each as a function that takes any bytes and must return.
//!
//! A target panics when it finds something: a panic of the code under test, or a rule of the
//! target's own that does not hold (each target says which). libFuzzer calls the functions through
//! `fuzz_targets/`; the binary of this crate calls them on the stable toolchain, with the seeds in
//! `corpus/` and mutations of them.
//!
//! Checksums would turn away nearly every mutation before it reaches anything worth testing. So
//! formats with checksums have two targets: one takes the bytes of a file as they are, the other
//! takes the contents and puts them into a file whose checksums are right ([`log_frames`],
//! [`table_parts`], [`block`], [`blob_records`], [`manifest_edits`]). What writes those files here
//! is written after `docs/file-format.md`, not after the encoders, and so checks that page too.

mod http;
mod log;
mod manifest;
pub mod mutate;
mod peer;
mod replica;
mod resp;
pub mod seeds;
mod table;

use std::sync::Arc;

use firn_io::Env;
use firn_io::checksum::{crc32c, crc32c_append, mask};
use firn_io::clock::ManualClock;
use firn_io::exec::Stepper;
use firn_io::fs::mem::MemFs;
use firn_io::fs::{File, Fs, OpenMode};
use firn_io::rng::SeededEntropy;

pub use crate::http::{dialects, grpc, http, text};
pub use crate::log::{batch, log_frames, log_segment};
pub use crate::manifest::{current, manifest, manifest_edits, version_edit};
pub use crate::peer::peer;
pub use crate::replica::{replica_command, replica_entry, replica_message};
pub use crate::resp::resp;
pub use crate::table::{blob, blob_records, block, table, table_parts};

/// A decoder under test.
pub type Target = fn(&[u8]);

/// All of them. The names are those of the folders in `corpus/` and of the files in `fuzz_targets/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("log_segment", log_segment),
    ("log_frames", log_frames),
    ("batch", batch),
    ("table", table),
    ("table_parts", table_parts),
    ("block", block),
    ("blob", blob),
    ("blob_records", blob_records),
    ("manifest", manifest),
    ("manifest_edits", manifest_edits),
    ("version_edit", version_edit),
    ("current", current),
    ("text", text),
    ("http", http),
    ("replica_entry", replica_entry),
    ("replica_command", replica_command),
    ("replica_message", replica_message),
    ("peer", peer),
    ("dialects", dialects),
    ("grpc", grpc),
    ("resp", resp),
];

/// When every input begins, in Unix milliseconds.
const START_MS: u64 = 1_700_000_000_000;

/// A world on this disk without threads or chance.
fn world(disk: &MemFs) -> Env {
    let clock = Arc::new(ManualClock::new(START_MS));
    Env {
        fs: Arc::new(disk.clone()),
        entropy: Arc::new(SeededEntropy::new(1)),
        exec: Arc::new(Stepper::new(1, clock.clone())),
        clock,
    }
}

/// A disk with one file, and that file.
fn disk_with(path: &str, bytes: &[u8]) -> (MemFs, Arc<dyn File>) {
    let disk = MemFs::new();
    let parent = path.rsplit_once('/').map_or("/", |(dir, _)| dir);
    disk.create_dir_all(parent.as_ref()).expect("a directory");
    disk.write_file(path, bytes).expect("a file");
    let file = disk.open(path.as_ref(), OpenMode::Read).expect("the file");
    (disk, file)
}

/// The checksum over all parts, as it is stored.
fn checksum(parts: &[&[u8]]) -> [u8; 4] {
    let sum = parts
        .iter()
        .fold(crc32c(&[]), |sum, part| crc32c_append(sum, part));
    mask(sum).to_le_bytes()
}

/// Takes an input apart; at its end there are zeros and nothing.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    /// A length of two bytes, then as much.
    fn bytes(&mut self) -> &'a [u8] {
        let len = self.u16();
        self.take(usize::from(len))
    }
}

/// The other way round.
fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).expect("seeds are small");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}
