//! What people write about a tunnel's policy: who may come in, which path goes where, what is
//! changed on the way. Values are checked as they are read, so that a fault has its place in the
//! file; `docs/policy.md` explains each key.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{self, Unexpected, Visitor},
};
use uniroute_agent::upstream::{Target, TargetError};
use uniroute_proto::v1;
use uniroute_shared::{
    network::Network,
    policy::{MAX_ERROR_PAGE, basic, fields, password, routes},
};

use super::{FileTunnel, SettingsError};

/// Longest file with secrets or passwords, in bytes.
const MAX_SECRETS_FILE: u64 = 64 * 1024;

/// What [`User`] wants; it must do without the value, which is a secret.
const USER: &str = "USER:PASSWORD, or USER:HASH with an argon2id hash ($argon2id$…)";

/// Reads a text from inside of its deserializer, so that a fault in it has the text's own place.
struct Text<T> {
    expected: &'static str,
    parse: fn(&str) -> Result<T, String>,
}

fn read<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &'static str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    deserializer.deserialize_str(Text { expected, parse })
}

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(|what| match self.expected {
            // Where a secret may be in it, the reader of the file leaves out what is wrong.
            USER => E::invalid_type(Unexpected::Other("this"), &USER),
            _ => E::custom(what),
        })
    }
}

/// `host_header`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HostHeader {
    /// As the visitor sent it.
    Preserve,
    /// The local server's own.
    Rewrite,
    /// This.
    Literal(String),
}

impl std::str::FromStr for HostHeader {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "preserve" => Self::Preserve,
            "rewrite" => Self::Rewrite,
            host => Self::Literal(host.to_owned()),
        })
    }
}

impl<'de> Deserialize<'de> for HostHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, "preserve, rewrite or a host", |text| {
            text.parse().map_err(|never: std::convert::Infallible| match never {})
        })
    }
}

/// A name of a field that the tunnel may change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FieldName(String);

impl std::str::FromStr for FieldName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        fields::check_name(text.as_bytes()).map(|()| Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for FieldName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, "the name of a header field", str::parse)
    }
}

/// A field on the command line: `NAME: VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field(FieldName, FieldValue);

impl std::str::FromStr for Field {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').ok_or("write 'NAME: VALUE'")?;
        Ok(Self(name.trim().parse()?, FieldValue::parse(value.trim())?))
    }
}

impl Field {
    pub(crate) fn into_pair(self) -> (String, String) {
        (self.0.0, self.1.0)
    }
}

/// A value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldValue(String);

impl FieldValue {
    fn parse(text: &str) -> Result<Self, String> {
        fields::check_value(text.as_bytes()).map(|()| Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for FieldValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, "the value of a header field", Self::parse)
    }
}

/// `request_headers` and `response_headers`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileHeaders {
    /// In place of what is there.
    #[serde(default)]
    set: BTreeMap<FieldName, FieldValue>,
    /// Beside what is there.
    #[serde(default)]
    add: BTreeMap<FieldName, FieldValue>,
    /// Before anything else.
    #[serde(default)]
    remove: Vec<FieldName>,
}

impl FileHeaders {
    pub(crate) fn of_flags(set: Vec<Field>, remove: Vec<FieldName>) -> Self {
        let set = set.into_iter().map(|Field(name, value)| (name, value)).collect();
        Self { set, add: BTreeMap::new(), remove }
    }

    fn changes(&self) -> Option<v1::HeaderChanges> {
        let headers = |all: &BTreeMap<FieldName, FieldValue>| {
            let header = |(name, value): (&FieldName, &FieldValue)| v1::Header {
                name: name.0.clone().into(),
                value: value.0.clone().into(),
            };
            all.iter().map(header).collect::<Vec<_>>()
        };
        let changes = v1::HeaderChanges {
            remove: self.remove.iter().map(|name| name.0.clone()).collect(),
            set: headers(&self.set),
            add: headers(&self.add),
        };
        (changes != v1::HeaderChanges::default()).then_some(changes)
    }
}

/// A path in a route.
#[derive(Clone, Debug)]
struct RoutePath(String);

impl<'de> Deserialize<'de> for RoutePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, "a path", |text| {
            routes::check_path(text).map(|()| Self(text.to_owned()))
        })
    }
}

/// A local server in a route.
#[derive(Clone, Debug)]
struct RouteTarget(Target);

impl<'de> Deserialize<'de> for RouteTarget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, "a local server", |text| {
            text.parse().map(Self).map_err(|error: TargetError| error.to_string())
        })
    }
}

/// `[[tunnels.NAME.routes]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileRoute {
    /// What it matches.
    path: RoutePath,
    /// Where it leads.
    upstream: RouteTarget,
    /// Only this very path.
    #[serde(default)]
    exact: bool,
    /// Without `path`.
    #[serde(default)]
    strip: bool,
    /// With this in front.
    prefix: Option<RoutePath>,
}

/// A name and a password, or its hash. It prints without the latter.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct User {
    name: String,
    secret: String,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

