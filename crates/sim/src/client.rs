//! Clients: each does one thing after the other, on any node, and notes what it was told.
//!
//! A call runs as a task of the node that serves it: it stands still when the node does, also between
//! being allowed to read and reading, and ends with it. A client waits for so long and no longer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use firn_engine::batch::Condition;
use firn_engine::key::NamespaceId;
use firn_engine::{Db, Outcome, ScanOptions, SeqNo, WriteBatch};
use firn_io::rng::Rng;
use firn_replica::{Error, Node, ReadLevel, Replicator, Write, Written};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::cluster::{Cluster, Paces};
use crate::history::{Counts, History, MAP_KEYS, Object};
use crate::lincheck::{Map, Register, Value};
use crate::net::Net;

/// What clients do.
#[derive(Clone, Copy, Debug)]
pub struct LoadSettings {
    /// How many clients there are.
    pub clients: u64,
    /// How long each thinks between calls, at most, in milliseconds.
    pub think_ms: u64,
    /// How long keys live, in milliseconds.
    pub epoch_ms: u64,
    /// Keys of an epoch that stand alone.
    pub registers: u64,
    /// Groups of keys of an epoch.
    pub maps: u64,
    /// Of ten calls so many are reads.
    pub reads_in_ten: u64,
    /// Of the reads so many in ten rely on the leader's lease.
    pub leases_in_ten: u64,
    /// How long a client waits.
    pub patience: Duration,
}

impl Default for LoadSettings {
    fn default() -> Self {
        Self {
            clients: 4,
            think_ms: 30,
            epoch_ms: 1200,
            registers: 3,
            maps: 1,
            reads_in_ten: 4,
            leases_in_ten: 0,
            patience: Duration::from_secs(3),
        }
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    history: Arc<Mutex<History>>,
    is_over: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts clients that call whatever node runs.
    pub fn start(cluster: &mut Cluster, settings: LoadSettings) -> Self {
        let history: Arc<Mutex<History>> = Arc::default();
        let is_over = Arc::new(AtomicBool::new(false));
        let epoch = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        for _ in 0..settings.clients {
            let client = Client {
                rng: Rng::new(cluster.rng.next_u64()),
                settings,
                door: cluster.door(),
                net: Arc::clone(&cluster.net),
                history: Arc::clone(&history),
                epoch: Arc::clone(&epoch),
            };
            tasks.push(tokio::spawn(client.run(Arc::clone(&is_over))));
        }
        Self {
            history,
            is_over,
            tasks,
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.history.lock().counts
    }

    /// Lets the clients end what they do.
    pub async fn stop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            // A panic is noted elsewhere.
            let _ = task.await;
        }
    }

    /// As [`Load::stop`], and hands out what they were told.
    pub async fn end(mut self) -> History {
        self.stop().await;
        std::mem::take(&mut *self.history.lock())
    }
}

struct Client {
    rng: Rng,
    settings: LoadSettings,
    door: Arc<Mutex<Paces>>,
    net: Arc<Net>,
    history: Arc<Mutex<History>>,
    epoch: Arc<AtomicU64>,
}

/// What a read found: a key's value and version, by part.
type Found = Vec<(u8, Vec<u8>, SeqNo)>;

/// What became of a call.
enum Told<T> {
    Done(T),
    /// Nothing was done.
    Refused,
    Unknown,
}

impl Client {
    async fn run(mut self, is_over: Arc<AtomicBool>) {
        while !is_over.load(Ordering::Relaxed) {
            let at = tokio::time::Instant::now().duration_since(self.net.origin());
            let epoch = at.as_millis() as u64 / self.settings.epoch_ms.max(1);
            self.epoch.store(epoch, Ordering::Relaxed);
            let any = self.settings.registers + self.settings.maps;
            let number = self.rng.below(any + 1);
            let is_read = self.rng.below(10) < self.settings.reads_in_ten;
            if number == any {
                self.register(Object::Long, is_read).await;
            } else if number < self.settings.registers {
                let object = Object::Register(epoch, number as u8);
                self.register(object, is_read).await;
            } else {
                let object = Object::Map(epoch, (number - self.settings.registers) as u8);
                self.map(object, is_read).await;
            }
            let think = self.rng.between(100, self.settings.think_ms * 1000);
            sleep(Duration::from_micros(think)).await;
        }
    }

