-- The same as for PostgreSQL. Times are microseconds since 1970, identifiers UUID v7 as 16 bytes,
-- JSON is text, and texts are no longer than there.
-- Text that comes from outside is cut to its column before it gets here.

CREATE TABLE plans (
    name TEXT PRIMARY KEY CHECK (length(name) <= 64),
    -- NULL anywhere: no limit.
    requests_per_second INTEGER CHECK (requests_per_second > 0),
    tunnel_requests_per_second INTEGER CHECK (tunnel_requests_per_second > 0),
    tunnels INTEGER CHECK (tunnels >= 0),
    agents INTEGER CHECK (agents >= 0),
    bandwidth_bytes_per_second INTEGER CHECK (bandwidth_bytes_per_second > 0),
    transfer_bytes_per_month INTEGER CHECK (transfer_bytes_per_month > 0),
    updated_at INTEGER NOT NULL
);
INSERT INTO plans (name, updated_at) VALUES ('default', 0);

CREATE TABLE users (
    id BLOB PRIMARY KEY,
    -- In lower case; compared without regard to case.
    email TEXT NOT NULL CHECK (length(email) <= 255),
    -- argon2id, or '!' where no password fits.
    password_hash TEXT NOT NULL CHECK (length(password_hash) <= 255),
    role TEXT NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'operator', 'admin')),
    plan TEXT NOT NULL DEFAULT 'default' REFERENCES plans (name) CHECK (length(plan) <= 64),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    is_active INTEGER NOT NULL DEFAULT 1,
    failed_logins INTEGER NOT NULL DEFAULT 0,
    locked_until INTEGER
);
CREATE UNIQUE INDEX idx_users_email ON users (lower(email));

-- One row a login; the refresh token of the last rotation is the only one that is good.
CREATE TABLE logins (
    id BLOB PRIMARY KEY,
    user_id BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    token_hash TEXT NOT NULL CHECK (length(token_hash) <= 64),
    created_at INTEGER NOT NULL,
    refreshed_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER,
    peer TEXT NOT NULL CHECK (length(peer) <= 64),
    user_agent TEXT NOT NULL DEFAULT '' CHECK (length(user_agent) <= 255)
);
CREATE INDEX idx_logins_user_id ON logins (user_id);

-- Keys of access tokens are derived from the edges' secret file and the kid: no secret is in here.
CREATE TABLE signing_keys (
    kid TEXT PRIMARY KEY CHECK (length(kid) <= 36),
    created_at INTEGER NOT NULL,
    retired_at INTEGER
);

CREATE TABLE invites (
    id BLOB PRIMARY KEY,
    token_hash TEXT NOT NULL UNIQUE CHECK (length(token_hash) <= 64),
    email TEXT CHECK (length(email) <= 255),
    role TEXT NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'operator', 'admin')),
    created_by BLOB REFERENCES users (id) ON DELETE SET NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at INTEGER
);

CREATE TABLE tunnels (
    id BLOB PRIMARY KEY,
    user_id BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    subdomain TEXT NOT NULL CHECK (length(subdomain) <= 63),
    kind TEXT NOT NULL DEFAULT 'http' CHECK (kind IN ('http', 'tls', 'tcp', 'udp')),
    port INTEGER,
    custom_domain TEXT CHECK (length(custom_domain) <= 255),
    local_url TEXT NOT NULL DEFAULT '' CHECK (length(local_url) <= 255),
    public_url TEXT NOT NULL DEFAULT '' CHECK (length(public_url) <= 255),
    status TEXT NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'paused', 'deleted')),
    region TEXT NOT NULL DEFAULT 'us' CHECK (length(region) <= 10),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    last_active_at INTEGER,
    request_count INTEGER NOT NULL DEFAULT 0,
    metadata TEXT NOT NULL DEFAULT '{}',
    -- Changes with every change of what a user may set: the ETag.
    version INTEGER NOT NULL DEFAULT 1,
    requests_per_second INTEGER CHECK (requests_per_second > 0),
    -- Which agent has the name, since which claim: the highest epoch counts. NULL: none.
    agent_id TEXT CHECK (length(agent_id) <= 64),
    epoch INTEGER NOT NULL DEFAULT 0,
    -- Until then another agent of the owner's is told that the name is taken.
    agent_until INTEGER,
    -- NULL: the name is the owner's until the tunnel is deleted. Otherwise until then, and for a
    -- deleted tunnel too (the quarantine): nobody else gets it before.
    held_until INTEGER
);
CREATE INDEX idx_tunnels_user_id ON tunnels (user_id, id);
CREATE UNIQUE INDEX idx_tunnels_subdomain ON tunnels (subdomain) WHERE status <> 'deleted';
CREATE INDEX idx_tunnels_quarantine ON tunnels (subdomain, held_until) WHERE status = 'deleted';
CREATE INDEX idx_tunnels_status ON tunnels (status, held_until);

