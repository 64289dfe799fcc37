//! A request once more, straight to the local server: it goes the way that the edge's streams go, over
//! a session within this process, and is kept as a request of its own.

use std::{future::poll_fn, net::IpAddr, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use serde::Deserialize;
use tokio::time::timeout;
use tracing::debug;
use uniroute_proto::head;
use uniroute_shared::{
    code::Code,
    headers,
    message::{Fields, Source as _},
    mux,
    session::{Receiver, Sender},
    stream::{BodySender, SendError, is_name, is_value},
};

use super::{Inspector, View, capture::Side};
use crate::{
    TunnelSettings,
    files::FileBody,
    forward,
    slot::Shared,
    tunnel::Tunnel,
    upstream::{Place, Scheme, Target, Trust},
};

/// Replays at a time.
pub(crate) const MAX_REPLAYS: usize = 16;
/// A replay ends after this long, wherever it is: an event stream has no end of its own.
const MAX_TIME: Duration = Duration::from_secs(10 * 60);
/// Bytes between the two ends.
const PIPE: usize = 256 * 1024;

/// What is to be different. Nothing: the request as it was.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Changes {
    pub(crate) upstream: Option<String>,
    pub(crate) method: Option<String>,
    pub(crate) path: Option<String>,
    /// All fields. One whose value is as it was shown has its real value.
    pub(crate) headers: Option<Vec<(String, String)>>,
    pub(crate) body: Option<String>,
    pub(crate) body_base64: Option<String>,
}

/// Why a request can't be replayed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReplayError {
    pub(crate) code: &'static Code,
    /// What is special about this case.
    pub(crate) detail: String,
}

impl ReplayError {
    fn new(code: &'static Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }

    /// What is to be different is wrong.
    fn changes(detail: impl Into<String>) -> Self {
        Self::new(&Code::REPLAY_CHANGES, detail)
    }
}

/// A stream of this kind is no request of a visitor.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) tunnel: Arc<Tunnel>,
    /// The id of the request that is repeated.
    pub(crate) of: String,
}

/// Where it goes.
struct Way {
    tunnel: Arc<Tunnel>,
    route: u32,
}

/// Begins a replay of `view`; the id of the new request. Call it within the runtime.
///
/// # Errors
/// [`ReplayError`]
pub(crate) fn start(
    shared: &Arc<Shared>,
    inspector: &Inspector,
    view: &View,
    changes: &Changes,
) -> Result<String, ReplayError> {
    if !view.http.upgrade.is_empty() {
        let what =
            "a request that switches protocols can't be replayed: its messages would be missing";
        return Err(ReplayError::new(&Code::REPLAY_SWITCHED, what));
    }
    let way = way(shared, inspector, view, changes.upstream.as_deref())?;
    let (body, length) = body(view, changes)?;
    let mut id = [0; 16];
    let failed = |error: getrandom::Error| ReplayError::new(&Code::LOCAL_FAILED, error.to_string());
    getrandom::fill(&mut id).map_err(failed)?;
    let open = open(view, inspector, changes, &way, id, length)?;
    let open = (open, length.is_none());
    let place = Arc::clone(&inspector.replays).try_acquire_owned();
    let place = place.map_err(|_| {
        let what = format!("{MAX_REPLAYS} replays are under way");
        ReplayError::new(&Code::TOO_MANY_REPLAYS, what)
    })?;
    let replay = Box::new(Replay { tunnel: way.tunnel, of: view.id() });
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        if timeout(MAX_TIME, run(shared, replay, open, body)).await.is_err() {
            debug!("a replay took too long");
        }
        drop(place);
    });
    Ok(super::view::hex(&id))
}

