//! How messages name values, choices and bounds.

use super::scalar::{self, Resolved};
use super::tree::{Node, Scalar, Value};

/// Says that a number is outside of its bounds.
pub(super) fn out_of(number: i128, least: i128, most: i128) -> String {
    match most {
        most if most < i128::from(u32::MAX) => format!("{number} is out of range: it must be from {least} to {most}"),
        _ if number < least => format!("{number} is too small: it must be at least {least}"),
        most => format!("{number} is too large: it must be at most {most}"),
    }
}

/// How a number is written that stands there as text.
pub(super) fn number_help(text: &str) -> Option<String> {
    if scalar::has_leading_zero(text) {
        let digits = text.trim_start_matches('0');
        return Some(format!("write {}, or 0o{digits} if it is octal", if digits.is_empty() { "0" } else { digits }));
    }
    matches!(scalar::resolve(text), Resolved::Unsigned(_) | Resolved::Signed(_))
        .then(|| format!("write {text}, without quotes"))
}

/// A choice as messages name it.
pub(super) fn one_of(choices: &[&str]) -> String {
    match choices {
        [one] => format!("{one:?}"),
        many => format!("one of {}", many.join(", ")),
    }
}

/// A value as messages name it, long text cut.
pub(super) fn describe(node: &Node) -> String {
    const LONGEST: usize = 40;
    match &node.value {
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a map".to_owned(),
        Value::Scalar(Scalar { resolved: Resolved::Null, .. }) => "nothing".to_owned(),
        Value::Scalar(Scalar { text, resolved }) => {
            let cut: String = text.chars().take(LONGEST).collect();
            let dots = if cut.len() < text.len() { "..." } else { "" };
            match resolved {
                Resolved::Text => format!("text {cut:?}{dots}"),
                resolved => format!("{} ({cut}{dots})", resolved.kind()),
            }
        }
    }
}
