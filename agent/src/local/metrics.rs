//! `GET /metrics`: the agent in Prometheus' (OpenMetrics) text form. All of it is read when somebody
//! asks, from counters that are there anyway; labels are the user's own tunnels and local servers.

use std::sync::{Arc, atomic::AtomicU64};

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use uniroute_shared::code::Code;

use super::{App, MAX_CONNECTIONS, MAX_WORK, Shared, problem::Problem};
use crate::{
    inspect::{Figures, Limits, MAX_REPLAYS},
    slot::{OneSession, SessionFigures},
    status::{TunnelState, TunnelStatus, UpstreamStatus},
    tunnel::{self, Tunnel},
    upstream::pool::{MAX_HELD, Pool},
};

const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Of requests by the class of their answer's status.
const CLASSES: [&str; tunnel::CLASSES] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

type Labels = Vec<(&'static str, String)>;

/// What one answer is made of.
struct Scrape(Registry);

impl Scrape {
    /// Figures that come and go.
    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, impl Into<Number>)>,
    ) {
        let family = Family::<Labels, Gauge>::default();
        for (labels, Number(value)) in
            rows.into_iter().map(|(labels, value)| (labels, value.into()))
        {
            family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.0.register(name, help, family);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Into<Number>) {
        let Number(value) = value.into();
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        self.0.register(name, help, gauge);
    }

    /// Times, which are seconds.
    fn seconds(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, us) in rows {
            #[expect(clippy::cast_precision_loss, reason = "microseconds of a process fit")]
            family.get_or_create(&labels).set(us as f64 / 1e6);
        }
        self.0.register(name, help, family);
    }

    /// Figures that only grow.
    fn counters(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, impl Into<Number>)>,
    ) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in rows {
            let Number(value) = value.into();
            family.get_or_create(&labels).inc_by(value);
        }
        self.0.register(name, help, family);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Into<Number>) {
        let Number(value) = value.into();
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        self.0.register(name, help, counter);
    }
}

/// Any figure.
struct Number(u64);

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

impl From<usize> for Number {
    fn from(value: usize) -> Self {
        Self(u64::try_from(value).unwrap_or(u64::MAX))
    }
}

impl From<bool> for Number {
    fn from(value: bool) -> Self {
        Self(value.into())
    }
}

pub(super) async fn metrics(State(app): Shared) -> Result<Response, Problem> {
    let text = render(&app).map_err(|_| Problem::of(&Code::LOCAL_FAILED))?;
    Ok(([(header::CONTENT_TYPE, KIND)], text).into_response())
}

fn render(app: &Arc<App>) -> Result<String, std::fmt::Error> {
    let mut scrape = Scrape(Registry::with_prefix("uniroute_agent"));
    about(&mut scrape, app);
    sessions(&mut scrape, &app.handle.shared.session_figures());
    tunnels(&mut scrape, &app.handle.shared.tunnels.all(), &app.handle.status().tunnels);
    if let Some(inspector) = app.inspector() {
        captures(&mut scrape, &inspector.figures(), &inspector.limits);
    }
    api(&mut scrape, app);
    let mut out = String::new();
    text::encode(&mut out, &scrape.0)?;
    Ok(out)
}

fn about(scrape: &mut Scrape, app: &App) {
    let status = app.handle.status();
    let version = vec![("version", status.version.to_owned())];
    scrape.gauges("info", "The agent's version", [(version, true)]);
    let started = status.started_ms / 1000;
    scrape.gauge("start_time_seconds", "When the agent began, since 1970", started);
    let missed = app.handle.shared.tunnels.missed_events();
    scrape.counter("events_missed", "Events for whom the agent's display was too slow", missed);
}

fn sessions(scrape: &mut Scrape, figures: &SessionFigures) {
    let rows = |value: fn(&OneSession) -> u64| {
        let row = move |one: &OneSession| (one.labels(), value(one));
        figures.standing.iter().map(row).collect::<Vec<_>>()
    };
    scrape.gauge("sessions", "Sessions with edges that stand now", figures.standing.len());
    scrape.gauge("sessions_wanted", "Sessions that there are to be at most", figures.wanted);
    scrape.counter("sessions_begun", "Sessions that stood, those that stand too", figures.begun);
    scrape.counter("sessions_ended", "Sessions that ended, whoever ended them", figures.ended);
    scrape.counter("bytes", "Bytes to and from edges", figures.bytes);
    let round_trips = rows(|one| one.rtt_us).into_iter().filter(|(_, us)| *us > 0);
    scrape.seconds("session_rtt_seconds", "The round trip that was measured last", round_trips);
    for (name, help, value) in [
        (
            "session_streams",
            "Streams of a session that are open",
            (|one| one.streams) as fn(&OneSession) -> u64,
        ),
        ("session_lanes", "Further connections of a session, for long bodies", |one| one.lanes),
        ("session_window_bytes", "Receive windows granted to a session", |one| one.windows),
        ("session_unread_bytes", "Bytes that came and are not read yet", |one| one.unread),
        ("session_unsent_bytes", "Bytes that wait to be sent", |one| one.unsent),
    ] {
        scrape.gauges(name, help, rows(value));
    }
}

