//! Encrypted connections. The certificates are made here, with the cryptography that is tested.

use std::path::Path;
use std::sync::Arc;

use firn_io::Env;
use firn_peer::{PeerOptions, Tls, TlsFiles};
use firn_replica::transport::Class;
use graviola::hashing::Sha256;
use graviola::signing::ecdsa::{P256, SigningKey};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyIdMethod, PublicKeyData, SerialNumber, SignatureAlgorithm,
};

use crate::common::{CLUSTER, End, echo, options, peer, why};

struct Key {
    key: SigningKey<P256>,
    public: Vec<u8>,
}

impl Key {
    fn new() -> Self {
        let key = SigningKey::<P256>::generate().unwrap();
        let mut buffer = [0; 256];
        let spki = key.to_spki_der(&mut buffer).unwrap();
        // The point is at the end: a byte that says uncompressed, and two coordinates.
        let public = spki[spki.len() - 65..].to_vec();
        Self { key, public }
    }

    fn pem(&self) -> String {
        let mut buffer = [0; 512];
        let der = self.key.to_pkcs8_der(&mut buffer).unwrap();
        pem::encode(&pem::Pem::new("PRIVATE KEY", der))
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let mut buffer = [0; 128];
        let signature = self.key.sign_asn1::<Sha256>(&[message], &mut buffer);
        Ok(signature
            .map_err(|_| rcgen::Error::RemoteKeyError)?
            .to_vec())
    }
}

type Authority = CertifiedIssuer<'static, Key>;

fn params(name: &str, number: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(&[number]));
    params.key_identifier_method = KeyIdMethod::PreSpecified(vec![number; 20]);
    params
}

fn authority(number: u8) -> Authority {
    let mut params = params("authority", number);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, Key::new()).unwrap()
}

/// Writes what a node needs into a directory.
fn issue(dir: &Path, authority: &Authority, trusted: &Authority, host: &str) -> TlsFiles {
    let mut params = params("node", 9);
    params.subject_alt_names = CertificateParams::new(vec![host.to_owned()])
        .unwrap()
        .subject_alt_names;
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = Key::new();
    let certificate = params.signed_by(&key, authority).unwrap();
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    TlsFiles {
        cert: write("node.crt", certificate.pem()),
        key: write("node.key", key.pem()),
        ca: write("ca.crt", trusted.pem()),
        server_name: None,
    }
}

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
    let server_tls = load(issue(dirs[0].path(), &ca, &ca, "127.0.0.1"));
    let client_tls = load(issue(dirs[1].path(), &ca, &ca, "127.0.0.1"));
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
    let server_tls = load(issue(dirs[0].path(), &ours, &ours, "127.0.0.1"));
    let server = End::new(encrypted(2, &server_tls));
    let (address, _) = server.serve("127.0.0.1:0", echo()).await;
    let to = peer(2, &address);
    // It trusts the right authority, but was not certified by it.
    let stranger = load(issue(dirs[1].path(), &theirs, &ours, "127.0.0.1"));
    let error = why(End::new(encrypted(1, &stranger))
        .ask(&to, Class::Log, b"x")
        .await);
    assert!(error.contains("handshake failed"), "{error}");
    // The other way round.
    let stranger = load(issue(dirs[2].path(), &ours, &theirs, "127.0.0.1"));
    let error = why(End::new(encrypted(1, &stranger))
        .ask(&to, Class::Log, b"x")
        .await);
    assert!(error.contains("invalid peer certificate"), "{error}");
    // The certificate of the server is for its address, and not for that name.
    let mut files = issue(dirs[3].path(), &ours, &ours, "127.0.0.1");
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
    let server_tls = load(issue(dirs[0].path(), &old, &old, "127.0.0.1"));
    let client_tls = load(issue(dirs[1].path(), &new, &new, "127.0.0.1"));
    let mut of_client = encrypted(1, &client_tls);
    of_client.pause = Default::default();
    let server = End::new(encrypted(2, &server_tls));
    let (address, _) = server.serve("127.0.0.1:0", echo()).await;
    let client = End::new(of_client);
    let to = peer(2, &address);
    why(client.ask(&to, Class::Log, b"x").await);
    // What cannot be read changes nothing.
    std::fs::write(dirs[0].path().join("node.key"), "nonsense").unwrap();
    let error = server_tls.reload().unwrap_err().to_string();
    assert!(error.contains("node.key"), "{error}");
    issue(dirs[0].path(), &new, &new, "127.0.0.1");
    server_tls.reload().unwrap();
    assert_eq!(client.ask(&to, Class::Log, b"x").await.unwrap(), "x");
}

#[test]
fn what_is_wrong_with_the_files_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (authority(1), authority(2));
    let files = issue(dir.path(), &ca, &ca, "127.0.0.1");
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
        key: issue(elsewhere.path(), &other, &ca, "127.0.0.1").key,
        ..files
    };
    let error = error(foreign);
    assert!(error.contains("node.key"), "{error}");
}
