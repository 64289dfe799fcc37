//! `uniroute config`: what one does with the config file.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use clap::Subcommand;

use crate::config::{self, File, SAMPLE};

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Prints a commented sample.
    Init,
    /// Prints where the config file is looked for.
    Path,
    /// Names every fault of a config file.
    Check {
        /// The file. Default: see `config path`.
        file: Option<PathBuf>,
    },
}

impl ConfigCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut out = io::stdout();
        match self {
            Self::Init => out.write_all(SAMPLE.as_bytes())?,
            Self::Path => writeln!(out, "{}", config::default_path().display())?,
            Self::Check { file } => {
                let path = file.unwrap_or_else(config::default_path);
                File::load(&path)?.check()?;
                writeln!(out, "{}: no faults", path.display())?;
            }
        }
        Ok(())
    }
}
