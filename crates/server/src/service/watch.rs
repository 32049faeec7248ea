//! Watches: what the engine's changefeed means to doors.
//!
//! A [`Feed`] is a watch in progress, as a [`crate::service::scan::Walk`] is a scan: it reads on
//! blocking threads, one chunk at a time, and rests without a thread while the door sends the chunk
//! or while there is nothing new. Changes go to a [`Sink`] of the door, which renders them where they
//! are. Between chunks a feed holds one batch of the log at most (large ones are shared by all feeds),
//! so a client that reads slowly costs what one that reads quickly costs; if it falls behind what is
//! kept, it gets the code `version_too_old`.
//!
//! [`tell`] is the loop of every door: [`Feed::fill`]; send; and when the feed has caught up,
//! [`Feed::changed`], [`Service::draining`] or the time for a sign of life, whichever is first. What
//! it says besides changes, the door's [`Story`] puts into words. There are at most `limits.watches`
//! feeds.

use std::sync::Arc;
use std::time::Duration;

use firn_api::code::Code;
use firn_engine::watch::{Place, Step};
use firn_engine::{Change, SeqNo, Watch, WatchBatch, WatchOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::service::error::{Error, Result};
use crate::service::replica::read_error;
use crate::service::scan::Range;
use crate::service::{Consistency, Service, limits};

/// What to watch.
#[derive(Clone, Debug, Default)]
pub struct WatchQuery {
    /// The namespace; `None`: all of them.
    pub namespace: Option<String>,
    /// The keys.
    pub range: Range,
    /// The first version; `None`: from now on.
    pub from: Option<u64>,
}

/// A change on its way to a sink.
#[derive(Clone, Copy, Debug)]
pub struct ChangeRef<'a> {
    /// Its sequence number.
    pub version: u64,
    /// The last sequence number of its batch.
    pub commit: u64,
    /// Another change of the same batch follows.
    pub more: bool,
    /// In which namespace.
    pub namespace: &'a str,
    /// What.
    pub change: Change<'a>,
}

/// Where changes go.
pub trait Sink: Send + 'static {
    /// Takes a change.
    ///
    /// # Errors
    /// Ends the watch.
    fn change(&mut self, change: ChangeRef<'_>) -> Result<()>;
    /// The bytes that wait in the sink.
    fn waiting_bytes(&self) -> usize;
}

/// A sink whose changes become chunks of a stream.
pub trait Story: Sink {
    /// What is sent at a time.
    type Chunk: Send + 'static;
    /// Everything up to `version` was told, and there is no more now.
    fn progress(&mut self, version: u64);
    /// The server stops; everything up to `version` was told.
    fn end(&mut self, version: u64);
    /// The watch cannot go on.
    fn failed(&mut self, error: Error);
    /// What is to be sent next.
    fn take(&mut self) -> Option<Self::Chunk>;
}

/// Bytes of a chunk, unless a single change is larger. One more may wait for the client.
pub const CHUNK_BYTES: usize = 64 << 10;

/// All look at the same records: more at once are in each other's way.
const LOOKING_AT_ONCE: usize = 4;
/// Every sync of the log wakes every watch, most of which find nothing for them. So one that found
/// nothing looks again only after this much for each open watch: all together they take the same
/// small part of a processor, however many they are.
const REST_FOR_EACH: Duration = Duration::from_micros(100);
/// By so much the first change after a while may be late.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// How often there is a sign of life without changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat(Duration);

impl Heartbeat {
    const LEAST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(300);

    /// As often as the client wishes.
    ///
    /// # Errors
    /// If that is too often, or so seldom that proxies hang up.
    pub fn every(wish: Option<Duration>) -> Result<Self> {
        let Some(wish) = wish else {
            return Ok(Self(Duration::from_secs(15)));
        };
        if (Self::LEAST..=Self::MOST).contains(&wish) {
            return Ok(Self(wish));
        }
        Err(Error::invalid("heartbeat must be from 100ms to 5m"))
    }
}

/// How many watches there may be.
#[derive(Debug)]
pub(crate) struct Watches {
    places: Arc<Semaphore>,
    most: usize,
    /// Who looks for changes now.
    looking: Semaphore,
}

impl Watches {
    pub(crate) fn new(most: u64) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let most = most.min(Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(most)),
            most,
            looking: Semaphore::new(LOOKING_AT_ONCE),
        }
    }

    /// How long a watch that found nothing waits before it looks again.
    fn rest(&self) -> Duration {
        let open = self.most - self.places.available_permits().min(self.most);
        let open = u32::try_from(open).unwrap_or(u32::MAX);
        REST_FOR_EACH.saturating_mul(open).min(LONGEST_REST)
    }
}

/// A watch in progress.
pub struct Feed<S> {
    /// Where the changes go.
    pub sink: S,
    watch: Watch,
    /// What is being told, and how far.
    batch: Option<(WatchBatch, Place)>,
    /// Everything up to here was told or passed over: a watch from the next version on follows without
    /// gap or repetition.
    progress: u64,
    _place: OwnedSemaphorePermit,
}

impl<S> std::fmt::Debug for Feed<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed")
            .field("watch", &self.watch)
            .finish_non_exhaustive()
    }
}

/// Batches that the filter leaves out, passed over in one go.
const PASSED_AT_ONCE: usize = 10_000;

