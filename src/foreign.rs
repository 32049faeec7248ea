//! The data files of the systems whose dialects the server speaks, read for `firn import`.
//!
//! | Kind | Files below the directory | What is in them |
//! |---|---|---|
//! | `kv-json` | `sstable.db`, else `wal_*.log` | a JSON object a line, `key` and `value`; `key:value` lines |
//! | `put-read` | `*.dat` | `seconds;key bytes;value bytes;key;value` and a newline; no value: deleted |
//! | `v1-raw` | `snapshot.*.dat`, `*.log`, `*.compacting` | length u32, then a protobuf message |
//! | `query` | `seg_*.dat` | length u32, blob, CRC-32C of the blob u32 |
//! | `kv-verbs` | `wal-*.wal` | a JSON object a line: `op`, `k`, `v` |
//!
//! All integers are little-endian. A blob of `query` is key length u32, key, value length u32,
//! deleted u8, value. Files are replayed in the order of the numbers in their names, the last
//! change of a key wins. A file that ends in the middle of a record was being written when its
//! system died: what is before counts, and a note says so.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use firn_engine::options::MAX_VALUE_BYTES;
use serde_json::Value;

use crate::exit::{Exit, Failure, Result};
use crate::host;
use crate::output::note;

/// Whose files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    KvJson,
    PutRead,
    V1Raw,
    Query,
    KvVerbs,
}

/// A change of a key; without a value it was deleted. `read` is the input that it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) read: u64,
}

/// Longest record or line: the largest value, its key, and what is around them in JSON.
const MAX_RECORD_BYTES: usize = MAX_VALUE_BYTES * 2;

type Input = BufReader<Box<dyn Read>>;
type Give<'a> = dyn FnMut(Result<Change>) -> Result<()> + 'a;

/// Gives every change in the files at `root`, a directory or one of its files.
pub(crate) fn read(system: System, root: &Path, give: &mut Give<'_>) -> Result<()> {
    let mut paths = Vec::new();
    if host::input_len(root).is_some() {
        paths.push(root.to_path_buf());
    } else {
        host::walk(root, &mut |found| {
            paths.push(found.path);
            Ok(())
        })?;
    }
    let each = |paths: Vec<PathBuf>, parse: Parse, give: &mut Give<'_>| {
        paths.iter().try_for_each(|path| with(path, parse, give))
    };
    match system {
        System::KvJson => {
            let tables = pick(&paths, "sstable", ".db", root);
            match tables {
                // The log holds nothing that the table has not, and cannot hold every key.
                Ok(tables) => each(tables, table_lines, give),
                Err(_) => each(pick(&paths, "wal_", ".log", root)?, colon_lines, give),
            }
        }
        System::PutRead => each(pick(&paths, "", ".dat", root)?, semicolon_records, give),
        System::V1Raw => v1_raw(&paths, root, give),
        System::Query => each(pick(&paths, "seg_", ".dat", root)?, blobs, give),
        System::KvVerbs => each(pick(&paths, "wal-", ".wal", root)?, op_lines, give),
    }
}

type Parse = fn(Input, &mut Give<'_>) -> Result<End>;

/// How a file ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    /// So many bytes of it were read, then comes what is no record.
    Torn(u64),
}

/// Parses a file; whatever is wrong in it is told with its name.
fn with(path: &Path, parse: Parse, give: &mut Give<'_>) -> Result<()> {
    let input = host::open_input(path)?;
    let name = path.display();
    let end = parse(input, &mut |change| {
        give(change.map_err(|failure| failure.advise(format!("in {name}"))))
    })?;
    if let End::Torn(at) = end {
        note(format_args!(
            "{name}: from byte {at} on there is no whole record; what is before it was read"
        ));
    }
    Ok(())
}

/// The files with such names, in the order of the numbers in them.
fn pick(paths: &[PathBuf], head: &str, tail: &str, root: &Path) -> Result<Vec<PathBuf>> {
    let name = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    let mut found: Vec<_> = paths
        .iter()
        .filter(|path| {
            let name = name(path);
            name.starts_with(head) && name.ends_with(tail)
        })
        .cloned()
        .collect();
    if found.is_empty() {
        let place = root.display();
        let message = format!("{place}: there is no file {head}*{tail} here");
        return Err(Failure::usage(message));
    }
    found.sort_by_key(|path| (numbers(&name(path)), name(path)));
    Ok(found)
}

