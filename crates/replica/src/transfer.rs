//! How a snapshot gets from one node to another, over any [`Transport`].
//!
//! # The steps
//!
//! 1. *Offer*: the sender says what the snapshot is of, and name, length and XXH3 of each of its files.
//!    The receiver answers how much of each it has already: all of it if an earlier transfer brought
//!    it or a file of its own state is the same one (same name, length and hash: most are, after a
//!    short absence), a beginning of it if a transfer was cut short, or nothing.
//! 2. *Chunks* bring the rest, file by file, each file in order; several are on their way at once. Each
//!    has its own CRC-32C, and a file is taken only if its hash is right in the end. The sender keeps
//!    to a rate, so that the log, which goes over another connection, has the larger share of the
//!    network and of the disk.
//! 3. *Install*: the receiver puts the files together under their names, consensus installs them
//!    ([`crate::machine`]), and the answer says whom the receiver follows.
//!
//! Every step may be repeated, and what was lost on the way is asked for by offering again.
//!
//! # On the receiver's disk
//!
//! ```text
//! incoming/0123456789abcdef-4096    a file of the snapshot: its XXH3 and its length
//! incoming/ready/000012.sst         the same by name, as links, while it is installed
//! ```
//!
//! The names are what the files shall contain, so that what is there may be used by whatever snapshot
//! comes next, from whatever sender, and nothing of another file's can get into one. Nothing in the
//! directory is trusted for being there: what was not received in this process is read and hashed
//! before it counts. It may therefore go at any time, and does, when nothing came for
//! [`KEEP_INCOMING`].
//!
//! # A crash between any two steps
//!
//! The old state stays in force until consensus switches to the new one, which is one rename (see
//! [`crate::home`]). Files are synced before they count as complete, and the directory with the links
//! before the installation begins. Of the sender nothing is on the disk but the snapshot itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use firn_engine::names::{self, FileKind};
use firn_io::Env;
use firn_io::checksum::crc32c;
use firn_io::exec::Priority;
use firn_io::fs::{File, OpenMode};
use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, Result};
use crate::machine::Snapshot;
use crate::message::{
    Answer, MAX_CHUNK_BYTES, MAX_FILE_NAME_BYTES, MAX_SNAPSHOT_FILES, Refusal, Request,
    SnapshotChunk, SnapshotFile, SnapshotMeta,
};
use crate::transport::{BoxFuture, Class, Peer, Transport, TransportError};
use crate::types::{LogId, Vote};

/// What a transfer brought stays this long after the last word of it.
pub const KEEP_INCOMING: Duration = Duration::from_secs(600);
/// This much of the receiver's disk stays free.
pub const RESERVE_BYTES: u64 = 64 << 20;
/// A file is hashed in pieces of this size, so that other background work has its turn.
const HASH_BYTES: usize = 1 << 20;
/// Offers in one attempt to send. Consensus makes the next attempt.
const MAX_OFFERS: usize = 16;
/// Pause before an offer that follows a step that failed.
const PAUSE: Duration = Duration::from_millis(50);
/// The directory with the links, in `incoming`.
const READY: &str = "ready";

/// How snapshots are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferOptions {
    /// Bytes of a chunk, at most [`MAX_CHUNK_BYTES`]. Default: 1 MiB.
    pub chunk_bytes: usize,
    /// Chunks that are on their way at once. Default: 4.
    pub in_flight: usize,
    /// Bytes a second to one receiver; 0: no limit. Default: 64 MiB.
    pub bytes_per_second: u64,
    /// How long a step may be without an answer before it is repeated. Default: 10 s.
    pub timeout: Duration,
}

impl Default for TransferOptions {
    fn default() -> Self {
        Self {
            chunk_bytes: 1 << 20,
            in_flight: 4,
            bytes_per_second: 64 << 20,
            timeout: Duration::from_secs(10),
        }
    }
}

/// Does `work`, which is short, in the background and waits for it without holding up the thread.
async fn in_background<T: Send + 'static>(
    env: &Env,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (tell, told) = oneshot::channel();
    let job = move || {
        // Whoever asked may be gone.
        let _ = tell.send(work());
    };
    // Not behind a compaction: the other side waits.
    env.exec.submit(Priority::High, Box::new(job));
    told.await.unwrap_or(Err(Error::Closed))
}

