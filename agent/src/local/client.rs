//! Asks an agent's local API, for commands such as `uniroute status`.

use std::{io, time::Duration};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

/// An agent of this machine answers at once, or it does not run.
const CONNECT: Duration = Duration::from_secs(2);
/// Longest answer that is read whole, in bytes.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing is there.
    #[error("no agent answers at {url}: {error}")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What happened.
        error: io::Error,
    },
    /// What answers is no agent.
    #[error("what answers at {url} is no agent of UniRoute: {what}")]
    NoAgent {
        /// Where it is.
        url: String,
        /// What is strange.
        what: String,
    },
    /// The agent can't or won't.
    #[error("{detail}{fix}")]
    Refused {
        /// The answer's status.
        status: u16,
        /// In the agent's words.
        detail: String,
        /// The error table's code and what to do, if the agent names them.
        fix: String,
    },
}

/// An agent's local API.
#[derive(Clone, Debug)]
pub struct Client {
    url: String,
}

/// An answer whose body comes bit by bit.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: http::HeaderMap,
    body: Incoming,
    url: String,
}

impl Client {
    /// At `url`, such as `http://127.0.0.1:4040` or `127.0.0.1:4040`.
    #[must_use]
    pub fn new(url: &str) -> Self {
        let url = url.trim_end_matches('/');
        Self { url: if url.contains("://") { url.to_owned() } else { format!("http://{url}") } }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The JSON at `path`.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.send(Method::GET, path, None).await?.json().await
    }

    /// The same after sending `body`; nothing where the answer has no body.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        self.send(method, path, body).await?.json().await
    }

    /// An answer with any status of success.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ClientError> {
        let answer = self.send_any(method, path, body).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let status = answer.status.as_u16();
        let problem = answer.json().await.unwrap_or_default();
        let detail = problem["detail"]
            .as_str()
            .map_or_else(|| format!("the agent answers with status {status}"), ToOwned::to_owned);
        let fix = match (problem["code"].as_str(), problem["fix"].as_str()) {
            (Some(code), Some(fix)) => format!(" ({code}). {fix}"),
            _ => String::new(),
        };
        let detail = match fix.is_empty() {
            true => detail,
            false => detail.trim_end_matches('.').to_owned(),
        };
        Err(ClientError::Refused { status, detail, fix })
    }

    /// An answer, whatever its status.
    ///
    /// # Errors
    /// [`ClientError`], never [`ClientError::Refused`].
    pub async fn send_any(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ClientError> {
        let host = self.url.strip_prefix("http://").unwrap_or(&self.url);
        let unreachable = |error| ClientError::Unreachable { url: self.url.clone(), error };
        let connecting = timeout(CONNECT, TcpStream::connect(host)).await;
        let socket = connecting
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(unreachable)?;
        let strange = |error: &dyn std::fmt::Display| self.strange(error);
        let (mut requests, connection) =
            http1::handshake(TokioIo::new(socket)).await.map_err(|error| strange(&error))?;
        tokio::spawn(connection);
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", host)
            .header("x-uniroute", "1")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(text)))
            .map_err(|error| strange(&error))?;
        let answer = requests.send_request(request).await.map_err(|error| strange(&error))?;
        let (parts, body) = answer.into_parts();
        Ok(Answer { status: parts.status, headers: parts.headers, body, url: self.url.clone() })
    }

    fn strange(&self, error: &dyn std::fmt::Display) -> ClientError {
        ClientError::NoAgent { url: self.url.clone(), what: error.to_string() }
    }
}

impl Answer {
    /// The next piece of its body; `None` after the last one.
    ///
    /// # Errors
    /// [`ClientError::NoAgent`] when it breaks off.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| ClientError::NoAgent {
                url: self.url.clone(),
                what: error.to_string(),
            })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// [`ClientError::NoAgent`] when it breaks off or is too long.
    pub async fn bytes(mut self) -> Result<Vec<u8>, ClientError> {
        let mut all = Vec::new();
        while let Some(piece) = self.piece().await? {
            if all.len() + piece.len() > MAX_ANSWER {
                let what = "its answer is too long".to_owned();
                return Err(ClientError::NoAgent { url: self.url, what });
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    /// All of it, as JSON; nothing where there is nothing.
    ///
    /// # Errors
    /// [`ClientError::NoAgent`] when it is none.
    pub async fn json(self) -> Result<Value, ClientError> {
        let url = self.url.clone();
        let bytes = self.bytes().await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| ClientError::NoAgent { url, what: error.to_string() })
    }
}
