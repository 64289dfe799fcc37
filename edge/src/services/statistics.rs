//! What goes through tunnels: totals, the last minutes, time series, single requests.

use std::{collections::BTreeMap, time::Duration};

use uuid::Uuid;

use super::{Caller, Failure, Services, Totals};
use crate::{
    histogram::Histogram,
    store::{RequestFilter, RequestRow, Timestamp, TunnelRow, Usage},
};

const SECOND: i64 = 1_000_000;
/// Minutes that say how it is now.
const RECENT_MINUTES: i64 = 15;
/// Points of a time series at most.
pub(crate) const MAX_POINTS: i64 = 1_500;

/// How long a point of a time series is.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Deserialize,
    serde::Serialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Step {
    #[default]
    Minute,
    Hour,
}

impl Step {
    pub(crate) const ALL: [&str; 2] = ["minute", "hour"];

    fn micros(self) -> i64 {
        match self {
            Self::Minute => 60 * SECOND,
            Self::Hour => 3600 * SECOND,
        }
    }
}

/// What was counted, and how long it took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) totals: Totals,
    pub(crate) latencies: Histogram,
}

impl Counted {
    fn add(&mut self, totals: Totals, latencies: &[u8]) {
        self.totals.requests = self.totals.requests.saturating_add(totals.requests);
        self.totals.errors = self.totals.errors.saturating_add(totals.errors);
        self.totals.bytes_in = self.totals.bytes_in.saturating_add(totals.bytes_in);
        self.totals.bytes_out = self.totals.bytes_out.saturating_add(totals.bytes_out);
        if let Some(more) = Histogram::decode(latencies) {
            self.latencies.merge(&more);
        }
    }
}

/// How a tunnel does.
#[derive(Clone, Debug)]
pub(crate) struct Stats {
    pub(crate) row: TunnelRow,
    pub(crate) is_online: bool,
    /// Since when a session has served it, if one does.
    pub(crate) online_since: Option<Timestamp>,
    pub(crate) totals: Totals,
    /// Of the last minute, of five, and of fifteen, that are over.
    pub(crate) recent: [(u32, Counted); 3],
}

impl Services {
    /// How a tunnel does now.
    pub(crate) async fn stats(&self, caller: &Caller, id: Uuid) -> Result<Stats, Failure> {
        let row = self.tunnel(caller, id).await?;
        let now = Timestamp::now();
        let to = floor(now, Step::Minute);
        let from = Timestamp(to.0 - RECENT_MINUTES * Step::Minute.micros());
        let minutes = self.store.minutes(id, from, to).await?;
        let mut recent = [1, 5, 15].map(|minutes| (minutes, Counted::default()));
        for minute in &minutes {
            let counted = Totals {
                requests: minute.requests,
                errors: minute.errors,
                bytes_in: minute.bytes_in,
                bytes_out: minute.bytes_out,
            };
            for (length, sum) in &mut recent {
                if minute.minute.0 >= to.0 - i64::from(*length) * Step::Minute.micros() {
                    sum.add(counted, &minute.latencies);
                }
            }
        }
        let totals = self.totals(&row).await?;
        let is_online = self.live.is_online(id).await;
        let online_since = self.online_since(id).await?.filter(|_| is_online);
        Ok(Stats { row, is_online, online_since, totals, recent })
    }

    /// The running totals, or what is written of them: whichever is further.
    async fn totals(&self, row: &TunnelRow) -> Result<Totals, Failure> {
        let live = self.live.totals(row.id).await.unwrap_or_default();
        let written = self.store.written_totals(row.id).await?;
        Ok(Totals {
            // Roll-ups go after a time, the tunnel's own count does not.
            requests: live.requests.max(written.requests).max(row.request_count),
            errors: live.errors.max(written.errors),
            bytes_in: live.bytes_in.max(written.bytes_in),
            bytes_out: live.bytes_out.max(written.bytes_out),
        })
    }

    async fn online_since(&self, tunnel: Uuid) -> Result<Option<Timestamp>, Failure> {
        let filter = crate::store::SessionFilter {
            tunnel: Some(tunnel),
            live: true,
            limit: 100,
            ..Default::default()
        };
        let rows = self.store.list_sessions(&filter).await?;
        Ok(rows.into_iter().map(|row| row.connected_at).min())
    }

    /// A time series, oldest first: from `from` up to `to`, with a point for each step in which there
    /// was something.
    pub(crate) async fn metrics(
        &self,
        caller: &Caller,
        id: Uuid,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        step: Step,
    ) -> Result<Vec<(Timestamp, Counted)>, Failure> {
        let row = self.tunnel(caller, id).await?;
        let to = to.unwrap_or_else(Timestamp::now);
        let usual = match step {
            Step::Minute => Duration::from_secs(3600),
            Step::Hour => Duration::from_secs(24 * 3600),
        };
        // What is asked for beyond the most points is left out at its old end.
        let oldest = to.0.saturating_sub(MAX_POINTS * step.micros());
        let from = from.unwrap_or_else(|| to.minus(usual));
        let from = floor(Timestamp(from.0.max(oldest)), step);
        let mut points: BTreeMap<Timestamp, Counted> = BTreeMap::new();
        if step == Step::Hour {
            for hour in self.store.hours(row.id, from, to).await? {
                let totals = Totals {
                    requests: hour.requests,
                    errors: hour.errors,
                    bytes_in: hour.bytes_in,
                    bytes_out: hour.bytes_out,
                };
                points.entry(hour.hour).or_default().add(totals, &hour.latencies);
            }
        } else {
            for minute in self.store.minutes(row.id, from, to).await? {
                let totals = Totals {
                    requests: minute.requests,
                    errors: minute.errors,
                    bytes_in: minute.bytes_in,
                    bytes_out: minute.bytes_out,
                };
                points.entry(minute.minute).or_default().add(totals, &minute.latencies);
            }
        }
        Ok(points.into_iter().collect())
    }

    /// Requests of a tunnel that are over, newest first.
    pub(crate) async fn list_requests(
        &self,
        caller: &Caller,
        tunnel: Uuid,
        filter: &RequestFilter,
    ) -> Result<Vec<RequestRow>, Failure> {
        let row = self.tunnel(caller, tunnel).await?;
        Ok(self.store.list_requests(row.id, filter).await?)
    }

    /// One request of a tunnel that the caller sees.
    pub(crate) async fn request(&self, caller: &Caller, id: Uuid) -> Result<RequestRow, Failure> {
        self.store.request(caller.sees(), id).await?.ok_or_else(Failure::no_such_thing)
    }

    /// What an account's tunnels have had, by month, newest first.
    pub(crate) async fn usage(&self, user: Uuid, months: u32) -> Result<Vec<Usage>, Failure> {
        Ok(self.store.usage(user, months).await?)
    }
}

/// The first instant of a step.
fn floor(at: Timestamp, step: Step) -> Timestamp {
    Timestamp(at.0.div_euclid(step.micros()).saturating_mul(step.micros()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_begin_at_whole_ones() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let noon = at("2026-11-25T12:34:56.789Z");
        assert_eq!(floor(noon, Step::Minute), at("2026-11-25T12:34:00Z"));
        assert_eq!(floor(noon, Step::Hour), at("2026-11-25T12:00:00Z"));
        assert_eq!(floor(Timestamp(-1), Step::Minute), Timestamp(-60_000_000));
    }
}
