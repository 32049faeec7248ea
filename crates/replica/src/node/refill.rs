//! Damaged SSTables of this node are made whole by what other nodes have.
//!
//! Reads, compactions and verification note what is damaged; every second somebody looks whether there is any. What
//! cannot be read of a table is asked for by ranges of keys, of one node after the other until one knows: it may be
//! behind, or damaged in the same place. When the files here are as new as the answers, the table is written anew (see
//! [`firn_engine::refill`]). What comes to nothing is tried again, less and less often. So different damage on every
//! node heals, as long as no two of them lack the same.
//!
//! Left as they are: tables of whose damage so little is known that more than [`MOST_BYTES`] would have to be asked
//! for, blob files, and tables that lack what another damaged one of the same node lacks, too.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use firn_engine::version::KeyRange;
use firn_engine::{Damage, Db, RangeView, Refill, ViewEntry};
use tokio::time::sleep;

use super::Inner;
use crate::error::{Error, Result};
use crate::message::{Answer, Request, ViewRequest};
use crate::transport::{Class, Peer};
use crate::types::{Member, NodeId};

/// How often one looks for damage, and tries to mend it at first.
const LOOK: Duration = Duration::from_secs(1);
/// The longest pause after it came to nothing.
const REST: Duration = Duration::from_secs(600);
/// How often one looks whether files have become new enough, and how many times.
const WAIT: Duration = Duration::from_millis(100);
const WAITS: usize = 100;
/// Most that is asked for to mend one table.
const MOST_BYTES: usize = 128 << 20;
/// About as much is in one answer.
pub(super) const ANSWER_BYTES: usize = 1 << 20;

/// Mends what is found damaged, as long as the node runs.
pub(super) async fn refill(inner: Arc<Inner>) {
    let mut pause = LOOK;
    let mut tries = 0;
    while !inner.is_closed.load(Ordering::Acquire) {
        sleep(pause).await;
        let db = inner.machine.db();
        if !db.has_damages() {
            pause = LOOK;
            continue;
        }
        tries += 1;
        // Whatever went wrong, the damage has been told, and is there to be tried again.
        pause = match inner.refill_all(db, tries).await {
            Ok(true) => LOOK,
            Ok(false) | Err(_) => (pause * 2).min(REST),
        };
    }
}

impl Inner {
    /// Tries to mend every damaged table; whether all are.
    async fn refill_all(self: &Arc<Self>, db: Db, tries: usize) -> Result<bool> {
        let engine = db.clone();
        let damages = self.machine_job(move |_| Ok(engine.damages()?)).await?;
        let mut all = true;
        for damage in damages {
            all &= self.refill_one(&db, damage, tries).await.unwrap_or(false);
        }
        Ok(all)
    }

    async fn refill_one(self: &Arc<Self>, db: &Db, damage: Damage, tries: usize) -> Result<bool> {
        let views = Arc::new(self.views(&damage, tries).await?);
        let newest = views.iter().map(|view| view.seqno).max();
        let damage = Arc::new(damage);
        let mut is_flushed = false;
        for _ in 0..WAITS {
            let (engine, damage, views) = (db.clone(), Arc::clone(&damage), Arc::clone(&views));
            let refilled = self.machine_job(move |_| Ok(engine.refill(&damage, &views)?));
            match refilled.await? {
                Refill::Done(_) | Refill::Gone => return Ok(true),
                // Once, when this node has applied what the other one had.
                Refill::NotYet if !is_flushed && Some(db.snapshot().seqno()) >= newest => {
                    is_flushed = true;
                    self.machine_job(|inner| inner.machine.flush_soon()).await?;
                }
                Refill::NotYet | Refill::Busy => {}
            }
            sleep(WAIT).await;
        }
        Ok(false)
    }

    /// What others have where a table lacks something.
    async fn views(&self, damage: &Damage, tries: usize) -> Result<Vec<RangeView>> {
        let mut others = self.others();
        let first = tries % others.len().max(1);
        others.rotate_left(first);
        let mut views = Vec::new();
        let mut bytes = 0;
        for range in &damage.ranges {
            let mut rest = range.clone();
            loop {
                let view = self.view(damage, rest.clone(), &mut others).await?;
                let entries = view.entries.iter();
                // And what keeps them.
                let size = |e: &ViewEntry| e.key.len() + e.value.len() + 2 * size_of::<ViewEntry>();
                bytes += entries.map(size).sum::<usize>();
                if bytes > MOST_BYTES {
                    return Err(Error::Failed("it lacks too much to ask for".into()));
                }
                let next = view.next.clone();
                views.push(view);
                match next {
                    Some(next) => rest.start = next,
                    None => break,
                }
            }
        }
        Ok(views)
    }

    /// What one of the others has in a range of keys, or in the beginning of it.
    async fn view(
        &self,
        damage: &Damage,
        range: KeyRange,
        others: &mut VecDeque<Peer>,
    ) -> Result<RangeView> {
        let request = Request::View(ViewRequest {
            namespace: damage.namespace,
            range: range.clone(),
            at_least: damage.newest,
        });
        let request = Bytes::from(request.encode());
        let timeout = self.options.request_timeout;
        for _ in 0..others.len() {
            if let Some(peer) = others.front() {
                let transport = &self.world.transport;
                let call = transport.call(peer, Class::Bulk, request.clone(), timeout);
                if let Ok(answer) = call.await
                    && let Ok(Answer::View(Some(view))) = Answer::decode(&answer)
                {
                    let goes_on = view.next.as_ref().is_none_or(|next| *next > range.start);
                    if view.seqno >= damage.newest && view.range.start == range.start && goes_on {
                        return Ok(view);
                    }
                }
            }
            // The next page is asked of who answered.
            others.rotate_left(1);
        }
        Err(Error::Failed("nobody else has it".into()))
    }

    fn others(&self) -> VecDeque<Peer> {
        let (_, membership) = self.machine.membership();
        let others = membership.nodes.iter().filter(|(id, _)| **id != self.id);
        let peer = |(id, member): (&NodeId, &Member)| Peer {
            id: *id,
            address: member.address.clone(),
        };
        others.map(peer).collect()
    }

    /// The answer to another node.
    pub(super) async fn answer_view(self: &Arc<Self>, asked: ViewRequest) -> Answer {
        let db = self.machine.db();
        let view = self.machine_job(move |_| {
            let view = db.view(asked.namespace, asked.range, ANSWER_BYTES)?;
            Ok((view.seqno >= asked.at_least).then_some(view))
        });
        // Behind, closed or damaged itself: somebody else may know.
        Answer::View(view.await.unwrap_or(None))
    }
}
