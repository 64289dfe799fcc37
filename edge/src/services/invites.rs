//! Invitations to make an account.

use std::time::Duration;

use uuid::Uuid;

use super::{Failure, Services, event};
use crate::{
    auth::{Role, random_secret, sha256_hex},
    events::Kind,
    store::{Store, Timestamp, audit::Actor, invites::InviteRow},
};

const PREFIX: &str = "ur_invite_";
const DAY: u64 = 24 * 3600;

impl Services {
    /// Makes an invitation; the text is the secret that its receiver signs up with.
    pub(crate) async fn add_invite(
        &self,
        email: Option<String>,
        role: Role,
        days: u32,
        actor: &Actor,
    ) -> Result<(InviteRow, String), Failure> {
        let now = Timestamp::now();
        let secret = format!("{PREFIX}{}", random_secret());
        let invite = InviteRow {
            id: Uuid::now_v7(),
            email: email.map(|email| email.to_lowercase()),
            role,
            created_by: actor.id,
            created_at: now,
            expires_at: now.plus(Duration::from_secs(u64::from(days) * DAY)),
            used_at: None,
        };
        let statements = vec![Store::add_invite(&invite, &sha256_hex(secret.as_bytes()))];
        let mut created = event(Kind::InviteCreated, None, Some(invite.id));
        created.data = serde_json::json!({ "email": invite.email, "role": role });
        self.change(statements, created, actor).await?;
        Ok((invite, secret))
    }

    /// Takes an invitation back.
    pub(crate) async fn remove_invite(&self, id: Uuid, actor: &Actor) -> Result<(), Failure> {
        let mut removed = event(Kind::InviteUsed, None, Some(id));
        removed.data = serde_json::json!({ "taken_back": true });
        Ok(self.change(vec![Store::remove_invite(id)], removed, actor).await?)
    }
}
