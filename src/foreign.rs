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
//! change of a key wins.
//!
//! A file that ends in the middle of a record was being written when its system died: what is
//! before counts, and that it was so is told. Anything else that is no record is damage, and an
//! error; who leaves out what is bad gets what is behind it, from the next place where a record
//! begins beyond doubt (a checksum agrees, or every length and field does).

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use firn_api::json::{Json, Kind, Syntax, Utf8};
use firn_engine::options::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

use crate::exit::{Exit, Failure, Result};
use crate::host;
use crate::output::{complain, note};
use crate::text::count;

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

/// Longest binary record: the largest value, its key, and what is around them.
const MAX_RECORD_BYTES: usize = MAX_VALUE_BYTES + MAX_KEY_BYTES + 4096;
/// Longest line: the same with six bytes for each, as JSON has it at worst.
const MAX_LINE_BYTES: usize = MAX_RECORD_BYTES * 6;
/// Longest record that is looked for behind damage.
const MAX_SOUGHT_BYTES: usize = 64 << 20;

type Input = BufReader<Box<dyn Read>>;
/// Takes a change, or what is wrong at its place, and the file that it is in.
type Give<'a> = dyn FnMut(&Path, Result<Change>) -> Result<()> + 'a;

/// Gives every change in the files at `root`, a directory or one of its files.
pub(crate) fn read(system: System, root: &Path, give: &mut Give<'_>) -> Result<()> {
    let mut paths = Vec::new();
    if host::input_len(root).is_some() {
        paths.push(root.to_path_buf());
    } else {
        let left = host::walk(root, &mut |found| {
            paths.push(found.path);
            Ok(())
        })?;
        left.note();
    }
    match system {
        System::KvJson => kv_json(&paths, root, give),
        System::PutRead => pick(&paths, "", ".dat", root)?
            .iter()
            .try_for_each(|path| records(path, &semicolon_record, Some(b'\n'), give)),
        System::V1Raw => v1_raw(&paths, root, give),
        System::Query => pick(&paths, "seg_", ".dat", root)?
            .iter()
            .try_for_each(|path| records(path, &blob, None, give)),
        System::KvVerbs => pick(&paths, "wal-", ".wal", root)?
            .iter()
            .try_for_each(|path| lines(path, LastLine::MayLackNewline, &ops, give)),
    }
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

/// Tells of a file that ends inside of a record.
fn tell_torn(path: &Path, at: u64) {
    let name = path.display();
    complain(format_args!(
        "{name}: the last record, from byte {at} on, is not whole and was left out"
    ));
}

/// The next line without its newline; `None` at the end. Its second part: whether it had one.
fn line(input: &mut Input) -> Result<Option<(Vec<u8>, bool)>> {
    let mut line = Vec::new();
    let limit = MAX_LINE_BYTES as u64;
    if input.take(limit).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    let ended = line.last() == Some(&b'\n');
    if !ended && line.len() == MAX_LINE_BYTES {
        let message = format!("a line is longer than {MAX_LINE_BYTES} bytes");
        return Err(Failure::new(Exit::Corruption, message));
    }
    if ended {
        line.pop();
    }
    Ok(Some((line, ended)))
}

/// What a last line without a newline is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastLine {
    /// Whole, if it can be read.
    MayLackNewline,
    /// Torn: a part of such a line looks like a whole one.
    NeedsNewline,
}

type ParseLine<'a> = dyn Fn(&[u8]) -> std::result::Result<Vec<Change>, String> + 'a;