/// The numbers in a name.
fn numbers(name: &str) -> Vec<u128> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// The next line without its newline; `None` at the end. Its second part: whether it had one.
fn line(input: &mut Input) -> Result<Option<(Vec<u8>, bool)>> {
    let mut line = Vec::new();
    let limit = MAX_RECORD_BYTES as u64;
    if input.take(limit).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    let ended = line.last() == Some(&b'\n');
    if !ended && line.len() == MAX_RECORD_BYTES {
        let message = format!("a line is longer than {MAX_RECORD_BYTES} bytes");
        return Err(Failure::new(Exit::Corruption, message));
    }
    if ended {
        line.pop();
    }
    Ok(Some((line, ended)))
}

/// Calls `parse` with every line that is not blank. A last line that is not whole is torn.
fn lines(
    mut input: Input,
    give: &mut Give<'_>,
    parse: impl Fn(&[u8]) -> std::result::Result<Vec<Change>, String>,
) -> Result<End> {
    let (mut at, mut number) = (0, 0_u64);
    while let Some((line, ended)) = line(&mut input)? {
        number += 1;
        let read = line.len() as u64 + u64::from(ended);
        if line.trim_ascii().is_empty() {
            at += read;
            continue;
        }
        match parse(&line) {
            Ok(changes) => {
                for (i, change) in changes.into_iter().enumerate() {
                    // The line is read once, however many changes it has.
                    let read = if i == 0 { read } else { 0 };
                    give(Ok(Change { read, ..change }))?;
                }
            }
            Err(_) if !ended => return Ok(End::Torn(at)),
            Err(why) => {
                let message = format!("line {number}: {why}");
                give(Err(Failure::new(Exit::Corruption, message)))?;
            }
        }
        at += read;
    }
    Ok(End::Whole)
}

fn change(key: Vec<u8>, value: Option<Vec<u8>>) -> Change {
    let read = 0;
    Change { key, value, read }
}

/// `{"key":"a","value":"1"}`
fn table_lines(input: Input, give: &mut Give<'_>) -> Result<End> {
    lines(input, give, |line| {
        let json = parse_json(line)?;
        let text = |name: &str| {
            let members = json.as_object().into_iter().flatten();
            let mut found = members.filter(|(n, _)| n.eq_ignore_ascii_case(name));
            let text = found.next().and_then(|(_, value)| value.as_str());
            text.map(|text| text.as_bytes().to_vec())
                .ok_or_else(|| format!("there is no text {name}"))
        };
        Ok(vec![change(text("key")?, Some(text("value")?))])
    })
}

/// `key:value`
fn colon_lines(input: Input, give: &mut Give<'_>) -> Result<End> {
    lines(input, give, |line| {
        let at = line.iter().position(|&b| b == b':');
        let at = at.ok_or("no colon between key and value")?;
        Ok(vec![change(
            line[..at].to_vec(),
            Some(line[at + 1..].to_vec()),
        )])
    })
}

/// `{"op":"put","k":"a","v":"1"}`, `{"op":"del","k":"a"}`, or several of them under `recs`. A value
/// that is not text is kept as its JSON.
fn op_lines(input: Input, give: &mut Give<'_>) -> Result<End> {
    lines(input, give, |line| {
        let json = parse_json(line)?;
        match json.get("recs").and_then(Value::as_array) {
            Some(records) => records.iter().map(op).collect(),
            None => Ok(vec![op(&json)?]),
        }
    })
}

