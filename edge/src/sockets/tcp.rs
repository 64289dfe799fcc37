//! TCP tunnels: a listener for each port that a tunnel has.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::{MissedTickBehavior, interval},
};
use tracing::debug;
use uniroute_proto::v1::{TcpOpen, stream_open::Kind as Open};

use super::{
    Proxied, after_accept_error,
    connection::{self, Visit},
    end, refuse, tune,
};
use crate::{Shared, registry::Tunnel};

/// How often it is looked at whether the tunnel's name is still held.
const LOOK: Duration = Duration::from_secs(30);

/// Listens on the port of `tunnel` until the tunnel is gone or the edge stops.
pub(super) fn listen(edge: &Arc<Shared>, worker: usize, tunnel: &Arc<Tunnel>) -> io::Result<()> {
    let number = tunnel.port.as_ref().map_or(0, |port| port.number);
    let listener = crate::listen(SocketAddr::new(edge.ports_at, number), false)?;
    let serving = serve(Arc::clone(edge), worker, Arc::clone(tunnel), listener);
    edge.tasks.spawn_on(serving, &edge.workers[worker]);
    Ok(())
}

async fn serve(
    edge: Arc<Shared>,
    worker: usize,
    tunnel: Arc<Tunnel>,
    listener: std::net::TcpListener,
) {
    let Some(port) = &tunnel.port else { return };
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, port = port.number, "a port can't be served"),
    };
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = port.closed.cancelled() => return,
            () = edge.stop.cancelled() => return,
            _ = look.tick() => edge.registry.sweep(),
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => admit(&edge, worker, &tunnel, socket, peer),
                Err(error) => after_accept_error(&error).await,
            },
        }
    }
}

fn admit(
    edge: &Arc<Shared>,
    worker: usize,
    tunnel: &Arc<Tunnel>,
    socket: TcpStream,
    peer: SocketAddr,
) {
    let proxied = edge.sockets.proxy_protocol.contains(peer.ip());
    let admitted = match edge.admit(peer.ip(), proxied) {
        Ok(admitted) => admitted,
        Err(refused) => return refuse(edge, &socket, peer, refused.code),
    };
    let (edge, tunnel) = (Arc::clone(edge), Arc::clone(tunnel));
    edge.tasks.clone().spawn(async move {
        let _admitted = admitted;
        if let Some(visit) = begin(&edge, tunnel, socket, peer).await {
            connection::serve(edge, worker, visit).await;
        }
    });
}

async fn begin(
    edge: &Shared,
    tunnel: Arc<Tunnel>,
    mut socket: TcpStream,
    peer: SocketAddr,
) -> Option<Visit> {
    tune(&socket);
    let local = match socket.local_addr() {
        Ok(local) => local,
        Err(error) => {
            debug!(%error, "a connection ended before it was served");
            return None;
        }
    };
    let Proxied { peer, local, early } = Proxied::accept(edge, &mut socket, peer, local).await?;
    let open = Open::Tcp(TcpOpen { peer: end(peer), local: end(local) });
    Some(Visit { tunnel, socket, early, peer, open })
}
