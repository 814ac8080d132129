//! From text to declared deployments and services, or to everything that is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_yaml::Value as Yaml;

use super::check::{self, Report};
use super::document::{
    BrokenDocument, DeclaredDeployment, DeclaredService, Document, DocumentKind, Mark, Marks, ParsedFile,
    PartialService, Remains, Remnant,
};
use super::problem::{MAX_PROBLEMS, Path, Position, Problem, Step, display_path, steps};
use super::schema::SCHEMAS;
use super::structure::{self, Structure};
use super::tree::{self, Entry, Node, Tree, Value};
use super::{DeploymentSpec, Revision, RuntimeKind, ServiceSpec};

/// Largest file that is read, in bytes: the most that Kubernetes takes for a ConfigMap or a Secret, which is
/// how such files travel.
pub const MAX_FILE_SIZE: usize = 1 << 20;

/// Reads a file's bytes. Never fails, panics or hangs: whatever is wrong is a problem with a position.
pub fn parse_bytes(bytes: &[u8]) -> ParsedFile {
    if bytes.len() > MAX_FILE_SIZE {
        return unreadable(too_large(bytes.len()));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => parse(text),
        Err(error) => {
            let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let problem = Problem::new(end_of(&good), "", "the file is not UTF-8 text from here on");
            unreadable(problem.with_help("save the file with the encoding UTF-8"))
        }
    }
}

/// Reads a file's text. Never fails, panics or hangs: whatever is wrong is a problem with a position.
pub fn parse(text: &str) -> ParsedFile {
    #[cfg(test)]
    counted::add();
    if text.len() > MAX_FILE_SIZE {
        return unreadable(too_large(text.len()));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some((index, control)) = text.char_indices().find(|(_, c)| !is_printable(*c)) {
        let message = format!("the control character {:?} is not allowed in YAML", control);
        return unreadable(
            Problem::new(end_of(&text[..index]), "", message).with_help("remove it, or is the file damaged?"),
        );
    }
    let forest = tree::read(text);
    let cut_off = !forest.problems.is_empty();
    let mut file = ParsedFile { problems: forest.problems, cut_off, ..ParsedFile::default() };
    for document in forest.documents {
        if file.problems.len() > MAX_PROBLEMS {
            file.cut_off = true;
            break;
        }
        read_document(document, &mut file);
    }
    file.problems.sort_by_key(|problem| problem.position);
    if let Some(next) = file.problems.get(MAX_PROBLEMS).map(|problem| problem.position) {
        file.problems.truncate(MAX_PROBLEMS);
        let message = format!("there are more problems than the {MAX_PROBLEMS} that are listed");
        file.problems.push(Problem::new(next, "", message).with_help("mend these first"));
    }
    file
}

fn unreadable(problem: Problem) -> ParsedFile {
    ParsedFile { problems: vec![problem], ..ParsedFile::unread() }
}

fn too_large(size: usize) -> Problem {
    Problem::new(Position::START, "", format!("the file has {size} bytes; at most {MAX_FILE_SIZE} are read"))
        .with_help("split it into several files")
}

/// Characters that YAML text may hold (<https://yaml.org/spec/1.2.2/#51-character-set>). Others come from
/// damaged files: a crash right after a rename leaves zeros.
fn is_printable(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}'
        | '\u{10000}'..)
}

/// The place right after a text.
fn end_of(text: &str) -> Position {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let line = text.bytes().filter(|b| *b == b'\n').count();
    let column = text.rsplit('\n').next().unwrap_or("").chars().count();
    Position { line: count(line + 1), column: count(column + 1) }
}

/// Which kind of document a map is meant to be.
enum Shape {
    Deployment,
    Service,
}

/// What was read of one document.
#[derive(Default)]
struct Reading {
    /// What it is; absent where that is wrong.
    head: Option<Head>,
    /// Its services, without what is wrong with them.
    services: BTreeMap<String, DeclaredService>,
}

