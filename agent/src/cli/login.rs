//! `uniroute login` and `uniroute logout`: the edge and its token, asked once and kept.

use std::{
    fs,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use toml_edit::{DocumentMut, Item, TableLike, value};
use uniroute_agent::{check_login, connect::ServerUrl};
use uniroute_shared::{id::Token, shutdown::Signals};

use super::{
    common::{self, Common, DEFAULT_SERVER},
    hidden,
};
use crate::{
    Failure,
    config::{self, SettingsError, agent::AgentSection, values::Written},
};

/// The token's file, beside the config file.
const TOKEN: &str = "token";

#[derive(Debug, Args)]
pub(crate) struct Login {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct Logout {
    /// The config file. Default: see `uniroute config path`.
    #[arg(long, env = "UNIROUTE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Login {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let (path, file) = self.common.file()?;
        let asked = self.common.agent.token_file.clone();
        let known = file.agent.server.clone();
        let mut agent = self.common.agent.over_file(file)?;
        let server = match agent.server.first() {
            // What is written already may be another edge's.
            Some(server) if agent.server != known || !io::stdin().is_terminal() => server.0.clone(),
            default => ask_server(default.map(|server| &server.0))?,
        };
        agent.server = vec![Written(server.clone())];
        let token = token(asked.as_deref())?;
        let edge = check(&agent, &token)?;
        let stored = path.with_file_name(TOKEN);
        let cannot = |path: &Path| format!("cannot write {}", path.display());
        let text = format!("{}\n", token.expose());
        config::write_private(&stored, &text).with_context(|| cannot(&stored))?;
        write_config(&path, &server).with_context(|| cannot(&path))?;
        let say = writeln!(
            io::stdout(),
            "Logged in at {server} (edge {edge}).\nThe token is in {}, and {} names both.\nNow, for a server on port 3000: uniroute http 3000",
            stored.display(),
            path.display(),
        );
        say.map_err(|error| Failure::Other(error.into()))
    }
}

/// Whether the edge takes the token; its name, if so.
fn check(agent: &AgentSection, token: &Token) -> Result<String, Failure> {
    let settings = common::settings_with(agent, token.clone(), Vec::new())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(anyhow::Error::from)?;
    runtime.block_on(async {
        // Where the token was asked for, Ctrl-C no longer ends the process by itself.
        let mut signals = Signals::new().map_err(SettingsError::Ask)?;
        tokio::select! {
            checked = check_login(settings) => Ok(checked?),
            () = signals.next() => Err(SettingsError::GivenUp.into()),
        }
    })
}

fn ask_server(default: Option<&ServerUrl>) -> Result<ServerUrl, SettingsError> {
    if !io::stdin().is_terminal() {
        return Err(SettingsError::NoServer);
    }
    let default = default.map_or(DEFAULT_SERVER.to_owned(), ToString::to_string);
    loop {
        let text = ask(&format!("URL of the edge [{default}]: "))?;
        let text = if text.is_empty() { default.as_str() } else { text.as_str() };
        match text.parse() {
            Ok(server) => return Ok(server),
            Err(error) => say(&format!("{error}\n"))?,
        }
    }
}

fn ask(question: &str) -> Result<String, SettingsError> {
    say(question)?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer).map_err(SettingsError::Ask)?;
    if read == 0 { Err(SettingsError::NoServer) } else { Ok(answer.trim().to_owned()) }
}

fn say(text: &str) -> Result<(), SettingsError> {
    let mut err = io::stderr();
    err.write_all(text.as_bytes()).and_then(|()| err.flush()).map_err(SettingsError::Ask)
}

/// Of the file that was named, of the environment, or what is typed or piped in.
fn token(file: Option<&Path>) -> Result<Token, SettingsError> {
    if file.is_some() || config::variable(config::TOKEN).is_some() {
        return config::token(file);
    }
    if !io::stdin().is_terminal() {
        return config::token(Some(Path::new("-")));
    }
    let text = hidden::ask("Token (it is not shown): ").map_err(|error| match error.kind() {
        io::ErrorKind::Interrupted => SettingsError::GivenUp,
        _ => SettingsError::Ask(error),
    })?;
    Token::parse(text.trim()).map_err(|error| SettingsError::Token("your answer".into(), error))
}

/// Names the edge and the token's file in the config file, and leaves the rest of it as it is.
fn write_config(path: &Path, server: &ServerUrl) -> anyhow::Result<()> {
    let mut document = read_config(path)?.unwrap_or_else(|| {
        let mut document = DocumentMut::new();
        document.insert("version", value(1));
        document
    });
    let agent = document.entry("agent").or_insert_with(toml_edit::table);
    let agent = agent.as_table_like_mut().context("`agent` is no table")?;
    let server = server.to_string();
    if !names(agent.get("server"), &server) {
        set(agent, "server", &server);
    }
    set(agent, "token_file", TOKEN);
    Ok(config::replace(path, &document.to_string())?)
}

/// Whether the edge is one of those that are written there.
fn names(written: Option<&Item>, server: &str) -> bool {
    let same = |text: &str| text.parse::<ServerUrl>().is_ok_and(|url| url.to_string() == server);
    match written {
        Some(item) if item.as_str().is_some_and(same) => true,
        Some(item) => {
            let list = item.as_array().into_iter().flatten();
            list.filter_map(toml_edit::Value::as_str).any(same)
        }
        None => false,
    }
}

/// Sets a key, and keeps the comments around it.
fn set(table: &mut dyn TableLike, key: &str, text: &str) {
    let mut new = value(text);
    if let (Some(new), Some(old)) = (new.as_value_mut(), table.get(key).and_then(Item::as_value)) {
        *new.decor_mut() = old.decor().clone();
    }
    table.insert(key, new);
}

fn read_config(path: &Path) -> anyhow::Result<Option<DocumentMut>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.parse()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Logout {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let path = self.config.unwrap_or_else(config::default_path);
        let stored = path.with_file_name(TOKEN);
        let removed = match fs::remove_file(&stored) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot remove {}", stored.display()));
            }
        };
        let mut out = io::stdout();
        if let Some(mut document) = read_config(&path)? {
            let agent = document.get_mut("agent").and_then(Item::as_table_like_mut);
            let gone = agent.is_some_and(|agent| {
                let server = agent.remove("server");
                agent.remove("token_file").or(server).is_some()
            });
            if gone {
                config::replace(&path, &document.to_string())
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
            if gone || removed {
                writeln!(
                    out,
                    "Logged out: the token and the edge's URL are forgotten here. The edge still takes the token until it is revoked there."
                )?;
                return Ok(());
            }
        }
        if removed {
            writeln!(out, "Logged out: the token is gone.")?;
        } else {
            writeln!(out, "Nothing to do: nobody is logged in here.")?;
        }
        Ok(())
    }
}
