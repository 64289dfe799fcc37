//! What a tunnel's owner wants done with its requests and answers: who may come in, which local
//! server a path goes to, what is changed on the way.
//!
//! This module owns the decisions, as pure functions over heads: the edge acts on them, and the
//! agent tells its user beforehand what they would be. It does not wait, look at a clock or check a
//! password. A request is decided in this order, and the first rule that answers it ends that:
//!
//! 1. `deny` and `allow`: 403;
//! 2. `redirect_https`: 308;
//! 3. routes: which local server; 400 for a path that could be read as another route's;
//! 4. `basic_auth`: 401 without a name and password; whether they are right is for the caller;
//! 5. `max_body`: 413 by the length that the request tells;
//! 6. the webhook's signature, once the caller has the whole body.

pub mod access;
pub mod basic;
pub mod fields;
pub mod host;
pub mod password;
pub mod routes;
pub mod webhook;

use std::{fmt, net::IpAddr};

use bytes::{BufMut, Bytes, BytesMut};
use uniroute_proto::v1;

use self::{
    access::Access,
    basic::{Basic, Credentials},
    fields::Changes,
    host::HostRule,
    routes::Routes,
    webhook::Webhook,
};
use crate::{
    code::Code,
    message::{Fields, RequestHead},
};

pub use self::{
    fields::Direction,
    host::{Origin, Public},
    routes::RouteMatch,
};

/// Longest error page, in bytes.
pub const MAX_ERROR_PAGE: usize = 64 * 1024;

/// What certificate authorities ask for over plain HTTP: never sent to https.
const ACME_CHALLENGE: &[u8] = b"/.well-known/acme-challenge/";

/// A policy that can't be followed, and the key that is wrong in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {what}")]
pub struct PolicyError {
    /// As in a config file, such as `routes[0].path`.
    pub key: String,
    /// What is wrong, and what could be there instead.
    pub what: String,
}

impl PolicyError {
    pub(crate) fn new(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self { key: key.into(), what: what.into() }
    }

    /// Refuses a list that is too long.
    pub(crate) fn at_most(key: &str, length: usize, limit: usize) -> Result<(), Self> {
        if length > limit {
            return Err(Self::new(key, format!("{length} entries, the limit is {limit}")));
        }
        Ok(())
    }
}

/// A policy that was checked: following it can't fail.
#[derive(Debug)]
pub struct Policy {
    access: Access,
    redirect_https: bool,
    routes: Routes,
    /// What the agent adds to the numbers of routes.
    first_route: u32,
    host: HostRule,
    basic: Option<Basic>,
    webhook: Option<Webhook>,
    max_body: Option<u64>,
    request_fields: Changes,
    response_fields: Changes,
}

/// What is known of a request beside its head.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Where it came from.
    pub visitor: IpAddr,
    /// It came by https.
    pub https: bool,
    /// The port that visitors reach https on.
    pub https_port: u16,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Admit {
    /// It goes on, if the checks that are named in it succeed.
    Pass(Pass),
    /// It is answered by 308 with this `Location`.
    Redirect(Bytes),
    /// It is answered by an error of ours.
    Refuse(Refusal),
}

/// A request that may go on.
#[derive(Debug)]
pub struct Pass {
    /// Which local server it is for.
    pub route: RouteMatch,
    /// Must be right before anything of the request goes on.
    pub credentials: Option<Credentials>,
    /// The whole body, of no more bytes than this, must pass [`Policy::check_webhook`] before
    /// anything of the request goes on.
    pub whole_body: Option<u64>,
    /// The body is cut, with [`Refusal::BodyTooLarge`], when it turns out to be longer.
    pub max_body: Option<u64>,
}

/// Why a request goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The visitor's address is denied.
    #[error("the address is in `deny`")]
    Denied,
    /// Others are allowed.
    #[error("the address is not in `allow`")]
    NotAllowed,
    /// Different servers would read the path differently.
    #[error(transparent)]
    Path(#[from] routes::AmbiguousPath),
    /// No name and password, or none that can be read.
    #[error("`basic_auth` asks for a name and a password")]
    NoPassword,
    /// The body is longer than this many bytes.
    #[error("the body is longer than {0} bytes")]
    BodyTooLarge(u64),
    /// The signature is not there or not right.
    #[error("{0}")]
    Signature(webhook::WhyNot),
}

impl Refusal {
    /// Its entry in the table of errors.
    #[must_use]
    pub fn code(&self) -> &'static Code {
        match self {
            Self::Denied | Self::NotAllowed => &Code::ADDRESS_REFUSED,
            Self::Path(_) => &Code::PATH_AMBIGUOUS,
            Self::NoPassword => &Code::PASSWORD_NEEDED,
            Self::BodyTooLarge(_) => &Code::BODY_TOO_LARGE,
            Self::Signature(_) => &Code::SIGNATURE_REFUSED,
        }
    }
}

