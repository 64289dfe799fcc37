//! One function for each decoder that reads what others wrote: it takes any bytes and must not
//! panic. What has to hold beside that is asserted here, so that libFuzzer finds it too.
//!
//! The fuzz targets call these on nightly; `shared/tests/it/fuzz_entries.rs` includes this file and
//! drives the same functions with random and mutated input on stable.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};
use uniroute_proto::{
    Message,
    codec::{self, Decoder, Frame, Kind, MAX_CONTROL, MAX_MESSAGE},
    handshake::{AgentHandshake, AgentStep, EdgeHandshake, EdgeStep, NONCE_LEN},
    v1,
};
use uniroute_shared::{
    carrier::ws::{self, Event, MAX_HEADER_LEN, WsError},
    config_file,
    headers::{answer_length, is_hop_by_hop, is_ours, request_length, to_next_hop},
    http1::{BodyReader, Length, head},
    message::Piece,
    mux::{self, Config, Receiver, Sender, Session, Side, StreamError},
    proxy_protocol::{self, MAX_V1, MAX_V2, Parsed, Version},
    stream::checked,
};

/// The first byte chooses, the rest is the input.
fn choose(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

// ---------------------------------------------------------------- WebSocket frames

/// Both sides of the WebSocket decoder; where the bytes are cut must not matter.
pub fn ws(data: &[u8]) {
    let (choice, wire) = choose(data);
    let side = if choice & 1 == 0 { Side::Server } else { Side::Client };
    let whole = ws_events(side, wire, wire.len().max(1));
    let cut = ws_events(side, wire, usize::from(choice / 2) % 16 + 1);
    assert_eq!(whole, cut);
}

type WsEvents = (Vec<u8>, Vec<Event>, Option<WsError>);

/// The payload, whatever else came, and how it ended.
fn ws_events(side: Side, wire: &[u8], cut: usize) -> WsEvents {
    let mut decoder = ws::Decoder::new(side);
    let mut buffer = BytesMut::new();
    let (mut payload, mut others) = (Vec::new(), Vec::new());
    for piece in wire.chunks(cut) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(Event::Data(data))) => payload.extend_from_slice(&data),
                Ok(Some(other)) => others.push(other),
                Ok(None) => break,
                Err(error) => return (payload, others, Some(error)),
            }
        }
        assert!(buffer.len() <= MAX_HEADER_LEN + 125, "the decoder hoards");
    }
    (payload, others, None)
}

// ---------------------------------------------------------------- the mux

