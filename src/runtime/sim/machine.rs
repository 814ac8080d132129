//! The simulated machine's state and its transitions. Nothing here waits: time comes in as an argument.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use chrono::{DateTime, Utc};

use super::program::{Program, Scripted, scripted};
use super::record::{Change, Counts, Record, What};
use super::registry::Registry;
use super::{Faults, Rng};
use crate::runtime::io::{LogLine, OutputStream};
use crate::runtime::logline::Pieces;
use crate::runtime::{CreateRequest, ErrorKind, Listing, Result, RuntimeError, Uncounted, Volumes};
use crate::spec::{ImageRef, NetworkMode, RuntimeKind, ServiceSpec, Storage};
use crate::state::{Exit, HealthState, Instance, InstanceRef, Owner, Phase, PortBinding, StopCause, StopPolicy};

/// Lines kept per instance; older ones are dropped, as with a rotated log.
pub(super) const MAX_LOG_LINES: usize = 1_000;

/// First port given out; the range up to 60999 is Linux's default for ephemeral ports, so this begins as Linux does.
const FIRST_PORT: u16 = 32_768;

/// Last port given out before the first comes again.
const LAST_PORT: u16 = 60_999;

/// Everything on the simulated machine.
pub(super) struct Machine {
    pub rng: Rng,
    pub faults: Faults,
    /// By the runtime's own id.
    pub entries: BTreeMap<String, Entry>,
    /// The runtime's own id by name; names begin with deployment and service, so a service is a range.
    names: BTreeMap<String, String>,
    /// Names of things that no controller made.
    pub foreign: BTreeSet<String>,
    pub networks: BTreeSet<(Owner, String)>,
    pub volumes: BTreeSet<(Owner, String, String)>,
    pub unreachable_until: Option<tokio::time::Instant>,
    pub record: Record,
    pub registry: Registry,
    /// Images that were said to be needed last.
    pub needed: BTreeSet<String>,
    made: u64,
    next_port: u16,
}

/// One instance on the simulated machine.
pub(super) struct Entry {
    pub owner: Owner,
    pub instance: Instance,
    pub program: Program,
    /// Why its connections can't be told from others.
    pub uncounted: Option<Uncounted>,
    /// As it was named when it was created.
    pub image: String,
    pub env: BTreeMap<String, String>,
    /// Counts its starts; what belongs to an earlier run is void.
    pub run: u64,
    /// The stop that is under way, or that ended it.
    pub stopping: Option<StopCause>,
    pub output: VecDeque<LogLine>,
    /// Number of the first line in `output`, counted from the instance's first.
    pub first_line: u64,
    /// How it answers to connections, where that was set; else as its health says.
    pub answers: Option<HealthState>,
}

impl Entry {
    pub fn is_running(&self) -> bool {
        matches!(self.instance.phase, Phase::Running { .. } | Phase::Paused { .. })
    }

    /// Writes a line, in pieces where it is long.
    pub fn write(&mut self, at: DateTime<Utc>, stream: OutputStream, text: &[u8]) {
        let mut line = Pieces::default();
        let mut pieces: Vec<_> = line.push(text).into_iter().map(|text| (text, true)).collect();
        pieces.push((line.end().into(), false));
        for (text, goes_on) in pieces {
            if self.output.len() == MAX_LOG_LINES {
                self.output.pop_front();
                self.first_line += 1;
            }
            self.output.push_back(LogLine { at, stream, text, goes_on });
        }
    }
}

