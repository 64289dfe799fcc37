//! The inspector's page: a few files inside of this program. It asks nobody but the agent for
//! anything.

use std::sync::{Arc, LazyLock};

use axum::{
    Router,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::App;
use crate::inspect;

/// What the page may do: nothing that is not its own.
pub(super) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

struct Asset {
    kind: &'static str,
    bytes: &'static [u8],
    tag: LazyLock<String>,
}

macro_rules! asset {
    ($name:ident, $file:literal, $kind:literal) => {
        static $name: Asset = Asset {
            kind: $kind,
            bytes: include_bytes!($file),
            tag: LazyLock::new(|| tag(include_bytes!($file))),
        };
    };
}

asset!(PAGE, "page/index.html", "text/html; charset=utf-8");
asset!(SCRIPT, "page/app.js", "text/javascript; charset=utf-8");
asset!(STYLE, "page/app.css", "text/css; charset=utf-8");
asset!(ICON, "page/icon.svg", "image/svg+xml");

fn tag(bytes: &[u8]) -> String {
    let digest = inspect::sha256(bytes);
    format!("\"{}\"", &digest[..16])
}

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(async |headers: HeaderMap| serve(&PAGE, &headers)))
        .route("/assets/app.js", get(async |headers: HeaderMap| serve(&SCRIPT, &headers)))
        .route("/assets/app.css", get(async |headers: HeaderMap| serve(&STYLE, &headers)))
        .route("/assets/icon.svg", get(async |headers: HeaderMap| serve(&ICON, &headers)))
}

fn serve(asset: &'static Asset, headers: &HeaderMap) -> Response {
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|tag| *tag == **asset.tag);
    let tag = [(header::ETAG, asset.tag.as_str())];
    if known {
        return (StatusCode::NOT_MODIFIED, tag).into_response();
    }
    (tag, [(header::CONTENT_TYPE, asset.kind)], asset.bytes).into_response()
}
