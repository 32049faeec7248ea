//! Damaged SSTables of this node are made whole by what other nodes have.
//!
//! Reads, compactions and verification note what is damaged; every second somebody looks whether there is any. What
//! cannot be read of a table is asked for by ranges of keys, of one node after the other until one knows: it may be
//! behind, or damaged in the same place. When the files here are as new as the answers, the table is written anew (see
//! [`firn_engine::refill`]). What comes to nothing is tried again, less and less often, and its reason told. So
//! different damage on every node heals, as long as no two of them lack the same.
//!
//! Left as they are: tables of whose damage so little is known that more than [`MOST_BYTES`] would have to be asked
//! for (which is found out by asking: again after [`LONG_REST`]), blob files, and tables that lack what another damaged
//! one of the same node lacks, too.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use firn_engine::key::FileId;
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
/// So many tries are left out after one that asked for too much in vain: a day, at the longest pause. Less may be there
/// by then.
///
/// A prime, so that another node is asked first each time.
const LONG_REST: usize = 149;
/// How often one looks whether files have become new enough, and how many times.
const WAIT: Duration = Duration::from_millis(100);
const WAITS: usize = 100;
/// Most that is asked for to mend one table.
const MOST_BYTES: usize = 128 << 20;
/// About as much is in one answer.
pub(super) const ANSWER_BYTES: usize = 1 << 20;

/// Mends what is found damaged, as long as the node runs.
pub(super) async fn refill(inner: Arc<Inner>) {
    let mut pace = Pace::default();
    let mut tries = 0;
    let mut too_much = TooMuch::default();
    while !inner.is_closed.load(Ordering::Acquire) {
        sleep(LOOK).await;
        let db = inner.machine.db();
        if !pace.is_due(db.damaged_files()) {
            continue;
        }
        tries += 1;
        // Whatever went wrong, the damage has been told, and is there to be tried again.
        let all = inner.refill_all(db, tries, &mut too_much).await;
        pace.came_to(all.unwrap_or(false));
    }
}

/// When what came to nothing is tried again: after longer and longer pauses, until there is something new.
#[derive(Debug, Default)]
struct Pace {
    tried: BTreeSet<FileId>,
    pause: Duration,
    rested: Duration,
}

impl Pace {
    /// Whether to try now. REQUIRES: asked every [`LOOK`].
    fn is_due(&mut self, damaged: BTreeSet<FileId>) -> bool {
        self.tried.retain(|file| damaged.contains(file));
        if !damaged.is_subset(&self.tried) {
            self.pause = LOOK;
        }
        self.rested += LOOK;
        if damaged.is_empty() || self.rested < self.pause {
            return false;
        }
        self.tried = damaged;
        self.rested = Duration::ZERO;
        true
    }

    fn came_to(&mut self, all: bool) {
        self.pause = match all {
            true => LOOK,
            false => (self.pause * 2).clamp(LOOK, REST),
        };
    }
}

/// Damage for which too much was asked, and at which try that is done again.
#[derive(Debug, Default)]
struct TooMuch(Vec<(Damage, usize)>);

impl TooMuch {
    /// Forgets what is not there any more, or due again.
    fn keep(&mut self, damages: &[Damage], tries: usize) {
        self.0
            .retain(|(damage, due)| *due > tries && damages.contains(damage));
    }

    fn has(&self, damage: &Damage) -> bool {
        self.0.iter().any(|(other, _)| other == damage)
    }

    fn add(&mut self, damage: Damage, tries: usize) {
        self.0.push((damage, tries + LONG_REST));
    }
}

/// Why a table is not mended.
enum Not {
    /// To nobody who can be asked.
    Known,
    TooMuch,
    /// What was waited for in vain.
    Waited(Refill),
    Failed(Error),
}

impl From<Error> for Not {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Not {
    /// For people; `None` if the node is closed.
    fn reason(&self) -> Option<String> {
        Some(match self {
            Self::Known => {
                "no other node answered, is as new, and could read the same itself".into()
            }
            Self::TooMuch => {
                format!("it lacks more than the {MOST_BYTES} bytes that are asked for")
            }
            Self::Waited(Refill::Busy) => "snapshots are held, or compaction runs".into(),
            Self::Waited(_) => "its files did not become as new as what the others have".into(),
            Self::Failed(Error::Closed | Error::Engine(firn_engine::Error::Closed(_))) => {
                return None;
            }
            Self::Failed(error) => error.to_string(),
        })
    }
}

impl Inner {
    /// Tries to mend every damaged table; whether all are.
    async fn refill_all(
        self: &Arc<Self>,
        db: Db,
        tries: usize,
        too_much: &mut TooMuch,
    ) -> Result<bool> {
        let engine = db.clone();
        let damages = self.machine_job(move |_| Ok(engine.damages()?)).await?;
        too_much.keep(&damages, tries);
        let mut all = true;
        for damage in damages {
            if too_much.has(&damage) {
                all = false;
                continue;
            }
            let Err(not) = self.refill_one(&db, &damage, tries).await else {
                continue;
            };
            all = false;
            if let Some(reason) = not.reason() {
                db.note_not_refilled(&damage, &reason);
            }
            match not {
                Not::TooMuch => too_much.add(damage, tries),
                // The disk takes or gives nothing at all, perhaps: the others need not send all that it lacks.
                Not::Failed(Error::Engine(
                    firn_engine::Error::Io(_) | firn_engine::Error::DiskFull(_),
                )) => return Ok(false),
                _ => {}
            }
        }
        Ok(all)
    }

