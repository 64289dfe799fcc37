//! The JSON Schema of the config file, from the same structs that read it.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::File;

/// The schema, for editors that check a file while it is written.
pub(crate) fn schema() -> Value {
    let generator = SchemaSettings::draft07().into_generator();
    generator.into_root_schema_for::<File>().to_value()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Map, json};
    use uniroute_shared::config_file::ConfigError;

    use super::*;
    use crate::config::{SAMPLE, SettingsError};

    /// As much of JSON Schema as ours uses; what is wrong first.
    fn check(value: &Value, schema: &Value, root: &Value, place: &str) -> Result<(), String> {
        if let Some(of) = schema.get("$ref").and_then(Value::as_str) {
            let pointer = of.trim_start_matches('#');
            return check(value, root.pointer(pointer).unwrap(), root, place);
        }
        for schema in schema.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            check(value, schema, root, place)?;
        }
        for word in ["anyOf", "oneOf"] {
            let Some(choices) = schema.get(word).and_then(Value::as_array) else { continue };
            if !choices.iter().any(|choice| check(value, choice, root, place).is_ok()) {
                return Err(format!("{place}: {value} is none of {word}"));
            }
        }
        let types = match schema.get("type") {
            Some(Value::String(one)) => vec![one.as_str()],
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_i64() || number.is_u64() => "integer",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let wide = kind == "integer" && types.contains(&"number");
        if !types.is_empty() && !types.contains(&kind) && !wide {
            return Err(format!("{place}: {value} is no {types:?}"));
        }
        if schema.get("enum").is_some_and(|all| !all.as_array().unwrap().contains(value)) {
            return Err(format!("{place}: {value} is not listed"));
        }
        let number = |key: &str| schema.get(key).and_then(Value::as_f64);
        if let Some(found) = value.as_f64()
            && (number("minimum").is_some_and(|least| found < least)
                || number("maximum").is_some_and(|most| found > most))
        {
            return Err(format!("{place}: {value} is out of range"));
        }
        if let (Some(items), Some(list)) = (schema.get("items"), value.as_array()) {
            for item in list {
                check(item, items, root, &format!("{place}[]"))?;
            }
        }
        let Some(table) = value.as_object() else { return Ok(()) };
        for key in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
            if !table.contains_key(key.as_str().unwrap()) {
                return Err(format!("{place}: {key} is missing"));
            }
        }
        let empty = Map::new();
        let known = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        for (key, value) in table {
            let place = format!("{place}.{key}");
            match (known.get(key), schema.get("additionalProperties")) {
                (Some(schema), _) => check(value, schema, root, &place)?,
                (None, Some(Value::Bool(false))) => return Err(format!("{place}: unknown")),
                (None, Some(schema)) => check(value, schema, root, &place)?,
                (None, None) => {}
            }
        }
        Ok(())
    }

    fn validate(toml: &str) -> Result<(), String> {
        let value: Value = serde_json::to_value(toml.parse::<toml::Table>().unwrap()).unwrap();
        let schema = schema();
        check(&value, &schema, &schema, "")
    }

    #[test]
    fn the_sample_validates_and_what_is_wrong_does_not() {
        validate(SAMPLE).unwrap();
        for (text, place) in [
            ("", ": \"version\" is missing"),
            ("version = 2", ".version"),
            ("version = 1\nserver = \"http://a\"", ".server: unknown"),
            ("version = 1\n[agent]\nsessions = 5", ".agent.sessions"),
            ("version = 1\n[agent]\nserver = [1]", ".agent.server"),
            ("version = 1\n[agent.log]\nlevel = 1", ".agent.log.level"),
            ("version = 1\n[tunnels.a]\nupstrem = \"1\"", ".tunnels.a: \"upstream\" is missing"),
            ("version = 1\n[tunnels.a]\nupstream = \"1\"\nkind = \"ftp\"", ".tunnels.a.kind"),
            ("version = 1\n[tunnels.a]\nupstream = \"1\"\nhold.locl = 1", ".locl: unknown"),
            ("version = 1\n[tunnels.a]\nupstream = \"1\"\nmax_body = true", ".max_body"),
            ("version = 1\n[tunnels.a]\nupstream = \"1\"\nlimits.in_flight = 0", ".in_flight"),
            ("version = 1\n[tunnels.a]\nupstream = \"1\"\nhold.reconnect = true", ".reconnect"),
        ] {
            let error = validate(text).unwrap_err();
            assert!(error.contains(place), "{text}: {error}");
        }
    }

    /// What the reader of the file knows in one of its tables; it is told a key that there is not.
    fn known(head: &str) -> BTreeSet<String> {
        let text = format!("version = 1\n{head}\nno_such_key_at_all = 1\n");
        let error = File::parse(&text, "f").and_then(|file| file.check()).unwrap_err();
        let SettingsError::File(ConfigError::Invalid(faults)) = error else { panic!("{error}") };
        let fault = faults.iter().find(|fault| fault.path.ends_with("no_such_key_at_all")).unwrap();
        assert!(!fault.valid.is_empty(), "{head}: {fault:?}");
        fault.valid.iter().cloned().collect()
    }

    /// What a reference leads to, through a choice between it and nothing.
    fn resolve(value: &Value, root: &Value) -> Value {
        let choices = ["anyOf", "allOf"].iter().filter_map(|word| value.get(word)?.as_array());
        let mut all = choices.flatten().chain([value]);
        match all.find_map(|one| one.get("$ref")?.as_str()) {
            Some(pointer) => resolve(root.pointer(pointer.trim_start_matches('#')).unwrap(), root),
            None => value.clone(),
        }
    }

    #[test]
    fn the_schema_has_each_key_that_the_reader_knows() {
        let schema = schema();
        let resolve = |value: &Value| resolve(value, &schema);
        let tables: [(&str, &[&str]); 12] = [
            ("", &[]),
            ("[agent]", &["agent"]),
            ("[agent.log]", &["agent", "log"]),
            ("[agent.inspector]", &["agent", "inspector"]),
            ("[tunnels.t]", &["tunnels", "*"]),
            ("[tunnels.t.health]", &["tunnels", "*", "health"]),
            ("[tunnels.t.hold]", &["tunnels", "*", "hold"]),
            ("[tunnels.t.limits]", &["tunnels", "*", "limits"]),
            ("[tunnels.t.webhook]", &["tunnels", "*", "webhook"]),
            ("[tunnels.t.request_headers]", &["tunnels", "*", "request_headers"]),
            ("[tunnels.t.response_headers]", &["tunnels", "*", "response_headers"]),
            ("[[tunnels.t.routes]]", &["tunnels", "*", "routes", "[]"]),
        ];
        for (head, path) in tables {
            let mut place = schema.clone();
            for step in path {
                place = match *step {
                    "*" => resolve(&place["additionalProperties"]),
                    "[]" => resolve(&place["items"]),
                    key => resolve(&place["properties"][key]),
                };
            }
            let described: BTreeSet<_> =
                place["properties"].as_object().unwrap().keys().cloned().collect();
            assert_eq!(described, known(head), "{head}");
            assert_eq!(place["additionalProperties"], json!(false), "{head}");
            for (key, described) in place["properties"].as_object().unwrap() {
                let text = described.get("description").or_else(|| described.get("$ref"));
                assert!(text.is_some(), "{head} {key} is not described");
            }
        }
    }
}
