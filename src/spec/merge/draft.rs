//! Deployments in the making: the parts that documents contribute.

use std::collections::{BTreeMap, btree_map};
use std::path::{Path, PathBuf};

use super::super::check::{bad_name, folded};
use super::super::document::Remains;
use super::super::template::equivalents;
use super::super::unsupported::unsupported_in;
use super::super::{
    DeclaredDeployment, DeclaredService, DocumentKind, ParsedFile, Position, Problem, Revision, RuntimeKind,
};
use super::paths::with_absolute_paths;
use super::{Findings, MergedDeployment, MergedService, place};

/// A deployment in the making.
#[derive(Default)]
pub(super) struct Draft<'a> {
    own: Option<Own<'a>>,
    /// By name; where one is declared more than once, the first.
    pub(super) services: BTreeMap<&'a str, Part<'a>>,
    /// Services of further documents that declare the same deployment.
    again: Vec<Part<'a>>,
    /// Whether there may be services that can't be read.
    pub(super) may_declare_more: bool,
}

/// The document of a deployment.
struct Own<'a> {
    file: &'a Path,
    position: Position,
    /// Absent where the document has problems.
    declared: Option<&'a DeclaredDeployment>,
}

/// A service and where it comes from.
pub(super) struct Part<'a> {
    pub(super) file: &'a Path,
    pub(super) position: Position,
    pub(super) name: &'a str,
    /// Absent where it has too many problems.
    pub(super) service: Option<&'a DeclaredService>,
    /// That of its deployment.
    default_runtime: Option<RuntimeKind>,
}

/// Sorts the documents of all files into deployments.
pub(super) fn collect<'a>(
    files: impl Iterator<Item = (&'a Path, &'a ParsedFile)>,
    findings: &mut Findings,
) -> BTreeMap<&'a str, Draft<'a>> {
    let mut drafts: BTreeMap<&str, Draft<'a>> = BTreeMap::new();
    for (file, parsed) in files {
        let default_runtime = |deployment: &str| parsed.default_runtimes.get(deployment).copied();
        findings.may_declare_more |= parsed.has_unknown_parts();
        findings.applied.extend(parsed.applied.then(|| file.to_path_buf()));
        for document in &parsed.documents {
            let name = document.kind.deployment();
            let draft = drafts.entry(name).or_default();
            let default_runtime = default_runtime(name);
            match &document.kind {
                DocumentKind::Deployment(own) => {
                    let parts = own.services.values().map(|service| Part::of(file, service, default_runtime));
                    draft.own(name, Own { file, position: document.position, declared: Some(own) }, parts, findings);
                }
                DocumentKind::Service { service, .. } => {
                    draft.join(name, Part::of(file, service, default_runtime), findings)
                }
            }
        }
        for document in &parsed.broken {
            let Some(name) = &document.deployment else { continue };
            let reason = format!("{}:{}", file.display(), document.problem);
            findings.refused.entry(name.clone()).or_insert(reason);
            let Remains::Part(remnant) = &document.remains else { continue };
            let draft = drafts.entry(name).or_default();
            draft.may_declare_more |= remnant.may_declare_more;
            let default_runtime = default_runtime(name);
            let parts = remnant.services.iter().map(|(name, partial)| Part {
                file,
                position: partial.position,
                name,
                service: partial.rest.as_ref(),
                default_runtime,
            });
            match remnant.own {
                true => draft.own(name, Own { file, position: document.position, declared: None }, parts, findings),
                false => parts.for_each(|part| draft.join(name, part, findings)),
            }
        }
    }
    doubt(&mut drafts);
    drafts
}

/// Deployments may be meant to be one where a name of theirs is none: then each may have services of the other.
fn doubt(drafts: &mut BTreeMap<&str, Draft<'_>>) {
    let mut alike: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in drafts.keys() {
        alike.entry(folded(name)).or_default().push(name);
    }
    for names in alike.values().filter(|names| names.len() > 1 && names.iter().any(|name| bad_name(name).is_some())) {
        for name in names {
            drafts.entry(name).or_default().may_declare_more = true;
        }
    }
}