/// Hashes the first `bytes` of a file, in pieces. `None`: it is shorter.
async fn hash_file(env: &Env, file: &Arc<dyn File>, bytes: u64) -> Result<Option<Box<Xxh3>>> {
    let mut hash = Box::new(Xxh3::new());
    let mut offset = 0;
    while offset < bytes {
        let file = Arc::clone(file);
        let piece = (bytes - offset).min(HASH_BYTES as u64);
        let hashed = in_background(env, move || {
            let mut buffer = vec![0; (piece as usize).min(256 << 10)];
            let mut done = 0;
            while done < piece {
                let want = (piece - done).min(buffer.len() as u64) as usize;
                let read = file.read_at(&mut buffer[..want], offset + done)?;
                if read == 0 {
                    return Ok(None);
                }
                hash.update(&buffer[..read]);
                done += read as u64;
            }
            Ok(Some(hash))
        });
        match hashed.await? {
            Some(next) => hash = next,
            None => return Ok(None),
        }
        offset += piece;
    }
    Ok(Some(hash))
}

/// The files of a snapshot that is to be sent.
pub(crate) async fn list_files(env: &Env, snapshot: &Snapshot) -> Result<Arc<[SnapshotFile]>> {
    let (fs, dir) = snapshot.location();
    let (fs, dir) = (Arc::clone(fs), dir.to_path_buf());
    let listed = in_background(env, {
        let (fs, dir) = (Arc::clone(&fs), dir.clone());
        move || Ok(fs.list(&dir)?)
    });
    let mut entries = listed.await?;
    entries.retain(|entry| !entry.is_dir);
    entries.sort_unstable();
    if entries.len() > MAX_SNAPSHOT_FILES {
        return Err(Error::Failed(format!(
            "{}: {} files, at most {MAX_SNAPSHOT_FILES} make a snapshot",
            dir.display(),
            entries.len()
        )));
    }
    let mut files = Vec::with_capacity(entries.len());
    for entry in entries {
        let file = fs.open(&dir.join(&entry.name), OpenMode::Read)?;
        let bytes = file.len()?;
        let hash = hash_file(env, &file, bytes).await?;
        let hash = hash.ok_or_else(|| {
            let detail = format!("{}: it shrinks", file.path().display());
            Error::Failed(detail)
        })?;
        files.push(SnapshotFile {
            name: entry.name,
            bytes,
            checksum: hash.digest(),
        });
    }
    Ok(files.into())
}

/// What is needed to send.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    pub(crate) env: Env,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) options: TransferOptions,
}

/// What became of a round of chunks.
enum Sent {
    /// All are there.
    All,
    /// Something was lost, or the receiver has something else than was thought.
    OfferAgain,
}

impl Sender {
    /// Brings a snapshot to a node and has it installed there. Answers whom that node follows by
    /// then. Dropping the future gives up; what is there by then is not sent again.
    pub(crate) async fn send(
        self,
        to: Peer,
        vote: Vote,
        snapshot: Snapshot,
    ) -> std::result::Result<Vote, TransportError> {
        let failed = |error: Error| TransportError::Unreachable(format!("the snapshot: {error}"));
        let listed = snapshot.listed();
        let files = listed.get_or_try_init(|| list_files(&self.env, &snapshot));
        let files = Arc::clone(files.await.map_err(failed)?);
        let offer: Bytes = Request::SnapshotOffer {
            vote,
            meta: snapshot.meta.clone(),
            files: files.to_vec(),
        }
        .encode()
        .into();
        let last = snapshot.meta.last;
        let mut problem = TransportError::Timeout;
        for round in 0..MAX_OFFERS {
            if round > 0 {
                sleep(PAUSE).await;
            }
            let have = match self.ask(&to, offer.clone()).await {
                Ok(Answer::SnapshotHave(have)) => have,
                Ok(Answer::Installed(follows)) => return Ok(follows),
                Ok(other) => return Err(refused(&to, other)),
                Err(TransportError::Unreachable(detail)) => {
                    return Err(TransportError::Unreachable(detail));
                }
                Err(lost) => {
                    problem = lost;
                    continue;
                }
            };
            let is_possible = have.len() == files.len()
                && have
                    .iter()
                    .zip(&*files)
                    .all(|(have, file)| *have <= file.bytes);
            if !is_possible {
                let detail = "it claims to have what does not exist".to_owned();
                return Err(refused(&to, Answer::Refused(Refusal::Malformed(detail))));
            }
            match self.send_chunks(&to, &snapshot, &files, &have).await? {
                Sent::All => {}
                Sent::OfferAgain => continue,
            }
            let install = Request::SnapshotInstall { vote, last }.encode().into();
            match self.ask(&to, install).await {
                Ok(Answer::Installed(follows)) => return Ok(follows),
                // Something is missing after all.
                Ok(Answer::Refused(Refusal::Malformed(detail))) => {
                    problem = TransportError::Unreachable(detail);
                }
                Ok(other) => return Err(refused(&to, other)),
                Err(TransportError::Unreachable(detail)) => {
                    return Err(TransportError::Unreachable(detail));
                }
                Err(lost) => problem = lost,
            }
        }
        Err(problem)
    }

