//! The engine over HTTP: JSON requests and streams on the state directory's Unix socket.
//!
//! The same [`router`] serves the socket of a running controller and, called in process, the verbs that work
//! without one; [`Client`] hides which of the two it is. One request per connection, HTTP/1.1; whoever may open
//! the socket may do everything.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/version` | [`Version`] |
//! | `GET /v1/status[?wait=GENERATION]` | [`Status`](crate::status::Status); with `wait`, as soon as it differs from that generation |
//! | `GET /v1/describe?target=NAME` | [`Description`](crate::controller::Description) |
//! | `GET /v1/usage[?target=NAME]` | array of [`InstanceUsage`](crate::controller::InstanceUsage) |
//! | `POST /v1/preview` | [`Preview`](crate::controller::Preview) |
//! | `POST /v1/dry-run`, `/v1/apply`, `/v1/delete` | [`Applied`](crate::controller::Applied) |
//! | `POST /v1/trigger` | [`RunId`](crate::state::RunId) |
//! | `POST /v1/approve` | names of the deployments that may go |
//! | `POST /v1/rescan` | `null` |
//! | `GET /v1/logs?target=NAME[&follow=true][&tail=N][&previous=true][&since=TIME][&runtime_id=ID]` | JSON lines of [`LogItem`] |
//! | `POST /v1/logs` with [`LogResume`] | the same, after what was read before |
//! | `POST /v1/exec`, `/v1/attach` | frames both ways, see [`frame`] |
//! | `GET /v1/sessions` | array of [`SessionView`](crate::controller::SessionView) |
//! | `GET /v1/sessions/stats` | [`SessionStats`](crate::controller::SessionStats) |
//! | `POST /v1/sessions/acquire` with [`AcquireRequest`](crate::controller::AcquireRequest) | [`Acquired`](crate::controller::Acquired) |
//! | `POST /v1/sessions/change` with [`SessionRequest`](crate::controller::SessionRequest) | [`SessionChanged`](crate::controller::SessionChanged) |
//!
//! Errors are [`ErrorBody`] with a status code of their own per kind.

mod attach;
pub mod client;
mod doors;
mod error;
mod exec;
pub mod frame;
mod logs;
#[cfg(target_os = "linux")]
mod peer;
#[cfg(not(target_os = "linux"))]
#[path = "peer_elsewhere.rs"]
mod peer;
mod routes;
mod serve;
mod sessions;
mod wire;

pub use client::Client;
pub use error::{ApiError, ErrorBody, Kind};
pub use routes::router;
pub use serve::{ServeError, Server};
pub use wire::{AttachStart, Attached, ExecStart, LogItem, LogQuery, LogResume, Version};
