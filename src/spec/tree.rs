//! A YAML text as a tree that knows where everything was written.
//!
//! `serde` values carry no positions and hide duplicate keys, so this pass over the parser's events comes
//! first. It is also where hostile input is bounded: nesting, and the nodes that aliases stand for.

use std::collections::{HashMap, hash_map};
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use super::problem::{MAX_PROBLEMS, Path, Position, Problem, Step, display_path};
use super::scalar::{self, Resolved};

/// Deepest nesting of a document. The format itself nests to about ten; the rest is room for `x-` keys.
pub const MAX_DEPTH: usize = 64;

/// Most nodes of one file after aliases are replaced by what they stand for. A node of real YAML takes some
/// ten bytes, so a file of [`MAX_FILE_SIZE`](super::MAX_FILE_SIZE) without aliases stays below.
pub const MAX_NODES: usize = 1_000_000;

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) value: Value,
    /// Nodes in here, itself included, aliases counted as what they stand for.
    size: usize,
    /// Levels in here, itself included.
    height: usize,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Arc<Node>>),
    Map(Map),
}

/// The keys of a map in their order, each once.
#[derive(Debug, Clone)]
pub(super) struct Map {
    pub(super) entries: Vec<Entry>,
    /// Where in `entries` each key is.
    index: HashMap<Arc<str>, usize>,
    /// Keys that were written more than once; the first value is in `entries`.
    doubled: Vec<Arc<str>>,
    /// Whether a merge key could not be followed, so that any key may be missing.
    unmerged: bool,
}

impl Map {
    fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(*self.index.get(key)?)
    }

    fn with_capacity(entries: usize) -> Self {
        Self {
            entries: Vec::with_capacity(entries),
            index: HashMap::with_capacity(entries),
            doubled: Vec::new(),
            unmerged: false,
        }
    }

    /// Whether it can't be told what the writer means by a key.
    fn is_doubtful(&self, key: &str) -> bool {
        self.unmerged || self.doubled.iter().any(|doubled| **doubled == *key)
    }

    /// Adds an entry, or gives it back when its key is there.
    fn insert(&mut self, entry: Entry) -> Result<(), Entry> {
        match self.index.entry(Arc::clone(&entry.key)) {
            hash_map::Entry::Occupied(_) => Err(entry),
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(self.entries.len());
                self.entries.push(entry);
                Ok(())
            }
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Scalar {
    /// What was written, quotes and escapes resolved.
    pub(super) text: String,
    /// What it means; always text when it was quoted.
    pub(super) resolved: Resolved,
}

/// One key of a map.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: Arc<str>,
    pub(super) position: Position,
    pub(super) node: Arc<Node>,
}

impl Node {
    /// A node of text that the document spells in another way.
    pub(super) fn text_at(position: Position, text: String) -> Self {
        let value = Value::Scalar(Scalar { text, resolved: Resolved::Text });
        Self { position, value, size: 1, height: 1 }
    }

    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(map) => &map.entries,
            _ => &[],
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(map) => map.get(key),
            _ => None,
        }
    }

    pub(super) fn item(&self, index: usize) -> Option<&Arc<Node>> {
        match &self.value {
            Value::List(items) => items.get(index),
            _ => None,
        }
    }

    /// Whether the value at `path`, with everything in it, is what the writer means: no key on the way there, and
    /// none inside, is written twice or may be hidden by a merge key that could not be followed.
    pub(super) fn is_certain_at(&self, path: &[Step]) -> bool {
        let Some((step, rest)) = path.split_first() else { return self.is_certain() };
        match (step, &self.value) {
            (Step::Key(key), Value::Map(map)) => {
                !map.is_doubtful(key) && map.get(key).is_none_or(|entry| entry.node.is_certain_at(rest))
            }
            (Step::Index(index), Value::List(items)) => items.get(*index).is_none_or(|item| item.is_certain_at(rest)),
            _ => true,
        }
    }

    fn is_certain(&self) -> bool {
        match &self.value {
            Value::Scalar(_) => true,
            Value::List(items) => items.iter().all(|item| item.is_certain()),
            Value::Map(map) => {
                map.doubled.is_empty() && !map.unmerged && map.entries.iter().all(|entry| entry.node.is_certain())
            }
        }
    }

    /// Whether the value of a key is the one that the writer means, whatever is in it.
    pub(super) fn is_certain_key(&self, key: &str) -> bool {
        matches!(&self.value, Value::Map(map) if !map.is_doubtful(key))
    }

    /// Whether all keys of a map are known, be it that one of them is written twice.
    pub(super) fn has_all_keys(&self) -> bool {
        matches!(&self.value, Value::Map(map) if !map.unmerged)
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(Scalar { resolved: Resolved::Null, .. }))
    }

    /// The text of a scalar, quoted or not.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) => Some(&scalar.text),
            _ => None,
        }
    }
}

