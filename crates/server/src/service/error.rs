//! What the service says when it refuses: a code of the one table and the details that doors show.

use firn_api::code::Code;
use firn_engine::Error as EngineError;

/// The result of a request.
pub type Result<T> = std::result::Result<T, Error>;

/// A refused or failed request. Doors translate [`Error::code`] by the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What kind.
    pub code: Code,
    /// What happened this time.
    pub detail: String,
    /// The value of the exceeded limit.
    pub limit: Option<u64>,
    /// What was asked for.
    pub actual: Option<u64>,
    /// The version that the key has now, if a condition failed and the key exists.
    pub version: Option<u64>,
    /// The operation of the batch that failed.
    pub index: Option<u32>,
    /// The oldest version that a watch can begin at.
    pub oldest_version: Option<u64>,
    /// When to try again.
    pub retry_after_ms: Option<u64>,
}

impl Error {
    /// An error of this code.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let (limit, actual, version, index, retry_after_ms) = (None, None, None, None, None);
        Self {
            code,
            detail: detail.into(),
            limit,
            actual,
            version,
            index,
            oldest_version: None,
            retry_after_ms,
        }
    }

    /// The request is wrong.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, detail)
    }

    /// The limit called `name` was exceeded.
    pub fn limit(code: Code, name: &str, limit: u64, actual: u64) -> Self {
        let detail = format!("{name} is {limit}, got {actual}");
        Self {
            limit: Some(limit),
            actual: Some(actual),
            ..Self::new(code, detail)
        }
    }

    /// The server is about to stop.
    pub fn shutting_down() -> Self {
        let detail = "the server is about to stop";
        Self {
            retry_after_ms: Some(1_000),
            ..Self::new(Code::ShuttingDown, detail)
        }
    }

    /// There is more to do than the server can.
    pub fn overloaded(detail: impl Into<String>, retry_after_ms: u64) -> Self {
        Self {
            retry_after_ms: Some(retry_after_ms),
            ..Self::new(Code::Overloaded, detail)
        }
    }

    /// The same, about the argument of this name.
    #[must_use]
    pub fn about(self, name: &str) -> Self {
        Self {
            detail: format!("{name}: {}", self.detail),
            ..self
        }
    }

    /// The same, for the operation at this position of a batch.
    #[must_use]
    pub fn at(self, index: usize) -> Self {
        Self {
            index: Some(position(index)),
            detail: format!("operation {index}: {}", self.detail),
            ..self
        }
    }
}

/// A position in a batch. A batch that is in memory has fewer operations than this can count.
fn position(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        let detail = error.to_string();
        match error {
            EngineError::InvalidArgument(detail) => Self::invalid(detail),
            EngineError::LimitExceeded { limit, max, actual } => {
                let code = match limit {
                    "key_bytes" => Code::KeyTooLarge,
                    "value_bytes" => Code::ValueTooLarge,
                    _ => Code::LimitExceeded,
                };
                Self::limit(code, limit, max, actual)
            }
            EngineError::ConditionFailed { index, actual } => Self {
                version: actual,
                index: Some(position(index)),
                ..Self::new(Code::ConditionFailed, detail)
            },
            EngineError::NamespaceNotFound(_) => Self::new(Code::NamespaceNotFound, detail),
            EngineError::NamespaceExists(_) => Self::new(Code::NamespaceExists, detail),
            EngineError::Corruption { .. } => Self::new(Code::Corruption, detail),
            EngineError::DiskFull(_) => Self::new(Code::DiskFull, detail),
            EngineError::Io(ref cause) if cause.is_out_of_space() => {
                Self::new(Code::DiskFull, detail)
            }
            EngineError::Io(_) => Self::new(Code::IoError, detail),
            // Nobody knows when the disk will be mended; a minute keeps clients from hammering.
            EngineError::Poisoned(_) => Self {
                retry_after_ms: Some(60_000),
                ..Self::new(Code::LogPoisoned, detail)
            },
            EngineError::Overloaded { retry_after_ms } => Self::overloaded(detail, retry_after_ms),
            EngineError::WatchTooOld { oldest, .. } => Self {
                oldest_version: Some(oldest),
                ..Self::new(Code::VersionTooOld, detail)
            },
            EngineError::Closed(_) => Self::shutting_down(),
            _ => Self::new(Code::Internal, detail),
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for Error {}
