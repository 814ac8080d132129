//! Health checks: when one is due and what its result leads to ([`schedule`]), making it ([`check`]), whose turn it
//! is where many are due (`turns`), and one task that does so for every run it is told of ([`Prober`]).
//!
//! What checks find is an observed fact like what runtimes report; what follows from it is planned elsewhere.

pub mod check;
mod prober;
pub mod schedule;
mod turns;

pub use prober::{COMMANDS_AT_ONCE, CONNECTIONS_AT_ONCE, Prober, Subject, Verdict};
pub use schedule::unchecked;
