//! `uniroute diagnose`: every step of the way from here to the edge and to the local servers.

mod bundle;

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use uniroute_agent::{
    Settings, TunnelSettings,
    diagnose::{Question, Report, State, Step, diagnose},
    local::running,
};
use uniroute_shared::id::Token;

use super::common::{self, Common};
use crate::{
    Failure,
    config::{self, File, FileTunnel, SettingsError, tunnel::Hashes},
};

/// Stands where there is no token; it is never sent.
const NO_TOKEN: &str = "there-is-no-token";
/// Width of the column with the steps' names.
const NAME: usize = 10;

/// The exit code is that of the first step that fails: 3 the config file, 4 the token, 5 the edge can't
/// be reached, 7 a local server, 1 anything else. Warnings leave it 0.
#[derive(Debug, Args)]
pub(crate) struct Diagnose {
    /// A local server to look at, instead of those of the config file.
    upstream: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Also write a .tar.gz for a bug report: this report, the config file without its secrets, and
    /// what machine this is. It must not be there yet.
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

impl Diagnose {
    /// Prints the report; its exit code.
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let path = self.common.config.clone().unwrap_or_else(config::default_path);
        let question = question(self.common, self.upstream.as_deref(), &path);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let report = runtime.map_err(anyhow::Error::from)?.block_on(diagnose(question));
        let mut text = match self.json {
            true => serde_json::to_string_pretty(&report).map_err(anyhow::Error::from)? + "\n",
            false => lines(&report),
        };
        if let Some(file) = &self.bundle {
            bundle::write(file, &report, &path)
                .with_context(|| format!("cannot write {}", file.display()))?;
            if !self.json {
                let _ = writeln!(
                    text,
                    "\nFor a bug report: {}. It holds no secrets; look at it all the same.",
                    file.display()
                );
            }
        }
        io::stdout().write_all(text.as_bytes()).map_err(anyhow::Error::from)?;
        Ok(report.exit_code)
    }
}

/// What is to be looked at, as far as the settings can be used.
fn question(common: Common, upstream: Option<&str>, path: &Path) -> Question {
    let (file, mut before) = match common.file() {
        Ok((_, file)) => (Some(file), Vec::new()),
        Err(error) => (None, vec![wrong(&error)]),
    };
    let said = common.agent.server.clone();
    // Flags alone say enough if they say where the edge is.
    let base = file.filter(|file| match file.check() {
        Ok(()) => true,
        Err(error) => {
            before.push(wrong(&error));
            false
        }
    });
    if base.is_none() && said.is_empty() {
        return Question { before, settings: None, no_token: None, agents: Vec::new() };
    }
    let usable = base.is_some();
    let base = base.unwrap_or_default();
    let tunnels = tunnels(&base, upstream, &mut before);
    let settings = common.agent.over_file(base).and_then(|agent| {
        let agents = running::find(&config::state_dir(agent.state_dir.as_deref()));
        let (token, no_token) = match config::token(agent.token_file.as_deref()) {
            Ok(token) => (token, None),
            Err(error) => (
                Token::parse(NO_TOKEN).map_err(|e| SettingsError::Token(String::new(), e))?,
                Some(error.to_string()),
            ),
        };
        Ok((common::settings_with(&agent, token, tunnels)?, no_token, agents))
    });
    let (settings, no_token, agents): (Option<Settings>, _, _) = match settings {
        Ok((settings, no_token, agents)) => (Some(settings), no_token, agents),
        Err(error) => {
            before.push(wrong(&error));
            (None, None, Vec::new())
        }
    };
    if usable && settings.is_some() && before.is_empty() {
        let says = match path.exists() {
            true => format!("{}: no faults", path.display()),
            false => {
                format!("there is none at {}: what is not said has its default", path.display())
            }
        };
        before.push(Step::new("config", State::Pass, says));
    }
    Question { before, settings, no_token, agents }
}

fn tunnels(file: &File, upstream: Option<&str>, before: &mut Vec<Step>) -> Vec<TunnelSettings> {
    let hashes = Hashes::none();
    if let Some(upstream) = upstream {
        let tunnel = FileTunnel { upstream: vec![upstream.to_owned()], ..FileTunnel::default() };
        return match tunnel.settings(tunnel.kind().as_str(), &hashes) {
            Ok(settings) => vec![settings],
            Err(faults) => {
                before.push(wrong(&SettingsError::Flags(faults)));
                Vec::new()
            }
        };
    }
    // The file was checked: each has its settings.
    file.tunnels.keys().filter_map(|key| file.settings(key, &hashes)?.ok()).collect()
}

fn wrong(error: &SettingsError) -> Step {
    let fix = "Correct it; `uniroute config check` names every fault, `uniroute config init` prints a sample";
    Step::new("config", State::Fail, without_values(&error.to_string())).fix(fix)
}

/// A fault may quote what was written, and that may be a secret.
fn without_values(text: &str) -> String {
    let mut parts = text.split("string \"");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.find("\", ").or_else(|| part.rfind('"')).map_or("", |end| &part[end + 1..]);
        shown.push_str("string …");
        shown.push_str(rest);
    }
    shown
}

/// For people.
fn lines(report: &Report) -> String {
    let mut text = String::new();
    let several = report.steps.iter().filter(|step| step.name == "dns").count() > 1;
    let mut steps = report.steps.iter().peekable();
    while let Some(Step { name, of, state, took_ms, says, fix }) = steps.next() {
        // What was not tried for one reason is one line.
        let mut names = (*name).to_owned();
        while *state == State::Skip
            && let Some(next) = steps.next_if(|next| next.state == *state && next.says == *says)
        {
            let _ = write!(names, ", {}", next.name);
        }
        let of = if several && !of.is_empty() { format!("[{of}] ") } else { String::new() };
        let took = if *took_ms > 0.0 { format!(" ({took_ms:.0} ms)") } else { String::new() };
        let says = says.replace('\n', "\n      ");
        let _ = writeln!(text, "{}  {names:NAME$}  {of}{says}{took}", state.as_str());
        if !fix.is_empty() {
            let _ = writeln!(text, "      {:NAME$}  → {fix}", "");
        }
    }
    let count = |state| report.steps.iter().filter(|step| step.state == state).count();
    let (failed, warned) = (count(State::Fail), count(State::Warn));
    let _ = match (failed, warned) {
        (0, 0) => writeln!(text, "\nEverything works."),
        (0, warned) => writeln!(text, "\nEverything works, with {warned} to look at."),
        (failed, _) => writeln!(text, "\n{failed} failed. Begin with the first one."),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_fault_quotes_is_left_out() {
        let text = "a.toml:1:2: invalid type: string \"hunter2\", expected a sequence";
        assert_eq!(without_values(text), "a.toml:1:2: invalid type: string …, expected a sequence");
        assert_eq!(without_values("nothing of the kind"), "nothing of the kind");
        assert!(!without_values("string \"hunter2").contains("hunter2"));
    }
}