/// A session with an application behind it, either side, against a peer that sends `data` as it
/// is or as the payload of one message. In the end nothing may be left.
pub fn mux(data: &[u8]) {
    let (choice, wire) = choose(data);
    let config = if choice & 1 == 0 { Config::edge() } else { Config::agent() };
    let wire = match (choice & 2, config.side) {
        (0, Side::Server) => message(wire, Some([choice, 2, 3, 4])),
        (0, Side::Client) => message(wire, None),
        _ => wire.to_vec(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(against(config, &wire));
}

async fn against(config: Config, wire: &[u8]) {
    let (near, far) = tokio::io::duplex(16 * 1024);
    let (session, mut acceptor, mut driver) = mux::new(config, near, Bytes::new());
    let driving = async move { driver.run().await };
    let (mut reader, mut writer) = tokio::io::split(far);
    let sending = async {
        // The session may end before all is taken.
        let _ = writer.write_all(wire).await;
        let _ = writer.shutdown().await;
    };
    let reading = async { while reader.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {} };
    let application = session.clone();
    let serving = async move {
        let mut streams = JoinSet::new();
        for _ in 0..2 {
            if let Ok((sender, receiver)) = application.open() {
                streams.spawn(answer(0, sender, receiver));
            }
        }
        let mut how = 0;
        while let Some((sender, receiver)) = acceptor.accept().await {
            streams.spawn(answer(how % 4, sender, receiver));
            how += 1;
        }
        while streams.join_next().await.is_some() {}
    };
    tokio::join!(driving, sending, reading, serving);
    nothing_left(&session);
}

fn nothing_left(session: &Session) {
    let stats = session.stats();
    assert!(session.is_closed());
    assert_eq!((stats.streams, stats.granted), (0, 0));
    assert_eq!((stats.received_queued, stats.send_queued), (0, 0));
}

/// The ways in which an application treats a stream.
async fn answer(how: u8, mut sender: Sender, mut receiver: Receiver) -> Result<(), StreamError> {
    match how {
        0 => {
            while let Some(chunk) = receiver.recv().await? {
                sender.ready().await?;
                sender.send_framed([1; 4], chunk, false)?;
            }
            sender.send(Bytes::new(), true)
        }
        1 => {
            receiver.stop();
            sender.ready().await?;
            sender.send(Bytes::from_static(b"early"), true)
        }
        2 => {
            let _ = receiver.recv().await?;
            receiver.complete();
            drop(receiver);
            sender.send(Bytes::from_static(b"done"), true)
        }
        _ => Ok(()),
    }
}

/// `payload` as one WebSocket message.
pub fn message(payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut space = [0; MAX_HEADER_LEN];
    let start = ws::put_binary_header(&mut space, payload.len(), mask);
    let mut masked = payload.to_vec();
    ws::apply_mask(&mut masked, mask.unwrap_or_default());
    [&space[start..], &masked].concat()
}

// ---------------------------------------------------------------- frames inside a stream

/// A request stream's frames, and the messages in them.
pub fn request_stream(data: &[u8]) {
    let (choice, wire) = choose(data);
    for frame in frames(Decoder::new, MAX_MESSAGE, choice, wire) {
        if frame.kind != Kind::Data {
            head(&frame.payload);
        }
    }
}

/// The control stream's frames, taken by both ends' handshakes.
pub fn control_stream(data: &[u8]) {
    let (choice, wire) = choose(data);
    let nonce = [0x11; NONCE_LEN];
    let (mut edge, challenge) = EdgeHandshake::new(nonce, "edge-1", &["example"], None);
    let spec = v1::TunnelSpec { key: "web".into(), ..Default::default() };
    let mut agent = AgentHandshake::new(v1::Init { tunnels: vec![spec], ..Default::default() });
    if choice & 1 == 0 {
        agent.on_frame(challenge).expect("the own edge's challenge");
    }
    let (mut edge_done, mut agent_done) = (false, false);
    for frame in frames(Decoder::control, MAX_CONTROL, choice, wire) {
        let Ok(control) = codec::parse::<v1::ControlFrame>("ControlFrame", frame.payload) else {
            break;
        };
        // What decodes can be sent on, and means the same.
        let again = v1::ControlFrame::decode(&control.encode_to_vec()[..]);
        assert_eq!(again.as_ref(), Ok(&control));
        if !edge_done {
            match edge.on_frame(control.clone()) {
                Ok(EdgeStep::Decide(init)) => {
                    assert_eq!(init.nonce, nonce[..]);
                    edge.decided();
                }
                Ok(EdgeStep::Join(join)) => {
                    assert_eq!(join.nonce, nonce[..]);
                    edge_done = true;
                }
                Ok(EdgeStep::Ready) | Err(_) => edge_done = true,
                Ok(EdgeStep::Skip) => {}
            }
        }
        if !agent_done {
            let step = agent.on_frame(control);
            agent_done = matches!(step, Ok(AgentStep::Done(_)) | Err(_));
        }
    }
}

/// All frames up to the first error; where the bytes are cut must not matter.
fn frames(decoder: fn() -> Decoder, max: usize, choice: u8, wire: &[u8]) -> Vec<Frame> {
    let whole = decode(decoder(), max, wire, wire.len().max(1));
    let cut = decode(decoder(), max, wire, usize::from(choice / 2) % 64 + 1);
    assert_eq!(joined(&whole), joined(&cut));
    whole.0
}

type Decoded = (Vec<Frame>, Option<codec::CodecError>);

fn decode(mut decoder: Decoder, max: usize, wire: &[u8], cut: usize) -> Decoded {
    let mut frames = Vec::new();
    for piece in wire.chunks(cut) {
        let mut chunk = Bytes::copy_from_slice(piece);
        loop {
            match decoder.decode(&mut chunk) {
                Ok(Some(frame)) => {
                    assert!(frame.payload.len() <= wire.len());
                    assert!(frame.kind == Kind::Data || frame.payload.len() <= max);
                    assert!(frame.end == decoder.ended() || !frame.end);
                    frames.push(frame);
                }
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        assert!(chunk.is_empty());
    }
    (frames, None)
}

/// Pieces of data frames put together again.
fn joined((frames, error): &Decoded) -> (Vec<u8>, Vec<Frame>, bool, Option<codec::CodecError>) {
    let data = frames.iter().filter(|f| f.kind == Kind::Data).flat_map(|f| f.payload.to_vec());
    let whole = frames.iter().filter(|f| f.kind != Kind::Data).cloned().collect();
    (data.collect(), whole, frames.iter().any(|f| f.end), error.clone())
}

/// Heads and trailers. T10: whatever becomes a header can't break out of it.
pub fn head(data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    // The quick way says what prost says.
    let open = codec::parse::<v1::StreamOpen>("StreamOpen", data.clone());
    assert_eq!(uniroute_proto::head::read::stream_open(data.clone()), open);
    let reply = codec::parse::<v1::StreamReply>("StreamReply", data.clone());
    assert_eq!(uniroute_proto::head::read::stream_reply(data.clone()), reply);
    if let Ok(open) = open
        && let Some(v1::stream_open::Kind::Http(http)) = open.kind
    {
        check_headers(http.headers);
    }
    if let Ok(reply) = reply {
        use v1::stream_reply::Reply;
        if let Some(Reply::Head(head) | Reply::Informational(head)) = reply.reply {
            check_headers(head.headers);
        }
    }
    if let Ok(trailers) = codec::parse::<v1::Trailers>("Trailers", data.clone()) {
        check_headers(trailers.headers);
    }
    let _ = codec::parse::<v1::Abort>("Abort", data);
}

fn check_headers(headers: Vec<v1::Header>) {
    let count = headers.len();
    let Ok(mut fields) = checked("head", headers) else { return };
    assert!(fields.len() == count && count <= uniroute_proto::head::MAX_HEADERS);
    to_next_hop(&mut fields);
    for (name, value) in fields.iter() {
        assert!(!is_hop_by_hop(name) || name == b"te");
        assert!(!is_ours(name));
        assert!(!name.is_empty() && name.iter().all(|b| b.is_ascii_graphic() && *b != b':'));
        assert!(!value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
    }
}

// ---------------------------------------------------------------- HTTP/1

/// Any bytes as what a visitor and a local server send: heads and bodies, or refusals. Whole or byte
/// by byte makes no difference to what they are.
pub fn http1(data: &[u8]) {
    let (kind, data) = choose(data);
    let block = Bytes::copy_from_slice(data);
    if let Ok(line) = head::request(&block) {
        assert!(!line.method.is_empty() && !line.target.is_empty());
        assert!(
            line.fields
                .iter()
                .all(|(_, value)| !value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)))
        );
        let _ = request_length(&line.fields, line.minor);
    }
    if let Ok(line) = head::answer(&block) {
        assert!((100..1000).contains(&line.status));
        let _ = answer_length(line.status, &line.fields, line.minor, false);
    }
    let length = match kind % 3 {
        0 => Length::Chunked,
        1 => Length::Exact(u64::from(kind)),
        _ => Length::ToTheEnd,
    };
    assert_eq!(body(length, data, data.len().max(1)), body(length, data, 1));
}

/// All bytes of a body that came in pieces of `step`, and whether its end did; `None`: it is broken.
fn body(length: Length, data: &[u8], step: usize) -> Option<(Vec<u8>, bool)> {
    let mut reader = BodyReader::new(length);
    let (mut input, mut all) = (BytesMut::new(), Vec::new());
    for bytes in data.chunks(step) {
        input.extend_from_slice(bytes);
        while let Some(piece) = reader.decode(&mut input).ok()? {
            if let Piece::Data(data) = piece {
                all.extend_from_slice(&data);
            }
        }
    }
    Some((all, reader.is_over()))
}

// ---------------------------------------------------------------- PROXY headers

/// A header says the same however much of what is behind it has come, and what it says can be
/// written again.
pub fn proxy_protocol(data: &[u8]) {
    let parsed = proxy_protocol::parse(data);
    for cut in 0..data.len().min(MAX_V2 + 1) {
        match proxy_protocol::parse(&data[..cut]) {
            Ok(Parsed::Incomplete) => {}
            certain => assert_eq!(certain, parsed),
        }
    }
    match parsed {
        Ok(Parsed::Header { length, addresses: Some(addresses) }) => {
            assert!(length <= MAX_V2);
            for version in [Version::V1, Version::V2] {
                let header = proxy_protocol::header(version, &addresses);
                assert!(header.len() <= MAX_V1);
                let Ok(Parsed::Header { addresses: Some(again), .. }) =
                    proxy_protocol::parse(&header)
                else {
                    panic!("{addresses:?} can't be read again");
                };
                assert_eq!(again.source.port(), addresses.source.port());
                assert_eq!(again.source.ip().to_canonical(), addresses.source.ip().to_canonical());
            }
        }
        Ok(Parsed::Header { length, addresses: None }) => assert!(length <= MAX_V2),
        Ok(Parsed::Incomplete) => assert!(data.len() < MAX_V2),
        Err(_) => {}
    }
}

// ---------------------------------------------------------------- configuration files

/// A settings type with something of everything.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read by serde only")]
pub struct Settings {
    version: Option<u32>,
    name: Option<String>,
    ratio: Option<f64>,
    listen: Option<std::net::SocketAddr>,
    kind: Option<Choice>,
    #[serde(default)]
    tunnel: Vec<Entry>,
    #[serde(default)]
    limits: BTreeMap<String, u8>,
    inner: Option<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(dead_code, reason = "read by serde only")]
enum Choice {
    Plain,
    WithValue(u16),
    WithFields { a: bool },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read by serde only")]
struct Entry {
    key: String,
    port: u16,
    #[serde(default)]
    tags: Vec<String>,
}

/// Any text as a settings file: read, or refused with faults that can be printed.
pub fn config_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = config_file::parse::<Settings>(text, "fuzz.toml") {
        assert!(!error.to_string().is_empty());
    }
}
