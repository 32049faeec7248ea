//! Reads an SSTable that may be damaged: everything in it that can be read, and what is wrong.
//!
//! [`Parts::read`] reads what is not data and never fails for damage. With the index it knows where
//! the data blocks are. Without it, it finds them: blocks follow each other from the start of the
//! file, each ends in a checksum over its offset and bytes, so from a known start the end is where
//! the bytes up to there and the next four fit together. That is one CRC step a byte and finds all
//! blocks up to the first damaged one, and behind the data the filter, the range tombstones, the
//! index and the properties, which tell themselves apart by their form.
//!
//! [`Walk`] goes through the entries block by block, past the block cache, and checks all that can
//! be checked: checksums, the order of keys, that separators separate, that the filter knows every
//! key, that the properties count right. A block that cannot be read is reported with the keys that
//! may have been in it, and stepped over; so is an entry that is out of order. What is handed out is
//! in order and of a known kind.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use firn_io::checksum::{crc32c, crc32c_append, mask};
use firn_io::fs::{Advice, File};

use crate::error::{Error, Result};
use crate::key::{FileId, Kind, SeqNo, Trailer};
use crate::options::MAX_KEY_BYTES;
use crate::range_del::RangeTombstones;
use crate::sstable::block::{BlockBuf, Entry, MAX_BLOCK_BYTES};
use crate::sstable::filter::{Filter, key_hash};
use crate::sstable::footer::{Footer, Handle};
use crate::sstable::index::Index;
use crate::sstable::properties::{KINDS, Properties};
use crate::sstable::reader::{bad, decode_range_tombstones, read_exact, read_footer, read_meta};
use crate::sstable::stored::{self, ENVELOPE_BYTES};

/// Bytes of data blocks read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// What an SSTable consists of, as far as it can be read.
pub(crate) struct Parts {
    pub(crate) file: Arc<dyn File>,
    pub(crate) id: FileId,
    pub(crate) file_bytes: u64,
    pub(crate) footer: Option<Footer>,
    pub(crate) index: Option<Index>,
    pub(crate) filter: Option<Filter>,
    /// `None` if there may have been some and they cannot be read.
    pub(crate) range_tombstones: Option<Arc<RangeTombstones>>,
    pub(crate) properties: Option<Properties>,
    /// Offset and stored length of every data block that was found.
    pub(crate) blocks: Vec<(u64, usize)>,
    /// What is wrong, in the order in which it was found.
    pub(crate) damage: Vec<Error>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parts({}, {} blocks)", self.id, self.blocks.len())
    }
}

impl Parts {
    /// Reads what is not data. Errors: the disk refuses to tell the length of the file.
    pub(crate) fn read(file: Arc<dyn File>, id: FileId) -> Result<Self> {
        let file_bytes = file.len()?;
        file.advise(0, 0, Advice::Sequential);
        let mut parts = Self {
            file,
            id,
            file_bytes,
            footer: None,
            index: None,
            filter: None,
            range_tombstones: None,
            properties: None,
            blocks: Vec::new(),
            damage: Vec::new(),
        };
        match read_footer(&*parts.file, file_bytes) {
            Ok(footer) => parts.follow(footer),
            Err(error) => {
                parts.damage.push(error);
                let end = parts.find_blocks(file_bytes);
                parts.find_meta(end, file_bytes);
            }
        }
        Ok(parts)
    }

    /// Reads the parts that the footer names.
    fn follow(&mut self, footer: Footer) {
        self.footer = Some(footer);
        self.properties = self.part(footer.properties, Properties::decode);
        let data_bytes = footer.data_bytes();
        self.index = self.part(footer.index, |bytes| Index::decode(bytes, data_bytes));
        if let Some(handle) = footer.filter {
            self.filter = self.part(handle, Filter::decode);
        }
        self.range_tombstones = match footer.range_tombstones {
            Some(handle) => self
                .part(handle, decode_range_tombstones)
                .map(|list| Arc::new(RangeTombstones::from_unfragmented(list))),
            None => Some(Arc::default()),
        };
        match &self.index {
            Some(index) => self.blocks = (0..index.len()).map(|i| index.block(i)).collect(),
            None => {
                self.find_blocks(data_bytes);
            }
        }
        if let Some(detail) = self.contradiction(&footer) {
            self.damage
                .push(self.damaged(footer.properties.offset, detail));
        }
    }

