//! The same tests for every backend.

mod state;
mod store;