impl Machine {
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self {
            rng: Rng::new(seed),
            faults,
            entries: BTreeMap::new(),
            names: BTreeMap::new(),
            foreign: BTreeSet::new(),
            networks: BTreeSet::new(),
            volumes: BTreeSet::new(),
            unreachable_until: None,
            record: Record::default(),
            registry: Registry::default(),
            needed: BTreeSet::new(),
            made: 0,
            next_port: FIRST_PORT,
        }
    }

    pub fn list(&self, owner: &Owner) -> Listing {
        Listing {
            instances: self.entries.values().filter(|e| e.owner == *owner).map(|e| e.instance.clone()).collect(),
            shared: self.networks.iter().filter(|(o, _)| o == owner).map(|(_, name)| name.clone()).collect(),
        }
    }

    /// The owner's instance, if it exists. A call for somebody else's is noted and finds nothing.
    pub fn find(&mut self, owner: &Owner, instance: &InstanceRef) -> Option<&mut Entry> {
        match self.entries.get_mut(&instance.runtime_id) {
            Some(entry) if entry.owner == *owner => Some(entry),
            Some(_) => {
                self.record.trespasses += 1;
                None
            }
            None => None,
        }
    }

    /// Creates an instance; the flag says whether it is new.
    pub fn create(&mut self, owner: &Owner, request: &CreateRequest, now: DateTime<Utc>) -> Result<(Instance, bool)> {
        let name = request.id.runtime_name();
        if let Some(entry) = self.names.get(&name).and_then(|id| self.entries.get(id)) {
            return match entry.owner == *owner && entry.instance.id == request.id {
                true => Ok((entry.instance.clone(), false)),
                false => Err(name_taken(&name)),
            };
        }
        if self.foreign.contains(&name) {
            return Err(name_taken(&name));
        }
        let program = program_of(&self.registry.content_of(&request.spec))?;
        self.share(owner, request);
        let instance = Instance {
            id: request.id.clone(),
            runtime: RuntimeKind::Sim,
            runtime_id: self.next_runtime_id(),
            phase: Phase::Created,
            created_at: now,
            restarts: request.restarts,
            streak: request.streak,
            stop: StopPolicy::of(&request.spec),
            pid: None,
            ports: self.bind(&request.spec),
            last_activity: None,
            frozen: Default::default(),
            health: None,
            conditions: vec![],
        };
        let mut env = request.env.clone();
        if let (false, Some(binding)) = (request.spec.endpoints.is_empty(), instance.ports.first()) {
            env.entry("PORT".to_owned()).or_insert_with(|| binding.host_port.to_string());
        }
        let entry = Entry {
            owner: owner.clone(),
            instance: instance.clone(),
            program,
            uncounted: uncounted(&request.spec),
            image: request.spec.image.name.to_string(),
            env,
            run: 0,
            stopping: None,
            output: VecDeque::new(),
            first_line: 0,
            answers: None,
        };
        self.names.insert(name, instance.runtime_id.clone());
        self.entries.insert(instance.runtime_id.clone(), entry);
        self.note(&instance, owner, What::Created, now);
        Ok((instance, true))
    }

    /// Starts an instance; the number is that of its run where this call started it.
    pub fn start(
        &mut self,
        owner: &Owner,
        instance: &InstanceRef,
        now: DateTime<Utc>,
    ) -> Result<(Instance, Option<u64>)> {
        let entry = self.find(owner, instance).ok_or_else(|| not_found(instance))?;
        match entry.instance.phase {
            Phase::Running { .. } => return Ok((entry.instance.clone(), None)),
            Phase::Paused { .. } => {
                let text = format!("{} can't be started: it is frozen; resume it", instance.id);
                return Err(RuntimeError::new(ErrorKind::Failed, text));
            }
            _ => {
                if let Some(obstacle) = entry.program.obstacle() {
                    let text = format!("{} can't be started: {obstacle}", instance.id);
                    return Err(RuntimeError::new(ErrorKind::Rejected, text));
                }
                entry.instance.phase = Phase::Running { since: now, ready: true };
                entry.instance.judge((!entry.program.starts_ready()).then_some(HealthState::Starting { last: None }));
                entry.instance.last_activity = Some(now);
                entry.stopping = None;
                entry.answers = None;
                entry.run += 1;
            }
        }
        let (started, run) = (entry.instance.clone(), entry.run);
        self.note(&started, owner, What::Started { ready: started.phase.is_ready() }, now);
        Ok((started, Some(run)))
    }

    /// Freezes a running instance; the flag says whether it ran until now.
    pub fn pause(&mut self, owner: &Owner, instance: &InstanceRef, now: DateTime<Utc>) -> Result<(Instance, bool)> {
        let entry = self.find(owner, instance).ok_or_else(|| not_found(instance))?;
        let since = match entry.instance.phase {
            Phase::Paused { .. } => return Ok((entry.instance.clone(), false)),
            Phase::Running { since, .. } => since,
            _ => {
                let text = format!("{} can't be frozen: it does not run", instance.id);
                return Err(RuntimeError::new(ErrorKind::Rejected, text));
            }
        };
        entry.instance.phase = Phase::Paused { since };
        let paused = entry.instance.clone();
        self.note(&paused, owner, What::Frozen, now);
        Ok((paused, true))
    }

    /// Lets a frozen instance run on; the flag says whether it was frozen.
    pub fn resume(&mut self, owner: &Owner, instance: &InstanceRef, now: DateTime<Utc>) -> Result<(Instance, bool)> {
        let entry = self.find(owner, instance).ok_or_else(|| not_found(instance))?;
        let Phase::Paused { since } = entry.instance.phase else { return Ok((entry.instance.clone(), false)) };
        entry.instance.phase = Phase::Running { since, ready: true };
        let health = entry.instance.health.clone();
        entry.instance.judge(health);
        let resumed = entry.instance.clone();
        self.note(&resumed, owner, What::Resumed, now);
        Ok((resumed, true))
    }

    /// Ends an instance's run with this outcome, unless that run is over; says whether it did.
    pub fn end(&mut self, runtime_id: &str, run: u64, mut exit: Exit) -> Option<Instance> {
        let entry = self.entries.get_mut(runtime_id).filter(|entry| entry.run == run && entry.is_running())?;
        exit.started_at = entry.instance.phase.started_at();
        if let Some(cause) = entry.stopping {
            exit = exit.asked_for(cause, entry.instance.stop);
        }
        let now = exit.finished_at;
        entry.instance.phase = Phase::Exited(exit.clone());
        let (ended, owner) = (entry.instance.clone(), entry.owner.clone());
        self.note(&ended, &owner, What::Ended(exit), now);
        Some(ended)
    }

    /// Makes the program of a run say this of its health, as an image's own check does.
    pub fn judge(&mut self, runtime_id: &str, run: u64, health: HealthState, now: DateTime<Utc>) -> Option<Instance> {
        let entry = self.entries.get_mut(runtime_id).filter(|entry| entry.run == run && entry.is_running())?;
        let what = if health == HealthState::Healthy { What::Ready } else { What::NotReady };
        entry.instance.judge(Some(health));
        let (changed, owner) = (entry.instance.clone(), entry.owner.clone());
        self.note(&changed, &owner, what, now);
        Some(changed)
    }

    /// Removes an instance.
    pub fn remove(&mut self, runtime_id: &str, asked: bool, now: DateTime<Utc>) -> Option<InstanceRef> {
        let entry = self.entries.remove(runtime_id)?;
        self.names.remove(&entry.instance.id.runtime_name());
        let what = What::Removed { running: entry.is_running(), asked };
        self.note(&entry.instance, &entry.owner, what, now);
        Some(entry.instance.as_ref())
    }

    /// Removes what a deployment's instances share.
    pub fn teardown(&mut self, owner: &Owner, deployment: &str, volumes: Volumes) -> Result<()> {
        let users =
            self.entries.values().filter(|e| e.owner == *owner && e.instance.id.deployment == deployment).count();
        if users > 0 {
            let text = format!("the network of {deployment} is in use by {users} instances; remove them first");
            return Err(RuntimeError::new(ErrorKind::Failed, text));
        }
        self.networks.remove(&(owner.clone(), deployment.to_owned()));
        if volumes == Volumes::Remove {
            self.volumes.retain(|(o, d, _)| o != owner || d != deployment);
        }
        Ok(())
    }

    /// Writes down what happened to an instance, with the numbers of its service.
    pub fn note(&mut self, instance: &Instance, owner: &Owner, what: What, at: DateTime<Utc>) {
        let mut counts = Counts::default();
        let service = format!("{}_{}_", instance.id.deployment, instance.id.service);
        let names = self.names.range(service.clone()..).take_while(|(name, _)| name.starts_with(&service));
        let entries = names.filter_map(|(_, id)| self.entries.get(id)).filter(|entry| entry.owner == *owner);
        for entry in entries {
            counts.total += 1;
            counts.ready += u32::from(entry.instance.phase.is_ready());
            counts.running += u32::from(entry.is_running());
            counts.live += u32::from(entry.is_running() || entry.instance.phase == Phase::Created);
        }
        let (id, runtime_id) = (instance.id.clone(), instance.runtime_id.clone());
        self.record.push(Change { at, owner: owner.clone(), id, runtime_id, what, counts });
    }

    /// Makes what the instances of a deployment share.
    fn share(&mut self, owner: &Owner, request: &CreateRequest) {
        let deployment = &request.id.deployment;
        if request.spec.network_access().mode() == NetworkMode::Default {
            self.networks.insert((owner.clone(), deployment.clone()));
        }
        for storage in &request.spec.storage {
            let name = match storage {
                Storage::Named { name, .. } => name.clone(),
                Storage::Workspace { .. } => Storage::workspace_name(&request.id.service, request.id.slot),
                _ => continue,
            };
            self.volumes.insert((owner.clone(), deployment.clone(), name));
        }
    }

    /// Sixteen hex digits, never twice the same.
    fn next_runtime_id(&mut self) -> String {
        self.made += 1;
        format!("{:08x}{:08x}", self.made, self.rng.next_u64() >> 32)
    }

    fn bind(&mut self, spec: &ServiceSpec) -> Vec<PortBinding> {
        let mut ports = vec![];
        for endpoint in &spec.endpoints {
            ports.push(PortBinding {
                container_port: endpoint.target_port.unwrap_or(endpoint.port),
                protocol: endpoint.protocol.transport(),
                host_ip: "127.0.0.1".to_owned(),
                host_port: self.next_port(),
            });
        }
        for mapping in &spec.port_mappings {
            ports.push(PortBinding {
                container_port: mapping.container_port,
                protocol: mapping.protocol.unwrap_or_default(),
                host_ip: mapping.host_ip.clone().unwrap_or_else(|| "127.0.0.1".to_owned()),
                host_port: mapping.host_port.unwrap_or_else(|| self.next_port()),
            });
        }
        ports
    }

    fn next_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = if port >= LAST_PORT { FIRST_PORT } else { port + 1 };
        port
    }
}

