//! What was counted: by minute and edge, by hour, and for a user by month.

use std::{collections::BTreeMap, time::Duration};

use uuid::Uuid;

use super::{Row, Statement, Store, StoreError, Timestamp, Value, query::MAX_PAGE, values};

/// Minutes of one transaction.
const BATCH: usize = 500;
/// Tunnels whose hour is made at a time.
const TUNNELS: u32 = 200;
const HOUR: Duration = Duration::from_secs(3_600);

/// What one edge has counted of a tunnel in one minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minute {
    pub tunnel: Uuid,
    /// Its first instant.
    pub minute: Timestamp,
    pub server_id: String,
    pub requests: u64,
    pub errors: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// A histogram, in its compact form.
    pub latencies: Vec<u8>,
}

impl Minute {
    fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            tunnel: row.take()?,
            minute: row.take()?,
            server_id: row.take()?,
            requests: row.take()?,
            errors: row.take()?,
            bytes_in: row.take()?,
            bytes_out: row.take()?,
            latencies: row.take()?,
        })
    }
}

/// What all edges have counted of a tunnel in one hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hour {
    pub tunnel: Uuid,
    /// Its first instant.
    pub hour: Timestamp,
    pub requests: u64,
    pub errors: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub latencies: Vec<u8>,
}

/// What a user's tunnels have had in one month.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Its first instant, in UTC.
    pub month: Timestamp,
    pub requests: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// Rows that are written are locked first: the same batch may be on its way twice, when the edge
/// does not know what became of it.
const LOCK: &str = "SELECT id FROM tunnels WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE";

/// What is more than before goes to the totals, and the minutes are replaced. All parts of it see
/// the minutes as they were.
const WRITE: &str = "WITH given AS (SELECT * FROM unnest($1::uuid[], $2::timestamptz[], \
     $3::timestamptz[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], \
     $9::bytea[]) AS g (tunnel_id, minute, month, server_id, requests, errors, bytes_in, \
     bytes_out, latencies)), \
     more AS (SELECT g.*, t.user_id, g.requests - COALESCE(o.requests, 0) AS more_requests, \
     g.bytes_in - COALESCE(o.bytes_in, 0) AS more_in, \
     g.bytes_out - COALESCE(o.bytes_out, 0) AS more_out \
     FROM given AS g JOIN tunnels AS t ON t.id = g.tunnel_id \
     LEFT JOIN request_minutes AS o ON o.tunnel_id = g.tunnel_id AND o.minute = g.minute \
     AND o.server_id = g.server_id), \
     totals AS (UPDATE tunnels AS t SET request_count = t.request_count + m.requests, \
     last_active_at = GREATEST(t.last_active_at, m.minute) FROM (SELECT tunnel_id, \
     CAST(sum(more_requests) AS BIGINT) AS requests, max(minute) AS minute FROM more \
     GROUP BY tunnel_id) AS m WHERE t.id = m.tunnel_id), \
     months AS (INSERT INTO usage_months (user_id, month, requests, bytes_in, bytes_out) \
     SELECT user_id, month, sum(more_requests), sum(more_in), sum(more_out) FROM more \
     GROUP BY user_id, month ORDER BY user_id, month ON CONFLICT (user_id, month) DO UPDATE SET \
     requests = usage_months.requests + excluded.requests, \
     bytes_in = usage_months.bytes_in + excluded.bytes_in, \
     bytes_out = usage_months.bytes_out + excluded.bytes_out) \
     INSERT INTO request_minutes (tunnel_id, minute, server_id, requests, errors, bytes_in, \
     bytes_out, latencies) SELECT tunnel_id, minute, server_id, requests, errors, bytes_in, \
     bytes_out, latencies FROM more ON CONFLICT (tunnel_id, minute, server_id) DO UPDATE SET \
     requests = excluded.requests, errors = excluded.errors, bytes_in = excluded.bytes_in, \
     bytes_out = excluded.bytes_out, latencies = excluded.latencies";

/// The same for SQLite, one minute at a time; the minute itself comes last.
const TOTAL: &str = "UPDATE tunnels SET request_count = request_count + $4 - COALESCE((SELECT \
     requests FROM request_minutes WHERE tunnel_id = $1 AND minute = $2 AND server_id = $3), 0), \
     last_active_at = max(COALESCE(last_active_at, $2), $2) WHERE id = $1";
const MONTH: &str = "INSERT INTO usage_months (user_id, month, requests, bytes_in, bytes_out) \
     SELECT t.user_id, $4, $5 - COALESCE(o.requests, 0), $6 - COALESCE(o.bytes_in, 0), \
     $7 - COALESCE(o.bytes_out, 0) FROM tunnels AS t LEFT JOIN request_minutes AS o \
     ON o.tunnel_id = t.id AND o.minute = $2 AND o.server_id = $3 WHERE t.id = $1 \
     ON CONFLICT (user_id, month) DO UPDATE SET requests = requests + excluded.requests, \
     bytes_in = bytes_in + excluded.bytes_in, bytes_out = bytes_out + excluded.bytes_out";
