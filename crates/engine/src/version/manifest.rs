//! The manifest: the log of version edits, and the file that says which manifest is in use.
//!
//! ```text
//! CURRENT          the name of the manifest in use, then a line feed
//! MANIFEST-000007  header | frame*
//! header           magic "FIRNMAN\0" | format version u32 | file number u64
//!                  | masked crc32c u32 of the 20 bytes before
//! frame            length u32 | masked crc32c u32 | payload: one edit (see `version::edit`)
//! ```
//!
//! A frame's checksum covers the file number, the frame's offset, the length and the payload, so
//! that a frame is valid in one place only. Integers are little-endian.
//!
//! A manifest starts with edits that describe the whole state (the last of them carries
//! `snapshot_end`); the changes since follow. It is written and synced before CURRENT names it:
//!
//! 1. write and sync `MANIFEST-n`, sync the directory;
//! 2. write and sync `CURRENT.tmp`, rename it to `CURRENT`, sync the directory;
//! 3. remove the manifest before it.
//!
//! A crash before the rename leaves the old manifest in use, after it the new one; both describe
//! the same state. What is left over is removed at the next open.
//!
//! # Where a manifest ends
//!
//! An edit is durable when [`ManifestWriter::append`] has synced its frame; the next frame is
//! written only after that. After each sync an empty edit, the *seal*, is written where the next
//! frame will take its place, and is not synced. So a frame that is damaged and has a valid frame
//! anywhere behind it was durable once: that is corruption. A damaged frame with nothing valid
//! behind it is the write that was under way when the power failed: the end. The seal closes the
//! gap that this rule would leave for damage of the very last edit.

use std::path::Path;
use std::sync::Arc;

use firn_io::checksum;
use firn_io::codec::{get_u32, get_u64, put_u32, put_u64};
use firn_io::fs::{File, Fs, OpenMode};

use crate::error::{Error, Result};
use crate::key::FileId;
use crate::names::{self, FileKind};
use crate::version::edit::{DecodeError, VersionEdit};

/// Length of the header, in bytes.
pub const HEADER_BYTES: u64 = 24;
const FRAME_HEADER_BYTES: usize = 8;
/// Operations in one edit of the initial description.
const OPS_PER_EDIT: usize = 256;

fn header(id: FileId) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES as usize);
    out.extend_from_slice(&names::MANIFEST_MAGIC);
    put_u32(&mut out, names::FORMAT_VERSION);
    put_u64(&mut out, id.0);
    let crc = checksum::mask(checksum::crc32c(&out));
    put_u32(&mut out, crc);
    out
}

fn frame_crc(id: FileId, offset: u64, payload: &[u8]) -> u32 {
    let mut place = Vec::with_capacity(20);
    put_u64(&mut place, id.0);
    put_u64(&mut place, offset);
    put_u32(&mut place, payload.len() as u32);
    checksum::mask(checksum::crc32c_append(checksum::crc32c(&place), payload))
}

/// Appends the frame of `edit`, which will be at `offset` of manifest `id`.
fn put_frame(out: &mut Vec<u8>, id: FileId, offset: u64, edit: &VersionEdit) -> Result<()> {
    let mut payload = Vec::new();
    edit.encode(&mut payload);
    let len = u32::try_from(payload.len()).map_err(|_| Error::LimitExceeded {
        limit: "edit_bytes",
        max: u64::from(u32::MAX),
        actual: payload.len() as u64,
    })?;
    put_u32(out, len);
    put_u32(out, frame_crc(id, offset, &payload));
    out.extend_from_slice(&payload);
    Ok(())
}

/// The payload of the frame at `offset`, if it is valid.
fn frame_at(bytes: &[u8], id: FileId, offset: usize) -> Option<&[u8]> {
    let len = get_u32(bytes, offset)? as usize;
    let stored = get_u32(bytes, offset + 4)?;
    let start = offset + FRAME_HEADER_BYTES;
    let payload = bytes.get(start..start.checked_add(len)?)?;
    // An edit has at least its format byte; zeros are no frame.
    (len > 0 && frame_crc(id, offset as u64, payload) == stored).then_some(payload)
}

