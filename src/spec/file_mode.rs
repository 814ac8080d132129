//! Permission bits of a file, always read as octal digits.

/// Permission bits. `0o1777`, `01777` and `1777` are the same: nobody writes these bits in decimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileMode(pub u32);

/// The text holds no permission bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not permission bits in octal")]
pub struct BadFileMode(pub String);

/// All bits of a mode: permissions, set-user-id, set-group-id and sticky.
const ALL_BITS: u32 = 0o7777;

impl std::str::FromStr for FileMode {
    type Err = BadFileMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim();
        let digits = digits.strip_prefix("0o").unwrap_or(digits);
        match u32::from_str_radix(digits, 8) {
            Ok(bits) if bits <= ALL_BITS && !digits.starts_with('+') => Ok(Self(bits)),
            _ => Err(BadFileMode(text.to_owned())),
        }
    }
}

impl std::fmt::Display for FileMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0o{:o}", self.0)
    }
}

impl serde::Serialize for FileMode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for FileMode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = super::Scalar::deserialize(deserializer)?;
        text.0.parse().map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for FileMode {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "FileMode".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["string", "integer"],
            "description": "Permission bits in octal: `0o1777`, `01777` or `1777`.",
            "pattern": "^(0o)?[0-7]{1,5}$",
            "minimum": 0,
            "examples": ["0o1777", "0755"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_always_octal() {
        for text in ["0o1777", "01777", "1777"] {
            assert_eq!(text.parse(), Ok(FileMode(0o1777)), "{text}");
        }
        for text in ["", "8", "rwx", "0o77777", "-1", "+1"] {
            assert_eq!(text.parse::<FileMode>(), Err(BadFileMode(text.to_owned())));
        }
        assert_eq!(FileMode(0o1777).to_string(), "0o1777");
    }
}
