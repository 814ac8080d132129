//! Runs lanes of a plan against a runtime: one attempt per step, one report per step. Decides nothing.

mod environment;
mod gate;
mod init;
mod lane;

pub use environment::{MissingReference, resolve};
pub use gate::{CallKind, Gate};
pub use init::{Surroundings, spec_of_helper};
pub use lane::{Outcome, Report, Reporter, Tools, run};