/// Gives what `parse` finds in every line that is not blank. A last line that is not whole is torn.
fn lines(path: &Path, last: LastLine, parse: &ParseLine<'_>, give: &mut Give<'_>) -> Result<()> {
    let mut input = host::open_input(path)?;
    let (mut at, mut number) = (0, 0_u64);
    let named = |failure: Failure| failure.advise(format!("in {}", path.display()));
    while let Some((line, ended)) = line(&mut input).map_err(named)? {
        number += 1;
        let read = line.len() as u64 + u64::from(ended);
        if line.trim_ascii().is_empty() {
            at += read;
            continue;
        }
        if !ended && last == LastLine::NeedsNewline {
            tell_torn(path, at);
            return Ok(());
        }
        match parse(&line) {
            Ok(changes) => {
                for (i, change) in changes.into_iter().enumerate() {
                    // The line is read once, however many changes it has.
                    let read = if i == 0 { read } else { 0 };
                    give(path, Ok(Change { read, ..change }))?;
                }
            }
            Err(_) if !ended => {
                tell_torn(path, at);
                return Ok(());
            }
            Err(why) => {
                let message = format!("line {number}: {why}");
                give(path, Err(Failure::new(Exit::Corruption, message)))?;
            }
        }
        at += read;
    }
    Ok(())
}

fn change(key: Vec<u8>, value: Option<Vec<u8>>) -> Change {
    let read = 0;
    Change { key, value, read }
}

/// The table; the log if there is no table or nothing in it.
fn kv_json(paths: &[PathBuf], root: &Path, give: &mut Give<'_>) -> Result<()> {
    let logs = pick(paths, "wal_", ".log", root);
    let mut found = false;
    if let Ok(tables) = pick(paths, "sstable", ".db", root) {
        for path in &tables {
            lines(
                path,
                LastLine::MayLackNewline,
                &table_line,
                &mut |path, change| {
                    found |= change.is_ok();
                    give(path, change)
                },
            )?;
        }
        let left = logs.as_ref().map_or(0, Vec::len);
        if left == 0 {
            return Ok(());
        }
        if found {
            // The log holds nothing that the table has not, and cannot hold every key.
            note(format_args!(
                "{} files wal_*.log are left aside: the table has what is in them",
                count(left as u64)
            ));
            return Ok(());
        }
        note(format_args!(
            "the table is empty: the files wal_*.log are read instead"
        ));
    }
    for path in &logs? {
        lines(path, LastLine::NeedsNewline, &colon_line, give)?;
    }
    Ok(())
}

/// `{"key":"a","value":"1"}`
fn table_line(line: &[u8]) -> std::result::Result<Vec<Change>, String> {
    let (mut key, mut value) = (None, None);
    let mut json = Json::new(line, Utf8::EachByte);
    json.object(&mut |json, name| {
        if name.eq_ignore_ascii_case("key") {
            key = json.string_or_kind()?.ok();
        } else if name.eq_ignore_ascii_case("value") {
            value = json.string_or_kind()?.ok();
        } else {
            json.skip()?;
        }
        Ok(())
    })
    .and_then(|()| json.end())
    .map_err(|syntax| syntax.to_string())?;
    let text = |found: Option<String>, name| {
        let found = found.ok_or_else(|| format!("there is no text {name}"));
        found.map(String::into_bytes)
    };
    Ok(vec![change(text(key, "key")?, Some(text(value, "value")?))])
}

/// `key:value`
fn colon_line(line: &[u8]) -> std::result::Result<Vec<Change>, String> {
    let at = line.iter().position(|&b| b == b':');
    let at = at.ok_or("no colon between key and value")?;
    let value = line[at + 1..].to_vec();
    Ok(vec![change(line[..at].to_vec(), Some(value))])
}

/// `{"op":"put","k":"a","v":"1"}`, `{"op":"del","k":"a"}`, or several of them under `recs`.
fn ops(line: &[u8]) -> std::result::Result<Vec<Change>, String> {
    let mut json = Json::new(line, Utf8::Longest);
    let (mut one, mut many) = (Op::default(), None);
    json.object(&mut |json, name| {
        if name != "recs" || json.kind()? != Kind::Array {
            return one.member(json, &name);
        }
        let mut list = Vec::new();
        json.array(&mut |json| {
            let mut op = Op::default();
            json.object(&mut |json, name| op.member(json, &name))?;
            list.push(op);
            Ok(())
        })?;
        many = Some(list);
        Ok(())
    })
    .and_then(|()| json.end())
    .map_err(|syntax| syntax.to_string())?;
    let all = many.unwrap_or_else(|| vec![one]);
    all.into_iter().map(Op::change).collect()
}

