//! The power-loss model, and agreement with the real disk.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::fs::os::OsFs;

const MODES: [CrashMode; 3] = [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn];

fn p(path: &str) -> &Path {
    Path::new(path)
}

fn create(fs: &dyn Fs, path: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = fs.open(p(path), OpenMode::CreateNew).unwrap();
    file.write_at(bytes, 0).unwrap();
    file
}

/// A disk with a durable directory `/d`.
fn disk() -> MemFs {
    let fs = MemFs::new();
    fs.create_dir_all(p("/d")).unwrap();
    fs.sync_dir(p("/")).unwrap();
    fs
}

#[test]
fn what_was_synced_with_its_name_is_there_after_any_crash() {
    let fs = disk();
    let file = create(&fs, "/d/a", &[7; 10_000]);
    file.sync_data().unwrap();
    fs.sync_dir(p("/d")).unwrap();
    // Later unsynced bytes elsewhere in the file take nothing of it away.
    file.write_at(&[8; 5_000], 12_288).unwrap();
    for mode in MODES {
        for seed in 0..50 {
            let bytes = fs.crash(seed, mode).read_file("/d/a").unwrap();
            assert_eq!(bytes[..10_000], [7; 10_000], "{mode:?} {seed}");
        }
    }
}

#[test]
fn unsynced_bytes_may_be_lost_kept_or_torn() {
    let fs = disk();
    let file = create(&fs, "/d/a", &[]);
    file.sync_data().unwrap();
    fs.sync_dir(p("/d")).unwrap();
    file.write_at(&[1; 9_000], 0).unwrap();
    let after = |mode, seed| fs.crash(seed, mode).read_file("/d/a").unwrap();
    assert_eq!(after(CrashMode::DropUnsynced, 0), []);
    assert_eq!(after(CrashMode::KeepAll, 0), [1; 9_000]);
    assert_eq!(fs.fork().read_file("/d/a").unwrap(), [1; 9_000]);
    let torn: Vec<Vec<u8>> = (0..200).map(|seed| after(CrashMode::Torn, seed)).collect();
    assert!(torn.iter().any(Vec::is_empty));
    assert!(torn.iter().any(|bytes| bytes.len() == 9_000));
    assert!(torn.iter().any(|bytes| (1..9_000).contains(&bytes.len())));
    // The length without all of the bytes.
    assert!(
        torn.iter()
            .any(|bytes| bytes.len() == 9_000 && bytes.contains(&0))
    );
    assert!(torn.iter().flatten().all(|&byte| byte <= 1));
    // A seed is a fate.
    assert_eq!(after(CrashMode::Torn, 42), torn[42]);
}

#[test]
fn a_name_is_durable_only_after_the_directory_was_synced() {
    let fs = disk();
    create(&fs, "/d/a", b"x").sync_data().unwrap();
    assert_eq!(
        fs.crash(0, CrashMode::DropUnsynced).files(),
        Vec::<PathBuf>::new()
    );
    let torn = (0..50).map(|seed| fs.crash(seed, CrashMode::Torn).files().len());
    assert_eq!(torn.collect::<BTreeSet<_>>(), BTreeSet::from([0, 1]));
    fs.sync_dir(p("/d")).unwrap();
    assert_eq!(fs.crash(0, CrashMode::DropUnsynced).files(), [p("/d/a")]);

    // A synced name without synced bytes is an empty file.
    create(&fs, "/d/b", b"y");
    fs.sync_dir(p("/d")).unwrap();
    assert_eq!(
        fs.crash(0, CrashMode::DropUnsynced)
            .read_file("/d/b")
            .unwrap(),
        b""
    );

    // A removal, too, is only then for good; the bytes come back as they were last synced.
    fs.remove_file(p("/d/a")).unwrap();
    assert_eq!(
        fs.crash(0, CrashMode::DropUnsynced)
            .read_file("/d/a")
            .unwrap(),
        b"x"
    );
    fs.sync_dir(p("/d")).unwrap();
    assert_eq!(fs.crash(0, CrashMode::DropUnsynced).files(), [p("/d/b")]);
}

