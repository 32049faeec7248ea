//! Makes the seed corpus: for every target a few small inputs, from what the real encoders write.

use firn_api::cursor::{self, Query};
use firn_engine::blob::{BlobFile, BlobWriter};
use firn_engine::key::{FileId, Kind, NamespaceId, SeqNo, Trailer};
use firn_engine::range_del::RangeTombstone;
use firn_engine::sstable::{TableOptions, TableWriter};
use firn_engine::version::edit::{Applied, Op, VersionEdit};
use firn_engine::version::manifest::ManifestWriter;
use firn_engine::{Compression, Condition, Db, Options, Outcome, WriteBatch, WriteOptions};
use firn_io::error::Error;
use firn_io::fs::mem::MemFs;
use firn_io::fs::{Fs, OpenMode};
use firn_io::wal::{Log, LogOptions};
use firn_peer::ClusterId;
use firn_peer::frame::{self as peer, Frame};
use firn_peer::hello::{Hello, Welcome};
use firn_replica::command::{CommandBuilder, Write};
use firn_replica::transport::Class;
use firn_replica::{message, types as replica};

use crate::{manifest, put_bytes, table, world};

/// An input and its name.
pub type Seed = (&'static str, Vec<u8>);

/// The seeds of every target.
pub fn all() -> Vec<(&'static str, Vec<Seed>)> {
    let tables = [
        ("plain", table_file(Compression::None, 40, 10)),
        ("lz4", table_file(Compression::Lz4, 60, 10)),
        ("no_filter", table_file(Compression::None, 3, 0)),
        ("empty", table_file(Compression::None, 0, 10)),
    ];
    let blobs = [
        ("plain", blob_file(Compression::None)),
        ("lz4", blob_file(Compression::Lz4)),
    ];
    let batch = batch();
    vec![
        (
            "log_segment",
            vec![("closed", log_file(true)), ("killed", log_file(false))],
        ),
        ("log_frames", log_steps(&batch)),
        ("batch", vec![("all_kinds", batch), ("empty", vec![0; 12])]),
        (
            "table_parts",
            tables
                .iter()
                .map(|(name, file)| (*name, parts(file)))
                .collect(),
        ),
        (
            "block",
            tables
                .iter()
                .filter_map(|(name, file)| Some((*name, first_block(file)?)))
                .collect(),
        ),
        ("table", tables.into()),
        (
            "blob_records",
            blobs
                .iter()
                .map(|(name, file)| (*name, records(file)))
                .collect(),
        ),
        ("blob", blobs.into()),
        ("manifest", vec![("small", manifest_file())]),
        (
            "manifest_edits",
            vec![
                ("small", edits_of(&manifest_file())),
                ("database", edits_of(&real_manifest())),
            ],
        ),
        (
            "version_edit",
            edits()
                .into_iter()
                .map(|(name, edit)| (name, encoded(&edit)))
                .collect(),
        ),
        ("current", vec![("seven", b"MANIFEST-000007\n".to_vec())]),
        ("text", texts()),
        ("http", requests()),
        ("replica_entry", replica_entries()),
        ("replica_command", vec![("two", replica_command())]),
        ("replica_message", replica_messages()),
        ("peer", peer_words()),
        ("dialects", dialects()),
        ("grpc", messages()),
        ("resp", commands()),
    ]
}

fn commands() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        (
            "bulk",
            b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$4\r\n1e-3\r\n*2\r\n$4\r\nKEYS\r\n$6\r\nu[^a]*\r\n"
                .to_vec(),
        ),
        (
            "inline",
            b"set a \"b\\x41\" 'c'\r\n\r\nGET a\n*0\r\n".to_vec(),
        ),
        (
            "restore",
            b"*2\r\n$7\r\nRESTORE\r\n$17\r\n\0\xc3\x05\x0b\x01aa\xe0\0\0\x0a\0\0\0\0\0\0\r\n"
                .to_vec(),
        ),
    ]
}

