//! Encrypted connections.

use std::sync::Arc;

use firn_io::Env;
use firn_peer::{PeerOptions, Tls, TlsFiles};
use firn_replica::transport::Class;

use crate::certificates::{Authority, authority, issue};
use crate::common::{CLUSTER, End, echo, options, peer, why};

fn load(files: TlsFiles) -> Arc<Tls> {
    Tls::load(&Env::os(1), files).unwrap()
}

fn encrypted(node: u64, tls: &Arc<Tls>) -> PeerOptions {
    PeerOptions {
        tls: Some(Arc::clone(tls)),
        ..options(node)
    }
}

#[tokio::test]
async fn nodes_with_certificates_of_one_authority_talk() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let ca = authority(1);
    let server_tls = load(issue(dirs[0].path(), &ca, &[&ca], "127.0.0.1"));
    let client_tls = load(issue(dirs[1].path(), &ca, &[&ca], "127.0.0.1"));
    let server = End::new(encrypted(2, &server_tls));
    let (address, _) = server.serve("127.0.0.1:0", echo()).await;
    let client = End::new(encrypted(1, &client_tls));
    let to = peer(2, &address);
    assert_eq!(
        client.ask(&to, Class::Urgent, b"secret").await.unwrap(),
        "secret"
    );
    let large = vec![3; 3 << 20];
    let call = firn_replica::transport::Transport::call(
        &*client.peers,
        &to,
        Class::Log,
        large.clone().into(),
        crate::common::LONG,
    );
    assert_eq!(call.await.unwrap(), large);
    // In plain text nobody gets in, and both sides say what is the matter.
    let plain = End::new(PeerOptions::new(CLUSTER, 3, 103));
    let error = why(plain.ask(&to, Class::Log, b"x").await);
    assert!(error.contains("handshake failed"), "{error}");
    let (address, _) = plain.serve("127.0.0.1:0", echo()).await;
    let error = why(client.ask(&peer(3, &address), Class::Log, b"x").await);
    assert!(error.contains("TLS"), "{error}");
}