/// A manifest that is appended to. After an error of [`ManifestWriter::append`] it is unknown
/// whether the edit is durable: the writer must not be used again.
#[derive(Debug)]
pub struct ManifestWriter {
    file: Arc<dyn File>,
    id: FileId,
    offset: u64,
    snapshot_bytes: u64,
}

impl ManifestWriter {
    /// Writes manifest `id` with a description of the whole state; durable on return but for its
    /// name, and not yet in use (see [`set_current`]). `state` may be large: it is split.
    pub fn create(fs: &dyn Fs, dir: &Path, id: FileId, mut state: VersionEdit) -> Result<Self> {
        let path = dir.join(names::manifest_name(id));
        let file = fs.open(&path, OpenMode::Create)?;
        let mut bytes = header(id);
        let mut ops = std::mem::take(&mut state.ops).into_iter().peekable();
        while ops.peek().is_some() {
            let edit = VersionEdit::of(ops.by_ref().take(OPS_PER_EDIT).collect());
            let offset = bytes.len() as u64;
            put_frame(&mut bytes, id, offset, &edit)?;
        }
        state.snapshot_end = true;
        let offset = bytes.len() as u64;
        put_frame(&mut bytes, id, offset, &state)?;
        file.write_at(&bytes, 0)?;
        file.sync_data()?;
        let snapshot_bytes = bytes.len() as u64;
        Ok(Self {
            file,
            id,
            offset: snapshot_bytes,
            snapshot_bytes,
        })
    }

    /// Its number.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Its length, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.offset
    }

    /// How much of it describes the state at its beginning, in bytes.
    pub fn snapshot_bytes(&self) -> u64 {
        self.snapshot_bytes
    }

    /// Appends an edit; durable on return. One write and one sync.
    pub fn append(&mut self, edit: &VersionEdit) -> Result<()> {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, self.id, self.offset, edit)?;
        self.file.write_at(&bytes, self.offset)?;
        self.file.sync_data()?;
        self.offset += bytes.len() as u64;
        bytes.clear();
        put_frame(&mut bytes, self.id, self.offset, &VersionEdit::default())?;
        // The edit is durable already; without its seal only less damage would be told from a
        // torn write.
        let _ = self.file.write_at(&bytes, self.offset);
        Ok(())
    }
}

/// Puts manifest `id` into use; durable on return. After an error either manifest may be in use.
pub fn set_current(fs: &dyn Fs, dir: &Path, id: FileId) -> Result<()> {
    // The manifest's own name must be durable before anything names it.
    fs.sync_dir(dir)?;
    let tmp = dir.join(names::CURRENT_TMP);
    let file = fs.open(&tmp, OpenMode::Create)?;
    file.write_at(format!("{}\n", names::manifest_name(id)).as_bytes(), 0)?;
    file.sync_data()?;
    drop(file);
    fs.rename(&tmp, &dir.join(names::CURRENT))?;
    fs.sync_dir(dir)?;
    Ok(())
}

/// The number of the manifest in use. Errors: CURRENT is damaged.
pub fn read_current(fs: &dyn Fs, dir: &Path) -> Result<FileId> {
    let path = dir.join(names::CURRENT);
    let file = fs.open(&path, OpenMode::Read)?;
    let mut bytes = vec![0; 64];
    let len = file.read_at(&mut bytes, 0)?;
    let name = std::str::from_utf8(&bytes[..len])
        .ok()
        .and_then(|line| line.strip_suffix('\n'));
    match name.and_then(names::parse) {
        Some(FileKind::Manifest(id)) => Ok(id),
        _ => Err(Error::corruption(path, 0, "it does not name a manifest")),
    }
}

