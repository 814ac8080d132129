//! How a job has come out, for the services that wait for it.

use super::begin::{Beginning, Runs};
use super::run::{Run, Standing};
use crate::plan::Input;
use crate::state::{DesiredService, Instance, RunEnd};

/// What has become of the runs of a job that were made from what is declared now.
#[derive(Debug, PartialEq)]
pub(in crate::plan) enum Outcome {
    /// One of them has completed, whatever came after it.
    Completed,
    /// The last one has failed, and none is to follow it.
    Failed(RunEnd),
    /// None has completed yet.
    Unfinished,
}

/// How a job has come out. `instances` are those of the job, in order of their identity.
///
/// Runs of a template that was declared before do not count, and neither do those of the same template that came before
/// them: the job runs anew.
pub(in crate::plan) fn outcome(input: &Input<'_>, desired: &DesiredService, instances: &[&Instance]) -> Outcome {
    let runs = Runs::of(input, desired, Run::all(input, desired, instances));
    let ends: Vec<Option<&RunEnd>> = runs.of_declared(desired).map(|(_, stands)| end(stands)).collect();
    if ends.iter().flatten().any(|end| end.is_success()) {
        return Outcome::Completed;
    }
    match ends.first() {
        Some(Some(end @ (RunEnd::Failed { .. } | RunEnd::DeadlineExceeded))) if runs.beginning == Beginning::None => {
            Outcome::Failed((*end).clone())
        }
        _ => Outcome::Unfinished,
    }
}

/// To what a run has come, even where something of it still lives.
const fn end(stands: &Standing) -> Option<&RunEnd> {
    match stands {
        Standing::Active => None,
        Standing::Ending(end) => Some(end),
        Standing::Finished(record) => Some(&record.end),
    }
}
