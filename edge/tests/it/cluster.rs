//! Several edges on one PostgreSQL and one Redis: what is done at one of them is seen at all.

mod bans;
mod claims;
mod limits;
mod revoking;
mod spread;
mod trouble;
mod tunnels;