/// How a manifest was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadReport {
    /// Number of edits, seals not counted.
    pub edits: u64,
    /// Where the valid part ends.
    pub end: u64,
    /// Bytes behind it: a write that was under way when the power failed.
    pub torn_bytes: u64,
}

/// Reads manifest `id` and gives every edit, with the offset of its frame, to `each`.
///
/// Errors: damage (see the module's page), a format of a newer build, or what `each` says.
pub fn read(
    fs: &dyn Fs,
    dir: &Path,
    id: FileId,
    mut each: impl FnMut(u64, VersionEdit) -> Result<()>,
) -> Result<ReadReport> {
    let path = dir.join(names::manifest_name(id));
    let damaged = |offset: usize, detail: &str| Error::corruption(&path, offset as u64, detail);
    let file = fs.open(&path, OpenMode::Read).map_err(|error| {
        if error.is_not_found() {
            damaged(0, "CURRENT names it, but it is missing")
        } else {
            error.into()
        }
    })?;
    let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, 0)?;
    drop(file);
    check_header(&bytes, id, &path)?;

    let mut offset = HEADER_BYTES as usize;
    let mut report = ReadReport {
        edits: 0,
        end: 0,
        torn_bytes: 0,
    };
    let mut snapshot_ended = false;
    while let Some(payload) = frame_at(&bytes, id, offset) {
        let edit = VersionEdit::decode(payload).map_err(|error| match error {
            DecodeError::Malformed(at, detail) => {
                damaged(offset + FRAME_HEADER_BYTES + at, &detail)
            }
            DecodeError::Unknown(detail) => {
                Error::UnsupportedFormat(format!("{} at offset {offset}: {detail}", path.display()))
            }
        })?;
        snapshot_ended |= edit.snapshot_end;
        if edit != VersionEdit::default() {
            report.edits += 1;
            each(offset as u64, edit)?;
        }
        offset += FRAME_HEADER_BYTES + payload.len();
    }
    if !snapshot_ended {
        return Err(damaged(offset, "the description of the state is damaged"));
    }
    // A frame holds at least its header and the format byte.
    if (offset + 1..bytes.len().saturating_sub(FRAME_HEADER_BYTES))
        .any(|later| frame_at(&bytes, id, later).is_some())
    {
        return Err(damaged(offset, "a damaged edit with valid edits behind it"));
    }
    report.end = offset as u64;
    report.torn_bytes = (bytes.len() - offset) as u64;
    Ok(report)
}

