//! What a connection is in the middle of, and how its commands run.
//!
//! [`Session::step`] runs one command to its end and writes its reply into [`Session::out`]; nothing
//! in it awaits. Where waiting is due it returns a [`Hold`], having done nothing, and the connection
//! calls it again with the same command afterwards.
//!
//! **Writes.** Commands that only write (`SET` without conditions, `MSET`) are collected in a *run*:
//! one batch for as many as follow each other, submitted before anything else runs. Commands that
//! read and decide run under the locks of their keys and submit a batch of their own, on the
//! condition that what they read is still there ([`crate::service::now`]). Each submission gives a
//! ticket; as the engine acknowledges in order, only the last one is kept, and the connection waits
//! for it before any reply leaves. If that fails, every reply since the first write that was not
//! acknowledged becomes an error, and the connection ends.
//!
//! **Reads** see what the connection wrote before, acknowledged or not; their replies wait with it.
//!
//! **`EXEC`** runs its commands against an [`Overlay`] of what they have written so far, and
//! submits all of it as one batch on the condition of everything they read; it starts over if that
//! has changed. So the functions below that read and write ask for the overlay first.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use firn_api::code::Code;
use firn_engine::key::SeqNo;
use firn_engine::{Condition, Durability, Entry, Namespace, Value, WriteBatch};

use crate::resp::ahead::Ahead;
use crate::resp::client::Client;
use crate::resp::parse::Args;
use crate::resp::pubsub::Subscriptions;
use crate::resp::reply::{Out, Proto};
use crate::resp::shared::{DATABASES, Event, Shared};
use crate::resp::table::{COMMANDS, Command, How, find, find_sub};
use crate::resp::txn::{self, Queue, Watched};
use crate::service::error::Error;
use crate::service::now::{Held, Placed, Ticket, stripe_of};
use crate::service::rate;
use crate::service::{INLINE_WRITE_BYTES, Service};

/// A run of plain writes is submitted when it has so many bytes.
const RUN_BYTES: usize = 96 << 10;
/// A command whose condition fails so often in a row waits a moment.
const TRIES: usize = 32;

/// Why a handler did not write a reply.
#[derive(Debug)]
pub enum Stop {
    /// The reply is this error; its first word is the code.
    Error(Cow<'static, str>),
    /// The service refused.
    Failed(Box<Error>),
    /// It must run with its keys locked.
    Lock,
    /// It must wait.
    Hold(Hold),
}

/// What must be waited for before the command can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// This long: the engine asks for a slower pace.
    Pause(Duration),
    /// It must run on a thread that may wait for a disk.
    Thread,
    /// What the connection wrote must be acknowledged.
    Settle,
    /// This long; then the command is done and this is the reply (`WAIT`).
    Delay(Duration, i64),
    /// Until this node may be read.
    Fresh,
    /// Until these stripes are held.
    Keys(u64),
    /// Until it is known what became of the attempt.
    Outcome,
}

/// A write that a command made of what it read, on its way to a majority. When it is in force, this is
/// what the command did.
#[derive(Debug)]
struct Attempt {
    ticket: Option<Ticket>,
    outcome: Option<Result<Placed, Error>>,
    stripes: u64,
    reply: Vec<u8>,
    events: Vec<Event>,
    answer_version: bool,
    place: (usize, Namespace),
}

/// What became of a command that reads, decides and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It did what it decided.
    Done,
    /// One of the first conditions, which must hold, did not: nothing was done.
    Changed,
}

impl From<Hold> for Stop {
    fn from(hold: Hold) -> Self {
        Self::Hold(hold)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(Box::new(error))
    }
}

impl From<firn_engine::Error> for Stop {
    fn from(error: firn_engine::Error) -> Self {
        Error::from(error).into()
    }
}

/// An error with a fixed text.
pub const fn refuse(text: &'static str) -> Stop {
    Stop::Error(Cow::Borrowed(text))
}

/// An error with a text made for it.
pub fn refuse_with(text: String) -> Stop {
    Stop::Error(Cow::Owned(text))
}

/// What most commands say to arguments they do not know.
pub const SYNTAX: Stop = refuse("ERR syntax error");
/// What is said to text where a whole number is needed.
pub const NOT_AN_INTEGER: Stop = refuse("ERR value is not an integer or out of range");

/// A value that a transaction has written and not submitted.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The value; `None`: deleted.
    pub value: Option<Vec<u8>>,
    /// When it expires.
    pub expires_at_ms: Option<u64>,
}

/// What a transaction has written so far.
#[derive(Debug, Default)]
pub struct Overlay {
    /// By namespace and key.
    pub slots: BTreeMap<(u32, Vec<u8>), Slot>,
    /// Namespaces that were emptied, before what is in `slots`.
    pub emptied: Vec<Namespace>,
    /// Bytes in `slots`.
    pub bytes: usize,
}

impl Overlay {
    /// Whether the namespace was emptied.
    pub fn is_emptied(&self, id: u32) -> bool {
        self.emptied.iter().any(|ns| ns.id().0 == id)
    }
}

/// A key as it is.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its value.
    pub value: Bytes,
    /// When it expires.
    pub expires_at_ms: Option<u64>,
    /// Its version; 0 if a transaction has written it and not yet submitted.
    pub version: u64,
}