    /// Runs a call on some node.
    async fn call<T: Send + 'static, F: Future<Output = Result<T, Error>> + Send + 'static>(
        &mut self,
        work: impl FnOnce(Node) -> F,
    ) -> Told<T> {
        let chosen = {
            let door = self.door.lock();
            let at = self.rng.index(door.len());
            door.values().nth(at).cloned()
        };
        let Some((pace, node)) = chosen else {
            sleep(Duration::from_millis(20)).await;
            return Told::Refused;
        };
        let task = pace.spawn(work(node));
        let result = timeout(self.settings.patience, task).await;
        let history = &mut *self.history.lock();
        let (told, code) = match result {
            Ok(Ok(Ok(done))) => (Told::Done(done), 0),
            Ok(Ok(Err(error))) if is_refusal(&error) => (Told::Refused, 1),
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => (Told::Unknown, 2),
        };
        history.counts.refused += u64::from(code == 1);
        self.net.note(&[code], 1 << 40);
        told
    }

    async fn read(&mut self, object: Object, parts: u8) -> Option<(u64, u64, Found)> {
        let is_lease = self.rng.below(10) < self.settings.leases_in_ten;
        let level = match is_lease {
            true => ReadLevel::Lease,
            false => ReadLevel::Linearizable,
        };
        let is_scan = parts > 1;
        let part = match is_scan {
            true => parts,
            false => 1,
        };
        // Between being allowed to read and reading there is time in which the node may stop.
        let idle = self.rng.below(300);
        let begin = self.history.lock().tick();
        let read = self.call(move |node| async move {
            let point = node.read_barrier(level).await?;
            sleep(Duration::from_micros(idle)).await;
            let found = read_all(&point.db, object, part).map_err(Error::Engine)?;
            node.confirm_lease(&point).await?;
            Ok((found, point.index))
        });
        let Told::Done((found, index)) = read.await else {
            return None;
        };
        let history = &mut *self.history.lock();
        let end = history.tick();
        history.counts.reads += 1;
        if let Some(index) = index {
            history.barrier_was(begin, end, index);
        }
        for (part, _, version) in &found {
            history.key_was_at(object.key(*part), begin, end, *version);
        }
        Some((begin, end, found))
    }

    /// Writes, and notes what is known of it. Returns when it began, when it ended if that is known,
    /// and whether it was done; `None` if it was refused.
    async fn write(
        &mut self,
        object: Object,
        writes: &[(u8, Value)],
        condition: Option<(u8, Value)>,
        clear: Option<(u8, u8)>,
    ) -> Option<(u64, Option<u64>, Option<bool>)> {
        let ns = NamespaceId(0);
        let mut batch = WriteBatch::new();
        for &(part, value) in writes {
            let key = object.key(part);
            if value == 0 {
                batch.delete(ns, &key).expect("a short key");
            } else {
                let bytes = crate::history::encode(value);
                batch.put(ns, &key, &bytes).expect("a short value");
            }
        }
        if let Some((start, end)) = clear {
            let (start, end) = (object.key(start), object.key(end));
            batch.delete_range(ns, &start, &end).expect("in order");
        }
        if let Some((part, expected)) = condition {
            let version = self.history.lock().version_of(expected);
            let condition = match version {
                Some(version) => Condition::VersionEquals(version),
                None => Condition::Absent,
            };
            let required = batch.require(ns, &object.key(part), condition);
            required.expect("a short key");
        }
        let write = Write::batch(&mut batch);
        let begin = self.history.lock().tick();
        let told = self
            .call(move |node| async move { node.propose(write).await })
            .await;
        let history = &mut *self.history.lock();
        let written = match told {
            Told::Done(written) => written,
            Told::Refused => {
                let values = writes.iter().map(|(_, value)| *value);
                values
                    .filter(|&value| value != 0)
                    .for_each(|value| history.refuse(value));
                return None;
            }
            Told::Unknown => {
                history.counts.unknown += 1;
                return Some((begin, None, None));
            }
        };
        let end = history.tick();
        let Written { id, outcome } = written;
        history.entry_was(begin, end, id.index);
        match outcome {
            Outcome::Written { first, .. } => {
                history.counts.writes += 1;
                for (&(part, value), version) in writes.iter().zip(first.0..) {
                    let version = SeqNo(version);
                    if value != 0 {
                        history.saw(value, version);
                    }
                    history.key_was_at(object.key(part), begin, end, version);
                }
                Some((begin, Some(end), Some(true)))
            }
            Outcome::ConditionFailed { .. } if condition.is_some() => {
                let values = writes.iter().map(|(_, value)| *value);
                values
                    .filter(|&value| value != 0)
                    .for_each(|value| history.refuse(value));
                Some((begin, Some(end), Some(false)))
            }
            outcome => {
                history.violation(format!("a write had the outcome {outcome:?}"));
                None
            }
        }
    }

