//! Everything that both ends can do, at random, against a model of what has to come of it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Op {
    Open,
    Accept,
    Send {
        stream: usize,
        len: usize,
        last: bool,
        framed: bool,
    },
    /// As much as fits, across at once, so that windows run full.
    Bulk {
        stream: usize,
        rounds: usize,
    },
    Recv {
        stream: usize,
        chunks: usize,
    },
    DropSender {
        stream: usize,
    },
    DropReceiver {
        stream: usize,
        how: ReceiverEnd,
    },
    Announce {
        stream: usize,
    },
    Ping,
    Gather,
    Deliver {
        bytes: usize,
    },
    Wait {
        ms: u64,
    },
}

fn ops() -> impl Strategy<Value = Vec<(bool, Op)>> {
    let stream = 0_usize..6;
    let len = prop_oneof![0_usize..20, 1_000_usize..40_000];
    let how = prop_oneof![
        4 => Just(ReceiverEnd::Complete),
        4 => Just(ReceiverEnd::Stop),
        1 => Just(ReceiverEnd::Cancel),
    ];
    let op = prop_oneof![
        2 => Just(Op::Open),
        3 => Just(Op::Accept),
        12 => (stream.clone(), len, prop::bool::weighted(0.1), any::<bool>())
            .prop_map(|(stream, len, last, framed)| Op::Send { stream, len, last, framed }),
        8 => (stream.clone(), 1_usize..5).prop_map(|(stream, chunks)| Op::Recv { stream, chunks }),
        1 => (stream.clone(), 1_usize..12).prop_map(|(stream, rounds)| Op::Bulk { stream, rounds }),
        1 => stream.clone().prop_map(|stream| Op::DropSender { stream }),
        1 => (stream, how).prop_map(|(stream, how)| Op::DropReceiver { stream, how }),
        1 => (0_usize..6).prop_map(|stream| Op::Announce { stream }),
        1 => Just(Op::Ping),
        8 => Just(Op::Gather),
        8 => prop_oneof![1_usize..30, 1_000_usize..100_000].prop_map(|bytes| Op::Deliver { bytes }),
        2 => (0_u64..20).prop_map(|ms| Op::Wait { ms }),
    ];
    prop::collection::vec((any::<bool>(), op), 1..250)
}

/// A task as a runtime knows it: once it was told to wait, it may find something only after it was
/// woken.
#[derive(Default)]
struct Task {
    wakes: Arc<Wakes>,
    asleep_since: Option<usize>,
}

impl Task {
    fn poll<T>(&mut self, poll: impl FnOnce(&Context<'_>) -> Poll<T>) -> Poll<T> {
        let wakes = self.wakes.0.load(Ordering::Relaxed);
        let result = poll(&Context::from_waker(&Waker::from(Arc::clone(&self.wakes))));
        let slept_on = self.asleep_since == Some(wakes);
        assert!(result.is_pending() || !slept_on, "a task was not woken");
        // Woken for nothing, it waits on.
        self.asleep_since = result.is_pending().then_some(wakes);
        result
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.asleep_since.is_some() { "asleep" } else { "awake" })
    }
}

fn wake(wakers: impl IntoIterator<Item = Waker>) {
    wakers.into_iter().for_each(Waker::wake);
}

/// One end's view of a stream.
#[derive(Debug, Default)]
struct Half {
    sender: bool,
    receiver: bool,
    complete: bool,
    sending: Task,
    watching: Task,
    receiving: Task,
    sent: usize,
    finished: bool,
    read: usize,
    /// The reader saw the end, and whether it was the good one.
    ended: Option<bool>,
}

/// A stream of the model; index 0 is the client's half.
#[derive(Debug, Default)]
struct Model {
    halves: [Half; 2],
    /// Somebody gave the stream up before its end.
    cut: bool,
}

