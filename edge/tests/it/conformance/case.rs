//! A case: what the visitor does, what the local server says, and what either must and must not see.

use super::{
    frames::{Stream, View},
    message::{self, Field, Message, find},
};

/// The host of every case's tunnel.
pub(crate) const HOST: &str = "demo.tunnels.test";

/// One row of the table.
pub(crate) struct Case {
    /// `group/what`.
    pub(crate) name: &'static str,
    /// Where it is written that it has to be so.
    pub(crate) rule: &'static str,
    pub(crate) steps: Vec<Step>,
    pub(crate) replies: Vec<Reply>,
    pub(crate) expect: Expect,
    pub(crate) nginx: Nginx,
    /// Methods of the visitor's requests, where HEAD is among them.
    pub(crate) methods: Vec<&'static str>,
    /// A request behind the case's own shows what became of the connection.
    pub(crate) fenced: bool,
    /// The local server refuses connections.
    pub(crate) dark: bool,
    /// What the visitor speaks.
    pub(crate) speaks: Speaks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http1,
    /// HTTP/2, with the usual opening before the case's own steps.
    Http2,
    /// HTTP/2, and the case opens the connection itself.
    Http2ByHand,
}

/// What the reference does with the case. There is no way to leave it out.
pub(crate) enum Nginx {
    /// What is expected of everybody.
    Same,
    /// Something else, which shows in that it does not do what is expected.
    Differs(&'static str),
    /// Something else that is known; it does not do what is expected either.
    Own(&'static str, Expect),
}

/// What the visitor does, in order.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Send(Vec<u8>),
    /// Waits until these bytes have come.
    Gets(Vec<u8>),
    /// Waits until the local server has got these bytes on one connection.
    OriginGets(Vec<u8>),
    /// By now the local server must not have got these.
    OriginLacks(Vec<u8>),
    /// By now the visitor must not have got these.
    Lacks(Vec<u8>),
    /// Waits until the local server has seen the end of a connection on which these bytes came.
    OriginLoses(Vec<u8>),
    /// Waits until a stream is over, or the connection.
    StreamEnds(u32),
    /// Waits until a server of HTTP/2 has said something.
    Said(&'static str, fn(&View) -> bool),
    /// A request on another connection, and its answer: what was on its way has arrived.
    FenceElsewhere,
    /// Lets the local server go on from its gate.
    OpenGate,
    /// Ends its own direction.
    Shut,
    /// Closes.
    Leave,
}

/// How the local server answers one request.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// Once the head is there, rather than the whole request.
    pub(crate) at_head: bool,
    pub(crate) says: Vec<Say>,
}

#[derive(Clone, Debug)]
pub(crate) enum Say {
    Bytes(Vec<u8>),
    /// Bytes in which `{ACCEPT}` stands for what the request's key of a WebSocket has to be answered.
    Accepting(&'static str),
    /// Waits until these bytes have come since the request began.
    Until(Vec<u8>),
    /// Waits for the visitor's [`Step::OpenGate`].
    Gate,
    /// Says nothing more until the other side closes.
    Wait,
    Close,
    Reset,
}

/// What is answered when nothing else is said.
pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

impl Default for Reply {
    fn default() -> Self {
        whole(OK)
    }
}

/// Answers with `bytes` once the whole request is there.
pub(crate) fn whole(bytes: impl AsRef<[u8]>) -> Reply {
    Reply { at_head: false, says: Vec::new() }.say(bytes)
}

/// Answers as soon as the request's head is there.
pub(crate) fn at_head() -> Reply {
    Reply { at_head: true, says: Vec::new() }
}

impl Reply {
    pub(crate) fn say(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Say::Bytes(bytes.as_ref().to_vec()))
    }

    pub(crate) fn say_accepting(self, text: &'static str) -> Self {
        self.then(Say::Accepting(text))
    }

    pub(crate) fn until(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Say::Until(bytes.as_ref().to_vec()))
    }

    pub(crate) fn gate(self) -> Self {
        self.then(Say::Gate)
    }

    pub(crate) fn wait(self) -> Self {
        self.then(Say::Wait)
    }

    pub(crate) fn close(self) -> Self {
        self.then(Say::Close)
    }

    pub(crate) fn reset(self) -> Self {
        self.then(Say::Reset)
    }

