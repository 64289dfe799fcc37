//! What a tunnel's policy does with one request, from its head to the last byte of its answer.
//!
//! A request for a tunnel with a policy is judged before a stream is opened or anybody is waited
//! for: what is not let in costs the agent nothing, and what waits for an agent was let in.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout},
};
use tracing::debug;
use uniroute_shared::{
    code::Code,
    deadline::Deadline,
    message::{Fields, Piece, RequestHead, Source},
    policy::{Admit, Public, Refusal, RouteMatch, Seen},
};

use super::{
    error::ProxyError,
    hold,
    proxy::{Asked, Exchange},
    visitor::Visitor,
};
use crate::{
    policy::{
        Policy,
        compress::{Compressor, Wish},
        timeouts::Clock,
    },
    registry::{Target, Tunnel},
};

/// A body that is to be checked whole has to be here after this long.
const WHOLE_BODY: Duration = Duration::from_secs(60);

/// A request for a tunnel with a policy, not judged yet.
pub(crate) struct Guard {
    pub(crate) tunnel: Arc<Tunnel>,
    pub(crate) policy: Arc<Policy>,
    /// Who serves the tunnel now.
    pub(crate) target: Option<Arc<Target>>,
}

impl Guard {
    /// Judges the head of `asked`, and checks its password.
    ///
    /// # Errors
    /// [`ProxyError`]: it is answered by that.
    pub(crate) async fn admit(
        self,
        visitor: &Visitor,
        asked: &Asked,
    ) -> Result<Guarded, ProxyError> {
        let Self { tunnel, policy, target } = self;
        let timed = target.as_ref().is_some_and(|target| target.wants_times);
        let came = timed.then(Instant::now);
        let address = asked.address(visitor);
        let https = asked.scheme(visitor) == "https";
        let seen = Seen { visitor: address, https, https_port: visitor.edge.https_port() };
        let pass = match policy.rules().admit(&asked.head, seen) {
            Admit::Pass(pass) => pass,
            Admit::Redirect(location) => return Err(ProxyError::Moved(location)),
            Admit::Refuse(refusal) => return Err(refusal.into()),
        };
        if let Some(credentials) = pass.credentials {
            let checked = policy.check_password(credentials, address).await;
            checked.map_err(ProxyError::Access)?;
        }
        let limits = policy.clock(Instant::now());
        Ok(Guarded {
            tunnel,
            target,
            whole_body: pass.whole_body,
            whole: None,
            in_force: Box::new(InForce {
                route: pass.route,
                public: Public::new(https, asked.head.authority.clone()),
                came,
                wish: Wish::of(&asked.head),
                max_body: pass.max_body,
                received: 0,
                limits: limits.map(|clock| Limits { clock, timer: Deadline::at(Instant::now()) }),
                compressor: None,
                last: None,
                policy,
                room: None,
            }),
        })
    }
}

/// A request that was let in by its head.
pub(crate) struct Guarded {
    tunnel: Arc<Tunnel>,
    target: Option<Arc<Target>>,
    /// The body must be read and checked before anything goes on; it has no more bytes than this.
    pub(crate) whole_body: Option<u64>,
    whole: Option<Bytes>,
    in_force: Box<InForce>,
}

impl Guarded {
    /// Reads the whole body, where that is asked for, and checks what signs it.
    ///
    /// # Errors
    /// [`ProxyError`]: the request is answered by that.
    pub(crate) async fn check_body(
        &mut self,
        asked: &Asked,
        body: &mut impl Source,
    ) -> Result<(), ProxyError> {
        let Some(limit) = self.whole_body else { return Ok(()) };
        let policy = Arc::clone(&self.in_force.policy);
        self.in_force.room = Some(policy.room_for_body(asked.length.unwrap_or(limit))?);
        let reading = timeout(WHOLE_BODY, read_whole(body, limit));
        let whole = reading.await.map_err(|_| ProxyError::Body("it takes too long".into()))??;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        policy.rules().check_webhook(&asked.head.fields, &whole, now)?;
        self.whole = Some(whole);
        Ok(())
    }

    /// Sends it on.
    ///
    /// # Errors
    /// As [`Exchange::begin`].
    pub(crate) fn begin(
        self,
        visitor: &Arc<Visitor>,
        asked: &Asked,
    ) -> Result<Exchange, ProxyError> {
        let found =
            self.target.map(|target| hold::open(&visitor.edge, target)).transpose()?.flatten();
        Exchange::begin_guarded(visitor, self.tunnel, found, asked, self.in_force, self.whole)
    }
}

