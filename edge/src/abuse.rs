//! What looks like an attack, and what is done about it: an address that guesses tokens, names or
//! passwords is told apart from one that errs by how often it does, and then gets no answer from this
//! edge or any other for a while. Everything is counted by address (an IPv6 /64 is one), in bounded
//! tables; every ban is an event, is seen by operators and can be lifted by them.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use serde_json::json;
use tokio::time::Instant;
use tracing::{debug, warn};
use uniroute_shared::network::Networks;

use crate::{
    Shared,
    events::{Event, Kind},
    limits::addresses,
    store::{
        StoreError, Timestamp,
        audit::{self, Actor},
    },
};

/// Addresses whose strikes are remembered.
const MAX_STRUCK: usize = 16_384;
/// Bans at a time.
const MAX_BANS: usize = 10_000;
/// Where the shared state has them.
pub(crate) const SPACE: &str = "bans";

/// What an address is banned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// Agents that come with tokens that are none.
    TokenSpraying,
    /// Requests for names that no tunnel has.
    NameScanning,
    /// Wrong passwords at the login.
    LoginGuessing,
}

impl Rule {
    const ALL: [Self; 3] = [Self::TokenSpraying, Self::NameScanning, Self::LoginGuessing];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::TokenSpraying => "token-spraying",
            Self::NameScanning => "name-scanning",
            Self::LoginGuessing => "login-guessing",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.as_str() == word)
    }
}

/// How much is too much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bans {
    /// Refused tokens of an address within [`Bans::window`]; 0: never.
    pub tokens: u32,
    /// Requests for unknown names.
    pub names: u32,
    /// Wrong passwords.
    pub logins: u32,
    /// What the strikes have to come within.
    pub window: Duration,
    /// For how long an address is banned.
    pub time: Duration,
    /// Who never is: this machine, unless told otherwise. Proxies that are trusted aren't either.
    pub exempt: Networks,
}

impl Default for Bans {
    fn default() -> Self {
        Self {
            tokens: 20,
            names: 200,
            logins: 30,
            window: Duration::from_secs(60),
            time: Duration::from_secs(15 * 60),
            exempt: "127.0.0.0/8,::1/128".parse().unwrap_or_default(),
        }
    }
}

impl Bans {
    fn most(&self, rule: Rule) -> u32 {
        match rule {
            Rule::TokenSpraying => self.tokens,
            Rule::NameScanning => self.names,
            Rule::LoginGuessing => self.logins,
        }
    }
}

/// One ban.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ban {
    pub(crate) rule: Rule,
    until: Instant,
}

impl Ban {
    pub(crate) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Abuse {
    settings: Bans,
    strikes: Mutex<HashMap<(Rule, IpAddr), Strikes>>,
    bans: RwLock<HashMap<IpAddr, Ban>>,
    /// How many there are: none, mostly, and then nobody takes the lock.
    count: AtomicUsize,
}

#[derive(Debug)]
struct Strikes {
    since: Instant,
    count: u32,
}

impl Abuse {
    pub(crate) fn new(settings: Bans) -> Self {
        Self {
            settings,
            strikes: Mutex::default(),
            bans: RwLock::default(),
            count: AtomicUsize::new(0),
        }
    }

    /// Whether `address` gets no answer now.
    pub(crate) fn banned(&self, address: IpAddr) -> Option<Ban> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let ban = self.bans.read().get(&addresses::key(address)).copied()?;
        (!ban.left().is_zero()).then_some(ban)
    }

    /// Everybody who is banned now.
    pub(crate) fn all(&self) -> Vec<(IpAddr, Ban)> {
        let bans = self.bans.read();
        let bans = bans.iter().filter(|(_, ban)| !ban.left().is_zero());
        bans.map(|(address, ban)| (*address, *ban)).collect()
    }

    /// `address` has done what `rule` is about, once more; it is banned if that was too much.
    pub(crate) fn strike(&self, edge: &Arc<Shared>, rule: Rule, address: IpAddr) {
        if self.settings.exempt.contains(address)
            || edge.trusted.contains(address)
            || edge.sockets.proxy_protocol.contains(address)
        {
            return;
        }
        let address = addresses::key(address);
        if self.is_too_much(rule, address, Instant::now()) {
            warn!(rule = rule.as_str(), %address, "an address is banned for a while");
            self.ban(address, rule, self.settings.time);
            tell(edge, rule, address, self.settings.time);
        }
    }

    fn is_too_much(&self, rule: Rule, address: IpAddr, now: Instant) -> bool {
        let (most, window) = (self.settings.most(rule), self.settings.window);
        if most == 0 {
            return false;
        }
        let mut all = self.strikes.lock();
        if all.len() >= MAX_STRUCK {
            all.retain(|_, strikes| now - strikes.since < window);
        }
        if all.len() >= MAX_STRUCK && !all.contains_key(&(rule, address)) {
            return false;
        }
        let strikes = all.entry((rule, address)).or_insert(Strikes { since: now, count: 0 });
        if now - strikes.since >= window {
            *strikes = Strikes { since: now, count: 0 };
        }
        strikes.count += 1;
        let over = strikes.count >= most;
        if over {
            all.remove(&(rule, address));
        }
        over
    }

    /// Here; others are told by whoever says so.
    fn ban(&self, address: IpAddr, rule: Rule, time: Duration) {
        let mut bans = self.bans.write();
        if bans.len() >= MAX_BANS {
            bans.retain(|_, ban| !ban.left().is_zero());
        }
        if bans.len() < MAX_BANS {
            bans.insert(address, Ban { rule, until: Instant::now() + time });
        }
        self.count.store(bans.len(), Ordering::Relaxed);
    }