    fn then(mut self, say: Say) -> Self {
        self.says.push(say);
        self
    }
}

/// What either side saw in the end; fences are in none of it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Everything that the visitor got.
    pub(crate) client: Vec<u8>,
    /// The visitor's connection was ended by the other side.
    pub(crate) closed: bool,
    /// A request behind the case's own was answered on the same connection.
    pub(crate) reused: bool,
    /// Answers 1xx.
    pub(crate) interim: Vec<Message>,
    /// Final answers.
    pub(crate) answers: Vec<Message>,
    /// All that the local server got, connection by connection.
    pub(crate) origin: Vec<Vec<u8>>,
    pub(crate) requests: Vec<Message>,
    /// What a server of HTTP/2 said.
    pub(crate) view: View,
    /// What was wrong in itself, whatever the case is about.
    pub(crate) faults: Vec<String>,
}

impl Seen {
    pub(crate) fn origin_bytes(&self) -> Vec<u8> {
        self.origin.concat()
    }

    fn answer(&self) -> Message {
        self.answers.last().cloned().unwrap_or_default()
    }

    fn request(&self) -> Message {
        self.requests.first().cloned().unwrap_or_default()
    }
}

type Holds = Box<dyn Fn(&Seen) -> bool + Send + Sync>;

/// What must hold in the end.
pub(crate) struct Expect {
    /// Final answers that are waited for.
    pub(crate) answers: usize,
    /// It is of the case's nature that something breaks off.
    pub(crate) breaks: bool,
    /// The connection has to end.
    pub(crate) ends: bool,
    checks: Vec<(String, Holds)>,
}

pub(crate) fn expect() -> Expect {
    Expect { answers: 1, breaks: false, ends: false, checks: Vec::new() }
}

impl Expect {
    /// What does not hold.
    pub(crate) fn violations(&self, seen: &Seen) -> Vec<String> {
        let fault = seen.faults.iter().map(|fault| format!("wrong in itself: {fault}"));
        let failed = self.checks.iter().filter(|(_, holds)| !holds(seen));
        fault.chain(failed.map(|(what, _)| what.clone())).collect()
    }

    fn check(
        mut self,
        what: impl Into<String>,
        holds: impl Fn(&Seen) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.checks.push((what.into(), Box::new(holds)));
        self
    }
}

