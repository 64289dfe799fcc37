//! Access tokens: JWT, HS256 and nothing else, for a quarter of an hour.
//!
//! A token says which login it belongs to; whether that login and its user are still good is asked
//! of the store at every request. The key of a `kid` is derived from the edges' secret, so that the
//! store has nothing that could sign, and only kids that the store lists are looked at.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::secret::Secret;

/// How long an access token is good.
pub(crate) const LIFETIME_SECONDS: u64 = 15 * 60;
/// How far the clocks of two edges may be apart.
pub(crate) const LEEWAY_SECONDS: u64 = 30;
/// Whom it is for.
const AUDIENCE: &str = "uniroute-api";
/// Longest token that is looked at.
const MAX_LEN: usize = 2_048;
const PURPOSE: &str = "access token";

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claims {
    iss: String,
    aud: String,
    /// The user.
    pub(crate) sub: Uuid,
    /// The login.
    pub(crate) sid: Uuid,
    iat: u64,
    nbf: u64,
    exp: u64,
}

/// The head of a token of ours: just these. What else could be in there (`jwk`, `jku`, `crit`) has
/// been used for attacks only.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    alg: String,
    typ: String,
    kid: String,
}

/// Signs and checks, for one issuer.
#[derive(Debug)]
pub(crate) struct Tokens {
    secret: Secret,
    issuer: String,
}

impl Tokens {
    /// `issuer` is the edge's public name: tokens of another deployment are not ours, even under the
    /// same secret.
    pub(crate) fn new(secret: Secret, issuer: String) -> Self {
        Self { secret, issuer }
    }

