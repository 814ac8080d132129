//! What stands in the place of required parts that are wrong, so that the elements of lists that hold them are still
//! checked against the other elements. Nothing is ever run with it: a document with problems is refused.

use serde_json::Value as Json;
use serde_yaml::Value as Yaml;

/// A value for a required field, by the name of its definition; absent where nothing is gained by it.
///
/// None of them gives reason to say anything of another field.
pub(super) fn field(definition: &str, field: &str) -> Option<Yaml> {
    Some(match (definition, field) {
        ("Endpoint" | "Storage", "name")
        | ("Storage", "source" | "bucket" | "target")
        | ("InitStep", "id" | "uses") => Yaml::from("none"),
        ("Endpoint", "protocol") => Yaml::from("http"),
        ("Endpoint", "port") | ("PortMapping", "container_port") => Yaml::from(1),
        _ => return None,
    })
}

/// For a map whose other keys depend on a tag that is wrong: the key that is checked all the same, and the tag with which
/// nothing else is needed.
pub(super) fn untagged(definition: &str) -> Option<(&'static str, &'static str)> {
    (definition == "Storage").then_some(("target", "anonymous"))
}

/// The schema of a key of such a map, whatever its tag is meant to be: the only one, or what all that know the key agree on.
pub(super) fn common<'a>(variants: &'a [Json], key: &str) -> Option<&'a Json> {
    let mut known = variants.iter().filter_map(|variant| variant["properties"].get(key));
    let first = known.next()?;
    known.all(|other| without_words(other) == without_words(first)).then_some(first)
}

/// A schema without what it says to people.
fn without_words(schema: &Json) -> Json {
    let mut schema = schema.clone();
    if let Some(map) = schema.as_object_mut() {
        map.remove("description");
    }
    schema
}