/// A message for some methods, by their place in the list of methods.
fn messages() -> Vec<Seed> {
    let field = |number: u8, bytes: &[u8]| {
        let len = u8::try_from(bytes.len()).expect("short");
        [&[number << 3 | 2, len], bytes].concat()
    };
    let key = field(2, b"a");
    let put = [
        &[1][..],
        &key,
        &field(3, b"x"),
        &field(6, &[0x18, 7]),
        b"\x20\x05",
    ]
    .concat();
    let op = [
        field(2, &[8, 1]),
        field(3, &[field(1, b"n"), field(2, b"x")].concat()),
    ]
    .concat();
    let range = field(5, &[field(1, b"a"), field(2, b"b")].concat());
    let batch = [&[4][..], &field(2, &op), &field(2, &range), &[0x18, 2]].concat();
    let frames = [&[0x80, 0, 0, 0, 0, key.len() as u8][..], &key, &[1, 0]].concat();
    vec![
        ("get", [&[0][..], &field(1, b"default"), &key].concat()),
        ("put", put),
        ("delete", [&[2][..], &key].concat()),
        ("multi_get", [&[3][..], &key, &key].concat()),
        ("batch", batch),
        (
            "range",
            [&[5][..], &field(2, &field(3, b"k")), &[0x18, 1, 0x28, 2]].concat(),
        ),
        ("frames", frames),
        ("create", [&[9][..], &field(1, b"new")].concat()),
        ("verify", vec![14]),
    ]
}