const MINUTE: &str = "INSERT INTO request_minutes (tunnel_id, minute, server_id, requests, errors, \
     bytes_in, bytes_out, latencies) SELECT id, $2, $3, $4, $5, $6, $7, $8 FROM tunnels \
     WHERE id = $1 ON CONFLICT (tunnel_id, minute, server_id) DO UPDATE SET \
     requests = excluded.requests, errors = excluded.errors, bytes_in = excluded.bytes_in, \
     bytes_out = excluded.bytes_out, latencies = excluded.latencies";

impl Store {
    /// Writes what an edge has counted in whole minutes, over what it wrote of them before; totals of
    /// tunnels and months grow by the difference. So a write of which nobody knows what became may
    /// be made again, and nothing counts twice. Tunnels that have vanished are left out.
    ///
    /// # Errors
    /// [`StoreError`]; some may have been written.
    pub async fn write_minutes(&self, minutes: &[Minute]) -> Result<(), StoreError> {
        // One of each, the last one, and in the order in which others lock them, too.
        let minutes: BTreeMap<_, _> = minutes
            .iter()
            .map(|minute| ((minute.tunnel, minute.minute, &minute.server_id), minute))
            .collect();
        let minutes: Vec<_> = minutes.into_values().collect();
        for batch in minutes.chunks(BATCH) {
            let statements = if self.is_postgres() { set_of(batch) } else { one_by_one(batch) };
            self.transaction(statements).await?;
        }
        Ok(())
    }

    /// What was counted of a tunnel from `from` up to, not with, `to`, oldest first: one row for each
    /// minute and edge.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn minutes(
        &self,
        tunnel: Uuid,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<Minute>, StoreError> {
        let sql = "SELECT tunnel_id, minute, server_id, requests, errors, bytes_in, bytes_out, \
                   latencies FROM request_minutes WHERE tunnel_id = $1 AND minute >= $2 \
                   AND minute < $3 ORDER BY minute, server_id";
        let rows = self.listed(sql, values![tunnel, from, to]).await?;
        rows.into_iter().map(Minute::read).collect()
    }

    /// The same by hours, of all edges together.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hours(
        &self,
        tunnel: Uuid,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<Hour>, StoreError> {
        let sql = "SELECT tunnel_id, hour, requests, errors, bytes_in, bytes_out, latencies \
                   FROM request_hours WHERE tunnel_id = $1 AND hour >= $2 AND hour < $3 \
                   ORDER BY hour";
        let rows = self.listed(sql, values![tunnel, from, to]).await?;
        let read = |mut row: Row| {
            Ok(Hour {
                tunnel: row.take()?,
                hour: row.take()?,
                requests: row.take()?,
                errors: row.take()?,
                bytes_in: row.take()?,
                bytes_out: row.take()?,
                latencies: row.take()?,
            })
        };
        rows.into_iter().map(read).collect()
    }

    /// Makes the rows of an hour from its minutes, over those that are there; how many. `merge` makes
    /// one histogram of several.
    ///
    /// # Errors
    /// [`StoreError`]; some may have been written.
    pub async fn roll_up_hour(
        &self,
        hour: Timestamp,
        merge: fn(&[Vec<u8>]) -> Vec<u8>,
    ) -> Result<u64, StoreError> {
        let (mut written, mut after) = (0, Uuid::nil());
        loop {
            let minutes = self.minutes_of_hour(hour, after).await?;
            let Some(last) = minutes.last().map(|minute| minute.tunnel) else {
                return Ok(written);
            };
            let rows = rolled_up(hour, &minutes, merge);
            written += rows.len() as u64;
            self.write_hours(&rows).await?;
            after = last;
        }
    }

    /// Those of the next tunnels after one, tunnel by tunnel. Not from a replica: what is late there
    /// would be missing for ever.
    async fn minutes_of_hour(
        &self,
        hour: Timestamp,
        after: Uuid,
    ) -> Result<Vec<Minute>, StoreError> {
        let sql = "SELECT tunnel_id, minute, server_id, requests, errors, bytes_in, bytes_out, \
                   latencies FROM request_minutes WHERE minute >= $1 AND minute < $2 \
                   AND tunnel_id IN (SELECT DISTINCT tunnel_id FROM request_minutes \
                   WHERE minute >= $1 AND minute < $2 AND tunnel_id > $3 ORDER BY tunnel_id \
                   LIMIT $4) ORDER BY tunnel_id";
        let rows = self.rows(sql, values![hour, hour.plus(HOUR), after, TUNNELS]).await?;
        rows.into_iter().map(Minute::read).collect()
    }

