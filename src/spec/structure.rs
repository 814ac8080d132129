//! The structural check: a document's tree against its JSON Schema.
//!
//! Finds every problem in one walk and returns what is left once the bad parts are cut out, so that the
//! checks that come later still see the rest of the document.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value as Json;
use serde_yaml::{Mapping, Value as Yaml};

use super::problem::{MAX_PROBLEMS, Path, Position, Problem, Step, display_path};
use super::scalar::Resolved;
use super::schema::{SERVICE_ALIASES, bounds};
use super::stand_in;
use super::suggest::{elsewhere, nearest};
use super::text;
use super::tree::{Entry, Map, Node, Scalar, Value};
use super::wording::{describe, number_help, one_of, out_of};

/// What the walk over one document found.
#[derive(Debug, Default)]
pub(super) struct Structure {
    /// The document without its bad parts; `None` when nothing is left of it.
    pub(super) value: Option<Yaml>,
    pub(super) problems: Vec<Problem>,
    /// Where the problems are.
    pub(super) flawed: BTreeSet<Path>,
    /// Parts that were cut out, or have something else in their place so that what is around them can be checked.
    pub(super) dropped: BTreeSet<Path>,
    /// For lists that lost elements: where each of the elements that are left was written.
    pub(super) kept: HashMap<Path, Vec<usize>>,
}

/// Checks `root` against `schema`, a root schema with its own `$defs`.
pub(super) fn check(root: &Node, schema: &Json) -> Structure {
    let mut walk = Walk { defs: &schema["$defs"], path: Path::new(), found: Structure::default() };
    let value = walk.value(root, schema, root.position);
    Structure { value, ..walk.found }
}

/// Most known keys that a message lists; the rest is what `keel schema` is for.
const MOST_LISTED: usize = 16;

struct Walk<'a> {
    defs: &'a Json,
    path: Path,
    found: Structure,
}

/// A schema with its references followed.
#[derive(Clone, Copy)]
struct Resolution<'a> {
    schema: &'a Json,
    /// Name of the last definition that was followed.
    name: &'a str,
}

impl<'a> Walk<'a> {
    fn resolve(&self, schema: &'a Json) -> Resolution<'a> {
        let mut resolution = Resolution { schema, name: "" };
        loop {
            let schema = resolution.schema;
            if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/")) {
                resolution = Resolution { schema: &self.defs[name], name };
            } else if let Some(inner) = schema["anyOf"].as_array().and_then(|any| any.iter().find(|s| !is_null(s))) {
                resolution.schema = inner;
            } else {
                return resolution;
            }
        }
    }

    /// Checks one value; `at` is where a missing part of it is reported.
    fn value(&mut self, node: &Node, schema: &'a Json, at: Position) -> Option<Yaml> {
        if self.is_full() {
            return None;
        }
        let Resolution { schema, name } = self.resolve(schema);
        // However nothing is spelled, `~` or `null`, it is the same as nothing after the colon.
        if name == "Scalar" && node.is_null() {
            return Some(Yaml::String(String::new()));
        }
        if let Some(check) = text::check_of(name) {
            let spelled = text::as_text(name, node);
            return self.text(spelled.as_ref().unwrap_or(node), check);
        }
        if let Some(variants) = schema["oneOf"].as_array() {
            return match variants.iter().all(|variant| variant["const"].is_string()) {
                true => self.choice(node, variants.iter().filter_map(|variant| variant["const"].as_str()).collect()),
                false => self.tagged(node, variants, name, at),
            };
        }
        if let Some(choices) = schema["enum"].as_array() {
            return self.choice(node, choices.iter().filter_map(Json::as_str).collect());
        }
        match types(schema) {
            types if types.is_empty() => Some(free(node)),
            types if types.contains(&"object") => self.object(node, schema, name, at, None),
            types if types.contains(&"array") => self.list(node, schema),
            types if types.contains(&"string") => self.string(node, schema),
            types if types.contains(&"boolean") => self.boolean(node),
            types => self.number(node, schema, types.contains(&"number")),
        }
    }

    /// Whether there are more problems than are listed.
    fn is_full(&self) -> bool {
        self.found.problems.len() > MAX_PROBLEMS
    }

    fn problem(&mut self, position: Position, message: impl Into<String>) -> &mut Problem {
        let problem = Problem::new(position, display_path(&self.path), message);
        self.found.flawed.insert(self.path.clone());
        self.found.problems.push(problem);
        let last = self.found.problems.len() - 1;
        &mut self.found.problems[last]
    }

