//! Bugs that are there on purpose, so that the tests can be tested: each must be found by the
//! simulator. They are in builds with the feature `planted-bugs` only, and there only in the thread
//! that asked for one; in all others the compiler sees that the question is always answered no.

/// A bug. Names say what goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Entries are reported durable when they are in the log and not yet on the disk.
    EarlyAck,
    /// A vote is answered and not written.
    LostVote,
    /// Files of the engine are written without waiting for the log.
    FlushAhead,
    /// A leader takes its lease for valid however old it is.
    StaleLease,
    /// A read asks nobody whether this node still leads.
    LocalRead,
    /// Of a tail that a new leader does not have one entry stays.
    WrongTruncate,
    /// The first entry after a start is applied twice.
    DoubleApply,
    /// What the state machine keeps of a change of members is the one before.
    SkippedMembership,
    /// A restarted leader leads on without an election.
    LeaderRestore,
    /// A snapshot is put into force before its files are all there.
    HalfInstall,
    /// A write is passed on to the leader twice.
    TwiceForwarded,
    /// Entries are purged that no snapshot has.
    EagerPurge,
    /// A cut of the log is not written down.
    UnloggedTruncate,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::EarlyAck,
        Self::LostVote,
        Self::FlushAhead,
        Self::StaleLease,
        Self::LocalRead,
        Self::WrongTruncate,
        Self::DoubleApply,
        Self::SkippedMembership,
        Self::LeaderRestore,
        Self::HalfInstall,
        Self::TwiceForwarded,
        Self::EagerPurge,
        Self::UnloggedTruncate,
    ];
}

#[cfg(feature = "planted-bugs")]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether this bug is there, in this thread.
    pub(crate) fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// From now on this bug is there in this thread, or none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }
}

#[cfg(feature = "planted-bugs")]
pub(crate) use switch::is;
#[cfg(feature = "planted-bugs")]
pub use switch::plant;

/// Whether this bug is there: never.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn is(_: Bug) -> bool {
    false
}
