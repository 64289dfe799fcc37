//! T06: what a hostile peer sends, and what it costs us.

use super::{
    super::super::{MAX_WINDOW, frame::HeaderError},
    *,
};

/// GHSA on the yamux crate: frames that ask for answers, from a peer that reads none.
#[test]
fn t06_answers_for_a_peer_that_never_reads_are_bounded() {
    let mut edge = End::new(Config::edge());
    let asked = (0..2_000).map(|n| edge.on_word(Type::Ping, flag::SYN, 0, n));
    let (answered, error) = until_error(asked);
    assert!(matches!(error, SessionError::Protocol(_)));
    assert_eq!((answered, edge.core.urgent.len()), (MAX_ANSWERS, MAX_ANSWERS));

    // SYNs beyond the streams there may be are answered with resets.
    let mut config = Config::agent();
    config.max_streams = 10;
    let mut agent = End::new(config);
    let opened = (1..4_000).map(|n| agent.on_word(Type::WindowUpdate, flag::SYN, n * 2, 0));
    let (opened, error) = until_error(opened);
    assert!(matches!(error, SessionError::Protocol(_)));
    assert_eq!(opened, 10 + MAX_ANSWERS);
    assert_eq!(agent.core.stats().streams, 10);
    assert_eq!(agent.core.inbound.len(), 10);
}

/// Streams opened and cancelled over and over (the HTTP/2 "rapid reset"), nothing read.
#[test]
fn t06_streams_opened_and_given_up_by_us_for_a_peer_that_never_reads_are_bounded() {
    let mut agent = End::new(Config::agent());
    let rounds = (1..100_000).map(|n| {
        agent.on(Type::Data, flag::SYN, n * 2, b"no such tunnel")?;
        if let Some(id) = agent.accept() {
            agent.drop_both(id);
        }
        Ok(())
    });
    let (_, error) = until_error(rounds);
    assert!(matches!(error, SessionError::Protocol(_)));
    assert_eq!(agent.core.urgent.len(), MAX_URGENT);
}

/// The same by resets of the peer's own.
#[test]
fn t06_rapid_reset_never_takes_more_streams_than_there_may_be() {
    let mut agent = End::new(Config::agent());
    let limit = Config::agent().max_streams;
    for n in 1..100_000_u32 {
        let opened = agent.on(Type::Data, flag::SYN, n * 2, b"x");
        let reset = agent.on_word(Type::WindowUpdate, flag::RST, n * 2, 0);
        assert!(agent.core.stats().streams <= limit);
        assert!(agent.core.inbound.len() <= limit);
        if opened.and(reset).is_err() {
            return;
        }
    }
    panic!("never refused");
}

/// Many visitors leave at once, and the peer asks for an answer: no fault of the peer.
#[test]
fn resets_of_our_own_do_not_count_as_answers_that_nobody_reads() {
    let mut pair = Pair::with(|config| config.max_streams = 3_000);
    let ids: Vec<u32> = (0..2_000).map(|_| pair.edge.open()).collect();
    for id in &ids {
        pair.edge.send(*id, "GET", false);
    }
    pair.settle();
    for id in ids {
        pair.edge.drop_both(id);
    }
    pair.agent.core.ping(pair.now);
    pair.up();
    pair.settle();
    assert!(pair.agent.core.stats().min_rtt.is_some());
}

/// GHSA on the yamux crate: credit beyond what a word holds.
#[test]
fn t06_a_window_update_that_overflows_ends_the_session() {
    let mut pair = Pair::new();
    let id = pair.stream();
    let room = u32::MAX - INITIAL_WINDOW;
    pair.edge.on_word(Type::WindowUpdate, 0, id, room).unwrap();
    let error = pair.edge.on_word(Type::WindowUpdate, 0, id, u32::MAX).unwrap_err();
    assert_eq!(error, SessionError::Protocol("a window update overflows"));
    // With SYN and on streams that are not there, likewise without a panic.
    let mut agent = End::new(Config::agent());
    agent.on_word(Type::WindowUpdate, 0, 8, u32::MAX).unwrap();
    let error = agent.on_word(Type::WindowUpdate, flag::SYN, 2, u32::MAX).unwrap_err();
    assert_eq!(error, SessionError::Protocol("a window update overflows"));
}

