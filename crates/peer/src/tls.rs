//! Encryption between nodes: TLS 1.3, both ends with a certificate of the cluster's authority.
//!
//! # What is authenticated, and what is not
//!
//! Both ends prove that they have the key of a certificate that the authority in `ca` issued, so that
//! nobody else can listen, alter, or take part. The caller also checks that the certificate it is
//! shown is for the host that it called, or for [`TlsFiles::server_name`] if that is given. The
//! *number* that a node gives in its hello is not in its certificate: any node of the cluster could
//! claim to be another one. Use the authority for nothing but one cluster, for the same reason:
//! whoever has a certificate of it is let in.
//!
//! A certificate needs the extended key usages *server authentication* and *client authentication*,
//! if it has any, since every node is both.
//!
//! # Files
//!
//! PEM. `cert` holds the node's certificate first, then intermediate ones if there are any; `key` its
//! private key (PKCS#8, PKCS#1 or SEC1; ECDSA P-256 or P-384, Ed25519, RSA); `ca` the authority's
//! certificates. [`Tls::reload`] reads all three anew, for the connections from then on; if anything
//! is wrong with them, or the authority in `ca` would not take the certificate in `cert`, what was in
//! force stays. [`Tls::load`] does not ask the authority: nothing better would be in force, and the clock
//! of a machine that has just started may be wrong for a while.
//!
//! The cryptography is that of `graviola`: Rust and assembler, no C, for x86-64 with AVX2 and for
//! aarch64 with the cryptographic extensions. Elsewhere [`Tls::load`] says so.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use firn_io::Env;
use firn_io::clock::Clock;
use firn_io::fs::{Fs, OpenMode};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The name of the protocol within TLS, so that no other service's connection is taken for one.
const ALPN: &[u8] = b"firn-peer";
/// Longest file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where certificates and keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The node's certificate, and those between it and the authority's.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The certificates of the cluster's authority.
    pub ca: PathBuf,
    /// What the certificates of the other nodes are for. `None`: for the host in their address.
    pub server_name: Option<String>,
}

/// What is wrong with certificates and keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(String);

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TlsError {}

struct Configs {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// What the files say.
struct Read {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    /// Decides about those who connect.
    clients: Arc<dyn ClientCertVerifier>,
}

/// Certificates and keys in force.
pub struct Tls {
    files: TlsFiles,
    fs: Arc<dyn Fs>,
    clock: Arc<dyn Clock>,
    configs: ArcSwap<Configs>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Time(Arc<dyn Clock>);

impl Time {
    fn now(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_millis(self.0.unix_ms()))
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.now())
    }
}

fn wrong(path: &Path, detail: impl fmt::Display) -> TlsError {
    TlsError(format!("{}: {detail}", path.display()))
}

fn read(fs: &Arc<dyn Fs>, path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = || {
        let file = fs.open(path, OpenMode::Read)?;
        let len = file.len()?;
        if len > MAX_FILE_BYTES {
            return Ok(Err(wrong(
                path,
                format!("{len} bytes, at most {MAX_FILE_BYTES} are read"),
            )));
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Ok(bytes))
    };
    read().unwrap_or_else(|error: firn_io::Error| Err(TlsError(error.to_string())))
}

fn certificates(fs: &Arc<dyn Fs>, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(fs, path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|error| wrong(path, error))?;
    if certificates.is_empty() {
        return Err(wrong(path, "there is no certificate in it (PEM)"));
    }
    Ok(certificates)
}

impl Read {
    fn new(files: &TlsFiles, fs: &Arc<dyn Fs>) -> Result<Self, TlsError> {
        if let Some(name) = &files.server_name {
            ServerName::try_from(name.as_str())
                .map_err(|error| TlsError(format!("the name of nodes, {name:?}: {error}")))?;
        }
        let chain = certificates(fs, &files.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&read(fs, &files.key)?).map_err(|error| {
            wrong(
                &files.key,
                format!("there is no private key in it: {error}"),
            )
        })?;
        let mut roots = RootCertStore::empty();
        for root in certificates(fs, &files.ca)? {
            roots.add(root).map_err(|error| wrong(&files.ca, error))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls_graviola::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| wrong(&files.ca, error))?;
        Ok(Self {
            chain,
            key,
            roots,
            provider,
            clients,
        })
    }

