//! Where QUIC connections begin: UDP sockets, TLS and the transport's settings, for both ends.
//!
//! The edge's certificate is its own, made at its start. Agents know it by its SHA-256, which the
//! edge tells them over the WebSocket connection that they begin with: the trust in that connection
//! is the trust in this one.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::hmac;
pub use quinn::{Connection, Endpoint, Incoming};
use quinn::{
    EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TokioRuntime, TransportConfig, VarInt,
    congestion::{BbrConfig, CubicConfig},
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::{
    ClientConfig, Error, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    version::TLS13,
};
use sha2::{Digest as _, Sha256};
use socket2::{Domain, Socket, Type};
use subtle::ConstantTimeEq as _;
use tokio::time::timeout;

use super::{ALPN, CONNECTION_WINDOW, Config, SEND_WINDOW, STREAM_WINDOW};
use crate::verifier::Verifier;

/// The kernel's buffers that a socket asks for, in bytes: what comes while nobody reads is lost,
/// and one thread reads for all connections.
pub const SOCKET_BUFFER: usize = 4 * 1024 * 1024;
/// A path that has carried nothing for this long is kept open by a ping.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A peer that was silent for this long has gone. A session's own questions find out sooner.
const IDLE: Duration = Duration::from_secs(30);
/// A dial that has no answer after this long never gets one.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// Datagrams that may wait, in bytes, each way; they only measure the path.
const DATAGRAMS: usize = 64 * 1024;
/// Connections that may wait to be accepted.
const MAX_INCOMING: usize = 1024;
/// The name in the certificate. Nobody goes by it.
const NAME: &str = "uniroute-edge";

/// The SHA-256 of a certificate in DER.
pub type Fingerprint = [u8; 32];

/// An edge's certificate, and what agents know it by.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Identity {
    /// A new self-signed certificate, kept in memory only.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn generate() -> io::Result<Self> {
        let made =
            rcgen::generate_simple_self_signed([NAME.to_owned()]).map_err(io::Error::other)?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        Ok(Self { certificate: made.cert.der().clone(), key })
    }

    /// What agents know it by.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(&self.certificate)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    Sha256::digest(certificate).into()
}

/// What an end of a connection wants of it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether the kernel may cut long sends into datagrams (generic segmentation offload).
    pub gso: bool,
    /// What decides how much is sent.
    pub congestion: Congestion,
}

impl Default for Options {
    fn default() -> Self {
        Self { gso: true, congestion: Congestion::default() }
    }
}

/// What decides how much may be on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// By the rate and the round trip that were measured; a lost packet is no sign of a full path.
    /// Measured over 40 ms and 100 Mbit/s with 1 % loss: 11 MB/s, where cubic has 0.4. quinn calls
    /// it experimental.
    #[default]
    Bbr,
    /// Slows down for each loss, as most systems' TCP does.
    Cubic,
}

/// Why there is no QUIC connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    /// No socket.
    #[error("no UDP socket: {0}")]
    Socket(Arc<io::Error>),
    /// Nothing came back.
    #[error(
        "no answer over UDP from {0} within 3 seconds: a firewall on the way may block UDP port {port}", port = .0.port()
    )]
    NoAnswer(SocketAddr),
    /// Something came back that was no session.
    #[error("the QUIC handshake with {0} failed: {1}")]
    Handshake(SocketAddr, String),
}

/// A bound UDP socket, and what the kernel gave it.
#[derive(Debug)]
pub struct Bound {
    /// The socket.
    pub socket: UdpSocket,
    /// What to tell the operator, if the kernel gave less than was asked for.
    pub small_buffers: Option<String>,
}

/// Binds a UDP socket with large buffers.
///
/// # Errors
/// As the system says.
pub fn bind(address: SocketAddr) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    // Refused or cut down: what came of it is read back.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&address.into())?;
    let small_buffers =
        small_buffers(effective(socket.recv_buffer_size()?), effective(socket.send_buffer_size()?));
    Ok(Bound { socket: socket.into(), small_buffers })
}

/// Linux counts its own bookkeeping in and says twice what it was asked for (socket(7)).
fn effective(size: usize) -> usize {
    if cfg!(target_os = "linux") { size / 2 } else { size }
}

fn small_buffers(receive: usize, send: usize) -> Option<String> {
    let wanted = [("receive", receive, "net.core.rmem_max"), ("send", send, "net.core.wmem_max")];
    let small = wanted.iter().filter(|(_, size, _)| *size < SOCKET_BUFFER);
    let (mut what, mut settings) = (Vec::new(), Vec::new());
    for (name, size, setting) in small {
        what.push(format!("{name} buffer {} KiB", size / 1024));
        settings.push(format!("{setting}={SOCKET_BUFFER}"));
    }
    (!what.is_empty()).then(|| {
        format!(
            "the kernel gives UDP sockets less than {} KiB ({}), so bulk over QUIC loses packets; allow more with: sysctl -w {}",
            SOCKET_BUFFER / 1024,
            what.join(", "),
            settings.join(" "),
        )
    })
}

