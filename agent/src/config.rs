//! What people write (flags, environment, file) and what the agent uses, apart from each other.

pub(crate) mod agent;
pub(crate) mod identity;
pub(crate) mod import;
pub(crate) mod inspector;
pub(crate) mod policy;
pub(crate) mod schema;
pub(crate) mod tunnel;
pub(crate) mod values;

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsString,
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::Deserialize;
use uniroute_agent::TunnelSettings;
use uniroute_shared::{
    config_file::{self, ConfigError, Fault},
    id::{Token, TokenError},
};

use self::{
    agent::AgentSection,
    tunnel::{Hashes, TunnelFault},
};
pub(crate) use self::{inspector::InspectorPlan, tunnel::FileTunnel};

/// The file that `config init` writes.
pub(crate) const SAMPLE: &str = include_str!("uniroute.sample.toml");

/// The variable with a token.
pub(crate) const TOKEN: &str = "UNIROUTE_TOKEN";

/// Keys that were at the top of the file before there was a section for them.
const MOVED: [&str; 6] =
    ["server", "token_file", "transport", "quic_gso", "quic_congestion", "lanes"];

/// The config file of uniroute, as it is written. Relative paths in it begin at its folder.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "uniroute.toml")]
pub(crate) struct File {
    /// Always 1.
    #[serde(rename = "version")]
    #[schemars(with = "u32", range(min = 1, max = 1))]
    _version: Option<u32>,
    /// What belongs to the agent as a whole.
    #[serde(default)]
    pub(crate) agent: AgentSection,
    /// Tunnels, by the word that `uniroute start` takes.
    #[serde(default)]
    pub(crate) tunnels: BTreeMap<String, FileTunnel>,
    /// For faults that show later.
    #[serde(skip)]
    source: Source,
}

/// A file's text, which may hold secrets, and the name that it was read by.
#[derive(Default)]
struct Source {
    name: String,
    text: String,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("{}", with_hint(.0))]
    File(#[from] ConfigError),
    /// In what the command line or the environment says of a tunnel.
    #[error("{}", flags(.0))]
    Flags(Vec<TunnelFault>),
    /// In what it says of the agent.
    #[error("{0}")]
    Agent(String),
    #[error("cannot read the token file {}: {error}. {}", path.display(), token_hint(error))]
    TokenFile { path: PathBuf, error: io::Error },
    #[error("the token in {0}: {1}. `uniroute login` asks for one and stores it")]
    Token(String, TokenError),
    #[error(
        "no token. `uniroute login` asks for one and stores it; or give one by UNIROUTE_TOKEN, or by --token-file FILE (`-` reads standard input). `uniroute-edge dev` prints where its token is"
    )]
    NoToken,
    #[error("which edge? Say --server URL, such as --server https://tunnels.example.com")]
    NoServer,
    #[error("{0}")]
    Import(String),
    #[error("no answer can be read: {0}")]
    Ask(io::Error),
    #[error("given up: nothing is stored")]
    GivenUp,
    #[error("no tunnel {name:?} in {file}; there are: {known}")]
    NoTunnel { name: String, file: String, known: String },
    #[error("{0} has no tunnels: add [tunnels.NAME] with upstream = \"3000\"")]
    NoTunnels(String),
    #[error("which tunnels? Name them, or say --all. {file} has: {known}")]
    WhichTunnels { file: String, known: String },
}

impl SettingsError {
    /// 2 for what the command line says or does not say, 6 for a name that can't be had, 3 for what
    /// is in files.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Flags(faults) if faults.iter().any(|fault| fault.key == "name") => 6,
            Self::Flags(faults) if faults.iter().all(|fault| fault.unreadable) => 3,
            Self::Flags(_)
            | Self::Agent(_)
            | Self::NoToken
            | Self::NoServer
            | Self::WhichTunnels { .. } => 2,
            // As a shell says it of what Ctrl-C has ended.
            Self::GivenUp => 130,
            _ => 3,
        }
    }
}

