//! What went through a tunnel in all, as far as roll-ups say.

use uuid::Uuid;

use super::{Row, Store, StoreError, Timestamp, values};
use crate::services::Totals;

const HOUR: i64 = 3_600_000_000;

fn totals(mut row: Row) -> Result<Totals, StoreError> {
    Ok(Totals {
        requests: row.take()?,
        errors: row.take()?,
        bytes_in: row.take()?,
        bytes_out: row.take()?,
    })
}

impl Store {
    /// The hours that are rolled up, and the minutes after them.
    pub(crate) async fn written_totals(&self, tunnel: Uuid) -> Result<Totals, StoreError> {
        macro_rules! sums {
            ($rest:literal) => {
                concat!(
                    "SELECT CAST(COALESCE(SUM(requests), 0) AS BIGINT), \
                     CAST(COALESCE(SUM(errors), 0) AS BIGINT), \
                     CAST(COALESCE(SUM(bytes_in), 0) AS BIGINT), \
                     CAST(COALESCE(SUM(bytes_out), 0) AS BIGINT)",
                    $rest
                )
            };
        }
        let last = "SELECT hour FROM request_hours WHERE tunnel_id = $1 ORDER BY hour DESC LIMIT 1";
        let last: Option<Timestamp> =
            self.row(last, values![tunnel]).await?.map(|mut row| row.take()).transpose()?;
        let hours = sums!(" FROM request_hours WHERE tunnel_id = $1");
        let hours = self.row(hours, values![tunnel]).await?.map(totals).transpose()?;
        let since = last.map_or(Timestamp(0), |hour| Timestamp(hour.0.saturating_add(HOUR)));
        let minutes = sums!(" FROM request_minutes WHERE tunnel_id = $1 AND minute >= $2");
        let minutes = self.row(minutes, values![tunnel, since]).await?.map(totals).transpose()?;
        let (hours, minutes) = (hours.unwrap_or_default(), minutes.unwrap_or_default());
        Ok(Totals {
            requests: hours.requests.saturating_add(minutes.requests),
            errors: hours.errors.saturating_add(minutes.errors),
            bytes_in: hours.bytes_in.saturating_add(minutes.bytes_in),
            bytes_out: hours.bytes_out.saturating_add(minutes.bytes_out),
        })
    }
}