    async fn ask(&self, to: &Peer, request: Bytes) -> std::result::Result<Answer, TransportError> {
        let call = self
            .transport
            .call(to, Class::Bulk, request, self.options.timeout);
        decode(to, call.await)
    }

    async fn send_chunks(
        &self,
        to: &Peer,
        snapshot: &Snapshot,
        files: &[SnapshotFile],
        have: &[u64],
    ) -> std::result::Result<Sent, TransportError> {
        let failed = |error: Error| TransportError::Unreachable(format!("the snapshot: {error}"));
        let (fs, dir) = snapshot.location();
        let mut under_way: VecDeque<BoxFuture<'static, _>> = VecDeque::new();
        let mut due = Instant::now();
        for (number, (file, &have)) in files.iter().zip(have).enumerate() {
            if have == file.bytes {
                continue;
            }
            let source = fs.open(&dir.join(&file.name), OpenMode::Read);
            let source = source.map_err(|error| failed(error.into()))?;
            let mut offset = have;
            while offset < file.bytes {
                let most = self.options.chunk_bytes.clamp(1, MAX_CHUNK_BYTES) as u64;
                let bytes = self.read(&source, offset, most.min(file.bytes - offset));
                let bytes = bytes.await.map_err(failed)?;
                if let Some(rate) = Some(self.options.bytes_per_second).filter(|&rate| rate > 0) {
                    sleep_until(due).await;
                    let takes = (bytes.len() as u64).saturating_mul(1_000_000) / rate;
                    due = due.max(Instant::now()) + Duration::from_micros(takes);
                }
                let next = offset + bytes.len() as u64;
                let chunk = Request::SnapshotChunk(SnapshotChunk {
                    last: snapshot.meta.last,
                    file: number as u32,
                    offset,
                    crc: crc32c(&bytes),
                    bytes,
                });
                let request = chunk.encode().into();
                let timeout = self.options.timeout;
                under_way.push_back(self.transport.call(to, Class::Bulk, request, timeout));
                offset = next;
                if under_way.len() >= self.options.in_flight.max(1)
                    && let Some(oldest) = under_way.pop_front()
                    && !is_taken(to, oldest.await)?
                {
                    return Ok(Sent::OfferAgain);
                }
            }
        }
        for call in under_way {
            if !is_taken(to, call.await)? {
                return Ok(Sent::OfferAgain);
            }
        }
        Ok(Sent::All)
    }

    async fn read(&self, file: &Arc<dyn File>, offset: u64, bytes: u64) -> Result<Bytes> {
        let file = Arc::clone(file);
        in_background(&self.env, move || {
            let mut buffer = vec![0; bytes as usize];
            file.read_exact_at(&mut buffer, offset)?;
            Ok(buffer.into())
        })
        .await
    }
}

fn decode(
    to: &Peer,
    answer: std::result::Result<Bytes, TransportError>,
) -> std::result::Result<Answer, TransportError> {
    let decoded = Answer::decode(&answer?);
    decoded.map_err(|error| TransportError::Unreachable(format!("node {}: {error}", to.id)))
}

