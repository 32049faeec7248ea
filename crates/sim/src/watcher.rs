//! What is seen of all nodes together, and what must hold of it at every moment.
//!
//! * An entry is the same on every node that applies it, and so is what it does (*agreement*).
//! * A node applies entries without a gap, but for those that a snapshot brought.
//! * Now and then, at the same entries on all nodes, the whole contents of the state are compared.
//! * A term has one leader.
//! * On each node `purged <= applied <= last`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use firn_engine::Outcome;
use firn_io::checksum::xxh3_64_seeded;
use firn_replica::machine::ApplyListener;
use firn_replica::types::Entry;
use firn_replica::{Node, NodeId, Role, Status};
use parking_lot::Mutex;

#[derive(Debug, Default)]
struct Seen {
    /// What each entry did, by its index, and who said so first.
    applied: BTreeMap<u64, (u64, NodeId)>,
    /// The last entry that a start of a node applied.
    last: BTreeMap<(NodeId, u64), u64>,
    /// Snapshots that a node was sent: which node, and up to which entry.
    brought: BTreeSet<(NodeId, u64)>,
    /// The contents after an entry.
    contents: BTreeMap<u64, (u64, NodeId)>,
    leaders: BTreeMap<u64, NodeId>,
    compared: u64,
    installed: u64,
    violations: Vec<String>,
}

/// See the module's page.
#[derive(Debug)]
pub struct Watcher {
    seen: Mutex<Seen>,
    /// After every so many entries the contents are compared.
    every: u64,
}

/// The node of a start, for as long as it runs.
pub type NodeCell = Arc<Mutex<Option<Node>>>;

impl Watcher {
    /// Compares contents after every so many entries.
    pub fn new(every: u64) -> Arc<Self> {
        Arc::new(Self {
            seen: Mutex::default(),
            every: every.max(1),
        })
    }

    /// Something does not hold.
    pub fn violation(&self, text: String) {
        let mut seen = self.seen.lock();
        // The first ones tell; the others follow from them.
        if seen.violations.len() < 20 {
            seen.violations.push(text);
        }
    }

    /// What did not hold so far.
    pub fn violations(&self) -> Vec<String> {
        self.seen.lock().violations.clone()
    }

    /// A node is sent a snapshot.
    pub fn snapshot_sent(&self, to: NodeId, index: u64) {
        let seen = &mut *self.seen.lock();
        seen.brought.insert((to, index));
        seen.installed += 1;
    }

    /// How many snapshots were sent.
    pub fn snapshots(&self) -> u64 {
        self.seen.lock().installed
    }

    /// How many times contents were compared.
    pub fn compared(&self) -> u64 {
        self.seen.lock().compared
    }

    /// The greatest term in which anybody was seen to lead.
    pub fn greatest_term(&self) -> u64 {
        let seen = self.seen.lock();
        seen.leaders.last_key_value().map_or(0, |(term, _)| *term)
    }

    /// What listens to a start of a node.
    pub fn listener(self: &Arc<Self>, id: NodeId, start: u64, node: NodeCell) -> ApplyListener {
        let watcher = Arc::clone(self);
        Arc::new(move |entry: &Entry, outcomes: &[Outcome]| {
            watcher.applied((id, start), entry, outcomes);
            let index = entry.id.index;
            if !index.is_multiple_of(watcher.every) {
                return;
            }
            let node = node.lock().clone();
            // What cannot be read is told elsewhere.
            if let Some(Ok(hash)) = node.map(|node| node.content_hash()) {
                watcher.contents(id, index, hash);
            }
        })
    }

    fn applied(&self, (id, start): (NodeId, u64), entry: &Entry, outcomes: &[Outcome]) {
        let did = [&entry.to_bytes()[..], format!("{outcomes:?}").as_bytes()].concat();
        let hash = xxh3_64_seeded(0, &did);
        let index = entry.id.index;
        let seen = &mut *self.seen.lock();
        let (first, by) = *seen.applied.entry(index).or_insert((hash, id));
        let last = seen.last.insert((id, start), index);
        let is_brought = index
            .checked_sub(1)
            .is_some_and(|before| seen.brought.contains(&(id, before)));
        if first != hash {
            let text = format!("entry {index} did one thing on node {by}, another on {id}");
            seen.violations.push(text);
        }
        if last.is_some_and(|last| last + 1 != index) && !is_brought {
            let text = format!("node {id} applied entry {index} after {last:?}");
            seen.violations.push(text);
        }
    }

    /// The contents of a node after an entry.
    pub fn contents(&self, id: NodeId, index: u64, hash: u64) {
        let seen = &mut *self.seen.lock();
        seen.compared += 1;
        let (first, by) = *seen.contents.entry(index).or_insert((hash, id));
        if first != hash {
            let text = format!("after entry {index} node {by} has other contents than node {id}");
            seen.violations.push(text);
        }
    }

    /// Looks at what a node says of itself.
    pub fn look(&self, status: &Status) {
        if status.role == Role::Leader {
            let first = {
                let mut seen = self.seen.lock();
                *seen.leaders.entry(status.term).or_insert(status.node)
            };
            if first != status.node {
                let (term, node) = (status.term, status.node);
                self.violation(format!("term {term} has two leaders: {first} and {node}"));
            }
        }
        let applied = status.applied.map(|id| id.index);
        let purged = status.purged.map(|id| id.index);
        // These two are told by consensus, the other one by the state itself, which may be ahead.
        if purged > applied {
            self.violation(format!("purged what was not applied: {status:?}"));
        }
    }
}