    fn unban(&self, address: IpAddr) -> bool {
        let mut bans = self.bans.write();
        let was = bans.remove(&address).is_some();
        self.count.store(bans.len(), Ordering::Relaxed);
        was
    }

    /// Lets an address in again, on every edge; whether it was banned.
    pub(crate) async fn lift(&self, edge: &Shared, address: IpAddr) -> bool {
        let address = addresses::key(address);
        let here = self.unban(address);
        let there = edge.state.unmark(SPACE, &address.to_string()).await;
        here || there.unwrap_or(false)
    }

    /// Another edge has banned or let in an address.
    pub(crate) fn heard(&self, event: &Event) {
        let text = |name: &str| event.data.get(name).and_then(|value| value.as_str());
        let Some(address) = text("address").and_then(|text| text.parse().ok()) else { return };
        if event.kind == Kind::BanLifted {
            self.unban(address);
            return;
        }
        let until = text("until").and_then(|until| until.parse::<Timestamp>().ok());
        if let (Some(rule), Some(until)) = (text("rule").and_then(Rule::parse), until) {
            let left = u64::try_from(until.0 - Timestamp::now().0).unwrap_or(0);
            self.ban(address, rule, Duration::from_micros(left));
        }
    }

    /// Learns from the shared state who is banned: at the start, and when something was missed.
    pub(crate) async fn learn(&self, edge: &Shared) {
        match edge.state.marks(SPACE).await {
            Ok(marks) => {
                for (address, rule, left) in marks {
                    if let (Ok(address), Some(rule)) = (address.parse(), Rule::parse(&rule)) {
                        self.ban(address, rule, left);
                    }
                }
            }
            Err(error) => debug!(%error, "bans of other edges are not known"),
        }
    }
}

/// Tells other edges, dashboards and the audit log of a ban.
fn tell(edge: &Arc<Shared>, rule: Rule, address: IpAddr, time: Duration) {
    let until = Timestamp::now().plus(time);
    let data = json!({
        "rule": rule.as_str(),
        "address": address.to_string(),
        "until": until,
        "edge": edge.id,
    });
    let event = Event::new(Kind::AddressBanned).data(data);
    edge.events.publish(event.clone());
    let edge = Arc::clone(edge);
    let task = Arc::clone(&edge);
    task.tasks.spawn(async move {
        let key = address.to_string();
        if let Err(error) = edge.state.mark(SPACE, &key, rule.as_str(), time).await {
            debug!(%error, "other edges may not learn of a ban");
        }
        if let Err(error) = write(&edge, &event).await {
            debug!(%error, "a ban is not in the audit log");
        }
    });
}

async fn write(edge: &Shared, event: &Event) -> Result<(), StoreError> {
    let entry = audit::entry(event, &Actor::edge(&edge.id));
    edge.store.transaction(vec![entry]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abuse(names: u32) -> Abuse {
        Abuse::new(Bans { names, ..Bans::default() })
    }

    #[test]
    fn only_many_strikes_within_the_window_are_too_much() {
        let (abuse, now) = (abuse(3), Instant::now());
        let address = "192.0.2.1".parse().unwrap();
        let later = |seconds| now + Duration::from_secs(seconds);
        let struck = |at| abuse.is_too_much(Rule::NameScanning, address, at);
        assert_eq!([struck(now), struck(later(1))], [false, false]);
        assert!(!struck(later(60)), "the window is over");
        assert!(!abuse.is_too_much(Rule::LoginGuessing, address, later(60)), "of another rule");
        assert_eq!([struck(later(61)), struck(later(62))], [false, true]);
        assert!(!struck(later(62)), "it begins anew");
    }

    #[test]
    fn a_ban_ends_by_itself_or_is_lifted() {
        let abuse = abuse(1);
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        assert!(abuse.banned(address).is_none());
        abuse.ban(addresses::key(address), Rule::NameScanning, Duration::from_secs(60));
        let neighbour = "2001:db8::2".parse().unwrap();
        assert_eq!(abuse.banned(neighbour).unwrap().rule, Rule::NameScanning);
        assert!(abuse.unban(addresses::key(address)));
        assert!(abuse.banned(address).is_none());
        abuse.ban(addresses::key(address), Rule::NameScanning, Duration::ZERO);
        assert!(abuse.banned(address).is_none() && abuse.all().is_empty());
    }

    #[test]
    fn the_table_of_strikes_has_a_bound() {
        let (abuse, now) = (abuse(2), Instant::now());
        for number in 0..u32::try_from(MAX_STRUCK).unwrap() * 2 {
            let address = IpAddr::V4(number.into());
            assert!(!abuse.is_too_much(Rule::NameScanning, address, now));
        }
        assert!(abuse.strikes.lock().len() <= MAX_STRUCK);
    }

    #[test]
    fn a_ban_is_heard_of_from_another_edge() {
        let abuse = abuse(1);
        let until = Timestamp::now().plus(Duration::from_secs(60));
        let data = json!({ "rule": "token-spraying", "address": "192.0.2.9", "until": until });
        abuse.heard(&Event::new(Kind::AddressBanned).data(data.clone()));
        let address = "192.0.2.9".parse().unwrap();
        assert_eq!(abuse.banned(address).unwrap().rule, Rule::TokenSpraying);
        abuse.heard(&Event::new(Kind::BanLifted).data(data));
        assert!(abuse.banned(address).is_none());
    }
}
