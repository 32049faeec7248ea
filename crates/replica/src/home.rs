//! The directory of a node.
//!
//! ```text
//! HOME                 whose it is, and which of the directories below is the state
//! raft/                the replicated log (see `log_store`)
//! state-000001/        the engine's directory
//! snapshots/3-1200/    a snapshot for others: hard links to the engine's files
//! incoming/            a snapshot of another node's on its way here (see `transfer`)
//! ```
//!
//! A directory that was a database of its own before keeps its engine where it is: then the state is
//! the directory itself, number 0, and nothing is copied.
//!
//! ```text
//! HOME   magic 8 bytes "FIRNHOME" | version u32 (2) | node u64 | incarnation u64 | state u64
//!        | installed: u8 0, or 1 and term u64, index u64 | crc u32 (masked CRC-32C of all before)
//! ```
//!
//! The *incarnation* is drawn when the directory is made and never changes: a disk that was wiped
//! comes back with another one, which the other nodes notice (the number of a node is given once).
//! Version 1 had none; it is drawn when such a file is read first, and the file written anew.
//!
//! *Installed* is the last entry in the snapshot that the state began with, if it did: until the log
//! knows of it, the log may end before it.
//!
//! HOME is written beside and renamed into place, with the directory synced, so there is always the
//! old one or the new one. A crash while a snapshot is put into place leaves either the old state in
//! force and a directory that nobody names, or the new one; what nobody names goes with the next
//! opening. Snapshots for others do not outlive the process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use firn_io::checksum;
use firn_io::codec::{Reader, put_u8, put_u32, put_u64};
use firn_io::fs::{Fs, OpenMode};
use firn_io::rng::Entropy;

use crate::error::{Error, Result};
use crate::types::{LogId, NodeId};

const HOME: &str = "HOME";
const HOME_TMP: &str = "HOME.tmp";
const MAGIC: &[u8; 8] = b"FIRNHOME";
const VERSION: u32 = 2;
const VERSION_WITHOUT_INCARNATION: u32 = 1;

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Home {
    fs: Arc<dyn Fs>,
    root: PathBuf,
    node: NodeId,
    incarnation: u64,
    state: u64,
    installed: Option<LogId>,
}

/// The number in the name of a state's directory, half-made or not.
fn state_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix("state-")?;
    let number = number.strip_suffix(".partial").unwrap_or(number);
    number.parse().ok()
}

impl Home {
    /// Opens the directory of node `node`, or makes it one. Errors: it is another node's; HOME is
    /// damaged, or missing where there is a log. Not to be called while the node runs: snapshots for
    /// others are removed.
    pub fn open(fs: Arc<dyn Fs>, root: &Path, node: NodeId, entropy: &dyn Entropy) -> Result<Self> {
        let mut home = Self {
            fs,
            root: root.to_path_buf(),
            node,
            incarnation: 0,
            state: 1,
            installed: None,
        };
        let path = root.join(HOME);
        if home.fs.exists(&path)? {
            home.read(&path)?;
            if home.incarnation == 0 {
                home.incarnation = entropy.next_u64().max(1);
                home.write()?;
            }
        } else {
            if home.fs.exists(&home.log_dir())? {
                let detail = "it is missing, but there is a replicated log";
                return Err(firn_io::Error::corruption(&path, 0, detail).into());
            }
            home.fs.create_dir_durable(root)?;
            if home.fs.exists(&root.join("CURRENT"))? {
                home.state = 0;
            }
            home.incarnation = entropy.next_u64().max(1);
            home.write()?;
        }
        home.tidy()?;
        Ok(home)
    }

    fn read(&mut self, path: &Path) -> Result<()> {
        let file = self.fs.open(path, OpenMode::Read)?;
        let mut bytes = vec![0; 64];
        let len = file.read_at(&mut bytes, 0)?;
        bytes.truncate(len);
        let damaged = |detail: &str| Error::from(firn_io::Error::corruption(path, 0, detail));
        let (body, crc) = bytes
            .split_last_chunk::<4>()
            .ok_or_else(|| damaged("it is too short"))?;
        if checksum::mask(checksum::crc32c(body)) != u32::from_le_bytes(*crc) {
            return Err(damaged("its checksum is wrong"));
        }
        let mut r = Reader::new(body);
        let mut parse = || {
            let is_ours = r.array::<8>()? == *MAGIC;
            let version = r.u32()?;
            let node = r.u64()?;
            let incarnation = match version {
                VERSION => r.u64()?,
                VERSION_WITHOUT_INCARNATION => 0,
                _ => return None,
            };
            let state = r.u64()?;
            let installed = match r.u8()? {
                0 => None,
                _ => Some(LogId {
                    term: r.u64()?,
                    index: r.u64()?,
                }),
            };
            (is_ours && r.is_empty()).then_some((node, incarnation, state, installed))
        };
        let (node, incarnation, state, installed) =
            parse().ok_or_else(|| damaged("its format is not known to this build"))?;
        if node != self.node {
            return Err(Error::InvalidArgument(format!(
                "{}: it belongs to node {node}, not to node {}",
                self.root.display(),
                self.node
            )));
        }
        (self.incarnation, self.state, self.installed) = (incarnation, state, installed);
        Ok(())
    }

