//! `firn import`: many entries from a file, a directory or stdin.
//!
//! A source gives one entry after the other; entries gather in a batch until it is full and are
//! then written together. So memory is bounded by a batch and one entry, an import that was cut can
//! go on with `--skip`, and one that is repeated ends in the same state.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use firn_api::http::{EntryBody, StreamEnd, bytes_member};
use firn_engine::options::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

use crate::exit::{Exit, Failure, Result};
use crate::flags::{ImportArgs, Source};
use crate::output::note;
use crate::progress::Progress;
use crate::store::{Access, Batch, Expiry, Op, Store};
use crate::text::{count, escape, json_error};
use crate::{dump, foreign, host};

/// Longest line of input: six bytes for each of a key and of a value, as JSON has them at worst, and
/// what is around them.
const MAX_LINE_BYTES: usize = (MAX_KEY_BYTES + MAX_VALUE_BYTES) * 6 + 4096;
/// Longest stanza: one that could be a value, and what may be wrong with it.
const MAX_STANZA_BYTES: usize = MAX_VALUE_BYTES + (1 << 20);
/// Keys remembered to report duplicates; an import of more keys reports those among the first.
const MAX_REMEMBERED: usize = 4 << 20;
/// Operations in one batch, however small they are.
const MAX_BATCH_OPS: usize = 4096;
/// The field that is the key of a stanza, if none is named.
const KEY_FIELD: &str = "Package";

type Input = BufReader<Box<dyn Read>>;

/// One entry of the input. `read` is how many bytes of input it took.
struct Entry {
    key: Vec<u8>,
    value: Vec<u8>,
    /// The key was deleted: only logs of other systems say so.
    deleted: bool,
    expires_at_ms: Option<u64>,
    read: u64,
}

pub(crate) fn run(args: &ImportArgs) -> Result<()> {
    let of_directory = args.from == Source::Dir || args.from.system().is_some();
    let refused = if of_directory && args.path == Path::new("-") {
        "this kind needs a directory: name it after the kind"
    } else if args.repeat.is_some() && args.from != Source::Dir {
        "--repeat is for --format dir"
    } else if args.key_field.is_some() && args.from != Source::Deb822 {
        "--key is for --format deb822"
    } else {
        let mut importer = Importer::open(args)?;
        return match importer.feed() {
            Ok(()) => importer.finish(),
            Err(failure) => importer.stop(failure),
        };
    };
    Err(Failure::usage(refused))
}

/// How far an import is, for who ends it.
#[derive(Debug, Default)]
struct Reached {
    /// Entries stored by this import.
    stored: AtomicU64,
    /// Entries of the input that need not be read again: they are stored, left out or skipped.
    done: AtomicU64,
}

impl Reached {
    fn note(&self) {
        let done = self.done.load(Ordering::Acquire);
        note(format_args!(
            "{} entries are stored; to go on: --skip {done}",
            count(self.stored.load(Ordering::Acquire))
        ));
    }
}

/// Gathers entries into batches and writes them.
struct Importer<'a> {
    args: &'a ImportArgs,
    store: Option<Store>,
    /// Operations to be written, with the numbers of their entries in the input.
    batch: Vec<(u64, Op)>,
    batch_bytes: usize,
    progress: Progress,
    /// Bytes of input read.
    position: u64,
    /// Entries of the input that were taken: gathered, stored, left out or skipped.
    met: u64,
    reached: Arc<Reached>,
    /// A write failed: nothing more is written.
    failed: bool,
    bad: u64,
    duplicates: u64,
    first_duplicate: Option<Vec<u8>>,
    seen: HashSet<u64>,
    hasher: RandomState,
}

