//! What nodes of a cluster send and store. What is taken must be encoded to something that is taken
//! again and says the same.

use bytes::Bytes;
use firn_replica::command::{Command, Write};
use firn_replica::message::{Answer, Request};
use firn_replica::types::Entry;

/// An entry of the log, and the command in it.
pub fn replica_entry(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let Ok(entry) = Entry::decode(&bytes) else {
        return;
    };
    let again = Entry::decode(&entry.to_bytes().into());
    assert_eq!(again.as_ref(), Ok(&entry), "an entry changed on its way");
    if let firn_replica::types::Payload::Command(body) = &entry.payload {
        replica_command(body);
    }
}

/// A command: many writes.
pub fn replica_command(data: &[u8]) {
    if let Ok(command) = Command::decode(data) {
        let count = command.len();
        if let Ok(changes) = command.with_changes(|changes| changes.len()) {
            assert_eq!(changes, count, "a write is missing");
        }
    }
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(write) = Write::from_bytes(bytes.clone()) {
        assert_eq!(*write.as_bytes(), bytes);
    }
}

/// A request or an answer.
pub fn replica_message(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(request) = Request::decode(&bytes) {
        let again = Request::decode(&request.encode().into());
        assert_eq!(again, Ok(request), "a request changed on its way");
    }
    if let Ok(answer) = Answer::decode(data) {
        let again = Answer::decode(&answer.encode());
        assert_eq!(again, Ok(answer), "an answer changed on its way");
    }
}
