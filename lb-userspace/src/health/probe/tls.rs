//! Owns the TLS of probes: whom they trust, which name they ask for, and the handshake.

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::{
    fs::OpenOptions, io::AsyncReadExt as _, net::TcpStream, sync::OnceCell, task::spawn_blocking,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::ProbeError;
use crate::model::Tls;

/// The system's trusted certificates, read when they are first needed.
#[derive(Debug, Clone, Default)]
pub(super) struct SystemRoots(Arc<OnceCell<Arc<RootCertStore>>>);

impl SystemRoots {
    async fn get(&self) -> Result<Arc<RootCertStore>, ProbeError> {
        let read = || async {
            let read = spawn_blocking(rustls_native_certs::load_native_certs).await;
            let read = read.map_err(|error| unaskable(&error))?;
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(read.certs);
            if roots.is_empty() {
                let problem =
                    "this host trusts no certificate: install ca-certificates, or set tls.ca";
                return Err(ProbeError::Unaskable(problem.to_owned()));
            }
            Ok(Arc::new(roots))
        };
        self.0.get_or_try_init(read).await.cloned()
    }
}

/// Makes TLS connections as one check wants them.
pub(super) struct Connector {
    tls: TlsConnector,
    /// The backend's address where absent.
    name: Option<ServerName<'static>>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn unaskable(error: &impl ToString) -> ProbeError {
    ProbeError::Unaskable(error.to_string())
}

impl Connector {
    /// As `tls` says; `host` is the Host header, `protocol` what is agreed upon by ALPN.
    pub(super) async fn new(
        tls: &Tls,
        host: Option<&str>,
        protocol: Option<&str>,
        roots: &SystemRoots,
    ) -> Result<Self, ProbeError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unaskable(&error))?;
        let builder = if tls.insecure {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        } else {
            let roots = match &tls.ca {
                Some(ca) => read_roots(ca).await?,
                None => roots.get().await?,
            };
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
            builder.with_webpki_verifier(verifier.map_err(|error| unaskable(&error))?)
        };
        let mut config = builder.with_no_client_auth();
        // A session taken up again would not show the certificate, which is part of what is checked.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = protocol
            .into_iter()
            .map(|p| p.as_bytes().to_vec())
            .collect();
        let name = match &tls.server_name {
            Some(name) => Some(ServerName::try_from(name.clone()).map_err(|e| unaskable(&e))?),
            None => host.and_then(name_of),
        };
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            name,
        })
    }

    /// Shakes hands over `stream`, which leads to `address`.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Result<TlsStream<TcpStream>, ProbeError> {
        let name = self.name.clone();
        let name = name.unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
        let connected = self.tls.connect(name, stream).await;
        connected.map_err(|error| refused(&error))
    }
}

fn refused(error: &io::Error) -> ProbeError {
    match error.get_ref() {
        Some(inner) if inner.is::<rustls::Error>() => ProbeError::Tls(inner.to_string()),
        _ => ProbeError::from_broken(error),
    }
}

/// The name in a Host header, which may have a port behind it.
fn name_of(host: &str) -> Option<ServerName<'static>> {
    let bare = host
        .rsplit_once(':')
        .filter(|(_, port)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
        .map_or(host, |(name, _)| name);
    let bare = bare.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned()).ok()
}

async fn read_roots(path: &Path) -> Result<Arc<RootCertStore>, ProbeError> {
    let shown = path.display().to_string();
    let failed = |problem: &dyn ToString| {
        ProbeError::Unaskable(format!("tls.ca {shown}: {}", problem.to_string()))
    };
    let pem = read_file(path).await.map_err(|error| failed(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| failed(&error))?;
        roots.add(certificate).map_err(|error| failed(&error))?;
    }
    if roots.is_empty() {
        return Err(failed(&"there is no certificate in it"));
    }
    Ok(Arc::new(roots))
}

/// Reads a file, and nothing that merely looks like one: a pipe or a device may have no end, or no beginning.
async fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    // Opening a pipe would wait for who writes to it.
    let opened = options.read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut file = opened.await?;
    if !file.metadata().await?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content).await?;
    Ok(content)
}

/// Takes any certificate, as long as the server has its key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
