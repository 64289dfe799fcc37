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

/// What a reader of the figures has to know about the configuration.
pub(crate) const DESCRIPTION: &str = "two nginx processes in a chain, one worker each, HTTP/1.1 with 256 idle \
     keep-alive connections to the next hop, client connections not ended by count, access log off, \
     client_max_body_size 0, buffering of requests and answers on as by default";

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

pub(crate) async fn start(nginx: &Path, dir: &Path, origin: SocketAddr) -> anyhow::Result<System> {
    // nginx cannot take a free port and say which, so two are found first and given back just before.
    let (outer, inner) = (listen().await?, listen().await?);
    let addresses = (outer.local_addr()?, inner.local_addr()?);
    drop((outer, inner));
    let (outer, inner) = addresses;

    let middle = vec![
        hop(nginx, dir, "nginx-inner", inner, origin)?,
        hop(nginx, dir, "nginx-outer", outer, inner)?,
    ];
    let target = Target { address: outer.to_string(), host: "bench.localhost".to_owned() };
    let system = System { name: "nginx", target, middle };
    system.wait_until_answering().await?;
    Ok(system)
}

async fn listen() -> anyhow::Result<TcpListener> {
    TcpListener::bind("127.0.0.1:0").await.context("a free port")
}

fn hop(
    nginx: &Path,
    dir: &Path,
    name: &str,
    listen: SocketAddr,
    next: SocketAddr,
) -> anyhow::Result<Child> {
    let dir = dir.join(name);
    fs::create_dir(&dir)?;
    let file = dir.join("nginx.conf");
    fs::write(&file, config(&dir, listen, next)?)?;
    let mut command = Command::new(nginx);
    command.arg("-c").arg(&file).arg("-p").arg(&dir).args(["-e", "error.log"]);
    Child::start(name, &dir, command)
}

fn config(dir: &Path, listen: SocketAddr, next: SocketAddr) -> anyhow::Result<String> {
    // Started by root, its workers would change to a user who may not read the temporary folder.
    let user = match fs::metadata("/proc/self")?.uid() {
        0 => "user root;",
        _ => "",
    };
    let dir = dir.display();
    Ok(format!(
        "\
{user}
daemon off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {dir}/client_body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    client_max_body_size 0;
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