/// A document without its services.
enum Head {
    Deployment(DeploymentSpec),
    /// Holds the name of the deployment.
    Service(String),
}

impl Reading {
    /// What a document without problems declares.
    fn finish(self) -> Option<DocumentKind> {
        let Self { head, mut services } = self;
        match head? {
            Head::Deployment(spec) => {
                let DeploymentSpec { deployment, runtime, prune, externals, tunnels, api, .. } = spec;
                Some(DocumentKind::Deployment(DeclaredDeployment {
                    name: deployment,
                    runtime,
                    prune: prune.unwrap_or_default(),
                    services,
                    externals,
                    tunnels,
                    api,
                }))
            }
            Head::Service(deployment) => Some(DocumentKind::Service { deployment, service: services.pop_first()?.1 }),
        }
    }
}

fn read_document(tree: Tree, file: &mut ParsedFile) {
    let Tree { root, mut problems } = tree;
    let position = root.position;
    let reading = match shape_of(&root) {
        Ok(Shape::Deployment) => deployment(&root, &mut problems),
        Ok(Shape::Service) => service_document(&root, &mut problems),
        Err(problem) => {
            problems.push(problem);
            Reading::default()
        }
    };
    match problems.iter().min_by_key(|problem| problem.position) {
        None => {
            let kind = reading.finish();
            if let (Some(DocumentKind::Deployment(whole)), None) = (&kind, root.get("services")) {
                file.without_services.insert(whole.name.clone());
            }
            file.documents.extend(kind.map(|kind| Document { position, kind }));
        }
        Some(first) => file.broken.push(BrokenDocument {
            position,
            deployment: root.get("deployment").and_then(|entry| entry.node.text()).map(str::to_owned),
            problem: first.clone(),
            remains: remains(&root, reading.services),
        }),
    }
    file.problems.append(&mut problems);
}

/// What is certain about a document that has problems.
fn remains(root: &Node, mut read: BTreeMap<String, DeclaredService>) -> Remains {
    if is_foreign(root) {
        return Remains::Nothing;
    }
    if certain_name(root, "deployment").is_none() {
        return Remains::Anything;
    }
    let mut partial = |name: &str, position| (name.to_owned(), PartialService { position, rest: read.remove(name) });
    Remains::Part(match (root.get("services"), root.get("service")) {
        (Some(services), None) if root.is_certain_key("services") => {
            let entries = services.node.entries();
            let told = |entry: &&Entry| tells_what_is_meant(&entry.key);
            Remnant {
                own: true,
                may_declare_more: !services.node.has_all_keys() || !entries.iter().all(|entry| told(&entry)),
                services: entries.iter().filter(told).map(|entry| partial(&entry.key, entry.position)).collect(),
            }
        }
        (None, Some(service)) => {
            let name = certain_name(root, "service");
            let services = name.map(|name| partial(name, service.position)).into_iter().collect();
            Remnant { own: false, may_declare_more: name.is_none(), services }
        }
        (own, _) => Remnant { own: own.is_some(), may_declare_more: true, services: BTreeMap::new() },
    })
}

/// Whether a name is a good one, or can be compared with others that may be meant to be the same.
fn tells_what_is_meant(name: &str) -> bool {
    !check::folded(name).is_empty()
}

/// The name at a key of the document, where it is beyond doubt which is meant.
fn certain_name<'a>(root: &'a Node, key: &'static str) -> Option<&'a str> {
    let text = root.get(key).and_then(|entry| entry.node.text())?;
    (root.is_certain_at(&steps![key]) && tells_what_is_meant(text)).then_some(text)
}

/// Whether a document is meant for Kubernetes.
fn is_foreign(root: &Node) -> bool {
    let has = |key| root.get(key).is_some();
    has("kind") && has("apiVersion") && !has("services") && !has("service")
}

