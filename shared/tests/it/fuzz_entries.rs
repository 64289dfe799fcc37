//! The fuzz targets' entry points (`fuzz/src/entries.rs`) with random and mutated input, for
//! everybody who has no nightly toolchain. The vectors are what is mutated.

use std::{fs, path::Path};

use proptest::{prelude::*, sample::Index};

#[path = "../../../fuzz/src/entries.rs"]
#[expect(unreachable_pub, reason = "the root of a crate, elsewhere")]
mod entries;

/// A change to a valid input.
#[derive(Clone, Debug)]
enum Change {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, Index),
    Repeat(Index, Index),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let at = any::<Index>;
    let bytes = prop::collection::vec(any::<u8>(), 1..40);
    let change = prop_oneof![
        (at(), prop_oneof![any::<u8>(), Just(0), Just(0x7f), Just(0xff)])
            .prop_map(|(i, b)| Change::Set(i, b)),
        (at(), 0_u8..8).prop_map(|(i, b)| Change::Flip(i, b)),
        (at(), bytes).prop_map(|(i, b)| Change::Insert(i, b)),
        (at(), at()).prop_map(|(i, j)| Change::Remove(i, j)),
        (at(), at()).prop_map(|(i, j)| Change::Repeat(i, j)),
    ];
    prop::collection::vec(change, 0..6)
}

fn change(mut bytes: Vec<u8>, changes: Vec<Change>) -> Vec<u8> {
    let between = |len: usize, i: Index, j: Index| {
        let (i, j) = (i.index(len), j.index(len));
        i.min(j)..i.max(j)
    };
    for change in changes {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        match change {
            Change::Set(i, byte) => bytes[i.index(len)] = byte,
            Change::Flip(i, bit) => bytes[i.index(len)] ^= 1 << bit,
            Change::Insert(i, more) => drop(bytes.splice(i.index(len)..i.index(len), more)),
            Change::Remove(i, j) => drop(bytes.drain(between(len, i, j))),
            Change::Repeat(i, j) => bytes.extend_from_within(between(len, i, j)),
        }
    }
    bytes
}

/// The files of `folder`, one behind the other in some order.
fn vectors(folder: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/vectors").join(folder);
    let file = |entry: std::io::Result<fs::DirEntry>| {
        super::vectors::bytes_of(&fs::read_to_string(entry.unwrap().path()).unwrap())
    };
    let files: Vec<Vec<u8>> = fs::read_dir(folder).unwrap().map(file).collect();
    prop::collection::vec(prop::sample::select(files), 1..8).prop_map(|files| files.concat())
}

/// A first byte that chooses the variant, and then garbage or changed vectors.
fn input(folder: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let garbage = prop::collection::vec(any::<u8>(), 0..500);
    let changed = (vectors(folder), changes()).prop_map(|(bytes, changes)| change(bytes, changes));
    let rest = prop_oneof![1 => garbage, 6 => changed];
    (any::<u8>(), rest).prop_map(|(choice, rest)| [&[choice][..], &rest].concat())
}

/// Pieces of messages of HTTP/1.1, in any order.
fn messages() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("GET / HTTP/1.1\r\n"),
        Just("HTTP/1.1 200 OK\r\n"),
        Just("Host: a\r\n"),
        Just("Content-Length: 5\r\n"),
        Just("Transfer-Encoding: chunked\r\n"),
        Just("\r\n"),
        Just("5\r\nhello\r\n"),
        Just("1;a=b\r\nx\r\n"),
        Just("0\r\n\r\n"),
        Just("0\r\nX: y\r\n\r\n"),
        Just("\n"),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// PROXY headers, right and nearly so.
fn proxy_headers() -> impl Strategy<Value = Vec<u8>> {
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x09\xc0\0\x02\x01\xc3\x50\x01\xbb";
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let headers = prop_oneof![
        Just(&b"PROXY TCP4 203.0.113.9 192.0.2.1 50000 443\r\nGET"[..]),
        Just(&b"PROXY TCP6 2001:db8::9 ::1 50000 443\r\n"[..]),
        Just(&b"PROXY UNKNOWN\r\n"[..]),
        Just(&v2[..]),
        Just(&local[..]),
    ];
    headers.prop_map(<[u8]>::to_vec)
}

fn settings() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("version = 1"),
        Just("[[tunnel]]"),
        Just("[limits]"),
        Just("[inner]"),
        Just("key = \"ü\""),
        Just("port = 70000"),
        Just("port = 80"),
        Just("tags = [\"a\", 1]"),
        Just("listen = \"nowhere\""),
        Just("kind = { with-fields = { a = 1 } }"),
        Just("kind = \"other\""),
        Just("a.b.c = 1979-05-27T07:32:00Z"),
        Just("x = \"\"\"\n"),
        Just("inner = { key = \"\", port = 1, port = 2 }"),
        Just("ratio = nan"),
        Just("é = '"),
    ];
    prop::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn ws(data in input("ws")) {
        entries::ws(&data);
    }

    #[test]
    fn mux(data in input("mux")) {
        entries::mux(&data);
    }

    #[test]
    fn mux_behind_raw_websocket_frames(data in input("ws")) {
        entries::mux(&data);
    }

    #[test]
    fn request_stream(data in input("stream")) {
        entries::request_stream(&data);
    }

    #[test]
    fn control_stream(data in input("control")) {
        entries::control_stream(&data);
    }

    #[test]
    fn head(data in input("stream")) {
        // Without the choice and the frame's header.
        entries::head(data.get(5..).unwrap_or_default());
    }

    #[test]
    fn http1(text in messages(), changes in changes()) {
        entries::http1(&change(text.into_bytes(), changes));
    }

    #[test]
    fn proxy_protocol(header in proxy_headers(), changes in changes()) {
        entries::proxy_protocol(&change(header, changes));
    }

    #[test]
    fn config_file(text in settings(), changes in changes()) {
        entries::config_file(&change(text.into_bytes(), changes));
    }
}

/// T10, as the threat's check has it: a value that would break out of its line.
#[test]
fn t10_header_injection_is_refused() {
    use uniroute_proto::v1::Header;
    use uniroute_shared::stream::checked;
    let refused = [
        ("x", "a\r\nb: c"),
        ("x", "a\nb"),
        ("x", "a\rb"),
        ("x", "a\0"),
        ("x\r\ny", "a"),
        ("x:", "a"),
        ("", "a"),
        ("x y", "a"),
        ("x\0", "a"),
        ("x", "a\x7f"),
    ];
    for (name, value) in refused {
        let header = Header { name: name.into(), value: value.into() };
        assert!(checked("head", vec![header]).is_err(), "{name:?}: {value:?}");
    }
}