#[tokio::test]
async fn a_certificate_of_another_authority_or_for_another_host_is_refused() {
    let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let (ours, theirs) = (authority(1), authority(2));
    let server_tls = load(issue(dirs[0].path(), &ours, &[&ours], "127.0.0.1"));
    let server = End::new(encrypted(2, &server_tls));
    let (address, _) = server.serve("127.0.0.1:0", echo()).await;
    let to = peer(2, &address);
    // It trusts the right authority, but was not certified by it.
    let stranger = load(issue(dirs[1].path(), &theirs, &[&ours], "127.0.0.1"));
    let error = why(End::new(encrypted(1, &stranger))
        .ask(&to, Class::Log, b"x")
        .await);
    assert!(error.contains("handshake failed"), "{error}");
    // The other way round.
    let stranger = load(issue(dirs[2].path(), &ours, &[&theirs], "127.0.0.1"));
    let error = why(End::new(encrypted(1, &stranger))
        .ask(&to, Class::Log, b"x")
        .await);
    assert!(error.contains("invalid peer certificate"), "{error}");
    // The certificate of the server is for its address, and not for that name.
    let mut files = issue(dirs[3].path(), &ours, &[&ours], "127.0.0.1");
    files.server_name = Some("node.firn.internal".into());
    let error = why(End::new(encrypted(1, &load(files)))
        .ask(&to, Class::Log, b"x")
        .await);
    assert!(error.contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn certificates_are_read_anew() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (old, new) = (authority(1), authority(2));
    let issue = |at: usize, by, trusted: &[_]| issue(dirs[at].path(), by, trusted, "127.0.0.1");
    let server_tls = load(issue(0, &old, &[&old]));
    let client_tls = load(issue(1, &old, &[&old]));
    let server = End::new(encrypted(2, &server_tls));
    let (address, _) = server.serve("127.0.0.1:0", echo()).await;
    let to = peer(2, &address);
    // Nothing below is to do anything to this one's connection.
    let witness = End::new(encrypted(3, &client_tls));
    assert_eq!(witness.ask(&to, Class::Log, b"x").await.unwrap(), "x");
    // A node that was not there yet, so that its connection is new.
    let mut number = 10;
    let mut ask_anew = async || {
        number += 1;
        let client = End::new(encrypted(number, &client_tls));
        client.ask(&to, Class::Log, b"x").await
    };
    assert_eq!(ask_anew().await.unwrap(), "x");
    // First everybody trusts both, then each shows the new one, then the old one goes.
    for (by, trusted) in [
        (&old, &[&old, &new][..]),
        (&new, &[&old, &new]),
        (&new, &[&new]),
    ] {
        issue(0, by, trusted);
        server_tls.reload().unwrap();
        assert_eq!(ask_anew().await.unwrap(), "x");
        issue(1, by, trusted);
        client_tls.reload().unwrap();
        assert_eq!(ask_anew().await.unwrap(), "x");
    }
    // The old one is of no use any more: to nobody who calls, and to nobody who is called.
    issue(1, &old, &[&old]);
    client_tls.reload().unwrap();
    let error = why(ask_anew().await);
    assert!(error.contains("invalid peer certificate"), "{error}");
    issue(1, &old, &[&old, &new]);
    client_tls.reload().unwrap();
    let error = why(ask_anew().await);
    assert!(error.contains("handshake failed"), "{error}");
    assert_eq!(witness.ask(&to, Class::Log, b"x").await.unwrap(), "x");
    let connects = |end: &End| -> u64 { end.peers.stats().iter().map(|l| l.3.connects).sum() };
    assert_eq!(connects(&witness), 1);
}

#[tokio::test]
async fn files_that_are_wrong_change_nothing() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (old, new) = (authority(1), authority(2));
    let of_server =
        |by: &Authority, trusted: &Authority| issue(dirs[0].path(), by, &[trusted], "127.0.0.1");
    let server_tls = load(of_server(&old, &old));
    let client_tls = load(issue(dirs[1].path(), &old, &[&old], "127.0.0.1"));
    let server = End::new(encrypted(2, &server_tls));
    let (address, _) = server.serve("127.0.0.1:0", echo()).await;
    let to = peer(2, &address);
    let write = |name: &str, text: &str| std::fs::write(dirs[0].path().join(name), text).unwrap();
    let read = |name: &str| std::fs::read_to_string(dirs[0].path().join(name)).unwrap();
    let mut number = 10;
    let mut refused = async |file: &str, why: &str| {
        let error = server_tls.reload().unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(why), "{error}");
        // What was in force is, for connections from now on.
        number += 1;
        let client = End::new(encrypted(number, &client_tls));
        assert_eq!(client.ask(&to, Class::Log, b"x").await.unwrap(), "x");
    };
    for file in ["node.crt", "node.key", "ca.crt"] {
        of_server(&new, &new);
        write(file, "nonsense");
        refused(file, "there is no").await;
        std::fs::remove_file(dirs[0].path().join(file)).unwrap();
        refused(file, "").await;
    }
    // Half of a pair.
    of_server(&old, &old);
    let key = read("node.key");
    of_server(&new, &new);
    write("node.key", &key);
    refused("node.key", "KeyMismatch").await;
    // Nodes with the same authorities would refuse it.
    of_server(&new, &old);
    refused("node.crt", "would refuse it").await;
    // All is well again, and in force.
    of_server(&new, &new);
    server_tls.reload().unwrap();
    let late = End::new(encrypted(9, &client_tls));
    let error = why(late.ask(&to, Class::Log, b"x").await);
    assert!(error.contains("invalid peer certificate"), "{error}");
}

#[test]
fn what_is_wrong_with_the_files_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (authority(1), authority(2));
    let files = issue(dir.path(), &ca, &[&ca], "127.0.0.1");
    let error = |files: TlsFiles| Tls::load(&Env::os(1), files).unwrap_err().to_string();
    let missing = TlsFiles {
        ca: dir.path().join("none.crt"),
        ..files.clone()
    };
    assert!(error(missing).contains("none.crt"));
    let swapped = TlsFiles {
        cert: files.key.clone(),
        ..files.clone()
    };
    assert!(error(swapped).contains("no certificate"));
    let named = TlsFiles {
        server_name: Some("no such\nname".into()),
        ..files.clone()
    };
    assert!(error(named).contains("name of nodes"));
    // The key of another certificate.
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = TlsFiles {
        key: issue(elsewhere.path(), &other, &[&ca], "127.0.0.1").key,
        ..files
    };
    let error = error(foreign);
    assert!(error.contains("node.key"), "{error}");
}
