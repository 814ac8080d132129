//! The `keel` program as users meet it: real processes, real files, exit codes and output.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "cli/rig.rs"]
mod rig;

#[path = "cli/words.rs"]
mod words;

#[path = "cli/verbs.rs"]
mod verbs;

#[path = "cli/busy.rs"]
mod busy;

#[path = "cli/controller.rs"]
mod controller;

#[path = "cli/sandbox.rs"]
mod sandbox;

#[path = "cli/attach.rs"]
mod attach;

#[path = "cli/depends.rs"]
mod depends;

#[path = "cli/describe.rs"]
mod describe;

#[path = "cli/devices.rs"]
mod devices;

#[path = "cli/directories.rs"]
mod directories;

#[path = "support/engine.rs"]
mod engine;

#[path = "cli/docker.rs"]
mod docker;

#[path = "cli/handover.rs"]
mod handover;

#[path = "cli/jobs.rs"]
mod jobs;

#[path = "cli/lives.rs"]
mod lives;
#[path = "cli/mounts.rs"]
mod mounts;
#[path = "cli/scaling.rs"]
mod scaling;
#[path = "cli/sessions.rs"]
mod sessions;

#[path = "cli/health.rs"]
mod health;

#[path = "cli/harmless.rs"]
mod harmless;

#[path = "cli/following.rs"]
mod following;

#[path = "cli/inside.rs"]
mod inside;

#[path = "support/namespaces.rs"]
mod namespaces;

#[path = "support/private.rs"]
mod private;

#[path = "cli/sockets.rs"]
mod sockets;

#[path = "cli/credentials.rs"]
mod credentials;

#[path = "support/registry.rs"]
mod registry;

#[path = "cli/rollout.rs"]
mod rollout;

#[path = "cli/removal.rs"]
mod removal;
#[path = "cli/reset.rs"]
mod reset;

#[path = "cli/rehearsal.rs"]
mod rehearsal;

#[path = "cli/conflicts.rs"]
mod conflicts;

#[path = "cli/top.rs"]
mod top;

#[path = "cli/descriptors.rs"]
mod descriptors;

#[path = "cli/parts.rs"]
mod parts;
#[path = "cli/twice.rs"]
mod twice;
