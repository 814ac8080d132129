//! Quantities: bytes (`512Mi`), CPU (`1.5`, `1500m`), rates (`0.5`) and counts that may be relative (`2`, `25%`).

use std::time::Duration;

use serde::de::Error as _;

/// A number of bytes, written `512Mi`, `1Gi`, `500M` or plain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// A share of CPUs in thousandths: `1.5` and `1500m` are 1500.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpu {
    /// Thousandths of one CPU; at least 1.
    pub millis: u64,
}

/// A count, or a share of the desired replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CountOrPercent {
    /// That many.
    Count(u32),
    /// That share of the desired replicas, in percent.
    Percent(u32),
}

/// A rate in thousandths per second: `5` is 5000, `0.5` is 500.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefillRate {
    /// Thousandths of one per second.
    pub thousandths: u32,
}

/// The text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct BadQuantity {
    /// What was written.
    pub text: String,
    /// What would be right, with an example.
    pub expected: &'static str,
}

/// Suffixes of Kubernetes quantities, longest first so that `Mi` is not read as `M`.
const BYTE_SUFFIXES: &[(&str, u64)] = &[
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("K", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
];

impl std::str::FromStr for Bytes {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadQuantity { text: text.to_owned(), expected: "a number of bytes such as 512Mi, 1Gi or 500M" };
        let trimmed = text.trim();
        let (number, factor) = BYTE_SUFFIXES
            .iter()
            .find_map(|(suffix, factor)| trimmed.strip_suffix(suffix).map(|number| (number, *factor)))
            .unwrap_or((trimmed, 1));
        let thousandths = decimal_thousandths(number).ok_or_else(bad)?;
        let bytes = thousandths.checked_mul(u128::from(factor)).ok_or_else(bad)? / 1000;
        u64::try_from(bytes).map(Self).map_err(|_| bad())
    }
}

impl std::str::FromStr for Cpu {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadQuantity { text: text.to_owned(), expected: "a number of CPUs such as 1.5 or 1500m" };
        let trimmed = text.trim();
        let millis = match trimmed.strip_suffix('m') {
            Some(number) => decimal_thousandths(number).ok_or_else(bad)? / 1000,
            None => decimal_thousandths(trimmed).ok_or_else(bad)?,
        };
        match u64::try_from(millis) {
            Ok(millis) if millis > 0 => Ok(Self { millis }),
            _ => Err(bad()),
        }
    }
}

impl std::str::FromStr for CountOrPercent {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadQuantity { text: text.to_owned(), expected: "a count such as 2 or a share such as 25%" };
        match text.trim().strip_suffix('%') {
            Some(number) => number.parse().map(Self::Percent).map_err(|_| bad()),
            None => text.trim().parse().map(Self::Count).map_err(|_| bad()),
        }
    }
}

impl std::str::FromStr for RefillRate {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let bad = || BadQuantity { text: text.to_owned(), expected: "a number per second such as 5 or 0.5" };
        let thousandths = decimal_thousandths(text.trim()).ok_or_else(bad)?;
        u32::try_from(thousandths).map(|thousandths| Self { thousandths }).map_err(|_| bad())
    }
}

impl RefillRate {
    /// The lowest: one member in about a quarter of an hour.
    pub const LEAST: Self = Self { thousandths: 1 };
    /// The highest: more than one machine starts.
    pub const MOST: Self = Self { thousandths: 1_000_000 };

    /// How many may be made within which time: as many as are due in a second, or one in the time for one.
    pub fn share(self) -> (u32, Duration) {
        let thousandths = self.thousandths.max(1);
        let count = thousandths.div_ceil(1000);
        (count, Duration::from_micros(u64::from(count) * 1_000_000_000 / u64::from(thousandths)))
    }
}

/// A non-negative decimal number in thousandths, digits past the third cut off.
fn decimal_thousandths(text: &str) -> Option<u128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    if !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    whole.checked_mul(1000)?.checked_add(digits.parse().ok()?)
}

impl CountOrPercent {
    /// The count for `desired` replicas, a share rounded up (as Kubernetes rounds maxSurge).
    pub fn rounded_up(self, desired: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => clamp(u64::from(percent) * u64::from(desired), |n| n.div_ceil(100)),
        }
    }

    /// The count for `desired` replicas, a share rounded down (as Kubernetes rounds maxUnavailable).
    pub fn rounded_down(self, desired: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => clamp(u64::from(percent) * u64::from(desired), |n| n / 100),
        }
    }
}

fn clamp(hundredfold: u64, divide: impl Fn(u64) -> u64) -> u32 {
    u32::try_from(divide(hundredfold)).unwrap_or(u32::MAX)
}

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::fmt::Display for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}m", self.millis)
    }
}

impl std::fmt::Display for RefillRate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", f64::from(self.thousandths) / 1000.0)
    }
}

impl std::fmt::Display for CountOrPercent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// A scalar that YAML may deliver as a number or as a string.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Integer(u64),
    Float(f64),
    Text(String),
}

impl NumberOrText {
    fn into_text(self) -> String {
        match self {
            Self::Integer(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

macro_rules! quantity_serde {
    ($type:ty, $name:literal, $description:literal, $types:expr, $pattern:literal, $examples:expr) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = NumberOrText::deserialize(deserializer)?.into_text();
                text.parse().map_err(D::Error::custom)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": $types,
                    "description": $description,
                    "pattern": $pattern,
                    "minimum": 0,
                    "examples": $examples
                })
            }
        }
    };
}

quantity_serde!(
    Bytes,
    "Bytes",
    "A number of bytes: `512Mi`, `1Gi`, `500M` or plain.",
    ["string", "integer"],
    r"^([0-9]+\.?[0-9]*|\.[0-9]+)(k|[KMGTP]i?)?$",
    ["512Mi", "1Gi"]
);
quantity_serde!(
    Cpu,
    "Cpu",
    "A number of CPUs: `1.5` or `1500m`.",
    ["string", "number"],
    r"^([0-9]+\.?[0-9]*|\.[0-9]+)m?$",
    ["1.5", "500m"]
);
quantity_serde!(
    RefillRate,
    "RefillRate",
    "A number per second: `5` or `0.5`.",
    ["string", "number"],
    r"^([0-9]+\.?[0-9]*|\.[0-9]+)$",
    ["5", "0.5"]
);
quantity_serde!(
    CountOrPercent,
    "CountOrPercent",
    "A count, or a share of the desired replicas: `2` or `25%`.",
    ["string", "integer"],
    "^[0-9]+%?$",
    ["1", "25%"]
);
