//! SSTables and blob files.

use std::sync::Arc;

use firn_engine::blob::{BlobFile, BlobPointer};
use firn_engine::cache::BlockCache;
use firn_engine::iterator::InternalIterator;
use firn_engine::key::{FileId, SeqNo, Trailer};
use firn_engine::sstable::{ReadOptions, Table, key_hash};

use crate::{Input, checksum, disk_with, put_varint};

pub(crate) const ID: FileId = FileId(5);
/// Entries of a table that are looked up one by one.
const LOOKUPS: usize = 40;

/// The file of an SSTable. See `read_table` for what must hold.
pub fn table(data: &[u8]) {
    read_table(data);
}

/// The blocks of an SSTable, put into a file whose checksums and footer are right.
///
/// ```text
/// input   := count u8 (modulo 8) | stored data block * count | filter | range tombstones
///            | index | properties
/// stored  := compression u8 | section
/// filter, range tombstones, index, properties := section      (empty: none)
/// section := length u16 | as many bytes
/// ```
pub fn table_parts(data: &[u8]) {
    let mut input = Input(data);
    let mut file = Vec::new();
    for _ in 0..input.u8() % 8 {
        let compression = input.u8();
        store(&mut file, input.bytes(), compression);
    }
    let mut handles = [(0, 0); 4];
    // In the order of the file; the footer has another one.
    for at in [1, 2, 0, 3] {
        let bytes = input.bytes();
        if at == 0 || at == 3 || !bytes.is_empty() {
            handles[at] = store(&mut file, bytes, 0);
        }
    }
    footer(&mut file, handles);
    read_table(&file);
}

/// One data block in a table made for it: compression u8, then the block as stored.
pub fn block(data: &[u8]) {
    let mut input = Input(data);
    let compression = input.u8();
    let mut file = Vec::new();
    let (_, stored) = store(&mut file, input.0, compression);
    // Before every key a separator that is after all of them.
    let mut index = vec![1, 0];
    put_varint(&mut index, stored);
    index.push(20);
    index.extend_from_slice(&[0xff; 20]);
    let mut properties = vec![1, 6, 0, 0, 0, 0, 0, 0, 6, 0, 7, 20];
    properties.extend_from_slice(&[0xff; 20]);
    properties.extend_from_slice(&[9, 1, 1, 10]);
    let mut bytes = Vec::new();
    put_varint(&mut bytes, stored);
    properties.push(bytes.len() as u8);
    properties.extend_from_slice(&bytes);
    let mut handles = [(0, 0); 4];
    handles[0] = store(&mut file, &index, 0);
    handles[3] = store(&mut file, &properties, 0);
    footer(&mut file, handles);
    read_table(&file);
}

/// Appends a block in its envelope; returns where it is.
fn store(file: &mut Vec<u8>, payload: &[u8], compression: u8) -> (u64, u64) {
    let offset = file.len() as u64;
    file.extend_from_slice(payload);
    file.push(compression);
    let sum = checksum(&[&offset.to_le_bytes(), payload, &[compression]]);
    file.extend_from_slice(&sum);
    (offset, file.len() as u64 - offset)
}

fn footer(file: &mut Vec<u8>, handles: [(u64, u64); 4]) {
    let mut out = Vec::new();
    for (offset, len) in handles {
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
    }
    out.extend_from_slice(&1_u32.to_le_bytes());
    let magic = b"FIRNSST\0";
    let sum = checksum(&[&out, magic]);
    out.extend_from_slice(&sum);
    out.extend_from_slice(magic);
    file.extend_from_slice(&out);
}

/// Opens a table and reads it in every way. If `verify` finds no fault, scans in both directions
/// find as many entries as it does, ascending, and every entry is found by its key.
fn read_table(bytes: &[u8]) {
    let (_disk, file) = disk_with("/db/000005.sst", bytes);
    let cache = Arc::new(BlockCache::new(1 << 20));
    let Ok(table) = Table::open(file, ID, cache) else {
        return;
    };
    let table = Arc::new(table);
    let _ = (
        table.pinned_bytes(),
        table.range_tombstones().covering(b"key", SeqNo::MAX),
    );
    let verified = table.verify(&mut |_| {});
    let mut iter = table.iter(ReadOptions::default());
    let mut sample: Vec<(Vec<u8>, Trailer)> = Vec::new();
    let forward = scan(|first, found| {
        if first {
            iter.seek_to_first()?;
        } else {
            iter.next()?;
        }
        if iter.valid() && sample.len() < LOOKUPS {
            sample.push((iter.key().to_vec(), iter.trailer()));
        }
        *found = if iter.valid() { iter.value().len() } else { 0 };
        Ok(iter.valid())
    });
    let mut iter = table.iter(ReadOptions::sequential(4096));
    let backward = scan(|first, found| {
        if first {
            iter.seek_to_last()?;
        } else {
            iter.prev()?;
        }
        *found = if iter.valid() { iter.value().len() } else { 0 };
        Ok(iter.valid())
    });
    if let (Some(forward), Some(backward)) = (forward, backward) {
        assert_eq!(forward, backward, "the directions do not agree");
    }
    if let Ok(check) = &verified {
        assert_eq!(
            forward.map(|sum| sum.0),
            Some(check.entries),
            "verify finds no fault"
        );
        assert!(backward.is_some(), "verify finds no fault");
        let order =
            |a: &(Vec<u8>, Trailer), b: &(Vec<u8>, Trailer)| a.0 < b.0 || a.0 == b.0 && a.1 > b.1;
        assert!(
            sample.is_sorted_by(order),
            "verify lets entries pass that do not ascend"
        );
    }
    let mut iter = table.iter(ReadOptions::default());
    for (key, trailer) in &sample {
        let got = table.get(key, key_hash(key), trailer.seqno());
        let unfiltered = table.get_unfiltered(key, trailer.seqno());
        let _ = table.get(
            key,
            key_hash(key),
            SeqNo(trailer.seqno().0.saturating_sub(1)),
        );
        let _ = table.approximate_offset_of(key);
        let sought = iter
            .seek(key)
            .map(|()| iter.valid() && iter.key() == &key[..]);
        let before = iter
            .seek_before(key)
            .map(|()| !iter.valid() || iter.key() < &key[..]);
        if verified.is_ok() {
            let is_it = |got: firn_engine::Result<Option<firn_engine::sstable::TableEntry>>| {
                got.expect("verified")
                    .is_some_and(|entry| entry.trailer == *trailer)
            };
            assert!(is_it(unfiltered), "an entry is not found by its key");
            assert!(is_it(got), "an entry is not found by its hash");
            assert!(sought.expect("verified") && before.expect("verified"));
        }
    }
    let _ = table.get(b"", key_hash(b""), SeqNo::MAX);
    let _ = table.get(&[0xff; 9], key_hash(&[0xff; 9]), SeqNo::MAX);
}

