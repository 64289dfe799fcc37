//! The one table of errors: every failure that a visitor, an agent's owner or an operator can
//! meet, with its number, its metric label and the words for it.
//!
//! `docs/errors.md` is this table as a page; a test keeps the two equal.

use std::fmt;

/// One kind of failure. It prints as `UR-1001`.
///
/// A number is never used again for something else. Its first digit tells the class: 1 name and
/// route, 2 agent link, 3 local server, 4 access, 5 limits, 6 edge.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// The four digits.
    pub number: u16,
    /// Label for metrics and logs, in kebab case, as stable as the number.
    pub name: &'static str,
    /// The part of the way that failed.
    pub leg: Leg,
    /// HTTP status of the answer; `None` for what only an agent or a log is told.
    pub status: Option<u16>,
    /// What happened, in a few words and without a full stop.
    pub title: &'static str,
    /// Why it happens, for whoever sees it; full sentences.
    pub cause: &'static str,
    /// What to do, for whoever can do it; full sentences.
    pub fix: &'static str,
    /// How loudly it is logged.
    pub level: Level,
    /// Seconds after which to try again. Every 503 has it, and nothing else.
    pub retry_after: Option<u32>,
}

impl Code {
    /// Looks up a code by its four digits.
    #[must_use]
    pub fn from_number(number: u16) -> Option<&'static Self> {
        ALL.iter().copied().find(|code| code.number == number)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UR-{:04}", self.number)
    }
}

/// The parts of the way from a visitor to a local server, and the check that stands beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leg {
    /// The visitor's request itself.
    Visitor,
    /// The public server.
    Edge,
    /// The connection between edge and agent.
    Link,
    /// The agent, or its settings.
    Agent,
    /// The local server behind the agent.
    Upstream,
    /// Tokens and permissions.
    Access,
}

impl Leg {
    /// The word for programs: `visitor`, `edge`, `link`, `agent`, `upstream` or `access`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Visitor => "visitor",
            Self::Edge => "edge",
            Self::Link => "link",
            Self::Agent => "agent",
            Self::Upstream => "upstream",
            Self::Access => "access",
        }
    }
}

/// How loudly a failure is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// Everyday noise, such as a scanner trying names.
    Debug,
    /// Normal, and worth knowing.
    Info,
    /// Something does not work for someone.
    Warn,
    /// Someone should act.
    Error,
}

/// Turns each row into an associated constant and all of them into [`ALL`].
macro_rules! codes {
    ($(
        $constant:ident $number:literal $name:literal $leg:ident $level:ident
        status($($status:literal)?) retry($($retry:literal)?)
        title: $title:literal
        cause: $cause:literal
        fix: $fix:literal
    )+) => {
        impl Code {
            $(
                #[doc = concat!("`UR-", $number, "`: ", $title, ".")]
                pub const $constant: Self = Self {
                    number: $number,
                    name: $name,
                    leg: Leg::$leg,
                    status: codes!(@option $($status)?),
                    title: $title,
                    cause: $cause,
                    fix: $fix,
                    level: Level::$level,
                    retry_after: codes!(@option $($retry)?),
                };
            )+
        }

        /// Every code there is, by rising number.
        pub static ALL: &[&Code] = &[$(&Code::$constant),+];

        /// Constant and metric label of each.
        #[cfg(test)]
        const LABELS: &[(&str, &str)] = &[$((stringify!($constant), $name)),+];
    };
    (@option) => { None };
    (@option $value:literal) => { Some($value) };
}

