//! From what the sources deliver to what the controller works with.

use std::collections::BTreeMap;
use std::path::Path;

use crate::spec::{MergedDeployment, MergedService, Problem, RuntimeKind, Scale};
use crate::state::{Condition, DesiredDeployment, DesiredService, SourceRef, Standing};
use crate::status::ProblemView;

/// A deployment with the controller's defaults filled in.
pub fn desired(merged: &MergedDeployment, default_runtime: RuntimeKind) -> DesiredDeployment {
    DesiredDeployment {
        name: merged.name.clone(),
        source: SourceRef { file: merged.file.clone(), line: merged.position.line },
        prune: merged.prune,
        services: merged
            .services
            .iter()
            .map(|(name, one)| (name.clone(), desired_service(one, default_runtime)))
            .collect(),
        unsupported: merged
            .unsupported
            .iter()
            .map(|field| Condition::holds("UnsupportedField", "NotHonoured", format!("{}: {}", field.path, field.why)))
            .collect(),
    }
}

fn desired_service(service: &MergedService, default_runtime: RuntimeKind) -> DesiredService {
    let declared = match default_runtime {
        // A rehearsal runs there whatever is not written for another runtime.
        RuntimeKind::Sim => service.runtime,
        _ => service.declared_runtime(),
    };
    let runtime = declared.unwrap_or(default_runtime);
    DesiredService {
        name: service.name.clone(),
        spec: service.spec.clone(),
        revision: service.revision.clone(),
        equivalent: service.equivalents.get(&runtime).cloned(),
        source: SourceRef { file: service.file.clone(), line: service.position.line },
        runtime,
        replicas: match &service.spec.pool {
            Some(pool) => pool.min_warm(),
            None => service.spec.scale.as_ref().map_or(1, Scale::initial),
        },
        standing: Standing::default(),
    }
}

/// A deployment as it was declared, for comparing: what was written, without positions.
pub fn declaration(merged: &MergedDeployment) -> serde_json::Value {
    let services: BTreeMap<&str, serde_json::Value> =
        merged.services.iter().map(|(name, service)| (name.as_str(), service_declaration(service))).collect();
    serde_json::json!({ "prune": merged.prune, "services": services })
}

fn service_declaration(service: &MergedService) -> serde_json::Value {
    let mut spec = serde_json::to_value(service.spec.as_ref()).unwrap_or_default();
    if let (Some(runtime), Some(fields)) = (service.declared_runtime(), spec.as_object_mut()) {
        fields.insert("runtime".to_owned(), serde_json::json!(runtime));
    }
    spec
}

/// A problem as users are shown it.
pub fn problem(file: &Path, problem: &Problem, effect: &str) -> ProblemView {
    ProblemView {
        file: file.display().to_string(),
        line: problem.position.line,
        column: problem.position.column,
        path: problem.path.clone(),
        message: problem.message.clone(),
        help: problem.help.clone(),
        effect: effect.to_owned(),
    }
}
