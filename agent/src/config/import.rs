//! Config files of other tunnels, turned into one of ours. What can't be carried over is noted, each
//! with its line: nothing is left out without a word.

mod cloudflared;
mod document;
mod draft;
mod frp;
mod ngrok;

use std::{fs, io::Read as _, path::Path};

use self::{
    document::{Document, Place},
    draft::{Draft, Drafts},
};
use super::File;

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Source {
    /// The agent's config, versions 1 to 3.
    Ngrok,
    /// Its config.yml.
    Cloudflared,
    /// Of frpc: TOML, YAML, JSON, or the older INI.
    Frp,
}

/// What became of a file.
#[derive(Debug)]
pub(crate) struct Imported {
    /// A config file of ours.
    pub(crate) text: String,
    /// What could not be carried over, in the order of the file.
    pub(crate) notes: Vec<String>,
}

/// Reads a file of another tunnel.
///
/// # Errors
/// When the file can't be read at all.
pub(crate) fn import(source: Source, path: &Path) -> anyhow::Result<Imported> {
    let name = path.display().to_string();
    let mut text = String::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    read.map_err(|error| anyhow::anyhow!("cannot read {name}: {error}"))?;
    anyhow::ensure!(text.len() as u64 <= MAX_FILE, "{name} is longer than {MAX_FILE} bytes");
    let document = match source {
        Source::Ngrok | Source::Cloudflared => Document::yaml(&name, &text)?,
        Source::Frp => frp::read(&name, &text)?,
    };
    let mut drafts = Drafts::default();
    match source {
        Source::Ngrok => ngrok::import(&document.root(), &mut drafts),
        Source::Cloudflared => cloudflared::import(&document.root(), &mut drafts),
        Source::Frp => frp::import(&document.root(), &mut drafts),
    }
    drafts.check(&document);
    document.note_unused();
    let text = drafts.text(&name);
    // Each tunnel was checked for itself.
    File::parse(&text, "the result").and_then(|file| file.check())?;
    Ok(Imported { text, notes: document.notes() })
}

/// A host and port as others write an address: without a host it is this machine.
fn address(text: &str) -> String {
    match text.strip_prefix(':') {
        Some(port) => port.to_owned(),
        None => text.to_owned(),
    }
}

/// The first label of a host name, as the name of a tunnel.
fn take_name(draft: &mut Draft, place: &Place<'_>, host: &str) {
    if host.starts_with('*') {
        place
            .note("a name for every subdomain can't be wished for here: the edge chooses one name");
        return;
    }
    let (label, domain) = host.split_once('.').unwrap_or((host, ""));
    if let Err(error) = uniroute_shared::id::Subdomain::parse(label) {
        place.note(&format!("{label:?} can't be a name here ({error}): the edge chooses one"));
        return;
    }
    draft.set("name", label);
    if !domain.is_empty() {
        place.note(&format!(
            "the tunnel is {label} in the domain of your edge; for {host} itself add it there as a domain of your own"
        ));
    }
}