/// The documents of a text, as far as they could be read, and what is wrong.
#[derive(Debug, Default)]
pub(super) struct Forest {
    /// Documents whose YAML is well formed; empty ones are left out.
    pub(super) documents: Vec<Tree>,
    /// Problems that belong to no document: the text ends being YAML there.
    pub(super) problems: Vec<Problem>,
}

/// One document.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) root: Arc<Node>,
    /// Problems of this document: duplicate keys, tags, aliases.
    pub(super) problems: Vec<Problem>,
}

/// Reads all documents of a text. Stops at the first place that is no YAML, and keeps what came before it.
pub(super) fn read(text: &str) -> Forest {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let step = event
            .map_err(|error| {
                Problem::new(position(error.marker()), "", format!("this is not valid YAML: {}", error.info()))
            })
            .and_then(|(event, span)| builder.event(event, position(&span.start)));
        if let Err(problem) = step {
            builder.forest.problems.push(problem);
            break;
        }
    }
    builder.forest
}

fn position(marker: &Marker) -> Position {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Position { line: number(marker.line()).max(1), column: number(marker.col()).saturating_add(1) }
}

/// A collection that is still open.
struct Open {
    position: Position,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Arc<Node>>),
    Map { entries: Vec<Entry>, merges: Vec<Entry>, key: Option<Key> },
}

/// A key that waits for its value.
struct Key {
    text: Arc<str>,
    position: Position,
    /// `<<`, not quoted.
    merge: bool,
}

