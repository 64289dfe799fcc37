//! The way to one edge.

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::join_all;
use http::{Request, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use uniroute_proto::{TUNNEL_PATH, v1};
use uniroute_shared::carrier::quic::endpoint as quic;

use super::{State, Step, certificate, millis};
use crate::{
    AgentError, LoginError, Settings, Transport, check_login,
    connect::{
        self, ConnectError, EdgeIo, Route, ServerUrl, Way,
        proxy::{self, ProxyUrl, Reached},
    },
    session,
    transport::QuicDoor,
};

/// The steps, in their order.
pub(super) const NAMES: [&str; 9] =
    ["proxy", "dns", "tcp", "tls", "websocket", "ping", "clock", "quic", "token"];
/// Time for one address, and for answers.
const PATIENCE: Duration = Duration::from_secs(10);
/// Signs of life that are asked for.
const PINGS: usize = 5;
/// A certificate that ends sooner is warned of, in days.
const SOON: u64 = 14;
/// A clock that is further off is warned of …
const CLOCK_OFF: Duration = Duration::from_secs(60);
/// … and this far off it fails: certificates and tokens end at the wrong time.
const CLOCK_WRONG: Duration = Duration::from_secs(5 * 60);

/// Every step of the way to `server`.
pub(super) async fn look(
    server: &ServerUrl,
    way: &Way,
    settings: &Settings,
    no_token: Option<&str>,
) -> Vec<Step> {
    let mut looking = Look { server, way, of: server.to_string(), steps: Vec::new() };
    // What comes after a failure could only fail, too.
    let _ = looking.all(settings, no_token).await;
    let last = looking.steps.last().map_or("", |step| step.name);
    let done = looking.steps.len();
    for name in NAMES.iter().skip(done) {
        let says = format!("{last} has to work first");
        looking.add(Step::new(name, State::Skip, says), Instant::now());
    }
    looking.steps
}

/// A step has failed, and the rest makes no sense.
struct Stop;

struct Look<'a> {
    server: &'a ServerUrl,
    way: &'a Way,
    of: String,
    steps: Vec<Step>,
}

