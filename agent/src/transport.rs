//! What carries the agent's sessions.

use std::{net::SocketAddr, str::FromStr};

use uniroute_proto::v1;
use uniroute_shared::carrier::quic::endpoint::Fingerprint;

/// What carries the agent's sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// WebSocket at first, and QUIC where that was measured to be better.
    #[default]
    Auto,
    /// Always WebSocket, over TCP or TLS.
    WebSocket,
    /// Always QUIC, over UDP.
    Quic,
}

/// What was written names no transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a transport is one of auto, ws and quic")]
pub struct TransportError;

impl FromStr for Transport {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, TransportError> {
        match text {
            "auto" => Ok(Self::Auto),
            "ws" => Ok(Self::WebSocket),
            "quic" => Ok(Self::Quic),
            _ => Err(TransportError),
        }
    }
}

/// Where an edge takes sessions over QUIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuicDoor {
    pub(crate) address: SocketAddr,
    pub(crate) certificate: Fingerprint,
}

impl QuicDoor {
    /// The door that an edge offers which was reached at `address`; none if the offer can't be.
    pub(crate) fn new(mut address: SocketAddr, offer: &v1::QuicOffer) -> Option<Self> {
        address.set_port(u16::try_from(offer.port).ok().filter(|port| *port != 0)?);
        let certificate = offer.certificate_sha256.as_ref().try_into().ok()?;
        Some(Self { address, certificate })
    }
}
