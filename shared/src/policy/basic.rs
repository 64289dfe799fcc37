//! Names and passwords of visitors (RFC 7617). Checking a password takes long, on purpose, so that
//! is for the caller: see [`super::password`].

use std::{collections::HashSet, fmt};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use uniroute_proto::v1;

use super::{PolicyError, password};
use crate::message::Fields;

/// Most users of a tunnel.
pub const MAX_USERS: usize = 64;
/// Longest name and longest password, in bytes.
pub const MAX_LENGTH: usize = 256;

/// The challenge of a 401.
pub const CHALLENGE: &str = "Basic realm=\"restricted\", charset=\"UTF-8\"";

/// Who may come in.
#[derive(Debug)]
pub struct Basic {
    users: Vec<User>,
    forward: bool,
}

/// One who may come in.
pub struct User {
    /// The name.
    pub name: String,
    /// The password's hash as a PHC string.
    pub hash: String,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Basic {
    pub(super) fn compile(basic: &v1::BasicAuth) -> Result<Self, PolicyError> {
        PolicyError::at_most("basic_auth", basic.users.len(), MAX_USERS)?;
        if basic.users.is_empty() {
            return Err(PolicyError::new("basic_auth", "no user: nobody could come in"));
        }
        let mut names = HashSet::new();
        for (index, user) in basic.users.iter().enumerate() {
            let wrong = |what: String| PolicyError::new(format!("basic_auth[{index}]"), what);
            check_name(&user.name).map_err(|what| wrong(what.to_owned()))?;
            password::check_hash(&user.hash).map_err(|error| wrong(error.to_string()))?;
            if !names.insert(&user.name) {
                return Err(wrong(format!("the user {:?} is there twice", user.name)));
            }
        }
        let user = |user: &v1::BasicUser| User { name: user.name.clone(), hash: user.hash.clone() };
        Ok(Self { users: basic.users.iter().map(user).collect(), forward: basic.forward })
    }

    /// Whether the local server gets the field `Authorization` too.
    #[must_use]
    pub fn forward(&self) -> bool {
        self.forward
    }

    /// All of them, at least one.
    #[must_use]
    pub fn users(&self) -> &[User] {
        &self.users
    }
}

/// Refuses a name that no browser could send.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > MAX_LENGTH {
        return Err("a name has 1 to 256 bytes; write USER:PASSWORD");
    }
    if name.contains(|c: char| c == ':' || c.is_control()) {
        return Err("a name holds no colon and no control character; write USER:PASSWORD");
    }
    Ok(())
}

/// What a visitor says to be let in. It prints without the password.
pub struct Credentials {
    /// The name.
    pub name: Vec<u8>,
    /// The password.
    pub password: Vec<u8>,
}

impl Credentials {
    /// Of a request's one field `Authorization`, if it can be read.
    #[must_use]
    pub fn read(fields: &Fields) -> Option<Self> {
        let mut values = fields.all("authorization");
        let value = values.next().filter(|_| values.next().is_none())?;
        let (scheme, rest) = value.split_at_checked(6)?;
        if !scheme.eq_ignore_ascii_case(b"basic ") || rest.len() > 4 * MAX_LENGTH {
            return None;
        }
        let text = BASE64_STANDARD.decode(rest.trim_ascii()).ok()?;
        let colon = text.iter().position(|byte| *byte == b':')?;
        let (name, password) = (text[..colon].to_vec(), text[colon + 1..].to_vec());
        (name.len() <= MAX_LENGTH && password.len() <= MAX_LENGTH)
            .then_some(Self { name, password })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = String::from_utf8_lossy(&self.name);
        f.debug_struct("Credentials").field("name", &name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&'static str]) -> Option<(String, String)> {
        let mut fields = Fields::default();
        values.iter().for_each(|value| fields.push("Authorization", *value));
        let Credentials { name, password } = Credentials::read(&fields)?;
        Some((String::from_utf8(name).unwrap(), String::from_utf8(password).unwrap()))
    }

    #[test]
    fn names_and_passwords_are_read_as_rfc_7617_writes_them() {
        let both = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        assert_eq!(read(&["Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="]), both("Aladdin", "open sesame"));
        assert_eq!(read(&["bAsIc dGVzdDoxMjPCow=="]), both("test", "123£"));
        assert_eq!(read(&["Basic YTpiOmM="]), both("a", "b:c"));
        for bad in ["Basic", "Basic ", "Bearer QTpC", "Basic QQ==", "Basic !!", ""] {
            assert_eq!(read(&[bad]), None, "{bad}");
        }
        assert_eq!(read(&["Basic YTpi", "Basic YTpi"]), None, "two opinions are none");
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn users_that_cannot_be_are_named() {
        let user = |name: &str, hash: &str| v1::BasicUser { name: name.into(), hash: hash.into() };
        let good = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQxMjM0NTY$\
                    mCbIFKx4QnDBBBTJbOa8rRRQLCO+RXq0e1NmbKDzjXs";
        let error = |users: Vec<v1::BasicUser>| {
            Basic::compile(&v1::BasicAuth { users, forward: false }).unwrap_err().to_string()
        };
        assert!(error(vec![]).contains("nobody"));
        assert!(error(vec![user("a", good), user("a", good)]).contains("twice"));
        assert!(error(vec![user("a:b", good)]).contains("basic_auth[0]"));
        assert!(error(vec![user("a", good), user("b", "plain")]).contains("basic_auth[1]"));
        assert!(error(vec![user("a", good); 65]).contains("64"));
    }

    /// T20: secrets in logs.
    #[test]
    fn t20_passwords_are_not_printed() {
        let credentials = Credentials { name: b"ann".to_vec(), password: b"canary".to_vec() };
        let user = User { name: "ann".into(), hash: "canary".into() };
        let printed = format!("{credentials:?} {user:?}");
        assert!(printed.contains("ann") && !printed.contains("canary"), "{printed}");
    }
}