CREATE TABLE tunnel_sessions (
    id BLOB PRIMARY KEY,
    -- The agent's connection, which may serve several tunnels.
    session_id BLOB NOT NULL,
    tunnel_id BLOB NOT NULL REFERENCES tunnels (id) ON DELETE CASCADE,
    client_id TEXT NOT NULL CHECK (length(client_id) <= 255),
    server_id TEXT NOT NULL CHECK (length(server_id) <= 255),
    token_id BLOB,
    peer TEXT NOT NULL DEFAULT '' CHECK (length(peer) <= 64),
    agent_version TEXT NOT NULL DEFAULT '' CHECK (length(agent_version) <= 64),
    connected_at INTEGER NOT NULL,
    disconnected_at INTEGER,
    last_heartbeat INTEGER,
    status TEXT NOT NULL DEFAULT 'connected' CHECK (status IN ('connected', 'disconnected'))
);
CREATE INDEX idx_sessions_tunnel_id ON tunnel_sessions (tunnel_id, id);
CREATE INDEX idx_sessions_session_id ON tunnel_sessions (session_id);
CREATE INDEX idx_sessions_status ON tunnel_sessions (status, last_heartbeat);

CREATE TABLE tunnel_requests (
    id BLOB NOT NULL,
    tunnel_id BLOB NOT NULL REFERENCES tunnels (id) ON DELETE CASCADE,
    request_id TEXT NOT NULL CHECK (length(request_id) <= 255),
    method TEXT NOT NULL CHECK (length(method) <= 32),
    path TEXT NOT NULL CHECK (length(path) <= 500),
    status_code INTEGER,
    latency_ms INTEGER,
    request_size INTEGER,
    response_size INTEGER,
    created_at INTEGER NOT NULL,
    visitor TEXT NOT NULL DEFAULT '' CHECK (length(visitor) <= 64),
    -- The UR- number of an error of ours; 0: none.
    error_code INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (id)
) WITHOUT ROWID;
CREATE INDEX idx_requests_tunnel_id ON tunnel_requests (tunnel_id, id);
CREATE INDEX idx_requests_created_at ON tunnel_requests (created_at);

CREATE TABLE tunnel_tokens (
    id BLOB PRIMARY KEY,
    user_id BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- SHA-256 in hexadecimal: the token has 190 random bits, so that a slow hash would add nothing.
    token_hash TEXT NOT NULL UNIQUE CHECK (length(token_hash) <= 64),
    -- Its first characters, by which its owner knows it.
    hint TEXT NOT NULL CHECK (length(hint) <= 16),
    name TEXT NOT NULL DEFAULT '' CHECK (length(name) <= 255),
    expires_at INTEGER,
    created_at INTEGER NOT NULL,
    last_used_at INTEGER,
    is_active INTEGER NOT NULL DEFAULT 1,
    -- What it may be used for; see the API's TokenScopes.
    scopes TEXT NOT NULL DEFAULT '{}',
    -- The token that it takes over from, which expires after the overlap.
    replaces BLOB
);
CREATE INDEX idx_tokens_user_id ON tunnel_tokens (user_id, id);
CREATE INDEX idx_tokens_hash ON tunnel_tokens (token_hash);

CREATE TABLE domains (
    id BLOB PRIMARY KEY,
    user_id BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL CHECK (length(name) <= 255),
    tunnel_id BLOB REFERENCES tunnels (id) ON DELETE SET NULL,
    -- What the TXT record of its owner holds.
    proof TEXT NOT NULL CHECK (length(proof) <= 64),
    verified_at INTEGER,
    checked_at INTEGER,
    created_at INTEGER NOT NULL
);
CREATE UNIQUE INDEX idx_domains_user_name ON domains (user_id, name);
CREATE UNIQUE INDEX idx_domains_verified ON domains (name) WHERE verified_at IS NOT NULL;

