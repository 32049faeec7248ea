//! The write-ahead log and the batches in it.

use std::path::Path;

use firn_engine::batch::BatchReader;
use firn_engine::feed::DropRecord;
use firn_io::checksum::{crc32c, crc32c_append, mask};
use firn_io::error::Error;
use firn_io::fs::Fs;
use firn_io::fs::mem::MemFs;
use firn_io::wal::{Log, LogOptions, Lsn, Tail, reader};

use crate::{Input, checksum, disk_with, world};

const DIR: &str = "/wal";
/// Inputs leave out the zeros at the end of a segment; more than these are not added.
const MOST_ZEROS: usize = 16 << 10;
const SEGMENT_BYTES: usize = 4096;
const SALT: u64 = 7;

fn name(number: u32) -> String {
    format!("{DIR}/{number:016x}.wal")
}

/// A segment's file, but for the zeros at its end.
///
/// The log is then read, recovered and read again: recovery must keep every record that reading
/// finds, and find nothing to cut off the second time.
pub fn log_segment(data: &[u8]) {
    let mut bytes = data.to_vec();
    let capacity = data.get(32..40).and_then(|b| b.try_into().ok());
    let capacity = capacity.map_or(0, u64::from_le_bytes);
    if let Ok(capacity) = usize::try_from(capacity)
        && (bytes.len()..=MOST_ZEROS).contains(&capacity)
    {
        bytes.resize(capacity, 0);
    }
    read_and_recover(disk_with(&name(1), &bytes).0);
}

/// Frames with checksums that are right, over up to four segments.
///
/// ```text
/// input := step*
/// step  := 0                                                    the next segment
///        | 1 length u8                                          that many times eight zero bytes
///        | 2 bytes                                              bytes that are no frame
///        | kind u8 | flags u8 | synced u16 | claim u8 | bytes   a frame; claim 255: a wrong length
/// bytes := length u16 | as many bytes
/// ```
///
/// `synced` is in units of eight bytes. Kinds below 3 become 3 more.
pub fn log_frames(data: &[u8]) {
    let mut input = Input(data);
    let mut segments = vec![segment(1)];
    while !input.is_empty() {
        let number = segments.len() as u32;
        let Some(last) = segments.last_mut() else {
            return;
        };
        match input.u8() {
            0 if number < 4 => segments.push(segment(number + 1)),
            0 => return,
            1 => last.resize(last.len() + 8 * usize::from(input.u8()), 0),
            2 => {
                last.extend_from_slice(input.bytes());
                last.resize(last.len().next_multiple_of(8), 0);
            }
            kind => {
                let (flags, synced) = (input.u8(), u32::from(input.u16()) * 8);
                let wrong = input.u8() == 255;
                let payload = input.bytes();
                let len = payload.len() as u32 + if wrong { 1 << 12 } else { 0 };
                frame(last, number, (kind, flags, synced, len), payload);
            }
        }
        if last_len(&segments) > SEGMENT_BYTES {
            return;
        }
    }
    let disk = MemFs::new();
    disk.create_dir_all(DIR.as_ref()).expect("a directory");
    for (i, mut bytes) in segments.into_iter().enumerate() {
        bytes.resize(SEGMENT_BYTES, 0);
        disk.write_file(name(i as u32 + 1), &bytes).expect("a file");
    }
    read_and_recover(disk);
}

fn last_len(segments: &[Vec<u8>]) -> usize {
    segments.last().map_or(0, Vec::len)
}

/// The header of a segment that follows the one before it.
pub(crate) fn segment(number: u32) -> Vec<u8> {
    let mut out = b"FIRNWAL\n\x01\0\0\0\0\0\0\0".to_vec();
    out.extend_from_slice(&u64::from(number).to_le_bytes());
    out.extend_from_slice(&u64::from(number - 1).to_le_bytes());
    out.extend_from_slice(&(SEGMENT_BYTES as u64).to_le_bytes());
    out.extend_from_slice(&SALT.to_le_bytes());
    out.resize(60, 0);
    let sum = checksum(&[&out]);
    out.extend_from_slice(&sum);
    out
}