impl Look<'_> {
    fn add(&mut self, step: Step, began: Instant) {
        self.steps.push(step.of(&self.of).since(began));
    }

    fn fail(&mut self, step: Step, began: Instant) -> Stop {
        self.add(step, began);
        Stop
    }

    async fn all(&mut self, settings: &Settings, no_token: Option<&str>) -> Result<(), Stop> {
        let proxy = self.proxy().await?;
        let addresses = self.dns(proxy.as_ref()).await?;
        self.tcp(proxy.as_ref(), &addresses).await?;
        self.tls().await?;
        let (edge, offer, route) = self.websocket().await?;
        self.clock().await;
        self.quic(proxy.as_ref(), offer, route, settings).await;
        self.token(settings, no_token, &edge).await;
        Ok(())
    }

    async fn proxy(&mut self) -> Result<Option<ProxyUrl>, Stop> {
        let began = Instant::now();
        let proxy = match self.way.proxy(self.server) {
            Ok(Some(proxy)) => proxy,
            Ok(None) => {
                self.add(Step::new("proxy", State::Pass, "none is on the way"), began);
                return Ok(None);
            }
            Err(error) => {
                let step = Step::new("proxy", State::Fail, error.to_string());
                return Err(self.fail(step, began));
            }
        };
        match proxy::dial(&proxy).await {
            Ok((_, address)) => {
                let says = format!("{proxy} takes connections at {address}");
                self.add(Step::new("proxy", State::Pass, says), began);
                Ok(Some(proxy))
            }
            Err(fault) => {
                let step = Step::new("proxy", State::Fail, format!("{proxy}: {fault}"))
                    .fix("Correct the proxy in `agent.proxy` or in HTTPS_PROXY, HTTP_PROXY, ALL_PROXY; `--proxy none` or NO_PROXY go past it");
                Err(self.fail(step, began))
            }
        }
    }

    /// The edge's addresses; none where the proxy looks them up.
    async fn dns(&mut self, proxy: Option<&ProxyUrl>) -> Result<Vec<SocketAddr>, Stop> {
        let began = Instant::now();
        if proxy.is_some_and(ProxyUrl::looks_up) {
            self.add(Step::new("dns", State::Skip, "the proxy looks the name up"), began);
            return Ok(Vec::new());
        }
        match connect::look_up(self.server).await {
            Ok(addresses) => {
                let list = addresses.iter().map(|a| a.ip().to_string()).collect::<Vec<_>>();
                let says = format!("{} is {}", self.server.host(), list.join(", "));
                self.add(Step::new("dns", State::Pass, says), began);
                Ok(addresses)
            }
            Err(error) => {
                let step = Step::new("dns", State::Fail, error.to_string()).fix(
                    "Is the server's name spelt right? Is this machine online, and does its name server answer?",
                );
                Err(self.fail(step, began))
            }
        }
    }

    async fn tcp(
        &mut self,
        proxy: Option<&ProxyUrl>,
        addresses: &[SocketAddr],
    ) -> Result<(), Stop> {
        let began = Instant::now();
        if let Some(proxy) = proxy {
            return match connect::reach(self.server, self.way, None).await {
                Ok(_) => {
                    let to = format!("{}:{}", self.server.host(), self.server.port());
                    let says = format!("{proxy} connects to {to}");
                    self.add(Step::new("tcp", State::Pass, says), began);
                    Ok(())
                }
                Err(error) => {
                    let step = Step::new("tcp", State::Fail, error.to_string());
                    Err(self.fail(step, began))
                }
            };
        }
        let tries = addresses.iter().map(|address| async move {
            let connected = timeout(PATIENCE, TcpStream::connect(address)).await;
            let took = began.elapsed();
            match connected {
                Ok(Ok(_)) => Ok(format!("{address} ({})", millis(took))),
                Ok(Err(error)) => Err(format!("{address}: {error}")),
                Err(_) => Err(format!("{address}: no answer within {} s", PATIENCE.as_secs())),
            }
        });
        let (good, bad): (Vec<_>, Vec<_>) =
            join_all(tries).await.into_iter().partition(Result::is_ok);
        let list = |all: Vec<Result<String, String>>| {
            all.into_iter()
                .map(|one| one.unwrap_or_else(|error| error))
                .collect::<Vec<_>>()
                .join("; ")
        };
        let (any, none_bad, good, bad) = (!good.is_empty(), bad.is_empty(), list(good), list(bad));
        match (any, none_bad) {
            (true, true) => self.add(Step::new("tcp", State::Pass, good), began),
            (true, false) => {
                let says = format!("{good}; but not {bad}");
                let fix = "The agent uses the address that answers; the other one may be IPv6 without a way there, or an edge that is down";
                self.add(Step::new("tcp", State::Warn, says).fix(fix), began);
            }
            (false, _) => {
                let fix = "Is the edge running, and is this its port? If nothing answers at all a firewall may be in between: `--proxy URL` if this network has a proxy";
                return Err(self.fail(Step::new("tcp", State::Fail, bad).fix(fix), began));
            }
        }
        Ok(())
    }

    async fn tls(&mut self) -> Result<(), Stop> {
        let began = Instant::now();
        if !self.server.is_tls() {
            let step = match self.server.is_local() {
                true => Step::new("tls", State::Skip, "http:// has none"),
                false => Step::new(
                    "tls",
                    State::Warn,
                    "http:// has none: everybody on the way can read the token and what is sent",
                )
                .fix("Use https:// if the edge has it"),
            };
            self.add(step, began);
            return Ok(());
        }
        let shaken = async {
            let (socket, _) = connect::reach(self.server, self.way, None).await?;
            match socket {
                Reached::Bare(socket) => {
                    Ok(seen(&connect::shake(self.server, self.way, socket).await?))
                }
                Reached::Tls(socket) => {
                    Ok(seen(&connect::shake(self.server, self.way, socket).await?))
                }
            }
        };
        let (version, certificate) = match shaken.await {
            Ok(seen) => seen,
            Err(error) => {
                let error: ConnectError = error;
                return Err(self.fail(Step::new("tls", State::Fail, error.to_string()), began));
            }
        };
        let step = match certificate {
            None => Step::new("tls", State::Pass, version),
            Some(certificate::Seen { names, issuer, days, pin }) => {
                let says =
                    format!("{version}; for {names}, by {issuer}, {days} days left, key {pin}");
                match days < SOON {
                    true => Step::new("tls", State::Warn, says)
                        .fix("The edge's certificate ends soon: its operator has to renew it"),
                    false => Step::new("tls", State::Pass, says),
                }
            }
        };
        self.add(step, began);
        Ok(())
    }

    /// The edge's name, where it takes QUIC, and how it was reached.
    async fn websocket(&mut self) -> Result<(String, Option<v1::QuicOffer>, Route), Stop> {
        let began = Instant::now();
        let dialled = match connect::dial(self.server, self.way).await {
            Ok(dialled) => dialled,
            Err(error) => {
                let step = Step::new("websocket", State::Fail, error.to_string()).fix(
                    "What answers has to be a UniRoute edge, and everything in between has to pass WebSocket upgrades of /tunnel",
                );
                return Err(self.fail(step, began));
            }
        };
        let (route, upgraded) = (dialled.route, Instant::now());
        let seen = match session::look_at(dialled, PINGS).await {
            Ok(seen) => seen,
            Err(error) => {
                let step = Step::new("websocket", State::Fail, error.to_string()).fix(
                    "It switches to WebSocket and then does not speak UniRoute's protocol: is something in between that ends WebSockets itself?",
                );
                return Err(self.fail(step, began));
            }
        };
        let says = format!("edge {}", seen.edge);
        self.add(Step::new("websocket", State::Pass, says), began);
        let (least, most) = (seen.trips.iter().min(), seen.trips.iter().max());
        let least = least.copied().map(millis).unwrap_or_default();
        let most = most.copied().map(millis).unwrap_or_default();
        let says = format!("{PINGS} round trips: {least} to {most}");
        self.add(Step::new("ping", State::Pass, says), upgraded);
        Ok((seen.edge, seen.quic, route))
    }

    async fn clock(&mut self) {
        let began = Instant::now();
        let date = timeout(PATIENCE, date(self.server, self.way)).await;
        let step = match date.ok().and_then(Result::ok).flatten() {
            None => Step::new("clock", State::Skip, "the edge does not tell its time"),
            Some(theirs) => judge(SystemTime::now(), theirs),
        };
        self.add(step, began);
    }

    async fn quic(
        &mut self,
        proxy: Option<&ProxyUrl>,
        offer: Option<v1::QuicOffer>,
        route: Route,
        settings: &Settings,
    ) {
        let began = Instant::now();
        let needed = settings.transport == Transport::Quic;
        let missing = if needed { State::Fail } else { State::Skip };
        let door = offer.zip(route.direct()).map(|(offer, edge)| QuicDoor::new(edge, &offer));
        let step = match (proxy, door) {
            _ if settings.transport == Transport::WebSocket => {
                Step::new("quic", State::Skip, "transport is ws")
            }
            (Some(_), _) => Step::new("quic", missing, "it goes through no proxy")
                .fix("Use the transport auto or ws"),
            (None, None) => Step::new("quic", missing, "the edge does not offer it"),
            (None, Some(None)) => Step::new("quic", State::Warn, "the edge's offer can't be read"),
            (None, Some(Some(door))) => {
                match quic::dial(door.address, door.certificate, settings.quic_options).await {
                    Ok(dialled) => {
                        let rtt = millis(dialled.connection.rtt());
                        dialled.connection.close(0_u32.into(), b"diagnosed");
                        let says = format!("UDP {} answers, round trip {rtt}", door.address);
                        Step::new("quic", State::Pass, says)
                    }
                    Err(error) => {
                        let state = if needed { State::Fail } else { State::Warn };
                        let says = format!("UDP {}: {error}", door.address);
                        Step::new("quic", state, says).fix("Sessions stay on WebSocket, which is slower where packets are lost. To have QUIC let UDP to this port through the firewall")
                    }
                }
            }
        };
        self.add(step, began);
    }

    async fn token(&mut self, settings: &Settings, no_token: Option<&str>, edge: &str) {
        let began = Instant::now();
        if let Some(why) = no_token {
            let step = Step::new("token", State::Fail, why);
            return self.add(step.fix("`uniroute login` asks for one and stores it"), began);
        }
        let mut asked = Settings::new(self.server.clone(), settings.token.clone(), Vec::new());
        asked.trust = settings.trust.clone();
        asked.pins.clone_from(&settings.pins);
        asked.identity.clone_from(&settings.identity);
        asked.proxy = settings.proxy.clone();
        asked.transport = Transport::WebSocket;
        asked.agent_name = "diagnose".to_owned();
        let step = match check_login(asked).await {
            Ok(_) => Step::new("token", State::Pass, format!("edge {edge} takes it")),
            Err(LoginError::Edge(AgentError::Token { code })) => {
                Step::new("token", State::Fail, format!("{code}: {}", code.title)).fix(code.fix)
            }
            Err(error) => Step::new("token", State::Fail, error.to_string()),
        };
        self.add(step, began);
    }
}