fn op(json: &Value) -> std::result::Result<Change, String> {
    let member = |short: &str, long: &str| json.get(short).or_else(|| json.get(long));
    let key = member("k", "key").and_then(Value::as_str);
    let key = key.ok_or("there is no text k")?.as_bytes().to_vec();
    let value = match json.get("op").and_then(Value::as_str) {
        Some("del" | "delete") => None,
        Some("put") => match member("v", "value") {
            Some(Value::String(text)) => Some(text.as_bytes().to_vec()),
            Some(other) => Some(other.to_string().into_bytes()),
            None => return Err("a put without v".into()),
        },
        _ => return Err("op is neither put nor del".into()),
    };
    Ok(change(key, value))
}

fn parse_json(line: &[u8]) -> std::result::Result<Value, String> {
    serde_json::from_slice(line).map_err(|e| crate::text::json_error(&e))
}

/// `1700000000;3;5;key;value` and a newline. The lengths rule, so keys and values hold any bytes.
fn semicolon_records(mut input: Input, give: &mut Give<'_>) -> Result<End> {
    let mut at = 0;
    loop {
        let mut head = 0;
        let mut field = || -> Result<Option<usize>> {
            let mut digits = Vec::new();
            head += input.by_ref().take(21).read_until(b';', &mut digits)? as u64;
            let number = digits.strip_suffix(b";").unwrap_or_default();
            let number = std::str::from_utf8(number).ok();
            Ok(number.and_then(|number| number.parse().ok()))
        };
        let (Some(_), Some(key), Some(value)) = (field()?, field()?, field()?) else {
            return Ok(if head == 0 { End::Whole } else { End::Torn(at) });
        };
        // Key, semicolon, value, newline.
        let len = key.checked_add(value).and_then(|n| n.checked_add(2));
        let Some(rest) = bytes(&mut input, len)? else {
            return Ok(End::Torn(at));
        };
        if rest.get(key) != Some(&b';') || rest.last() != Some(&b'\n') {
            return Ok(End::Torn(at));
        }
        let read = head + rest.len() as u64;
        at += read;
        let value = rest[key + 1..rest.len() - 1].to_vec();
        give(Ok(Change {
            key: rest[..key].to_vec(),
            value: (!value.is_empty()).then_some(value),
            read,
        }))?;
    }
}

/// So many bytes; `None` if there are fewer, or if nothing here is as long.
fn bytes(input: &mut Input, len: Option<usize>) -> Result<Option<Vec<u8>>> {
    let Some(len) = len.filter(|&len| len <= MAX_RECORD_BYTES) else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    // Grows as bytes arrive: a damaged length costs nothing.
    let read = input.take(len as u64).read_to_end(&mut bytes)?;
    Ok((read == len).then_some(bytes))
}

/// A length of four bytes; `None` at the end or if it is cut.
fn length(input: &mut Input) -> Result<Option<(usize, bool)>> {
    let mut four = Vec::new();
    let read = input.take(4).read_to_end(&mut four)?;
    Ok(match four.first_chunk() {
        Some(four) => Some((u32::from_le_bytes(*four) as usize, true)),
        None if read == 0 => None,
        None => Some((0, false)),
    })
}

/// Records of `query`.
fn blobs(mut input: Input, give: &mut Give<'_>) -> Result<End> {
    let mut at = 0;
    loop {
        let (len, whole) = match length(&mut input)? {
            None => return Ok(End::Whole),
            Some(found) => found,
        };
        let blob = bytes(&mut input, whole.then_some(len))?;
        let (Some(blob), Some((sum, true))) = (blob, length(&mut input)?) else {
            return Ok(End::Torn(at));
        };
        let Some(change) = blob_change(&blob).filter(|_| crc32c::crc32c(&blob) as usize == sum)
        else {
            return Ok(End::Torn(at));
        };
        let read = blob.len() as u64 + 8;
        at += read;
        give(Ok(Change { read, ..change }))?;
    }
}

fn blob_change(blob: &[u8]) -> Option<Change> {
    let (key, rest) = prefixed(blob)?;
    let (len, rest) = rest.split_first_chunk()?;
    let (&deleted, value) = rest.split_first()?;
    let whole = value.len() == u32::from_le_bytes(*len) as usize;
    whole.then(|| change(key.to_vec(), (deleted == 0).then(|| value.to_vec())))
}

fn prefixed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

