//! Ports of tunnels: what a tunnel can be, which port one gets, and who is refused.
//!
//! A port is claimed under the registry's lock and nothing is bound there: whoever claimed one binds
//! it afterwards, and gives the name back if that fails.

use std::{
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, Ordering},
};

use tokio_util::sync::CancellationToken;
use uniroute_proto::v1;
use uniroute_shared::{
    code::Code,
    id::{SessionId, Subdomain},
};

use super::{Identity, Table, Tunnel, Wish};

/// What a tunnel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Requests, by host name.
    Http,
    /// TLS connections as they are, by the server name that they ask for.
    Tls,
    /// TCP connections, by port.
    Tcp,
    /// Datagrams, by port.
    Udp,
}

impl Kind {
    /// The word for URLs and metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// What an agent asked for; HTTP where it did not say.
    pub(crate) const fn of(kind: v1::TunnelKind) -> Self {
        match kind {
            v1::TunnelKind::Http | v1::TunnelKind::Unspecified => Self::Http,
            v1::TunnelKind::Tls => Self::Tls,
            v1::TunnelKind::Tcp => Self::Tcp,
            v1::TunnelKind::Udp => Self::Udp,
        }
    }
}

/// The port that a tunnel has.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    /// Somebody listens on it.
    listened: AtomicBool,
    /// Said when the tunnel is gone, to whoever listens on it.
    pub(crate) closed: CancellationToken,
}

impl Port {
    pub(super) fn new(number: u16) -> Self {
        Self { number, listened: AtomicBool::new(false), closed: CancellationToken::new() }
    }

    pub(crate) fn is_listened_on(&self) -> bool {
        self.listened.load(Ordering::Relaxed)
    }

    /// From now on somebody listens on it, until it is closed.
    pub(crate) fn listened_on(&self) {
        self.listened.store(true, Ordering::Relaxed);
    }
}

/// Which port a session wishes for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortWish<'a> {
    /// 0: the edge chooses.
    pub(crate) number: u16,
    /// It came from an earlier session's choice: another one will do.
    pub(crate) is_hint: bool,
    /// Those that there are for its kind.
    pub(crate) range: &'a RangeInclusive<u16>,
    /// Those that can't be bound.
    pub(crate) unusable: &'a [u16],
}

impl Tunnel {
    /// Whether it is just this.
    pub(super) fn is(&self, kind: Kind, port: Option<u16>) -> bool {
        self.kind == kind && self.port.as_ref().map(|port| port.number) == port
    }
}

impl Table {
    /// The name that `identity` has a port by.
    pub(super) fn name_of_port(
        &self,
        identity: &Identity,
        kind: Kind,
        number: u16,
    ) -> Option<Subdomain> {
        let name = self.holder(kind, number)?;
        let held = self.names.get(name)?;
        (held.identity == *identity).then(|| name.clone())
    }

    /// The port for `name`, if its kind has one.
    pub(super) fn choose_port(
        &mut self,
        identity: &Identity,
        session: SessionId,
        name: &Subdomain,
        wish: &Wish<'_>,
    ) -> Result<Option<u16>, &'static Code> {
        let Some(port) = &wish.port else { return Ok(None) };
        match port.number {
            0 => {}
            number => match self.take_port(identity, session, name, (wish.kind, number), port) {
                Ok(()) => return Ok(Some(number)),
                Err(_) if port.is_hint => {}
                Err(code) => return Err(code),
            },
        }
        // The one that it has will do, and nobody has to learn a new one.
        let held = self.names.get(name).filter(|held| held.tunnel.kind == wish.kind);
        let held = held.and_then(|held| Some(held.tunnel.port.as_ref()?.number));
        match held.filter(|number| port.allows(*number)) {
            Some(number) => Ok(Some(number)),
            None => self.free_port(wish.kind, port).map(Some),
        }
    }

    /// Whether this very port can be had. Another tunnel of the identity that has it gives it up, if
    /// it is not one of the same session.
    fn take_port(
        &mut self,
        identity: &Identity,
        session: SessionId,
        name: &Subdomain,
        (kind, number): (Kind, u16),
        wish: &PortWish<'_>,
    ) -> Result<(), &'static Code> {
        if !wish.range.contains(&number) {
            return Err(&Code::PORT_OUT_OF_RANGE);
        }
        if wish.unusable.contains(&number) {
            return Err(&Code::PORT_UNUSABLE);
        }
        let Some(holder) = self.holder(kind, number).filter(|holder| *holder != name).cloned()
        else {
            return Ok(());
        };
        let held = &self.names[&holder];
        if held.identity != *identity || held.claimant == session {
            return Err(&Code::PORT_TAKEN);
        }
        self.forget(&holder);
        Ok(())
    }

    /// A port that nobody has. Where to look is left to chance: a port that has just become free has
    /// visitors who don't know yet.
    fn free_port(&self, kind: Kind, wish: &PortWish<'_>) -> Result<u16, &'static Code> {
        let (first, last) = (u32::from(*wish.range.start()), u32::from(*wish.range.end()));
        let count = (last + 1).saturating_sub(first).max(1);
        let start = random() % count;
        (0..count)
            .filter_map(|step| u16::try_from(first + (start + step) % count).ok())
            .find(|port| wish.allows(*port) && self.holder(kind, *port).is_none())
            .ok_or(&Code::PORTS_EXHAUSTED)
    }

    /// The name that has the port. What the index says may be over, and then says nothing.
    fn holder(&self, kind: Kind, number: u16) -> Option<&Subdomain> {
        let name = self.ports.get(&(kind, number))?;
        let held = self.names.get(name)?;
        (held.tunnel.is(kind, Some(number)) && !held.is_expired(self.hold)).then_some(name)
    }
}

impl PortWish<'_> {
    fn allows(&self, number: u16) -> bool {
        self.range.contains(&number) && !self.unusable.contains(&number)
    }
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness ports would only be given out in order.
    let _ = getrandom::fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}