    fn contradiction(&self, footer: &Footer) -> Option<&'static str> {
        let properties = self.properties.as_ref()?;
        let index = self.index.as_ref()?;
        let wrong = properties.block_count != index.len() as u64
            || properties.keys.is_some() != (index.len() > 0)
            || properties.data_bytes != footer.data_bytes()
            || (footer.range_tombstones.is_none() && properties.range_tombstone_count > 0);
        wrong.then_some("the properties do not fit the other blocks")
    }

    fn part<T>(
        &mut self,
        handle: Handle,
        decode: impl FnOnce(&[u8]) -> std::result::Result<T, &'static str>,
    ) -> Option<T> {
        let read = read_meta(&*self.file, handle)
            .and_then(|bytes| decode(&bytes).map_err(|detail| self.damaged(handle.offset, detail)));
        match read {
            Ok(part) => Some(part),
            Err(error) => {
                self.damage.push(error);
                None
            }
        }
    }

    pub(crate) fn damaged(&self, offset: u64, detail: impl Into<String>) -> Error {
        Error::corruption(self.file.path(), offset, detail)
    }

    /// Finds data blocks without an index; returns where they end, or where the first thing that is
    /// no data block starts.
    fn find_blocks(&mut self, end: u64) -> u64 {
        let mut offset = 0;
        while offset < end {
            match find_block(&*self.file, offset, end, |bytes| {
                is_data_block(bytes, offset)
            }) {
                Some(len) => {
                    self.blocks.push((offset, len));
                    offset += len as u64;
                }
                None => break,
            }
        }
        offset
    }

    /// Finds the parts that follow the data, without a footer.
    fn find_meta(&mut self, mut offset: u64, end: u64) {
        let data_bytes = offset;
        while let Some(len) = find_block(&*self.file, offset, end, |_| true) {
            let handle = Handle {
                offset,
                len: len as u64,
            };
            offset += len as u64;
            let Ok(bytes) = read_meta(&*self.file, handle) else {
                break;
            };
            // In the order in which they are written; the last accepts the most.
            if let Ok(filter) = Filter::decode(&bytes) {
                self.filter = Some(filter);
            } else if let Ok(index) = Index::decode(&bytes, data_bytes)
                && index.len() == self.blocks.len()
            {
                self.index = Some(index);
            } else if self.index.is_none()
                && let Ok(list) = decode_range_tombstones(&bytes)
            {
                self.range_tombstones = Some(Arc::new(RangeTombstones::from_unfragmented(list)));
            } else if let Ok(properties) = Properties::decode(&bytes) {
                if properties.range_tombstone_count == 0 {
                    self.range_tombstones.get_or_insert_default();
                }
                self.properties = Some(properties);
                break;
            }
        }
    }

    /// The keys that may have been in block `i`: the first (`None`: that of the file) and the last; `None` without
    /// an index.
    pub(crate) fn bounds_of_block(&self, i: usize) -> Option<(Option<Vec<u8>>, Vec<u8>)> {
        let index = self.index.as_ref()?;
        let before = i.checked_sub(1).map(|before| index.separator(before));
        Some((before, index.separator(i)))
    }

    /// The same for people.
    fn keys_of_block(&self, i: usize) -> String {
        match self.bounds_of_block(i) {
            None => "keys unknown".into(),
            Some((Some(first), last)) => {
                format!("keys from {} to {}", show_key(&first), show_key(&last))
            }
            Some((None, last)) => format!("keys up to {}", show_key(&last)),
        }
    }
}

/// A key for people, cut where it is long.
pub(crate) fn show_key(key: &[u8]) -> String {
    const SHOWN: usize = 64;
    if key.len() <= SHOWN {
        return format!("\"{}\"", key.escape_ascii());
    }
    format!(
        "\"{}...\" ({} bytes)",
        key[..SHOWN].escape_ascii(),
        key.len()
    )
}

