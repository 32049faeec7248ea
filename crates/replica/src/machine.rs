//! The state machine: entries of the log become the state of the engine, in the same way on every
//! node.
//!
//! The engine runs without a log of its own (see [`firn_engine::external`]): what it has in memory is
//! in the replicated log, and its manifest says up to which entry its files go. Entries are applied
//! one at a time, in order; after a restart, from the one after the manifest's on. What the entry does
//! depends on nothing but the entry and the state before it: conditions are decided here, sequence
//! numbers count, and time is what leaders wrote into the entries.
//!
//! With the manifest's position goes what consensus has to know as of that entry:
//!
//! ```text
//! owner state   version u8 (1) | entry of the membership: optional log id | membership
//! ```
//!
//! A **snapshot** is the engine's files as of one entry, linked into a directory of their own: it costs
//! a flush and a link a file, and stays as it is while the engine goes on. It is installed by making
//! a new state directory, opening it, and switching to it (see [`crate::home`]); readers of the old
//! state go on until they let go of it, new ones get the new one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use firn_engine::version::edit::Applied;
use firn_engine::{Applier, Db, ExternalLog, Options, Outcome, ScanOptions, verify_dir};
use firn_io::Env;
use firn_io::codec::put_u8;
use firn_io::exec::Priority;
use firn_io::fs::{Fs, OpenMode};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, oneshot};
use xxhash_rust::xxh3::Xxh3;

use crate::codec::{decode_all, get_option, put_option};
use crate::command::Command;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::log_store::{LogStore, LogStoreOptions};
use crate::message::{SnapshotFile, SnapshotMeta};
use crate::planted::{self, Bug};
use crate::types::{Entry, LogId, Membership, NodeId, Payload};

const OWNER_VERSION: u8 = 1;

/// How a refusal of a snapshot begins whose files are damaged: who sent it looks at its own.
pub(crate) const DAMAGED_SNAPSHOT: &str = "a damaged snapshot";

/// Is told of every entry, after it was applied and before readers and writers are answered.
pub type ApplyListener = Arc<dyn Fn(&Entry, &[Outcome]) + Send + Sync>;

/// The replicated log as the engine sees it, known before it is open.
#[derive(Default)]
pub(crate) struct LogLink {
    store: OnceLock<LogStore>,
}

impl fmt::Debug for LogLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogLink").finish_non_exhaustive()
    }
}

impl LogLink {
    /// The log is open.
    pub(crate) fn set_log(&self, store: LogStore) {
        // Set once, by who opens the node.
        let _ = self.store.set(store);
    }
}

impl ExternalLog for LogLink {
    fn sync_to(&self, _index: u64) -> firn_io::Result<()> {
        if planted::is(Bug::FlushAhead) {
            return Ok(());
        }
        // Nothing is applied, and so nothing flushed, before the log is open.
        self.store.get().map_or(Ok(()), LogStore::sync)
    }

    fn flushed(&self, _applied: Applied) {
        // Consensus lets go of entries when it has a snapshot.
    }
}

fn log_id(applied: Applied) -> LogId {
    LogId {
        term: applied.term,
        index: applied.index,
    }
}

/// What consensus knows as of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) membership_id: Option<LogId>,
    pub(crate) membership: Membership,
}

impl Owner {
    pub(crate) fn encode(&self) -> Arc<[u8]> {
        let mut out = Vec::new();
        put_u8(&mut out, OWNER_VERSION);
        put_option(&mut out, self.membership_id.as_ref(), |out, id| id.put(out));
        self.membership.put(&mut out);
        out.into()
    }

    /// Nothing was ever applied if there is no byte.
    fn decode(dir: &Path, bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let owner = decode_all("applied state", bytes, |r| {
            if r.u8()? != OWNER_VERSION {
                return None;
            }
            Some(Self {
                membership_id: get_option(r, LogId::get)?,
                membership: Membership::get(r)?,
            })
        });
        let damaged = |error| firn_io::Error::corruption(dir, 0, format!("manifest: {error}"));
        Ok(owner.map_err(damaged)?)
    }
}

/// A snapshot: the files of an engine as of one entry. Cheap to clone; the files go when the last
/// clone does.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What it is of.
    pub meta: SnapshotMeta,
    files: Arc<SnapshotFiles>,
}

#[derive(Debug)]
struct SnapshotFiles {
    env: Env,
    dir: PathBuf,
    is_ours: bool,
    /// Found out when it is sent first: all files are read.
    listed: OnceCell<Arc<[SnapshotFile]>>,
}

