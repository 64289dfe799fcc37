//! What the codecs cost: a typical request head, and the mask that an agent puts over its bytes.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use uniroute_proto::{
    codec::{self, Decoder},
    head::HttpOpen,
    v1,
};
use uniroute_shared::{carrier::ws, message::Fields, stream::checked};

const HEADERS: [(&str, &str); 8] = [
    ("host", "demo.example.com"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "en-GB,en;q=0.7,de;q=0.3"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("referer", "https://demo.example.com/products/list?page=2"),
    ("cookie", "session=0123456789abcdef0123456789abcdef; theme=dark"),
    ("cache-control", "no-cache"),
];

fn request_head() -> Bytes {
    let open = HttpOpen {
        tunnel_id: &[1; 16],
        request_id: &[2; 16],
        visitor: "203.0.113.9",
        traceparent: b"",
        method: b"GET",
        target: b"/products/list?page=2&sort=price",
        authority: b"demo.example.com",
        scheme: "https",
        version: v1::HttpVersion::HttpVersion11,
        upgrade: b"",
        route: 0,
    };
    let headers = || HEADERS.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    open.frame(headers, true)
}

fn read_head(frame: &Bytes) -> Fields {
    let mut chunk = frame.clone();
    let frame = Decoder::new().decode(&mut chunk).expect("a frame").expect("a whole one");
    let open: v1::StreamOpen = codec::parse("StreamOpen", frame.payload).expect("a StreamOpen");
    let Some(v1::stream_open::Kind::Http(http)) = open.kind else { unreachable!("it is HTTP") };
    checked("StreamOpen", http.headers).expect("sound headers")
}

fn heads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request head, 8 headers");
    group.bench_function("encode", |b| b.iter(|| black_box(request_head())));
    let frame = request_head();
    group.bench_function("decode and check", |b| b.iter(|| black_box(read_head(&frame))));
    group.finish();
}

fn mask(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("WebSocket mask");
    for size in [1_000, 16 * 1024, 256 * 1024] {
        let mut bytes = vec![7; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("{size} bytes"), |b| {
            b.iter(|| ws::apply_mask(black_box(&mut bytes), black_box([1, 2, 3, 4])));
        });
    }
    group.finish();
}

criterion_group!(benches, heads, mask);
criterion_main!(benches);