/// What a record of `kv-verbs` says. The short names come before the long ones.
#[derive(Debug, Default)]
struct Op {
    op: Option<String>,
    keys: [Option<std::result::Result<String, Kind>>; 2],
    values: [Option<Vec<u8>>; 2],
}

impl Op {
    fn member(&mut self, json: &mut Json<'_>, name: &str) -> std::result::Result<(), Syntax> {
        match name {
            "op" => self.op = json.string_or_kind()?.ok(),
            "k" => self.keys[0] = Some(json.string_or_kind()?),
            "key" => self.keys[1] = Some(json.string_or_kind()?),
            "v" => self.values[0] = Some(Self::value(json)?),
            "value" => self.values[1] = Some(Self::value(json)?),
            _ => json.skip()?,
        }
        Ok(())
    }

    /// A value that is not text is kept as its JSON, as it stands there.
    fn value(json: &mut Json<'_>) -> std::result::Result<Vec<u8>, Syntax> {
        if json.kind()? != Kind::String {
            return json.source().map(<[u8]>::to_vec);
        }
        // reason: the kind was asked, so the other arm never comes.
        Ok(json.string_or_kind()?.unwrap_or_default().into_bytes())
    }

    fn change(self) -> std::result::Result<Change, String> {
        let [short, long] = self.keys;
        let Some(Ok(key)) = short.or(long) else {
            return Err("there is no text k".into());
        };
        let [short, long] = self.values;
        let value = match self.op.as_deref() {
            Some("del" | "delete") => None,
            Some("put") => Some(short.or(long).ok_or("a put without v")?),
            _ => return Err("op is neither put nor del".into()),
        };
        Ok(change(key.into_bytes(), value))
    }
}

/// What there is at the beginning of some bytes.
#[derive(Debug)]
enum Found {
    /// A record of so many bytes; no change if it is to be passed over.
    Record(usize, Option<Change>),
    /// That is told only by so many bytes.
    More(usize),
    Nothing,
}

/// Reads a record. The second argument: it must be one beyond doubt, because nothing says that one
/// begins there.
type ParseRecord<'a> = dyn Fn(&[u8], bool) -> Found + 'a;

/// A part of a file in memory.
struct Window {
    input: Input,
    bytes: Vec<u8>,
    /// Bytes of it that are done.
    done: usize,
    /// Where in the file the rest begins.
    at: u64,
    ended: bool,
}

/// What is at the front of a window.
enum Front {
    Record(usize, Option<Change>),
    /// The file ends before the record does.
    Cut,
    Nothing,
}

