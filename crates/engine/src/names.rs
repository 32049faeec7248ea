//! Names of the files in a database directory, magic numbers and format versions.
//! **Stored on disk: changing a value here makes existing databases unreadable.**
//!
//! ```text
//! CURRENT            one line: the name of the manifest in use
//! MANIFEST-000007    version edits (see `version::manifest`)
//! 000012.sst         an SSTable (see `sstable`)
//! 000013.blob        large values (see `blob`)
//! wal/               the write-ahead log's segments (see `firn_io::wal`)
//! LOCK               held by the process that has the database open
//! BALLAST            reserved space, given back when the disk is full
//! lost/              what `repair` could not use
//! ```

use std::path::{Path, PathBuf};

use crate::key::FileId;

/// First eight bytes of a manifest.
pub const MANIFEST_MAGIC: [u8; 8] = *b"FIRNMAN\0";
/// Last eight bytes of an SSTable.
pub const SSTABLE_MAGIC: [u8; 8] = *b"FIRNSST\0";
/// First eight bytes of a blob file.
pub const BLOB_MAGIC: [u8; 8] = *b"FIRNBLB\0";
/// The format version that this build writes. It reads this version and all before it.
pub const FORMAT_VERSION: u32 = 1;

/// The name of the file that names the manifest in use.
pub const CURRENT: &str = "CURRENT";
/// The name under which a new `CURRENT` is written before it takes its place.
pub const CURRENT_TMP: &str = "CURRENT.tmp";
/// The lock file's name.
pub const LOCK: &str = "LOCK";
/// The ballast file's name.
pub const BALLAST: &str = "BALLAST";
/// The name of the log's directory.
pub const WAL_DIR: &str = "wal";
/// The name of the directory into which `repair` moves what it cannot use.
pub const LOST_DIR: &str = "lost";

/// The path of an SSTable.
pub fn sstable_path(dir: &Path, id: FileId) -> PathBuf {
    dir.join(format!("{id}.sst"))
}

/// The path of a blob file.
pub fn blob_path(dir: &Path, id: FileId) -> PathBuf {
    dir.join(format!("{id}.blob"))
}

/// The name of a manifest.
pub fn manifest_name(id: FileId) -> String {
    format!("MANIFEST-{id}")
}

/// What a file in the database directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// An SSTable.
    Sstable(FileId),
    /// A blob file.
    Blob(FileId),
    /// A manifest.
    Manifest(FileId),
}

/// Recognizes the name of a numbered file.
pub fn parse(name: &str) -> Option<FileKind> {
    let number = |digits: &str| {
        let plain = digits.len() >= 6 && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse().ok().map(FileId)).flatten()
    };
    if let Some(digits) = name.strip_suffix(".sst") {
        number(digits).map(FileKind::Sstable)
    } else if let Some(digits) = name.strip_suffix(".blob") {
        number(digits).map(FileKind::Blob)
    } else if let Some(digits) = name.strip_prefix("MANIFEST-") {
        number(digits).map(FileKind::Manifest)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        let dir = Path::new("/d");
        let id = FileId(12);
        assert_eq!(sstable_path(dir, id), Path::new("/d/000012.sst"));
        assert_eq!(parse("000012.sst"), Some(FileKind::Sstable(id)));
        assert_eq!(parse("000012.blob"), Some(FileKind::Blob(id)));
        assert_eq!(parse(&manifest_name(id)), Some(FileKind::Manifest(id)));
        assert_eq!(
            parse("1234567.sst"),
            Some(FileKind::Sstable(FileId(1_234_567)))
        );
        for other in [
            "CURRENT",
            "12.sst",
            "00001x.sst",
            ".sst",
            "MANIFEST-",
            "000012.sst.tmp",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
