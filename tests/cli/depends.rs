//! Services that wait for others, and steps before starts, as users meet them.

use crate::rig::{Rig, signal};

/// A service of `demo`, one line per field. Its script says its name when it starts and when it is asked to end, in the
/// file `order`.
fn service(rig: &Rig, name: &str, script: &str, fields: &[&str]) -> String {
    let order = rig.path("order");
    let (folder, order) = (rig.path("").display().to_string(), order.display().to_string());
    let fields: String = fields.iter().map(|field| format!("    {field}\n")).collect();
    format!(
        "  {name}:\n    image: {{ name: host }}\n    sandbox: {{ writable: ['{folder}'] }}\n    \
         command:\n      entrypoint:\n        - sh\n        - -c\n        - |\n          \
         trap 'echo end {name} >>{order}; kill $!; exit 0' TERM\n          \
         {script}\n          echo {name} >>{order}\n          sleep 600 & wait\n\
         {fields}"
    )
}

fn demo(services: &[String]) -> String {
    format!("version: v1\ndeployment: demo\nservices:\n{}", services.concat())
}

fn order(rig: &Rig) -> String {
    std::fs::read_to_string(rig.path("order")).unwrap_or_default().lines().collect::<Vec<_>>().join(", ")
}

/// `web` depends on `api`, which depends on `db`; the last two need a while until they are healthy.
fn chain(rig: &Rig) -> String {
    const HEALTH: &str = "health: { interval: 1s, check: { type: command, command: 'test -e /tmp/ready' } }";
    const SLOW: &str = "sleep 0.5; touch /tmp/ready";
    demo(&[
        service(rig, "api", SLOW, &[HEALTH, "depends: [{ service: db }]"]),
        service(rig, "db", SLOW, &[HEALTH]),
        service(rig, "web", "", &["depends: [{ service: api, condition: ready }]"]),
    ])
}

#[test]
fn services_start_in_order_also_after_everything_was_killed_and_end_in_reverse() {
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &chain(&rig));
    let planned = rig.keel(&["plan", "-f", "demo.yaml"]).out;
    let place = |name: &str| planned.find(&format!("create and start demo/{name}/0")).unwrap();
    assert!(place("db") < place("api") && place("api") < place("web"), "{planned}");
    rig.write("specs/demo.yaml", &chain(&rig));
    let controller = rig.controller();
    rig.until_running("demo", 3);
    assert_eq!(order(&rig), "db, api, web");
    let pids = rig.instances(|one| u32::try_from(one["pid"].as_u64().unwrap()).unwrap());
    controller.end("KILL");
    pids.iter().for_each(|pid| signal(*pid, "KILL"));
    rig.until("all have ended", || rig.instances(|one| one["phase"] == "exited").iter().all(|ended| *ended));
    let controller = rig.controller();
    rig.until_running("demo", 3);
    assert_eq!(order(&rig), "db, api, web, db, api, web");
    controller.end("TERM");
    assert_eq!(order(&rig), "db, api, web, db, api, web", "workloads run on");
    rig.remove("specs/demo.yaml");
    std::fs::remove_file(rig.path("order")).unwrap();
    rig.write("demo.yaml", &chain(&rig));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    rig.keel(&["delete", "demo"]).expect_code(0);
    assert_eq!(order(&rig), "end web, end api, end db");
}

#[test]
fn a_service_waits_for_the_end_of_a_job_and_starts_again_when_nothing_is_left_of_it() {
    let rig = Rig::new("sandbox");
    let said = rig.path("order").display().to_string();
    let go = rig.path("go").display().to_string();
    let folder = rig.path("").display().to_string();
    let prep = format!(
        "  prep:\n    rtype: job\n    image: {{ name: host }}\n    sandbox: {{ writable: ['{folder}'] }}\n    \
         job: {{ ttl_after_finished: 1s }}\n    \
         command: {{ entrypoint: [sh, -c, 'while [ ! -e {go} ]; do sleep 0.1; done; echo prep >>{said}'] }}\n"
    );
    rig.write("specs/demo.yaml", &demo(&[prep, service(&rig, "web", "", &["depends: [{ service: prep }]"])]));
    let _controller = rig.controller();
    let waits = "prep is not healthy: the job has not completed yet";
    rig.until("the job runs", || rig.instances(|one| one["phase"].clone()) == ["running"]);
    rig.until("web waits", || rig.keel(&["get", "services"]).out.contains(waits));
    rig.write("go", "");
    rig.until("web runs and the job is gone", || {
        order(&rig) == "prep, web" && rig.instances(|one| one["name"].clone()) == ["demo/web/0"]
    });
    let pids = rig.instances(|one| u32::try_from(one["pid"].as_u64().unwrap_or_default()).unwrap());
    signal(pids[0], "KILL");
    rig.until("web runs again", || order(&rig) == "prep, web, web");
}

