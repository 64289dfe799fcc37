//! Accounts.

use uniroute_shared::code::Code;
use uuid::Uuid;

use super::{
    Failure, Services, Signup, event,
    logins::{From, Tokens},
};
use crate::{
    auth::{Role, passwords, sha256_hex},
    events::Kind,
    store::{
        Statement, Store, StoreError, Timestamp,
        audit::Actor,
        invites::InviteRow,
        users::{UserChange, UserRow},
    },
};

/// The plan of accounts that nobody has given one.
pub(crate) const DEFAULT_PLAN: &str = "default";

/// An account to be made.
#[derive(Clone)]
pub(crate) struct NewUser {
    pub(crate) email: String,
    /// `None`: nobody can log in to it until it has one.
    pub(crate) password: Option<String>,
    pub(crate) role: Role,
    pub(crate) plan: String,
}

impl Services {
    /// Makes an account, as an administrator.
    pub(crate) async fn add_user(&self, new: NewUser, actor: &Actor) -> Result<UserRow, Failure> {
        let (user, statements) = self.new_user(new).await?;
        let mut created = event(Kind::UserCreated, Some(user.id), Some(user.id));
        created.data = serde_json::json!({ "email": user.email, "role": user.role });
        self.change(statements, created, actor).await.map_err(no_such_plan_or_taken)?;
        Ok(user)
    }

    async fn new_user(&self, new: NewUser) -> Result<(UserRow, Vec<Statement>), Failure> {
        let email = new.email.to_lowercase();
        let hash = match &new.password {
            None => passwords::NONE.to_owned(),
            Some(password) => {
                if let Some(fault) = passwords::fault(password, &email) {
                    return Err(Failure::at("/password", fault));
                }
                self.auth.hash(password).await?
            }
        };
        let now = Timestamp::now();
        let user = UserRow {
            id: Uuid::now_v7(),
            email,
            password_hash: hash,
            role: new.role,
            plan: new.plan,
            created_at: now,
            updated_at: now,
            is_active: true,
            failed_logins: 0,
            locked_until: None,
        };
        let statements = vec![Store::add_user(&user)];
        Ok((user, statements))
    }

    /// Makes an account for whoever asks, as far as the operator allows it, and logs in.
    pub(crate) async fn sign_up(
        &self,
        email: &str,
        password: &str,
        invite: Option<&str>,
        from: &From,
    ) -> Result<(UserRow, Tokens), Failure> {
        let invite = match (self.settings.signup, invite) {
            (Signup::Closed, _) | (Signup::Invite, None) => {
                return Err(Failure::new(&Code::SIGNUP_CLOSED));
            }
            (Signup::Open, None) => None,
            (Signup::Open | Signup::Invite, Some(text)) => {
                Some(self.open_invite(text, email).await?)
            }
        };
        let role = invite.as_ref().map_or(Role::User, |invite| invite.role);
        let plan = DEFAULT_PLAN.to_owned();
        let new = NewUser { email: email.into(), password: Some(password.into()), role, plan };
        let (user, mut statements) = self.new_user(new).await?;
        let mut created = event(Kind::UserCreated, Some(user.id), Some(user.id));
        created.data = serde_json::json!({ "email": user.email, "role": user.role });
        if let Some(invite) = &invite {
            statements.push(Store::use_invite(invite.id, Timestamp::now()));
            created.data["invite"] = serde_json::json!(invite.id);
        }
        let made = self.change(statements, created, &Actor::stranger(from.peer)).await;
        made.map_err(|error| match error {
            StoreError::Stale => Failure::new(&Code::INVITE_REFUSED),
            error => no_such_plan_or_taken(error),
        })?;
        let tokens = self.open_login(&user, from).await?;
        Ok((user, tokens))
    }

    /// The invitation, if it can be used now, and for this address.
    async fn open_invite(&self, text: &str, email: &str) -> Result<InviteRow, Failure> {
        let invite = self.store.invite_by_hash(&sha256_hex(text.as_bytes())).await?;
        let is_for = |invite: &InviteRow| {
            invite.email.as_ref().is_none_or(|only| only.to_lowercase() == email.to_lowercase())
        };
        let is_open =
            |invite: &InviteRow| invite.used_at.is_none() && invite.expires_at > Timestamp::now();
        let invite = invite.filter(is_open).filter(is_for);
        invite.ok_or_else(|| Failure::new(&Code::INVITE_REFUSED))
    }

    pub(crate) async fn user(&self, id: Uuid) -> Result<UserRow, Failure> {
        self.store.user(id).await?.ok_or_else(Failure::no_such_thing)
    }

    /// Changes an account; with a new password, or made inactive, all its logins end.
    pub(crate) async fn change_user(
        &self,
        id: Uuid,
        change: UserChange,
        password: Option<&str>,
        actor: &Actor,
    ) -> Result<UserRow, Failure> {
        let user = self.user(id).await?;
        let now = Timestamp::now();
        let mut statements = vec![Store::change_user(id, &change, now)];
        if let Some(password) = password {
            if let Some(fault) = passwords::fault(password, &user.email) {
                return Err(Failure::at("/password", fault));
            }
            statements.push(Store::set_password(id, &self.auth.hash(password).await?, now));
        }
        if password.is_some() || change.is_active == Some(false) {
            statements.push(Store::revoke_logins(id, None, now));
        }
        let loses =
            change.role.is_some_and(|role| role < Role::Admin) || change.is_active == Some(false);
        if is_acting_admin(&user) && loses {
            statements.push(Store::another_admin_than(id));
        }
        let mut updated = event(Kind::UserUpdated, Some(id), Some(id));
        let (role, plan, is_active) = (change.role, change.plan, change.is_active);
        updated.data = serde_json::json!({
            "role": role, "plan": plan, "is_active": is_active, "password": password.is_some(),
        });
        let changed = self.change(statements, updated, actor).await;
        changed.map_err(|error| match error {
            StoreError::Stale => last_admin(),
            error => no_such_plan_or_taken(error),
        })?;
        self.user(id).await
    }

    /// Removes an account with all that it has. Not while it has tunnels, or names that nobody else
    /// may get yet: those would be free at once. An inactive account can do as little.
    pub(crate) async fn remove_user(&self, id: Uuid, actor: &Actor) -> Result<(), Failure> {
        let user = self.user(id).await?;
        if self.store.has_names(id, Timestamp::now()).await? {
            let why = "the account has tunnels, or names of deleted ones that are kept for it";
            return Err(Failure::because(&Code::ALREADY_THERE, why));
        }
        let mut statements = vec![Store::remove_user(id)];
        if is_acting_admin(&user) {
            statements.push(Store::another_admin_than(id));
        }
        let mut deleted = event(Kind::UserDeleted, Some(id), Some(id));
        deleted.data = serde_json::json!({ "email": user.email });
        let removed = self.change(statements, deleted, actor).await;
        removed.map_err(|error| match error {
            StoreError::Stale => last_admin(),
            error => error.into(),
        })
    }
}

fn is_acting_admin(user: &UserRow) -> bool {
    user.role == Role::Admin && user.is_active
}

fn last_admin() -> Failure {
    Failure::because(&Code::ALREADY_THERE, "this is the last active administrator")
}

fn no_such_plan_or_taken(error: StoreError) -> Failure {
    match error {
        StoreError::Duplicate(_) => {
            Failure::because(&Code::ALREADY_THERE, "there is an account with this e-mail address")
        }
        StoreError::Refused(_) => Failure::at("/plan", "there is no such plan"),
        error => error.into(),
    }
}