    async fn register(&mut self, object: Object, is_read: bool) {
        if is_read {
            if let Some((begin, end, found)) = self.read(object, 1).await {
                let history = &mut *self.history.lock();
                let value = match found.first() {
                    Some((_, bytes, version)) => history.take(bytes, *version, object),
                    None => 0,
                };
                history.register(object, begin, Some(end), Register::Read(value));
            }
            return;
        }
        let fresh = self.history.lock().fresh();
        let choice = self.rng.below(10);
        if object == Object::Long || choice < 5 {
            let write = self.write(object, &[(0, fresh)], None, None).await;
            if let Some((begin, end, _)) = write {
                let mut history = self.history.lock();
                history.register(object, begin, end, Register::Write(fresh));
            }
        } else if choice < 6 {
            let write = self.write(object, &[(0, 0)], None, None).await;
            if let Some((begin, end, _)) = write {
                let mut history = self.history.lock();
                history.register(object, begin, end, Register::Write(0));
            }
        } else {
            // What is there is guessed, mostly well.
            let expected = self.guess(object, 0).await;
            let condition = Some((0, expected));
            let write = self.write(object, &[(0, fresh)], condition, None).await;
            if let Some((begin, end, is_done)) = write {
                let op = Register::Cas {
                    expected,
                    new: fresh,
                    is_done,
                };
                self.history.lock().register(object, begin, end, op);
            }
        }
    }

    /// What is under a key, by a read that is noted, or nothing.
    async fn guess(&mut self, object: Object, part: u8) -> Value {
        if self.rng.one_in(4) {
            return 0;
        }
        let whole = match object {
            Object::Map(..) => MAP_KEYS,
            _ => 1,
        };
        let Some((begin, end, found)) = self.read(object, whole).await else {
            return 0;
        };
        let history = &mut *self.history.lock();
        let values: Vec<(u8, Value)> = found
            .iter()
            .map(|(part, bytes, version)| (*part, history.take(bytes, *version, object)))
            .collect();
        let value = values.iter().find(|(found, _)| *found == part);
        let value = value.map_or(0, |(_, value)| *value);
        match object {
            Object::Map(..) => history.map(object, begin, Some(end), Map::Scan(0, whole, values)),
            _ => history.register(object, begin, Some(end), Register::Read(value)),
        }
        value
    }

    async fn map(&mut self, object: Object, is_read: bool) {
        if is_read {
            if let Some((begin, end, found)) = self.read(object, MAP_KEYS).await {
                let history = &mut *self.history.lock();
                let values = found
                    .iter()
                    .map(|(part, bytes, version)| (*part, history.take(bytes, *version, object)))
                    .collect();
                let op = Map::Scan(0, MAP_KEYS, values);
                history.map(object, begin, Some(end), op);
            }
            return;
        }
        let one = self.rng.below(u64::from(MAP_KEYS)) as u8;
        let other = self.rng.below(u64::from(MAP_KEYS)) as u8;
        let mut writes = vec![(one, self.history.lock().fresh())];
        if other != one {
            let value = match self.rng.one_in(4) {
                true => 0,
                false => self.history.lock().fresh(),
            };
            writes.push((other, value));
        }
        match self.rng.below(10) {
            0..=5 => {
                let write = self.write(object, &writes, None, None).await;
                if let Some((begin, end, _)) = write {
                    let mut history = self.history.lock();
                    history.map(object, begin, end, Map::Write(writes));
                }
            }
            6 => {
                let (start, end) = (one.min(other), one.max(other) + 1);
                let write = self.write(object, &[], None, Some((start, end))).await;
                if let Some((begin, done, _)) = write {
                    let mut history = self.history.lock();
                    history.map(object, begin, done, Map::Clear(start, end));
                }
            }
            _ => {
                let expected = self.guess(object, one).await;
                let condition = Some((one, expected));
                let write = self.write(object, &writes, condition, None).await;
                if let Some((begin, end, is_done)) = write {
                    let op = Map::WriteIf(one, expected, writes, is_done);
                    self.history.lock().map(object, begin, end, op);
                }
            }
        }
    }
}

fn read_all(db: &Db, object: Object, parts: u8) -> firn_engine::Result<Found> {
    let namespace = db.default_namespace();
    if parts == 1 {
        let entry = db.get_entry(&namespace, &object.key(0))?;
        let found = entry.map(|entry| (0, entry.value.to_vec(), entry.version));
        return Ok(found.into_iter().collect());
    }
    let mut found = Vec::new();
    let range = ScanOptions::range(object.key(0), object.key(parts));
    let mut scan = db.scan(&namespace, range)?;
    while scan.next()? {
        let part = scan.key().last().map_or(0, |digit| digit - b'0');
        found.push((part, scan.value().to_vec(), scan.version()));
    }
    Ok(found)
}

/// Whether an error says that nothing was written.
fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::NotLeader { .. } | Error::NoQuorum | Error::Overloaded | Error::InvalidArgument(_)
    )
}