#[test]
fn a_dependency_that_does_not_come_fails_the_apply_or_is_told() {
    let rig = Rig::new("sandbox");
    const NEVER: &str = "health: { interval: 1s, start_grace: 1h, check: { type: command, command: 'false' } }";
    const PATIENT: &str = "rollout: { progress_deadline: 2h }";
    let with = |action: &str| {
        let depends = format!("depends: [{{ service: db, timeout: 2s, on_timeout: {action} }}]");
        demo(&[service(&rig, "db", "", &[NEVER, PATIENT]), service(&rig, "web", "", &[&depends])])
    };
    rig.write("demo.yaml", &with("fail"));
    let failed = rig.keel(&["apply", "-f", "demo.yaml", "--timeout", "60s"]).expect_code(1);
    let why = "wait to start web until db is healthy, which it was not within 2s: no instance of it is healthy";
    assert!(failed.err.contains(why), "{failed:?}");
    assert_eq!(order(&rig), "db");
    rig.write("specs/demo.yaml", &with("warn"));
    rig.keel(&["delete", "demo"]).expect_code(0);
    let _controller = rig.controller();
    rig.until("web runs", || order(&rig).ends_with("db, web"));
    let told = rig.keel(&["describe", "demo/web"]).out;
    let why = "go on with web without db, which was not healthy within 2s: no instance of it is healthy";
    for expected in
        [format!("DependencyTimeout   demo/web: {why}"), format!("Degraded      True     DependencyTimeout   {why}")]
    {
        assert!(told.contains(&expected), "{expected}\n{told}");
    }
    rig.write("specs/demo.yaml", &with("continue"));
    rig.until("nothing is told", || !rig.keel(&["get", "services", "-o", "yaml"]).out.contains("DependencyTimeout"));
}

#[test]
fn steps_come_before_the_start_and_share_the_volumes_of_the_service() {
    let rig = Rig::new("sandbox");
    let web = "  web:\n    image: { name: host }\n    command: { entrypoint: [sh, -c, 'cat /data/made; exec sleep 600'] }\n    \
               storage: [{ type: named, name: data, target: /data }]\n    env: { GREETING: hello }\n    init:\n      steps:\n        \
               - { id: db, uses: init.wait_tcp, with: { host: db, port: 5432 } }\n        \
               - { id: http, uses: init.wait_http, with: { url: 'http://db:5432/healthz', interval: 200ms } }\n        \
               - { id: make, uses: init.run, with: { command: 'pwd >/data/made', workdir: /usr } }\n        \
               - { id: more, uses: init.run, retry: 1, with: { command: 'echo $GREETING >>/data/made; test $(wc -l </data/made) -eq 3' } }\n";
    let db = "  db:\n    image: { name: host }\n    command: { entrypoint: [sh, -c, 'sleep 1; exec keel demo-server'] }\n    \
              endpoints: [{ name: sql, protocol: http, port: 5432 }]\n    stop_grace_period: 1s\n";
    rig.write("demo.yaml", &demo(&[web.to_owned(), db.to_owned()]));
    rig.keel(&["apply", "-f", "demo.yaml", "--timeout", "60s"]).expect_code(0);
    assert_eq!(rig.keel(&["logs", "demo/web"]).out, "/usr\nhello\nhello\n", "the second try succeeds");
    assert_eq!(rig.instances(|one| one["name"].clone()), ["demo/db/0", "demo/web/0"]);
    let told = rig.keel(&["describe", "demo/web"]).out;
    assert!(told.contains("run init step make (init.run) for demo/web/0"), "{told}");
}

#[test]
fn a_step_that_fails_ends_the_start_or_is_told_or_passed_over() {
    let rig = Rig::new("sandbox");
    for (on_failure, code, started) in [("fail", 1, ""), ("continue", 0, "web"), ("warn", 0, "web")] {
        let init = format!(
            "init: {{ steps: [{{ id: make, uses: init.run, on_failure: {on_failure}, with: {{ command: 'echo no such table; exit 3' }} }}] }}"
        );
        rig.write("demo.yaml", &demo(&[service(&rig, "web", "", &[&init])]));
        let done = rig.keel(&["apply", "-f", "demo.yaml", "--timeout", "60s"]).expect_code(code);
        let why = "init step make (init.run) failed: exited 3: no such table";
        assert_eq!(done.err.contains(why), on_failure != "continue", "{done:?}");
        assert_eq!(order(&rig), started, "{on_failure}");
        let told = rig.keel(&["describe", "demo"]).out.contains("InitStepFailed");
        assert_eq!(told, on_failure == "warn");
        rig.keel(&["delete", "demo"]).expect_code(0);
        let _ = std::fs::remove_file(rig.path("order"));
    }
    assert_eq!(rig.get("instances"), Vec::<serde_json::Value>::new());
}