impl Drop for SnapshotFiles {
    fn drop(&mut self) {
        if self.is_ours {
            let (fs, dir) = (Arc::clone(&self.env.fs), std::mem::take(&mut self.dir));
            let remove = move || {
                // What is left over goes with the next opening of the node.
                let Ok(entries) = fs.list(&dir) else { return };
                for entry in entries {
                    let _ = fs.remove_file(&dir.join(entry.name));
                }
                let _ = fs.remove_dir(&dir);
            };
            self.env.exec.submit(Priority::Low, Box::new(remove));
        }
    }
}

impl Snapshot {
    /// A snapshot whose files somebody put into `dir`; they stay there.
    pub fn received(env: Env, dir: PathBuf, meta: SnapshotMeta) -> Self {
        let files = SnapshotFiles {
            env,
            dir,
            is_ours: false,
            listed: OnceCell::new(),
        };
        Self {
            meta,
            files: Arc::new(files),
        }
    }

    /// Where its files are: the file system, and the directory in it.
    pub fn location(&self) -> (&Arc<dyn Fs>, &Path) {
        (&self.files.env.fs, &self.files.dir)
    }

    /// What its files are, as soon as somebody found out.
    pub(crate) fn listed(&self) -> &OnceCell<Arc<[SnapshotFile]>> {
        &self.files.listed
    }
}

/// Those who wait until an entry is applied.
#[derive(Debug, Default)]
pub(crate) struct AppliedWatch(Mutex<Watched>);

#[derive(Debug, Default)]
struct Watched {
    applied: Option<u64>,
    next: u64,
    waiting: BTreeMap<(u64, u64), oneshot::Sender<()>>,
}

impl AppliedWatch {
    fn set(&self, index: u64) {
        let mut watched = self.0.lock();
        watched.applied = watched.applied.max(Some(index));
        let later = watched.waiting.split_off(&(index + 1, 0));
        let ready = std::mem::replace(&mut watched.waiting, later);
        drop(watched);
        for (_, tell) in ready {
            // Whoever waited may have given up.
            let _ = tell.send(());
        }
    }

    /// Whether the entry is applied.
    pub(crate) fn is_applied(&self, index: u64) -> bool {
        self.0.lock().applied >= Some(index)
    }

    /// Ends when the entry is applied; `None` if it is already.
    pub(crate) fn wait(&self, index: u64) -> Option<oneshot::Receiver<()>> {
        let mut watched = self.0.lock();
        if watched.applied >= Some(index) {
            return None;
        }
        let (tell, told) = oneshot::channel();
        let id = watched.next;
        watched.next += 1;
        watched.waiting.insert((index, id), tell);
        Some(told)
    }
}

struct Opened {
    home: Home,
    applier: Arc<Applier>,
    owner: Owner,
    applied: Option<LogId>,
    snapshot: Option<Snapshot>,
    /// An entry failed half-way: the state is not to be used any more.
    failed: Option<String>,
    /// For a planted bug.
    has_begun: bool,
}

struct Shared {
    env: Env,
    options: Options,
    link: Arc<LogLink>,
    db: ArcSwap<Db>,
    opened: Mutex<Opened>,
    watch: AppliedWatch,
    listener: Option<ApplyListener>,
}

/// See the module's page. Cheap to clone; all clones are one state.
#[derive(Clone)]
pub(crate) struct Machine {
    shared: Arc<Shared>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}

/// An engine that was opened as the state, and what its manifest says.
struct State {
    db: Db,
    applier: Applier,
    applied: Option<LogId>,
    owner: Owner,
}

fn open_state(env: &Env, dir: &Path, options: &Options, link: &Arc<LogLink>) -> Result<State> {
    let log = Arc::clone(link) as Arc<dyn ExternalLog>;
    let (db, applier) = Db::open_external(env.clone(), dir, options.clone(), log)?;
    let (applied, owner) = applier.applied();
    Ok(State {
        owner: Owner::decode(dir, &owner)?,
        applied: applied.map(log_id),
        db,
        applier,
    })
}

