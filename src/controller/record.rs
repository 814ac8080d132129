//! What happened before and no runtime remembers: failed calls, first sightings of orphans, and jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use super::jobs::Memory;
use crate::plan::{Action, Dependency, Failure, History, Plan, RetireFailure, Retired, Wait};
use crate::runtime::RuntimeError;
use crate::spec::RuntimeKind;
use crate::state::{DesiredService, Instance, InstanceId, JobRecord};

/// History of one deployment.
#[derive(Debug, Default)]
pub struct Record {
    /// What planning is told.
    pub history: History,
    /// Jobs that are being remembered, or asked for.
    pub(super) memory: Memory,
    /// The instances as they were observed last, for starts that wait for others.
    pub observed: watch::Sender<Arc<Vec<Instance>>>,
    /// Dependencies of which it was told that they were waited for in vain.
    timeouts: BTreeSet<Dependency>,
}

impl Record {
    /// Where this is remembered of its jobs.
    pub fn of(jobs: BTreeMap<String, JobRecord>) -> Self {
        Self { history: History { jobs, ..History::default() }, ..Self::default() }
    }

    /// Notes what is there without a declaration; the first sighting counts.
    pub fn sight(&mut self, sighted: Vec<String>, now: DateTime<Utc>) {
        let orphans = &mut self.history.orphans;
        let before = std::mem::take(orphans);
        orphans.extend(sighted.into_iter().map(|key| {
            let first = before.get(&key).copied().unwrap_or(now);
            (key, first)
        }));
    }

    /// Forgets what failed and what was waited for, as somebody asks for everything to be tried again.
    pub fn begin_anew(&mut self) {
        let History { dependencies, jobs, suspended, lives, pools, .. } = std::mem::take(&mut self.history);
        self.history = History { dependencies, jobs, suspended, lives, pools, ..History::default() };
        self.timeouts.clear();
    }

    /// Forgets the failed calls of a service, or of all, so that they are made again at once.
    pub fn forget_failures(&mut self, of: Option<&str>) {
        self.history.failures.retain(|(service, _), _| of.is_some_and(|of| of != service));
    }

    /// Tells the starts under way what was observed, where there are any.
    pub fn tell(&self, observed: &[Instance]) {
        if self.observed.receiver_count() > 0 {
            self.observed.send_replace(Arc::new(observed.to_vec()));
        }
    }

    /// What the plan says of dependencies that were waited for in vain, each once until it is waited for anew; by the
    /// service that waited.
    pub fn new_timeouts(&mut self, plan: &Plan) -> Vec<(String, String)> {
        self.timeouts.retain(|dependency| self.history.awaited.contains_key(dependency));
        let is_over = |wait: &&Wait| matches!(wait, Wait::DependencyTimeout { .. } | Wait::WithoutDependency { .. });
        let over = plan.waits.iter().filter(is_over);
        let new = over.filter(|wait| wait.dependency().is_some_and(|one| self.timeouts.insert(one.clone())));
        let name = |wait: &Wait| wait.dependency().map(|one| one.service.clone()).unwrap_or_default();
        new.map(|wait| (name(wait), wait.to_string())).collect()
    }

    /// Notes that a call succeeded.
    pub fn succeeded(&mut self, action: &Action) {
        match action {
            Action::StartCreated { id, .. } => {
                self.history.failures.remove(&(id.service.clone(), id.slot));
            }
            Action::Start { instance } | Action::Resume { instance } => {
                self.history.failures.remove(&(instance.id.service.clone(), instance.id.slot));
            }
            Action::Remove { .. } | Action::Stop { .. } | Action::Suspend { .. } | Action::Teardown { .. } => {
                if let Some((retired, _)) = Retired::of(action) {
                    self.history.retiring.remove(&retired);
                }
            }
            Action::EnsureImage { .. } | Action::Init { .. } | Action::Create { .. } => {}
        }
    }

    /// Notes that a call failed for the service that is desired now, where it is.
    pub fn failed(
        &mut self,
        action: &Action,
        desired: Option<&DesiredService>,
        error: &RuntimeError,
        now: DateTime<Utc>,
    ) {
        match action {
            Action::EnsureImage { id, .. }
            | Action::Init { id, .. }
            | Action::Create { id, .. }
            | Action::StartCreated { id, .. } => {
                self.failed_launch(id, desired, error, now);
            }
            Action::Start { instance } | Action::Resume { instance } => {
                self.failed_launch(&instance.id, desired, error, now);
            }
            Action::Remove { .. } | Action::Stop { .. } | Action::Suspend { .. } | Action::Teardown { .. } => {
                self.failed_retirement(action, error, now);
            }
        }
    }

