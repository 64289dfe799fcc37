//! curl and nghttp2's clients, and a local server in Python: `tests/foreign/http_server.py`.
//!
//! curl 7.88, which Debian 12 has, uses a connection with HTTP/2 on prior knowledge once only, and
//! takes no answer that comes before its upload is over there, whoever serves it: nghttp2's clients
//! do both.

use std::{fmt::Write as _, fs::File, path::PathBuf};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use super::{Peer, Serving, Tunnel, program};
use crate::harness::process::{self, Ended, Process, run};

const HTTP1: [&str; 2] = ["--http1.0", "--http1.1"];
const ALL: [&str; 3] = ["--http1.0", "--http1.1", "--http2-prior-knowledge"];
/// Bytes of /data.
const DATA: usize = 4 << 20;
const UPLOAD: usize = 20_000_000;

/// A tunnel to the server.
struct Site {
    edge: Serving,
    _server: Peer,
    _agent: Tunnel,
    url: String,
}

impl Site {
    async fn start() -> Self {
        let edge = Serving::start().await;
        let server = Peer::start(&edge, "http_server.py", &[]).await;
        let agent = edge.tunnel(&["http", &server.port.to_string(), "--name", "site"]).await;
        Self { url: agent.url.clone(), edge, _server: server, _agent: agent }
    }

    fn command(&self, name: &str) -> Command {
        process::command(&program(name), self.edge.home.path())
    }

    fn curl(&self, flags: &[&str], paths: &[&str]) -> Command {
        let mut command = self.command("curl");
        command.args(["-q", "-sS", "--max-time", "20", "--noproxy", "*"]).args(flags);
        command.args(paths.iter().map(|path| format!("{}{path}", self.url)));
        command
    }

    async fn get(&self, flags: &[&str], paths: &[&str]) -> Ended {
        run(&mut self.curl(flags, paths)).await
    }

    fn file(&self, name: &str) -> PathBuf {
        self.edge.home.path().join(name)
    }

    /// A file to upload, and its SHA-256.
    fn upload(&self) -> (PathBuf, String) {
        let data: Vec<u8> = (0_u32..).flat_map(u32::to_le_bytes).take(UPLOAD).collect();
        std::fs::write(self.file("upload"), &data).unwrap();
        let digest = Sha256::digest(&data).iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        });
        (self.file("upload"), digest)
    }
}

