//! How a verb ends: the one table of exit codes, and the failure that carries one.

use std::io;
use std::process::ExitCode;

/// The result of a verb and its parts.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// What the exit code says. Scripts rely on these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok = 0,
    NotFound = 1,
    Usage = 2,
    Unreachable = 3,
    Refused = 4,
    Corruption = 5,
}

/// The table, as help and documentation print it.
pub(crate) const TABLE: [(Exit, &str); 6] = [
    (Exit::Ok, "done"),
    (
        Exit::NotFound,
        "the key or namespace was not found, a condition failed, or a check warned",
    ),
    (
        Exit::Usage,
        "the command line, the configuration or the input is wrong",
    ),
    (
        Exit::Unreachable,
        "the server is unreachable or has no leader; trying again may help",
    ),
    (
        Exit::Refused,
        "refused: limit, quota, lock, overload, full or failing disk",
    ),
    (Exit::Corruption, "stored bytes are damaged"),
];

/// Why a verb did not do what it was asked to.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: Option<String>,
    advice: Option<String>,
    too_large: bool,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: Some(message.into()),
            advice: None,
            too_large: false,
        }
    }

    /// Nothing to say: the exit code, or what was printed, is the answer.
    pub(crate) fn silent(exit: Exit) -> Self {
        Self {
            exit,
            message: None,
            advice: None,
            too_large: false,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Adds a line that says what to do about it.
    #[must_use]
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Prints it to stderr and gives the process's exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if let Some(message) = &self.message {
            crate::output::complain(format_args!("firn: {message}"));
        }
        if let Some(advice) = &self.advice {
            crate::output::complain(format_args!("      {advice}"));
        }
        ExitCode::from(self.exit as u8)
    }

    /// Whether the store refused it for now; the load generator counts these and goes on.
    pub(crate) fn is_refusal(&self) -> bool {
        self.exit == Exit::Refused
    }

    /// Whether the store refused it for its size: less at a time may be taken.
    pub(crate) fn is_too_large(&self) -> bool {
        self.too_large
    }

    /// Adds a line that says what to do about it, if there is none yet.
    #[must_use]
    pub(crate) fn advise_at_least(self, advice: impl FnOnce() -> String) -> Self {
        match self.advice {
            None => self.advise(advice()),
            Some(_) => self,
        }
    }

    fn with_code(code: u8, message: String) -> Self {
        let exit = TABLE
            .iter()
            .map(|row| row.0)
            .find(|exit| *exit as u8 == code);
        Self::new(exit.unwrap_or(Exit::Refused), message)
    }
}

impl From<firn_engine::Error> for Failure {
    fn from(error: firn_engine::Error) -> Self {
        use firn_engine::Error as E;
        let message = error.to_string();
        match &error {
            E::InvalidArgument(_) => Self::usage(message),
            E::NamespaceNotFound(_) => Self::new(Exit::NotFound, message)
                .advise("`firn ns list` shows the namespaces, `firn ns create NAME` makes one"),
            E::ConditionFailed { .. } => Self::new(Exit::NotFound, message),
            E::Corruption { .. } => Self::new(Exit::Corruption, message)
                .advise("`firn verify --data-dir DIR` tells the extent of it; restore a copy, or `firn repair`"),
            E::Locked(_) => Self::new(Exit::Refused, message).advise(
                "talk to the server that holds it (--server ADDR), or stop that process first",
            ),
            E::DiskFull(_) => Self::new(Exit::Refused, message)
                .advise("delete data or add space; deletes are still accepted"),
            _ => Self::new(Exit::Refused, message),
        }
    }
}

impl From<firn_io::Error> for Failure {
    fn from(error: firn_io::Error) -> Self {
        Self::from(firn_engine::Error::from(error))
    }
}

impl From<firn_client::Error> for Failure {
    fn from(error: firn_client::Error) -> Self {
        let mut failure = Self::with_code(error.exit_code(), error.to_string());
        failure.too_large = error.problem().is_some_and(|problem| problem.status == 413);
        if matches!(error.kind, firn_client::ErrorKind::Unreachable) {
            return failure.advise(
                "is it running? `firn serve` starts one; --server ADDR names another, \
                 --data-dir DIR works on files that no server holds",
            );
        }
        failure
    }
}

/// An engine that does not open is told with the same advice as for the verbs that open it
/// themselves.
impl From<firn_server::serve::ServeError> for Failure {
    fn from(error: firn_server::serve::ServeError) -> Self {
        match error {
            firn_server::serve::ServeError::Engine(error) => Self::from(error),
            other => Self::with_code(other.exit_code(), other.to_string()),
        }
    }
}

impl From<firn_server::config::ConfigError> for Failure {
    fn from(error: firn_server::config::ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

/// For stdin and stdout. A reader that went away (`firn scan | head`) has what it wants: the
/// command ends quietly.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(Exit::Ok),
            io::ErrorKind::InvalidData => Self::usage(error.to_string()),
            _ => Self::new(Exit::Refused, error.to_string()),
        }
    }
}
