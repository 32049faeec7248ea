//! What can go wrong, and what is known about the write then.

use std::fmt;

use firn_api::code::Code;
use firn_api::http::Problem;

/// The result of a call.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed call.
#[derive(Clone, Debug)]
pub struct Error {
    /// What kind.
    pub kind: ErrorKind,
    /// What happened.
    pub detail: String,
}

/// The kinds ask different things of the caller.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The server answered with an error.
    Api(Box<Problem>),
    /// No connection could be made. Nothing was done.
    Unreachable,
    /// The deadline passed. A write may have happened.
    Deadline,
    /// The connection broke before the answer. A write may have happened.
    Unknown,
    /// The answer is not what this client understands.
    Protocol,
    /// The address or an argument is not valid. Nothing was sent.
    Usage,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, detail: impl fmt::Display) -> Self {
        Self {
            kind,
            detail: detail.to_string(),
        }
    }

    pub(crate) fn api(problem: Problem) -> Self {
        Self {
            detail: problem.detail.clone(),
            kind: ErrorKind::Api(Box::new(problem)),
        }
    }

    /// The server's code, if the server answered and this client knows the code.
    pub fn code(&self) -> Option<Code> {
        self.problem()
            .and_then(|problem| Code::from_name(&problem.code))
    }

    /// The server's answer, if it answered.
    pub fn problem(&self) -> Option<&Problem> {
        match &self.kind {
            ErrorKind::Api(problem) => Some(problem),
            _ => None,
        }
    }

    /// The exit code of a command that fails with this.
    pub fn exit_code(&self) -> u8 {
        match &self.kind {
            ErrorKind::Api(_) => self.code().map_or(3, Code::exit_code),
            ErrorKind::Usage => 2,
            _ => 3,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = &self.detail;
        match &self.kind {
            ErrorKind::Api(problem) => write!(f, "{detail} ({})", problem.code),
            ErrorKind::Unreachable => write!(f, "the server cannot be reached: {detail}"),
            ErrorKind::Deadline => write!(f, "no answer in time: {detail}"),
            ErrorKind::Unknown => write!(f, "the connection broke before the answer: {detail}"),
            ErrorKind::Protocol => write!(f, "the answer is not understood: {detail}"),
            ErrorKind::Usage => f.write_str(detail),
        }
    }
}

impl std::error::Error for Error {}