/// The newest snapshot, then what the logs have beyond it.
fn v1_raw(paths: &[PathBuf], root: &Path, give: &mut Give<'_>) -> Result<()> {
    let snapshots = pick(paths, "snapshot.", ".dat", root).unwrap_or_default();
    let mut after = 0;
    if let Some(newest) = snapshots.last() {
        let name = newest.file_name().unwrap_or_default().to_string_lossy();
        let last = numbers(&name).get(1).copied().unwrap_or(0);
        after = u64::try_from(last).unwrap_or(u64::MAX);
        with(newest, snapshot, give)?;
    }
    // What is being compacted is older than what is being written.
    let mut logs = pick(paths, "", ".compacting", root).unwrap_or_default();
    logs.extend(pick(paths, "", ".log", root).unwrap_or_default());
    if logs.is_empty() && snapshots.is_empty() {
        let place = root.display();
        let message = format!(
            "{place}: there is neither snapshot.*.dat nor *.log here; the log of a cluster \
             (log.wal) cannot be read"
        );
        return Err(Failure::usage(message));
    }
    for path in &logs {
        let input = host::open_input(path)?;
        let name = path.display();
        let end = messages(input, &mut |message, read| {
            let Some(entry) = LogEntry::parse(message) else {
                return Ok(false);
            };
            if entry.id > after {
                let change = Change {
                    key: entry.key,
                    value: entry.value,
                    read,
                };
                give(Ok(change))?;
            }
            Ok(true)
        })?;
        if let End::Torn(at) = end {
            note(format_args!(
                "{name}: from byte {at} on there is no whole record; what is before it was read"
            ));
        }
    }
    Ok(())
}

/// `Entry{string key = 1; string value = 2}`
fn snapshot(input: Input, give: &mut Give<'_>) -> Result<End> {
    messages(input, &mut |message, read| {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        let good = protobuf(message, &mut |field, data| match (field, data) {
            (1, Data::Bytes(bytes)) => key = bytes.to_vec(),
            (2, Data::Bytes(bytes)) => value = bytes.to_vec(),
            _ => {}
        });
        if good {
            let value = Some(value);
            give(Ok(Change { key, value, read }))?;
        }
        Ok(good)
    })
}

/// Messages with a length before each; `each` says whether it was one.
fn messages(mut input: Input, each: &mut dyn FnMut(&[u8], u64) -> Result<bool>) -> Result<End> {
    let mut at = 0;
    loop {
        let (len, whole) = match length(&mut input)? {
            None => return Ok(End::Whole),
            Some(found) => found,
        };
        let Some(message) = bytes(&mut input, whole.then_some(len))? else {
            return Ok(End::Torn(at));
        };
        let read = message.len() as u64 + 4;
        if !each(&message, read)? {
            return Ok(End::Torn(at));
        }
        at += read;
    }
}