CREATE TABLE acme_accounts (
    id BLOB PRIMARY KEY,
    directory TEXT NOT NULL UNIQUE CHECK (length(directory) <= 255),
    -- Encrypted with a key from the edges' secret file.
    credentials BLOB NOT NULL,
    created_at INTEGER NOT NULL
);

CREATE TABLE certificates (
    id BLOB PRIMARY KEY,
    name TEXT NOT NULL CHECK (length(name) <= 255),
    domain_id BLOB REFERENCES domains (id) ON DELETE CASCADE,
    chain TEXT NOT NULL,
    -- Encrypted, as above.
    private_key BLOB NOT NULL,
    not_before INTEGER NOT NULL,
    not_after INTEGER NOT NULL,
    created_at INTEGER NOT NULL
);
CREATE INDEX idx_certificates_name ON certificates (name, not_after);

CREATE TABLE captures (
    id BLOB PRIMARY KEY,
    tunnel_id BLOB NOT NULL REFERENCES tunnels (id) ON DELETE CASCADE,
    request_id TEXT NOT NULL CHECK (length(request_id) <= 255),
    created_at INTEGER NOT NULL,
    head BLOB NOT NULL,
    request_body BLOB NOT NULL,
    response_body BLOB NOT NULL
);
CREATE INDEX idx_captures_tunnel_id ON captures (tunnel_id, id);

-- Every change, and everything suspicious: who, what, from where. Never updated. Edges read it, too,
-- to learn of changes that nobody told them of.
CREATE TABLE audit_log (
    id BLOB PRIMARY KEY,
    at INTEGER NOT NULL,
    -- Whose it is: users see their own, operators all.
    user_id BLOB,
    tunnel_id BLOB,
    -- Who did it: a user; NULL: an agent, an edge or the command line, as `actor` says.
    actor_id BLOB,
    actor TEXT NOT NULL CHECK (length(actor) <= 255),
    peer TEXT NOT NULL DEFAULT '' CHECK (length(peer) <= 64),
    -- Such as `tunnel.paused`.
    action TEXT NOT NULL CHECK (length(action) <= 64),
    object TEXT NOT NULL DEFAULT '' CHECK (length(object) <= 255),
    details TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX idx_audit_user_id ON audit_log (user_id, id);
CREATE INDEX idx_audit_at ON audit_log (at);

CREATE TABLE idempotency_keys (
    user_id BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    key TEXT NOT NULL CHECK (length(key) <= 255),
    -- SHA-256 of method, path and body: another request under the same key is refused.
    request_hash TEXT NOT NULL CHECK (length(request_hash) <= 64),
    -- NULL: under way.
    status INTEGER,
    body BLOB,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, key)
);
CREATE INDEX idx_idempotency_created_at ON idempotency_keys (created_at);

-- What one edge counted in one minute, as it stands: written again, it replaces itself.
CREATE TABLE request_minutes (
    tunnel_id BLOB NOT NULL REFERENCES tunnels (id) ON DELETE CASCADE,
    minute INTEGER NOT NULL,
    server_id TEXT NOT NULL CHECK (length(server_id) <= 64),
    requests INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    bytes_in INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    -- A histogram of the times to the whole answer, in its compact form.
    latencies BLOB NOT NULL,
    PRIMARY KEY (tunnel_id, minute, server_id)
);
CREATE INDEX idx_minutes_minute ON request_minutes (minute);

CREATE TABLE request_hours (
    tunnel_id BLOB NOT NULL REFERENCES tunnels (id) ON DELETE CASCADE,
    hour INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    bytes_in INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    latencies BLOB NOT NULL,
    PRIMARY KEY (tunnel_id, hour)
);
CREATE INDEX idx_hours_hour ON request_hours (hour);

CREATE TABLE usage_months (
    user_id BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- Its first instant, in UTC.
    month INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    bytes_in INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    PRIMARY KEY (user_id, month)
);

-- What runs once for all edges, and how far it has come. Only a newer fence may write.
CREATE TABLE jobs (
    name TEXT PRIMARY KEY CHECK (length(name) <= 64),
    fence INTEGER NOT NULL DEFAULT 0,
    done_until INTEGER,
    ran_at INTEGER,
    outcome TEXT NOT NULL DEFAULT '' CHECK (length(outcome) <= 255)
);