/// The edge's end, on the current runtime. An edge that comes back with the `reset_key` of an
/// earlier one can tell that one's agents at once that their sessions are gone.
///
/// # Errors
/// When the socket can't be used.
pub fn listen(
    socket: UdpSocket,
    identity: &Identity,
    reset_key: &[u8; 32],
    options: Options,
) -> io::Result<Endpoint> {
    let mut tls = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(
            vec![identity.certificate.clone()],
            PrivateKeyDer::Pkcs8(identity.key.clone_key()),
        )
        .map_err(io::Error::other)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    // Every session begins with a handshake of its own: no tickets, no early data to play again.
    tls.send_tls13_tickets = 0;
    tls.max_early_data_size = 0;
    let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(Arc::new(transport(1, options)));
    server.max_incoming(MAX_INCOMING);
    let config = resettable(reset_key);
    Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))
}

/// Connection ids that a later endpoint with the same key knows for its own, and resets that the
/// peers of an earlier one believe.
fn resettable(key: &[u8; 32]) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, key)));
    let (ids, _) = key.split_first_chunk().expect("the key is longer than 8 bytes");
    let ids = u64::from_be_bytes(*ids);
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}

/// A connection to an edge.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub connection: Connection,
    /// Its own endpoint.
    pub endpoint: Endpoint,
    /// See [`Bound::small_buffers`].
    pub small_buffers: Option<String>,
}

/// Connects to the edge with that certificate at `address`, from a socket of its own.
///
/// # Errors
/// [`DialError`]
pub async fn dial(
    address: SocketAddr,
    certificate: Fingerprint,
    options: Options,
) -> Result<Dialled, DialError> {
    let broken = |error: io::Error| DialError::Socket(Arc::new(error));
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let Bound { socket, small_buffers } = bind((any, 0).into()).map_err(broken)?;
    let runtime = Arc::new(TokioRuntime);
    let endpoint =
        Endpoint::new(EndpointConfig::default(), None, socket, runtime).map_err(broken)?;
    let config = client_config(certificate, options).map_err(broken)?;
    let failed = |error: String| DialError::Handshake(address, error);
    let connecting = endpoint.connect_with(config, address, NAME);
    let connecting = connecting.map_err(|error| failed(error.to_string()))?;
    match timeout(DIAL_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(Dialled { connection, endpoint, small_buffers }),
        Ok(Err(quinn::ConnectionError::TimedOut)) | Err(_) => Err(DialError::NoAnswer(address)),
        Ok(Err(error)) => Err(failed(error.to_string())),
    }
}

fn client_config(certificate: Fingerprint, options: Options) -> io::Result<quinn::ClientConfig> {
    let provider = provider();
    // One certificate and no other.
    let verifier = Verifier::new(Arc::clone(&provider), move |shown| {
        match fingerprint(shown.certificate).ct_eq(&certificate).into() {
            true => Ok(()),
            false => Err(Error::General("this is not the certificate that the edge told".into())),
        }
    });
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
    let mut client = quinn::ClientConfig::new(Arc::new(crypto));
    let streams = u32::try_from(Config::agent().max_streams).unwrap_or(u32::MAX);
    client.transport_config(Arc::new(transport(streams, options)));
    Ok(client)
}

/// `streams`: how many the peer may have open.
fn transport(streams: u32, options: Options) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(Some(DATAGRAMS))
        .datagram_send_buffer_size(DATAGRAMS)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(IdleTimeout::try_from(IDLE).ok())
        .mtu_discovery_config(Some(MtuDiscoveryConfig::default()))
        .enable_segmentation_offload(options.gso);
    match options.congestion {
        Congestion::Bbr => {
            transport.congestion_controller_factory(Arc::new(BbrConfig::default()));
        }
        Congestion::Cubic => {
            transport.congestion_controller_factory(Arc::new(CubicConfig::default()));
        }
    }
    transport
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_buffers_are_named_with_their_setting() {
        assert_eq!(small_buffers(SOCKET_BUFFER, SOCKET_BUFFER), None);
        let text = small_buffers(212_992, SOCKET_BUFFER).unwrap();
        assert!(text.contains("receive buffer 208 KiB"), "{text}");
        assert!(text.ends_with("sysctl -w net.core.rmem_max=4194304"), "{text}");
        let text = small_buffers(0, 0).unwrap();
        assert!(text.contains("rmem_max=4194304 net.core.wmem_max=4194304"), "{text}");
    }
}