impl User {
    fn parse(text: &str) -> Result<Self, String> {
        let (name, secret) = text.split_once(':').ok_or("write USER:PASSWORD")?;
        basic::check_name(name)?;
        if secret.is_empty() || secret.len() > basic::MAX_LENGTH {
            return Err("a password has 1 to 256 bytes".to_owned());
        }
        if password::is_hash(secret) {
            password::check_hash(secret).map_err(|error| error.to_string())?;
        } else if ["$2a$", "$2b$", "$2y$", "$apr1$", "{SHA}"].iter().any(|p| secret.starts_with(p))
        {
            return Err("hashes of this kind are not known here; write the password, or its \
                        argon2id hash"
                .to_owned());
        }
        Ok(Self { name: name.to_owned(), secret: secret.to_owned() })
    }

    fn all(text: &str) -> Result<Vec<Self>, String> {
        let numbered = text.lines().enumerate();
        let lines = numbered.map(|(index, line)| (index + 1, line.trim()));
        let users = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        users
            .map(|(number, line)| {
                Self::parse(line).map_err(|what| format!("line {number}: {what}"))
            })
            .collect()
    }

    fn hashed(&self, hash: Hasher) -> v1::BasicUser {
        let is_hash = password::is_hash(&self.secret);
        let hash = if is_hash { self.secret.clone() } else { hash(self.secret.as_bytes()) };
        v1::BasicUser { name: self.name.clone(), hash }
    }
}

impl<'de> Deserialize<'de> for User {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, USER, Self::parse)
    }
}

/// How a password becomes its hash: it takes long, and who only looks for faults need not wait.
pub(super) type Hasher = fn(&[u8]) -> String;

/// Takes the place of a hash where nobody will be let in by it.
pub(super) fn no_hash(_: &[u8]) -> String {
    "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQxMjM0NTY$mCbIFKx4QnDBBBTJbOa8rRRQLCO+RXq0e1NmbKDzjXs"
        .to_owned()
}

/// Who signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sender {
    Github,
    Stripe,
    Slack,
    Hmac,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Hash {
    #[default]
    Sha256,
    Sha1,
    Sha512,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Hex,
    Base64,
}

/// `[tunnels.NAME.webhook]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileWebhook {
    /// Who signs.
    kind: Sender,
    /// One secret a line.
    secret_file: Option<PathBuf>,
    /// An environment variable with the same.
    secret_env: Option<String>,
    /// Longest body in bytes.
    max_body: Option<u32>,
    /// The field with the signature.
    header: Option<FieldName>,
    /// Of the HMAC.
    #[serde(default)]
    algorithm: Hash,
    /// Of the signature.
    #[serde(default)]
    encoding: Encoding,
    /// In front of the signature.
    prefix: Option<String>,
    /// The field with the time of signing.
    timestamp_header: Option<FieldName>,
    /// Seconds that it may be off.
    tolerance: Option<u32>,
}

impl FileWebhook {
    fn of(kind: Sender, secret_file: PathBuf) -> Self {
        Self {
            kind,
            secret_file: Some(secret_file),
            secret_env: None,
            max_body: None,
            header: None,
            algorithm: Hash::default(),
            encoding: Encoding::default(),
            prefix: None,
            timestamp_header: None,
            tolerance: None,
        }
    }

    fn webhook(&self, key: &str) -> Result<v1::Webhook, SettingsError> {
        let text =
            secrets(key, "webhook", self.secret_file.as_deref(), self.secret_env.as_deref())?;
        let kind = match self.kind {
            Sender::Github => v1::WebhookKind::Github,
            Sender::Stripe => v1::WebhookKind::Stripe,
            Sender::Slack => v1::WebhookKind::Slack,
            Sender::Hmac => v1::WebhookKind::Hmac,
        };
        let hash = match self.algorithm {
            Hash::Sha256 => v1::WebhookHash::Sha256,
            Hash::Sha1 => v1::WebhookHash::Sha1,
            Hash::Sha512 => v1::WebhookHash::Sha512,
        };
        let name =
            |name: &Option<FieldName>| name.as_ref().map_or_else(String::new, |n| n.0.clone());
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        Ok(v1::Webhook {
            kind: kind.into(),
            secrets: lines.map(|line| line.to_owned().into()).collect(),
            max_body: self.max_body.unwrap_or_default(),
            header: name(&self.header),
            hash: hash.into(),
            base64: self.encoding == Encoding::Base64,
            prefix: self.prefix.clone().unwrap_or_default(),
            timestamp_header: name(&self.timestamp_header),
            tolerance_s: self.tolerance.unwrap_or_default(),
        })
    }
}

/// On the command line: `KIND:FILE`.
impl std::str::FromStr for FileWebhook {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = "write github:FILE, stripe:FILE or slack:FILE; the file holds the secret";
        let (kind, file) =
            text.split_once(':').filter(|(_, file)| !file.is_empty()).ok_or(wrong)?;
        let kind = match kind {
            "github" => Sender::Github,
            "stripe" => Sender::Stripe,
            "slack" => Sender::Slack,
            _ => return Err(wrong.to_owned()),
        };
        Ok(Self::of(kind, file.into()))
    }
}

