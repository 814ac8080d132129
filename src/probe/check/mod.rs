//! Making one check.

mod command;
mod http;
mod tcp;
mod tls;

use std::time::Duration;

pub use self::command::LastCommand;
pub use self::http::get;
pub use self::tcp::is_taken;
pub use super::schedule::Outcome;
use crate::runtime::{Dialed, ErrorKind, Runtime, RuntimeError};
use crate::spec::{Check, HumanDuration, ServiceSpec};
use crate::state::InstanceRef;

/// Makes one check of a running instance, and gives up after this time.
pub async fn run(
    check: &Check,
    spec: &ServiceSpec,
    runtime: &dyn Runtime,
    instance: &InstanceRef,
    last: &LastCommand,
    limit: Duration,
) -> Outcome {
    let place = Place { spec, runtime, instance };
    let late = |_| Outcome::Failed(format!("no answer within {}", HumanDuration(limit)));
    match check {
        Check::Tcp { port } => tokio::time::timeout(limit, tcp::run(&place, *port)).await.unwrap_or_else(late),
        Check::Http { url, expect_status } => {
            let made = http::run(&place, url, expect_status.unwrap_or(200));
            tokio::time::timeout(limit, made).await.unwrap_or_else(late)
        }
        Check::Command { command } => match runtime.exec() {
            Some(exec) => command::run(exec, instance, command, last, limit).await,
            None => Outcome::NotMade(format!("{} runs no commands inside instances", runtime.kind())),
        },
    }
}

/// What is checked, and where it is.
pub(super) struct Place<'a> {
    spec: &'a ServiceSpec,
    runtime: &'a dyn Runtime,
    instance: &'a InstanceRef,
}

impl Place<'_> {
    /// Connects to a port of the instance; 0 is its first endpoint's.
    async fn dial(&self, port: u16) -> Result<Dialed, Outcome> {
        let Some(dial) = self.runtime.dial() else {
            return Err(Outcome::NotMade(format!("{} gives no way to connect to instances", self.runtime.kind())));
        };
        let first = || self.spec.endpoints.first().map(crate::spec::Endpoint::target_port);
        let port = match port {
            0 => first().ok_or_else(|| {
                Outcome::NotMade("port 0 is the first endpoint, and there is none; write the port".to_owned())
            })?,
            port => port,
        };
        dial.dial(self.instance, port).await.map_err(|error| failed(&error))
    }
}

/// What an error of a runtime means: one that says nothing of the instance is no failed check.
fn failed(error: &RuntimeError) -> Outcome {
    let says_nothing = matches!(error.kind, ErrorKind::Unsupported | ErrorKind::CommandNotFound);
    match says_nothing || error.means_unreachable() {
        true => Outcome::NotMade(error.message.clone()),
        false => Outcome::Failed(error.message.clone()),
    }
}