/// `LogEntry{uint64 id = 1; OpType op = 2; string key = 3; optional string value = 4}`, where `op`
/// is 1 for a delete and 2 for a put.
struct LogEntry {
    id: u64,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

impl LogEntry {
    fn parse(message: &[u8]) -> Option<Self> {
        let (mut id, mut op, mut key, mut value) = (0, 0, Vec::new(), Vec::new());
        let good = protobuf(message, &mut |field, data| match (field, data) {
            (1, Data::Number(number)) => id = number,
            (2, Data::Number(number)) => op = number,
            (3, Data::Bytes(bytes)) => key = bytes.to_vec(),
            (4, Data::Bytes(bytes)) => value = bytes.to_vec(),
            _ => {}
        });
        let value = match op {
            1 => None,
            2 => Some(value),
            _ => return None,
        };
        good.then_some(Self { id, key, value })
    }
}

/// The data of a protobuf field.
enum Data<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Gives every field of a message; `false` if it is none.
fn protobuf<'a>(mut rest: &'a [u8], each: &mut dyn FnMut(u64, Data<'a>)) -> bool {
    while !rest.is_empty() {
        let Some(tag) = varint(&mut rest) else {
            return false;
        };
        let skip = |len: usize, rest: &mut &'a [u8]| {
            let (head, tail) = rest.split_at_checked(len)?;
            *rest = tail;
            Some(head)
        };
        let taken = match tag & 7 {
            0 => varint(&mut rest).map(Data::Number),
            1 => skip(8, &mut rest).map(Data::Bytes),
            2 => varint(&mut rest)
                .and_then(|len| usize::try_from(len).ok())
                .and_then(|len| skip(len, &mut rest))
                .map(Data::Bytes),
            5 => skip(4, &mut rest).map(Data::Bytes),
            _ => None,
        };
        match taken {
            Some(data) => each(tag >> 3, data),
            None => return false,
        }
    }
    true
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "the tests write files")]
    use super::*;

    type Pair = (String, Option<String>);

    fn changes(system: System, files: &[(&str, &[u8])]) -> Result<Vec<Pair>> {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let mut all = Vec::new();
        read(system, dir.path(), &mut |change| {
            let change = change?;
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            all.push((text(change.key), change.value.map(text)));
            Ok(())
        })?;
        Ok(all)
    }

    fn pair(key: &str, value: &str) -> Pair {
        (key.into(), Some(value.into()))
    }

    fn gone(key: &str) -> Pair {
        (key.into(), None)
    }

    #[test]
    fn tables_and_logs_of_kv_json() {
        let table =
            b"{\"key\":\"a:b\",\"value\":\"1\\n2\"}\n{\"key\":\"a\",\"value\":\"<\"}\n{\"ke";
        let log = b"a:1\nb:2:3\n";
        let files: &[(&str, &[u8])] = &[("sstable.db", table), ("wal/wal_1.log", log)];
        let found = changes(System::KvJson, files).unwrap();
        assert_eq!(found, [pair("a:b", "1\n2"), pair("a", "<")]);
        let files: &[(&str, &[u8])] = &[("wal/wal_17.log", b"a:9\n"), ("wal/wal_1.log", log)];
        let found = changes(System::KvJson, files).unwrap();
        assert_eq!(found, [pair("a", "1"), pair("b", "2:3"), pair("a", "9")]);
        assert!(changes(System::KvJson, &[("x", b"")]).is_err());
        assert!(changes(System::KvJson, &[("sstable.db", b"nonsense\n{}\n")]).is_err());
    }

    #[test]
    fn lines_of_put_read_go_by_their_lengths() {
        let one = b"1700000000;3;5;a;b;v;\n;1\n1700000001;1;0;x;\n";
        let files: &[(&str, &[u8])] = &[
            (
                "1700000009.dat",
                b"1700000009;1;2;x;hi\n1700000010;1;9;y;cut",
            ),
            ("999999999.dat", one),
        ];
        let found = changes(System::PutRead, files).unwrap();
        assert_eq!(found, [pair("a;b", "v;\n;1"), gone("x"), pair("x", "hi")]);
    }

    fn message(fields: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (tag, data) in fields {
            out.push(*tag);
            if tag & 7 == 2 {
                out.push(u8::try_from(data.len()).unwrap());
            }
            out.extend_from_slice(data);
        }
        let len = u32::try_from(out.len()).unwrap();
        [len.to_le_bytes().to_vec(), out].concat()
    }

    #[test]
    fn snapshots_and_logs_of_v1_raw() {
        let put = |id: u8, key: &[u8], value: &[u8]| {
            message(&[(8, &[id]), (16, &[2]), (0x1a, key), (0x22, value)])
        };
        let del = |id: u8, key: &[u8]| message(&[(8, &[id]), (16, &[1]), (0x1a, key)]);
        let entry = |key: &[u8], value: &[u8]| message(&[(10, key), (18, value)]);
        let snapshot = [entry(b"a", b"1"), entry(b"b", b"2")].concat();
        let before = put(5, b"a", b"old");
        let compacting = put(6, b"c", b"3");
        let mut log = [put(7, b"a", b"4"), del(8, b"b")].concat();
        log.extend_from_slice(&put(9, b"torn", b"x")[..7]);
        let files: &[(&str, &[u8])] = &[
            ("snapshots/snapshot.1700000000000000001.5.dat", &snapshot),
            ("snapshots/snapshot.1600000000000000001.2.dat", &before),
            (
                "wal/kv.log.compacting",
                &[before.clone(), compacting].concat(),
            ),
            ("wal/kv.log", &log),
        ];
        let found = changes(System::V1Raw, files).unwrap();
        let expected = [
            pair("a", "1"),
            pair("b", "2"),
            pair("c", "3"),
            pair("a", "4"),
            gone("b"),
        ];
        assert_eq!(found, expected);
        assert!(changes(System::V1Raw, &[("log.wal", b"x")]).is_err());
    }

    fn record(key: &[u8], value: &[u8], deleted: bool) -> Vec<u8> {
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_le_bytes();
        let blob = [&len(key)[..], key, &len(value), &[u8::from(deleted)], value].concat();
        let sum = crc32c::crc32c(&blob).to_le_bytes();
        [&len(&blob)[..], &blob, &sum].concat()
    }

    #[test]
    fn segments_of_query_are_checked() {
        let first = [record(b"a", b"1", false), record(b"b", b"2", false)].concat();
        let mut second = [record(b"a", b"", true), record(b"c", b"3", false)].concat();
        let files: &[(&str, &[u8])] = &[("seg_10.dat", &second), ("seg_9.dat", &first)];
        let found = changes(System::Query, files).unwrap();
        let expected = [pair("a", "1"), pair("b", "2"), gone("a"), pair("c", "3")];
        assert_eq!(found, expected);
        // A flipped bit ends the file there.
        let last = second.len() - 6;
        second[last] ^= 1;
        let found = changes(System::Query, &[("seg_10.dat", &second)]).unwrap();
        assert_eq!(found, [gone("a")]);
    }

    #[test]
    fn logs_of_kv_verbs() {
        let log = b"{\"op\":\"put\",\"k\":\"a\",\"v\":\"1\",\"ts\":1}\n{\"op\":\"put\",\"k\":\"n\",\"v\":{\"x\":5}}\n\
{\"op\":\"del\",\"k\":\"a\",\"ts\":2}\n{\"recs\":[{\"op\":\"put\",\"k\":\"b\",\"v\":\"2\"},{\"op\":\"del\",\"k\":\"c\"}]}\n{\"op\":";
        let found = changes(System::KvVerbs, &[("wal/wal-1.wal", log)]).unwrap();
        let expected = [
            pair("a", "1"),
            pair("n", "{\"x\":5}"),
            gone("a"),
            pair("b", "2"),
            gone("c"),
        ];
        assert_eq!(found, expected);
        assert!(
            changes(
                System::KvVerbs,
                &[("wal-1.wal", b"{\"op\":\"x\",\"k\":\"a\"}\n")]
            )
            .is_err()
        );
    }

    #[test]
    fn files_cut_or_changed_anywhere_end() {
        let files = [
            (System::PutRead, "1.dat", b"1;1;2;a;hi\n2;1;0;a;\n".to_vec()),
            (System::Query, "seg_1.dat", record(b"key", b"value", false)),
            (
                System::V1Raw,
                "x.log",
                message(&[(8, &[1]), (16, &[2]), (0x1a, b"k")]),
            ),
            (
                System::KvVerbs,
                "wal-1.wal",
                b"{\"op\":\"put\",\"k\":\"a\",\"v\":\"1\"}\n".to_vec(),
            ),
            (
                System::KvJson,
                "sstable.db",
                b"{\"key\":\"a\",\"value\":\"1\"}\n".to_vec(),
            ),
        ];
        let dir = tempfile::tempdir().unwrap();
        for (system, name, bytes) in files {
            let path = dir.path().join(name);
            for at in 0..bytes.len() {
                for change in [0, 0x01, 0x80, 0xff] {
                    let mut copy = bytes.clone();
                    match change {
                        0 => copy.truncate(at),
                        bits => copy[at] ^= bits,
                    }
                    std::fs::write(&path, copy).unwrap();
                    let _ = read(system, &path, &mut |_| Ok(()));
                }
            }
        }
    }
}
