//! The golden vectors of the mux and of its WebSocket framing (`proto/vectors`), both ways.

use std::{collections::BTreeSet, fs, path::Path};

use bytes::{Bytes, BytesMut};
use uniroute_shared::{
    carrier::ws::{self, Decoder, Event, MAX_HEADER_LEN, Side},
    mux::frame::{HEADER_LEN, Header, Type, flag},
};

/// Every file of a folder: its name, and the bytes that it holds.
fn read(folder: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/vectors").join(folder);
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, bytes_of(&fs::read_to_string(&path).unwrap()))
    };
    fs::read_dir(folder).unwrap().map(file).collect()
}

pub(crate) fn bytes_of(text: &str) -> Vec<u8> {
    let code = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let digits: Vec<u8> = code.flat_map(str::bytes).filter(|b| !b.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn same_names<'a>(files: &[(String, Vec<u8>)], checked: impl Iterator<Item = &'a str>) {
    let files: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(files, checked.collect());
}

#[test]
fn mux_frames_are_as_in_the_vectors() {
    let header = |kind, flags, stream, length| Header { kind, flags, stream, length };
    let cases = [
        ("data_syn", header(Type::Data, flag::SYN, 2, 5), "hello"),
        ("data_ack", header(Type::Data, flag::ACK, 2, 3), "you"),
        ("data_fin", header(Type::Data, flag::FIN, 2, 0), ""),
        ("window_update", header(Type::WindowUpdate, 0, 2, 256 * 1024), ""),
        ("window_update_syn", header(Type::WindowUpdate, flag::SYN, 1, 0), ""),
        ("reset", header(Type::WindowUpdate, flag::RST, 2, 0), ""),
        ("ping", header(Type::Ping, flag::SYN, 0, 42), ""),
        ("pong", header(Type::Ping, flag::ACK, 0, 42), ""),
        ("go_away", header(Type::GoAway, 0, 0, 0), ""),
    ];
    let files = read("mux");
    same_names(&files, cases.iter().map(|case| case.0));
    for (name, wire) in &files {
        let (_, header, payload) = cases.iter().find(|case| case.0 == name).unwrap();
        let (head, rest) = wire.split_first_chunk::<HEADER_LEN>().unwrap();
        assert_eq!(Header::decode(*head).as_ref(), Ok(header), "{name}");
        assert_eq!(header.encode(), *head, "{name}");
        assert_eq!(rest, payload.as_bytes(), "{name}");
    }
}

fn message(payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut space = [0; MAX_HEADER_LEN];
    let start = ws::put_binary_header(&mut space, payload.len(), mask);
    let mut masked = payload.to_vec();
    ws::apply_mask(&mut masked, mask.unwrap_or_default());
    [&space[start..], &masked].concat()
}

#[test]
fn websocket_frames_are_as_in_the_vectors() {
    let key = [0x37, 0xfa, 0x21, 0x3d];
    let data = |text: &str| Some(Event::Data(Bytes::copy_from_slice(text.as_bytes())));
    let long = "a".repeat(126);
    let header_only = message(&[0; 65_536], None)[..10].to_vec();
    let cases = [
        ("binary_server", Side::Client, message(b"hello", None), data("hello")),
        ("binary_client", Side::Server, message(b"hello", Some(key)), data("hello")),
        ("binary_two_byte_length", Side::Client, message(long.as_bytes(), None), data(&long)),
        ("binary_eight_byte_length", Side::Client, header_only, None),
        ("pong_client", Side::Server, ws::pong(b"p", Some([1, 2, 3, 4])), Some(Event::Pong)),
        (
            "close_server",
            Side::Client,
            ws::close(4001, "no", None),
            Some(Event::Close(4001, "no".into())),
        ),
    ];
    let files = read("ws");
    same_names(&files, cases.iter().map(|case| case.0));
    for (name, wire) in &files {
        let (_, reader, encoded, event) = cases.iter().find(|case| case.0 == name).unwrap();
        assert_eq!(encoded, wire, "{name}");
        let mut buffer = BytesMut::from(&wire[..]);
        assert_eq!(Decoder::new(*reader).next(&mut buffer).as_ref(), Ok(event), "{name}");
        assert!(buffer.is_empty(), "{name}");
    }
}
