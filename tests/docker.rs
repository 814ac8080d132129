//! The docker runtime against real engines: Docker's and Podman's, each started for tests by `.ci/engines`.

#[path = "docker/changed.rs"]
mod changed;
#[path = "support/engine.rs"]
mod engine;
#[path = "docker/failing.rs"]
mod failing;
#[path = "docker/fields.rs"]
mod fields;
#[path = "docker/harness.rs"]
mod harness;
#[path = "docker/images.rs"]
mod images;
#[path = "docker/life.rs"]
mod life;
#[path = "docker/output.rs"]
mod output;
#[path = "support/private.rs"]
#[expect(dead_code, reason = "the tests here shut engines down and kill none")]
mod private;
#[path = "support/registry.rs"]
mod registry;
#[path = "docker/restart.rs"]
mod restart;