/// A fault of each line.
fn flags(faults: &[TunnelFault]) -> String {
    let line = |fault: &TunnelFault| match fault.key.as_str() {
        "upstream" => fault.what.clone(),
        key => {
            let flag = key.strip_prefix("limits.").unwrap_or(key).replace(['_', '.'], "-");
            format!("--{flag}: {}", fault.what)
        }
    };
    faults.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// With what to do where there is no such file.
fn with_hint(error: &ConfigError) -> String {
    let hint = match error {
        ConfigError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            ". `uniroute config init` writes a sample; --config FILE names another file"
        }
        _ => "",
    };
    format!("{error}{hint}")
}

fn token_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "Its owner is another user, or its mode keeps you out: look with `ls -l`"
        }
        io::ErrorKind::NotFound => "`uniroute login` asks for a token and stores it",
        _ => "It has to be a file with the token in its first line",
    }
}

impl File {
    /// Reads a file and checks each value for itself.
    pub(crate) fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { file: path.to_owned(), source })?;
        let file = Self::parse_at(&text, path)?;
        match file.agent.exposed(path) {
            Some(what) => Err(file.wrong([("agent.proxy".to_owned(), what)])),
            None => Ok(file),
        }
    }

    /// The same for a text that is to stand at `path`.
    pub(crate) fn parse_at(text: &str, path: &Path) -> Result<Self, SettingsError> {
        let mut file = Self::parse(text, &path.display().to_string())?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            file.rebase(folder);
        }
        Ok(file)
    }

    /// The same for any text; its paths stay as they are.
    pub(crate) fn parse(text: &str, name: &str) -> Result<Self, SettingsError> {
        let mut file: Self = config_file::parse(text, name).map_err(moved)?;
        file.source = Source { name: name.to_owned(), text: text.to_owned() };
        Ok(file)
    }

    fn rebase(&mut self, folder: &Path) {
        self.agent.rebase(folder);
        self.tunnels.values_mut().for_each(|tunnel| tunnel.rebase(folder));
    }

    /// The file at the usual place, if there is one.
    pub(crate) fn load_default() -> Result<Self, SettingsError> {
        let path = default_path();
        if path.exists() { Self::load(&path) } else { Ok(Self::default()) }
    }

    /// Every fault of the agent's section.
    pub(crate) fn check_agent(&self) -> Result<(), SettingsError> {
        let faults: Vec<_> = self.agent_faults().collect();
        if faults.is_empty() { Ok(()) } else { Err(self.wrong(faults)) }
    }

    fn agent_faults(&self) -> impl Iterator<Item = (String, String)> {
        self.agent.faults().into_iter().map(|(key, what)| (format!("agent.{key}"), what))
    }

    /// Every fault that shows without connecting.
    pub(crate) fn check(&self) -> Result<(), SettingsError> {
        let hashes = Hashes::none();
        let of_agent = self.agent_faults();
        let tunnels = self.tunnels.iter().map(|(key, tunnel)| tunnel.settings(key, &hashes));
        let of_tunnels = tunnels.filter_map(Result::err).flatten().map(place);
        let faults: Vec<_> = of_agent.chain(of_tunnels).collect();
        if faults.is_empty() { Ok(()) } else { Err(self.wrong(faults)) }
    }

    /// Faults with their places, from the top of the file to its end.
    fn wrong(&self, faults: impl IntoIterator<Item = (String, String)>) -> SettingsError {
        let Source { name, text } = &self.source;
        let fault =
            |(path, what): (String, String)| config_file::fault_at(text, name, &path, &what);
        let mut faults: Vec<_> = faults.into_iter().map(fault).collect();
        faults.sort_by_key(|fault| (fault.line, fault.column));
        SettingsError::File(ConfigError::Invalid(faults))
    }

    /// The settings of a tunnel of this file.
    pub(crate) fn settings(
        &self,
        key: &str,
        hashes: &Hashes,
    ) -> Option<Result<TunnelSettings, SettingsError>> {
        let settings = self.tunnels.get(key)?.settings(key, hashes);
        Some(settings.map_err(|faults| self.wrong(faults.into_iter().map(place))))
    }
}