fn frame(out: &mut Vec<u8>, segment: u32, head: (u8, u8, u32, u32), payload: &[u8]) {
    let (kind, flags, synced, len) = head;
    let mut place = [0; 32];
    place[..8].copy_from_slice(&u64::from(segment).to_le_bytes());
    place[8..16].copy_from_slice(&SALT.to_le_bytes());
    place[16..20].copy_from_slice(&(out.len() as u32).to_le_bytes());
    place[20..24].copy_from_slice(&len.to_le_bytes());
    place[24..28].copy_from_slice(&synced.to_le_bytes());
    place[28..30].copy_from_slice(&[kind, flags]);
    let sum = crc32c(&place);
    out.extend_from_slice(&mask(crc32c_append(sum, payload)).to_le_bytes());
    out.extend_from_slice(&place[20..30]);
    out.extend_from_slice(&((sum ^ sum >> 16) as u16).to_le_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(8), 0);
}

fn read_and_recover(disk: MemFs) {
    let dir = Path::new(DIR);
    let read = |disk: &MemFs| {
        let mut records = Vec::new();
        let report = reader::scan(disk, dir, None, |record| {
            records.push((record.start, record.kind, record.payload.to_vec()));
            Ok::<_, Error>(())
        });
        report.map(|report| (records, report))
    };
    let found = read(&disk);
    let mut tolerated = 0_usize;
    let checked = reader::verify(&disk, dir, None, |_| {
        tolerated += 1;
        Ok::<_, Error>(())
    });
    if let (Ok((records, _)), Ok(report)) = (&found, &checked) {
        assert!(
            report.problems.is_empty(),
            "verify finds damage where reading finds none"
        );
        assert_eq!(records.len(), tolerated);
    }
    if let (Err(error), Ok(report)) = (&found, &checked)
        && error.is_corruption()
    {
        assert!(!report.problems.is_empty(), "verify does not find {error}");
    }
    let options = || LogOptions {
        segment_bytes: SEGMENT_BYTES as u64,
        ..LogOptions::default()
    };
    let mut replayed = Vec::new();
    let opened = Log::open(world(&disk), dir, options(), |record| {
        replayed.push((record.start, record.kind, record.payload.to_vec()));
        Ok::<_, Error>(())
    });
    let Ok((records, _)) = found else {
        if let Err(error) = &found
            && error.is_corruption()
        {
            assert!(
                opened.is_err(),
                "recovery takes a log that is damaged: {error}"
            );
        }
        return;
    };
    let Ok((log, _)) = opened else { return };
    assert_eq!(
        replayed, records,
        "recovery finds other records than reading"
    );
    let first = log.segments().first().map_or(0, |segment| segment.0);
    let mut tail = Tail::new(Lsn::new(first, 0));
    let mut followed = Vec::new();
    while let Some(record) = tail
        .next(&log, log.synced())
        .expect("what is recovered can be followed")
    {
        followed.push((record.start, record.kind, record.payload.to_vec()));
    }
    assert_eq!(
        followed, records,
        "following finds other records than reading"
    );
    drop(log);
    let (again, report) = read(&disk).expect("what recovery left is sound");
    assert_eq!(again, records, "recovery changed the records");
    assert_eq!(report.torn_bytes, 0, "recovery left a torn tail");
}

/// The payload of a log record. Operations that are read must end by themselves.
pub fn batch(data: &[u8]) {
    // The same bytes may be the record of a drop.
    if let Ok(drop) = DropRecord::decode(data) {
        let again = drop.encode();
        assert_eq!(
            DropRecord::decode(&again),
            Ok(drop),
            "a drop is read as written"
        );
    }
    let Ok(batch) = BatchReader::new(data) else {
        return;
    };
    let count = batch.count;
    let mut bytes = 0;
    let mut good = 0;
    let mut ended = false;
    for operation in batch.operations() {
        assert!(!ended, "an operation after an error");
        match operation {
            Ok(operation) => {
                good += 1;
                bytes += operation.key.len() + operation.value.len();
            }
            Err(_) => ended = true,
        }
    }
    assert!(bytes <= data.len() && good <= count);
    assert!(
        ended || good == count,
        "operations are missing and nobody says so"
    );
}
