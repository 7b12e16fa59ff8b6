//! HTTPS probes against real servers on the loopback, with certificates made on the spot.

use std::{io::Write as _, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    health::probe::{
        Network, Prober as _,
        testing::{ask, speaks_http},
    },
    model::{Check, Http, Probe},
};

const NAME: &str = "app.example";

/// An authority, and its certificate in a file.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: NamedTempFile,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(issuer.pem().as_bytes()).unwrap();
        Self { issuer, file }
    }

    /// A server that this authority vouches for.
    async fn server(&self, params: CertificateParams) -> (SocketAddr, JoinHandle<Option<String>>) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        serve(certificate.der().clone(), &key).await
    }

    fn trusted(&self) -> Tls {
        Tls {
            ca: Some(self.file.path().to_owned()),
            ..Tls::default()
        }
    }
}

fn named() -> CertificateParams {
    CertificateParams::new([NAME.to_owned()]).unwrap()
}

/// A server for one connection. Yields the name that it was asked for.
async fn serve(
    certificate: CertificateDer<'static>,
    key: &KeyPair,
) -> (SocketAddr, JoinHandle<Option<String>>) {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.ok()?;
        let asked_for = stream.get_ref().1.server_name().map(str::to_owned);
        let mut request = [0; 4_096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        stream.write_all(answer).await.unwrap();
        stream.shutdown().await.unwrap();
        asked_for
    });
    (address, server)
}

fn https(host: Option<&str>, tls: Tls) -> Check {
    Check::new(Probe::Https(Http {
        host: host.map(str::to_owned),
        tls: Some(tls),
        ..Http::default()
    }))
}

#[tokio::test]
async fn a_server_with_a_certificate_for_its_name_is_trusted_and_asked_for_by_it() {
    let authority = Authority::new();
    for host in [NAME, "app.example:8443"] {
        let (address, server) = authority.server(named()).await;
        let check = https(Some(host), authority.trusted());
        assert_eq!(ask(address, &check).await.map(drop), Ok(()), "{host}");
        assert_eq!(server.await.unwrap().as_deref(), Some(NAME));
    }
}

#[tokio::test]
async fn server_name_goes_before_the_host() {
    let authority = Authority::new();
    let (address, server) = authority.server(named()).await;
    let tls = Tls {
        server_name: Some(NAME.to_owned()),
        ..authority.trusted()
    };
    assert!(
        ask(address, &https(Some("other.example"), tls))
            .await
            .is_ok()
    );
    assert_eq!(server.await.unwrap().as_deref(), Some(NAME));
}

#[tokio::test]
async fn without_a_name_the_certificate_must_bear_the_address() {
    let authority = Authority::new();
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let (address, server) = authority.server(params).await;
    assert!(
        ask(address, &https(None, authority.trusted()))
            .await
            .is_ok()
    );
    assert_eq!(
        server.await.unwrap(),
        None,
        "an address is not asked for by SNI"
    );
    let (address, _server) = authority.server(named()).await;
    let error = ask(address, &https(None, authority.trusted()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn wrong_name_expiry_self_signature_and_strangers_are_refused_and_blamed() {
    let authority = Authority::new();
    let mut expired = named();
    expired.not_before = date_time_ymd(2001, 1, 1);
    expired.not_after = date_time_ymd(2002, 1, 1);
    let own_key = KeyPair::generate().unwrap();
    let own = named().self_signed(&own_key).unwrap();
    let other_name = CertificateParams::new(["other.example".to_owned()]).unwrap();
    for ((address, _server), part) in [
        (authority.server(other_name).await, "not valid for name"),
        (authority.server(expired).await, "expired"),
        (serve(own.der().clone(), &own_key).await, "UnknownIssuer"),
        (
            Authority::new().server(named()).await,
            "invalid peer certificate",
        ),
    ] {
        let check = https(Some(NAME), authority.trusted());
        let error = ask(address, &check).await.unwrap_err();
        assert!(matches!(error, ProbeError::Tls(_)), "{error:?}");
        assert!(error.to_string().contains(part), "{part}: {error}");
        assert!(error.blames_backend() && !error.says_dead(true));
    }
}

#[tokio::test]
async fn insecure_takes_any_certificate() {
    let key = KeyPair::generate().unwrap();
    let own = named().self_signed(&key).unwrap();
    let (address, _server) = serve(own.der().clone(), &key).await;
    let tls = Tls {
        insecure: true,
        ..Tls::default()
    };
    assert!(
        ask(address, &https(Some("other.example"), tls))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_is_refused() {
    let (address, server) = speaks_http().await;
    let tls = Tls {
        insecure: true,
        ..Tls::default()
    };
    let error = ask(address, &https(None, tls)).await.unwrap_err();
    assert!(matches!(error, ProbeError::Tls(_)), "{error:?}");
    server.await.unwrap();
}

#[tokio::test]
async fn a_trust_file_that_is_missing_or_empty_blames_nobody_and_is_named() {
    let empty = NamedTempFile::new().unwrap();
    for (ca, part) in [
        ("/nowhere/ca.pem".into(), "/nowhere/ca.pem: No such file"),
        (empty.path().to_owned(), "no certificate in it"),
    ] {
        let tls = Tls {
            ca: Some(ca),
            ..Tls::default()
        };
        let address = "127.0.0.1:1".parse().unwrap();
        let error = ask(address, &https(Some(NAME), tls)).await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert!(!error.blames_backend());
    }
}

#[tokio::test]
async fn an_authority_that_is_no_regular_file_is_refused_without_waiting_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("ca.pem");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [pipe.as_path(), Path::new("/dev/null"), directory.path()] {
        let read = tokio::time::timeout(Duration::from_secs(10), read_roots(path)).await;
        let error = read.expect("no waiting").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("tls.ca") && text.contains("not a regular file"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_question_that_takes_long_to_make_holds_up_no_other() {
    let network = Network::default();
    let check = |ca: &str| {
        let tls = Tls {
            ca: Some(ca.into()),
            ..Tls::default()
        };
        Probe::Https(Http {
            tls: Some(tls),
            ..Http::default()
        })
    };
    let place = network.place(&check("/slow"));
    let making = place.lock().await;
    let others = async {
        network.prepare(&Probe::TCP).await.unwrap();
        network.prepare(&check("/missing")).await.unwrap_err()
    };
    let error = tokio::time::timeout(Duration::from_secs(10), others).await;
    assert!(error.expect("no waiting").to_string().contains("/missing"));
    drop(making);
}