/// A connection for each dialect, by its place in the list of dialects.
fn dialects() -> Vec<Seed> {
    let all = [
        (
            "kv_json",
            &[
                (
                    "POST",
                    "/kv/n%20w",
                    "{\"VALUE\":\"\\u00e9\\ud83d\\ude00\"} rest",
                ),
                ("GET", "/kv/?start=a&end=z", ""),
                ("POST", "/kv/batch", "[{\"key\":\"x\",\"value\":\"1\"}]"),
                ("DELETE", "/kv/x/", ""),
                ("GET", "/kv//x?q", ""),
            ][..],
        ),
        (
            "put_read",
            &[
                (
                    "POST",
                    "/put",
                    "{\"key\":\"n\",\"data\":null,\"value\":\"x\"}",
                ),
                ("GET", "/read?key=n+%6e;", ""),
                ("POST", "/batchput", "{\"x\":\"1\",\"y\":\"\"}"),
                ("GET", "/readrange?start=a&end=key", ""),
                ("DELETE", "/delete?key=a", ""),
            ],
        ),
        (
            "v1_raw",
            &[
                ("PUT", "/v1/a%2Fb", "<html>"),
                ("GET", "/v1/a%2fb?x", ""),
                ("DELETE", "/v1/%C3%A9", ""),
                ("GET", "/metrics", ""),
            ],
        ),
        (
            "query",
            &[
                ("PUT", "/any?key=n&KEY=m&value=%zz+", ""),
                ("GET", "/Range?start=a&end=z", ""),
                (
                    "POST",
                    "/batchput",
                    "{\"Keys\":[\"x\"],\"values\":[\"\\n\"]}",
                ),
                ("DELETE", "/?key=a", ""),
            ],
        ),
        (
            "kv_verbs",
            &[
                (
                    "POST",
                    "/kv/put",
                    "{\"key\":\"n\",\"value\":\"x\",\"o\":[1e9,true]}",
                ),
                ("GET", "/KV/read/n/", ""),
                ("GET", "/kv/read-range?start=a&end=z", ""),
                (
                    "POST",
                    "/kv/batch-put",
                    "{\"items\":[{\"key\":\"x\",\"value\":\"1\"}]}",
                ),
                ("DELETE", "/kv/delete/a%2Fb", ""),
            ],
        ),
        (
            "auto",
            &[
                ("POST", "/kv/put", "{\"value\":\"x\"}"),
                ("POST", "/batchput", "{\"Keys\":[\"x\"],\"Values\":[\"1\"]}"),
                ("GET", "/?key=a", ""),
                ("GET", "/kv/read-range", ""),
            ],
        ),
    ];
    let seed = |(index, (name, requests)): (usize, &(&'static str, &[(&str, &str, &str)]))| {
        let mut bytes = vec![u8::try_from(index).expect("few")];
        for (method, target, body) in *requests {
            let request = format!(
                "{method} {target} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            );
            bytes.extend_from_slice(request.as_bytes());
        }
        (*name, bytes)
    };
    all.iter().enumerate().map(seed).collect()
}

fn batch() -> Vec<u8> {
    // As the log of a database has it.
    let disk = MemFs::new();
    let db = Db::open_with(world(&disk), "/db", options()).expect("a database");
    let mut batch = WriteBatch::new();
    batch.put(NamespaceId(0), b"key", b"value").expect("short");
    batch
        .put_expiring(NamespaceId(0), b"soon", b"gone", 1 << 41)
        .expect("short");
    batch.delete(NamespaceId(0), b"old").expect("short");
    batch
        .delete_range(NamespaceId(0), b"a", b"b")
        .expect("short");
    db.write(batch, &WriteOptions::sync()).expect("written");
    db.close().expect("closed");
    let mut last = Vec::new();
    firn_io::wal::reader::scan(&disk, "/db/wal".as_ref(), None, |record| {
        last = record.payload.to_vec();
        Ok::<_, Error>(())
    })
    .expect("a sound log");
    last
}

fn replica_command() -> Vec<u8> {
    let mut batch = WriteBatch::new();
    batch.put(NamespaceId(0), b"key", b"value").expect("short");
    batch
        .require(NamespaceId(0), b"key", Condition::VersionEquals(SeqNo(300)))
        .expect("short");
    let mut builder = CommandBuilder::default();
    builder.add(&Write::batch(&mut batch));
    builder.add(&Write::create_namespace("n"));
    builder.finish(1 << 40).to_vec()
}

fn replica_log() -> Vec<(&'static str, replica::Entry)> {
    let node = |address: &str| replica::Member {
        address: address.to_owned(),
        ..replica::Member::default()
    };
    let membership = replica::Membership {
        voters: vec![[1].into(), [1, 2].into()],
        nodes: [(1, node("a:1")), (2, node("b:1"))].into(),
    };
    let payloads = [
        ("blank", replica::Payload::Blank),
        (
            "command",
            replica::Payload::Command(replica_command().into()),
        ),
        ("members", replica::Payload::Membership(membership)),
    ];
    let entry = |index: usize, payload| replica::Entry {
        id: replica::LogId {
            term: 3,
            index: index as u64,
        },
        payload,
    };
    let numbered = payloads.into_iter().enumerate();
    numbered
        .map(|(index, (name, payload))| (name, entry(index, payload)))
        .collect()
}

fn replica_entries() -> Vec<Seed> {
    let entries = replica_log().into_iter();
    entries
        .map(|(name, entry)| (name, entry.to_bytes()))
        .collect()
}

fn replica_messages() -> Vec<Seed> {
    let vote = replica::Vote {
        term: 3,
        node: 2,
        committed: true,
    };
    let last = Some(replica::LogId { term: 2, index: 9 });
    let append = message::AppendRequest {
        vote,
        previous: None,
        committed: None,
        entries: replica_log().into_iter().map(|(_, entry)| entry).collect(),
    };
    let ask = message::VoteRequest {
        vote,
        last,
        transfer: true,
    };
    let outcome = Outcome::ConditionFailed {
        index: 1,
        actual: Some(SeqNo(7)),
    };
    let id = replica::LogId { term: 3, index: 4 };
    let higher = message::AppendAnswer::HigherVote(vote);
    vec![
        ("append", message::Request::Append(append).encode()),
        ("vote", message::Request::Vote(ask).encode()),
        ("read_index", message::Request::ReadIndex.encode()),
        ("higher", message::Answer::Append(higher).encode()),
        ("done", message::Answer::Propose(id, vec![outcome]).encode()),
    ]
}

fn peer_words() -> Vec<Seed> {
    let frame = |kind, stream, id, body: Vec<u8>| {
        let body = body.into();
        Frame {
            kind,
            stream,
            id,
            body,
        }
        .encode()
    };
    let cluster = ClusterId([7; 16]);
    let hello = Hello {
        min: 1,
        max: 1,
        class: Class::Log,
        cluster,
        from: 1,
        incarnation: 77,
        to: 2,
    };
    let welcome = Welcome {
        version: 1,
        cluster,
        node: 2,
        incarnation: 78,
        window: 1 << 20,
        requests: 64,
    };
    let refusal = b"\x02node 1 belongs to another cluster".to_vec();
    let ask = [
        frame(peer::Kind::Request, 2, 0, b"some request".to_vec()),
        frame(peer::Kind::Ping, 2, 1, Vec::new()),
    ];
    let told = [
        frame(peer::Kind::Answer, 2, 0, b"some answer".to_vec()),
        frame(peer::Kind::Pong, 2, 1, Vec::new()),
        frame(peer::Kind::Credit, 2, 0, 12_u64.to_le_bytes().to_vec()),
    ];
    vec![
        ("hello", hello.encode()),
        ("welcome", welcome.encode()),
        ("refusal", refusal.clone()),
        ("called", frame(peer::Kind::Hello, 0, 0, hello.encode())),
        ("refused", frame(peer::Kind::Refusal, 0, 0, refusal)),
        ("ask", ask.concat()),
        ("told", told.concat()),
    ]
}

fn options() -> Options {
    Options {
        memory_bytes: 8 << 20,
        log_segment_bytes: Some(4 << 10),
        ballast_bytes: 0,
        ..Options::default()
    }
}

/// The first segment of a log, without the zeros at its end.
fn log_file(close: bool) -> Vec<u8> {
    let disk = MemFs::new();
    let options = LogOptions {
        segment_bytes: 4096,
        ..LogOptions::default()
    };
    let (log, _) = Log::open(world(&disk), "/wal".as_ref(), options, |_| {
        Ok::<_, Error>(())
    })
    .expect("a log");
    for i in 0..6_u8 {
        let end = log
            .append(1 + i % 2, &[&[i; 30], b"payload"])
            .expect("room");
        if i % 2 == 0 {
            log.sync_to(end).expect("a disk in memory");
        }
    }
    if close {
        log.close().expect("a disk in memory");
    }
    let mut bytes = disk
        .read_file("/wal/0000000000000001.wal")
        .expect("a segment");
    let end = bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |at| at + 1);
    bytes.truncate(end);
    bytes
}

fn log_steps(batch: &[u8]) -> Vec<Seed> {
    let frame = |out: &mut Vec<u8>, kind: u8, flags: u8, synced: u16, payload: &[u8]| {
        out.extend_from_slice(&[kind, flags]);
        out.extend_from_slice(&synced.to_le_bytes());
        out.push(0);
        put_bytes(out, payload);
    };
    let mut records = Vec::new();
    frame(&mut records, 3, 0, 0, batch);
    frame(&mut records, 3, 1, 8, batch);
    frame(&mut records, 241, 1, 14, b"");
    let mut two = records.clone();
    frame(&mut two, 240, 1, 14, &2_u64.to_le_bytes());
    two.push(0);
    frame(&mut two, 3, 2, 20, b"second");
    let mut torn = records.clone();
    torn.extend_from_slice(&[1, 4, 2, 9, 0]);
    torn.extend_from_slice(b"no frame!");
    frame(&mut torn, 3, 1, 8, b"behind");
    let mut damaged = torn.clone();
    frame(&mut damaged, 3, 1, 60, b"stated");
    vec![
        ("records", records),
        ("two_segments", two),
        ("torn", torn),
        ("damaged", damaged),
    ]
}

fn table_file(compression: Compression, count: u64, filter_bits_per_key: u32) -> Vec<u8> {
    let disk = MemFs::new();
    disk.create_dir_all("/db".as_ref()).expect("a directory");
    let file = disk
        .open("/db/000005.sst".as_ref(), OpenMode::Create)
        .expect("a file");
    let options = TableOptions {
        block_bytes: 400,
        restart_interval: 4,
        filter_bits_per_key,
        compression,
    };
    let mut writer = TableWriter::new(file, options).expect("a supported compression");
    writer.set_namespace(NamespaceId(0), "default");
    for i in 0..count {
        let key = format!("user/{:03}", i / 2);
        let kind = if i % 7 == 0 { Kind::Delete } else { Kind::Put };
        let value = if kind == Kind::Put {
            &b"a value that repeats a value that repeats"[..]
        } else {
            b""
        };
        // Two versions of each key, newest first.
        let trailer = Trailer::new(SeqNo(1000 - i), kind);
        writer
            .add(key.as_bytes(), trailer, value)
            .expect("ascending");
    }
    let tombstone = RangeTombstone {
        start: b"user/00".to_vec(),
        end: b"user/01".to_vec(),
        seqno: SeqNo(7),
    };
    writer.add_range_tombstone(tombstone).expect("in order");
    writer.finish().expect("a disk in memory");
    disk.read_file("/db/000005.sst").expect("the file")
}

fn number(bytes: &[u8], at: usize) -> usize {
    bytes[at..at + 8]
        .try_into()
        .map(u64::from_le_bytes)
        .expect("eight bytes") as usize
}

fn varint(bytes: &[u8], at: &mut usize) -> usize {
    let (mut n, mut shift) = (0, 0);
    loop {
        let byte = bytes[*at];
        *at += 1;
        n |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return n;
        }
        shift += 7;
    }
}