impl<'a> Importer<'a> {
    fn open(args: &'a ImportArgs) -> Result<Self> {
        let store = if args.dry_run {
            None
        } else {
            Some(Store::open(&args.store, Access::Create)?)
        };
        let total = (args.from != Source::Dir)
            .then(|| host::input_len(&args.path))
            .flatten();
        let progress = Progress::new("import", total);
        let reached = Arc::new(Reached::default());
        if store.is_some() {
            let (shown, reached) = (progress.shown(), Arc::clone(&reached));
            host::on_end(move || {
                shown.finish_and_clear();
                reached.note();
            })?;
        }
        Ok(Self {
            args,
            store,
            batch: Vec::new(),
            batch_bytes: 0,
            progress,
            position: 0,
            met: 0,
            reached,
            failed: false,
            bad: 0,
            duplicates: 0,
            first_duplicate: None,
            seen: HashSet::new(),
            hasher: RandomState::new(),
        })
    }

    /// Takes everything of the input.
    fn feed(&mut self) -> Result<()> {
        let args = self.args;
        let prefix = args.prefix.as_bytes();
        match (args.from, args.from.system()) {
            (Source::Dir, _) => self.dir(&args.path, prefix, args.repeat.unwrap_or(1)),
            (_, Some(system)) => foreign::read(system, &args.path, &mut |path, change| {
                let entry = change.map(|change| Entry {
                    key: [prefix, &change.key].concat(),
                    deleted: change.value.is_none(),
                    value: change.value.unwrap_or_default(),
                    expires_at_ms: None,
                    read: change.read,
                });
                self.take(Some(path), entry)
            }),
            (kind, None) => {
                let input = host::open_input(&args.path)?;
                let mut give = |entry: Result<Entry>| {
                    let entry = entry.map(|entry| Entry {
                        key: [prefix, &entry.key].concat(),
                        ..entry
                    });
                    self.take(None, entry)
                };
                match kind {
                    Source::Deb822 => {
                        let field = args.key_field.as_deref().unwrap_or(KEY_FIELD);
                        deb822(input, field, &mut give)
                    }
                    Source::Ndjson => ndjson(input, &mut give),
                    Source::Dump => dumped(input, &mut give),
                    _ => lines(input, &mut give),
                }
            }
        }
    }

    /// Takes one entry, or what is wrong with it, and the file that it is in if there are several.
    fn take(&mut self, path: Option<&Path>, entry: Result<Entry>) -> Result<()> {
        if self.met < self.args.skip {
            self.met += 1;
            self.position += entry.map_or(0, |entry| entry.read);
            self.reached.done.store(self.met, Ordering::Release);
            return Ok(());
        }
        let entry = match entry.and_then(within_limits) {
            Ok(entry) => entry,
            Err(failure) => {
                let failure = match path {
                    Some(path) => failure.advise_at_least(|| format!("in {}", path.display())),
                    None => failure,
                };
                return self.leave_out(failure);
            }
        };
        self.position += entry.read;
        let bytes = entry.key.len() + entry.value.len();
        if self.seen.len() < MAX_REMEMBERED && !self.seen.insert(self.hasher.hash_one(&entry.key)) {
            self.duplicates += 1;
            self.first_duplicate
                .get_or_insert_with(|| entry.key.clone());
        }
        if self.batch_bytes + bytes > self.args.batch_size || self.batch.len() >= MAX_BATCH_OPS {
            self.flush()?;
        }
        self.met += 1;
        self.batch_bytes += bytes;
        let Entry {
            key,
            value,
            deleted,
            expires_at_ms,
            ..
        } = entry;
        let op = if deleted {
            Op::Delete { key }
        } else {
            Op::Put {
                key,
                value,
                expiry: expires_at_ms.map(Expiry::AtMs),
            }
        };
        self.batch.push((self.met, op));
        self.progress.advance(1, bytes as u64, self.position);
        Ok(())
    }

    /// Goes on without an entry, if that is wanted.
    fn leave_out(&mut self, failure: Failure) -> Result<()> {
        if !self.args.skip_bad {
            return Err(failure);
        }
        self.met += 1;
        self.bad += 1;
        failure.report();
        Ok(())
    }

