//! A model of the whole run contract that drives the real server with random sequences of requests, and checks what it
//! answers and shows against the invariants of `design.md`; and whole simulated fleets ([`fleet`]). For tests only; nothing of the
//! product depends on it.

pub mod book;
pub mod client;
pub mod door;
pub mod draw;
pub mod elsewhere;
pub mod fault;
pub mod fleet;
pub mod host;
pub mod ids;
pub mod lanes;
pub mod model;
pub mod plane;
pub mod player;
pub mod process;
pub mod rules;
pub mod scene;
pub mod search;
pub mod seen;
pub mod server;
pub mod signal;
pub mod spec;
pub mod step;
pub mod tally;
pub mod watching;