    fn write(&self) -> Result<()> {
        let mut out = MAGIC.to_vec();
        put_u32(&mut out, VERSION);
        put_u64(&mut out, self.node);
        put_u64(&mut out, self.incarnation);
        put_u64(&mut out, self.state);
        put_u8(&mut out, u8::from(self.installed.is_some()));
        if let Some(id) = self.installed {
            put_u64(&mut out, id.term);
            put_u64(&mut out, id.index);
        }
        let crc = checksum::mask(checksum::crc32c(&out));
        put_u32(&mut out, crc);
        let tmp = self.root.join(HOME_TMP);
        let file = self.fs.open(&tmp, OpenMode::Create)?;
        file.write_at(&out, 0)?;
        file.sync_data()?;
        self.fs.rename(&tmp, &self.root.join(HOME))?;
        self.fs.sync_dir(&self.root)?;
        Ok(())
    }

    /// Removes states that are not in force, and snapshots.
    fn tidy(&self) -> Result<()> {
        for entry in self.fs.list(&self.root)? {
            let number = state_number(&entry.name);
            let is_current = entry.name == self.state_name(self.state);
            if entry.is_dir && number.is_some() && !is_current {
                self.fs.remove_dir_all(&self.root.join(&entry.name))?;
            }
        }
        let snapshots = self.snapshots();
        if self.fs.exists(&snapshots)? {
            for entry in self.fs.list(&snapshots)? {
                self.fs.remove_dir_all(&snapshots.join(&entry.name))?;
            }
        }
        Ok(())
    }

    fn state_name(&self, state: u64) -> String {
        format!("state-{state:06}")
    }

    /// Notes that the state begins with this entry although no snapshot brought it: the directory
    /// was a database of its own.
    pub(crate) fn begin_at(&mut self, installed: LogId) -> Result<()> {
        if self.installed == Some(installed) {
            return Ok(());
        }
        self.installed = Some(installed);
        self.write()
    }

    /// Which making of this directory it is: never 0, and with near certainty no other one's.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Where the log is.
    pub fn log_dir(&self) -> PathBuf {
        self.root.join("raft")
    }

    /// Where the state is that is in force.
    pub fn state_dir(&self) -> PathBuf {
        match self.state {
            0 => self.root.clone(),
            state => self.root.join(self.state_name(state)),
        }
    }

    /// Where snapshots for others are.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// Where a snapshot of another node's arrives.
    pub fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// The last entry in the snapshot that the state began with.
    pub fn installed(&self) -> Option<LogId> {
        self.installed
    }

    /// A directory for a state that is in the making; whatever was there is gone.
    pub fn begin_state(&self) -> Result<PathBuf> {
        let name = self.state_name(self.state + 1);
        let partial = self.root.join(format!("{name}.partial"));
        for dir in [self.root.join(name), partial.clone()] {
            if self.fs.exists(&dir)? {
                self.fs.remove_dir_all(&dir)?;
            }
        }
        self.fs.create_dir_durable(&partial)?;
        Ok(partial)
    }