impl Model {
    /// A stream is also cut by sending more to a reader who had it all.
    fn is_cut(&self) -> bool {
        let [a, b] = &self.halves;
        self.cut || (a.complete && a.read < b.sent) || (b.complete && b.read < a.sent)
    }
}

struct World {
    ends: [End; 2],
    writers: [Task; 2],
    acceptors: [Task; 2],
    /// Bytes on their way from each end.
    wires: [BytesMut; 2],
    streams: BTreeMap<u32, Model>,
    now: Instant,
}

/// The byte at `place` of what `end` sends on stream `id`.
fn byte(id: u32, end: usize, place: usize) -> u8 {
    let x = (place as u64) ^ (u64::from(id) << 40) ^ ((end as u64) << 50);
    x.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

impl World {
    fn new() -> Self {
        let config = |side| Config { side, inbound_total: u32::MAX, ..Config::edge() };
        Self {
            ends: [End::new(config(Side::Client)), End::new(config(Side::Server))],
            writers: Default::default(),
            acceptors: Default::default(),
            wires: Default::default(),
            streams: Default::default(),
            now: Instant::now(),
        }
    }

    /// The `nth` stream that `end` has a handle to.
    fn pick(&self, end: usize, nth: usize, half: impl Fn(&Half) -> bool) -> Option<u32> {
        let known: Vec<u32> =
            self.streams.iter().filter(|(_, m)| half(&m.halves[end])).map(|(id, _)| *id).collect();
        (!known.is_empty()).then(|| known[nth % known.len()])
    }

    fn handles(&mut self, id: u32, end: usize) {
        let half = &mut self.streams.entry(id).or_default().halves[end];
        (half.sender, half.receiver) = (true, true);
    }

    fn apply(&mut self, end: usize, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Open => {
                let id = self.ends[end].open();
                self.handles(id, end);
            }
            Op::Accept => {
                self.accept(end);
            }
            Op::Send { stream, len, last, framed } => {
                let Some(id) = self.pick(end, stream, |h| h.sender && !h.finished) else {
                    return Ok(());
                };
                if self.ready(end, id) || last {
                    self.send(end, id, len, last, framed)?;
                }
            }
            Op::Bulk { stream, rounds } => {
                let Some(id) = self.pick(end, stream, |h| h.sender && !h.finished) else {
                    return Ok(());
                };
                for _ in 0..rounds {
                    if self.ready(end, id) {
                        self.send(end, id, 70_000, false, true)?;
                    }
                    self.apply(end, Op::Gather)?;
                    self.apply(end, Op::Deliver { bytes: usize::MAX })?;
                }
            }
            Op::Recv { stream, chunks } => {
                let Some(id) = self.pick(end, stream, |h| h.receiver) else { return Ok(()) };
                for _ in 0..chunks {
                    self.recv(end, id)?;
                }
            }
            Op::DropSender { stream } => {
                let Some(id) = self.pick(end, stream, |h| h.sender) else { return Ok(()) };
                self.drop_sender(end, id);
            }
            Op::DropReceiver { stream, how } => {
                let Some(id) = self.pick(end, stream, |h| h.receiver) else { return Ok(()) };
                // The edge cancels and never stops: two that stop would each wait for the other's
                // last byte.
                let how =
                    if end == 1 && how == ReceiverEnd::Stop { ReceiverEnd::Cancel } else { how };
                wake(self.ends[end].core.drop_receiver(id, how));
                let model = self.streams.get_mut(&id).unwrap();
                let half = &mut model.halves[end];
                half.receiver = false;
                half.complete = how == ReceiverEnd::Complete;
                model.cut |= how == ReceiverEnd::Cancel;
            }
            Op::Announce { stream } => {
                if let Some(id) = self.pick(end, stream, |h| h.sender) {
                    wake(self.ends[end].core.announce(id));
                }
            }
            Op::Ping => {
                wake(self.ends[end].core.ping(self.now));
            }
            Op::Gather => {
                let mut woken = Vec::new();
                let (writer, core) = (&mut self.writers[end], &mut self.ends[end]);
                if let Poll::Ready(wire) = writer.poll(|cx| core.poll_gather(cx, &mut woken)) {
                    self.wires[end].extend_from_slice(&wire);
                }
                wake(woken);
            }
            Op::Deliver { bytes } => {
                let take = bytes.min(self.wires[end].len());
                let bytes = self.wires[end].split_to(take);
                let mut woken = Vec::new();
                let taken = self.ends[1 - end].take_waking(&bytes, self.now, &mut woken);
                prop_assert_eq!(taken, Ok(()));
                wake(woken);
            }
            Op::Wait { ms } => self.now += Duration::from_millis(ms),
        }
        Ok(())
    }

    fn ready(&mut self, end: usize, id: u32) -> bool {
        let half = &mut self.streams.get_mut(&id).unwrap().halves[end];
        let core = &mut self.ends[end].core;
        half.sending.poll(|cx| core.poll_send_ready(id, cx)).is_ready()
    }

    fn accept(&mut self, end: usize) -> Option<u32> {
        let core = &mut self.ends[end].core;
        match self.acceptors[end].poll(|cx| core.poll_accept(cx)) {
            Poll::Ready(Some(id)) => {
                self.handles(id, end);
                Some(id)
            }
            Poll::Ready(None) | Poll::Pending => None,
        }
    }

    fn send(
        &mut self,
        end: usize,
        id: u32,
        len: usize,
        last: bool,
        framed: bool,
    ) -> Result<(), TestCaseError> {
        let model = self.streams.get_mut(&id).unwrap();
        let half = &mut model.halves[end];
        let mut bytes: Vec<u8> =
            (half.sent..half.sent + len).map(|place| byte(id, end, place)).collect();
        let prefix =
            (framed && len >= 4).then(|| bytes.drain(..4).collect::<Vec<_>>().try_into().unwrap());
        match self.ends[end].core.send(id, prefix, bytes.into(), last) {
            Ok(woken) => {
                wake(woken);
                half.sent += len;
                half.finished = last;
            }
            Err(error) => {
                prop_assert_eq!(error, StreamError::Reset);
                let stopped = !model.halves[1 - end].receiver;
                prop_assert!(model.is_cut() || stopped, "cut for no reason");
            }
        }
        Ok(())
    }

    fn recv(&mut self, end: usize, id: u32) -> Result<bool, TestCaseError> {
        let model = self.streams.get_mut(&id).unwrap();
        let (half, core) = (&mut model.halves[end], &mut self.ends[end].core);
        let _ = half.watching.poll(|cx| core.poll_reset(id, cx));
        let mut woken = None;
        let result = half.receiving.poll(|cx| {
            let (result, waker) = core.poll_recv(id, cx, || self.now);
            woken = waker;
            result
        });
        wake(woken);
        let far = (model.halves[1 - end].sent, model.halves[1 - end].finished);
        let half = &mut model.halves[end];
        match result {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(Some(chunk))) => {
                prop_assert!(half.ended.is_none());
                for (n, got) in chunk.iter().enumerate() {
                    prop_assert_eq!(*got, byte(id, 1 - end, half.read + n));
                }
                half.read += chunk.len();
                return Ok(true);
            }
            Poll::Ready(Ok(None)) => {
                prop_assert_eq!((half.read, true), far, "an end before the end");
                half.ended = Some(true);
            }
            Poll::Ready(Err(error)) => {
                prop_assert_eq!(error, StreamError::Reset);
                half.ended = Some(false);
                prop_assert!(model.is_cut(), "cut for no reason");
            }
        }
        Ok(false)
    }

    fn drop_sender(&mut self, end: usize, id: u32) {
        wake(self.ends[end].core.drop_sender(id));
        let model = self.streams.get_mut(&id).unwrap();
        model.halves[end].sender = false;
        model.cut |= !model.halves[end].finished;
    }

    /// Everybody finishes, everything arrives and is read, then every handle goes.
    fn wind_up(mut self) -> Result<(), TestCaseError> {
        for end in 0..2 {
            while let Some(id) = self.pick(end, 0, |h| h.sender && !h.finished) {
                self.send(end, id, 0, true, false)?;
                self.streams.get_mut(&id).unwrap().halves[end].finished = true;
            }
        }
        self.settle()?;
        for end in 0..2 {
            while let Some(id) = self.accept(end) {
                self.send(end, id, 3, true, false)?;
                self.streams.get_mut(&id).unwrap().halves[end].finished = true;
            }
        }
        self.settle()?;
        for (id, model) in &self.streams {
            for half in model.halves.iter().filter(|h| h.receiver) {
                prop_assert!(half.ended.is_some(), "{id} hangs: {model:?}");
                prop_assert!(model.is_cut() || half.ended != Some(false));
            }
        }
        for end in 0..2 {
            while let Some(id) = self.pick(end, 0, |h| h.sender) {
                self.drop_sender(end, id);
            }
            while let Some(id) = self.pick(end, 0, |h| h.receiver) {
                self.apply(end, Op::DropReceiver { stream: 0, how: ReceiverEnd::Complete })?;
                prop_assert!(!self.streams[&id].halves[end].receiver);
            }
        }
        self.settle()?;
        for end in &self.ends {
            let stats = end.core.stats();
            prop_assert_eq!(stats, Stats { min_rtt: stats.min_rtt, ..Stats::default() });
        }
        Ok(())
    }

    /// Until nothing moves any more.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..10_000 {
            let mut moved = false;
            for end in 0..2 {
                self.apply(end, Op::Gather)?;
                moved |= !self.wires[end].is_empty();
                self.apply(end, Op::Deliver { bytes: usize::MAX })?;
                let reading = self.streams.iter().filter(|(_, m)| m.halves[end].receiver);
                let reading: Vec<u32> = reading.map(|(id, _)| *id).collect();
                for id in reading {
                    while self.recv(end, id)? {
                        moved = true;
                    }
                }
            }
            if !moved {
                return Ok(());
            }
        }
        prop_assert!(false, "never settles");
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever both ends do and however the bytes arrive: what is read is what was sent, in
    /// order, once; a stream ends well only after its last byte; and when all handles are gone,
    /// nothing is left.
    #[test]
    fn every_byte_arrives_once_in_order_or_the_stream_is_visibly_cut(ops in ops()) {
        let mut world = World::new();
        for (end, op) in ops {
            world.apply(usize::from(end), op)?;
        }
        world.wind_up()?;
    }

    /// Whatever bytes a peer sends, there is an answer and no panic, and what is held is bounded.
    #[test]
    fn t06_garbage_never_panics(
        frames in prop::collection::vec(
            (0_u8..5, 0_u16..16, 0_u32..7, prop_oneof![0_u32..20, any::<u32>()], prop::collection::vec(any::<u8>(), 0..20)),
            0..60,
        ),
        edge in any::<bool>(),
    ) {
        let mut end = End::new(if edge { Config::edge() } else { Config::agent() });
        for _ in 0..3 {
            end.open();
        }
        for (kind, flags, stream, length, payload) in frames {
            let mut bytes = Header { kind: Type::Data, flags, stream, length }.encode().to_vec();
            bytes[1] = kind;
            bytes.extend_from_slice(&payload);
            if end.on_raw(&bytes).is_err() {
                break;
            }
            end.gather(&mut Vec::new());
            if let Some(id) = end.accept() {
                end.core.drop_receiver(id, ReceiverEnd::Stop);
                let _ = end.core.send(id, None, "x".into(), true);
                end.core.drop_sender(id);
            }
        }
        prop_assert!(end.core.stats().streams <= Config::agent().max_streams);
    }
}
