//! Durations as people write them: `500ms`, `1m30s`, `2h`.

use std::time::Duration;

/// A length of time written as a human string (`500ms`, `1m30s`, `2h`). Serialises back to such a string, to the nanosecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    /// A duration of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The length of time.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<HumanDuration> for Duration {
    fn from(value: HumanDuration) -> Self {
        value.0
    }
}

impl std::fmt::Display for HumanDuration {
    /// As people are told it, to the millisecond: `933ms`, `12s`, `5m30s`, `1d2h`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        // What is shorter than a millisecond is not told as nothing.
        let shortest = u32::from(seconds == 0 && !self.0.is_zero());
        let units = [
            (seconds / 86_400, "d"),
            (seconds / 3_600 % 24, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
            (self.0.subsec_millis().max(shortest).into(), "ms"),
        ];
        if self.0.is_zero() {
            return f.write_str("0s");
        }
        units.iter().filter(|(count, _)| *count > 0).try_for_each(|(count, unit)| write!(f, "{count}{unit}"))
    }
}

impl std::str::FromStr for HumanDuration {
    type Err = humantime::DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text).map(Self)
    }
}

impl serde::Serialize for HumanDuration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> serde::Deserialize<'de> for HumanDuration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for HumanDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A length of time: `500ms`, `1m30s`, `2h`.",
            "examples": ["500ms", "1m30s", "2h"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_no_more_than_they_need() {
        let cases = [
            (Duration::ZERO, "0s"),
            (Duration::from_nanos(933_286_661), "933ms"),
            (Duration::from_nanos(1), "1ms"),
            (Duration::from_secs(12), "12s"),
            (Duration::from_millis(1_500), "1s500ms"),
            (Duration::from_nanos(2_000_000_001), "2s"),
            (Duration::from_secs(330), "5m30s"),
            (Duration::from_secs(93_600), "1d2h"),
        ];
        for (duration, text) in cases {
            assert_eq!(HumanDuration(duration).to_string(), text, "{duration:?}");
        }
    }

    #[test]
    fn what_is_stored_is_exact() {
        let exact = HumanDuration(Duration::from_nanos(90_933_286_661));
        let stored = serde_json::to_string(&exact).unwrap();
        assert_eq!(serde_json::from_str::<HumanDuration>(&stored).unwrap(), exact, "{stored}");
    }
}
