//! HTTP/1.1 by hand, for both ends of the way: bytes out exactly as a test writes them, and a strict
//! reader that tells a whole message from a broken one.

use std::net::SocketAddr;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{host, within};

/// One end of a connection.
pub(crate) struct Wire {
    pub(crate) socket: TcpStream,
    buffer: BytesMut,
}

/// The head of a request or an answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    /// Request line or status line.
    pub(crate) first: String,
    /// In order, names in lower case.
    pub(crate) fields: Vec<(String, String)>,
}

impl Head {
    /// The one value of `name`; a panic if there are several.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} is there {} times", all.len());
        all.first().copied()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }

    pub(crate) fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap()
    }

    /// The target of a request line.
    pub(crate) fn target(&self) -> &str {
        self.first.split(' ').nth(1).unwrap()
    }

    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap().to_owned();
        let field = |line: &str| {
            let (name, value) =
                line.split_once(':').unwrap_or_else(|| panic!("no field: {line:?}"));
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        Self { first, fields: lines.map(field).collect() }
    }

    /// How long the body is that follows, if the message is no answer to HEAD.
    fn length(&self) -> Length {
        let is_answer = self.first.starts_with("HTTP/");
        if is_answer && (matches!(self.status(), 204 | 304) || self.status() < 200) {
            return Length::Exactly(0);
        }
        match (self.get("transfer-encoding"), self.get("content-length")) {
            (Some(encoding), None) => {
                assert_eq!(encoding, "chunked");
                Length::Chunked
            }
            (None, Some(length)) => Length::Exactly(length.parse().unwrap()),
            (None, None) if is_answer => Length::ToTheEnd,
            (None, None) => Length::Exactly(0),
            both => panic!("two lengths: {both:?}"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Length {
    Exactly(u64),
    Chunked,
    ToTheEnd,
}

/// A message, read to its end or to where it broke.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// Everything that the framing promised came.
    pub(crate) whole: bool,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.status()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// `UR-nnnn`, if the edge made this answer.
    pub(crate) fn code(&self) -> Option<&str> {
        self.head.get("x-uniroute-error")
    }

    /// Asserts that the edge made this answer: status, code, id and a body that fits.
    #[track_caller]
    pub(crate) fn assert_failed(&self, status: u16, code: &str) {
        assert_eq!((self.status(), self.code()), (status, Some(code)), "{}", self.text());
        assert!(self.whole);
        assert!(self.head.get("x-uniroute-request-id").is_some_and(|id| id.len() == 32));
        if self.head.get("content-type") == Some("application/problem+json") {
            let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
            assert_eq!(
                (problem["code"].as_str(), problem["status"].as_u64()),
                (Some(code), Some(status.into()))
            );
        }
    }

    /// Asserts that the local server made this answer, whole.
    #[track_caller]
    pub(crate) fn assert_ok(&self, body: &str) {
        assert_eq!((self.status(), self.text(), self.whole), (200, body, true), "{:?}", self.head);
    }
}

/// The message broke off before its end.
#[derive(Debug)]
pub(crate) struct Broken;

impl Wire {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { socket, buffer: BytesMut::new() }
    }

    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let socket = within("a connection", TcpStream::connect(to)).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self::new(socket)
    }

    /// Sends `bytes` as they are.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> impl Future<Output = ()> {
        let bytes = bytes.as_ref().to_vec();
        let sending = async move { self.socket.write_all(&bytes).await };
        let sent = within("bytes are taken", sending);
        async move { sent.await.unwrap() }
    }

    /// Sends `bytes`, whether or not the peer takes them.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.socket.write_all(bytes.as_ref()).await
    }

    /// A GET with nothing but the host, and its answer. The connection stays.
    pub(crate) async fn get(&mut self, name: &str, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", host(name))).await;
        self.answer("GET").await
    }

    /// The next answer, to its end or to where it breaks.
    #[track_caller]
    pub(crate) fn answer(&mut self, method: &str) -> impl Future<Output = Answer> {
        let answer = self.try_answer(method);
        async move { answer.await.expect("an answer, not the connection's end") }
    }

    /// The same, if the connection does not end before.
    #[track_caller]
    pub(crate) fn try_answer(&mut self, method: &str) -> impl Future<Output = Option<Answer>> {
        let is_head = method == "HEAD";
        within("an answer", async move {
            let head = self.read_head().await?;
            let length = if is_head { Length::Exactly(0) } else { head.length() };
            let body = Body { wire: self, length, left: None, trailers: Vec::new() };
            Some(body.collect(head).await)
        })
    }

    /// The next request, to its end; `None` when the peer has closed instead.
    #[track_caller]
    pub(crate) fn request(&mut self) -> impl Future<Output = Option<Answer>> {
        within("a request", async move {
            let head = self.read_head().await?;
            Some(self.body(&head).collect(head).await)
        })
    }

    /// The next head.
    #[track_caller]
    pub(crate) fn head(&mut self) -> impl Future<Output = Head> {
        let head = within("a head", self.read_head());
        async move { head.await.expect("a head, not the connection's end") }
    }

    async fn read_head(&mut self) -> Option<Head> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = Head::parse(&self.buffer[..end]);
                self.buffer.advance(end + 4);
                return Some(head);
            }
            if !self.fill().await {
                assert!(self.buffer.is_empty(), "half a head: {:?}", self.buffer);
                return None;
            }
        }
    }

    /// The body behind `head`, piece by piece.
    pub(crate) fn body(&mut self, head: &Head) -> Body<'_> {
        Body { length: head.length(), wire: self, left: None, trailers: Vec::new() }
    }

    /// The next bytes, whatever they are; empty at the connection's end.
    pub(crate) async fn bytes(&mut self) -> Bytes {
        if self.buffer.is_empty() {
            self.fill().await;
        }
        self.buffer.split().freeze()
    }

    /// Exactly `length` bytes.
    #[track_caller]
    pub(crate) fn exactly(&mut self, length: usize) -> impl Future<Output = Bytes> {
        within("bytes", async move {
            while self.buffer.len() < length {
                assert!(self.fill().await, "the connection ended after {:?}", self.buffer);
            }
            self.buffer.split_to(length).freeze()
        })
    }

    /// Waits for the connection's end; what came before it.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> impl Future<Output = Bytes> {
        within("the connection's end", async move {
            while self.fill().await {}
            self.buffer.split().freeze()
        })
    }

    /// Reads once; `false` at the connection's end, in order or not.
    async fn fill(&mut self) -> bool {
        self.buffer.reserve(64 * 1024);
        self.socket.read_buf(&mut self.buffer).await.is_ok_and(|read| read > 0)
    }

    async fn line(&mut self) -> Result<String, Broken> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.advance(end + 2);
                return Ok(line);
            }
            if !self.fill().await {
                return Err(Broken);
            }
        }
    }

    /// Up to `most` bytes, at least one.
    async fn some(&mut self, most: u64) -> Result<Bytes, Broken> {
        if self.buffer.is_empty() && !self.fill().await {
            return Err(Broken);
        }
        let take = usize::try_from(most).unwrap_or(usize::MAX).min(self.buffer.len());
        Ok(self.buffer.split_to(take).freeze())
    }
}

