//! QUIC as a carrier: one connection, a native stream for each stream.

use std::{
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;

use crate::mux::{OpenError, SessionError, Stats, StreamError};

/// A QUIC connection.
#[derive(Clone, Debug)]
pub enum Session {}

impl Session {
    pub(crate) fn open(&self) -> Result<(Sender, Receiver), OpenError> {
        match *self {}
    }

    pub(crate) fn close(&self) {
        match *self {}
    }

    pub(crate) fn abort(&self, _code: u16, _reason: impl Into<String>) {
        match *self {}
    }

    pub(crate) async fn closed(&self) -> SessionError {
        match *self {}
    }

    pub(crate) fn is_closed(&self) -> bool {
        match *self {}
    }

    pub(crate) fn ping(&self) {
        match *self {}
    }

    pub(crate) fn last_received(&self) -> Instant {
        match *self {}
    }

    pub(crate) fn stats(&self) -> Stats {
        match *self {}
    }
}

/// Takes the streams that the peer opens.
#[derive(Debug)]
pub enum Acceptor {}

impl Acceptor {
    pub(crate) async fn accept(&mut self) -> Option<(Sender, Receiver)> {
        match *self {}
    }
}

/// The sending direction.
#[derive(Debug)]
pub enum Sender {}

impl Sender {
    pub(crate) fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match *self {}
    }

    pub(crate) fn send(&mut self, _bytes: Bytes, _last: bool) -> Result<(), StreamError> {
        match *self {}
    }

    pub(crate) fn send_framed(
        &mut self,
        _prefix: [u8; 4],
        _bytes: Bytes,
        _last: bool,
    ) -> Result<(), StreamError> {
        match *self {}
    }

    pub(crate) fn announce(&mut self) {
        match *self {}
    }

    pub(crate) fn poll_reset(&mut self, _cx: &mut Context<'_>) -> Poll<StreamError> {
        match *self {}
    }
}

/// The receiving direction.
#[derive(Debug)]
pub enum Receiver {}

impl Receiver {
    pub(crate) fn poll_recv(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        match *self {}
    }

    pub(crate) fn complete(&mut self) {
        match *self {}
    }

    pub(crate) fn stop(self) {
        match self {}
    }
}
