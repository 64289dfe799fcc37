//! What a request has to look like: checked against the same description that is served as
//! `openapi.json`, so that the two cannot differ. All faults are found at once.
//!
//! Only what our own description uses of JSON Schema is known; a test sees to it that it uses nothing
//! else.

use std::collections::HashMap;

use regex::Regex;
use serde_json::Value;
use utoipa::openapi::{
    Ref, RefOr, Schema,
    schema::{
        AdditionalProperties, KnownFormat, Object, ObjectBuilder, SchemaFormat, SchemaType, Type,
    },
};
use uuid::Uuid;

use crate::{
    auth::{Role, agent_tokens::TunnelKind},
    events::Kind,
    services::{Fault, statistics::Step},
    store::Timestamp,
};

/// Faults that are told of one request.
const MAX_FAULTS: usize = 50;
/// Characters that are told of an unknown name.
const MAX_NAME: usize = 64;

/// The description, and its patterns ready to use.
pub(super) struct Schemas {
    document: Value,
    patterns: HashMap<String, Regex>,
}

impl Schemas {
    /// Reads all patterns of the description.
    ///
    /// # Errors
    /// One that is no regular expression: a fault of ours.
    pub(super) fn new(document: Value) -> Result<Self, regex::Error> {
        let mut patterns = HashMap::new();
        gather(&document, &mut patterns)?;
        Ok(Self { document, patterns })
    }

    pub(super) fn document(&self) -> &Value {
        &self.document
    }

