//! Requests for real files.

use std::fmt::Write as _;

use super::*;

struct Folder {
    dir: tempfile::TempDir,
    files: Files,
}

fn folder(settings: FileSettings) -> Folder {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("dist");
    for folder in ["assets", ".git"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for (name, text) in [
        ("dist/index.html", "<p>home"),
        ("dist/assets/app.js", "0123456789"),
        ("dist/.git/config", "secret"),
        ("secret.txt", "secret"),
        ("dist-other.txt", "secret"),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    Folder { files: Files::new(root, settings), dir }
}

impl Folder {
    async fn ask(&self, method: &str, target: &str, fields: &[(&'static str, &str)]) -> Got {
        let mut all = Fields::default();
        fields.iter().for_each(|(name, value)| all.push(*name, (*value).to_owned()));
        let answer = self.files.answer(method.as_bytes(), target.as_bytes(), &all).await.unwrap();
        Got::read(answer).await
    }

    async fn get(&self, target: &str) -> Got {
        self.ask("GET", target, &[]).await
    }
}

#[derive(Debug)]
struct Got {
    status: u16,
    fields: Fields,
    body: Vec<u8>,
}

impl Got {
    async fn read(mut answer: FileAnswer) -> Self {
        let mut body = Vec::new();
        while let Some(piece) = answer.body.next().await.unwrap() {
            assert!(!piece.is_empty() && piece.len() as u64 <= PIECE);
            body.extend_from_slice(&piece);
        }
        assert!(answer.body.is_empty());
        Self { status: answer.status, fields: answer.fields, body }
    }

    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", |value| std::str::from_utf8(value).unwrap())
    }

    fn seen(&self) -> (u16, &str) {
        (self.status, std::str::from_utf8(&self.body).unwrap())
    }
}

#[tokio::test]
async fn files_are_shown_with_what_they_are() {
    let folder = folder(FileSettings::default());
    let got = folder.get("/assets/app.js?v=1").await;
    assert_eq!(got.seen(), (200, "0123456789"));
    assert_eq!(got.field("content-type"), "text/javascript; charset=utf-8");
    assert_eq!(got.field("content-length"), "10");
    assert_eq!(got.field("accept-ranges"), "bytes");
    assert_eq!(folder.get("/").await.seen(), (200, "<p>home"));
    assert_eq!(folder.get("/index.html").await.field("content-type"), "text/html; charset=utf-8");
    let head = folder.ask("HEAD", "/assets/app.js", &[("range", "bytes=0-1")]).await;
    assert_eq!((head.seen(), head.field("content-length")), ((200, ""), "10"));
    let post = folder.ask("POST", "/", &[]).await;
    assert_eq!((post.status, post.field("allow")), (405, "GET, HEAD"));
}

#[tokio::test]
async fn a_folder_has_a_slash_and_an_index() {
    let folder = folder(FileSettings::default());
    let got = folder.get("/assets?a=b").await;
    assert_eq!((got.status, got.field("location")), (308, "./assets/?a=b"));
    assert_eq!(folder.get("/assets/").await.status, 404, "there is no list of files");
    assert_eq!(folder.get("/index.html/").await.status, 404);
}

#[tokio::test]
async fn nothing_outside_and_nothing_hidden_is_shown() {
    let folder = folder(FileSettings::default());
    for target in [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/assets/..%5c..%5csecret.txt",
        "/assets/../../secret.txt",
        "/.git/config",
        "/%2egit/config",
        "//index.html",
        "/index.html%00",
        "/../dist-other.txt",
        "*",
    ] {
        let got = folder.get(target).await;
        assert_eq!(got.seen(), (404, "There is no such file.\n"), "{target}");
    }
    let open = self::folder(FileSettings { dotfiles: true, ..FileSettings::default() });
    assert_eq!(open.get("/.git/config").await.seen(), (200, "secret"));
    assert_eq!(open.get("/../secret.txt").await.status, 404);
}

#[cfg(unix)]
#[tokio::test]
async fn links_lead_no_further_than_the_folder() {
    use std::os::unix::fs::symlink;
    let folder = folder(FileSettings::default());
    let root = folder.dir.path().join("dist");
    symlink(folder.dir.path().join("secret.txt"), root.join("out.txt")).unwrap();
    symlink(folder.dir.path(), root.join("up")).unwrap();
    symlink("assets/app.js", root.join("in.js")).unwrap();
    symlink(folder.dir.path().join("secret.txt"), root.join("404.html")).unwrap();
    assert_eq!(folder.get("/out.txt").await.seen(), (404, "There is no such file.\n"));
    assert_eq!(folder.get("/up/secret.txt").await.status, 404);
    assert_eq!(folder.get("/in.js").await.seen(), (200, "0123456789"));
}

#[tokio::test]
async fn what_is_known_is_not_sent_again() {
    let folder = folder(FileSettings::default());
    let target = "/assets/app.js";
    let first = folder.get(target).await;
    let (etag, modified) = (first.field("etag"), first.field("last-modified"));
    for (name, value, status) in [
        ("if-none-match", etag, 304),
        ("if-none-match", &format!("\"x\", W/{etag}"), 304),
        ("if-none-match", "*", 304),
        ("if-none-match", "\"x\"", 200),
        ("if-modified-since", modified, 304),
        ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT", 200),
        ("if-modified-since", "yesterday", 200),
        ("if-match", etag, 200),
        ("if-match", "\"x\"", 412),
    ] {
        let got = folder.ask("GET", target, &[(name, value)]).await;
        assert_eq!(got.status, status, "{name}: {value}");
        assert_eq!(got.body.is_empty(), status != 200);
        assert_eq!(got.field("etag"), etag);
    }
    let both = [("if-none-match", "\"x\""), ("if-modified-since", modified)];
    assert_eq!(folder.ask("GET", target, &both).await.status, 200, "the tag says more");
}

#[tokio::test]
async fn parts_of_files() {
    let folder = folder(FileSettings::default());
    let target = "/assets/app.js";
    let etag = folder.get(target).await.field("etag").to_owned();
    let part = |fields: Vec<(&'static str, String)>| {
        let folder = &folder;
        async move {
            let fields: Vec<_> = fields.iter().map(|(n, v)| (*n, v.as_str())).collect();
            folder.ask("GET", target, &fields).await
        }
    };
    let got = part(vec![("range", "bytes=2-4".into())]).await;
    assert_eq!((got.seen(), got.field("content-range")), ((206, "234"), "bytes 2-4/10"));
    assert_eq!(got.field("content-length"), "3");
    let got = part(vec![("range", "bytes=10-".into())]).await;
    assert_eq!((got.seen(), got.field("content-range")), ((416, ""), "bytes */10"));
    let got = part(vec![("range", "bytes=0-1".into()), ("if-range", etag)]).await;
    assert_eq!(got.seen(), (206, "01"));
    let got = part(vec![("range", "bytes=0-1".into()), ("if-range", "\"x\"".into())]).await;
    assert_eq!(got.seen(), (200, "0123456789"));
    let got = part(vec![("range", "bytes=0-1,4-5".into())]).await;
    assert_eq!(got.seen(), (200, "0123456789"));
}

#[tokio::test]
async fn long_files_come_in_pieces_and_one_that_is_cut_is_an_error() {
    let folder = folder(FileSettings::default());
    let path = folder.dir.path().join("dist/long.bin");
    let mut text = String::new();
    (0..60_000).for_each(|number| write!(text, "{number},").unwrap());
    fs::write(&path, &text).unwrap();
    let got = folder.get("/long.bin").await;
    assert_eq!(got.seen(), (200, text.as_str()));
    assert_eq!(got.field("content-type"), "application/octet-stream");
    let answer = folder.files.answer(b"GET", b"/long.bin", &Fields::default()).await;
    let mut body = answer.unwrap().body;
    body.next().await.unwrap().unwrap();
    fs::write(&path, "short").unwrap();
    assert!(body.next().await.is_err());
}

#[tokio::test]
async fn pages_that_are_not_there() {
    let plain = folder(FileSettings::default());
    fs::write(plain.dir.path().join("dist/404.html"), "<p>lost").unwrap();
    let got = plain.ask("GET", "/x", &[("range", "bytes=0-1"), ("if-none-match", "*")]).await;
    assert_eq!(
        (got.seen(), got.field("content-type")),
        ((404, "<p>lost"), "text/html; charset=utf-8")
    );

    let app = folder(FileSettings { fallback: Some("index.html".into()), dotfiles: false });
    assert_eq!(app.get("/users/7").await.seen(), (200, "<p>home"));
    assert_eq!(app.get("/users/7/").await.seen(), (200, "<p>home"));
    assert_eq!(app.get("/assets/gone.js").await.status, 404);
    let page = app.ask("GET", "/v1.2", &[("accept", "text/html,*/*")]).await;
    assert_eq!(page.seen(), (200, "<p>home"));
    assert_eq!(app.get("/.git/config").await.status, 404);
    assert_eq!(app.get("/assets").await.status, 308);
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_the_local_servers_fault() {
    let files = Files::new("/nowhere/at/all".into(), FileSettings::default());
    let error = files.answer(b"GET", b"/", &Fields::default()).await.unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::Unreachable);
    assert!(error.message.contains("/nowhere/at/all") && files.check().is_err());
}