/// A value from the engine, or from a transaction.
#[derive(Clone, Debug)]
pub enum Bytes {
    /// As the engine gave it.
    Stored(Value),
    /// As the transaction wrote it.
    Written(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Stored(value) => value,
            Self::Written(bytes) => bytes,
        }
    }
}

impl Bytes {
    /// The bytes, copied if they must be.
    pub fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Stored(value) => value.into_vec(),
            Self::Written(bytes) => bytes,
        }
    }
}

impl From<Entry> for Found {
    fn from(entry: Entry) -> Self {
        Self {
            value: Bytes::Stored(entry.value),
            expires_at_ms: entry.expires_at_ms,
            version: entry.version.0,
        }
    }
}

/// Plain writes that were answered and not yet submitted.
#[derive(Debug, Default)]
struct RunOfWrites {
    batch: WriteBatch,
    stripes: u64,
    /// Where their replies begin.
    from: usize,
    commands: usize,
}

/// What a row of the table did.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    /// The row.
    pub row: u16,
    /// How often it ran well.
    pub ok: u32,
    /// How often it failed.
    pub bad: u32,
    /// How long it took in all.
    pub ns: u64,
}

/// Whether commands are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyMode {
    /// They are.
    On,
    /// They are not.
    Off,
    /// The next one is not.
    SkipNext,
    /// This one is not.
    Skip,
}

/// The state of a connection.
#[derive(Debug)]
pub struct Session {
    /// What all connections share.
    pub shared: Arc<Shared>,
    /// What others may know of this one.
    pub client: Arc<Client>,
    /// The replies.
    pub out: Out,
    /// The number of the database.
    pub db: usize,
    /// Its namespace.
    pub ns: Namespace,
    /// When writes are acknowledged.
    pub durability: Durability,
    /// Whether commands are answered.
    pub reply_mode: ReplyMode,
    /// After `MULTI`.
    pub queue: Option<Queue>,
    /// After `WATCH`.
    pub watched: Vec<Watched>,
    /// Within `EXEC`.
    pub overlay: Option<Overlay>,
    /// What it listens to.
    pub subscriptions: Subscriptions,
    /// Whether this thread may wait.
    pub on_thread: bool,
    /// Whether the connection ends after the replies.
    pub closing: bool,
    /// Writes and conditions of the command that runs.
    pub batch: WriteBatch,
    /// Whether that command holds the locks of its keys.
    locked: bool,
    run: RunOfWrites,
    ticket: Option<Ticket>,
    /// Where the first reply is that waits for the ticket, and how many came before.
    unacked: (usize, u64),
    /// Replies so far.
    replies: u64,
    /// Events of writes that are not acknowledged yet.
    events: Vec<Event>,
    /// Since when the command that is next waits for the engine.
    waiting_since: Option<Duration>,
    /// When the last command ended.
    clock: Duration,
    /// Whose commands are counted, if somebody limits them.
    rated_as: Option<rate::Client>,
    /// The command that is next was counted.
    admitted: bool,
    /// The reply of the command that runs is the version it writes.
    answer_version: bool,
    /// On a node of a cluster: whether it may be read without asking again,
    fresh: bool,
    /// or was found that it cannot be,
    unreadable: Option<Error>,
    /// or is read as it is (`READONLY`).
    pub stale: bool,
    /// Up to here it must have applied what this connection wrote.
    written: Option<u64>,
    attempt: Option<Attempt>,
    /// Attempts of the command that runs that others came before.
    conflicts: usize,
    held: Option<Held>,
    /// What each row did since it was last told.
    pub counts: Vec<Count>,
    ahead: Ahead,
}

impl Session {
    /// A connection that was just opened.
    pub fn new(shared: Arc<Shared>, client: Arc<Client>) -> Self {
        let service = &shared.service;
        let address = client.address.parse::<SocketAddr>();
        let rated_as = address.ok().map(|address| rate::Client::at(address.ip()));
        Self {
            ns: service.db().default_namespace(),
            durability: service.default_durability(),
            clock: service.clock().monotonic(),
            shared,
            client,
            out: Out::new(),
            db: 0,
            reply_mode: ReplyMode::On,
            queue: None,
            watched: Vec::new(),
            overlay: None,
            subscriptions: Subscriptions::default(),
            on_thread: false,
            closing: false,
            batch: WriteBatch::new(),
            locked: false,
            run: RunOfWrites::default(),
            ticket: None,
            unacked: (0, 0),
            replies: 0,
            events: Vec::new(),
            waiting_since: None,
            rated_as,
            admitted: false,
            answer_version: false,
            fresh: false,
            unreadable: None,
            stale: false,
            written: None,
            attempt: None,
            conflicts: 0,
            held: None,
            counts: Vec::new(),
            ahead: Ahead::default(),
        }
    }

    /// The service.
    pub fn service(&self) -> &Service {
        &self.shared.service
    }

    /// The wall clock.
    pub fn now_ms(&self) -> u64 {
        self.service().clock().unix_ms()
    }

    /// Commands from here on are timed from now, which is returned.
    pub fn start_clock(&mut self) -> Duration {
        self.clock = self.service().clock().monotonic();
        self.clock
    }

