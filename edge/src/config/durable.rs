//! Where an edge keeps what has to last, and what its users may do.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;
use uniroute_shared::network::Networks;

use super::{Settings, SettingsError};
use crate::{
    StartError,
    abuse::Bans,
    auth::secret::Secret,
    background::Places,
    jobs::{self, Retention},
    services::Signup,
    state::{StateOptions, StateUrl},
    store::{StoreOptions, StoreUrl},
    traffic::Log,
};

/// For how long nobody else gets a name that was given up or deleted.
pub const QUARANTINE: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the edge's secret comes from; every key that it uses is derived from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A new one with every start.
    Random,
    /// This file, which is made when it is not there.
    MadeIn(PathBuf),
    /// This file.
    File(PathBuf),
}

/// What lasts, and whose it is.
#[derive(Clone, Debug)]
pub struct Durable {
    /// Rows: accounts, tunnels, requests.
    pub store: StoreUrl,
    /// How they are reached.
    pub store_options: StoreOptions,
    /// What edges share.
    pub state: StateUrl,
    /// How it is reached.
    pub state_options: StateOptions,
    /// Keys are derived from it; the same on all edges of a cluster.
    pub secret: SecretSource,
    /// Who may make an account.
    pub signup: Signup,
    /// Requests a second of all visitors together; `None`: any number.
    pub requests_per_second: Option<u32>,
    /// The same of one visitor's address.
    pub address_requests_per_second: Option<u32>,
    /// Connections of one address at a time; 0: any number.
    pub address_connections: u32,
    /// When an address is locked out.
    pub bans: Bans,
    /// How requests are written down.
    pub log: Log,
    /// For how long.
    pub retention: Retention,
    /// For how long nobody else gets a name that was given up or deleted.
    pub quarantine: Duration,
    /// How often changes made elsewhere are looked for.
    pub feed: Duration,
    /// How often it is looked whether a job is due.
    pub jobs: Duration,
}

impl Durable {
    /// Nothing lasts longer than the process.
    #[must_use]
    pub fn in_memory() -> Self {
        Self {
            store: StoreUrl::memory(),
            store_options: StoreOptions::default(),
            state: StateUrl::memory(),
            state_options: StateOptions::default(),
            secret: SecretSource::Random,
            signup: Signup::default(),
            requests_per_second: None,
            address_requests_per_second: None,
            address_connections: 0,
            bans: Bans::default(),
            log: Log::default(),
            retention: Retention::default(),
            quarantine: QUARANTINE,
            feed: crate::changes::EVERY,
            jobs: jobs::EVERY,
        }
    }
}

impl Settings {
    pub(crate) fn places(&self) -> Places {
        let durable = &self.durable;
        Places {
            store: durable.store.clone(),
            store_options: durable.store_options.clone(),
            state: durable.state.clone(),
            state_options: durable.state_options.clone(),
            owner: self.tokens.is_some(),
            flush: durable.log.flush,
        }
    }

    pub(crate) fn secret(&self) -> Result<Secret, StartError> {
        let secret = match &self.durable.secret {
            SecretSource::Random => return Ok(Secret::random()),
            SecretSource::MadeIn(path) => Secret::load_or_create(path),
            SecretSource::File(path) => Secret::load(path),
        };
        secret.map_err(|error| StartError::Secret(error.to_string()))
    }
}

/// The section `[request_log]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestLog {
    /// See [`Log::rows_per_second`].
    pub rows_per_second: Option<u32>,
    /// See [`Retention::requests`].
    pub keep_days: Option<u32>,
    /// See [`Retention::audit`] and [`Retention::hours`].
    pub keep_history_days: Option<u32>,
}

/// The section `[bans]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BanRules {
    /// See [`Bans::tokens`].
    pub tokens: Option<u32>,
    /// See [`Bans::names`].
    pub names: Option<u32>,
    /// See [`Bans::logins`].
    pub logins: Option<u32>,
    /// See [`Bans::window`].
    pub window_seconds: Option<u32>,
    /// See [`Bans::time`].
    pub ban_seconds: Option<u32>,
    /// See [`Bans::exempt`].
    pub exempt: Option<Networks>,
}

