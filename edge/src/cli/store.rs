//! `migrate` and `store`: the database itself, without an edge.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use uniroute_edge::store::{Store, StoreOptions, StoreUrl};

use super::accounts::{Place, block_on};

/// Makes the tables, or brings them up to this release. Edges of the release before go on meanwhile.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Copies everything from one store to another, empty one, and compares both: from SQLite to
    /// PostgreSQL when one edge becomes several. No edge may use either meanwhile.
    Copy {
        /// sqlite:PATH or postgres://…; a password goes into the environment.
        #[arg(long, env = "UNIROUTE_STORE_FROM", value_name = "URL", hide_env_values = true)]
        from: StoreUrl,
        /// The same. Its tables are made if they are not there.
        #[arg(long, env = "UNIROUTE_STORE_TO", value_name = "URL", hide_env_values = true)]
        to: StoreUrl,
    },
}

impl Migrate {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let durable = self.place.durable()?;
        block_on(async {
            let store = Store::open(&durable.store, &durable.store_options).await?;
            let done = store.migrate().await?;
            for name in &done {
                writeln!(io::stdout(), "{name}")?;
            }
            let said = if done.is_empty() {
                "nothing to do: the tables are of this release"
            } else {
                "done"
            };
            writeln!(io::stderr(), "{}: {said}", durable.store)?;
            Ok(())
        })
    }
}

impl StoreCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let Self::Copy { from, to } = self;
        block_on(copy(&from, &to))
    }
}

async fn copy(from: &StoreUrl, to: &StoreUrl) -> anyhow::Result<()> {
    if from == to {
        bail!("both are the same store: {from}");
    }
    let open = async |url: &StoreUrl| {
        let store = Store::open(url, &StoreOptions::default()).await;
        let store = store.with_context(|| url.to_string())?;
        store.migrate().await.with_context(|| url.to_string())?;
        anyhow::Ok(store)
    };
    let (source, target) = (open(from).await?, open(to).await?);
    let live = io::stderr().is_terminal();
    let progress = |table: &'static str, rows: u64| {
        if live {
            let _ = write!(io::stderr(), "\r\x1b[K{table}: {rows} rows");
        }
    };
    let copied = Store::copy(&source, &target, progress).await;
    if live {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    for table in copied? {
        writeln!(io::stdout(), "{}\t{} rows\tsha256 {}", table.table, table.rows, table.sha256)?;
    }
    writeln!(io::stderr(), "copied from {from} to {to}; counts and checksums are the same")?;
    Ok(())
}
