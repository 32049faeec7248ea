//! What went wrong at the disk: which operation, on which file, where in it, and the cause.

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of an operation on a file, a directory or a log.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation on a file or directory. It always names the operation and the path, and the
/// offset where there is one.
#[derive(Debug)]
pub struct Error {
    /// What was attempted, in the imperative: "read", "sync", "rename".
    pub op: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The byte offset in the file, for reads, writes and damage.
    pub offset: Option<u64>,
    /// The cause.
    pub source: std::io::Error,
}

impl Error {
    /// An error of `op` on `path`.
    pub fn new(op: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self {
            op,
            path: path.to_path_buf(),
            offset: None,
            source,
        }
    }

    /// An error of `op` at `offset` of `path`.
    pub fn at(op: &'static str, path: &Path, offset: u64, source: std::io::Error) -> Self {
        Self {
            op,
            path: path.to_path_buf(),
            offset: Some(offset),
            source,
        }
    }

    /// Stored bytes are not what was written: `detail` says what is wrong at `offset` of `path`.
    pub fn corruption(path: &Path, offset: u64, detail: impl Into<String>) -> Self {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, detail.into());
        Self::at("decode", path, offset, source)
    }

    /// Whether the stored bytes are damaged (as opposed to the disk refusing an operation).
    pub fn is_corruption(&self) -> bool {
        self.source.kind() == std::io::ErrorKind::InvalidData
    }

    /// Whether the disk could not give back what is stored: a sector that cannot be read. It may have been a
    /// passing failure of the way to the disk.
    pub fn is_unreadable(&self) -> bool {
        matches!(self.op, "open" | "read") && self.source.raw_os_error() == Some(libc::EIO)
    }

    /// Whether the disk (or the quota on it) is full.
    pub fn is_out_of_space(&self) -> bool {
        matches!(
            self.source.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        )
    }

    /// Whether the file or directory does not exist.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == std::io::ErrorKind::NotFound
    }

    /// A second copy, for a failure that several waiters must be told of.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let source = match self.source.raw_os_error() {
            Some(code) => std::io::Error::from_raw_os_error(code),
            None => std::io::Error::new(self.source.kind(), self.source.to_string()),
        };
        Self {
            op: self.op,
            path: self.path.clone(),
            offset: self.offset,
            source,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.op, self.path.display())?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        write!(f, ": {}", self.source)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