    /// Puts the state that was begun, and whose files are durable, into force. The old one stays
    /// until the next opening.
    pub fn switch(&mut self, installed: Option<LogId>) -> Result<()> {
        let next = self.state + 1;
        let name = self.state_name(next);
        let partial = self.root.join(format!("{name}.partial"));
        self.fs.sync_dir(&partial)?;
        self.fs.rename(&partial, &self.root.join(name))?;
        self.fs.sync_dir(&self.root)?;
        let before = (self.state, self.installed);
        (self.state, self.installed) = (next, installed);
        let written = self.write();
        if written.is_err() {
            (self.state, self.installed) = before;
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use firn_io::fs::fault::{FaultFs, Verdict};
    use firn_io::fs::mem::{CrashMode, MemFs};
    use firn_io::rng::SeededEntropy;
    use parking_lot::Mutex;

    use super::*;

    const ROOT: &str = "/node";

    fn open(disk: &MemFs) -> Result<Home> {
        open_as(disk, 7, 1)
    }

    fn open_as(disk: &MemFs, node: NodeId, seed: u64) -> Result<Home> {
        let entropy = SeededEntropy::new(seed);
        Home::open(Arc::new(disk.clone()), Path::new(ROOT), node, &entropy)
    }

    #[test]
    fn an_incarnation_is_for_the_life_of_a_directory() {
        let disk = MemFs::new();
        let first = open_as(&disk, 7, 1).unwrap().incarnation();
        assert_ne!(first, 0);
        let after_power_loss = disk.crash(1, CrashMode::DropUnsynced);
        let again = open_as(&after_power_loss, 7, 2).unwrap();
        assert_eq!(again.incarnation(), first);
        let wiped = open_as(&MemFs::new(), 7, 2).unwrap();
        assert_ne!(wiped.incarnation(), first);
    }

    #[test]
    fn a_directory_from_before_incarnations_gets_one() {
        let disk = MemFs::new();
        disk.create_dir_durable(Path::new(ROOT)).unwrap();
        let mut bytes = MAGIC.to_vec();
        put_u32(&mut bytes, VERSION_WITHOUT_INCARNATION);
        put_u64(&mut bytes, 7);
        put_u64(&mut bytes, 3);
        put_u8(&mut bytes, 0);
        let crc = checksum::mask(checksum::crc32c(&bytes));
        put_u32(&mut bytes, crc);
        disk.write_file("/node/HOME", &bytes).unwrap();
        let home = open_as(&disk, 7, 1).unwrap();
        assert_eq!(home.state_dir(), Path::new("/node/state-000003"));
        assert_ne!(home.incarnation(), 0);
        let again = open_as(&disk.crash(1, CrashMode::DropUnsynced), 7, 2).unwrap();
        assert_eq!(again.incarnation(), home.incarnation());
    }

    #[test]
    fn a_directory_belongs_to_one_node() {
        let disk = MemFs::new();
        let home = open(&disk).unwrap();
        assert_eq!(home.state_dir(), Path::new("/node/state-000001"));
        assert!(open(&disk.crash(1, CrashMode::DropUnsynced)).is_ok());
        let other = open_as(&disk, 8, 1);
        assert!(other.unwrap_err().to_string().contains("belongs to node 7"));
        disk.flip_bit("/node/HOME", 14, 0).unwrap();
        let error = open(&disk).unwrap_err().to_string();
        assert!(error.contains("checksum"), "{error}");
        disk.remove_file(Path::new("/node/HOME")).unwrap();
        disk.create_dir_all(Path::new("/node/raft")).unwrap();
        assert!(open(&disk).is_err(), "a log without HOME");
    }

    #[test]
    fn a_database_of_its_own_stays_where_it_is() {
        let disk = MemFs::new();
        disk.create_dir_durable(Path::new(ROOT)).unwrap();
        disk.write_file("/node/CURRENT", b"MANIFEST-000001\n")
            .unwrap();
        let mut home = open(&disk).unwrap();
        assert_eq!(home.state_dir(), Path::new(ROOT));
        home.begin_state().unwrap();
        home.switch(None).unwrap();
        assert_eq!(home.state_dir(), Path::new("/node/state-000001"));
    }

    /// Power is lost before every operation of a switch: the old state or the new one is in force,
    /// and the new one is whole.
    #[test]
    fn a_switch_is_all_or_nothing() {
        let disk = MemFs::new();
        open(&disk).unwrap();
        let old = Path::new("/node/state-000001");
        disk.create_dir_durable(old).unwrap();
        let images = Arc::new(Mutex::new(Vec::new()));
        let fault = FaultFs::new(Arc::new(disk.clone()), 1);
        let (under, seen) = (disk.clone(), Arc::clone(&images));
        fault.set_hook(Box::new(move |_, _| {
            let mut seen = seen.lock();
            for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn] {
                let seed = seen.len() as u64;
                seen.push(under.crash(seed, mode));
            }
            Verdict::Proceed
        }));
        let installed = Some(LogId { term: 3, index: 9 });
        let entropy = SeededEntropy::new(1);
        let mut home = Home::open(Arc::new(fault), Path::new(ROOT), 7, &entropy).unwrap();
        let partial = home.begin_state().unwrap();
        let file = home
            .fs
            .open(&partial.join("data"), OpenMode::CreateNew)
            .unwrap();
        file.write_at(b"whole", 0).unwrap();
        file.sync_data().unwrap();
        home.switch(installed).unwrap();
        images.lock().push(disk.crash(0, CrashMode::DropUnsynced));
        let mut switched = 0;
        for image in images.lock().iter() {
            let home = open(image).unwrap();
            if home.installed() == installed {
                switched += 1;
                let data = image.read_file("/node/state-000002/data").unwrap();
                assert_eq!(data, b"whole");
            } else {
                assert_eq!(home.state_dir(), old);
                assert!(image.exists(old).unwrap());
            }
            let dirs = image.list(Path::new(ROOT)).unwrap();
            let states = dirs.iter().filter(|entry| entry.is_dir).count();
            assert!(states <= 1, "{dirs:?}");
        }
        assert!(switched > 0);
    }
}
