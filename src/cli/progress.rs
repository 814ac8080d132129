//! How far deployments are, while somebody waits: bars on a terminal, a line per change elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::goal::{Goal, Goals};
use super::output::note;
use super::text::{count, harmless};
use crate::status::{JobKind, JobView, ServiceView, Status};

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
        said: BTreeMap<String, Line>,
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
    /// What they are to be.
    pub unit: &'static str,
    /// What is wrong, or is being waited for.
    pub message: String,
    /// What is being done meanwhile, in the runtime's words, which tell how far it is.
    pub work: String,
}

impl Line {
    fn text(&self) -> String {
        let Self { key, done, total, unit, .. } = self;
        let message = harmless(self.words());
        match (total, message.is_empty()) {
            (0, false) => format!("{key}: {message}"),
            (_, true) => format!("{key} {done}/{total} {unit}"),
            (_, false) => format!("{key} {done}/{total} {unit}: {message}"),
        }
    }

    fn words(&self) -> &str {
        if self.message.is_empty() { &self.work } else { &self.message }
    }

    /// Whether it tells nothing but other numbers of the same work.
    fn repeats(&self, other: &Self) -> bool {
        let work = |line: &Self| line.work.replace(|letter: char| letter.is_ascii_digit(), "");
        work(self) == work(other) && *self == Self { work: self.work.clone(), ..other.clone() }
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
                    if said.get(&line.key).is_none_or(|last| !line.repeats(last)) {
                        note(line.text());
                        said.insert(line.key.clone(), line);
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
                    bar.set_message(harmless(line.words()));
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

/// What is wrong with a service; empty where nothing is.
fn trouble(service: &ServiceView) -> String {
    let failing = service.conditions.iter().find(|condition| condition.kind == "ReplicaFailure");
    failing.map(|condition| condition.message.clone()).unwrap_or_default()
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
                let message = match (left, message) {
                    (0, None) => "gone".to_owned(),
                    (0, Some(_)) => "being removed".to_owned(),
                    (left, Some(_) | None) => format!("being removed, {} left", count(left, "instance")),
                };
                let work = String::new();
                lines.push(Line { key: name.clone(), done: 0, total: 0, unit: "ready", message, work });
            }
            Goal::Running if services.is_empty() => {
                // Not known yet, or without services.
                lines.extend(message.filter(|text| !text.is_empty()).map(|message| Line {
                    key: name.clone(),
                    done: 0,
                    total: 0,
                    unit: "ready",
                    message,
                    work: String::new(),
                }));
            }
            Goal::Running => lines.extend(services.into_iter().filter_map(|service| line(status, service))),
        }
    }
    lines
}

/// What is to be said of one service. A cron service only has to be declared.
fn line(status: &Status, service: &ServiceView) -> Option<Line> {
    let key = format!("{}/{}", service.deployment, service.service);
    let (done, total, unit) = match &service.job {
        Some(JobView { kind: JobKind::Cron, .. }) => return None,
        Some(job) => {
            let succeeded = job.active.last().map(|run| run.succeeded);
            (succeeded.or(job.finished.first().map(|run| run.succeeded)).unwrap_or(0), job.completions, "completed")
        }
        None => (service.ready.min(service.updated).min(service.desired), service.desired, "ready"),
    };
    Some(Line { key, done, total, unit, message: trouble(service), work: work(status, service) })
}

/// What is being done for an instance of a service that does not exist yet, such as getting its image.
fn work(status: &Status, service: &ServiceView) -> String {
    let told = status.instances.iter().find(|instance| {
        instance.deployment == service.deployment
            && instance.service == service.service
            && instance.runtime_id.is_empty()
            && !instance.message.is_empty()
    });
    told.map(|instance| instance.message.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(message: &str, ready: u32, instances: usize) -> Status {
        let failing =
            json!({"type": "ReplicaFailure", "status": "True", "reason": "CrashLoopBackOff", "message": message});
        let conditions = if message.is_empty() { vec![] } else { vec![failing] };
        let instance = json!({"deployment": "demo", "service": "web", "slot": 0, "name": "demo/web/0", "runtime": "sim",
            "runtime_id": "x", "pid": null, "phase": "running", "ready": false, "revision": "r", "restarts": 0,
            "created_at": "2024-01-01T00:00:00Z", "started_at": null, "ports": [], "exit": null, "message": "",
            "conditions": []});
        serde_json::from_value(json!({
            "generation": 1, "synced": true, "problems": [], "hold": null, "runtimes": [],
            "deployments": [{"deployment": "demo", "source": null, "state": "progressing", "message": message, "conditions": []}],
            "services": [{"deployment": "demo", "service": "web", "source": null, "runtime": "sim", "image": "host",
                "desired": 3, "running": 3, "ready": ready, "updated": 2, "revision": "r", "conditions": conditions}],
            "instances": vec![instance; instances],
        }))
        .unwrap()
    }

    fn texts(status: &Status, goal: Goal) -> Vec<String> {
        lines(status, &Goals::from([("demo".to_owned(), goal)])).iter().map(Line::text).collect()
    }

    #[test]
    fn ready_instances_count_only_when_they_are_up_to_date() {
        assert_eq!(texts(&status("", 3, 3), Goal::Running), ["demo/web 2/3 ready"]);
        assert_eq!(texts(&status("back-off", 1, 3), Goal::Running), ["demo/web 1/3 ready: back-off"]);
    }

    #[test]
    fn work_that_goes_on_is_told_and_other_numbers_of_it_are_no_news() {
        let at = |ready: u32, message: &str| {
            let mut status = status("", ready, 1);
            status.instances[0].runtime_id = String::new();
            status.instances[0].message = message.to_owned();
            lines(&status, &Goals::from([("demo".to_owned(), Goal::Running)])).remove(0)
        };
        let first = at(1, "0 of 1 layers 2/25 MiB");
        assert_eq!(first.text(), "demo/web 1/3 ready: 0 of 1 layers 2/25 MiB");
        assert!(at(1, "0 of 1 layers 13/25 MiB").repeats(&first));
        assert!(!at(2, "0 of 1 layers 13/25 MiB").repeats(&first));
        assert!(!at(1, "unpacking").repeats(&first));
    }

    #[test]
    fn a_removal_tells_what_is_left() {
        assert_eq!(texts(&status("", 3, 2), Goal::Gone), ["demo: being removed, 2 instances left"]);
        assert_eq!(texts(&Status::default(), Goal::Gone), ["demo: gone"]);
        assert_eq!(texts(&Status::default(), Goal::Running), Vec::<String>::new());
    }
}
