//! Whole nodes: consensus, log and engine, over real sockets and a real disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use firn_engine::key::NamespaceId;
use firn_engine::{Options, WriteBatch};
use firn_io::Env;
use firn_peer::{Direction, PeerOptions, Peers};
use firn_replica::home::Home;
use firn_replica::log_store::LogStoreOptions;
use firn_replica::transport::Class;
use firn_replica::{
    Member, MemberChange, NodeId, NodeOptions, NodeThread, ReadLevel, Replicator, Role, World,
    Write,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::common::{CLUSTER, LONG};

struct Running {
    peers: Arc<Peers>,
    address: String,
    thread: NodeThread,
}

impl Running {
    /// Starts a node in a directory; the same again is a restart.
    async fn start(id: NodeId, root: PathBuf, address: &str) -> Self {
        let (env, log_env) = (Env::os(2), Env::os(1));
        let home = Home::open(Arc::clone(&env.fs), &root, id, &*env.entropy).unwrap();
        let mut options = PeerOptions::new(CLUSTER, id, home.incarnation());
        // Machines that run tests may be slow.
        options.silence = Duration::from_secs(5);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let handle = runtime.handle().clone();
        let peers = Peers::new(options, &env, &root, handle.clone()).unwrap();
        let listener = peers.listen(address).await.unwrap();
        let address = listener.address().to_string();
        let options = NodeOptions {
            engine: Options {
                // Nothing is flushed but for snapshots, and nothing is compacted.
                memory_bytes: 64 << 20,
                memtable_bytes: Some(16 << 20),
                ballast_bytes: 0,
                ..Options::default()
            },
            log: LogStoreOptions {
                segment_bytes: 256 << 10,
                ..LogStoreOptions::default()
            },
            log_bytes: 1 << 20,
            kept_entries: Some(5),
            ..NodeOptions::new(id, root)
        };
        let world = World {
            env,
            log_env,
            transport: Arc::clone(&peers) as _,
        };
        let starting = tokio::task::spawn_blocking(move || {
            firn_replica::Node::start_thread(options, world, runtime).unwrap()
        });
        let thread = starting.await.unwrap();
        handle.spawn(listener.serve(Arc::new(thread.node().clone())));
        Self {
            peers,
            address,
            thread,
        }
    }

    fn member(&self) -> Member {
        Member {
            address: self.address.clone(),
            ..Member::default()
        }
    }

    async fn stop(self) {
        self.thread.node().shutdown().await.unwrap();
        self.peers.close();
        // Ends its thread.
        tokio::task::spawn_blocking(move || drop(self.thread))
            .await
            .unwrap();
    }

    fn bulk_bytes(&self, direction: Direction) -> u64 {
        let stats = self.peers.stats().into_iter();
        stats
            .filter(|row| row.1 == Class::Bulk && row.2 == direction)
            .map(|row| row.3.bytes_received)
            .sum()
    }
}

fn put(key: &str, value: &[u8]) -> Write {
    let mut batch = WriteBatch::new();
    batch.put(NamespaceId(0), key.as_bytes(), value).unwrap();
    Write::batch(&mut batch)
}

/// Waits until a node says what is wanted.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < LONG * 2, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn leader(nodes: &BTreeMap<NodeId, Running>) -> Option<NodeId> {
    let leads = |(_, node): &(&NodeId, &Running)| node.thread.node().status().role == Role::Leader;
    nodes.iter().find(leads).map(|(id, _)| *id)
}

fn value(n: u32) -> Vec<u8> {
    // Not to be compressed.
    let mut rng = firn_io::rng::Rng::new(u64::from(n));
    let mut bytes = vec![0; 1000];
    rng.fill_bytes(&mut bytes);
    bytes
}

async fn write(nodes: &BTreeMap<NodeId, Running>, keys: std::ops::Range<u32>) {
    let ids: Vec<NodeId> = nodes.keys().copied().collect();
    let writes = keys.map(|n| {
        // Through every node: those that follow pass it on.
        let node = nodes[&ids[n as usize % ids.len()]].thread.node().clone();
        async move { node.propose(put(&format!("k{n:06}"), &value(n))).await }
    });
    for written in futures_util::future::join_all(writes).await {
        written.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_elect_write_and_bring_a_new_one_up_from_a_snapshot() {
    let dirs: Vec<TempDir> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let root = |id: NodeId| dirs[id as usize - 1].path().join("node");
    let mut nodes = BTreeMap::new();
    for id in 1..=3 {
        nodes.insert(id, Running::start(id, root(id), "127.0.0.1:0").await);
    }
    let members = nodes
        .iter()
        .map(|(id, node)| (*id, node.member()))
        .collect();
    nodes[&1].thread.node().initialize(members).await.unwrap();
    until("a leader", || leader(&nodes).is_some()).await;
    write(&nodes, 0..2000).await;

    // A fourth joins. The log does not reach back to the beginning: it gets a snapshot.
    let leads = leader(&nodes).unwrap();
    nodes[&leads].thread.node().snapshot().await.unwrap();
    let status = || nodes[&leads].thread.node().status();
    until("a purge", || status().purged.is_some()).await;
    let fourth = Running::start(4, root(4), "127.0.0.1:0").await;
    let member = fourth.member();
    let address = fourth.address.clone();
    let leader_node = nodes[&leads].thread.node().clone();
    let add = MemberChange::AddLearner(4, member);
    leader_node.change_members(add).await.unwrap();
    let applied = |node: &Running| node.thread.node().status().applied.map(|id| id.index);
    let target = status().last_index;
    until("the fourth has everything", || applied(&fourth) >= target).await;
    let first_bytes = fourth.bulk_bytes(Direction::Incoming);
    assert!(first_bytes > 1_500_000, "{first_bytes} bytes of a snapshot");
    let hash = |node: &Running| node.thread.node().content_hash().unwrap();
    assert_eq!(hash(&fourth), hash(&nodes[&leads]));

    // It is away while others write; most of the next snapshot it has already.
    fourth.stop().await;
    // Many entries, so that the log lets go of those before.
    for n in (2000..2300).step_by(10) {
        write(&nodes, n..n + 10).await;
    }
    leader_node.snapshot().await.unwrap();
    let before = target;
    until("another purge", || {
        status().purged.map(|id| id.index) > before
    })
    .await;
    let fourth = Running::start(4, root(4), &address).await;
    let target = status().last_index;
    until("the fourth has caught up", || applied(&fourth) >= target).await;
    let second_bytes = fourth.bulk_bytes(Direction::Incoming);
    assert!(second_bytes > 0, "it got a snapshot");
    assert!(
        second_bytes < first_bytes / 2,
        "{second_bytes} bytes after {first_bytes}"
    );
    assert_eq!(hash(&fourth), hash(&nodes[&leads]));
    let incoming = root(4).join("incoming");
    until("nothing is left over", || !incoming.exists()).await;

    // The leader goes; the others go on.
    nodes.insert(4, fourth);
    nodes.remove(&leads).unwrap().stop().await;
    until("another leader", || leader(&nodes).is_some()).await;
    write(&nodes, 2300..2400).await;
    for node in nodes.values() {
        let point = node
            .thread
            .node()
            .read_barrier(ReadLevel::Linearizable)
            .await;
        let point = point.unwrap();
        for n in [0, 2000, 2399] {
            let found = point.db.get(format!("k{n:06}").as_bytes()).unwrap();
            assert_eq!(found.as_deref(), Some(&value(n)[..]), "k{n}");
        }
    }
    for (_, node) in nodes {
        node.stop().await;
    }
}
