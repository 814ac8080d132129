//! What idle instances cost in memory.

use std::path::Path;

use evenkeel::state::Instance;

/// A field of a file of /proc, in KiB.
fn field(pid: i64, file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

pub fn print(instances: &[Instance], root: &Path) {
    let (mut resident, mut shares, mut kinds) = (0, 0, [0; 3]);
    for instance in instances {
        let run = root.join("instances").join(&instance.runtime_id).join("run.json");
        let run: serde_json::Value =
            serde_json::from_slice(&std::fs::read(run).expect("run.json")).expect("what was written");
        let pid = |process: &str| run[process]["pid"].as_i64().expect("a number");
        resident = resident.max(field(pid("supervisor"), "status", "VmRSS"));
        for (index, process) in ["supervisor", "first", "program"].into_iter().enumerate() {
            let share = field(pid(process), "smaps_rollup", "Pss");
            kinds[index] += share;
            shares += share;
        }
    }
    let each = |sum: u64| sum as f64 / instances.len() as f64 / 1024.0;
    println!("memory of one of {} idle instances", instances.len());
    println!("  supervisor, most resident    {:>8.2} MiB", resident as f64 / 1024.0);
    println!(
        "  proportional share           {:>8.2} MiB (supervisor {:.2}, init {:.2}, program {:.2})",
        each(shares),
        each(kinds[0]),
        each(kinds[1]),
        each(kinds[2])
    );
}