    /// Adds all faults of `value`, which is at the JSON pointer `at`.
    pub(super) fn check(&self, schema: &Value, value: &Value, at: &str, faults: &mut Vec<Fault>) {
        if faults.len() >= MAX_FAULTS {
            return;
        }
        if let Some(reference) = schema["$ref"].as_str() {
            let target = self.document.pointer(reference.trim_start_matches('#'));
            return self.check(target.unwrap_or(&Value::Null), value, at, faults);
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            return self.check_choices(choices, value, at, faults);
        }
        let mut fault = |what: String| faults.push(Fault::new(at, what));
        if !is_of_type(&schema["type"], value) {
            return fault(format!("has to be {}", type_names(&schema["type"])));
        }
        if let Some(words) = schema["enum"].as_array()
            && !words.contains(value)
        {
            let words: Vec<_> = words.iter().map(Value::to_string).collect();
            return fault(format!("has to be one of {}", words.join(", ")));
        }
        match value {
            Value::String(text) => self.check_text(schema, text, at, faults),
            Value::Number(number) => {
                let number = number.as_f64().unwrap_or(f64::NAN);
                let (least, most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
                if least.is_some_and(|least| number < least) {
                    fault(format!("has to be at least {}", schema["minimum"]));
                }
                if most.is_some_and(|most| number > most) {
                    fault(format!("has to be at most {}", schema["maximum"]));
                }
            }
            Value::Array(items) => {
                if schema["maxItems"].as_u64().is_some_and(|most| items.len() as u64 > most) {
                    return fault(format!("has more than {} items", schema["maxItems"]));
                }
                for (index, item) in items.iter().enumerate() {
                    self.check(&schema["items"], item, &format!("{at}/{index}"), faults);
                }
            }
            Value::Object(map) => self.check_object(schema, map, at, faults),
            Value::Null | Value::Bool(_) => {}
        }
    }

    /// One of the choices has to fit; if none does, the last one's faults are told: it is the one
    /// that is not `null`.
    fn check_choices(&self, choices: &[Value], value: &Value, at: &str, faults: &mut Vec<Fault>) {
        let mut last = Vec::new();
        for choice in choices {
            last.clear();
            self.check(choice, value, at, &mut last);
            if last.is_empty() {
                return;
            }
        }
        faults.append(&mut last);
    }

    fn check_text(&self, schema: &Value, text: &str, at: &str, faults: &mut Vec<Fault>) {
        let mut fault = |what: String| faults.push(Fault::new(at, what));
        let length = text.chars().count() as u64;
        if schema["minLength"].as_u64().is_some_and(|least| length < least) {
            return fault(format!("has fewer than {} characters", schema["minLength"]));
        }
        if schema["maxLength"].as_u64().is_some_and(|most| length > most) {
            return fault(format!("has more than {} characters", schema["maxLength"]));
        }
        let pattern = schema["pattern"].as_str().and_then(|pattern| self.patterns.get(pattern));
        if pattern.is_some_and(|pattern| !pattern.is_match(text)) {
            fault(format!("does not fit {}", schema["pattern"]));
        }
        let fits = match schema["format"].as_str() {
            Some("uuid") => uuid(text).is_some(),
            Some("date-time") => text.parse::<Timestamp>().is_ok(),
            _ => true,
        };
        if !fits {
            fault(format!("is no {}", schema["format"].as_str().unwrap_or_default()));
        }
    }

    fn check_object(
        &self,
        schema: &Value,
        map: &serde_json::Map<String, Value>,
        at: &str,
        faults: &mut Vec<Fault>,
    ) {
        let below = |name: &str| {
            let name: String = name.chars().take(MAX_NAME).collect();
            format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"))
        };
        if schema["maxProperties"].as_u64().is_some_and(|most| map.len() as u64 > most) {
            let what = format!("has more than {} members", schema["maxProperties"]);
            return faults.push(Fault::new(at, what));
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !map.contains_key(name) {
                faults.push(Fault::new(below(name), "is missing"));
            }
        }
        for (name, value) in map {
            if faults.len() >= MAX_FAULTS {
                return;
            }
            if !schema["propertyNames"].is_null() {
                let name_as_value = Value::String(name.clone());
                self.check(&schema["propertyNames"], &name_as_value, &below(name), faults);
            }
            match (schema["properties"].get(name), &schema["additionalProperties"]) {
                (Some(known), _) => self.check(known, value, &below(name), faults),
                (None, Value::Object(_)) => {
                    self.check(&schema["additionalProperties"], value, &below(name), faults);
                }
                (None, _) => faults.push(Fault::new(below(name), "is not known")),
            }
        }
    }
}

/// Reads a UUID in its usual form only.
pub(super) fn uuid(text: &str) -> Option<Uuid> {
    (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

fn gather(value: &Value, patterns: &mut HashMap<String, Regex>) -> Result<(), regex::Error> {
    match value {
        Value::Object(map) => {
            if let Some(pattern) = map.get("pattern").and_then(Value::as_str) {
                patterns.insert(pattern.to_owned(), Regex::new(pattern)?);
            }
            map.values().try_for_each(|value| gather(value, patterns))
        }
        Value::Array(items) => items.iter().try_for_each(|value| gather(value, patterns)),
        _ => Ok(()),
    }
}

fn types(schema_type: &Value) -> Vec<&str> {
    match schema_type {
        Value::String(one) => vec![one],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    }
}

fn is_of_type(schema_type: &Value, value: &Value) -> bool {
    types(schema_type).into_iter().any(|name| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        // As JSON Schema has it, 1.0 is one too; only what fits in 64 bits is read.
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    })
}

fn type_names(schema_type: &Value) -> String {
    let name = |name: &str| match name {
        "null" => "null".to_owned(),
        "array" | "integer" | "object" => format!("an {name}"),
        name => format!("a {name}"),
    };
    types(schema_type).into_iter().map(name).collect::<Vec<_>>().join(" or ")
}

/// Whether an integer is written in a query: digits only, so that there is one way.
fn integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// What a parameter's text stands for, by its schema.
pub(super) fn parameter(schema: &Value, text: &str) -> Value {
    let string = || Value::String(text.to_owned());
    match types(&schema["type"]).into_iter().find(|name| *name != "null") {
        Some("integer") => integer(text).map_or_else(string, Value::from),
        Some("boolean") => match text {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => string(),
        },
        _ => string(),
    }
}

fn text(least: usize, most: usize, pattern: &str) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(least))
        .max_length(Some(most))
        .pattern(Some(pattern))
        .build()
}

