//! What people write about a tunnel's policy: who may come in, which path goes where, what is
//! changed on the way. Values are checked as they are read, so that a fault has its place in the
//! file; `docs/policy.md` explains each key.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{self, Unexpected, Visitor},
};
use uniroute_agent::upstream::{Place, Target, TargetError};
use uniroute_proto::v1;
use uniroute_shared::{
    network::Network,
    policy::{MAX_ERROR_PAGE, basic, fields, password, routes},
};

use super::{
    FileTunnel,
    tunnel::{Faults, Hashes},
    values::{Size, Span, from_folder},
};

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

/// What is done with the fields of a head.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileHeaders {
    /// In place of what is there.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    set: BTreeMap<FieldName, FieldValue>,
    /// Beside what is there.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    add: BTreeMap<FieldName, FieldValue>,
    /// Before anything else.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
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

/// Paths that go to another local server.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileRoute {
    /// What it matches: this path and what is below it.
    #[schemars(with = "String")]
    path: RoutePath,
    /// Where it leads.
    #[schemars(with = "String")]
    upstream: RouteTarget,
    /// Only this very path.
    #[serde(default)]
    exact: bool,
    /// Without `path`.
    #[serde(default)]
    strip: bool,
    /// With this in front.
    #[schemars(with = "Option<String>")]
    prefix: Option<RoutePath>,
}

impl FileRoute {
    /// A path of the file in `folder` begins there.
    pub(super) fn rebase(&mut self, folder: &Path) {
        if let Place::Files(path) | Place::Unix(path) = &mut self.upstream.0.place {
            *path = from_folder(path, folder);
        }
    }
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

    fn hashed(&self, tunnel: &str, hashes: &Hashes) -> v1::BasicUser {
        let hash = match password::is_hash(&self.secret) {
            true => self.secret.clone(),
            false => hashes.hash(tunnel, &self.name, &self.secret),
        };
        v1::BasicUser { name: self.name.clone(), hash }
    }
}

impl<'de> Deserialize<'de> for User {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, USER, Self::parse)
    }
}

/// Who signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sender {
    Github,
    Stripe,
    Slack,
    Hmac,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Hash {
    #[default]
    Sha256,
    Sha1,
    Sha512,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Hex,
    Base64,
}

