//! Evenkeel.
pub mod cli;
pub mod clock;
pub mod controller;
pub mod plan;
pub mod runtime;
pub mod spec;
pub mod state;
pub mod status;
pub mod store;
