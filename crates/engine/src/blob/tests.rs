use std::path::Path;
use std::sync::Arc;

use firn_io::checksum::{crc32c, mask};
use proptest::prelude::*;

use super::*;
use crate::sstable::tests::{VecFile, file_of};

const ID: FileId = FileId(5);

fn write(
    values: &[(Vec<u8>, Vec<u8>)],
    compression: Compression,
) -> (Vec<u8>, Vec<BlobPointer>, BlobSummary) {
    let file = file_of(Vec::new());
    let mut writer = BlobWriter::new(file.clone(), ID, compression).unwrap();
    let pointers = values
        .iter()
        .map(|(k, v)| writer.add(k, v).unwrap())
        .collect();
    let summary = writer.finish().unwrap();
    let bytes = file.0.lock().unwrap().clone();
    (bytes, pointers, summary)
}

fn open(bytes: &[u8]) -> Result<BlobFile> {
    BlobFile::open(file_of(bytes.to_vec()), ID)
}

fn sample() -> Vec<(Vec<u8>, Vec<u8>)> {
    vec![
        (b"a".to_vec(), vec![7; 100]),
        (b"".to_vec(), b"short".to_vec()),
        (b"key".to_vec(), Vec::new()),
    ]
}

#[test]
fn golden_bytes() {
    let (bytes, pointers, summary) =
        write(&[(b"key".to_vec(), b"value".to_vec())], Compression::None);
    let mut expected = b"FIRNBLB\0\x01\0\0\0".to_vec();
    expected.extend(mask(crc32c(&expected)).to_le_bytes());
    let record = b"\x03\0\0\0\x05\0\0\0\x05\0\0\0\0keyvalue";
    let seeded = |offset: u64, bytes: &[u8]| {
        let all = [&5_u64.to_le_bytes()[..], &offset.to_le_bytes(), bytes].concat();
        mask(crc32c(&all)).to_le_bytes()
    };
    expected.extend(seeded(16, record));
    expected.extend(record);
    let footer = b"FIRNEND\0\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\0\0\0\0";
    expected.extend(footer);
    expected.extend(seeded(41, footer));
    assert_eq!(bytes, expected);
    let pointer = BlobPointer {
        file: ID,
        offset: 16,
        stored_len: 5,
        value_len: 5,
    };
    assert_eq!(pointers, [pointer]);
    let record_bytes = pointer.record_bytes(3);
    assert_eq!(
        summary,
        BlobSummary {
            count: 1,
            record_bytes,
            value_bytes: 5,
            file_bytes: 73
        }
    );
    let mut encoded = Vec::new();
    pointer.encode(&mut encoded);
    assert_eq!(encoded, [5, 16, 5, 5]);
}

#[test]
fn every_flipped_bit_is_found() {
    let values = sample();
    for compression in [Compression::None, Compression::Lz4] {
        let (good, pointers, _) = write(&values, compression);
        assert_eq!(open(&good).unwrap().verify(&mut |_| {}).unwrap(), 3);
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            let Ok(blob) = open(&bytes) else { continue };
            let error = blob.verify(&mut |_| {}).unwrap_err();
            let Error::Corruption { path, offset, .. } = error else {
                panic!("{error}")
            };
            assert_eq!(path, Path::new("/t/000007.sst"));
            assert!(offset < 200);
            for (pointer, (key, value)) in pointers.iter().zip(&values) {
                if let Ok(read) = blob.read(pointer, key) {
                    assert_eq!(&*read, &value[..]);
                }
            }
        }
        for len in 0..good.len() {
            assert!(open(&good[..len]).unwrap_err().is_corruption());
        }
    }
}

#[test]
fn wrong_pointers_and_keys_are_refused() {
    let values = sample();
    let (bytes, pointers, _) = write(&values, Compression::Lz4);
    let blob = open(&bytes).unwrap();
    let p = pointers[0];
    let wrong = [
        BlobPointer {
            offset: p.offset + 1,
            ..p
        },
        BlobPointer {
            offset: u64::MAX,
            ..p
        },
        BlobPointer { offset: 0, ..p },
        BlobPointer {
            stored_len: p.stored_len + 1,
            ..p
        },
        BlobPointer {
            stored_len: u32::MAX,
            ..p
        },
        BlobPointer { value_len: 99, ..p },
        BlobPointer {
            file: FileId(6),
            ..p
        },
    ];
    for pointer in wrong {
        assert!(
            blob.read(&pointer, b"a").unwrap_err().is_corruption(),
            "{pointer:?}"
        );
    }
    assert!(blob.read(&p, b"b").unwrap_err().is_corruption());
    assert!(blob.read(&p, b"aa").unwrap_err().is_corruption());
    assert_eq!(*blob.read(&p, b"a").unwrap(), values[0].1[..]);
    // The same bytes under another number.
    assert!(BlobFile::open(file_of(bytes), FileId(6)).is_err());
}

