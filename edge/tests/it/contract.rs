//! What durable rows and shared state promise, tried on every backend.

mod store;
