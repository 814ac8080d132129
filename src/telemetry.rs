//! What the program tells about itself while it works.

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::output::Colours;
use crate::cli::text::harmless;

/// The variable that says what is logged, in `RUST_LOG`'s language: `debug`, `evenkeel::source=trace`.
pub const FILTER: &str = "KEEL_LOG";

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A readable line per event: short on a terminal, with time and level elsewhere
    Text,
    /// A JSON object per event
    Json,
}

/// How much is logged when the variable says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// What needs a look.
    Warnings,
    /// What is done, and why.
    Steps,
    /// What was looked at.
    Details,
    /// Everything.
    Everything,
}

impl Verbosity {
    /// This much and `more` levels more.
    #[must_use]
    pub fn raised(self, more: u8) -> Self {
        let levels = [Self::Warnings, Self::Steps, Self::Details, Self::Everything];
        let at = levels.iter().position(|level| *level == self).unwrap_or(0) + usize::from(more);
        levels.get(at).copied().unwrap_or(Self::Everything)
    }

    const fn filter(self) -> &'static str {
        match self {
            Self::Warnings => "off,evenkeel=warn",
            // The file watcher warns of watches on what is gone: the source follows that itself, and says what it means.
            Self::Steps => "warn,notify=error,evenkeel=info",
            Self::Details => "info,evenkeel=debug",
            Self::Everything => "debug,evenkeel=trace",
        }
    }
}

/// Starts logging on standard error. The first call counts.
pub fn start(format: LogFormat, verbosity: Verbosity) {
    let named = std::env::var(FILTER).ok().filter(|text| !text.trim().is_empty());
    let named = named.and_then(|text| EnvFilter::try_new(text).ok());
    let filter = named.unwrap_or_else(|| EnvFilter::new(verbosity.filter()));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let terminal = std::io::stderr().is_terminal();
    // A second start is a mistake of tests alone, and harmless.
    let _ = match format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder.event_format(Line::for_stderr(terminal)).try_init(),
    };
}

/// One readable line per event.
struct Line {
    terminal: bool,
    /// The journal wants the level as a number in front and adds the time itself (sd-daemon(3)).
    journal: bool,
    colours: Colours,
}

impl Line {
    fn for_stderr(terminal: bool) -> Self {
        let journal = !terminal && std::env::var_os("JOURNAL_STREAM").is_some();
        Self { terminal, journal, colours: Colours::for_stream(terminal) }
    }

    fn head(&self, level: Level, to: &mut Writer<'_>) -> fmt::Result {
        if self.journal {
            return write!(to, "<{}>", priority(level));
        }
        if self.terminal {
            let time = chrono::Local::now().format("%H:%M:%S").to_string();
            write!(to, "{} ", self.colours.dim(&time))?;
            return match level {
                Level::ERROR => write!(to, "{} ", self.colours.red("error:")),
                Level::WARN => write!(to, "{} ", self.colours.yellow("warning:")),
                _ => Ok(()),
            };
        }
        SystemTime.format_time(to)?;
        write!(to, " {level} ")
    }
}

/// Priorities of syslog(3).
const fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        self.head(*event.metadata().level(), &mut to)?;
        let mut text = String::new();
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        writeln!(to, "{}", harmless(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbosity_is_raised_to_its_end() {
        assert_eq!(Verbosity::Warnings.raised(0), Verbosity::Warnings);
        assert_eq!(Verbosity::Warnings.raised(1), Verbosity::Steps);
        assert_eq!(Verbosity::Steps.raised(9), Verbosity::Everything);
    }
}
