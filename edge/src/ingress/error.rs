//! Every way in which a visitor's request can fail, and the code of the table that it has.

use std::time::Duration;

use bytes::Bytes;
use uniroute_proto::{
    codec::CodecError,
    v1::{UpstreamError, UpstreamErrorKind},
};
use uniroute_shared::{
    code::Code,
    policy::Refusal,
    session::{OpenError, StreamError},
    stream::ReadError,
};

/// Why a request got no answer of the local server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error("the Host header is missing, repeated or malformed")]
    BadHost,
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("the request's head is too large")]
    HeadTooLarge,
    #[error("the version is neither HTTP/1.1 nor HTTP/1.0")]
    Version,
    #[error("nothing of the request's body came for too long")]
    BodyTimeout,
    /// The framing of the request's body is broken, or the visitor has left.
    #[error("the request's body: {0}")]
    Body(String),
    #[error("the method {0} is not forwarded")]
    Method(String),
    #[error("no tunnel has this name")]
    UnknownTunnel,
    #[error("the tunnel is not for HTTP: it is at {0}")]
    NotHttp(String),
    #[error("the edge has no such page")]
    NotFound,
    #[error("the body is larger than the edge reads")]
    OwnBodyTooLarge,
    #[error("the edge has failed")]
    Internal,
    #[error("not a proper WebSocket upgrade: {0}")]
    BadUpgrade(String),
    #[error("no agent is connected for this name")]
    Offline,
    #[error("the tunnel's owner has paused it")]
    Paused,
    /// More is asked for than may be; after this long it would be no more.
    #[error("{}", .0.title)]
    Limited(&'static Code, Duration),
    #[error("the edge is shutting down")]
    Draining,
    #[error("the edge holds as many agents as it may")]
    SessionLimit,
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the agent's answer is malformed: {0}")]
    Answer(String),
    #[error("no answer began within the tunnel's response timeout")]
    Timeout,
    #[error("as many requests wait for their agents as may")]
    HoldFull,
    #[error("{}", .0.message)]
    Upstream(UpstreamError),
    /// The tunnel's owner does not want it.
    #[error("the tunnel's policy: {0}")]
    Policy(#[from] Refusal),
    /// The same, found out with some effort.
    #[error("{}", .0.title)]
    Access(&'static Code),
    /// It is to be asked for at this place; no failure.
    #[error("it is at another place")]
    Moved(Bytes),
}

impl From<CodecError> for ProxyError {
    fn from(error: CodecError) -> Self {
        Self::Answer(error.to_string())
    }
}

impl ProxyError {
    /// The code that the visitor, the log and the metrics get.
    pub(crate) fn code(&self) -> &'static Code {
        match self {
            Self::BadHost => &Code::BAD_HOST,
            Self::BadRequest(_) | Self::Body(_) => &Code::BAD_REQUEST,
            Self::BodyTimeout => &Code::BODY_TIMEOUT,
            Self::Version => &Code::HTTP_VERSION,
            Self::HoldFull => &Code::HOLD_LIMIT,
            Self::HeadTooLarge => &Code::HEAD_TOO_LARGE,
            Self::Method(_) => &Code::METHOD_REFUSED,
            Self::UnknownTunnel => &Code::UNKNOWN_TUNNEL,
            Self::NotHttp(_) => &Code::NOT_HTTP,
            Self::NotFound => &Code::NOT_FOUND_ON_EDGE,
            Self::OwnBodyTooLarge => &Code::BODY_TOO_LARGE,
            Self::Internal => &Code::INTERNAL,
            Self::BadUpgrade(_) => &Code::BAD_UPGRADE,
            Self::Offline => &Code::NO_AGENT,
            Self::Draining => &Code::DRAINING,
            Self::SessionLimit => &Code::SESSION_LIMIT,
            Self::Open(OpenError::TooManyStreams) => &Code::STREAM_LIMIT,
            Self::Open(_) => &Code::NO_AGENT,
            Self::Stream(_) | Self::Read(ReadError::Stream(_) | ReadError::Truncated) => {
                &Code::LINK_LOST
            }
            Self::Read(_) | Self::Answer(_) => &Code::AGENT_PROTOCOL,
            Self::Timeout => &Code::ANSWER_TIMEOUT,
            Self::Policy(refusal) => refusal.code(),
            Self::Access(code) | Self::Limited(code, _) => code,
            Self::Paused => &Code::PAUSED,
            // Nobody asks: it is answered before.
            Self::Moved(_) => &Code::INTERNAL,
            Self::Upstream(error) => upstream_code(error.kind()),
        }
    }

    /// What the page adds to the code's own words: the agent's, where they say more.
    pub(crate) fn detail(&self) -> Option<String> {
        match self {
            Self::Policy(Refusal::Signature(why)) => Some(why.to_string()),
            Self::Upstream(error) if !error.message.is_empty() => Some(error.message.clone()),
            Self::BadRequest(_)
            | Self::Body(_)
            | Self::NotHttp(_)
            | Self::BadUpgrade(_)
            | Self::Answer(_) => Some(self.to_string()),
            _ => None,
        }
    }
}

/// What the agent's word for a failure of the local server is in the table.
pub(crate) fn upstream_code(kind: UpstreamErrorKind) -> &'static Code {
    match kind {
        UpstreamErrorKind::ConnectionRefused => &Code::UPSTREAM_REFUSED,
        UpstreamErrorKind::ConnectTimeout => &Code::UPSTREAM_CONNECT_TIMEOUT,
        UpstreamErrorKind::ResponseTimeout => &Code::UPSTREAM_TIMEOUT,
        UpstreamErrorKind::ConnectionReset => &Code::UPSTREAM_RESET,
        UpstreamErrorKind::BadResponse => &Code::UPSTREAM_BAD_RESPONSE,
        UpstreamErrorKind::Tls => &Code::UPSTREAM_TLS,
        UpstreamErrorKind::Dns => &Code::UPSTREAM_DNS,
        UpstreamErrorKind::Unreachable => &Code::UPSTREAM_UNREACHABLE,
        UpstreamErrorKind::Unavailable => &Code::NO_AGENT,
        UpstreamErrorKind::Unspecified
        | UpstreamErrorKind::UnknownTunnel
        | UpstreamErrorKind::BadRequest => &Code::AGENT_PROTOCOL,
    }
}