fn seen<Io>(stream: &tokio_rustls::client::TlsStream<Io>) -> (String, Option<certificate::Seen>) {
    let connection = stream.get_ref().1;
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
        _ => "TLS 1.2",
    };
    let first = connection.peer_certificates().and_then(|chain| chain.first());
    (version.to_owned(), first.and_then(certificate::look))
}

/// What time the edge has, by the answer to a request that is no upgrade.
async fn date(server: &ServerUrl, way: &Way) -> Result<Option<SystemTime>, ConnectError> {
    match connect::reach(server, way, None).await?.0 {
        Reached::Bare(socket) if !server.is_tls() => date_over(server, socket).await,
        Reached::Bare(socket) => {
            date_over(server, connect::shake(server, way, socket).await?).await
        }
        Reached::Tls(socket) if !server.is_tls() => date_over(server, socket).await,
        Reached::Tls(socket) => date_over(server, connect::shake(server, way, socket).await?).await,
    }
}

async fn date_over<Io: EdgeIo + 'static>(
    server: &ServerUrl,
    io: Io,
) -> Result<Option<SystemTime>, ConnectError> {
    let lost = |error: &dyn std::fmt::Display| ConnectError::Lost(error.to_string());
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(io)).await.map_err(|e| lost(&e))?;
    let request = Request::get(TUNNEL_PATH)
        .header(header::HOST, server.authority())
        .header(header::CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|e| lost(&e))?;
    // The connection may end in the same moment in which the answer is there.
    let (mut connection, mut over) = (std::pin::pin!(connection), false);
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer.map_err(|e| lost(&e))?,
            _ = &mut connection, if !over => over = true,
        }
    };
    let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
    Ok(date.and_then(|date| httpdate::parse_http_date(date).ok()))
}

