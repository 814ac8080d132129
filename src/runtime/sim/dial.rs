//! Connections to simulated instances: each is a small server of HTTP.

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::SimRuntime;
use super::machine::not_found;
use super::record::Method;
use crate::runtime::{Dial, Dialed, ErrorKind, Result, RuntimeError};
use crate::state::{HealthState, InstanceRef, Phase};

/// Longest time until a connection is made.
const DIAL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// Bytes on their way; a request and an answer.
const BUFFER: usize = 4096;

#[async_trait]
impl Dial for SimRuntime {
    async fn dial(&self, instance: &InstanceRef, port: u16) -> Result<Dialed> {
        let instance = instance.clone();
        let effect = move |runtime: Self| async move {
            let mut machine = runtime.world.machine();
            let refuses = machine.faults.refuses;
            let refused = machine.rng.chance(refuses);
            let entry = machine.find(&runtime.owner, &instance).ok_or_else(|| not_found(&instance))?;
            // One that is frozen takes connections and answers none.
            let frozen = matches!(entry.instance.phase, Phase::Paused { .. });
            let health = entry.answers.clone().or_else(|| entry.instance.health.clone());
            let status = match health {
                _ if refused || !entry.is_running() => None,
                Some(HealthState::Starting { .. } | HealthState::Unknown { .. } | HealthState::Waiting { .. }) => None,
                Some(HealthState::Unhealthy { .. }) => Some("503 Service Unavailable"),
                Some(HealthState::Healthy | HealthState::Assumed) | None => Some("200 OK"),
            };
            let Some(status) = status else {
                return Err(RuntimeError::new(ErrorKind::Failed, format!("connection to port {port} refused")));
            };
            let (near, far) = tokio::io::duplex(BUFFER);
            tokio::spawn(serve(far, (!frozen).then_some(status)));
            Ok(Dialed::direct(near))
        };
        self.call(Method::Dial, DIAL_TIMEOUT, effect).await
    }
}

/// Answers one request with this status; keeps silent without one.
async fn serve(mut stream: DuplexStream, status: Option<&'static str>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && request.len() < BUFFER {
        match stream.read_buf(&mut request).await {
            Ok(1..) => {}
            // The other side has gone.
            Ok(0) | Err(_) => return,
        }
    }
    match status {
        // The other side may have gone.
        Some(status) => {
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
        None => drop(stream.read_buf(&mut request).await),
    }
}
