//! Controls that `sandbox.require` asks for and the rest of the spec leaves out.

use super::super::problem::steps;
use super::super::{ServiceSpec, left_out};
use super::Report;

pub(super) fn check(report: &mut Report<'_>, spec: &ServiceSpec) {
    // What is missing may be what was cut out as wrong.
    if !report.is_whole(&[]) {
        return;
    }
    for (index, control) in spec.sandbox.iter().flat_map(|sandbox| &sandbox.require).enumerate() {
        if let Some(help) = left_out(*control, spec) {
            let message = format!("`{control}` is required and does not hold for this service");
            report.problem_help(&steps!["sandbox", "require", index], message, help);
        }
    }
}
