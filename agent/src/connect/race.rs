//! Several addresses of one name (RFC 8305, in small): the families take turns, and each address has a
//! quarter of a second before the next one is tried beside it.

use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::STEP_TIMEOUT;

/// What an address has before the next one is tried too.
const HEAD_START: Duration = Duration::from_millis(250);

/// The first connection that stands; the address and error of one that failed otherwise.
/// `addresses` must hold one at least.
pub(crate) async fn connect(
    addresses: Vec<SocketAddr>,
) -> Result<(TcpStream, SocketAddr), (SocketAddr, io::Error)> {
    race(addresses, TcpStream::connect).await
}

async fn race<T, F: Future<Output = io::Result<T>>>(
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<(T, SocketAddr), (SocketAddr, io::Error)> {
    let attempt = async |address| {
        let connected = timeout(STEP_TIMEOUT, connect(address)).await;
        let late = |_| {
            let what = format!("no answer within {} s", STEP_TIMEOUT.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, what))
        };
        (address, connected.unwrap_or_else(late))
    };
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let mut failed = (nowhere, io::Error::from(io::ErrorKind::NotFound));
    let mut waiting = addresses.into_iter();
    let mut trying = FuturesUnordered::new();
    loop {
        match waiting.next() {
            Some(address) => trying.push(attempt(address)),
            None if trying.is_empty() => return Err(failed),
            None => {}
        }
        tokio::select! {
            Some((address, connected)) = trying.next() => match connected {
                Ok(connected) => return Ok((connected, address)),
                // That there is no way to an address says less than what another one did.
                Err(error) if failed.0 != nowhere && is_no_route(&error) => {}
                Err(error) => failed = (address, error),
            },
            () = sleep(HEAD_START), if waiting.len() > 0 => {}
        }
    }
}

fn is_no_route(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), NetworkUnreachable | HostUnreachable | AddrNotAvailable)
}

/// The addresses so that families take turns, the resolver's first one first; none twice.
pub(crate) fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv6) else { return addresses };
    let mut families = (VecDeque::new(), VecDeque::new());
    for address in addresses {
        let family = if address.is_ipv6() == first { &mut families.0 } else { &mut families.1 };
        if !family.contains(&address) {
            family.push_back(address);
        }
    }
    let mut all = Vec::with_capacity(families.0.len() + families.1.len());
    while !families.0.is_empty() || !families.1.is_empty() {
        all.extend(families.0.pop_front());
        all.extend(families.1.pop_front());
    }
    all
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn all(addresses: &[&str]) -> Vec<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns() {
        let found = all(&["[::1]:1", "[::2]:1", "[::1]:1", "[::3]:1", "1.1.1.1:1"]);
        let wanted = all(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]);
        assert_eq!(interleaved(found), wanted);
        assert_eq!(interleaved(Vec::new()), Vec::new());
    }

    /// What each port does: 1 hangs, 2 refuses at once, 3 has no route, others answer after 10 ms.
    async fn pretend(address: SocketAddr) -> io::Result<u16> {
        match address.port() {
            1 => std::future::pending().await,
            2 => Err(io::ErrorKind::ConnectionRefused.into()),
            3 => Err(io::ErrorKind::NetworkUnreachable.into()),
            port => {
                sleep(Duration::from_millis(10)).await;
                Ok(port)
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_costs_its_head_start_and_one_that_refuses_nothing() {
        let began = Instant::now();
        let (port, _) = race(all(&["[::1]:1", "1.1.1.1:4"]), pretend).await.unwrap();
        assert_eq!((port, began.elapsed()), (4, Duration::from_millis(260)));
        let began = Instant::now();
        let (port, _) = race(all(&["[::1]:2", "1.1.1.1:5"]), pretend).await.unwrap();
        assert_eq!((port, began.elapsed()), (5, Duration::from_millis(10)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_error_is_the_one_that_says_most() {
        let failed = race(all(&["1.1.1.1:2", "[::1]:3"]), pretend).await.unwrap_err();
        assert_eq!((failed.0.port(), failed.1.kind()), (2, io::ErrorKind::ConnectionRefused));
        let began = Instant::now();
        let failed = race(all(&["1.1.1.1:1", "[::1]:3"]), pretend).await.unwrap_err();
        assert_eq!(failed.1.to_string(), "no answer within 10 s");
        assert_eq!(began.elapsed(), STEP_TIMEOUT);
        assert!(race(Vec::new(), pretend).await.is_err());
    }
}