#[test]
fn a_step_begins_anew_after_the_controller_was_killed_in_it() {
    let rig = Rig::new("sandbox");
    let folder = rig.path("").display().to_string();
    let step = format!("echo begun >>{folder}/steps; while [ ! -e {folder}/go ]; do sleep 0.1; done");
    let init = format!("init: {{ steps: [{{ id: wait, uses: init.run, with: {{ command: '{step}' }} }}] }}");
    rig.write("specs/demo.yaml", &demo(&[service(&rig, "web", "", &[&init])]));
    let steps = || std::fs::read_to_string(rig.path("steps")).unwrap_or_default().lines().count();
    let controller = rig.controller();
    rig.until("the step has begun", || steps() == 1);
    let service = &rig.get("services")[0];
    assert_eq!((&service["service"], &service["running"]), (&"web".into(), &0.into()), "its instance is no replica");
    controller.end("KILL");
    let _controller = rig.controller();
    rig.until("it has begun anew", || steps() == 2);
    assert_eq!(order(&rig), "");
    rig.write("go", "");
    rig.until_running("demo", 1);
    assert_eq!((order(&rig), steps()), ("web".to_owned(), 2));
    assert_eq!(rig.instances(|one| one["name"].clone()), ["demo/web/0"]);
}

#[test]
fn an_isolated_instance_is_kept_for_inspection_until_another_version_replaces_it() {
    let rig = Rig::new("sandbox");
    let isolated = |text: &str| {
        format!(
            "version: v1\ndeployment: demo\nservices:\n  web:\n    image: {{ name: host }}\n    command: {{ entrypoint: [sh, -c, '{text}'] }}\n    \
             errors: {{ on_panic: {{ action: isolate }} }}\n"
        )
    };
    rig.write("demo.yaml", &isolated("echo a clue; exit 3"));
    let failed = rig.keel(&["apply", "-f", "demo.yaml", "--timeout", "60s"]).expect_code(1);
    assert!(failed.err.contains("for inspection: exited 3") && failed.err.contains("a clue"), "{failed:?}");
    let _controller = rig.controller();
    rig.until("it is shown", || rig.instances(|one| one["phase"].clone()) == ["exited"]);
    assert_eq!(rig.keel(&["logs", "demo/web"]).out, "a clue\n");
    let told = rig.keel(&["describe", "demo/web/0"]).out;
    assert!(told.contains("errors.on_panic is isolate"), "{told}");
    assert_eq!(
        rig.instances(|one| (one["phase"].clone(), one["ready"].clone(), one["restarts"].clone())),
        [("exited".into(), false.into(), 0.into())]
    );
    rig.write("demo.yaml", &isolated("echo better; exec sleep 600"));
    rig.keel(&["apply", "-f", "demo.yaml", "--timeout", "60s"]).expect_code(0);
    rig.until_running("demo", 1);
    assert_eq!(rig.keel(&["logs", "demo/web"]).out, "better\n");
}

#[test]
fn an_idle_dependency_is_woken_for_a_rollout_and_for_what_is_used() {
    let rig = Rig::new("sandbox");
    let write = |fields: &[&str]| {
        let db = service(&rig, "db", "", &["lifecycle: { max_idle: 1s, on_idle: suspend }"]);
        let depends = ["depends: [{ service: db, timeout: 20s }]", "rollout: { on_failure: rollback, min_ready: 1s }"];
        rig.write("specs/demo.yaml", &demo(&[db, service(&rig, "web", "", &[&depends, fields].concat())]));
    };
    let state = |service: &str| {
        let found = rig.get("services").into_iter().find(|one| one["service"] == service);
        found.map(|one| one["state"].as_str().unwrap().to_owned()).unwrap_or_default()
    };
    write(&[]);
    let _controller = rig.controller();
    rig.until("both have started", || order(&rig) == "db, web");
    rig.until("db is idle", || state("db") == "suspended" && rig.state("demo") == "running");
    write(&["env: { A: b }"]);
    rig.until("the other template runs", || {
        order(&rig) == "db, web, web, end web" || order(&rig) == "db, web, end web, web"
    });
    rig.until("that is well", || rig.state("demo") == "running" && state("db") == "suspended");
    write(&["env: { A: b }", "lifecycle: { max_idle: 1s }"]);
    rig.until("both are idle", || state("web") == "idle" && state("db") == "suspended");
    let said = rig.keel(&["exec", "demo/web", "--", "echo", "in"]).expect_code(0);
    assert_eq!(said.out, "in\n");
    let woken: Vec<String> = rig.keel(&["events", "demo"]).out.lines().map(str::to_owned).collect();
    assert!(!woken.iter().any(|line| line.contains("RolledBack")), "{woken:#?}");
}
