//! Giving a new instance its network: an address, ports of the machine, and files about names.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::layout::{Layout, read_json};
use super::network::{self, Holder, Link, Network, Pasta, Texts, Wanted};
use super::probe::Probe;
use super::record::Record;
use super::unsupported::unsupported;
use super::{Inner, failed};
use crate::runtime::{CreateRequest, Result, ports};
use crate::spec::ServiceSpec;
use crate::state::PortBinding;

impl Inner {
    /// Completes the record of an instance by its network. Returns texts that belong into its directory.
    pub(super) fn connect(
        &self,
        probe: &Probe,
        request: &CreateRequest,
        name: &str,
        record: &mut Record,
    ) -> Result<Texts> {
        let wanted = network::wanted(&request.spec, probe);
        let connected = self.link(wanted, probe, request, name, record).and_then(|()| {
            let place = (&self.view.layout, &self.dir(name));
            let (launch, found) = (&mut record.launch, &mut record.conditions);
            let texts =
                network::files(&mut launch.network, &request.spec, &launch.root, &launch.hostname, place, found)?;
            self.give_ports(wanted, &request.spec, record)?;
            if record.launch.namespaces.net {
                record.launch.network.egress = network::egress_policy(&request.spec);
                if record.launch.network.egress.is_some() {
                    network::egress::tell(&mut record.launch.env);
                }
            }
            Ok(texts)
        });
        connected.map_err(|error| {
            self.disconnect(name, &record.launch.network);
            failed(&format!("connecting {name}"), &error)
        })
    }

    /// Gives back what an instance has whose creation failed.
    pub(super) fn disconnect(&self, name: &str, network: &Network) {
        if let Some(attachment) = network.attachment() {
            // What stays is taken over by another instance later.
            let _ = network::detach(attachment, &self.view.layout, Some(name));
        }
    }

    fn link(
        &self,
        wanted: Wanted,
        probe: &Probe,
        request: &CreateRequest,
        name: &str,
        record: &mut Record,
    ) -> io::Result<()> {
        if !record.launch.namespaces.net {
            return Ok(());
        }
        let id = &request.id;
        record.launch.network.link = match (wanted, &probe.pasta) {
            (Wanted::Deployment, _) => {
                let hostname = record.launch.hostname.clone();
                let mut names = vec![hostname, format!("{}.{}", id.slot, id.service), id.service.clone()];
                names.dedup();
                Link::Bridge(self.networks().attach(&id.deployment, name, names)?)
            }
            (Wanted::Connected, Ok(program)) => Link::Pasta(pasta(program.clone(), &request.spec, record)?),
            (Wanted::Nothing | Wanted::Itself, _) => Link::Alone,
            (Wanted::Machine | Wanted::Connected, _) => Link::Machine,
        };
        Ok(())
    }

    /// The networks of this runtime's owner.
    pub(super) fn networks(&self) -> Holder<'_> {
        Holder { layout: &self.view.layout, owner: &self.config.owner }
    }

    /// Tells the program its port, and reports those that lead to it.
    fn give_ports(&self, wanted: Wanted, spec: &ServiceSpec, record: &mut Record) -> io::Result<()> {
        let written = record.launch.env.get("PORT").map(|port| port.parse::<u16>());
        if record.launch.namespaces.net {
            let first = spec.endpoints.first().map(crate::spec::Endpoint::target_port);
            let own = match written {
                Some(Ok(port)) => Some(port),
                // Somebody's own meaning of PORT.
                Some(Err(_)) | None => first,
            };
            record.first_port = first.zip(own);
            if let (None, Some(port)) = (&written, first) {
                record.launch.env.insert("PORT".to_owned(), port.to_string());
            }
            if wanted != Wanted::Nothing {
                record.launch.network.published = network::publish(spec, own, || self.free_port())?;
            }
            record.ports = record.launch.network.published.iter().map(network::Published::binding).collect();
            return Ok(());
        }
        let Some(endpoint) = spec.endpoints.first() else { return Ok(()) };
        let port = match written {
            Some(Ok(port)) => port,
            // Nothing is known about where it listens.
            Some(Err(_)) => return Ok(()),
            None => {
                let port = self.free_port()?;
                record.launch.env.insert("PORT".to_owned(), port.to_string());
                record.port = Some(port);
                port
            }
        };
        record.first_port = Some((endpoint.target_port(), port));
        let protocol = endpoint.protocol.transport();
        record.ports.push(PortBinding {
            container_port: port,
            protocol,
            host_ip: "127.0.0.1".to_owned(),
            host_port: port,
        });
        Ok(())
    }

    fn free_port(&self) -> io::Result<u16> {
        ports::assign(&self.view.layout.ports(), &self.config.owner, || taken(&self.view.layout))
    }
}

/// How pasta connects an instance: the machine itself is reached where the spec names it.
fn pasta(program: PathBuf, spec: &ServiceSpec, record: &mut Record) -> io::Result<Pasta> {
    let mut pasta = Pasta::new(program);
    if network::name_machine(&spec.extra_hosts) {
        pasta.machine = network::gateway()?;
        if pasta.machine.is_none() {
            let why =
                "host-gateway is the instance itself, as this machine has no gateway whose address could lead to it";
            record.conditions.push(unsupported("extra_hosts", why));
        }
    }
    Ok(pasta)
}

/// Ports of the machine that records hold, whoever owns them.
fn taken(layout: &Layout) -> io::Result<BTreeSet<u16>> {
    let mut taken = BTreeSet::new();
    for entry in fs::read_dir(layout.instances())? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Ok(Some(record)) = read_json::<Record>(&layout.instance(name).record()) {
            taken.extend(record.port);
            taken.extend(record.ports.iter().map(|binding| binding.host_port));
        }
    }
    Ok(taken)
}
