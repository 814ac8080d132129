//! What a plain scalar means: the core schema of YAML 1.2.

/// A plain scalar's meaning.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Resolved {
    Null,
    Bool(bool),
    Unsigned(u64),
    /// Below zero.
    Signed(i64),
    Float(f64),
    Text,
}

impl Resolved {
    /// What the value is called in messages.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Unsigned(_) | Self::Signed(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Text => "text",
        }
    }
}

/// Resolves a plain scalar (<https://yaml.org/spec/1.2.2/#103-core-schema>). Whole numbers beyond 64 bits
/// are floats. A decimal number with a leading zero is text, as in the `serde_yaml` family: YAML 1.1 reads
/// it as octal, YAML 1.2 as decimal, and a file that means different things to different tools is a trap.
pub(super) fn resolve(text: &str) -> Resolved {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Resolved::Null,
        "true" | "True" | "TRUE" => return Resolved::Bool(true),
        "false" | "False" | "FALSE" => return Resolved::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Resolved::Float(f64::NAN),
        _ => {}
    }
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if matches!(digits, ".inf" | ".Inf" | ".INF") {
        return Resolved::Float(if negative { f64::NEG_INFINITY } else { f64::INFINITY });
    }
    integer(negative, digits).or_else(|| float(text, digits)).unwrap_or(Resolved::Text)
}

fn integer(negative: bool, digits: &str) -> Option<Resolved> {
    let (radix, digits) = match digits.get(..2) {
        Some("0x") => (16, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        Some("0b") => (2, &digits[2..]),
        _ if has_leading_zero(digits) => return None,
        _ => (10, digits),
    };
    if !digits.bytes().next()?.is_ascii_alphanumeric() {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    match negative {
        false => Some(Resolved::Unsigned(magnitude)),
        true => match 0_i64.checked_sub_unsigned(magnitude)? {
            0 => Some(Resolved::Unsigned(0)),
            number => Some(Resolved::Signed(number)),
        },
    }
}

fn float(text: &str, digits: &str) -> Option<Resolved> {
    let shaped = digits.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b))
        && digits.bytes().any(|b| b.is_ascii_digit())
        && digits.bytes().next().is_some_and(|b| b.is_ascii_digit() || b == b'.')
        && !has_leading_zero(digits);
    match text.parse() {
        Ok(number) if shaped && f64::is_finite(number) => Some(Resolved::Float(number)),
        _ => None,
    }
}

/// Whether a decimal number begins with a zero that means nothing: `080`.
pub(super) fn has_leading_zero(digits: &str) -> bool {
    digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_follow_the_core_schema() {
        let cases = [
            ("", Resolved::Null),
            ("~", Resolved::Null),
            ("true", Resolved::Bool(true)),
            ("yes", Resolved::Text),
            ("on", Resolved::Text),
            ("80", Resolved::Unsigned(80)),
            ("+80", Resolved::Unsigned(80)),
            ("-1", Resolved::Signed(-1)),
            ("0x1F", Resolved::Unsigned(31)),
            ("0o755", Resolved::Unsigned(493)),
            ("080", Resolved::Text),
            ("1.10", Resolved::Float(1.1)),
            ("1e3", Resolved::Float(1000.0)),
            ("-.inf", Resolved::Float(f64::NEG_INFINITY)),
            ("1.2.3", Resolved::Text),
            ("12:30", Resolved::Text),
            ("++1", Resolved::Text),
            ("-", Resolved::Text),
            (".", Resolved::Text),
            ("1_000", Resolved::Text),
            ("infinity", Resolved::Text),
            ("18446744073709551616", Resolved::Float(18_446_744_073_709_551_616.0)),
        ];
        for (text, expected) in cases {
            assert_eq!(resolve(text), expected, "{text:?}");
        }
    }
}
