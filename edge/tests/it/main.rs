//! The whole path in one process: a real edge, a real agent and local servers of every temper, all
//! on port 0 of 127.0.0.1. One binary, one module for each part of the behaviour.
#![expect(clippy::unwrap_used, reason = "a test that can't go on panics, which says where")]
#![allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]

mod accounts;
mod api;
mod cli;
mod cluster;
mod conformance;
mod contract;
mod errors;
mod foreign;
mod framing;
mod harness;
mod hold;
mod lanes;
mod link;
mod origins;
mod policy;
mod quic;
mod routing;
mod sessions;
mod smuggling;
mod sockets;
mod stalls;
mod streaming;
mod takeover;
mod upgrades;
mod watch;
