//! Every verb, on files: round trips, exit codes, bad input.

use std::fs;

use crate::process::{Place, command};

/// Values that break what is not binary-safe.
fn odd_values() -> Vec<(Vec<u8>, Vec<u8>)> {
    let all: Vec<u8> = (0..=255).collect();
    vec![
        (b"".to_vec(), b"the empty key".to_vec()),
        (b"empty".to_vec(), b"".to_vec()),
        (b"all".to_vec(), all.clone()),
        (b"lines".to_vec(), b"a\nb\r\n\tc\n\n".to_vec()),
        (b"large".to_vec(), all.repeat(4000)),
        (all, b"every byte as a key".to_vec()),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn place_with_odd_values() -> Place {
    let place = Place::new();
    for (key, value) in odd_values() {
        let args = [
            "put",
            "--data-dir",
            "d",
            "--key-encoding",
            "hex",
            &hex(&key),
            "-",
        ];
        place.run_with(&args, &value).ok();
    }
    place
}

#[test]
fn values_come_back_byte_for_byte() {
    let place = place_with_odd_values();
    for (key, value) in odd_values() {
        let args = [
            "get",
            "--data-dir",
            "d",
            "--key-encoding",
            "hex",
            &hex(&key),
        ];
        assert_eq!(place.run(&args).ok(), value);
    }
    fs::write(place.path("file"), b"from a file\0").unwrap();
    place
        .run(&["put", "--data-dir", "d", "k", "--file", "file"])
        .ok();
    assert_eq!(
        place.run(&["get", "--data-dir", "d", "k"]).ok(),
        b"from a file\0"
    );
    place.run(&["put", "--data-dir", "d", "k", "argument"]).ok();
    assert_eq!(
        place.run(&["get", "--data-dir", "d", "k"]).ok(),
        b"argument"
    );
}

#[test]
fn a_missing_key_is_exit_code_one() {
    let place = Place::new();
    place.run(&["put", "--data-dir", "d", "a", "1"]).ok();
    let ended = place.run(&["get", "--data-dir", "d", "b"]).fails(1);
    assert!(ended.stdout.is_empty());
    assert!(ended.stderr.contains("no key b"), "{}", ended.stderr);
    place
        .run(&["del", "--data-dir", "d", "a", "never-there"])
        .ok();
    place.run(&["get", "--data-dir", "d", "a"]).fails(1);
}

#[test]
fn conditions() {
    let place = Place::new();
    let put = |args: &[&str]| place.run(&[&["put", "--data-dir", "d"], args].concat());
    put(&["k", "0", "--if-exists"]).fails(1);
    let version = put(&["k", "1", "--if-absent", "--print-version"]).ok();
    let version = String::from_utf8(version).unwrap().trim().to_owned();
    put(&["k", "2", "--if-absent"]).fails(1);
    put(&["k", "2", "--if-version", "999999"]).fails(1);
    assert_eq!(place.run(&["get", "--data-dir", "d", "k"]).ok(), b"1");
    put(&["k", "2", "--if-version", &version]).ok();
    put(&["k", "3", "--if-exists"]).ok();
    assert_eq!(place.run(&["get", "--data-dir", "d", "k"]).ok(), b"3");
}

#[test]
fn wrong_command_lines_are_exit_code_two() {
    let place = Place::new();
    for args in [
        &["steal"][..],
        &[],
        &["get"],
        &["put", "k"],
        &["put", "k", "v", "--file", "f"],
        &["put", "k", "--file", "not-there", "--data-dir", "d"],
        &["get", "k", "--server", "a:1", "--data-dir", "d"],
        &["get", "k", "--data-dir", "d", "--key-encoding", "hex", "zz"],
        &["scan", "--start", "b", "--end", "a", "--data-dir", "d"],
        &["scan", "--prefix", "b", "--end", "c", "--data-dir", "d"],
        &["scan", "--values", "--separator", "\\q", "--data-dir", "d"],
        &["put", "k", "v", "--ttl", "soon", "--data-dir", "d"],
        &["put", "k", "v", "--memory", "lots", "--data-dir", "d"],
        &["import", "--data-dir", "d"],
        &["serve", "--no-such-flag"],
    ] {
        place.run(args).fails(2);
    }
    // Nothing of it made a store.
    assert!(!place.path("d").exists() || place.run(&["scan", "--data-dir", "d"]).ok().is_empty());
}

#[test]
fn reading_makes_no_store() {
    let place = Place::new();
    assert_ne!(place.run(&["get", "--data-dir", "d", "k"]).code, 0);
    assert_ne!(place.run(&["scan", "--data-dir", "d"]).code, 0);
    place.run(&["verify", "--data-dir", "d"]).fails(2);
    place.run(&["inspect", "--data-dir", "d"]).fails(2);
    assert!(!place.path("d").exists());
}

#[test]
fn scans() {
    let place = Place::new();
    let lines = b"a\t1\nb/1\t2\nb/2\t3\nb0\t4\nc\t5\n";
    place
        .run_with(&["import", "--data-dir", "d", "--from", "lines"], lines)
        .ok();
    let scan = |args: &[&str]| {
        let ended = place.run(&[&["scan", "--data-dir", "d"], args].concat());
        String::from_utf8(ended.ok()).unwrap()
    };
    assert_eq!(scan(&[]).as_bytes(), lines);
    assert_eq!(scan(&["--prefix", "b/"]), "b/1\t2\nb/2\t3\n");
    assert_eq!(
        scan(&["--start", "b", "--end", "c", "--keys"]),
        "b/1\nb/2\nb0\n"
    );
    assert_eq!(scan(&["--reverse", "--limit", "2"]), "c\t5\nb0\t4\n");
    assert_eq!(scan(&["--limit", "0"]), "");
    assert_eq!(scan(&["--count"]), "5\n");
    assert_eq!(scan(&["--values", "--separator", "\\n"]), "1\n2\n3\n4\n5\n");
    assert_eq!(
        scan(&["--values", "--separator", "\\x2c\\0"]),
        "1,\x002,\x003,\x004,\x005,\0"
    );
    assert_eq!(scan(&["--format", "raw", "--prefix", "c"]), "c5");
    let json: serde_json::Value = serde_json::from_str(&scan(&["--format", "json"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 5);
    assert_eq!(json[4]["key"], "c");
    let empty = scan(&["--format", "json", "--prefix", "none"]);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&empty).unwrap(),
        serde_json::json!([])
    );
    let ndjson = scan(&["--format", "ndjson"]);
    assert_eq!(ndjson.lines().last(), Some("{\"end\":true,\"count\":5}"));
    let table = scan(&["--format", "table", "--prefix", "a"]);
    assert!(
        table.starts_with("key") && table.lines().count() == 2,
        "{table}"
    );
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let place = Place::new();
    let lines: String = (0..20_000).map(|i| format!("key{i:06}\tvalue\n")).collect();
    place
        .run_with(
            &["import", "--data-dir", "d", "--from", "lines"],
            lines.as_bytes(),
        )
        .ok();
    let mut child = crate::process::command()
        .args(["scan", "--data-dir"])
        .arg(place.path("d"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Files of exports that did not end.
fn partials(place: &Place) -> Vec<String> {
    let names = fs::read_dir(place.dir.path()).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".partial"))
        .collect()
}

/// An export that is told to stop, or cannot go on, leaves neither a file nor a part of one.
/// Whether this process, and so what it starts, ignores a signal.
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[test]
fn broken_exports_leave_nothing() {
    let place = Place::new();
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        // What was ignored before (`nohup`, a job in the background) the command ignores too.
        if is_ignored(code - 128) {
            continue;
        }
        // A server that takes the request and never answers.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let mut export = command()
            .args(["export", "--server", &address, "--output", "out"])
            .current_dir(place.dir.path())
            .spawn()
            .unwrap();
        let _asked = silent.accept().unwrap();
        while partials(&place).is_empty() {
            std::thread::yield_now();
        }
        let kill = std::process::Command::new("kill")
            .args([signal, &export.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        assert_eq!(export.wait().unwrap().code(), Some(code));
        assert!(partials(&place).is_empty() && !place.path("out").exists());
    }
    let nobody = ["export", "--server", "127.0.0.1:1", "--output", "out"];
    place.run(&nobody).fails(3);
    assert!(partials(&place).is_empty() && !place.path("out").exists());
}

#[test]
fn exports_come_back() {
    let place = place_with_odd_values();
    let all = place
        .run(&["scan", "--data-dir", "d", "--format", "text"])
        .ok();
    for (format, kind) in [("ndjson", "ndjson"), ("dump", "dump")] {
        let export = place
            .run(&["export", "--data-dir", "d", "--format", format])
            .ok();
        let copy = format!("copy-{kind}");
        place
            .run_with(&["import", "--data-dir", &copy, "--from", kind], &export)
            .ok();
        assert_eq!(
            place.run(&["scan", "--data-dir", &copy]).ok(),
            all,
            "{format}"
        );
        let file = [
            "export",
            "--data-dir",
            "d",
            "--format",
            format,
            "--output",
            "out",
        ];
        place.run(&file).ok();
        assert_eq!(fs::read(place.path("out")).unwrap(), export);
        // Cut anywhere: refused, unless nothing but the trailer's newline is gone.
        let cut = &export[..export.len() - 10];
        let ended = place.run_with(&["import", "--data-dir", "cut", "--from", kind], cut);
        assert!(
            ended.code != 0 || ended.stderr.contains("no trailer"),
            "{ended:?}"
        );
    }
    assert!(partials(&place).is_empty());
    let mut damaged = place
        .run(&["export", "--data-dir", "d", "--format", "dump"])
        .ok();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    place
        .run_with(&["import", "--data-dir", "x", "--from", "dump"], &damaged)
        .fails(5);
}

/// What is no plain file is written to, not replaced; a link stays, and its target is replaced.
#[test]
fn exports_go_where_the_name_leads() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    let place = Place::new();
    place.run(&["put", "--data-dir", "d", "k", "v"]).ok();
    let export = |out: &str| place.run(&["export", "--data-dir", "d", "--output", out]);
    let expected = place.run(&["export", "--data-dir", "d"]).ok();

    let pipe = place.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read(pipe).unwrap()
    });
    export("pipe").ok();
    assert_eq!(reader.join().unwrap(), expected);
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    export("/dev/null").ok();

    fs::create_dir(place.path("sub")).unwrap();
    fs::write(place.path("sub/old"), b"old").unwrap();
    fs::set_permissions(place.path("sub/old"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("sub/old", place.path("link")).unwrap();
    symlink("sub/new", place.path("dangling")).unwrap();
    for (link, target) in [("link", "sub/old"), ("dangling", "sub/new")] {
        export(link).ok();
        assert_eq!(fs::read(place.path(target)).unwrap(), expected);
        assert!(fs::symlink_metadata(place.path(link)).unwrap().is_symlink());
    }
    let mode = fs::metadata(place.path("sub/old")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    // A partial file that is there is somebody's.
    fs::write(place.path("out.partial"), b"mine").unwrap();
    export("out").ok();
    assert_eq!(fs::read(place.path("out.partial")).unwrap(), b"mine");
    export("sub").fails(2);
    symlink("loop", place.path("loop")).unwrap();
    export("loop").fails(2);
}

const STANZAS: &str = "\
Package: zlib
Version: 1
Description: compression
 with a second line

Package: apt
Version: 2

Package: zlib
Version: 3

";

#[test]
fn stanzas_come_back_byte_for_byte() {
    let place = Place::new();
    let import = ["import", "--data-dir", "d", "--from", "deb822", "-"];
    let ended = place.run_with(&import, STANZAS.as_bytes());
    assert!(
        ended
            .stderr
            .contains("1 keys came again, the first is zlib"),
        "{}",
        ended.stderr
    );
    ended.ok();
    let values = place
        .run(&["scan", "--data-dir", "d", "--values", "--separator", "\\n"])
        .ok();
    let expected = "Package: apt\nVersion: 2\n\nPackage: zlib\nVersion: 3\n\n";
    assert_eq!(String::from_utf8(values).unwrap(), expected);
    let other = [
        "import",
        "--data-dir",
        "v",
        "--from",
        "deb822",
        "--key-field",
        "version",
    ];
    place.run_with(&other, STANZAS.as_bytes()).ok();
    assert_eq!(
        place.run(&["scan", "--data-dir", "v", "--keys"]).ok(),
        b"1\n2\n3\n"
    );
    // A stanza without the field stops it, or is left out and told.
    let bad = "Package: a\n\nNo: key\n\nPackage: b\n";
    let import = ["import", "--data-dir", "e", "--from", "deb822"];
    let ended = place.run_with(&import, bad.as_bytes()).fails(2);
    assert!(ended.stderr.contains("line 3"), "{}", ended.stderr);
    let skip = [&import[..], &["--skip-bad"]].concat();
    place.run_with(&skip, bad.as_bytes()).ok();
    assert_eq!(
        place.run(&["scan", "--data-dir", "e", "--keys"]).ok(),
        b"a\nb\n"
    );
}

#[test]
fn directories_come_in() {
    let place = Place::new();
    fs::create_dir_all(place.path("tree/sub")).unwrap();
    fs::write(place.path("tree/one"), b"1").unwrap();
    fs::write(place.path("tree/sub/two"), b"\x00\xff").unwrap();
    fs::write(place.path("tree/empty"), b"").unwrap();
    let import = [
        "import",
        "--data-dir",
        "d",
        "--from",
        "dir",
        "tree",
        "--prefix",
        "p/",
    ];
    place.run(&import).ok();
    assert_eq!(
        place.run(&["scan", "--data-dir", "d", "--keys"]).ok(),
        b"p/empty\np/one\np/sub/two\n"
    );
    assert_eq!(
        place.run(&["get", "--data-dir", "d", "p/sub/two"]).ok(),
        b"\x00\xff"
    );
    place.run(&[&import[..], &["--repeat", "3"]].concat()).ok();
    assert_eq!(
        place.run(&["scan", "--data-dir", "d", "--count"]).ok(),
        b"12\n"
    );
    place
        .run(&["import", "--data-dir", "d", "--from", "dir", "not-there"])
        .fails(2);
}

/// Links to files are files; what is left out is told.
#[test]
fn links_come_in_and_the_rest_is_told() {
    use std::os::unix::fs::symlink;
    let place = Place::new();
    fs::create_dir_all(place.path("tree/sub")).unwrap();
    fs::create_dir_all(place.path("old")).unwrap();
    fs::write(place.path("elsewhere"), b"1").unwrap();
    symlink("../elsewhere", place.path("tree/link")).unwrap();
    symlink("nowhere", place.path("tree/broken")).unwrap();
    symlink("sub", place.path("tree/to-sub")).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(place.path("tree/pipe"))
        .status();
    assert!(made.unwrap().success());
    let ended = place.run(&["import", "--data-dir", "d", "--from", "dir", "tree"]);
    assert!(
        ended.stderr.contains("3 names") && ended.stderr.contains("tree/broken"),
        "{}",
        ended.stderr
    );
    ended.ok();
    assert_eq!(place.run(&["scan", "--data-dir", "d"]).ok(), b"link\t1\n");
    fs::write(place.path("elsewhere"), b"a:1\n").unwrap();
    symlink("../elsewhere", place.path("old/wal_1.log")).unwrap();
    let old = ["import", "--data-dir", "e", "--from", "kv-json", "old"];
    place.run(&old).ok();
    assert_eq!(place.run(&["scan", "--data-dir", "e"]).ok(), b"a\t1\n");
}

#[test]
fn damaged_files_of_other_systems_are_told() {
    let place = Place::new();
    fs::create_dir(place.path("old")).unwrap();
    let good = b"1700000000;1;1;a;1\n";
    let rest = b"1700000001;1;1;b;2\n";
    let file = [&good[..], b"1700000001;1;9;x;cut\n", rest].concat();
    fs::write(place.path("old/1.dat"), &file).unwrap();
    let import = ["import", "--data-dir", "d", "--from", "001", "old", "-q"];
    let ended = place.run(&import).fails(5);
    assert!(
        ended.stderr.contains("1.dat: bytes 19 to 40 are damaged"),
        "{}",
        ended.stderr
    );
    assert_eq!(place.run(&["scan", "--data-dir", "d"]).ok(), b"a\t1\n");
    let ended = place.run(&[&import[..], &["--skip-bad"]].concat());
    assert!(ended.stderr.contains("are damaged"), "{}", ended.stderr);
    ended.ok();
    assert_eq!(
        place.run(&["scan", "--data-dir", "d"]).ok(),
        b"a\t1\nb\t2\n"
    );
    // A record that was being written is told, and no failure.
    fs::write(place.path("old/1.dat"), &file[..35]).unwrap();
    let ended = place.run(&import);
    assert!(
        ended.stderr.contains("the last record, from byte 19 on"),
        "{}",
        ended.stderr
    );
    ended.ok();
    // What is too large is told with its file.
    let key = "k".repeat(70_000);
    let long = format!("1700000000;{};1;{key};1\n", key.len());
    fs::write(place.path("old/1.dat"), long).unwrap();
    let ended = place.run(&import).fails(4);
    assert!(ended.stderr.contains("in old/1.dat"), "{}", ended.stderr);
}

#[test]
fn files_of_other_systems_come_in() {
    let place = Place::new();
    let write = |name: &str, bytes: &[u8]| {
        let path = place.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    // A log entry of protobuf: id, operation (2: put), key, value.
    let entry = b"\x0b\x00\x00\x00\x08\x01\x10\x02\x1a\x02v1\x22\x01x";
    let blob = b"\x02\x00\x00\x00qu\x01\x00\x00\x00\x00x";
    let sum = crc32c::crc32c(blob).to_le_bytes();
    let length = [u8::try_from(blob.len()).unwrap(), 0, 0, 0];
    write("000/sstable.db", b"{\"key\":\"kv\",\"value\":\"x\"}\n");
    write(
        "001/1700000000.dat",
        b"1700000000;2;1;pr;x\n1700000001;4;0;kept;\n",
    );
    write("002/wal/kv.log", entry);
    write("003/seg_1.dat", &[&length[..], blob, &sum].concat());
    write(
        "004/wal/wal-1.wal",
        b"{\"op\":\"put\",\"k\":\"ve\",\"v\":\"x\",\"ts\":1}\n",
    );
    place
        .run(&["put", "--data-dir", "d", "kept", "until 001 deletes it"])
        .ok();
    for kind in ["000", "001", "002", "003", "004"] {
        place
            .run(&["import", "--data-dir", "d", "--from", kind, kind])
            .ok();
    }
    let all = place.run(&["scan", "--data-dir", "d"]).ok();
    assert_eq!(all, b"kv\tx\npr\tx\nqu\tx\nv1\tx\nve\tx\n");
    let none = place.run(&["import", "--data-dir", "d", "--from", "query", "001"]);
    assert!(none.fails(2).stderr.contains("no file seg_*.dat"));
}

#[test]
fn imports_resume_and_dry_run() {
    let place = Place::new();
    let import = ["import", "--data-dir", "d", "--from", "lines"];
    let with = |args: &[&str]| place.run_with(&[&import[..], args].concat(), b"a\t1\nb\t2\nc\t3\n");
    with(&["--dry-run"]).ok();
    assert!(!place.path("d").exists());
    with(&["--skip", "2"]).ok();
    assert_eq!(place.run(&["scan", "--data-dir", "d"]).ok(), b"c\t3\n");
    let ended = place.run_with(&import, b"a\t1\nno tab\nc\t3\n").fails(2);
    assert!(ended.stderr.contains("line 2"), "{}", ended.stderr);
    let ended = place.run_with(&[&import[..], &["--quiet"]].concat(), b"a\t1\n");
    assert!(ended.stderr.is_empty(), "{}", ended.stderr);
    let long = [b"k".repeat(70_000), b"\tv\n".to_vec()].concat();
    let ended = place.run_with(&import, &long).fails(4);
    assert!(ended.stderr.contains("key_bytes"), "{}", ended.stderr);
}

/// However an import ends early, what was whole is stored, and how to go on is told.
#[test]
fn imports_that_end_early_say_how_to_go_on() {
    let place = Place::new();
    let import = |dir: &str, kind: &str, args: &[&str], input: &[u8]| {
        let all = [&["import", "--data-dir", dir, "--from", kind], args].concat();
        place.run_with(&all, input)
    };
    let told = |ended: crate::process::Ended, stored: u64, skip: u64| {
        let told = format!("{stored} entries are stored; to go on: --skip {skip}\n");
        assert!(ended.stderr.contains(&told), "{}", ended.stderr);
    };
    told(
        import("a", "lines", &[], b"a\t1\nbad\nc\t3\n").fails(2),
        1,
        1,
    );
    // In the first batch too, what was skipped stays skipped.
    let bad = b"a\t1\nb\t2\nbad\nd\t4\n";
    told(import("b", "lines", &["--skip", "1"], bad).fails(2), 1, 2);
    told(import("b", "lines", &["--skip", "2"], bad).fails(2), 0, 2);
    // What is skipped is not judged again.
    import("b", "lines", &["--skip", "3"], bad).ok();
    assert_eq!(
        place.run(&["scan", "--data-dir", "b"]).ok(),
        b"b\t2\nd\t4\n"
    );
    let ended = import("n", "lines", &["--dry-run"], bad).fails(2);
    assert!(
        ended
            .stderr
            .contains("stop after 2 entries; nothing was stored"),
        "{}",
        ended.stderr
    );
    // A dump that was cut, a trailer that is wrong.
    let dump = place
        .run(&["export", "--data-dir", "b", "--format", "dump"])
        .ok();
    told(
        import("c", "dump", &[], &dump[..dump.len() - 3]).fails(5),
        2,
        2,
    );
    assert_eq!(
        place.run(&["scan", "--data-dir", "c"]).ok(),
        b"b\t2\nd\t4\n"
    );
    let short = b"{\"key\":\"a\",\"value\":\"1\"}\n{\"end\":true,\"count\":2}\n";
    told(import("t", "ndjson", &[], short).fails(5), 1, 1);
    // A directory that is not there.
    told(import("x", "dir", &["nowhere"], b"").fails(2), 0, 0);
}

/// A signal ends it at once; what it says is stored is.
#[test]
fn an_import_that_is_told_to_stop_says_how_to_go_on() {
    use std::io::{Read as _, Write as _};
    use std::process::Stdio;
    let place = Place::new();
    let mut import = command()
        .args(["import", "--data-dir", "d", "--from", "lines"])
        .args(["--batch-size", "1", "--durability", "buffered"])
        .current_dir(place.dir.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = import.stdin.take().unwrap();
    // More than it reads ahead, so that it has written some when the pipe is full.
    for number in 0..30_000 {
        writeln!(input, "key{number:06}\tvalue").unwrap();
    }
    let kill = std::process::Command::new("kill")
        .args(["-TERM", &import.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    let mut stderr = String::new();
    let mut told = import.stderr.take().unwrap();
    told.read_to_string(&mut stderr).unwrap();
    assert_eq!(import.wait().unwrap().code(), Some(143), "{stderr}");
    let (_, skip) = stderr.trim().rsplit_once(' ').unwrap();
    let skip: u64 = skip.parse().expect(&stderr);
    assert!(skip > 0, "{stderr}");
    let count = place.run(&["scan", "--data-dir", "d", "--count"]).ok();
    let count: u64 = String::from_utf8(count).unwrap().trim().parse().unwrap();
    assert!(count >= skip, "{count} of {skip}");
}

#[test]
fn flags_of_other_kinds_are_refused() {
    let place = Place::new();
    for (args, words) in [
        (&["--from", "kv-json"][..], "needs a directory"),
        (&["--format", "dir", "-"], "needs a directory"),
        (&["--from", "lines", "--repeat", "2"], "--repeat is for"),
        (&["--from", "ndjson", "--key", "x"], "--key is for"),
    ] {
        let all = [&["import", "--data-dir", "d"], args].concat();
        let ended = place.run(&all).fails(2);
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
}

#[test]
fn batches_are_whole() {
    let place = Place::new();
    let batch = |text: &str| place.run_with(&["batch", "--data-dir", "d"], text.as_bytes());
    batch(
        "{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"}\n\n\
         {\"op\":\"put\",\"key_b64\":\"/w==\",\"value_b64\":\"AA==\"}\n",
    )
    .ok();
    assert_eq!(
        place.run(&["scan", "--data-dir", "d"]).ok(),
        b"a\t1\n\\xff\t\\x00\n"
    );
    // A condition fails: nothing of it is written.
    batch(
        "{\"op\":\"put\",\"key\":\"b\",\"value\":\"1\"}\n\
         {\"op\":\"put\",\"key\":\"a\",\"value\":\"2\",\"if_absent\":true}\n",
    )
    .fails(1);
    assert_eq!(
        place.run(&["scan", "--data-dir", "d", "--count"]).ok(),
        b"2\n"
    );
    batch("{\"op\":\"delete_range\"}\n{\"op\":\"put\",\"key\":\"z\",\"value\":\"\"}\n").ok();
    assert_eq!(place.run(&["scan", "--data-dir", "d"]).ok(), b"z\t\n");
    let ended =
        batch("{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"}\n{\"op\":\"steal\",\"key\":\"a\"}\n");
    assert!(ended.fails(2).stderr.contains("line 2"));
    batch("not json\n").fails(2);
}

#[test]
fn ranges_are_deleted_only_with_yes() {
    let place = Place::new();
    let lines = b"a\t1\nb/1\t2\nb/2\t3\nc\t4\n";
    place
        .run_with(&["import", "--data-dir", "d", "--from", "lines"], lines)
        .ok();
    let del = |args: &[&str]| place.run(&[&["del", "--data-dir", "d"], args].concat());
    del(&["--prefix", "b/"]).fails(2);
    let ended = del(&["--prefix", "b/", "--dry-run"]);
    assert!(ended.stderr.contains("2 keys would go"), "{}", ended.stderr);
    assert_eq!(
        place.run(&["scan", "--data-dir", "d", "--count"]).ok(),
        b"4\n"
    );
    del(&["--prefix", "b/", "--yes"]).ok();
    assert_eq!(
        place.run(&["scan", "--data-dir", "d", "--keys"]).ok(),
        b"a\nc\n"
    );
    del(&["--start", "b", "--yes"]).ok();
    assert_eq!(
        place.run(&["scan", "--data-dir", "d", "--keys"]).ok(),
        b"a\n"
    );
    del(&["--prefix", "", "--yes"]).ok();
    del(&["--prefix", "", "--yes"]).ok();
    assert_eq!(
        place.run(&["scan", "--data-dir", "d", "--count"]).ok(),
        b"0\n"
    );
}

#[test]
fn namespaces() {
    let place = Place::new();
    place.run(&["ns", "create", "one", "--data-dir", "d"]).ok();
    place
        .run(&["ns", "create", "one", "--data-dir", "d"])
        .fails(1);
    place
        .run(&["put", "--data-dir", "d", "--ns", "one", "k", "in one"])
        .ok();
    place
        .run(&["put", "--data-dir", "d", "k", "in default"])
        .ok();
    assert_eq!(
        place
            .run(&["get", "--data-dir", "d", "--ns", "one", "k"])
            .ok(),
        b"in one"
    );
    assert_eq!(
        place.run(&["ns", "list", "--data-dir", "d"]).ok(),
        b"default\none\n"
    );
    place
        .run(&["get", "--data-dir", "d", "--ns", "two", "k"])
        .fails(1);
    place
        .run(&["ns", "drop", "one", "--data-dir", "d"])
        .fails(2);
    place
        .run(&["ns", "drop", "one", "--data-dir", "d", "--yes"])
        .ok();
    place
        .run(&["ns", "drop", "one", "--data-dir", "d", "--yes"])
        .fails(1);
    place
        .run(&["ns", "drop", "default", "--data-dir", "d", "--yes"])
        .fails(2);
    assert_eq!(
        place.run(&["get", "--data-dir", "d", "k"]).ok(),
        b"in default"
    );
}

#[test]
fn checkpoints_open() {
    let place = place_with_odd_values();
    place.run(&["checkpoint", "--data-dir", "d", "copy"]).ok();
    let all = place.run(&["scan", "--data-dir", "d"]).ok();
    place.run(&["put", "--data-dir", "d", "later", "x"]).ok();
    assert_eq!(place.run(&["scan", "--data-dir", "copy"]).ok(), all);
    assert_ne!(
        place.run(&["checkpoint", "--data-dir", "d", "copy"]).code,
        0
    );
    place.run(&["verify", "--data-dir", "copy"]).ok();
}

#[test]
fn inspection_changes_nothing() {
    let place = place_with_odd_values();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(place.path("d"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), entry.metadata().unwrap().len()))
            .collect();
        names.sort();
        names
    };
    let before = names();
    let json = place
        .run(&["inspect", "--data-dir", "d", "--files", "--format", "json"])
        .ok();
    let report: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert!(
        report["manifest"]
            .as_str()
            .unwrap()
            .starts_with("MANIFEST-"),
        "{report}"
    );
    assert!(report["files"].as_array().unwrap().len() >= 2);
    place.run(&["inspect", "--data-dir", "d"]).ok();
    assert_eq!(names(), before);
}

#[test]
fn the_load_generator_reports() {
    let place = Place::new();
    let mixes =
        "fillseq,overwrite,readrandom,readmissing,readseq,readreverse,seek,mixed,deleterandom";
    let ycsb = "ycsb-a,ycsb-b,ycsb-c,ycsb-d,ycsb-e,ycsb-f";
    for mix in [mixes, ycsb] {
        let args = [
            "bench",
            "--mix",
            mix,
            "--keys",
            "500",
            "--threads",
            "2",
            "--format",
            "json",
        ];
        let json = place
            .run(&[&args[..], &["--durability", "buffered"]].concat())
            .ok();
        let report: serde_json::Value = serde_json::from_slice(&json).unwrap();
        for result in report["results"].as_array().unwrap() {
            assert!(result["ops"].as_u64().unwrap() >= 490, "{result}");
            assert!(
                result["latency_nanos"]["max"].as_u64().unwrap() > 0,
                "{result}"
            );
            match result["mix"].as_str().unwrap() {
                "readrandom" | "ycsb-c" => assert_eq!(result["found"], 500, "{result}"),
                "readmissing" => assert_eq!(result["found"], 0, "{result}"),
                _ => {}
            }
        }
    }
    let rate = [
        "bench",
        "--mix",
        "fillrandom",
        "--ops",
        "50",
        "--rate",
        "1000",
        "--quiet",
    ];
    let ended = place.run(&rate);
    assert!(
        ended.text().contains("open loop, 1,000 operations/s"),
        "{ended:?}"
    );
    // It leaves nothing behind where it was told nothing.
    assert_eq!(fs::read_dir(place.dir.path()).unwrap().count(), 0);
}

#[test]
fn the_configuration_is_one_table() {
    let place = Place::new();
    fs::write(
        place.path("firn.toml"),
        "memory = \"64MiB\"\nhttp = \"127.0.0.1:1\"\n",
    )
    .unwrap();
    let print = |args: &[&str], env: &[(&str, &str)]| {
        let output = crate::process::command()
            .args(["config", "print", "--effective"])
            .args(args)
            .envs(env.iter().copied())
            .current_dir(place.dir.path())
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let file = &["--config", "firn.toml"][..];
    assert!(print(&[], &[]).1.contains("memory = \"512MiB\""));
    assert!(print(file, &[]).1.contains("memory = \"64MiB\""));
    let env = &[("FIRN_MEMORY", "65MiB")][..];
    assert!(print(file, env).1.contains("memory = \"65MiB\""));
    let flag = [file, &["--memory", "66MiB"]].concat();
    assert!(print(&flag, env).1.contains("memory = \"66MiB\""));
    // What is printed is a configuration.
    fs::write(place.path("printed.toml"), print(&flag, env).1).unwrap();
    assert_eq!(
        print(&["--config", "printed.toml"], &[]).1,
        print(&flag, env).1
    );
    assert_eq!(print(&[], &[("FIRN_MEMROY", "1GiB")]).0, Some(2));
    fs::write(place.path("bad.toml"), "memroy = \"64MiB\"\n").unwrap();
    let ended = place
        .run(&["config", "check", "--config", "bad.toml"])
        .fails(2);
    assert!(ended.stderr.contains("memroy"), "{}", ended.stderr);
    place
        .run(&["config", "check", "--config", "not-there.toml"])
        .fails(2);
    place.run(&["config", "check", "--memory", "lots"]).fails(2);
    place
        .run(&["config", "check", "--config", "firn.toml"])
        .ok();
}

#[test]
fn generated_pages() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = place.run(&["completions", shell]).ok();
        assert!(
            String::from_utf8(script).unwrap().contains("checkpoint"),
            "{shell}"
        );
    }
    place.run(&["man", "--dir", "man"]).ok();
    assert!(place.path("man/firn.1").exists() && place.path("man/firn-serve.1").exists());
    let reference = String::from_utf8(place.run(&["reference"]).ok()).unwrap();
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
    let stored = fs::read_to_string(page).unwrap();
    assert!(
        reference == stored,
        "docs/cli.md is stale: run `cargo xtask docs`"
    );
    for verb in [
        "serve", "get", "put", "del", "scan", "batch", "import", "export", "bench",
    ] {
        let help = place.run(&[verb, "--help"]).ok();
        assert!(!help.is_empty());
    }
}

#[test]
fn the_doctor_looks() {
    let place = Place::new();
    let ended = place.run(&["doctor", "--data-dir", "not/yet/there", "--format", "json"]);
    assert!(ended.code == 0 || ended.code == 1, "{ended:?}");
    let findings: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    let advised = findings
        .as_array()
        .unwrap()
        .iter()
        .any(|f| !f["advice"].is_null());
    assert_eq!(advised, ended.code == 1);
    assert!(findings.as_array().unwrap().len() >= 4);
    assert_eq!(fs::read_dir(place.dir.path()).unwrap().count(), 0);
    place.run(&["doctor", "--memory", "900TiB"]).fails(1);
}

#[test]
fn no_server_is_exit_code_three() {
    let place = Place::new();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let address = format!("127.0.0.1:{port}");
    let ended = place.run(&["get", "k", "--server", &address]).fails(3);
    assert!(ended.stderr.contains("firn serve"), "{}", ended.stderr);
    place.run(&["health", "--server", &address]).fails(3);
}

#[test]
fn a_time_to_live_is_more_than_nothing() {
    let place = Place::new();
    let put = ["put", "--data-dir", "d", "k", "v", "--ttl", "0s"];
    let ended = place.run(&put).fails(2);
    assert!(ended.stderr.contains("more than 0"), "{}", ended.stderr);
}

#[test]
fn broken_json_is_named_by_the_line_of_the_file_alone() {
    let place = Place::new();
    let input = b"{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"}\n{\"op\":\n";
    let ended = place
        .run_with(&["batch", "--data-dir", "d"], input)
        .fails(2);
    assert!(ended.stderr.contains("line 2: "), "{}", ended.stderr);
    assert!(!ended.stderr.contains("line 1"), "{}", ended.stderr);
}