impl<S: Sink> Feed<S> {
    /// Tells changes until the sink holds `chunk_bytes`, or there are no more; `true` if there are
    /// none now. Blocks.
    ///
    /// # Errors
    /// The engine's, and the sink's.
    pub fn fill(&mut self, chunk_bytes: usize) -> Result<bool> {
        let mut passed = 0;
        loop {
            if let Some((batch, place)) = self.batch.take() {
                let mut events = batch.events_at(place);
                while let Some(event) = events.next() {
                    let more = events.clone().next().is_some();
                    self.sink.change(ChangeRef {
                        version: event.version.0,
                        commit: batch.version().0,
                        more,
                        namespace: event.namespace,
                        change: event.change,
                    })?;
                    self.progress = event.version.0;
                    if more && self.sink.waiting_bytes() >= chunk_bytes {
                        let place = events.place();
                        self.batch = Some((batch, place));
                        return Ok(false);
                    }
                }
                self.progress = batch.version().0;
            }
            if self.sink.waiting_bytes() >= chunk_bytes || passed >= PASSED_AT_ONCE {
                return Ok(false);
            }
            match self.watch.step()? {
                Step::Batch(batch) => {
                    let place = batch.events().place();
                    self.batch = Some((batch, place));
                }
                Step::Passed => {
                    passed += 1;
                    self.progress = self.watch.next_version().0 - 1;
                }
                Step::CaughtUp => return Ok(true),
            }
        }
    }

    /// Resolves when there may be more than the last [`Feed::fill`] found.
    pub async fn changed(&self) {
        let (tell, told) = oneshot::channel();
        self.watch.on_ready(Box::new(move || {
            let _ = tell.send(());
        }));
        let _ = told.await;
    }
}

/// Tells a client what there is until one of them ends.
pub async fn tell<S: Story>(
    service: Service,
    mut feed: Feed<S>,
    Heartbeat(heartbeat): Heartbeat,
    chunks: mpsc::Sender<S::Chunk>,
) {
    feed.sink.progress(feed.progress);
    if send(&mut feed, &chunks).await.is_none() {
        return;
    }
    let mut said = Instant::now();
    loop {
        let looked = Instant::now();
        // It is never closed.
        let turn = service.inner.watches.looking.acquire().await;
        let filling = tokio::task::spawn_blocking(move || {
            let outcome = feed.fill(CHUNK_BYTES);
            (feed, outcome)
        });
        // A cancelled job means that the runtime stops: a stream without an end.
        let Ok((back, outcome)) = filling.await else {
            return;
        };
        drop(turn);
        feed = back;
        let (caught_up, ended) = match outcome {
            Ok(caught_up) if service.is_draining() && !caught_up => {
                feed.sink.end(feed.progress);
                (false, true)
            }
            Ok(caught_up) => (caught_up, false),
            // Who reads on while the server stops is told that it stops.
            Err(error) if error.code == Code::ShuttingDown || service.is_draining() => {
                feed.sink.end(feed.progress);
                (false, true)
            }
            Err(error) => {
                feed.sink.failed(error);
                (false, true)
            }
        };
        // Much may be passed over before there is something to tell.
        if !caught_up && !ended && said.elapsed() >= heartbeat {
            feed.sink.progress(feed.progress);
        }
        let Some(sent) = send(&mut feed, &chunks).await else {
            return;
        };
        if sent > 0 {
            said = Instant::now();
        }
        if ended || chunks.is_closed() {
            return;
        }
        if !caught_up {
            continue;
        }
        tokio::select! {
            () = feed.changed() => {
                let rest = service.inner.watches.rest();
                if sent == 0 && rest >= Duration::from_millis(1) {
                    tokio::time::sleep_until(looked + rest).await;
                }
            }
            () = chunks.closed() => return,
            () = service.draining() => {
                feed.sink.end(feed.progress);
                send(&mut feed, &chunks).await;
                return;
            }
            () = tokio::time::sleep_until(said + heartbeat) => feed.sink.progress(feed.progress),
        }
    }
}

/// Sends what there is: how many chunks. `None` if nobody is there to take them.
async fn send<S: Story>(feed: &mut Feed<S>, chunks: &mpsc::Sender<S::Chunk>) -> Option<usize> {
    let mut sent = 0;
    while let Some(chunk) = feed.sink.take() {
        let place = match chunks.try_reserve() {
            Ok(place) => place,
            Err(_) => {
                feed.watch.rest();
                chunks.reserve().await.ok()?
            }
        };
        place.send(chunk);
        sent += 1;
    }
    Some(sent)
}

impl Service {
    /// A feed at its beginning.
    ///
    /// # Errors
    /// There is no leader; version too old, with the oldest there is; a version that does not exist
    /// yet; namespace not found; an empty range; too many watches.
    pub async fn watch<S: Sink>(&self, query: WatchQuery, sink: S) -> Result<Feed<S>> {
        for bound in [&query.range.start, &query.range.end].into_iter().flatten() {
            limits::key(self.limits(), bound)?;
        }
        let Ok(place) = Arc::clone(&self.inner.watches.places).try_acquire_owned() else {
            let most = self.limits().watches;
            let detail = format!("limits.watches ({most}) are open");
            return Err(Error {
                limit: Some(most),
                ..Error::overloaded(detail, 1_000)
            });
        };
        // A version that another node told of is here too then.
        self.may_scan(Consistency::Linearizable).await?;
        let service = self.clone();
        self.blocking(move || {
            let watch = service.db().watch(WatchOptions {
                from: query.from.map(SeqNo),
                namespace: query.namespace,
                start: query.range.start,
                end: query.range.end,
            });
            let watch = watch.map_err(|error| match service.cluster() {
                Some(_) if !service.is_draining() => read_error(error),
                _ => error.into(),
            })?;
            Ok(Feed {
                sink,
                progress: watch.next_version().0 - 1,
                watch,
                batch: None,
                _place: place,
            })
        })
        .await
    }
}
