//! OpenSSL's server behind a TLS tunnel, visited by OpenSSL and by curl. The edge has no key at all:
//! what they see is the server's own certificate.

use std::path::{Path, PathBuf};

use super::{Serving, program};
use crate::harness::process::{self, Ended, Process, run};

const HOST: &str = "own.localhost";

/// A self-signed certificate and its key, in files.
struct Identity {
    certificate: PathBuf,
    key: PathBuf,
}

impl Identity {
    async fn new(home: &Path, name: &str) -> Self {
        let file = |kind| home.join(format!("{name}.{kind}.pem"));
        let (certificate, key) = (file("certificate"), file("key"));
        let mut command = process::command(&program("openssl"), home);
        command.args(["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"]);
        command.args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", &format!("/CN={name}")]);
        command.args(["-addext", &format!("subjectAltName=DNS:{name}")]);
        command.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        let ended = run(&mut command).await;
        assert!(ended.code == Some(0), "{ended:?}");
        Self { certificate, key }
    }

    fn pem(&self) -> String {
        std::fs::read_to_string(&self.certificate).unwrap().trim().to_owned()
    }
}

/// `openssl s_server` on a free port, which describes each connection as a page.
async fn server(home: &Path, identity: &Identity, flags: &[&str]) -> (Process, String) {
    let mut command = process::command(&program("openssl"), home);
    command.args(["s_server", "-accept", "127.0.0.1:0", "-www", "-alpn", "h2,http/1.1"]);
    command.arg("-cert").arg(&identity.certificate).arg("-key").arg(&identity.key).args(flags);
    let server = Process::start(&mut command);
    let line = server.out_line("ACCEPT 127.0.0.1:").await;
    let port = line.rsplit_once(':').unwrap().1.to_owned();
    (server, port)
}

/// Visitors of one tunnel, which trust one certificate only.
struct Visitors<'a> {
    edge: &'a Serving,
    trusted: &'a Identity,
}

impl Visitors<'_> {
    async fn s_client(&self, flags: &[&str]) -> Ended {
        let mut command = process::command(&program("openssl"), self.edge.home.path());
        command.args(["s_client", "-connect", &self.edge.https.to_string(), "-servername", HOST]);
        command.args(["-verify_return_error", "-verify_hostname", HOST, "-no-CAstore", "-CAfile"]);
        run(command.arg(&self.trusted.certificate).args(flags)).await
    }

    async fn curl(&self, flags: &[&str]) -> Ended {
        let mut command = process::command(&program("curl"), self.edge.home.path());
        let port = self.edge.https.port();
        command.args(["-sS", "--max-time", "20", "--http1.1"]).args(flags);
        command.args(["--resolve", &format!("{HOST}:{port}:127.0.0.1"), "--cacert"]);
        run(command.arg(&self.trusted.certificate).arg(format!("https://{HOST}:{port}/"))).await
    }
}

/// The first certificate in a program's output.
fn shown(out: &str) -> &str {
    const END: &str = "-----END CERTIFICATE-----";
    let from = out.find("-----BEGIN CERTIFICATE-----").expect("a certificate");
    &out[from..out.find(END).unwrap() + END.len()]
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_see_the_servers_own_certificate() {
    let edge = Serving::start().await;
    let home = edge.home.path();
    let (own, other) = (Identity::new(home, HOST).await, Identity::new(home, "other").await);
    let (_server, port) = server(home, &own, &[]).await;
    let tunnel = edge.tunnel(&["tls", &port, "--name", "own"]).await;
    assert_eq!(tunnel.port(), edge.https.port());
    let visitors = Visitors { edge: &edge, trusted: &own };
    for (version, flag) in [("TLSv1.2", "-tls1_2"), ("TLSv1.3", "-tls1_3")] {
        for protocol in ["h2", "http/1.1"] {
            let ended = visitors.s_client(&[flag, "-alpn", protocol]).await;
            assert!(ended.code == Some(0), "{ended:?}");
            assert_eq!(shown(&ended.out), own.pem(), "{version}");
            for part in [
                &format!("ALPN protocol: {protocol}"),
                &format!("New, {version}, Cipher is"),
                "Verify return code: 0 (ok)",
            ] {
                assert!(ended.out.contains(part), "{version}: no {part:?} in {}", ended.out);
            }
        }
    }
    for (version, least, most) in [("TLSv1.2", "1.2", "1.2"), ("TLSv1.3", "1.3", "1.3")] {
        let flags = [&format!("--tlsv{least}"), "--tls-max", most];
        let ended = visitors.curl(&flags).await;
        assert!(
            ended.code == Some(0) && ended.out.contains(&format!("New, {version}, Cipher is")),
            "{ended:?}"
        );
    }
    // Who trusts another one gets nowhere: the edge has none of its own that would do.
    let strangers = Visitors { edge: &edge, trusted: &other };
    assert_eq!(strangers.curl(&[]).await.code, Some(60));
    assert_ne!(strangers.s_client(&[]).await.code, Some(0));
}

/// The server asks who the visitor is, and learns it from the visitor's own certificate.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_goes_through() {
    let edge = Serving::start().await;
    let home = edge.home.path();
    let (own, member) = (Identity::new(home, HOST).await, Identity::new(home, "member").await);
    let other = Identity::new(home, "other").await;
    let trust = member.certificate.to_str().unwrap();
    let (_server, port) =
        server(home, &own, &["-Verify", "1", "-verify_return_error", "-CAfile", trust]).await;
    let _agent = edge.tunnel(&["tls", &port, "--name", "own"]).await;
    let visitors = Visitors { edge: &edge, trusted: &own };
    for version in ["1.2", "1.3"] {
        let most = ["--tls-max", version];
        for (identity, welcome) in [(Some(&member), true), (Some(&other), false), (None, false)] {
            let mut flags = most.to_vec();
            if let Some(identity) = identity {
                flags.extend(["--cert", identity.certificate.to_str().unwrap()]);
                flags.extend(["--key", identity.key.to_str().unwrap()]);
            }
            let ended = visitors.curl(&flags).await;
            let known = ended.code == Some(0) && ended.out.contains("Subject: CN=member");
            assert_eq!(known, welcome, "TLS {version}: {ended:?}");
        }
    }
}
