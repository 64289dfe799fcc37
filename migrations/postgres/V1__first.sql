-- Times are instants (timestamptz), sizes 64 bit, identifiers UUID v7 that the edges make.
-- Text that comes from outside is cut to its column before it gets here. Keys that are text are in
-- the order of their bytes, as in SQLite.

CREATE TABLE plans (
    name VARCHAR(64) COLLATE "C" PRIMARY KEY,
    -- NULL anywhere: no limit.
    requests_per_second INTEGER CHECK (requests_per_second > 0),
    tunnel_requests_per_second INTEGER CHECK (tunnel_requests_per_second > 0),
    tunnels INTEGER CHECK (tunnels >= 0),
    agents INTEGER CHECK (agents >= 0),
    bandwidth_bytes_per_second BIGINT CHECK (bandwidth_bytes_per_second > 0),
    transfer_bytes_per_month BIGINT CHECK (transfer_bytes_per_month > 0),
    updated_at TIMESTAMPTZ NOT NULL
);
INSERT INTO plans (name, updated_at) VALUES ('default', now());

CREATE TABLE users (
    id UUID PRIMARY KEY,
    -- In lower case; compared without regard to case.
    email VARCHAR(255) NOT NULL,
    -- argon2id, or '!' where no password fits.
    password_hash VARCHAR(255) NOT NULL,
    role VARCHAR(16) NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'operator', 'admin')),
    plan VARCHAR(64) NOT NULL DEFAULT 'default' REFERENCES plans (name),
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    is_active BOOLEAN NOT NULL DEFAULT true,
    failed_logins INTEGER NOT NULL DEFAULT 0,
    locked_until TIMESTAMPTZ
);
CREATE UNIQUE INDEX idx_users_email ON users (lower(email));

-- One row a login; the refresh token of the last rotation is the only one that is good.
CREATE TABLE logins (
    id UUID PRIMARY KEY,
    user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    token_hash VARCHAR(64) NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    refreshed_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    revoked_at TIMESTAMPTZ,
    peer VARCHAR(64) NOT NULL,
    user_agent VARCHAR(255) NOT NULL DEFAULT ''
);
CREATE INDEX idx_logins_user_id ON logins (user_id);

-- Keys of access tokens are derived from the edges' secret file and the kid: no secret is in here.
CREATE TABLE signing_keys (
    kid VARCHAR(36) COLLATE "C" PRIMARY KEY,
    created_at TIMESTAMPTZ NOT NULL,
    retired_at TIMESTAMPTZ
);

CREATE TABLE invites (
    id UUID PRIMARY KEY,
    token_hash VARCHAR(64) NOT NULL UNIQUE,
    email VARCHAR(255),
    role VARCHAR(16) NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'operator', 'admin')),
    created_by UUID REFERENCES users (id) ON DELETE SET NULL,
    created_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    used_at TIMESTAMPTZ
);

CREATE TABLE tunnels (
    id UUID PRIMARY KEY,
    user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    subdomain VARCHAR(63) COLLATE "C" NOT NULL,
    kind VARCHAR(8) NOT NULL DEFAULT 'http' CHECK (kind IN ('http', 'tls', 'tcp', 'udp')),
    port INTEGER,
    custom_domain VARCHAR(255),
    local_url VARCHAR(255) NOT NULL DEFAULT '',
    public_url VARCHAR(255) NOT NULL DEFAULT '',
    status VARCHAR(20) NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'paused', 'deleted')),
    region VARCHAR(10) NOT NULL DEFAULT 'us',
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    last_active_at TIMESTAMPTZ,
    request_count BIGINT NOT NULL DEFAULT 0,
    metadata JSONB NOT NULL DEFAULT '{}',
    -- Changes with every change of what a user may set: the ETag.
    version BIGINT NOT NULL DEFAULT 1,
    requests_per_second INTEGER CHECK (requests_per_second > 0),
    -- Which agent has the name, since which claim: the highest epoch counts. NULL: none.
    agent_id VARCHAR(64),
    epoch BIGINT NOT NULL DEFAULT 0,
    -- Until then another agent of the owner's is told that the name is taken.
    agent_until TIMESTAMPTZ,
    -- NULL: the name is the owner's until the tunnel is deleted. Otherwise until then, and for a
    -- deleted tunnel too (the quarantine): nobody else gets it before.
    held_until TIMESTAMPTZ
);
CREATE INDEX idx_tunnels_user_id ON tunnels (user_id, id);
CREATE UNIQUE INDEX idx_tunnels_subdomain ON tunnels (subdomain) WHERE status <> 'deleted';
CREATE INDEX idx_tunnels_quarantine ON tunnels (subdomain, held_until) WHERE status = 'deleted';
CREATE INDEX idx_tunnels_status ON tunnels (status, held_until);

