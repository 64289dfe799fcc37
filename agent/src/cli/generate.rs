//! What is made of the command line itself: completions for shells, and man pages.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;

#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell.
    shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// The folder that gets a page for each command. Default: the first page, on standard output.
    dir: Option<PathBuf>,
}

impl Completion {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "uniroute", &mut text);
        Ok(io::stdout().write_all(&text)?)
    }
}

impl Man {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let Some(dir) = self.dir else {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut text)?;
            return Ok(io::stdout().write_all(&text)?);
        };
        let write = || {
            fs::create_dir_all(&dir)?;
            clap_mangen::generate_to(Cli::command(), &dir)
        };
        write().with_context(|| format!("cannot write to {}", dir.display()))
    }
}
