//! Evenkeel.
pub mod clock;
pub mod plan;
pub mod runtime;
pub mod spec;
pub mod state;