/// Steps until the end: the number of entries and of bytes; `None` after an error.
fn scan(mut step: impl FnMut(bool, &mut usize) -> firn_engine::Result<bool>) -> Option<(u64, u64)> {
    let (mut entries, mut bytes) = (0, 0);
    let mut len = 0;
    while step(entries == 0, &mut len).ok()? {
        entries += 1;
        bytes += len as u64;
    }
    Some((entries, bytes))
}

/// A blob file; see `read_blobs`. Its first bytes are taken for a pointer, too.
pub fn blob(data: &[u8]) {
    for len in 0..data.len().min(BlobPointer::MAX_ENCODED_BYTES + 1) {
        if let Some(pointer) = BlobPointer::decode(&data[..len]) {
            let mut out = Vec::new();
            pointer.encode(&mut out);
            assert_eq!(BlobPointer::decode(&out), Some(pointer));
            let (_disk, file) = disk_with("/db/000005.blob", data);
            if let Ok(file) = BlobFile::salvage(file, ID) {
                let _ = file.read(&pointer, b"key");
                let _ = file.check_pointer(&pointer, b"key");
            }
        }
    }
    read_blobs(data);
}

/// Records with checksums that are right.
///
/// ```text
/// input  := record*
/// record := compression u8 | claimed length of the value u16 | key u16 length | value u16 length
/// ```
pub fn blob_records(data: &[u8]) {
    let mut input = Input(data);
    let mut file = b"FIRNBLB\0\x01\0\0\0".to_vec();
    let sum = checksum(&[&file]);
    file.extend_from_slice(&sum);
    let seal = |offset: usize, bytes: &[u8]| {
        checksum(&[&ID.0.to_le_bytes(), &(offset as u64).to_le_bytes(), bytes])
    };
    let (mut count, mut values) = (0_u64, 0_u64);
    while !input.is_empty() {
        let (compression, claimed) = (input.u8(), u32::from(input.u16()));
        let (key, value) = (input.bytes(), input.bytes());
        let mut record = Vec::new();
        record.extend_from_slice(&(key.len() as u32).to_le_bytes());
        record.extend_from_slice(&(value.len() as u32).to_le_bytes());
        record.extend_from_slice(&claimed.to_le_bytes());
        record.push(compression);
        record.extend_from_slice(key);
        record.extend_from_slice(value);
        let sum = seal(file.len(), &record);
        file.extend_from_slice(&sum);
        file.extend_from_slice(&record);
        count += 1;
        values += u64::from(claimed);
    }
    let mut footer = b"FIRNEND\0".to_vec();
    footer.extend_from_slice(&count.to_le_bytes());
    footer.extend_from_slice(&values.to_le_bytes());
    footer.extend_from_slice(&[0; 4]);
    let sum = seal(file.len(), &footer);
    file.extend_from_slice(&footer);
    file.extend_from_slice(&sum);
    read_blobs(&file);
}

/// Walks the records of a blob file, finished or not, and reads every value by its pointer. If
/// `verify` finds no fault, all of them can be read.
fn read_blobs(bytes: &[u8]) {
    let (_disk, file) = disk_with("/db/000005.blob", bytes);
    let opened = BlobFile::open(Arc::clone(&file), ID);
    let verified = opened
        .as_ref()
        .is_ok_and(|file| file.verify(&mut |_| {}).is_ok());
    let salvaged = BlobFile::salvage(file, ID);
    for file in [opened, salvaged].into_iter().flatten() {
        let mut records = file.records();
        loop {
            let record = match records.next() {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(error) => {
                    assert!(
                        !verified || file.summary().count == 0,
                        "verify misses {error}"
                    );
                    break;
                }
            };
            let pointer = record.pointer(ID);
            let value = file.value(&record);
            let read = file.read(&pointer, record.key);
            let _ = file.check_pointer(&pointer, record.key);
            match (value, read) {
                (Ok(value), Ok(read)) => assert_eq!(value, *read),
                (Err(_), Err(_)) => assert!(!verified, "verify misses a value that is damaged"),
                _ => panic!("a value can be read in one way and not in the other"),
            }
        }
    }
}