/// Where a tunnel's fault is.
fn place(fault: TunnelFault) -> (String, String) {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let TunnelFault { tunnel, key, what, .. } = fault;
    match !tunnel.is_empty() && tunnel.chars().all(bare) {
        true => (format!("tunnels.{tunnel}.{key}"), what),
        false => (format!("tunnels.{tunnel:?}.{key}"), what),
    }
}

/// A key that was at the top is told its new place.
fn moved(error: ConfigError) -> ConfigError {
    let ConfigError::Invalid(mut faults) = error else { return error };
    let unknown = |fault: &&mut Fault| {
        MOVED.contains(&fault.path.as_str()) && fault.what.starts_with("unknown key")
    };
    for fault in faults.iter_mut().filter(unknown) {
        fault.what = format!("{} belongs into the section [agent]: move it there", fault.path);
        (fault.nearest, fault.valid) = (None, Vec::new());
    }
    ConfigError::Invalid(faults)
}

/// Tunnels of a config file, to be read again whenever it changes.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) path: PathBuf,
    /// By the word in `[tunnels.NAME]`.
    pub(crate) names: Vec<String>,
    pub(crate) all: bool,
    /// An unchanged password has the same hash each time, so that an unchanged tunnel shows.
    hashes: Hashes,
}

impl Selection {
    pub(crate) fn new(path: PathBuf, names: Vec<String>, all: bool) -> Self {
        Self { path, names, all, hashes: Hashes::default() }
    }

    /// What the file says now.
    ///
    /// # Errors
    /// Every fault of the file, or a name that it does not have (any more).
    pub(crate) fn load(&self) -> Result<(File, Vec<TunnelSettings>), SettingsError> {
        let (file, tunnels) = self.load_any()?;
        match tunnels.is_empty() {
            true => Err(SettingsError::NoTunnels(self.path.display().to_string())),
            false => Ok((file, tunnels)),
        }
    }

    /// The same for an agent that runs: of all tunnels there may be none for a while.
    ///
    /// # Errors
    /// As [`Selection::load`].
    pub(crate) fn load_any(&self) -> Result<(File, Vec<TunnelSettings>), SettingsError> {
        let file = File::load(&self.path)?;
        file.check()?;
        let tunnels = self.tunnels(&file)?;
        let users = tunnels.iter().filter_map(|tunnel| tunnel.policy.basic_auth.as_ref());
        let used = users.flat_map(|auth| auth.users.iter().map(|user| user.hash.as_str()));
        self.hashes.keep(&used.collect::<HashSet<_>>());
        Ok((file, tunnels))
    }

    fn tunnels(&self, file: &File) -> Result<Vec<TunnelSettings>, SettingsError> {
        let name = self.path.display().to_string();
        let known = || file.tunnels.keys().cloned().collect::<Vec<_>>().join(", ");
        if file.tunnels.is_empty() && self.all {
            return Ok(Vec::new());
        }
        if file.tunnels.is_empty() {
            return Err(SettingsError::NoTunnels(name));
        }
        let mut names = match self.all {
            true => file.tunnels.keys().cloned().collect(),
            false => self.names.clone(),
        };
        if names.is_empty() {
            return Err(SettingsError::WhichTunnels { file: name, known: known() });
        }
        names.sort_unstable();
        names.dedup();
        let missing = |wanted: &String| SettingsError::NoTunnel {
            name: wanted.clone(),
            file: name.clone(),
            known: known(),
        };
        let one = |wanted: &String| {
            file.settings(wanted, &self.hashes).unwrap_or_else(|| Err(missing(wanted)))
        };
        names.iter().map(one).collect()
    }
}

