//! Transactions: `MULTI`, `EXEC`, `DISCARD`, `WATCH`, `UNWATCH`.
//!
//! `WATCH` notes the version of a key as it is published. `EXEC` runs the queued commands under the
//! locks of their keys, against the newest state and what they wrote themselves, and submits one
//! batch: on the condition that watched keys have their versions, and that everything the commands
//! read is as they read it. If the former fails, the reply is null; if the latter, because another
//! door wrote, the commands run again. What is submitted is one record of the log: all of it
//! survives, or nothing.
//!
//! A watched key that did not exist, was made by somebody else and is gone again counts as
//! unchanged, where Redis would refuse; nothing that the transaction can see tells the difference.

use std::sync::Arc;

use firn_api::code::Code;
use firn_engine::{Condition, Namespace, SeqNo};
use tokio::sync::OwnedSemaphorePermit;

use crate::resp::parse::{Args, Span};
use crate::resp::session::{Overlay, Session, Stop, Verdict, add_put, refuse, refuse_with};
use crate::resp::table::{COMMANDS, How};
use crate::service::Service;
use crate::service::error::Error;
use crate::service::now::stripe_of;

type Done = Result<(), Stop>;

/// Keys that a connection may watch: each command of its own looks through them, and large ones take
/// memory.
const MAX_WATCHED: usize = 1_000;
/// Tries of a transaction before its client is asked to wait.
const TRIES: usize = 16;

/// What waits for `EXEC`.
#[derive(Debug, Default)]
pub struct Queue {
    /// A command was refused: `EXEC` will be.
    pub failed: bool,
    bytes: Vec<u8>,
    spans: Vec<Span>,
    /// The row of each command, and where its spans end.
    commands: Vec<(u16, usize)>,
    /// The memory that it takes beyond [`FREE_BYTES`], in steps of so much.
    room: Option<OwnedSemaphorePermit>,
}

/// What waits for `EXEC` counts against `limits.inflight_bytes` beyond this.
const FREE_BYTES: usize = 64 << 10;

