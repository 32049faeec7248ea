//! Who is connected, and the commands about connections.
//!
//! A [`Client`] is what others may see of a connection and how they reach it: its mailbox takes
//! messages of channels and the order to close. The connection itself reads the mailbox only while
//! it waits for its client.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;

use crate::resp::parse::{Args, integer};
use crate::resp::reply::Proto;
use crate::resp::session::{NOT_AN_INTEGER, ReplyMode, SYNTAX, Session, Stop, refuse, refuse_with};
use crate::resp::shared::Shared;
use crate::resp::table::COMMANDS;
use crate::resp::{keys, pubsub, txn};

type Done = Result<(), Stop>;

/// The version of Redis whose replies these are.
pub const REDIS_VERSION: &str = "7.4.0";

/// What a connection finds in its mailbox.
#[derive(Debug)]
pub enum Mail {
    /// Bytes to send.
    Message(bytes::Bytes),
    /// The server stops: finish what is there, then close.
    Drain,
    /// Close at once.
    Close,
}

/// What a client said of itself.
#[derive(Clone, Debug, Default)]
struct Names {
    name: String,
    library: String,
    library_version: String,
}

/// A connection, seen from outside.
#[derive(Debug)]
pub struct Client {
    /// Its number.
    pub id: u64,
    /// The other end.
    pub address: String,
    /// This end.
    pub local: String,
    /// When it began, on the monotonic clock.
    pub since: Duration,
    mailbox: UnboundedSender<Mail>,
    queued_bytes: AtomicUsize,
    names: Mutex<Names>,
    db: AtomicUsize,
    /// When it was last active, in milliseconds of the same clock.
    last_ms: AtomicU64,
    command: AtomicU16,
    channels: AtomicUsize,
    patterns: AtomicUsize,
    queued_commands: AtomicI64,
    v3: AtomicBool,
}

impl Client {
    /// A connection that was just opened.
    pub fn new(
        id: u64,
        (address, local): (String, String),
        since: Duration,
        mailbox: UnboundedSender<Mail>,
    ) -> Self {
        Self {
            id,
            address,
            local,
            since,
            mailbox,
            queued_bytes: AtomicUsize::new(0),
            names: Mutex::default(),
            db: AtomicUsize::new(0),
            last_ms: AtomicU64::new(since.as_millis() as u64),
            command: AtomicU16::new(u16::MAX),
            channels: AtomicUsize::new(0),
            patterns: AtomicUsize::new(0),
            queued_commands: AtomicI64::new(-1),
            v3: AtomicBool::new(false),
        }
    }

    /// Puts something into its mailbox. It may be gone already.
    pub fn send(&self, mail: Mail) {
        let _ = self.mailbox.send(mail);
    }

    /// Counts bytes into the mailbox; returns how many are there.
    pub fn queue_bytes(&self, more: usize) -> usize {
        self.queued_bytes.fetch_add(more, Ordering::Relaxed) + more
    }

    /// Counts bytes out of it.
    pub fn took_bytes(&self, bytes: usize) {
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.names.lock().name.clone()
    }

    /// Whether it speaks RESP3.
    pub fn is_v3(&self) -> bool {
        self.v3.load(Ordering::Relaxed)
    }

    /// Notes which command runs.
    #[inline]
    pub fn note_command(&self, row: u16) {
        self.command.store(row, Ordering::Relaxed);
    }

    /// Notes that it was active at this time of the monotonic clock.
    #[inline]
    pub fn note_active(&self, now: Duration) {
        self.last_ms
            .store(now.as_millis() as u64, Ordering::Relaxed);
    }

    /// Notes how many commands wait for `EXEC`; -1: there is no transaction.
    pub fn note_queued(&self, commands: i64) {
        self.queued_commands.store(commands, Ordering::Relaxed);
    }

    /// Notes what it listens to.
    pub fn note_subscriptions(&self, channels: usize, patterns: usize) {
        self.channels.store(channels, Ordering::Relaxed);
        self.patterns.store(patterns, Ordering::Relaxed);
    }