impl Window {
    fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            input: host::open_input(path)?,
            bytes: Vec::new(),
            done: 0,
            at: 0,
            ended: false,
        })
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.done..]
    }

    /// Reads until there are so many bytes; whether there are.
    fn fill(&mut self, len: usize) -> Result<bool> {
        const LEAST: usize = 256 << 10;
        if self.rest().len() < len && !self.ended {
            self.bytes.drain(..self.done);
            self.done = 0;
            // By half as well, so that bytes are not moved too often.
            let have = self.bytes.len();
            let more = (len - have).max(LEAST).max(have / 2);
            // Grows as bytes arrive: a damaged length costs nothing.
            let input = self.input.by_ref();
            let read = input.take(more as u64).read_to_end(&mut self.bytes)?;
            self.ended = read < more;
        }
        Ok(self.rest().len() >= len)
    }

    fn pass(&mut self, len: usize) {
        self.done += len;
        self.at += len as u64;
    }

    /// What is `from` bytes behind the beginning of the rest.
    fn front(
        &mut self,
        from: usize,
        parse: &ParseRecord<'_>,
        most: usize,
        sure: bool,
    ) -> Result<Front> {
        loop {
            match parse(self.rest().get(from..).unwrap_or_default(), sure) {
                Found::Record(len, change) => return Ok(Front::Record(len, change)),
                Found::More(len) if len > most => return Ok(Front::Nothing),
                Found::More(len) => {
                    if !self.fill(from + len)? {
                        return Ok(Front::Cut);
                    }
                }
                Found::Nothing => return Ok(Front::Nothing),
            }
        }
    }

    /// Goes on to the next record, which begins after a byte `after`, if that is given. What was
    /// passed over: whether a record follows, and whether there was anything but zeros.
    fn seek(&mut self, parse: &ParseRecord<'_>, after: Option<u8>) -> Result<(bool, bool)> {
        let mut zeros = true;
        loop {
            let Some(&passed) = self.rest().first() else {
                return Ok((false, zeros));
            };
            zeros &= passed == 0;
            self.pass(1);
            self.fill(1)?;
            if after.is_some_and(|byte| byte != passed) {
                continue;
            }
            if let Front::Record(..) = self.front(0, parse, MAX_SOUGHT_BYTES, true)? {
                return Ok((true, zeros));
            }
        }
    }

    /// Where in the next `len` bytes a record begins that ends behind them.
    fn overlap(
        &mut self,
        len: usize,
        parse: &ParseRecord<'_>,
        after: Option<u8>,
    ) -> Result<Option<usize>> {
        for from in 1..len {
            if after.is_some_and(|byte| self.rest().get(from - 1) != Some(&byte)) {
                continue;
            }
            if let Front::Record(found, _) = self.front(from, parse, MAX_SOUGHT_BYTES, true)?
                && from + found > len
            {
                return Ok(Some(from));
            }
        }
        Ok(None)
    }
}

/// Gives the records of a file. One that its end cuts was being written when the system died. Any
/// other bytes that are no record are damage: an error, and what follows them.
///
/// A record is given when it is known what follows. Where no checksum tells, one that was cut and
/// written behind swallows the beginning of the next.
fn records(
    path: &Path,
    parse: &ParseRecord<'_>,
    after: Option<u8>,
    give: &mut Give<'_>,
) -> Result<()> {
    let name = path.display();
    let named = |failure: Failure| failure.advise(format!("in {name}"));
    let damaged = |from: u64, to: u64, rest: &str| {
        let message = format!("{name}: bytes {from} to {to}{rest} are damaged: no record is there");
        let advice = "--skip-bad leaves them out and goes on";
        Err(Failure::new(Exit::Corruption, message).advise(advice))
    };
    let pass_on = |window: &mut Window, held: (usize, Option<Change>), give: &mut Give<'_>| {
        let (len, change) = held;
        window.pass(len);
        let read = len as u64;
        match change {
            Some(change) => give(path, Ok(Change { read, ..change })),
            None => Ok(()),
        }
    };
    let mut window = Window::open(path)?;
    let mut held = None;
    loop {
        let len = held.as_ref().map_or(0, |(len, _)| *len);
        if !window.fill(len + 1).map_err(named)? {
            return held.map_or(Ok(()), |held| pass_on(&mut window, held, give));
        }
        let front = window.front(len, parse, MAX_RECORD_BYTES, false);
        let front = front.map_err(named)?;
        let torn = match &held {
            Some(_) if !matches!(front, Front::Record(..)) => {
                window.overlap(len, parse, after).map_err(named)?
            }
            _ => None,
        };
        let from = window.at;
        if let Some(torn) = torn {
            window.pass(torn);
            held = None;
            give(path, damaged(from, window.at, ""))?;
            continue;
        }
        if let Some(held) = held.take() {
            pass_on(&mut window, held, give)?;
        }
        let cut = match front {
            Front::Record(len, change) => {
                held = Some((len, change));
                continue;
            }
            Front::Cut => true,
            Front::Nothing => false,
        };
        let from = window.at;
        let (found, zeros) = window.seek(parse, after).map_err(named)?;
        // Zeros are what a file system leaves of a tail that was not written before the power went.
        if !found && (cut || zeros) {
            tell_torn(path, from);
            return Ok(());
        }
        let rest = if found { "" } else { ", its end," };
        give(path, damaged(from, window.at, rest))?;
    }
}

