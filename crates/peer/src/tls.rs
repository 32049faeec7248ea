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
//! is wrong with them, what was in force stays.
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
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
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

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let since_epoch = Duration::from_millis(self.0.unix_ms());
        Some(UnixTime::since_unix_epoch(since_epoch))
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

fn configs(
    files: &TlsFiles,
    fs: &Arc<dyn Fs>,
    clock: &Arc<dyn Clock>,
) -> Result<Configs, TlsError> {
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
    let time: Arc<dyn TimeProvider> = Arc::new(Time(Arc::clone(clock)));
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| wrong(&files.ca, error))?;
    let servers = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .map_err(|error| wrong(&files.ca, error))?;
    let versions = &[&rustls::version::TLS13];
    let unusable = |error: rustls::Error| wrong(&files.key, error);
    let mut server = ServerConfig::builder_with_details(Arc::clone(&provider), Arc::clone(&time))
        .with_protocol_versions(versions)
        .map_err(unusable)?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(unusable)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    // A reload is to be in force for all that comes after it.
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_details(provider, time)
        .with_protocol_versions(versions)
        .map_err(unusable)?
        .with_webpki_verifier(servers)
        .with_client_auth_cert(chain, key)
        .map_err(unusable)?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = Resumption::disabled();
    Ok(Configs {
        server: Arc::new(server),
        client: Arc::new(client),
    })
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
        let configs = configs(&files, &fs, &clock)?;
        Ok(Arc::new(Self {
            files,
            fs,
            clock,
            configs: ArcSwap::from_pointee(configs),
        }))
    }

    /// Reads the files anew, for the connections from now on.
    ///
    /// # Errors
    /// As [`Tls::load`]; what was in force stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        let configs = configs(&self.files, &self.fs, &self.clock)?;
        self.configs.store(Arc::new(configs));
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
