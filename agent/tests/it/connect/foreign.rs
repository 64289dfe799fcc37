//! Programs of others that stand between agent and edge.

use std::{net::SocketAddr, path::Path};

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{
    eventually,
    process::{self, Process},
};

/// One of them; gone with its value.
pub(crate) struct Foreign {
    pub(crate) address: SocketAddr,
    pub(crate) process: Process,
    pub(crate) home: TempDir,
}

/// An address that is free now.
pub(crate) async fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn start(program: &str, home: TempDir, address: SocketAddr, arguments: &[&str]) -> Foreign {
    let places = ["/usr/sbin", "/usr/bin", "/usr/local/bin"];
    let found = places.iter().map(|place| Path::new(place).join(program)).find(|at| at.exists());
    let found =
        found.unwrap_or_else(|| panic!("{program} is missing: scripts/install-test-deps.sh"));
    let process = Process::start(process::command(&found, home.path()).args(arguments));
    eventually(program, async || TcpStream::connect(address).await.ok()).await;
    Foreign { address, process, home }
}

/// An HTTP proxy. `lines` are of its configuration.
pub(crate) async fn tinyproxy(lines: &str) -> Foreign {
    let (home, address) = (tempfile::tempdir().unwrap(), free().await);
    let config = format!(
        "Port {}\nListen 127.0.0.1\nTimeout 600\nMaxClients 50\nLogLevel Connect\n\
         LogFile \"{}\"\n{lines}\n",
        address.port(),
        home.path().join("log").display(),
    );
    std::fs::write(home.path().join("conf"), config).unwrap();
    start("tinyproxy", home, address, &["-d", "-c", "conf"]).await
}

impl Foreign {
    /// How often a line of its log file holds `text`.
    pub(crate) fn logged(&self, text: &str) -> usize {
        let log = std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(text)).count()
    }
}

/// A SOCKS5 proxy.
pub(crate) async fn microsocks(login: Option<(&str, &str)>) -> Foreign {
    let address = free().await;
    let port = address.port().to_string();
    let mut arguments = vec!["-i", "127.0.0.1", "-p", &port];
    if let Some((user, password)) = login {
        arguments.extend(["-u", user, "-P", password]);
    }
    start("microsocks", tempfile::tempdir().unwrap(), address, &arguments).await
}

/// nginx with TLS in front of `to`: of HTTP, or of whatever passes. `certificate` and `key` are PEM;
/// `lines` are of its server.
pub(crate) async fn nginx(
    to: SocketAddr,
    (certificate, key): (&str, &str),
    http: bool,
    lines: &str,
) -> Foreign {
    let (home, address) = (tempfile::tempdir().unwrap(), free().await);
    std::fs::write(home.path().join("certificate.pem"), certificate).unwrap();
    std::fs::write(home.path().join("key.pem"), key).unwrap();
    let module = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;";
    let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temp: String = temp.iter().map(|of| format!("{of}_temp_path temp_{of};\n")).collect();
    let server = format!(
        "listen {address} ssl;\nssl_protocols TLSv1.2 TLSv1.3;\nssl_certificate certificate.pem;\nssl_certificate_key key.pem;\n{lines}"
    );
    let rest = match http {
        true => format!(
            "http {{\naccess_log off;\n{temp}server {{\n{server}\nlocation / {{\n\
             proxy_pass http://{to};\nproxy_http_version 1.1;\nproxy_set_header Host $http_host;\n\
             proxy_set_header Upgrade $http_upgrade;\nproxy_set_header Connection upgrade;\n}}\n}}\n}}"
        ),
        false => format!("stream {{\nserver {{\n{server}\nproxy_pass {to};\n}}\n}}"),
    };
    let config = format!(
        "{}\ndaemon off;\nmaster_process off;\npid pid;\nevents {{}}\n{rest}\n",
        if http { "" } else { module }
    );
    let file = home.path().join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let prefix = format!("{}/", home.path().display());
    let file = file.display().to_string();
    start("nginx", home, address, &["-p", &prefix, "-c", &file, "-e", "stderr"]).await
}
