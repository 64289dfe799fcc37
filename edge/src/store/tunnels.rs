//! Tunnels and who has their names. A name belongs to the user whose row has it; a row that is marked
//! as deleted has it no more, but for the time of its quarantine nobody else gets it.

use uuid::Uuid;

use super::{Row, Statement, Store, StoreError, Timestamp, Value, query::Query, values};

/// Times that a claim is tried when another one of the same name comes in between. After the first
/// one the other one's row is there to be seen.
const CLAIM_TRIES: usize = 3;
/// Rows of one statement, in what is done to many.
const BATCH: usize = 1_000;
/// Names that run out are looked for in slices.
const EXPIRED_SLICE: i64 = 500;

macro_rules! columns {
    () => {
        "id, user_id, subdomain, kind, port, custom_domain, local_url, public_url, status, region, \
         created_at, updated_at, last_active_at, request_count, metadata, version, \
         requests_per_second, agent_id, epoch, agent_until, held_until"
    };
}

/// A tunnel.
#[derive(Clone, Debug, PartialEq)]
pub struct TunnelRow {
    pub id: Uuid,
    pub user_id: Uuid,
    pub subdomain: String,
    /// `http`, `tls`, `tcp` or `udp`.
    pub kind: String,
    pub port: Option<u16>,
    pub custom_domain: Option<String>,
    pub local_url: String,
    pub public_url: String,
    /// `active`, `paused` or `deleted`.
    pub status: String,
    pub region: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub last_active_at: Option<Timestamp>,
    pub request_count: u64,
    pub metadata: serde_json::Value,
    /// Grows with each change of what a user may set.
    pub version: u64,
    pub requests_per_second: Option<u32>,
    /// Which agent has the name; `None`: none.
    pub agent_id: Option<String>,
    /// Grows with each claim of the name, whoever's it is; not with a further one of the same run.
    pub epoch: u64,
    /// Until then another agent of the owner's is told that the name is taken.
    pub agent_until: Option<Timestamp>,
    /// `None`: reserved. Otherwise until when the name is the owner's, if nobody serves it.
    pub held_until: Option<Timestamp>,
}

impl TunnelRow {
    fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.take()?,
            user_id: row.take()?,
            subdomain: row.take()?,
            kind: row.take()?,
            port: row.take()?,
            custom_domain: row.take()?,
            local_url: row.take()?,
            public_url: row.take()?,
            status: row.take()?,
            region: row.take()?,
            created_at: row.take()?,
            updated_at: row.take()?,
            last_active_at: row.take()?,
            request_count: row.take()?,
            metadata: row.take()?,
            version: row.take()?,
            requests_per_second: row.take()?,
            agent_id: row.take()?,
            epoch: row.take()?,
            agent_until: row.take()?,
            held_until: row.take()?,
        })
    }
}

/// An agent wants a name.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Of the row, if there has to be a new one.
    pub id: Uuid,
    pub user: Uuid,
    pub agent_id: String,
    /// Drawn once by each running agent. A claim with the one that the name has raises no epoch: the
    /// agent serves it at several edges.
    pub run_id: Option<Uuid>,
    pub subdomain: String,
    pub kind: String,
    pub port: Option<u16>,
    pub local_url: String,
    pub public_url: String,
    pub region: String,
    /// Of a new row.
    pub metadata: serde_json::Value,
    pub now: Timestamp,
    /// Until then no other agent of the user's gets it without force.
    pub agent_until: Timestamp,
    /// Until then no other user gets it; not for a name that is reserved.
    pub held_until: Timestamp,
    /// Takes it from another agent of the user's.
    pub force: bool,
}

/// The agent has the name.
#[derive(Debug)]
pub struct Claimed {
    pub row: TunnelRow,
    /// There was no row before.
    pub created: bool,
}

/// Why a name is not had.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another user has it, or had it until recently; or another agent of the user's has it.
    #[error("the name is taken")]
    Taken,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A tunnel that is made through the API: its name is reserved until it is deleted.
#[derive(Clone, Debug)]
pub struct NewTunnel {
    pub id: Uuid,
    pub user: Uuid,
    pub subdomain: String,
    pub kind: String,
    pub port: Option<u16>,
    pub custom_domain: Option<String>,
    pub local_url: String,
    pub public_url: String,
    pub region: String,
    pub metadata: serde_json::Value,
    pub requests_per_second: Option<u32>,
    pub now: Timestamp,
}

