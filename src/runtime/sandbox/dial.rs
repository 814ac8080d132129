//! Connections to instances: at their address where they have one, on the machine's own where they share that, else by a
//! port that is published, or by a helper that connects from inside.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::net::TcpStream;

use super::bounds::FILE_LIMIT;
use super::layout::read_json;
use super::network::{Link, Published};
use super::record::Record;
use super::{SandboxRuntime, checked_id, failed, not_found};
use crate::runtime::{Dial, Dialed, ErrorKind, Result, RuntimeError};
use crate::spec::PortProtocol;
use crate::state::InstanceRef;

/// Instances of which it is remembered where they are; more than a machine runs. Forgetting one costs a file to read.
const REMEMBERED: usize = 4096;

/// Where the ports of an instance are; that never changes while it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What it is reached by.
    way: Way,
    /// Target port of its first endpoint, and the port that its program was told instead.
    first: Option<(u16, u16)>,
    /// The only port that is known of one that an earlier version made.
    assigned: Option<u16>,
    /// Ports of the machine that lead to it.
    published: Vec<Published>,
}

/// What an instance is reached by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    /// The machine's own addresses.
    Machine,
    /// Its address in the network of its deployment.
    Address(Ipv4Addr),
    /// Nothing but ports that are published.
    Ports,
}

/// Where instances are, as far as it was asked for.
#[derive(Debug, Default)]
pub struct Places(Mutex<HashMap<String, Arc<Place>>>);

impl Places {
    fn get(&self, id: &str) -> Option<Arc<Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn learn(&self, id: &str, place: Arc<Place>) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= REMEMBERED {
            places.clear();
        }
        places.insert(id.to_owned(), place);
    }

    /// Forgets an instance that is made, or gone.
    pub fn forget(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl Place {
    fn of(record: &Record) -> Self {
        let network = &record.launch.network;
        let way = match &network.link {
            Link::Machine => Way::Machine,
            Link::Bridge(attachment) => Way::Address(attachment.address),
            Link::Alone | Link::Pasta(_) => Way::Ports,
        };
        let assigned = record.port.filter(|_| record.first_port.is_none());
        Self { way, first: record.first_port, assigned, published: network.published.clone() }
    }

    /// The port that the program listens on for one that the spec names.
    fn inside(&self, port: u16) -> u16 {
        let own = self.first.filter(|(target, _)| *target == port).map(|(_, own)| own);
        own.or(self.assigned).unwrap_or(port)
    }

    /// An address of the machine that leads to a port inside.
    fn published(&self, port: u16) -> Option<SocketAddr> {
        let leads = |one: &&Published| one.port == port && one.protocol == PortProtocol::Tcp;
        let published = self.published.iter().find(leads)?;
        let ip = match published.host_ip.parse::<IpAddr>().ok()? {
            ip if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            ip => ip,
        };
        Some(SocketAddr::new(ip, published.host_port))
    }
}

#[async_trait]
impl Dial for SandboxRuntime {
    async fn dial(&self, instance: &InstanceRef, port: u16) -> Result<Dialed> {
        let place = self.place(instance).await?;
        let port = place.inside(port);
        let own: &[IpAddr] = match &place.way {
            Way::Machine => &[IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)],
            Way::Address(address) => &[IpAddr::V4(*address)],
            Way::Ports => &[],
        };
        let mut last = None;
        for address in own {
            match TcpStream::connect(SocketAddr::new(*address, port)).await {
                Ok(stream) => return Ok(Dialed::direct(stream)),
                Err(error) => last = last.or(Some(error)),
            }
        }
        // A program may listen on its loopback interface alone, which ports that are published lead to.
        let published = place.published(port);
        match (published, last) {
            (Some(published), _) => match TcpStream::connect(published).await {
                Ok(stream) => Ok(Dialed::relayed(stream)),
                Err(error) => Err(refused(port, &error)),
            },
            (None, Some(error)) => Err(refused(port, &error)),
            (None, None) => Err(RuntimeError::new(
                ErrorKind::Unsupported,
                format!(
                    "no way leads to port {port} of {}: it has a network of its own, and the port is not published; add \
                     an endpoint or port_mappings for it",
                    instance.id
                ),
            )),
        }
    }
}

impl SandboxRuntime {
    async fn place(&self, instance: &InstanceRef) -> Result<Arc<Place>> {
        let id = checked_id(instance)?;
        if let Some(place) = self.inner.places.get(&id) {
            return Ok(place);
        }
        let (name, gone) = (id.clone(), not_found(instance));
        let read = self.blocking("reading where an instance is", FILE_LIMIT, move |inner| {
            let record = read_json::<Record>(&inner.dir(&name).record());
            let record = record.map_err(|error| failed("reading record.json", &error))?;
            record.filter(|record| record.owner == inner.config.owner).ok_or(gone)
        });
        let place = Arc::new(Place::of(&read.await?));
        self.inner.places.learn(&id, place.clone());
        Ok(place)
    }
}

fn refused(port: u16, error: &std::io::Error) -> RuntimeError {
    RuntimeError::new(ErrorKind::Failed, format!("connecting to port {port}: {error}"))
}
