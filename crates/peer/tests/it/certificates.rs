//! Authorities, and certificates of theirs, made with the cryptography that is tested.

use std::path::Path;

use firn_peer::TlsFiles;
use graviola::hashing::Sha256;
use graviola::signing::ecdsa::{P256, SigningKey};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyIdMethod, PublicKeyData, SerialNumber, SignatureAlgorithm,
};

pub(crate) struct Key {
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

pub(crate) type Authority = CertifiedIssuer<'static, Key>;

fn params(name: &str, number: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(&[number]));
    params.key_identifier_method = KeyIdMethod::PreSpecified(vec![number; 20]);
    params
}

pub(crate) fn authority(number: u8) -> Authority {
    let mut params = params("authority", number);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, Key::new()).unwrap()
}

/// Writes what a node needs into a directory: a certificate of an authority, and those it trusts.
pub(crate) fn issue(
    dir: &Path,
    authority: &Authority,
    trusted: &[&Authority],
    host: &str,
) -> TlsFiles {
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
        ca: write("ca.crt", trusted.iter().map(|ca| ca.pem()).collect()),
        server_name: None,
    }
}
