//! What edge and agent both need: carriers and the mux, identifiers, the table of errors,
//! configuration files, back-off and telemetry.
#![warn(missing_docs)]

pub mod backoff;
pub mod carrier;
pub mod code;
pub mod config_file;
pub mod copy;
pub mod deadline;
pub mod headers;
pub mod http1;
pub mod http2;
pub mod id;
pub mod lanes;
pub mod message;
pub mod mux;
pub mod network;
pub mod policy;
pub mod proxy_protocol;
mod scratch;
pub mod session;
pub mod shutdown;
pub mod stream;
pub mod task;
pub mod telemetry;
pub mod verifier;