    fn mismatch(&mut self, node: &Node, expected: &str) -> &mut Problem {
        let message = format!("expected {expected}, found {}", describe(node));
        self.problem(node.position, message)
    }

    /// Runs `inner` one step deeper.
    fn inside<T>(&mut self, step: impl Into<Step>, inner: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(step.into());
        let result = inner(self);
        self.path.pop();
        result
    }

    fn drop_here(&mut self) {
        self.found.dropped.insert(self.path.clone());
    }

    fn text(&mut self, node: &Node, check: text::Check) -> Option<Yaml> {
        let Some(text) = node.text() else {
            self.mismatch(node, check.expected);
            return None;
        };
        match (check.parse)(text) {
            Ok(()) => Some(Yaml::String(text.to_owned())),
            Err(error) => {
                let helpful = error.contains("write ") || error.contains(check.expected);
                let help = (!helpful).then(|| format!("write {}", check.expected));
                self.problem(node.position, error).help = help;
                None
            }
        }
    }

    fn choice(&mut self, node: &Node, choices: Vec<&str>) -> Option<Yaml> {
        match node.text() {
            Some(text) if choices.contains(&text) => Some(Yaml::String(text.to_owned())),
            Some(text) => {
                let message = format!("{text:?} is not {}", one_of(&choices));
                let help = nearest(text, &choices).map(|best| format!("did you mean `{best}`?"));
                self.problem(node.position, message).help = help;
                None
            }
            None => {
                self.mismatch(node, &one_of(&choices));
                None
            }
        }
    }

    fn string(&mut self, node: &Node, schema: &Json) -> Option<Yaml> {
        let Some(text) = node.text() else {
            self.mismatch(node, "text");
            return None;
        };
        let least = schema["minLength"].as_u64().unwrap_or(0);
        if (text.chars().count() as u64) < least {
            self.problem(node.position, "this must not be empty");
            return None;
        }
        Some(Yaml::String(text.to_owned()))
    }

    fn boolean(&mut self, node: &Node) -> Option<Yaml> {
        match &node.value {
            Value::Scalar(Scalar { resolved: Resolved::Bool(value), .. }) => Some(Yaml::Bool(*value)),
            Value::Scalar(Scalar { text, .. }) => {
                let help = match text.to_ascii_lowercase().as_str() {
                    "true" | "yes" | "on" | "y" | "1" => Some("write true, without quotes".to_owned()),
                    "false" | "no" | "off" | "n" | "0" => Some("write false, without quotes".to_owned()),
                    _ => None,
                };
                self.mismatch(node, "true or false").help = help;
                None
            }
            _ => {
                self.mismatch(node, "true or false");
                None
            }
        }
    }

    fn number(&mut self, node: &Node, schema: &Json, fraction: bool) -> Option<Yaml> {
        let number = match &node.value {
            Value::Scalar(scalar) => match scalar.resolved {
                Resolved::Unsigned(number) => Some((i128::from(number), Yaml::from(number))),
                Resolved::Signed(number) => Some((i128::from(number), Yaml::from(number))),
                Resolved::Float(number) if fraction => return Some(Yaml::from(number)),
                _ => None,
            },
            _ => None,
        };
        let (least, most) = bounds(schema);
        match number {
            Some((number, yaml)) if (least..=most).contains(&number) => Some(yaml),
            Some((number, _)) => {
                self.problem(node.position, out_of(number, least, most));
                None
            }
            None => {
                let help = node.text().and_then(number_help);
                self.mismatch(node, if fraction { "a number" } else { "a whole number" }).help = help;
                None
            }
        }
    }