/// The token: from the environment, from the file of the flag, or from the config file's.
pub(crate) fn token(file: Option<&Path>) -> Result<Token, SettingsError> {
    if let Some(token) = variable(TOKEN) {
        let parsed = Token::parse(token.to_string_lossy().trim());
        return parsed.map_err(|error| SettingsError::Token("UNIROUTE_TOKEN".into(), error));
    }
    let path = file.ok_or(SettingsError::NoToken)?;
    let text =
        read(path).map_err(|error| SettingsError::TokenFile { path: path.to_owned(), error })?;
    // The edge's own file may hold several, and comments: the first one is ours.
    let shown = match path == Path::new("-") {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    };
    Token::first(&text).map_err(|error| SettingsError::Token(shown, error))
}

fn read(path: &Path) -> io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        return io::stdin().read_to_string(&mut text).map(|_| text);
    }
    fs::read_to_string(path)
}

/// Writes a file that only its owner may read, all of it or nothing; its folder is made too.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    write(path, text, None)
}

/// The same for a file that keeps the rights that it has, if it is there.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    write(path, text, fs::metadata(path).ok().map(|file| file.permissions()))
}

fn write(path: &Path, text: &str, rights: Option<fs::Permissions>) -> io::Result<()> {
    // A link stays one, and what it leads to is written.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    make_folder(folder)?;
    // Such a file is its owner's alone from the beginning.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    if let Some(rights) = rights {
        file.as_file().set_permissions(rights)?;
    }
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// For this user only, if it is not there.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// A variable of the environment. One that is empty counts as not set, as files of variables and
/// compose files have it.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Where the config file is when nobody says otherwise.
pub(crate) fn default_path() -> PathBuf {
    folder(&CONFIG).join("uniroute.toml")
}

/// Where the agent keeps what outlives it.
pub(crate) fn state_dir(said: Option<&Path>) -> PathBuf {
    said.map_or_else(|| folder(&STATE), Path::to_owned)
}

/// A folder of the user's: below what a variable names, or in the home folder.
struct Place {
    variable: &'static str,
    in_home: &'static str,
    ours: &'static str,
}

const CONFIG: Place = match cfg!(windows) {
    true => Place { variable: "APPDATA", in_home: "AppData/Roaming", ours: "uniroute" },
    false => Place { variable: "XDG_CONFIG_HOME", in_home: ".config", ours: "uniroute" },
};
/// The machine's own: Windows carries what is in `APPDATA` from one machine to the other.
const STATE: Place = match cfg!(windows) {
    true => Place { variable: "LOCALAPPDATA", in_home: "AppData/Local", ours: "uniroute/state" },
    false => Place { variable: "XDG_STATE_HOME", in_home: ".local/state", ours: "uniroute" },
};

fn folder(place: &Place) -> PathBuf {
    let in_home = || home().map(|home| home.join(place.in_home));
    let said = variable(place.variable).map(PathBuf::from);
    let folder = said.or_else(in_home).unwrap_or_else(std::env::temp_dir);
    folder.join(Path::new(place.ours).iter().collect::<PathBuf>())
}

