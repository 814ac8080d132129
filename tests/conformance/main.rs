//! One suite for every runtime: what the contract promises, each promise a test.
//!
//! A runtime joins by implementing [`harness::Harness`] in a module of its own and calling
//! [`conformance!`](macros) there. Where a runtime can't be had on this machine, its tests are skipped with the
//! reason; `KEEL_TEST_REQUIRE`, a list of names such as `docker,podman`, turns a skip into a failure.

#[macro_use]
mod macros;
mod dial;
mod harness;
mod life;
mod output;
mod ownership;
mod shared;
mod usage;

mod docker;
#[path = "../support/engine.rs"]
mod engine;
#[cfg(target_os = "linux")]
mod sandbox;
mod seatbelt;
mod sim;
