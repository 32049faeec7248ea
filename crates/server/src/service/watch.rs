//! Watches: what the engine's changefeed means to doors.
//!
//! A [`Feed`] is a watch in progress, as a [`crate::service::scan::Walk`] is a scan: it reads on
//! blocking threads, one chunk at a time, and rests without a thread while the door sends the chunk
//! or while there is nothing new. Changes go to a [`Sink`] of the door, which renders them where they
//! are. Between chunks a feed holds one batch of the log at most, so a client that reads slowly costs
//! what one that reads quickly costs; if it falls behind what is kept, it gets the code
//! `version_too_old`.
//!
//! A door runs this loop: [`Feed::fill`]; send; and when the feed has caught up, [`Feed::changed`],
//! [`Service::draining`] or the time for a sign of life, whichever is first. There are at most
//! `limits.watches` feeds.

use std::sync::Arc;

use firn_engine::watch::{Place, Step};
use firn_engine::{Change, SeqNo, Watch, WatchBatch, WatchOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::service::error::{Error, Result};
use crate::service::scan::Range;
use crate::service::{Service, limits};

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

/// How many watches there may be.
#[derive(Debug)]
pub(crate) struct Watches(Arc<Semaphore>);

impl Watches {
    pub(crate) fn new(most: u64) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Self(Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))))
    }
}

/// A watch in progress.
pub struct Feed<S> {
    /// Where the changes go.
    pub sink: S,
    watch: Watch,
    /// What is being told, and how far.
    batch: Option<(WatchBatch, Place)>,
    /// Everything up to here was told or passed over.
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
    /// Everything up to this version was told or passed over. A watch from the next version on
    /// follows without gap or repetition.
    pub fn progress(&self) -> u64 {
        self.progress
    }

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

impl Service {
    /// A feed at its beginning.
    ///
    /// # Errors
    /// Version too old, with the oldest there is; a version that does not exist yet; namespace not
    /// found; an empty range; too many watches.
    pub async fn watch<S: Sink>(&self, query: WatchQuery, sink: S) -> Result<Feed<S>> {
        for bound in [&query.range.start, &query.range.end].into_iter().flatten() {
            limits::key(self.limits(), bound)?;
        }
        let Ok(place) = Arc::clone(&self.inner.watches.0).try_acquire_owned() else {
            let most = self.limits().watches;
            let detail = format!("limits.watches ({most}) are open");
            return Err(Error {
                limit: Some(most),
                ..Error::overloaded(detail, 1_000)
            });
        };
        let service = self.clone();
        self.blocking(move || {
            let watch = service.inner.db.watch(WatchOptions {
                from: query.from.map(SeqNo),
                namespace: query.namespace,
                start: query.range.start,
                end: query.range.end,
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
