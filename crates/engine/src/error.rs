//! What the engine's callers are told when something fails, and what they must do about it.

use std::fmt;
use std::path::PathBuf;

/// The result of an operation on the engine.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation. The variants are few, because each asks something else of the caller;
/// details are in the message.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The call itself is wrong (an empty range, an unknown option). Do not repeat it.
    InvalidArgument(String),
    /// Something is larger than allowed. Do not repeat it.
    LimitExceeded {
        /// Which limit, as the options and the documentation name it: `key_bytes`, `value_bytes`...
        limit: &'static str,
        /// Its value.
        max: u64,
        /// What was asked for.
        actual: u64,
    },
    /// A condition of a batch did not hold; nothing was written. Read again, decide again.
    ConditionFailed {
        /// The position of the failed condition in the batch.
        index: usize,
        /// The version that the key has now; `None` if it does not exist.
        actual: Option<u64>,
    },
    /// There is no namespace of this name.
    NamespaceNotFound(String),
    /// There is a namespace of this name already.
    NamespaceExists(String),
    /// Stored bytes are damaged. Run verify; restore or repair.
    Corruption {
        /// The damaged file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        detail: String,
    },
    /// The files are of a format version that this build does not know. Use a newer build.
    UnsupportedFormat(String),
    /// The disk refused an operation. For writes the engine is poisoned if durability is in doubt.
    Io(firn_io::Error),
    /// The disk is full: the write was refused and nothing was lost. Delete data or add space;
    /// deletes are still accepted and writes resume by themselves.
    DiskFull(String),
    /// An earlier write to the log failed, so that no further write can be promised. Reads go on.
    /// Restart the process after mending the disk.
    Poisoned(String),
    /// Writes arrive faster than the disk takes them; nothing was written. Repeat after the delay.
    Overloaded {
        /// When it is worth trying again, in milliseconds.
        retry_after_ms: u64,
    },
    /// A watch wants versions that the log no longer has. Read the state (a scan, a checkpoint) and
    /// watch from there.
    WatchTooOld {
        /// The version it wants.
        wanted: u64,
        /// The oldest version that a watch can begin at.
        oldest: u64,
    },
    /// Another process holds the directory open.
    Locked(PathBuf),
    /// The database was closed, or was opened for reading only.
    Closed(&'static str),
}

impl Error {
    /// Damage found at `offset` of `path`.
    pub fn corruption(path: impl Into<PathBuf>, offset: u64, detail: impl Into<String>) -> Self {
        Self::Corruption {
            path: path.into(),
            offset,
            detail: detail.into(),
        }
    }

    /// Whether stored bytes were found damaged.
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::Corruption { .. })
    }

    /// Whether the disk is full.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::DiskFull(_) => true,
            Self::Io(e) => e.is_out_of_space(),
            _ => false,
        }
    }

    /// A second copy, for a failure that several waiters must be told of.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        match self {
            Self::InvalidArgument(s) => Self::InvalidArgument(s.clone()),
            Self::LimitExceeded { limit, max, actual } => Self::LimitExceeded {
                limit,
                max: *max,
                actual: *actual,
            },
            Self::ConditionFailed { index, actual } => Self::ConditionFailed {
                index: *index,
                actual: *actual,
            },
            Self::NamespaceNotFound(s) => Self::NamespaceNotFound(s.clone()),
            Self::NamespaceExists(s) => Self::NamespaceExists(s.clone()),
            Self::Corruption {
                path,
                offset,
                detail,
            } => Self::Corruption {
                path: path.clone(),
                offset: *offset,
                detail: detail.clone(),
            },
            Self::UnsupportedFormat(s) => Self::UnsupportedFormat(s.clone()),
            Self::Io(e) => Self::Io(e.duplicate()),
            Self::DiskFull(s) => Self::DiskFull(s.clone()),
            Self::Poisoned(s) => Self::Poisoned(s.clone()),
            Self::Overloaded { retry_after_ms } => Self::Overloaded {
                retry_after_ms: *retry_after_ms,
            },
            Self::WatchTooOld { wanted, oldest } => Self::WatchTooOld {
                wanted: *wanted,
                oldest: *oldest,
            },
            Self::Locked(p) => Self::Locked(p.clone()),
            Self::Closed(s) => Self::Closed(s),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidArgument(detail) => write!(f, "invalid argument: {detail}"),
            Self::LimitExceeded { limit, max, actual } => {
                write!(f, "limit {limit} exceeded: at most {max}, got {actual}")
            }
            Self::ConditionFailed {
                index,
                actual: Some(version),
            } => {
                write!(f, "condition {index} failed: the key has version {version}")
            }
            Self::ConditionFailed {
                index,
                actual: None,
            } => {
                write!(f, "condition {index} failed: the key does not exist")
            }
            Self::NamespaceNotFound(name) => write!(f, "namespace {name:?} does not exist"),
            Self::NamespaceExists(name) => write!(f, "namespace {name:?} exists already"),
            Self::Corruption {
                path,
                offset,
                detail,
            } => {
                write!(
                    f,
                    "corruption in {} at offset {offset}: {detail}",
                    path.display()
                )
            }
            Self::UnsupportedFormat(detail) => write!(f, "unsupported format: {detail}"),
            Self::Io(e) => write!(f, "{e}"),
            Self::DiskFull(detail) => write!(f, "disk full: {detail}"),
            Self::Poisoned(detail) => write!(f, "writes are refused since {detail}"),
            Self::Overloaded { retry_after_ms } => {
                write!(f, "overloaded: try again in {retry_after_ms} ms")
            }
            Self::WatchTooOld { wanted, oldest } => write!(
                f,
                "the changefeed no longer has version {wanted}; the oldest that it has is {oldest}"
            ),
            Self::Locked(path) => write!(f, "{} is held open by another process", path.display()),
            Self::Closed(detail) => write!(f, "{detail}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(e) => Some(e),
            _ => None,
        }
    }
}

impl From<firn_io::Error> for Error {
    fn from(e: firn_io::Error) -> Self {
        if e.is_corruption() {
            let offset = e.offset.unwrap_or(0);
            Self::Corruption {
                path: e.path,
                offset,
                detail: e.source.to_string(),
            }
        } else {
            Self::Io(e)
        }
    }
}