/// `1700000000;3;5;key;value` and a newline. The lengths rule, so keys and values hold any bytes. A
/// file that was copied as text may end its lines with a carriage return too.
fn semicolon_record(bytes: &[u8], _: bool) -> Found {
    const LONGEST: usize = 20;
    let mut at = 0;
    let mut numbers = [0; 3];
    for number in &mut numbers {
        let rest = &bytes[at..];
        let digits = rest.iter().take(LONGEST + 1);
        let digits = digits.take_while(|b| b.is_ascii_digit()).count();
        match rest.get(digits) {
            None if digits <= LONGEST => return Found::More(at + digits + 1),
            Some(b';') => {}
            _ => return Found::Nothing,
        }
        // reason: digits are text.
        let text = std::str::from_utf8(&rest[..digits]).unwrap_or_default();
        let Ok(parsed) = text.parse() else {
            return Found::Nothing;
        };
        *number = parsed;
        at += digits + 1;
    }
    let [_, key_len, value_len]: [usize; 3] = numbers;
    if key_len > MAX_RECORD_BYTES || value_len > MAX_RECORD_BYTES {
        return Found::Nothing;
    }
    let key_end = at + key_len;
    let end = key_end + 1 + value_len;
    match bytes.get(key_end) {
        Some(b';') | None => {}
        Some(_) => return Found::Nothing,
    }
    let ending = match (bytes.get(end), bytes.get(end + 1)) {
        (Some(b'\n'), _) => 1,
        (Some(b'\r'), Some(b'\n')) => 2,
        (Some(b'\r'), None) => return Found::More(end + 2),
        (None, _) => return Found::More(end + 1),
        _ => return Found::Nothing,
    };
    let value = bytes[key_end + 1..end].to_vec();
    let value = (!value.is_empty()).then_some(value);
    Found::Record(
        end + ending,
        Some(change(bytes[at..key_end].to_vec(), value)),
    )
}

/// The length that four bytes are.
fn length(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*four) as usize)
}

/// A record of `query`.
fn blob(bytes: &[u8], _: bool) -> Found {
    let Some(len) = length(bytes, 0) else {
        return Found::More(4);
    };
    let Some(key_len) = length(bytes, 4) else {
        return Found::More(8);
    };
    // Both lengths and the mark of a deletion.
    let fixed = 9;
    if len > MAX_RECORD_BYTES || key_len.saturating_add(fixed) > len {
        return Found::Nothing;
    }
    let key_end = 8 + key_len;
    let Some(value_len) = length(bytes, key_end) else {
        return Found::More(key_end + 4);
    };
    if key_len.saturating_add(value_len).saturating_add(fixed) != len {
        return Found::Nothing;
    }
    let (Some(sum), Some(blob)) = (length(bytes, 4 + len), bytes.get(4..4 + len)) else {
        return Found::More(len + 8);
    };
    if crc32c::crc32c(blob) as usize != sum {
        return Found::Nothing;
    }
    let deleted = bytes[key_end + 4] != 0;
    let value = (!deleted).then(|| bytes[key_end + 5..4 + len].to_vec());
    Found::Record(len + 8, Some(change(bytes[8..key_end].to_vec(), value)))
}