/// A body that comes in.
pub(crate) struct Body<'a> {
    wire: &'a mut Wire,
    length: Length,
    /// Of the current chunk.
    left: Option<u64>,
    trailers: Vec<(String, String)>,
}

impl Body<'_> {
    /// The next piece, `None` after the last one.
    #[track_caller]
    pub(crate) fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, Broken>> {
        within("a piece of the body", self.read())
    }

    async fn read(&mut self) -> Result<Option<Bytes>, Broken> {
        match self.length {
            Length::Exactly(0) => Ok(None),
            Length::Exactly(left) => {
                let piece = self.wire.some(left).await?;
                self.length = Length::Exactly(left - piece.len() as u64);
                Ok(Some(piece))
            }
            Length::ToTheEnd => Ok(self.wire.some(u64::MAX).await.ok()),
            Length::Chunked => self.read_chunk().await,
        }
    }

    async fn read_chunk(&mut self) -> Result<Option<Bytes>, Broken> {
        let left = match self.left {
            Some(left) => left,
            None => {
                let line = self.wire.line().await?;
                let size = line.split(';').next().unwrap_or_default();
                u64::from_str_radix(size, 16).unwrap_or_else(|_| panic!("no chunk size: {line:?}"))
            }
        };
        if left == 0 {
            loop {
                let line = self.wire.line().await?;
                let Some((name, value)) = line.split_once(':') else { break };
                self.trailers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            self.length = Length::Exactly(0);
            return Ok(None);
        }
        let piece = self.wire.some(left).await?;
        let left = left - piece.len() as u64;
        self.left = (left > 0).then_some(left);
        if left == 0 {
            assert_eq!(self.wire.line().await?, "");
        }
        Ok(Some(piece))
    }

    pub(crate) async fn collect(mut self, head: Head) -> Answer {
        let mut body = Vec::new();
        let whole = loop {
            match self.read().await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => break true,
                Err(Broken) => break false,
            }
        };
        Answer { head, body, trailers: self.trailers, whole }
    }
}