/// The payloads of the four blocks that the footer names, in its order.
fn blocks(file: &[u8]) -> Vec<&[u8]> {
    let footer = &file[file.len() - 80..];
    let block = |i: usize| {
        let (offset, len) = (number(footer, 16 * i), number(footer, 16 * i + 8));
        &file[offset..offset + len.saturating_sub(5)]
    };
    (0..4).map(block).collect()
}

/// The stored data blocks: compression and payload.
fn data_blocks(file: &[u8]) -> Vec<(u8, &[u8])> {
    let index = blocks(file)[0];
    let (mut at, mut offset) = (0, 0);
    let count = varint(index, &mut at);
    at += varint(index, &mut at);
    let mut found = Vec::new();
    for _ in 0..count {
        let len = varint(index, &mut at);
        at += varint(index, &mut at);
        found.push((file[offset + len - 5], &file[offset..offset + len - 5]));
        offset += len;
    }
    found
}

fn parts(file: &[u8]) -> Vec<u8> {
    let data = data_blocks(file);
    let mut out = vec![data.len() as u8];
    for (compression, bytes) in data {
        out.push(compression);
        put_bytes(&mut out, bytes);
    }
    let meta = blocks(file);
    for at in [1, 2, 0, 3] {
        put_bytes(&mut out, meta[at]);
    }
    out
}

