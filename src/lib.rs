//! Evenkeel.
pub mod spec;
