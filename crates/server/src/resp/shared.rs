//! What the connections of the door share: the service, who is connected, who listens, the slow log,
//! the positions of scans, and the parameters that `CONFIG SET` changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use firn_engine::Namespace;
use firn_io::rng::Entropy;
use parking_lot::{Mutex, RwLock};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use crate::metrics::Metrics;
use crate::resp::client::Client;
use crate::resp::parse::Args;
use crate::resp::pubsub::Hub;
use crate::resp::session::Count;
use crate::resp::table::COMMANDS;
use crate::service::{DEFAULT_NAMESPACE, Service};

/// Numbered databases.
pub const DATABASES: usize = 16;
/// Positions of scans that are remembered; the oldest is forgotten first.
const CURSORS: usize = 65_536;
/// Bytes of keys in them.
const CURSOR_BYTES: usize = 16 << 20;
/// Arguments, and bytes of each, that a line of the slow log keeps.
const SLOW_ARGS: usize = 32;
const SLOW_ARG_BYTES: usize = 128;

/// A write that others may be told of.
#[derive(Clone, Debug)]
pub struct Event {
    /// The number of the database.
    pub db: usize,
    /// Which flag of `notify-keyspace-events` asks for it.
    pub class: u32,
    /// What happened.
    pub name: &'static str,
    /// To which key.
    pub key: Vec<u8>,
}

/// The flags of `notify-keyspace-events`, by their letters.
pub const NOTIFY: &[(u8, u32)] = &[
    (b'K', notify::KEYSPACE),
    (b'E', notify::KEYEVENT),
    (b'g', notify::GENERIC),
    (b'$', notify::STRING),
    (b'l', 1 << 4),
    (b's', 1 << 5),
    (b'h', 1 << 6),
    (b'z', 1 << 7),
    (b'x', 1 << 8),
    (b'e', 1 << 9),
    (b't', 1 << 10),
    (b'd', 1 << 11),
    (b'm', 1 << 12),
    (b'n', notify::NEW),
];

/// The flags that we have events for.
pub mod notify {
    /// Under the name of the key.
    pub const KEYSPACE: u32 = 1;
    /// Under the name of the event.
    pub const KEYEVENT: u32 = 2;
    /// `del`, `expire`, `rename_from` and the like.
    pub const GENERIC: u32 = 4;
    /// Of strings.
    pub const STRING: u32 = 8;
    /// A key that was not there.
    pub const NEW: u32 = 1 << 13;
    /// What the letter `A` stands for: everything but `K`, `E`, `m` and `n`.
    pub const ALL: u32 = 0xffc & !(1 << 12);
}

/// The shared state.
#[derive(Debug)]
pub struct Shared {
    /// What the server means.
    pub service: Service,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who is connected, by number.
    pub clients: Mutex<BTreeMap<u64, Arc<Client>>>,
    /// Who listens.
    pub hub: Hub,
    /// Slow commands.
    pub slow_log: SlowLog,
    /// Chance.
    pub entropy: Arc<dyn Entropy>,
    /// Longest argument.
    pub max_bulk: usize,
    /// Largest request.
    pub max_request: usize,
    /// Most connections.
    pub max_clients: u64,
    /// When the door opened: monotonic, and by the wall clock.
    pub started: (Duration, u64),
    /// Where it listens.
    pub port: u16,
    /// The directory of the data.
    pub dir: String,
    /// Names this run of the server.
    pub run_id: String,
    /// When `SAVE` last ended, in Unix seconds.
    pub last_save: AtomicU64,
    /// Connections so far.
    pub accepted: AtomicU64,
    /// Commands so far.
    pub commands: AtomicU64,
    next_client: AtomicU64,
    notify: AtomicU32,
    /// As it was set, though nothing is told.
    notify_asked: AtomicU32,
    databases: RwLock<[Option<Namespace>; DATABASES]>,
    cursors: Mutex<Cursors>,
    counters: Vec<[OnceLock<Counter>; 2]>,
    /// How long what was received at once took: one command, by row, or several.
    durations: Vec<OnceLock<Histogram>>,
    pipelines: OnceLock<Histogram>,
    nanos: Vec<AtomicU64>,
    forgotten: Mutex<Forgotten>,
}

/// What a row did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    /// How often it ran well.
    pub ok: u64,
    /// How often it failed.
    pub bad: u64,
    /// How long it took in all.
    pub ns: u64,
}

