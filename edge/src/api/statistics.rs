//! What goes through tunnels.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    extract::{Asked, Id, Name, Page, Paging},
    schema,
};
use crate::{
    services::{
        Caller, Failure, Services, Totals,
        statistics::{Counted, Stats, Step},
    },
    store::{RequestFilter, RequestRow, Timestamp},
};

/// How a tunnel does.
#[derive(Serialize, ToSchema)]
pub(super) struct StatsAnswer {
    tunnel_id: Uuid,
    /// Whether an agent serves it.
    is_online: bool,
    /// Seconds since an agent has served it without a break.
    uptime_seconds: Option<u64>,
    last_active_at: Option<Timestamp>,
    /// Since the tunnel was made.
    total: TotalsAnswer,
    /// Of minutes that are over.
    recent: Vec<Recent>,
}

#[derive(Serialize, ToSchema)]
struct TotalsAnswer {
    requests: u64,
    errors: u64,
    /// From visitors.
    bytes_in: u64,
    /// To visitors.
    bytes_out: u64,
}

/// The last minutes that are over.
#[derive(Serialize, ToSchema)]
struct Recent {
    /// How many.
    minutes: u32,
    requests: u64,
    errors: u64,
    requests_per_second: f64,
    bytes_in_per_second: f64,
    bytes_out_per_second: f64,
    latency_ms: Latency,
}

/// Milliseconds to the whole answer that this part of the requests did not exceed; `null`: there were
/// none.
#[derive(Serialize, ToSchema)]
struct Latency {
    p50: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
}

impl From<Totals> for TotalsAnswer {
    fn from(totals: Totals) -> Self {
        let Totals { requests, errors, bytes_in, bytes_out } = totals;
        Self { requests, errors, bytes_in, bytes_out }
    }
}

impl Latency {
    fn of(counted: &Counted) -> Self {
        let quantile = |part| counted.latencies.quantile(part);
        Self { p50: quantile(0.5), p95: quantile(0.95), p99: quantile(0.99) }
    }
}

impl Recent {
    fn of(minutes: u32, counted: &Counted) -> Self {
        let totals = counted.totals;
        #[expect(clippy::cast_precision_loss, reason = "rates for people")]
        let rate = |count: u64| count as f64 / (f64::from(minutes) * 60.0);
        Self {
            minutes,
            requests: totals.requests,
            errors: totals.errors,
            requests_per_second: rate(totals.requests),
            bytes_in_per_second: rate(totals.bytes_in),
            bytes_out_per_second: rate(totals.bytes_out),
            latency_ms: Latency::of(counted),
        }
    }
}

impl From<Stats> for StatsAnswer {
    fn from(stats: Stats) -> Self {
        let now = Timestamp::now();
        let since = |at: Timestamp| u64::try_from((now.0 - at.0) / 1_000_000).unwrap_or(0);
        Self {
            tunnel_id: stats.row.id,
            is_online: stats.is_online,
            uptime_seconds: stats.online_since.map(since),
            last_active_at: stats.row.last_active_at,
            total: stats.totals.into(),
            recent: stats.recent.iter().map(|(minutes, sum)| Recent::of(*minutes, sum)).collect(),
        }
    }
}

/// How a tunnel does now.
#[utoipa::path(
    get, path = "/api/v1/tunnels/{id}/stats", tag = "Statistics", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "Of the tunnel")),
    responses((status = 200, body = StatsAnswer)),
)]
pub(super) async fn tunnel_stats(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<StatsAnswer>, Failure> {
    Ok(Json(services.stats(&caller, id).await?.into()))
}

/// Which time.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct MetricsQuery {
    /// Default: an hour before `to`, or a day, by `step`.
    #[param(schema_with = schema::time)]
    from: Option<Timestamp>,
    /// Before this. Default: now.
    #[param(schema_with = schema::time)]
    to: Option<Timestamp>,
    #[param(schema_with = schema::step)]
    #[serde(default)]
    step: Step,
}

/// A time series.
#[derive(Serialize, ToSchema)]
pub(super) struct Metrics {
    tunnel_id: Uuid,
    step: Step,
    /// Oldest first; steps in which nothing was are not there. At most 1,500, the newest ones.
    points: Vec<Point>,
}

#[derive(Serialize, ToSchema)]
struct Point {
    /// Its first instant.
    at: Timestamp,
    requests: u64,
    errors: u64,
    bytes_in: u64,
    bytes_out: u64,
    latency_ms: Latency,
}

/// What went through a tunnel, by the minute or by the hour.
#[utoipa::path(
    get, path = "/api/v1/tunnels/{id}/metrics", tag = "Statistics", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "Of the tunnel"), MetricsQuery),
    responses((status = 200, body = Metrics)),
)]
pub(super) async fn tunnel_metrics(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
    Asked(query): Asked<MetricsQuery>,
) -> Result<Json<Metrics>, Failure> {
    let points = services.metrics(&caller, id, query.from, query.to, query.step).await?;
    let point = |(at, counted): &(Timestamp, Counted)| Point {
        at: *at,
        requests: counted.totals.requests,
        errors: counted.totals.errors,
        bytes_in: counted.totals.bytes_in,
        bytes_out: counted.totals.bytes_out,
        latency_ms: Latency::of(counted),
    };
    let points = points.iter().map(point).collect();
    Ok(Json(Metrics { tunnel_id: id, step: query.step, points }))
}

