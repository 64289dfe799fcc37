//! Runs cases, and says of each that fails what was seen.

use std::fmt::Write as _;

use futures_util::{StreamExt as _, stream};

use super::{
    case::{Case, Expect, HOST, Nginx, Seen, Speaks, Step},
    frames::{self, FENCE_STREAM, View},
    message::{self, Kind, find},
    peers::{Client, FENCE, Origin, PATIENCE},
    subject::{NginxServer, Subject, Way},
};

/// Only cases with this in their names are run.
const ONLY: &str = "UNIROUTE_CASE";
/// Cases that run at the same time.
const AT_ONCE: usize = 12;
/// Bytes that are shown of each side.
const SHOWN: usize = 1_500;

/// Runs all cases against `subject` and panics with those that fail.
pub(crate) async fn run(cases: Vec<Case>, subject: Subject) {
    let only = std::env::var(ONLY).unwrap_or_default();
    let cases: Vec<Case> = cases.into_iter().filter(|case| case.name.contains(&only)).collect();
    let count = cases.len();
    let mut origins = Vec::new();
    for case in &cases {
        origins.push(Origin::start(case.replies.clone(), case.dark).await);
    }
    let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
    let nginx = match subject {
        Subject::Nginx if count > 0 => Some(NginxServer::start(&addresses).await),
        _ => None,
    };
    let judged = cases.iter().zip(origins).enumerate().map(|(number, (case, origin))| {
        let nginx = nginx.as_ref();
        async move {
            let way = match nginx {
                Some(nginx) => Way::nginx(origin, nginx, number),
                None => Way::tunnel(origin).await,
            };
            judge(case, &way, subject).await
        }
    });
    let failures = stream::iter(judged).buffer_unordered(AT_ONCE);
    let mut failures: Vec<String> = failures.filter_map(std::future::ready).collect().await;
    failures.sort();
    let failed = failures.len();
    assert!(
        failed == 0,
        "{failed} of {count} cases fail ({subject:?}):\n\n{}",
        failures.join("\n")
    );
}

/// `None` if the case holds.
async fn judge(case: &Case, way: &Way, subject: Subject) -> Option<String> {
    let own = match (&case.nginx, subject) {
        (Nginx::Own(_, expect), Subject::Nginx) => expect,
        _ => &case.expect,
    };
    let (seen, mut violations) = play(case, own, way).await;
    violations.extend(own.violations(&seen));
    if subject == Subject::Nginx {
        match &case.nginx {
            Nginx::Same => {}
            Nginx::Differs(_) if !violations.is_empty() => return None,
            Nginx::Differs(why) => {
                violations = vec![format!("said to differ ({why}), and does not: a stale mark")];
            }
            Nginx::Own(why, _) if case.expect.violations(&seen).is_empty() => {
                violations.push(format!("said to differ ({why}), and does not: a stale mark"));
            }
            Nginx::Own(..) => {}
        }
    }
    (!violations.is_empty()).then(|| report(case, &seen, &violations))
}

fn report(case: &Case, seen: &Seen, violations: &[String]) -> String {
    let mut text = format!("--- {} [{}]\n", case.name, case.rule);
    for violation in violations {
        writeln!(text, "    NOT: {violation}").unwrap();
    }
    for step in &case.steps {
        if let Step::Send(bytes) = step {
            writeln!(text, "    client sent: {}", shown(bytes)).unwrap();
        }
    }
    writeln!(text, "    client got:  {} (closed: {})", shown(&seen.client), seen.closed).unwrap();
    if case.speaks != Speaks::Http1 {
        writeln!(text, "    that is:     {}", seen.view).unwrap();
    }
    for bytes in &seen.origin {
        writeln!(text, "    origin got:  {}", shown(bytes)).unwrap();
    }
    text
}

fn shown(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(SHOWN)];
    let more =
        if bytes.len() > SHOWN { format!("… {} bytes", bytes.len()) } else { String::new() };
    format!("\"{}\"{more}", start.escape_ascii())
}