#[test]
fn an_unfinished_file_can_be_salvaged() {
    let values = sample();
    let (bytes, pointers, _) = write(&values, Compression::None);
    let cut = &bytes[..pointers[2].offset as usize + 3];
    assert!(open(cut).unwrap_err().is_corruption());
    let blob = BlobFile::salvage(file_of(cut.to_vec()), ID).unwrap();
    let mut records = blob.records();
    for (key, value) in &values[..2] {
        let record = records.next().unwrap().unwrap();
        assert_eq!((record.key, record.stored), (&key[..], &value[..]));
    }
    assert!(records.next().unwrap_err().is_corruption());
    assert_eq!(
        blob.read(&pointers[0], b"a").unwrap().into_vec(),
        values[0].1
    );
    // A damaged header does not keep anybody from the records.
    let garbage = BlobFile::salvage(file_of(b"not a blob file.....".to_vec()), ID).unwrap();
    assert!(garbage.records().next().is_err());
}

#[test]
fn large_values_and_relocation() {
    let noise: Vec<u8> = (0..3_000_000_u64)
        .map(|i| firn_io::checksum::xxh3_64(&i.to_le_bytes()) as u8)
        .collect();
    let values = vec![
        (vec![b'k'; 65_536], noise),
        (b"b".to_vec(), vec![1; 20 << 20]),
        (b"c".to_vec(), b"x".to_vec()),
    ];
    let (bytes, pointers, summary) = write(&values, Compression::Lz4);
    assert!(summary.file_bytes < 4_000_000);
    let blob = open(&bytes).unwrap();
    assert_eq!(blob.summary(), summary);
    let moved: Arc<VecFile> = file_of(Vec::new());
    let mut writer = BlobWriter::new(moved.clone(), FileId(9), Compression::None).unwrap();
    let mut records = blob.records();
    let mut new_pointers = Vec::new();
    for (pointer, (key, value)) in pointers.iter().zip(&values) {
        assert!(blob.read(pointer, key).unwrap().into_vec() == *value);
        let record = records.next().unwrap().unwrap();
        assert_eq!(record.pointer(ID), *pointer);
        new_pointers.push(writer.add_record(&record).unwrap());
    }
    assert!(records.next().unwrap().is_none());
    writer.finish().unwrap();
    let blob = BlobFile::open(moved, FileId(9)).unwrap();
    for (pointer, (key, value)) in new_pointers.iter().zip(&values) {
        assert!(blob.read(pointer, key).unwrap().into_vec() == *value);
    }
    assert_eq!(blob.verify(&mut |_| {}).unwrap(), 3);
    let mut writer = BlobWriter::new(file_of(Vec::new()), ID, Compression::None).unwrap();
    assert!(writer.add(&vec![0; 65_537], b"").is_err());
}

proptest! {
    #[test]
    fn what_is_written_is_read(values: Vec<(Vec<u8>, Vec<u8>)>, lz4: bool) {
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        let (bytes, pointers, summary) = write(&values, compression);
        let blob = open(&bytes).unwrap();
        prop_assert_eq!(blob.summary(), summary);
        for (pointer, (key, value)) in pointers.iter().zip(&values) {
            let read = blob.read(pointer, key).unwrap();
            prop_assert_eq!(&*read, &value[..]);
            prop_assert_eq!(&read.into_vec(), value);
            let mut encoded = Vec::new();
            pointer.encode(&mut encoded);
            prop_assert!(encoded.len() <= BlobPointer::MAX_ENCODED_BYTES);
            prop_assert_eq!(BlobPointer::decode(&encoded), Some(*pointer));
            encoded.push(0);
            prop_assert_eq!(BlobPointer::decode(&encoded), None);
        }
        let mut told = 0;
        prop_assert_eq!(blob.verify(&mut |n| told += n).unwrap(), values.len() as u64);
        prop_assert_eq!(told, summary.file_bytes);
    }

    #[test]
    fn any_bytes_are_refused(bytes: Vec<u8>, tail: Vec<u8>) {
        let _ = BlobPointer::decode(&bytes);
        prop_assert!(open(&bytes).is_err());
        let (mut good, ..) = write(&sample(), Compression::None);
        good.truncate(16);
        good.extend(tail);
        prop_assert!(open(&good).is_err());
        let blob = BlobFile::salvage(file_of(good), ID).unwrap();
        let mut records = blob.records();
        while let Ok(Some(_)) = records.next() {}
    }
}
