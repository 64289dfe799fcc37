//! The agents' other door: sessions over QUIC. One worker has the socket, the connections go to all
//! workers in turn, and from then on they are sessions like others.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tracing::{Instrument as _, debug, info_span};
use uniroute_shared::{
    carrier::quic::{
        self,
        endpoint::{Endpoint, Incoming},
    },
    code::Code,
    id::SessionId,
};

use crate::{Shared, registry::Origin};

/// QUIC handshakes under way at a time; further ones are not answered, and their peers try again.
const HANDSHAKES: usize = 512;
/// Handshakes under way from which a peer has to show first that it is where it says it is
/// (RFC 9000, section 8.1.2).
const BUSY: usize = 64;
/// The whole QUIC handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Accepts connections until the edge stops; then waits for the end of those that are there.
pub(crate) async fn serve(edge: Arc<Shared>, endpoint: Endpoint) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let mut workers = (0..edge.workers.len()).cycle();
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = edge.stop.cancelled() => break,
        };
        let (Some(incoming), Some(worker)) = (incoming, workers.next()) else { break };
        if edge.abuse.banned(incoming.remote_address().ip()).is_some() {
            edge.metrics.failed(&Code::ADDRESS_BANNED);
            incoming.refuse();
            continue;
        }
        if HANDSHAKES - handshakes.available_permits() >= BUSY && incoming.may_retry() {
            // Fails only where no retry may be.
            let _ = incoming.retry();
            continue;
        }
        let Some(place) = edge.session_place() else {
            edge.metrics.failed(&Code::SESSION_LIMIT);
            incoming.refuse();
            continue;
        };
        let Ok(handshake) = Arc::clone(&handshakes).try_acquire_owned() else {
            incoming.ignore();
            continue;
        };
        // quinn drives a connection where it is accepted.
        let session = accept(Arc::clone(&edge), worker, incoming, handshake, place);
        edge.tasks.spawn_on(session, &edge.workers[worker]);
    }
    // What the sessions say at their end still has to go out; who comes now is told to go elsewhere.
    let refusing = async {
        while let Some(incoming) = endpoint.accept().await {
            incoming.refuse();
        }
    };
    tokio::select! {
        () = endpoint.wait_idle() => {}
        () = refusing => {}
    }
}

async fn accept(
    edge: Arc<Shared>,
    worker: usize,
    incoming: Incoming,
    handshake: OwnedSemaphorePermit,
    place: OwnedSemaphorePermit,
) {
    let peer = incoming.remote_address();
    let connection = match timeout(HANDSHAKE_TIMEOUT, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return debug!(%peer, %error, "a QUIC handshake failed"),
        Err(_) => return debug!(%peer, "a QUIC handshake took too long"),
    };
    drop(handshake);
    let id = SessionId::new();
    let span = info_span!("session", session.id = %id, %peer, carrier = "quic");
    let (session, acceptor, mut driver) = quic::new(quic::Config::edge(), connection);
    let carried = (session.into(), acceptor.into());
    let origin = Origin { worker, peer };
    super::serve(edge, id, origin, carried, driver.run(), place).instrument(span).await;
}