    fn kind(&self) -> &'static str {
        let listens = self.channels.load(Ordering::Relaxed) + self.patterns.load(Ordering::Relaxed);
        if listens > 0 { "pubsub" } else { "normal" }
    }

    /// The line of `CLIENT LIST`.
    fn line(&self, now: Duration) -> String {
        let read = |number: &AtomicUsize| number.load(Ordering::Relaxed);
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        let names = self.names.lock().clone();
        let row = usize::from(self.command.load(Ordering::Relaxed));
        let (channels, patterns) = (read(&self.channels), read(&self.patterns));
        let queued = self.queued_commands.load(Ordering::Relaxed);
        let flags = match (queued >= 0, channels + patterns > 0) {
            (true, true) => "Px",
            (true, false) => "x",
            (false, true) => "P",
            (false, false) => "N",
        };
        format!(
            "id={} addr={} laddr={} fd=-1 name={} age={} idle={} flags={flags} db={} sub={channels} \
             psub={patterns} ssub=0 multi={queued} qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 \
             rbp=0 obl=0 oll=0 omem={} tot-mem=0 events=r cmd={} user=default redir=-1 resp={} \
             lib-name={} lib-ver={}\n",
            self.id,
            self.address,
            self.local,
            names.name,
            now.saturating_sub(self.since).as_secs(),
            now.saturating_sub(last).as_secs(),
            read(&self.db),
            read(&self.queued_bytes),
            COMMANDS.get(row).map_or("NULL", |c| c.name),
            if self.is_v3() { 3 } else { 2 },
            names.library,
            names.library_version,
        )
    }
}