    fn list(&mut self, node: &Node, schema: &'a Json) -> Option<Yaml> {
        let Value::List(items) = &node.value else {
            let help = match &node.value {
                Value::Map(_) => "put a dash before each element".to_owned(),
                _ => format!("write a list: [{:?}]", node.text().unwrap_or_default()),
            };
            self.mismatch(node, "a list").help = Some(help);
            return None;
        };
        if (items.len() as u64) < schema["minItems"].as_u64().unwrap_or(0) {
            self.problem(node.position, "this list must not be empty");
            return None;
        }
        let mut values = Vec::with_capacity(items.len());
        let mut kept = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let value = self.inside(index, |walk| walk.value(item, &schema["items"], item.position));
            match value {
                Some(value) => {
                    values.push(value);
                    kept.push(index);
                }
                None => self.inside(index, Self::drop_here),
            }
        }
        if kept.len() < items.len() {
            self.found.kept.insert(self.path.clone(), kept);
        }
        Some(Yaml::Sequence(values))
    }

    /// A map whose other keys depend on one of them (`type`, `mode`).
    fn tagged(&mut self, node: &Node, variants: &'a [Json], name: &str, at: Position) -> Option<Yaml> {
        let tag = variants
            .iter()
            .filter_map(|variant| variant["properties"].as_object())
            .flat_map(|properties| properties.iter().filter(|(_, property)| property["const"].is_string()))
            .map(|(tag, _)| tag.as_str())
            .next()?;
        let names: Vec<&str> =
            variants.iter().filter_map(|variant| variant["properties"][tag]["const"].as_str()).collect();
        if !matches!(node.value, Value::Map(_)) {
            self.mismatch(node, "a map").help = Some(format!("write a map with `{tag}`: {}", one_of(&names)));
            return None;
        }
        let Some(entry) = node.get(tag).filter(|entry| !entry.node.is_null()) else {
            self.missing(tag, at, Some(format!("write {}", one_of(&names))));
            return self.untagged(node, variants, name, tag);
        };
        let Some(chosen) = self.inside(tag.to_owned(), |walk| walk.choice(&entry.node, names)) else {
            return self.untagged(node, variants, name, tag);
        };
        let variant =
            variants.iter().find(|variant| variant["properties"][tag]["const"].as_str() == chosen.as_str())?;
        self.object(node, variant, name, at, Some(tag))
    }

    /// What can still be checked of a map whose tag is wrong.
    fn untagged(&mut self, node: &Node, variants: &'a [Json], name: &str, tag: &str) -> Option<Yaml> {
        for entry in node.entries().iter().filter(|entry| *entry.key != *tag && !entry.node.is_null()) {
            if let Some(property) = stand_in::common(variants, &entry.key) {
                self.inside(entry.key.to_string(), |walk| walk.value(&entry.node, property, entry.position));
            }
        }
        let (key, plain) = stand_in::untagged(name)?;
        let text = node.get(key)?.node.text()?;
        self.inside(tag.to_owned(), Self::drop_here);
        let entries = [(tag, plain), (key, text)].map(|(key, text)| (Yaml::from(key), Yaml::from(text)));
        Some(Yaml::Mapping(Mapping::from_iter(entries)))
    }

    /// Says that a required field is missing from the map that begins here.
    fn missing(&mut self, field: &str, at: Position, help: Option<String>) {
        let problem = Problem::new(at, display_path(&self.path), format!("`{field}` is missing"));
        self.found.problems.push(Problem { help, ..problem });
        self.inside(field.to_owned(), |walk| walk.found.flawed.insert(walk.path.clone()));
    }

    /// How a required field of this schema is written.
    fn how_to_write(&self, field: &str, schema: &'a Json) -> Option<String> {
        let Resolution { schema, .. } = self.resolve(schema);
        let choices = choices(schema);
        match types(schema).first() {
            _ if !choices.is_empty() => Some(format!("write {}", one_of(&choices))),
            Some(&"string") => Some(format!("write `{field}: {}`", super::suggest::placeholder(field))),
            Some(&("integer" | "number")) => Some(format!("write `{field}: NUMBER`")),
            _ => None,
        }
    }

    /// How a map of this schema is written that was given as a word which one of its fields takes, and no other.
    fn with_word(&self, word: &str, schema: &'a Json) -> Option<String> {
        let fields = schema["properties"].as_object()?;
        let mut taking = fields.iter().filter(|(_, field)| choices(self.resolve(field).schema).contains(&word));
        let (field, _) = taking.next()?;
        taking.next().is_none().then(|| format!("write `{{ {field}: {word} }}`"))
    }

    /// Puts something in the place of required fields that were cut out, where the rest is worth a check without them.
    fn stand_in(&mut self, schema: &'a Json, name: &str, fields: &mut Fields<'a>) {
        for field in required(schema) {
            if fields.mapping.contains_key(field) {
                continue;
            }
            let Some(value) = stand_in::field(name, field) else { return };
            fields.mapping.insert(field.into(), value);
            self.inside(field.to_owned(), |walk| {
                walk.found.flawed.insert(walk.path.clone());
                walk.drop_here();
            });
        }
        fields.sound = true;
    }

    fn object(&mut self, node: &Node, schema: &'a Json, name: &str, at: Position, tag: Option<&str>) -> Option<Yaml> {
        let Value::Map(Map { entries, .. }) = &node.value else {
            let with_word = node.text().and_then(|word| self.with_word(word, schema));
            let help = with_word.or_else(|| super::suggest::shape(name, &self.path, node.text()));
            self.mismatch(node, "a map").help = help;
            return None;
        };
        let is_service = name == "ServiceSpec" || (self.path.is_empty() && schema["properties"]["service"].is_object());
        let mut fields = Fields::of(schema, is_service);
        for entry in entries {
            if self.is_full() {
                return None;
            }
            match property(schema, &entry.key) {
                None => self.unknown_key(entry, schema, &mut fields),
                Some(_) if tag == Some(&entry.key) => fields.tag(entry),
                Some(property) => self.field(entry, property, &mut fields),
            }
        }
        for field in std::mem::take(&mut fields.missing) {
            fields.sound = false;
            let help =
                super::suggest::required(field).or_else(|| self.how_to_write(field, &schema["properties"][field]));
            self.missing(field, at, help);
            self.inside(field.to_owned(), Self::drop_here);
        }
        if !fields.sound {
            self.stand_in(schema, name, &mut fields);
        }
        if is_service && !fields.mapping.contains_key("image") {
            // The rest of a service is checked even when its image is what is wrong.
            let placeholder = Mapping::from_iter([(Yaml::from("name"), Yaml::from("host"))]);
            fields.mapping.insert("image".into(), placeholder.into());
            fields.sound = true;
        }
        (fields.sound || self.path.is_empty()).then_some(Yaml::Mapping(fields.mapping))
    }

    /// Reads the value of a known key.
    fn field(&mut self, entry: &Entry, property: &'a Json, fields: &mut Fields<'a>) {
        let key = &*entry.key;
        let alias = SERVICE_ALIASES.iter().find(|(alias, _)| fields.is_service && *alias == key);
        let field = alias.map_or(key, |(_, field)| *field);
        if fields.mapping.contains_key(field) {
            let message = format!("`{field}` is written twice, once as `{key}`");
            self.inside(key.to_owned(), |walk| {
                walk.problem(entry.position, message);
            });
            return;
        }
        // Nothing after the colon is the same as leaving the key out, except in maps of free keys.
        if fields.closed && entry.node.is_null() {
            return;
        }
        let required = fields.missing.contains(&field);
        fields.missing.retain(|name| *name != field);
        let value = self.inside(key.to_owned(), |walk| {
            let value = walk.value(&entry.node, property, entry.position);
            if value.is_none() {
                walk.drop_here();
            }
            value
        });
        match value {
            Some(value) => {
                fields.mapping.insert(field.into(), value);
            }
            None => fields.sound &= !required,
        }
    }

    fn unknown_key(&mut self, entry: &Entry, schema: &Json, fields: &mut Fields<'_>) {
        let key = &*entry.key;
        if key.starts_with("x-") {
            return;
        }
        let known: Vec<&str> =
            schema["properties"].as_object().map(|map| map.keys().map(String::as_str).collect()).unwrap_or_default();
        let best = nearest(key, &known);
        // The misspelt key is the missing one: one message is enough, and nothing else of the map is in doubt.
        let meant = best.filter(|best| fields.missing.contains(best));
        if let Some(meant) = meant {
            fields.missing.retain(|field| *field != meant);
            fields.sound = false;
        }
        let help = elsewhere(key, &known)
            .or_else(|| best.map(|best| format!("did you mean `{best}`?")))
            .unwrap_or_else(|| match known.len() {
                0..=MOST_LISTED => format!("known keys are {}; keys that begin with x- are free", known.join(", ")),
                _ => "no key here has a name like it; keys that begin with x- are free".to_owned(),
            });
        let problem = self.inside(key.to_owned(), |walk| {
            let message = format!("unknown key `{key}`");
            Problem::new(entry.position, display_path(&walk.path), message).with_help(help)
        });
        self.found.problems.push(problem);
        // In doubt is what it was meant to be, and not what nobody reads.
        self.inside(meant.unwrap_or(key).to_owned(), |walk| walk.found.flawed.insert(walk.path.clone()));
    }
}

