//! Control groups: limits, the certain end of a process tree, freezing, and what an instance used.
//!
//! Each instance has groups of its own, one in every hierarchy that is of use, below a parent named `keel`. They are
//! decided when the instance is created ([`limits`]), written into its record before anything of them exists, made anew
//! for every start ([`Seat`]), and removed when the run ended. So counters begin at zero with each run, and a record tells
//! where to look for what a killed supervisor left.
//!
//! A hybrid machine has its controllers in version 1 and an empty hierarchy of version 2 beside them: limits come from
//! the former, kill and freeze from the latter.

mod control;
mod delegation;
mod devices;
mod facts;
mod groups;
mod hierarchy;
mod home;
mod limits;
mod members;
mod probe;
mod report;
mod seat;
mod starvation;
mod tmpfs;
mod view;
mod watchdog;

pub use control::{can_freeze, clear, freeze, is_frozen, kill, thaw};
pub use delegation::settle_in;
pub use devices::{limit_devices, limits_devices};
pub use facts::{memory_limit, oom_kills, usage};
pub use groups::{Groups, name};
pub use home::Homes;
pub use limits::{Machine, POOL_PIDS, Planned, plan};
pub use members::{Members, Window};
pub use probe::{oom_score_floor, probe, process_limit, remove_unused};
pub use report::{controls, counts_processes};
pub use seat::Seat;
pub use starvation::Starvation;
pub use view::show;
pub use watchdog::{MEMORY_WATCH_INTERVAL, MemoryWatch};
