//! The section `[agent.inspector]`.

use std::path::{Path, PathBuf};

use clap::Args;
use schemars::JsonSchema;
use serde::Deserialize;
use uniroute_agent::{Limits, local::Listen};

use super::values::{Size, Written, over};

/// Most requests that can be kept.
const MAX_REQUESTS: u32 = 100_000;

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
    pub(crate) address: Option<Written<Listen>>,
    /// Requests that are kept; older ones go. Default: 10000.
    #[arg(skip)]
    #[schemars(range(min = 1, max = 100000))]
    pub(crate) max_requests: Option<u32>,
    /// Bytes of memory for all of them. Default: 64MiB.
    #[arg(skip)]
    pub(crate) max_bytes: Option<Size>,
    /// Bytes of one body in memory; the rest is left out, or goes to the spool. Default: 64KiB.
    #[arg(skip)]
    pub(crate) max_body: Option<Size>,
    /// Whether longer bodies are kept on disk. Default: false.
    #[arg(skip)]
    pub(crate) spool: Option<bool>,
    /// Where. Default: a folder in `agent.state_dir`.
    #[arg(skip)]
    pub(crate) spool_dir: Option<PathBuf>,
    /// Bytes of disk for all of them; older ones go. Default: 4GiB.
    #[arg(skip)]
    pub(crate) max_spool: Option<Size>,
    /// Names of fields and parameters whose values are not shown, beside the usual ones.
    #[arg(skip)]
    pub(crate) redact: Vec<String>,
    /// Whether secrets are shown as they are. Default: false.
    #[arg(skip)]
    pub(crate) show_secrets: Option<bool>,
    /// Whether requests may be replayed to any host, and not only to this machine and the local
    /// servers of this agent's tunnels. Default: false.
    #[arg(skip)]
    pub(crate) remote_replay: Option<bool>,
}

over!(Inspector {
    address,
    max_requests,
    max_bytes,
    max_body,
    spool,
    spool_dir,
    max_spool,
    redact,
    show_secrets,
    remote_replay,
});

/// What the inspector is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InspectorPlan {
    pub(crate) listen: Listen,
    pub(crate) limits: Limits,
}

impl Inspector {
    /// What is wrong with it, by key.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let count = self.max_requests.filter(|count| !(1..=MAX_REQUESTS).contains(count));
        let what = |count| format!("{count}: from 1 to {MAX_REQUESTS} requests can be kept");
        count.map(|count| ("inspector.max_requests", what(count))).into_iter().collect()
    }

    /// `state_dir`: where long bodies go when nobody says otherwise.
    pub(crate) fn plan(self, state_dir: &Path) -> InspectorPlan {
        let default = Limits::default();
        let size = |size: Option<Size>, default| {
            size.map_or(default, |Size(bytes)| usize::try_from(bytes).unwrap_or(usize::MAX))
        };
        let limits = Limits {
            max_requests: self.max_requests.map_or(default.max_requests, |count| count as usize),
            max_bytes: size(self.max_bytes, default.max_bytes),
            max_body: size(self.max_body, default.max_body),
            spool: self.spool.unwrap_or(false),
            spool_dir: Some(self.spool_dir.unwrap_or_else(|| state_dir.join("spool"))),
            max_spool: self.max_spool.map_or(default.max_spool, |Size(bytes)| bytes),
            redact: self.redact,
            show_secrets: self.show_secrets.unwrap_or(false),
            remote_replay: self.remote_replay.unwrap_or(false),
        };
        InspectorPlan { listen: self.address.map_or(Listen::Default, |written| written.0), limits }
    }
}