fn tunnels(scrape: &mut Scrape, all: &[Arc<Tunnel>], statuses: &[TunnelStatus]) {
    let of = |tunnel: &Tunnel| vec![("tunnel", tunnel.key.clone()), ("kind", kind(tunnel))];
    let state = |state: TunnelState| match state {
        TunnelState::Waiting => "waiting",
        TunnelState::Ready => "ready",
        TunnelState::Paused => "paused",
        TunnelState::Refused => "refused",
        TunnelState::Deleted => "deleted",
    };
    let states = statuses.iter().map(|tunnel| {
        let state = state(tunnel.state).to_owned();
        (vec![("tunnel", tunnel.key.clone()), ("state", state)], true)
    });
    scrape.gauges("tunnel_state", "1 for the state that a tunnel is in", states);
    let over = all.iter().flat_map(|tunnel| {
        let class = |(class, count): (&str, u64)| {
            let mut labels = of(tunnel);
            labels.push(("status", class.to_owned()));
            (labels, count)
        };
        CLASSES.into_iter().zip(tunnel.over()).map(class).collect::<Vec<_>>()
    });
    let help = "Requests and connections that are over, by their answer's class; none: no answer";
    scrape.counters("requests", help, over);
    let failed = all.iter().map(|tunnel| (of(tunnel), tunnel.failed()));
    let help = "Requests that the local server gave no answer to";
    scrape.counters("requests_unanswered", help, failed);
    let open = all.iter().map(|tunnel| (of(tunnel), tunnel.open()));
    scrape.gauges("requests_open", "Requests and connections that are under way", open);
    let upstreams = statuses.iter().flat_map(|tunnel| {
        let known = |upstream: &UpstreamStatus| {
            let labels = vec![("tunnel", tunnel.key.clone()), ("upstream", upstream.url.clone())];
            upstream.healthy.map(|healthy| (labels, healthy))
        };
        tunnel.upstreams.iter().filter_map(known).collect::<Vec<_>>()
    });
    scrape.gauges(
        "upstream_healthy",
        "Whether a local server answers, where it is known",
        upstreams,
    );
    let pools: Vec<_> = all
        .iter()
        .flat_map(|tunnel| tunnel.served().pools().map(Arc::clone).collect::<Vec<_>>())
        .map(|pool| (vec![("upstream", pool.target().to_string())], pool))
        .collect();
    let figure = |value: fn(&Pool) -> u64| {
        pools.iter().map(move |(labels, pool)| (labels.clone(), value(pool))).collect::<Vec<_>>()
    };
    let answers = figure(Pool::answer_us).into_iter().filter(|(_, us)| *us > 0);
    let help = "Mean time to the head of an answer, of the last ones";
    scrape.seconds("upstream_answer_seconds", help, answers);
    let help = "Requests that wait for a local server (hold.local)";
    scrape.gauges("upstream_waiting", help, figure(Pool::waiting));
    scrape.gauge("upstream_waiting_limit", "Most requests that wait for one", MAX_HELD);
    let help = "Requests that might not wait because as many as may did";
    scrape.counters("upstream_wait_refused", help, figure(Pool::turned_away));
    let help = "Connections to a local server that wait for a request";
    scrape.gauges("upstream_idle_connections", help, figure(Pool::idle));
}

fn kind(tunnel: &Tunnel) -> String {
    tunnel.kind.as_str().to_owned()
}

fn captures(scrape: &mut Scrape, now: &Figures, limits: &Limits) {
    scrape.gauge("captures", "Requests that the inspector keeps", now.captured);
    scrape.gauge("captures_limit", "Most that it keeps", limits.max_requests);
    scrape.gauge("capture_bytes", "Memory of what it keeps", now.bytes);
    scrape.gauge("capture_bytes_limit", "Most memory of it", limits.max_bytes);
    scrape.gauge("capture_recording", "Whether requests are kept now", now.recording);
    scrape.counter("captures_begun", "Requests that were kept", now.begun);
    scrape.counter("captures_evicted", "Requests that went to make room", now.evicted);
    let help = "Requests that were not kept because too many were open";
    scrape.counter("captures_missed", help, now.missed);
    scrape.gauge("replays", "Replays under way", now.replays);
    scrape.gauge("replays_limit", "Most replays at a time", MAX_REPLAYS);
    let Some(spool) = &now.spool else { return };
    scrape.gauge("spool_bytes", "Long bodies on disk", spool.on_disk);
    scrape.gauge("spool_bytes_limit", "Most of them", limits.max_spool);
    scrape.gauge("spool_waiting_bytes", "Bytes that wait for the disk", spool.waiting);
    let help = "Most bytes that wait for the disk";
    scrape.gauge("spool_waiting_bytes_limit", help, spool.most_waiting);
    scrape.counter("spool_bodies", "Bodies that went to disk", spool.bodies);
    let help = "Bodies that were given up: the disk was too slow or full";
    scrape.counter("spool_bodies_lost", help, spool.lost);
}

fn api(scrape: &mut Scrape, app: &App) {
    let connections = MAX_CONNECTIONS - app.connections.available_permits();
    scrape.gauge("api_connections", "Connections to the local API", connections);
    scrape.gauge("api_connections_limit", "Most of them", MAX_CONNECTIONS);
    let work = MAX_WORK - app.work.available_permits();
    scrape.gauge("api_work", "Answers of the local API that are being made", work);
    scrape.gauge("api_work_limit", "Most at a time; others wait", MAX_WORK);
    let (readers, lagged) = app.events.figures();
    scrape.gauge("api_event_readers", "Who follows the agent's events", readers);
    scrape.gauge("api_event_readers_limit", "Most that may", super::events::MAX_READERS);
    let help = "Times that one who follows was too slow, and was told to begin anew";
    scrape.counter("api_event_readers_lagged", help, lagged);
}