/// A map that is being read.
struct Fields<'a> {
    mapping: Mapping,
    /// Required fields that were not seen yet.
    missing: Vec<&'a str>,
    /// Whether no required field had to be cut out.
    sound: bool,
    /// Whether only known keys are allowed.
    closed: bool,
    is_service: bool,
}

impl<'a> Fields<'a> {
    fn of(schema: &'a Json, is_service: bool) -> Self {
        Self {
            mapping: Mapping::new(),
            missing: required(schema).collect(),
            sound: true,
            closed: schema["additionalProperties"] == Json::Bool(false),
            is_service,
        }
    }

    /// Takes the key that chose the variant; it was checked with the choice.
    fn tag(&mut self, entry: &Entry) {
        self.missing.retain(|name| **name != *entry.key);
        let text = entry.node.text().unwrap_or_default();
        self.mapping.insert(Yaml::from(&*entry.key), Yaml::from(text));
    }
}

fn property<'a>(schema: &'a Json, key: &str) -> Option<&'a Json> {
    match (schema["properties"].get(key), &schema["additionalProperties"]) {
        (Some(property), _) => Some(property),
        (None, Json::Bool(false)) => None,
        (None, additional) => Some(additional),
    }
}

/// The words that a value of this schema is one of; none where it is something else.
fn choices(schema: &Json) -> Vec<&str> {
    let consts = schema["oneOf"].as_array().into_iter().flatten().filter_map(|one| one["const"].as_str());
    let words = schema["enum"].as_array().into_iter().flatten().filter_map(Json::as_str);
    consts.chain(words).collect()
}

