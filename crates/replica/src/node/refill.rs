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

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use firn_engine::version::KeyRange;
use firn_engine::{Damage, Db, RangeView, Refill};
use tokio::time::sleep;

use super::Inner;
use crate::error::{Error, Result};
use crate::message::{Answer, Request, ViewRequest};
use crate::transport::{Class, Peer};
use crate::types::{Member, NodeId};

/// How often one looks for damage, and tries to mend it at first.
const LOOK: Duration = Duration::from_secs(1);
/// The longest pause after it came to nothing.
const REST: Duration = Duration::from_secs(60);
/// How often one looks whether files have become new enough, and how many times.
const WAIT: Duration = Duration::from_millis(100);
const WAITS: usize = 100;
/// Most that is asked for to mend one table.
const MOST_BYTES: usize = 256 << 20;
/// About as much is in one answer.
pub(super) const ANSWER_BYTES: usize = 1 << 20;

/// Mends what is found damaged, as long as the node runs.
pub(super) async fn refill(inner: Arc<Inner>) {
    let mut pause = LOOK;
    while !inner.is_closed.load(Ordering::Acquire) {
        sleep(pause).await;
        let db = inner.machine.db();
        if !db.has_damages() {
            pause = LOOK;
            continue;
        }
        // Whatever went wrong, the damage has been told, and is there to be tried again.
        pause = match inner.refill_all(db).await {
            Ok(true) => LOOK,
            Ok(false) | Err(_) => (pause * 2).min(REST),
        };
    }
}

impl Inner {
    /// Tries to mend every damaged table; whether all are.
    async fn refill_all(self: &Arc<Self>, db: Db) -> Result<bool> {
        let engine = db.clone();
        let damages = self.machine_job(move |_| Ok(engine.damages()?)).await?;
        let mut all = true;
        for damage in damages {
            all &= self.refill_one(&db, damage).await.unwrap_or(false);
        }
        Ok(all)
    }

    async fn refill_one(self: &Arc<Self>, db: &Db, damage: Damage) -> Result<bool> {
        let views = Arc::new(self.views(&damage).await?);
        let damage = Arc::new(damage);
        for _ in 0..WAITS {
            let (db, damage, views) = (db.clone(), Arc::clone(&damage), Arc::clone(&views));
            let refilled = self.machine_job(move |inner| {
                let refilled = db.refill(&damage, &views)?;
                if refilled == Refill::NotYet {
                    inner.machine.flush_soon()?;
                }
                Ok(refilled)
            });
            match refilled.await? {
                Refill::Done(_) | Refill::Gone => return Ok(true),
                Refill::NotYet => sleep(WAIT).await,
            }
        }
        Ok(false)
    }

    /// What others have where a table lacks something.
    async fn views(&self, damage: &Damage) -> Result<Vec<RangeView>> {
        let mut views = Vec::new();
        let mut bytes = 0;
        for range in &damage.ranges {
            let mut rest = range.clone();
            loop {
                let view = self.view(damage, rest.clone()).await?;
                let entries = view.entries.iter();
                bytes += entries.map(|e| e.key.len() + e.value.len()).sum::<usize>();
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
    async fn view(&self, damage: &Damage, range: KeyRange) -> Result<RangeView> {
        let request = Request::View(ViewRequest {
            namespace: damage.namespace,
            range: range.clone(),
            at_least: damage.newest,
        });
        let request = Bytes::from(request.encode());
        let timeout = self.options.request_timeout;
        for peer in self.others() {
            let transport = &self.world.transport;
            let call = transport.call(&peer, Class::Bulk, request.clone(), timeout);
            let Ok(answer) = call.await else { continue };
            let Ok(Answer::View(Some(view))) = Answer::decode(&answer) else {
                continue;
            };
            let goes_on = view.next.as_ref().is_none_or(|next| *next > range.start);
            if view.seqno >= damage.newest && view.range.start == range.start && goes_on {
                return Ok(view);
            }
        }
        Err(Error::Failed("nobody else has it".into()))
    }

    fn others(&self) -> Vec<Peer> {
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