#[test]
fn a_directory_whose_name_was_not_synced_is_lost_with_its_files() {
    let fs = MemFs::new();
    fs.create_dir_all(p("/x/y")).unwrap();
    create(&fs, "/x/y/a", b"1").sync_data().unwrap();
    fs.sync_dir(p("/x/y")).unwrap();
    fs.sync_dir(p("/x")).unwrap();
    assert!(
        !fs.crash(0, CrashMode::DropUnsynced)
            .exists(p("/x"))
            .unwrap()
    );
    fs.sync_dir(p("/")).unwrap();
    assert_eq!(
        fs.crash(0, CrashMode::DropUnsynced)
            .read_file("/x/y/a")
            .unwrap(),
        b"1"
    );
}

#[test]
fn rename_over_a_file_leaves_the_old_or_the_new_one() {
    let fs = disk();
    fs.write_file("/d/CURRENT", b"old").unwrap();
    create(&fs, "/d/tmp", b"new").sync_data().unwrap();
    fs.rename(p("/d/tmp"), p("/d/CURRENT")).unwrap();
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let crashed = fs.crash(seed, CrashMode::Torn);
        seen.insert((
            crashed.read_file("/d/CURRENT").unwrap(),
            crashed.files().len(),
        ));
    }
    // Nothing happened; the creation alone; both.
    let expected = [
        (b"new".to_vec(), 1),
        (b"old".to_vec(), 1),
        (b"old".to_vec(), 2),
    ];
    assert_eq!(seen, BTreeSet::from(expected));
    fs.sync_dir(p("/d")).unwrap();
    for mode in MODES {
        assert_eq!(fs.crash(3, mode).read_file("/d/CURRENT").unwrap(), b"new");
        assert_eq!(fs.crash(3, mode).files().len(), 1);
    }
}

#[test]
fn directory_operations_survive_in_order() {
    let fs = disk();
    for i in 0..6 {
        create(&fs, &format!("/d/{i}"), b"");
    }
    let mut counts = BTreeSet::new();
    for seed in 0..200 {
        let files = fs.crash(seed, CrashMode::Torn).files();
        let expected: Vec<_> = (0..files.len())
            .map(|i| PathBuf::from(format!("/d/{i}")))
            .collect();
        assert_eq!(files, expected);
        counts.insert(files.len());
    }
    assert_eq!(counts.len(), 7);
}

#[test]
fn a_directory_is_removed_with_everything_in_it() {
    let (mem, os) = (MemFs::new(), OsFs::new());
    let room = tempfile::tempdir().unwrap();
    let both: [(&dyn Fs, &Path); 2] = [(&mem, Path::new("/r")), (&os, room.path())];
    for (fs, root) in both {
        let dir = root.join("d");
        fs.create_dir_all(&dir.join("a/b")).unwrap();
        fs.create_dir_all(&root.join("beside")).unwrap();
        for name in ["f", "a/g", "a/b/h"] {
            fs.open(&dir.join(name), OpenMode::CreateNew).unwrap();
        }
        fs.remove_dir_all(&dir).unwrap();
        assert!(!fs.exists(&dir).unwrap());
        assert!(fs.exists(&root.join("beside")).unwrap());
        assert!(fs.remove_dir_all(&dir).is_err());
    }
}

#[test]
fn a_rename_between_directories_is_never_half_done() {
    let fs = disk();
    fs.create_dir_all(p("/e")).unwrap();
    fs.sync_dir(p("/")).unwrap();
    fs.write_file("/d/a", b"a").unwrap();
    create(&fs, "/e/first", b"");
    fs.rename(p("/d/a"), p("/e/a")).unwrap();
    create(&fs, "/d/after", b"");
    for seed in 0..200 {
        let crashed = fs.crash(seed, CrashMode::Torn);
        let has = |path| crashed.exists(p(path)).unwrap();
        assert!(has("/d/a") != has("/e/a"), "exactly one");
        assert!(has("/e/first") || !has("/e/a"), "the order in /e");
        assert!(has("/e/a") || !has("/d/after"), "the order in /d");
    }
    // A sync of one side takes what it depends on in the other with it, and no more.
    fs.sync_dir(p("/d")).unwrap();
    let crashed = fs.crash(0, CrashMode::DropUnsynced);
    assert_eq!(crashed.files(), [p("/d/after"), p("/e/a"), p("/e/first")]);
}