/// The newest snapshot, then what the logs have beyond it.
fn v1_raw(paths: &[PathBuf], root: &Path, give: &mut Give<'_>) -> Result<()> {
    let snapshots = pick(paths, "snapshot.", ".dat", root).unwrap_or_default();
    let mut after = 0;
    if let Some(newest) = snapshots.last() {
        let name = newest.file_name().unwrap_or_default().to_string_lossy();
        let last = numbers(&name).get(1).copied().unwrap_or(0);
        after = u64::try_from(last).unwrap_or(u64::MAX);
        records(newest, &snapshot_entry, None, give)?;
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
    let parse = |bytes: &[u8], sure| log_entry(bytes, sure, after);
    logs.iter()
        .try_for_each(|path| records(path, &parse, None, give))
}

/// An entry of a snapshot.
fn snapshot_entry(bytes: &[u8], sure: bool) -> Found {
    message(bytes, &|message| {
        let fields = [u64::MAX, u64::MAX, 1, 2];
        let Message { key, value, .. } = Message::parse(message, fields, sure)?;
        Some(Some(change(key.to_vec(), Some(value.to_vec()))))
    })
}

/// An entry of a log, passed over if the snapshot has it: those up to the one called `after`.
fn log_entry(bytes: &[u8], sure: bool, after: u64) -> Found {
    message(bytes, &|message| {
        let entry = Message::parse(message, [1, 2, 3, 4], sure)?;
        let value = match entry.op {
            1 => None,
            2 => Some(entry.value.to_vec()),
            _ => return None,
        };
        let new = entry.id > after;
        Some(new.then(|| change(entry.key.to_vec(), value)))
    })
}

/// A message with a length before it. One of no bytes is none: zeros would be full of them.
fn message(bytes: &[u8], parse: &dyn Fn(&[u8]) -> Option<Option<Change>>) -> Found {
    let len = match length(bytes, 0) {
        None => return Found::More(4),
        Some(0) => return Found::Nothing,
        Some(len) if len > MAX_RECORD_BYTES => return Found::Nothing,
        Some(len) => len,
    };
    let Some(message) = bytes.get(4..4 + len) else {
        return Found::More(4 + len);
    };
    match parse(message) {
        Some(change) => Found::Record(4 + len, change),
        None => Found::Nothing,
    }
}

/// `LogEntry{uint64 id = 1; OpType op = 2; string key = 3; optional string value = 4}`, where `op`
/// is 1 for a delete and 2 for a put; or `Entry{string key = 1; string value = 2}`.
#[derive(Debug, Default)]
struct Message<'a> {
    id: u64,
    op: u64,
    key: &'a [u8],
    value: &'a [u8],
}

impl<'a> Message<'a> {
    /// `fields` are the numbers of id, op, key and value. If it must be one for sure, it has each
    /// field once and no other, and a key.
    fn parse(message: &'a [u8], fields: [u64; 4], sure: bool) -> Option<Self> {
        let mut found = Self::default();
        let mut seen = [false; 4];
        let good = protobuf(message, &mut |field, data| {
            let known = fields.iter().position(|&number| number == field);
            match (known, data) {
                (Some(0), Data::Number(number)) => found.id = number,
                (Some(1), Data::Number(number)) => found.op = number,
                (Some(2), Data::Bytes(bytes)) => found.key = bytes,
                (Some(3), Data::Bytes(bytes)) => found.value = bytes,
                _ => return !sure,
            }
            let seen = known.and_then(|at| seen.get_mut(at));
            !seen.is_some_and(|seen| std::mem::replace(seen, true) && sure)
        });
        let keyed = !found.key.is_empty() && std::str::from_utf8(found.key).is_ok();
        (good && (keyed || !sure)).then_some(found)
    }
}

