use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use firn_io::clock::SystemClock;
use firn_io::exec::ThreadPool;
use firn_io::fs::Fs;
use firn_io::fs::mem::{CrashMode, MemFs};
use firn_io::rng::{Rng, SeededEntropy};
use parking_lot::Mutex as SyncMutex;

use super::*;
use crate::types::Membership;

const VOTE: Vote = Vote {
    term: 3,
    node: 1,
    committed: true,
};
const LAST: Option<LogId> = Some(LogId { term: 3, index: 70 });
const SENT: &str = "/sender/snapshots/3-70-0";
const OWN: &str = "/receiver/state-000001";
const INCOMING: &str = "/receiver/incoming";

fn env(disk: &MemFs) -> Env {
    Env {
        fs: Arc::new(disk.clone()),
        clock: Arc::new(SystemClock::new()),
        entropy: Arc::new(SeededEntropy::new(1)),
        exec: Arc::new(ThreadPool::new(2)),
    }
}

type Files = BTreeMap<String, Vec<u8>>;

fn read_all(fs: &Arc<dyn Fs>, dir: &Path) -> Files {
    let mut files = Files::new();
    for entry in fs.list(dir).unwrap() {
        let file = fs.open(&dir.join(&entry.name), OpenMode::Read).unwrap();
        let mut bytes = vec![0; entry.len as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        files.insert(entry.name, bytes);
    }
    files
}

fn write_all(disk: &MemFs, dir: &str, files: &Files) {
    disk.create_dir_durable(Path::new(dir)).unwrap();
    for (name, bytes) in files {
        let path = Path::new(dir).join(name);
        let file = disk.open(&path, OpenMode::Create).unwrap();
        file.write_at(bytes, 0).unwrap();
        file.sync_data().unwrap();
    }
    disk.sync_dir(Path::new(dir)).unwrap();
}

/// Some files of an engine: an empty one, two with the same contents, long ones.
fn files() -> Files {
    let mut rng = Rng::new(7);
    let mut random = |len: usize| {
        let mut bytes = vec![0; len];
        rng.fill_bytes(&mut bytes);
        bytes
    };
    let twin = random(2500);
    [
        ("000012.sst", random(10_000)),
        ("000013.sst", twin.clone()),
        ("000014.sst", random(4_000)),
        ("000015.blob", twin),
        ("CURRENT", b"MANIFEST-000003\n".to_vec()),
        ("EMPTY", Vec::new()),
        ("MANIFEST-000003", random(700)),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}

/// What to do with the n-th request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weather {
    Calm,
    /// It and all after it cannot be delivered.
    CutAt(u64),
    /// It is lost.
    LoseAt(u64),
    /// It is delivered, its answer is lost.
    LoseAnswerAt(u64),
    /// A bit of it is flipped where no checksum of a transport sees it.
    DamageAt(u64),
    /// It is delivered twice.
    RepeatAt(u64),
}

/// The way to one receiver.
struct Way {
    inbox: Arc<Inbox>,
    weather: SyncMutex<Weather>,
    count: AtomicU64,
    chunk_bytes: AtomicU64,
    /// What was put into force.
    installed: Arc<SyncMutex<Vec<Files>>>,
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Way")
    }
}

async fn answer(inbox: &Inbox, request: Request, installed: &SyncMutex<Vec<Files>>) -> Answer {
    let answer = match request {
        Request::SnapshotOffer { vote, meta, files } => {
            inbox.offer((vote, meta, files), Path::new(OWN)).await
        }
        Request::SnapshotChunk(chunk) => inbox.chunk(chunk).await,
        Request::SnapshotInstall { vote, last } => {
            let install = |snapshot: Snapshot| async move {
                let (fs, dir) = snapshot.location();
                installed.lock().push(read_all(fs, dir));
                Ok(VOTE)
            };
            inbox.install(vote, last, install).await
        }
        other => panic!("{other:?}"),
    };
    answer.unwrap_or_else(Answer::Refused)
}

