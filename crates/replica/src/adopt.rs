//! Acts on the directory of a node that is not running: a database of its own becomes the first node
//! of a cluster; one node that is left becomes a cluster of one.
//!
//! # Adopting a database
//!
//! A database that had a log of its own keeps its files where they are. Its state is then taken for
//! that after entry 0.0, the one that makes a cluster, with that cluster of one as the membership; the
//! replicated log begins behind it, so whoever joins is sent a snapshot.
//!
//! 1. The engine opens the database with its own log, flushes everything and closes it.
//! 2. HOME: the state is the directory itself, and begins with entry 0.0.
//! 3. The engine opens it without its log and writes the position, the time and the membership: one
//!    edit of the manifest. **From here on it is a node**, and the engine refuses to open it otherwise.
//! 4. The engine's own log is put aside and removed.
//! 5. The node starts, and makes its log (see [`crate::node`]).
//!
//! After a crash before 3 it is a database of its own, which may be used as such; the next attempt
//! begins anew. After 3 only 4 is left to be done, and 5 is always done when there is no log yet.
//!
//! # Recovering from the loss of a majority
//!
//! [`recover`] appends to the log of one node that it is the only member, in a term above all that it
//! knows. When it starts it elects itself and commits all that its log has, whether or not a majority
//! had it: of what was acknowledged, this node's log is all that is left. What only the others had is
//! lost, which nobody can know from here; the others must never come back with what they have.

use std::path::Path;
use std::sync::Arc;

use firn_engine::names::{CURRENT, WAL_DIR};
use firn_engine::version::edit::Applied;
use firn_engine::{Db, Options};
use firn_io::Env;

use crate::error::{Error, Result};
use crate::home::Home;
use crate::log_store::{LogStore, LogStoreOptions};
use crate::machine::{LogLink, Machine, Owner};
use crate::types::{Entry, LogId, Member, Membership, NodeId, Payload, Vote};

/// The entry that makes a cluster.
const FIRST: LogId = LogId { term: 0, index: 0 };
/// Bytes of the log that are looked at together.
const READ_BYTES: usize = 16 << 20;
/// Where the engine's own log is put when it is no longer needed.
const WAL_ASIDE: &str = "wal.gone";

fn alone(node: NodeId, member: Member) -> Membership {
    Membership {
        voters: vec![[node].into()],
        nodes: [(node, member)].into(),
    }
}

/// Whether `root` is a database of its own, or on its way from there to a node.
///
/// # Errors
/// The directory cannot be read.
pub fn is_adoptable(env: &Env, root: &Path) -> Result<bool> {
    let fs = &env.fs;
    Ok(fs.exists(&root.join(CURRENT))? && !fs.exists(&root.join("raft"))?)
}

/// Makes the database in `root` node `node`, a cluster of one that others can join. Returns whether
/// it did: a directory that is a node already, or empty, stays as it is.
///
/// # Errors
/// The database is open elsewhere, damaged, or cannot be read or written; the directory is another
/// node's. What is said on the module's page about a crash holds for errors too.
pub fn adopt(
    env: &Env,
    root: &Path,
    node: NodeId,
    member: Member,
    options: &Options,
) -> Result<bool> {
    if !is_adoptable(env, root)? {
        return Ok(false);
    }
    if !env.fs.exists(&root.join("HOME"))? {
        // It fails for a database that was a replica's and lost its HOME.
        let db = Db::open_with(env.clone(), root, options.clone())?;
        db.flush()?;
        db.close()?;
    }
    let mut home = Home::open(Arc::clone(&env.fs), root, node, &*env.entropy)?;
    if home.state_dir() != root {
        return Ok(false);
    }
    home.begin_at(FIRST)?;
    let link: Arc<LogLink> = Arc::default();
    let open = || Db::open_external(env.clone(), root, options.clone(), Arc::clone(&link) as _);
    let (db, applier) = match open() {
        // Somebody used it as a database since an earlier attempt.
        Err(firn_engine::Error::InvalidArgument(_)) => {
            let db = Db::open_with(env.clone(), root, options.clone())?;
            db.flush()?;
            db.close()?;
            open()?
        }
        opened => opened?,
    };
    let first = Applied {
        term: FIRST.term,
        index: FIRST.index,
    };
    match applier.applied().0 {
        Some(at) if at == first => {}
        Some(at) => {
            let detail = format!(
                "{}: its state is at entry {}.{}, but it has no replicated log: it was lost",
                root.display(),
                at.term,
                at.index
            );
            return Err(Error::Failed(detail));
        }
        None => {
            let owner = Owner {
                membership_id: Some(FIRST),
                membership: alone(node, member),
            };
            applier.apply(first, env.clock.unix_ms(), Some(owner.encode()), &[])?;
            db.flush()?;
        }
    }
    db.close()?;
    drop((db, applier));
    let (wal, aside) = (root.join(WAL_DIR), root.join(WAL_ASIDE));
    if env.fs.exists(&wal)? && !env.fs.exists(&aside)? {
        env.fs.rename(&wal, &aside)?;
        env.fs.sync_dir(root)?;
    }
    if env.fs.exists(&aside)? {
        env.fs.remove_dir_all(&aside)?;
    }
    Ok(true)
}