/// Which tunnels a list shows. Deleted ones only where the status says so.
#[derive(Clone, Debug, Default)]
pub struct TunnelFilter {
    pub user: Option<Uuid>,
    pub status: Option<String>,
    pub kind: Option<String>,
    pub name_contains: Option<String>,
    /// The last row of the page before.
    pub after: Option<Uuid>,
    pub limit: u32,
}

/// What is to be changed of a tunnel; `None`: stays. An inner `None` takes it away.
#[derive(Clone, Debug, Default)]
pub struct TunnelChanges {
    pub status: Option<String>,
    pub local_url: Option<String>,
    pub public_url: Option<String>,
    pub region: Option<String>,
    pub custom_domain: Option<Option<String>>,
    pub requests_per_second: Option<Option<u32>>,
    pub metadata: Option<serde_json::Value>,
    /// `Some(None)` reserves the name.
    pub held_until: Option<Option<Timestamp>>,
}

/// The name goes over from a user who only held it, and no longer does.
const FREE_OTHERS: &str = "UPDATE tunnels SET status = 'deleted', agent_id = NULL, updated_at = $2 \
     WHERE subdomain = $1 AND status <> 'deleted' AND held_until <= $2 AND user_id <> $3";

const FREE: &str = "UPDATE tunnels SET status = 'deleted', agent_id = NULL, updated_at = $2 \
     WHERE subdomain = $1 AND status <> 'deleted' AND held_until <= $2";

const TAKE: &str = concat!(
    "UPDATE tunnels SET agent_id = CAST($3 AS TEXT), \
     epoch = CASE WHEN run_id = $13 AND agent_id = CAST($3 AS TEXT) THEN epoch ELSE epoch + 1 END, \
     run_id = $13, agent_until = $5, \
     held_until = CASE WHEN held_until IS NULL THEN held_until ELSE $6 END, kind = $7, port = $8, \
     local_url = $9, public_url = $10, region = $11, last_active_at = $4, updated_at = $4 \
     WHERE subdomain = $1 AND status <> 'deleted' AND user_id = $2 \
     AND (agent_id IS NULL OR agent_id = CAST($3 AS TEXT) OR agent_until <= $4 OR $12) RETURNING ",
    columns!()
);

/// Nobody has the name, and no other user had it until recently. Its epochs go on where they were.
macro_rules! insert {
    ($columns:literal, $values:literal) => {
        concat!(
            "INSERT INTO tunnels (id, user_id, subdomain, kind, port, local_url, public_url, \
             region, metadata, created_at, updated_at, ",
            $columns,
            ") SELECT $1, $2, CAST($3 AS TEXT), $4, $5, $6, $7, $8, $9, $10, $10, ",
            $values,
            " WHERE NOT EXISTS (SELECT 1 FROM tunnels WHERE subdomain = CAST($3 AS TEXT) \
             AND status <> 'deleted') \
             AND NOT EXISTS (SELECT 1 FROM tunnels WHERE subdomain = CAST($3 AS TEXT) \
             AND status = 'deleted' AND held_until > $10 AND user_id <> $2) RETURNING ",
            columns!()
        )
    };
}

const ADD: &str = insert!(
    "last_active_at, agent_id, agent_until, held_until, run_id, epoch",
    "$10, $11, $12, $13, $14, (SELECT COALESCE(max(epoch), 0) + 1 FROM tunnels \
     WHERE subdomain = CAST($3 AS TEXT) AND status = 'deleted')"
);

const RESERVE: &str = insert!(
    "custom_domain, requests_per_second, epoch",
    "$11, $12, (SELECT COALESCE(max(epoch), 0) FROM tunnels \
     WHERE subdomain = CAST($3 AS TEXT) AND status = 'deleted')"
);

const IS_MINE: &str = "SELECT 1 FROM tunnels WHERE subdomain = $1 AND status <> 'deleted' \
     AND user_id = $2 AND agent_id = $3";