    async fn refill_one(
        self: &Arc<Self>,
        db: &Db,
        damage: &Damage,
        tries: usize,
    ) -> std::result::Result<(), Not> {
        let views = Arc::new(self.views(damage, tries).await?);
        let newest = views.iter().map(|view| view.seqno).max();
        let damage = Arc::new(damage.clone());
        let mut is_flushed = false;
        let mut last = Refill::NotYet;
        for _ in 0..WAITS {
            let (engine, damage, views) = (db.clone(), Arc::clone(&damage), Arc::clone(&views));
            let refilled = self.machine_job(move |_| Ok(engine.refill(&damage, &views)?));
            last = refilled.await?;
            match last {
                Refill::Done(_) | Refill::Gone => return Ok(()),
                // Once, when this node has applied what the other one had.
                Refill::NotYet if !is_flushed && Some(db.snapshot().seqno()) >= newest => {
                    is_flushed = true;
                    self.machine_job(|inner| inner.machine.flush_soon()).await?;
                }
                Refill::NotYet | Refill::Busy => {}
            }
            sleep(WAIT).await;
        }
        Err(Not::Waited(last))
    }

    /// What others have where a table lacks something.
    async fn views(
        &self,
        damage: &Damage,
        tries: usize,
    ) -> std::result::Result<Vec<RangeView>, Not> {
        let mut others = self.others();
        let first = tries % others.len().max(1);
        others.rotate_left(first);
        let mut views = Vec::new();
        let mut bytes = 0;
        for range in &damage.ranges {
            let mut rest = range.clone();
            loop {
                let view = self.view(damage, rest.clone(), &mut others).await;
                let view = view.ok_or(Not::Known)?;
                let entries = view.entries.iter();
                // And what keeps them.
                let size = |e: &ViewEntry| e.key.len() + e.value.len() + 2 * size_of::<ViewEntry>();
                bytes += entries.map(size).sum::<usize>();
                // There may be many without entries. Each has its keys three times.
                let next = view.next.as_ref().map_or(0, Vec::len);
                bytes += 3 * next + 2 * size_of::<RangeView>();
                if bytes > MOST_BYTES {
                    return Err(Not::TooMuch);
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

    /// What one of the others has in a range of keys, or in the beginning of it; `None`: nobody knows.
    async fn view(
        &self,
        damage: &Damage,
        range: KeyRange,
        others: &mut VecDeque<Peer>,
    ) -> Option<RangeView> {
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
                        return Some(view);
                    }
                }
            }
            // The next page is asked of who answered.
            others.rotate_left(1);
        }
        None
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

#[cfg(test)]
mod tests {
    use firn_engine::key::{NamespaceId, SeqNo};

    use super::*;

    #[test]
    fn pauses_become_longer_until_there_is_new_damage() {
        let files = |ids: &[u64]| -> BTreeSet<FileId> { ids.iter().copied().map(FileId).collect() };
        let mut pace = Pace::default();
        // How many looks until one tries, which comes to nothing.
        let mut wait = |ids: &[u64]| {
            let looks = (1..1000).find(|_| pace.is_due(files(ids)));
            pace.came_to(false);
            looks
        };
        let alone: Vec<_> = (0..11).filter_map(|_| wait(&[1])).collect();
        assert_eq!(alone, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600]);
        assert_eq!(wait(&[1, 2]), Some(1));
        assert_eq!(wait(&[1, 2]), Some(2));
        assert_eq!(wait(&[2]), Some(4), "one of them was mended");
        assert_eq!(wait(&[]), None);
        assert!(pace.is_due(files(&[3])));
        pace.came_to(true);
        assert!(pace.is_due(files(&[3])), "it is damaged again");
    }

    #[test]
    fn what_lacks_too_much_is_asked_for_again_after_a_long_rest() {
        let damage = |file| Damage {
            namespace: NamespaceId(0),
            file: FileId(file),
            newest: SeqNo(5),
            ranges: Vec::new(),
        };
        let damages = [damage(1), damage(2)];
        let mut too_much = TooMuch::default();
        too_much.add(damage(1), 3);
        too_much.add(damage(2), 4);
        too_much.add(damage(3), 4);
        for tries in 4..3 + LONG_REST {
            too_much.keep(&damages, tries);
            assert!(too_much.has(&damage(1)) && too_much.has(&damage(2)));
            assert!(!too_much.has(&damage(3)), "it is gone");
        }
        too_much.keep(&damages, 3 + LONG_REST);
        assert!(!too_much.has(&damage(1)) && too_much.has(&damage(2)));
    }
}