/// The required fields of a map.
fn required(schema: &Json) -> impl Iterator<Item = &str> {
    schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str)
}

fn is_null(schema: &Json) -> bool {
    schema["type"] == "null"
}

fn types(schema: &Json) -> Vec<&str> {
    match &schema["type"] {
        Json::String(one) => vec![one],
        Json::Array(many) => many.iter().filter_map(Json::as_str).filter(|name| *name != "null").collect(),
        _ => Vec::new(),
    }
}

/// A value that no schema describes, as it stands.
fn free(node: &Node) -> Yaml {
    match &node.value {
        Value::List(items) => Yaml::Sequence(items.iter().map(|item| free(item)).collect()),
        Value::Map(Map { entries, .. }) => Yaml::Mapping(
            entries.iter().map(|entry| (Yaml::String(entry.key.to_string()), free(&entry.node))).collect(),
        ),
        Value::Scalar(Scalar { text, resolved }) => match resolved {
            Resolved::Null => Yaml::Null,
            Resolved::Bool(value) => Yaml::Bool(*value),
            Resolved::Unsigned(number) => Yaml::from(*number),
            Resolved::Signed(number) => Yaml::from(*number),
            Resolved::Float(number) => Yaml::from(*number),
            Resolved::Text => Yaml::String(text.clone()),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize as _;

    use super::*;
    use crate::spec::tree;

    /// What `serde_yaml` itself makes of the documents of a text, merge keys applied.
    fn by_serde(text: &str) -> Vec<Yaml> {
        serde_yaml::Deserializer::from_str(text)
            .map(|document| {
                let mut value = Yaml::deserialize(document).unwrap();
                value.apply_merge().unwrap();
                value
            })
            .collect()
    }

    fn by_tree(text: &str) -> Vec<Yaml> {
        let forest = tree::read(text);
        assert_eq!(forest.problems, [], "{text}");
        forest.documents.iter().map(|document| free(&document.root)).collect()
    }

    #[test]
    fn the_tree_holds_what_serde_yaml_reads() {
        for folder in ["tests/specs/valid", "examples", "specs"] {
            let Ok(entries) = std::fs::read_dir(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)) else {
                continue;
            };
            let paths = entries.map(|entry| entry.unwrap().path());
            for path in paths.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")) {
                let text = std::fs::read_to_string(&path).unwrap();
                assert_eq!(by_tree(&text), by_serde(&text), "{}", path.display());
            }
        }
    }

    fn value() -> impl Strategy<Value = Yaml> {
        let text = prop_oneof!["[a-z]{0,6}", "\\PC{0,8}", "[-+.0-9exo:#~ ]{0,6}", "(true|no|null|0x1|1_0|\n|- a|a: b)"];
        let leaf = prop_oneof![
            text.prop_map(Yaml::from),
            any::<bool>().prop_map(Yaml::from),
            any::<i64>().prop_map(Yaml::from),
            any::<u64>().prop_map(Yaml::from),
            (-1e9..1e9).prop_map(|number: f64| Yaml::from(number)),
            Just(Yaml::Null),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Yaml::from),
                prop::collection::vec(("[a-z<0-9 ]{1,5}", inner), 0..5).prop_map(|entries| {
                    let entries = entries.into_iter().map(|(key, value)| (Yaml::String(format!("k{key}")), value));
                    Yaml::Mapping(entries.collect())
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_tree_holds_what_serde_yaml_writes(value in value()) {
            prop_assume!(!value.is_null());
            let text = serde_yaml::to_string(&value).unwrap();
            prop_assert_eq!(by_tree(&text), vec![value], "{}", text);
        }
    }
}