/// Anything without control characters, which have no business in names and confuse terminals.
const PLAIN: &str = "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$";

/// An e-mail address, as far as one can tell.
pub(super) fn email() -> Object {
    let label = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?";
    let pattern = format!("^[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{label}(\\.{label}){{0,8}}$");
    let mut email = text(3, 254, &pattern);
    email.examples = vec!["ann@example.com".into()];
    email
}

/// A password that is to be set.
pub(super) fn new_password() -> Object {
    let mut password = text(10, 128, PLAIN);
    password.format = Some(SchemaFormat::KnownFormat(KnownFormat::Password));
    password.write_only = Some(true);
    password
}

/// A password that is to be checked: what cannot be right is wrong, and no fault.
pub(super) fn old_password() -> Object {
    let mut password = text(1, 256, PLAIN);
    password.format = Some(SchemaFormat::KnownFormat(KnownFormat::Password));
    password.write_only = Some(true);
    password
}

/// A secret that was handed out before.
pub(super) fn secret() -> Object {
    let mut secret = text(1, 256, "^[!-~]+$");
    secret.write_only = Some(true);
    secret
}

/// A name for people.
pub(super) fn title() -> Object {
    text(0, 100, PLAIN)
}

/// A name of a tunnel: one label, without hyphens third and fourth.
pub(super) fn subdomain() -> Object {
    let edge = "[A-Za-z0-9]";
    let pattern = format!(
        "^({edge}|{edge}{{2}}|{edge}[A-Za-z0-9-]{edge}|\
         {edge}[A-Za-z0-9-]([A-Za-z0-9][A-Za-z0-9-]|-[A-Za-z0-9])[A-Za-z0-9-]{{0,58}}{edge}|\
         {edge}[A-Za-z0-9-][A-Za-z0-9-]{edge})$"
    );
    let mut name = text(1, 63, &pattern);
    name.examples = vec!["shop".into()];
    name
}

/// A part of a tunnel's name.
pub(super) fn name_part() -> Object {
    text(1, 63, "^[A-Za-z0-9-]+$")
}

/// Where the agent finds the local server; the edge never connects there.
pub(super) fn local_url() -> Object {
    let mut url = text(0, 255, PLAIN);
    url.examples = vec!["http://localhost:3000".into()];
    url
}

pub(super) fn region() -> Object {
    let mut region = text(1, 10, "^[a-z0-9-]+$");
    region.examples = vec!["eu".into()];
    region
}

/// A domain name of at least two labels.
pub(super) fn domain() -> Object {
    let label = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?";
    let pattern = format!("^({label}\\.){{1,8}}[A-Za-z]([A-Za-z0-9-]{{0,61}}[A-Za-z0-9])?$");
    let mut domain = text(3, 253, &pattern);
    domain.examples = vec!["shop.example.com".into()];
    domain
}

/// Name of a plan.
pub(super) fn plan_name() -> Object {
    let mut name = text(1, 64, PLAN_NAME);
    name.examples = vec!["default".into()];
    name
}

/// What the name of a plan is made of.
pub(super) const PLAN_NAME: &str = "^[a-z0-9][a-z0-9_-]*$";

/// Whether a path's text is the name of a plan.
pub(super) fn is_plan_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let inner = |byte: u8| plain(byte) || matches!(byte, b'_' | b'-');
    text.len() <= 64 && text.bytes().next().is_some_and(plain) && text.bytes().all(inner)
}

/// An IP address.
pub(super) fn address() -> Object {
    use super::super::auth::agent_tokens::{V4, V6};
    let mut address = text(2, 39, &format!("^({V4}|{V6})$"));
    address.examples = vec!["203.0.113.9".into()];
    address
}

/// Whatever it is.
pub(super) fn anything() -> Object {
    let all = [Type::Object, Type::Null];
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter(all))
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
        .build()
}

/// What a token may be used for.
pub(super) fn scopes() -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name("TokenScopes"))
}

