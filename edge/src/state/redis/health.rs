//! Whether Redis answers, and the tasks that see to it that it does: connections that come back,
//! probes, and the ear for messages.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::{ClientLike as _, EventInterface as _, KeysInterface as _, PubsubInterface as _},
    types::{Expiration, Message, config::Options},
};
use futures_util::future::try_join_all;
use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        oneshot,
    },
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::{
    CALL,
    setup::{self, BACKOFF_MS, CHANNEL, Clients},
};
use crate::state::Told;

/// Between two probes.
const PROBE: Duration = Duration::from_millis(500);
/// Between tries of what should work at once, but did not.
const AGAIN: Duration = Duration::from_millis(100);
/// After so many probes without an answer over a connection that seems to be there, a new one is made.
const STUCK: u32 = 6;
/// What the probe writes.
const KEY: &str = "tunnel:health";
/// How long that stays.
const KEPT_SECONDS: i64 = 60;

/// Read by every call.
#[derive(Debug)]
pub(super) struct Health {
    /// The last probe or call got its answer.
    well: AtomicBool,
    /// The last probe got none: nobody needs to try.
    away: AtomicBool,
}

impl Default for Health {
    fn default() -> Self {
        Self { well: AtomicBool::new(false), away: AtomicBool::new(true) }
    }
}

impl Health {
    pub(super) fn is_well(&self) -> bool {
        self.well.load(Ordering::Relaxed)
    }

    pub(super) fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    /// How a call ended.
    pub(super) fn called(&self, error: Option<&Error>) {
        let answered = error.is_none_or(is_answer);
        if self.is_well() != answered {
            self.well.store(answered, Ordering::Relaxed);
        }
    }

    fn probed(&self, error: Option<&Error>) {
        self.well.store(error.is_none(), Ordering::Relaxed);
        if self.away.swap(error.is_some(), Ordering::Relaxed) == error.is_some() {
            return;
        }
        match error {
            Some(error) => warn!(%error, "the shared state does not answer"),
            None => info!("the shared state answers"),
        }
    }
}

/// Whether the other side has said it: a refusal is an answer.
fn is_answer(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::InvalidCommand
            | ErrorKind::InvalidArgument
            | ErrorKind::Parse
            | ErrorKind::Unknown
    )
}

pub(super) fn timed_out() -> Error {
    Error::new(ErrorKind::Timeout, "no answer in time")
}

/// Starts all tasks. The answer comes when calls and messages work for the first time.
pub(super) fn start(
    tasks: &mut JoinSet<()>,
    clients: &Clients,
    told: &broadcast::Sender<Told>,
    health: &Arc<Health>,
) -> impl Future<Output = ()> + use<> {
    let (listening, listens) = oneshot::channel();
    let (answering, answers) = oneshot::channel();
    // Before the first connection is there, so that it is not missed.
    let ear = Ear::new(clients.listens.clone(), told.clone());
    tasks.spawn(ear.listen(listening));
    tasks.spawn(stay_connected(clients.calls.clone()));
    tasks.spawn(stay_connected(clients.listens.clone()));
    tasks.spawn(probe_calls(clients.calls.clone(), Arc::clone(health), answering));
    tasks.spawn(probe_listening(clients.listens.clone()));
    tasks.spawn(say_errors(clients.calls.clone()));
    async {
        let _ = listens.await;
        let _ = answers.await;
    }
}

/// The library connects again by itself, for ever; but it gives up on some errors, such as a server
/// that is no cluster.
async fn stay_connected(client: Client) {
    loop {
        let connection = AbortOnDropHandle::new(client.connect());
        if let Ok(Err(error)) = connection.await {
            warn!(%error, "connecting to the shared state");
        }
        sleep(Duration::from_millis(BACKOFF_MS.1.into())).await;
    }
}