fn is_data_block(bytes: &[u8], offset: u64) -> bool {
    stored::open(bytes, offset)
        .and_then(|(payload, compression)| BlockBuf::default().unpack(payload, compression))
        .is_ok()
}

/// The length of the stored block that starts at `offset` and ends at or before `end`, by its
/// checksum alone. `accept` sees its bytes; by chance, once in four billion, a prefix of a block fits
/// its checksum.
fn find_block(
    file: &dyn File,
    offset: u64,
    end: u64,
    mut accept: impl FnMut(&[u8]) -> bool,
) -> Option<usize> {
    const WINDOW: usize = 64 << 10;
    let most = usize::try_from(end.checked_sub(offset)?).unwrap_or(usize::MAX);
    let most = most.min(MAX_BLOCK_BYTES + ENVELOPE_BYTES + 4);
    let mut bytes = Vec::new();
    let mut crc = crc32c(&offset.to_le_bytes());
    let mut at = 0;
    loop {
        // `at` bytes are in the checksum; the four behind them are to be compared.
        while at + 4 <= bytes.len() {
            let stored = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
            if at > 0
                && stored.map(u32::from_le_bytes) == Some(mask(crc))
                && accept(&bytes[..at + 4])
            {
                return Some(at + 4);
            }
            crc = crc32c_append(crc, &bytes[at..=at]);
            at += 1;
        }
        let have = bytes.len();
        let want = most.min(have + WINDOW.max(have));
        if want <= have {
            return None;
        }
        bytes.resize(want, 0);
        read_exact(file, &mut bytes[have..], offset + have as u64).ok()?;
    }
}

/// See the module's page.
pub(crate) struct Walk {
    parts: Parts,
    next_block: usize,
    /// Stored bytes of some blocks, and where they start.
    chunk: Vec<u8>,
    chunk_offset: u64,
    block: BlockBuf,
    block_offset: u64,
    next_entry: usize,
    entry: Entry,
    key: Vec<u8>,
    started: bool,
    /// The block before the present one was not read.
    gap: bool,
    /// The blocks that could not be read, so far.
    unread: Vec<usize>,
    /// Something was left out: the properties cannot be compared.
    incomplete: bool,
    counted: Properties,
    seqnos: Option<(SeqNo, SeqNo)>,
    first_key: Vec<u8>,
    room: Vec<u8>,
    bytes: u64,
    ended: bool,
}

impl fmt::Debug for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Walk({:?}, block {})", self.parts, self.next_block)
    }
}

