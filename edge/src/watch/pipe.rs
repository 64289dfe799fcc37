//! The connection of somebody who watches: carries what the feed puts into its queue, and sees when
//! nobody is there any more.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        protocol::{CloseFrame, Role, WebSocketConfig},
    },
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Messages that wait for a slow connection.
pub(super) const QUEUE: usize = 256;
/// Longest message of a client's, who has nothing to say.
const MAX_HEARD: usize = 64 * 1024;
/// Messages of his between two pings of ours.
const MAX_MESSAGES: usize = 1_000;
/// Bytes that wait to be written: the longest message is a first one with many tunnels.
const WRITE_BUFFER: usize = 4 * 1024 * 1024;
const READ_BUFFER: usize = 4 * 1024;
/// A message has to be taken after this long.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of his that are thrown away so that he reads why it ended.
const MAX_DISCARDED: usize = 1024 * 1024;
/// For the last words, and the other side's.
const GOODBYE: Duration = Duration::from_secs(5);
/// Until they are read.
const LINGER: Duration = Duration::from_secs(2);

/// Why it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The client wants no more.
    Gone,
    /// Nobody is there any more.
    Silent,
    /// The edge stops.
    Stopping,
    /// He may not do what he does.
    Protocol,
    TooLarge,
    Chatty,
    Failed,
    /// The store is away.
    Unavailable,
    /// The client's login is over.
    LoginOver,
    /// He may not see this any more.
    Forbidden,
    /// The tunnel is no more.
    Deleted,
    /// He did not keep up.
    Lagged,
}

impl Ending {
    /// Close code and reason.
    fn frame(self) -> Option<(u16, &'static str)> {
        Some(match self {
            Self::Gone | Self::Silent => return None,
            Self::Stopping => {
                (1001, "the edge stops: come back, with the number of the last event")
            }
            Self::Protocol => (1002, "this is no proper WebSocket"),
            Self::Chatty => (1008, "nothing is to be said here"),
            Self::TooLarge => (1009, "nothing so long is to be said here"),
            Self::Failed => (1011, "the edge has failed"),
            Self::Unavailable => (1013, "the edge can't look it up right now"),
            Self::LoginOver => (4001, "the login is over"),
            Self::Forbidden => (4003, "the account may not see this any more"),
            Self::Deleted => (4004, "the tunnel is no more"),
            Self::Lagged => (4008, "too slow: come back, with the number of the last event"),
        })
    }
}

/// What the feed has to say about the end.
#[derive(Default)]
struct Verdict {
    ending: OnceLock<Ending>,
    /// At once, whatever still waits.
    cut: CancellationToken,
}

/// Where the feed puts what is to be told.
pub(super) struct Outlet {
    pub(super) queue: mpsc::Sender<Utf8Bytes>,
    verdict: Arc<Verdict>,
}

impl Outlet {
    /// Ends the connection; what waits is told before only if that matters.
    pub(super) fn end(self, ending: Ending) {
        let _ = self.verdict.ending.set(ending);
        if ending != Ending::Deleted {
            self.verdict.cut.cancel();
        }
    }
}

/// See the module.
pub(super) struct Pipe {
    queue: mpsc::Receiver<Utf8Bytes>,
    verdict: Arc<Verdict>,
    /// Between two pings; he who has not answered one by the next is not there.
    pause: Duration,
}

pub(super) fn new(pause: Duration) -> (Outlet, Pipe) {
    let (queue, waiting) = mpsc::channel(QUEUE);
    let verdict = Arc::<Verdict>::default();
    let outlet = Outlet { queue, verdict: Arc::clone(&verdict) };
    (outlet, Pipe { queue: waiting, verdict, pause })
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MAX_HEARD))
        .max_frame_size(Some(MAX_HEARD))
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_BUFFER)
}

impl Pipe {
    /// Carries until somebody has enough. `early` came behind the request's head.
    pub(super) async fn run<Io>(mut self, io: Io, early: Bytes)
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let (early, config) = (early.to_vec(), Some(config()));
        let opening = WebSocketStream::from_partially_read(io, early, Role::Server, config);
        let mut socket = opening.await;
        let ending = self.carry(&mut socket).await;
        debug!(?ending, "somebody watches no more");
        // The feed ends, too.
        drop(self);
        if ending == Ending::Silent {
            return;
        }
        let _ = timeout(GOODBYE, close(&mut socket, ending)).await;
        let _ = timeout(LINGER, linger(socket.get_mut())).await;
    }

    async fn carry<Io>(&mut self, socket: &mut WebSocketStream<Io>) -> Ending
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let mut pings = interval_at(Instant::now() + self.pause, self.pause);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut pinged, mut heard) = (false, 0);
        loop {
            let said = tokio::select! {
                () = self.verdict.cut.cancelled() => return self.ending(),
                text = self.queue.recv() => match text {
                    Some(text) => self.say(socket, Message::Text(text)).await,
                    None => return self.ending(),
                },
                message = socket.next() => {
                    heard += 1;
                    match message {
                        Some(Ok(Message::Close(_))) | None => return Ending::Gone,
                        Some(Ok(_)) if heard > MAX_MESSAGES => return Ending::Chatty,
                        Some(Ok(_)) => {
                            pinged = false;
                            Ok(())
                        }
                        Some(Err(error)) => return ending_of(&error),
                    }
                }
                _ = pings.tick() => {
                    if std::mem::replace(&mut pinged, true) {
                        return Ending::Silent;
                    }
                    heard = 0;
                    self.say(socket, Message::Ping(Bytes::new())).await
                }
            };
            if let Err(ending) = said {
                return ending;
            }
        }
    }

    /// Without an ending of its own, the feed has died.
    fn ending(&self) -> Ending {
        self.verdict.ending.get().copied().unwrap_or(Ending::Failed)
    }

    async fn say<Io>(
        &self,
        socket: &mut WebSocketStream<Io>,
        message: Message,
    ) -> Result<(), Ending>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        tokio::select! {
            biased;
            sent = timeout(PATIENCE, socket.send(message)) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(ending_of(&error)),
                Err(_) => Err(Ending::Silent),
            },
            () = self.verdict.cut.cancelled() => Err(self.ending()),
        }
    }
}

fn ending_of(error: &Error) -> Ending {
    match error {
        Error::Capacity(_) => Ending::TooLarge,
        Error::Protocol(_) | Error::Utf8(_) => Ending::Protocol,
        Error::WriteBufferFull(_) => Ending::Failed,
        _ => Ending::Gone,
    }
}

/// Ends our direction, and reads what is still on its way: with bytes that nobody has read, the
/// kernel would break the connection off, and the last words with it.
async fn linger<Io: AsyncRead + AsyncWrite + Unpin>(io: &mut Io) -> std::io::Result<()> {
    io.shutdown().await?;
    let mut discarded = [0; READ_BUFFER];
    for _ in 0..MAX_DISCARDED / READ_BUFFER {
        if io.read(&mut discarded).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// The last words, and the other side's answer to them.
async fn close<Io>(socket: &mut WebSocketStream<Io>, ending: Ending) -> Result<(), Error>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    if let Some((code, reason)) = ending.frame() {
        if ending == Ending::Lagged {
            socket.send(Message::text(r#"{"type":"lagged"}"#)).await?;
        }
        let frame = CloseFrame { code: code.into(), reason: Utf8Bytes::from_static(reason) };
        socket.close(Some(frame)).await?;
    }
    while let Some(Ok(_)) = socket.next().await {}
    Ok(())
}