fn first_block(file: &[u8]) -> Option<Vec<u8>> {
    let (compression, bytes) = *data_blocks(file).first()?;
    Some([&[compression], bytes].concat())
}

fn blob_file(compression: Compression) -> Vec<u8> {
    let disk = MemFs::new();
    disk.create_dir_all("/db".as_ref()).expect("a directory");
    let file = disk
        .open("/db/000005.blob".as_ref(), OpenMode::Create)
        .expect("a file");
    let mut writer =
        BlobWriter::new(file, table::ID, compression).expect("a supported compression");
    for (key, value) in [("a", &b"small"[..]), ("key", &[7; 300]), ("", b"")] {
        writer.add(key.as_bytes(), value).expect("short");
    }
    writer.finish().expect("a disk in memory");
    disk.read_file("/db/000005.blob").expect("the file")
}

fn records(file: &[u8]) -> Vec<u8> {
    let (_disk, file) = crate::disk_with("/db/000005.blob", file);
    let file = BlobFile::open(file, table::ID).expect("a sound file");
    let mut records = file.records();
    let mut out = Vec::new();
    while let Some(record) = records.next().expect("a sound file") {
        out.push(record.compression);
        out.extend_from_slice(&(record.value_len as u16).to_le_bytes());
        put_bytes(&mut out, record.key);
        put_bytes(&mut out, record.stored);
    }
    out
}

fn edits() -> Vec<(&'static str, VersionEdit)> {
    let create = Op::CreateNamespace {
        id: NamespaceId(0),
        name: "default".into(),
    };
    let second = Op::CreateNamespace {
        id: NamespaceId(1),
        name: "second".into(),
    };
    let flushed = Op::Flushed {
        namespace: NamespaceId(0),
        seqno: SeqNo(300),
    };
    let drop = Op::DropNamespace { id: NamespaceId(1) };
    let numbers = VersionEdit {
        next_file: Some(FileId(40)),
        next_namespace: Some(NamespaceId(2)),
        last_seqno: Some(SeqNo(900)),
        log_start: Some(1 << 32 | 64),
        log_whole_from: Some(1 << 32 | 64),
        applied: Some(Applied {
            term: 3,
            index: 500,
        }),
        applied_state: Some(b"raft".as_slice().into()),
        snapshot_end: false,
        ops: vec![flushed, second],
    };
    vec![
        ("create", VersionEdit::of(vec![create])),
        ("numbers", numbers),
        ("drop", VersionEdit::of(vec![drop])),
    ]
}

fn encoded(edit: &VersionEdit) -> Vec<u8> {
    let mut out = Vec::new();
    edit.encode(&mut out);
    out
}

