//! The golden vectors: what goes over the wire, byte for byte, for implementers in any language.
//!
//! One file holds one frame, as hexadecimal; `#` begins a comment. Each is checked both ways: the
//! message built here encodes to the file's bytes, and the file's bytes decode to the message. The
//! folders `mux` and `ws` belong to the layers below; `shared` checks them.
#![expect(clippy::unwrap_used, reason = "a test may fail at any of them")]

use std::{collections::BTreeSet, fs, path::Path};

use bytes::Bytes;
use uniroute_proto::{
    FEATURE_LANES, Message,
    codec::{self, Decoder, Frame, Kind},
    head,
    v1::{self, control_frame::Frame as Control},
};

const NONCE: &[u8] = &[0x11; 16];
const TUNNEL: &[u8] = &[0x22; 16];
const REQUEST: &[u8] = &[0x33; 16];
const RESUME: &[u8] = &[0x44; 4];
const RUN: &[u8] = &[0x55; 16];

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name)
}

/// The bytes that a file holds.
fn read(folder_name: &str, name: &str) -> Bytes {
    let path = folder(folder_name).join(format!("{name}.hex"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let code = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let digits: Vec<u8> = code.flat_map(str::bytes).filter(|b| !b.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// Files and checks must be the same set: none is forgotten.
fn same_names(folder_name: &str, checked: impl Iterator<Item = &'static str>) {
    let file = |entry: std::io::Result<fs::DirEntry>| {
        entry.unwrap().file_name().into_string().unwrap().strip_suffix(".hex").unwrap().to_owned()
    };
    let files: BTreeSet<String> = fs::read_dir(folder(folder_name)).unwrap().map(file).collect();
    let checked: BTreeSet<String> = checked.map(str::to_owned).collect();
    assert_eq!(files, checked);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// The one frame in `wire`, which must be whole.
fn frame(mut decoder: Decoder, wire: &Bytes) -> Frame {
    let mut chunk = wire.clone();
    let frame = decoder.decode(&mut chunk).unwrap().expect("a whole frame");
    assert!(chunk.is_empty() && decoder.at_border());
    frame
}

/// A policy with every field.
fn policy() -> v1::HttpPolicy {
    let change = |name: &'static str| v1::HeaderChanges {
        remove: vec!["server".into()],
        set: headers(&[(name, "1")]),
        add: headers(&[("x-tag", "2")]),
    };
    v1::HttpPolicy {
        host_mode: v1::HostMode::Rewrite.into(),
        host: "local.example".into(),
        local_origin: "http://localhost:3000".into(),
        request_headers: Some(change("x-request")),
        response_headers: Some(change("x-answer")),
        routes: vec![v1::HttpRoute {
            path: "/api".into(),
            exact: true,
            strip: true,
            prefix: "/v1".into(),
            local_origin: "http://localhost:4000".into(),
        }],
        redirect_https: true,
        basic_auth: Some(v1::BasicAuth {
            users: vec![v1::BasicUser { name: "ann".into(), hash: "$argon2id$v=19$m=8".into() }],
            forward: true,
        }),
        allow: vec!["203.0.113.0/24".into()],
        deny: vec!["203.0.113.9".into()],
        webhook: Some(v1::Webhook {
            kind: v1::WebhookKind::Hmac.into(),
            secrets: vec!["s3cret".into()],
            max_body: 65_536,
            header: "x-signature".into(),
            hash: v1::WebhookHash::Sha512.into(),
            base64: true,
            prefix: "v1=".into(),
            timestamp_header: "x-time".into(),
            tolerance_s: 60,
        }),
        max_body: 1_048_576,
        idle_timeout_ms: 60_000,
        total_timeout_ms: 600_000,
        compression: true,
        error_page: "<h1>{{code}}</h1>".into(),
        first_route: 0,
    }
}

fn control_frames() -> Vec<(&'static str, Control)> {
    let tunnel_id = Bytes::from_static(TUNNEL);
    let spec = v1::TunnelSpec {
        key: "web".into(),
        kind: v1::TunnelKind::Http.into(),
        name: "demo".into(),
        local_url: "http://127.0.0.1:3000".into(),
        response_timeout_ms: 30_000,
        name_is_hint: true,
        ..Default::default()
    };
    let tcp = v1::TunnelSpec {
        key: "db".into(),
        kind: v1::TunnelKind::Tcp.into(),
        name: "brave-otter".into(),
        local_url: "tcp://localhost:5432".into(),
        name_is_hint: true,
        port: 20_432,
        port_is_hint: true,
        idle_timeout_ms: 60_000,
        ..Default::default()
    };
    let limited = v1::TunnelSpec {
        limits: Some(v1::TunnelLimits { requests_per_second: 50, in_flight: 8 }),
        hold_ms: Some(0),
        name_is_hint: false,
        ..spec.clone()
    };
    let with_times = v1::TunnelSpec { wants_times: true, ..spec.clone() };
    let with_policy = v1::TunnelSpec { http: Some(policy()), name_is_hint: false, ..spec.clone() };
    vec![
        (
            "auth_challenge",
            Control::AuthChallenge(v1::AuthChallenge {
                nonce: NONCE.into(),
                version_min: 1,
                version_max: 1,
                features: vec!["example".into()],
                edge_id: "edge-1".into(),
                quic: None,
            }),
        ),
        (
            "auth_challenge_quic",
            Control::AuthChallenge(v1::AuthChallenge {
                nonce: NONCE.into(),
                version_min: 1,
                version_max: 1,
                edge_id: "edge-1".into(),
                quic: Some(v1::QuicOffer {
                    port: 8080,
                    certificate_sha256: Bytes::from_static(&[0xc5; 32]),
                }),
                ..Default::default()
            }),
        ),
        (
            "init",
            Control::Init(v1::Init {
                version: 1,
                nonce: NONCE.into(),
                token: "ur_example".into(),
                agent_id: "agent-1".into(),
                resume_token: RESUME.into(),
                tunnels: vec![spec.clone()],
                features: vec!["example".into()],
                metadata: Some(v1::AgentMetadata {
                    name: "laptop".into(),
                    region: "eu".into(),
                    version: "0.1.0".into(),
                    platform: "linux/x86_64".into(),
                }),
                switches_carrier: false,
                run_id: RUN.into(),
            }),
        ),
        (
            "init_empty",
            Control::Init(v1::Init {
                version: 1,
                nonce: NONCE.into(),
                token: "ur_example".into(),
                agent_id: "agent-1".into(),
                ..Default::default()
            }),
        ),
        (
            "init_error",
            Control::InitError(v1::InitError {
                code: 4001,
                message: "unknown token".into(),
                retry_after_ms: 5_000,
            }),
        ),
        (
            "tunnel_created",
            Control::TunnelCreated(v1::TunnelCreated {
                key: "web".into(),
                tunnel_id: tunnel_id.clone(),
                name: "demo".into(),
                public_url: "https://demo.example.com".into(),
                state: v1::TunnelState::Active.into(),
                epoch: 7,
                port: 0,
                hold_ms: None,
            }),
        ),
        (
            "tunnel_created_hold",
            Control::TunnelCreated(v1::TunnelCreated {
                key: "web".into(),
                tunnel_id: tunnel_id.clone(),
                name: "demo".into(),
                public_url: "https://demo.example.com".into(),
                state: v1::TunnelState::Active.into(),
                epoch: 7,
                port: 0,
                hold_ms: Some(10_000),
            }),
        ),
        (
            "tunnel_created_tcp",
            Control::TunnelCreated(v1::TunnelCreated {
                key: "db".into(),
                tunnel_id: tunnel_id.clone(),
                name: "brave-otter".into(),
                public_url: "tcp://example.com:20432".into(),
                state: v1::TunnelState::Active.into(),
                epoch: 7,
                port: 20_432,
                hold_ms: None,
            }),
        ),
        (
            "tunnel_refused",
            Control::TunnelRefused(v1::TunnelRefused {
                key: "web".into(),
                code: 1101,
                message: "taken".into(),
            }),
        ),
        ("ready", Control::Ready(v1::Ready {})),
        (
            "ready_ack",
            Control::ReadyAck(v1::ReadyAck {
                lanes: 0,
                several_edges: false,
                session_id: "session-1".into(),
                resume_token: RESUME.into(),
                heartbeat_interval_ms: 10_000,
                features: vec!["example".into()],
                resumed: true,
            }),
        ),
        (
            "ready_ack_lanes",
            Control::ReadyAck(v1::ReadyAck {
                session_id: "session-1".into(),
                resume_token: RESUME.into(),
                heartbeat_interval_ms: 10_000,
                features: vec![FEATURE_LANES.into()],
                resumed: false,
                lanes: 8,
                several_edges: true,
            }),
        ),
        (
            "join_lane",
            Control::JoinLane(v1::JoinLane {
                version: 1,
                nonce: NONCE.into(),
                session_id: "session-1".into(),
                resume_token: RESUME.into(),
            }),
        ),
        ("lane_joined", Control::LaneJoined(v1::LaneJoined {})),
        ("lanes_wanted", Control::LanesWanted(v1::LanesWanted { lanes: 2 })),
        (
            "heartbeat",
            Control::Heartbeat(v1::Heartbeat {
                timestamp_us: 1_700_000_000_000_000,
                rtt_us: 1_500,
            }),
        ),
        (
            "heartbeat_ack",
            Control::HeartbeatAck(v1::HeartbeatAck { timestamp_us: 1_700_000_000_000_000 }),
        ),
        ("open_tunnel", Control::OpenTunnel(v1::OpenTunnel { tunnel: Some(spec) })),
        ("open_tunnel_limits", Control::OpenTunnel(v1::OpenTunnel { tunnel: Some(limited) })),
        ("open_tunnel_times", Control::OpenTunnel(v1::OpenTunnel { tunnel: Some(with_times) })),
        ("open_tunnel_policy", Control::OpenTunnel(v1::OpenTunnel { tunnel: Some(with_policy) })),
        ("open_tunnel_tcp", Control::OpenTunnel(v1::OpenTunnel { tunnel: Some(tcp) })),
        (
            "update_tunnel",
            Control::UpdateTunnel(v1::UpdateTunnel {
                tunnel_id: tunnel_id.clone(),
                local_url: "http://127.0.0.1:4000".into(),
            }),
        ),
        (
            "close_tunnel",
            Control::CloseTunnel(v1::CloseTunnel {
                tunnel_id: tunnel_id.clone(),
                code: 0,
                message: "done".into(),
            }),
        ),
        (
            "tunnel_status",
            Control::TunnelStatus(v1::TunnelStatus {
                tunnel_id: tunnel_id.clone(),
                state: v1::TunnelState::Paused.into(),
                requests: 42,
                latency_ms: 12,
                uptime_seconds: 3_600,
            }),
        ),
        (
            "upstream_health",
            Control::UpstreamHealth(v1::UpstreamHealth {
                tunnel_id: tunnel_id.clone(),
                healthy: false,
                reason: "connection refused".into(),
                ..v1::UpstreamHealth::default()
            }),
        ),
        (
            "upstream_health_figures",
            Control::UpstreamHealth(v1::UpstreamHealth {
                tunnel_id,
                healthy: true,
                reason: String::new(),
                latency_ms: 12,
                open: 3,
            }),
        ),
        (
            "go_away",
            Control::GoAway(v1::GoAway {
                reason: v1::GoAwayReason::Drain.into(),
                message: "shutting down".into(),
                deadline_ms: 30_000,
                reconnect: true,
            }),
        ),
        (
            "control_error",
            Control::ControlError(v1::ControlError {
                code: 4000,
                message: "no such tunnel".into(),
            }),
        ),
    ]
}

#[test]
fn control_frames_are_as_in_the_vectors() {
    let cases = control_frames();
    same_names("control", cases.iter().map(|(name, _)| *name).chain(["announce", "unknown"]));
    for (name, control) in cases {
        let expected = v1::ControlFrame::from(control);
        let wire = read("control", name);
        assert_eq!(hex(&codec::message(&expected, false)), hex(&wire), "{name}");
        let frame = frame(Decoder::control(), &wire);
        assert_eq!((frame.kind, frame.end), (Kind::Message, false), "{name}");
        let got: v1::ControlFrame = codec::parse("ControlFrame", frame.payload).unwrap();
        assert_eq!(got, expected, "{name}");
    }
}

/// A frame of a later version, and the one that only announces a stream: skipped, not refused.
#[test]
fn a_control_frame_without_a_known_frame_decodes_to_none() {
    for name in ["announce", "unknown"] {
        let frame = frame(Decoder::control(), &read("control", name));
        let got: v1::ControlFrame = codec::parse("ControlFrame", frame.payload).unwrap();
        assert_eq!(got.frame, None, "{name}");
    }
    let announce = codec::message(&v1::ControlFrame::default(), false);
    assert_eq!(announce, read("control", "announce"));
}

/// What a stream frame is expected to hold, beside its kind and END.
enum Holds {
    Open(Box<v1::StreamOpen>),
    Reply(v1::StreamReply),
    Trailers(v1::Trailers),
    Abort(v1::Abort),
    Data(&'static str),
    Datagram(&'static str),
    Moved(Option<u32>),
}

fn headers(pairs: &[(&'static str, &'static str)]) -> Vec<v1::Header> {
    let header = |(name, value): &(&'static str, &'static str)| v1::Header {
        name: (*name).into(),
        value: (*value).into(),
    };
    pairs.iter().map(header).collect()
}

fn reply(reply: v1::stream_reply::Reply) -> Holds {
    Holds::Reply(v1::StreamReply { reply: Some(reply) })
}

fn stream_frames() -> Vec<(&'static str, bool, Holds)> {
    use v1::stream_reply::Reply;
    let head = |status, pairs: &[_]| v1::ResponseHead {
        status,
        headers: headers(pairs),
        ..Default::default()
    };
    let open = v1::StreamOpen {
        tunnel_id: TUNNEL.into(),
        request_id: REQUEST.into(),
        visitor: "203.0.113.9".into(),
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        kind: Some(v1::stream_open::Kind::Http(v1::HttpOpen {
            method: "GET".into(),
            target: "/a?b=c".into(),
            authority: "demo.example.com".into(),
            scheme: "https".into(),
            headers: headers(&[("accept", "*/*"), ("x-empty", "")]),
            version: v1::HttpVersion::HttpVersion11.into(),
            upgrade: Bytes::new(),
            route: 0,
        })),
        edge_us: 0,
        held_us: 0,
    };
    let timed = v1::StreamOpen { edge_us: 1_300, held_us: 1_000, ..open.clone() };
    let mut routed = open.clone();
    if let Some(v1::stream_open::Kind::Http(http)) = &mut routed.kind {
        http.route = 2;
    }
    let mut upgrade = open.clone();
    upgrade.traceparent.clear();
    if let Some(v1::stream_open::Kind::Http(http)) = &mut upgrade.kind {
        http.headers = headers(&[("sec-websocket-version", "13")]);
        http.upgrade = "websocket".into();
    }
    let (peer, local) = ("203.0.113.9:50000".to_owned(), "192.0.2.1:20432".to_owned());
    let socket =
        |kind| v1::StreamOpen { kind: Some(kind), traceparent: String::new(), ..open.clone() };
    let tcp = socket(v1::stream_open::Kind::Tcp(v1::TcpOpen {
        peer: peer.clone(),
        local: local.clone(),
    }));
    let tls = socket(v1::stream_open::Kind::Tls(v1::TlsOpen {
        peer: peer.clone(),
        local: local.clone(),
        server_name: "demo.example.com".into(),
    }));
    let udp = socket(v1::stream_open::Kind::Udp(v1::UdpOpen { peer, local }));
    let error = v1::UpstreamError {
        kind: v1::UpstreamErrorKind::ConnectionRefused.into(),
        message: "nothing listens on 127.0.0.1:3000".into(),
    };
    let ok = head(200, &[("content-type", "text/plain"), ("content-length", "5")]);
    vec![
        ("open_tcp", false, Holds::Open(tcp.into())),
        ("open_tls", false, Holds::Open(tls.into())),
        ("open_udp", false, Holds::Open(udp.into())),
        ("open_get", true, Holds::Open(open.into())),
        ("open_times", true, Holds::Open(timed.into())),
        ("open_route", true, Holds::Open(routed.into())),
        ("open_websocket", false, Holds::Open(upgrade.into())),
        ("reply_head", false, reply(Reply::Head(ok))),
        ("reply_no_body", true, reply(Reply::Head(head(204, &[])))),
        ("reply_switching", false, reply(Reply::Head(head(101, &[])))),
        (
            "reply_informational",
            false,
            reply(Reply::Informational(head(103, &[("link", "</a.css>")]))),
        ),
        ("reply_error", true, reply(Reply::Error(error))),
        ("reply_connected", false, reply(Reply::Connected(v1::Connected {}))),
        ("datagram", false, Holds::Datagram("hello")),
        ("data", false, Holds::Data("hello")),
        ("data_last", true, Holds::Data("world")),
        ("data_empty_last", true, Holds::Data("")),
        (
            "trailers",
            true,
            Holds::Trailers(v1::Trailers { headers: headers(&[("grpc-status", "0")]) }),
        ),
        ("abort", true, Holds::Abort(v1::Abort { message: "connection reset".into() })),
        ("moved", false, Holds::Moved(None)),
        ("moved_from", false, Holds::Moved(Some(42))),
    ]
}

/// Writes and reads one message.
fn both_ways<M: Message + Default + PartialEq + std::fmt::Debug>(
    kind: Kind,
    end: bool,
    message: &M,
    got: Bytes,
) -> Bytes {
    assert_eq!(codec::parse::<M>("message", got).unwrap(), *message);
    codec::frame(kind, end, message)
}

#[test]
fn stream_frames_are_as_in_the_vectors() {
    let cases = stream_frames();
    same_names("stream", cases.iter().map(|(name, _, _)| *name));
    for (name, end, holds) in cases {
        let wire = read("stream", name);
        let frame = frame(Decoder::new(), &wire);
        assert_eq!(frame.end, end, "{name}");
        let names = codec::moved_stream(&frame);
        let got = frame.payload;
        let encoded = match holds {
            Holds::Open(open) => both_ways(Kind::Message, end, &*open, got),
            Holds::Reply(reply) => both_ways(Kind::Message, end, &reply, got),
            Holds::Trailers(trailers) => both_ways(Kind::Trailers, end, &trailers, got),
            Holds::Abort(abort) => {
                assert_eq!(head::abort(&abort.message), wire);
                both_ways(Kind::Abort, end, &abort, got)
            }
            Holds::Data(data) => {
                assert_eq!(got, data);
                [&codec::header(Kind::Data, end, data.len())[..], data.as_bytes()].concat().into()
            }
            Holds::Datagram(payload) => {
                assert_eq!((frame.kind, &got[..]), (Kind::Datagram, payload.as_bytes()), "{name}");
                let header = codec::header(Kind::Datagram, end, payload.len());
                [&header[..], payload.as_bytes()].concat().into()
            }
            Holds::Moved(stream) => {
                assert_eq!((frame.kind, names), (Kind::Moved, stream), "{name}");
                match stream {
                    Some(stream) => codec::moved_from(stream),
                    None => Bytes::copy_from_slice(&codec::header(Kind::Moved, end, 0)),
                }
            }
        };
        assert_eq!(hex(&encoded), hex(&wire), "{name}");
    }
}
