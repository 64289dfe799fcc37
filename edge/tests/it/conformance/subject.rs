//! What the cases are run against: the tunnel, and nginx as the reference.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::{
    net::{TcpStream, UnixStream},
    process::{Child, Command},
};

use super::{
    case::HOST,
    peers::{Client, Origin},
};
use crate::harness::{TestAgent, TestEdge, eventually, within};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A real edge and a real agent.
    Tunnel,
    Nginx,
}

/// The way of one case from its visitor to its local server.
pub(crate) struct Way {
    pub(crate) origin: Origin,
    door: Door,
    door2: Door,
    _tunnel: Option<(TestEdge, TestAgent)>,
}

enum Door {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Way {
    /// Through an edge and an agent of its own.
    pub(crate) async fn tunnel(origin: Origin) -> Self {
        let edge = TestEdge::start();
        let agent = TestAgent::start(&edge, "demo", &format!("http://{}", origin.address)).await;
        let door = || Door::Tcp(edge.http());
        Self { origin, door: door(), door2: door(), _tunnel: Some((edge, agent)) }
    }

    /// Through the reference's doors for the case with this number.
    pub(crate) fn nginx(origin: Origin, nginx: &NginxServer, number: usize) -> Self {
        let door = |http2| Door::Unix(nginx.door(number, http2));
        Self { origin, door: door(false), door2: door(true), _tunnel: None }
    }

    /// A connection for a visitor of HTTP/1.
    pub(crate) async fn connect(&self) -> Client {
        self.door.connect().await
    }

    /// A connection for a visitor of HTTP/2: the same door at the edge, another at nginx.
    pub(crate) async fn connect2(&self) -> Client {
        self.door2.connect().await
    }
}

impl Door {
    async fn connect(&self) -> Client {
        match self {
            Self::Tcp(address) => {
                let socket = within("a connection", TcpStream::connect(address)).await.unwrap();
                socket.set_nodelay(true).unwrap();
                Client::new(Box::new(socket))
            }
            Self::Unix(path) => {
                let socket = within("a connection", UnixStream::connect(path)).await.unwrap();
                Client::new(Box::new(socket))
            }
        }
    }
}

/// One nginx with a server for each case; gone with its value.
pub(crate) struct NginxServer {
    dir: TempDir,
    process: Child,
}

impl NginxServer {
    /// Takes visitors on Unix sockets, since it can't take a free port and say which.
    pub(crate) async fn start(origins: &[SocketAddr]) -> Self {
        let program = find().expect("nginx is the reference: run scripts/install-test-deps.sh");
        let dir = TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("temp")).unwrap();
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, config(dir.path(), origins)).unwrap();
        let mut command = Command::new(program);
        command.arg("-c").arg(&file).arg("-p").arg(dir.path()).args(["-e", "error.log"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.kill_on_drop(true).spawn().unwrap();
        let mut nginx = Self { dir, process };
        let last = nginx.door(origins.len().saturating_sub(1), true);
        eventually("nginx listens", async || {
            if nginx.process.try_wait().unwrap().is_some() {
                let log = std::fs::read_to_string(nginx.dir.path().join("error.log"));
                panic!("nginx ended: {}", log.unwrap_or_default());
            }
            UnixStream::connect(&last).await.ok()
        })
        .await;
        nginx
    }

    fn door(&self, number: usize, http2: bool) -> PathBuf {
        self.dir.path().join(socket_name(number, http2))
    }
}

fn socket_name(number: usize, http2: bool) -> String {
    format!("{number}.{}", if http2 { "h2" } else { "h1" })
}

fn find() -> Option<&'static str> {
    ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"]
        .into_iter()
        .find(|path| Path::new(path).exists())
}

/// As the tunnel does it, where nginx can be told: bodies stream, connections to the local server
/// are kept, upgrades pass, and fields that say who came by which way are made anew.
fn config(dir: &Path, origins: &[SocketAddr]) -> String {
    let mut servers = String::new();
    for (number, origin) in origins.iter().enumerate() {
        let (h1, h2) = (dir.join(socket_name(number, false)), dir.join(socket_name(number, true)));
        write!(
            servers,
            "
    upstream origin{number} {{ server {origin}; keepalive 16; }}
    server {{
        listen unix:{h1};
        listen unix:{h2} http2;
        server_name {HOST};
        location / {{ proxy_pass http://origin{number}; }}
    }}
    server {{
        listen unix:{h1} default_server;
        listen unix:{h2} http2 default_server;
        server_name _;
        return 404;
    }}",
            h1 = h1.display(),
            h2 = h2.display(),
        )
        .unwrap();
    }
    format!(
        "\
daemon off;
master_process off;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path temp/client_body;
    proxy_temp_path temp/proxy;
    fastcgi_temp_path temp/fastcgi;
    uwsgi_temp_path temp/uwsgi;
    scgi_temp_path temp/scgi;
    server_names_hash_max_size 4096;
    client_max_body_size 0;
    large_client_header_buffers 4 64k;
    lingering_timeout 1s;
    proxy_http_version 1.1;
    proxy_request_buffering off;
    proxy_buffering off;
    proxy_buffer_size 64k;
    proxy_buffers 8 64k;
    map $http_upgrade $wanted {{ default $http_upgrade; h2c ''; }}
    map $wanted $connection_field {{ default upgrade; '' ''; }}
    map $http_via $via_field {{ default '$http_via, 1.1 uniroute'; '' '1.1 uniroute'; }}
    proxy_set_header Host $http_host;
    proxy_set_header Upgrade $wanted;
    proxy_set_header Connection $connection_field;
    proxy_set_header HTTP2-Settings '';
    proxy_set_header Proxy-Connection '';
    proxy_set_header Proxy-Authorization '';
    proxy_set_header Via $via_field;
    proxy_set_header Forwarded 'for=unknown;proto=http';
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-Host $http_host;
    proxy_set_header X-Real-IP '';
    proxy_set_header X-Uniroute-Request-Id '';
    proxy_set_header X-Uniroute-Error '';
    proxy_hide_header X-Uniroute-Request-Id;
    proxy_hide_header X-Uniroute-Error;
    proxy_hide_header Keep-Alive;
    proxy_hide_header Proxy-Connection;
    proxy_hide_header Proxy-Authenticate;
    proxy_pass_header Date;
    proxy_pass_header Server;
    add_header Via '1.1 uniroute' always;
{servers}
}}
"
    )
}