/// Says why there is no connection, such as a wrong password; the same thing only once.
async fn say_errors(client: Client) {
    let (mut errors, mut connects) = (client.error_rx(), client.reconnect_rx());
    let mut said = String::new();
    loop {
        tokio::select! {
            error = errors.recv() => match error {
                Ok((error, _)) if error.to_string() != said => {
                    said = error.to_string();
                    warn!(error = said, "no connection to the shared state");
                }
                Err(RecvError::Closed) => {
                    (errors, connects) = (client.error_rx(), client.reconnect_rx());
                    sleep(AGAIN).await;
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
            },
            Ok(_) = connects.recv() => said.clear(),
        }
    }
}

async fn probe_calls(client: Client, health: Arc<Health>, first: oneshot::Sender<()>) {
    let (mut first, mut failures) = (Some(first), 0);
    loop {
        let result = timeout(CALL, async {
            let expires = Some(Expiration::EX(KEPT_SECONDS));
            let client = setup::bounded(&client);
            let (_, ()) = tokio::try_join!(
                ping(&client),
                client.set::<(), _, _>(KEY, 1, expires, None, false)
            )?;
            Ok(())
        })
        .await;
        let result = result.unwrap_or_else(|_| Err(timed_out()));
        health.probed(result.as_ref().err());
        if result.is_ok()
            && let Some(first) = first.take()
        {
            let _ = first.send(());
        }
        mend(&client, result.is_ok(), &mut failures).await;
        // The first answer is waited for.
        sleep(if first.is_some() { AGAIN } else { PROBE }).await;
    }
}

/// A connection that only listens would never notice that the other end is gone.
async fn probe_listening(client: Client) {
    let mut failures = 0;
    loop {
        sleep(PROBE).await;
        let result = timeout(CALL, ping(&setup::bounded(&client))).await;
        mend(&client, matches!(result, Ok(Ok(()))), &mut failures).await;
    }
}

/// Asks every server that the client is connected to.
async fn ping(client: &fred::clients::WithOptions<Client>) -> Result<(), Error> {
    let each = client.active_connections().into_iter().map(|server| {
        let to = Options { cluster_node: Some(server), ..client.options().clone() };
        let client = client.clone().with_options(&to);
        async move { client.ping::<()>(None).await }
    });
    try_join_all(each).await.map(drop)
}

/// Makes a new connection where there is one that does not work, such as to a server that may not be
/// written to any more.
async fn mend(client: &Client, works: bool, failures: &mut u32) {
    *failures = if works { 0 } else { *failures + 1 };
    if *failures >= STUCK && client.is_connected() {
        *failures = 0;
        // Whether it helped is seen by the next probe.
        let _ = timeout(CALL, client.force_reconnection()).await;
    }
}

/// Hands on what is published.
struct Ear {
    client: Client,
    told: broadcast::Sender<Told>,
    messages: broadcast::Receiver<Message>,
    connects: broadcast::Receiver<fred::types::config::Server>,
}

impl Ear {
    fn new(client: Client, told: broadcast::Sender<Told>) -> Self {
        let (messages, connects) = (client.message_rx(), client.reconnect_rx());
        Self { client, told, messages, connects }
    }

    async fn listen(mut self, first: oneshot::Sender<()>) {
        let mut first = Some(first);
        loop {
            // What had come before a connection was lost goes out before the gap.
            tokio::select! {
                biased;
                message = self.messages.recv() => self.hand_on(message).await,
                _ = self.connects.recv() => {
                    self.subscribe().await;
                    if let Some(first) = first.take() {
                        let _ = first.send(());
                    }
                }
            }
        }
    }

    async fn hand_on(&mut self, message: Result<Message, RecvError>) {
        let told = match message {
            Ok(message) => match message.value.convert() {
                Ok(text) => Told::Message(text),
                Err(_) => return,
            },
            Err(RecvError::Lagged(_)) => Told::Gap,
            Err(RecvError::Closed) => {
                self.messages = self.client.message_rx();
                self.connects = self.client.reconnect_rx();
                sleep(AGAIN).await;
                Told::Gap
            }
        };
        // Nobody listens: then nobody has missed anything.
        let _ = self.told.send(told);
    }

    /// Every connection begins without a subscription. The gap is told when there is one again: who
    /// looks for what he has missed after that, misses nothing more.
    async fn subscribe(&mut self) {
        let options = Options { timeout: Some(CALL), ..Options::default() };
        let client = self.client.with_options(&options);
        loop {
            while self.connects.try_recv().is_ok() {}
            match client.subscribe(CHANNEL).await {
                Ok(()) => break,
                Err(_) => sleep(AGAIN).await,
            }
        }
        let _ = self.told.send(Told::Gap);
    }
}