fn judge(ours: SystemTime, theirs: SystemTime) -> Step {
    let (off, which) = match ours.duration_since(theirs) {
        Ok(off) => (off, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    // The edge tells full seconds.
    let says = match off.as_secs() {
        0 | 1 => "as the edge's".to_owned(),
        seconds => format!("{seconds} s {which} the edge's"),
    };
    let state = match off {
        off if off > CLOCK_WRONG => State::Fail,
        off if off > CLOCK_OFF => State::Warn,
        _ => return Step::new("clock", State::Pass, says),
    };
    Step::new("clock", state, says)
        .fix("Set this machine's clock, or let it be set: `timedatectl set-ntp true`. If it is right, the edge's is wrong")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_are_off() {
        let now = SystemTime::now();
        let seconds = Duration::from_secs;
        for (theirs, state, says) in [
            (now - Duration::from_millis(1900), State::Pass, "as the edge's"),
            (now + seconds(30), State::Pass, "30 s behind the edge's"),
            (now - seconds(61), State::Warn, "61 s ahead of the edge's"),
            (now + seconds(301), State::Fail, "301 s behind the edge's"),
        ] {
            let step = judge(now, theirs);
            assert_eq!((step.state, step.says.as_str()), (state, says));
            assert_eq!(step.fix.is_empty(), state == State::Pass);
        }
    }
}
