//! Fields that are text with a grammar of its own: durations, quantities, image references.

use std::fmt::Display;
use std::str::FromStr;

use super::tree::Node;
use super::{Bytes, CountOrPercent, Cpu, FileMode, HumanDuration, ImageRef, NetworkMode, RefillRate, Signal};

/// Says what is wrong with a text, if anything.
type Parse = fn(&str) -> Result<(), String>;

/// How such a field is checked.
#[derive(Clone, Copy)]
pub(super) struct Check {
    /// What would be right, with an example.
    pub(super) expected: &'static str,
    /// What is wrong with a text, if anything.
    pub(super) parse: Parse,
}

/// The check of the schema definition `name`, where it is such a field.
pub(super) fn check_of(name: &str) -> Option<Check> {
    let (expected, parse): (_, Parse) = match name {
        "Bytes" => ("a number of bytes such as 512Mi, 1Gi or 500M", parse::<Bytes>),
        "CountOrPercent" => ("a count such as 2 or a share such as 25%", parse::<CountOrPercent>),
        "Cpu" => ("a number of CPUs such as 1.5 or 1500m", parse::<Cpu>),
        "Duration" => ("a length of time such as 500ms, 30s or 1m30s", |text| {
            text.parse::<HumanDuration>()
                .map(drop)
                .map_err(|error| format!("{text:?} is not a length of time: {error}"))
        }),
        "FileMode" => ("permission bits in octal such as 0o1777", parse::<FileMode>),
        "ImageRef" => ("a reference such as nginx:1.27, dir:./rootfs or host", parse::<ImageRef>),
        "NetworkMode" => ("default, host, none, bridge, bridge:NAME or container:ID", parse::<NetworkMode>),
        "RefillRate" => ("a number per second such as 5 or 0.5", parse::<RefillRate>),
        "Scalar" => ("text, a number or a boolean", |_| Ok(())),
        "Signal" => ("a signal name such as SIGTERM, INT or usr1", parse::<Signal>),
        _ => return None,
    };
    Some(Check { expected, parse })
}

/// The text that stands for another spelling of a field: the published format also takes
/// `network_mode: { bridge: { name: front } }` for `bridge:front`.
pub(super) fn as_text(name: &str, node: &Node) -> Option<Node> {
    let [entry] = node.entries() else { return None };
    let value = |key: &str| entry.node.get(key).and_then(|entry| entry.node.text());
    let text = match (name, &*entry.key, entry.node.entries().len()) {
        ("NetworkMode", "bridge", 0) => "bridge".to_owned(),
        ("NetworkMode", "bridge", 1) => format!("bridge:{}", value("name")?),
        ("NetworkMode", "container", 1) => format!("container:{}", value("id")?),
        _ => return None,
    };
    Some(Node::text_at(node.position, text))
}

fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<(), String> {
    text.parse::<T>().map(drop).map_err(|error| error.to_string())
}