fn shape_of(root: &Node) -> Result<Shape, Problem> {
    if !matches!(root.value, Value::Map(_)) {
        return Err(Problem::new(root.position, "", "a document must be a map")
            .with_help("begin with `version: v1`, `deployment: NAME` and `services:`"));
    }
    match (root.get("services"), root.get("service")) {
        (Some(_), Some(service)) => {
            Err(Problem::new(service.position, "service", "a document can't hold both `services` and `service`")
                .with_help("keep `services` for a whole deployment, or split the document with `---`"))
        }
        (None, Some(_)) => Ok(Shape::Service),
        (None, None) if is_foreign(root) => {
            Err(Problem::new(root.position, "", "this is a Kubernetes manifest, not a deployment of keel")
                .with_help("begin with `version: v1`, `deployment: NAME` and `services:`"))
        }
        (None, None) if root.get("image").is_some() => Ok(Shape::Service),
        _ => Ok(Shape::Deployment),
    }
}

fn deployment(root: &Node, problems: &mut Vec<Problem>) -> Reading {
    // A text that was cut off after it looks like that.
    if let Some(services) = root.get("services").filter(|services| services.node.is_null()) {
        let message = "`services` has no value";
        problems.push(Problem::new(services.position, "services", message).with_help("write `services: {}` for none"));
    }
    let mut structure = structure::check(root, &SCHEMAS.deployment);
    let mut value = structure.value.take();
    let services = match value.as_mut().and_then(Yaml::as_mapping_mut).and_then(|map| map.remove("services")) {
        Some(Yaml::Mapping(services)) => services,
        _ => serde_yaml::Mapping::new(),
    };
    let mut reader = Reader::new(root, structure, problems);
    reader.name(&steps!["deployment"]);
    reader.service_names();
    let spec: Option<DeploymentSpec> = value.and_then(|value| reader.typed(value, &[]));
    if let Some(spec) = &spec {
        check::deployment(&mut reader.report(Path::new()), spec);
    }
    let runtime = spec.as_ref().and_then(|spec| spec.runtime);
    let mut declared = BTreeMap::new();
    for (name, value) in services {
        let Yaml::String(name) = name else { continue };
        let position = root
            .get("services")
            .and_then(|services| services.node.get(&name))
            .map_or(root.position, |entry| entry.position);
        let around = steps!["services", &name].to_vec();
        declared.extend(reader.service(&name, value, position, around, runtime).map(|service| (name, service)));
    }
    Reading { head: spec.map(Head::Deployment), services: declared }
}

fn service_document(root: &Node, problems: &mut Vec<Problem>) -> Reading {
    let mut structure = structure::check(root, &SCHEMAS.service);
    let Some(mut value) = structure.value.take() else {
        problems.append(&mut structure.problems);
        return Reading::default();
    };
    let mut reader = Reader::new(root, structure, problems);
    reader.name(&steps!["deployment"]);
    reader.name(&steps!["service"]);
    let mut own = |key: &str| match value.as_mapping_mut().and_then(|map| map.remove(key)) {
        Some(Yaml::String(text)) => Some(text),
        _ => None,
    };
    let (deployment, name) = (own("deployment"), own("service"));
    own("version");
    let position = root.get("service").map_or(root.position, |entry| entry.position);
    let service = reader.service(name.as_deref().unwrap_or_default(), value, position, Path::new(), None);
    Reading { head: deployment.map(Head::Service), services: name.zip(service).into_iter().collect() }
}