/// Names of connections and libraries are shown in lines of words.
fn is_name(text: &[u8]) -> bool {
    text.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const MAX_NAME_BYTES: usize = 1_024;

fn name(bytes: &[u8], what: &str) -> Result<String, Stop> {
    if !is_name(bytes) || bytes.len() > MAX_NAME_BYTES {
        return Err(refuse_with(format!(
            "ERR {what} cannot contain spaces, newlines or special characters."
        )));
    }
    Ok(text(bytes))
}

// ---- the connection itself ----------------------------------------------------------------------

pub(crate) fn ping(s: &mut Session, args: Args<'_>) -> Done {
    if args.len() > 2 {
        return Err(refuse("ERR wrong number of arguments for 'ping' command"));
    }
    if s.out.proto == Proto::V2 && s.subscriptions.any() {
        s.out.array(2);
        s.out.bulk(b"pong");
        s.out.bulk(args.get(1));
    } else if args.len() == 2 {
        s.out.bulk(args.get(1));
    } else {
        s.out.simple("PONG");
    }
    Ok(())
}

pub(crate) fn echo(s: &mut Session, args: Args<'_>) -> Done {
    s.out.bulk(args.get(1));
    Ok(())
}

pub(crate) fn quit(s: &mut Session, _: Args<'_>) -> Done {
    s.closing = true;
    s.out.ok();
    Ok(())
}

pub(crate) fn reset(s: &mut Session, _: Args<'_>) -> Done {
    txn::forget(s);
    pubsub::leave_all(s);
    choose(s, 0);
    s.durability = s.service().default_durability();
    s.stale = false;
    s.reply_mode = ReplyMode::On;
    s.client.names.lock().name.clear();
    set_proto(s, Proto::V2);
    s.out.simple("RESET");
    Ok(())
}

fn set_proto(s: &mut Session, proto: Proto) {
    s.out.proto = proto;
    s.client.v3.store(proto == Proto::V3, Ordering::Relaxed);
}

/// There is one user, and nobody is asked for a password.
fn check_user(user: &[u8]) -> Done {
    if user == b"default" {
        return Ok(());
    }
    Err(refuse(
        "WRONGPASS invalid username-password pair or user is disabled.",
    ))
}

pub(crate) fn auth(s: &mut Session, args: Args<'_>) -> Done {
    match args.len() {
        2 => Err(refuse(
            "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
        )),
        3 => {
            check_user(args.get(1))?;
            s.out.ok();
            Ok(())
        }
        _ => Err(SYNTAX),
    }
}

pub(crate) fn hello(s: &mut Session, args: Args<'_>) -> Done {
    let mut proto = s.out.proto;
    if args.len() > 1 {
        let Some(version) = integer(args.get(1)) else {
            return Err(refuse(
                "ERR Protocol version is not an integer or out of range",
            ));
        };
        proto = match version {
            2 => Proto::V2,
            3 => Proto::V3,
            _ => return Err(refuse("NOPROTO unsupported protocol version")),
        };
    }
    let (mut at, mut new_name) = (2, None);
    while at < args.len() {
        let left = args.len() - at - 1;
        match args.get(at).to_ascii_lowercase().as_slice() {
            b"auth" if left >= 2 => {
                check_user(args.get(at + 1))?;
                at += 2;
            }
            b"setname" if left >= 1 => {
                new_name = Some(name(args.get(at + 1), "Client names")?);
                at += 1;
            }
            _ => {
                let option = text(args.get(at));
                return Err(refuse_with(format!(
                    "ERR Syntax error in HELLO option '{option}'"
                )));
            }
        }
        at += 1;
    }
    if let Some(new_name) = new_name {
        s.client.names.lock().name = new_name;
    }
    set_proto(s, proto);
    s.out.map(8);
    let id = i64::try_from(s.client.id).unwrap_or(i64::MAX);
    let field = |s: &mut Session, name: &str, value: &str| {
        s.out.bulk(name.as_bytes());
        s.out.bulk(value.as_bytes());
    };
    field(s, "server", "redis");
    field(s, "version", REDIS_VERSION);
    s.out.bulk(b"proto");
    s.out.int(if proto == Proto::V3 { 3 } else { 2 });
    s.out.bulk(b"id");
    s.out.int(id);
    field(s, "mode", "standalone");
    field(s, "role", "master");
    s.out.bulk(b"modules");
    s.out.array(0);
    field(s, "firn_version", env!("CARGO_PKG_VERSION"));
    Ok(())
}

fn choose(s: &mut Session, index: usize) -> bool {
    let Some(ns) = s.shared.known_database(index) else {
        return false;
    };
    s.ns = ns;
    s.db = index;
    s.client.db.store(index, Ordering::Relaxed);
    true
}

pub(crate) fn select(s: &mut Session, args: Args<'_>) -> Done {
    let index = keys::database_index(args.get(1))?;
    if !choose(s, index) {
        s.need_thread()?;
        s.shared.database(index)?;
        choose(s, index);
    }
    s.out.ok();
    Ok(())
}

// ---- CLIENT -------------------------------------------------------------------------------------

pub(crate) fn id(s: &mut Session, _: Args<'_>) -> Done {
    let id = s.client.id;
    s.out.int(i64::try_from(id).unwrap_or(i64::MAX));
    Ok(())
}

pub(crate) fn getname(s: &mut Session, _: Args<'_>) -> Done {
    let name = s.client.name();
    if name.is_empty() {
        s.out.null();
    } else {
        s.out.bulk(name.as_bytes());
    }
    Ok(())
}

pub(crate) fn setname(s: &mut Session, args: Args<'_>) -> Done {
    let name = name(args.get(2), "Client names")?;
    s.client.names.lock().name = name;
    s.out.ok();
    Ok(())
}

pub(crate) fn setinfo(s: &mut Session, args: Args<'_>) -> Done {
    let option = args.get(2).to_ascii_lowercase();
    match option.as_slice() {
        b"lib-name" => s.client.names.lock().library = name(args.get(3), "lib-name")?,
        b"lib-ver" => s.client.names.lock().library_version = name(args.get(3), "lib-ver")?,
        _ => {
            let option = text(args.get(2));
            return Err(refuse_with(format!("ERR Unrecognized option '{option}'")));
        }
    }
    s.out.ok();
    Ok(())
}

pub(crate) fn info(s: &mut Session, _: Args<'_>) -> Done {
    let line = s.client.line(s.service().clock().monotonic());
    s.out.verbatim(&line);
    Ok(())
}

fn client_type(name: &str) -> Result<String, Stop> {
    let lower = name.to_lowercase();
    match lower.as_str() {
        "normal" | "master" | "replica" | "slave" | "pubsub" => Ok(lower),
        _ => Err(refuse_with(format!("ERR Unknown client type '{name}'"))),
    }
}

pub(crate) fn list(s: &mut Session, args: Args<'_>) -> Done {
    let (mut kind, mut ids) = (None, None);
    match (args.len(), args.get(2).to_ascii_lowercase().as_slice()) {
        (2, _) => {}
        (4, b"type") => {
            kind = Some(client_type(&text(args.get(3)))?);
        }
        (4.., b"id") => {
            let list: Option<Vec<i64>> = args.from(3).iter().map(integer).collect();
            ids = Some(list.ok_or(refuse("ERR Invalid client ID"))?);
        }
        _ => return Err(SYNTAX),
    }
    let now = s.service().clock().monotonic();
    let mut page = String::new();
    for client in s.shared.clients.lock().values() {
        let wanted = kind.as_deref().is_none_or(|kind| kind == client.kind())
            && ids
                .as_ref()
                .is_none_or(|ids| ids.contains(&(client.id as i64)));
        if wanted {
            let _ = page.write_str(&client.line(now));
        }
    }
    s.out.verbatim(&page);
    Ok(())
}

/// Closes another connection now, or this one after its reply.
fn close(s: &mut Session, client: &Arc<Client>) {
    if client.id == s.client.id {
        s.closing = true;
    } else {
        client.send(Mail::Close);
    }
}

pub(crate) fn kill(s: &mut Session, args: Args<'_>) -> Done {
    let clients: Vec<_> = s.shared.clients.lock().values().cloned().collect();
    if args.len() == 3 {
        let address = text(args.get(2));
        let Some(client) = clients.iter().find(|c| c.address == address) else {
            return Err(refuse("ERR No such client"));
        };
        close(s, client);
        s.out.ok();
        return Ok(());
    }
    if args.len() % 2 == 1 {
        return Err(SYNTAX);
    }
    let mut chosen = clients;
    let mut skip_me = true;
    for at in (2..args.len()).step_by(2) {
        let value = text(args.get(at + 1));
        match args.get(at).to_ascii_lowercase().as_slice() {
            b"id" => {
                let id = integer(args.get(at + 1)).filter(|&id| id > 0);
                let id = id.ok_or(refuse("ERR client-id should be greater than 0"))?;
                chosen.retain(|c| c.id == id as u64);
            }
            b"addr" => chosen.retain(|c| c.address == value),
            b"laddr" => chosen.retain(|c| c.local == value),
            b"type" => {
                let kind = client_type(&value)?;
                chosen.retain(|c| c.kind() == kind);
            }
            b"user" if value == "default" => {}
            b"user" => return Err(refuse_with(format!("ERR No such user '{value}'"))),
            b"maxage" => {
                let age = integer(args.get(at + 1)).ok_or(NOT_AN_INTEGER)?;
                let now = s.service().clock().monotonic();
                chosen.retain(|c| now.saturating_sub(c.since).as_secs() as i64 >= age);
            }
            b"skipme" => match value.to_lowercase().as_str() {
                "yes" => skip_me = true,
                "no" => skip_me = false,
                _ => return Err(SYNTAX),
            },
            _ => return Err(SYNTAX),
        }
    }
    chosen.retain(|c| !skip_me || c.id != s.client.id);
    for client in &chosen {
        close(s, client);
    }
    s.out.count(chosen.len());
    Ok(())
}

pub(crate) fn reply(s: &mut Session, args: Args<'_>) -> Done {
    match args.get(2).to_ascii_lowercase().as_slice() {
        b"on" => {
            s.reply_mode = ReplyMode::On;
            s.out.ok();
        }
        b"off" => s.reply_mode = ReplyMode::Off,
        b"skip" if s.reply_mode == ReplyMode::On => s.reply_mode = ReplyMode::SkipNext,
        b"skip" => {}
        _ => return Err(SYNTAX),
    }
    Ok(())
}

pub(crate) fn on_off(s: &mut Session, args: Args<'_>) -> Done {
    match args.get(2).to_ascii_lowercase().as_slice() {
        b"on" | b"off" => {
            s.out.ok();
            Ok(())
        }
        _ => Err(SYNTAX),
    }
}

/// Closes every connection that is idle, and the others when they are.
pub(crate) fn drain_all(shared: &Shared, cut: bool) {
    for client in shared.clients.lock().values() {
        client.send(if cut { Mail::Close } else { Mail::Drain });
    }
}