fn refused(to: &Peer, answer: Answer) -> TransportError {
    let why = match answer {
        Answer::Refused(Refusal::Failed(detail) | Refusal::Malformed(detail)) => detail,
        other => format!("{other:?}"),
    };
    TransportError::Unreachable(format!("node {} refuses the snapshot: {why}", to.id))
}

/// Whether a chunk is there. If not, another offer may help, unless there is an error.
fn is_taken(
    to: &Peer,
    answer: std::result::Result<Bytes, TransportError>,
) -> std::result::Result<bool, TransportError> {
    match decode(to, answer) {
        Ok(Answer::ChunkTaken) => Ok(true),
        Ok(Answer::Refused(Refusal::Malformed(_))) => Ok(false),
        Ok(other) => Err(refused(to, other)),
        Err(TransportError::Unreachable(detail)) => Err(TransportError::Unreachable(detail)),
        Err(TransportError::Timeout | TransportError::Lost(_)) => Ok(false),
    }
}

/// A file that is on its way here.
#[derive(Debug)]
struct Incoming {
    file: SnapshotFile,
    have: u64,
}

/// The file whose chunks are coming now.
struct Open {
    number: usize,
    file: Arc<dyn File>,
    /// Of what is there of it.
    hash: Box<Xxh3>,
}

struct Arriving {
    vote: Vote,
    meta: SnapshotMeta,
    files: Vec<Incoming>,
    /// Some of the files have the same contents.
    has_twins: bool,
    open: Option<Open>,
}

impl Arriving {
    /// A file is whole; one with the same contents is the same file here.
    fn complete(&mut self, whole: &SnapshotFile) {
        if self.has_twins {
            for twin in self
                .files
                .iter_mut()
                .filter(|twin| slot(&twin.file) == slot(whole))
            {
                twin.have = whole.bytes;
            }
        }
    }
}

#[derive(Default)]
struct InboxState {
    arriving: Option<Arriving>,
    /// What was installed last, and what was answered: the answer may have been lost.
    done: Option<(Vote, Option<LogId>, Vote)>,
    /// The last word of a transfer, or the start of the node.
    touched: Option<Instant>,
    is_swept: bool,
}

/// The receiver's end. One snapshot comes at a time; another offer takes the place of the one before.
pub(crate) struct Inbox {
    env: Env,
    dir: PathBuf,
    state: Mutex<InboxState>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

fn malformed<T>(detail: impl Into<String>) -> std::result::Result<T, Refusal> {
    Err(Refusal::Malformed(detail.into()))
}

fn cannot(what: &str, error: &dyn fmt::Display) -> Refusal {
    Refusal::Failed(format!("{what}: {error}"))
}

/// Names come from another node and become names in a directory of this one.
fn is_plain_name(name: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !name.is_empty()
        && name.len() <= MAX_FILE_NAME_BYTES
        && !name.starts_with('.')
        && name.bytes().all(is_plain)
}

fn slot(file: &SnapshotFile) -> String {
    format!("{:016x}-{}", file.checksum, file.bytes)
}

fn check_offer(files: &[SnapshotFile]) -> std::result::Result<(), Refusal> {
    let mut names = BTreeSet::new();
    let mut total = 0_u64;
    for file in files {
        if !is_plain_name(&file.name) {
            return malformed(format!("{:?} is no name of a file", file.name));
        }
        if !names.insert(file.name.as_str()) {
            return malformed(format!("{} is there twice", file.name));
        }
        total = match total.checked_add(file.bytes) {
            Some(total) => total,
            None => return malformed("its files are longer than any disk"),
        };
    }
    Ok(())
}

impl Inbox {
    pub(crate) fn new(env: Env, dir: PathBuf) -> Self {
        Self {
            env,
            dir,
            state: Mutex::default(),
        }
    }

