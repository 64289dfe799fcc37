//! Signatures of webhooks: whether who posts a body knows the secret that was agreed on.
//!
//! | kind | field | signed |
//! | --- | --- | --- |
//! | GitHub | `X-Hub-Signature-256: sha256=HEX` | the body |
//! | Stripe | `Stripe-Signature: t=SECONDS,v1=HEX,…` | `SECONDS.BODY` |
//! | Slack | `X-Slack-Signature: v0=HEX`, `X-Slack-Request-Timestamp` | `v0:SECONDS:BODY` |
//! | HMAC | as the owner says | the body, or `SECONDS.BODY` |

use std::fmt;

use aws_lc_rs::hmac;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use subtle::ConstantTimeEq as _;
use uniroute_proto::v1;

use super::{PolicyError, fields::check_name};
use crate::message::Fields;

/// Most secrets of a webhook.
pub const MAX_SECRETS: usize = 8;
/// Longest secret, in bytes.
pub const MAX_SECRET: usize = 1_024;
/// Longest body where the owner says nothing, in bytes.
pub const DEFAULT_BODY: u32 = 1024 * 1024;
/// Longest body that an owner may ask for: the edge holds it whole.
pub const MAX_BODY: u32 = 16 * 1024 * 1024;
/// Seconds that the time of signing may be off where the owner says nothing.
const DEFAULT_TOLERANCE: u32 = 300;
/// Signatures that one field may hold; Stripe sends two while a secret is replaced.
const MAX_SIGNATURES: usize = 16;

/// Why a request is not taken for the sender's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhyNot {
    /// A field that it needs is not there, or there twice.
    #[error("a field of the signature is missing or repeated")]
    Missing,
    /// A field can't be read.
    #[error("the signature can't be read")]
    Unreadable,
    /// It was signed too long ago, or by a clock that is wrong.
    #[error("it was signed too long ago, or one of the clocks is wrong")]
    Stale,
    /// No secret makes this signature of this body.
    #[error("the signature does not fit the body")]
    Wrong,
}

/// How one sender signs. It prints without the secrets.
pub struct Webhook {
    form: Form,
    keys: Vec<hmac::Key>,
    max_body: u32,
    tolerance: u64,
}

#[derive(Debug)]
enum Form {
    GitHub,
    Stripe,
    Slack,
    Hmac { header: String, base64: bool, prefix: String, timestamp: Option<String> },
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("form", &self.form)
            .field("secrets", &self.keys.len())
            .finish_non_exhaustive()
    }
}

impl Webhook {
    pub(super) fn compile(webhook: &v1::Webhook) -> Result<Self, PolicyError> {
        let wrong = |key: &str, what: String| PolicyError::new(format!("webhook.{key}"), what);
        let form = match webhook.kind() {
            v1::WebhookKind::Unspecified => {
                return Err(wrong("kind", "write github, stripe, slack or hmac".into()));
            }
            v1::WebhookKind::Github => Form::GitHub,
            v1::WebhookKind::Stripe => Form::Stripe,
            v1::WebhookKind::Slack => Form::Slack,
            v1::WebhookKind::Hmac => {
                check_name(webhook.header.as_bytes()).map_err(|what| wrong("header", what))?;
                let timestamp = Some(webhook.timestamp_header.clone()).filter(|n| !n.is_empty());
                if let Some(name) = &timestamp {
                    check_name(name.as_bytes()).map_err(|what| wrong("timestamp_header", what))?;
                }
                let (header, prefix) = (webhook.header.clone(), webhook.prefix.clone());
                Form::Hmac { header, base64: webhook.base64, prefix, timestamp }
            }
        };
        let algorithm = match (&form, webhook.hash()) {
            (Form::Hmac { .. }, v1::WebhookHash::Sha1) => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            (Form::Hmac { .. }, v1::WebhookHash::Sha512) => hmac::HMAC_SHA512,
            _ => hmac::HMAC_SHA256,
        };
        PolicyError::at_most("webhook.secrets", webhook.secrets.len(), MAX_SECRETS)?;
        let lengths = 1..=MAX_SECRET;
        if webhook.secrets.is_empty() || webhook.secrets.iter().any(|s| !lengths.contains(&s.len()))
        {
            let what = format!("there must be one at least, each of 1 to {MAX_SECRET} bytes");
            return Err(wrong("secrets", what));
        }
        if webhook.max_body > MAX_BODY {
            return Err(wrong("max_body", format!("more than {MAX_BODY} bytes")));
        }
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        Ok(Self {
            form,
            keys: webhook.secrets.iter().map(|s| hmac::Key::new(algorithm, s)).collect(),
            max_body: or(webhook.max_body, DEFAULT_BODY),
            tolerance: or(webhook.tolerance_s, DEFAULT_TOLERANCE).into(),
        })
    }