codes! {
    UNKNOWN_TUNNEL 1001 "unknown-tunnel" Visitor Debug status(404) retry()
    title: "No tunnel has this address"
    cause: "The edge knows no tunnel of this name. The address may be mistyped, or the tunnel was \
        temporary and has been closed."
    fix: "Check the address. If the tunnel is yours, start the agent again and use the address \
        that it prints; a name of your own choice (`--name`) stays the same."

    BAD_HOST 1002 "bad-host" Visitor Debug status(400) retry()
    title: "The host name of the request cannot be used"
    cause: "The request names no host, names several, or names one that is not a valid host name, \
        so the edge cannot tell which tunnel is meant."
    fix: "Send exactly one valid `Host` field (`:authority` in HTTP/2) that agrees with the URL."

    NOT_FOUND_ON_EDGE 1003 "not-found-on-edge" Visitor Debug status(404) retry()
    title: "The edge has no such page"
    cause: "This is the edge's own address, not that of a tunnel, and nothing is at this path."
    fix: "To reach a tunnel, use its own address, which the agent prints when it starts."

    METHOD_REFUSED 1004 "method-refused" Visitor Debug status(405) retry()
    title: "This HTTP method is not allowed"
    cause: "`CONNECT` and `TRACE` do not pass through a tunnel: they address proxies, not sites."
    fix: "Use another method. For connections that are not HTTP, open a TCP tunnel."

    BAD_REQUEST 1005 "bad-request" Visitor Debug status(400) retry()
    title: "The request is not valid HTTP"
    cause: "The request could be understood in more than one way, or in none, so it was not passed \
        on to the local server."
    fix: "Check the program that sent it: its request line, its header fields, and that it gives \
        the length of the body once and in one way."

    MISDIRECTED 1006 "misdirected" Visitor Debug status(421) retry()
    title: "The request came over a connection for another host"
    cause: "The secure connection was made for one host name and the request asks for another."
    fix: "Open a new connection for this host; browsers do so by themselves."

    HTTP_VERSION 1007 "http-version" Visitor Debug status(505) retry()
    title: "This version of HTTP is not spoken here"
    cause: "The request's first line names a version of HTTP other than 1.1 and 1.0. Version 2 begins \
        with a preface of its own."
    fix: "Use version 1.1 or 2."

    PAUSED 1010 "paused" Visitor Debug status(503) retry(30)
    title: "This tunnel is paused"
    cause: "Its owner lets nobody in for now. The agent may be connected all the same."
    fix: "Come back later. If the tunnel is yours, resume it in the dashboard or with \
        `POST /api/v1/tunnels/ID/resume`."

    NAME_TAKEN 1101 "name-taken" Agent Info status() retry()
    title: "The name is already in use"
    cause: "The tunnel name belongs to someone else, or another agent of yours is serving it."
    fix: "Choose another name, or stop the other agent first."

    NAME_RESERVED 1102 "name-reserved" Agent Info status() retry()
    title: "The name is reserved"
    cause: "The edge keeps this name for its own pages or for a well-known service."
    fix: "Choose another name."

    NAME_INVALID 1103 "name-invalid" Agent Info status() retry()
    title: "The name is not valid"
    cause: "A tunnel name is one DNS label: 1 to 63 letters, digits and hyphens, no hyphen at \
        either end and none as third and fourth character."
    fix: "Choose a name that keeps to this, such as `my-app`."

    TOO_MANY_TUNNELS 1104 "too-many-tunnels" Agent Info status() retry()
    title: "Too many tunnels"
    cause: "The agent asked for more tunnels than the edge allows for it."
    fix: "Close tunnels that are not needed, or ask the edge's operator for a higher limit."

    TUNNEL_KIND_UNSUPPORTED 1105 "tunnel-kind-unsupported" Agent Info status() retry()
    title: "The edge does not offer this kind of tunnel"
    cause: "The edge is too old for this kind of tunnel, or its operator has not switched it on."
    fix: "Use another kind of tunnel, or ask the edge's operator to enable this one."

    NOT_HTTP 1110 "not-http" Visitor Debug status(421) retry()
    title: "This is no web address"
    cause: "The name belongs to a tunnel that carries TLS, TCP or UDP, and the request came by HTTP \
        to the port for HTTP tunnels."
    fix: "Use the address that the tunnel's agent prints. A TLS tunnel takes `https` at the edge's \
        port for TLS."

    PORT_TAKEN 1111 "port-taken" Agent Info status() retry()
    title: "The port is already in use"
    cause: "The public port belongs to someone else, or another tunnel of yours has it."
    fix: "Choose another port, or none and take the one that the edge chooses; or stop the other \
        agent first."

    PORT_OUT_OF_RANGE 1112 "port-out-of-range" Agent Info status() retry()
    title: "The port is not one for tunnels"
    cause: "The edge gives out ports of one range for each of TCP and UDP, and the port wished for \
        is in none."
    fix: "Choose a port of the edge's range, or none and take the one that the edge chooses."

    PORT_UNUSABLE 1113 "port-unusable" Agent Warn status() retry()
    title: "The edge can't listen on the port"
    cause: "Another program on the edge's machine has the port, or the edge may not use it."
    fix: "Choose another port, or none. The edge's operator sees the system's reason in its log."

    PORTS_EXHAUSTED 1114 "ports-exhausted" Agent Warn status() retry()
    title: "The edge has no port left"
    cause: "All ports of the edge's range belong to tunnels, or can't be listened on."
    fix: "Close tunnels that are not needed; the port of a lost agent is free after ten minutes. The \
        edge's operator can give a larger range."

    UNKNOWN_SERVER_NAME 1115 "unknown-server-name" Visitor Debug status() retry()
    title: "No TLS tunnel has this server name"
    cause: "A TLS connection asked for a name that no TLS tunnel has, or for none (SNI). It got the \
        alert `unrecognized_name`."
    fix: "Connect by the name that the tunnel's agent prints, with a client that sends it."

    BAD_CLIENT_HELLO 1116 "bad-client-hello" Visitor Debug status() retry()
    title: "The connection does not begin as TLS does"
    cause: "What came on the port for TLS is no ClientHello, or one of more than 16 KiB, or it was \
        not whole in time."
    fix: "Speak TLS on this port: `https`, not `http`."
    PATH_AMBIGUOUS 1120 "path-ambiguous" Visitor Debug status(400) retry()
    title: "The path can be read in different ways"
    cause: "The tunnel sends paths to different servers, and this one has dot segments or encoded \
        slashes by which servers would disagree about where it belongs."
    fix: "Send the path in its plain form: without `.` and `..`, without doubled slashes, and \
        without percent encodings of characters that need none."

    POLICY_REFUSED 1121 "policy-refused" Agent Warn status() retry()
    title: "The settings of the tunnel cannot be used"
    cause: "The edge cannot follow what the agent wants done with the tunnel's requests, and \
        following half of it could let in whom the owner keeps out."
    fix: "Correct the setting that the message names. If it is one of a newer version, update the \
        edge."

    NO_AGENT 2001 "no-agent" Agent Info status(503) retry(5)
    title: "The tunnel is not connected"
    cause: "The tunnel exists, but no agent is connected that serves it. Its owner's machine may \
        be off or without a network, or the agent is not running."
    fix: "Start the agent, or see in its output why it does not connect. `uniroute diagnose` \
        checks the way to the edge."

    LINK_LOST 2002 "link-lost" Link Warn status(502) retry()
    title: "The connection to the agent was lost"
    cause: "The agent's connection ended after the request was sent and before it was answered. \
        Whether the local server has acted on the request is not known."
    fix: "Try again if the request may safely be made twice. If it happens often, look at the \
        network between agent and edge, and in the agent's output for reconnects."

    STREAM_LIMIT 2003 "stream-limit" Link Warn status(503) retry(1)
    title: "The tunnel is busy"
    cause: "The agent's connection carries as many requests at once as it may."
    fix: "Try again in a moment. If it happens often, make the local server answer faster, run a \
        second agent for this tunnel, or raise the limit of streams per session."

    AGENT_PROTOCOL 2004 "agent-protocol" Agent Warn status(502) retry()
    title: "The agent's answer makes no sense"
    cause: "The agent answered with something that the tunnel protocol does not allow."
    fix: "Update agent and edge to current versions. If it goes on, report it with the request id."

    ANSWER_TIMEOUT 2005 "answer-timeout" Agent Warn status(504) retry()
    title: "The agent did not answer in time"
    cause: "The request was handed to the agent, and neither an answer nor an error came back in \
        the time allowed."
    fix: "See in the agent's output whether the request arrived. The agent's machine may be \
        overloaded or asleep, or its network very slow."

    HANDSHAKE_TIMEOUT 2101 "handshake-timeout" Link Info status() retry()
    title: "The handshake took too long"
    cause: "The agent's connection was open, but it did not say in time who it is and what it \
        wants."
    fix: "Look at the network between agent and edge; a proxy in between may hold data back."

    VERSION_MISMATCH 2102 "version-mismatch" Link Warn status() retry()
    title: "Agent and edge speak different versions"
    cause: "There is no version of the tunnel protocol that both of them know."
    fix: "Update the older of the two."

    BAD_FRAME 2103 "bad-frame" Link Warn status() retry()
    title: "Damaged data on the agent's connection"
    cause: "A message was larger than allowed or could not be decoded, so the connection was \
        closed."
    fix: "Update agent and edge to current versions. If it goes on, something between them changes \
        the data, or another program is connecting."

    HEARTBEAT_LOST 2104 "heartbeat-lost" Link Warn status() retry()
    title: "The other side fell silent"
    cause: "Nothing came over the agent's connection for too long, not even a heartbeat, so it was \
        closed."
    fix: "The agent reconnects by itself. If it happens often, look at the network, at sleep \
        settings, and at firewalls that drop idle connections."

    BAD_UPGRADE 2105 "bad-upgrade" Link Debug status(426) retry()
    title: "Only agents can connect here"
    cause: "This path takes WebSocket connections with the subprotocol `uniroute.v1`, and the \
        request is not a proper one."
    fix: "Connect with the agent. If that was an agent, a proxy in between may not pass WebSocket \
        upgrades on."

    SESSION_REPLACED 2106 "session-replaced" Agent Info status() retry()
    title: "A newer connection took over"
    cause: "The same agent connected again, so its older connection was closed."
    fix: "Nothing, after a reconnect. If it goes on, two agents use one agent id: give each its \
        own."

    LANE_REFUSED 2107 "lane-refused" Link Info status() retry()
    title: "The connection can't be a lane"
    cause: "An agent opened one more connection for long bodies of its session, and this edge does \
        not hold that session, or it has as many lanes as it may."
    fix: "Nothing: the session goes on without it. Behind a load balancer the connection may have \
        reached another edge."

    CONNECTION_IDLE 2110 "connection-idle" Agent Debug status() retry()
    title: "Nothing moved on the connection for too long"
    cause: "No byte came either way for as long as the tunnel's idle timeout allows, so the \
        connection was ended."
    fix: "Let one side send a sign of life now and then (keepalive), or give the tunnel a longer \
        idle timeout."

    SESSION_CUT 2111 "session-cut" Agent Info status() retry()
    title: "The session was ended by hand"
    cause: "Its owner or an operator has ended it in the dashboard or through the API."
    fix: "Nothing, if that was meant: the agent connects again by itself, unless its token was \
        revoked."

    TUNNEL_DELETED 2112 "tunnel-deleted" Agent Warn status() retry()
    title: "The tunnel was deleted"
    cause: "Its owner or an operator has deleted it in the dashboard or through the API."
    fix: "Start the agent again if you want the tunnel back; its name stays yours for a while."

    TUNNEL_TAKEN_OVER 2113 "tunnel-taken-over" Agent Info status() retry()
    title: "Another session serves the tunnel now"
    cause: "An agent of the same owner has claimed the name later, on another edge."
    fix: "Stop one of the two agents, or give them different names."

    LOCAL_HOST_REFUSED 2201 "local-host-refused" Agent Info status(403) retry()
    title: "The request does not name this machine"
    cause: "The agent's local API answers only those who call it `localhost`, `127.0.0.1`, `[::1]` or the \
        address that it listens at, so that no web page can lead a name of its own to it."
    fix: "Open `http://127.0.0.1:PORT`, with the port that the agent prints. To reach it by another \
        address of this machine, make that the inspector's (`--inspector ADDRESS:PORT`)."

    LOCAL_ORIGIN_REFUSED 2202 "local-origin-refused" Agent Info status(403) retry()
    title: "The request comes from another page"
    cause: "A browser says that a page which is not the agent's own has sent the request."
    fix: "Use the inspector's own page, or a program that sends no `Origin`."

    LOCAL_UNMARKED 2203 "local-unmarked" Agent Info status(403) retry()
    title: "The request does not say that it is meant"
    cause: "What changes something has to carry a field that no plain form of a web page can send."
    fix: "Add the field `X-Uniroute: 1`, or `Content-Type: application/json`."

    LOCAL_NO_SUCH_PATH 2204 "local-no-such-path" Agent Debug status(404) retry()
    title: "The agent has nothing at this path"
    cause: "The path of the request is none of the page, of the API or of the metrics."
    fix: "Check the path: docs/inspector.md lists them."

    LOCAL_METHOD 2205 "local-method" Agent Debug status(405) retry()
    title: "This cannot be done with this path"
    cause: "The path is there, and the method of the request is not for it."
    fix: "Use the method that docs/inspector.md names for the path."

    LOCAL_INPUT 2206 "local-input" Agent Debug status(422) retry()
    title: "The request cannot be read"
    cause: "Its body is not the JSON that is asked for here, or a parameter of its query has no such value."
    fix: "Correct what `detail` names; docs/inspector.md has the shapes."

    LOCAL_BODY_TOO_LARGE 2207 "local-body-too-large" Agent Debug status(413) retry()
    title: "The body of the request is too large"
    cause: "A call of the local API may have 16 MiB of body."
    fix: "Replay a longer body as it was, from the spool (`spool = true` in `[agent.inspector]`), and \
        not as a new one."

    LOCAL_READERS 2208 "local-readers" Agent Info status(429) retry()
    title: "Too many follow the agent's events"
    cause: "As many pages and programs as may follow its events already."
    fix: "Close pages of the inspector, or `uniroute inspect tail`, that nobody needs; or ask for \
        `/api/v1/requests` once in a while."

    LOCAL_FAILED 2209 "local-failed" Agent Warn status(500) retry()
    title: "The agent could not do it"
    cause: "Something went wrong in the agent that should not. Its tunnels go on."
    fix: "Try again. If it goes on, look into the agent's log, and tell us."

    INSPECTOR_OFF 2210 "inspector-off" Agent Debug status(404) retry()
    title: "The agent keeps no requests"
    cause: "It runs without an inspector."
    fix: "Start it without `--inspector off`, and without `address = \"off\"` in `[agent.inspector]`."

    REQUEST_NOT_KEPT 2211 "request-not-kept" Agent Debug status(404) retry()
    title: "There is no such request"
    cause: "No request that is kept has this id. The oldest go when the inspector's bounds are reached, \
        and all when the agent ends."
    fix: "Look for it in `uniroute inspect list`, or on the page. To keep more, raise `max_requests` and \
        `max_bytes` in `[agent.inspector]`."

    TUNNEL_NOT_SERVED 2212 "tunnel-not-served" Agent Debug status(404) retry()
    title: "The agent serves no such tunnel"
    cause: "None of its tunnels has this key now."
    fix: "`uniroute status` lists them."

    BODY_ENCODED 2213 "body-encoded" Agent Debug status(422) retry()
    title: "The encoding of the body cannot be undone"
    cause: "The agent reads gzip, deflate and br, three of them over each other at most."
    fix: "Ask for the body as it is, without `decoded=1`."

    REPLAY_CHANGES 2214 "replay-changes" Agent Debug status(422) retry()
    title: "The request cannot be changed like this"
    cause: "What is to be different about the replay makes no request that can be sent."
    fix: "Correct what `detail` names."

    REPLAY_NOT_WHOLE 2215 "replay-not-whole" Agent Info status(409) retry()
    title: "Not enough of the request is kept to send it again"
    cause: "Only the beginning of its body is kept in memory, and it is not on disk."
    fix: "Set `spool = true` in `[agent.inspector]` and have the request made again, so that its body is \
        kept on disk; or replay it with another body."

    REPLAY_SPOOL_LOST 2216 "replay-spool-lost" Agent Info status(409) retry()
    title: "The body of the request is not whole on disk"
    cause: "It is still being written, or was given up: the disk was too slow or full, or newer bodies \
        took its place."
    fix: "If it is still being written, try again in a moment. Otherwise give the spool more room \
        (`max_spool`) or a faster disk (`spool_dir`), both in `[agent.inspector]`, and have the request \
        made again; or replay it with another body."

    REPLAY_SWITCHED 2217 "replay-switched" Agent Info status(409) retry()
    title: "A request that switched protocols cannot be sent again"
    cause: "What was said after the switch, such as the messages of a WebSocket, would be missing."
    fix: "Connect to the local server with a client for its protocol."

    REPLAY_NO_TUNNEL 2218 "replay-no-tunnel" Agent Info status(409) retry()
    title: "The tunnel of the request is no more"
    cause: "The agent has stopped to serve it since."
    fix: "Name the local server that is to get the request (`upstream`)."

    REPLAY_ELSEWHERE 2219 "replay-elsewhere" Agent Info status(403) retry()
    title: "The request may not be sent there"
    cause: "A replay goes to HTTP servers of this machine (`localhost`, `127.0.0.1`, `[::1]`) and to local \
        servers of the agent's tunnels, so that no page can send requests into your network."
    fix: "Choose one of these, or set `remote_replay = true` in `[agent.inspector]` to allow any."

    TOO_MANY_REPLAYS 2220 "too-many-replays" Agent Info status(429) retry()
    title: "Too many replays are under way"
    cause: "As many as may are waiting for their answers; each ends after 10 minutes at the latest."
    fix: "Try again when one of them has ended."

    NO_CONFIG_FILE 2221 "no-config-file" Agent Info status(409) retry()
    title: "There is nothing to reload"
    cause: "The agent has no config file: it runs what its command line says."
    fix: "Start it with `uniroute start`, which reads a config file."

    RELOAD_REFUSED 2222 "reload-refused" Agent Warn status(422) retry()
    title: "The config file cannot be used"
    cause: "It has a fault, and the agent goes on with what it had."
    fix: "Correct what `detail` names; `uniroute config check` finds every fault."

    TUNNELS_WAIT 2223 "tunnels-wait" Agent Debug status(503) retry(1)
    title: "Not all tunnels take requests"
    cause: "A tunnel has no session with an edge yet, or the edge does not give it."
    fix: "Wait a moment, and see in `uniroute status` why."

    UPSTREAM_REFUSED 3001 "upstream-refused" Upstream Info status(502) retry()
    title: "The local server refused the connection"
    cause: "The tunnel works, but nothing listens at the local address that it leads to."
    fix: "Start the local server, and check that the agent was given its port. `--hold-local 10s` \
        lets requests wait for one that is being restarted."

    UPSTREAM_CONNECT_TIMEOUT 3002 "upstream-connect-timeout" Upstream Info status(504) retry()
    title: "The local server could not be reached in time"
    cause: "The agent tried to connect to the local server, and got neither a connection nor a \
        refusal."
    fix: "Check the local address, and that no firewall drops connections from the agent to it."

    UPSTREAM_TIMEOUT 3003 "upstream-timeout" Upstream Info status(504) retry()
    title: "The local server did not answer in time"
    cause: "The local server took the request and did not begin to answer in the time allowed."
    fix: "See what the local server is doing, or give it more time in the settings of the tunnel."

    UPSTREAM_RESET 3004 "upstream-reset" Upstream Info status(502) retry()
    title: "The local server hung up"
    cause: "The local server closed the connection before it answered. Whether it has acted on the \
        request is not known."
    fix: "Look into the local server's log: it may have crashed or restarted."

    UPSTREAM_BAD_RESPONSE 3005 "upstream-bad-response" Upstream Info status(502) retry()
    title: "The local server's answer is not valid HTTP"
    cause: "What the local server sent cannot be passed on as an HTTP response."
    fix: "Check the port, and that the server speaks HTTP there. If it expects HTTPS, give the \
        agent an `https://` address."

    UPSTREAM_TLS 3006 "upstream-tls" Upstream Info status(502) retry()
    title: "No secure connection to the local server"
    cause: "The agent and the local server could not agree on TLS, or the agent does not trust the \
        server's certificate."
    fix: "If the server speaks plain HTTP, give the agent an `http://` address. If its certificate \
        is self-signed, tell the agent to trust it."

    UPSTREAM_DNS 3007 "upstream-dns" Upstream Info status(502) retry()
    title: "The local server's name was not found"
    cause: "The agent could not find the address of the host that the tunnel leads to."
    fix: "Check the host name in the settings of the tunnel, and name resolution on the agent's \
        machine."

    UPSTREAM_UNREACHABLE 3008 "upstream-unreachable" Upstream Info status(502) retry()
    title: "The local server cannot be reached"
    cause: "There is no way from the agent to the local address: no route to it, no such socket or \
        folder, or no permission to use it."
    fix: "Check the local address, the network of the agent's machine, and the permissions of the \
        agent."

    UPSTREAM_ABORTED 3009 "upstream-aborted" Upstream Info status() retry()
    title: "The local server stopped in the middle of its answer"
    cause: "The answer had begun when the local server's connection ended, so the transfer was cut \
        off, for what came is not the whole."
    fix: "Look into the local server's log: it may have crashed or restarted."

    TOKEN_REFUSED 4001 "token-refused" Access Warn status() retry()
    title: "The token was refused"
    cause: "The edge does not know the agent's token, or it has expired or been revoked."
    fix: "Check `UNIROUTE_TOKEN` or the token file, or ask the edge's operator for a new token."

    CHALLENGE_REPLAYED 4002 "challenge-replayed" Access Warn status() retry()
    title: "The answer does not fit the challenge"
    cause: "The agent's first message answers a challenge that the edge did not give on this \
        connection, as a recorded and repeated message would."
    fix: "Connect again. If it goes on, update the agent, and make sure that nothing between agent \
        and edge repeats data."

    TOKEN_REVOKED 4003 "token-revoked" Access Warn status() retry()
    title: "The token was revoked"
    cause: "Its owner or an operator has revoked the token, or the account was switched off."
    fix: "Make a new token in the dashboard or with `POST /api/v1/tokens`, and give it to the agent."

    TOKEN_EXPIRED 4004 "token-expired" Access Warn status() retry()
    title: "The token has expired"
    cause: "The token was made for a limited time, or another one has taken its place."
    fix: "Make a new token, or use the one that replaced it."

    TOKEN_ADDRESS 4005 "token-address" Access Warn status() retry()
    title: "The token is not for this address"
    cause: "The token may be used from certain networks only, and the agent's address is in none."
    fix: "Connect from one of them, or make a token for this network too."

    OUT_OF_SCOPE 4006 "out-of-scope" Access Info status() retry()
    title: "The token does not allow this tunnel"
    cause: "The token is for other names, ports or kinds of tunnels."
    fix: "Ask for one that it allows, or make a token with wider scopes."

    ADDRESS_BANNED 4007 "address-banned" Access Info status(403) retry()
    title: "This address is locked out for a while"
    cause: "Too many wrong tokens, wrong passwords or requests for names that don't exist came from \
        it."
    fix: "Wait: `retry-after` says for how long. An operator can lift the ban."

    ADDRESS_REFUSED 4010 "address-refused" Access Debug status(403) retry()
    title: "Your address is not let in"
    cause: "The owner of the tunnel lets in visitors from some networks only, and yours is not one \
        of them."
    fix: "Ask the owner of the tunnel, or use another network. If the tunnel is yours, see its \
        settings `allow` and `deny`."

    PASSWORD_NEEDED 4011 "password-needed" Access Debug status(401) retry()
    title: "A name and a password are needed"
    cause: "The owner of the tunnel lets in only who knows a name and its password, and the \
        request has none or not the right ones."
    fix: "Enter the name and the password that the owner of the tunnel gave you. A newly set \
        password counts from the agent's next connection on."

    TOO_MANY_FAILURES 4012 "too-many-failures" Access Info status(429) retry()
    title: "Too many wrong passwords"
    cause: "Many wrong passwords came from your address, so none is looked at for a while."
    fix: "Wait a minute, then try again with the right one."

    SIGNATURE_REFUSED 4013 "signature-refused" Access Info status(403) retry()
    title: "The signature of the webhook is not right"
    cause: "The tunnel takes only requests that carry a valid signature of their body, and this \
        one has none, an old one, or one that does not fit."
    fix: "Use the same secret at the sender and in the settings of the tunnel. If requests are \
        called too old, see to the clocks."

    LOGIN_NEEDED 4020 "login-needed" Access Debug status(401) retry()
    title: "A valid access token is needed"
    cause: "The request has no access token, or one that is over, was not made here, or belongs to a \
        login or an account that has ended."
    fix: "Log in, or renew the access token with the refresh token, and send it as \
        `authorization: Bearer TOKEN`."

    LOGIN_REFUSED 4021 "login-refused" Access Info status(401) retry()
    title: "E-mail address or password is wrong"
    cause: "There is no active account with this e-mail address and this password."
    fix: "Check both. An administrator can set a new password."

    REFRESH_REFUSED 4022 "refresh-refused" Access Info status(401) retry()
    title: "The refresh token is not good"
    cause: "The refresh token is over, was not made here, or has been used before: each is good \
        once. If it had been used, its login has ended, for somebody else may have it."
    fix: "Log in again."

    ROLE_NEEDED 4023 "role-needed" Access Info status(403) retry()
    title: "Your account may not do this"
    cause: "This is for accounts with another role, or for the owner."
    fix: "Ask an administrator of the edge."

    SIGNUP_CLOSED 4024 "signup-closed" Access Info status(403) retry()
    title: "Accounts are not open to everybody"
    cause: "The operator of the edge makes accounts, or invites people to make one."
    fix: "Ask the operator of the edge for an account or an invitation."

    INVITE_REFUSED 4025 "invite-refused" Access Info status(403) retry()
    title: "The invitation is not good"
    cause: "The invitation is over, has been used or taken back, or is for another e-mail address."
    fix: "Ask the operator of the edge for a new one."

    LOGIN_LOCKED 4026 "login-locked" Access Info status(429) retry()
    title: "Too many wrong passwords in a row"
    cause: "Several wrong passwords came for this account or from your address, so none is looked \
        at for a while; each more wrong one doubles the time, up to 15 minutes."
    fix: "Wait as long as `retry-after` says, then try again with the right one."

    LOGINS_BUSY 4027 "logins-busy" Access Info status(503) retry(1)
    title: "Too many logins at once"
    cause: "Checking a password takes a while on purpose, and as many checks wait as may."
    fix: "Try again in a moment."

    ORIGIN_REFUSED 4029 "origin-refused" Access Info status(403) retry()
    title: "A page of another site may not do this"
    cause: "A browser opened the connection for a page that is not the edge's own, as its field \
        `origin` says."
    fix: "Open it from the edge's own pages, at the address that the page has. Programs send no \
        `origin`. A proxy in front of the edge has to pass `host` on as it is, or be named as a \
        trusted one."

    NO_SUCH_THING 4030 "no-such-thing" Access Debug status(404) retry()
    title: "There is no such thing"
    cause: "Nothing is at this path of the API, or nothing that this account can see has this id."
    fix: "Check path and id. `/api/v1/openapi.json` lists all paths."

    API_METHOD 4031 "api-method" Access Debug status(405) retry()
    title: "The path does not take this method"
    cause: "The API has this path, with other methods only; the field `allow` names them."
    fix: "Use one of these."

    INPUT_INVALID 4032 "input-invalid" Access Debug status(400) retry()
    title: "The request is not as the API describes it"
    cause: "Parts of the request have the wrong type or form, are missing, or are not known."
    fix: "Correct what `errors` names. `/api/v1/openapi.json` describes every request."

    BODY_UNREADABLE 4033 "body-unreadable" Access Debug status(400) retry()
    title: "The body is not valid JSON"
    cause: "The body ends too early, or is no JSON in UTF-8."
    fix: "Look at the place that `detail` names."

    MEDIA_TYPE 4034 "media-type" Access Debug status(415) retry()
    title: "The body has to be JSON"
    cause: "The field `content-type` is missing or is not `application/json`."
    fix: "Send JSON, and say so."

    API_BODY_TOO_LARGE 4035 "api-body-too-large" Access Debug status(413) retry()
    title: "The body is too large"
    cause: "Requests to the API have bodies of at most 256 KiB."
    fix: "Send less at once."

    ALREADY_THERE 4040 "already-there" Access Info status(409) retry()
    title: "This is taken, or in use"
    cause: "The name or address belongs to somebody, is reserved, or what is to go is in use."
    fix: "Choose another one, or see to what `detail` names first."

    CHANGED_MEANWHILE 4041 "changed-meanwhile" Access Info status(412) retry()
    title: "It has been changed in the meantime"
    cause: "The `if-match` of the request names a version that is not the last one."
    fix: "Read it again, and decide anew."

    KEY_REUSED 4042 "key-reused" Access Info status(422) retry()
    title: "The idempotency key was used for another request"
    cause: "A request with this `idempotency-key` came within the last 24 hours, and it was not the \
        same one."
    fix: "Use a new key for each new request."

    KEY_UNDER_WAY 4043 "key-under-way" Access Info status(409) retry()
    title: "The same request is under way"
    cause: "A request with this `idempotency-key` has come and is not answered yet."
    fix: "Ask again in a moment, with the same key."

    PLAN_LIMIT 4044 "plan-limit" Access Info status(403) retry()
    title: "The account has as many as it may"
    cause: "The plan of the account, or the edge, allows no more of these."
    fix: "Delete some that are not needed, or ask the operator of the edge for another plan."

    NOT_POSSIBLE 4045 "not-possible" Access Info status(422) retry()
    title: "This cannot be done"
    cause: "The request is well formed, and what it asks for makes no sense or is not allowed."
    fix: "See `detail` and `errors`."

    STORE_AWAY 4050 "store-away" Access Warn status(503) retry(2)
    title: "The edge cannot reach its store"
    cause: "The database of the edge does not answer, or takes no changes. Tunnels that are \
        connected go on."
    fix: "Try again in a moment. The edge's operator sees the reason in its log."

    CONNECTION_LIMIT 5001 "connection-limit" Edge Warn status(503) retry(5)
    title: "Too many connections"
    cause: "The edge has as many connections open as it may, in all or from this address."
    fix: "Try again in a moment. If it happens often, the edge's operator can raise the limits."

    HEAD_TOO_LARGE 5002 "head-too-large" Visitor Debug status(431) retry()
    title: "The header of the request is too large"
    cause: "The request's header fields, often its cookies, are more than the edge takes."
    fix: "Delete the cookies of this site and try again, or send fewer or shorter header fields."

    SESSION_LIMIT 5003 "session-limit" Edge Warn status(503) retry(30)
    title: "Too many agents"
    cause: "The edge has as many agents connected as it may."
    fix: "Try again later, or ask the edge's operator for a higher limit."

    HOLD_LIMIT 5004 "hold-limit" Edge Warn status(503) retry(1)
    title: "Too many visitors wait for agents"
    cause: "The tunnel's agent is not connected right now, and as many requests and connections as \
        may already wait for agents to come back."
    fix: "Try again in a moment. If it happens often, see in the agent's output why it reconnects."

    BODY_TIMEOUT 5005 "body-timeout" Visitor Debug status(408) retry()
    title: "The body of the request did not come"
    cause: "Nothing of the request's body came for a minute, and the body is not whole."
    fix: "Try again, over a better network if it happens often. A program that has nothing to send \
        for so long should end its request, or use a WebSocket."

    VISITOR_STALLED 5006 "visitor-stalled" Visitor Info status() retry()
    title: "The visitor takes nothing of the answer"
    cause: "An answer waited for the visitor to read on, and he did not for as long as the edge allows, \
        so his connection was closed."
    fix: "Nothing, if downloads are paused for long. The edge's operator can give more time \
        (`limits.stall_seconds`)."

    TUNNEL_CONNECTION_LIMIT 5010 "tunnel-connection-limit" Edge Warn status() retry()
    title: "Too many connections to one tunnel"
    cause: "The tunnel has as many connections open as one tunnel may, or as its own `limits.in_flight` \
        allows, so the next one was closed."
    fix: "Close idle ones, or give the tunnel an idle timeout. Raise `limits.in_flight` where it is set; \
        the edge's operator can raise the limit of all tunnels (`limits.tunnel_connections`)."

    FLOW_LIMIT 5012 "flow-limit" Edge Warn status() retry()
    title: "Too many flows of datagrams"
    cause: "The UDP tunnel has as many visitors at once as it may, or as its own `limits.in_flight` \
        allows, all of them busy, so a new one's datagram was dropped."
    fix: "Give the tunnel a shorter idle timeout, or spread the visitors over several tunnels. Raise \
        `limits.in_flight` where it is set; the edge's operator can raise the limit of all tunnels \
        (`limits.tunnel_flows`)."

    IN_FLIGHT_LIMIT 5014 "in-flight-limit" Visitor Info status(503) retry(1)
    title: "The tunnel has as many requests under way as its owner allows"
    cause: "The tunnel's `limits.in_flight` is reached: that many requests wait for their answers, or \
        are being answered, at this edge. WebSockets and event streams count for as long as they are \
        open."
    fix: "Try again in a moment. If the tunnel is yours, raise `limits.in_flight`, or see why the local \
        server takes long: `uniroute inspect tail` shows how long each request has taken."

    BODY_TOO_LARGE 5020 "body-too-large" Visitor Debug status(413) retry()
    title: "The body of the request is too large"
    cause: "The owner of the tunnel takes bodies up to a certain length, and this one is longer."
    fix: "Send less at once. If the tunnel is yours, see its setting `max_body`, and that of its \
        webhook."

    PASSWORD_CHECKS_BUSY 5021 "password-checks-busy" Edge Info status(503) retry(1)
    title: "Too many passwords to check"
    cause: "Checking a password takes long, on purpose, and the edge has as many to check as it \
        may."
    fix: "Try again in a moment."

    TOTAL_TIMEOUT 5022 "total-timeout" Edge Info status(504) retry()
    title: "The request took too long"
    cause: "The owner of the tunnel gives a request and its answer a certain time in all, and it \
        is over."
    fix: "Ask for less at once. If the tunnel is yours, see its setting `total_timeout`."

    IDLE_TIMEOUT 5023 "idle-timeout" Edge Info status(504) retry()
    title: "Nothing came for too long"
    cause: "A body was under way and no byte of it came, in either direction, for as long as the \
        owner of the tunnel allows."
    fix: "Try again. If the tunnel is yours, see its setting `idle_timeout`."

    BODIES_BUSY 5024 "bodies-busy" Edge Warn status(503) retry(1)
    title: "Too many bodies to check"
    cause: "The signatures of webhooks are checked with the whole body at hand, and the edge holds as \
        much as it may."
    fix: "Try again in a moment; senders of webhooks do so by themselves."
    ADDRESS_RATE 5030 "address-rate" Visitor Debug status(429) retry()
    title: "Too many requests from this address"
    cause: "More requests a second come from this address than the edge allows."
    fix: "Wait for as long as `retry-after` says, and send them more slowly."

    TUNNEL_RATE 5031 "tunnel-rate" Visitor Debug status(429) retry()
    title: "Too many requests to this tunnel"
    cause: "More requests a second come to the tunnel than its owner or his plan allows."
    fix: "Wait for as long as `retry-after` says. The owner may raise the tunnel's limit: \
        `limits.requests_per_second` in the agent's config file, or the one that the API and the \
        dashboard show; the lower one holds."

    USER_RATE 5032 "user-rate" Visitor Debug status(429) retry()
    title: "Too many requests to this owner's tunnels"
    cause: "More requests a second come to all tunnels of the owner than his plan allows."
    fix: "Wait for as long as `retry-after` says. The owner may ask for another plan."

    EDGE_RATE 5033 "edge-rate" Edge Info status(429) retry()
    title: "Too many requests to this edge"
    cause: "More requests a second come in than the edge's operator allows."
    fix: "Wait for as long as `retry-after` says."

    TRANSFER_USED 5034 "transfer-used" Visitor Info status(429) retry()
    title: "The owner's transfer of this month is used up"
    cause: "As many bytes went through the owner's tunnels this month as his plan allows."
    fix: "Wait for the next month, or ask the edge's operator for another plan."

    ADDRESS_CONNECTIONS 5035 "address-connections" Visitor Info status(429) retry()
    title: "Too many connections from this address"
    cause: "One address has as many connections open as the edge allows."
    fix: "Close some of them. If many people share this address, or a load balancer has it, its \
        operator should raise the limit or name it as a proxy."

    PLAN_TUNNELS 5036 "plan-tunnels" Edge Info status() retry()
    title: "The plan allows no more tunnels"
    cause: "The owner has as many tunnels as his plan allows, connected or not."
    fix: "Delete one that is not needed, or ask the edge's operator for another plan."

    PLAN_AGENTS 5037 "plan-agents" Edge Info status() retry()
    title: "The plan allows no more agents"
    cause: "As many agents of the owner are connected as his plan allows."
    fix: "Stop one that is not needed, or ask the edge's operator for another plan."

    WATCH_LIMIT 5040 "watch-limit" Edge Warn status(503) retry(5)
    title: "Too many are watching"
    cause: "The edge sends live updates to as many connections as it may."
    fix: "Try again later, or ask for the same with the API once in a while."

    USER_WATCH_LIMIT 5041 "user-watch-limit" Edge Info status(429) retry()
    title: "Your account is watching too often"
    cause: "The account has as many connections for live updates open at this edge as one may."
    fix: "Close some: tabs of a browser that nobody looks at, or programs that forgot theirs. One \
        connection to `/ws/user` tells of all tunnels."

    INTERNAL 6001 "internal" Edge Error status(500) retry()
    title: "Something went wrong in the edge"
    cause: "The edge failed in a way that it should not. Neither the request nor the tunnel is to \
        blame."
    fix: "Try again. If it goes on, tell the edge's operator the request id, by which the log can \
        be searched."

    DRAINING 6002 "draining" Edge Info status(503) retry(2)
    title: "The edge is restarting"
    cause: "This edge is about to stop and takes nothing new."
    fix: "Try again in a moment; agents reconnect by themselves."

    BAD_PROXY_HEADER 6010 "bad-proxy-header" Edge Warn status() retry()
    title: "A load balancer's PROXY header is missing or malformed"
    cause: "The connection came from an address that `proxy_protocol` lists, and did not begin with \
        a PROXY protocol header of version 1 or 2."
    fix: "Switch the PROXY protocol on in the load balancer, health checks included, or take its \
        address out of `proxy_protocol`."

    STORE_UNAVAILABLE 6020 "store-unavailable" Edge Warn status(503) retry(5)
    title: "The edge's database does not answer"
    cause: "What was asked for needs the database, and it can't be reached or can't write. Tunnels \
        that are connected go on."
    fix: "Try again. The edge's operator finds the reason in its log and on `/readyz`."
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fmt::Write;

    use super::*;

    const INTRO: &str = "\
# Errors

Every answer that UniRoute makes itself, instead of the local server, carries its code in the
field `x-uniroute-error` and the request in `x-uniroute-request-id`; both are in the log too.
Browsers get a page, other programs `application/problem+json`.

The first digit is the class: 1 name and route, 2 agent link, 3 local server, 4 access, 5 limits,
6 edge. Codes without a status are told to agents and to the log only.
";

    /// The table as a page.
    fn markdown() -> String {
        let mut page = INTRO.to_owned();
        for code in ALL {
            let Code { name, title, cause, fix, .. } = code;
            let status = code.status.map_or("none".to_owned(), |status| status.to_string());
            let retry = code.retry_after.map_or(String::new(), |s| format!(", retry after {s} s"));
            let leg = code.leg.as_str();
            write!(
                page,
                "\n## {code}\n\n**{title}** (`{name}`, leg: {leg}, status: {status}{retry})\n\n\
                 *Cause:* {cause}\n\n*Fix:* {fix}\n"
            )
            .unwrap();
        }
        page
    }

    #[test]
    fn the_page_of_errors_is_the_table() {
        let expected = markdown();
        let page = include_str!("../../docs/errors.md");
        assert!(page == expected, "docs/errors.md should read:\n{expected}");
    }

    #[test]
    fn numbers_and_names_are_unique_and_numbers_rise() {
        assert!(ALL.is_sorted_by(|a, b| a.number < b.number));
        assert_eq!(ALL.iter().map(|code| code.name).collect::<HashSet<_>>().len(), ALL.len());
        for (constant, name) in LABELS {
            assert_eq!(constant.to_lowercase().replace('_', "-"), *name);
        }
    }

    #[test]
    fn the_class_fits_the_leg() {
        for code in ALL {
            let legs: &[Leg] = match code.number / 1000 {
                1 => &[Leg::Visitor, Leg::Agent],
                2 => &[Leg::Link, Leg::Agent],
                3 => &[Leg::Upstream],
                4 => &[Leg::Access],
                5 => &[Leg::Visitor, Leg::Edge],
                6 => &[Leg::Edge],
                _ => &[],
            };
            assert!(legs.contains(&code.leg), "{code}");
        }
    }

    #[test]
    fn what_passes_by_itself_says_when() {
        for code in ALL {
            assert_eq!(code.status == Some(503), code.retry_after.is_some(), "{code}");
            assert!(code.status.is_none_or(|status| (400..600).contains(&status)), "{code}");
        }
    }

    #[test]
    fn only_our_own_failures_are_errors() {
        let errors = ALL.iter().filter(|code| code.level == Level::Error);
        assert!(errors.eq([&&Code::INTERNAL]));
    }

    #[test]
    fn texts_are_finished() {
        for code in ALL {
            assert!(!code.title.ends_with('.') && !code.title.is_empty(), "{code}");
            for text in [code.cause, code.fix] {
                assert!(text.ends_with('.') && !text.contains("  "), "{code}: {text}");
            }
        }
    }

    #[test]
    fn codes_print_and_are_found_by_number() {
        assert_eq!(Code::UNKNOWN_TUNNEL.to_string(), "UR-1001");
        assert_eq!(Code::from_number(2001), Some(&Code::NO_AGENT));
        assert_eq!(Code::from_number(9999), None);
    }
}