/// CVE-2026-32314 of the yamux crate: the first frame is larger than the window.
#[test]
fn t06_data_beyond_the_window_ends_the_session_at_the_header() {
    for length in [INITIAL_WINDOW + 1, 1 << 24, u32::MAX] {
        let mut agent = End::new(Config::agent());
        let error = agent.on_word(Type::Data, flag::SYN, 2, length).unwrap_err();
        assert_eq!(error, SessionError::Protocol("more data than the window allows"));
        assert_eq!(agent.core.stats().received_queued, 0);
    }
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.edge.on(Type::Data, 0, id, &vec![0; INITIAL_WINDOW as usize - 1]).unwrap();
    let error = pair.edge.on(Type::Data, 0, id, b"x").unwrap_err();
    assert_eq!(error, SessionError::Protocol("more data than the window allows"));
    // For a stream that is gone, within the largest window it is only late.
    let mut edge = End::new(Config::edge());
    edge.on_word(Type::Data, 0, 2, MAX_WINDOW).unwrap();
    let mut edge = End::new(Config::edge());
    let error = edge.on_word(Type::Data, 0, 2, MAX_WINDOW + 1).unwrap_err();
    assert_eq!(error, SessionError::Protocol("a frame over the largest window"));
}

#[test]
fn t06_an_agent_may_open_the_control_stream_and_no_other() {
    let mut edge = End::new(Config::edge());
    edge.on(Type::Data, flag::SYN, 1, b"control").unwrap();
    assert_eq!(edge.accept(), Some(1));
    let opened = (1..1_000).map(|n| edge.on(Type::Data, flag::SYN, 1 + 2 * n, b"x"));
    let (refused, error) = until_error(opened);
    assert_eq!(refused, MAX_REFUSED as usize);
    assert_eq!(error, SessionError::Protocol("too many streams opened"));
    assert_eq!(edge.accept(), None);
    assert_eq!(edge.core.stats().streams, 1);
    let said = frames(Side::Client, &edge.gather(&mut Vec::new()));
    assert_eq!(said, (1..=MAX_REFUSED).map(|n| rst(1 + 2 * n)).collect::<Vec<_>>());
}

#[test]
fn t06_an_agent_can_not_open_its_control_stream_again() {
    let mut edge = End::new(Config::edge());
    edge.on(Type::Data, flag::SYN | flag::FIN, 1, b"control").unwrap();
    let id = edge.accept().unwrap();
    edge.send(id, "", true);
    edge.gather(&mut Vec::new());
    edge.drop_both(id);
    nothing_left(&edge);
    edge.on(Type::Data, flag::SYN, 1, b"control").unwrap();
    assert_eq!(edge.accept(), None);
    assert_eq!(frames(Side::Client, &edge.gather(&mut Vec::new())), [rst(1)]);
}

#[test]
fn t06_what_no_honest_peer_sends_ends_the_session() {
    let protocol = SessionError::Protocol;
    let frame = |kind, flags, stream, length| Header { kind, flags, stream, length }.encode();
    let mut unknown = frame(Type::Ping, 0, 0, 0);
    unknown[1] = 4;
    let mut version = frame(Type::Ping, 0, 0, 0);
    version[0] = 1;
    let cases = [
        (unknown, HeaderError::Type(4).into()),
        (version, HeaderError::Version(1).into()),
        (frame(Type::Data, 0, 0, 1), protocol("a frame for stream 0")),
        (frame(Type::WindowUpdate, flag::SYN, 0, 0), protocol("a frame for stream 0")),
        (frame(Type::Data, flag::SYN, 8, 0), protocol("a new stream with an id of the other side")),
        (frame(Type::Data, flag::SYN, 2, 0), protocol("a new stream with an id of the other side")),
        (frame(Type::Data, flag::SYN, 1, 0), protocol("a new stream with an id in use")),
        (frame(Type::Data, 0, 3, 1), protocol("data after the end of a stream")),
        (frame(Type::GoAway, 0, 0, 1), SessionError::GoAway(1)),
    ];
    for (bytes, expected) in cases {
        let mut config = Config::edge();
        config.inbound_total = 2;
        let mut edge = End::new(config);
        assert_eq!(edge.open(), 2);
        edge.on_word(Type::Data, flag::SYN, 1, 0).unwrap();
        edge.on_word(Type::Data, flag::SYN | flag::FIN, 3, 0).unwrap();
        assert_eq!(edge.on_raw(&bytes), Err(expected));
    }
}

