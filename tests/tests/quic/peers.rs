//! QUIC servers and clients: quinn's, but for connection ids that name their server
//! (draft-ietf-quic-load-balancers, without a key). They judge nothing.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{load::Background, netns::Namespace};
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig,
    Incoming, ServerConfig, TokioRuntime, TransportConfig,
    rustls::{
        RootCertStore,
        pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    },
};
use tokio::{sync::watch, task::JoinSet, time::timeout};

/// What connection ids of the servers here look like.
pub const CONFIG_ID: u8 = 2;
/// Bytes of a nonce.
pub const NONCE: usize = 6;
/// A server's id.
pub type ServerId = [u8; 3];

/// The name that the servers' certificate is for.
const NAME: &str = "quic.test";
/// Nobody waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(5);

/// The servers' certificate and its key.
#[derive(Debug, Clone)]
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    /// A fresh one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        Ok(Self {
            certificate: made.cert.der().clone(),
            key: made.signing_key.serialize_der(),
        })
    }

    fn server(&self) -> Result<ServerConfig> {
        let key = PrivatePkcs8KeyDer::from(self.key.clone());
        let mut config =
            ServerConfig::with_single_cert(vec![self.certificate.clone()], key.into())?;
        config.transport_config(transport()?);
        Ok(config)
    }

    fn client(&self) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let mut config = ClientConfig::with_root_certificates(Arc::new(roots))?;
        config.transport_config(transport()?);
        Ok(config)
    }
}

/// Plain packets, and no waiting for a peer that is somebody else now.
fn transport() -> Result<Arc<TransportConfig>> {
    let mut config = TransportConfig::default();
    config
        .enable_segmentation_offload(false)
        .mtu_discovery_config(None)
        .max_idle_timeout(Some(Duration::from_secs(60).try_into()?));
    Ok(Arc::new(config))
}

/// Draws connection ids that name a server.
struct Named(ServerId);

impl ConnectionIdGenerator for Named {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = vec![CONFIG_ID << 5 | fastrand::u8(..32)];
        id.extend(self.0);
        id.extend((0..NONCE).map(|_| fastrand::u8(..)));
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        1 + self.0.len() + NONCE
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// A server on a thread inside a namespace; stops on drop.
#[derive(Debug)]
pub struct Server {
    _background: Background<()>,
}

impl Server {
    /// Answers every stream to `address` with `name`.
    ///
    /// # Errors
    /// The address is not the namespace's, or taken.
    pub fn start(
        namespace: &Namespace,
        name: &str,
        id: ServerId,
        address: SocketAddr,
        identity: &Identity,
    ) -> Result<Self> {
        let socket = namespace.run(|| bound(address))?;
        let (name, config) = (name.to_owned(), identity.server()?);
        let background = Background::start(namespace, move |stop| async move {
            let mut settings = EndpointConfig::default();
            settings.cid_generator(move || Box::new(Named(id)));
            let runtime = Arc::new(TokioRuntime);
            let endpoint = Endpoint::new(settings, Some(config), socket, runtime);
            serve(endpoint.expect("a runtime is running"), name, stop).await;
        })?;
        Ok(Self {
            _background: background,
        })
    }
}

fn bound(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("binding {address}/udp"))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

async fn serve(endpoint: Endpoint, name: String, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Ends by the sender's going, too.
            _ = stop.wait_for(|stop| *stop) => return,
            Some(incoming) = endpoint.accept() => {
                connections.spawn(answer(incoming, name.clone()));
            }
        }
    }
}

/// Answers for as long as the client asks; whatever goes wrong is the client's to notice.
async fn answer(incoming: Incoming, name: String) {
    let Ok(connection) = incoming.await else {
        return;
    };
    while let Ok((mut to, mut from)) = connection.accept_bi().await {
        if from.read_to_end(64).await.is_ok() && to.write_all(name.as_bytes()).await.is_ok() {
            drop(to.finish());
        }
    }
}

/// A client's connection by a socket of its own.
pub struct Client {
    endpoint: Endpoint,
    connection: Connection,
    /// Who answered first.
    pub server: String,
}

impl Client {
    /// Connects. To be called on a thread inside the client's namespace.
    ///
    /// # Errors
    /// Nobody answers soon.
    pub async fn connect(to: SocketAddr, identity: &Identity) -> Result<Self> {
        let socket = bound((IpAddr::from(Ipv4Addr::UNSPECIFIED), 0).into())?;
        let settings = EndpointConfig::default();
        let mut endpoint = Endpoint::new(settings, None, socket, Arc::new(TokioRuntime))?;
        endpoint.set_default_client_config(identity.client()?);
        let connecting = endpoint.connect(to, NAME)?;
        let connection = timeout(PATIENCE, connecting)
            .await
            .context("connecting")??;
        let mut client = Self {
            endpoint,
            connection,
            server: String::new(),
        };
        client.server = client.ask().await?;
        Ok(client)
    }

    /// Asks on a new stream who is there.
    ///
    /// # Errors
    /// Nobody answers soon.
    pub async fn ask(&self) -> Result<String> {
        let exchange = async {
            let (mut to, mut from) = self.connection.open_bi().await?;
            to.write_all(b"who").await?;
            to.finish()?;
            let answer = from.read_to_end(64).await?;
            anyhow::Ok(String::from_utf8(answer)?)
        };
        timeout(PATIENCE, exchange).await.context("an exchange")?
    }

    /// Goes on from another port.
    ///
    /// # Errors
    /// No socket can be made.
    pub fn rebind(&self) -> Result<()> {
        let before = self.endpoint.local_addr()?;
        let socket = bound((IpAddr::from(Ipv4Addr::UNSPECIFIED), 0).into())?;
        let now = socket.local_addr()?;
        ensure!(before.port() != now.port(), "the same port: {now}");
        Ok(self.endpoint.rebind(socket)?)
    }
}
