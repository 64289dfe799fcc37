//! How Redis is connected to.

use std::{path::Path, sync::Arc, time::Duration};

use fred::{
    clients::{Client, WithOptions},
    interfaces::ClientLike as _,
    types::{
        Builder, RespVersion,
        config::{
            ClusterDiscoveryPolicy, Config, ConnectionConfig, Options, ReconnectPolicy, Server,
            ServerConfig, TlsConfig, TlsConnector, TlsHostMapping, UnresponsiveConfig,
        },
    },
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::{CALL, CALLS};
use crate::state::{
    MESSAGES, SetupError, StateOptions,
    url::{Kind, Secret, Servers},
};

/// What all edges listen to.
pub(super) const CHANNEL: &str = "tunnel:events";
/// How long it may take to connect, and each step of what is said first.
const CONNECT: Duration = Duration::from_secs(2);
/// Between tries to connect again: the first wait, and the longest.
pub(super) const BACKOFF_MS: (u32, u32) = (50, 2_000);
/// A connection that gives no answer for so long is given up. Less than there is between two probes
/// without an answer, since every write begins the time anew.
const UNRESPONSIVE: Duration = Duration::from_secs(1);
/// How often that is looked at.
const UNRESPONSIVE_LOOK: Duration = Duration::from_millis(250);

pub(super) struct Clients {
    pub(super) calls: Client,
    pub(super) listens: Client,
}

/// Both clients, not yet connected.
pub(super) fn clients(servers: &Servers, options: StateOptions) -> Result<Clients, SetupError> {
    let tls = servers.tls.then(|| tls(servers, options.ca_file.as_deref())).transpose()?;
    let config = Config {
        fail_fast: false,
        username: servers.user.clone(),
        password: servers.password.as_ref().map(|password| password.reveal().to_owned()),
        server: server_config(servers, options),
        // With it a connection that listens can be asked whether it is alive.
        version: RespVersion::RESP3,
        database: match servers.kind {
            Kind::Single { database } => (database != 0).then_some(database),
            Kind::Cluster | Kind::Sentinel { .. } => None,
        },
        tls,
        ..Config::default()
    };
    let mut builder = Builder::from_config(config);
    let (first, longest) = BACKOFF_MS;
    builder.set_policy(ReconnectPolicy::new_exponential(0, first, longest, 2));
    builder.set_connection_config(connection());
    builder.with_performance_config(|performance| {
        performance.default_command_timeout = CALL;
        performance.broadcast_channel_capacity = MESSAGES;
    });
    let client = || builder.build().map_err(|error| SetupError(error.to_string()));
    Ok(Clients { calls: client()?, listens: client()? })
}

/// A client whose commands are tried once, now or not at all.
pub(super) fn bounded(client: &Client) -> WithOptions<Client> {
    client.with_options(&Options {
        max_attempts: Some(1),
        timeout: Some(CALL),
        fail_fast: true,
        ..Options::default()
    })
}

fn connection() -> ConnectionConfig {
    let mut config = ConnectionConfig {
        connection_timeout: CONNECT,
        internal_command_timeout: CONNECT,
        max_command_attempts: 1,
        max_command_buffer_len: CALLS,
        reconnect_on_auth_error: true,
        unresponsive: UnresponsiveConfig {
            max_timeout: Some(UNRESPONSIVE),
            interval: UNRESPONSIVE_LOOK,
        },
        ..ConnectionConfig::default()
    };
    config.tcp.nodelay = Some(true);
    config
}

fn server_config(servers: &Servers, options: StateOptions) -> ServerConfig {
    let mut hosts: Vec<Server> =
        servers.hosts.iter().map(|(host, port)| Server::new(host.clone(), *port)).collect();
    match &servers.kind {
        Kind::Single { .. } => ServerConfig::Centralized { server: hosts.swap_remove(0) },
        Kind::Cluster => {
            ServerConfig::Clustered { hosts, policy: ClusterDiscoveryPolicy::default() }
        }
        Kind::Sentinel { service } => ServerConfig::Sentinel {
            hosts,
            service_name: service.clone(),
            username: options.sentinel_user,
            password: options.sentinel_password.map(|secret: Secret| secret.reveal().to_owned()),
        },
    }
}

fn tls(servers: &Servers, ca_file: Option<&Path>) -> Result<TlsConfig, SetupError> {
    let roots = match ca_file {
        Some(file) => from_file(file)?,
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SetupError(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // A cluster names its servers by address; their certificates have the name that we know, if
    // they were pointed to by one.
    let by_name = servers.hosts.iter().all(|(host, _)| host.parse::<std::net::IpAddr>().is_err());
    let hostnames = if by_name { TlsHostMapping::DefaultHost } else { TlsHostMapping::None };
    Ok(TlsConfig { connector: TlsConnector::from(config), hostnames })
}

fn from_file(file: &Path) -> Result<RootCertStore, SetupError> {
    let fault = |error: &dyn std::fmt::Display| {
        SetupError(format!("its certificates in {} can't be used: {error}", file.display()))
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| fault(&error))? {
        let certificate = certificate.map_err(|error| fault(&error))?;
        roots.add(certificate).map_err(|error| fault(&error))?;
    }
    if roots.is_empty() {
        return Err(fault(&"there are none"));
    }
    Ok(roots)
}
