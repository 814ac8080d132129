//! From text to declared deployments and services, or to everything that is wrong with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_yaml::Value as Yaml;

use super::check::{self, Report};
use super::problem::{MAX_PROBLEMS, Path, Position, Problem, Step, display_path, steps};
use super::schema::SCHEMAS;
use super::structure::{self, Structure};
use super::tree::{self, Node, Tree, Value};
use super::{Api, DeploymentSpec, External, Prune, Revision, RuntimeKind, ServiceSpec, Tunnel};

/// Largest file that is read, in bytes: the most that Kubernetes takes for a ConfigMap or a Secret, which is
/// how such files travel.
pub const MAX_FILE_SIZE: usize = 1 << 20;

/// What a file declares, or why it does not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ParsedFile {
    /// The documents that are good.
    pub documents: Vec<Document>,
    /// All that is wrong, in the order of the text; empty if and only if every document is good.
    pub problems: Vec<Problem>,
    /// Names of the deployments whose documents have problems, as far as they can be read.
    pub broken: Vec<String>,
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

/// Positions of list elements, in the order of the lists.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Marks {
    pub(super) depends: Vec<Position>,
    pub(super) endpoints: Vec<Position>,
    pub(super) port_mappings: Vec<Position>,
}

/// Reads a file's bytes. Never fails, panics or hangs: whatever is wrong is a problem with a position.
pub fn parse_bytes(bytes: &[u8]) -> ParsedFile {
    if bytes.len() > MAX_FILE_SIZE {
        return broken(too_large(bytes.len()));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => parse(text),
        Err(error) => {
            let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let problem = Problem::new(end_of(&good), "", "the file is not UTF-8 text from here on");
            broken(problem.with_help("save the file with the encoding UTF-8"))
        }
    }
}

/// Reads a file's text. Never fails, panics or hangs: whatever is wrong is a problem with a position.
pub fn parse(text: &str) -> ParsedFile {
    if text.len() > MAX_FILE_SIZE {
        return broken(too_large(text.len()));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some((index, control)) = text.char_indices().find(|(_, c)| !is_printable(*c)) {
        let message = format!("the control character {:?} is not allowed in YAML", control);
        return broken(
            Problem::new(end_of(&text[..index]), "", message).with_help("remove it, or is the file damaged?"),
        );
    }
    let forest = tree::read(text);
    let mut file = ParsedFile { problems: forest.problems, ..ParsedFile::default() };
    for document in forest.documents {
        if file.problems.len() <= MAX_PROBLEMS {
            read_document(document, &mut file);
        }
    }
    file.problems.sort_by_key(|problem| problem.position);
    if let Some(next) = file.problems.get(MAX_PROBLEMS).map(|problem| problem.position) {
        file.problems.truncate(MAX_PROBLEMS);
        let message = format!("there are more problems than the {MAX_PROBLEMS} that are listed");
        file.problems.push(Problem::new(next, "", message).with_help("mend these first"));
    }
    file
}

fn broken(problem: Problem) -> ParsedFile {
    ParsedFile { problems: vec![problem], ..ParsedFile::default() }
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

fn read_document(tree: Tree, file: &mut ParsedFile) {
    let Tree { root, mut problems } = tree;
    let position = root.position;
    let kind = match shape_of(&root) {
        Ok(Shape::Deployment) => deployment(&root, &mut problems),
        Ok(Shape::Service) => service_document(&root, &mut problems),
        Err(problem) => {
            problems.push(problem);
            None
        }
    };
    match kind {
        Some(kind) if problems.is_empty() => file.documents.push(Document { position, kind }),
        _ => {
            let name = root.get("deployment").and_then(|entry| entry.node.text());
            file.broken.extend(name.map(str::to_owned));
        }
    }
    file.problems.append(&mut problems);
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
        (None, None) if root.get("kind").is_some() && root.get("apiVersion").is_some() => {
            Err(Problem::new(root.position, "", "this is a Kubernetes manifest, not a deployment of keel")
                .with_help("begin with `version: v1`, `deployment: NAME` and `services:`"))
        }
        (None, None) if root.get("image").is_some() => Ok(Shape::Service),
        _ => Ok(Shape::Deployment),
    }
}

fn deployment(root: &Node, problems: &mut Vec<Problem>) -> Option<DocumentKind> {
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
    let DeploymentSpec { deployment, runtime, prune, externals, tunnels, api, .. } = spec?;
    Some(DocumentKind::Deployment(DeclaredDeployment {
        name: deployment,
        runtime,
        prune: prune.unwrap_or_default(),
        services: declared,
        externals,
        tunnels,
        api,
    }))
}

fn service_document(root: &Node, problems: &mut Vec<Problem>) -> Option<DocumentKind> {
    let mut structure = structure::check(root, &SCHEMAS.service);
    let mut value = structure.value.take()?;
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
    let service = reader.service(name.as_deref().unwrap_or_default(), value, position, Path::new(), None)?;
    name?;
    Some(DocumentKind::Service { deployment: deployment?, service })
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
        check::service(&mut report, name, &spec);
        let at = |list: &'static str, index: usize, key: &'static str| report.position(&steps![list, index, key]);
        let marks = Marks {
            depends: (0..spec.depends.len()).map(|i| at("depends", i, "service")).collect(),
            endpoints: (0..spec.endpoints.len()).map(|i| at("endpoints", i, "port")).collect(),
            port_mappings: (0..spec.port_mappings.len()).map(|i| at("port_mappings", i, "host_port")).collect(),
        };
        let revision = Revision::of(&spec, spec.runtime.or(runtime));
        Some(DeclaredService { name: name.to_owned(), spec: Arc::new(spec), position, revision, marks })
    }
}