impl FileTunnel {
    /// The policy as the edge wants it, but for the local servers' own names; and the local server
    /// of each route.
    pub(super) fn policy(
        &self,
        key: &str,
        hash: Hasher,
    ) -> Result<(v1::HttpPolicy, Vec<Target>), SettingsError> {
        let text = |networks: &[Network]| networks.iter().map(Network::to_string).collect();
        let mut policy = v1::HttpPolicy {
            request_headers: self.request_headers.changes(),
            response_headers: self.response_headers.changes(),
            routes: self.routes.iter().map(route).collect(),
            redirect_https: self.redirect_https,
            basic_auth: self.basic_auth(key, hash)?,
            allow: text(&self.allow),
            deny: text(&self.deny),
            webhook: self.webhook.as_ref().map(|webhook| webhook.webhook(key)).transpose()?,
            max_body: self.max_body.unwrap_or_default(),
            idle_timeout_ms: milliseconds(key, "idle_timeout", self.idle_timeout)?,
            total_timeout_ms: milliseconds(key, "total_timeout", self.total_timeout)?,
            compression: self.compression,
            error_page: self.error_page(key)?.into(),
            ..v1::HttpPolicy::default()
        };
        match &self.host_header {
            None | Some(HostHeader::Preserve) => {}
            Some(HostHeader::Rewrite) => policy.set_host_mode(v1::HostMode::Rewrite),
            Some(HostHeader::Literal(host)) => {
                policy.set_host_mode(v1::HostMode::Literal);
                policy.host.clone_from(host);
            }
        }
        Ok((policy, self.routes.iter().map(|route| route.upstream.0.clone()).collect()))
    }

    fn basic_auth(&self, key: &str, hash: Hasher) -> Result<Option<v1::BasicAuth>, SettingsError> {
        let mut users = self.basic_auth.clone();
        let (file, env) = (self.basic_auth_file.as_deref(), self.basic_auth_env.as_deref());
        if file.is_some() || env.is_some() {
            let text = secrets(key, "basic_auth", file, env)?;
            let more =
                User::all(&text).map_err(|what| SettingsError::Users(key.to_owned(), what))?;
            if more.is_empty() && users.is_empty() {
                let what = "no user: nobody could come in".to_owned();
                return Err(SettingsError::Users(key.to_owned(), what));
            }
            users.extend(more);
        }
        if users.len() > basic::MAX_USERS {
            let what = format!("{} users, the limit is {}", users.len(), basic::MAX_USERS);
            return Err(SettingsError::Users(key.to_owned(), what));
        }
        let users: Vec<_> = users.iter().map(|user| user.hashed(hash)).collect();
        let forward = self.basic_auth_forward;
        Ok((!users.is_empty()).then_some(v1::BasicAuth { users, forward }))
    }

    fn error_page(&self, key: &str) -> Result<Vec<u8>, SettingsError> {
        let Some(path) = &self.error_page else { return Ok(Vec::new()) };
        read_bounded(path, MAX_ERROR_PAGE as u64)
            .map_err(|error| unreadable(key, "error_page", path, error))
    }
}

fn route(route: &FileRoute) -> v1::HttpRoute {
    v1::HttpRoute {
        path: route.path.0.clone(),
        exact: route.exact,
        strip: route.strip,
        prefix: route.prefix.as_ref().map_or_else(String::new, |prefix| prefix.0.clone()),
        local_origin: String::new(),
    }
}

fn milliseconds(key: &str, what: &'static str, value: Option<f64>) -> Result<u32, SettingsError> {
    let limit = super::seconds(key, what, value.unwrap_or_default())?;
    Ok(u32::try_from(limit.as_millis()).unwrap_or(u32::MAX))
}

/// Secrets of a file or of the environment; exactly one of both is given.
fn secrets(
    key: &str,
    what: &'static str,
    file: Option<&Path>,
    variable: Option<&str>,
) -> Result<String, SettingsError> {
    match (file, variable) {
        (Some(path), None) => {
            let bytes = if path == Path::new("-") {
                super::read(path).map(String::into_bytes)
            } else {
                read_bounded(path, MAX_SECRETS_FILE)
            };
            let text = bytes.and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other));
            text.map_err(|error| unreadable(key, what, path, error))
        }
        (None, Some(variable)) => std::env::var(variable)
            .map_err(|_| SettingsError::NoVariable(key.to_owned(), what, variable.to_owned())),
        _ => Err(SettingsError::WhichSecret(key.to_owned(), what)),
    }
}

fn unreadable(key: &str, what: &'static str, path: &Path, error: io::Error) -> SettingsError {
    SettingsError::PolicyFile { key: key.to_owned(), what, path: path.to_owned(), error }
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it is longer than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