    /// When the last command ended, or what came after it.
    pub fn clock(&self) -> Duration {
        self.clock
    }

    // ---- running --------------------------------------------------------------------------------

    /// Runs a command and writes its reply.
    ///
    /// # Errors
    /// What must be waited for before this same command can be run.
    pub fn step(&mut self, args: Args<'_>) -> Result<(), Hold> {
        let row = find(args.get(0));
        let command = row.map(|row| &COMMANDS[usize::from(row)]);
        let blind = command.is_some_and(|c| c.how == How::Blind) && self.queue.is_none();
        if !blind {
            self.flush_run()?;
        }
        if args.size() > INLINE_WRITE_BYTES && !self.on_thread {
            return Err(Hold::Thread);
        }
        let mut row = row.unwrap_or(u16::MAX);
        let before = self.out.bytes.len();
        if let (Some(client), false) = (&self.rated_as, self.admitted)
            && let Err(error) = self.shared.service.admit(client)
        {
            if let Some(queue) = &mut self.queue {
                queue.failed = true;
            }
            self.write_failure(&error);
            self.finish(row, args, before, true);
            return Ok(());
        }
        self.admitted = true;
        let mut outcome = self.dispatch(&mut row, args, false);
        if matches!(outcome, Err(Stop::Lock)) {
            self.flush_run()?;
            outcome = self.dispatch(&mut row, args, true);
        }
        // The run may have shortened what was there.
        let before = before.min(self.out.bytes.len());
        let failed = outcome.is_err();
        match outcome {
            Ok(()) => {}
            Err(Stop::Hold(hold)) => {
                self.out.bytes.truncate(before);
                return Err(hold);
            }
            Err(stop) => {
                if let Stop::Failed(error) = &stop
                    && let Some(hold) = self.may_wait(error)
                {
                    self.out.bytes.truncate(before);
                    return Err(hold);
                }
                self.out.bytes.truncate(before);
                self.write_stop(stop);
            }
        }
        self.finish(row, args, before, failed);
        if self.run.batch.encoded_len() > RUN_BYTES {
            // Answered already: whatever happens is found when it is tried again.
            let _ = self.flush_run();
        }
        Ok(())
    }

    /// Whether to try later: overloaded, and not for too long already.
    fn may_wait(&mut self, error: &Error) -> Option<Hold> {
        let (Code::Overloaded, Some(ms)) = (error.code, error.retry_after_ms) else {
            return None;
        };
        let now = self.service().clock().monotonic();
        let since = *self.waiting_since.get_or_insert(now);
        let pause = Duration::from_millis(ms.max(1));
        if now + pause > since + self.service().write_delay() {
            self.waiting_since = None;
            return None;
        }
        self.service().note_stall(pause);
        Some(Hold::Pause(pause))
    }

    fn write_stop(&mut self, stop: Stop) {
        match stop {
            Stop::Error(text) => self.out.error(&text),
            Stop::Failed(error) => self.write_failure(&error),
            // Neither comes this far.
            Stop::Lock | Stop::Hold(_) => self.out.error("ERR internal"),
        }
    }

    /// Writes a refusal of the service.
    pub fn write_failure(&mut self, error: &Error) {
        if matches!(
            error.code,
            Code::Internal | Code::IoError | Code::Corruption
        ) {
            tracing::error!(
                code = error.code.name(),
                detail = error.detail,
                "command failed"
            );
        }
        self.out
            .error(&format!("{} {}", error.code.resp_prefix(), error.detail));
    }

    /// The command that asked for a delay is done.
    pub fn delay_is_over(&mut self, reply: i64) {
        self.out.int(reply);
        self.replies += 1;
        self.admitted = false;
    }

    fn finish(&mut self, row: u16, args: Args<'_>, before: usize, failed: bool) {
        self.replies += 1;
        self.waiting_since = None;
        self.admitted = false;
        self.held = None;
        self.conflicts = 0;
        match self.reply_mode {
            ReplyMode::On => {}
            ReplyMode::Off | ReplyMode::Skip => self.out.bytes.truncate(before),
            ReplyMode::SkipNext => {}
        }
        self.reply_mode = match self.reply_mode {
            ReplyMode::SkipNext => ReplyMode::Skip,
            ReplyMode::Skip => ReplyMode::On,
            other => other,
        };
        let now = self.service().clock().monotonic();
        let took = now.saturating_sub(self.clock);
        self.clock = now;
        if row != u16::MAX {
            if matches!(COMMANDS[usize::from(row)].how, How::Read | How::Modify) {
                self.service().note_read(took);
            }
            let (ok, bad) = (u32::from(!failed), u32::from(failed));
            let ns = took.as_nanos() as u64;
            match self.counts.iter_mut().find(|count| count.row == row) {
                Some(count) => {
                    count.ok += ok;
                    count.bad += bad;
                    count.ns += ns;
                }
                None => self.counts.push(Count { row, ok, bad, ns }),
            }
        }
        if took.as_micros() >= u128::from(self.shared.slow_log.threshold()) {
            self.shared
                .slow_log
                .add(&self.shared, &self.client, args, took);
        }
    }

