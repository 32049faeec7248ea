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

use firn_api::http::{EntryBody, StreamEnd, bytes_member};
use firn_engine::options::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

use crate::exit::{Exit, Failure, Result};
use crate::flags::{ImportArgs, Source};
use crate::output::note;
use crate::progress::Progress;
use crate::store::{Access, Batch, Expiry, Op, Store};
use crate::text::{count, escape, json_error};
use crate::{dump, foreign, host};

/// Longest line of input: a value in base64 and what is around it.
const MAX_LINE_BYTES: usize = MAX_VALUE_BYTES / 3 * 4 + (1 << 20);
/// Keys remembered to report duplicates; an import of more keys reports those among the first.
const MAX_REMEMBERED: usize = 4 << 20;
/// Operations in one batch, however small they are.
const MAX_BATCH_OPS: usize = 4096;

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
    let prefix = args.prefix.as_bytes();
    let mut importer = Importer::open(args)?;
    match (args.from, args.from.system()) {
        (Source::Dir, _) => importer.dir(&args.path, prefix, args.repeat)?,
        (_, Some(system)) => {
            foreign::read(system, &args.path, &mut |_, change| {
                importer.take(change.map(|change| Entry {
                    key: [prefix, &change.key].concat(),
                    deleted: change.value.is_none(),
                    value: change.value.unwrap_or_default(),
                    expires_at_ms: None,
                    read: change.read,
                }))
            })?;
        }
        (kind, None) => {
            let input = host::open_input(&args.path)?;
            let mut give = |entry: Result<Entry>| {
                let entry = entry.map(|entry| Entry {
                    key: [prefix, &entry.key].concat(),
                    ..entry
                });
                importer.take(entry)
            };
            match kind {
                Source::Deb822 => deb822(input, &args.key_field, &mut give)?,
                Source::Ndjson => ndjson(input, &mut give)?,
                Source::Dump => dumped(input, &mut give)?,
                _ => lines(input, &mut give)?,
            }
        }
    }
    importer.finish()
}

/// Gathers entries into batches and writes them.
struct Importer<'a> {
    args: &'a ImportArgs,
    store: Option<Store>,
    batch: Vec<Op>,
    batch_bytes: usize,
    progress: Progress,
    /// Bytes of input read.
    position: u64,
    /// Entries of the input met, skipped ones included.
    met: u64,
    /// Entries of the input that are stored (or skipped) for sure.
    done: u64,
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
        Ok(Self {
            args,
            store,
            batch: Vec::new(),
            batch_bytes: 0,
            progress: Progress::new("import", total),
            position: 0,
            met: 0,
            done: 0,
            bad: 0,
            duplicates: 0,
            first_duplicate: None,
            seen: HashSet::new(),
            hasher: RandomState::new(),
        })
    }

    /// Takes one entry, or what is wrong with it.
    fn take(&mut self, entry: Result<Entry>) -> Result<()> {
        self.met += 1;
        let entry = match entry.and_then(within_limits) {
            Ok(entry) => entry,
            Err(failure) if self.args.skip_bad => {
                self.bad += 1;
                failure.report();
                return Ok(());
            }
            Err(failure) => return self.stop(failure),
        };
        self.position += entry.read;
        if self.met <= self.args.skip {
            return Ok(());
        }
        let bytes = entry.key.len() + entry.value.len();
        if self.seen.len() < MAX_REMEMBERED && !self.seen.insert(self.hasher.hash_one(&entry.key)) {
            self.duplicates += 1;
            self.first_duplicate
                .get_or_insert_with(|| entry.key.clone());
        }
        if self.batch_bytes + bytes > self.args.batch_size || self.batch.len() >= MAX_BATCH_OPS {
            self.flush()?;
        }
        self.batch_bytes += bytes;
        let Entry {
            key,
            value,
            deleted,
            expires_at_ms,
            ..
        } = entry;
        self.batch.push(if deleted {
            Op::Delete { key }
        } else {
            Op::Put {
                key,
                value,
                expiry: expires_at_ms.map(Expiry::AtMs),
            }
        });
        self.progress.advance(1, bytes as u64, self.position);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let ops = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        if let Some(store) = &self.store
            && !ops.is_empty()
        {
            let batch = Batch {
                requires: Vec::new(),
                ops,
            };
            if let Err(failure) = store.write(batch, self.args.durability.durability) {
                return self.stop(failure);
            }
        }
        // The entry at hand is met, but in the next batch.
        self.done = self.met.saturating_sub(1);
        Ok(())
    }

    /// Ends early, and says how to go on.
    fn stop(&self, failure: Failure) -> Result<()> {
        self.progress.finish();
        note(format_args!(
            "{} entries are stored; to go on: --skip {}",
            count(self.done),
            self.done
        ));
        Err(failure)
    }

    fn finish(mut self) -> Result<()> {
        self.flush()?;
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
            host::walk(root, &mut |found| {
                let relative = found.path.strip_prefix(root).unwrap_or(&found.path);
                let key = [&prefix, relative.as_os_str().as_bytes()].concat();
                if found.len > MAX_VALUE_BYTES as u64 {
                    let message = format!("{}: larger than a value may be", found.path.display());
                    return self.take(Err(Failure::new(Exit::Refused, message)));
                }
                let value = host::read_input(&found.path, MAX_VALUE_BYTES);
                self.take(value.map(|value| Entry {
                    key,
                    read: found.len,
                    value,
                    deleted: false,
                    expires_at_ms: None,
                }))
            })?;
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
        let blank = line.trim_ascii().is_empty();
        if !blank {
            if stanza.is_empty() {
                first_line = number;
            }
            if key.is_none() {
                key = field_value(&line, field);
            }
            stanza.extend_from_slice(&line);
            if stanza.len() > MAX_LINE_BYTES {
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
        if line.trim_ascii().is_empty() {
            continue;
        }
        if ended {
            return Err(Failure::usage(format!(
                "line {number}: data after the trailer"
            )));
        }
        // An entry has no member `end`, so it is never taken for the trailer.
        if let Ok(trailer) = serde_json::from_slice::<StreamEnd>(&line)
            && trailer.end
        {
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
    fn lines_split_at_the_first_tab() {
        let all = entries(lines, b"a\tb\tc\n\t\nlast\tx").unwrap();
        assert_eq!(all[0], (b"a".to_vec(), b"b\tc".to_vec()));
        assert_eq!(all[1], (b"".to_vec(), b"".to_vec()));
        assert_eq!(all[2], (b"last".to_vec(), b"x".to_vec()));
        assert!(entries(lines, b"no tab\n").is_err());
    }
}