    /// A token of a login, from `now` (seconds since 1970) on.
    pub(crate) fn sign(&self, kid: &str, user: Uuid, login: Uuid, now: u64) -> Option<String> {
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: AUDIENCE.into(),
            sub: user,
            sid: login,
            iat: now,
            nbf: now,
            exp: now.saturating_add(LIFETIME_SECONDS),
        };
        let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::HS256) };
        let key = EncodingKey::from_secret(&self.secret.derive(PURPOSE, kid));
        jsonwebtoken::encode(&header, &claims, &key).ok()
    }

    /// Which key a token says it is signed with; nothing is checked yet.
    pub(crate) fn kid(token: &str) -> Option<String> {
        let head = token.split('.').next().filter(|_| token.len() <= MAX_LEN)?;
        let head = URL_SAFE_NO_PAD.decode(head).ok()?;
        let head: Head = serde_json::from_slice(&head).ok()?;
        (head.alg == "HS256" && head.typ == "JWT").then_some(head.kid)
    }

    /// What a token says, if it is ours and its time is now. `kid` is one that the store lists.
    pub(crate) fn check(&self, kid: &str, token: &str) -> Option<Claims> {
        let mut rules = Validation::new(Algorithm::HS256);
        rules.leeway = LEEWAY_SECONDS;
        rules.validate_nbf = true;
        rules.set_audience(&[AUDIENCE]);
        rules.set_issuer(&[&self.issuer]);
        rules.set_required_spec_claims(&["iss", "aud", "sub", "exp", "nbf"]);
        let key = DecodingKey::from_secret(&self.secret.derive(PURPOSE, kid));
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &rules).ok()?.claims;
        let now = jsonwebtoken::get_current_timestamp();
        let lives_too_long = claims.exp.saturating_sub(claims.iat) > LIFETIME_SECONDS;
        (claims.iat <= now + LEEWAY_SECONDS && !lives_too_long).then_some(claims)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use aws_lc_rs::hmac;
    use serde_json::{Value, json};

    use super::*;

    const KID: &str = "k1";
    const ISSUER: &str = "https://edge.example";

    fn tokens() -> Tokens {
        Tokens::new(Secret::new(&[7; 32]).unwrap(), ISSUER.into())
    }

    fn now() -> u64 {
        jsonwebtoken::get_current_timestamp()
    }

    fn part(value: &Value) -> String {
        URL_SAFE_NO_PAD.encode(value.to_string())
    }

    fn signed(key: &[u8], head: &Value, claims: &Value) -> String {
        let body = format!("{}.{}", part(head), part(claims));
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let tag = hmac::sign(&key, body.as_bytes());
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    /// Tokens that look like those of `tokens` for this user and login, each with one thing wrong.
    /// The last one is right, or the others would prove nothing.
    pub(crate) fn forged(
        tokens: &Tokens,
        kid: &str,
        user: Uuid,
        login: Uuid,
    ) -> (Vec<(&'static str, String)>, String) {
        let key = tokens.secret.derive(PURPOSE, kid);
        let head = json!({"typ": "JWT", "alg": "HS256", "kid": kid});
        let now = now();
        let claims = json!({
            "iss": tokens.issuer, "aud": AUDIENCE, "sub": user, "sid": login,
            "iat": now, "nbf": now, "exp": now + LIFETIME_SECONDS,
        });
        let with = |value: &Value, name: &str, new: Value| {
            let mut value = value.clone();
            value[name] = new;
            value
        };
        let without = |name: &str| {
            let mut value = claims.clone();
            value.as_object_mut().unwrap().remove(name);
            value
        };
        let head_with = |name, new| signed(&key, &with(&head, name, new), &claims);
        let claims_with = |name, new| signed(&key, &head, &with(&claims, name, new));
        let good = signed(&key, &head, &claims);
        let (body, signature) = good.rsplit_once('.').unwrap();
        let foreign = with(&claims, "sub", json!(Uuid::now_v7()));
        let forged = vec![
            (
                "alg none",
                format!("{}.{}.", part(&with(&head, "alg", json!("none"))), part(&claims)),
            ),
            ("alg None, signed", head_with("alg", json!("None"))),
            ("alg RS256 over our key", head_with("alg", json!("RS256"))),
            ("alg HS512", head_with("alg", json!("HS512"))),
            ("no signature", format!("{body}.")),
            ("two parts", body.to_owned()),
            ("another subject under the old signature", {
                format!("{}.{}.{signature}", part(&head), part(&foreign))
            }),
            ("an empty key", signed(b"", &head, &claims)),
            ("the kid as key", signed(kid.as_bytes(), &head, &claims)),
            ("a kid that is a path", head_with("kid", json!("../../etc/passwd"))),
            ("a kid that is SQL", head_with("kid", json!("' OR '1'='1"))),
            ("a kid that nobody made", head_with("kid", json!("k0"))),
            ("no kid", signed(&key, &json!({"typ": "JWT", "alg": "HS256"}), &claims)),
            ("a key of its own", head_with("jwk", json!({"kty": "oct", "k": "AA"}))),
            ("a place of its key", head_with("jku", json!("https://evil.example/keys"))),
            ("something critical", head_with("crit", json!(["exp"]))),
            ("another type", head_with("typ", json!("at+jwt"))),
            ("another issuer", claims_with("iss", json!("https://evil.example"))),
            ("another audience", claims_with("aud", json!("someone"))),
            ("no audience", signed(&key, &head, &without("aud"))),
            ("no issuer", signed(&key, &head, &without("iss"))),
            ("no login", signed(&key, &head, &without("sid"))),
            ("no subject", signed(&key, &head, &without("sub"))),
            ("no end", signed(&key, &head, &without("exp"))),
            ("no beginning", signed(&key, &head, &without("nbf"))),
            ("no time of issue", signed(&key, &head, &without("iat"))),
            ("over", claims_with("exp", json!(now - LEEWAY_SECONDS - 2))),
            ("not yet", claims_with("nbf", json!(now + LEEWAY_SECONDS + 60))),
            ("issued tomorrow", claims_with("iat", json!(now + 86_400))),
            ("for ever", claims_with("exp", json!(now + 86_400 * 365))),
            ("an end that is no number", claims_with("exp", json!("never"))),
            ("a role of its own", claims_with("role", json!("admin"))),
            ("more than a token", format!("{good}.{good}")),
            ("nothing", String::new()),
            ("far too long", format!("{good}{}", "A".repeat(100_000))),
        ];
        (forged, good)
    }

    fn checked(tokens: &Tokens, token: &str) -> Option<Claims> {
        Tokens::kid(token).filter(|kid| kid == KID).and_then(|kid| tokens.check(&kid, token))
    }

    #[test]
    fn a_token_says_who_and_which_login() {
        let (user, login) = (Uuid::now_v7(), Uuid::now_v7());
        let token = tokens().sign(KID, user, login, now()).unwrap();
        let claims = checked(&tokens(), &token).unwrap();
        assert_eq!((claims.sub, claims.sid), (user, login));
        assert_eq!(claims.exp - claims.iat, LIFETIME_SECONDS);
    }

    #[test]
    fn t12_forged_tokens_are_refused() {
        let tokens = tokens();
        let (forged, good) = forged(&tokens, KID, Uuid::now_v7(), Uuid::now_v7());
        assert!(forged.len() >= 15);
        assert!(checked(&tokens, &good).is_some(), "what they are made from is right");
        for (what, token) in forged {
            assert_eq!(checked(&tokens, &token), None, "{what}");
        }
    }

    #[test]
    fn a_key_of_one_kid_or_secret_does_not_fit_another() {
        let token = tokens().sign(KID, Uuid::nil(), Uuid::nil(), now()).unwrap();
        assert!(tokens().check(KID, &token).is_some());
        assert!(tokens().check("k2", &token).is_none());
        let other = Tokens::new(Secret::new(&[8; 32]).unwrap(), ISSUER.into());
        assert!(other.check(KID, &token).is_none());
        let other = Tokens::new(Secret::new(&[7; 32]).unwrap(), "https://other.example".into());
        assert!(other.check(KID, &token).is_none());
    }

    #[test]
    fn clocks_may_differ_a_little() {
        let sign = |at| tokens().sign(KID, Uuid::nil(), Uuid::nil(), at).unwrap();
        let good = |at| checked(&tokens(), &sign(at)).is_some();
        assert!(good(now() + LEEWAY_SECONDS - 5) && !good(now() + LEEWAY_SECONDS + 30));
        assert!(good(now() - LIFETIME_SECONDS - LEEWAY_SECONDS + 5));
        assert!(!good(now() - LIFETIME_SECONDS - LEEWAY_SECONDS - 5));
    }
}