    fn dispatch(&mut self, row: &mut u16, args: Args<'_>, lock: bool) -> Result<(), Stop> {
        let Some(mut command) = COMMANDS.get(usize::from(*row)) else {
            self.fail_queue();
            return Err(unknown_command(args));
        };
        if !command.takes(args.len()) {
            if command.name == "exec" {
                txn::forget(self);
                return Err(refuse(
                    "EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command",
                ));
            }
            self.fail_queue();
            return Err(wrong_arity(command));
        }
        // A container runs its subcommand, except where it means something by itself.
        if args.len() > 1 && command.how == How::Container {
            if let Some(sub) = find_sub(command.name, args.get(1)) {
                *row = sub;
                command = &COMMANDS[usize::from(sub)];
                if !command.takes(args.len()) {
                    self.fail_queue();
                    return Err(wrong_arity(command));
                }
            } else if !is_help(args) {
                self.fail_queue();
                return Err(unknown_subcommand(command, args.get(1)));
            }
        }
        self.client.note_command(*row);
        if self.out.proto == Proto::V2
            && self.subscriptions.any()
            && !allowed_while_subscribed(command)
        {
            return Err(refuse_with(format!(
                "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context",
                command.name
            )));
        }
        if self.queue.is_some() && !runs_in_multi(command) {
            return self.enqueue(*row, args);
        }
        self.execute(command, args, lock)
    }

    /// Runs a command whose arguments were counted.
    fn execute(
        &mut self,
        command: &'static Command,
        args: Args<'_>,
        lock: bool,
    ) -> Result<(), Stop> {
        if self.is_on_node() {
            self.look_up_namespace();
            if matches!(command.how, How::Read | How::Thread) {
                self.need_fresh()?;
            }
        }
        match command.how {
            How::Direct | How::Container => (command.run)(self, args),
            How::Blind if !lock => (command.run)(self, args),
            How::Read => {
                if !self.on_thread && !self.service().reads_are_cheap() {
                    return Err(Hold::Thread.into());
                }
                (command.run)(self, args)
            }
            How::Thread => {
                self.need_settled()?;
                self.need_thread()?;
                (command.run)(self, args)
            }
            How::Modify | How::Blind => {
                let keys = command.key_positions(args);
                let stripes = keys
                    .clone()
                    .fold(0, |all, at| all | stripe_of(args.get(at)));
                self.warm(keys.map(|at| args.get(at)))?;
                self.modify(stripes, |session| (command.run)(session, args))
            }
        }
    }