/// Plays the case to its end; what was seen, and what was waited for in vain.
async fn play(case: &Case, expect: &Expect, way: &Way) -> (Seen, Vec<String>) {
    let mut missed = Vec::new();
    let mut client = match case.speaks {
        Speaks::Http1 => way.connect().await,
        Speaks::Http2 | Speaks::Http2ByHand => way.connect2().await,
    };
    if case.speaks == Speaks::Http2 {
        client.send(&frames::opening()).await;
        client.log.until(|bytes, over| over || View::read(bytes).opened).await;
        if !View::read(&client.log.now().bytes).opened {
            missed.push("the server sends its settings".to_owned());
        }
        client.send(&frames::frame(frames::SETTINGS, frames::ACK, 0, &[])).await;
    }
    for step in &case.steps {
        if let Err(what) = perform(step, &mut client, way).await {
            missed.push(what);
            break;
        }
    }
    match case.speaks {
        _ if client.has_left() => {}
        Speaks::Http1 => finish(case, expect, &mut client, &mut missed).await,
        Speaks::Http2 | Speaks::Http2ByHand => {
            finish2(case, expect, &mut client, &mut missed).await;
        }
    }
    if !case.dark
        && let Err(what) = fence_elsewhere(way).await
    {
        missed.push(what);
    }
    let mut seen = Seen { closed: client.log.now().over, ..Seen::default() };
    match case.speaks {
        Speaks::Http1 => gather(case, expect, &client, &mut seen),
        Speaks::Http2 | Speaks::Http2ByHand => gather2(&client, &mut seen),
    }
    gather_origin(expect, &way.origin, &mut seen);
    (seen, missed)
}

/// Waits for the answers, and sees what the connection is good for behind them.
async fn finish(case: &Case, expect: &Expect, client: &mut Client, missed: &mut Vec<String>) {
    let answers = expect.answers;
    let enough = |bytes: &[u8], over: bool| {
        let read = read_answers(bytes, over, &case.methods);
        over || read.fault.is_some() || read.switched || read.whole() >= answers
    };
    if !client.log.until(enough).await {
        missed.push(format!("{answers} final answers or the connection's end, in time"));
    }
    if case.fenced {
        fence_behind(case, client, missed).await;
    } else if expect.ends {
        client.log.until(|_, over| over).await;
    }
}

/// The same over HTTP/2, where steps have waited for the streams.
async fn finish2(case: &Case, expect: &Expect, client: &mut Client, missed: &mut Vec<String>) {
    if case.fenced {
        client.send(&frames::get(FENCE_STREAM, FENCE, &[])).await;
    }
    // A connection that is given up has to end as well.
    let passed = |bytes: &[u8], over: bool| {
        let view = View::read(bytes);
        let fence = view.streams.get(&FENCE_STREAM);
        over || view.fault.is_some()
            || view.goaway.is_none() && fence.is_some_and(frames::Stream::is_over)
    };
    if case.fenced && !client.log.until(passed).await {
        missed.push("a further request is answered, or the connection ends".to_owned());
    }
    if !case.fenced && expect.ends {
        client.log.until(|_, over| over).await;
    }
}

/// One more request on the same connection: answered, or cut off by the connection's end.
async fn fence_behind(case: &Case, client: &mut Client, missed: &mut Vec<String>) {
    let before = read_answers(&client.log.now().bytes, false, &case.methods);
    if before.switched {
        return;
    }
    client.send(fence_request().as_bytes()).await;
    let passed = |bytes: &[u8], over: bool| {
        let read = read_answers(bytes, over, &case.methods);
        over || read.fault.is_some() || read.fences > 0
    };
    if !client.log.until(passed).await {
        missed.push("a further request is answered, or the connection ends".to_owned());
    }
}

fn fence_request() -> String {
    format!("GET {FENCE} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")
}

/// A request on a connection of its own.
async fn fence_elsewhere(way: &Way) -> Result<(), String> {
    let mut other = way.connect().await;
    other.send(fence_request().as_bytes()).await;
    let answered = |bytes: &[u8], over: bool| over || find(bytes, b"fence").is_some();
    let in_time = other.log.until(answered).await;
    let taken = other.log.now();
    if in_time && find(&taken.bytes, b"\r\n\r\nfence").is_some() {
        return Ok(());
    }
    Err(format!("a request on another connection is answered, not {}", shown(&taken.bytes)))
}