/// Ended well, with this in the output.
#[track_caller]
fn assert_said(ended: &Ended, text: &str) {
    assert!(ended.code == Some(0) && ended.out.contains(text), "no {text:?} in {ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_requests() {
    let site = Site::start().await;
    let count = "%{http_code} %{num_connects}\\n";
    for version in ALL {
        assert_said(&site.get(&[version, "-i"], &["/hello"]).await, "hello");
        assert_said(&site.get(&[version, "-I"], &["/data"]).await, "ontent-");
        let moved = site.get(&[version, "-w", "%{http_code} %{redirect_url}"], &["/moved"]).await;
        assert_eq!(moved.out, format!("302 {}/hello", site.url));
        let nothing = site.get(&[version, "-w", "%{http_code}"], &["/nothing"]).await;
        assert_eq!(nothing.out, "204");
        let endless =
            site.get(&[version, "-o", "data", "-w", "%{size_download}"], &["/endless"]).await;
        assert_eq!(endless.out, DATA.to_string());
    }
    // Kept, and not: HTTP/1.0 asks for that, which it does not here.
    for (version, again) in [("--http1.0", 1), ("--http1.1", 0)] {
        let twice = site.get(&[version, "-w", count], &["/hello", "/hello"]).await;
        assert_eq!(twice.out, format!("hello\n200 1\nhello\n200 {again}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_downloads_that_go_on() {
    let site = Site::start().await;
    let whole = site.file("whole");
    assert_said(&site.get(&["-o", "whole", "-w", "%{http_code}"], &["/data"]).await, "200");
    let data = std::fs::read(&whole).unwrap();
    assert_eq!(data.len(), DATA);
    for version in ALL {
        for (range, expected) in [
            ("0-0", 0..1),
            ("100-199", 100..200),
            ("-5", DATA - 5..DATA),
            ("4194300-", 4_194_300..DATA),
        ] {
            let flags = [version, "-r", range, "-o", "part", "-w", "%{http_code}"];
            assert_said(&site.get(&flags, &["/data"]).await, "206");
            assert!(std::fs::read(site.file("part")).unwrap() == data[expected], "{range}");
        }
        // What broke off is known to be cut, and goes on from there.
        let cut = site.get(&[version, "-o", "resumed"], &["/cut"]).await;
        assert!(matches!(cut.code, Some(18 | 92)), "{cut:?}");
        let got = std::fs::metadata(site.file("resumed")).unwrap().len();
        assert!(got <= DATA as u64 / 2);
        let flags = [version, "-C", "-", "-o", "resumed", "-w", "%{http_code}"];
        let resumed = site.get(&flags, &["/data"]).await;
        assert_said(&resumed, if got == 0 { "200" } else { "206" });
        assert!(std::fs::read(site.file("resumed")).unwrap() == data, "{version}");
        std::fs::remove_file(site.file("resumed")).unwrap();
    }
    let beyond = site.get(&["-r", "9999999-", "-w", "%{http_code}"], &["/data"]).await;
    assert_eq!(beyond.out, "416");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_with_and_without_a_length() {
    let site = Site::start().await;
    let (file, digest) = site.upload();
    let file = file.to_str().unwrap();
    let is_whole = |ended: &Ended, framing: &str| {
        let said: Value = serde_json::from_str(&ended.out).unwrap_or_else(|_| panic!("{ended:?}"));
        assert_eq!((said["sha256"].as_str(), &said["length"]), (Some(&*digest), &UPLOAD.into()));
        assert_eq!(said["framing"], framing);
    };
    for version in ALL {
        for expect in ["Expect: 100-continue", "Expect:"] {
            let ended = site.get(&[version, "-T", file, "-H", expect], &["/upload"]).await;
            is_whole(&ended, &UPLOAD.to_string());
        }
    }
    // A stream that curl does not know the end of; HTTP/1.0 can't say it.
    for version in &ALL[1..] {
        let mut command = site.curl(&[version, "-T", "-"], &["/upload"]);
        is_whole(&run(command.stdin(File::open(file).unwrap())).await, "chunked");
    }
}

/// The answer is there at once, and none of the upload is wanted.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_are_refused_at_once() {
    let site = Site::start().await;
    let (file, _) = site.upload();
    let file = file.to_str().unwrap();
    let says = "%{http_code} %{size_upload}";
    for (version, status) in HTTP1.iter().flat_map(|version| [(*version, "417"), (*version, "401")])
    {
        let path = &[&*format!("/refuse/{status}")];
        let flags = [version, "-T", file, "-w", says, "-H"];
        for expect in ["Expect: 100-continue", "Expect:"] {
            let ended = site.get(&[&flags[..], &[expect]].concat(), path).await;
            assert_said(&ended, &format!("no\n{status} "));
            let sent: usize = ended.out.rsplit_once(' ').unwrap().1.parse().unwrap();
            assert!(sent < UPLOAD, "all of it was sent: {ended:?}");
            // Who waits to be asked sends nothing, but for curl's second try after 417.
            if (version, status, expect) == ("--http1.1", "401", "Expect: 100-continue") {
                assert_eq!(sent, 0, "{ended:?}");
            }
        }
    }
    let mut nghttp = site.command("nghttp");
    nghttp.args(["-v", "-H", ":method: PUT", "-H", ":authority: site.localhost"]);
    nghttp.arg(format!("--data={file}")).arg(format!("http://{}/refuse/401", site.edge.http));
    let ended = run(&mut nghttp).await;
    assert_said(&ended, ":status: 401");
    // The stream is over, and the connection is not at fault (RFC 9113, section 8.1).
    assert!(ended.out.contains("(error_code=NO_ERROR(0x00))"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_as_they_are_said() {
    let site = Site::start().await;
    let mut number = 0;
    let mut streams = Vec::new();
    for version in &ALL[1..] {
        let stream = Process::start(&mut site.curl(&[version, "-N"], &["/events"]));
        stream.out_line("data: ready").await;
        streams.push(stream);
    }
    for _ in 0..5 {
        number += 1;
        let said = site.get(&["-d", "x"], &[&format!("/say/news-{number}")]).await;
        assert_eq!(said.code, Some(0), "{said:?}");
        for stream in &streams {
            stream.out_line(&format!("data: news-{number}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_come_after_the_body() {
    let site = Site::start().await;
    let asked = ["--http1.1", "-H", "TE: trailers", "-H", "Connection: TE", "-i"];
    for flags in [&asked[..], &["--http2-prior-knowledge", "-i"]] {
        let ended = site.get(flags, &["/trailers"]).await;
        assert_said(&ended, "hellox-checksum: of-hello");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_requests_on_a_few_connections() {
    let site = Site::start().await;
    let mut h2load = site.command("h2load");
    h2load.args(["-n", "2000", "-c", "4", "-m", "25", "-H", ":authority: site.localhost"]);
    let ended = run(h2load.arg(format!("http://{}/hello", site.edge.http))).await;
    assert_said(&ended, "2000 succeeded, 0 failed, 0 errored, 0 timeout");
    assert_said(&ended, "status codes: 2000 2xx");
}

/// A local server that closes idle connections just as the next request comes.
async fn keep_alive(seconds: &str, method: &str, rounds: &str) {
    let edge = Serving::start().await;
    let peer = Peer::start(&edge, "keep_alive.py", &[seconds, method, rounds]).await;
    let _agent = edge.tunnel(&["http", &peer.port.to_string(), "--name", "brief"]).await;
    peer.passes(&format!("{} brief.localhost", edge.http), 1).await;
}

/// What can't be sent twice goes on a connection that is fresh.
#[tokio::test(flavor = "multi_thread")]
async fn posts_as_idle_connections_are_closed() {
    keep_alive("2.5", "POST", "3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gets_as_idle_connections_are_closed() {
    keep_alive("0.25", "GET", "10").await;
}
