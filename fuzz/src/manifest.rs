//! The manifest, its edits, and CURRENT.

use std::path::Path;
use std::sync::Arc;

use firn_engine::key::FileId;
use firn_engine::version::edit::VersionEdit;
use firn_engine::version::manifest::{self, read_current, set_current};
use firn_engine::version::set::VersionSet;
use firn_io::fs::mem::MemFs;

use crate::{Input, checksum, disk_with, world};

pub(crate) const ID: FileId = FileId(7);
const DIR: &str = "/db";
const FILE: &str = "/db/MANIFEST-000007";

/// The file of a manifest; see `recover`.
pub fn manifest(data: &[u8]) {
    recover(disk_with(FILE, data).0);
}

/// Edits (each a length of two bytes, then the payload of a frame) in a manifest whose checksums are
/// right.
pub fn manifest_edits(data: &[u8]) {
    let mut input = Input(data);
    let mut file = b"FIRNMAN\0\x01\0\0\0\x07\0\0\0\0\0\0\0".to_vec();
    let sum = checksum(&[&file]);
    file.extend_from_slice(&sum);
    while !input.is_empty() {
        let payload = input.bytes();
        let (offset, len) = (file.len() as u64, payload.len() as u32);
        let place = [
            &ID.0.to_le_bytes()[..],
            &offset.to_le_bytes(),
            &len.to_le_bytes(),
        ]
        .concat();
        file.extend_from_slice(&len.to_le_bytes());
        file.extend_from_slice(&checksum(&[&place, payload]));
        file.extend_from_slice(payload);
    }
    recover(disk_with(FILE, &file).0);
}

/// Reads the manifest and builds the state. A state that is taken must be sound, and the manifest
/// that a writer begins with it must describe the same.
fn recover(disk: MemFs) {
    let dir = Path::new(DIR);
    let _ = manifest::read(&disk, dir, ID, |_, _| Ok(()));
    let purger = || Arc::new(|_, _| {}) as firn_engine::version::Purger;
    let recovered = VersionSet::<(), ()>::recover_manifest(world(&disk), dir, ID, purger());
    let Ok(state) = recovered else { return };
    for (id, _) in state.namespaces() {
        state
            .current(id)
            .check()
            .expect("a version that is taken is sound");
    }
    set_current(&disk, dir, ID).expect("a disk in memory");
    let Ok(written) = VersionSet::<(), ()>::open(world(&disk), dir, purger()) else {
        return;
    };
    let namespaces = written.namespaces();
    assert_eq!(state.namespaces(), namespaces);
    drop(written);
    let read = VersionSet::<(), ()>::open(world(&disk), dir, purger());
    let read = read.expect("a manifest that was just written");
    assert_eq!(read.namespaces(), namespaces);
    assert_eq!(read.live_files(), state.live_files());
    assert_eq!(read.log_start(), state.log_start());
    assert_eq!(read.last_seqno(), state.last_seqno());
}

/// The payload of one frame. An edit that is read and written again is the same edit.
pub fn version_edit(data: &[u8]) {
    let Ok(edit) = VersionEdit::decode(data) else {
        return;
    };
    let mut out = Vec::new();
    edit.encode(&mut out);
    assert_eq!(VersionEdit::decode(&out), Ok(edit));
}

/// The file CURRENT.
pub fn current(data: &[u8]) {
    let (disk, _) = disk_with("/db/CURRENT", data);
    if let Ok(id) = read_current(&disk, Path::new(DIR)) {
        set_current(&disk, Path::new(DIR), id).expect("a disk in memory");
        assert_eq!(read_current(&disk, Path::new(DIR)).ok(), Some(id));
    }
}
