//! The mux against other implementations and against hostile peers, over real sockets; the golden
//! vectors of what lies below `proto`; and the fuzz targets' entry points on stable Rust.
#![expect(clippy::unwrap_used, reason = "a test may fail at any of them")]

mod contract;
mod fuzz_entries;
mod go;
mod harness;
mod hostile;
mod service;
mod vectors;
mod yamux_crate;
