//! The sandbox runtime end to end: real processes, supervised by the real `keel` program.
//!
//! Needs Linux and a static busybox. Everything lies in temporary directories; every instance is removed at the end of
//! its test.

#![cfg(target_os = "linux")]

mod abandoned;
mod accepted;
mod attach;
mod devices;
mod etc;
mod forwarding;
mod images;
mod isolation;
mod killed;
mod late_mounts;
mod lifecycle;
mod limits;
mod links;
mod name_files;
#[path = "../support/namespaces.rs"]
mod namespaces;
mod network;
mod own_files;
mod past_holes;
mod pasta;
mod privileges;
mod reaping;
mod remnants;
mod shared;
mod storage;
mod support;
mod sysctls;
mod terminal;
mod unexecuted;
mod unprivileged;
mod unwatched;
mod visitors;
mod workspaces;