fn manifest_file() -> Vec<u8> {
    let disk = MemFs::new();
    disk.create_dir_all("/db".as_ref()).expect("a directory");
    let mut edits = edits().into_iter().map(|(_, edit)| edit);
    let first = edits.next().unwrap_or_default();
    let mut writer = ManifestWriter::create(&disk, "/db".as_ref(), manifest::ID, first)
        .expect("a disk in memory");
    for edit in edits {
        writer.append(&edit).expect("a disk in memory");
    }
    drop(writer);
    disk.read_file("/db/MANIFEST-000007").expect("the file")
}

/// The manifest of a database that has tables and blobs.
fn real_manifest() -> Vec<u8> {
    let disk = MemFs::new();
    let db = Db::open_with(
        world(&disk),
        "/db",
        Options {
            min_blob_bytes: 100,
            ..options()
        },
    )
    .expect("a database");
    let other = db.create_namespace("other").expect("a new name");
    for round in 0..2 {
        for i in 0..10_u8 {
            db.put(&[b'k', i], &vec![round; 20 * usize::from(i)])
                .expect("written");
        }
        let mut batch = WriteBatch::new();
        batch.delete_range(&other, b"a", b"b").expect("short");
        db.write(batch, &WriteOptions::buffered()).expect("written");
        db.flush().expect("flushed");
    }
    db.compact_range(&db.default_namespace(), None, None)
        .expect("compacted");
    db.close().expect("closed");
    let name = disk
        .files()
        .into_iter()
        .find(|path| path.to_string_lossy().contains("MANIFEST"));
    disk.read_file(name.expect("a manifest")).expect("the file")
}

fn edits_of(file: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 24;
    while at + 8 < file.len() {
        let len = u32::from_le_bytes([file[at], file[at + 1], file[at + 2], file[at + 3]]) as usize;
        put_bytes(&mut out, &file[at + 8..at + 8 + len]);
        at += 8 + len;
    }
    out
}

fn texts() -> Vec<Seed> {
    let query = Query {
        namespace: "default",
        start: Some(b"a"),
        end: None,
        reverse: false,
    };
    vec![
        ("percent", b"a%2Fb%00+c".to_vec()),
        ("cursor", cursor::encode(&query, b"key").into_bytes()),
        ("duration", b"1h30m".to_vec()),
        ("size", b"512MiB".to_vec()),
        ("base64", b"AAECAw==".to_vec()),
    ]
}

fn requests() -> Vec<Seed> {
    let get =
        |target: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let send = |method: &str, target: &str, body: &str| {
        let len = body.len();
        format!("{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{body}")
    };
    let batch = r#"{"ops":[{"op":"put","key":"n","value":"v","ttl":"1h"},{"op":"delete","key_b64":"YQ=="},{"op":"delete_range","prefix":"k"},{"op":"check","key":"b","if_exists":true}]}"#;
    let seeds = [
        (
            "get",
            get("/v1/keys/k%2F%C3%A9?consistency=stale&key_enc=percent"),
        ),
        (
            "range",
            get("/v1/range?start=a&end=z&limit=2&reverse=true&enc=base64&max_bytes=1KiB"),
        ),
        ("prefix", get("/v1/ns/default/range?prefix=k&keys_only")),
        (
            "put",
            send("PUT", "/v1/keys/new?ttl=30s&durability=sync", "value"),
        ),
        ("batch", send("POST", "/v1/batch", batch)),
        (
            "mget",
            send(
                "POST",
                "/v1/mget?enc=auto",
                r#"{"keys":["a",{"b64":"Yg=="},"none"]}"#,
            ),
        ),
        (
            "namespace",
            send("PUT", "/v1/ns/other", "") + &get("/v1/ns"),
        ),
        (
            "delete",
            send("DELETE", "/v1/range?prefix=a", "") + &get("/v1/admin/stats"),
        ),
        (
            "admin",
            send("POST", "/v1/admin/flush", "")
                + &send("POST", "/v1/admin/checkpoint", r#"{"name":"c"}"#),
        ),
        (
            "verify",
            send("POST", "/v1/admin/verify", "") + &get("/readyz?verbose&exclude=disk"),
        ),
    ];
    seeds
        .into_iter()
        .map(|(name, text)| (name, text.into_bytes()))
        .collect()
}