impl Claim {
    /// All of it, or nothing where the agent does not have the name then.
    fn statements(&self, also: Vec<Statement>) -> Vec<Statement> {
        let free = values![&self.subdomain, self.now, self.user];
        let take = values![
            &self.subdomain,
            self.user,
            &self.agent_id,
            self.now,
            self.agent_until,
            self.held_until,
            &self.kind,
            self.port,
            &self.local_url,
            &self.public_url,
            &self.region,
            self.force,
            self.run_id,
        ];
        let add = values![
            self.id,
            self.user,
            &self.subdomain,
            &self.kind,
            self.port,
            &self.local_url,
            &self.public_url,
            &self.region,
            &self.metadata,
            self.now,
            &self.agent_id,
            self.agent_until,
            self.held_until,
            self.run_id,
        ];
        let is_mine = values![&self.subdomain, self.user, &self.agent_id];
        let mut statements = vec![
            Statement::new(FREE_OTHERS, free),
            Statement::new(TAKE, take),
            Statement::new(ADD, add),
            Statement::new(IS_MINE, is_mine).expect(1),
        ];
        statements.extend(also);
        statements
    }
}

impl Store {
    /// Gives an agent a name, atomically. It gets one that nobody has, that the user has reserved, or
    /// that its user has and no other agent is at (or that is `force`d). Every claim raises the
    /// name's epoch, but those of one run of an agent among themselves. `also` is done in the same transaction, or not at all.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn claim(&self, claim: &Claim, also: &[Statement]) -> Result<Claimed, ClaimError> {
        let mut done = Err(StoreError::Stale);
        for _ in 0..CLAIM_TRIES {
            done = self.transaction(claim.statements(also.to_vec())).await;
            match &done {
                Err(StoreError::Duplicate(_)) => {}
                // A claim of this very agent came between the look and the insert: the row is there
                // to be taken now.
                Ok(results) if results[1].is_empty() && results[2].is_empty() => {}
                _ => break,
            }
        }
        let mut results = done.map_err(taken)?;
        let added = results.swap_remove(2).pop();
        let created = added.is_some();
        let row = added.or_else(|| results.swap_remove(1).pop()).ok_or(ClaimError::Taken)?;
        Ok(Claimed { row: TunnelRow::read(row)?, created })
    }

    /// Makes a tunnel whose name is reserved.
    ///
    /// # Errors
    /// [`ClaimError::Taken`], also if the user has a tunnel of this name already.
    pub async fn create_reserved(
        &self,
        new: &NewTunnel,
        also: Vec<Statement>,
    ) -> Result<TunnelRow, ClaimError> {
        let add = values![
            new.id,
            new.user,
            &new.subdomain,
            &new.kind,
            new.port,
            &new.local_url,
            &new.public_url,
            &new.region,
            &new.metadata,
            new.now,
            new.custom_domain.clone(),
            new.requests_per_second,
        ];
        let mut statements = vec![
            Statement::new(FREE, values![&new.subdomain, new.now]),
            Statement::new(RESERVE, add).expect(1),
        ];
        statements.extend(also);
        let mut results = self.transaction(statements).await.map_err(taken)?;
        let row = results.swap_remove(1).pop().ok_or(ClaimError::Taken)?;
        Ok(TunnelRow::read(row)?)
    }

    /// A tunnel, deleted or not.
    ///
    /// # Errors
    /// As [`Store::rows`], like all that follow.
    pub async fn tunnel(&self, id: Uuid) -> Result<Option<TunnelRow>, StoreError> {
        let sql = concat!("SELECT ", columns!(), " FROM tunnels WHERE id = $1");
        self.one_tunnel(sql, values![id]).await
    }

    /// A user's tunnel; `None` also for another user's, and for a deleted one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tunnel_of(&self, user: Uuid, id: Uuid) -> Result<Option<TunnelRow>, StoreError> {
        let sql = concat!(
            "SELECT ",
            columns!(),
            " FROM tunnels WHERE id = $1 AND user_id = $2 AND status <> 'deleted'"
        );
        self.one_tunnel(sql, values![id, user]).await
    }

    /// The tunnel that has a name now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tunnel_by_name(&self, name: &str) -> Result<Option<TunnelRow>, StoreError> {
        let sql = concat!(
            "SELECT ",
            columns!(),
            " FROM tunnels WHERE subdomain = $1 AND status <> 'deleted'"
        );
        self.one_tunnel(sql, values![name]).await
    }

    /// A page of tunnels, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list_tunnels(&self, filter: &TunnelFilter) -> Result<Vec<TunnelRow>, StoreError> {
        let mut query = Query::new(concat!("SELECT ", columns!(), " FROM tunnels"));
        query.and_some("user_id =", filter.user);
        match &filter.status {
            Some(status) => query.and_some("status =", Some(status)),
            None => query.and("status <> 'deleted'"),
        }
        query.and_some("kind =", filter.kind.as_ref());
        if let Some(part) = &filter.name_contains {
            let part = query.bind(part);
            let position = self.dialect("strpos", "instr");
            query.and(&format!("{position}(subdomain, {part}) > 0"));
        }
        let query = query.page("id", filter.after, filter.limit);
        read_all(self.listed(&query.sql, query.params).await?)
    }

    /// How many tunnels a user has.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn count_tunnels(&self, user: Uuid) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM tunnels WHERE user_id = $1 AND status <> 'deleted'";
        let row = self.row(sql, values![user]).await?;
        row.map_or(Ok(0), |mut row| row.take())
    }

    /// Changes a tunnel, of `user` where that is said, and raises its version. `None`: there is no
    /// such tunnel, or it has another version than the expected one; then `also` is not done either.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn update_tunnel(
        &self,
        id: Uuid,
        user: Option<Uuid>,
        expected: Option<u64>,
        changes: &TunnelChanges,
        now: Timestamp,
        also: Vec<Statement>,
    ) -> Result<Option<TunnelRow>, StoreError> {
        let mut query = Query::new("UPDATE tunnels SET version = version + 1");
        let mut set = |column: &str, value: Option<Value>| {
            if let Some(value) = value {
                let name = query.bind(value);
                query.sql.push_str(&format!(", {column} = {name}"));
            }
        };
        set("updated_at", Some(now.into()));
        set("status", changes.status.as_ref().map(Into::into));
        set("local_url", changes.local_url.as_ref().map(Into::into));
        set("public_url", changes.public_url.as_ref().map(Into::into));
        set("region", changes.region.as_ref().map(Into::into));
        set("custom_domain", changes.custom_domain.clone().map(Into::into));
        set("requests_per_second", changes.requests_per_second.map(Into::into));
        set("metadata", changes.metadata.as_ref().map(Into::into));
        set("held_until", changes.held_until.map(Into::into));
        query.and_some("id =", Some(id));
        query.and("status <> 'deleted'");
        query.and_some("user_id =", user);
        query.and_some("version =", expected);
        query.sql.push_str(concat!(" RETURNING ", columns!()));
        self.change_tunnel(Statement::new(query.sql, query.params), also).await
    }

    /// Pauses a tunnel or lets it go on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_status(
        &self,
        id: Uuid,
        user: Option<Uuid>,
        status: &str,
        now: Timestamp,
        also: Vec<Statement>,
    ) -> Result<Option<TunnelRow>, StoreError> {
        let changes = TunnelChanges { status: Some(status.into()), ..Default::default() };
        self.update_tunnel(id, user, None, &changes, now, also).await
    }

    /// Deletes a tunnel. Until `quarantine_until` only its owner gets the name again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_tunnel(
        &self,
        id: Uuid,
        user: Option<Uuid>,
        quarantine_until: Timestamp,
        now: Timestamp,
        also: Vec<Statement>,
    ) -> Result<Option<TunnelRow>, StoreError> {
        let mut query = Query::new(
            "UPDATE tunnels SET status = 'deleted', agent_id = NULL, agent_until = NULL, \
             held_until = $1, updated_at = $2, version = version + 1",
        );
        query.params = values![quarantine_until, now];
        query.and_some("id =", Some(id));
        query.and("status <> 'deleted'");
        query.and_some("user_id =", user);
        query.sql.push_str(concat!(" RETURNING ", columns!()));
        self.change_tunnel(Statement::new(query.sql, query.params), also).await
    }

    /// The agent of this epoch has given the name up; it stays its user's until `held_until`, or as
    /// reserved. `false`: another claim has come since.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn release_tunnel(
        &self,
        id: Uuid,
        epoch: u64,
        held_until: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE tunnels SET agent_id = NULL, agent_until = NULL, updated_at = $4, \
                   held_until = CASE WHEN held_until IS NULL THEN held_until ELSE $3 END \
                   WHERE id = $1 AND epoch = $2 AND status <> 'deleted'";
        Ok(self.execute(sql, values![id, epoch, held_until, now]).await? == 1)
    }

    /// Says that the agents of these claims (tunnel and epoch) are still there. Returns the tunnels
    /// for which that holds; those that are missing have gone over to a newer claim, or are deleted.
    ///
    /// # Errors
    /// [`StoreError`]; some may have been renewed.
    pub async fn renew(
        &self,
        claims: &[(Uuid, u64)],
        agent_until: Timestamp,
        held_until: Timestamp,
        last_active_at: Timestamp,
    ) -> Result<Vec<Uuid>, StoreError> {
        let times = values![agent_until, held_until, last_active_at];
        let mut renewed = Vec::with_capacity(claims.len());
        for batch in claims.chunks(BATCH) {
            for mut row in self.renew_batch(batch, &times).await? {
                renewed.push(row.take()?);
            }
        }
        Ok(renewed)
    }

    async fn renew_batch(
        &self,
        claims: &[(Uuid, u64)],
        times: &[Value],
    ) -> Result<Vec<Row>, StoreError> {
        macro_rules! renew {
            ($from:literal, $which:literal) => {
                concat!(
                    "UPDATE tunnels SET agent_until = $1, last_active_at = $3, \
                     held_until = CASE WHEN held_until IS NULL THEN held_until ELSE $2 END",
                    $from,
                    " WHERE tunnels.id = ",
                    $which,
                    " AND status <> 'deleted' AND agent_id IS NOT NULL RETURNING tunnels.id"
                )
            };
        }
        if self.is_postgres() {
            let mut params = times.to_vec();
            params.push(Value::list(claims.iter().map(|(id, _)| *id)));
            params.push(Value::list(claims.iter().map(|(_, epoch)| *epoch)));
            let sql = renew!(
                " FROM unnest($4::uuid[], $5::bigint[]) AS c (id, epoch)",
                "c.id AND tunnels.epoch = c.epoch"
            );
            return self.rows(sql, params).await;
        }
        let each = claims.iter().map(|(id, epoch)| {
            let params = times.iter().cloned().chain(values![*id, *epoch]).collect();
            Statement::new(renew!("", "$4 AND epoch = $5"), params)
        });
        Ok(self.transaction(each.collect()).await?.into_iter().flatten().collect())
    }

    /// Marks tunnels as deleted whose names nobody serves or holds any more; those. In slices: where
    /// there are any, there may be more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn expire_held(&self, now: Timestamp) -> Result<Vec<TunnelRow>, StoreError> {
        let sql = concat!(
            "UPDATE tunnels SET status = 'deleted', agent_id = NULL, updated_at = $1 \
             WHERE held_until <= $1 AND status <> 'deleted' AND id IN (SELECT id FROM tunnels \
             WHERE status IN ('active', 'paused') AND held_until <= $1 LIMIT $2) RETURNING ",
            columns!()
        );
        read_all(self.rows(sql, values![now, EXPIRED_SLICE]).await?)
    }

    async fn one_tunnel(
        &self,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<Option<TunnelRow>, StoreError> {
        self.row(sql, params).await?.map(TunnelRow::read).transpose()
    }

    /// Changes one tunnel or none.
    async fn change_tunnel(
        &self,
        change: Statement,
        also: Vec<Statement>,
    ) -> Result<Option<TunnelRow>, StoreError> {
        let mut statements = vec![change.expect(1)];
        statements.extend(also);
        match self.transaction(statements).await {
            Ok(mut results) => results.swap_remove(0).pop().map(TunnelRow::read).transpose(),
            Err(StoreError::Stale) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn read_all(rows: Vec<Row>) -> Result<Vec<TunnelRow>, StoreError> {
    rows.into_iter().map(TunnelRow::read).collect()
}

/// Somebody else's row was there, or came in between.
fn taken(error: StoreError) -> ClaimError {
    match error {
        StoreError::Stale => ClaimError::Taken,
        StoreError::Duplicate(index) if index == "idx_tunnels_subdomain" => ClaimError::Taken,
        error => error.into(),
    }
}
