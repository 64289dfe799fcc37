//! `uniroute config import`.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::Args;

use crate::config::{
    self, SettingsError,
    import::{Source, import},
};

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Whose file it is.
    #[arg(long, value_enum, value_name = "ngrok|cloudflared|frp", hide_possible_values = true)]
    from: Source,
    /// The file.
    file: PathBuf,
    /// Where the result goes; a file that is there is not overwritten. Default: standard output.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Import {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let imported = import(self.from, &self.file)
            .map_err(|error| SettingsError::Import(format!("{error:#}")))?;
        let mut err = io::stderr();
        for note in &imported.notes {
            writeln!(err, "{note}")?;
        }
        match self.output {
            None => io::stdout().write_all(imported.text.as_bytes())?,
            Some(path) => {
                let shown = path.display();
                anyhow::ensure!(!path.exists(), "{shown} is there already");
                config::write_private(&path, &imported.text)
                    .with_context(|| format!("cannot write {shown}"))?;
            }
        }
        Ok(())
    }
}