CREATE TABLE tunnel_sessions (
    id UUID PRIMARY KEY,
    -- The agent's connection, which may serve several tunnels.
    session_id UUID NOT NULL,
    tunnel_id UUID NOT NULL REFERENCES tunnels (id) ON DELETE CASCADE,
    client_id VARCHAR(255) NOT NULL,
    server_id VARCHAR(255) NOT NULL,
    token_id UUID,
    peer VARCHAR(64) NOT NULL DEFAULT '',
    agent_version VARCHAR(64) NOT NULL DEFAULT '',
    connected_at TIMESTAMPTZ NOT NULL,
    disconnected_at TIMESTAMPTZ,
    last_heartbeat TIMESTAMPTZ,
    status VARCHAR(20) NOT NULL DEFAULT 'connected' CHECK (status IN ('connected', 'disconnected'))
);
CREATE INDEX idx_sessions_tunnel_id ON tunnel_sessions (tunnel_id, id);
CREATE INDEX idx_sessions_session_id ON tunnel_sessions (session_id);
CREATE INDEX idx_sessions_status ON tunnel_sessions (status, last_heartbeat);

-- Partitions by day are made and dropped by the retention job; the default one takes what has none.
CREATE TABLE tunnel_requests (
    id UUID NOT NULL,
    tunnel_id UUID NOT NULL REFERENCES tunnels (id) ON DELETE CASCADE,
    request_id VARCHAR(255) NOT NULL,
    method VARCHAR(32) NOT NULL,
    path VARCHAR(500) NOT NULL,
    status_code INTEGER,
    latency_ms INTEGER,
    request_size BIGINT,
    response_size BIGINT,
    created_at TIMESTAMPTZ NOT NULL,
    visitor VARCHAR(64) NOT NULL DEFAULT '',
    -- The UR- number of an error of ours; 0: none.
    error_code INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
CREATE TABLE tunnel_requests_default PARTITION OF tunnel_requests DEFAULT;
CREATE INDEX idx_requests_tunnel_id ON tunnel_requests (tunnel_id, id);
CREATE INDEX idx_requests_created_at ON tunnel_requests (created_at);

CREATE TABLE tunnel_tokens (
    id UUID PRIMARY KEY,
    user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- SHA-256 in hexadecimal: the token has 190 random bits, so that a slow hash would add nothing.
    token_hash VARCHAR(64) NOT NULL UNIQUE,
    -- Its first characters, by which its owner knows it.
    hint VARCHAR(16) NOT NULL,
    name VARCHAR(255) NOT NULL DEFAULT '',
    expires_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL,
    last_used_at TIMESTAMPTZ,
    is_active BOOLEAN NOT NULL DEFAULT true,
    -- What it may be used for; see the API's TokenScopes.
    scopes JSONB NOT NULL DEFAULT '{}',
    -- The token that it takes over from, which expires after the overlap.
    replaces UUID
);
CREATE INDEX idx_tokens_user_id ON tunnel_tokens (user_id, id);
CREATE INDEX idx_tokens_hash ON tunnel_tokens (token_hash);

CREATE TABLE domains (
    id UUID PRIMARY KEY,
    user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name VARCHAR(255) NOT NULL,
    tunnel_id UUID REFERENCES tunnels (id) ON DELETE SET NULL,
    -- What the TXT record of its owner holds.
    proof VARCHAR(64) NOT NULL,
    verified_at TIMESTAMPTZ,
    checked_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL
);
CREATE UNIQUE INDEX idx_domains_user_name ON domains (user_id, name);
CREATE UNIQUE INDEX idx_domains_verified ON domains (name) WHERE verified_at IS NOT NULL;

CREATE TABLE acme_accounts (
    id UUID PRIMARY KEY,
    directory VARCHAR(255) NOT NULL UNIQUE,
    -- Encrypted with a key from the edges' secret file.
    credentials BYTEA NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE certificates (
    id UUID PRIMARY KEY,
    name VARCHAR(255) NOT NULL,
    domain_id UUID REFERENCES domains (id) ON DELETE CASCADE,
    chain TEXT NOT NULL,
    -- Encrypted, as above.
    private_key BYTEA NOT NULL,
    not_before TIMESTAMPTZ NOT NULL,
    not_after TIMESTAMPTZ NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX idx_certificates_name ON certificates (name, not_after);

CREATE TABLE captures (
    id UUID PRIMARY KEY,
    tunnel_id UUID NOT NULL REFERENCES tunnels (id) ON DELETE CASCADE,
    request_id VARCHAR(255) NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    head BYTEA NOT NULL,
    request_body BYTEA NOT NULL,
    response_body BYTEA NOT NULL
);
CREATE INDEX idx_captures_tunnel_id ON captures (tunnel_id, id);

-- Every change, and everything suspicious: who, what, from where. Never updated. Edges read it, too,
-- to learn of changes that nobody told them of.
CREATE TABLE audit_log (
    id UUID PRIMARY KEY,
    at TIMESTAMPTZ NOT NULL,
    -- Whose it is: users see their own, operators all.
    user_id UUID,
    tunnel_id UUID,
    -- Who did it: a user; NULL: an agent, an edge or the command line, as `actor` says.
    actor_id UUID,
    actor VARCHAR(255) NOT NULL,
    peer VARCHAR(64) NOT NULL DEFAULT '',
    -- Such as `tunnel.paused`.
    action VARCHAR(64) NOT NULL,
    object VARCHAR(255) NOT NULL DEFAULT '',
    details JSONB NOT NULL DEFAULT '{}'
);
CREATE INDEX idx_audit_user_id ON audit_log (user_id, id);
CREATE INDEX idx_audit_at ON audit_log (at);

CREATE TABLE idempotency_keys (
    user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    key VARCHAR(255) COLLATE "C" NOT NULL,
    -- SHA-256 of method, path and body: another request under the same key is refused.
    request_hash VARCHAR(64) NOT NULL,
    -- NULL: under way.
    status INTEGER,
    body BYTEA,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (user_id, key)
);
CREATE INDEX idx_idempotency_created_at ON idempotency_keys (created_at);

-- What one edge counted in one minute, as it stands: written again, it replaces itself.
CREATE TABLE request_minutes (
    tunnel_id UUID NOT NULL REFERENCES tunnels (id) ON DELETE CASCADE,
    minute TIMESTAMPTZ NOT NULL,
    server_id VARCHAR(64) COLLATE "C" NOT NULL,
    requests BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    bytes_in BIGINT NOT NULL,
    bytes_out BIGINT NOT NULL,
    -- A histogram of the times to the whole answer, in its compact form.
    latencies BYTEA NOT NULL,
    PRIMARY KEY (tunnel_id, minute, server_id)
);
CREATE INDEX idx_minutes_minute ON request_minutes (minute);

CREATE TABLE request_hours (
    tunnel_id UUID NOT NULL REFERENCES tunnels (id) ON DELETE CASCADE,
    hour TIMESTAMPTZ NOT NULL,
    requests BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    bytes_in BIGINT NOT NULL,
    bytes_out BIGINT NOT NULL,
    latencies BYTEA NOT NULL,
    PRIMARY KEY (tunnel_id, hour)
);
CREATE INDEX idx_hours_hour ON request_hours (hour);

CREATE TABLE usage_months (
    user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- Its first instant, in UTC.
    month TIMESTAMPTZ NOT NULL,
    requests BIGINT NOT NULL,
    bytes_in BIGINT NOT NULL,
    bytes_out BIGINT NOT NULL,
    PRIMARY KEY (user_id, month)
);

-- What runs once for all edges, and how far it has come. Only a newer fence may write.
CREATE TABLE jobs (
    name VARCHAR(64) COLLATE "C" PRIMARY KEY,
    fence BIGINT NOT NULL DEFAULT 0,
    done_until TIMESTAMPTZ,
    ran_at TIMESTAMPTZ,
    outcome VARCHAR(255) NOT NULL DEFAULT ''
);
