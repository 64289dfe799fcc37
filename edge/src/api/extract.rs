//! What handlers take from a request that has passed the gate, and how lists are told.

use axum::extract::{FromRequestParts, Path};
use http::{StatusCode, header, request::Parts};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uniroute_shared::code::Code;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Peer, State, gate::Checked, schema};
use crate::{
    services::{Caller, Failure, logins},
    store::audit::Actor,
};

impl FromRequestParts<State> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Failure> {
        // The gate has put it there for every operation that asks for a login.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| Failure::new(&Code::LOGIN_NEEDED))
    }
}

/// The caller, as the audit log has him.
pub(super) struct By(pub(super) Actor);

impl FromRequestParts<State> for By {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Failure> {
        Ok(Self(Caller::from_request_parts(parts, state).await?.actor()))
    }
}

impl FromRequestParts<State> for logins::From {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Failure> {
        let peer = parts.extensions.get::<Peer>().ok_or_else(|| Failure::new(&Code::INTERNAL))?;
        let agent = parts.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        Ok(Self { peer: peer.address, user_agent: agent.unwrap_or_default().to_owned() })
    }
}

/// The body, which the gate has checked.
pub(super) struct Input<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<State> for Input<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Failure> {
        let checked = parts.extensions.remove::<Checked>();
        let Checked(value) = checked.ok_or_else(|| Failure::new(&Code::INTERNAL))?;
        let read = serde_json::from_value(value).map(Self);
        read.map_err(|error| Failure::because(&Code::INPUT_INVALID, error.to_string()))
    }
}

/// The query, which the gate has checked.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<State> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Failure> {
        let read = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        let read = read.map(|axum::extract::Query(read)| Self(read));
        read.map_err(|error| Failure::because(&Code::INPUT_INVALID, error.body_text()))
    }
}

/// The identifier in the path. What is none is not there.
pub(super) struct Id(pub(super) Uuid);

impl FromRequestParts<State> for Id {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Failure> {
        let Name(text) = Name::from_request_parts(parts, state).await?;
        schema::uuid(&text).map(Self).ok_or_else(Failure::no_such_thing)
    }
}

/// The name in the path.
pub(super) struct Name(pub(super) String);

impl FromRequestParts<State> for Name {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Failure> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|_| Failure::no_such_thing())?;
        let plain = !text.is_empty() && !text.chars().any(char::is_control);
        plain.then_some(Self(text)).ok_or_else(Failure::no_such_thing)
    }
}

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Paging {
    /// Items at most.
    #[param(minimum = 1, maximum = 100, default = 50)]
    #[serde(default = "limit")]
    pub(super) limit: u32,
    /// Go on behind this item: the `next` of the part before.
    pub(super) after: Option<Uuid>,
}

fn limit() -> u32 {
    50
}

/// A part of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// What to ask for as `after` to get the next part; `null`: this is the last one.
    pub(super) next: Option<String>,
}

impl<T> Page<T> {
    /// Of rows, of which one more was asked for than is told, to see whether there are more.
    pub(super) fn of<R>(
        mut rows: Vec<R>,
        limit: u32,
        key: impl Fn(&R) -> String,
        told: impl Fn(R) -> T,
    ) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(key);
        Self { items: rows.into_iter().map(told).collect(), next }
    }
}

/// Done, and nothing to tell.
pub(super) const DONE: StatusCode = StatusCode::NO_CONTENT;