/// Each of these is there for a [`Case`] too, where it says what is expected of everybody.
macro_rules! expectations {
    ($(
        $(#[$doc:meta])*
        fn $name:ident($this:ident $(, $argument:ident: $type:ty)*) $body:block
    )*) => {
        impl Expect {
            $(
                $(#[$doc])*
                pub(crate) fn $name(#[allow(unused_mut)] mut $this $(, $argument: $type)*) -> Self $body
            )*
        }

        impl Case {
            $(
                $(#[$doc])*
                pub(crate) fn $name(mut self $(, $argument: $type)*) -> Self {
                    self.expect = self.expect.$name($($argument),*);
                    self
                }
            )*
        }
    };
}

expectations! {
    /// One final answer with this status.
    fn status(self, status: u16) { self.statuses(&[status]) }

    /// Final answers with these statuses, in order, and no others.
    fn statuses(self, statuses: &[u16]) {
        let statuses = statuses.to_vec();
        self.answers = statuses.len();
        self.check(format!("final answers are {statuses:?}"), move |seen| {
            seen.answers.iter().map(Message::status).eq(statuses.iter().copied())
        })
    }

    /// One final answer, with one of these statuses.
    fn status_in(self, statuses: &'static [u16]) {
        self.check(format!("one final answer of {statuses:?}"), move |seen| {
            seen.answers.len() == 1 && statuses.contains(&seen.answers[0].status())
        })
    }

    /// No final answer at all.
    fn no_answer(self) {
        self.answers = 0;
        self.check("no final answer", |seen| seen.answers.is_empty())
    }

    /// Whatever comes, it is no success.
    fn not_served(self) {
        self.answers = 0;
        self.check("no answer 200", |seen| {
            seen.answers.iter().all(|answer| answer.status() >= 400)
        })
    }

    /// The first final answer has this status; there may be more.
    fn first_status(self, status: u16) {
        self.check(format!("the first final answer is {status}"), move |seen| {
            seen.answers.first().is_some_and(|answer| answer.status() == status)
        })
    }

    /// The same with one of several statuses.
    fn first_status_in(self, statuses: &'static [u16]) {
        self.check(format!("the first final answer is one of {statuses:?}"), move |seen| {
            seen.answers.first().is_some_and(|answer| statuses.contains(&answer.status()))
        })
    }

    /// Two answers: 200, and one of these.
    fn last_status_in(self, statuses: &'static [u16]) {
        self.answers = 2;
        self.check(format!("the second final answer is one of {statuses:?}"), move |seen| {
            seen.answers.len() == 2 && statuses.contains(&seen.answers[1].status())
        })
    }

    fn answers_at_most(self, count: usize) {
        self.answers = 0;
        self.check(format!("no more than {count} final answers"), move |seen| {
            seen.answers.len() <= count
        })
    }

    /// Bodies of all final answers.
    fn bodies(self, bodies: &'static [&'static str]) {
        self.check(format!("the answers' bodies are {bodies:?}"), move |seen| {
            seen.answers.iter().map(|a| a.body.as_slice()).eq(bodies.iter().map(|b| b.as_bytes()))
        })
    }

    /// The connection speaks another protocol, which the local server agreed to.
    fn switched(self) {
        self.answers = 0;
        self.check("one answer 101 with its Upgrade", |seen| {
            let last = seen.interim.last();
            seen.answers.is_empty()
                && last.is_some_and(|answer| answer.status() == 101)
                && last.is_some_and(|answer| !answer.all("upgrade").is_empty())
        })
    }

    /// Whatever comes, it is no switch to `protocol`.
    fn not_switched_to(self, protocol: &'static str) {
        self.answers = 0;
        self.ends = true;
        self.check(format!("no switch to {protocol}"), move |seen| {
            seen.interim.iter().all(|answer| !same(&answer.all("upgrade"), &[protocol]))
        })
    }

    fn origin_requests_at_most(self, count: usize) {
        self.check(format!("the local server gets {count} requests at most"), move |seen| {
            seen.requests.len() <= count
        })
    }

    /// An error of ours, or an end without an answer.
    fn broken_or_5xx(self) {
        self.check("502, or an end without an answer", |seen| match seen.answers.as_slice() {
            [] => seen.closed,
            [answer] => answer.status() == 502,
            _ => false,
        })
    }

    /// No request for `target` gets through.
    fn origin_no_request(self, target: &'static str) {
        self.check(format!("the local server is never asked for {target}"), move |seen| {
            seen.requests.iter().all(|request| request.target() != target.as_bytes())
        })
    }

    /// What the client gets of an answer is never whole.
    fn never_whole(self) {
        self.answers = 0;
        self.breaks = true;
        self.check("no whole answer", |seen| seen.answers.iter().all(|answer| !answer.whole))
    }

    /// A request may break off at the local server.
    fn may_break(self) {
        self.breaks = true;
        self
    }

    /// Refused with one of these, the connection closed, and the local server never hears of it.
    fn refused(self, statuses: &'static [u16]) {
        self.status_in(statuses).closed().origin_untouched()
    }

    /// Refused, or passed on as exactly one request with this line; not a thing in between.
    fn refused_or_line(self, line: &'static str) {
        self.check(format!("400, or the local server sees {line:?}"), move |seen| {
            match seen.answers.as_slice() {
                [answer] if answer.status() == 400 => seen.origin_bytes().is_empty(),
                [answer] => {
                    answer.status() == 200
                        && seen.requests.len() == 1
                        && seen.request().first == line.as_bytes()
                }
                _ => false,
            }
        })
    }

    fn client_has(self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref().to_vec();
        self.check(format!("the client gets \"{}\"", bytes.escape_ascii()), move |seen| {
            find(&seen.client, &bytes).is_some()
        })
    }

    /// In any case of letters.
    fn client_lacks(self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref().to_ascii_lowercase();
        self.check(format!("the client never gets \"{}\"", bytes.escape_ascii()), move |seen| {
            find(&seen.client.to_ascii_lowercase(), &bytes).is_none()
        })
    }

    /// The last final answer has this body and is whole.
    fn body(self, body: impl AsRef<[u8]>) {
        let body = body.as_ref().to_vec();
        self.check(format!("the answer's body is \"{}\", whole", body.escape_ascii()), move |seen| {
            seen.answer().whole && seen.answer().body == body
        })
    }

    /// Values of a field of the last final answer, in order.
    fn client_field(self, name: &'static str, values: &'static [&'static str]) {
        self.check(format!("the answer has {name}: {values:?}"), move |seen| {
            same(&seen.answer().all(name), values)
        })
    }

    /// Values of a trailer field of the last final answer, in order.
    fn client_trailer(self, name: &'static str, values: &'static [&'static str]) {
        self.check(format!("the answer has trailers {name}: {values:?}"), move |seen| {
            same(&message::all(&seen.answer().trailers, name), values)
        })
    }

    /// Fields of the last final answer as spelled and in this order, perhaps with others between.
    fn client_order(self, fields: &'static [&'static str]) {
        self.check(format!("the answer has, in this order, {fields:?}"), move |seen| {
            in_order(&seen.answer().fields, fields)
        })
    }

    /// Answers 1xx before the final one, in order.
    fn interim(self, statuses: &'static [u16]) {
        self.check(format!("answers before the final one are {statuses:?}"), move |seen| {
            seen.interim.iter().map(Message::status).eq(statuses.iter().copied())
        })
    }

    /// What the client got can't be taken for a whole answer: it breaks off, or is an error of ours.
    fn broken(self) {
        self.breaks = true;
        self.check("the client sees that the answer is not whole", |seen| {
            match seen.answers.as_slice() {
                [] => seen.closed,
                [answer] => seen.closed && !answer.whole || answer.status() == 502,
                _ => false,
            }
        })
    }

    /// The server ends the connection after the case's own answers.
    fn closed(self) {
        self.ends = true;
        self.check("the connection is closed", |seen| seen.closed && !seen.reused)
    }

    /// The connection serves a further request.
    fn open(self) { self.check("the connection serves a further request", |seen| seen.reused) }

    fn origin_has(self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref().to_vec();
        self.check(format!("the local server gets \"{}\"", bytes.escape_ascii()), move |seen| {
            find(&seen.origin_bytes(), &bytes).is_some()
        })
    }

    /// In any case of letters.
    fn origin_lacks(self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref().to_ascii_lowercase();
        let what = format!("the local server never gets \"{}\"", bytes.escape_ascii());
        self.check(what, move |seen| {
            find(&seen.origin_bytes().to_ascii_lowercase(), &bytes).is_none()
        })
    }

    /// Not a byte of the case's own.
    fn origin_untouched(self) {
        self.check("the local server gets nothing", |seen| seen.origin_bytes().is_empty())
    }

    /// The line of the first request.
    fn origin_line(self, line: impl AsRef<[u8]>) {
        let line = line.as_ref().to_vec();
        self.check(format!("the request's line is \"{}\"", line.escape_ascii()), move |seen| {
            seen.request().first == line
        })
    }

    fn origin_requests(self, count: usize) {
        self.check(format!("the local server gets {count} requests"), move |seen| {
            seen.requests.len() == count
        })
    }

    /// Targets of all requests, in order of arrival on each connection.
    fn origin_targets(self, targets: &'static [&'static str]) {
        self.check(format!("the local server is asked for {targets:?}"), move |seen| {
            seen.requests.iter().map(Message::target).eq(targets.iter().map(|t| t.as_bytes()))
        })
    }

    /// The first request has this body and is whole.
    fn origin_body(self, body: impl AsRef<[u8]>) {
        let body = body.as_ref().to_vec();
        self.check(format!("the request's body is \"{}\", whole", body.escape_ascii()), move |seen| {
            seen.request().whole && seen.request().body == body
        })
    }

    /// Values of a field of the first request, in order.
    fn origin_field(self, name: &'static str, values: &'static [&'static str]) {
        self.check(format!("the request has {name}: {values:?}"), move |seen| {
            same(&seen.request().all(name), values)
        })
    }

    /// Elements of a list field of the first request, over all of its lines.
    fn origin_list(self, name: &'static str, elements: &'static [&'static str]) {
        self.check(format!("the request's {name} lists {elements:?}"), move |seen| {
            lists(&seen.request(), name, elements)
        })
    }

    /// Elements of a list field of the last final answer, over all of its lines.
    fn client_list(self, name: &'static str, elements: &'static [&'static str]) {
        self.check(format!("the answer's {name} lists {elements:?}"), move |seen| {
            lists(&seen.answer(), name, elements)
        })
    }

    fn origin_te_is_trailers_or_none(self) {
        self.check("the request's TE says trailers or is not there", |seen| {
            matches!(seen.request().all("te")[..], [] | [b"trailers"])
        })
    }

    /// The first request has exactly one field `name`, and this is not in it.
    fn origin_field_is_ours(self, name: &'static str, forged: &'static str) {
        self.check(format!("the request has one {name}, without {forged:?}"), move |seen| {
            let request = seen.request();
            matches!(request.all(name)[..], [value] if find(value, forged.as_bytes()).is_none())
        })
    }

    /// Values of a trailer field of the first request, in order.
    fn origin_trailer(self, name: &'static str, values: &'static [&'static str]) {
        self.check(format!("the request has trailers {name}: {values:?}"), move |seen| {
            same(&message::all(&seen.request().trailers, name), values)
        })
    }

    /// Fields of the first request as spelled and in this order, perhaps with others between.
    fn origin_order(self, fields: &'static [&'static str]) {
        self.check(format!("the request has, in this order, {fields:?}"), move |seen| {
            in_order(&seen.request().fields, fields)
        })
    }

    /// The local server never takes a request for whole.
    fn origin_broken(self) {
        self.breaks = true;
        self.check("the local server sees no whole request", |seen| {
            seen.requests.iter().all(|request| !request.whole)
        })
    }

    /// The stream was answered with this status and ended in order.
    fn stream(self, id: u32, status: u16) {
        self.check(format!("stream {id} is answered {status}"), move |seen| {
            let stream = seen.view.streams.get(&id);
            stream.is_some_and(|s| s.status() == status && s.ended && no_error(s))
        })
    }

    fn stream_body(self, id: u32, body: impl AsRef<[u8]>) {
        let body = body.as_ref().to_vec();
        self.check(format!("stream {id} has the body \"{}\"", body.escape_ascii()), move |seen| {
            seen.view.streams.get(&id).is_some_and(|stream| stream.data == body)
        })
    }

    /// Values of a field of the stream's answer, in order.
    fn stream_field(self, id: u32, name: &'static str, values: &'static [&'static str]) {
        self.check(format!("stream {id} has {name}: {values:?}"), move |seen| {
            let answer = seen.view.streams.get(&id).and_then(Stream::answer);
            answer.is_some_and(|fields| same(&message::all(fields, name), values))
        })
    }

    fn stream_trailer(self, id: u32, name: &'static str, values: &'static [&'static str]) {
        self.check(format!("stream {id} has trailers {name}: {values:?}"), move |seen| {
            let stream = seen.view.streams.get(&id);
            stream.is_some_and(|stream| same(&message::all(stream.trailers(), name), values))
        })
    }

    /// Answers 1xx before the final one.
    fn stream_interim(self, id: u32, statuses: &'static [u16]) {
        self.check(format!("stream {id} has {statuses:?} first"), move |seen| {
            seen.view.streams.get(&id).is_some_and(|stream| stream.interim() == statuses)
        })
    }

    /// A malformed request: reset, answered 4xx, or the connection ends over it; and the local
    /// server hears nothing (RFC 9113, section 8.1.1).
    fn stream_refused(self, id: u32) {
        self.check(format!("stream {id} is refused"), move |seen| {
            let stream = seen.view.streams.get(&id);
            let reset = stream.and_then(|stream| stream.reset).is_some_and(|code| code != 0);
            let answered = stream.is_some_and(|s| (400..500).contains(&s.status()) && s.ended);
            reset || answered || seen.view.goaway.is_some_and(|code| code != 0)
        })
        .origin_untouched()
    }

    /// A request that is malformed as a whole: reset, answered 4xx, or the connection ends over it.
    fn reset_or_refused(self, id: u32) {
        self.breaks = true;
        self.check(format!("stream {id} is refused"), move |seen| {
            let stream = seen.view.streams.get(&id);
            let reset = stream.and_then(|stream| stream.reset).is_some_and(|code| code != 0);
            let answered = stream.is_some_and(|s| (400..500).contains(&s.status()) && s.ended);
            reset || answered || seen.view.goaway.is_some_and(|code| code != 0)
        })
    }

    /// Answered 4xx, reset or the connection ended, with whatever code.
    fn stream_refused_or_goaway(self, id: u32) {
        self.breaks = true;
        self.check(format!("stream {id} is refused, or the connection ends"), move |seen| {
            let stream = seen.view.streams.get(&id);
            let answered = stream.is_some_and(|s| (400..500).contains(&s.status()));
            let reset = stream.is_some_and(|stream| stream.reset.is_some());
            seen.view.opened && (answered || reset || seen.closed)
        })
    }

    /// The connection ends, however it is said.
    fn ended(self) {
        self.ends = true;
        self.check("the connection is closed", |seen| seen.closed)
    }

    /// Of streams 1 and 3, one is answered and the other is a 502.
    fn one_of_two_is_502(self) {
        self.check("one of two streams is 200, the other 502", |seen| {
            let mut all: Vec<u16> = seen.view.streams.values().map(Stream::status).collect();
            all.sort_unstable();
            all == [200, 502]
        })
    }

    fn origin_has_field(self, name: &'static str) {
        self.check(format!("the request has one {name}"), move |seen| {
            seen.request().all(name).len() == 1
        })
    }

    /// The stream never looks complete.
    fn stream_broken(self, id: u32) {
        self.breaks = true;
        self.check(format!("stream {id} is not complete"), move |seen| {
            let stream = seen.view.streams.get(&id);
            stream.is_none_or(|s| !s.ended || !no_error(s) || s.status() == 502)
        })
    }

    /// The connection ends, with one of these codes where one is said; PROTOCOL_ERROR may stand for
    /// any of them, for what counts is that it ends.
    fn goaway(self, codes: &'static [u32]) {
        self.ends = true;
        self.breaks = true;
        self.check(format!("the connection ends with one of {codes:?}"), move |seen| {
            let code = seen.view.goaway;
            let is_ours = code.is_none_or(|code| code == 1 || codes.contains(&code));
            seen.view.opened && seen.closed && !seen.reused && is_ours
        })
    }

    /// An error of one stream, or of the connection, with one of these codes.
    fn reset_or_goaway(self, id: u32, codes: &'static [u32]) {
        self.breaks = true;
        self.check(format!("stream {id} or the connection ends with one of {codes:?}"), move |seen| {
            let reset = seen.view.streams.get(&id).and_then(|stream| stream.reset);
            [reset, seen.view.goaway].iter().flatten().any(|code| codes.contains(code))
        })
    }

    /// The connection ends, or serves further requests: it is not stuck.
    fn alive_or_goaway(self, codes: &'static [u32]) {
        self.breaks = true;
        self.check(format!("it goes on, or ends with one of {codes:?}"), move |seen| {
            let code = seen.view.goaway;
            let ended = seen.closed && code.is_none_or(|code| codes.contains(&code));
            seen.reused || seen.view.opened && ended
        })
    }

    fn said(self, what: &'static str, holds: fn(&View) -> bool) {
        self.check(what, move |seen| holds(&seen.view))
    }

    /// No more requests than this reach the local server.
    fn origin_sees_at_most(self, count: usize) {
        self.breaks = true;
        self.check(format!("no more than {count} requests get through"), move |seen| {
            seen.requests.len() <= count
        })
    }

    /// How many connections the local server got requests on.
    fn origin_connections(self, count: usize) {
        self.check(format!("the local server is asked on {count} connections"), move |seen| {
            seen.origin.iter().filter(|bytes| !bytes.is_empty()).count() == count
        })
    }
}

/// A server may reset a stream that it has answered, to say that it wants no more of the request.
fn no_error(stream: &Stream) -> bool {
    stream.reset.is_none_or(|code| code == 0)
}

fn same(there: &[&[u8]], values: &[&str]) -> bool {
    there.iter().copied().eq(values.iter().map(|value| value.as_bytes()))
}

fn lists(message: &Message, name: &str, wanted: &[&str]) -> bool {
    let lines = message.all(name).join(&b","[..]);
    let elements = lines.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    elements.filter(|element| !element.is_empty()).eq(wanted.iter().map(|e| e.as_bytes()))
}

fn in_order(fields: &[Field], wanted: &[&str]) -> bool {
    let mut lines = fields.iter().map(|(name, value)| [name, &b": "[..], value].concat());
    wanted.iter().all(|wanted| lines.any(|line| line == wanted.as_bytes()))
}

/// A case called `name` that `rule` asks for.
pub(crate) fn case(name: &'static str, rule: &'static str) -> Case {
    Case {
        name,
        rule,
        steps: Vec::new(),
        replies: Vec::new(),
        expect: expect(),
        nginx: Nginx::Same,
        methods: Vec::new(),
        fenced: true,
        dark: false,
        speaks: Speaks::Http1,
    }
}

/// The same for a visitor that speaks HTTP/2.
pub(crate) fn h2_case(name: &'static str, rule: &'static str) -> Case {
    Case { speaks: Speaks::Http2, ..case(name, rule) }
}

impl Case {
    pub(crate) fn send(self, bytes: impl AsRef<[u8]>) -> Self {
        self.step(Step::Send(bytes.as_ref().to_vec()))
    }

    pub(crate) fn gets(self, bytes: impl AsRef<[u8]>) -> Self {
        self.step(Step::Gets(bytes.as_ref().to_vec()))
    }

    pub(crate) fn origin_gets(self, bytes: impl AsRef<[u8]>) -> Self {
        self.step(Step::OriginGets(bytes.as_ref().to_vec()))
    }

    /// A fence, and then a look at what the local server has not got yet.
    pub(crate) fn origin_lacks_yet(self, bytes: impl AsRef<[u8]>) -> Self {
        self.step(Step::FenceElsewhere).step(Step::OriginLacks(bytes.as_ref().to_vec()))
    }

    /// A fence, and then a look at what the visitor has not got yet.
    pub(crate) fn client_lacks_yet(self, bytes: impl AsRef<[u8]>) -> Self {
        self.step(Step::FenceElsewhere).step(Step::Lacks(bytes.as_ref().to_vec()))
    }

    pub(crate) fn origin_loses(self, bytes: impl AsRef<[u8]>) -> Self {
        self.step(Step::OriginLoses(bytes.as_ref().to_vec()))
    }

    pub(crate) fn ends(self, stream: u32) -> Self {
        self.step(Step::StreamEnds(stream))
    }

    pub(crate) fn until_said(self, what: &'static str, holds: fn(&View) -> bool) -> Self {
        self.step(Step::Said(what, holds))
    }

    /// The case opens its connection itself.
    pub(crate) fn by_hand(mut self) -> Self {
        self.speaks = Speaks::Http2ByHand;
        self
    }

    pub(crate) fn fence_elsewhere(self) -> Self {
        self.step(Step::FenceElsewhere)
    }

    pub(crate) fn open_gate(self) -> Self {
        self.step(Step::OpenGate)
    }

    pub(crate) fn shut(self) -> Self {
        self.step(Step::Shut)
    }

    pub(crate) fn leave(self) -> Self {
        self.step(Step::Leave)
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// How the local server answers the next request that comes to it.
    pub(crate) fn reply(mut self, reply: Reply) -> Self {
        self.replies.push(reply);
        self
    }

    pub(crate) fn methods(mut self, methods: &[&'static str]) -> Self {
        self.methods = methods.to_vec();
        self
    }

    /// Nothing is sent behind the case's own bytes.
    pub(crate) fn unfenced(mut self) -> Self {
        self.fenced = false;
        self
    }

    pub(crate) fn dark(mut self) -> Self {
        self.dark = true;
        self.unfenced()
    }

    pub(crate) fn nginx_differs(mut self, why: &'static str) -> Self {
        self.nginx = Nginx::Differs(why);
        self
    }

    pub(crate) fn nginx(mut self, why: &'static str, expect: Expect) -> Self {
        self.nginx = Nginx::Own(why, expect);
        self
    }
}

/// A GET with these fields, each with its CR LF.
pub(crate) fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")
}

/// A POST with these fields, each with its CR LF, and what comes behind the head.
pub(crate) fn post(fields: &str, body: &str) -> String {
    format!("POST /visible HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n{body}")
}
