//! Which incarnation of each node was seen first.
//!
//! The number of a node is given once. A disk that was wiped, or replaced, comes back with another
//! incarnation (see [`firn_replica::home`]) under the old number, with votes and entries forgotten
//! that others count on. So whoever has seen a node once talks to no other node with its number. What
//! was seen is in a file of the node's directory, so that a restart does not forget it:
//!
//! ```text
//! PEERS   "FIRNSEEN" | version u32 (1) | n u32 | n * (node u64 | incarnation u64), ascending
//!         | crc u32 (masked CRC-32C of all before)
//! ```
//!
//! It is written beside and renamed into place, durably, before the first word with a new node is
//! exchanged; a crash leaves the old file or the new one. Without the file nothing is known: it may be
//! removed while the node is down, by who knows what that means.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use firn_io::checksum;
use firn_io::codec::{Reader, put_u32, put_u64};
use firn_io::fs::{Fs, OpenMode};
use firn_replica::NodeId;
use parking_lot::Mutex;

const FILE: &str = "PEERS";
const FILE_TMP: &str = "PEERS.tmp";
const MAGIC: &[u8; 8] = b"FIRNSEEN";
const VERSION: u32 = 1;
/// Most nodes that are remembered: a cluster has 64 at a time.
pub const MAX_KNOWN: usize = 4096;

/// See the module's page.
pub(crate) struct Known {
    fs: Arc<dyn Fs>,
    root: PathBuf,
    seen: Mutex<BTreeMap<NodeId, u64>>,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").finish_non_exhaustive()
    }
}

impl Known {
    /// Reads the file. Errors: it is damaged.
    pub(crate) fn open(fs: Arc<dyn Fs>, root: PathBuf) -> firn_io::Result<Self> {
        let path = root.join(FILE);
        let mut seen = BTreeMap::new();
        if fs.exists(&path)? {
            let file = fs.open(&path, OpenMode::Read)?;
            let mut bytes = vec![0; 16 * MAX_KNOWN + 64];
            let len = file.read_at(&mut bytes, 0)?;
            bytes.truncate(len);
            seen = parse(&bytes).map_err(|detail| firn_io::Error::corruption(&path, 0, detail))?;
        }
        Ok(Self {
            fs,
            root,
            seen: Mutex::new(seen),
        })
    }

    /// What is known of a node.
    pub(crate) fn incarnation(&self, node: NodeId) -> Option<u64> {
        self.seen.lock().get(&node).copied()
    }

    /// Whether a node is the one that was seen before under its number; remembered, durably, if there
    /// was none. May write a file.
    pub(crate) fn check(&self, node: NodeId, incarnation: u64) -> Result<(), String> {
        let mut seen = self.seen.lock();
        match seen.get(&node) {
            Some(&before) if before == incarnation => return Ok(()),
            Some(_) => {
                return Err(format!(
                    "node {node} is not the node {node} that was here before: its disk was wiped or \
                     replaced; give it a new number"
                ));
            }
            None => {}
        }
        if seen.len() >= MAX_KNOWN {
            return Err(format!(
                "{MAX_KNOWN} nodes were seen already, as many as are remembered"
            ));
        }
        seen.insert(node, incarnation);
        let written = self.write(&seen);
        if let Err(error) = written {
            seen.remove(&node);
            return Err(format!("node {node} cannot be remembered: {error}"));
        }
        Ok(())
    }

    fn write(&self, seen: &BTreeMap<NodeId, u64>) -> firn_io::Result<()> {
        let mut out = MAGIC.to_vec();
        put_u32(&mut out, VERSION);
        put_u32(&mut out, seen.len() as u32);
        for (&node, &incarnation) in seen {
            put_u64(&mut out, node);
            put_u64(&mut out, incarnation);
        }
        let crc = checksum::mask(checksum::crc32c(&out));
        put_u32(&mut out, crc);
        let tmp = self.root.join(FILE_TMP);
        let file = self.fs.open(&tmp, OpenMode::Create)?;
        file.write_at(&out, 0)?;
        file.sync_data()?;
        self.fs.rename(&tmp, &self.root.join(FILE))?;
        self.fs.sync_dir(&self.root)
    }
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<NodeId, u64>, &'static str> {
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or("it is too short")?;
    if checksum::mask(checksum::crc32c(body)) != u32::from_le_bytes(*crc) {
        return Err("its checksum is wrong");
    }
    let mut r = Reader::new(body);
    let mut read = || {
        let is_known = r.array::<8>()? == *MAGIC && r.u32()? == VERSION;
        let mut seen = BTreeMap::new();
        for _ in 0..r.u32()? {
            seen.insert(r.u64()?, r.u64()?);
        }
        (is_known && r.is_empty()).then_some(seen)
    };
    read().ok_or("its format is not known to this build")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use firn_io::fs::mem::{CrashMode, MemFs};

    use super::*;

    fn open(disk: &MemFs) -> firn_io::Result<Known> {
        Known::open(Arc::new(disk.clone()), PathBuf::from("/node"))
    }

    #[test]
    fn what_was_seen_survives_a_power_cut() {
        let disk = MemFs::new();
        disk.create_dir_durable(Path::new("/node")).unwrap();
        let known = open(&disk).unwrap();
        known.check(2, 77).unwrap();
        known.check(3, 78).unwrap();
        known.check(2, 77).unwrap();
        let after = open(&disk.crash(1, CrashMode::DropUnsynced)).unwrap();
        assert_eq!(after.incarnation(3), Some(78));
        let error = after.check(2, 79).unwrap_err();
        assert!(error.contains("give it a new number"), "{error}");
        after.check(2, 77).unwrap();
        disk.flip_bit("/node/PEERS", 20, 0).unwrap();
        assert!(open(&disk).is_err());
    }

    #[test]
    fn golden_bytes() {
        let disk = MemFs::new();
        disk.create_dir_durable(Path::new("/node")).unwrap();
        open(&disk).unwrap().check(2, 0x0304).unwrap();
        let bytes = disk.read_file("/node/PEERS").unwrap();
        let mut want =
            b"FIRNSEEN\x01\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\x04\x03\0\0\0\0\0\0".to_vec();
        let crc = checksum::mask(checksum::crc32c(&want));
        put_u32(&mut want, crc);
        assert_eq!(bytes, want);
    }
}
