//! The revisions of services and their rollouts: which revision is to run, how far it is, and whether it has failed.
//!
//! What is declared is one thing, what is planned for another: [`effective`] says what is to run, given what is declared
//! and what is remembered of its rollouts ([`Memory`]); the planner then plans for that as for any declaration.
//! [`advance()`] carries the memory on from what is observed: a rollout begins, makes progress, completes or fails. Users
//! change it by orders ([`undo`], [`pause`], [`resume`], [`restart`]). All of it is pure.

mod advance;
mod clock;
mod history;
mod image;
mod judge;
mod keep;
mod obstacle;
mod order;
mod wanted;

pub use advance::{Advance, Decision, Seen, advance};
pub use clock::{CLOCK_STEP, DeadlineClock};
pub use history::{Declaration, KnownRevision, Memory, Orders, Outcome, Pin, Restart, RolloutHistory, RolloutProgress};
pub use image::{FollowedImage, followed};
pub use judge::CRASHES_IN_A_ROW;
pub use order::{OrderError, pause, restart, resume, try_again, undo};
pub use wanted::{effective, shown, spec_of};