    async fn write_hours(&self, hours: &[Hour]) -> Result<(), StoreError> {
        let sql = "INSERT INTO request_hours (tunnel_id, hour, requests, errors, bytes_in, \
                   bytes_out, latencies) SELECT id, $2, $3, $4, $5, $6, $7 FROM tunnels \
                   WHERE id = $1 ON CONFLICT (tunnel_id, hour) DO UPDATE SET \
                   requests = excluded.requests, errors = excluded.errors, \
                   bytes_in = excluded.bytes_in, bytes_out = excluded.bytes_out, \
                   latencies = excluded.latencies";
        let each = hours.iter().map(|row| {
            let params = values![
                row.tunnel,
                row.hour,
                row.requests,
                row.errors,
                row.bytes_in,
                row.bytes_out,
                row.latencies.clone(),
            ];
            Statement::new(sql, params)
        });
        self.transaction(each.collect()).await.map(drop)
    }

    /// What a user's tunnels have had in the last `months` months that had anything, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn usage(&self, user: Uuid, months: u32) -> Result<Vec<Usage>, StoreError> {
        let sql = "SELECT month, requests, bytes_in, bytes_out FROM usage_months \
                   WHERE user_id = $1 ORDER BY month DESC LIMIT $2";
        let rows = self.listed(sql, values![user, months.min(MAX_PAGE)]).await?;
        let read = |mut row: Row| {
            Ok(Usage {
                month: row.take()?,
                requests: row.take()?,
                bytes_in: row.take()?,
                bytes_out: row.take()?,
            })
        };
        rows.into_iter().map(read).collect()
    }
}

fn set_of(minutes: &[&Minute]) -> Vec<Statement> {
    fn list<T: Into<Value>>(minutes: &[&Minute], of: impl Fn(&Minute) -> T) -> Value {
        Value::list(minutes.iter().map(|minute| of(minute)))
    }
    let tunnels = list(minutes, |minute| minute.tunnel);
    let columns = vec![
        tunnels.clone(),
        list(minutes, |minute| minute.minute),
        list(minutes, |minute| month_of(minute.minute)),
        list(minutes, |minute| minute.server_id.clone()),
        list(minutes, |minute| minute.requests),
        list(minutes, |minute| minute.errors),
        list(minutes, |minute| minute.bytes_in),
        list(minutes, |minute| minute.bytes_out),
        list(minutes, |minute| minute.latencies.clone()),
    ];
    vec![Statement::new(LOCK, vec![tunnels]), Statement::new(WRITE, columns)]
}

fn one_by_one(minutes: &[&Minute]) -> Vec<Statement> {
    let mut statements = Vec::with_capacity(minutes.len() * 3);
    for row in minutes {
        let key = values![row.tunnel, row.minute, &row.server_id];
        let with = |more: Vec<Value>| key.iter().cloned().chain(more).collect();
        statements.push(Statement::new(TOTAL, with(values![row.requests])));
        let month = month_of(row.minute);
        let more = values![month, row.requests, row.bytes_in, row.bytes_out];
        statements.push(Statement::new(MONTH, with(more)));
        let counted =
            values![row.requests, row.errors, row.bytes_in, row.bytes_out, row.latencies.clone(),];
        statements.push(Statement::new(MINUTE, with(counted)));
    }
    statements
}

/// `minutes` are in the order of their tunnels.
fn rolled_up(hour: Timestamp, minutes: &[Minute], merge: fn(&[Vec<u8>]) -> Vec<u8>) -> Vec<Hour> {
    let mut rows = Vec::new();
    for minutes in minutes.chunk_by(|one, other| one.tunnel == other.tunnel) {
        let sum = |of: fn(&Minute) -> u64| minutes.iter().map(of).fold(0, u64::saturating_add);
        let latencies: Vec<_> = minutes.iter().map(|minute| minute.latencies.clone()).collect();
        rows.push(Hour {
            tunnel: minutes[0].tunnel,
            hour,
            requests: sum(|minute| minute.requests),
            errors: sum(|minute| minute.errors),
            bytes_in: sum(|minute| minute.bytes_in),
            bytes_out: sum(|minute| minute.bytes_out),
            latencies: merge(&latencies),
        });
    }
    rows
}

/// The first instant of the month in UTC.
fn month_of(at: Timestamp) -> Timestamp {
    let day = time::OffsetDateTime::from_unix_timestamp(at.0.div_euclid(1_000_000));
    let first = day.ok().and_then(|day| day.date().replace_day(1).ok());
    first.map_or(at, |first| Timestamp(first.midnight().assume_utc().unix_timestamp() * 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::{Timestamp, month_of};

    #[test]
    fn months_begin_at_midnight_in_utc() {
        for (at, month) in [
            ("2026-11-25T22:42:02.5Z", "2026-11-01T00:00:00Z"),
            ("2026-12-01T00:30:00+01:00", "2026-11-01T00:00:00Z"),
            ("2024-02-29T23:59:59Z", "2024-02-01T00:00:00Z"),
            ("1969-12-31T23:59:59.9Z", "1969-12-01T00:00:00Z"),
        ] {
            let at: Timestamp = at.parse().unwrap();
            assert_eq!(month_of(at).to_string(), month);
        }
    }
}
