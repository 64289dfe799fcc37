//! The connection to a local server that speaks HTTP/2: one for all requests, with a task that moves
//! its bytes. Without TLS it begins with the preface, on prior knowledge (RFC 9113, section 3.3);
//! with TLS it is agreed on by ALPN.

use std::{str::FromStr, time::Duration};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::{sync::Mutex, task::JoinHandle, time::timeout};
use tracing::debug;
use uniroute_proto::v1::UpstreamErrorKind;

use super::{UpstreamError, UpstreamIo};

/// What the local server may send on a stream before it is read, in bytes, and on all of them.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Bytes of a request that wait in a stream for the local server's window.
const SEND_BUFFER: usize = 256 * 1024;
/// Bytes of an answer's fields.
const MAX_HEADERS: u32 = 64 * 1024;

/// The version of HTTP that a local server is spoken to in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1; but a gRPC request, which needs HTTP/2, makes the agent see whether the local server
    /// speaks that.
    #[default]
    Auto,
    /// HTTP/1.1 always.
    Http1,
    /// HTTP/2 always, except for WebSocket.
    Http2,
}

/// What was written is no version of HTTP.
#[derive(Debug, thiserror::Error)]
#[error("write auto, http1 or h2")]
pub struct ProtocolError;

impl FromStr for Protocol {
    type Err = ProtocolError;

    fn from_str(text: &str) -> Result<Self, ProtocolError> {
        match text {
            "auto" => Ok(Self::Auto),
            "http1" => Ok(Self::Http1),
            "h2" => Ok(Self::Http2),
            _ => Err(ProtocolError),
        }
    }
}

/// The connection, while there is one.
#[derive(Debug, Default)]
pub(super) struct Http2 {
    live: Mutex<Option<Live>>,
}

#[derive(Debug)]
struct Live {
    requests: SendRequest<Bytes>,
    task: JoinHandle<()>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Http2 {
    /// A place for a request on the connection, which is made by `connect` if there is none, and whether
    /// there was one.
    ///
    /// # Errors
    /// [`UpstreamError`]: the local server can't be reached, or speaks no HTTP/2.
    pub(super) async fn request(
        &self,
        target: &super::Target,
        within: Duration,
        connect: impl Future<Output = Result<UpstreamIo, UpstreamError>>,
    ) -> Result<(SendRequest<Bytes>, bool), UpstreamError> {
        let mut live = self.live.lock().await;
        if let Some(Live { requests, task }) = &*live
            && !task.is_finished()
            && let Ok(ready) = requests.clone().ready().await
        {
            return Ok((ready, true));
        }
        *live = None;
        let io = connect.await?;
        let no_http2 = |why: &dyn std::fmt::Display| {
            let message = format!("{target} does not speak HTTP/2 ({why})");
            UpstreamError::new(UpstreamErrorKind::BadResponse, message)
        };
        let handshake = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADERS)
            .max_send_buffer_size(SEND_BUFFER)
            .enable_push(false)
            .handshake(io);
        let (requests, mut connection) = handshake.await.map_err(|error| no_http2(&error))?;
        // The preface is out; whether it was understood shows with the server's settings.
        let mut pings = connection.ping_pong();
        let mut task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection to the local server broke off");
            }
        });
        let answered = async {
            tokio::select! {
                biased;
                _ = &mut task => false,
                pong = async { match &mut pings {
                    Some(pings) => pings.ping(h2::Ping::opaque()).await.is_ok(),
                    None => true,
                } } => pong,
            }
        };
        if !timeout(within, answered).await.unwrap_or(false) {
            task.abort();
            return Err(no_http2(&"it does not answer to the preface"));
        }
        let ready = requests.clone().ready().await.map_err(|error| no_http2(&error))?;
        *live = Some(Live { requests, task });
        Ok((ready, false))
    }
}