    /// Where reads go to disk, reads keys once before they are locked, so that nobody has to wait
    /// for the disk with them.
    pub fn warm<'a>(&mut self, keys: impl Iterator<Item = &'a [u8]>) -> Result<(), Stop> {
        if self.service().reads_are_cheap() {
            return Ok(());
        }
        self.need_thread()?;
        for key in keys {
            self.service().read(&self.ns, key, SeqNo::MAX)?;
        }
        Ok(())
    }

    /// Runs `decide`, which reads with [`Session::fetch`] and writes with [`Session::put`] and
    /// [`Session::delete`], and submits what it wrote; again if what it read has changed meanwhile.
    pub fn modify(
        &mut self,
        stripes: u64,
        mut decide: impl FnMut(&mut Self) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        if self.is_on_node() {
            return self.propose(stripes, 0, decide).map(|_| ());
        }
        let shared = Arc::clone(&self.shared);
        let (before, events) = (self.out.bytes.len(), self.events.len());
        for _ in 0..TRIES {
            self.out.bytes.truncate(before);
            self.events.truncate(events);
            self.batch.clear();
            self.answer_version = false;
            let _locks = shared.service.lock(stripes);
            self.locked = true;
            let decided = decide(self);
            self.locked = false;
            if let Err(stop) = decided {
                // An error, too, may rest on what is not acknowledged yet.
                self.events.truncate(events);
                if matches!(stop, Stop::Error(_)) {
                    self.batch.clear();
                    self.submit_batch(before)?;
                }
                return Err(stop);
            }
            match self.submit_batch(before) {
                Ok(()) => return Ok(()),
                Err(error) if error.code == Code::ConditionFailed => continue,
                Err(error) => {
                    self.events.truncate(events);
                    return Err(error.into());
                }
            }
        }
        Err(Error::overloaded("the key is changed all the time", 1).into())
    }

    /// Submits [`Session::batch`].
    pub fn submit_batch(&mut self, reply_at: usize) -> Result<(), Error> {
        let ticket = self
            .shared
            .service
            .submit(&mut self.batch, self.durability)?;
        if let Some(commit) = ticket.commit().filter(|_| self.answer_version) {
            let version = commit.last.0;
            self.out.int(i64::try_from(version).unwrap_or(i64::MAX));
        }
        self.note_ticket(ticket, reply_at, self.replies);
        Ok(())
    }

    fn note_ticket(&mut self, ticket: Ticket, reply_at: usize, replies: u64) {
        if ticket.is_acked() {
            // And so is everything before it.
            self.ticket = None;
            return;
        }
        if self.ticket.is_none() {
            self.unacked = (reply_at, replies);
        }
        self.ticket = Some(ticket);
    }

    /// The reply of the running command is the version that it writes.
    pub fn answer_version(&mut self) {
        self.answer_version = true;
    }

    // ---- the run of plain writes ----------------------------------------------------------------

    /// Submits the run.
    ///
    /// # Errors
    /// The engine wants it later; it is kept. Other failures become the replies of its commands.
    pub fn flush_run(&mut self) -> Result<(), Hold> {
        if self.run.commands == 0 {
            return Ok(());
        }
        if self.run.batch.encoded_len() > INLINE_WRITE_BYTES && !self.on_thread {
            return Err(Hold::Thread);
        }
        // On a node nothing keeps two writes that are on their way in order.
        if self.ticket.is_some() && self.is_on_node() {
            return Err(Hold::Settle);
        }
        let shared = Arc::clone(&self.shared);
        let submitted = {
            let _locks = shared.service.lock(self.run.stripes);
            shared.service.submit(&mut self.run.batch, self.durability)
        };
        let (from, commands) = (self.run.from, self.run.commands);
        match submitted {
            Ok(ticket) => self.note_ticket(ticket, from, self.replies - commands as u64),
            Err(error) => {
                if let Some(hold) = self.may_wait(&error) {
                    return Err(hold);
                }
                let answered = self.out.bytes.len() > from;
                self.out.bytes.truncate(from);
                // Without replies, because the client wants none, there are none to replace.
                for _ in 0..if answered { commands } else { 0 } {
                    self.write_failure(&error);
                }
                self.events.clear();
            }
        }
        self.waiting_since = None;
        self.run.batch.clear();
        self.run.stripes = 0;
        self.run.commands = 0;
        Ok(())
    }

    /// Adds a write to the run, or to the transaction. The command calls [`Session::joined_run`]
    /// after its last one.
    pub fn blind_put(
        &mut self,
        key: &[u8],
        value: &[u8],
        expires_at_ms: Option<u64>,
    ) -> Result<(), Stop> {
        if self.overlay.is_some() {
            return self.put(key, value, expires_at_ms);
        }
        self.service().check_size(key, value.len())?;
        self.note_write(key);
        add_put(&mut self.run.batch, &self.ns, key, value, expires_at_ms)?;
        self.run.stripes |= stripe_of(key);
        Ok(())
    }

    /// Refuses what [`Session::blind_put`] would, so that a command of many writes adds all or none.
    pub fn check_size(&self, key: &[u8], value_len: usize) -> Result<(), Stop> {
        Ok(self.service().check_size(key, value_len)?)
    }

    /// The command is in the run; call before its reply is written.
    pub fn joined_run(&mut self) {
        if self.overlay.is_some() {
            return;
        }
        if self.run.commands == 0 {
            self.run.from = self.out.bytes.len();
        }
        self.run.commands += 1;
    }

    // ---- acknowledgements -----------------------------------------------------------------------

    /// The ticket that replies wait for.
    pub fn take_ticket(&mut self) -> Option<Ticket> {
        self.ticket.take()
    }

    /// Whether replies wait for a ticket.
    pub fn is_settled(&self) -> bool {
        self.ticket.is_none()
    }

    /// What the replies rest on is acknowledged: others may be told.
    pub fn acked(&mut self) {
        if !self.events.is_empty() {
            self.shared.publish_events(&self.events);
            self.events.clear();
        }
    }

    /// The log failed: replies that rest on it become errors, and the connection ends.
    pub fn ack_failed(&mut self, error: &Error) {
        let (from, before) = self.unacked;
        self.out.bytes.truncate(from);
        for _ in before..self.replies {
            self.write_failure(error);
        }
        self.events.clear();
        // On a node the next write may well succeed.
        self.closing = !self.is_on_node();
    }

    /// Goes on only when everything that was written is acknowledged.
    pub fn need_settled(&mut self) -> Result<(), Stop> {
        let Some(ticket) = self.ticket.take() else {
            return Ok(());
        };
        if !self.on_thread {
            self.ticket = Some(ticket);
            return Err(Hold::Settle.into());
        }
        match self.settled(ticket.wait()) {
            Ok(()) => self.acked(),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Notes what became of the ticket.
    pub fn settled(&mut self, outcome: Result<Placed, Error>) -> Result<(), Error> {
        let commit = outcome.and_then(|placed| {
            if self.is_on_node() {
                self.written = self.written.max(Some(placed.index));
            }
            placed.commit
        });
        match commit {
            Ok(_) => Ok(()),
            Err(error) => {
                self.ack_failed(&error);
                Err(error)
            }
        }
    }

    // ---- on a node of a cluster -----------------------------------------------------------------

    fn is_on_node(&self) -> bool {
        self.service().cluster().is_some()
    }

    /// Whether more was received: what was read before it came does not count for it.
    pub fn received(&mut self) {
        self.fresh = false;
    }

    /// What must be waited for before this node is read: for the answer of the leader unless the
    /// client wants none, and up to which entry.
    pub fn read_point(&self) -> (bool, Option<u64>) {
        (self.stale, self.written)
    }

    /// Up to here it has written.
    pub fn written(&self) -> Option<u64> {
        self.written
    }

    /// Notes that it may be read, or why not.
    pub fn freshened(&mut self, outcome: Result<(), Error>) {
        self.fresh = outcome.is_ok();
        self.unreadable = outcome.err();
    }

    /// Goes on only when what this node has may be read.
    pub fn need_fresh(&mut self) -> Result<(), Stop> {
        if !self.is_on_node() {
            return Ok(());
        }
        if let Some(error) = self.unreadable.take() {
            return Err(error.into());
        }
        if self.ticket.is_some() {
            return Err(Hold::Settle.into());
        }
        let has_own = self.written.is_none_or(|at| self.service().has_applied(at));
        if self.fresh && has_own {
            return Ok(());
        }
        Err(Hold::Fresh.into())
    }

    /// The handle may be of a database that a snapshot replaced, or the namespace was made anew.
    fn look_up_namespace(&mut self) {
        let found = self.service().pinned(&self.ns).map(|(_, ns)| ns);
        if let Ok(ns) = found
            && ns.id() != self.ns.id()
        {
            self.shared.forget_databases();
            self.ns = ns;
        }
    }

    /// The stripes that the command wants are held.
    pub fn hold_keys(&mut self, held: Held) {
        self.held = Some(held);
    }

    /// What is waited for in [`Hold::Outcome`].
    pub fn take_attempt(&mut self) -> Option<Ticket> {
        self.attempt.as_mut()?.ticket.take()
    }

    /// What became of it.
    pub fn attempted(&mut self, outcome: Result<Placed, Error>) {
        if let Some(attempt) = &mut self.attempt {
            attempt.outcome = Some(outcome);
        }
    }

    /// As [`Session::modify`]: proposes what `decide` wrote on the condition of what it read, waits for
    /// what becomes of it, and tries again if others came first. The first `musts` conditions are not
    /// tried again.
    pub fn propose(
        &mut self,
        stripes: u64,
        musts: usize,
        mut decide: impl FnMut(&mut Self) -> Result<(), Stop>,
    ) -> Result<Verdict, Stop> {
        if let Some(verdict) = self.conclude(musts)? {
            return Ok(verdict);
        }
        if let Some(error) = self.unreadable.take() {
            return Err(error.into());
        }
        if self.ticket.is_some() {
            return Err(Hold::Settle.into());
        }
        let shared = Arc::clone(&self.shared);
        let is_held = self.held.as_ref().is_some_and(|h| h.stripes == stripes);
        if !is_held && shared.service.is_hot(stripes) {
            self.held = None;
            return Err(Hold::Keys(stripes).into());
        }
        if self
            .written
            .is_some_and(|at| !shared.service.has_applied(at))
        {
            return Err(Hold::Fresh.into());
        }
        let (before, events) = (self.out.bytes.len(), self.events.len());
        self.batch.clear();
        self.answer_version = false;
        self.locked = true;
        let decided = decide(self);
        self.locked = false;
        if let Err(stop) = decided {
            self.events.truncate(events);
            // An error rests on what was read, too.
            let has_read = !self.batch.requirements().is_empty();
            if matches!(stop, Stop::Error(_)) && has_read && !self.fresh && !self.stale {
                return Err(Hold::Fresh.into());
            }
            return Err(stop);
        }
        if musts == 0 && self.batch.is_empty() && self.batch.requirements().len() <= 1 {
            // It only read, one key at most: what this node has will do, if it may be read.
            let has_read = !self.batch.requirements().is_empty();
            if has_read && !self.fresh {
                self.out.bytes.truncate(before);
                self.events.truncate(events);
                return Err(Hold::Fresh.into());
            }
            return Ok(Verdict::Done);
        }
        let ticket = shared.service.submit(&mut self.batch, self.durability)?;
        self.attempt = Some(Attempt {
            ticket: Some(ticket),
            outcome: None,
            stripes,
            reply: self.out.bytes.split_off(before),
            events: self.events.split_off(events),
            answer_version: self.answer_version,
            place: (self.db, self.ns.clone()),
        });
        Err(Hold::Outcome.into())
    }

    /// The end of an attempt, if there was one; `None`: try, or try again.
    fn conclude(&mut self, musts: usize) -> Result<Option<Verdict>, Stop> {
        let Some(mut attempt) = self.attempt.take() else {
            return Ok(None);
        };
        let Some(outcome) = attempt.outcome.take() else {
            self.attempt = Some(attempt);
            return Err(Hold::Outcome.into());
        };
        let service = self.service().clone();
        let placed = outcome?;
        self.written = self.written.max(Some(placed.index));
        match placed.commit {
            Ok(commit) => {
                service.note_round(attempt.stripes, false);
                (self.db, self.ns) = attempt.place;
                self.out.bytes.append(&mut attempt.reply);
                self.events.append(&mut attempt.events);
                if attempt.answer_version {
                    let version = commit.last.0;
                    self.out.int(i64::try_from(version).unwrap_or(i64::MAX));
                }
                Ok(Some(Verdict::Done))
            }
            Err(error) if error.code == Code::ConditionFailed => {
                if error.index.is_some_and(|index| (index as usize) < musts) {
                    return Ok(Some(Verdict::Changed));
                }
                service.note_round(attempt.stripes, true);
                self.conflicts += 1;
                if self.conflicts > TRIES {
                    return Err(Error::overloaded("the key is changed all the time", 1).into());
                }
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Goes on only on a thread that may wait.
    pub fn need_thread(&self) -> Result<(), Stop> {
        if self.on_thread {
            Ok(())
        } else {
            Err(Hold::Thread.into())
        }
    }

    /// Goes on only with the keys locked.
    pub fn need_lock(&self) -> Result<(), Stop> {
        if self.locked { Ok(()) } else { Err(Stop::Lock) }
    }

    // ---- data -----------------------------------------------------------------------------------

    /// Reads a key for an answer.
    #[inline]
    pub fn view(&mut self, key: &[u8]) -> Result<Option<Found>, Stop> {
        if self.overlay.is_some() {
            return self.fetch(key);
        }
        let pending = self.ticket.as_ref().and_then(Ticket::commit);
        let at_least = pending.map_or(SeqNo::ZERO, |commit| commit.last);
        let entry = self.service().read(&self.ns, key, at_least)?;
        Ok(entry.map(Found::from))
    }

    /// Before a `GET` runs: reads its key and those of the `GET`s that follow it in `rest`, the bytes
    /// received after it, together. All of them had been received, so each may be answered with what is
    /// true now. Does nothing where that would not pay, or not be the same.
    pub fn look_ahead(&mut self, args: Args<'_>, rest: &[u8]) {
        let is_plain = self.overlay.is_none()
            && self.queue.is_none()
            && self.ticket.is_none()
            && self.run.commands == 0
            && !self.is_on_node();
        if !is_plain || !self.ahead.is_empty() || args.len() != 2 {
            return;
        }
        self.ahead
            .look(&self.shared.service, &self.ns, args.get(1), rest);
    }

    /// Something else is next: what was read ahead is of no use, or no longer true.
    pub fn forget_ahead(&mut self) {
        self.ahead.forget();
    }

    /// What [`Session::look_ahead`] found for the `GET` that runs.
    pub fn found_ahead(&mut self, key: &[u8]) -> Option<Option<Found>> {
        Some(self.ahead.take(key)?.map(Found::from))
    }

    /// Reads a key to decide; the batch depends on it from now on.
    pub fn fetch(&mut self, key: &[u8]) -> Result<Option<Found>, Stop> {
        let id = self.ns.id().0;
        if let Some(overlay) = &self.overlay {
            if let Some(slot) = overlay.slots.get(&(id, key.to_vec())) {
                let now = self.now_ms();
                return Ok(slot.clone().into_found(now));
            }
            if overlay.is_emptied(id) {
                return Ok(None);
            }
        }
        let entry = self.service().read(&self.ns, key, SeqNo::MAX)?;
        let condition = match &entry {
            Some(entry) => Condition::VersionEquals(entry.version),
            None => Condition::Absent,
        };
        self.batch.require(&self.ns, key, condition)?;
        Ok(entry.map(Found::from))
    }

    /// Writes a key.
    pub fn put(
        &mut self,
        key: &[u8],
        value: &[u8],
        expires_at_ms: Option<u64>,
    ) -> Result<(), Stop> {
        self.service().check_size(key, value.len())?;
        if let Some(overlay) = &mut self.overlay {
            let slot = Slot {
                value: Some(value.to_vec()),
                expires_at_ms,
            };
            overlay.bytes += key.len() + value.len();
            overlay.slots.insert((self.ns.id().0, key.to_vec()), slot);
            let most = self.shared.max_request;
            if self.overlay.as_ref().is_some_and(|o| o.bytes > most) {
                return Err(refuse_with(format!(
                    "ERR a transaction writes at most {most} bytes"
                )));
            }
            return Ok(());
        }
        self.note_write(key);
        Ok(add_put(
            &mut self.batch,
            &self.ns,
            key,
            value,
            expires_at_ms,
        )?)
    }

    /// Deletes a key.
    pub fn delete(&mut self, key: &[u8]) -> Result<(), Stop> {
        if let Some(overlay) = &mut self.overlay {
            let slot = Slot {
                value: None,
                expires_at_ms: None,
            };
            overlay.slots.insert((self.ns.id().0, key.to_vec()), slot);
            return Ok(());
        }
        self.note_write(key);
        self.batch.delete(&self.ns, key)?;
        Ok(())
    }

    fn note_write(&mut self, key: &[u8]) {
        for watched in &mut self.watched {
            watched.note_write(&self.ns, key);
        }
    }

    /// Deletes every key of a namespace.
    pub fn empty(&mut self, ns: &Namespace) -> Result<(), Stop> {
        if let Some(overlay) = &mut self.overlay {
            let id = ns.id().0;
            overlay.slots.retain(|(of, _), _| *of != id);
            if !overlay.is_emptied(id) {
                overlay.emptied.push(ns.clone());
            }
            return Ok(());
        }
        Ok(add_empty(&mut self.batch, ns)?)
    }

    /// Tells those who listen to key events, once the write is acknowledged.
    #[inline]
    pub fn event(&mut self, class: u32, name: &'static str, key: &[u8]) {
        if self.shared.notify() & class != 0 {
            let (db, key) = (self.db, key.to_vec());
            self.events.push(Event {
                db,
                class,
                name,
                key,
            });
        }
    }

    /// How many events wait.
    pub fn event_count(&self) -> usize {
        self.events.len()
    }

    /// Keeps only so many events: what the others told did not happen.
    pub fn forget_events(&mut self, keep: usize) {
        self.events.truncate(keep);
    }

    /// The namespace with this number, among those that a transaction may have chosen.
    pub fn namespace_by_id(&self, id: u32) -> Option<Namespace> {
        if self.ns.id().0 == id {
            return Some(self.ns.clone());
        }
        let databases = (0..DATABASES).filter_map(|index| self.shared.known_database(index));
        databases.into_iter().find(|ns| ns.id().0 == id)
    }

    fn enqueue(&mut self, row: u16, args: Args<'_>) -> Result<(), Stop> {
        let most = self.shared.max_request;
        if let Some(queue) = &mut self.queue {
            if let Err(stop) = queue.add(&self.shared.service, row, args, most) {
                queue.failed = true;
                return Err(stop);
            }
            self.client.note_queued(queue.len() as i64);
        }
        self.out.simple("QUEUED");
        Ok(())
    }

    fn fail_queue(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.failed = true;
        }
    }

    /// Runs a queued command of a transaction; errors are replies.
    pub fn run_queued(&mut self, row: u16, args: Args<'_>) -> Result<(), Stop> {
        let before = self.out.bytes.len();
        let events = self.events.len();
        self.locked = true;
        let outcome = (COMMANDS[usize::from(row)].run)(self, args);
        self.locked = false;
        match outcome {
            Err(Stop::Hold(hold)) => Err(hold.into()),
            Err(stop) => {
                self.out.bytes.truncate(before);
                self.events.truncate(events);
                self.write_stop(stop);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

impl Slot {
    fn into_found(self, now_ms: u64) -> Option<Found> {
        if self.expires_at_ms.is_some_and(|at| at <= now_ms) {
            return None;
        }
        let expires_at_ms = self.expires_at_ms;
        self.value.map(|value| Found {
            value: Bytes::Written(value),
            expires_at_ms,
            version: 0,
        })
    }
}

/// Adds a write to a batch.
pub fn add_put(
    batch: &mut WriteBatch,
    ns: &Namespace,
    key: &[u8],
    value: &[u8],
    expires_at_ms: Option<u64>,
) -> Result<(), Error> {
    match expires_at_ms {
        Some(at) => batch.put_expiring(ns, key, value, at)?,
        None => batch.put(ns, key, value)?,
    };
    Ok(())
}

/// Adds to a batch that a namespace is emptied.
pub fn add_empty(batch: &mut WriteBatch, ns: &Namespace) -> Result<(), Error> {
    // The engine's ranges have an end: the greatest key there can be, deleted on its own.
    let last = vec![0xff; firn_engine::options::MAX_KEY_BYTES];
    batch.delete_range(ns, &[], &last)?;
    batch.delete(ns, &last)?;
    Ok(())
}

fn allowed_while_subscribed(command: &Command) -> bool {
    matches!(
        command.name,
        "ping" | "subscribe" | "unsubscribe" | "psubscribe" | "punsubscribe" | "quit" | "reset"
    )
}

fn runs_in_multi(command: &Command) -> bool {
    matches!(
        command.name,
        "exec" | "discard" | "multi" | "watch" | "quit" | "reset"
    )
}

/// A container without a subcommand of that name answers `HELP` itself.
pub(crate) fn is_help(args: Args<'_>) -> bool {
    args.len() == 2 && args.get(1).eq_ignore_ascii_case(b"help")
}

/// What some containers say to too many arguments.
pub(crate) fn bad_subcommand(container: &str, args: Args<'_>) -> Stop {
    let name = String::from_utf8_lossy(args.get(1)).into_owned();
    refuse_with(format!(
        "ERR unknown subcommand or wrong number of arguments for '{name}'. Try {container} HELP."
    ))
}

fn unknown_command(args: Args<'_>) -> Stop {
    let shown = |bytes: &[u8], most: usize| {
        String::from_utf8_lossy(bytes.get(..most).unwrap_or(bytes)).into_owned()
    };
    let mut list = String::new();
    for arg in args.from(1).iter() {
        if list.len() >= 128 {
            break;
        }
        list.push_str(&format!("'{}' ", shown(arg, 128 - list.len())));
    }
    refuse_with(format!(
        "ERR unknown command '{}', with args beginning with: {list}",
        shown(args.get(0), 128)
    ))
}

fn unknown_subcommand(command: &Command, name: &[u8]) -> Stop {
    if name.eq_ignore_ascii_case(b"help") {
        return refuse_with(format!(
            "ERR wrong number of arguments for '{}|help' command",
            command.name
        ));
    }
    let shown = String::from_utf8_lossy(name.get(..128).unwrap_or(name)).into_owned();
    refuse_with(format!(
        "ERR unknown subcommand '{shown}'. Try {} HELP.",
        command.name.to_uppercase()
    ))
}

fn wrong_arity(command: &Command) -> Stop {
    refuse_with(format!(
        "ERR wrong number of arguments for '{}' command",
        command.name
    ))
}