impl Transport for Way {
    fn call(
        &self,
        _: &Peer,
        class: Class,
        request: Bytes,
        _: Duration,
    ) -> BoxFuture<'static, std::result::Result<Bytes, TransportError>> {
        assert_eq!(class, Class::Bulk);
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        let weather = *self.weather.lock();
        let mut request = Request::decode(&request).unwrap();
        if let Request::SnapshotChunk(chunk) = &mut request {
            let bytes = chunk.bytes.len() as u64;
            self.chunk_bytes.fetch_add(bytes, Ordering::SeqCst);
            if weather == Weather::DamageAt(number) {
                let mut bytes = chunk.bytes.to_vec();
                bytes[0] ^= 1;
                chunk.crc = crc32c(&bytes);
                chunk.bytes = bytes.into();
            }
        }
        let (inbox, installed) = (Arc::clone(&self.inbox), Arc::clone(&self.installed));
        // Begun in the order of the calls.
        let delivered = async move {
            if weather == Weather::RepeatAt(number) {
                answer(&inbox, request.clone(), &installed).await;
            }
            answer(&inbox, request, &installed).await
        };
        let delivered: BoxFuture<'static, Answer> = match weather {
            Weather::CutAt(at) if number >= at => {
                return Box::pin(async { Err(TransportError::Unreachable("cut".into())) });
            }
            Weather::LoseAt(at) if number == at => {
                return Box::pin(async { Err(TransportError::Timeout) });
            }
            _ => Box::pin(delivered),
        };
        let task = tokio::spawn(delivered);
        Box::pin(async move {
            let answer = task.await.unwrap();
            if weather == Weather::LoseAnswerAt(number) {
                return Err(TransportError::Lost("the answer is lost".into()));
            }
            Ok(answer.encode().into())
        })
    }
}

/// A sender with its files, and a receiver.
struct Pair {
    sender: Env,
    way: Arc<Way>,
}

impl Pair {
    fn new(receiver: &MemFs) -> Self {
        let disk = MemFs::new();
        write_all(&disk, SENT, &files());
        let inbox = Inbox::new(env(receiver), PathBuf::from(INCOMING));
        receiver.create_dir_durable(Path::new(OWN)).unwrap();
        Self {
            sender: env(&disk),
            way: Arc::new(Way {
                inbox: Arc::new(inbox),
                weather: SyncMutex::new(Weather::Calm),
                count: AtomicU64::new(0),
                chunk_bytes: AtomicU64::new(0),
                installed: Arc::default(),
            }),
        }
    }

    async fn send(&self, weather: Weather) -> std::result::Result<Vote, TransportError> {
        *self.way.weather.lock() = weather;
        let snapshot = Snapshot::received(
            self.sender.clone(),
            PathBuf::from(SENT),
            SnapshotMeta {
                last: LAST,
                membership_id: None,
                membership: Membership::default(),
            },
        );
        let sender = Sender {
            env: self.sender.clone(),
            transport: Arc::clone(&self.way) as _,
            options: TransferOptions {
                chunk_bytes: 1000,
                in_flight: 3,
                ..TransferOptions::default()
            },
        };
        let to = Peer {
            id: 2,
            address: "there".into(),
        };
        sender.send(to, VOTE, snapshot).await
    }

    fn sent(&self) -> u64 {
        self.way.chunk_bytes.load(Ordering::SeqCst)
    }

    fn check_installed(&self) {
        let installed = self.way.installed.lock();
        assert_eq!(installed.len(), 1, "installed once");
        assert!(
            installed[0] == files(),
            "what was installed is what was sent"
        );
    }
}

/// Of the twins one is sent.
const ALL_BYTES: u64 = 10_000 + 2_500 + 4_000 + 16 + 700;

#[tokio::test]
async fn all_files_arrive_and_nothing_is_left_over() {
    let disk = MemFs::new();
    let pair = Pair::new(&disk);
    assert_eq!(pair.send(Weather::Calm).await, Ok(VOTE));
    pair.check_installed();
    assert!(pair.sent() <= ALL_BYTES + 3_000, "{}", pair.sent());
    assert!(!disk.exists(Path::new(INCOMING)).unwrap());
    // An answer that was lost may be asked for again; nothing is installed twice.
    assert_eq!(pair.send(Weather::Calm).await, Ok(VOTE));
    pair.check_installed();
}

#[tokio::test]
async fn what_the_receiver_has_is_not_sent() {
    let disk = MemFs::new();
    let pair = Pair::new(&disk);
    let mut own = files();
    // Of the same name and length, but another file; and one that changes while it is used.
    own.insert("000014.sst".into(), vec![9; 4_000]);
    write_all(&disk, OWN, &own);
    assert_eq!(pair.send(Weather::Calm).await, Ok(VOTE));
    pair.check_installed();
    assert_eq!(pair.sent(), 4_000 + 16 + 700);
    assert!(read_all(&(Arc::new(disk) as Arc<dyn Fs>), Path::new(OWN)) == own);
}

