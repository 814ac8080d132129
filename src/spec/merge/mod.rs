//! All files together: services join their deployments, and what only shows across documents is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::parse::{DeclaredDeployment, DeclaredService, Marks};
use super::{
    DocumentKind, Endpoint, EndpointProtocol, Expose, ImageRef, ParsedFile, PortMapping, Position, Problem, Prune,
    Revision, RuntimeKind, ServiceSpec, Storage, UnsupportedField,
};

/// What a set of files declares.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Merged {
    /// The deployments that are good, by name.
    pub deployments: BTreeMap<String, MergedDeployment>,
    /// What is wrong between documents. Problems inside of documents stay with their [`ParsedFile`].
    pub problems: Vec<(PathBuf, Problem)>,
    /// Deployments that are declared and have a problem, with the reason: their state stays as it is.
    pub refused: BTreeMap<String, String>,
}

/// One deployment, whole.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct MergedDeployment {
    /// Its name.
    pub name: String,
    /// The file that declares it: its own document, else the first of its services.
    pub file: PathBuf,
    /// Where in that file.
    pub position: Position,
    /// What happens when the declaration goes.
    pub prune: Prune,
    /// Its services by name.
    pub services: BTreeMap<String, MergedService>,
    /// Its fields outside of services that nothing honours yet.
    pub unsupported: Vec<UnsupportedField>,
}

/// One service, with paths made absolute.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct MergedService {
    /// Its name.
    pub name: String,
    /// What was written; relative paths are resolved against the directory of the file.
    pub spec: Arc<ServiceSpec>,
    /// Hash over its template, as written.
    pub revision: Revision,
    /// The file that declares it.
    pub file: PathBuf,
    /// Where in that file.
    pub position: Position,
    /// The runtime that is written: the service's own, else the deployment's.
    pub runtime: Option<RuntimeKind>,
}

/// A deployment in the making.
#[derive(Default)]
struct Draft<'a> {
    own: Option<(&'a Path, Position, &'a DeclaredDeployment)>,
    services: BTreeMap<&'a str, Part<'a>>,
}

/// A service and the file that it comes from.
#[derive(Clone, Copy)]
struct Part<'a> {
    file: &'a Path,
    service: &'a DeclaredService,
}

/// Brings the documents of many files together.
///
/// The paths of the files are best absolute: relative paths in specs are resolved against their directories.
///
/// A service in a document of its own joins its deployment, or makes one. A deployment of which any part has a
/// problem, in its documents or between them, is left out and named in [`Merged::refused`].
pub fn merge(files: &[(PathBuf, ParsedFile)]) -> Merged {
    let mut merging = Merging::default();
    let mut drafts = merging.collect(files);
    for (name, draft) in &mut drafts {
        merging.check_depends(name, draft);
    }
    merging.check_ports(&drafts);
    let Merging { mut merged } = merging;
    for (name, draft) in drafts {
        if !merged.refused.contains_key(name) {
            merged.deployments.extend(draft.finish(name).map(|deployment| (name.to_owned(), deployment)));
        }
    }
    merged.problems.sort_by(|(a, x), (b, y)| (a, x.position).cmp(&(b, y.position)));
    merged
}

#[derive(Default)]
struct Merging {
    merged: Merged,
}

impl Merging {
    fn refuse(&mut self, deployment: &str, file: &Path, problem: Problem) {
        let reason = format!("{}:{problem}", file.display());
        self.merged.refused.entry(deployment.to_owned()).or_insert(reason);
        self.merged.problems.push((file.to_owned(), problem));
    }