    /// Writes what is gathered. Afterwards everything that was taken is done.
    fn flush(&mut self) -> Result<()> {
        let (numbers, ops): (Vec<_>, Vec<_>) = std::mem::take(&mut self.batch).into_iter().unzip();
        self.batch_bytes = 0;
        let outcome = match numbers.is_empty() {
            true => Ok(()),
            false => self.write(numbers, ops),
        };
        if outcome.is_ok() {
            self.reached.done.store(self.met, Ordering::Release);
        }
        self.failed |= outcome.is_err();
        outcome
    }

    /// Writes operations at once; or one by one if they are too large together.
    fn write(&mut self, numbers: Vec<u64>, ops: Vec<Op>) -> Result<()> {
        let mut alone = ops;
        if alone.len() > 1 {
            // Only a server refuses batches of the size that they have here.
            let again = matches!(self.store, Some(Store::Remote(_))).then(|| alone.clone());
            match (self.write_at_once(alone), again) {
                (Ok(()), _) => return Ok(()),
                (Err(failure), Some(ops)) if failure.is_too_large() => alone = ops,
                (Err(failure), _) => return Err(failure),
            }
        }
        for (number, op) in numbers.into_iter().zip(alone) {
            let (Op::Put { key, .. } | Op::Delete { key } | Op::DeleteRange { start: key, .. }) =
                &op;
            let key = key.get(..64).unwrap_or(key).to_vec();
            if let Err(failure) = self.write_at_once(vec![op]) {
                let failure = failure.advise_at_least(|| format!("the key is {}", escape(&key)));
                if !failure.is_too_large() || !self.args.skip_bad {
                    return Err(failure);
                }
                failure.report();
                self.bad += 1;
                self.progress.entries = self.progress.entries.saturating_sub(1);
            }
            self.reached.done.store(number, Ordering::Release);
        }
        Ok(())
    }

