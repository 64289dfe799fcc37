//! Measures a QUIC path: datagrams that the edge sends back.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::{MissedTickBehavior, interval, timeout};
use uniroute_shared::carrier::quic::endpoint::Connection;

use crate::transport::{Policy, Probe};

/// Bytes of a datagram: as most packets of a tunnel are neither tiny nor full.
const SIZE: usize = 256;
/// How long the last ones may take, in round trips, and at least.
const PATIENCE: (u32, Duration) = (4, Duration::from_millis(200));

/// Sends the datagrams of one probe and counts what comes back.
pub(crate) async fn probe(connection: &Connection, policy: Policy) -> Probe {
    let began = Instant::now();
    // How long each one took; none twice.
    let mut took = vec![None; usize::try_from(policy.probes).unwrap_or(0)];
    let mut note = |datagram: &[u8]| {
        let Some((number, sent_at)) = decode(datagram) else { return };
        if let Some(took) = usize::try_from(number).ok().and_then(|number| took.get_mut(number)) {
            took.get_or_insert(began.elapsed().saturating_sub(sent_at));
        }
    };
    let sending = async {
        let mut gap = interval(policy.probe_gap.max(Duration::from_millis(1)));
        gap.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0..policy.probes {
            gap.tick().await;
            // What can't be sent does not come back.
            let _ = connection.send_datagram(encode(number, began.elapsed()));
        }
    };
    let mut sending = std::pin::pin!(sending);
    loop {
        tokio::select! {
            () = &mut sending => break,
            datagram = connection.read_datagram() => match datagram {
                Ok(datagram) => note(&datagram),
                Err(_) => break,
            },
        }
    }
    let (trips, least) = PATIENCE;
    let patience = (connection.rtt() * trips).max(least);
    let rest = async {
        while let Ok(datagram) = connection.read_datagram().await {
            note(&datagram);
        }
    };
    let _ = timeout(patience, rest).await;
    let mut took: Vec<Duration> = took.into_iter().flatten().collect();
    took.sort_unstable();
    Probe {
        sent: policy.probes,
        answered: u32::try_from(took.len()).unwrap_or(0),
        rtt: took.first().copied().unwrap_or_default(),
        typical_rtt: took.get(took.len() / 2).copied().unwrap_or_default(),
    }
}

fn encode(number: u32, at: Duration) -> Bytes {
    let mut datagram = [0; SIZE];
    datagram[..4].copy_from_slice(&number.to_be_bytes());
    let at = u64::try_from(at.as_micros()).unwrap_or(0);
    datagram[4..12].copy_from_slice(&at.to_be_bytes());
    Bytes::copy_from_slice(&datagram)
}

fn decode(datagram: &[u8]) -> Option<(u32, Duration)> {
    let (number, rest) = datagram.split_first_chunk()?;
    let (at, _) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), Duration::from_micros(u64::from_be_bytes(*at))))
}