/// `[tunnels.NAME.webhook]`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileWebhook {
    /// Who signs.
    kind: Sender,
    /// One secret a line.
    secret_file: Option<PathBuf>,
    /// An environment variable with the same.
    secret_env: Option<String>,
    /// Longest body.
    max_body: Option<Size>,
    /// The field with the signature.
    #[schemars(with = "Option<String>")]
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
    #[schemars(with = "Option<String>")]
    timestamp_header: Option<FieldName>,
    /// How far it may be off.
    tolerance: Option<Span>,
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

    /// A path of the file in `folder` begins there.
    pub(super) fn rebase(&mut self, folder: &Path) {
        if let Some(path) = &mut self.secret_file {
            *path = from_folder(path, folder);
        }
    }

    fn webhook(&self, faults: &mut Faults) -> Option<v1::Webhook> {
        let keys = ["webhook.secret_file", "webhook.secret_env"];
        let text = secrets(keys, self.secret_file.as_deref(), self.secret_env.as_deref(), faults)?;
        let max_body = self.max_body.map_or(0, |Size(bytes)| bytes);
        let max_body = u32::try_from(max_body);
        let max_body = faults.take("webhook.max_body", max_body.map_err(|_| "4 GiB at most"))?;
        let tolerance = self.tolerance.map_or(0, |Span(length)| length.as_secs());
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
        Some(v1::Webhook {
            kind: kind.into(),
            secrets: lines.map(|line| line.to_owned().into()).collect(),
            max_body,
            header: name(&self.header),
            hash: hash.into(),
            base64: self.encoding == Encoding::Base64,
            prefix: self.prefix.clone().unwrap_or_default(),
            timestamp_header: name(&self.timestamp_header),
            tolerance_s: u32::try_from(tolerance).unwrap_or(u32::MAX),
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
        hashes: &Hashes,
        faults: &mut Faults,
    ) -> (v1::HttpPolicy, Vec<Target>) {
        let text = |networks: &[Network]| networks.iter().map(Network::to_string).collect();
        let mut policy = v1::HttpPolicy {
            request_headers: self.request_headers.changes(),
            response_headers: self.response_headers.changes(),
            routes: self.routes.iter().map(route).collect(),
            redirect_https: self.redirect_https,
            basic_auth: self.basic_auth(key, hashes, faults),
            allow: text(&self.allow),
            deny: text(&self.deny),
            webhook: self.webhook.as_ref().and_then(|webhook| webhook.webhook(faults)),
            max_body: self.max_body.map_or(0, |Size(bytes)| bytes),
            idle_timeout_ms: milliseconds(self.idle_timeout),
            total_timeout_ms: milliseconds(self.total_timeout),
            compression: self.compression,
            error_page: self.error_page(faults).into(),
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
        (policy, self.routes.iter().map(|route| route.upstream.0.clone()).collect())
    }

    fn basic_auth(&self, key: &str, hashes: &Hashes, faults: &mut Faults) -> Option<v1::BasicAuth> {
        let mut users = self.basic_auth.clone();
        let (file, env) = (self.basic_auth_file.as_deref(), self.basic_auth_env.as_deref());
        if file.is_some() || env.is_some() {
            let keys = ["basic_auth_file", "basic_auth_env"];
            let place = if file.is_some() { keys[0] } else { keys[1] };
            let text = secrets(keys, file, env, faults)?;
            let more = faults.take(place, User::all(&text))?;
            if more.is_empty() && users.is_empty() {
                faults.say(place, "no user: nobody could come in");
            }
            users.extend(more);
        }
        if users.len() > basic::MAX_USERS {
            let what = format!("{} users, the limit is {}", users.len(), basic::MAX_USERS);
            faults.say("basic_auth", what);
            users.truncate(basic::MAX_USERS);
        }
        let users: Vec<_> = users.iter().map(|user| user.hashed(key, hashes)).collect();
        let forward = self.basic_auth_forward;
        (!users.is_empty()).then_some(v1::BasicAuth { users, forward })
    }

    fn error_page(&self, faults: &mut Faults) -> Vec<u8> {
        let Some(path) = &self.error_page else { return Vec::new() };
        let page = read_bounded(path, MAX_ERROR_PAGE as u64);
        page.unwrap_or_else(|error| {
            faults.cannot_read("error_page", unreadable(path, &error));
            Vec::new()
        })
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

fn milliseconds(limit: Option<Span>) -> u32 {
    limit.map_or(0, |Span(limit)| u32::try_from(limit.as_millis()).unwrap_or(u32::MAX))
}

/// Secrets of a file or of the environment; exactly one of both is given, by one of two keys.
fn secrets(
    keys: [&str; 2],
    file: Option<&Path>,
    variable: Option<&str>,
    faults: &mut Faults,
) -> Option<String> {
    match (file, variable) {
        (Some(path), None) => {
            let bytes = if path == Path::new("-") {
                super::read(path).map(String::into_bytes)
            } else {
                read_bounded(path, MAX_SECRETS_FILE)
            };
            let text = bytes.and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other));
            text.map_err(|error| faults.cannot_read(keys[0], unreadable(path, &error))).ok()
        }
        (None, Some(variable)) => std::env::var(variable)
            .map_err(|_| {
                let what = format!("the environment variable {variable} is not set");
                faults.cannot_read(keys[1], what);
            })
            .ok(),
        _ => {
            let what = "its secrets come from one file or one environment variable";
            faults.cannot_read(keys[0], what);
            None
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}

/// A file, if it is no longer than `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
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
