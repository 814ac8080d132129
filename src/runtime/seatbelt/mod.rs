//! Seatbelt, the confinement of macOS, for the sandbox runtime: from a service's spec to a profile, and the launch of a
//! program under it.
//!
//! **Untested on a Mac.** The profile is made by pure code that is tested everywhere; the launcher compiles on every
//! Unix and was never run on macOS. On a Mac `keel` uses Docker or Podman until that has changed.

pub mod launch;
pub mod profile;

pub use launch::{Launch, PROGRAM};
pub use profile::{Graphics, Network, Profile};