impl<'a> Draft<'a> {
    /// Every service that a document declares.
    pub(super) fn parts(&self) -> impl Iterator<Item = &Part<'a>> {
        self.services.values().chain(&self.again)
    }

    /// The runtime that the deployment's document names for its services, and where that document is.
    pub(super) fn runtime(&self) -> Option<(RuntimeKind, (&'a Path, Position))> {
        let own = self.own.as_ref()?;
        Some((own.declared?.runtime?, (own.file, own.position)))
    }

    /// Takes the document of the deployment.
    fn own(&mut self, name: &str, own: Own<'a>, parts: impl Iterator<Item = Part<'a>>, findings: &mut Findings) {
        if let Some(first) = &self.own {
            twice(name, ("deployment", name), (first.file, first.position), (own.file, own.position), findings);
            // That its services are declared twice too follows from this.
            self.again.extend(parts);
            return;
        }
        self.own = Some(own);
        for part in parts {
            self.join(name, part, findings);
        }
    }

    fn join(&mut self, deployment: &str, part: Part<'a>, findings: &mut Findings) {
        match self.services.entry(part.name) {
            btree_map::Entry::Vacant(vacant) => drop(vacant.insert(part)),
            btree_map::Entry::Occupied(first) => {
                let first = first.get();
                let name = format!("{deployment}/{}", part.name);
                let places = ((first.file, first.position), (part.file, part.position));
                twice(deployment, ("service", &name), places.0, places.1, findings);
            }
        }
    }

    /// The deployment of which every part is good.
    pub(super) fn finish(self, name: &str) -> Option<MergedDeployment> {
        let first = self.services.values().min_by_key(|part| (part.file, part.position));
        let (file, position) = match (&self.own, first) {
            (Some(own), _) => (own.file, own.position),
            (None, Some(part)) => (part.file, part.position),
            (None, None) => return None,
        };
        let own = self.own.and_then(|own| own.declared);
        let runtime = own.and_then(|own| own.runtime);
        let services = self.services.values().filter_map(|part| merged(part, runtime));
        Some(MergedDeployment {
            name: name.to_owned(),
            file: file.to_owned(),
            position,
            prune: own.map(|own| own.prune).unwrap_or_default(),
            unsupported: own.map(unsupported_in).unwrap_or_default(),
            services: services.map(|service| (service.name.clone(), service)).collect(),
        })
    }
}

impl<'a> Part<'a> {
    fn of(file: &'a Path, service: &'a DeclaredService, default_runtime: Option<RuntimeKind>) -> Self {
        Self { file, position: service.position, name: &service.name, service: Some(service), default_runtime }
    }
}

/// The service of a part, in a deployment for which this runtime is written.
fn merged(part: &Part<'_>, deployments: Option<RuntimeKind>) -> Option<MergedService> {
    let DeclaredService { name, spec, position, .. } = part.service?;
    let runtime = spec.runtime.or(deployments);
    Some(MergedService {
        name: name.clone(),
        revision: Revision::of(spec, runtime),
        equivalents: equivalents(spec, runtime),
        spec: with_absolute_paths(spec, part.file.parent().unwrap_or(Path::new(""))),
        file: PathBuf::from(part.file),
        position: *position,
        runtime,
        default_runtime: part.default_runtime,
    })
}

/// Says of one identity that it is declared at two places.
fn twice(
    deployment: &str,
    (what, name): (&str, &str),
    first: (&Path, Position),
    second: (&Path, Position),
    findings: &mut Findings,
) {
    let is_applied = |file: &Path| findings.applied.contains(file);
    let help = match (is_applied(first.0), is_applied(second.0)) {
        (true, false) => handed_over(deployment, first.0, second.0),
        (false, true) => handed_over(deployment, second.0, first.0),
        _ => "remove or rename one of them".to_owned(),
    };
    for (here, there) in [(first, second), (second, first)] {
        let message = format!("the {what} {name} is declared twice, also at {}", place(there.0, there.1));
        let problem = Problem::new(here.1, "", message).with_help(help.clone());
        findings.refuse(deployment, here.0, problem);
    }
}

/// How a deployment that was applied becomes one of a watched file.
fn handed_over(deployment: &str, applied: &Path, watched: &Path) -> String {
    let (applied, watched) = (applied.display(), watched.display());
    format!(
        "{applied} was applied, which counts whatever becomes of that file: `keel apply -f {watched}` hands {deployment} \
         over to {watched}, `keel delete {deployment}` ends it"
    )
}
