//! Signal names: `SIG` prefix optional, any case; canonical form upper case with prefix.

/// Linux signal numbers and their canonical names (signal(7), x86 and ARM).
const SIGNALS: &[(i32, &str)] = &[
    (1, "SIGHUP"),
    (2, "SIGINT"),
    (3, "SIGQUIT"),
    (4, "SIGILL"),
    (5, "SIGTRAP"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (9, "SIGKILL"),
    (10, "SIGUSR1"),
    (11, "SIGSEGV"),
    (12, "SIGUSR2"),
    (13, "SIGPIPE"),
    (14, "SIGALRM"),
    (15, "SIGTERM"),
    (16, "SIGSTKFLT"),
    (17, "SIGCHLD"),
    (18, "SIGCONT"),
    (19, "SIGSTOP"),
    (20, "SIGTSTP"),
    (21, "SIGTTIN"),
    (22, "SIGTTOU"),
    (23, "SIGURG"),
    (24, "SIGXCPU"),
    (25, "SIGXFSZ"),
    (26, "SIGVTALRM"),
    (27, "SIGPROF"),
    (28, "SIGWINCH"),
    (29, "SIGIO"),
    (30, "SIGPWR"),
    (31, "SIGSYS"),
];

/// First and last real-time signal as glibc gives them to programs (signal(7)): `SIGRTMIN+3` asks systemd in a
/// container to power off.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// A signal, kept by its Linux number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

impl Signal {
    /// Asks a process to end; the default stop signal.
    pub const TERM: Self = Self(15);
    /// Ends a process without asking.
    pub const KILL: Self = Self(9);

    /// The Linux number.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// The name of a signal number; unknown ones print `signal_<n>`.
    pub fn name_of(number: i32) -> String {
        let offset = number.saturating_sub(*REAL_TIME.start());
        match SIGNALS.iter().find(|(n, _)| *n == number) {
            Some((_, name)) => (*name).to_owned(),
            None if offset == 0 => "SIGRTMIN".to_owned(),
            None if REAL_TIME.contains(&number) => format!("SIGRTMIN+{offset}"),
            None => format!("signal_{number}"),
        }
    }

    fn by_name(bare: &str) -> Option<i32> {
        if let Some((number, _)) = SIGNALS.iter().find(|(_, name)| name.strip_prefix("SIG") == Some(bare)) {
            return Some(*number);
        }
        let number = if let Some(offset) = bare.strip_prefix("RTMIN+") {
            REAL_TIME.start().checked_add(offset.parse::<u8>().ok()?.into())?
        } else if let Some(offset) = bare.strip_prefix("RTMAX-") {
            REAL_TIME.end().checked_sub(offset.parse::<u8>().ok()?.into())?
        } else {
            match bare {
                "RTMIN" => *REAL_TIME.start(),
                "RTMAX" => *REAL_TIME.end(),
                number => number.parse().ok()?,
            }
        };
        (REAL_TIME.contains(&number) || SIGNALS.iter().any(|(n, _)| *n == number)).then_some(number)
    }
}

impl std::fmt::Display for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&Self::name_of(self.0))
    }
}

/// The text names no signal that exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown signal {0:?}; write a name such as SIGTERM, INT or usr1")]
pub struct UnknownSignal(pub String);

impl std::str::FromStr for Signal {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let upper = text.trim().to_ascii_uppercase();
        let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
        Self::by_name(bare).map(Self).ok_or_else(|| UnknownSignal(text.to_owned()))
    }
}

impl serde::Serialize for Signal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Signal {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for Signal {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Signal".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["string", "integer"],
            "description": "A signal by its name or number; the SIG prefix is optional, upper and lower case are the same.",
            "examples": ["SIGTERM", "INT", 15]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_every_spelling_and_written_in_one() {
        for (text, canonical) in [
            ("term", "SIGTERM"),
            ("SIGINT", "SIGINT"),
            ("Usr1", "SIGUSR1"),
            ("9", "SIGKILL"),
            ("rtmin", "SIGRTMIN"),
            ("SIGRTMIN+3", "SIGRTMIN+3"),
            ("RTMAX-1", "SIGRTMIN+29"),
        ] {
            assert_eq!(text.parse::<Signal>().map(|signal| signal.to_string()), Ok(canonical.to_owned()));
        }
        for text in ["", "SIG", "NOPE", "0", "33", "65", "RTMIN+31", "RTMAX-31", "RTMIN+-1", "99999999999"] {
            assert_eq!(text.parse::<Signal>(), Err(UnknownSignal(text.to_owned())));
        }
        assert_eq!(Signal::name_of(200), "signal_200");
        assert_eq!(Signal::name_of(-5), "signal_-5");
    }
}