/// Why the requests of instances of a spec are not counted.
fn uncounted(spec: &ServiceSpec) -> Option<Uncounted> {
    let proxied = spec.sandbox.as_ref().is_some_and(|sandbox| !sandbox.allow_hosts.is_empty());
    match spec.network_access().is_shared() {
        true => Some(Uncounted::SharedNetwork),
        false => proxied.then_some(Uncounted::EgressProxy),
    }
}

/// The program of a spec, or why the spec is refused.
fn program_of(spec: &ServiceSpec) -> Result<Program> {
    match scripted(&spec.image.name) {
        Some(Scripted::Missing) => Err(image_unavailable(&spec.image.name)),
        Some(Scripted::Reject) => {
            let text = format!("{} is an image whose instances are always refused", spec.image.name);
            Err(RuntimeError::new(ErrorKind::Rejected, text))
        }
        _ => Program::of(spec).map_err(|error| RuntimeError::new(ErrorKind::Rejected, error)),
    }
}

pub(super) fn image_unavailable(image: &ImageRef) -> RuntimeError {
    let text = format!("there is no image {image}; every image but sim/missing exists");
    RuntimeError::new(ErrorKind::ImageUnavailable, text)
}

pub(super) fn not_found(instance: &InstanceRef) -> RuntimeError {
    let text = format!("there is no instance {} ({})", instance.id, instance.runtime_id);
    RuntimeError::new(ErrorKind::NotFound, text)
}

fn name_taken(name: &str) -> RuntimeError {
    let text = format!("something that is not ours has the name {name}; remove it or rename the deployment");
    RuntimeError::new(ErrorKind::NameTaken, text)
}