/// What was found by [`recover`].
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The last entry of the log that is left.
    pub last: Option<LogId>,
    /// The last entry of which the node knew that a majority had it.
    pub committed: Option<LogId>,
    /// Who belonged to the cluster, as of the end of its log.
    pub before: Membership,
}

/// The membership that the log ends with, or what the files have if it has none.
fn last_membership(log: &LogStore, mut found: Membership) -> Result<Membership> {
    let (purged, last) = log.bounds();
    let mut next = purged.map_or(0, |id| id.index + 1);
    while let Some(last) = last.filter(|last| next <= last.index) {
        let entries = log.entries(next, last.index + 1, READ_BYTES)?;
        let Some(end) = entries.last() else { break };
        next = end.id.index + 1;
        for entry in entries {
            if let Payload::Membership(membership) = entry.payload {
                found = membership;
            }
        }
    }
    Ok(found)
}

/// Makes a node that is not running the only member of its cluster. See the module's page for what
/// that means. Done twice it does no more than once.
///
/// # Errors
/// It is running; it is another node's directory, or no node's; it is damaged.
pub fn recover(
    env: &Env,
    log_env: &Env,
    root: &Path,
    node: NodeId,
    options: &Options,
) -> Result<Recovered> {
    if !env.fs.exists(&root.join("HOME"))? {
        let detail = format!("{}: it is no node of a cluster", root.display());
        return Err(Error::InvalidArgument(detail));
    }
    let home = Home::open(Arc::clone(&env.fs), root, node, &*env.entropy)?;
    let machine = Machine::open(env.clone(), home, options.clone(), Arc::default(), None)?;
    let log = machine.open_log(log_env.clone(), node, &LogStoreOptions::default())?;
    let (last, vote) = (log.bounds().1, log.vote());
    let before = last_membership(&log, machine.membership().1)?;
    let member = before.nodes.get(&node).cloned().unwrap_or_default();
    let found = Recovered {
        last,
        committed: log.committed(),
        before,
    };
    let term = vote.map_or(0, |vote| vote.term);
    let term = term.max(last.map_or(0, |last| last.term)) + 1;
    let vote = Vote {
        term,
        node,
        committed: false,
    };
    let entry = Entry {
        id: LogId {
            term,
            index: last.map_or(0, |last| last.index + 1),
        },
        payload: Payload::Membership(alone(node, member)),
    };
    // What becomes of them, the sync below says.
    log.save_vote(vote, Box::new(|_| {}))?;
    log.append(vec![entry], Box::new(|_| {}))?;
    log.sync()?;
    machine.close()?;
    log.close()?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use firn_engine::WriteOptions;
    use firn_io::clock::ManualClock;
    use firn_io::exec::ThreadPool;
    use firn_io::fs::Fs;
    use firn_io::fs::fault::{FaultFs, Verdict};
    use firn_io::fs::mem::{CrashMode, MemFs};
    use firn_io::rng::SeededEntropy;
    use parking_lot::Mutex;

    use super::*;

    const ROOT: &str = "/data";

    fn env(fs: Arc<dyn firn_io::fs::Fs>) -> Env {
        Env {
            fs,
            clock: Arc::new(ManualClock::new(1_800_000_000_000)),
            exec: Arc::new(ThreadPool::new(2)),
            entropy: Arc::new(SeededEntropy::new(7)),
        }
    }

    fn options() -> Options {
        Options {
            memory_bytes: 16 << 20,
            log_mapped: false,
            ..Options::default()
        }
    }

    fn member() -> Member {
        Member {
            address: "a:1".into(),
            ..Member::default()
        }
    }

    /// A database with something in SSTables and something only in its log.
    fn fill(disk: &MemFs) {
        let db = Db::open_with(env(Arc::new(disk.clone())), ROOT, options()).unwrap();
        db.put(b"old", b"1").unwrap();
        db.flush().unwrap();
        let shop = db.create_namespace("shop").unwrap();
        let mut batch = firn_engine::WriteBatch::new();
        batch.put(&shop, b"new", b"2").unwrap();
        db.write(batch, &WriteOptions::sync()).unwrap();
        db.close().unwrap();
    }

    fn check(db: &Db) {
        assert_eq!(db.get(b"old").unwrap().as_deref(), Some(&b"1"[..]));
        let shop = db.namespace("shop").unwrap();
        let new = db.get_in(&shop, b"new").unwrap();
        assert_eq!(new.as_deref(), Some(&b"2"[..]));
    }

    /// It is node 1 alone at entry 0.0, with everything in it, and its log begins behind that.
    fn check_node(disk: &MemFs) {
        let env = env(Arc::new(disk.clone()));
        let home = Home::open(Arc::clone(&env.fs), Path::new(ROOT), 1, &*env.entropy).unwrap();
        let machine = Machine::open(env.clone(), home, options(), Arc::default(), None).unwrap();
        assert_eq!(machine.applied(), Some(FIRST));
        assert_eq!(machine.membership(), (Some(FIRST), alone(1, member())));
        check(&machine.db());
        let log_options = LogStoreOptions {
            mapped: false,
            ..LogStoreOptions::default()
        };
        let log = machine.open_log(env, 1, &log_options).unwrap();
        assert_eq!(log.bounds(), (Some(FIRST), Some(FIRST)));
        machine.close().unwrap();
        log.close().unwrap();
    }

    #[test]
    fn a_database_becomes_a_node_once() {
        let disk = MemFs::new();
        fill(&disk);
        let env = env(Arc::new(disk.clone()));
        let root = Path::new(ROOT);
        assert!(adopt(&env, root, 1, member(), &options()).unwrap());
        assert!(!disk.exists(Path::new("/data/wal")).unwrap());
        assert!(!disk.exists(Path::new("/data/wal.gone")).unwrap());
        let refused = Db::open_with(env.clone(), ROOT, options()).unwrap_err();
        assert!(refused.to_string().contains("replica"), "{refused}");
        check_node(&disk);
        assert!(!adopt(&env, root, 1, member(), &options()).unwrap());
        check_node(&disk);
        // An empty directory has nothing to adopt.
        assert!(!adopt(&env, Path::new("/none"), 1, member(), &options()).unwrap());
    }

    /// Power is lost before every operation of the adoption. What is found is a database, or a node,
    /// or on the way; it can always be made a node, with everything in it.
    #[test]
    fn adoption_survives_power_loss_at_every_step() {
        let disk = MemFs::new();
        fill(&disk);
        let images = Arc::new(Mutex::new(Vec::new()));
        let fault = FaultFs::new(Arc::new(disk.clone()), 1);
        let (under, seen) = (disk.clone(), Arc::clone(&images));
        fault.set_hook(Box::new(move |_, _| {
            let mut seen = seen.lock();
            for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn] {
                let seed = seen.len() as u64;
                seen.push(under.crash(seed, mode));
            }
            Verdict::Proceed
        }));
        let env_of_fault = env(Arc::new(fault));
        adopt(&env_of_fault, Path::new(ROOT), 1, member(), &options()).unwrap();
        images.lock().push(disk.crash(0, CrashMode::DropUnsynced));
        let (mut databases, mut nodes) = (0, 0);
        let images = images.lock();
        assert!(images.len() > 50, "{}", images.len());
        for (number, image) in images.iter().enumerate() {
            let env = env(Arc::new(image.clone()));
            // Every other one is used as a database first, if it still is one.
            if number % 2 == 0 {
                match Db::open_with(env.clone(), ROOT, options()) {
                    Ok(db) => {
                        databases += 1;
                        check(&db);
                        db.put(b"late", b"3").unwrap();
                        db.close().unwrap();
                    }
                    Err(error) => {
                        nodes += 1;
                        assert!(error.to_string().contains("replica"), "{error}");
                    }
                }
            }
            adopt(&env, Path::new(ROOT), 1, member(), &options()).unwrap();
            check_node(image);
        }
        assert!(databases > 0 && nodes > 0, "{databases} {nodes}");
    }

    #[test]
    fn what_is_left_of_a_cluster_is_alone() {
        let disk = MemFs::new();
        let env = env(Arc::new(disk.clone()));
        let root = Path::new(ROOT);
        let refused = recover(&env, &env, root, 1, &options()).unwrap_err();
        assert!(refused.to_string().contains("no node"), "{refused}");
        fill(&disk);
        adopt(&env, root, 1, member(), &options()).unwrap();
        let found = recover(&env, &env, root, 1, &options()).unwrap();
        assert_eq!(found.last, Some(FIRST));
        let again = recover(&env, &env, root, 1, &options()).unwrap();
        let last = LogId { term: 1, index: 1 };
        assert_eq!(again.last, Some(last));
        assert_eq!(again.before, alone(1, member()));
        let other = recover(&env, &env, root, 2, &options()).unwrap_err();
        assert!(other.to_string().contains("belongs to node 1"), "{other}");
    }
}