    fn write_at_once(&self, ops: Vec<Op>) -> Result<()> {
        let number = ops.len() as u64;
        if let Some(store) = &self.store {
            let requires = Vec::new();
            store.write(Batch { requires, ops }, self.args.durability.durability)?;
            self.reached.stored.fetch_add(number, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Ends early: stores what was whole, and says how to go on.
    fn stop(mut self, mut failure: Failure) -> Result<()> {
        if !self.failed
            && let Err(second) = self.flush()
        {
            failure.report();
            failure = second;
        }
        self.progress.finish();
        match self.store {
            Some(store) => {
                self.reached.note();
                if let Err(second) = store.close() {
                    failure.report();
                    failure = second;
                }
            }
            None => note(format_args!(
                "it would stop after {} entries; nothing was stored",
                count(self.met)
            )),
        }
        Err(failure)
    }

    fn finish(mut self) -> Result<()> {
        if let Err(failure) = self.flush() {
            return self.stop(failure);
        }
        self.progress.finish();
        let verb = if self.args.dry_run {
            "would import"
        } else {
            "imported"
        };
        note(format_args!("{verb} {}", self.progress.rates()));
        if self.args.skip > 0 {
            note(format_args!(
                "{} entries skipped",
                count(self.args.skip.min(self.met))
            ));
        }
        if let Some(key) = &self.first_duplicate {
            let example = escape(key);
            let number = count(self.duplicates);
            note(format_args!(
                "{number} keys came again, the first is {example}: the last entry won"
            ));
        }
        if self.bad > 0 {
            note(format_args!("{} bad entries left out", count(self.bad)));
        }
        match self.store {
            Some(store) => store.close(),
            None => Ok(()),
        }
    }

    fn dir(&mut self, root: &Path, prefix: &[u8], repeat: u64) -> Result<()> {
        for turn in 0..repeat {
            let prefix = match repeat {
                1 => prefix.to_vec(),
                _ => [prefix, format!("{turn:04}/").as_bytes()].concat(),
            };
            let left = host::walk(root, &mut |found| {
                let relative = found.path.strip_prefix(root).unwrap_or(&found.path);
                let key = [&prefix, relative.as_os_str().as_bytes()].concat();
                if found.len > MAX_VALUE_BYTES as u64 {
                    let message = format!("{}: larger than a value may be", found.path.display());
                    return self.take(None, Err(Failure::new(Exit::Refused, message)));
                }
                let value = host::read_input(&found.path, MAX_VALUE_BYTES);
                let entry = value.map(|value| Entry {
                    key,
                    read: found.len,
                    value,
                    deleted: false,
                    expires_at_ms: None,
                });
                self.take(None, entry)
            })?;
            if turn == 0 {
                left.note();
            }
        }
        Ok(())
    }
}

/// What the store would refuse is told here, where the entry is known.
fn within_limits(entry: Entry) -> Result<Entry> {
    let refuse = |what: &str, len: usize, max: usize| {
        let key = escape(entry.key.get(..64).unwrap_or(&entry.key));
        let message = format!("{key}: limit {what} exceeded: at most {max}, got {len}");
        Err(Failure::new(Exit::Refused, message))
    };
    if entry.key.len() > MAX_KEY_BYTES {
        return refuse("key_bytes", entry.key.len(), MAX_KEY_BYTES);
    }
    if entry.value.len() > MAX_VALUE_BYTES {
        return refuse("value_bytes", entry.value.len(), MAX_VALUE_BYTES);
    }
    Ok(entry)
}

type Give<'a> = dyn FnMut(Result<Entry>) -> Result<()> + 'a;

/// The next line with its newline; empty at the end.
fn next_line(input: &mut Input, line: &mut Vec<u8>, number: &mut u64) -> Result<usize> {
    line.clear();
    let read = input
        .by_ref()
        .take(MAX_LINE_BYTES as u64)
        .read_until(b'\n', line)?;
    if read == MAX_LINE_BYTES {
        return Err(Failure::usage(format!(
            "line {}: longer than {MAX_LINE_BYTES} bytes",
            *number + 1
        )));
    }
    *number += 1;
    Ok(read)
}

/// Stanzas of `Field: value` lines with blank lines between. The value is the stanza as it is, its
/// last newline included, the blank line not.
fn deb822(mut input: Input, field: &str, give: &mut Give<'_>) -> Result<()> {
    let (mut line, mut number) = (Vec::new(), 0);
    let mut stanza = Vec::new();
    let mut key: Option<Vec<u8>> = None;
    let (mut first_line, mut blank_bytes) = (1, 0);
    loop {
        let read = next_line(&mut input, &mut line, &mut number)?;
        without_mark(&mut line, number);
        let blank = line.trim_ascii().is_empty();
        if !blank {
            if stanza.is_empty() {
                first_line = number;
            }
            if key.is_none() {
                key = field_value(&line, field);
            }
            stanza.extend_from_slice(&line);
            if stanza.len() > MAX_STANZA_BYTES {
                return Err(Failure::usage(format!(
                    "line {first_line}: a stanza without an end"
                )));
            }
            continue;
        }
        blank_bytes += read as u64;
        if !stanza.is_empty() {
            let value = std::mem::take(&mut stanza);
            let read = value.len() as u64 + std::mem::take(&mut blank_bytes);
            let entry = key.take().filter(|key| !key.is_empty());
            give(match entry {
                Some(key) => Ok(Entry {
                    key,
                    value,
                    deleted: false,
                    expires_at_ms: None,
                    read,
                }),
                None => Err(Failure::usage(format!(
                    "line {first_line}: a stanza without {field}"
                ))),
            })?;
        }
        if read == 0 {
            return Ok(());
        }
    }
}

/// Takes away the mark that some editors put before a text.
fn without_mark(line: &mut Vec<u8>, number: u64) {
    const MARK: &[u8] = b"\xef\xbb\xbf";
    if number == 1 && line.starts_with(MARK) {
        line.drain(..MARK.len());
    }
}

/// The value of the field `name` if this line has it; names do not mind upper and lower case.
fn field_value(line: &[u8], name: &str) -> Option<Vec<u8>> {
    let (head, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    head.eq_ignore_ascii_case(name.as_bytes())
        .then(|| value.trim_ascii().to_vec())
}

/// A JSON object a line; a trailer, if there is one, must agree.
fn ndjson(mut input: Input, give: &mut Give<'_>) -> Result<()> {
    let (mut line, mut number) = (Vec::new(), 0);
    let mut entries = 0;
    let mut ended = false;
    loop {
        let read = next_line(&mut input, &mut line, &mut number)?;
        if read == 0 {
            break;
        }
        without_mark(&mut line, number);
        if line.trim_ascii().is_empty() {
            continue;
        }
        if ended {
            return Err(Failure::usage(format!(
                "line {number}: data after the trailer"
            )));
        }
        if let Some(trailer) = trailer(&line) {
            if trailer.count != entries {
                let promised = trailer.count;
                let message =
                    format!("line {number}: {promised} entries promised, {entries} found");
                return Err(Failure::new(Exit::Corruption, message));
            }
            if trailer.next_cursor.is_some() {
                note(format_args!(
                    "the trailer says that there is more: this is only a part"
                ));
            }
            ended = true;
            continue;
        }
        entries += 1;
        let entry = json_entry(&line).map(|entry| Entry {
            read: read as u64,
            ..entry
        });
        give(entry.map_err(|detail| Failure::usage(format!("line {number}: {detail}"))))?;
    }
    if !ended {
        note(format_args!(
            "the input has no trailer: if it is an export, it may have been cut"
        ));
    }
    Ok(())
}

/// The trailer, if the line is one. An entry may have members of any name beside its own.
fn trailer(line: &[u8]) -> Option<StreamEnd> {
    let trailer: StreamEnd = serde_json::from_slice(line).ok()?;
    let entry: std::result::Result<EntryBody, _> = serde_json::from_slice(line);
    let keyed = entry.is_ok_and(|entry| entry.key.is_some() || entry.key_b64.is_some());
    (trailer.end && !keyed).then_some(trailer)
}

fn json_entry(line: &[u8]) -> std::result::Result<Entry, String> {
    let body: EntryBody = serde_json::from_slice(line).map_err(|e| json_error(&e))?;
    let key = bytes_member("key", body.key.as_deref(), body.key_b64.as_deref())?;
    let value = bytes_member("value", body.value.as_deref(), body.value_b64.as_deref())?;
    let (key, value) = (
        key.ok_or("key is missing")?,
        value.ok_or("value is missing")?,
    );
    Ok(Entry {
        key,
        value,
        deleted: false,
        expires_at_ms: body.expires_at_ms,
        read: 0,
    })
}

/// A dump: its checksums and its end are checked as it is read.
fn dumped(input: Input, give: &mut Give<'_>) -> Result<()> {
    let mut reader = dump::Reader::new(input)?;
    while let Some(dump::Entry {
        key,
        value,
        expires_at_ms,
    }) = reader.next()?
    {
        let read = (key.len() + value.len() + 20) as u64;
        give(Ok(Entry {
            key,
            value,
            deleted: false,
            expires_at_ms,
            read,
        }))?;
    }
    Ok(())
}

/// Key, tab, value; the value ends with the line and may hold tabs.
fn lines(mut input: Input, give: &mut Give<'_>) -> Result<()> {
    let (mut line, mut number) = (Vec::new(), 0);
    loop {
        let read = next_line(&mut input, &mut line, &mut number)? as u64;
        if read == 0 {
            return Ok(());
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let tab = text.iter().position(|&byte| byte == b'\t');
        give(match tab {
            Some(at) => {
                let (key, value) = (text[..at].to_vec(), text[at + 1..].to_vec());
                Ok(Entry {
                    key,
                    value,
                    deleted: false,
                    expires_at_ms: None,
                    read,
                })
            }
            None => Err(Failure::usage(format!(
                "line {number}: no tab between key and value"
            ))),
        })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(text: &[u8]) -> Input {
        BufReader::new(Box::new(std::io::Cursor::new(text.to_vec())))
    }

    type Parse = fn(Input, &mut Give<'_>) -> Result<()>;

    fn entries(parse: Parse, text: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut all = Vec::new();
        parse(input(text), &mut |entry| {
            entry.map(|entry| all.push((entry.key, entry.value)))
        })?;
        Ok(all)
    }

    fn packages(input: Input, give: &mut Give<'_>) -> Result<()> {
        deb822(input, "Package", give)
    }

    #[test]
    fn stanzas_are_kept_byte_for_byte() {
        let text = b"\n\nPackage: a\nX: 1\n more\n\n \nversion: 2\npackage:b\n\n\nPackage: c";
        let all = entries(packages, text).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(
            all[0],
            (b"a".to_vec(), b"Package: a\nX: 1\n more\n".to_vec())
        );
        assert_eq!(all[1], (b"b".to_vec(), b"version: 2\npackage:b\n".to_vec()));
        assert_eq!(all[2], (b"c".to_vec(), b"Package: c".to_vec()));
        assert!(entries(packages, b"").unwrap().is_empty());
        assert!(entries(packages, b"Packages: a\n").is_err());
        assert!(entries(packages, b"X: 1\n Package: folded\n").is_err());
        assert!(entries(packages, b"Package:\n").is_err());
    }

    #[test]
    fn trailers_are_checked() {
        let one = b"{\"key\":\"a\",\"value_b64\":\"/w==\",\"version\":3}\n";
        let with = |rest: &[u8]| entries(ndjson, &[&one[..], rest].concat());
        assert_eq!(with(b"").unwrap(), [(b"a".to_vec(), b"\xff".to_vec())]);
        assert_eq!(with(b"{\"end\":true,\"count\":1}\n").unwrap().len(), 1);
        assert!(with(b"{\"end\":true,\"count\":2}\n").is_err());
        assert!(with(b"{\"end\":true,\"count\":1}\n{\"key\":\"b\",\"value\":\"\"}\n").is_err());
        assert!(with(b"{\"key\":\"b\"}\n").is_err());
        assert!(with(b"nonsense\n").is_err());
    }

    #[test]
    fn an_entry_is_no_trailer() {
        let text = b"{\"key\":\"a\",\"value\":\"1\",\"end\":true,\"count\":7}\n{\"end\":true,\"count\":1}\n";
        let all = entries(ndjson, text).unwrap();
        assert_eq!(all, [(b"a".to_vec(), b"1".to_vec())]);
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        let text = b"\xef\xbb\xbf{\"key\":\"a\",\"value\":\"1\"}\n";
        assert_eq!(entries(ndjson, text).unwrap().len(), 1);
        let text = b"\xef\xbb\xbfPackage: a\n";
        assert_eq!(entries(packages, text).unwrap()[0].1, b"Package: a\n");
    }

    /// The worst line is one that has six bytes for each of the largest key and value.
    #[test]
    fn every_exported_line_is_read() {
        let mut line = Vec::new();
        let (key, value) = (vec![1; MAX_KEY_BYTES], vec![1; 1 << 20]);
        let most = Some(u64::MAX);
        crate::output::push_json(&mut line, &key, Some(&value), u64::MAX, most);
        assert!(line.len() > 6 * (key.len() + value.len()));
        assert!(line.len() + 6 * (MAX_VALUE_BYTES - value.len()) + 1 < MAX_LINE_BYTES);
        assert_eq!(entries(ndjson, &line).unwrap(), [(key, value)]);
    }

    #[test]
    fn lines_split_at_the_first_tab() {
        let all = entries(lines, b"a\tb\tc\n\t\nlast\tx").unwrap();
        assert_eq!(all[0], (b"a".to_vec(), b"b\tc".to_vec()));
        assert_eq!(all[1], (b"".to_vec(), b"".to_vec()));
        assert_eq!(all[2], (b"last".to_vec(), b"x".to_vec()));
        assert!(entries(lines, b"no tab\n").is_err());
    }
}