impl Policy {
    /// Checks everything in it.
    ///
    /// # Errors
    /// [`PolicyError`], naming the first key that is wrong.
    pub fn compile(policy: &v1::HttpPolicy) -> Result<Self, PolicyError> {
        if policy.error_page.len() > MAX_ERROR_PAGE {
            let what = format!("longer than {MAX_ERROR_PAGE} bytes");
            return Err(PolicyError::new("error_page", what));
        }
        let empty = v1::HeaderChanges::default();
        let changes = |changes: &Option<v1::HeaderChanges>, direction| {
            Changes::compile(direction, changes.as_ref().unwrap_or(&empty))
        };
        Ok(Self {
            access: Access::compile(&policy.allow, &policy.deny)?,
            redirect_https: policy.redirect_https,
            routes: Routes::compile(&policy.routes)?,
            first_route: policy.first_route,
            host: HostRule::compile(policy)?,
            basic: policy.basic_auth.as_ref().map(Basic::compile).transpose()?,
            webhook: policy.webhook.as_ref().map(Webhook::compile).transpose()?,
            max_body: (policy.max_body > 0).then_some(policy.max_body),
            request_fields: changes(&policy.request_headers, Direction::Request)?,
            response_fields: changes(&policy.response_headers, Direction::Response)?,
        })
    }

    /// The number that the agent knows the local server of a route by; 0 is the default's.
    #[must_use]
    pub fn number(&self, route: RouteMatch) -> u32 {
        if route.number == 0 { 0 } else { route.number.saturating_add(self.first_route) }
    }

    /// What becomes of the request `head`.
    #[must_use]
    pub fn admit(&self, head: &RequestHead, seen: Seen) -> Admit {
        match self.decide(head, seen) {
            Ok(admit) => admit,
            Err(refusal) => Admit::Refuse(refusal),
        }
    }

    fn decide(&self, head: &RequestHead, seen: Seen) -> Result<Admit, Refusal> {
        self.access.check(seen.visitor)?;
        if self.redirect_https && !seen.https && !head.path().starts_with(ACME_CHALLENGE) {
            return Ok(Admit::Redirect(https_location(head, seen.https_port)));
        }
        let route = self.routes.find(head.path())?;
        let credentials = match &self.basic {
            Some(_) => Some(Credentials::read(&head.fields).ok_or(Refusal::NoPassword)?),
            None => None,
        };
        let whole_body = self.webhook.as_ref().map(|webhook| {
            self.max_body.map_or(webhook.max_body(), |limit| limit.min(webhook.max_body()))
        });
        let limit = whole_body.or(self.max_body);
        if let (Some(limit), Some(length)) = (limit, told_length(&head.fields))
            && length > limit
        {
            return Err(Refusal::BodyTooLarge(limit));
        }
        Ok(Admit::Pass(Pass { route, credentials, whole_body, max_body: self.max_body }))
    }

    /// Whether the webhook's sender signed `body`. `now`: seconds since 1970.
    ///
    /// # Errors
    /// [`Refusal::Signature`].
    pub fn check_webhook(&self, fields: &Fields, body: &[u8], now: u64) -> Result<(), Refusal> {
        match &self.webhook {
            Some(webhook) => webhook.check(fields, body, now).map_err(Refusal::Signature),
            None => Ok(()),
        }
    }

    /// Makes `head`, as the visitor sent it, what the local server of `route` is to see. To be
    /// called when all checks have succeeded, and last: fields of the connection are gone by then,
    /// or the visitor could have them take away what is set here (T03).
    pub fn rewrite_request(&self, head: &mut RequestHead, route: RouteMatch, public: &Public) {
        self.host.rewrite_request(head, self.routes.local(route), public);
        if let Some(target) = self.routes.target(route, &head.target) {
            head.target = target;
        }
        if let Some(prefix) = self.routes.stripped(route) {
            head.fields.set("x-forwarded-prefix", Bytes::copy_from_slice(prefix));
        }
        if self.basic.as_ref().is_some_and(|basic| !basic.forward()) {
            head.fields.remove("authorization");
        }
        self.request_fields.apply(&mut head.fields);
    }

    /// Makes the fields of an answer from the local server of `route` what the visitor is to see.
    /// To be called before the answer is compressed.
    pub fn rewrite_response(&self, fields: &mut Fields, route: RouteMatch, public: &Public) {
        self.host.rewrite_response(fields, self.routes.local(route), public);
        self.response_fields.apply(fields);
    }

    /// Who may come in, if anybody is asked.
    #[must_use]
    pub fn basic(&self) -> Option<&Basic> {
        self.basic.as_ref()
    }

    /// How senders sign what they post, if that is checked.
    #[must_use]
    pub fn webhook(&self) -> Option<&Webhook> {
        self.webhook.as_ref()
    }

    /// Which path goes where.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.routes
    }
}

/// The same place by https. The host is the one that the request was routed by.
fn https_location(head: &RequestHead, port: u16) -> Bytes {
    let host = host::split_port(&head.authority).0;
    let mut location = BytesMut::with_capacity(host.len() + head.target.len() + 16);
    location.put_slice(b"https://");
    location.put_slice(host);
    if port != 443 {
        location.put_slice(format!(":{port}").as_bytes());
    }
    // Of `OPTIONS *` there is no URL but the host's own.
    location.put_slice(if head.target.starts_with(b"/") { &head.target } else { b"/" });
    location.freeze()
}

/// The length that a request tells of its body; what can't be read was refused before.
fn told_length(fields: &Fields) -> Option<u64> {
    std::str::from_utf8(fields.get("content-length")?).ok()?.parse().ok()
}

impl fmt::Display for RouteMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            0 => f.write_str("the default upstream"),
            number => write!(f, "route {number}"),
        }
    }
}

#[cfg(test)]
mod tests;