impl Walk {
    /// A walk from the first entry on. What [`Parts::damage`] says is not said again.
    pub(crate) fn new(parts: Parts) -> Self {
        let data_end = parts
            .blocks
            .last()
            .map_or(0, |&(offset, len)| offset + len as u64);
        Self {
            next_block: 0,
            chunk: Vec::new(),
            chunk_offset: 0,
            block: BlockBuf::default(),
            block_offset: 0,
            next_entry: 0,
            entry: Entry::default(),
            key: Vec::new(),
            started: false,
            gap: false,
            unread: Vec::new(),
            incomplete: false,
            counted: Properties::default(),
            seqnos: None,
            first_key: Vec::new(),
            room: Vec::new(),
            bytes: parts.file_bytes.saturating_sub(data_end),
            ended: false,
            parts,
        }
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Bytes of the file that were read.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    pub(crate) fn trailer(&self) -> Trailer {
        Trailer(self.entry.trailer)
    }

    pub(crate) fn value(&self) -> &[u8] {
        self.block.view().value(&self.entry)
    }

    /// The offset of the block that the entry is in.
    pub(crate) fn offset(&self) -> u64 {
        self.block_offset
    }

    /// The number of that block.
    pub(crate) fn number(&self) -> u64 {
        self.next_block.saturating_sub(1) as u64
    }

    /// The numbers of the blocks that could not be read, so far.
    pub(crate) fn unread(&self) -> &[usize] {
        &self.unread
    }

    /// Entries handed out.
    pub(crate) fn entries(&self) -> u64 {
        self.counted.entry_count()
    }

    /// Data blocks read.
    pub(crate) fn blocks(&self) -> u64 {
        self.counted.block_count
    }

    /// To the next entry; `false` at the end. `damage` is told what is left out on the way.
    pub(crate) fn next(&mut self, damage: &mut dyn FnMut(Error)) -> bool {
        loop {
            while self.next_entry < self.block.view().count() {
                let i = self.next_entry;
                self.next_entry += 1;
                match self.stand(i) {
                    Ok(()) => return true,
                    Err(detail) => {
                        self.incomplete = true;
                        damage(self.parts.damaged(self.block_offset, detail));
                    }
                }
            }
            if let Some(detail) = self.check_separator() {
                damage(self.parts.damaged(self.block_offset, detail));
            }
            if self.next_block == self.parts.blocks.len() {
                self.block.clear();
                if !std::mem::replace(&mut self.ended, true)
                    && let Some(error) = self.check_counts()
                {
                    damage(error);
                }
                return false;
            }
            let no = self.next_block;
            self.next_block += 1;
            self.block_offset = self.parts.blocks[no].0;
            self.next_entry = 0;
            match self.load(no) {
                Ok(()) => self.counted.block_count += 1,
                Err(error) => {
                    self.block.clear();
                    self.gap = true;
                    self.incomplete = true;
                    self.unread.push(no);
                    damage(with_keys(error, &self.parts.keys_of_block(no)));
                }
            }
        }
    }

    /// Reads block `no` into `self.block`.
    fn load(&mut self, no: usize) -> Result<()> {
        self.block.clear();
        let (offset, len) = self.parts.blocks[no];
        self.bytes += len as u64;
        let end = self.chunk_offset + self.chunk.len() as u64;
        if offset < self.chunk_offset || offset + len as u64 > end {
            let mut want = len;
            let following = self.parts.blocks.get(no + 1..).unwrap_or_default();
            for &(_, more) in following {
                if want + more > CHUNK_BYTES {
                    break;
                }
                want += more;
            }
            self.read(offset, want)
                .or_else(|_| self.read(offset, len))?;
        }
        let from = (offset - self.chunk_offset) as usize;
        let file = &*self.parts.file;
        stored::open(&self.chunk[from..from + len], offset)
            .and_then(|(payload, compression)| self.block.unpack(payload, compression))
            .map_err(|why| bad(file, offset, why))
    }

    fn read(&mut self, offset: u64, len: usize) -> Result<()> {
        self.chunk.clear();
        self.chunk.resize(len, 0);
        self.chunk_offset = offset;
        let result = read_exact(&*self.parts.file, &mut self.chunk, offset);
        if result.is_err() {
            self.chunk.clear();
        }
        result
    }

    /// Stands on entry `i` of the block, if it is one that may be there.
    fn stand(&mut self, i: usize) -> std::result::Result<(), &'static str> {
        let entry = self.block.view().entry(i);
        let mut key = std::mem::take(&mut self.room);
        self.block.view().key_into(i, &entry, &mut key);
        let result = self.check(i, &entry, &key);
        self.room = key;
        let (kind, new_key) = result?;
        if new_key {
            std::mem::swap(&mut self.key, &mut self.room);
            self.counted.key_count += 1;
        }
        if !self.started {
            self.started = true;
            self.first_key.extend_from_slice(&self.key);
        }
        self.entry = entry;
        self.gap = false;
        let seqno = Trailer(entry.trailer).seqno();
        let (least, greatest) = self.seqnos.unwrap_or((seqno, seqno));
        self.seqnos = Some((least.min(seqno), greatest.max(seqno)));
        self.counted.kinds[(kind as usize).min(KINDS - 1)] += 1;
        self.counted.raw_key_bytes += self.key.len() as u64;
        self.counted.raw_value_bytes += (entry.end - entry.value) as u64;
        Ok(())
    }

