//! Knot DNS behind a UDP and a TCP tunnel on the same public port; dnspython and BIND's `dig` ask it.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::Path,
};

use super::{Serving, program, python};
use crate::harness::process::{self, Process, run};

/// A port that neither TCP nor UDP listens on now.
fn free_port() -> u16 {
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = tcp.local_addr().unwrap().port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// `hN` with an address each, and `tN` with N bytes of text.
fn zone() -> String {
    let mut zone = String::from(
        "$ORIGIN example.test.\n$TTL 60\n@ SOA ns hostmaster 1 60 60 60 60\n@ NS ns\nns A 10.9.9.9\n",
    );
    for number in 0..1000 {
        writeln!(zone, "h{number} A 10.0.{}.{}", number >> 8, number & 255).unwrap();
    }
    for size in [200, 1000, 2000, 3000, 3900] {
        write!(zone, "t{size} TXT").unwrap();
        for at in (0..size).step_by(200) {
            write!(zone, " \"{}\"", "t".repeat(200.min(size - at))).unwrap();
        }
        zone.push('\n');
    }
    zone
}

/// `knotd` for the zone, with all that it writes in `home`; and its port.
async fn knot(home: &Path) -> (Process, u16) {
    let (port, here) = (free_port(), home.display());
    std::fs::write(home.join("example.test.zone"), zone()).unwrap();
    let config = format!(
        "server:\n    rundir: {here}\n    listen: 127.0.0.1@{port}\n    udp-max-payload: 4096\n    \
         udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n\
         log:\n  - target: stdout\n    any: info\n\
         database:\n    storage: {here}\n\
         control:\n    listen: {here}/knot.sock\n\
         template:\n  - id: default\n    storage: {here}\n    zonefile-sync: -1\n    journal-content: none\n\
         acl:\n  - id: copies\n    action: transfer\n\
         zone:\n  - domain: example.test\n    file: {here}/example.test.zone\n    acl: copies\n"
    );
    std::fs::write(home.join("knot.conf"), config).unwrap();
    let knot = Process::start(process::command(&program("knotd"), home).args(["-c", "knot.conf"]));
    knot.out_line("[example.test.] loaded").await;
    knot.out_line("server started").await;
    (knot, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_by_udp_and_by_tcp() {
    let public = free_port().to_string();
    let edge = Serving::with(&["--udp-ports", &public, "--tcp-ports", &public]).await;
    let home = edge.home.path();
    let (_knot, port) = knot(home).await;
    let port = port.to_string();
    let _udp = edge.tunnel(&["udp", &port, "--port", &public]).await;
    let _tcp = edge.tunnel(&["tcp", &port, "--port", &public]).await;

    let ended = run(python("dns_queries.py", home).args(["127.0.0.1", &public])).await;
    let passed = ended.out.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(ended.code == Some(0) && passed == 5, "{}\n{}", ended.out, ended.err);
    println!("{}", ended.out);

    for (flags, expected) in [
        (&["h7.example.test", "A", "+notcp"][..], &["10.0.0.7", "status: NOERROR", "(UDP)"][..]),
        (&["t3900.example.test", "TXT", "+bufsize=4096", "+ignore"], &["udp: 4096", "(UDP)"]),
        (&["t3900.example.test", "TXT", "+bufsize=1232"], &["Truncated, retrying in TCP", "(TCP)"]),
        (&["example.test", "AXFR"], &["h999.example.test.", "XFR size: 1009 records"]),
    ] {
        let mut dig = process::command(&program("dig"), home);
        dig.args(["@127.0.0.1", "-p", &public, "+tries=1", "+timeout=10"]).args(flags);
        let ended = run(&mut dig).await;
        assert!(ended.code == Some(0), "{flags:?}: {ended:?}");
        for text in expected {
            assert!(ended.out.contains(text), "{flags:?}: no {text:?} in {}", ended.out);
        }
        if flags[0].starts_with("t3900") {
            assert!(ended.out.contains(&"t".repeat(200)) && !ended.out.contains(" tc "));
        }
    }
}
