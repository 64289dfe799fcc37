//! `uniroute config`: what one does with the config file.

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use clap::Subcommand;

use super::import::Import;
use crate::config::{self, File, SAMPLE, schema};

/// What is edited with when neither VISUAL nor EDITOR says it.
const EDITOR: &str = if cfg!(windows) { "notepad.exe" } else { "vi" };

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Writes a commented sample to where the config file is looked for; prints it when standard
    /// output is no terminal.
    Init {
        /// Where else to write it; `-` prints it.
        file: Option<PathBuf>,
        /// In place of a file that is there.
        #[arg(long)]
        force: bool,
    },
    /// Prints where the config file is looked for.
    Path,
    /// Names every fault of a config file.
    Check {
        /// The file. Default: see `config path`.
        file: Option<PathBuf>,
    },
    /// Opens the config file in $VISUAL or $EDITOR; it is replaced only by one without a fault.
    Edit {
        /// The file. Default: see `config path`.
        file: Option<PathBuf>,
    },
    /// Prints the JSON Schema of the config file, for editors.
    Schema,
    /// Turns a config file of ngrok, cloudflared or frp into one of uniroute, and notes what it could
    /// not carry over.
    Import(Import),
}

impl ConfigCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut out = io::stdout();
        match self {
            Self::Init { file, force } => init(file, force)?,
            Self::Path => writeln!(out, "{}", config::default_path().display())?,
            Self::Check { file } => {
                let path = file.unwrap_or_else(config::default_path);
                File::load(&path)?.check()?;
                writeln!(out, "{}: no faults", path.display())?;
            }
            Self::Edit { file } => edit(&file.unwrap_or_else(config::default_path))?,
            Self::Schema => writeln!(out, "{:#}", schema::schema())?,
            Self::Import(import) => import.run()?,
        }
        Ok(())
    }
}

fn init(file: Option<PathBuf>, force: bool) -> anyhow::Result<()> {
    let print = match &file {
        Some(path) => path == Path::new("-"),
        None => !io::stdout().is_terminal(),
    };
    if print {
        return Ok(io::stdout().write_all(SAMPLE.as_bytes())?);
    }
    let path = file.unwrap_or_else(config::default_path);
    let shown = path.display();
    anyhow::ensure!(
        force || !path.exists(),
        "{shown} is there already: `uniroute config edit` changes it, --force writes the sample over it"
    );
    config::write_private(&path, SAMPLE).with_context(|| format!("cannot write {shown}"))?;
    writeln!(
        io::stdout(),
        "{shown} is a commented sample now. `uniroute config edit` changes it, and `uniroute start web` runs its first tunnel."
    )?;
    Ok(())
}

/// The user's editor on a copy, until it is without a fault or the user has enough.
fn edit(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let before = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => SAMPLE.to_owned(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown}")),
    };
    let copy = tempfile::Builder::new().prefix("uniroute-").suffix(".toml").tempfile()?;
    fs::write(copy.path(), &before)?;
    loop {
        run_editor(copy.path())?;
        let text = fs::read_to_string(copy.path())?;
        let fault = match File::parse_at(&text, path).and_then(|file| file.check()) {
            Ok(()) if text == before && path.exists() => {
                return Ok(writeln!(io::stdout(), "{shown}: nothing was changed")?);
            }
            Ok(()) => {
                config::replace(path, &text).with_context(|| format!("cannot write {shown}"))?;
                return Ok(writeln!(io::stdout(), "{shown}: changed, no faults")?);
            }
            Err(fault) => fault,
        };
        writeln!(io::stderr(), "{fault}")?;
        if !again()? {
            let (_, kept) = copy.keep()?;
            let kept = kept.display();
            writeln!(io::stderr(), "{shown} is as it was; what you wrote is in {kept}")?;
            return Err(fault.into());
        }
    }
}

fn run_editor(file: &Path) -> anyhow::Result<()> {
    let said = ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var(name).ok());
    let editor = said.filter(|editor| !editor.trim().is_empty());
    let editor = editor.unwrap_or_else(|| EDITOR.to_owned());
    // With its arguments, such as `code --wait`.
    let mut words = editor.split_whitespace();
    let program = words.next().unwrap_or(EDITOR);
    let status = Command::new(program).args(words).arg(file).status();
    let status = status.with_context(|| {
        format!("the editor {editor:?} can't be run: set VISUAL or EDITOR to one that is there")
    })?;
    anyhow::ensure!(
        status.success(),
        "the editor {editor:?} ended with {status}: nothing was changed"
    );
    Ok(())
}

fn again() -> io::Result<bool> {
    write!(io::stderr(), "Edit again? [Y/n] ")?;
    io::stderr().flush()?;
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer)?;
    Ok(read > 0 && !answer.trim().to_lowercase().starts_with('n'))
}
