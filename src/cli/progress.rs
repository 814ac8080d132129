//! How far deployments are, while somebody waits: bars on a terminal, a line per change elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::converge::{Goal, Goals};
use super::output::note;
use super::text::harmless;
use crate::status::Status;

/// Between two turns of a spinner (indicatif's own examples: 100 ms).
const TICK: Duration = Duration::from_millis(100);

/// Most bars at a time; a terminal is rarely higher (24 to 60 lines), and bars that scroll away can't be redrawn.
const MAX_BARS: usize = 20;

/// Shows how far things are.
pub enum Progress {
    /// Bars that are redrawn.
    Live {
        /// All of them.
        all: MultiProgress,
        /// By service, or by deployment where it has none.
        bars: BTreeMap<String, ProgressBar>,
    },
    /// A line per change.
    Plain {
        /// What was said last, by the same keys.
        said: BTreeMap<String, String>,
    },
}

/// What is said of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `DEPLOYMENT/SERVICE`, or the deployment.
    pub key: String,
    /// How many are as they should be.
    pub done: u32,
    /// Of how many.
    pub total: u32,
    /// What is being done or waited for.
    pub message: String,
}

impl Line {
    fn text(&self) -> String {
        let Self { key, done, total, message } = self;
        let separator = if message.is_empty() { "" } else { ": " };
        format!("{key} {done}/{total}{separator}{}", harmless(message))
    }
}

impl Progress {
    /// Bars where the terminal can show them.
    pub fn new(live: bool) -> Self {
        if live {
            Self::Live { all: MultiProgress::new(), bars: BTreeMap::new() }
        } else {
            Self::Plain { said: BTreeMap::new() }
        }
    }

    /// Shows how things are now.
    pub fn show(&mut self, status: &Status, goals: &Goals) {
        let lines = lines(status, goals);
        match self {
            Self::Plain { said } => {
                for line in lines {
                    let text = line.text();
                    if said.insert(line.key, text.clone()).as_ref() != Some(&text) {
                        note(text);
                    }
                }
            }
            Self::Live { all, bars } => {
                bars.retain(|key, bar| {
                    let shown = lines.iter().any(|line| line.key == *key);
                    if !shown {
                        bar.finish_and_clear();
                    }
                    shown
                });
                for line in lines.into_iter().take(MAX_BARS) {
                    let bar = bars.entry(line.key.clone()).or_insert_with(|| all.add(bar(&line.key)));
                    bar.set_length(line.total.into());
                    bar.set_position(line.done.into());
                    bar.set_message(harmless(&line.message));
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Self::Live { all, .. } = self {
            // What failed or succeeded is said in words next.
            let _ = all.clear();
        }
    }
}

fn bar(key: &str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_prefix(key.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{bar:20}] {pos}/{len} {wide_msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(TICK);
    bar
}

/// What is to be said, by service.
pub fn lines(status: &Status, goals: &Goals) -> Vec<Line> {
    let mut lines = Vec::new();
    for (name, goal) in goals {
        let message = status.deployments.iter().find(|view| view.deployment == *name).map(|view| view.message.clone());
        let services: Vec<_> = status.services.iter().filter(|service| service.deployment == *name).collect();
        match goal {
            Goal::Gone => {
                let left = status.instances.iter().filter(|instance| instance.deployment == *name).count();
                let left = u32::try_from(left).unwrap_or(u32::MAX);
                let message = match (left, message) {
                    (0, None) => "gone".to_owned(),
                    (_, message) => {
                        message.filter(|text| !text.is_empty()).unwrap_or_else(|| "being removed".to_owned())
                    }
                };
                lines.push(Line { key: name.clone(), done: 0, total: left, message });
            }
            Goal::Running if services.is_empty() => {
                lines.push(Line { key: name.clone(), done: 0, total: 0, message: message.unwrap_or_default() });
            }
            Goal::Running => lines.extend(services.into_iter().map(|service| Line {
                key: format!("{name}/{}", service.service),
                done: service.ready.min(service.updated).min(service.desired),
                total: service.desired,
                message: message.clone().unwrap_or_default(),
            })),
        }
    }
    lines
}