    /// The longest body, in bytes.
    #[must_use]
    pub fn max_body(&self) -> u64 {
        self.max_body.into()
    }

    /// Whether the sender signed `body`. `now`: seconds since 1970.
    ///
    /// # Errors
    /// [`WhyNot`].
    pub fn check(&self, fields: &Fields, body: &[u8], now: u64) -> Result<(), WhyNot> {
        match &self.form {
            Form::GitHub => {
                let given = one(fields, "x-hub-signature-256")?;
                let given = given.strip_prefix(b"sha256=").and_then(hex);
                self.any(&[given.ok_or(WhyNot::Unreadable)?], &[body])
            }
            Form::Stripe => self.check_stripe(one(fields, "stripe-signature")?, body, now),
            Form::Slack => {
                let time = one(fields, "x-slack-request-timestamp")?;
                let given = one(fields, "x-slack-signature")?.strip_prefix(b"v0=").and_then(hex);
                self.check_time(time, now)?;
                self.any(&[given.ok_or(WhyNot::Unreadable)?], &[b"v0:", time, b":", body])
            }
            Form::Hmac { header, base64, prefix, timestamp } => {
                let given = one(fields, header)?.strip_prefix(prefix.as_bytes());
                let decode = if *base64 { from_base64 } else { hex };
                let given = [given.and_then(decode).ok_or(WhyNot::Unreadable)?];
                let Some(timestamp) = timestamp else { return self.any(&given, &[body]) };
                let time = one(fields, timestamp)?;
                self.check_time(time, now)?;
                self.any(&given, &[time, b".", body])
            }
        }
    }

    fn check_stripe(&self, value: &[u8], body: &[u8], now: u64) -> Result<(), WhyNot> {
        let parts = || value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        let mut times = parts().filter_map(|part| part.strip_prefix(b"t="));
        let time = times.next().filter(|_| times.next().is_none()).ok_or(WhyNot::Unreadable)?;
        let signatures = parts().filter_map(|part| part.strip_prefix(b"v1=")).filter_map(hex);
        let signatures: Vec<_> = signatures.take(MAX_SIGNATURES).collect();
        if signatures.is_empty() {
            return Err(WhyNot::Unreadable);
        }
        self.check_time(time, now)?;
        self.any(&signatures, &[time, b".", body])
    }

    fn check_time(&self, text: &[u8], now: u64) -> Result<(), WhyNot> {
        let digits = text.iter().all(u8::is_ascii_digit);
        let time = std::str::from_utf8(text).ok().filter(|_| digits);
        let time: u64 = time.and_then(|t| t.parse().ok()).ok_or(WhyNot::Unreadable)?;
        if time.abs_diff(now) > self.tolerance { Err(WhyNot::Stale) } else { Ok(()) }
    }

    /// Whether one of the secrets makes one of the signatures. The comparison takes the same time
    /// wherever they differ.
    fn any(&self, given: &[Vec<u8>], signed: &[&[u8]]) -> Result<(), WhyNot> {
        let fits = self.keys.iter().any(|key| {
            let mut context = hmac::Context::with_key(key);
            signed.iter().for_each(|part| context.update(part));
            let right = context.sign();
            given.iter().any(|given| bool::from(right.as_ref().ct_eq(given)))
        });
        if fits { Ok(()) } else { Err(WhyNot::Wrong) }
    }
}

/// The one value of the field `name`.
fn one<'a>(fields: &'a Fields, name: &'a str) -> Result<&'a [u8], WhyNot> {
    let mut values = fields.all(name);
    let value = values.next().filter(|_| values.next().is_none());
    value.map(|value| value.trim_ascii()).ok_or(WhyNot::Missing)
}

