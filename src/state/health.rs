//! What health checks say of a run.

use serde::{Deserialize, Serialize};

/// Most characters of a failed check that are kept: a line of a terminal or two.
const LONGEST_MESSAGE: usize = 200;

/// Why nothing is known of a run that was not checked yet.
pub const NOT_CHECKED: &str = "not checked yet";

/// Why what was healthy is not known to be so now.
const ASSUMED: &str = "it was before its checks changed; the new ones have not passed yet";

/// Why nothing is known of what nobody checks.
pub const NOBODY_CHECKS: &str = "no controller runs that checks it";

/// What health checks say of the present or last run of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum HealthState {
    /// Nothing: it was not checked yet, or can't be. It takes no traffic, and nothing is done about it.
    Unknown {
        /// Why, or what the last check said.
        why: String,
    },
    /// It was not checked yet, because checks of others take all places that there are. That says nothing of it, so that no
    /// deadline runs meanwhile. It takes no traffic.
    Waiting {
        /// What takes the places.
        why: String,
    },
    /// No check has passed in this run, and it may take its time.
    Starting {
        /// What the last check said, where there was one.
        last: Option<String>,
    },
    /// Checks pass.
    Healthy,
    /// It was healthy, or served unchecked, before the checks that are made now were declared; these have not passed, and not
    /// failed often enough. It takes traffic.
    Assumed,
    /// As many checks in a row failed as its spec allows.
    Unhealthy {
        /// What the last check said.
        last: String,
        /// Whether a check of the same kind passed in this run: a check that never did may be what is wrong.
        #[serde(default)]
        passed: bool,
    },
}

impl HealthState {
    /// The word for tables.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unknown { .. } | Self::Waiting { .. } => "unknown",
            Self::Starting { .. } => "starting",
            Self::Healthy | Self::Assumed => "healthy",
            Self::Unhealthy { .. } => "unhealthy",
        }
    }

    /// What the last check said, or why there was none.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Unknown { why: message } | Self::Waiting { why: message } | Self::Unhealthy { last: message, .. } => {
                Some(message)
            }
            Self::Starting { last } => last.as_deref(),
            Self::Healthy => None,
            Self::Assumed => Some(ASSUMED),
        }
    }

    /// Whether it takes traffic.
    pub const fn serves(&self) -> bool {
        matches!(self, Self::Healthy | Self::Assumed)
    }
}

impl std::fmt::Display for HealthState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())?;
        self.message().map_or(Ok(()), |message| write!(f, ": {message}"))
    }
}

/// What a check wrote, as a message: its last line that says something, cut where it is long, without what would steer a
/// terminal.
pub fn last_line(output: &str) -> Option<String> {
    let line = output.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let plain: String = line.chars().filter(|c| !c.is_control()).take(LONGEST_MESSAGE + 1).collect();
    match plain.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => Some(format!("{}...", plain.get(..end).unwrap_or_default())),
        None => (!plain.is_empty()).then_some(plain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_message_and_bounded() {
        for (output, message) in [
            ("", None),
            ("\n \n", None),
            ("a\nno route\n\n", Some("no route")),
            ("\u{1b}[31mred\u{7}", Some("[31mred")),
        ] {
            assert_eq!(last_line(output).as_deref(), message, "{output:?}");
        }
        let long = last_line(&"ä".repeat(1000)).unwrap();
        assert_eq!((long.chars().count(), long.ends_with("ä...")), (LONGEST_MESSAGE + 3, true));
        let fits = "x".repeat(LONGEST_MESSAGE);
        assert_eq!(last_line(&fits), Some(fits));
    }
}