impl Machine {
    /// Opens the state that is in force in `home`.
    pub(crate) fn open(
        env: Env,
        home: Home,
        options: Options,
        link: Arc<LogLink>,
        listener: Option<ApplyListener>,
    ) -> Result<Self> {
        let state = open_state(&env, &home.state_dir(), &options, &link)?;
        let watch = AppliedWatch::default();
        if let Some(applied) = state.applied {
            watch.set(applied.index);
        }
        let opened = Opened {
            home,
            applier: Arc::new(state.applier),
            owner: state.owner,
            applied: state.applied,
            snapshot: None,
            failed: None,
            has_begun: false,
        };
        let shared = Shared {
            env,
            options,
            link,
            db: ArcSwap::from_pointee(state.db),
            opened: Mutex::new(opened),
            watch,
            listener,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Opens the log that belongs to the state, and makes it known to the engine. Only a state that a
    /// snapshot just brought, or that was a database of its own, may be ahead of its log: then what the
    /// log has is replaced by the mark that the entries before are gone.
    pub(crate) fn open_log(
        &self,
        env: Env,
        node: NodeId,
        options: &LogStoreOptions,
    ) -> Result<LogStore> {
        let (dir, installed, applied) = {
            let opened = self.shared.opened.lock();
            let home = &opened.home;
            (home.log_dir(), home.installed(), opened.applied)
        };
        let is_installed = applied.is_some() && applied == installed;
        let known = applied.filter(|_| !is_installed);
        let log = LogStore::open(env, &dir, node, known, options)?;
        if let Some(applied) = applied.filter(|_| is_installed)
            && log.id_at(applied.index) != Some(applied)
            && log.bounds().0 < Some(applied)
        {
            // Of what the log has, the snapshot knows better.
            log.truncate_after(None)?;
            log.purge(applied)?;
        }
        self.shared.link.set_log(log.clone());
        Ok(log)
    }

    /// The database to read. After a snapshot was installed it is another one.
    pub(crate) fn db(&self) -> Db {
        Db::clone(&self.shared.db.load())
    }

    /// The last entry that was applied.
    pub(crate) fn applied(&self) -> Option<LogId> {
        self.shared.opened.lock().applied
    }

    /// The membership, and the entry that it came with, as of the last entry that was applied.
    pub(crate) fn membership(&self) -> (Option<LogId>, Membership) {
        let opened = self.shared.opened.lock();
        (opened.owner.membership_id, opened.owner.membership.clone())
    }

    /// The time that the entries tell, in Unix milliseconds.
    pub(crate) fn time_ms(&self) -> u64 {
        self.shared.opened.lock().applier.time_ms()
    }

    /// Whether there may be values that expire.
    pub(crate) fn may_expire(&self) -> bool {
        self.shared.opened.lock().applier.may_expire()
    }

    /// Where the state in force is, and where a snapshot may arrive.
    pub(crate) fn dirs(&self) -> (PathBuf, PathBuf) {
        let opened = self.shared.opened.lock();
        (opened.home.state_dir(), opened.home.incoming())
    }

    pub(crate) fn watch(&self) -> &AppliedWatch {
        &self.shared.watch
    }

    /// Applies an entry. An error is final: the node has to stop, and a restart tries again.
    pub(crate) fn apply(&self, entry: &Entry) -> Result<Vec<Outcome>> {
        let shared = &*self.shared;
        let opened = &mut *shared.opened.lock();
        if let Some(failed) = &opened.failed {
            return Err(Error::Failed(failed.clone()));
        }
        if planted::is(Bug::DoubleApply) && !std::mem::replace(&mut opened.has_begun, true) {
            opened.apply(entry)?;
        }
        let applied = opened.apply(entry);
        let outcomes = match applied {
            Ok(outcomes) => outcomes,
            Err(error) => {
                opened.failed = Some(format!("entry {}: {error}", entry.id));
                return Err(error);
            }
        };
        opened.applied = Some(entry.id);
        if let Some(listener) = &shared.listener {
            listener(entry, &outcomes);
        }
        shared.watch.set(entry.id.index);
        Ok(outcomes)
    }

    /// Whether the engine has so much to flush that the next entry should wait.
    pub(crate) fn must_wait(&self) -> bool {
        self.shared.opened.lock().applier.must_wait()
    }

    /// Has everything that was applied flushed, in the background.
    pub(crate) fn flush_soon(&self) -> Result<bool> {
        let applier = Arc::clone(&self.shared.opened.lock().applier);
        Ok(applier.flush_soon()?)
    }

    /// Why the last flush failed, see [`Applier::flush_error`].
    pub(crate) fn flush_error(&self) -> Option<String> {
        self.shared.opened.lock().applier.flush_error()
    }

    /// The last snapshot that was made or installed.
    pub(crate) fn current_snapshot(&self) -> Option<Snapshot> {
        self.shared.opened.lock().snapshot.clone()
    }

    /// Makes a snapshot of everything that was applied. Reads and writes files: for the background.
    fn make_snapshot(&self) -> Result<Snapshot> {
        let shared = &*self.shared;
        let (applier, snapshots, at, before) = {
            let opened = shared.opened.lock();
            let at = opened.applied;
            let before = opened.snapshot.clone();
            (
                Arc::clone(&opened.applier),
                opened.home.snapshots(),
                at,
                before,
            )
        };
        if let Some(before) = before.filter(|before| before.meta.last == at) {
            return Ok(before);
        }
        let at = at.unwrap_or_default();
        shared.env.fs.create_dir_durable(&snapshots)?;
        let mut number = 0;
        let dir = loop {
            // One that is about to be removed may have the name.
            let dir = snapshots.join(format!("{}-{}-{number}", at.term, at.index));
            if !shared.env.fs.exists(&dir)? {
                break dir;
            }
            number += 1;
        };
        let (applied, owner) = applier.checkpoint(&dir)?;
        let owner = Owner::decode(&dir, &owner)?;
        let snapshot = Snapshot {
            meta: SnapshotMeta {
                last: applied.map(log_id),
                membership_id: owner.membership_id,
                membership: owner.membership,
            },
            files: Arc::new(SnapshotFiles {
                env: shared.env.clone(),
                dir,
                is_ours: true,
                listed: OnceCell::new(),
            }),
        };
        shared.opened.lock().snapshot = Some(snapshot.clone());
        Ok(snapshot)
    }

    /// Replaces the state by a snapshot. Reads and writes files: for the background.
    fn install_now(&self, snapshot: &Snapshot) -> Result<()> {
        let shared = &*self.shared;
        let mut home = shared.opened.lock().home.clone();
        let partial = home.begin_state()?;
        if planted::is(Bug::HalfInstall) {
            home.switch(snapshot.meta.last)?;
            take_files(snapshot.location(), (&shared.env.fs, &home.state_dir()))?;
            shared.db.load().close()?;
        } else {
            take_files(snapshot.location(), (&shared.env.fs, &partial))?;
            // Nothing of the old state is flushed any more, and its files are no longer locked.
            shared.db.load().close()?;
            home.switch(snapshot.meta.last)?;
        }
        let state = open_state(
            &shared.env,
            &home.state_dir(),
            &shared.options,
            &shared.link,
        )?;
        let found = (state.applied, &state.owner.membership_id);
        if found != (snapshot.meta.last, &snapshot.meta.membership_id) {
            let detail = format!(
                "{}: the snapshot is of {:?} and not of {:?}",
                home.state_dir().display(),
                state.applied,
                snapshot.meta.last
            );
            return Err(Error::Failed(detail));
        }
        {
            let mut opened = shared.opened.lock();
            opened.home = home;
            opened.applier = Arc::new(state.applier);
            opened.owner = state.owner;
            opened.applied = state.applied;
            opened.snapshot = None;
        }
        shared.db.store(Arc::new(state.db));
        if let Some(last) = snapshot.meta.last {
            shared.watch.set(last.index);
        }
        self.make_snapshot()?;
        Ok(())
    }

    /// Does `work` in the background and waits for it without holding up the thread.
    async fn in_background<T: Send + 'static>(
        &self,
        priority: Priority,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = oneshot::channel();
        let machine = self.clone();
        let job = move || {
            // Whoever asked may be gone with the node.
            let _ = tell.send(work(&machine));
        };
        self.shared.env.exec.submit(priority, Box::new(job));
        told.await.unwrap_or(Err(Error::Closed))
    }

    /// Makes a snapshot of everything that was applied.
    pub(crate) async fn build_snapshot(&self) -> Result<Snapshot> {
        self.in_background(Priority::Low, Self::make_snapshot).await
    }

    /// Reads all of a snapshot that somebody else made and says what is wrong with it, before
    /// anything of it is used: a node whose disk is damaged shall not pass the damage on.
    pub(crate) async fn check_snapshot(&self, snapshot: Snapshot) -> Result<()> {
        self.in_background(Priority::High, move |machine| {
            let (fs, dir) = snapshot.location();
            let env = Env {
                fs: Arc::clone(fs),
                ..machine.shared.env.clone()
            };
            let report = verify_dir(&env, dir, &mut |_| ())?;
            match report.problems.first() {
                Some(problem) => Err(Error::Protocol(format!("{DAMAGED_SNAPSHOT}: {problem}"))),
                None => Ok(()),
            }
        })
        .await
    }

    /// Reads all of a snapshot of this state, which another node refused, and fails if it is damaged
    /// indeed: a node that cannot bring others up to date must not lead.
    pub(crate) async fn fail_if_damaged(&self, snapshot: Snapshot) {
        if let Err(error @ Error::Protocol(_)) = self.check_snapshot(snapshot).await {
            self.shared.opened.lock().failed = Some(error.to_string());
        }
    }

    /// Why the state is not to be used any more, if so.
    pub(crate) fn failure(&self) -> Option<String> {
        self.shared.opened.lock().failed.clone()
    }

    /// Replaces the state by a snapshot. An error is final, as that of an entry is.
    pub(crate) async fn install(&self, snapshot: Snapshot) -> Result<()> {
        // It closes the old engine, which waits for compactions: on their threads it would wait for
        // itself.
        let installed = self
            .in_background(Priority::High, move |machine| {
                machine.install_now(&snapshot)
            })
            .await;
        if let Err(error) = &installed {
            self.shared.opened.lock().failed = Some(format!("installing a snapshot: {error}"));
        }
        installed
    }

    /// See [`content_hash`].
    pub(crate) fn content_hash(&self) -> Result<u64> {
        content_hash(&self.db())
    }

    /// Flushes and closes the engine.
    pub(crate) fn close(&self) -> Result<()> {
        Ok(self.shared.db.load().close()?)
    }
}

impl Opened {
    fn apply(&mut self, entry: &Entry) -> Result<Vec<Outcome>> {
        let position = Applied {
            term: entry.id.term,
            index: entry.id.index,
        };
        let applier = &self.applier;
        match &entry.payload {
            Payload::Blank => Ok(applier.apply(position, 0, None, &[])?),
            Payload::Command(bytes) => {
                let command = Command::decode(bytes)?;
                let time_ms = command.time_ms;
                let outcomes = command
                    .with_changes(|changes| applier.apply(position, time_ms, None, changes))?;
                Ok(outcomes?)
            }
            Payload::Membership(membership) => {
                let owner = Owner {
                    membership_id: Some(entry.id),
                    membership: membership.clone(),
                };
                if planted::is(Bug::SkippedMembership) && self.owner.membership_id.is_some() {
                    let before = Some(self.owner.encode());
                    return Ok(applier.apply(position, 0, before, &[])?);
                }
                let outcomes = applier.apply(position, 0, Some(owner.encode()), &[])?;
                self.owner = owner;
                Ok(outcomes)
            }
        }
    }
}

/// Takes all files of a directory, which are durable there, into another, durably: by links within a
/// file system, as copies between two.
fn take_files(from: (&Arc<dyn Fs>, &Path), to: (&Arc<dyn Fs>, &Path)) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for entry in from
        .0
        .list(from.1)?
        .into_iter()
        .filter(|entry| !entry.is_dir)
    {
        let (old, new) = (from.1.join(&entry.name), to.1.join(&entry.name));
        if Arc::ptr_eq(from.0, to.0) {
            to.0.hard_link(&old, &new)?;
            continue;
        }
        let source = from.0.open(&old, OpenMode::Read)?;
        let target = to.0.open(&new, OpenMode::CreateNew)?;
        let mut offset = 0;
        loop {
            let read = source.read_at(&mut buffer, offset)?;
            if read == 0 {
                break;
            }
            target.write_at(&buffer[..read], offset)?;
            offset += read as u64;
        }
        target.sync_data()?;
    }
    Ok(to.0.sync_dir(to.1)?)
}

/// A number that two databases have in common if they have the same keys, values, versions, expiries
/// and namespaces. Reads everything.
pub fn content_hash(db: &Db) -> Result<u64> {
    let mut hash = Xxh3::new();
    for namespace in db.namespaces() {
        hash.update(&namespace.id().0.to_le_bytes());
        hash.update(namespace.name().as_bytes());
        let mut scan = db.scan(&namespace, ScanOptions::default())?;
        while scan.next()? {
            hash.update(&(scan.key().len() as u64).to_le_bytes());
            hash.update(scan.key());
            hash.update(&(scan.value().len() as u64).to_le_bytes());
            hash.update(scan.value());
            hash.update(&scan.version().0.to_le_bytes());
            hash.update(&scan.expires_at_ms().unwrap_or(0).to_le_bytes());
        }
    }
    Ok(hash.digest())
}