/// A part of a path that was asked for.
pub(super) fn path_part() -> Object {
    text(1, 200, PLAIN)
}

pub(super) fn method() -> Object {
    text(1, 32, "^[A-Z]+$")
}

pub(super) fn boolean() -> Object {
    ObjectBuilder::new().schema_type(Type::Boolean).build()
}

/// One of some words.
fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).build()
}

pub(super) fn role() -> Object {
    words(Role::ALL.map(Role::as_str))
}

pub(super) fn kind() -> Object {
    words(TunnelKind::ALL.map(TunnelKind::as_str))
}

pub(super) fn tunnel_status() -> Object {
    words(["active", "paused"])
}

pub(super) fn step() -> Object {
    words(Step::ALL)
}

/// Kinds of events.
pub(super) fn event_kind() -> Object {
    words(Kind::WORDS.iter().copied())
}

pub(super) fn time() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .build()
}

/// Requests in a second, or `null`: no limit.
pub(super) fn rate_or_null() -> Object {
    number_or_null(1, 1_000_000)
}

/// A small count, or `null`: no limit.
pub(super) fn count_or_null() -> Object {
    number_or_null(0, 1_000_000)
}

/// Bytes, or `null`: no limit.
pub(super) fn bytes_or_null() -> Object {
    number_or_null(1, 1_000_000_000_000_000)
}

fn number_or_null(least: i64, most: i64) -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Integer, Type::Null]))
        .minimum(Some(least))
        .maximum(Some(most))
        .build()
}

/// An instant, or `null`: none.
pub(super) fn time_or_null() -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .build()
}

/// An identifier, or `null`: none.
pub(super) fn id_or_null() -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)))
        .build()
}

/// Labels of the owner's: below 4 KiB in all, without a rule that a schema could not say.
pub(super) fn metadata() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .max_properties(Some(16))
        .property_names(Some(text(1, 32, "^[A-Za-z0-9_.-]+$")))
        .additional_properties(Some(Schema::Object(text(0, 200, "^[ -~]*$"))))
        .examples([serde_json::json!({ "team": "web" })])
        .build()
}

impl utoipa::PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .examples(["2026-11-25T12:00:00Z"])
            .into()
    }
}

impl utoipa::ToSchema for Timestamp {}

