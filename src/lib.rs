//! Evenkeel keeps what you declared running.
//!
//! A directory of YAML files says which deployments and services should exist; one controller (`keel`) compares that
//! with what the container runtimes report and closes the difference, for as long as it runs.
//!
//! # The way of the data
//!
//! ```text
//! specs/*.yaml -> source -> spec (parse, default, validate) -> state::Desired
//!                                                                   |
//! runtime.list / runtime.events -> state::Instance ------------> plan (pure) -> Plan -> execute -> runtime
//!                                                                   |                      |
//!                                              store <------------- +-> status, API     report
//! ```
//!
//! One direction, and no way back except through the runtime's own report. A wake-up (file event, runtime event,
//! timer, API call) carries no meaning: it asks for a deployment's key, and the controller looks at everything for that
//! key.
//!
//! # The map of the house
//!
//! | module | holds | may use |
//! |---|---|---|
//! | [`spec`] | what a user may write: types, defaults, quantities, validation with positions, template hash | nothing |
//! | [`state`] | identities and labels, desired state, observed state | `spec` |
//! | [`plan`] | pure decisions: what to do next and why, and what is expected to follow; printable, comparable | `spec`, `state` |
//! | [`runtime`] | the contract of runtimes, and its adapters: `docker`, `sandbox`, `sim` | `spec`, `state`, `clock` |
//! | [`store`] | the state directory: owner, lock, SQLite file, applied files | `spec`, `state` |
//! | [`probe`] | health checks: when one is due, what its result leads to, and making it | `spec`, `state`, `runtime`, `clock` |
//! | `source` | directory trees that are watched and read again; last good versions; the hold on mass loss | `spec`, `state`, `store`, `clock` |
//! | [`execute`] | runs the lanes of a plan: one attempt per step, one report per step | `spec`, `plan`, `state`, `runtime`, `probe` |
//! | [`status`] | views for users, computed from desired, observed and plan | `spec`, `state`, `plan` |
//! | [`controller`] | the core that owns all state, and the engine around it | all of these |
//! | `api` | HTTP over a Unix socket, or called in process | the public face |
//! | [`cli`] | one file per verb; tables, JSON, YAML, progress | the public face |
//! | [`clock`] | the machine's clock, and a virtual one | nothing |
//!
//! Types of bollard, SQLite and the other libraries of one adapter never leave it. The kernel's interfaces are used by
//! the sandbox runtime, and in few places besides that `tests/tidy.rs` names with their reason; it keeps these rules.
//!
//! # Where to start
//!
//! - What a deployment needs next is decided in [`plan`]; nothing else decides. Which revision of a service is to run is
//!   decided in [`plan::revisions`], and the planner plans for that.
//! - A new runtime implements [`runtime::Runtime`] and passes the conformance suite in `tests/conformance`.
//! - A new field of the format goes into [`spec`], where an exhaustive match asks whether it belongs to the
//!   template, and into the runtimes; until then it shows as the condition `UnsupportedField`.
//! - The core in [`controller`] is one task without locks: messages change what is known, due keys are planned, and
//!   lanes run as tasks that report back.
//!
//! # Rules that always hold
//!
//! 1. Planning is a function of (desired, observed, history, now): no clock, no randomness, no I/O in [`plan`].
//! 2. A second plan straight after convergence is empty, and does not depend on the order of events.
//! 3. Nothing is created, stopped or removed unless it carries this installation's owner mark.
//! 4. Nothing is removed before the source is synced once and the runtime was listed completely once.
//! 5. A file that is broken, half-written or unreadable keeps the last good version running and says where and why. A
//!    directory that vanished, or lost more than three and more than half of its deployments at once, never
//!    causes mass deletion, and neither does watching another directory.
//! 6. An instance whose template did not change is never restarted.
//! 7. Killing the controller at any instant and starting it again converges to the same end. SIGTERM leaves workloads
//!    running.
//! 8. At every instant of a rollout: ready >= desired - max_unavailable, total <= desired + max_surge.
//! 9. No lock is held across a runtime call. One slow start delays no other deployment.
//! 10. Effects are recorded after they happened; only that a stop is coming is recorded before, so that its exit is never
//!     taken for a crash. Counters and statuses are derived from state.
//! 11. A failure is told truthfully, in status and exit code.
//! 12. Every queue, buffer, log, retry, history and runtime call has a bound: a named constant with a reason.

pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod controller;
pub mod execute;
pub mod plan;
pub mod probe;
pub mod runtime;
pub mod source;
pub mod spec;
pub mod state;
pub mod status;
pub mod store;
pub mod telemetry;