    /// A snapshot is at hand: how much of each file is there? `own` is the state in force, which may
    /// have the same files.
    pub(crate) async fn offer(
        &self,
        (vote, meta, files): (Vote, SnapshotMeta, Vec<SnapshotFile>),
        own: &Path,
    ) -> std::result::Result<Answer, Refusal> {
        let state = &mut *self.state.lock().await;
        state.touched = Some(Instant::now());
        if let Some((by, last, follows)) = state.done
            && (by, last) == (vote, meta.last)
        {
            return Ok(Answer::Installed(follows));
        }
        let is_same = state.arriving.as_ref().is_some_and(|arriving| {
            let offered = arriving.files.iter().map(|incoming| &incoming.file);
            arriving.vote == vote && arriving.meta == meta && offered.eq(&files)
        });
        if !is_same {
            check_offer(&files)?;
            state.arriving = None;
            state.is_swept = false;
            let found = self.prepare(&files, own).await;
            let files = found.map_err(|error| cannot("preparing for a snapshot", &error))?;
            self.check_space(&files)?;
            let slots: BTreeSet<String> = files.iter().map(|i| slot(&i.file)).collect();
            state.arriving = Some(Arriving {
                vote,
                meta,
                has_twins: slots.len() < files.len(),
                files,
                open: None,
            });
        }
        let arriving = state.arriving.iter().flat_map(|arriving| &arriving.files);
        Ok(Answer::SnapshotHave(arriving.map(|i| i.have).collect()))
    }

    fn check_space(&self, files: &[Incoming]) -> std::result::Result<(), Refusal> {
        let missing: u64 = files.iter().map(|i| i.file.bytes - i.have).sum();
        let space = self.env.fs.space(&self.dir);
        let available = space
            .map_err(|error| cannot("looking for space", &error))?
            .available;
        if available < missing.saturating_add(RESERVE_BYTES) {
            return Err(Refusal::Failed(format!(
                "it needs {missing} bytes more, and {RESERVE_BYTES} bytes shall stay free, but the disk \
                 of {} has {available}",
                self.dir.display()
            )));
        }
        Ok(())
    }

    /// Looks what is there of each file already. Everything else in the directory goes.
    async fn prepare(&self, files: &[SnapshotFile], own: &Path) -> Result<Vec<Incoming>> {
        let wanted: BTreeSet<String> = files.iter().map(slot).collect();
        let (env, dir, own_dir) = (self.env.clone(), self.dir.clone(), own.to_path_buf());
        let list = move || {
            let fs = &env.fs;
            fs.create_dir_durable(&dir)?;
            let mut found = BTreeMap::new();
            for entry in fs.list(&dir)? {
                let path = dir.join(&entry.name);
                if entry.is_dir {
                    fs.remove_dir_all(&path)?;
                } else if wanted.contains(&entry.name) {
                    found.insert(entry.name, entry.len);
                } else {
                    fs.remove_file(&path)?;
                }
            }
            let own = fs.list(&own_dir)?.into_iter();
            let own: BTreeMap<String, u64> = own.map(|entry| (entry.name, entry.len)).collect();
            Ok((found, own))
        };
        let (found, own_files) = in_background(&self.env, list).await?;
        let mut incoming = Vec::with_capacity(files.len());
        let mut whole = BTreeSet::new();
        for file in files {
            let path = self.dir.join(slot(file));
            let have = match found.get(&slot(file)) {
                _ if whole.contains(&slot(file)) => file.bytes,
                Some(&have) if have < file.bytes => have,
                Some(_) => self.verified(file, &path).await?,
                None if own_files.get(&file.name) == Some(&file.bytes) => {
                    self.link_own(file, &own.join(&file.name), &path).await?
                }
                None => 0,
            };
            if file.bytes == 0 {
                self.env.fs.open(&path, OpenMode::Create)?.sync_data()?;
            }
            if have == file.bytes {
                whole.insert(slot(file));
            }
            incoming.push(Incoming {
                file: file.clone(),
                have,
            });
        }
        Ok(incoming)
    }

    /// The length of a file if it is whole. If not, it is removed.
    async fn verified(&self, file: &SnapshotFile, path: &Path) -> Result<u64> {
        let opened = self.env.fs.open(path, OpenMode::Read)?;
        let is_right = opened.len()? == file.bytes
            && hash_file(&self.env, &opened, file.bytes)
                .await?
                .is_some_and(|hash| hash.digest() == file.checksum);
        if is_right {
            // It may be from before a crash.
            let synced = in_background(&self.env, move || Ok(opened.sync_data()?));
            synced.await?;
            return Ok(file.bytes);
        }
        self.env.fs.remove_file(path)?;
        Ok(0)
    }