fn check_header(bytes: &[u8], id: FileId, path: &Path) -> Result<()> {
    let damaged = |offset, detail: &str| Err(Error::corruption(path, offset, detail));
    let Some(head) = bytes.get(..HEADER_BYTES as usize) else {
        return damaged(bytes.len() as u64, "the header is cut short");
    };
    if head[..8] != names::MANIFEST_MAGIC {
        return damaged(0, "it is no manifest (wrong magic number)");
    }
    let (summed, stored) = head.split_at(20);
    if get_u32(stored, 0) != Some(checksum::mask(checksum::crc32c(summed))) {
        return damaged(20, "the header's checksum is wrong");
    }
    match get_u32(head, 8) {
        Some(names::FORMAT_VERSION) => {}
        version => {
            return Err(Error::UnsupportedFormat(format!(
                "{} has format version {}, this build knows {}",
                path.display(),
                version.unwrap_or_default(),
                names::FORMAT_VERSION
            )));
        }
    }
    if get_u64(head, 12) != Some(id.0) {
        return damaged(12, "it was written under another number");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use firn_io::fs::mem::MemFs;

    use super::*;
    use crate::key::{NamespaceId, SeqNo};
    use crate::version::edit::Op;

    const ID: FileId = FileId(7);

    fn edit(n: u64) -> VersionEdit {
        VersionEdit::of(vec![Op::Flushed {
            namespace: NamespaceId(0),
            seqno: SeqNo(n),
        }])
    }

    fn state() -> VersionEdit {
        let id = NamespaceId(0);
        VersionEdit::of(vec![Op::CreateNamespace {
            id,
            name: "default".into(),
        }])
    }

    fn world() -> (MemFs, PathBuf) {
        let fs = MemFs::new();
        let dir = PathBuf::from("/db");
        fs.create_dir_all(&dir).unwrap();
        (fs, dir)
    }

    fn read_all(fs: &MemFs, dir: &Path) -> Result<(Vec<VersionEdit>, ReadReport)> {
        let mut edits = Vec::new();
        let report = read(fs, dir, ID, |_, edit| {
            edits.push(edit);
            Ok(())
        })?;
        Ok((edits, report))
    }

    fn bytes_of(fs: &MemFs, dir: &Path) -> Vec<u8> {
        let file = fs
            .open(&dir.join(names::manifest_name(ID)), OpenMode::Read)
            .unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn store(fs: &MemFs, dir: &Path, bytes: &[u8]) {
        let file = fs
            .open(&dir.join(names::manifest_name(ID)), OpenMode::Create)
            .unwrap();
        file.write_at(bytes, 0).unwrap();
    }

    #[test]
    fn golden_bytes() {
        let (fs, dir) = world();
        let mut writer = ManifestWriter::create(&fs, &dir, ID, state()).unwrap();
        writer.append(&edit(300)).unwrap();
        #[rustfmt::skip]
        let payloads: [&[u8]; 4] = [
            &[1, 1, 8, 0, b'd', b'e', b'f', b'a', b'u', b'l', b't'],
            &[1, 21, 0],
            &[1, 6, 3, 0, 0xac, 2],
            &[1],
        ];
        let mut want = b"FIRNMAN\0\x01\0\0\0\x07\0\0\0\0\0\0\0".to_vec();
        want.extend(checksum::mask(checksum::crc32c(&want)).to_le_bytes());
        for payload in payloads {
            let place = [
                &7u64.to_le_bytes()[..],
                &(want.len() as u64).to_le_bytes(),
                &(payload.len() as u32).to_le_bytes(),
                payload,
            ];
            let crc = checksum::mask(checksum::crc32c(&place.concat()));
            want.extend((payload.len() as u32).to_le_bytes());
            want.extend(crc.to_le_bytes());
            want.extend(payload);
        }
        assert_eq!(bytes_of(&fs, &dir), want);
        // The checksums themselves, so that a change of the function is noticed too.
        assert_eq!(want[20..24], GOLDEN_HEADER_CRC.to_le_bytes());
        assert_eq!(want[28..32], GOLDEN_FRAME_CRC.to_le_bytes());
    }

    #[test]
    fn golden_current() {
        let (fs, dir) = world();
        set_current(&fs, &dir, ID).unwrap();
        let bytes = fs.read_file(dir.join(names::CURRENT)).unwrap();
        assert_eq!(bytes, b"MANIFEST-000007\n");
        assert_eq!(read_current(&fs, &dir).unwrap(), ID);
        assert!(!fs.exists(&dir.join(names::CURRENT_TMP)).unwrap());
    }

    const GOLDEN_HEADER_CRC: u32 = 0x9ee7_5708;
    const GOLDEN_FRAME_CRC: u32 = 0xa67f_821e;

    #[test]
    fn what_was_appended_is_read() {
        let (fs, dir) = world();
        let mut big = state();
        for n in 0..1000 {
            big.ops.push(Op::Flushed {
                namespace: NamespaceId(0),
                seqno: SeqNo(n),
            });
        }
        let mut writer = ManifestWriter::create(&fs, &dir, ID, big.clone()).unwrap();
        for n in 0..5 {
            writer.append(&edit(n)).unwrap();
        }
        let (edits, report) = read_all(&fs, &dir).unwrap();
        let snapshot_frames = big.ops.len().div_ceil(OPS_PER_EDIT) + 1;
        let ops: Vec<Op> = edits[..snapshot_frames]
            .iter()
            .flat_map(|e| e.ops.clone())
            .collect();
        assert_eq!(ops, big.ops);
        assert!(edits[snapshot_frames - 1].snapshot_end);
        assert_eq!(
            edits[snapshot_frames..],
            (0..5).map(edit).collect::<Vec<_>>()
        );
        assert_eq!((report.edits, report.torn_bytes), (edits.len() as u64, 0));
        set_current(&fs, &dir, ID).unwrap();
        assert_eq!(read_current(&fs, &dir).unwrap(), ID);
    }

    /// Cut anywhere, the state's description is damage; behind it, edits are lost from the end only.
    #[test]
    fn every_truncation() {
        let (fs, dir) = world();
        let mut writer = ManifestWriter::create(&fs, &dir, ID, state()).unwrap();
        for n in 0..3 {
            writer.append(&edit(n)).unwrap();
        }
        let bytes = bytes_of(&fs, &dir);
        for cut in 0..bytes.len() {
            store(&fs, &dir, &bytes[..cut]);
            match read_all(&fs, &dir) {
                Ok((edits, report)) => {
                    assert!(cut as u64 >= writer.snapshot_bytes());
                    let count = edits.len() - 2;
                    assert_eq!(edits[2..], (0..count as u64).map(edit).collect::<Vec<_>>());
                    assert_eq!(report.end + report.torn_bytes, cut as u64);
                }
                Err(error) => {
                    assert!((cut as u64) < writer.snapshot_bytes(), "{cut}: {error}");
                    assert!(error.is_corruption(), "{error}");
                }
            }
        }
    }

    /// Thanks to the seal a flipped bit is found even in the last edit.
    #[test]
    fn every_flipped_bit() {
        let (fs, dir) = world();
        let mut writer = ManifestWriter::create(&fs, &dir, ID, state()).unwrap();
        for n in 0..3 {
            writer.append(&edit(n)).unwrap();
        }
        let bytes = bytes_of(&fs, &dir);
        let (want, _) = read_all(&fs, &dir).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                store(&fs, &dir, &damaged);
                match read_all(&fs, &dir) {
                    Ok((edits, _)) => {
                        assert!(
                            at as u64 >= writer.file_bytes(),
                            "byte {at} bit {bit} went unnoticed"
                        );
                        assert_eq!(edits, want);
                    }
                    Err(Error::Corruption { path, .. }) => {
                        assert_eq!(path, dir.join("MANIFEST-000007"));
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }

    #[test]
    fn a_current_that_names_nothing_is_damage() {
        let (fs, dir) = world();
        for content in [
            "",
            "MANIFEST-000007",
            "000007.sst\n",
            "MANIFEST-x\n",
            "\u{1F4A5}\n",
        ] {
            let file = fs
                .open(&dir.join(names::CURRENT), OpenMode::Create)
                .unwrap();
            file.write_at(content.as_bytes(), 0).unwrap();
            assert!(
                read_current(&fs, &dir).unwrap_err().is_corruption(),
                "{content:?}"
            );
        }
        set_current(&fs, &dir, ID).unwrap();
        let error = read_all(&fs, &dir).unwrap_err();
        assert!(
            error.is_corruption() && error.to_string().contains("missing"),
            "{error}"
        );
    }

    #[test]
    fn a_newer_format_is_refused() {
        let (fs, dir) = world();
        let mut bytes = header(ID);
        bytes[8] = 2;
        let crc = checksum::mask(checksum::crc32c(&bytes[..20]));
        bytes[20..].copy_from_slice(&crc.to_le_bytes());
        store(&fs, &dir, &bytes);
        let error = read_all(&fs, &dir).unwrap_err();
        assert!(matches!(error, Error::UnsupportedFormat(_)), "{error}");
    }
}
