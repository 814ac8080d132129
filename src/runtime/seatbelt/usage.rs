//! What instances use, connections to them, and freezing them.

use async_trait::async_trait;
use chrono::Utc;
use tokio::net::TcpStream;

use super::{SeatbeltRuntime, commands, failed, not_running, table};
use crate::runtime::{Dial, Dialed, ErrorKind, Result, RuntimeError, Stats, Suspend, Usage};
use crate::state::{Instance, InstanceRef, Phase};

#[async_trait]
impl Stats for SeatbeltRuntime {
    async fn stats(&self, instance: &InstanceRef) -> Result<Usage> {
        let found = self.known(instance).await?;
        let Some(run) = found.run.clone() else { return Err(not_running(&found)) };
        let dir = self.dir(instance)?;
        let all = tokio::task::spawn_blocking(move || Ok((table::processes()?, commands::noted(&dir)?))).await;
        let all = all.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let (all, commands) = all.map_err(|error| failed("looking at processes", &error))?;
        let roots: Vec<_> = [run.program].into_iter().chain(commands).collect();
        let members = table::members_of_all(&all, &roots);
        Ok(Usage {
            cpu_usec: members.iter().map(|one| one.cpu_usec).sum(),
            memory: Some(members.iter().map(|one| one.memory).sum()),
            memory_limit: found.record.and_then(|record| record.memory),
            pids: Some(members.len() as u64),
            ..Usage::nothing(Utc::now())
        })
    }
}

#[async_trait]
impl Suspend for SeatbeltRuntime {
    async fn pause(&self, instance: &InstanceRef) -> Result<Instance> {
        let found = self.freeze(instance, true).await?;
        match found.instance.phase {
            Phase::Paused { .. } => Ok(found.instance),
            _ => Err(not_running(&found)),
        }
    }

    async fn resume(&self, instance: &InstanceRef) -> Result<Instance> {
        Ok(self.freeze(instance, false).await?.instance)
    }
}

#[async_trait]
impl Dial for SeatbeltRuntime {
    async fn dial(&self, instance: &InstanceRef, port: u16) -> Result<Dialed> {
        let found = self.known(instance).await?;
        if found.run.is_none() {
            let message = format!("{} does not run, so nothing listens there", instance.id);
            return Err(RuntimeError::new(ErrorKind::Failed, message));
        }
        let own = match found.record.and_then(|record| record.first_port) {
            Some((target, own)) if target == port => own,
            Some(_) => port,
            None => {
                let message = format!("{} has no network, so there is no way to port {port}", instance.id);
                return Err(RuntimeError::new(ErrorKind::Unsupported, message));
            }
        };
        let stream = TcpStream::connect(("127.0.0.1", own)).await;
        let stream = stream.map_err(|error| failed(&format!("connecting to port {own} of {}", instance.id), &error))?;
        Ok(Dialed::direct(stream))
    }
}