/// A request that is over.
#[derive(Serialize, ToSchema)]
pub(super) struct RequestEntry {
    id: Uuid,
    /// As in `x-uniroute-request-id`.
    request_id: String,
    tunnel_id: Uuid,
    at: Timestamp,
    method: String,
    /// Without its query; cut at 500 characters.
    path: String,
    status: Option<u16>,
    duration_ms: Option<u32>,
    request_bytes: Option<u64>,
    response_bytes: Option<u64>,
    /// Address of the visitor.
    visitor: String,
    /// `UR-nnnn`, if the edge or the agent answered with an error of its own.
    error: Option<String>,
}

impl From<RequestRow> for RequestEntry {
    fn from(row: RequestRow) -> Self {
        Self {
            id: row.id,
            request_id: row.request_id,
            tunnel_id: row.tunnel_id,
            at: row.created_at,
            method: row.method,
            path: row.path,
            status: row.status_code,
            duration_ms: row.latency_ms,
            request_bytes: row.request_size,
            response_bytes: row.response_size,
            visitor: row.visitor,
            error: (row.error_code != 0).then(|| format!("UR-{:04}", row.error_code)),
        }
    }
}

/// Which requests.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RequestQuery {
    #[param(schema_with = schema::method)]
    method: Option<String>,
    /// Whose path has this part.
    #[param(schema_with = schema::path_part)]
    path: Option<String>,
    /// At least this status.
    #[param(minimum = 100, maximum = 599)]
    status_from: Option<u16>,
    /// At most this status.
    #[param(minimum = 100, maximum = 599)]
    status_to: Option<u16>,
    /// Only those that failed.
    #[param(schema_with = schema::boolean)]
    failed: Option<bool>,
    /// Not before this.
    #[param(schema_with = schema::time)]
    from: Option<Timestamp>,
    /// Before this.
    #[param(schema_with = schema::time)]
    to: Option<Timestamp>,
}

/// Requests that went through a tunnel.
#[utoipa::path(
    get, path = "/api/v1/tunnels/{id}/requests", tag = "Statistics", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "Of the tunnel"), Paging, RequestQuery),
    responses((status = 200, body = Page<RequestEntry>)),
)]
pub(super) async fn tunnel_requests(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
    Asked(paging): Asked<Paging>,
    Asked(query): Asked<RequestQuery>,
) -> Result<Json<Page<RequestEntry>>, Failure> {
    let filter = RequestFilter {
        status_from: query.status_from,
        status_to: query.status_to,
        method: query.method,
        path_contains: query.path,
        from: query.from,
        to: query.to,
        errors_only: query.failed.unwrap_or(false),
        after: paging.after,
        limit: paging.limit + 1,
    };
    let rows = services.list_requests(&caller, id, &filter).await?;
    Ok(Json(Page::of(rows, paging.limit, |row| row.id.to_string(), RequestEntry::from)))
}

/// One request, by the id that its visitor and its local server have seen.
#[utoipa::path(
    get, path = "/api/v1/requests/{id}", tag = "Statistics", security(("bearer" = [])),
    params(("id" = String, Path, description = "32 hexadecimal digits, or a UUID",
        example = "0197a1b2c3d47e5f8091a2b3c4d5e6f7")),
    responses((status = 200, body = RequestEntry)),
)]
pub(super) async fn get_request(
    State(services): State<Services>,
    caller: Caller,
    Name(text): Name,
) -> Result<Json<RequestEntry>, Failure> {
    let id = (text.len() == 32).then(|| Uuid::try_parse(&text).ok()).flatten();
    let id = id.or_else(|| schema::uuid(&text)).ok_or_else(Failure::no_such_thing)?;
    Ok(Json(services.request(&caller, id).await?.into()))
}

/// Which months.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct UsageQuery {
    /// How many, newest first.
    #[param(minimum = 1, maximum = 36, default = 12)]
    #[serde(default = "twelve")]
    months: u32,
    /// Of this account, for operators. Default: one's own.
    user_id: Option<Uuid>,
}

fn twelve() -> u32 {
    12
}

/// What an account has used.
#[derive(Serialize, ToSchema)]
pub(super) struct UsageAnswer {
    user_id: Uuid,
    plan: String,
    /// Tunnels that it has now.
    tunnels: u64,
    /// Newest first; months in which nothing was are not there.
    months: Vec<Month>,
}

#[derive(Serialize, ToSchema)]
struct Month {
    /// Its first instant.
    month: Timestamp,
    requests: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// What an account has used, by month.
#[utoipa::path(
    get, path = "/api/v1/usage", tag = "Statistics", security(("bearer" = [])),
    params(UsageQuery),
    responses(
        (status = 200, body = UsageAnswer),
        (status = 404, description = "There is no such account, or it is somebody else's"),
    ),
)]
pub(super) async fn usage(
    State(services): State<Services>,
    caller: Caller,
    Asked(query): Asked<UsageQuery>,
) -> Result<Json<UsageAnswer>, Failure> {
    let user = query.user_id.unwrap_or(caller.user);
    if caller.sees().is_some_and(|me| me != user) {
        return Err(Failure::no_such_thing());
    }
    let row = services.user(user).await?;
    let months = services.usage(user, query.months).await?;
    let month = |row: crate::store::Usage| Month {
        month: row.month,
        requests: row.requests,
        bytes_in: row.bytes_in,
        bytes_out: row.bytes_out,
    };
    Ok(Json(UsageAnswer {
        user_id: user,
        plan: row.plan,
        tunnels: services.store.count_tunnels(user).await?,
        months: months.into_iter().map(month).collect(),
    }))
}