async fn read_whole(body: &mut impl Source, limit: u64) -> Result<Bytes, ProxyError> {
    let mut whole = BytesMut::new();
    loop {
        match poll_fn(|cx| body.poll_piece(cx)).await {
            Ok(Some(Piece::Data(data))) => {
                if (whole.len() + data.len()) as u64 > limit {
                    return Err(Refusal::BodyTooLarge(limit).into());
                }
                whole.extend_from_slice(&data);
            }
            // Nobody signs trailers, so nobody gets them.
            Ok(Some(Piece::Trailers(_)) | None) => return Ok(whole.freeze()),
            Err(error) => return Err(ProxyError::Body(error.to_string())),
        }
    }
}

/// A policy in force for one request.
pub(crate) struct InForce {
    /// When the request came, where its agent wants to know.
    pub(crate) came: Option<Instant>,
    policy: Arc<Policy>,
    route: RouteMatch,
    public: Public,
    wish: Wish,
    max_body: Option<u64>,
    received: u64,
    limits: Option<Limits>,
    compressor: Option<Compressor>,
    /// Comes after the end of what was compressed.
    last: Option<Fields>,
    /// For the body that is held whole.
    room: Option<OwnedSemaphorePermit>,
}

struct Limits {
    clock: Clock,
    timer: Deadline,
}

impl InForce {
    /// The number that the agent knows the request's local server by.
    pub(crate) fn route(&self) -> u32 {
        self.policy.rules().number(self.route)
    }

    /// Whether `target` asks for just what this request was judged by. An agent that has come back
    /// with other settings may want other things.
    pub(crate) fn is_of(&self, target: &Target) -> bool {
        target.policy.as_ref().is_some_and(|policy| policy.is_same(&self.policy))
    }

    /// The head for the local server; the edge's own fields are in it already.
    pub(crate) fn rewrite(&self, head: &mut RequestHead) {
        if self.room.is_some() {
            // Its body is here already.
            head.fields.remove("expect");
        }
        self.policy.rules().rewrite_request(head, self.route, &self.public);
    }

    /// Makes an answer's fields the visitor's; whether its length is another one now.
    pub(crate) fn answered(&mut self, status: u16, fields: &mut Fields, bodyless: bool) -> bool {
        self.policy.rules().rewrite_response(fields, self.route, &self.public);
        if let Some(limits) = &mut self.limits {
            limits.clock.spare_event_stream(fields);
            if !bodyless {
                limits.clock.moved(Instant::now());
            }
        }
        if bodyless {
            return false;
        }
        self.compressor = self.policy.compressor(self.wish, status, fields);
        self.compressor.is_some()
    }

    /// Counts bytes of the request's body.
    ///
    /// # Errors
    /// When there are more than may be.
    pub(crate) fn received(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.moved();
        self.received += bytes as u64;
        match self.max_body {
            Some(limit) if self.received > limit => Err(Refusal::BodyTooLarge(limit)),
            _ => Ok(()),
        }
    }

    /// The request's body is over: what comes next is the local server's to begin.
    pub(crate) fn uploaded(&mut self) {
        if let Some(limits) = &mut self.limits {
            limits.clock.rests();
        }
    }

    fn moved(&mut self) {
        if let Some(limits) = &mut self.limits {
            limits.clock.moved(Instant::now());
        }
    }

    /// Ready when the request has taken too long.
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<&'static Code> {
        let Some(Limits { clock, timer }) = &mut self.limits else { return Poll::Pending };
        loop {
            let Some(due) = clock.due() else { return Poll::Pending };
            timer.set(due);
            ready!(timer.poll(cx));
            if let Some(code) = clock.expired(Instant::now()) {
                debug!(%code, "a request has taken too long");
                return Poll::Ready(code);
            }
        }
    }

    /// The next piece of the answer for the visitor; `next` is the local server's.
    pub(crate) fn poll_piece<E>(
        &mut self,
        cx: &mut Context<'_>,
        mut next: impl FnMut(&mut Context<'_>) -> Poll<Result<Option<Piece>, E>>,
    ) -> Poll<Result<Option<Piece>, E>> {
        loop {
            if let Some(fields) = self.last.take() {
                return Poll::Ready(Ok(Some(Piece::Trailers(fields))));
            }
            let piece = ready!(next(cx))?;
            self.moved();
            let Some(mut compressor) = self.compressor.take() else {
                return Poll::Ready(Ok(piece));
            };
            let data = match piece {
                Some(Piece::Data(data)) => {
                    let data = compressor.push(&data);
                    self.compressor = Some(compressor);
                    data
                }
                Some(Piece::Trailers(fields)) => {
                    self.last = Some(fields);
                    compressor.finish()
                }
                None => compressor.finish(),
            };
            if !data.is_empty() {
                return Poll::Ready(Ok(Some(Piece::Data(data))));
            }
        }
    }
}
