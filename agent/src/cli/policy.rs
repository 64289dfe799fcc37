//! Flags of a tunnel's policy: those for every day. The others are keys of the config file; see
//! `docs/policy.md`.

use std::path::PathBuf;

use clap::Args;
use uniroute_shared::network::Network;

use crate::config::{
    FileTunnel,
    policy::{Field, FieldName, FileHeaders, FileWebhook, HostHeader},
    values::{Size, Span},
};

/// Each has a config key of the same name with underscores, if none is named.
#[derive(Debug, Args)]
#[command(next_help_heading = "What is done with requests")]
pub(super) struct PolicyFlags {
    /// What the local server sees as Host: preserve (what the visitor sent), rewrite (its own name,
    /// in links and cookies too), or a host. Default: preserve.
    #[arg(long, env = "UNIROUTE_HOST_HEADER", value_name = "preserve|rewrite|HOST")]
    host_header: Option<HostHeader>,
    /// Sets a field of requests for the local server. Config key `request_headers`.
    #[arg(long, value_name = "NAME: VALUE")]
    request_header: Vec<Field>,
    /// Removes a field of requests. Config key `request_headers`.
    #[arg(long, value_name = "NAME")]
    remove_request_header: Vec<FieldName>,
    /// Sets a field of answers for the visitor. Config key `response_headers`.
    #[arg(long, value_name = "NAME: VALUE")]
    response_header: Vec<Field>,
    /// Removes a field of answers. Config key `response_headers`.
    #[arg(long, value_name = "NAME")]
    remove_response_header: Vec<FieldName>,
    /// Let in visitors from this network only, such as 203.0.113.0/24; several with commas.
    #[arg(long, env = "UNIROUTE_ALLOW", value_name = "NETWORK", value_delimiter = ',')]
    allow: Vec<Network>,
    /// Let in nobody from this network; it goes over --allow.
    #[arg(long, env = "UNIROUTE_DENY", value_name = "NETWORK", value_delimiter = ',')]
    deny: Vec<Network>,
    /// A file with USER:PASSWORD lines, `-` for standard input: visitors must know one of them.
    #[arg(long, env = "UNIROUTE_BASIC_AUTH_FILE", value_name = "FILE")]
    basic_auth_file: Option<PathBuf>,
    /// Send visitors who come by http to https.
    #[arg(long, env = "UNIROUTE_REDIRECT_HTTPS")]
    redirect_https: bool,
    /// Longest body of a request, such as 10MB; 0: any. Default: 0.
    #[arg(long, env = "UNIROUTE_MAX_BODY", value_name = "SIZE")]
    max_body: Option<Size>,
    /// Compress answers for visitors who take that.
    #[arg(long, env = "UNIROUTE_COMPRESSION")]
    compression: bool,
    /// Time without a byte while a body is under way; 0: for ever. Default: 0.
    #[arg(long, env = "UNIROUTE_IDLE_TIMEOUT", value_name = "TIME")]
    idle_timeout: Option<Span>,
    /// Time for a request and its answer in all; 0: for ever. Default: 0.
    #[arg(long, env = "UNIROUTE_TOTAL_TIMEOUT", value_name = "TIME")]
    total_timeout: Option<Span>,
    /// An HTML file that browsers see when the tunnel does not work.
    #[arg(long, env = "UNIROUTE_ERROR_PAGE", value_name = "FILE")]
    error_page: Option<PathBuf>,
    /// Let in only what is signed by github, stripe or slack; the file holds the secret.
    #[arg(long, env = "UNIROUTE_WEBHOOK", value_name = "KIND:FILE")]
    webhook: Option<FileWebhook>,
    /// With file:FOLDER, the file for pages that are not there, such as index.html.
    #[arg(long, env = "UNIROUTE_FILE_FALLBACK", value_name = "FILE")]
    file_fallback: Option<String>,
}

/// Users in the environment, as they would stand in a file.
const USERS: &str = "UNIROUTE_BASIC_AUTH";

impl PolicyFlags {
    /// A section of the config file with these keys.
    pub(super) fn tunnel(self) -> FileTunnel {
        let users = self.basic_auth_file.is_none() && std::env::var_os(USERS).is_some();
        FileTunnel {
            host_header: self.host_header,
            request_headers: FileHeaders::of_flags(self.request_header, self.remove_request_header),
            response_headers: FileHeaders::of_flags(
                self.response_header,
                self.remove_response_header,
            ),
            allow: self.allow,
            deny: self.deny,
            basic_auth_file: self.basic_auth_file,
            basic_auth_env: users.then(|| USERS.to_owned()),
            redirect_https: self.redirect_https,
            max_body: self.max_body,
            compression: self.compression,
            idle_timeout: self.idle_timeout,
            total_timeout: self.total_timeout,
            error_page: self.error_page,
            webhook: self.webhook,
            file_fallback: self.file_fallback,
            ..FileTunnel::default()
        }
    }
}