#[test]
fn links_share_bytes_and_survive_apart() {
    let fs = disk();
    let file = create(&fs, "/d/a", b"one");
    file.sync_data().unwrap();
    fs.sync_dir(p("/d")).unwrap();
    fs.create_dir_all(p("/c")).unwrap();
    fs.hard_link(p("/d/a"), p("/c/a")).unwrap();
    fs.remove_file(p("/d/a")).unwrap();
    fs.sync_dir(p("/d")).unwrap();
    // The new name was not synced and the old one is gone.
    assert_eq!(
        fs.crash(0, CrashMode::DropUnsynced).files(),
        Vec::<PathBuf>::new()
    );
    fs.sync_dir(p("/c")).unwrap();
    fs.sync_dir(p("/")).unwrap();
    file.write_at(b"two", 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(
        fs.crash(0, CrashMode::DropUnsynced)
            .read_file("/c/a")
            .unwrap(),
        b"two"
    );
    assert_eq!(fs.used_bytes(), 4096);
}

#[test]
fn unsynced_length_changes_are_at_risk() {
    let fs = disk();
    fs.write_file("/d/a", &[5; 6_000]).unwrap();
    let file = fs.open(p("/d/a"), OpenMode::ReadWrite).unwrap();
    file.set_len(100).unwrap();
    assert_eq!(
        fs.crash(0, CrashMode::DropUnsynced)
            .read_file("/d/a")
            .unwrap(),
        [5; 6_000]
    );
    let lens = (0..50).map(|seed| {
        fs.crash(seed, CrashMode::Torn)
            .read_file("/d/a")
            .unwrap()
            .len()
    });
    let lens: BTreeSet<_> = lens.collect();
    assert!(lens.contains(&100) && lens.contains(&6_000) && lens.len() > 3);
    file.sync_data().unwrap();
    assert_eq!(
        fs.crash(0, CrashMode::Torn).read_file("/d/a").unwrap(),
        [5; 100]
    );
    file.allocate(8_192).unwrap();
    assert_eq!(
        fs.crash(0, CrashMode::DropUnsynced)
            .read_file("/d/a")
            .unwrap()
            .len(),
        100
    );
    file.sync_data().unwrap();
    assert_eq!(
        fs.crash(0, CrashMode::DropUnsynced)
            .read_file("/d/a")
            .unwrap()
            .len(),
        8_192
    );
}

#[test]
fn a_killed_process_leaves_unsynced_bytes_at_risk() {
    let fs = disk();
    let _lock = fs.lock(p("/d/LOCK")).unwrap();
    create(&fs, "/d/a", b"x");
    let forked = fs.fork();
    let _lock_again = forked.lock(p("/d/LOCK")).unwrap();
    assert_eq!(forked.read_file("/d/a").unwrap(), b"x");
    assert_eq!(
        forked.crash(0, CrashMode::DropUnsynced).files(),
        Vec::<PathBuf>::new()
    );
    // Two disks, not one.
    forked.write_file("/d/b", b"").unwrap();
    assert!(!fs.exists(p("/d/b")).unwrap());
}

#[test]
fn the_old_disk_goes_on_after_a_crash_image() {
    let fs = disk();
    let file = create(&fs, "/d/a", &[1; 4096]);
    file.sync_data().unwrap();
    fs.sync_dir(p("/d")).unwrap();
    let image = fs.crash(0, CrashMode::Torn);
    file.write_at(&[2; 10], 0).unwrap();
    image
        .open(p("/d/a"), OpenMode::ReadWrite)
        .unwrap()
        .write_at(&[3; 5], 0)
        .unwrap();
    assert_eq!(fs.read_file("/d/a").unwrap()[..10], [2; 10]);
    assert_eq!(
        image.read_file("/d/a").unwrap()[..10],
        [3, 3, 3, 3, 3, 1, 1, 1, 1, 1]
    );
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let fs = disk();
    fs.set_capacity(10 * 4096 + 5);
    let file = create(&fs, "/d/a", &[1; 4096]);
    assert_eq!(
        fs.space(p("/d")).unwrap(),
        Space {
            available: 9 * 4096,
            total: 10 * 4096
        }
    );
    assert!(file.allocate(11 * 4096).unwrap_err().is_out_of_space());
    assert_eq!(file.len().unwrap(), 4096);
    file.allocate(10 * 4096).unwrap();
    // Reserved: cannot fail now.
    file.write_at(&[2; 9 * 4096], 4096).unwrap();
    let error = file.write_at(&[3; 2], 10 * 4096 - 1).unwrap_err();
    assert!(error.is_out_of_space(), "{error}");
    assert_eq!(error.offset, Some(10 * 4096 - 1));
    let other = create(&fs, "/d/b", b"");
    assert!(other.write_at(b"x", 0).unwrap_err().is_out_of_space());
    // The space comes back with the last name and the last handle.
    fs.remove_file(p("/d/a")).unwrap();
    assert!(other.write_at(b"x", 0).unwrap_err().is_out_of_space());
    drop(file);
    other.write_at(b"x", 0).unwrap();
    assert_eq!(fs.used_bytes(), 4096);
    assert_eq!(fs.fork().used_bytes(), 4096);
    let crashed = fs.crash(0, CrashMode::KeepAll);
    assert_eq!(crashed.used_bytes(), 4096);
    assert_eq!(crashed.space(p("/")).unwrap().total, 10 * 4096);
}

#[test]
fn a_mapping_is_visible_at_once_and_durable_after_a_sync() {
    let fs = disk();
    let file = create(&fs, "/d/a", b"");
    assert!(file.map(0).unwrap().is_none());
    assert!(file.map(4096).is_err(), "beyond the end");
    file.set_len(8_192).unwrap();
    assert!(file.map(8_192).is_err(), "not allocated");
    file.allocate(8_192).unwrap();
    file.sync_data().unwrap();
    fs.sync_dir(p("/d")).unwrap();
    let map = file.map(8_192).unwrap().unwrap();
    map.write(4_090, b"0123456789");
    assert_eq!(fs.read_file("/d/a").unwrap()[4_090..4_100], *b"0123456789");
    assert_eq!(
        fs.fork().read_file("/d/a").unwrap()[4_090..4_100],
        *b"0123456789"
    );
    assert_eq!(
        fs.crash(0, CrashMode::DropUnsynced)
            .read_file("/d/a")
            .unwrap(),
        [0; 8_192]
    );
    file.sync_data().unwrap();
    let crashed = fs.crash(0, CrashMode::Torn);
    assert_eq!(
        crashed.read_file("/d/a").unwrap()[4_090..4_100],
        *b"0123456789"
    );
    // A mapping holds the file as a handle does.
    drop(file);
    fs.remove_file(p("/d/a")).unwrap();
    assert_eq!(fs.used_bytes(), 8_192);
    drop(map);
    assert_eq!(fs.used_bytes(), 0);
}

#[test]
#[should_panic(expected = "file was cut")]
fn a_store_beyond_a_cut_file_is_caught() {
    let fs = disk();
    let file = create(&fs, "/d/a", &[0; 8_192]);
    let map = file.map(8_192).unwrap().unwrap();
    file.set_len(100).unwrap();
    map.write(4_096, b"x");
}

#[test]
fn absurd_lengths_are_refused() {
    let fs = disk();
    let file = create(&fs, "/d/a", b"x");
    for result in [
        file.write_at(b"y", u64::MAX),
        file.write_at(b"y", MAX_FILE_BYTES),
        file.set_len(u64::MAX),
        file.allocate(u64::MAX),
    ] {
        assert_eq!(result.unwrap_err().source.kind(), ErrorKind::FileTooLarge);
    }
    assert_eq!(file.read_at(&mut [0; 4], u64::MAX).unwrap(), 0);
}

#[test]
fn bit_rot_is_seen_now_and_after_a_crash() {
    let fs = disk();
    fs.write_file("/d/a", &[0; 100]).unwrap();
    fs.flip_bit("/d/a", 50, 3).unwrap();
    assert_eq!(fs.read_file("/d/a").unwrap()[50], 8);
    assert_eq!(
        fs.crash(0, CrashMode::DropUnsynced)
            .read_file("/d/a")
            .unwrap()[50],
        8
    );
    assert!(fs.flip_bit("/d/a", 100, 0).is_err());
}

#[test]
fn lost_pages_read_as_they_were_last_synced() {
    let fs = disk();
    fs.write_file("/d/a", b"synced").unwrap();
    let file = fs.open(p("/d/a"), OpenMode::ReadWrite).unwrap();
    file.write_at(b"SYNCED and more", 0).unwrap();
    fs.lose_unsynced("/d/a").unwrap();
    assert_eq!(fs.read_file("/d/a").unwrap(), b"synced\0\0\0\0\0\0\0\0\0");
}

#[test]
fn nodes_that_nothing_leads_to_are_forgotten() {
    let fs = disk();
    for i in 0..1_000 {
        let file = create(&fs, "/d/a", &[1; 100]);
        if i % 2 == 0 {
            file.sync_data().unwrap();
        }
        fs.remove_file(p("/d/a")).unwrap();
        fs.sync_dir(p("/d")).unwrap();
    }
    assert!(fs.state.lock().nodes.len() < 200);
    assert_eq!(fs.used_bytes(), 0);
}

#[test]
fn errors_have_the_kinds_of_the_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mem = MemFs::new();
    mem.create_dir_all(dir.path()).unwrap();
    for fs in [&mem as &dyn Fs, &OsFs::new()] {
        let at = |name: &str| dir.path().join(name);
        let kind = |result: Result<()>| result.unwrap_err().source.kind();
        let open = |name: &str, mode| fs.open(&at(name), mode).map(|_| ());
        fs.create_dir_all(&at("dir/sub")).unwrap();
        fs.create_dir_all(&at("dir/sub")).unwrap();
        open("file", OpenMode::Create).unwrap();
        assert_eq!(kind(open("none", OpenMode::Read)), ErrorKind::NotFound);
        assert_eq!(kind(open("none/a", OpenMode::Create)), ErrorKind::NotFound);
        assert_eq!(
            kind(open("file", OpenMode::CreateNew)),
            ErrorKind::AlreadyExists
        );
        assert_eq!(
            kind(open("file/a", OpenMode::Create)),
            ErrorKind::NotADirectory
        );
        assert_eq!(
            kind(open("dir", OpenMode::ReadWrite)),
            ErrorKind::IsADirectory
        );
        assert_eq!(kind(fs.remove_file(&at("none"))), ErrorKind::NotFound);
        assert_eq!(kind(fs.remove_file(&at("dir"))), ErrorKind::IsADirectory);
        assert_eq!(
            kind(fs.remove_dir(&at("dir"))),
            ErrorKind::DirectoryNotEmpty
        );
        assert_eq!(kind(fs.remove_dir(&at("file"))), ErrorKind::NotADirectory);
        assert_eq!(kind(fs.rename(&at("none"), &at("a"))), ErrorKind::NotFound);
        assert_eq!(
            kind(fs.rename(&at("file"), &at("dir"))),
            ErrorKind::IsADirectory
        );
        assert_eq!(
            kind(fs.rename(&at("dir"), &at("file"))),
            ErrorKind::NotADirectory
        );
        assert_eq!(
            kind(fs.rename(&at("dir"), &at("dir/sub/x"))),
            ErrorKind::InvalidInput
        );
        assert_eq!(
            kind(fs.hard_link(&at("none"), &at("a"))),
            ErrorKind::NotFound
        );
        assert_eq!(
            kind(fs.hard_link(&at("file"), &at("dir"))),
            ErrorKind::AlreadyExists
        );
        assert_eq!(kind(fs.sync_dir(&at("none"))), ErrorKind::NotFound);
        assert_eq!(
            kind(fs.list(&at("file")).map(|_| ())),
            ErrorKind::NotADirectory
        );
        assert_eq!(
            kind(fs.create_dir_all(&at("file"))),
            ErrorKind::AlreadyExists
        );
        assert!(!fs.exists(&at("none")).unwrap() && fs.exists(&at("dir/sub")).unwrap());
        let reader = fs.open(&at("file"), OpenMode::Read).unwrap();
        assert!(reader.write_at(b"x", 0).is_err());
        let error = reader.read_exact_at(&mut [0; 4], 0).unwrap_err();
        assert_eq!(error.source.kind(), ErrorKind::UnexpectedEof);
        let lock = fs.lock(&at("LOCK")).unwrap();
        assert_eq!(
            kind(fs.lock(&at("LOCK")).map(|_| ())),
            ErrorKind::WouldBlock
        );
        drop(lock);
        drop(fs.lock(&at("LOCK")).unwrap());
    }
}