#[derive(Default)]
struct Builder {
    forest: Forest,
    open: Vec<Open>,
    root: Option<Arc<Node>>,
    problems: Vec<Problem>,
    anchors: HashMap<usize, Arc<Node>>,
    nodes: usize,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, at: Position) -> Result<(), Problem> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.anchors.clear();
                self.root = None;
                Ok(())
            }
            Event::DocumentEnd => {
                self.finish_document();
                Ok(())
            }
            Event::Alias(id) => match self.anchors.get(&id).cloned() {
                Some(node) => {
                    self.spend(node.size, at)?;
                    check_depth(self.open.len() + node.height, at)?;
                    self.add(node, at, false)
                }
                None => Err(Problem::new(at, "", "this alias stands inside of what it stands for")
                    .with_help("an alias must come after the whole value of its anchor")),
            },
            Event::Scalar(text, style, anchor, tag) => self.scalar(&text, style, anchor, tag.as_deref(), at),
            Event::SequenceStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), "seq", at);
                self.begin(OpenKind::List(Vec::new()), anchor, at)
            }
            Event::MappingStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), "map", at);
                self.begin(OpenKind::Map { entries: Vec::new(), merges: Vec::new(), key: None }, anchor, at)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
        }
    }

    fn finish_document(&mut self) {
        let problems = std::mem::take(&mut self.problems);
        match self.root.take() {
            Some(root) if !root.is_null() || !problems.is_empty() => {
                self.forest.documents.push(Tree { root, problems });
            }
            _ => self.forest.problems.extend(problems),
        }
    }

    /// Takes nodes off the budget.
    fn spend(&mut self, nodes: usize, at: Position) -> Result<(), Problem> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        Err(Problem::new(at, "", format!("the file has more than {MAX_NODES} values once aliases are replaced"))
            .with_help("use fewer aliases, or split the file"))
    }

    fn begin(&mut self, kind: OpenKind, anchor: usize, position: Position) -> Result<(), Problem> {
        check_depth(self.open.len() + 1, position)?;
        self.spend(1, position)?;
        self.open.push(Open { position, anchor, kind });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Problem> {
        let Some(Open { position, anchor, kind }) = self.open.pop() else { return Ok(()) };
        let value = match kind {
            OpenKind::List(items) => Value::List(items),
            OpenKind::Map { entries, merges, .. } => Value::Map(self.merged(entries, &merges)?),
        };
        let (size, height) = extent(&value);
        self.complete(Node { position, value, size, height }, anchor)
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        position: Position,
    ) -> Result<(), Problem> {
        self.spend(1, position)?;
        let plain = style == ScalarStyle::Plain;
        let resolved = match tag {
            Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => Resolved::Text,
            Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => Resolved::Text,
            Some(tag)
                if tag.is_yaml_core_schema() && matches!(tag.suffix.as_str(), "int" | "float" | "bool" | "null") =>
            {
                scalar::resolve(text)
            }
            Some(tag) => {
                self.unknown_tag(tag, position);
                Resolved::Text
            }
            None if plain => scalar::resolve(text),
            None => Resolved::Text,
        };
        let is_key = matches!(self.open.last(), Some(Open { kind: OpenKind::Map { key: None, .. }, .. }));
        let node =
            Node { position, value: Value::Scalar(Scalar { text: text.to_owned(), resolved }), size: 1, height: 1 };
        if is_key && plain && text == "<<" {
            return self.add(Arc::new(node), position, true);
        }
        self.complete(node, anchor)
    }

    /// Remembers a finished value under its anchor and hands it to the collection around it.
    fn complete(&mut self, node: Node, anchor: usize) -> Result<(), Problem> {
        let position = node.position;
        let node = Arc::new(node);
        if anchor > 0 {
            self.anchors.insert(anchor, Arc::clone(&node));
        }
        self.add(node, position, false)
    }

    fn add(&mut self, node: Arc<Node>, at: Position, merge: bool) -> Result<(), Problem> {
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.root = Some(node),
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Map { entries, merges, key }) => match key.take() {
                Some(Key { text, position, merge: true }) => merges.push(Entry { key: text, position, node }),
                Some(Key { text, position, merge: false }) => {
                    entries.push(Entry { key: text, position, node });
                }
                None => {
                    let text = node.text().ok_or_else(|| {
                        Problem::new(at, "", "a key must be plain text, not a list or a map")
                            .with_help("put quotes around it if it begins with a brace or a bracket")
                    })?;
                    *key = Some(Key { text: text.into(), position: at, merge });
                }
            },
        }
        Ok(())
    }

    /// A map with duplicates reported and `<<` resolved: what the map says itself holds, then the merged maps
    /// in their order (<https://yaml.org/type/merge.html>).
    fn merged(&mut self, written: Vec<Entry>, merges: &[Entry]) -> Result<Map, Problem> {
        let around = self.path();
        let mut map = Map::with_capacity(written.len());
        for entry in written {
            if let Err(entry) = map.insert(entry) {
                let first = map.get(&entry.key).map_or(Position::START, |first| first.position);
                self.note(
                    Problem::new(
                        entry.position,
                        join(&around, &entry.key),
                        format!("the key `{}` is written twice", entry.key),
                    )
                    .with_help(format!("it is already at line {}, column {}", first.line, first.column)),
                );
                map.doubled.push(entry.key);
            }
        }
        for merge in merges {
            let sources: Vec<&Arc<Node>> = match &merge.node.value {
                Value::Map(_) => vec![&merge.node],
                Value::List(items) => items.iter().collect(),
                Value::Scalar(_) => Vec::new(),
            };
            if sources.is_empty() || sources.iter().any(|source| !matches!(source.value, Value::Map(_))) {
                self.note(
                    Problem::new(merge.position, join(&around, "<<"), "a merge key takes a map or a list of maps")
                        .with_help("write an alias to a map, as in `<<: *defaults`"),
                );
                map.unmerged = true;
                continue;
            }
            for source in sources {
                let Value::Map(source) = &source.value else { continue };
                map.unmerged |= source.unmerged;
                for entry in &source.entries {
                    // A key that is there already holds against the merged one.
                    if map.insert(entry.clone()).is_ok() {
                        self.spend(1, merge.position)?;
                        if source.is_doubtful(&entry.key) {
                            map.doubled.push(Arc::clone(&entry.key));
                        }
                    }
                }
            }
        }
        Ok(map)
    }

    /// Adds a problem of the document, up to the most that are shown.
    fn note(&mut self, problem: Problem) {
        if self.problems.len() <= MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }

    /// The way to the value that is being read.
    fn path(&self) -> Path {
        self.open
            .iter()
            .map(|open| match &open.kind {
                OpenKind::List(items) => items.len().into(),
                OpenKind::Map { key, .. } => key.as_ref().map_or_else(String::new, |key| key.text.to_string()).into(),
            })
            .collect()
    }

    fn check_tag(&mut self, tag: Option<&Tag>, core: &str, at: Position) {
        match tag {
            Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == core) => self.unknown_tag(tag, at),
            _ => {}
        }
    }

    fn unknown_tag(&mut self, tag: &Tag, at: Position) {
        self.note(
            Problem::new(at, "", format!("the tag `{tag}` means nothing here"))
                .with_help("leave it out; put the value in quotes if it is text"),
        );
    }
}

fn join(around: &[Step], key: &str) -> String {
    let mut path = around.to_vec();
    path.push(key.to_owned().into());
    display_path(&path)
}

fn check_depth(depth: usize, at: Position) -> Result<(), Problem> {
    if depth <= MAX_DEPTH {
        return Ok(());
    }
    Err(Problem::new(at, "", format!("values are nested deeper than {MAX_DEPTH} levels")).with_help("nest less"))
}

/// Nodes and levels of a value, itself included.
fn extent(value: &Value) -> (usize, usize) {
    let grow =
        |(size, height): (usize, usize), node: &Arc<Node>| (size.saturating_add(node.size), height.max(node.height));
    let (size, height) = match value {
        Value::Scalar(_) => (0, 0),
        Value::List(items) => items.iter().fold((0, 0), grow),
        Value::Map(map) => map.entries.iter().map(|entry| &entry.node).fold((0, 0), grow),
    };
    (size.saturating_add(1), height + 1)
}
