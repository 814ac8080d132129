//! Connections to containers: at their address, else by a port of the machine that leads to them.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::ContainerInspectResponse;
use chrono::{DateTime, Utc};
use tokio::net::TcpStream;

use super::{DockerRuntime, Inner};
use crate::runtime::{Dial, Dialed, ErrorKind, Result, RuntimeError};
use crate::spec::PortProtocol;
use crate::state::{InstanceRef, PortBinding};

/// Time for connecting to an address that may not be reachable from here: one of this machine answers within a
/// millisecond, also with a refusal.
const DIRECT: Duration = Duration::from_secs(1);

/// Where a container is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// At its own addresses; maybe not from here, as with an engine that is an ordinary user's.
    At(Vec<IpAddr>),
    /// Where another container is.
    With(String),
    /// Nowhere.
    Nowhere,
}

/// Where containers are reached, by id. Bounded by what the engine lists.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<HashMap<String, Known>>);

/// Where a container is reached, and the start of the run for which that holds.
#[derive(Debug)]
struct Known {
    run: Option<DateTime<Utc>>,
    place: Place,
}

impl Places {
    fn get(&self, container: &str, run: Option<DateTime<Utc>>) -> Option<Place> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(container).filter(|known| run.is_some() && known.run == run).map(|known| known.place.clone())
    }

    fn learn(&self, container: &str, run: Option<DateTime<Utc>>, place: Place) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(container.to_owned(), Known { run, place });
    }

    /// Forgets every container that is not among these.
    pub(super) fn keep_only(&self, listed: &HashSet<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| listed.contains(id));
    }
}

#[async_trait]
impl Dial for DockerRuntime {
    async fn dial(&self, instance: &InstanceRef, port: u16) -> Result<Dialed> {
        self.inner.dial(instance, port).await
    }
}

impl Inner {
    async fn dial(&self, instance: &InstanceRef, port: u16) -> Result<Dialed> {
        let container = &instance.runtime_id;
        let known = match self.facts.get(container) {
            Some(known) => known,
            None => self.look(instance).await?.ok_or_else(|| missing(instance))?,
        };
        let run = known.phase.started_at();
        let place = match self.places.get(container, run) {
            Some(place) => place,
            None => {
                let place = self.place(instance).await?;
                self.places.learn(container, run, place.clone());
                place
            }
        };
        let addresses = match &place {
            Place::At(addresses) => addresses.as_slice(),
            Place::With(_) | Place::Nowhere => &[],
        };
        for address in addresses {
            match tokio::time::timeout(DIRECT, TcpStream::connect(SocketAddr::new(*address, port))).await {
                Ok(Ok(stream)) => return Ok(Dialed::direct(stream)),
                // It is there, and nothing listens.
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    return Err(refused(port, &error.to_string()));
                }
                Ok(Err(_)) | Err(_) => {}
            }
        }
        let Some(published) = published(&known.ports, port) else { return Err(unreachable(instance, port, &place)) };
        if !addresses.is_empty() {
            // What can't be reached once can't be in this run.
            self.places.learn(container, run, Place::Nowhere);
        }
        let stream = TcpStream::connect(published).await.map_err(|error| refused(port, &error.to_string()))?;
        Ok(Dialed::relayed(stream))
    }

    /// Asks the engine where a container is reached.
    async fn place(&self, instance: &InstanceRef) -> Result<Place> {
        let what = || format!("connecting to {}", instance.id);
        let inspected = self.inspection(&instance.runtime_id).await.map_err(|error| error.explain(&what()))?;
        let Place::With(other) = place(&inspected) else { return Ok(place(&inspected)) };
        let inspected = self.inspection(&other).await.map_err(|error| error.explain(&what()))?;
        Ok(place(&inspected))
    }
}