/// This user's folder.
pub(crate) fn home() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| !home.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<File, SettingsError> {
        File::parse(&format!("version = 1\n{text}"), "uniroute.toml")
    }

    /// Everything that is wrong with a file.
    fn wrong(text: &str) -> String {
        file(text).and_then(|file| file.check()).unwrap_err().to_string()
    }

    #[test]
    fn the_sample_is_valid() {
        let file = File::parse(SAMPLE, "sample").unwrap();
        file.check().unwrap();
        assert_eq!(file.tunnels.len(), 6);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_the_nearest_one() {
        let error = file("[tunnels.web]\nupstrem = \"3000\"\n").unwrap_err().to_string();
        for part in ["uniroute.toml:3:", "upstrem", "\"upstream\""] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_key_that_has_moved_is_told_where_to() {
        let error = wrong("server = \"http://a\"\nlanes = 3\n[tunnels.web]\nupstrem = \"3000\"");
        for part in [
            "uniroute.toml:2:1: server belongs into the section [agent]",
            "uniroute.toml:3:1: lanes belongs",
            "uniroute.toml:5:",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn every_fault_is_named_with_its_place() {
        let error = wrong(
            "[agent]\nsessions = 9\nclient_key = \"k\"\n[tunnels.a]\nupstream = \"x\"\nname = \"a_b\"\n[tunnels.b]\nkind = \"udp\"\nupstream = [\"1\", \"2\"]\nidle_timeout = 0\n[tunnels.b.hold]\nlocal = \"5m\"",
        );
        for part in [
            "uniroute.toml:3:12: agent.sessions: ",
            "uniroute.toml:4:14: agent.client_key: ",
            "uniroute.toml:6:12: tunnels.a.upstream: ",
            "uniroute.toml:7:8: tunnels.a.name: ",
            "uniroute.toml:10:12: tunnels.b.upstream: udp tunnels have one",
            "uniroute.toml:11:16: tunnels.b.idle_timeout: ",
            "uniroute.toml:13:9: tunnels.b.hold.local: ",
        ] {
            assert!(error.contains(part), "{part} in\n{error}");
        }
    }

    #[test]
    fn tunnels_are_selected_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("uniroute.toml");
        let text = "version = 1\n[tunnels.a]\nupstream = \"1\"\n[tunnels.b]\nupstream = \"2\"\nname = \"bee\"";
        fs::write(&path, text).unwrap();
        let select = |names: &[&str], all| {
            let names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
            Selection::new(path.clone(), names, all).load().map(|(_, tunnels)| tunnels)
        };
        assert_eq!(select(&["b", "b"], false).unwrap()[0].name.as_deref(), Some("bee"));
        assert_eq!(select(&[], true).unwrap().len(), 2);
        assert!(select(&[], false).unwrap_err().to_string().contains("a, b"));
        assert!(select(&["c"], false).unwrap_err().to_string().contains("a, b"));

        // An agent that runs all of them goes on without any.
        fs::write(&path, "version = 1\n").unwrap();
        let all = Selection::new(path.clone(), Vec::new(), true);
        assert!(all.load_any().unwrap().1.is_empty());
        assert!(all.load().unwrap_err().to_string().contains("has no tunnels"));
        assert!(Selection::new(path, vec!["a".to_owned()], false).load_any().is_err());
    }

    #[test]
    fn what_is_unchanged_is_the_same_after_a_reload() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("uniroute.toml");
        let text = |port, password| {
            format!(
                "version = 1\n[tunnels.a]\nupstream = \"1\"\nbasic_auth = [\"ann:{password}\"]\n[tunnels.b]\nupstream = \"{port}\""
            )
        };
        let selection = Selection::new(path.clone(), Vec::new(), true);
        let load = |port, password| {
            fs::write(&path, text(port, password)).unwrap();
            let (_, tunnels) = selection.load().unwrap();
            let shown = |tunnel: &TunnelSettings| (format!("{tunnel:?}"), tunnel.policy.clone());
            tunnels.iter().map(shown).collect::<Vec<_>>()
        };
        let first = load(2, "one");
        let second = load(3, "one");
        assert_eq!(first[0], second[0]);
        assert_ne!(first[1], second[1]);
        assert_ne!(load(3, "two")[0], second[0]);
        // Forgotten meanwhile, so it is hashed anew.
        assert_ne!(load(3, "one")[0], second[0]);
        // A fault changes nothing, and is told.
        fs::write(&path, "version = 1\n[tunnels.a]\nupstream = \"x\"").unwrap();
        assert!(selection.load().unwrap_err().to_string().contains(":3:12: tunnels.a.upstream"));
    }

    #[test]
    fn relative_paths_begin_at_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("uniroute.toml");
        let text = "version = 1\n[agent]\ntoken_file = \"token\"\nserver_ca = \"/ca.pem\"\n[tunnels.a]\nupstream = \"file:./dist\"\nerror_page = \"error.html\"\n[[tunnels.a.routes]]\npath = \"/x\"\nupstream = \"unix:app.sock\"\n[tunnels.b]\nkind = \"tcp\"\nupstream = \"unix:db.sock\"";
        fs::write(&path, text).unwrap();
        fs::write(folder.path().join("error.html"), "<p>oh").unwrap();
        let (file, tunnels) = Selection::new(path, Vec::new(), true).load().unwrap();
        assert_eq!(file.agent.token_file.unwrap(), folder.path().join("token"));
        assert_eq!(file.agent.server_ca.unwrap(), Path::new("/ca.pem"));
        let shown = |name: &str, rest: &str| format!("{name}:{}{rest}", folder.path().display());
        assert_eq!(tunnels[0].target.to_string(), shown("file", "/./dist"));
        assert_eq!(tunnels[0].routes[0].to_string(), shown("unix", "/app.sock"));
        assert_eq!(&tunnels[0].policy.error_page[..], b"<p>oh");
        assert_eq!(tunnels[1].target.to_string(), shown("unix", "/db.sock"));
    }

    #[test]
    fn urls_give_name_and_port() {
        let settings = |text: &str| {
            let file = file(&format!("[tunnels.t]\nupstream = \"1\"\n{text}")).unwrap();
            file.check().unwrap();
            file.settings("t", &Hashes::none()).unwrap().unwrap()
        };
        let web = settings("url = \"https://demo.tunnels.example.com\"");
        assert_eq!((web.name.as_deref(), web.port), (Some("demo"), None));
        let same = settings("url = \"https://demo.tunnels.example.com/\"\nname = \"Demo\"");
        assert_eq!(same.name.as_deref(), Some("Demo"));
        let tcp = settings("url = \"tcp://tunnels.example.com:20432\"");
        assert_eq!((tcp.kind.as_str(), tcp.name, tcp.port), ("tcp", None, Some(20_432)));
        let tls = settings("url = \"tls://demo.example.com:443\"");
        assert_eq!((tls.kind.as_str(), tls.name.as_deref()), ("tls", Some("demo")));
    }

    #[test]
    fn health_and_hold_have_their_defaults() {
        let text = "[tunnels.t]\nupstream = [\"1\", \"2\"]\ninspect = false\n[tunnels.t.health]\npath = \"/ready\"\ninterval = \"2s\"\n[tunnels.t.hold]\nlocal = 10";
        let t = file(text).unwrap().settings("t", &Hashes::none()).unwrap().unwrap();
        let probe = uniroute_agent::HealthProbe::Http { path: "/ready".to_owned(), status: None };
        assert_eq!(t.health.probe, Some(probe));
        assert_eq!((t.health.interval.as_secs(), t.health.timeout.as_secs()), (2, 5));
        assert_eq!((t.health.fall, t.health.rise), (3, 1));
        assert_eq!((t.hold_local.as_secs(), t.inspect, t.further.len()), (10, false, 1));
        assert_eq!((t.hold_reconnect, t.limits), (None, uniroute_agent::TunnelLimits::default()));
    }

    #[test]
    fn limits_and_the_edges_hold_are_the_tunnels_own() {
        let settings = |text: &str| {
            let file = file(&format!("[tunnels.t]\nupstream = \"1\"\n{text}")).unwrap();
            file.settings("t", &Hashes::none()).unwrap().unwrap()
        };
        let t =
            settings("limits = { requests_per_second = 50, in_flight = 8 }\nhold.reconnect = 4");
        assert_eq!((t.limits.requests_per_second, t.limits.in_flight), (Some(50), Some(8)));
        assert_eq!(t.hold_reconnect.unwrap().as_secs(), 4);
        for off in ["\"off\"", "0"] {
            let t = settings(&format!("hold.reconnect = {off}"));
            assert!(t.hold_reconnect.unwrap().is_zero());
        }
        let error = wrong(
            "[tunnels.t]\nupstream = \"1\"\n[tunnels.t.hold]\nreconnect = \"10m\"\n[tunnels.t.limits]\nin_flight = 0\nrequests_per_second = 0",
        );
        for part in [
            "uniroute.toml:5:13: tunnels.t.hold.reconnect: no edge lets a request wait longer",
            "uniroute.toml:7:13: tunnels.t.limits.in_flight: 0 would let nobody in",
            "uniroute.toml:8:23: tunnels.t.limits.requests_per_second: 0 would",
        ] {
            assert!(error.contains(part), "{part} in\n{error}");
        }
        let error = wrong("[tunnels.t]\nupstream = \"1\"\nlimits.in_flght = 1");
        assert!(error.contains("in_flght") && error.contains("in_flight"), "{error}");
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        for (line, part) in [
            ("upstream = \"x\"", "port is missing"),
            ("upstream = \"1\"\nname = \"a_b\"", "a_b"),
            ("upstream = \"1\"\nconnect_timeout = -1.0", "connect_timeout"),
            ("upstream = \"1\"\nport = 20000", "web.port: it is not for http"),
            ("kind = \"tcp\"\nupstream = \"1\"\nresponse_timeout = 1.0", "not for tcp"),
            ("kind = \"udp\"\nupstream = \"1\"\nproxy_protocol = \"v1\"", "not for udp"),
            ("kind = \"udp\"\nupstream = \"1\"\nidle_timeout = 0.0", "stay for ever"),
            ("kind = \"tcp\"\nupstream = \"1\"\nproxy_protocol = \"v3\"", "v1 or v2"),
            ("kind = \"tls\"\nupstream = \"https://a\"", "another kind"),
            ("upstream = []", "where does it lead to"),
            ("upstream = [\"1\", \"file:x\"]", "a folder is no server"),
            ("upstream = \"1\"\nurl = \"demo\"", "the scheme is missing"),
            ("upstream = \"1\"\nurl = \"ftp://demo\"", "none of http"),
            ("upstream = \"1\"\nurl = \"https://a.test/x\"", "means nothing here"),
            ("upstream = \"1\"\nurl = \"https://a.test\"\nname = \"b\"", "and `url` says a"),
            ("upstream = \"1\"\nkind = \"udp\"\nurl = \"https://a.test\"", "another kind"),
            ("upstream = \"1\"\nurl = \"tcp://a.test\"", "the port is missing"),
            ("upstream = \"1\"\nurl = \"tcp://a.test:1\"\nport = 2", "and `url` says 1"),
            ("upstream = \"1\"\nhealth.probe = \"tcp\"\nhealth.path = \"/\"", "it is for probe"),
            ("upstream = \"1\"\nhealth.path = \"x\"", "begins with /"),
            ("upstream = \"1\"\nhealth.fall = 0", "from 1 to 100"),
            ("upstream = \"1\"\nhealth.interval = 0", "a tenth of a second"),
            ("kind = \"udp\"\nupstream = \"1\"\nhold.local = 1", "not for udp"),
            ("kind = \"udp\"\nupstream = \"1\"\nhold.reconnect = 1", "not for udp"),
            ("upstream = \"1\"\nhold.reconnect = \"of\"", "no length of time"),
            ("upstream = \"1\"\nlimits.in_flight = -1", "in_flight"),
            ("kind = \"tcp\"\nupstream = \"1\"\nallow = [\"10.0.0.0/8\"]", "not for tcp"),
            ("upstream = \"1\"\nbasic_auth_env = \"NO_SUCH_VARIABLE\"", "is not set"),
            (
                "upstream = \"1\"\ninsecure_upstream = true\nupstream_ca = \"ca.pem\"",
                "exclude each other",
            ),
        ] {
            let error = wrong(&format!("[tunnels.web]\n{line}"));
            assert!(error.contains(part) && error.contains("web"), "{error}");
        }
    }
}
