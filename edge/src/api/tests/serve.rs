use super::*;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore]
async fn serve() {
    use http_body_util::{BodyExt as _, Full};
    let world = Arc::new(World::with(Signup::Open).await);
    for (n, role) in Role::ALL.into_iter().enumerate() {
        let token = world.token(&format!("u{n}@example.com"), role).await;
        println!("TOKEN {} {token}", role.as_str());
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:18080").await.unwrap();
    println!("ready");
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let world = world.clone();
        tokio::spawn(async move {
            let service =
                hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let world = world.clone();
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                        let n: u32 = rand32();
                        let peer = Peer { address: IpAddr::from(n.to_be_bytes()), secure: false };
                        let response =
                            world.api.answer(http::Request::from_parts(parts, body), peer).await;
                        Ok::<_, std::convert::Infallible>(response.map(Full::new))
                    }
                });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                .await;
        });
    }
}
fn rand32() -> u32 {
    let mut b = [0; 4];
    getrandom::fill(&mut b).unwrap();
    u32::from_le_bytes(b)
}