    fn check(
        &self,
        i: usize,
        entry: &Entry,
        key: &[u8],
    ) -> std::result::Result<(Kind, bool), &'static str> {
        let kind = match Trailer(entry.trailer).kind() {
            Some(Kind::RangeDelete) | None => return Err("an entry is of no known kind"),
            Some(kind) => kind,
        };
        let new_key = !self.started
            || match self.key[..].cmp(key) {
                Ordering::Less => true,
                // Not the trailers: the kind takes no part in the order, and a read that asks for
                // this sequence number finds only one of two entries that have it.
                Ordering::Equal
                    if Trailer(self.entry.trailer).seqno() > Trailer(entry.trailer).seqno() =>
                {
                    false
                }
                _ => return Err("the entries are not in order"),
            };
        if key.len() > MAX_KEY_BYTES {
            return Err("a key is longer than any may be");
        }
        if i == 0
            && let Some(before) = self.next_block.checked_sub(2)
            && let Some(index) = &self.parts.index
        {
            let separator = index.separator(before);
            if separator[..] > *key || (separator == key && new_key && !self.gap) {
                return Err("a block starts before the separator before it");
            }
        }
        if new_key
            && self
                .parts
                .filter
                .as_ref()
                .is_some_and(|f| !f.may_contain(key_hash(key)))
        {
            return Err("the filter does not know a key");
        }
        Ok((kind, new_key))
    }

    /// Whether the block that ends now ends after its separator.
    fn check_separator(&self) -> Option<&'static str> {
        let index = self
            .parts
            .index
            .as_ref()
            .filter(|_| !self.block.image().is_empty())?;
        let no = self.next_block.checked_sub(1)?;
        (self.key > index.separator(no)).then_some("a block ends after its separator")
    }

    /// Compares what was read with what the properties say.
    fn check_counts(&mut self) -> Option<Error> {
        if self.incomplete {
            return None;
        }
        let said = self.parts.properties.as_ref()?;
        let tombstones = self.parts.range_tombstones.as_ref()?;
        for tombstone in tombstones.iter_raw() {
            let seqno = tombstone.seqno;
            let (least, greatest) = self.seqnos.unwrap_or((seqno, seqno));
            self.seqnos = Some((least.min(seqno), greatest.max(seqno)));
        }
        let counted = &self.counted;
        let keys_fit = match &said.keys {
            Some((first, last)) => self.started && *first == self.first_key && *last == self.key,
            None => !self.started,
        };
        let fits = keys_fit
            && self.seqnos == said.seqnos
            && (counted.kinds, counted.key_count) == (said.kinds, said.key_count)
            && counted.raw_key_bytes == said.raw_key_bytes
            && counted.raw_value_bytes == said.raw_value_bytes
            && counted.block_count == said.block_count;
        let offset = self
            .parts
            .footer
            .map_or(0, |footer| footer.properties.offset);
        (!fits).then(|| {
            self.parts
                .damaged(offset, "the properties do not fit the entries")
        })
    }
}

