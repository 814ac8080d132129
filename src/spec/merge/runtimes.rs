//! Runtimes that a deployment names for services of other documents.

use super::super::Problem;
use super::draft::Draft;
use super::{Findings, place};

/// Finds services of which the runtime that their deployment names can't run the image. Where both are in one document,
/// that is a problem of the document.
pub(super) fn check(name: &str, draft: &Draft<'_>, findings: &mut Findings) {
    let Some((runtime, at)) = draft.runtime() else { return };
    for part in draft.services.values() {
        let Some(service) = part.service.filter(|service| service.spec.runtime.is_none()) else { continue };
        if let Some(why) = runtime.refusal(&service.spec.image.name) {
            let message = format!("{} names the runtime, and {why}", place(at.0, at.1));
            findings.refuse(name, part.file, Problem::new(part.position, "", message));
        }
    }
}