#[tokio::test]
async fn a_transfer_survives_a_break_at_every_step() {
    for broken in 0..25 {
        for weather in [
            Weather::CutAt(broken),
            Weather::LoseAt(broken),
            Weather::LoseAnswerAt(broken),
            Weather::DamageAt(broken),
            Weather::RepeatAt(broken),
        ] {
            let pair = Pair::new(&MemFs::new());
            let first = pair.send(weather).await;
            if matches!(weather, Weather::CutAt(_)) {
                let sent = pair.sent();
                match first {
                    Ok(vote) => assert_eq!(vote, VOTE),
                    Err(error) => {
                        assert!(error.to_string().contains("cut"), "{error}");
                        assert_eq!(pair.send(Weather::Calm).await, Ok(VOTE));
                        // What had arrived did not come again; what was under way may have.
                        assert!(pair.sent() <= ALL_BYTES.max(sent) + 8_000, "{weather:?}");
                    }
                }
            } else {
                assert_eq!(first, Ok(VOTE), "{weather:?}");
            }
            pair.check_installed();
        }
    }
}

#[tokio::test]
async fn a_receiver_that_lost_its_power_goes_on_with_what_is_right() {
    for (seed, mode) in (0..30).zip(
        [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn]
            .into_iter()
            .cycle(),
    ) {
        let disk = MemFs::new();
        let before = Pair::new(&disk);
        let cut = Weather::CutAt(2 + seed % 18);
        before.send(cut).await.unwrap_err();
        let after = Pair::new(&disk.crash(seed, mode));
        assert_eq!(after.send(Weather::Calm).await, Ok(VOTE));
        after.check_installed();
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let disk = MemFs::new();
    let pair = Pair::new(&disk);
    let inbox = &pair.way.inbox;
    let file = |name: &str, bytes| SnapshotFile {
        name: name.into(),
        bytes,
        checksum: 5,
    };
    let offer = |files| async move {
        let offer = (VOTE, SnapshotMeta::default(), files);
        inbox.offer(offer, Path::new(OWN)).await
    };
    for name in ["", ".", "..", "../HOME", "a/b", ".hidden", "a\0b", "a\nb"] {
        let refused = offer(vec![file(name, 1)]).await;
        assert!(matches!(refused, Err(Refusal::Malformed(_))), "{name:?}");
    }
    for files in [
        vec![file("a", 1), file("a", 1)],
        vec![file("a", u64::MAX), file("b", 1)],
    ] {
        assert!(matches!(offer(files).await, Err(Refusal::Malformed(_))));
    }
    disk.set_capacity(1 << 30);
    let Err(Refusal::Failed(text)) = offer(vec![file("a", 1 << 40)]).await else {
        panic!("no disk has this");
    };
    assert!(text.contains("shall stay free"), "{text}");
    let chunk = |file, offset, bytes: &'static [u8]| SnapshotChunk {
        last: None,
        file,
        offset,
        crc: crc32c(bytes),
        bytes: Bytes::from_static(bytes),
    };
    let nothing_offered = inbox.chunk(chunk(0, 0, b"x")).await;
    assert!(matches!(nothing_offered, Err(Refusal::Malformed(_))));
    assert_eq!(
        offer(vec![file("a", 10)]).await,
        Ok(Answer::SnapshotHave(vec![0]))
    );
    for wrong in [
        chunk(1, 0, b"x"),
        chunk(0, 0, b""),
        chunk(0, 8, b"xyz"),
        chunk(0, u64::MAX, b"x"),
        chunk(0, 1, b"a gap"),
        SnapshotChunk {
            crc: 0,
            ..chunk(0, 0, b"x")
        },
    ] {
        let refused = inbox.chunk(wrong.clone()).await;
        assert!(matches!(refused, Err(Refusal::Malformed(_))), "{wrong:?}");
    }
    let never = |_| async { panic!("it is not complete") };
    let early = inbox.install(VOTE, None, never).await;
    assert!(matches!(early, Err(Refusal::Malformed(_))));
    // Another contents than offered: begun anew.
    let wrong = inbox.chunk(chunk(0, 0, b"0123456789")).await;
    assert!(matches!(wrong, Err(Refusal::Malformed(_))));
    assert_eq!(
        offer(vec![file("a", 10)]).await,
        Ok(Answer::SnapshotHave(vec![0]))
    );
}

#[tokio::test(start_paused = true)]
async fn what_nobody_continues_is_removed() {
    let disk = MemFs::new();
    let pair = Pair::new(&disk);
    pair.send(Weather::CutAt(6)).await.unwrap_err();
    let inbox = &pair.way.inbox;
    inbox.tidy().await;
    assert!(disk.exists(Path::new(INCOMING)).unwrap());
    tokio::time::advance(KEEP_INCOMING).await;
    inbox.tidy().await;
    assert!(!disk.exists(Path::new(INCOMING)).unwrap());
    assert_eq!(pair.send(Weather::Calm).await, Ok(VOTE));
    pair.check_installed();
}