    /// Whether nodes that trust the same authority would take this node's certificate, from either end.
    fn check_own(&self, files: &TlsFiles, clock: &Arc<dyn Clock>) -> Result<(), TlsError> {
        let (own, between) = (&self.chain[0], &self.chain[1..]);
        let now = Time(Arc::clone(clock)).now();
        let algorithms = self.provider.signature_verification_algorithms.all;
        let as_client = || self.clients.verify_client_cert(own, between, now);
        let verified = ParsedCertificate::try_from(own)
            .and_then(|own| {
                let roots = &self.roots;
                verify_server_cert_signed_by_trust_anchor(&own, roots, between, now, algorithms)
            })
            .and_then(|()| as_client().map(drop));
        verified.map_err(|error| {
            let ca = files.ca.display();
            wrong(
                &files.cert,
                format!("nodes that trust {ca} would refuse it: {error}"),
            )
        })
    }

    fn configs(self, files: &TlsFiles, clock: &Arc<dyn Clock>) -> Result<Configs, TlsError> {
        let time: Arc<dyn TimeProvider> = Arc::new(Time(Arc::clone(clock)));
        let provider = self.provider;
        let servers =
            WebPkiServerVerifier::builder_with_provider(self.roots, Arc::clone(&provider))
                .build()
                .map_err(|error| wrong(&files.ca, error))?;
        let versions = &[&rustls::version::TLS13];
        let unusable = |error: rustls::Error| wrong(&files.key, error);
        let mut server =
            ServerConfig::builder_with_details(Arc::clone(&provider), Arc::clone(&time))
                .with_protocol_versions(versions)
                .map_err(unusable)?
                .with_client_cert_verifier(self.clients)
                .with_single_cert(self.chain.clone(), self.key.clone_key())
                .map_err(unusable)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        // A reload is to be in force for all that comes after it.
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_details(provider, time)
            .with_protocol_versions(versions)
            .map_err(unusable)?
            .with_webpki_verifier(servers)
            .with_client_auth_cert(self.chain, self.key)
            .map_err(unusable)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Configs {
            server: Arc::new(server),
            client: Arc::new(client),
        })
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Which of them is missing or wrong, and why.
    pub fn load(env: &Env, files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        if !graviola::util::is_cpu_supported() {
            let detail = "this processor lacks the instructions that TLS needs here (x86-64: AVX2, \
                          AES, ADX, BMI, PCLMULQDQ; aarch64: AES, SHA-2, PMULL)";
            return Err(TlsError(detail.into()));
        }
        let (fs, clock) = (Arc::clone(&env.fs), Arc::clone(&env.clock));
        let configs = Read::new(&files, &fs)?.configs(&files, &clock)?;
        Ok(Arc::new(Self {
            files,
            fs,
            clock,
            configs: ArcSwap::from_pointee(configs),
        }))
    }

    /// Reads the files anew, for the connections from now on. Blocks.
    ///
    /// # Errors
    /// As [`Tls::load`]; also a certificate that nodes with the same authority would not take: it is not
    /// the authority's, has expired, or is for another use. What was in force stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        let (files, clock) = (&self.files, &self.clock);
        let read = Read::new(files, &self.fs)?;
        read.check_own(files, clock)?;
        self.configs.store(Arc::new(read.configs(files, clock)?));
        Ok(())
    }

    /// Encrypts a connection that this node made to `host`.
    pub(crate) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        stream: S,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<S>> {
        let name = self.files.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
        let config = Arc::clone(&self.configs.load().client);
        TlsConnector::from(config).connect(name, stream).await
    }

    /// Encrypts a connection that somebody made to this node.
    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> std::io::Result<tokio_rustls::server::TlsStream<S>> {
        let config = Arc::clone(&self.configs.load().server);
        TlsAcceptor::from(config).accept(stream).await
    }
}