/// The same error, which also says which keys are concerned.
fn with_keys(error: Error, keys: &str) -> Error {
    match error {
        Error::Corruption {
            path,
            offset,
            detail,
        } => Error::Corruption {
            path,
            offset,
            detail: format!("{detail} ({keys})"),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Compression;
    use crate::range_del::RangeTombstone;
    use crate::sstable::tests::file_of;
    use crate::sstable::{TableOptions, TableWriter};

    type Item = (Vec<u8>, Trailer, Vec<u8>);

    /// A table of many small blocks with everything that a table can have.
    fn table() -> (Vec<u8>, Vec<Item>) {
        let file = file_of(Vec::new());
        let options = TableOptions {
            block_bytes: 128,
            restart_interval: 4,
            filter_bits_per_key: 10,
            compression: Compression::Lz4,
        };
        let mut writer = TableWriter::new(file.clone(), options).unwrap();
        let mut items = Vec::new();
        for number in 0..120_u64 {
            let key = format!("key{:03}", number / 2).into_bytes();
            let kind = if number % 7 == 0 {
                Kind::Delete
            } else {
                Kind::Put
            };
            let trailer = Trailer::new(SeqNo(1000 - number), kind);
            let value = match kind {
                Kind::Delete => Vec::new(),
                _ => vec![number as u8; number as usize % 30],
            };
            writer.add(&key, trailer, &value).unwrap();
            items.push((key, trailer, value));
        }
        for (start, end) in [("a", "b"), ("key010", "key020")] {
            let (start, end) = (start.into(), end.into());
            let seqno = SeqNo(5);
            writer
                .add_range_tombstone(RangeTombstone { start, end, seqno })
                .unwrap();
        }
        writer.finish().unwrap();
        let bytes = file.0.lock().unwrap().clone();
        (bytes, items)
    }

    struct Read {
        items: Vec<Item>,
        problems: usize,
        tombstones: Option<usize>,
        data_bytes: u64,
    }

    fn read(bytes: Vec<u8>) -> Read {
        let mut parts = Parts::read(file_of(bytes), FileId(7)).unwrap();
        let mut problems = std::mem::take(&mut parts.damage).len();
        let tombstones = parts.range_tombstones.as_ref().map(|set| set.len());
        let data_bytes = parts
            .blocks
            .last()
            .map_or(0, |&(offset, len)| offset + len as u64);
        let mut walk = Walk::new(parts);
        let mut items = Vec::new();
        while walk.next(&mut |_| problems += 1) {
            items.push((walk.key().to_vec(), walk.trailer(), walk.value().to_vec()));
        }
        assert!(!walk.next(&mut |_| problems += 1000), "the end is the end");
        Read {
            items,
            problems,
            tombstones,
            data_bytes,
        }
    }

    #[test]
    fn a_sound_table_is_read_without_a_problem() {
        let (bytes, items) = table();
        let len = bytes.len() as u64;
        let found = read(bytes);
        assert_eq!(
            (found.items, found.problems, found.tombstones),
            (items, 0, Some(2))
        );
        assert!(found.data_bytes > 20 * 60 && found.data_bytes < len);
    }

    #[test]
    fn a_flipped_bit_costs_at_most_its_block() {
        let (bytes, items) = table();
        let data_bytes = read(bytes.clone()).data_bytes as usize;
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            let found = read(damaged);
            assert!(found.problems > 0, "byte {at} goes unnoticed");
            if at >= data_bytes {
                assert_eq!(found.items, items, "byte {at}");
                continue;
            }
            let lost = items.len() - found.items.len();
            assert!(lost > 0 && lost < 15, "byte {at}: {lost} entries");
            let before = items
                .iter()
                .zip(&found.items)
                .take_while(|(a, b)| a == b)
                .count();
            assert_eq!(found.items[before..], items[before + lost..], "byte {at}");
            assert_eq!(found.tombstones, Some(2), "byte {at}");
        }
    }

    #[test]
    fn a_cut_table_is_read_up_to_the_cut() {
        let (bytes, items) = table();
        let data_bytes = read(bytes.clone()).data_bytes as usize;
        let mut counts = Vec::new();
        for len in 0..bytes.len() {
            let found = read(bytes[..len].to_vec());
            assert!(found.problems > 0, "cut to {len}");
            assert_eq!(found.items, items[..found.items.len()], "cut to {len}");
            if len >= data_bytes {
                assert_eq!(found.items.len(), items.len(), "cut to {len}");
            }
            counts.push(found.items.len());
        }
        assert!(counts.is_sorted());
        assert!(counts[data_bytes / 2] > items.len() / 3);
    }

    #[test]
    fn without_footer_and_index_everything_is_found() {
        let (bytes, items) = table();
        let parts = Parts::read(file_of(bytes.clone()), FileId(7)).unwrap();
        let index = parts.footer.unwrap().index;
        let mut damaged = bytes.clone();
        let last = bytes.len() - 1;
        damaged[last] ^= 1;
        let found = read(damaged.clone());
        assert_eq!((&found.items, found.tombstones), (&items, Some(2)));
        damaged[index.offset as usize] ^= 1;
        let found = read(damaged);
        assert_eq!((&found.items, found.tombstones), (&items, Some(2)));
    }

    #[test]
    fn any_bytes_are_read_or_not() {
        let mut state = 1_u64;
        for len in 0..600 {
            let mut bytes = Vec::new();
            for _ in 0..len {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                bytes.push((state >> 56) as u8);
            }
            let found = read(bytes);
            assert!(found.problems > 0 && found.items.is_empty());
        }
    }
}