    /// Takes a file of the own state, if it is the same and of a kind that never changes.
    async fn link_own(&self, file: &SnapshotFile, own: &Path, path: &Path) -> Result<u64> {
        let is_final = matches!(
            names::parse(&file.name),
            Some(FileKind::Sstable(_) | FileKind::Blob(_))
        );
        // It may be compacted away at any time.
        let opened = self.env.fs.open(own, OpenMode::Read);
        let Some(opened) = opened.ok().filter(|_| is_final) else {
            return Ok(0);
        };
        let hash = hash_file(&self.env, &opened, file.bytes).await?;
        if hash.is_none_or(|hash| hash.digest() != file.checksum) {
            return Ok(0);
        }
        match self.env.fs.hard_link(own, path) {
            Ok(()) => Ok(file.bytes),
            Err(_) => Ok(0),
        }
    }

    /// A part of a file.
    pub(crate) async fn chunk(&self, chunk: SnapshotChunk) -> std::result::Result<Answer, Refusal> {
        let state = &mut *self.state.lock().await;
        state.touched = Some(Instant::now());
        let arriving = state.arriving.as_mut();
        let Some(arriving) = arriving.filter(|arriving| arriving.meta.last == chunk.last) else {
            return malformed("that snapshot was not offered");
        };
        let number = chunk.file as usize;
        let Some(incoming) = arriving.files.get_mut(number) else {
            return malformed(format!("file {number} was not offered"));
        };
        let len = chunk.bytes.len() as u64;
        let end = chunk.offset.checked_add(len);
        let end = end.filter(|&end| len > 0 && end <= incoming.file.bytes);
        let Some(end) = end else {
            return malformed(format!("a chunk beyond the end of {}", incoming.file.name));
        };
        if crc32c(&chunk.bytes) != chunk.crc {
            return malformed(format!(
                "the checksum of {} at {} is wrong",
                incoming.file.name, chunk.offset
            ));
        }
        if end <= incoming.have {
            return Ok(Answer::ChunkTaken);
        }
        if chunk.offset != incoming.have {
            return malformed(format!(
                "of {} there are {} bytes, and the chunk is at {}",
                incoming.file.name, incoming.have, chunk.offset
            ));
        }
        let path = self.dir.join(slot(&incoming.file));
        let open = arriving.open.take().filter(|open| open.number == number);
        let opened = match open {
            Some(open) => Ok(open),
            None => self.open(number, &path, incoming.have).await,
        };
        let written = match opened {
            Ok(open) => self.write(open, chunk, incoming.file.bytes).await,
            Err(error) => Err(error),
        };
        match written {
            Ok(open) if end < incoming.file.bytes => {
                incoming.have = end;
                arriving.open = Some(open);
                Ok(Answer::ChunkTaken)
            }
            Ok(open) if open.hash.digest() == incoming.file.checksum => {
                incoming.have = end;
                let whole = incoming.file.clone();
                arriving.complete(&whole);
                Ok(Answer::ChunkTaken)
            }
            Ok(_) => {
                incoming.have = 0;
                let removed = self.env.fs.remove_file(&path);
                removed.map_err(|error| cannot("removing what is damaged", &error))?;
                malformed(format!(
                    "{} arrived with another checksum than offered",
                    incoming.file.name
                ))
            }
            Err(error) => {
                // What is in the file is not known.
                state.arriving = None;
                let _ = self.env.fs.remove_file(&path);
                Err(cannot("writing a snapshot", &error))
            }
        }
    }