/// The head of the request, as an edge would send it.
fn open(
    view: &View,
    inspector: &Inspector,
    changes: &Changes,
    way: &Way,
    id: [u8; 16],
    length: Option<u64>,
) -> Result<Bytes, ReplayError> {
    let wrong = |what: String| ReplayError::changes(what);
    let method = changes.method.as_ref().map_or(&view.http.method[..], |method| method.as_bytes());
    if !is_name(method) {
        return Err(wrong(format!("the method {:?} is no token", String::from_utf8_lossy(method))));
    }
    let target = match &changes.path {
        Some(path) => inspector.redactor.restore_target(path.as_bytes(), &view.http.target),
        None => view.http.target.to_vec(),
    };
    let visible = target.iter().all(|byte| *byte > b' ' && *byte != 0x7f && *byte != b'#');
    if !visible || !(target.starts_with(b"/") || target == b"*") {
        return Err(wrong("the path has to begin with / and has no blanks".to_owned()));
    }
    let mut fields = fields(view, inspector, changes)?;
    let mut authority = view.http.authority.clone();
    if let Some(host) = fields.get("host").filter(|_| changes.headers.is_some()) {
        authority = host.clone();
    }
    fields.remove("host");
    headers::to_next_hop(&mut fields);
    if changes.body.is_some() || changes.body_base64.is_some() {
        fields.remove("content-encoding");
        fields.remove("content-length");
    }
    match length {
        Some(length) if !fields.contains("content-length") => {
            fields.push("Content-Length", length.to_string());
        }
        None => drop(fields.remove("content-length")),
        _ => {}
    }
    if fields.contains("x-uniroute-request-id") {
        fields.set("X-UniRoute-Request-Id", super::view::hex(&id));
    }
    let open = head::HttpOpen {
        tunnel_id: &[],
        request_id: &id,
        visitor: &view.open.visitor,
        traceparent: view.open.traceparent.as_bytes(),
        method,
        target: &target,
        authority: &authority,
        scheme: &view.http.scheme,
        version: view.http.version(),
        upgrade: &[],
        route: way.route,
    };
    Ok(open.frame(|| fields.iter(), length.is_none()))
}

fn fields(view: &View, inspector: &Inspector, changes: &Changes) -> Result<Fields, ReplayError> {
    let original = view.request_fields();
    let Some(wanted) = &changes.headers else { return Ok(original) };
    let mut fields = Fields::default();
    for (name, value) in wanted {
        if !is_name(name.as_bytes()) || !is_value(value.as_bytes()) {
            return Err(ReplayError::changes(format!("the header {name:?} can't be sent")));
        }
        let real = inspector.redactor.restore(
            name.as_bytes(),
            value.as_bytes(),
            original.all(name).map(|value| &value[..]),
        );
        let value = real.unwrap_or(value.as_bytes());
        fields.push(Bytes::copy_from_slice(name.as_bytes()), Bytes::copy_from_slice(value));
    }
    Ok(fields)
}

/// The body and its length; `None`: there is none.
fn body(view: &View, changes: &Changes) -> Result<(FileBody, Option<u64>), ReplayError> {
    let new = match (&changes.body, &changes.body_base64) {
        (Some(_), Some(_)) => {
            return Err(ReplayError::changes("body and body_base64 are both there"));
        }
        (Some(text), None) => Some(text.as_bytes().to_vec()),
        (None, Some(text)) => {
            use base64::Engine as _;
            let bytes = base64::prelude::BASE64_STANDARD.decode(text);
            Some(bytes.map_err(|error| ReplayError::changes(format!("body_base64: {error}")))?)
        }
        (None, None) => None,
    };
    let declares_none = view.asked_field("content-length").is_none();
    if let Some(new) = new {
        let length = new.len() as u64;
        let none = new.is_empty() && declares_none;
        return Ok((FileBody::of(new.into()), (!none).then_some(length)));
    }
    let kept = view.body(Side::Visitor);
    let length = (kept.size > 0 || !declares_none).then_some(kept.size);
    if kept.is_whole() {
        return Ok((FileBody::of(kept.head.into()), length));
    }
    match kept.file {
        Some(file) => Ok((FileBody::of_file(file, kept.size), length)),
        None => {
            let code = match kept.spool {
                Some(_) => &Code::REPLAY_SPOOL_LOST,
                None => &Code::REPLAY_NOT_WHOLE,
            };
            let why = kept.spool.map(|why| format!(" ({why})")).unwrap_or_default();
            let (size, head) = (kept.size, kept.head.len());
            let what = format!("of this body of {size} bytes only the first {head} are kept{why}");
            Err(ReplayError::new(code, what))
        }
    }
}

/// The tunnel and route that the request goes to: its own, or one with the wanted local server, or a
/// tunnel that is none for anybody else.
fn way(
    shared: &Shared,
    inspector: &Inspector,
    view: &View,
    upstream: Option<&str>,
) -> Result<Way, ReplayError> {
    let all = shared.tunnels.all();
    let own = all.iter().find(|tunnel| *tunnel.key == *view.record.tunnel);
    let Some(wanted) = upstream else {
        let gone = || {
            let key = &view.record.tunnel;
            ReplayError::new(&Code::REPLAY_NO_TUNNEL, format!("the tunnel {key:?} is no more"))
        };
        let tunnel = Arc::clone(own.ok_or_else(gone)?);
        // Its routes may have been changed since.
        let route = view.http.route;
        let route = if tunnel.served().service(route).is_some() { route } else { 0 };
        return Ok(Way { tunnel, route });
    };
    let target: Target =
        wanted.parse().map_err(|error| ReplayError::changes(format!("upstream: {error}")))?;
    for tunnel in own.into_iter().chain(&all) {
        if let Some(route) = tunnel.served().route_to(&target) {
            return Ok(Way { tunnel: Arc::clone(tunnel), route });
        }
    }
    // One of several that do the same: on its own.
    let mut served = own.into_iter().chain(&all).map(|tunnel| tunnel.served());
    if let Some(served) = served.find(|served| served.settings.further.contains(&target)) {
        let mut settings = TunnelSettings::http(&*view.record.tunnel, target);
        settings.trust = served.settings.trust.clone();
        settings.protocol = served.settings.protocol;
        return way_of(settings);
    }
    if !inspector.limits.remote_replay && !is_of_this_machine(&target) {
        let what = format!(
            "{target} is neither an HTTP server on this machine nor a local server of one of the agent's tunnels",
        );
        return Err(ReplayError::new(&Code::REPLAY_ELSEWHERE, what));
    }
    let mut settings = TunnelSettings::http(&*view.record.tunnel, target.clone());
    if is_of_this_machine(&target) {
        // Of servers under development certificates are self-signed.
        settings.trust = Trust::Insecure;
    }
    way_of(settings)
}