impl Queue {
    /// How many commands.
    pub fn len(&self) -> usize {
        self.commands.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Adds a command; all together have at most `most` bytes.
    pub fn add(
        &mut self,
        service: &Service,
        row: u16,
        args: Args<'_>,
        most: usize,
    ) -> Result<(), Stop> {
        let more: usize = args.iter().map(|arg| arg.len() + size_of::<Span>()).sum();
        let rows = (self.commands.len() + 1) * size_of::<(u16, usize)>();
        let after = self.bytes.len() + self.spans.len() * size_of::<Span>() + rows + more;
        if after > most {
            return Err(refuse_with(format!(
                "ERR a transaction has at most {most} bytes of commands"
            )));
        }
        let has = self.room.as_ref().map_or(0, |room| room.num_permits());
        let lacks = after.next_multiple_of(FREE_BYTES) - FREE_BYTES;
        if lacks > has {
            let room = service.reserve_body(lacks - has);
            let room = room.map_err(|error| refuse_with(format!("OOM {}", error.detail)))?;
            match &mut self.room {
                Some(held) => held.merge(room),
                None => self.room = Some(room),
            }
        }
        for arg in args.iter() {
            let from = self.bytes.len() as u32;
            self.bytes.extend_from_slice(arg);
            self.spans.push((from, self.bytes.len() as u32));
        }
        self.commands.push((row, self.spans.len()));
        Ok(())
    }

    fn commands(&self) -> impl Iterator<Item = (u16, Args<'_>)> {
        let mut from = 0;
        self.commands.iter().map(move |&(row, to)| {
            let args = Args::new(&self.bytes, &self.spans[from..to]);
            from = to;
            (row, args)
        })
    }
}

/// A watched key.
#[derive(Clone, Debug)]
pub struct Watched {
    ns: Namespace,
    key: Vec<u8>,
    version: Option<SeqNo>,
    /// This connection wrote it since, though it may be as it was.
    touched: bool,
}

impl Watched {
    /// Notes a write of this connection.
    pub fn note_write(&mut self, ns: &Namespace, key: &[u8]) {
        self.touched |= self.key == key && self.ns.id() == ns.id();
    }
}

pub(crate) fn multi(s: &mut Session, _: Args<'_>) -> Done {
    if s.queue.is_some() {
        return Err(refuse("ERR MULTI calls can not be nested"));
    }
    s.queue = Some(Queue::default());
    s.client.note_queued(0);
    s.out.ok();
    Ok(())
}

/// Forgets transaction and watched keys.
pub(crate) fn forget(s: &mut Session) {
    s.queue = None;
    s.watched.clear();
    s.client.note_queued(-1);
}

pub(crate) fn discard(s: &mut Session, _: Args<'_>) -> Done {
    if s.queue.is_none() {
        return Err(refuse("ERR DISCARD without MULTI"));
    }
    forget(s);
    s.out.ok();
    Ok(())
}

pub(crate) fn watch(s: &mut Session, args: Args<'_>) -> Done {
    if s.queue.is_some() {
        return Err(refuse("ERR WATCH inside MULTI is not allowed"));
    }
    // What this connection wrote must count as before; what others wrote and nobody was told of
    // yet, as after.
    s.need_settled()?;
    s.need_fresh()?;
    let id = s.ns.id();
    for key in args.from(1).iter() {
        if s.watched.len() >= MAX_WATCHED {
            return Err(refuse_with(format!(
                "ERR at most {MAX_WATCHED} keys are watched"
            )));
        }
        if s.watched.iter().any(|w| w.key == key && w.ns.id() == id) {
            continue;
        }
        let entry = s.service().read(&s.ns, key, SeqNo::ZERO)?;
        s.watched.push(Watched {
            ns: s.ns.clone(),
            key: key.to_vec(),
            version: entry.map(|e| e.version),
            touched: false,
        });
    }
    s.out.ok();
    Ok(())
}

pub(crate) fn unwatch(s: &mut Session, _: Args<'_>) -> Done {
    if s.overlay.is_none() {
        s.watched.clear();
    }
    s.out.ok();
    Ok(())
}

pub(crate) fn exec(s: &mut Session, _: Args<'_>) -> Done {
    let Some(queue) = &s.queue else {
        return Err(refuse("ERR EXEC without MULTI"));
    };
    if queue.failed {
        forget(s);
        return Err(refuse(
            "EXECABORT Transaction discarded because of previous errors.",
        ));
    }
    if s.watched.iter().any(|w| w.touched) {
        forget(s);
        s.out.null_array();
        return Ok(());
    }
    // What walks or asks for much needs a thread; so does what may go to disk.
    let slow = queue
        .commands()
        .any(|(row, _)| COMMANDS[usize::from(row)].how == How::Thread);
    if slow
        || queue.bytes.len() > crate::service::INLINE_WRITE_BYTES
        || !s.service().reads_are_cheap()
    {
        s.need_settled()?;
        s.need_fresh()?;
        s.need_thread()?;
    }
    let Some(queue) = s.queue.take() else {
        return Ok(());
    };
    let watched = std::mem::take(&mut s.watched);
    let place = (s.db, s.ns.clone());
    let outcome = run(s, &queue, &watched);
    s.overlay = None;
    if let Err(Stop::Hold(_)) = outcome {
        // The same again, later.
        s.queue = Some(queue);
        s.watched = watched;
        (s.db, s.ns) = place;
        return outcome;
    }
    if let Err(Stop::Failed(error)) = &outcome
        && error.code == Code::Overloaded
    {
        (s.queue, s.watched) = (Some(queue), watched);
        (s.db, s.ns) = place;
        return outcome;
    }
    if outcome.is_err() {
        (s.db, s.ns) = place;
    }
    s.client.note_queued(-1);
    outcome
}

fn run(s: &mut Session, queue: &Queue, watched: &[Watched]) -> Done {
    let mut stripes = watched.iter().fold(0, |all, w| all | stripe_of(&w.key));
    for (row, args) in queue.commands() {
        let command = &COMMANDS[usize::from(row)];
        if command.how == How::Thread {
            stripes = u64::MAX;
        }
        for at in command.key_positions(args) {
            stripes |= stripe_of(args.get(at));
        }
    }
    if s.on_thread {
        let keys = queue.commands().flat_map(|(row, args)| {
            let positions = COMMANDS[usize::from(row)].key_positions(args);
            positions.map(move |at| args.get(at))
        });
        s.warm(keys)?;
    }
    let shared = Arc::clone(&s.shared);
    let (db, ns) = (s.db, s.ns.clone());
    if s.service().cluster().is_some() {
        let verdict = s.propose(stripes, watched.len(), |s| {
            (s.db, s.ns) = (db, ns.clone());
            require(s, watched)?;
            run_all(s, queue)
        })?;
        if verdict == Verdict::Changed {
            (s.db, s.ns) = (db, ns);
            s.out.null_array();
        }
        return Ok(());
    }
    let before = s.out.bytes.len();
    let events = s.event_count();
    for _ in 0..TRIES {
        s.out.bytes.truncate(before);
        s.forget_events(events);
        (s.db, s.ns) = (db, ns.clone());
        s.batch.clear();
        require(s, watched)?;
        let _locks = shared.service.lock(stripes);
        if let Err(stop) = run_all(s, queue) {
            s.forget_events(events);
            (s.db, s.ns) = (db, ns);
            return Err(stop);
        }
        match s.submit_batch(before) {
            Ok(()) => return Ok(()),
            Err(error) if error.code == Code::ConditionFailed => {
                s.out.bytes.truncate(before);
                s.forget_events(events);
                let is_watched = |index: u32| (index as usize) < watched.len();
                if error.index.is_some_and(is_watched) {
                    (s.db, s.ns) = (db, ns);
                    s.out.null_array();
                    return Ok(());
                }
            }
            Err(error) => {
                s.forget_events(events);
                return Err(error.into());
            }
        }
    }
    Err(Error::overloaded("the keys of the transaction are changed all the time", 1).into())
}

/// Runs the commands and makes the batch of what they write.
fn run_all(s: &mut Session, queue: &Queue) -> Done {
    let most = s.shared.max_request;
    let before = s.out.bytes.len();
    s.overlay = Some(Overlay::default());
    s.out.array(queue.len());
    for (row, args) in queue.commands() {
        s.run_queued(row, args)?;
        if s.out.bytes.len() - before > most {
            s.out.bytes.truncate(before);
            return Err(refuse_with(format!(
                "ERR the replies of a transaction have at most {most} bytes"
            )));
        }
    }
    let overlay = s.overlay.take().unwrap_or_default();
    collect(s, &overlay)
}

/// What was watched must be as it was.
fn require(s: &mut Session, watched: &[Watched]) -> Done {
    for w in watched {
        let condition = w
            .version
            .map_or(Condition::Absent, Condition::VersionEquals);
        s.batch.require(&w.ns, &w.key, condition)?;
    }
    Ok(())
}

/// Makes the batch of what a transaction wrote.
fn collect(s: &mut Session, overlay: &Overlay) -> Done {
    for ns in &overlay.emptied {
        s.empty(ns)?;
    }
    for ((id, key), slot) in &overlay.slots {
        let Some(ns) = s.namespace_by_id(*id) else {
            return Err(refuse("ERR the database was dropped"));
        };
        match &slot.value {
            Some(value) => add_put(&mut s.batch, &ns, key, value, slot.expires_at_ms)?,
            None => {
                s.batch.delete(&ns, key)?;
            }
        }
    }
    Ok(())
}