/// The data of a protobuf field.
enum Data<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Gives every field of a message; `false` if it is none, or `each` says so.
fn protobuf<'a>(mut rest: &'a [u8], each: &mut dyn FnMut(u64, Data<'a>) -> bool) -> bool {
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
        let good = taken.is_some_and(|data| each(tag >> 3, data));
        if !good {
            return false;
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
    use proptest::prelude::*;

    use super::*;

    type Pair = (String, Option<String>);

    fn changes(system: System, files: &[(&str, &[u8])]) -> Result<Vec<Pair>> {
        let (all, errors) = salvaged(system, files);
        match errors.into_iter().next() {
            None => Ok(all),
            Some(error) => Err(error),
        }
    }

    /// What comes in if bad entries are left out, and what was wrong with those.
    fn salvaged(system: System, files: &[(&str, &[u8])]) -> (Vec<Pair>, Vec<Failure>) {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let (mut all, mut errors) = (Vec::new(), Vec::new());
        let read = read(system, dir.path(), &mut |_, change| {
            match change {
                Ok(change) => {
                    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
                    all.push((text(change.key), change.value.map(text)));
                }
                Err(failure) => errors.push(failure),
            }
            Ok(())
        });
        errors.extend(read.err());
        (all, errors)
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
        // A flipped bit is an error, at the end of the file too.
        let last = second.len() - 6;
        second[last] ^= 1;
        let (found, errors) = salvaged(System::Query, &[("seg_10.dat", &second)]);
        assert_eq!((found, errors.len()), (vec![gone("a")], 1));
    }

    /// What is damaged in the middle is an error, and what follows is not lost.
    #[test]
    fn damage_in_the_middle_is_an_error() {
        let put =
            |id: u8, key: &[u8]| message(&[(8, &[id]), (16, &[2]), (0x1a, key), (0x22, b"value")]);
        let entry = |key: &[u8]| message(&[(10, key), (18, b"value")]);
        let line = |key: &str| format!("1700000000;{};5;{key};value\n", key.len()).into_bytes();
        let logs = [put(1, b"a"), put(2, b"b"), put(3, b"c")];
        let tables = [entry(b"a"), entry(b"b"), entry(b"c")];
        let lines = [line("a"), line("b"), line("c")];
        let blobs = ["a", "b", "c"].map(|key| record(key.as_bytes(), b"value", false));
        let whole = [pair("a", "value"), pair("b", "value"), pair("c", "value")];
        for (system, name, records) in [
            (System::V1Raw, "kv.log", logs),
            (System::V1Raw, "snapshot.1.0.dat", tables),
            (System::PutRead, "1.dat", lines),
            (System::Query, "seg_1.dat", blobs),
        ] {
            let [first, middle, last] = &records;
            assert_eq!(
                changes(system, &[(name, &records.concat())]).unwrap(),
                whole
            );
            // A record that a crash cut, and what the system wrote when it ran again.
            // Digits before digits make a number.
            let least = if system == System::PutRead { 11 } else { 1 };
            for len in least..middle.len() {
                let bytes = [first, &middle[..len], last].concat();
                let (found, errors) = salvaged(system, &[(name, &bytes)]);
                assert_eq!(errors.len(), 1, "{system:?} {len}");
                let exit = format!("{:?}", errors[0]);
                assert!(exit.contains("Corruption") && exit.contains(name), "{exit}");
                assert_eq!(found[0], whole[0], "{system:?} {len}");
                // A line that follows a cut one without a newline begins where none may.
                if system != System::PutRead {
                    assert_eq!(found.last(), whole.last(), "{system:?} {len}");
                }
            }
            // A length that leads beyond the end.
            let mut bytes = records.concat();
            let place = first.len() + if system == System::PutRead { 11 } else { 0 };
            bytes[place] = if system == System::PutRead {
                b'9'
            } else {
                0xff
            };
            let (found, errors) = salvaged(system, &[(name, &bytes)]);
            assert_eq!(errors.len(), 1, "{system:?}");
            assert_eq!(found, [whole[0].clone(), whole[2].clone()], "{system:?}");
            // A cut at the end is none, nor are zeros there.
            let cut = [first, &middle[..middle.len() - 1]].concat();
            assert_eq!(changes(system, &[(name, &cut)]).unwrap(), whole[..1]);
            let zeros = [first.clone(), vec![0; 300]].concat();
            assert_eq!(changes(system, &[(name, &zeros)]).unwrap(), whole[..1]);
            let garbage = [first.clone(), vec![0x5a; 300]].concat();
            assert_eq!(salvaged(system, &[(name, &garbage)]).1.len(), 1);
        }
    }

    #[test]
    fn lines_of_put_read_may_end_as_texts_do() {
        let file = b"1700000000;1;2;a;hi\r\n1700000001;1;3;b;hi\r\n1700000002;1;1;c;x\r\n";
        let found = changes(System::PutRead, &[("1.dat", file)]).unwrap();
        assert_eq!(found[0], pair("a", "hi"));
        assert_eq!(found[2], pair("c", "x"));
        // The length says that this one is of the value.
        assert_eq!(found[1], pair("b", "hi\r"));
    }

    #[test]
    fn lengths_of_put_read_may_be_any_number() {
        for less in 0..40 {
            let number = usize::MAX - less;
            for line in [format!("1;{number};0;a;\n"), format!("1;1;{number};a;\n")] {
                let found = semicolon_record(line.as_bytes(), true);
                assert!(matches!(found, Found::Nothing), "{line} {found:?}");
            }
        }
    }

    #[test]
    fn json_of_kv_verbs_is_taken_as_the_dialect_takes_it() {
        let deep = [vec![b'['; 190], vec![b']'; 190]].concat();
        let deep = String::from_utf8(deep).unwrap();
        let log = format!(
            "{{\"op\":\"put\",\"k\":\"a\",\"v\":\"\\ud83dx\"}}\n\
             {{\"op\":\"put\",\"k\":\"\\udc00\",\"v\": 1.0e400 }}\n\
             {{\"op\":\"put\",\"k\":\"o\",\"v\":{{\"b\":1, \"a\":12345678901234567890123}}}}\n\
             {{\"op\":\"put\",\"k\":\"d\",\"v\":{deep}}}\n"
        );
        let found = changes(System::KvVerbs, &[("wal-1.wal", log.as_bytes())]).unwrap();
        let expected = [
            pair("a", "\u{fffd}x"),
            pair("\u{fffd}", "1.0e400"),
            pair("o", "{\"b\":1, \"a\":12345678901234567890123}"),
            pair("d", &deep),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_torn_line_of_a_log_is_not_taken() {
        let found = changes(System::KvJson, &[("wal_1.log", b"a:1\nb:23")]).unwrap();
        assert_eq!(found, [pair("a", "1")]);
    }

    #[test]
    fn an_empty_table_gives_way_to_the_logs() {
        let files: &[(&str, &[u8])] = &[("sstable.db", b"\n"), ("wal/wal_1.log", b"a:1\n")];
        assert_eq!(changes(System::KvJson, files).unwrap(), [pair("a", "1")]);
        let empty = changes(System::KvJson, &[("sstable.db", b"")]).unwrap();
        assert_eq!(empty, []);
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

    /// Bytes that get further than random ones: small numbers, digits, what separates.
    fn likely_bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            0..12_u8,
            proptest::sample::select(&b"0123;\n\r\x10\x1a\x22"[..]),
            any::<u8>(),
        ];
        proptest::collection::vec(byte, 0..80)
    }

    proptest! {
        /// A record lies within its bytes, and more is asked for only beyond them: so every file ends.
        #[test]
        fn records_go_forward(bytes in likely_bytes(), sure: bool) {
            let log = |bytes: &[u8], sure| log_entry(bytes, sure, 1);
            let all: [&ParseRecord<'_>; 4] = [&semicolon_record, &blob, &snapshot_entry, &log];
            for parse in all {
                match parse(&bytes, sure) {
                    Found::Record(len, _) => prop_assert!((1..=bytes.len()).contains(&len)),
                    Found::More(len) => prop_assert!(len > bytes.len()),
                    Found::Nothing => {}
                }
            }
        }

        #[test]
        fn lines_of_json_end(bytes in likely_bytes()) {
            let _ = (ops(&bytes), table_line(&bytes), colon_line(&bytes));
        }
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
                    let _ = read(system, &path, &mut |_, _| Ok(()));
                }
            }
        }
    }
}