/// Turns the sound parts of one document into typed values and checks them.
struct Reader<'a> {
    root: &'a Node,
    structure: Structure,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Reader<'a> {
    fn new(root: &'a Node, mut structure: Structure, problems: &'a mut Vec<Problem>) -> Self {
        problems.append(&mut structure.problems);
        Self { root, structure, problems }
    }

    fn report(&mut self, around: Path) -> Report<'_> {
        Report::new(self.root, &self.structure, self.problems, around)
    }

    /// Checks the name that stands at `path`.
    fn name(&mut self, path: &[Step]) {
        let Some(Step::Key(key)) = path.first() else { return };
        if let Some(text) = self.root.get(key).and_then(|entry| entry.node.text()) {
            let text = text.to_owned();
            check::name(&mut self.report(Path::new()), path, &text);
        }
    }

    /// Checks the names of services, also of those that were cut out.
    fn service_names(&mut self) {
        let Some(services) = self.root.get("services") else { return };
        for entry in services.node.entries() {
            if let Some((message, help)) = check::bad_name(&entry.key) {
                let path = display_path(&steps!["services", entry.key.to_string()]);
                self.problems.push(Problem::new(entry.position, path, message).with_help(help));
            }
        }
    }

    /// Reads a value that is structurally sound; what the types still refuse is a problem at its place.
    fn typed<T: DeserializeOwned>(&mut self, value: Yaml, around: &[Step]) -> Option<T> {
        match serde_path_to_error::deserialize(value) {
            Ok(value) => Some(value),
            Err(error) => {
                let path: Path = error
                    .path()
                    .iter()
                    .filter_map(|segment| match segment {
                        serde_path_to_error::Segment::Seq { index } => Some(Step::from(*index)),
                        serde_path_to_error::Segment::Map { key } => Some(Step::from(key)),
                        _ => None,
                    })
                    .collect();
                // A part that was cut out has had its say already.
                if self.problems.is_empty() {
                    self.report(around.to_vec()).problem(&path, error.into_inner().to_string());
                }
                None
            }
        }
    }

    fn service(
        &mut self,
        name: &str,
        value: Yaml,
        position: Position,
        around: Path,
        runtime: Option<RuntimeKind>,
    ) -> Option<DeclaredService> {
        let spec: ServiceSpec = self.typed(value, &around)?;
        let mut report = self.report(around);
        check::service(&mut report, name, &spec, runtime);
        let marks = marks(&report, &spec);
        let revision = Revision::of(&spec, spec.runtime.or(runtime));
        Some(DeclaredService { name: name.to_owned(), spec: Arc::new(spec), position, revision, marks })
    }
}

/// Notes where the parts of a service are that are checked against other services.
fn marks(report: &Report<'_>, spec: &ServiceSpec) -> Marks {
    let mark = |list: &'static str, index: usize, key: &'static str| report.mark(&steps![list, index, key]);
    // Those of which all is certain but the values of keys that have no part in what is checked.
    let whole = |list: &'static str, key: &'static str, length: usize, but_for: &[&str]| -> Vec<Option<Mark>> {
        let mark = |index| report.is_whole_but_for(&steps![list, index], but_for).then(|| mark(list, index, key));
        (0..length).map(mark).collect()
    };
    // What else is said of a dependency does not change what is depended on.
    let mut seen = BTreeSet::new();
    let depends = spec.depends.iter().enumerate().map(|(index, depends)| {
        let first = seen.insert(depends.service.as_str());
        (first && report.is_certain(&steps!["depends", index])).then(|| mark("depends", index, "service"))
    });
    Marks {
        depends: depends.collect(),
        endpoints: whole("endpoints", "port", spec.endpoints.len(), &["name", "target_port", "stream", "tunnel"]),
        port_mappings: whole("port_mappings", "host_port", spec.port_mappings.len(), &["container_port"]),
    }
}

/// How often files are parsed, for tests of how the work grows.
#[cfg(test)]
pub mod counted {
    use std::cell::Cell;

    thread_local!(static PARSED: Cell<usize> = const { Cell::new(0) });

    pub(super) fn add() {
        PARSED.set(PARSED.get() + 1);
    }

    /// Files that were parsed by this thread during the work.
    pub fn parses_during(work: impl FnOnce()) -> usize {
        let before = PARSED.get();
        work();
        PARSED.get() - before
    }
}
