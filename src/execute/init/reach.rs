//! Asking servers: instances of the deployment by the name of their service, everybody else from this machine.

use std::time::Duration;

use tokio::net::TcpStream;

use super::Init;
use crate::execute::CallKind;
use crate::probe::check::{self, Outcome};
use crate::runtime::{Connection, Dialed};
use crate::spec::InitAction;
use crate::state::{Instance, Phase};

/// Longest time of one look, so that a server which takes connections and says nothing is asked again: the default of a
/// health check.
const LOOK: Duration = Duration::from_secs(5);

/// Most instances of a service that are asked in one look.
const ASKED: usize = 8;

impl Init<'_> {
    /// Looks once; the error says what was found instead.
    pub(super) async fn look(&self, action: &InitAction) -> Result<(), String> {
        let _pass = self.gate.pass(&self.request.id.deployment, CallKind::Dial).await;
        let looking = async {
            match action {
                InitAction::WaitTcp { host, port, .. } => self.take_connection(host, *port).await,
                InitAction::WaitHttp { url, expect_status, .. } => {
                    let connect = async |host: &str, port: u16| self.connect(host, port).await.map(|one| one.stream);
                    said(check::get(url, *expect_status, connect).await)
                }
                InitAction::Run { .. } => Ok(()),
            }
        };
        let looked = tokio::time::timeout(LOOK, looking).await;
        looked.unwrap_or_else(|_| Err(format!("no answer within {} s", LOOK.as_secs())))
    }

    async fn take_connection(&self, host: &str, port: u16) -> Result<(), String> {
        let place = format!("{host}:{port}");
        match self.connect(host, port).await {
            Ok(dialed) => said(check::is_taken(dialed).await).map_err(|why| format!("{place}: {why}")),
            Err(why) => Err(format!("{place}: {why}")),
        }
    }

    /// Connects to an instance of a service of the deployment, where it is the name of one, else from this machine.
    async fn connect(&self, host: &str, port: u16) -> Result<Dialed, String> {
        if !self.around.services.contains(host) {
            let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
            return Ok(Dialed::direct(Box::new(stream) as Box<dyn Connection>));
        }
        let mut why = format!("no instance of {host} runs");
        for instance in self.running(host).into_iter().take(ASKED) {
            let dial = self.around.runtimes.get(&instance.runtime).and_then(|runtime| runtime.dial());
            let Some(dial) = dial else {
                why = format!("{} gives no way to connect to {}", instance.runtime, instance.id);
                continue;
            };
            match dial.dial(&instance.as_ref(), port).await {
                Ok(dialed) => return Ok(dialed),
                Err(error) => why = error.message,
            }
        }
        Err(why)
    }

    /// The running instances of a service, those that are ready first.
    fn running(&self, service: &str) -> Vec<Instance> {
        let observed = self.around.observed.borrow().clone();
        let runs = |one: &&Instance| one.id.service == service && matches!(one.phase, Phase::Running { .. });
        let mut running: Vec<Instance> = observed.iter().filter(runs).cloned().collect();
        running.sort_by_key(|instance| !instance.phase.is_ready());
        running
    }
}

fn said(outcome: Outcome) -> Result<(), String> {
    match outcome {
        Outcome::Passed => Ok(()),
        Outcome::Failed(why) | Outcome::NotMade(why) => Err(why),
    }
}