impl Calls {
    fn since(self, before: Self) -> Self {
        Self {
            ok: self.ok.saturating_sub(before.ok),
            bad: self.bad.saturating_sub(before.bad),
            ns: self.ns.saturating_sub(before.ns),
        }
    }
}

/// What `INFO stats` counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Connections.
    pub accepted: u64,
    /// Connections that were too many.
    pub refused: u64,
    /// Commands.
    pub commands: u64,
    /// Reads that found something.
    pub hits: u64,
    /// Reads that found nothing.
    pub misses: u64,
    /// Expired entries that were dropped.
    pub expired: u64,
}

impl Totals {
    fn since(self, before: Self) -> Self {
        Self {
            accepted: self.accepted.saturating_sub(before.accepted),
            refused: self.refused.saturating_sub(before.refused),
            commands: self.commands.saturating_sub(before.commands),
            hits: self.hits.saturating_sub(before.hits),
            misses: self.misses.saturating_sub(before.misses),
            expired: self.expired.saturating_sub(before.expired),
        }
    }
}

/// What was counted before the last `CONFIG RESETSTAT`.
#[derive(Debug, Default)]
struct Forgotten {
    calls: Vec<Calls>,
    totals: Totals,
}

impl Shared {
    /// The state of a door that listens at `port`.
    pub fn new(
        service: Service,
        metrics: Arc<Metrics>,
        entropy: Arc<dyn Entropy>,
        port: u16,
    ) -> Self {
        let limits = service.limits();
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let max_bulk = size(limits.value_bytes.max(limits.key_bytes));
        // A batch of the engine has at most 512 MiB, which bounds the rest.
        let max_request =
            size(limits.body_bytes.max(limits.value_bytes) + (1 << 20)).min(500 << 20);
        let (monotonic, unix_ms) = (service.clock().monotonic(), service.clock().unix_ms());
        let run_id: String = (0..5)
            .map(|_| format!("{:08x}", entropy.next_u64() as u32))
            .collect();
        Self {
            dir: service.db().dir().display().to_string(),
            service,
            metrics,
            clients: Mutex::default(),
            hub: Hub::default(),
            slow_log: SlowLog::default(),
            entropy,
            max_bulk,
            max_request,
            max_clients: u64::MAX,
            started: (monotonic, unix_ms),
            port,
            run_id,
            last_save: AtomicU64::new(unix_ms / 1_000),
            accepted: AtomicU64::new(0),
            commands: AtomicU64::new(0),
            next_client: AtomicU64::new(1),
            notify: AtomicU32::new(0),
            notify_asked: AtomicU32::new(0),
            databases: RwLock::default(),
            cursors: Mutex::default(),
            counters: COMMANDS.iter().map(|_| Default::default()).collect(),
            durations: COMMANDS.iter().map(|_| OnceLock::new()).collect(),
            pipelines: OnceLock::new(),
            nanos: COMMANDS.iter().map(|_| AtomicU64::new(0)).collect(),
            forgotten: Mutex::default(),
        }
    }

