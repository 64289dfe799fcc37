//! The agent's local API, at `127.0.0.1:4040` unless it is told otherwise.

pub mod running;