/// One step of the comparison with the real disk. Names and handles are small numbers.
#[derive(Clone, Debug)]
enum Step {
    Open(u8, OpenMode),
    Close(u8),
    Write(u8, u64, usize, u8),
    Read(u8, u64, usize),
    SetLen(u8, u64),
    Allocate(u8, u64),
    MapWrite(u8, u64, usize, u8),
    Sync(u8),
    Rename(u8, u8),
    Link(u8, u8),
    Remove(u8),
    MakeDir(u8),
    RemoveDir(u8),
    SyncDir,
}

const NAMES: [&str; 8] = ["a", "b", "c", "x", "x/a", "x/b", "x/y", "x/y/a"];

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NAMES.len() as u8;
    let handle = 0..4_u8;
    let offset = 0..12_000_u64;
    let len = prop_oneof![0..20_usize, 0..9_000_usize];
    let mode = prop_oneof![
        Just(OpenMode::ReadWrite),
        Just(OpenMode::CreateNew),
        Just(OpenMode::Create),
    ];
    prop_oneof![
        4 => (name.clone(), mode).prop_map(|(n, m)| Step::Open(n, m)),
        1 => handle.clone().prop_map(Step::Close),
        4 => (handle.clone(), offset.clone(), len.clone(), any::<u8>())
            .prop_map(|(h, o, l, b)| Step::Write(h, o, l, b)),
        4 => (handle.clone(), offset.clone(), len.clone()).prop_map(|(h, o, l)| Step::Read(h, o, l)),
        2 => (handle.clone(), offset.clone()).prop_map(|(h, l)| Step::SetLen(h, l)),
        1 => (handle.clone(), offset.clone()).prop_map(|(h, l)| Step::Allocate(h, l)),
        2 => (handle.clone(), offset, len, any::<u8>())
            .prop_map(|(h, o, l, b)| Step::MapWrite(h, o, l, b)),
        1 => handle.prop_map(Step::Sync),
        2 => (name.clone(), name.clone()).prop_map(|(a, b)| Step::Rename(a, b)),
        2 => (name.clone(), name.clone()).prop_map(|(a, b)| Step::Link(a, b)),
        2 => name.clone().prop_map(Step::Remove),
        2 => name.clone().prop_map(Step::MakeDir),
        1 => name.prop_map(Step::RemoveDir),
        1 => Just(Step::SyncDir),
    ]
}

