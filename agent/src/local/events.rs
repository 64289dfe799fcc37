//! What changes, as an event stream: one task tells all readers, and who reads too slowly is told to
//! begin anew.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::Deserialize;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast},
    time::{interval, sleep, timeout},
};

use uniroute_shared::code::Code;

use super::{
    App, Shared,
    problem::{Asked, Problem},
};
use crate::inspect::{Changes, Inspector, View};

/// Readers at a time.
pub(super) const MAX_READERS: usize = 16;
/// Pieces that wait for a slow reader.
const AHEAD: usize = 16;
/// Changes of a request within this time are told together.
const PAUSE: Duration = Duration::from_millis(50);
/// Requests of one piece; more at once are not told, but that there were some.
const MAX_PIECE: usize = 500;
/// After that, readers have this long to themselves.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// Requests that a reader is told of at the beginning.
const MAX_CATCH_UP: usize = 1000;
/// How often the agent's own state is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Something is sent at least this often.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

const RESET: &str = "event: reset\ndata: {}\n\n";

/// Where readers get their pieces.
pub(super) struct Hub {
    pieces: broadcast::Sender<Bytes>,
    readers: Arc<Semaphore>,
    joined: Notify,
    /// Readers that were told to begin anew.
    lagged: AtomicU64,
}

impl Hub {
    pub(super) fn new() -> Self {
        Self {
            pieces: broadcast::Sender::new(AHEAD),
            readers: Arc::new(Semaphore::new(MAX_READERS)),
            joined: Notify::new(),
            lagged: AtomicU64::new(0),
        }
    }

    /// Readers now, and how often one was told to begin anew because it was too slow.
    pub(super) fn figures(&self) -> (usize, u64) {
        let readers = MAX_READERS - self.readers.available_permits();
        (readers, self.lagged.load(Ordering::Relaxed))
    }
}

/// Tells readers, while there are some; for ever.
pub(super) async fn publish(app: &Arc<App>) {
    loop {
        app.events.joined.notified().await;
        match app.inspector() {
            Some(inspector) => publish_changes(app, inspector).await,
            None => publish_status(app).await,
        }
    }
}

async fn publish_status(app: &Arc<App>) {
    let mut told = String::new();
    let mut look = interval(LOOK);
    while app.events.pieces.receiver_count() > 0 {
        look.tick().await;
        tell_status(app, &mut told);
    }
}

fn tell_status(app: &App, told: &mut String) {
    let status = app.status().to_string();
    if *told != status {
        let piece = format!("event: status\ndata: {status}\n\n");
        *told = status;
        let _ = app.events.pieces.send(piece.into());
    }
}

async fn publish_changes(app: &Arc<App>, inspector: &Arc<Inspector>) {
    let watch = inspector.watch();
    let mut told = String::new();
    let mut look = interval(LOOK);
    while app.events.pieces.receiver_count() > 0 {
        tokio::select! {
            () = inspector.changed.notified() => {}
            _ = look.tick() => {
                tell_status(app, &mut told);
                continue;
            }
        }
        let changes = watch.take();
        let many = changes.reset || changes.records.len() > MAX_PIECE;
        let ours = Arc::clone(inspector);
        let piece = tokio::task::spawn_blocking(move || piece(changes, &ours)).await;
        if let Ok(piece) = piece
            && !piece.is_empty()
        {
            let _ = app.events.pieces.send(piece.into());
        }
        sleep(if many { LONG_PAUSE } else { PAUSE }).await;
    }
}

/// Each request once, as it is now.
fn piece(changes: Changes, inspector: &Inspector) -> String {
    let mut latest = HashMap::new();
    for record in changes.records {
        latest.insert(record.seq, record);
    }
    if changes.reset || latest.len() > MAX_PIECE {
        return RESET.to_owned();
    }
    let mut records: Vec<_> = latest.into_values().collect();
    records.sort_unstable_by_key(|record| record.seq);
    records.iter().map(|record| event(&View::new(record, inspector), inspector)).collect()
}

fn event(view: &View, inspector: &Inspector) -> String {
    format!("event: request\nid: {}\ndata: {}\n\n", view.record.seq, view.summary(inspector))
}

#[derive(Deserialize)]
pub(super) struct After {
    after: Option<u64>,
}

struct Reader {
    app: Arc<App>,
    pieces: broadcast::Receiver<Bytes>,
    first: Option<Bytes>,
    _place: OwnedSemaphorePermit,
}

pub(super) async fn events(
    State(app): Shared,
    Asked(After { after }): Asked<After>,
) -> Result<Response, Problem> {
    let place = Arc::clone(&app.events.readers).try_acquire_owned().map_err(|_| {
        let what = format!("{MAX_READERS} readers follow the agent's events already");
        Problem::new(&Code::LOCAL_READERS, what)
    })?;
    // What happens from now on comes as pieces.
    let pieces = app.events.pieces.subscribe();
    app.events.joined.notify_one();
    let mut first = format!("retry: 1000\n\nevent: status\ndata: {}\n\n", app.status());
    if let Some(after) = after.filter(|_| app.inspector().is_some()) {
        first += &app.work(move |inspector| Ok(catch_up(inspector, after))).await?;
    }
    let stop = app.stop.clone();
    let reader = Reader { app, pieces, first: Some(first.into()), _place: place };
    let pieces = stream::unfold((reader, stop), |(mut reader, stop)| async move {
        let next = tokio::select! {
            next = reader.next() => next,
            () = stop.cancelled() => None,
        };
        next.map(|piece| (Ok::<_, std::io::Error>(piece), (reader, stop)))
    });
    let mut response = Body::from_stream(pieces).into_response();
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

fn catch_up(inspector: &Inspector, after: u64) -> String {
    let mut missed = inspector.all();
    missed.retain(|record| record.seq > after);
    if missed.len() > MAX_CATCH_UP {
        return RESET.to_owned();
    }
    missed.iter().rev().map(|record| event(&View::new(record, inspector), inspector)).collect()
}

impl Reader {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        match timeout(KEEP_ALIVE, self.pieces.recv()).await {
            Ok(Ok(piece)) => Some(piece),
            Ok(Err(broadcast::error::RecvError::Lagged(_))) => {
                // What still waits is older than what it is to read now.
                self.pieces = self.pieces.resubscribe();
                self.app.events.lagged.fetch_add(1, Ordering::Relaxed);
                Some(Bytes::from_static(RESET.as_bytes()))
            }
            Ok(Err(broadcast::error::RecvError::Closed)) => None,
            Err(_) => Some(Bytes::from_static(b":\n\n")),
        }
    }
}
