//! One edge with accounts, from a command line to a visitor's page.

mod counting;
mod disk;
mod limits;
mod secrets;
mod tokens;
