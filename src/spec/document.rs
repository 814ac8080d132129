//! What one file declares, document by document.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::check::bad_name;
use super::problem::{Position, Problem};
use super::{Api, External, Prune, Revision, RuntimeKind, ServiceSpec, Tunnel};

/// What a file declares, or why it does not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ParsedFile {
    /// The documents that are good.
    pub documents: Vec<Document>,
    /// All that is wrong, in the order of the text; empty if and only if every document is good.
    pub problems: Vec<Problem>,
    /// The documents that have problems, as far as they can be read.
    pub broken: Vec<BrokenDocument>,
    /// Deployments whose own document has no key `services`, as one has that was cut off before it.
    pub without_services: BTreeSet<String>,
    /// Whether the text may hold further documents, behind the place where it can't be read any more.
    pub cut_off: bool,
    /// Runtime of services that name none, by deployment, where one was named when it was applied. No part of the text.
    pub default_runtimes: BTreeMap<String, RuntimeKind>,
    /// Whether it is the copy of a file that was applied, which counts whatever becomes of the file. No part of the text.
    pub applied: bool,
}

impl ParsedFile {
    /// Stands for a file, or a directory, of which nothing can be read: it may declare anything.
    pub fn unread() -> Self {
        Self { cut_off: true, ..Self::default() }
    }

    /// Names of the deployments that it has a part in, in the order of the text, as far as they can be read.
    pub fn deployments(&self) -> impl Iterator<Item = &str> {
        let good = self.documents.iter().map(|document| (document.position, document.kind.deployment()));
        let broken = self.broken.iter().filter_map(|broken| Some((broken.position, broken.deployment.as_deref()?)));
        let mut names: Vec<(Position, &str)> = good.chain(broken).collect();
        names.sort_by_key(|(position, _)| *position);
        names.into_iter().map(|(_, name)| name)
    }

    /// Whether it may declare parts of deployments that it does not name.
    pub fn may_declare_more(&self) -> bool {
        // A name that is none has to become another one.
        let bad =
            |document: &BrokenDocument| document.deployment.as_deref().is_some_and(|name| bad_name(name).is_some());
        self.has_unknown_parts() || self.broken.iter().any(bad)
    }

    /// Whether its document of this deployment lacks the key `services`, as a text has that was cut off, though it declared
    /// services with these names there, of which one is in no document of its own now either.
    pub fn lost_services<'a>(&self, deployment: &str, mut declared: impl Iterator<Item = &'a str>) -> bool {
        let is_apart = |name: &str| {
            self.documents.iter().any(|document| match &document.kind {
                DocumentKind::Service { deployment: of, service } => of == deployment && service.name == name,
                DocumentKind::Deployment(_) => false,
            })
        };
        self.without_services.contains(deployment) && declared.any(|name| !is_apart(name))
    }

    /// Whether it may declare parts of any deployment.
    pub(super) fn has_unknown_parts(&self) -> bool {
        self.cut_off || self.broken.iter().any(|document| matches!(document.remains, Remains::Anything))
    }
}

/// A document without problems.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Where it begins.
    pub position: Position,
    /// What it declares.
    pub kind: DocumentKind,
}

/// What a document declares.
#[derive(Debug, Clone, PartialEq)]
pub enum DocumentKind {
    /// A document with `services:`.
    Deployment(DeclaredDeployment),
    /// A document with `service:`.
    Service {
        /// The deployment that the service joins, or makes.
        deployment: String,
        /// The service.
        service: DeclaredService,
    },
}

impl DocumentKind {
    /// Name of the deployment that it has a part in.
    pub fn deployment(&self) -> &str {
        match self {
            Self::Deployment(deployment) => &deployment.name,
            Self::Service { deployment, .. } => deployment,
        }
    }
}

/// A deployment as one document declares it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeclaredDeployment {
    /// Its name.
    pub name: String,
    /// Runtime of every service that names none itself.
    pub runtime: Option<RuntimeKind>,
    /// What happens when the declaration goes.
    pub prune: Prune,
    /// The services that the document holds.
    pub services: BTreeMap<String, DeclaredService>,
    /// Backends outside of this installation.
    pub externals: BTreeMap<String, External>,
    /// Tunnels between nodes.
    pub tunnels: BTreeMap<String, Tunnel>,
    /// Settings of the published format's API server.
    pub api: Option<Api>,
}

/// A service as one document declares it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeclaredService {
    /// Its name.
    pub name: String,
    /// What was written. Relative paths are still relative.
    pub spec: Arc<ServiceSpec>,
    /// Where its name was written.
    pub position: Position,
    /// Hash over its template.
    pub revision: Revision,
    /// Where the parts are that are checked against other services.
    pub(super) marks: Marks,
}

/// Places of list elements, in the order of the lists; none for an element that may not be what the writer means.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Marks {
    pub(super) depends: Vec<Option<Mark>>,
    pub(super) endpoints: Vec<Option<Mark>>,
    pub(super) port_mappings: Vec<Option<Mark>>,
}

/// A place in a document.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mark {
    /// Where in the text.
    pub(super) position: Position,
    /// Where in the document, such as `services.web.depends[0].service`.
    pub(super) path: String,
}

/// A document that has problems, as far as it can be read.
#[derive(Debug, Clone, PartialEq)]
pub struct BrokenDocument {
    /// Where it begins.
    pub position: Position,
    /// The deployment that it names, be it not a good name; absent where none can be read.
    pub deployment: Option<String>,
    /// The first of its problems.
    pub problem: Problem,
    /// What other documents can be checked against.
    pub(super) remains: Remains,
}

/// What is beyond doubt about a document that has problems.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Remains {
    /// That it declares nothing here: it is meant for another tool.
    Nothing,
    /// Nothing: it may be a part of any deployment.
    Anything,
    /// That it is a part of the deployment that it names, be it not a good name.
    Part(Remnant),
}

/// What can be read of a part of a deployment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Remnant {
    /// Whether it is the deployment's own document, with `services:`.
    pub(super) own: bool,
    /// The services that it declares, by name, be it not a good one.
    pub(super) services: BTreeMap<String, PartialService>,
    /// Whether it may declare more services than these.
    pub(super) may_declare_more: bool,
}

/// A service in a document that has problems.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PartialService {
    /// Where its name was written.
    pub(super) position: Position,
    /// The service without what is wrong; absent where too much is. Only what its marks point to is certain.
    pub(super) rest: Option<DeclaredService>,
}