    /// The number of the next connection.
    pub fn next_client(&self) -> u64 {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.next_client.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts commands, by row.
    pub fn count(&self, counts: &mut Vec<Count>, took: Duration) {
        let (times, op) = match counts[..] {
            [] => return,
            [Count { row, .. }] => {
                let row = usize::from(row);
                (&self.durations[row], COMMANDS[row].name)
            }
            _ => (&self.pipelines, "pipeline"),
        };
        times
            .get_or_init(|| self.metrics.durations_of("resp", op))
            .observe(took.as_secs_f64());
        for Count { row, ok, bad, ns } in counts.drain(..) {
            self.commands
                .fetch_add(u64::from(ok + bad), Ordering::Relaxed);
            let row = usize::from(row);
            self.nanos[row].fetch_add(ns, Ordering::Relaxed);
            let counters = &self.counters[row];
            let name = COMMANDS[row].name;
            for (amount, counter, code) in [(ok, &counters[0], "ok"), (bad, &counters[1], "error")]
            {
                if amount > 0 {
                    counter
                        .get_or_init(|| self.metrics.requests_of("resp", name, code))
                        .inc_by(u64::from(amount));
                }
            }
        }
    }

    /// What a row did, since the start or the last `CONFIG RESETSTAT`.
    pub fn calls(&self, row: usize) -> Calls {
        let before = self.forgotten.lock().calls.get(row).copied();
        self.all_calls(row).since(before.unwrap_or_default())
    }

    fn all_calls(&self, row: usize) -> Calls {
        let read = |counter: &OnceLock<Counter>| counter.get().map_or(0, Counter::get);
        let counters = &self.counters[row];
        Calls {
            ok: read(&counters[0]),
            bad: read(&counters[1]),
            ns: self.nanos[row].load(Ordering::Relaxed),
        }
    }

    /// Totals, since the start or the last `CONFIG RESETSTAT`.
    pub fn totals(&self) -> Totals {
        let before = self.forgotten.lock().totals;
        self.all_totals().since(before)
    }

    fn all_totals(&self) -> Totals {
        let engine = self.service.db().stats().counters;
        Totals {
            accepted: self.accepted.load(Ordering::Relaxed),
            refused: self.metrics.refused_connections.get(),
            commands: self.commands.load(Ordering::Relaxed),
            hits: engine.read_hits,
            misses: engine.reads.saturating_sub(engine.read_hits),
            expired: engine.expired_dropped,
        }
    }

    /// `INFO` counts from here on. The metrics go on: who scrapes them wants them to grow.
    pub fn reset_stats(&self) {
        let (calls, totals) = (
            (0..COMMANDS.len()).map(|row| self.all_calls(row)).collect(),
            self.all_totals(),
        );
        *self.forgotten.lock() = Forgotten { calls, totals };
    }

    // ---- databases ------------------------------------------------------------------------------

    /// The name of the namespace of a database.
    pub fn database_name(index: usize) -> String {
        match index {
            0 => DEFAULT_NAMESPACE.to_owned(),
            n => format!("db{n}"),
        }
    }

    /// The namespace of a database, if it was chosen before and is still there.
    pub fn known_database(&self, index: usize) -> Option<Namespace> {
        if index == 0 {
            return Some(self.service.db().default_namespace());
        }
        self.databases.read().get(index)?.clone()
    }

    /// The namespace of a database, made if it is not there. May wait for the disk.
    ///
    /// # Errors
    /// As [`Service::namespace_or_create`].
    pub fn database(&self, index: usize) -> crate::service::error::Result<Namespace> {
        let ns = self
            .service
            .namespace_or_create(&Self::database_name(index))?;
        if let Some(slot) = self.databases.write().get_mut(index) {
            *slot = Some(ns.clone());
        }
        Ok(ns)
    }

    /// Somebody dropped a namespace: look again.
    pub fn forget_databases(&self) {
        *self.databases.write() = Default::default();
    }

    // ---- scans ----------------------------------------------------------------------------------

    /// Remembers where a scan goes on and returns the cursor for it.
    pub fn remember_cursor(&self, after: Vec<u8>) -> u64 {
        let id = (self.entropy.next_u64() >> 1).max(1);
        let mut cursors = self.cursors.lock();
        cursors.bytes += after.len();
        cursors.order.push_back(id);
        cursors.keys.insert(id, Arc::from(after));
        while cursors.order.len() > CURSORS || cursors.bytes > CURSOR_BYTES {
            let Some(oldest) = cursors.order.pop_front() else {
                break;
            };
            if let Some(key) = cursors.keys.remove(&oldest) {
                cursors.bytes -= key.len();
            }
        }
        id
    }

    /// Where a cursor goes on.
    pub fn cursor(&self, id: u64) -> Option<Arc<[u8]>> {
        self.cursors.lock().keys.get(&id).cloned()
    }

    // ---- events ---------------------------------------------------------------------------------

    /// Which key events somebody wants.
    #[inline]
    pub fn notify(&self) -> u32 {
        self.notify.load(Ordering::Relaxed)
    }

    /// Reads the value of `notify-keyspace-events`.
    pub fn set_notify(&self, text: &[u8]) -> bool {
        let mut flags = 0;
        for letter in text {
            match NOTIFY.iter().find(|(known, _)| known == letter) {
                Some((_, flag)) => flags |= flag,
                None if *letter == b'A' => flags |= notify::ALL,
                None => return false,
            }
        }
        self.notify_asked.store(flags, Ordering::Relaxed);
        // Without a place to tell it, nothing is told.
        if flags & (notify::KEYSPACE | notify::KEYEVENT) == 0 {
            flags = 0;
        }
        self.notify.store(flags, Ordering::Relaxed);
        true
    }

    /// Prints it.
    pub fn notify_text(&self) -> String {
        let flags = self.notify_asked.load(Ordering::Relaxed);
        let mut text = String::new();
        let all = flags & notify::ALL == notify::ALL;
        if all {
            text.push('A');
        }
        // Redis prints the places last.
        let (places, classes) = NOTIFY.split_at(2);
        for (letter, flag) in classes[..10].iter().chain(places).chain(&classes[10..]) {
            if flags & flag != 0 && !(all && notify::ALL & flag != 0) {
                text.push(char::from(*letter));
            }
        }
        text
    }

    /// Tells those who listen.
    pub fn publish_events(&self, events: &[Event]) {
        let flags = self.notify();
        for event in events {
            if flags & notify::KEYSPACE != 0 {
                let mut channel = format!("__keyspace@{}__:", event.db).into_bytes();
                channel.extend_from_slice(&event.key);
                self.hub.publish(&channel, event.name.as_bytes());
            }
            if flags & notify::KEYEVENT != 0 {
                let channel = format!("__keyevent@{}__:{}", event.db, event.name);
                self.hub.publish(channel.as_bytes(), &event.key);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Cursors {
    keys: BTreeMap<u64, Arc<[u8]>>,
    order: VecDeque<u64>,
    bytes: usize,
}

/// A slow command.
#[derive(Debug)]
pub struct SlowCommand {
    /// Counts them.
    pub id: u64,
    /// When it ended, in Unix seconds.
    pub at: u64,
    /// How long it took, in microseconds.
    pub micros: u64,
    /// Its arguments, shortened.
    pub args: Vec<Vec<u8>>,
    /// Whose it was.
    pub address: String,
    /// What that connection is called.
    pub name: String,
}

/// The last slow commands.
#[derive(Debug)]
pub struct SlowLog {
    threshold: AtomicI64,
    max_len: AtomicU64,
    entries: Mutex<(u64, VecDeque<SlowCommand>)>,
}

impl Default for SlowLog {
    fn default() -> Self {
        Self {
            threshold: AtomicI64::new(10_000),
            max_len: AtomicU64::new(128),
            entries: Mutex::default(),
        }
    }
}

impl SlowLog {
    /// From how many microseconds on a command is slow.
    #[inline]
    pub fn threshold(&self) -> u64 {
        // A negative one turns the log off.
        u64::try_from(self.threshold.load(Ordering::Relaxed)).unwrap_or(u64::MAX)
    }

    /// The same as it was set.
    pub fn given_threshold(&self) -> i64 {
        self.threshold.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_threshold(&self, micros: i64) {
        self.threshold.store(micros, Ordering::Relaxed);
    }

    /// How many are kept.
    pub fn max_len(&self) -> u64 {
        self.max_len.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_max_len(&self, len: u64) {
        self.max_len.store(len.min(100_000), Ordering::Relaxed);
        let mut entries = self.entries.lock();
        while entries.1.len() as u64 > self.max_len() {
            entries.1.pop_back();
        }
    }

    /// Adds a command.
    #[cold]
    pub fn add(&self, shared: &Shared, client: &Client, args: Args<'_>, took: Duration) {
        let shortened = |arg: &[u8]| match arg.get(..SLOW_ARG_BYTES) {
            Some(head) if arg.len() > SLOW_ARG_BYTES => {
                let more = format!("... ({} more bytes)", arg.len() - SLOW_ARG_BYTES);
                [head, more.as_bytes()].concat()
            }
            _ => arg.to_vec(),
        };
        let mut kept: Vec<_> = args.iter().take(SLOW_ARGS).map(shortened).collect();
        if args.len() > SLOW_ARGS {
            let more = args.len() - SLOW_ARGS + 1;
            kept[SLOW_ARGS - 1] = format!("... ({more} more arguments)").into_bytes();
        }
        let mut entries = self.entries.lock();
        let id = entries.0;
        entries.0 += 1;
        entries.1.push_front(SlowCommand {
            id,
            at: shared.service.clock().unix_ms() / 1_000,
            micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            args: kept,
            address: client.address.clone(),
            name: client.name(),
        });
        while entries.1.len() as u64 > self.max_len() {
            entries.1.pop_back();
        }
    }

    /// Looks at them, the last one first.
    pub fn with<T>(&self, look: impl FnOnce(&VecDeque<SlowCommand>) -> T) -> T {
        look(&self.entries.lock().1)
    }

    /// Forgets them.
    pub fn reset(&self) {
        self.entries.lock().1.clear();
    }
}
