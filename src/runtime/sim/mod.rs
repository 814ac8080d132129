//! In memory, with virtual time and seeded faults: a working runtime for tests and for rehearsals.
//!
//! A [`World`] is the machine. It holds instances of any number of owners, lives longer than every [`SimRuntime`]
//! made from it, and writes down what happens ([`Change`]) and how often it is called. A [`ForgetfulRuntime`] sees the
//! same machine without its memory of who ended what. [`Faults`] say what goes
//! wrong; the `program` module says what instances do.

mod adapter;
mod dial;
mod faults;
mod forgetful;
mod machine;
mod output;
mod program;
mod record;
mod registry;
mod rng;
mod run;
#[cfg(test)]
mod tests;
mod world;

pub use adapter::SimRuntime;
pub use faults::Faults;
pub use forgetful::ForgetfulRuntime;
pub use record::{Change, Counts, MAX_CHANGES, Method, What};
pub use rng::Rng;
pub use world::World;
