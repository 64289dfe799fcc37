//! Two nginx processes as chained reverse proxies: as many HTTP hops as edge and agent make.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::client::Target;
use crate::process::Child;
use crate::system::System;

/// How bodies pass through the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Setup {
    /// Bodies stream through large buffers and never touch a disk, as the tunnel does it: the harder mark
    Streaming,
    /// nginx's defaults: small buffers, and whole uploads and slow downloads kept in temporary files
    Stock,
}

impl Setup {
    fn directives(self) -> &'static str {
        match self {
            Self::Streaming => {
                "
    proxy_request_buffering off;
    client_body_buffer_size 256k;
    proxy_buffers 8 256k;
    proxy_buffer_size 16k;
    proxy_busy_buffers_size 512k;
    proxy_max_temp_file_size 0;"
            }
            Self::Stock => "",
        }
    }

    /// What a reader of the figures has to know about the configuration.
    pub(crate) fn describe(self) -> String {
        let bodies = match self {
            Self::Streaming => {
                "uploads streamed, downloads in 8 buffers of 256 KiB, no temporary files"
            }
            Self::Stock => "buffering of requests and answers as by default",
        };
        format!(
            "two processes in a chain, one worker each, HTTP/1.1 with 256 idle keep-alive connections to the next \
             hop, connections not ended by count, access log off, {bodies}"
        )
    }
}

/// Debian's nginx, if it is installed.
pub(crate) fn find() -> Option<PathBuf> {
    ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
}

/// `nginx version: …`, as it prints it.
pub(crate) async fn version(nginx: &Path) -> anyhow::Result<String> {
    let output = Command::new(nginx).arg("-v").output().await.context("nginx -v")?;
    Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

pub(crate) async fn start(
    nginx: &Path,
    setup: Setup,
    dir: &Path,
    origin: SocketAddr,
) -> anyhow::Result<System> {
    // nginx cannot take a free port and say which, so two are found first and given back just before.
    let (outer, inner) = (listen().await?, listen().await?);
    let addresses = (outer.local_addr()?, inner.local_addr()?);
    drop((outer, inner));
    let (outer, inner) = addresses;

    let hop = |name: &str, listen, next| {
        let dir = dir.join(name);
        fs::create_dir(&dir)?;
        hop(nginx, &dir, name, &config(setup, listen, next)?)
    };
    let middle = vec![hop("nginx-inner", inner, origin)?, hop("nginx-outer", outer, inner)?];
    let target = Target { address: outer.to_string(), host: "bench.localhost".to_owned() };
    let mut system = System { name: "nginx", target, namespace: None, middle };
    system.wait_until_answering().await?;
    Ok(system)
}

async fn listen() -> anyhow::Result<TcpListener> {
    TcpListener::bind("127.0.0.1:0").await.context("a free port")
}

/// One nginx with its files in `dir`.
fn hop(nginx: &Path, dir: &Path, name: &str, config: &str) -> anyhow::Result<Child> {
    fs::create_dir(dir.join("temp"))?;
    let file = dir.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = Command::new(nginx);
    command.arg("-c").arg(&file).arg("-p").arg(dir).args(["-e", "error.log"]);
    Child::start(name, dir, command)
}

/// Relative paths are taken from the hop's own folder.
fn config(setup: Setup, listen: SocketAddr, next: SocketAddr) -> anyhow::Result<String> {
    // Started by root, its workers would change to a user who may not read the temporary folder.
    let user = match fs::metadata("/proc/self")?.uid() {
        0 => "user root;",
        _ => "",
    };
    let bodies = setup.directives();
    Ok(format!(
        "\
{user}
daemon off;
worker_processes 1;
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
    client_max_body_size 0;{bodies}
    keepalive_requests 1000000000;
    upstream next {{
        server {next};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {listen};
        location / {{
            proxy_pass http://next;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"
    ))
}
