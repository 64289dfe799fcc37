//! What differs between two answers.

use std::time::Duration;

use serde_json::{Map, Value, json};
use similar::{Algorithm, ChangeTag, TextDiff};

use super::{Inspector, View, capture::Side, view};

/// Text of each body that is compared, in bytes, and its lines.
const MAX_TEXT: usize = 512 * 1024;
const MAX_LINES: usize = 5000;
/// After this long the rest is shown as different.
const MAX_TIME: Duration = Duration::from_secs(1);

/// The answers of two requests.
pub(crate) fn diff(a: &View, b: &View, inspector: &Inspector) -> Value {
    json!({
        "status": [status(a), status(b)],
        "headers": headers(a, b, inspector),
        "body": body(a, b, inspector),
    })
}

fn status(view: &View) -> Option<u16> {
    (view.status != 0).then_some(view.status)
}

/// The fields that only one of them has, or that have other values.
fn headers(a: &View, b: &View, inspector: &Inspector) -> Vec<Value> {
    let fields = |view: &View| {
        let fields = view.reply.as_ref().map(|reply| &reply.headers[..]).unwrap_or_default();
        let mut shown = view::shown(inspector, fields);
        shown.iter_mut().for_each(|[name, _]| name.make_ascii_lowercase());
        shown
    };
    let (a, b) = (fields(a), fields(b));
    let all = |fields: &[[String; 2]], name: &str| {
        let values = fields.iter().filter(|[other, _]| other == name).map(|[_, value]| &value[..]);
        let values: Vec<_> = values.collect();
        (!values.is_empty()).then(|| values.join(", "))
    };
    let mut names: Vec<_> = a.iter().chain(&b).map(|[name, _]| name).collect();
    names.sort_unstable();
    names.dedup();
    let different = names.into_iter().filter_map(|name| {
        let (a, b) = (all(&a, name), all(&b, name));
        (a != b).then(|| {
            let mut row = Map::from_iter([("name".to_owned(), json!(name))]);
            row.extend(a.map(|a| ("a".to_owned(), a.into())));
            row.extend(b.map(|b| ("b".to_owned(), b.into())));
            Value::Object(row)
        })
    });
    different.collect()
}

fn body(a: &View, b: &View, inspector: &Inspector) -> Value {
    let (a, b) = (a.body(Side::Upstream), b.body(Side::Upstream));
    let whole = a.is_whole() && b.is_whole();
    let mut same = whole && a.head == b.head;
    let texts = (a.text(inspector, MAX_TEXT), b.text(inspector, MAX_TEXT));
    let (Some((text_a, cut_a)), Some((text_b, cut_b))) = texts else {
        let note = format!(
            "no text: {} bytes, SHA-256 {} and {} bytes, SHA-256 {}{}",
            a.size,
            view::sha256(&a.head),
            b.size,
            view::sha256(&b.head),
            if whole { "" } else { " (of what is kept)" },
        );
        return json!({ "same": same, "note": note, "hunks": [] });
    };
    let mut notes = Vec::new();
    if cut_a || cut_b {
        notes.push("only what is kept of the bodies is compared".to_owned());
    }
    let pretty = |text: &str| serde_json::from_str(text).ok().map(|value| pretty(&value));
    let (text_a, text_b) = match (pretty(&text_a), pretty(&text_b)) {
        (Some(a), Some(b)) => {
            if a == b && !same {
                notes.push("the same JSON, written in another way".to_owned());
            }
            (a, b)
        }
        _ => (text_a, text_b),
    };
    same |= !(cut_a || cut_b) && text_a == text_b;
    let first = |text: &str| text.split_inclusive('\n').take(MAX_LINES).collect::<String>();
    let (short_a, short_b) = (first(&text_a), first(&text_b));
    if short_a.len() < text_a.len() || short_b.len() < text_b.len() {
        notes.push(format!("only the first {MAX_LINES} lines are compared"));
    }
    json!({ "same": same, "note": notes.join("; "), "hunks": hunks(&short_a, &short_b) })
}

fn hunks(a: &str, b: &str) -> Vec<Value> {
    let mut config = TextDiff::configure();
    let diff = config.algorithm(Algorithm::Myers).timeout(MAX_TIME).diff_lines(a, b);
    let mut hunks: Vec<(&str, Vec<&str>)> = Vec::new();
    for change in diff.iter_all_changes() {
        let tag = match change.tag() {
            ChangeTag::Equal => "equal",
            ChangeTag::Insert => "insert",
            ChangeTag::Delete => "delete",
        };
        let line = change.value().trim_end_matches(['\n', '\r']);
        match hunks.last_mut() {
            Some((last, lines)) if *last == tag => lines.push(line),
            _ => hunks.push((tag, vec![line])),
        }
    }
    hunks.into_iter().map(|(tag, lines)| json!({ "tag": tag, "lines": lines })).collect()
}

/// With sorted keys and a line for each value.
fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(&sorted(value)).unwrap_or_default()
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_unstable_by_key(|(key, _)| *key);
            pairs.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect()
        }
        Value::Array(values) => values.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_in_hunks() {
        let hunks = hunks("a\nb\nc\n", "a\nx\nc\nd");
        let expected = json!([
            { "tag": "equal", "lines": ["a"] },
            { "tag": "delete", "lines": ["b"] },
            { "tag": "insert", "lines": ["x"] },
            { "tag": "equal", "lines": ["c"] },
            { "tag": "insert", "lines": ["d"] },
        ]);
        assert_eq!(Value::from(hunks), expected);
    }

    #[test]
    fn json_has_one_form() {
        let a: Value = serde_json::from_str(r#"{"b":[{"y":1,"x":2}],"a":null}"#).unwrap();
        let b: Value = serde_json::from_str(r#"{"a":null, "b":[{"x":2,"y":1}]}"#).unwrap();
        assert_eq!(pretty(&a), pretty(&b));
    }
}