/// Reads a member that may be `null`, apart from one that is missing.
pub(super) fn given<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de>,
{
    serde::Deserialize::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uniroute_shared::id::Subdomain;

    use super::*;

    fn faults(schema: &Value, value: &Value) -> Vec<String> {
        let document = json!({ "components": { "schemas": { "Id": {
            "type": "string", "format": "uuid" } } }, "it": schema });
        let schemas = Schemas::new(document).unwrap();
        let mut faults = Vec::new();
        schemas.check(schema, value, "", &mut faults);
        faults.into_iter().map(|fault| format!("{}: {}", fault.pointer, fault.detail)).collect()
    }

    #[test]
    fn all_faults_are_told_at_once_with_their_place() {
        let schema = json!({
            "type": "object", "required": ["name", "id"], "additionalProperties": false,
            "properties": {
                "name": { "type": "string", "maxLength": 3, "pattern": "^[a-z]*$" },
                "id": { "$ref": "#/components/schemas/Id" },
                "ports": { "type": "array", "maxItems": 3, "items": {
                    "type": "integer", "minimum": 1, "maximum": 9 } },
                "end": { "oneOf": [{ "type": "null" }, { "type": "string", "format": "date-time" }] },
            },
        });
        let value = json!({ "name": "A", "ports": [1, 0, "x"], "a/b": 1, "end": "soon" });
        assert_eq!(
            faults(&schema, &value),
            [
                "/id: is missing",
                "/a~1b: is not known",
                "/end: is no date-time",
                "/name: does not fit \"^[a-z]*$\"",
                "/ports/1: has to be at least 1",
                "/ports/2: has to be an integer",
            ]
        );
        let good = json!({ "name": "abc", "id": Uuid::nil(), "ports": [], "end": null });
        assert_eq!(faults(&schema, &good), [""; 0]);
        assert_eq!(faults(&schema, &json!([])), [": has to be an object"]);
        let long = json!({ "name": "abcd", "id": "{00000000-0000-0000-0000-000000000000}" });
        assert_eq!(faults(&schema, &long).len(), 2);
    }

    #[test]
    fn names_of_members_and_their_values_have_rules() {
        let schema = serde_json::to_value(metadata()).unwrap();
        assert_eq!(faults(&schema, &json!({ "team": "web", "a.b": "" })), [""; 0]);
        assert_eq!(faults(&schema, &json!({ "a b": "x" })).len(), 1);
        assert_eq!(faults(&schema, &json!({ "a": 1 })).len(), 1);
        assert_eq!(faults(&schema, &json!({ "a": "x\u{0}" })).len(), 1);
        let many: serde_json::Map<_, _> = (0..17).map(|n| (format!("k{n}"), json!("v"))).collect();
        assert_eq!(faults(&schema, &Value::Object(many)).len(), 1);
        // The most that is allowed stays below 4 KiB.
        let most: serde_json::Map<_, _> =
            (0..16).map(|n| (format!("{n:0>32}"), json!("\\".repeat(100)))).collect();
        assert!(Value::Object(most).to_string().len() < 4_096);
    }

    fn fits(schema: Object, text: &str) -> bool {
        faults(&serde_json::to_value(schema).unwrap(), &json!(text)).is_empty()
    }

    #[test]
    fn the_pattern_of_a_name_is_the_rule_of_names() {
        for text in [
            "a",
            "A",
            "ab",
            "a-b",
            "abc",
            "a--b",
            "-",
            "-a",
            "a-",
            "a-b-",
            "ab--c",
            "ab--",
            "ab-c",
            "ab-",
            "abc-d",
            "abcd",
            "a---b",
            "xn--abc",
            "abc--d",
            "a_b",
            "",
            "ü",
            "a.b",
            "a b",
            "a\n",
            "abc-",
            "a-bc",
            "a-b-c",
            "0",
            "00-0",
            "00--0",
            "0-0-0",
            "a--bc",
            "a--b-",
            "a-cd-e",
            &"a".repeat(63),
            &"a".repeat(64),
            &format!("a{}a", "-".repeat(61)),
        ] {
            assert_eq!(fits(subdomain(), text), Subdomain::parse(text).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn texts_have_no_control_characters() {
        assert!(fits(title(), "Ann's laptop, 北京") && fits(title(), ""));
        for bad in ["\u{0}", "a\nb", "\u{1b}[31m", "\u{7f}", "\u{85}", "\u{2028}"] {
            assert!(!fits(title(), bad) && !fits(new_password(), &format!("0123456789{bad}")));
        }
        assert!(fits(email(), "ann+test@example.com") && fits(email(), "a@b"));
        for bad in ["ann", "@b", "a@", "a b@c", "a@b c", "a@-b", "a@b-", "a@b..c", "a@b\n"] {
            assert!(!fits(email(), bad), "{bad:?}");
        }
        assert!(fits(domain(), "shop.example.com") && fits(domain(), "xn--bcher-kva.example"));
        for bad in ["example", "a..b", ".a.b", "a.b.", "-a.b", "*.a.b", "192.0.2.1", "a.b/c"] {
            assert!(!fits(domain(), bad), "{bad:?}");
        }
    }

    #[test]
    fn parameters_are_read_by_their_type() {
        let of = |schema: &str, text| parameter(&json!({ "type": schema }), text);
        assert_eq!(of("integer", "12"), json!(12));
        assert_eq!(of("boolean", "true"), json!(true));
        assert_eq!(of("string", "12"), json!("12"));
        for bad in ["", "+1", "1.0", " 1", "0x1", "99999999999999999999"] {
            assert_eq!(of("integer", bad), json!(bad));
        }
        assert_eq!(of("boolean", "1"), json!("1"));
    }
}
