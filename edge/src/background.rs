//! Everything that is not on anybody's way: one more thread with its own runtime, on which the store
//! and the shared state are opened and their connections live, and all tasks that write to them. The
//! workers' threads never wait for it.

use std::{sync::Arc, thread, time::Duration};

use tokio::{
    runtime,
    sync::{Notify, mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    Shared, StartError, changes, jobs,
    limits::leases,
    presence,
    session::permit::OWNER,
    state::{State, StateOptions, StateUrl},
    store::{Store, StoreOptions, StoreUrl, Timestamp, values},
    traffic::writer,
};

/// What is written when the edge stops has this long.
const LAST_WORDS: Duration = Duration::from_secs(6);

/// Where the two are, and how they are used.
pub(crate) struct Places {
    pub(crate) store: StoreUrl,
    pub(crate) store_options: StoreOptions,
    pub(crate) state: StateUrl,
    pub(crate) state_options: StateOptions,
    /// Whether there is an owner of everything that comes with a pre-shared token.
    pub(crate) owner: bool,
    pub(crate) flush: Duration,
}

/// The thread, before the edge is there.
pub(crate) struct Background {
    thread: thread::JoinHandle<()>,
    edge: oneshot::Sender<Arc<Shared>>,
    handle: runtime::Handle,
}

impl Background {
    /// Starts the thread and opens both; `halt` ends it.
    ///
    /// # Errors
    /// When one of them can't be used.
    pub(crate) fn open(
        places: Places,
        halt: CancellationToken,
    ) -> Result<(Self, Store, State), StartError> {
        let (opened, opening) = std::sync::mpsc::sync_channel(1);
        let (edge, made) = oneshot::channel();
        let thread = thread::Builder::new().name("edge-background".into());
        let thread = thread
            .spawn(move || {
                let runtime = runtime::Builder::new_current_thread().enable_all().build();
                let runtime = match runtime {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        let _ = opened.send(Err(StartError::Worker(error)));
                        return;
                    }
                };
                let flush = places.flush;
                let open = runtime
                    .block_on(open(places))
                    .map(|(store, state)| (store, state, runtime.handle().clone()));
                let well = open.is_ok();
                if opened.send(open).is_err() || !well {
                    return;
                }
                runtime.block_on(async move {
                    tokio::select! {
                        edge = made => if let Ok(edge) = edge {
                            run(edge, flush, &halt).await;
                        },
                        () = halt.cancelled() => {}
                    }
                });
            })
            .map_err(StartError::Worker)?;
        let dead = || StartError::Worker(std::io::Error::other("the background thread died"));
        let (store, state, handle) = opening.recv().map_err(|_| dead())??;
        Ok((Self { thread, edge, handle }, store, state))
    }

    /// Of its runtime.
    pub(crate) fn handle(&self) -> &runtime::Handle {
        &self.handle
    }

    /// Sets it to work for `edge`.
    pub(crate) fn start(self, edge: Arc<Shared>) -> thread::JoinHandle<()> {
        // Its end is seen by whoever joins it.
        let _ = self.edge.send(edge);
        self.thread
    }
}

async fn open(places: Places) -> Result<(Store, State), StartError> {
    let Places { store: url, store_options, state, state_options, owner, .. } = places;
    let store = Store::open(&url, &store_options).await.map_err(StartError::Store)?;
    store.check_migrated().await.map_err(StartError::Store)?;
    if owner {
        let now = Timestamp::now();
        let sql = "INSERT INTO users (id, email, password_hash, role, created_at, updated_at) \
            VALUES ($1, 'owner@localhost', '!', 'user', $2, $2) ON CONFLICT DO NOTHING";
        store.execute(sql, values![OWNER, now]).await.map_err(StartError::Store)?;
    }
    if !owner && store.count_users().await.map_err(StartError::Store)? == 0 {
        warn!(
            "nobody can connect yet: make an account with `uniroute-edge user add`, and a token for \
             its agents with `uniroute-edge token add`; or give pre-shared tokens (--token-file)"
        );
    }
    let now = Timestamp::now();
    store.make_partitions(now, jobs::AHEAD).await.map_err(StartError::Store)?;
    let state = State::open(&state, state_options).await.map_err(StartError::State)?;
    info!(store = %url, shared = state.is_shared(), "the store is open");
    Ok((store, state))
}

async fn run(edge: Arc<Shared>, flush: Duration, halt: &CancellationToken) {
    edge.abuse.learn(&edge).await;
    let missed = Arc::new(Notify::new());
    let gap = Arc::clone(&missed);
    let (working, mut ended) = mpsc::channel::<()>(1);
    macro_rules! spawn {
        ($task:expr) => {{
            let (task, working) = ($task, working.clone());
            tokio::spawn(async move {
                task.await;
                drop(working);
            });
        }};
    }
    spawn!(changes::act(Arc::clone(&edge), Arc::clone(&missed)));
    spawn!(changes::follow(Arc::clone(&edge), missed));
    spawn!(presence::run(Arc::clone(&edge)));
    spawn!(jobs::run(Arc::clone(&edge)));
    spawn!(leases::run(Arc::clone(&edge)));
    spawn!(writer::run(Arc::clone(&edge), flush));
    let books = Arc::clone(&edge);
    spawn!(async move { books.books.keep(Arc::clone(&books)).await });
    let exchange = Arc::clone(&edge);
    spawn!(async move {
        let (events, stop) = (exchange.events.clone(), exchange.drained.clone());
        events.exchange(&exchange.id, &exchange.state, || gap.notify_one(), &stop).await;
    });
    drop(working);
    tokio::select! {
        _ = ended.recv() => {}
        () = halt.cancelled() => return,
    }
    edge.written.cancel();
    // The API's calls may still be at it.
    halt.cancelled().await;
}

/// Waits until everything is written that can be.
pub(crate) async fn last_words(done: &CancellationToken) {
    if tokio::time::timeout(LAST_WORDS, done.cancelled()).await.is_err() {
        warn!("not everything could be written down in time");
    }
}