    /// Opens a file of which `have` bytes are there.
    async fn open(&self, number: usize, path: &Path, have: u64) -> Result<Open> {
        if have == 0 {
            // Never emptied: it might be a link to a file that is in use.
            if self.env.fs.exists(path)? {
                self.env.fs.remove_file(path)?;
            }
            return Ok(Open {
                number,
                file: self.env.fs.open(path, OpenMode::CreateNew)?,
                hash: Box::new(Xxh3::new()),
            });
        }
        let file = self.env.fs.open(path, OpenMode::ReadWrite)?;
        let hash = hash_file(&self.env, &file, have).await?;
        let hash = hash.ok_or_else(|| Error::Failed(format!("{} shrank", path.display())))?;
        Ok(Open { number, file, hash })
    }

    /// Writes a chunk; the last one is followed by a sync.
    async fn write(&self, mut open: Open, chunk: SnapshotChunk, whole: u64) -> Result<Open> {
        let write = move || {
            open.file.write_at(&chunk.bytes, chunk.offset)?;
            open.hash.update(&chunk.bytes);
            let len = chunk.bytes.len() as u64;
            if chunk.offset + len == whole {
                open.file.sync_data()?;
            } else {
                open.file.start_writeback(chunk.offset, len);
            }
            Ok(open)
        };
        in_background(&self.env, write).await
    }

    /// All parts are there: `install` puts them into force and answers whom this node follows.
    pub(crate) async fn install<F>(
        &self,
        vote: Vote,
        last: Option<LogId>,
        install: impl FnOnce(Snapshot) -> F,
    ) -> std::result::Result<Answer, Refusal>
    where
        F: Future<Output = Result<Vote>>,
    {
        let state = &mut *self.state.lock().await;
        state.touched = Some(Instant::now());
        if let Some((by, done, follows)) = state.done
            && (by, done) == (vote, last)
        {
            return Ok(Answer::Installed(follows));
        }
        let arriving = state.arriving.as_ref();
        let Some(arriving) = arriving.filter(|a| (a.vote, a.meta.last) == (vote, last)) else {
            return malformed("that snapshot was not offered");
        };
        let missing = arriving.files.iter().find(|i| i.have < i.file.bytes);
        if let Some(missing) = missing {
            return malformed(format!(
                "of {} there are {} of {} bytes",
                missing.file.name, missing.have, missing.file.bytes
            ));
        }
        let ready = self.dir.join(READY);
        let meta = arriving.meta.clone();
        let links = arriving.files.iter().map(|incoming| {
            let from = self.dir.join(slot(&incoming.file));
            (from, ready.join(&incoming.file.name))
        });
        let links: Vec<_> = links.collect();
        let (fs, to) = (Arc::clone(&self.env.fs), ready.clone());
        let linked = in_background(&self.env, move || {
            if fs.exists(&to)? {
                fs.remove_dir_all(&to)?;
            }
            fs.create_dir_durable(&to)?;
            for (from, to) in links {
                fs.hard_link(&from, &to)?;
            }
            Ok(fs.sync_dir(&to)?)
        });
        linked
            .await
            .map_err(|error| cannot("putting a snapshot together", &error))?;
        let snapshot = Snapshot::received(self.env.clone(), ready, meta);
        let installed = install(snapshot).await;
        // In force or not: what is here is of no use any more.
        state.arriving = None;
        self.sweep(state).await;
        let follows = installed.map_err(|error| cannot("installing a snapshot", &error))?;
        state.done = Some((vote, last, follows));
        Ok(Answer::Installed(follows))
    }

    /// Removes what nobody continued. Called now and then.
    pub(crate) async fn tidy(&self) {
        // Something arrives: it is not abandoned.
        let Ok(mut state) = self.state.try_lock() else {
            return;
        };
        let now = Instant::now();
        let touched = *state.touched.get_or_insert(now);
        if !state.is_swept && now.duration_since(touched) >= KEEP_INCOMING {
            state.arriving = None;
            self.sweep(&mut state).await;
        }
    }

    async fn sweep(&self, state: &mut InboxState) {
        let (fs, dir) = (Arc::clone(&self.env.fs), self.dir.clone());
        let removed = in_background(&self.env, move || {
            if fs.exists(&dir)? {
                fs.remove_dir_all(&dir)?;
            }
            Ok(())
        });
        // What is left over is in nobody's way, and goes the next time.
        state.is_swept = removed.await.is_ok();
    }
}

#[cfg(test)]
mod tests;
