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
use crate::tls::Certificate;

/// With TLS between the two hops.
pub(crate) const TLS: &str = "nginx TLS";
/// Where Debian puts it.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// How bodies pass through the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Setup {
    /// Bodies stream through large buffers and never touch a disk, as the tunnel does it: the harder mark
    Streaming,
    /// The same, but uploads pass through the buffer that nginx has for them by default (16 KiB)
    SmallUploads,
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
            Self::SmallUploads => {
                "
    proxy_request_buffering off;
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
            Self::SmallUploads => {
                "uploads streamed through nginx's default buffer, downloads in 8 buffers of 256 KiB, no \
                 temporary files"
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

/// The chain without TLS, or with TLS between its two hops.
pub(crate) async fn start(
    nginx: &Path,
    setup: Setup,
    dir: &Path,
    origin: SocketAddr,
    tls: Option<&Certificate>,
) -> anyhow::Result<System> {
    // nginx cannot take a free port and say which.
    let (outer, inner) = (free_address().await?, free_address().await?);
    let (name, prefix, base) = match tls {
        None => ("nginx", "nginx", "direct"),
        Some(_) => (TLS, "nginx-tls", "nginx"),
    };
    let hop = |side: &str, config: String| {
        let name = format!("{prefix}-{side}");
        let dir = dir.join(&name);
        fs::create_dir(&dir)?;
        hop(nginx, &dir, &name, &config)
    };
    let inner_hop = hop("inner", config(setup, inner, tls, origin, None)?)?;
    let outer_hop = hop("outer", config(setup, outer, None, inner, tls)?)?;
    let target = Target { address: outer.to_string(), host: "bench.localhost".to_owned() };
    let mut system = System::new(name, Some(base), target, vec![outer_hop, inner_hop]);
    system.wait_until_answering().await?;
    Ok(system)
}

/// Whether this nginx can end TLS for another server.
pub(crate) fn can_terminate() -> bool {
    Path::new(STREAM_MODULE).exists()
}

/// An nginx that ends TLS in front of `next` and passes the bytes on, and where it listens.
pub(crate) async fn start_terminator(
    nginx: &Path,
    dir: &Path,
    next: SocketAddr,
    certificate: &Certificate,
) -> anyhow::Result<(Child, SocketAddr)> {
    let listen = free_address().await?;
    let dir = dir.join("terminator");
    fs::create_dir(&dir)?;
    let config = format!(
        "\
load_module {STREAM_MODULE};
{user}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 4096; }}
stream {{
    server {{
        listen {listen} ssl;{certificate}
        proxy_pass {next};
        proxy_buffer_size 256k;
        tcp_nodelay on;
    }}
}}
",
        user = user()?,
        certificate = ends_tls(certificate),
    );
    let child = hop(nginx, &dir, "terminator", &config)?;
    Ok((child, listen))
}

/// Found by taking it and giving it back just before.
pub(crate) async fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("a free port")?;
    Ok(listener.local_addr()?)
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

/// Started by root, its workers would change to a user who may not read the temporary folder.
fn user() -> anyhow::Result<&'static str> {
    Ok(if fs::metadata("/proc/self")?.uid() == 0 { "user root;" } else { "" })
}

fn ends_tls(certificate: &Certificate) -> String {
    format!(
        "
        ssl_certificate {};
        ssl_certificate_key {};
        ssl_protocols TLSv1.3;",
        certificate.chain.display(),
        certificate.key.display()
    )
}

/// Relative paths are taken from the hop's own folder.
fn config(
    setup: Setup,
    listen: SocketAddr,
    listen_tls: Option<&Certificate>,
    next: SocketAddr,
    next_tls: Option<&Certificate>,
) -> anyhow::Result<String> {
    let user = user()?;
    let bodies = setup.directives();
    let (ssl, certificate) = match listen_tls {
        Some(certificate) => (" ssl", ends_tls(certificate)),
        None => ("", String::new()),
    };
    let (scheme, trust) = match next_tls {
        Some(certificate) => {
            let trust = format!(
                "
        proxy_ssl_protocols TLSv1.3;
        proxy_ssl_trusted_certificate {};
        proxy_ssl_verify on;
        proxy_ssl_name localhost;",
                certificate.chain.display()
            );
            ("https", trust)
        }
        None => ("http", String::new()),
    };
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
        listen {listen}{ssl};{certificate}{trust}
        proxy_http_version 1.1;
        location / {{
            proxy_pass {scheme}://next;
            proxy_set_header Connection \"\";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
        location /echo {{
            proxy_pass {scheme}://next;
            proxy_set_header Connection upgrade;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Host $host;
        }}
    }}
}}
"
    ))
}