    fn collect<'a>(&mut self, files: &'a [(PathBuf, ParsedFile)]) -> BTreeMap<&'a str, Draft<'a>> {
        let mut drafts: BTreeMap<&str, Draft<'a>> = BTreeMap::new();
        for (file, parsed) in files {
            for name in &parsed.broken {
                let reason = parsed.problems.first().map_or_else(String::new, |problem| problem.to_string());
                let reason = format!("{}:{reason}", file.display());
                self.merged.refused.entry(name.clone()).or_insert(reason);
            }
            for document in &parsed.documents {
                match &document.kind {
                    DocumentKind::Deployment(own) => {
                        let draft = drafts.entry(&own.name).or_default();
                        if let Some((first, at, _)) = draft.own {
                            self.twice(&own.name, "deployment", &own.name, (first, at), (file, document.position));
                            continue;
                        }
                        draft.own = Some((file, document.position, own));
                        for service in own.services.values() {
                            self.join(&own.name, draft, Part { file, service });
                        }
                    }
                    DocumentKind::Service { deployment, service } => {
                        let draft = drafts.entry(deployment).or_default();
                        self.join(deployment, draft, Part { file, service });
                    }
                }
            }
        }
        drafts
    }

    fn join<'a>(&mut self, deployment: &str, draft: &mut Draft<'a>, part: Part<'a>) {
        match draft.services.get(part.service.name.as_str()) {
            Some(first) => {
                let name = format!("{deployment}/{}", part.service.name);
                let places = ((first.file, first.service.position), (part.file, part.service.position));
                self.twice(deployment, "service", &name, places.0, places.1);
            }
            None => {
                draft.services.insert(&part.service.name, part);
            }
        }
    }

    /// One identity declared at two places.
    fn twice(&mut self, deployment: &str, what: &str, name: &str, first: (&Path, Position), second: (&Path, Position)) {
        for (here, there) in [(first, second), (second, first)] {
            let message = format!("the {what} {name} is declared twice, also at {}:{}", there.0.display(), there.1);
            let problem = Problem::new(here.1, "", message).with_help("remove or rename one of them");
            self.refuse(deployment, here.0, problem);
        }
    }

    fn check_depends(&mut self, deployment: &str, draft: &Draft<'_>) {
        let mut edges: BTreeMap<&str, Vec<(&str, Position)>> = BTreeMap::new();
        for (name, Part { file, service }) in &draft.services {
            for (index, depends) in service.spec.depends.iter().enumerate() {
                let at = mark(&service.marks.depends, index, service.position);
                if draft.services.contains_key(depends.service.as_str()) {
                    edges.entry(name).or_default().push((&depends.service, at));
                    continue;
                }
                let known: Vec<&str> = draft.services.keys().copied().collect();
                let help = match super::suggest::nearest(&depends.service, &known) {
                    Some(best) => format!("did you mean `{best}`?"),
                    None => format!("services of {deployment} are {}", known.join(", ")),
                };
                let message = format!("the deployment {deployment} has no service {:?}", depends.service);
                let path = format!("services.{name}.depends[{index}].service");
                self.refuse(deployment, file, Problem::new(at, path, message).with_help(help));
            }
        }
        for cycle in cycles(&edges) {
            let (Some(first), Some(second)) = (cycle.first(), cycle.get(1).or(cycle.first())) else { continue };
            let Some(part) = draft.services.get(first) else { continue };
            let at = edges[first].iter().find(|(to, _)| to == second).map_or(part.service.position, |(_, at)| *at);
            let printed = format!("{} -> {first}", cycle.join(" -> "));
            let problem = Problem::new(
                at,
                format!("services.{first}.depends"),
                format!("services wait for each other: {printed}"),
            )
            .with_help("remove one of these depends");
            self.refuse(deployment, part.file, problem);
        }
    }

    /// Ports of the machine that more than one service asks for, over all deployments.
    fn check_ports(&mut self, drafts: &BTreeMap<&str, Draft<'_>>) {
        let mut claims: Vec<Claim<'_>> = Vec::new();
        for (deployment, draft) in drafts {
            for part in draft.services.values() {
                claims.extend(claims_of(deployment, *part));
            }
        }
        let mut by_port: BTreeMap<u16, Vec<&Claim<'_>>> = BTreeMap::new();
        for claim in &claims {
            by_port.entry(claim.port).or_default().push(claim);
        }
        for group in by_port.values() {
            for (index, claim) in group.iter().enumerate() {
                let Some(other) = group.iter().enumerate().find(|(i, other)| *i != index && claim.clashes(other))
                else {
                    continue;
                };
                let other = other.1;
                let message = format!(
                    "port {} is also taken by {}/{} at {}:{}",
                    claim.port,
                    other.deployment,
                    other.part.service.name,
                    other.part.file.display(),
                    other.at
                );
                let path = format!("services.{}.{}", claim.part.service.name, claim.path);
                let problem = Problem::new(claim.at, path, message).with_help("choose another port for one of them");
                self.refuse(claim.deployment, claim.part.file, problem);
            }
        }
    }
}