    fn failed_launch(
        &mut self,
        id: &InstanceId,
        desired: Option<&DesiredService>,
        error: &RuntimeError,
        now: DateTime<Utc>,
    ) {
        let slot = (id.service.clone(), id.slot);
        let is_same_template = |failure: &&Failure| match desired {
            Some(desired) => desired.are_made_alike(&failure.revision, &id.revision),
            None => failure.revision == id.revision,
        };
        let before = self.history.failures.get(&slot).filter(is_same_template);
        let failure = Failure {
            revision: id.revision.clone(),
            count: before.map_or(1, |failure| failure.count.saturating_add(1)),
            at: now,
            kind: error.kind,
            retryable: error.retryable(),
            message: error.message.clone(),
        };
        self.history.failures.insert(slot, failure);
    }

    fn failed_retirement(&mut self, action: &Action, error: &RuntimeError, now: DateTime<Utc>) {
        let Some((retired, call)) = Retired::of(action) else { return };
        let same = self.history.retiring.get(&retired).filter(|failure| failure.call.is_like(call));
        let before = same.map_or(0, |failure| failure.count);
        let (count, message) = (before.saturating_add(1), error.message.clone());
        self.history.retiring.insert(retired, RetireFailure { count, at: now, call, message });
    }

    /// Forgets failed stops and removals of what is not there any more, whoever removed it.
    pub fn forget_gone(&mut self, instances: &[Instance], shared: &BTreeSet<RuntimeKind>) {
        self.history.retiring.retain(|retired, _| match retired {
            Retired::Instance { runtime, id } => instances.iter().any(|one| one.runtime == *runtime && one.id == *id),
            Retired::Shared { runtime } => shared.contains(runtime),
        });
    }

    /// Why the last stop or removal of this failed, where it did.
    pub fn retire_failure(&self, retired: &Retired) -> Option<String> {
        self.history.retiring.get(retired).map(|failure| failure.message.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::desired;
    use super::*;
    use crate::runtime::ErrorKind;
    use crate::spec::{Revision, merge, parse};

    /// The service `web`, as it is declared with this line.
    fn web(line: &str) -> DesiredService {
        let text = format!("version: v1\ndeployment: demo\n{line}services: {{ web: {{ image: {{ name: one }} }} }}\n");
        let merged = merge(&[("/specs/a.yaml".into(), parse(&text))]);
        desired(&merged.deployments["demo"], RuntimeKind::Sandbox).services["web"].clone()
    }

    fn image_fails(record: &mut Record, revision: &Revision, desired: Option<&DesiredService>) -> u32 {
        let id = InstanceId {
            deployment: "demo".to_owned(),
            service: "web".to_owned(),
            slot: 0,
            revision: revision.clone(),
            attempt: 0,
            run: None,
        };
        let action = Action::EnsureImage { id, image: web("").spec.image.clone(), runtime: RuntimeKind::Sandbox };
        let error = RuntimeError::new(ErrorKind::Failed, "no");
        record.failed(&action, desired, &error, DateTime::UNIX_EPOCH);
        record.history.failures[&("web".to_owned(), 0)].count
    }

    #[test]
    fn failures_in_a_row_are_counted_on_where_the_runtime_is_written_down() {
        let (unwritten, written) = (web(""), web("runtime: sandbox\n"));
        let mut record = Record::default();
        assert_ne!(unwritten.revision, written.revision);
        assert_eq!(image_fails(&mut record, &unwritten.revision, Some(&unwritten)), 1);
        assert_eq!(image_fails(&mut record, &written.revision, Some(&written)), 2);
        // What began before the declaration changed fails after it.
        assert_eq!(image_fails(&mut record, &unwritten.revision, Some(&written)), 3);
    }

    #[test]
    fn failures_in_a_row_begin_anew_with_another_template() {
        let (web, other) = (web(""), "v1-0123456789abcdef".parse().unwrap());
        let mut record = Record::default();
        assert_eq!(image_fails(&mut record, &other, Some(&web)), 1);
        assert_eq!(image_fails(&mut record, &other, Some(&web)), 2);
        assert_eq!(image_fails(&mut record, &web.revision, Some(&web)), 1);
        // Nothing is declared any more.
        assert_eq!(image_fails(&mut record, &web.revision, None), 2);
    }
}