fn until_error(mut steps: impl Iterator<Item = Result<(), SessionError>>) -> (usize, SessionError) {
    let mut fine = 0;
    loop {
        match steps.next().expect("an error was due") {
            Ok(()) => fine += 1,
            Err(error) => return (fine, error),
        }
    }
}

/// What a receive queue really holds in memory, where that can be told: copies fit exactly, and a
/// slice of a read buffer counts as the 128 KiB it may keep alive.
fn footprint(received: &Received) -> usize {
    let slots = received.chunks.capacity() * size_of::<Bytes>();
    let chunks = received.chunks.iter().map(|c| if c.is_unique() { c.len() } else { 128 * 1024 });
    slots + chunks.sum::<usize>() + received.tail.capacity()
}

#[test]
fn t06_tiny_frames_cost_the_reader_little_more_than_their_bytes() {
    for size in [1, 7, 1_000] {
        let mut pair = Pair::new();
        let id = pair.stream();
        let frame = Header { kind: Type::Data, flags: 0, stream: id, length: size }.encode();
        let frame = [&frame[..], &vec![1; size as usize]].concat();
        let count = (INITIAL_WINDOW as usize - 1) / size as usize;
        for batch in (0..count).collect::<Vec<_>>().chunks(5_000) {
            pair.edge.on_raw(&frame.repeat(batch.len())).unwrap();
        }
        let received = &pair.edge.core.streams[&id].received;
        assert_eq!(received.len, count * size as usize);
        let footprint = footprint(received);
        assert!(footprint <= 2 * received.len + 4_096, "{footprint} for frames of {size}");
    }
}

/// Pieces that are slices of one read buffer each, as large as they may be and still be copied.
#[test]
fn t06_a_slow_reader_keeps_no_read_buffers_alive() {
    for size in [3_000, 16 * 1024, 40 * 1024] {
        let mut received = Received::default();
        let mut keep = Vec::new();
        while received.len < 10 * SLOW_READER {
            let buffer = Bytes::from(vec![0; 128 * 1024]);
            received.push(buffer.slice(..size));
            keep.push(buffer);
        }
        let shared = received.chunks.iter().filter(|c| !c.is_unique()).count();
        assert!(shared <= 1 + SLOW_READER / LAGGING_COPY_BELOW, "{shared} slices of {size}");
        // One buffer for the first piece, up to two more until the reader counts as slow.
        assert!(footprint(&received) <= 4 * received.len);
        while received.pop().is_some() {}
        assert_eq!(received.len, 0);
    }
}

#[test]
fn t06_empty_frames_cost_nothing() {
    let mut pair = Pair::new();
    let id = pair.stream();
    let empty = Header { kind: Type::Data, flags: 0, stream: id, length: 0 }.encode();
    pair.edge.on_raw(&empty.repeat(100_000)).unwrap();
    pair.edge.on_word(Type::WindowUpdate, 0, id, 0).unwrap();
    let received = &pair.edge.core.streams[&id].received;
    assert_eq!((received.len, received.chunks.len()), (0, 0));
    assert!(pair.edge.core.ready.is_empty());
    assert_eq!(pair.edge.read(id, pair.now), (Vec::new(), None));
}
