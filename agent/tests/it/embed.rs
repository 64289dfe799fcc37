//! A Rust program with a public URL and no second process.

use axum::{
    Router,
    routing::{get, post},
};
use uniroute_agent::Tunnel;

use crate::harness::{Edge, get as visit, within};

fn tunnel(edge: &Edge) -> Tunnel {
    let token = std::fs::read_to_string(edge.token_file()).unwrap();
    Tunnel::http(edge.url().parse().unwrap(), token.trim().parse().unwrap()).name("inside")
}

#[tokio::test]
async fn axum_serves_visitors_of_the_tunnel() {
    let edge = Edge::start().await;
    let app = Router::new()
        .route("/", get(|| async { "from within" }))
        .route("/echo", post(|body: String| async move { body }));
    let listener = within("the tunnel opens", tunnel(&edge).listen()).await.unwrap();
    assert_eq!(listener.url(), format!("http://inside.localhost:{}", edge.http.port()));
    let handle = listener.handle();
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });
    for _ in 0..3 {
        let (status, answer) = edge.get("inside", "/").await;
        assert!(status == 200 && answer.ends_with("from within"), "{answer}");
    }
    let status = handle.status();
    assert_eq!((status.tunnels[0].requests, status.tunnels[0].failed), (3, 0));
    assert_eq!(status.tunnels[0].upstreams[0].url, "this program");
    serving.abort();
}

#[tokio::test]
async fn hyper_serves_it_and_dropping_the_listener_ends_it() {
    let edge = Edge::start().await;
    let mut listener = within("the tunnel opens", tunnel(&edge).listen()).await.unwrap();
    let host = format!("inside.localhost:{}", edge.http.port());
    let (http, visitor) = (edge.http, host.clone());
    let visiting = tokio::spawn(async move { visit(http, &visitor, "/").await });
    let connection = within("a visitor comes", listener.accept()).await.unwrap();
    let answer =
        |_| async { Ok::<_, std::convert::Infallible>(hyper::Response::new("hyper".to_owned())) };
    let service = hyper::service::service_fn(answer);
    let io = hyper_util::rt::TokioIo::new(connection);
    let serving =
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
    let (status, answer) = visiting.await.unwrap();
    assert!(status == 200 && answer.ends_with("hyper"), "{answer}");
    within("the tunnel ends", listener.close()).await.unwrap();
    assert!(visit(http, &host, "/").await.0 >= 404);
    serving.abort();
}

#[tokio::test]
async fn what_is_wrong_is_said_at_once() {
    let edge = Edge::start().await;
    let wrong =
        Tunnel::http(edge.url().parse().unwrap(), "not-the-token-of-this-edge".parse().unwrap());
    let error = within("an answer", wrong.listen()).await.unwrap_err().to_string();
    assert!(error.contains("UR-4001"), "{error}");
    let reserved = tunnel(&edge).name("admin");
    let error = within("an answer", reserved.listen()).await.unwrap_err().to_string();
    assert!(error.contains("UR-11"), "{error}");
}
