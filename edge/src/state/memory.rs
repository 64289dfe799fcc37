//! Shared state of one edge: this process's memory.

use std::time::Duration;

use tokio::sync::broadcast;
use uuid::Uuid;

use super::{Presence, Route, Told, Totals};

#[derive(Clone, Debug)]
pub(super) struct Memory;