/// Of a tunnel that nobody else knows.
fn way_of(settings: TunnelSettings) -> Result<Way, ReplayError> {
    let tunnel = Tunnel::new(settings).map_err(|error| ReplayError::changes(error.to_string()))?;
    Ok(Way { tunnel: Arc::new(tunnel), route: 0 })
}

/// T17: names are not looked up here, so that none can lead elsewhere.
fn is_of_this_machine(target: &Target) -> bool {
    let Place::Tcp(host, _) = &target.place else { return false };
    let http = matches!(target.scheme, Scheme::Http | Scheme::Https);
    let loopback = match host.parse() {
        Ok(IpAddr::V4(address)) => address.is_loopback(),
        Ok(IpAddr::V6(address)) => address.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    };
    http && loopback
}

/// Both ends of the session, and the edge's part of the request.
async fn run(shared: Arc<Shared>, replay: Box<Replay>, open: (Bytes, bool), body: FileBody) {
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let (edge, _no_streams, mut edge_driver) = mux::new(mux::Config::edge(), ours, Bytes::new());
    let (_agent, mut streams, mut agent_driver) =
        mux::new(mux::Config::agent(), theirs, Bytes::new());
    let asking = async {
        let Ok((sender, receiver)) = edge.open() else { return };
        ask(sender.into(), receiver.into(), open, body).await;
    };
    let serving = async {
        if let Some((sender, receiver)) = streams.accept().await {
            forward::replay(shared, sender.into(), receiver.into(), replay).await;
        }
    };
    let both = async { tokio::join!(asking, serving) };
    tokio::select! {
        _ = both => {}
        _ = edge_driver.run() => {}
        _ = agent_driver.run() => {}
    }
}

/// Sends the request, and reads the answer to its end. `end`: it has no body.
async fn ask(
    mut sender: Sender,
    mut receiver: Receiver,
    (open, end): (Bytes, bool),
    mut body: FileBody,
) {
    if sender.send(open, end).is_err() {
        return;
    }
    let mut sending = (!end).then(|| BodySender::new(None));
    poll_fn(|cx| {
        if let Some(sender_of) = &mut sending
            && let Poll::Ready(sent) = sender_of.poll_send(cx, &mut sender, &mut body)
        {
            sending = None;
            if let Err(SendError::Body(error)) = sent {
                debug!(%error, "a replayed body broke off");
            }
        }
        loop {
            match receiver.poll_recv(cx) {
                Poll::Ready(Ok(Some(_))) => {}
                Poll::Ready(Ok(None) | Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
    debug!(whole = body.is_over(), "a replay has ended");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T17: where a replay may not go.
    #[test]
    fn t17_only_this_machine() {
        for allowed in
            ["3000", "localhost:3000", "http://127.0.0.1:80", "https://[::1]:443", "127.8.9.1:1"]
        {
            assert!(is_of_this_machine(&allowed.parse().unwrap()), "{allowed}");
        }
        for refused in [
            "http://127.1:80",
            "http://[::ffff:127.0.0.1]:80",
            "http://169.254.169.254:80",
            "http://0.0.0.0:80",
            "http://[::]:80",
            "http://10.0.0.1:80",
            "http://192.168.1.1:80",
            "http://localhost.evil.test:80",
            "http://2130706433:80",
            "http://0x7f.1:80",
            "http://metadata.google.internal:80",
            "http://[fe80::1]:80",
            "unix:/var/run/docker.sock",
            "file:/etc",
        ] {
            let target: Result<Target, _> = refused.parse();
            assert!(target.is_ok_and(|target| !is_of_this_machine(&target)), "{refused}");
        }
    }
}