/// Does one step and describes what a caller can see of it.
fn run(fs: &dyn Fs, root: &Path, files: &mut [Option<Arc<dyn File>>; 4], step: &Step) -> String {
    fn show<T: Debug>(result: Result<T>) -> String {
        match result {
            Ok(value) => format!("{value:?}"),
            Err(error) => format!("{:?}", error.source.kind()),
        }
    }
    let at = |name: u8| root.join(NAMES[name as usize]);
    let file = |files: &[Option<Arc<dyn File>>; 4], handle: u8| files[handle as usize].clone();
    match *step {
        Step::Open(name, mode) => {
            let opened = fs.open(&at(name), mode);
            let shown = show(opened.as_ref().map(|_| ()).map_err(Error::duplicate));
            if let Ok(opened) = opened {
                files.rotate_right(1);
                files[0] = Some(opened);
            }
            shown
        }
        Step::Close(handle) => {
            files[handle as usize] = None;
            String::new()
        }
        Step::Write(handle, offset, len, byte) => file(files, handle)
            .map_or_else(String::new, |file| {
                show(file.write_at(&vec![byte; len], offset))
            }),
        Step::Read(handle, offset, len) => file(files, handle).map_or_else(String::new, |file| {
            let mut buf = vec![0xee; len];
            let read = file.read_at(&mut buf, offset).unwrap();
            format!("{read} {buf:?}")
        }),
        Step::SetLen(handle, len) => {
            file(files, handle).map_or_else(String::new, |file| show(file.set_len(len)))
        }
        Step::Allocate(handle, len) => {
            file(files, handle).map_or_else(String::new, |file| show(file.allocate(len)))
        }
        Step::MapWrite(handle, offset, len, byte) => {
            file(files, handle).map_or_else(String::new, |file| {
                let end = offset + len as u64;
                file.allocate(end).unwrap();
                if let Some(map) = file.map(end).unwrap() {
                    map.write(offset, &vec![byte; len]);
                }
                show(file.len())
            })
        }
        Step::Sync(handle) => {
            file(files, handle).map_or_else(String::new, |file| show(file.sync_data()))
        }
        // Where two paths are wrong, which error comes first is nobody's promise.
        Step::Rename(from, to) => format!("{}", fs.rename(&at(from), &at(to)).is_ok()),
        Step::Link(from, to) => format!("{}", fs.hard_link(&at(from), &at(to)).is_ok()),
        Step::Remove(name) => show(fs.remove_file(&at(name))),
        Step::MakeDir(name) => show(fs.create_dir_all(&at(name))),
        Step::RemoveDir(name) => show(fs.remove_dir(&at(name))),
        Step::SyncDir => show(fs.sync_dir(root)),
    }
}

