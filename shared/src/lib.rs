//! What edge and agent both need: carriers and the mux, identifiers, the table of errors,
//! configuration files, back-off and telemetry.
#![warn(missing_docs)]

pub mod carrier;
pub mod copy;
pub mod mux;
pub mod stream;
