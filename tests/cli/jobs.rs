//! Jobs and cron services as their users meet them, on the sandbox runtime and on Docker.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::engine::{self, Kind};
use crate::rig::{Rig, signal};

fn job(script: &str, settings: &str) -> String {
    format!(
        "version: v1\ndeployment: demo\nservices:\n  work:\n    rtype: job\n    image: {{ name: host }}\n    \
         command: {{ entrypoint: [sh, -c], args: ['{script}'] }}\n    job: {{ {settings} }}\n"
    )
}

fn cron(name: &str, schedule: &str, script: &str, settings: &str) -> String {
    format!(
        "  {name}:\n    rtype: cron\n    schedule: '{schedule}'\n    image: {{ name: host }}\n    \
         command: {{ entrypoint: [sh, -c], args: ['{script}'] }}\n    job: {{ {settings} }}\n"
    )
}

/// The runs of a service that are over, newest first.
fn finished(rig: &Rig, service: &str) -> Vec<Value> {
    let jobs = rig.get("jobs");
    let found = jobs.iter().find(|view| view["service"] == service);
    found.and_then(|view| view["job"]["finished"].as_array().cloned()).unwrap_or_default()
}

fn outcomes(rig: &Rig, service: &str) -> Vec<String> {
    finished(rig, service).iter().map(|run| run["message"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_job_runs_once_for_its_template_and_apply_waits_for_its_end() {
    let rig = Rig::new("sandbox");
    let text = |word: &str| job(&format!("echo {word} $KEEL_JOB_INDEX $JOB_COMPLETION_INDEX"), "completions: 2");
    rig.write("job.yaml", &text("one"));
    let done = rig.keel(&["apply", "-f", "job.yaml"]).expect_code(0);
    assert_eq!(done.out, "deployment/demo created\njob/demo/work completed\n");
    let logs = || {
        let mut lines: Vec<String> =
            rig.keel(&["logs", "demo"]).expect_code(0).out.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(logs(), ["demo/work/0 | one 0 0", "demo/work/1 | one 1 1"]);
    assert_eq!(rig.state("demo"), "complete");
    let first = rig.instances(|one| one["runtime_id"].to_string());
    let done = rig.keel(&["apply", "-f", "job.yaml"]).expect_code(0);
    assert_eq!(done.out, "deployment/demo unchanged\njob/demo/work completed\n");
    assert_eq!(rig.instances(|one| one["runtime_id"].to_string()), first, "nothing runs again");
    assert_eq!(rig.keel(&["plan", "-f", "job.yaml"]).code, 0);
    rig.write("job.yaml", &text("two"));
    rig.keel(&["apply", "-f", "job.yaml"]).expect_code(0);
    assert_eq!(logs(), ["demo/work/0 | two 0 0", "demo/work/1 | two 1 1"]);
    assert_eq!(outcomes(&rig, "work"), ["completed", "completed"]);
    let done = rig.keel(&["trigger", "demo/work"]).expect_code(0);
    assert!(done.out.ends_with("job/demo/work completed\n"), "{done:?}");
    assert_eq!(outcomes(&rig, "work").len(), 3);
}

#[test]
fn a_job_that_fails_fails_its_apply_at_once_with_the_reason_and_its_output() {
    let rig = Rig::new("sandbox");
    for (settings, again) in
        [("", "wait to restart demo/work/0"), ("backoff_limit: 0", "demo failed: work failed: exited 3")]
    {
        rig.write("job.yaml", &job(&format!("echo oh no {}; exit 3", again.len()), settings));
        let began = Instant::now();
        let done = rig.keel(&["apply", "-f", "job.yaml"]).expect_code(1);
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}: {done:?}", began.elapsed());
        assert!(done.err.contains("exited 3") && done.err.contains(again) && done.err.contains("  oh no"), "{done:?}");
    }
    assert_eq!(rig.state("demo"), "failed");
    assert_eq!(outcomes(&rig, "work")[0], "exited 3");
    // It stays so, and says so, without another run.
    let runs = finished(&rig, "work").len();
    let done = rig.keel(&["apply", "-f", "job.yaml"]).expect_code(1);
    assert!(done.err.contains("demo failed: work failed: exited 3"), "{done:?}");
    assert_eq!(finished(&rig, "work").len(), runs);
}

#[test]
fn a_deadline_ends_a_job() {
    let rig = Rig::new("sandbox");
    rig.write("specs/job.yaml", &job("sleep 600", "active_deadline: 1s"));
    let done = rig.keel(&["run", "specs", "--once"]).expect_code(1);
    assert!(done.err.contains("deadline exceeded"), "{done:?}");
    assert_eq!(rig.state("demo"), "failed");
}

#[test]
fn a_cron_service_runs_by_its_schedule_and_when_it_is_triggered_and_no_run_is_made_twice() {
    let rig = Rig::new("sandbox");
    let beat = cron("beat", "* * * * * *", "date +%s", "history: 2");
    let long = cron("long", "* * * * * *", "echo begun; sleep 600", "");
    let rare = cron("rare", "0 0 1 1 *", "echo by hand; exit 5", "backoff_limit: 0");
    rig.write("specs/cron.yaml", &format!("version: v1\ndeployment: demo\nservices:\n{beat}{long}{rare}"));
    let controller = rig.controller();
    rig.until("it ran some times", || finished(&rig, "beat").len() >= 3);
    let last = rig.keel(&["logs", "demo/beat"]).expect_code(0).out;
    assert!(last.trim().parse::<u64>().is_ok(), "{last}");
    let instances = rig.get("instances");
    let long: Vec<&Value> = instances.iter().filter(|one| one["service"] == "long").collect();
    assert_eq!((long.len(), finished(&rig, "long").len()), (1, 0), "the next one is left out");
    let done = rig.keel(&["trigger", "demo/long"]).expect_code(1);
    assert!(done.err.contains("job.overlap is forbid"), "{done:?}");
    let done = rig.keel(&["trigger", "demo/rare"]).expect_code(1);
    assert!(done.err.contains("exited 5") && done.err.contains("  by hand"), "{done:?}");
    rig.keel(&["apply", "-f", "specs", "--dry-run"]).expect_code(0);

    let pid = controller.pid();
    signal(pid, "KILL");
    drop(controller);
    let running = long[0]["runtime_id"].clone();
    let _next = rig.controller();
    let before = finished(&rig, "beat").len();
    rig.until("it goes on", || finished(&rig, "beat").len() >= before + 2);
    let ids: Vec<i64> = finished(&rig, "beat").iter().map(|run| run["run"].as_i64().unwrap()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] > pair[1]) && ids.iter().all(|id| id % 1000 == 0), "{ids:?}");
    let ids = rig.instances(|one| (one["service"] == "long").then(|| one["runtime_id"].clone()));
    assert_eq!(ids.into_iter().flatten().collect::<Vec<_>>(), [running], "it is left alone");
    assert_eq!(outcomes(&rig, "rare"), ["exited 5"]);
    let described = rig.keel(&["describe", "demo/rare"]).expect_code(0).out;
    assert!(described.contains("Next run:") && described.contains("exited 5"), "{described}");
}

#[test]
fn only_jobs_are_triggered() {
    let rig = Rig::new("sim");
    rig.write("a.yaml", &crate::rig::spec("a", 1, "hi"));
    rig.keel(&["apply", "-f", "a.yaml"]).expect_code(0);
    for (name, error) in [
        ("a/web", "error: a/web is no job: its `rtype` is service\n"),
        ("a/other", "error: nothing declares a/other; see keel get services\n"),
    ] {
        assert_eq!(rig.keel(&["trigger", name]).expect_code(1).err, error);
    }
    rig.keel(&["trigger", "a"]).expect_code(2);
}

#[test]
fn a_job_runs_in_a_container() {
    let Some(socket) = engine::socket(Kind::Docker) else { return };
    let rig = Rig::on_engine(&socket);
    let text = |script: &str| {
        job(script, "backoff_limit: 0").replace("name: host", "name: 'keel-test/busybox:1', pull_policy: never")
            + "    init_container: false\n"
    };
    rig.write("job.yaml", &text("echo index $KEEL_JOB_INDEX"));
    let done = rig.keel(&["apply", "-f", "job.yaml"]).expect_code(0);
    assert!(done.out.ends_with("job/demo/work completed\n"), "{done:?}");
    assert_eq!(rig.keel(&["logs", "demo/work/0"]).expect_code(0).out, "index 0\n");
    let first = rig.instances(|one| one["runtime_id"].to_string());
    rig.keel(&["apply", "-f", "job.yaml"]).expect_code(0);
    assert_eq!(rig.instances(|one| one["runtime_id"].to_string()), first, "nothing runs again");
    rig.write("job.yaml", &text("exit 3"));
    let done = rig.keel(&["apply", "-f", "job.yaml"]).expect_code(1);
    assert!(done.err.contains("exited 3"), "{done:?}");
}

#[test]
fn runs_at_the_same_time_are_told_apart_and_a_run_of_a_job_that_is_deleted_is_waited_for_no_more() {
    let rig = Rig::new("sandbox");
    let place = rig.path("place");
    std::fs::create_dir(&place).unwrap();
    let script = "cd /place; if mkdir first 2>/dev/null; then echo of the first; until [ -e go ]; do sleep 0.05; done; exit 1; fi; \
                  echo of the second; touch second; sleep 600";
    let twice = cron("twice", "0 0 1 1 *", script, "overlap: allow, backoff_limit: 0");
    let storage = format!("    storage: [{{ type: bind, source: {}, target: /place }}]\n", place.display());
    rig.write("specs/cron.yaml", &format!("version: v1\ndeployment: demo\nservices:\n{twice}{storage}"));
    let _controller = rig.controller();
    rig.until("it is declared", || !rig.get("jobs").is_empty());
    let trigger = || {
        let mut command = rig.command(&["trigger", "demo/twice", "--timeout", "10m"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let end = |child: Child| {
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let first = trigger();
    rig.until("the first runs", || place.join("first").exists());
    let second = trigger();
    rig.until("the second runs", || place.join("second").exists());
    std::fs::write(place.join("go"), "").unwrap();
    let (code, told) = end(first);
    assert!(code == Some(1) && told.contains("exited 1") && told.contains("  of the first\n"), "{told}");
    assert!(!told.contains("of the second"), "{told}");
    rig.remove("specs/cron.yaml");
    rig.write("specs/other.yaml", &job("true", "").replace("demo", "other"));
    let (code, told) = end(second);
    assert!(code == Some(1) && told.contains("twice: no longer declared"), "{told}");
}