/// All that is visible under a directory: names, lengths, bytes.
fn tree(fs: &dyn Fs, dir: &Path, out: &mut Vec<(DirEntry, Vec<u8>)>) {
    for entry in fs.list(dir).unwrap() {
        let path = dir.join(&entry.name);
        if entry.is_dir {
            out.push((entry, Vec::new()));
            tree(fs, &path, out);
        } else {
            let file = fs.open(&path, OpenMode::Read).unwrap();
            assert_eq!(file.len().unwrap(), entry.len);
            let mut bytes = vec![0; entry.len as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            out.push((entry, bytes));
        }
    }
}

fn recount(fs: &MemFs) -> u64 {
    let state = fs.state.lock();
    let files = state.nodes.values().filter_map(|node| match node {
        Node::File(file) if file.links > 0 || file.opens > 0 => Some(file.visible.pages()),
        _ => None,
    });
    files.sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_real_disk(steps in proptest::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let (os, mem) = (OsFs::new(), MemFs::new());
        mem.create_dir_all(dir.path()).unwrap();
        let mut os_files = [const { None }; 4];
        let mut mem_files = [const { None }; 4];
        for step in &steps {
            let on_os = run(&os, dir.path(), &mut os_files, step);
            let on_mem = run(&mem, dir.path(), &mut mem_files, step);
            prop_assert_eq!(on_os, on_mem, "{:?}", step);
        }
        let (mut os_tree, mut mem_tree) = (Vec::new(), Vec::new());
        tree(&os, dir.path(), &mut os_tree);
        tree(&mem, dir.path(), &mut mem_tree);
        prop_assert_eq!(&os_tree, &mem_tree);
        prop_assert_eq!(recount(&mem), mem.state.lock().used_pages);

        // The death of the process and a lucky power loss show the same; after an unlucky one the
        // counts still hold and the disk works.
        for image in [mem.fork(), mem.crash(0, CrashMode::KeepAll)] {
            let mut image_tree = Vec::new();
            tree(&image, dir.path(), &mut image_tree);
            prop_assert_eq!(&image_tree, &os_tree);
        }
        for seed in 0..5 {
            let image = mem.crash(seed, CrashMode::Torn);
            prop_assert_eq!(recount(&image), image.state.lock().used_pages);
            let mut image_tree = Vec::new();
            tree(&image, Path::new("/"), &mut image_tree);
            image.write_file("/x/y/z", b"1").unwrap();
        }
    }

    /// Whatever is done to a file, what a sync has promised comes back where nothing was written
    /// since.
    #[test]
    fn synced_bytes_survive(
        writes in proptest::collection::vec((0..20_000_u64, 1..5_000_usize, any::<u8>()), 1..10),
        sync_after in 0..10_usize,
        seed: u64,
    ) {
        let fs = disk();
        let file = create(&fs, "/d/a", b"");
        fs.sync_dir(p("/d")).unwrap();
        let mut synced = Vec::new();
        let mut dirty = Vec::new();
        for (i, (offset, len, byte)) in writes.iter().enumerate() {
            file.write_at(&vec![*byte; *len], *offset).unwrap();
            dirty.push(*offset as usize..*offset as usize + len);
            if i == sync_after {
                file.sync_data().unwrap();
                synced = fs.read_file("/d/a").unwrap();
                dirty.clear();
            }
        }
        for mode in MODES {
            let bytes = fs.crash(seed, mode).read_file("/d/a").unwrap();
            prop_assert!(bytes.len() >= synced.len());
            for (i, byte) in synced.iter().enumerate() {
                let rewritten = dirty.iter().any(|range| range.contains(&i));
                prop_assert!(rewritten || bytes[i] == *byte);
            }
        }
    }
}
