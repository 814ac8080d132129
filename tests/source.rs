//! The directory source and the state directory, on real files.

#[path = "source/state_dir.rs"]
mod state_dir;
#[path = "source/store.rs"]
mod store;