impl Draft<'_> {
    fn finish(self, name: &str) -> Option<MergedDeployment> {
        let first = self.services.values().min_by_key(|part| (part.file, part.service.position));
        let (file, position) = match (&self.own, first) {
            (Some((file, position, _)), _) => (*file, *position),
            (None, Some(part)) => (part.file, part.service.position),
            (None, None) => return None,
        };
        let own = self.own.map(|(_, _, own)| own);
        let runtime = own.and_then(|own| own.runtime);
        Some(MergedDeployment {
            name: name.to_owned(),
            file: file.to_owned(),
            position,
            prune: own.map(|own| own.prune).unwrap_or_default(),
            unsupported: own.map(super::unsupported::unsupported_in).unwrap_or_default(),
            services: self.services.values().map(|part| (part.service.name.clone(), part.finish(runtime))).collect(),
        })
    }
}

impl Part<'_> {
    fn finish(&self, deployments: Option<RuntimeKind>) -> MergedService {
        let DeclaredService { name, spec, position, .. } = self.service;
        let runtime = spec.runtime.or(deployments);
        MergedService {
            name: name.clone(),
            revision: Revision::of(spec, runtime),
            spec: with_absolute_paths(spec, self.file.parent().unwrap_or(Path::new(""))),
            file: self.file.to_owned(),
            position: *position,
            runtime,
        }
    }
}

fn mark(marks: &[Position], index: usize, otherwise: Position) -> Position {
    marks.get(index).copied().unwrap_or(otherwise)
}

/// Every cycle of the graph once, beginning with its smallest name.
fn cycles<'a>(edges: &BTreeMap<&'a str, Vec<(&'a str, Position)>>) -> Vec<Vec<&'a str>> {
    let mut found = BTreeSet::new();
    let mut done = BTreeSet::new();
    for start in edges.keys() {
        // The way from `start` to where the search is, with the next edge to take at each place.
        let mut way: Vec<(&str, usize)> = vec![(start, 0)];
        while let Some((at, next)) = way.last_mut() {
            let at = *at;
            match edges.get(at).and_then(|out| out.get(*next)) {
                Some((to, _)) => {
                    *next += 1;
                    if let Some(begin) = way.iter().position(|(name, _)| name == to) {
                        found.insert(smallest_first(way[begin..].iter().map(|(name, _)| *name).collect()));
                    } else if !done.contains(to) {
                        way.push((to, 0));
                    }
                }
                None => {
                    done.insert(at);
                    way.pop();
                }
            }
        }
    }
    found.into_iter().collect()
}

fn smallest_first(mut cycle: Vec<&str>) -> Vec<&str> {
    let smallest = cycle.iter().enumerate().min_by_key(|(_, name)| **name).map_or(0, |(index, _)| index);
    cycle.rotate_left(smallest);
    cycle
}

/// A port of the machine that a service wants.
struct Claim<'a> {
    deployment: &'a str,
    part: Part<'a>,
    at: Position,
    path: String,
    port: u16,
    kind: ClaimKind<'a>,
}

enum ClaimKind<'a> {
    Endpoint(&'a Endpoint),
    Mapping(&'a PortMapping),
}

impl Claim<'_> {
    fn clashes(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (ClaimKind::Endpoint(a), ClaimKind::Endpoint(b)) => endpoints_clash(a, b),
            (ClaimKind::Mapping(a), ClaimKind::Mapping(b)) => mappings_clash(a, b),
            (ClaimKind::Endpoint(endpoint), ClaimKind::Mapping(mapping))
            | (ClaimKind::Mapping(mapping), ClaimKind::Endpoint(endpoint)) => {
                (endpoint.protocol == EndpointProtocol::Udp)
                    == (mapping.protocol.unwrap_or_default() == super::PortProtocol::Udp)
            }
        }
    }
}

