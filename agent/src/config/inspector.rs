//! The section `[agent.inspector]`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use clap::Args;
use schemars::JsonSchema;
use serde::Deserialize;

use super::values::{Size, Written, over};

/// Where the inspector is when nobody says otherwise.
const DEFAULT_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4040);
/// Requests that are kept when nobody says otherwise.
const DEFAULT_REQUESTS: usize = 500;
/// Most requests that can be kept.
const MAX_REQUESTS: u32 = 100_000;
/// Bytes of all that is kept, in memory.
const DEFAULT_BYTES: u64 = 64 << 20;
/// Bytes of one body, in memory.
const DEFAULT_BODY: u64 = 1 << 20;

/// `[agent.inspector]`.
#[derive(Clone, Debug, Default, Args, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Inspector {
    /// Where the inspector of requests and the agent's local API are: an address of this machine,
    /// or off. Config key `agent.inspector.address`. Default: 127.0.0.1:4040.
    #[arg(
        id = "inspector",
        long = "inspector",
        env = "UNIROUTE_INSPECTOR",
        value_name = "ADDRESS|off"
    )]
    #[schemars(with = "Option<String>")]
    pub(crate) address: Option<Written<InspectorAddress>>,
    /// Requests that are kept; older ones go. Default: 500.
    #[arg(skip)]
    #[schemars(range(min = 1, max = 100000))]
    pub(crate) max_requests: Option<u32>,
    /// Bytes of memory for all of them. Default: 64MiB.
    #[arg(skip)]
    pub(crate) max_bytes: Option<Size>,
    /// Bytes of one body in memory; the rest is left out, or goes to the spool. Default: 1MiB.
    #[arg(skip)]
    pub(crate) max_body: Option<Size>,
    /// Whether longer bodies are kept on disk. Default: false.
    #[arg(skip)]
    pub(crate) spool: Option<bool>,
    /// Where. Default: a folder in `agent.state_dir`.
    #[arg(skip)]
    pub(crate) spool_dir: Option<PathBuf>,
    /// Names of fields and parameters whose values are not shown, beside the usual ones.
    #[arg(skip)]
    pub(crate) redact: Vec<String>,
    /// Whether secrets are shown as they are. Default: false.
    #[arg(skip)]
    pub(crate) show_secrets: Option<bool>,
}

over!(Inspector {
    address,
    max_requests,
    max_bytes,
    max_body,
    spool,
    spool_dir,
    redact,
    show_secrets,
});

/// Where the inspector listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InspectorAddress {
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

impl FromStr for InspectorAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no address for the inspector: write 127.0.0.1:4040, a port, or off"
            )
        };
        if text == "off" {
            return Ok(Self::Off);
        }
        if let Ok(port) = text.parse() {
            return Ok(Self::At((Ipv4Addr::LOCALHOST, port).into()));
        }
        let text = text.replace("localhost:", "127.0.0.1:");
        text.parse().map(Self::At).map_err(|_| wrong())
    }
}

/// What the inspector is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InspectorPlan {
    pub(crate) address: InspectorAddress,
    pub(crate) max_requests: usize,
    pub(crate) max_bytes: u64,
    pub(crate) max_body: u64,
    /// Longer bodies are kept on disk.
    pub(crate) spool: bool,
    /// Where; `None`: in the state's folder.
    pub(crate) spool_dir: Option<PathBuf>,
    pub(crate) redact: Vec<String>,
    pub(crate) show_secrets: bool,
}

impl Inspector {
    /// What is wrong with it, by key.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let count = self.max_requests.filter(|count| !(1..=MAX_REQUESTS).contains(count));
        let what = |count| format!("{count}: from 1 to {MAX_REQUESTS} requests can be kept");
        count.map(|count| ("inspector.max_requests", what(count))).into_iter().collect()
    }

    pub(crate) fn plan(self) -> InspectorPlan {
        let size = |size: Option<Size>, default| size.map_or(default, |Size(bytes)| bytes);
        InspectorPlan {
            address: self.address.map_or(InspectorAddress::At(DEFAULT_ADDRESS), |a| a.0),
            max_requests: self.max_requests.map_or(DEFAULT_REQUESTS, |count| count as usize),
            max_bytes: size(self.max_bytes, DEFAULT_BYTES),
            max_body: size(self.max_body, DEFAULT_BODY),
            spool: self.spool.unwrap_or(false),
            spool_dir: self.spool_dir,
            redact: self.redact,
            show_secrets: self.show_secrets.unwrap_or(false),
        }
    }
}