/// The keys of the file that are about this.
#[derive(Debug, Default)]
pub struct DurableFile<'a> {
    /// Where the edge keeps its files.
    pub data_dir: Option<PathBuf>,
    /// See [`Durable::store`].
    pub store: Option<&'a str>,
    /// See [`StoreOptions::replica`].
    pub store_replica: Option<&'a str>,
    /// See [`StoreOptions::connections`].
    pub store_connections: Option<usize>,
    /// See [`Durable::state`].
    pub state: Option<&'a str>,
    /// See [`StateOptions::ca_file`].
    pub state_ca_file: Option<PathBuf>,
    /// See [`Durable::secret`].
    pub secret_file: Option<PathBuf>,
    /// See [`Durable::signup`].
    pub signup: Option<Signup>,
    /// See the section.
    pub log: RequestLog,
    /// See the section.
    pub bans: BanRules,
}

impl DurableFile<'_> {
    /// What is said, with the rest at its default.
    ///
    /// # Errors
    /// Values that can't be.
    pub fn settings(self) -> Result<Durable, SettingsError> {
        let default = Durable::in_memory();
        let dir = self.data_dir.unwrap_or_else(default_data_dir);
        let store = match self.store {
            Some(url) => store_url("store", url)?,
            None => StoreUrl::file(dir.join("edge.db")),
        };
        let replica = self.store_replica.map(|url| store_url("store_replica", url)).transpose()?;
        let state = self.state.map(|url| {
            url.parse()
                .map_err(|error: crate::state::SetupError| SettingsError::State(error.to_string()))
        });
        let state: StateUrl = state.transpose()?.unwrap_or_else(StateUrl::memory);
        if !state.is_memory() && !store.is_postgres() {
            return Err(SettingsError::SharedState);
        }
        let secret = match self.secret_file {
            Some(path) => SecretSource::File(path),
            None if store.is_postgres() => return Err(SettingsError::NoSecret),
            None => SecretSource::MadeIn(dir.join("secret")),
        };
        let mut store_options = StoreOptions { replica, ..default.store_options };
        if let Some(connections) = self.store_connections {
            if !(1..=1000).contains(&connections) {
                return Err(SettingsError::StoreConnections(connections));
            }
            store_options.connections = connections;
        }
        let days = |days: u32| Duration::from_secs(u64::from(days) * 24 * 60 * 60);
        let mut retention = default.retention;
        if let Some(keep) = self.log.keep_days {
            retention.requests = days(keep);
            retention.minutes = days(keep.max(1));
        }
        if let Some(keep) = self.log.keep_history_days {
            (retention.audit, retention.hours) = (days(keep), days(keep));
        }
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let rules = &default.bans;
        Ok(Durable {
            store,
            store_options,
            state,
            state_options: StateOptions { ca_file: self.state_ca_file, ..default.state_options },
            secret,
            signup: self.signup.unwrap_or_default(),
            log: Log {
                rows_per_second: self.log.rows_per_second.or(default.log.rows_per_second),
                ..default.log
            },
            retention,
            bans: Bans {
                tokens: self.bans.tokens.unwrap_or(rules.tokens),
                names: self.bans.names.unwrap_or(rules.names),
                logins: self.bans.logins.unwrap_or(rules.logins),
                window: self.bans.window_seconds.map_or(rules.window, seconds),
                time: self.bans.ban_seconds.map_or(rules.time, seconds),
                exempt: self.bans.exempt.unwrap_or_else(|| rules.exempt.clone()),
            },
            ..default
        })
    }
}

fn store_url(key: &'static str, url: &str) -> Result<StoreUrl, SettingsError> {
    url.parse().map_err(|error| SettingsError::Store(key, error))
}

/// A folder of this user's state.
#[must_use]
pub fn default_data_dir() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let state = variable("XDG_STATE_HOME").map(PathBuf::from).or_else(home);
    state.unwrap_or_else(std::env::temp_dir).join("uniroute/edge")
}