fn claims_of<'a>(deployment: &'a str, part: Part<'a>) -> impl Iterator<Item = Claim<'a>> {
    let Marks { endpoints, port_mappings, .. } = &part.service.marks;
    let at = part.service.position;
    let public = move |(index, endpoint): (usize, &'a Endpoint)| {
        (endpoint.expose == Some(Expose::Public)).then(|| Claim {
            deployment,
            part,
            at: mark(endpoints, index, at),
            path: format!("endpoints[{index}].port"),
            port: endpoint.port,
            kind: ClaimKind::Endpoint(endpoint),
        })
    };
    let published = move |(index, mapping): (usize, &'a PortMapping)| {
        mapping.host_port.filter(|port| *port > 0).map(|port| Claim {
            deployment,
            part,
            at: mark(port_mappings, index, at),
            path: format!("port_mappings[{index}].host_port"),
            port,
            kind: ClaimKind::Mapping(mapping),
        })
    };
    let spec = &part.service.spec;
    spec.endpoints
        .iter()
        .enumerate()
        .filter_map(public)
        .chain(spec.port_mappings.iter().enumerate().filter_map(published))
}

/// Endpoints of HTTP share a port when host or path tells them apart; all others need one of their own.
fn endpoints_clash(a: &Endpoint, b: &Endpoint) -> bool {
    use EndpointProtocol::{Http, Https, Tcp, Udp, Websocket};
    match (a.protocol, b.protocol) {
        (Udp, Udp) => true,
        (Udp, _) | (_, Udp) => false,
        (Tcp, _) | (_, Tcp) => true,
        (Https, Http | Websocket) | (Http | Websocket, Https) => true,
        (Https, Https) | (Http | Websocket, Http | Websocket) => {
            a.host == b.host && a.path.as_deref().unwrap_or("/") == b.path.as_deref().unwrap_or("/")
        }
    }
}

fn mappings_clash(a: &PortMapping, b: &PortMapping) -> bool {
    let everywhere = |address: &str| matches!(address, "0.0.0.0" | "::");
    let (x, y) = (a.host_ip(), b.host_ip());
    a.protocol.unwrap_or_default() == b.protocol.unwrap_or_default() && (x == y || everywhere(x) || everywhere(y))
}

/// The spec with the paths of bind mounts and local images made absolute.
fn with_absolute_paths(spec: &Arc<ServiceSpec>, directory: &Path) -> Arc<ServiceSpec> {
    let image = absolute_image(&spec.image.name, directory);
    let bound = |storage: &Storage| matches!(storage, Storage::Bind { source, .. } if !Path::new(source).is_absolute());
    if image.is_none() && !spec.storage.iter().any(bound) {
        return Arc::clone(spec);
    }
    let mut spec = ServiceSpec::clone(spec);
    if let Some(image) = image {
        spec.image.name = image;
    }
    for storage in &mut spec.storage {
        if let Storage::Bind { source, .. } = storage {
            *source = absolute(source, directory);
        }
    }
    Arc::new(spec)
}

fn absolute_image(image: &ImageRef, directory: &Path) -> Option<ImageRef> {
    match image {
        ImageRef::Registry(_) | ImageRef::Host => None,
        ImageRef::Oci { path, tag } => Some(ImageRef::Oci { path: absolute(path, directory), tag: tag.clone() }),
        ImageRef::OciArchive(path) => Some(ImageRef::OciArchive(absolute(path, directory))),
        ImageRef::DockerArchive(path) => Some(ImageRef::DockerArchive(absolute(path, directory))),
        ImageRef::Dir(path) => Some(ImageRef::Dir(absolute(path, directory))),
    }
}

/// Joins a path to a directory and takes out `.` and, where it can be told without looking, `..`.
fn absolute(path: &str, directory: &Path) -> String {
    let mut result = PathBuf::new();
    for component in directory.join(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(result.components().next_back(), Some(Component::Normal(_))) => {
                result.pop();
            }
            other => result.push(other),
        }
    }
    result.to_string_lossy().into_owned()
}
