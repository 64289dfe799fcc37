//! The load generator: small requests in a closed loop, or long bodies one way.

mod bulk;
mod echo;
mod requests;

use anyhow::Context;
use clap::Subcommand;
use http::Uri;

use crate::client::Target;
use crate::output;

#[derive(Subcommand)]
pub(crate) enum Load {
    /// GET a small page over and over, each connection as fast as it is answered
    Requests(requests::Args),
    /// Send small WebSocket messages to /echo, each when the last one has come back
    Echo(echo::Args),
    /// Stream /bytes/N from the server
    Download(bulk::DownloadArgs),
    /// Stream a body to the server's /upload
    Upload(bulk::BulkArgs),
}

#[derive(clap::Args)]
struct TargetArgs {
    /// http://HOST:PORT/PATH; bulk loads use their own paths
    #[arg(long)]
    url: Uri,
    /// `Host` header, if not the URL's
    #[arg(long)]
    host: Option<String>,
}

impl TargetArgs {
    fn target(&self) -> anyhow::Result<Target> {
        Target::new(&self.url, self.host.clone())
    }
}

pub(crate) async fn run(load: Load) -> anyhow::Result<()> {
    let report = match load {
        Load::Requests(args) => serde_json::to_string(&requests::run(args).await?),
        Load::Echo(args) => serde_json::to_string(&echo::run(args).await?),
        Load::Download(args) => serde_json::to_string(&bulk::download(args).await?),
        Load::Upload(args) => serde_json::to_string(&bulk::upload(args).await?),
    };
    output::line(report.context("report")?);
    Ok(())
}
