//! One keep-alive HTTP/1.1 connection to a measured system.

use anyhow::{Context, bail, ensure};
use http::header::{CONNECTION, HOST};
use http::{Method, Request, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::body::Repeat;

/// Where requests go, and the name they ask for there.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// `HOST:PORT` to connect to.
    pub(crate) address: String,
    /// The `Host` header.
    pub(crate) host: String,
}

impl Target {
    /// The target of a `http://` URL; `host` replaces the URL's own name in the `Host` header.
    pub(crate) fn new(url: &Uri, host: Option<String>) -> anyhow::Result<Self> {
        ensure!(url.scheme_str() == Some("http"), "{url}: only http:// URLs are supported");
        let authority = url.authority().with_context(|| format!("{url}: no host"))?;
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self {
            address: format!("{}:{port}", authority.host()),
            host: host.unwrap_or_else(|| authority.to_string()),
        })
    }
}

pub(crate) struct Connection {
    sender: SendRequest<Repeat>,
    host: String,
    closing: bool,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    pub(crate) async fn open(target: &Target) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(&target.address)
            .await
            .with_context(|| format!("cannot connect to {}", target.address))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            // A failure also reaches the request that it breaks, which counts it.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            host: target.host.clone(),
            closing: false,
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    /// Asks with each request for the connection's close.
    pub(crate) fn closing(mut self) -> Self {
        self.closing = true;
        self
    }

    /// Whether the next request can go out, waiting for the last one to be through.
    pub(crate) async fn is_usable(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Sends a request and answers with its body once the head says 200.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Repeat,
    ) -> anyhow::Result<Incoming> {
        let mut request =
            Request::builder().method(method).uri(path).header(HOST, self.host.as_str());
        if self.closing {
            request = request.header(CONNECTION, "close");
        }
        let request = request.body(body).context("request")?;
        let response = self.sender.send_request(request).await?;
        if response.status() != http::StatusCode::OK {
            bail!("{path} answered {}", response.status());
        }
        Ok(response.into_body())
    }

    /// Sends a request and reads its whole answer, which is thrown away but for its length.
    pub(crate) async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Repeat,
    ) -> anyhow::Result<u64> {
        let mut body = self.send(method, path, body).await?;
        let mut len = 0;
        while let Some(frame) = body.frame().await {
            len += frame?.data_ref().map_or(0, |data| data.len() as u64);
        }
        Ok(len)
    }
}
