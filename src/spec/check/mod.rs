//! What values must be beyond their types: names, references, ranges between fields.

mod control;
mod machine;
mod network;
mod process;
mod require;

use super::document::Mark;
use super::problem::{Path, Position, Problem, Step, display_path, steps};
use super::schema::SERVICE_ALIASES;
use super::structure::Structure;
use super::tree::Node;
use super::{DeploymentSpec, RuntimeKind, ServiceSpec};

/// Longest DNS label (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;

/// Where the checks of one part of a document put what they find.
pub(super) struct Report<'a> {
    root: &'a Node,
    structure: &'a Structure,
    problems: &'a mut Vec<Problem>,
    around: Path,
}

impl<'a> Report<'a> {
    pub(super) fn new(root: &'a Node, structure: &'a Structure, problems: &'a mut Vec<Problem>, around: Path) -> Self {
        Self { root, structure, problems, around }
    }

    /// Adds a problem at `path` below the part, unless that place or something around it was cut out of the
    /// document: what was wrong there has been said.
    pub(super) fn problem(&mut self, path: &[Step], message: impl Into<String>) {
        self.add(path, message.into(), None);
    }

    /// The same, with what would be right.
    pub(super) fn problem_help(&mut self, path: &[Step], message: impl Into<String>, help: impl Into<String>) {
        self.add(path, message.into(), Some(help.into()));
    }

    /// A report about a part of this part.
    fn within(&mut self, path: &[Step]) -> Report<'_> {
        let around = self.written(path);
        Report { root: self.root, structure: self.structure, problems: self.problems, around }
    }

    fn add(&mut self, path: &[Step], message: String, help: Option<String>) {
        let path = self.written(path);
        if (0..=path.len()).any(|length| self.structure.dropped.contains(&path[..length])) {
            return;
        }
        let position = locate(self.root, &path);
        self.problems.push(Problem { position, path: display_path(&path), message, help });
    }

    /// Notes where the value at `path` was written, for what is said of it later.
    pub(super) fn mark(&self, path: &[Step]) -> Mark {
        let path = self.written(path);
        Mark { position: locate(self.root, &path), path: display_path(&path) }
    }

    /// Whether the value at `path` is what the writer means, as far as its keys go.
    pub(super) fn is_certain(&self, path: &[Step]) -> bool {
        self.root.is_certain_at(&self.written(path))
    }

    /// Whether the value at `path` is certain and nothing in it was wrong, so that nothing was cut out of it.
    pub(super) fn is_whole(&self, path: &[Step]) -> bool {
        self.is_whole_but_for(path, &[])
    }

    /// The same of a map, whatever is wrong with the values of these keys.
    pub(super) fn is_whole_but_for(&self, path: &[Step], keys: &[&str]) -> bool {
        let path = self.written(path);
        // In their order, what is inside of a part follows right after it.
        let mut flaws = self.structure.flawed.range(path.clone()..).take_while(|flaw| flaw.starts_with(&path));
        let matters = |flaw: &Path| !matches!(flaw.get(path.len()), Some(Step::Key(key)) if keys.contains(&&**key));
        !flaws.any(matters) && self.root.is_certain_at(&path)
    }

    /// The path from the root, with the indexes that the elements of lists have in the text.
    fn written(&self, path: &[Step]) -> Path {
        let mut written = self.around.clone();
        for step in path {
            let step = match (step, self.structure.kept.get(&written)) {
                (Step::Index(index), Some(kept)) => Step::Index(kept.get(*index).copied().unwrap_or(*index)),
                (step, _) => step.clone(),
            };
            written.push(step);
        }
        written
    }
}

/// The position of the value at `path`, or of the last key on the way to it that exists.
fn locate(root: &Node, path: &[Step]) -> Position {
    let mut node = root;
    let mut position = root.position;
    for step in path {
        match step {
            Step::Key(key) => match node.get(key).or_else(|| node.get(alias_of(key)?)) {
                Some(entry) => {
                    node = &entry.node;
                    position =
                        if node.entries().is_empty() && !node.is_null() { node.position } else { entry.position };
                }
                None => return position,
            },
            Step::Index(index) => match node.item(*index) {
                Some(item) => {
                    node = item;
                    position = item.position;
                }
                None => return position,
            },
        }
    }
    position
}

/// The second name of a field of a service.
fn alias_of(key: &str) -> Option<&'static str> {
    SERVICE_ALIASES.iter().find(|(_, field)| *field == key).map(|(alias, _)| *alias)
}

/// Checks that a text is a DNS label.
pub(super) fn name(report: &mut Report<'_>, path: &[Step], text: &str) {
    if let Some((message, help)) = bad_name(text) {
        report.problem_help(path, message, help);
    }
}

/// What is wrong with a name and what would be right: names of deployments, services, endpoints and volumes
/// become host names, file names and names in engines, so they are DNS labels.
pub(super) fn bad_name(text: &str) -> Option<(String, String)> {
    const RULE: &str = "use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end";
    let good = |text: &str| {
        (1..=MAX_LABEL).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-')
    };
    if good(text) {
        return None;
    }
    let message = match text {
        "" => "a name must not be empty".to_owned(),
        text => format!("{text:?} is not a name"),
    };
    let lower = text.to_lowercase().replace(['_', '.', ' '], "-");
    Some((message, if good(&lower) { format!("write {lower}") } else { RULE.to_owned() }))
}

/// What a name comes down to: names that may be meant to be the same come down to the same. Empty where nothing in it could
/// be kept.
pub(super) fn folded(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Checks the parts of a deployment that belong to no service.
pub(super) fn deployment(report: &mut Report<'_>, spec: &DeploymentSpec) {
    for (name, external) in &spec.externals {
        let at = |step: &'static str| steps!["externals", name, step].to_vec();
        for (index, backend) in external.backends.iter().enumerate() {
            if !backend.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && is_port(port)) {
                let path = steps!["externals", name, "backends", index];
                report.problem_help(&path, format!("{backend:?} is not an address"), "write HOST:PORT");
            }
        }
        network::endpoints(&mut report.within(&at("endpoints")), &external.endpoints);
        if let Some(check) = &external.health {
            control::health(&mut report.within(&at("health")), check);
        }
    }
}

/// Checks one service, in a document that names this runtime for those of its services that name none.
pub(super) fn service(report: &mut Report<'_>, name: &str, spec: &ServiceSpec, runtime: Option<RuntimeKind>) {
    if let Some(why) = spec.runtime.or(runtime).and_then(|runtime| runtime.refusal(&spec.image.name))
        && report.is_whole(&steps!["image", "name"])
    {
        report.problem(&steps!["image", "name"], why);
    }
    control::check(report, name, spec);
    network::check(report, spec);
    process::check(report, spec);
    machine::check(report, spec);
    require::check(report, spec);
}

/// Whether a text is a port that can be connected to.
fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port > 0)
}
