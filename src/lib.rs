//! Evenkeel.
pub mod clock;
pub mod runtime;
pub mod spec;
pub mod state;
