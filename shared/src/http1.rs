//! HTTP/1.1 on one connection (RFC 9112), as a tunnel needs it at both of its ends: heads keep their
//! order and spelling, answers 1xx pass, bodies stream, and whatever could be read in two ways is
//! refused. Heads are read by `httparse`; this module is what lies around them.
//!
//! [`head`] reads and writes heads, [`body`] finds where a body ends, [`conn`] moves the bytes.
//! Nothing here knows about tunnels.

pub mod body;
pub mod conn;
pub mod head;

pub use self::{
    body::{BodyError, BodyReader, Length},
    conn::{Conn, Incoming, ReadFault},
    head::{HeadError, RequestLine, StatusLine},
};
