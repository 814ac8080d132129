//! The directory source and the state directory, on real files.

#[path = "source/bench.rs"]
mod bench;
#[path = "source/broken.rs"]
mod broken;
#[path = "source/handover.rs"]
mod handover;
#[path = "source/hold.rs"]
mod hold;
#[path = "source/identity.rs"]
mod identity;
#[path = "source/mounts.rs"]
mod mounts;
#[path = "source/reset.rs"]
mod reset;
#[path = "source/state_dir.rs"]
mod state_dir;
#[path = "source/store.rs"]
mod store;
#[path = "source/tree.rs"]
mod tree;
#[path = "source/unwatched.rs"]
mod unwatched;
#[path = "source/watching.rs"]
mod watching;