/// Where a container is reached, as far as its inspection tells.
fn place(inspected: &ContainerInspectResponse) -> Place {
    let mode = inspected.host_config.as_ref().and_then(|host| host.network_mode.as_deref()).unwrap_or_default();
    match mode.split_once(':') {
        Some(("container", other)) => return Place::With(other.to_owned()),
        _ if mode == "host" => return Place::At(vec![Ipv4Addr::LOCALHOST.into()]),
        _ => {}
    }
    let networks = inspected.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    let address = |text: &Option<String>| text.as_ref().and_then(|text| text.parse::<IpAddr>().ok());
    let mut addresses: Vec<IpAddr> =
        networks.into_iter().flat_map(HashMap::values).filter_map(|network| address(&network.ip_address)).collect();
    addresses.sort();
    if addresses.is_empty() { Place::Nowhere } else { Place::At(addresses) }
}

/// An address of the machine that leads to a port inside.
fn published(ports: &[PortBinding], port: u16) -> Option<SocketAddr> {
    let leads = |binding: &&PortBinding| binding.container_port == port && binding.protocol == PortProtocol::Tcp;
    let binding = ports.iter().find(leads)?;
    let ip = match binding.host_ip.parse::<IpAddr>() {
        Ok(ip) if !ip.is_unspecified() => ip,
        // Everywhere is also here.
        _ => Ipv4Addr::LOCALHOST.into(),
    };
    Some(SocketAddr::new(ip, binding.host_port))
}

fn refused(port: u16, why: &str) -> RuntimeError {
    RuntimeError::new(ErrorKind::Failed, format!("connecting to port {port}: {why}"))
}

fn missing(instance: &InstanceRef) -> RuntimeError {
    RuntimeError::new(ErrorKind::NotFound, format!("connecting to {}: it does not exist", instance.id))
}

fn unreachable(instance: &InstanceRef, port: u16, place: &Place) -> RuntimeError {
    let why = match place {
        Place::At(_) => "its address is not reachable from here",
        Place::With(_) | Place::Nowhere => "it has no address that is reachable from here",
    };
    let message = format!(
        "no way leads to port {port} of {}: {why}, and the port is not published; add it to port_mappings",
        instance.id
    );
    RuntimeError::new(ErrorKind::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected(mode: &str, addresses: &[&str]) -> ContainerInspectResponse {
        let networks: serde_json::Map<_, _> = addresses
            .iter()
            .enumerate()
            .map(|(number, ip)| (format!("n{number}"), serde_json::json!({ "IPAddress": ip })))
            .collect();
        serde_json::from_value(serde_json::json!({
            "HostConfig": { "NetworkMode": mode }, "NetworkSettings": { "Networks": networks }
        }))
        .unwrap()
    }

    #[test]
    fn a_container_is_reached_by_its_network() {
        let at = |text: &str| Place::At(vec![text.parse().unwrap()]);
        for (mode, addresses, expected) in [
            ("keel_demo", &["10.0.0.2"][..], at("10.0.0.2")),
            ("host", &[""], at("127.0.0.1")),
            ("none", &[""], Place::Nowhere),
            ("container:abc", &[], Place::With("abc".to_owned())),
        ] {
            assert_eq!(place(&inspected(mode, addresses)), expected, "{mode}");
        }
    }

    #[test]
    fn a_published_port_leads_to_it() {
        let binding = |host_ip: &str, protocol| PortBinding {
            container_port: 80,
            protocol,
            host_ip: host_ip.to_owned(),
            host_port: 8080,
        };
        let lead = |host_ip: &str, protocol| published(&[binding(host_ip, protocol)], 80).map(|one| one.to_string());
        assert_eq!(lead("0.0.0.0", PortProtocol::Tcp).as_deref(), Some("127.0.0.1:8080"));
        assert_eq!(lead("10.1.1.1", PortProtocol::Tcp).as_deref(), Some("10.1.1.1:8080"));
        assert_eq!(lead("0.0.0.0", PortProtocol::Udp), None);
        assert_eq!(published(&[binding("", PortProtocol::Tcp)], 81), None);
    }
}