fn hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_chunks::<2>();
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? * 16 + digit(*low)?);
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn webhook(kind: v1::WebhookKind, secrets: &[&'static str]) -> v1::Webhook {
        v1::Webhook {
            kind: kind.into(),
            secrets: secrets.iter().map(|secret| (*secret).into()).collect(),
            ..Default::default()
        }
    }

    fn check(
        webhook: &v1::Webhook,
        fields: &[(&'static str, &str)],
        body: &[u8],
        now: u64,
    ) -> Result<(), WhyNot> {
        let mut all = Fields::default();
        fields.iter().for_each(|(name, value)| all.push(*name, (*value).to_owned()));
        Webhook::compile(webhook).unwrap().check(&all, body, now)
    }

    /// The example in GitHub's documentation.
    #[test]
    fn github() {
        let secret = "It's a Secret to Everybody";
        let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let check = |secrets: &[&'static str], fields: &[(&'static str, &str)], body: &[u8]| {
            check(&webhook(v1::WebhookKind::Github, secrets), fields, body, NOW)
        };
        let given = [("X-Hub-Signature-256", signature)];
        assert_eq!(check(&[secret], &given, b"Hello, World!"), Ok(()));
        assert_eq!(check(&["other", secret], &given, b"Hello, World!"), Ok(()), "rotation");
        assert_eq!(check(&["other"], &given, b"Hello, World!"), Err(WhyNot::Wrong));
        assert_eq!(check(&[secret], &given, b"Hello, World"), Err(WhyNot::Wrong));
        assert_eq!(check(&[secret], &[], b""), Err(WhyNot::Missing));
        assert_eq!(check(&[secret], &[given[0], given[0]], b""), Err(WhyNot::Missing));
        for bad in ["", "sha256", "sha256=x", "sha256=757", &signature[7..]] {
            let given = [("X-Hub-Signature-256", bad)];
            assert_eq!(check(&[secret], &given, b""), Err(WhyNot::Unreadable), "{bad}");
        }
        assert_eq!(
            check(&[secret], &[("X-Hub-Signature-256", "sha256=")], b""),
            Err(WhyNot::Wrong)
        );
    }

    /// The example in Slack's documentation.
    #[test]
    fn slack() {
        let body = b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&\
            channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&\
            command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands\
            %2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&\
            trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
        let slack = webhook(v1::WebhookKind::Slack, &["8f742231b10e8888abcd99yyyzzz85a5"]);
        let signature = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503";
        let given = [("X-Slack-Signature", signature), ("X-Slack-Request-Timestamp", "1531420618")];
        assert_eq!(check(&slack, &given, body, 1_531_420_618 + 300), Ok(()));
        assert_eq!(check(&slack, &given, body, 1_531_420_618 + 301), Err(WhyNot::Stale));
        assert_eq!(check(&slack, &given, body, 1_531_420_618 - 301), Err(WhyNot::Stale));
        assert_eq!(check(&slack, &given, b"", 1_531_420_618), Err(WhyNot::Wrong));
        assert_eq!(check(&slack, &given[..1], body, 1_531_420_618), Err(WhyNot::Missing));
        let odd = [given[0], ("X-Slack-Request-Timestamp", "+1531420618")];
        assert_eq!(check(&slack, &odd, body, 1_531_420_618), Err(WhyNot::Unreadable));
    }

    /// The form in Stripe's documentation; there is no example with its secret.
    #[test]
    fn stripe() {
        let stripe = webhook(v1::WebhookKind::Stripe, &["whsec_test_secret"]);
        let right = "799c4ba7bb339f3c8601adfd112f0e477c930a268be1243d341abb8286501c2f";
        let wrong = "0".repeat(64);
        let body = br#"{"id":"evt_1"}"#;
        let check = |value: &str, now| check(&stripe, &[("Stripe-Signature", value)], body, now);
        let then = 1_492_774_577;
        for good in [
            format!("t={then},v1={right}"),
            format!("t={then},v1={wrong},v1={right},v0={wrong}"),
            format!("v1={right}, t={then}"),
        ] {
            assert_eq!(check(&good, then + 299), Ok(()), "{good}");
        }
        assert_eq!(check(&format!("t={then},v1={right}"), then + 301), Err(WhyNot::Stale));
        assert_eq!(check(&format!("t={then},v1={wrong}"), then), Err(WhyNot::Wrong));
        assert_eq!(check(&format!("t={},v1={right}", then + 1), then), Err(WhyNot::Wrong));
        for bad in [
            String::new(),
            format!("t={then}"),
            format!("v1={right}"),
            format!("t={then},t={then},v1={right}"),
            format!("t=now,v1={right}"),
            format!("t={then},v0={right}"),
        ] {
            assert_eq!(check(&bad, then), Err(WhyNot::Unreadable), "{bad}");
        }
    }

    /// Vectors of RFC 4231 (test case 2) and RFC 2202, in the forms that an owner can describe.
    #[test]
    fn others() {
        let body = b"what do ya want for nothing?";
        let sha1 = v1::Webhook {
            header: "X-Sig".into(),
            hash: v1::WebhookHash::Sha1.into(),
            prefix: "sha1=".into(),
            ..webhook(v1::WebhookKind::Hmac, &["Jefe"])
        };
        let given = [("x-sig", "sha1=EFFCDF6AE5EB2FA2D27416D5F184DF9C259A7C79")];
        assert_eq!(check(&sha1, &given, body, NOW), Ok(()));
        let sha512 = v1::Webhook {
            header: "X-Sig".into(),
            hash: v1::WebhookHash::Sha512.into(),
            base64: true,
            ..webhook(v1::WebhookKind::Hmac, &["Jefe"])
        };
        let text = "Fkt6e/z4GeLjlfvnO1bgo4e9ZCIugx/WECcM1+olBVSXWL91wFqZSm0DT2X48Ob9\
                    yuqxo01Ka0tjbgcKOLznNw==";
        assert_eq!(check(&sha512, &[("x-sig", text)], body, NOW), Ok(()));
        assert_eq!(check(&sha512, &[("x-sig", text)], b"", NOW), Err(WhyNot::Wrong));
        assert_eq!(check(&sha512, &[("x-sig", "!")], body, NOW), Err(WhyNot::Unreadable));
    }

    #[test]
    fn a_time_is_signed_with_the_body() {
        let timed = v1::Webhook {
            header: "X-Sig".into(),
            timestamp_header: "X-Time".into(),
            tolerance_s: 10,
            ..webhook(v1::WebhookKind::Hmac, &["secret"])
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
        let tag = hmac::sign(&key, format!("{NOW}.body").as_bytes());
        let text: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let given = |time: &'static str| [("x-sig", text.clone()), ("x-time", time.to_owned())];
        let check = |time, now| {
            let given = given(time);
            let given: Vec<_> = given.iter().map(|(n, v)| (*n, v.as_str())).collect();
            check(&timed, &given, b"body", now)
        };
        assert_eq!(check("1700000000", NOW + 10), Ok(()));
        assert_eq!(check("1700000000", NOW + 11), Err(WhyNot::Stale));
        assert_eq!(check("1700000001", NOW), Err(WhyNot::Wrong));
    }

    #[test]
    fn webhooks_that_cannot_be_are_named() {
        let key = |webhook: v1::Webhook| Webhook::compile(&webhook).unwrap_err().key;
        assert_eq!(key(v1::Webhook::default()), "webhook.kind");
        assert_eq!(key(webhook(v1::WebhookKind::Hmac, &["s"])), "webhook.header");
        assert_eq!(key(webhook(v1::WebhookKind::Slack, &[])), "webhook.secrets");
        assert_eq!(key(webhook(v1::WebhookKind::Slack, &[""])), "webhook.secrets");
        assert_eq!(key(webhook(v1::WebhookKind::Slack, &["s"; 9])), "webhook.secrets");
        let long = v1::Webhook { max_body: u32::MAX, ..webhook(v1::WebhookKind::Slack, &["s"]) };
        assert_eq!(key(long), "webhook.max_body");
    }

    /// T20: secrets in logs.
    #[test]
    fn t20_secrets_are_not_printed() {
        let compiled = Webhook::compile(&webhook(v1::WebhookKind::Slack, &["canary"])).unwrap();
        assert!(!format!("{compiled:?}").contains("canary"));
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_panics(value: Vec<u8>, time: Vec<u8>, body: Vec<u8>, now: u64) {
            for kind in [v1::WebhookKind::Github, v1::WebhookKind::Stripe, v1::WebhookKind::Slack] {
                let mut fields = Fields::default();
                for name in ["x-hub-signature-256", "stripe-signature", "x-slack-signature"] {
                    fields.push(name, value.clone());
                }
                fields.push("x-slack-request-timestamp", time.clone());
                let webhook = Webhook::compile(&webhook(kind, &["secret"])).unwrap();
                prop_assert!(webhook.check(&fields, &body, now).is_err());
            }
        }
    }
}
