//! The planner: tables of snapshots and printed plans, and properties over generated states.

mod dsl;

mod awaited_jobs;
mod changed;
mod depends;
mod forecast;
mod health;
mod idle_dependencies;
mod init;
mod inputs;
mod jobs;
mod lanes;
mod lifecycle;
mod pools;
mod properties;
mod restart;
mod revisions;
mod rollout;
mod rounding;
mod schedules;
mod simulate;
mod undeclared;
mod workspaces;