async fn perform(step: &Step, client: &mut Client, way: &Way) -> Result<(), String> {
    let in_vain =
        |who: &str, bytes: &[u8]| format!("{who} \"{}\" within {PATIENCE:?}", bytes.escape_ascii());
    match step {
        Step::Send(bytes) => client.send(bytes).await,
        Step::Gets(bytes) => {
            client.log.until(|taken, over| over || find(taken, bytes).is_some()).await;
            if !client.log.has(bytes) {
                return Err(in_vain("the client gets", bytes));
            }
        }
        Step::OriginGets(bytes) => {
            if !way.origin.until(|taken, _| find(taken, bytes).is_some()).await {
                return Err(in_vain("the local server gets", bytes));
            }
        }
        Step::OriginLacks(bytes) => {
            if way.origin.connections().iter().any(|connection| connection.log.has(bytes)) {
                return Err(format!(
                    "the local server has not got \"{}\" yet",
                    bytes.escape_ascii()
                ));
            }
        }
        Step::Lacks(bytes) => {
            if client.log.has(bytes) {
                return Err(format!("the client has not got \"{}\" yet", bytes.escape_ascii()));
            }
        }
        Step::OriginLoses(bytes) => {
            if !way.origin.until(|taken, over| over && find(taken, bytes).is_some()).await {
                return Err(in_vain("the local server sees the end of what began with", bytes));
            }
        }
        Step::StreamEnds(id) => {
            let is_over = |bytes: &[u8], over: bool| {
                let view = View::read(bytes);
                over || view.streams.get(id).is_some_and(frames::Stream::is_over)
            };
            if !client.log.until(is_over).await {
                return Err(format!("stream {id} or the connection ends within {PATIENCE:?}"));
            }
        }
        Step::Said(what, holds) => {
            if !client.log.until(|bytes, over| over || holds(&View::read(bytes))).await {
                return Err(format!("{what}, within {PATIENCE:?}"));
            }
        }
        Step::FenceElsewhere => fence_elsewhere(way).await?,
        Step::OpenGate => way.origin.open_gate(),
        Step::Shut => client.shut().await,
        Step::Leave => client.leave().await,
    }
    Ok(())
}

/// The answers that a client has got.
#[derive(Default)]
struct Answers {
    interim: Vec<message::Message>,
    finals: Vec<message::Message>,
    fences: usize,
    switched: bool,
    /// All but fences.
    raw: Vec<u8>,
    fault: Option<String>,
}

impl Answers {
    fn whole(&self) -> usize {
        self.finals.iter().filter(|answer| answer.whole).count()
    }
}

fn read_answers(bytes: &[u8], over: bool, methods: &[&str]) -> Answers {
    let mut answers = Answers::default();
    let mut at = 0;
    loop {
        let is_head = methods.get(answers.finals.len()).is_some_and(|method| *method == "HEAD");
        let kind = if is_head { Kind::AnswerToHead } else { Kind::Answer };
        match message::read(bytes, at, over, kind) {
            Ok(Some(answer)) if !answer.all("x-fence").is_empty() => {
                answers.fences += usize::from(answer.whole);
                at = answer.range.end;
                if !answer.whole {
                    return answers;
                }
            }
            Ok(Some(answer)) => {
                at = answer.range.end;
                answers.raw.extend_from_slice(&bytes[answer.range.clone()]);
                let (status, whole) = (answer.status(), answer.whole);
                let list = if status < 200 { &mut answers.interim } else { &mut answers.finals };
                list.push(answer);
                if status == 101 {
                    answers.switched = true;
                    answers.raw.extend_from_slice(&bytes[at..]);
                    return answers;
                }
                if !whole {
                    return answers;
                }
            }
            Ok(None) => {
                if over && at < bytes.len() {
                    answers.fault = Some("half a head".to_owned());
                }
                answers.raw.extend_from_slice(&bytes[at..]);
                return answers;
            }
            Err(fault) => {
                answers.fault = Some(fault);
                answers.raw.extend_from_slice(&bytes[at..]);
                return answers;
            }
        }
    }
}

fn gather(case: &Case, expect: &Expect, client: &Client, seen: &mut Seen) {
    let taken = client.log.now();
    let read = read_answers(&taken.bytes, taken.over, &case.methods);
    seen.reused = read.fences > 0;
    seen.client = read.raw;
    seen.interim = read.interim;
    seen.answers = read.finals;
    if let Some(fault) = read.fault.filter(|_| !client.has_left()) {
        seen.faults.push(format!("what the client got: {fault}"));
    }
    if !expect.breaks && !client.has_left() && seen.answers.iter().any(|answer| !answer.whole) {
        seen.faults.push("what the client got: an answer that breaks off".to_owned());
    }
}

fn gather2(client: &Client, seen: &mut Seen) {
    seen.client = client.log.now().bytes;
    seen.view = View::read(&seen.client);
    let fence = seen.view.streams.remove(&FENCE_STREAM);
    seen.reused = fence.is_some_and(|fence| fence.status() == 200 && fence.ended);
    if let Some(fault) = &seen.view.fault {
        seen.faults.push(format!("what the client got: {fault}"));
    }
}

fn gather_origin(expect: &Expect, origin: &Origin, seen: &mut Seen) {
    for connection in origin.connections() {
        let (requests, raw, result) = connection.read();
        if !expect.breaks && requests.iter().any(|request| !request.whole) {
            seen.faults.push("what the local server got: a request that breaks off".to_owned());
        }
        if let Err(fault) = result {
            seen.faults.push(format!("what the local server got: {fault}"));
        }
        seen.requests.extend(requests);
        seen.origin.push(raw);
    }
}
