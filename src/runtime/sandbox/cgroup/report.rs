//! What control groups enforce on this machine, as the runtime reports it.

use super::hierarchy::Controller;
use super::home::Homes;
use crate::runtime::{Control, Support};

/// Whether control groups limit how many processes there are.
pub fn counts_processes(homes: &Homes) -> bool {
    homes.unified(Controller::Pids).is_some() || homes.legacy(Controller::Pids).is_some()
}

/// Support of every control that control groups are for. `process_limit` says whether a limit of processes counts those
/// of one instance.
pub fn controls(
    homes: &Homes,
    process_limit: &Result<(), String>,
    namespace: &Result<(), String>,
) -> Vec<(Control, Support)> {
    let has = |it: Controller| homes.unified(it).is_some() || homes.legacy(it).is_some();
    let absent = |why: &str| Support::Absent { why: why.to_owned() };
    let by = |it: Controller| if has(it) { Support::Enforced } else { absent(homes.why_not(it)) };
    let memory = match by(Controller::Memory) {
        Support::Absent { why } => Support::Degraded {
            why: format!(
                "the supervisor looks at the memory of the processes (without commands of keel exec, where there is no process \
                 namespace either) and of files in it, and kills the instance that exceeds it: {why}"
            ),
        },
        support => support,
    };
    let pids = match (by(Controller::Pids), process_limit) {
        (Support::Absent { .. }, Ok(())) => Support::Enforced,
        (Support::Absent { why }, Err(other)) => Support::Absent { why: format!("{why}; {other}") },
        (support, _) => support,
    };
    let freezes = homes.unified.as_ref().is_ok_and(|home| home.freeze) || has(Controller::Freezer);
    let suspend = if freezes {
        Support::Enforced
    } else {
        Support::Degraded {
            why: format!(
                "processes are stopped by SIGSTOP, which anything of the same user can undo: {}",
                homes.why_not(Controller::Freezer)
            ),
        }
    };
    let namespace = match namespace {
        Ok(()) => Support::Enforced,
        Err(why) => absent(why),
    };
    let io = match &homes.io_weight {
        Ok(()) => Support::Enforced,
        Err(why) => absent(why),
    };
    vec![
        (Control::MemoryLimit, memory),
        (Control::CpuLimit, by(Controller::Cpu)),
        (Control::PidsLimit, pids),
        (Control::IoLimit, io),
        (Control::Suspend, suspend),
        (Control::CgroupNamespace, namespace),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(homes: &Homes, process_limit: &Result<(), String>) -> Vec<(Control, &'static str)> {
        let word = |support: &Support| match support {
            Support::Enforced => "enforced",
            Support::Degraded { .. } => "degraded",
            Support::Absent { .. } => "absent",
        };
        controls(homes, process_limit, &Ok(())).iter().map(|(control, support)| (*control, word(support))).collect()
    }

    #[test]
    fn without_groups_the_supervisor_and_process_limits_stand_in() {
        let told = told(&Homes::none("no"), &Ok(()));
        let expected = [
            (Control::MemoryLimit, "degraded"),
            (Control::CpuLimit, "absent"),
            (Control::PidsLimit, "enforced"),
            (Control::IoLimit, "absent"),
            (Control::Suspend, "degraded"),
            (Control::CgroupNamespace, "enforced"),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_limit_of_processes_that_counts_others_too_is_none() {
        let told = told(&Homes::none("no"), &Err("shared".into()));
        assert_eq!(told[2], (Control::PidsLimit, "absent"));
    }
}
