//! Verbs without a controller: each command is an engine of its own.

use crate::rig::{Rig, signal, spec};

#[test]
fn where_nothing_is_get_says_so_on_standard_error() {
    let rig = Rig::new("sim");
    let done = rig.keel(&["get", "instances"]).expect_code(0);
    assert_eq!((done.out.as_str(), done.err.as_str()), ("", "No resources found\n"));
    assert_eq!(rig.keel(&["get", "svc", "-o", "json"]).expect_code(0).out, "[]\n");
    let done = rig.keel(&["get", "deploy/demo"]).expect_code(1);
    assert_eq!(done.err, "error: deployments \"demo\" not found\n");
}

#[test]
fn looking_creates_nothing() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    let nothing = format!(
        "nothing to delete: nothing was ever run or applied with the state directory {}; is it the right one \
         (--state-dir, KEEL_STATE_DIR)?\n",
        rig.path("state").display()
    );
    let missing = "error: demo/web has no instance\n";
    let cannot = "error: demo/web has no running instance; see keel get instances\n";
    for (arguments, code, out, err) in [
        (&["get", "instances"][..], 0, "", "No resources found\n"),
        (
            &["get", "all", "-o", "json"],
            0,
            "{\n  \"deployments\": [],\n  \"instances\": [],\n  \"services\": []\n}\n",
            "",
        ),
        (&["get", "deploy/demo"], 1, "", "error: deployments \"demo\" not found\n"),
        (&["logs", "demo/web"], 1, "", missing),
        (&["exec", "demo/web", "--", "true"], 125, "", cannot),
        (&["plan"], 0, "", "nothing is declared\n"),
        (&["apply", "-f", "specs", "--dry-run"], 0, "deployment/a created (dry run)\n", ""),
        (&["delete", "demo"], 1, "", &format!("error: {nothing}")),
        (&["delete", "-f", "specs", "--volumes"], 1, "", &format!("error: {nothing}")),
        (&["delete", "demo", "--ignore-not-found"], 0, "", &nothing),
        (&["approve"], 0, "", "nothing is held; there is nothing to approve\n"),
    ] {
        let done = rig.keel(arguments).expect_code(code);
        assert_eq!((done.out.as_str(), done.err.as_str()), (out, err), "{arguments:?}");
        assert!(!rig.path("state").exists(), "{arguments:?}");
    }
}

#[test]
fn looking_ahead_creates_nothing_on_any_runtime_and_not_in_a_folder_that_is_there() {
    for runtime in ["sim", "sandbox"] {
        let rig = Rig::new(runtime);
        rig.write("specs/a.yaml", &spec("a", 1, "hi"));
        std::fs::create_dir(rig.path("empty")).unwrap();
        for state in ["state", "empty"] {
            for verb in ["diff", "plan"] {
                let done = rig.keel(&[verb, "-f", "specs", "--state-dir", state]).expect_code(1);
                assert!(done.out.contains(&format!(" on {runtime} from image host: missing")), "{}", done.out);
                assert_eq!(done.err, "");
            }
        }
        rig.write("specs/b.yaml", "version: v1\n");
        rig.keel(&["apply", "-f", "specs"]).expect_code(1);
        assert!(!rig.path("state").exists());
        assert_eq!(std::fs::read_dir(rig.path("empty")).unwrap().count(), 0);
    }
}

#[test]
fn a_watch_begins_before_there_is_anything() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let rig = Rig::new("sim");
    let mut command = rig.command(&["get", "deployments", "-w"]);
    let mut watch = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(watch.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "No resources found\n");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    let controller = rig.controller();
    let mut rows = BufReader::new(watch.stdout.take().unwrap()).lines();
    let [head, row] = [rows.next().unwrap().unwrap(), rows.next().unwrap().unwrap()];
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert!(head.starts_with("NAME "), "{head}");
    assert!(row.starts_with("a "), "{row}");
    controller.end("TERM").expect_code(0);
}

#[test]
fn a_watch_waits_for_a_name_that_nothing_has_yet_and_begins_with_the_heads() {
    use std::io::{BufRead, BufReader, Read};
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;
    let rig = Rig::new("sim");
    let _controller = rig.controller();
    let mut command = rig.command(&["get", "instances", "-w", "a"]);
    let mut watch = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(watch.stderr.take().unwrap());
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    assert_eq!(line, "waiting for instances \"a\"\n");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    let mut rows = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let head = rows.next().unwrap();
    assert!(head.starts_with("NAME ") && head.contains(" STATUS "), "{head}");
    let row = rows.find(|row| row.contains(" running ")).unwrap();
    assert!(row.starts_with("a/web/0 "), "{row}");
    signal(watch.id(), "INT");
    assert!(rows.all(|row| !row.starts_with("NAME")), "one head is enough");
    assert_eq!(watch.wait().unwrap().signal(), Some(2));
    line.clear();
    told.read_to_string(&mut line).unwrap();
    assert_eq!(line, "");
}

#[test]
fn plan_without_files_tells_what_is_to_be_done_for_what_is_declared() {
    let rig = Rig::new("sim");
    assert_eq!(rig.keel(&["plan"]).expect_code(0).out, "", "nothing is declared");
    rig.write("specs/a.yaml", &spec("a", 2, "hi"));
    rig.keel(&["apply", "-f", "specs", "--no-wait"]).expect_code(0);
    let done = rig.keel(&["plan"]).expect_code(1);
    let steps = "deployment/a unchanged\n  steps:\n    1. create and start a/web/0-1 (2 instances, ";
    assert!(done.out.starts_with(steps), "{}", done.out);
    let json = rig.keel(&["plan", "-o", "json"]).expect_code(1).json();
    assert_eq!((&json[0]["deployment"], &json[0]["change"]), (&"a".into(), &"unchanged".into()));
    assert_eq!(json[0]["steps"].as_array().unwrap().len(), 6, "{json}");
    assert_eq!(json[0]["forecast"]["stages"][0]["lanes"].as_array().unwrap().len(), 2, "{json}");
}

#[test]
fn a_runtime_that_does_not_answer_is_not_nothing_to_do() {
    let rig = Rig::new("sim");
    let declared =
        spec("a", 1, "hi").replace("deployment: a\n", "deployment: a\nruntime: docker\n").replace("host", "nginx");
    rig.write("specs/a.yaml", &declared);
    rig.keel(&["apply", "-f", "specs", "--no-wait"]).expect_code(0);
    for arguments in [&["diff", "-f", "specs"][..], &["plan", "-f", "specs"], &["plan"]] {
        let done = rig.keel(arguments).expect_code(2);
        let why =
            "deployment/a: could not tell what is to be done, because nothing is run on docker: a rehearsal on sim";
        assert!(done.err.contains(why), "{arguments:?}: {}", done.err);
    }
}

#[test]
fn a_rehearsal_says_at_once_that_it_runs_nothing_on_other_runtimes() {
    let rig = Rig::new("sim");
    let named = spec("a", 1, "hi").replace("deployment: a\n", "deployment: a\nruntime: sandbox\n");
    rig.write("specs/a.yaml", &named);
    rig.write("specs/b.yaml", &spec("b", 1, "hi"));
    let done = rig.keel(&["apply", "-f", "specs"]).expect_code(1);
    let told = "error: deployment/a failed: run nothing on sandbox: a rehearsal on sim runs nothing real; leave out \
                `runtime: sandbox` to rehearse it, or `--runtime sim` (KEEL_RUNTIME) to run it\n";
    assert!(done.err.contains(told), "{}", done.err);
    assert!(done.err.contains("b/web 1/1 ready\n"), "{}", done.err);
    rig.remove("specs/a.yaml");
    rig.keel(&["apply", "-f", "specs"]).expect_code(0);
}

#[test]
fn apply_waits_and_says_what_became_of_each_deployment() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 2, "hi"));
    rig.write("specs/b.yaml", &spec("b", 1, "hi"));
    let done = rig.keel(&["apply", "-f", "specs", "--dry-run"]).expect_code(0);
    assert_eq!(done.out, "deployment/a created (dry run)\ndeployment/b created (dry run)\n");
    let done = rig.keel(&["apply", "-f", "specs"]).expect_code(0);
    assert_eq!(done.out, "deployment/a created\ndeployment/b created\n");
    assert!(done.err.contains("a/web 2/2 ready\n"), "{}", done.err);
    rig.write("specs/a.yaml", &spec("a", 3, "hi"));
    rig.remove("specs/b.yaml");
    let done = rig.keel(&["apply", "-f", "specs"]).expect_code(0);
    assert_eq!(done.out, "deployment/a configured\ndeployment/b pruned\n");
    assert_eq!(rig.keel(&["apply", "-f", "specs"]).expect_code(0).out, "deployment/a unchanged\n");
}

#[test]
fn a_timeout_in_a_back_off_tells_the_crash_and_its_last_lines() {
    let rig = Rig::new("sim");
    let crashing = "version: v1\ndeployment: bad\nservices:\n  web:\n    image: { name: host }\n    \
                    command: { entrypoint: [sim, print cannot find the database, exit 3] }\n";
    rig.write("bad.yaml", crashing);
    let done = rig.keel(&["apply", "-f", "bad.yaml", "--timeout", "1s"]).expect_code(124);
    let why = "error: deployment/bad not done after 1s: it is degraded: wait to restart bad/web/0 ";
    assert!(done.err.contains(why), "{}", done.err);
    assert!(done.err.ends_with(": exited 3\nlast 1 line of bad/web/0:\n  cannot find the database\n"), "{}", done.err);
}

#[test]
fn apply_reads_standard_input() {
    use std::io::Write;
    let rig = Rig::new("sim");
    let mut command = rig.command(&["apply", "-f", "-"]);
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(spec("a", 1, "hi").as_bytes()).unwrap();
    let done: crate::rig::Done = child.wait_with_output().unwrap().into();
    assert_eq!(done.expect_code(0).out, "deployment/a created\n");
}

#[test]
fn a_relative_path_on_standard_input_is_refused() {
    use std::io::Write;
    let rig = Rig::new("sim");
    let mut command = rig.command(&["apply", "-f", "-"]);
    let pipe = std::process::Stdio::piped;
    let mut child = command.stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
    let text = format!("{}    storage: [{{ type: bind, source: .., target: /x }}]\n", spec("a", 1, "hi"));
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let done: crate::rig::Done = child.wait_with_output().unwrap().into();
    let why = "4:3: services.web: \"..\" is relative, and what comes from standard input lies in no directory; write an \
               absolute path, or apply the file by its name";
    let done = done.expect_code(1);
    assert!(done.err.contains(why), "{}", done.err);
}

#[test]
fn a_mistake_is_told_with_its_place_and_nothing_is_applied() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    rig.write(
        "specs/b.yaml",
        "version: v1\ndeployment: b\nservices:\n  web:\n    image: { name: host }\n    scael: {}\n",
    );
    let file = rig.path("specs/b.yaml").display().to_string();
    for (arguments, code) in
        [(&["apply", "-f", "specs"], 1), (&["diff", "-f", "specs"], 2), (&["plan", "-f", "specs"], 2)]
    {
        let done = rig.keel(arguments).expect_code(code);
        assert!(done.err.contains(&format!("error: {file}:6:5: services.web.scael: ")), "{arguments:?}: {}", done.err);
        assert_eq!(done.out, "", "{arguments:?}");
    }
    assert_eq!(rig.get("deployments"), Vec::<serde_json::Value>::new());
}

#[test]
fn files_that_cannot_be_read_are_named_and_diff_could_not_tell() {
    let rig = Rig::new("sim");
    let missing = rig.path("nowhere.yaml").display().to_string();
    for (verb, code) in [("apply", 1), ("diff", 2), ("plan", 2), ("delete", 1)] {
        let done = rig.keel(&[verb, "-f", "nowhere.yaml"]).expect_code(code);
        assert_eq!(
            done.err,
            format!("error: can't open {missing}: No such file or directory (os error 2)\n"),
            "{verb}"
        );
    }
}

#[test]
fn diff_tells_fields_and_steps_and_masks_secrets() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    let done = rig.keel(&["diff", "-f", "specs"]).expect_code(1);
    assert!(done.out.starts_with("deployment/a created\n"), "{}", done.out);
    assert!(done.out.contains("  services.web.env.API_TOKEN: (none) -> ***\n"), "{}", done.out);
    assert!(done.out.contains("  services.web.env.GREETING: (none) -> hi\n"), "{}", done.out);
    assert!(done.out.contains("\n  steps:\n    1. create and start a/web/0 "), "{}", done.out);
    let json = rig.keel(&["diff", "-f", "specs", "-o", "json"]).expect_code(1);
    assert_eq!(json.json()[0]["change"], "created");
    assert!(!json.out.contains("token-hi"), "{}", json.out);
    let plan = rig.keel(&["plan", "-f", "specs", "-o", "json"]).expect_code(1);
    assert!(!plan.out.contains("token-hi"), "{}", plan.out);
    assert_eq!(plan.json()[0]["deployment"], "a");
}

#[test]
fn delete_tells_names_that_do_not_exist() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    rig.keel(&["apply", "-f", "specs/a.yaml"]).expect_code(0);
    let done = rig.keel(&["delete", "ghost"]).expect_code(1);
    assert_eq!(done.err, "error: deployments \"ghost\" not found\n");
    rig.keel(&["delete", "ghost", "--ignore-not-found"]).expect_code(0);
    rig.write("specs/b.yaml", &spec("b", 1, "hi"));
    rig.keel(&["delete", "-f", "specs/b.yaml"]).expect_code(1);
    let done = rig.keel(&["delete", "a", "ghost"]).expect_code(1);
    assert_eq!(done.out, "deployment/a deleted\n");
    assert_eq!(rig.get("deployments"), Vec::<serde_json::Value>::new());
}

#[test]
fn once_converges_and_exits() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 2, "hi"));
    let done = rig.keel(&["run", "specs", "--once"]).expect_code(0);
    assert!(done.err.contains(" converging specs once, then exiting; state in "), "{}", done.err);
    assert!(!done.err.contains("watching"), "{}", done.err);
    rig.write("specs/b.yaml", "version: v1\n");
    let done = rig.keel(&["run", "specs", "--once"]).expect_code(1);
    assert!(done.err.contains(&format!("error: {}:1:1: ", rig.path("specs/b.yaml").display())), "{}", done.err);
}

#[test]
fn once_tells_every_mistake_that_validate_tells() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 2, "hi").replace("replicas: 2", "replicas: two"));
    rig.write("specs/b.yaml", "service: api\ndeployment: a\nimage: { name: x }\ndepends: [{ service: wbe }]\n");
    rig.write("specs/c.yaml", "service: api\ndeployment: a\nimage: { name: x }\nprivileged: 1\n");
    let specs = rig.path("specs").display().to_string();
    let validated = rig.keel(&["validate", "-o", "text", &specs]).expect_code(1).out;
    assert_eq!(validated.lines().count(), 5, "{validated}");
    let done = rig.keel(&["run", "specs", "--once"]).expect_code(1);
    let told = done.err.lines().filter_map(|line| line.strip_prefix("error: ")?.split_once(" (a is left out)"));
    let told: Vec<&str> = told.map(|(problem, _)| problem).collect();
    assert_eq!(told, validated.lines().collect::<Vec<_>>());
}

#[test]
fn a_loss_is_approved_without_a_controller_and_pruned_by_the_next() {
    let rig = Rig::new("sim");
    for name in ["a", "b", "c", "d"] {
        rig.write(&format!("specs/{name}.yaml"), &spec(name, 1, "hi"));
    }
    rig.keel(&["run", "specs", "--once"]).expect_code(0);
    assert_eq!(rig.keel(&["approve"]).expect_code(0).out, "", "nothing is held");
    for name in ["a", "b", "c", "d"] {
        rig.remove(&format!("specs/{name}.yaml"));
    }
    rig.keel(&["run", "specs", "--once"]);
    let held = rig.keel(&["get", "deployments"]).expect_code(0);
    assert!(held.err.contains("confirm with `keel approve`"), "{}", held.err);
    assert_eq!(held.out.matches("\n").count(), 5, "{}", held.out);
    let done = rig.keel(&["approve"]).expect_code(0);
    assert_eq!(done.out, "deployment/a pruned\ndeployment/b pruned\ndeployment/c pruned\ndeployment/d pruned\n");
    rig.keel(&["run", "specs", "--once"]).expect_code(0);
    assert_eq!(rig.keel(&["get", "deployments", "-o", "name"]).out, "");
}

#[test]
fn what_happened_is_on_record() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    rig.write("specs/b.yaml", "version: v1\n");
    rig.keel(&["run", "specs", "--once"]).expect_code(1);
    let state = evenkeel::store::StateDir::open(&rig.path("state")).unwrap().rehearsal().unwrap();
    let events = state.look().unwrap().events(100).unwrap();
    let told = |kind: &str, words: &str| events.iter().any(|one| one.kind == kind && one.message.contains(words));
    assert!(told("StepDone", "start a/web/0"), "{events:?}");
    assert!(told("SourceProblem", "specs/b.yaml:1:1"), "{events:?}");
}

/// Runs the program with this standard input.
fn with_input(rig: &Rig, arguments: &[&str], text: &str) -> crate::rig::Done {
    use std::io::Write;
    let mut command = rig.command(arguments);
    let pipe = std::process::Stdio::piped;
    let mut child = command.stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

#[test]
fn what_came_from_standard_input_is_not_pruned_by_other_input() {
    let rig = Rig::new("sim");
    let both = format!("{}---\n{}", spec("a", 1, "hi"), spec("b", 1, "hi"));
    let done = with_input(&rig, &["apply", "-f", "-"], &both).expect_code(0);
    assert_eq!(done.out, "deployment/a created\ndeployment/b created\n");
    let done = with_input(&rig, &["apply", "-f", "-"], &spec("n", 1, "hi")).expect_code(0);
    assert_eq!(done.out, "deployment/n created\n");
    let done = with_input(&rig, &["apply", "-f", "-"], &spec("a", 1, "hi")).expect_code(0);
    assert_eq!(done.out, "deployment/a unchanged\n");
    let names = rig.keel(&["get", "deployments", "-o", "name"]).expect_code(0).out;
    assert_eq!(names, "deployment/a\ndeployment/b\ndeployment/n\n");
}

#[test]
fn files_that_declare_nothing_remove_nothing() {
    let rig = Rig::new("sim");
    rig.write("a.yaml", &spec("a", 1, "hi"));
    rig.keel(&["apply", "-f", "a.yaml"]).expect_code(0);
    rig.write("a.yaml", "# nothing\n");
    let help = "to remove what was applied: keel delete NAME\n";
    let file = format!("error: nothing is declared in {}; {help}", rig.path("a.yaml").display());
    for verb in ["apply", "delete"] {
        assert_eq!(rig.keel(&[verb, "-f", "a.yaml"]).expect_code(1).err, file);
    }
    let done = with_input(&rig, &["apply", "-f", "-"], "").expect_code(1);
    assert_eq!(done.err, format!("error: nothing is declared in standard input; {help}"));
    assert_eq!(rig.keel(&["get", "deployments", "-o", "name"]).expect_code(0).out, "deployment/a\n");
}

#[test]
fn a_file_that_was_emptied_ends_nothing_beside_others() {
    let rig = Rig::new("sim");
    std::fs::create_dir(rig.path("dir")).unwrap();
    for name in ["a", "b"] {
        rig.write(&format!("dir/{name}.yaml"), &spec(name, 1, "hi"));
    }
    rig.keel(&["apply", "-f", "dir"]).expect_code(0);
    for text in ["", "# A comm"] {
        rig.write("dir/b.yaml", text);
        let done = rig.keel(&["apply", "-f", "dir"]).expect_code(1);
        let place = rig.path("dir/b.yaml").display().to_string();
        let line = format!("error: {place}:1:1: declares nothing any more; remove the file to end what it declared");
        assert!(done.err.starts_with(&line), "{}", done.err);
        let names = rig.keel(&["get", "deployments", "-o", "name"]).expect_code(0).out;
        assert_eq!(names, "deployment/a\ndeployment/b\n");
    }
    std::fs::remove_file(rig.path("dir/b.yaml")).unwrap();
    let done = rig.keel(&["apply", "-f", "dir"]).expect_code(0);
    assert_eq!(done.out, "deployment/a unchanged\ndeployment/b pruned\n");
}

#[test]
fn a_file_that_was_emptied_ends_nothing_by_whatever_link_it_is_named() {
    let rig = Rig::new("sim");
    std::fs::create_dir(rig.path("dir")).unwrap();
    std::os::unix::fs::symlink("dir", rig.path("link")).unwrap();
    for name in ["a", "b"] {
        rig.write(&format!("dir/{name}.yaml"), &spec(name, 1, "hi"));
    }
    rig.keel(&["apply", "-f", "dir"]).expect_code(0);
    rig.write("dir/b.yaml", "");
    let done = rig.keel(&["apply", "-f", "link"]).expect_code(1);
    let place = rig.path("link/b.yaml").display().to_string();
    assert!(done.err.starts_with(&format!("error: {place}:1:1: declares nothing any more")), "{}", done.err);
    let names = rig.keel(&["get", "deployments", "-o", "name"]).expect_code(0).out;
    assert_eq!(names, "deployment/a\ndeployment/b\n");
}

/// Runs the program where the environment names no runtime.
fn plain(rig: &Rig, arguments: &[&str]) -> crate::rig::Done {
    rig.command(arguments).env_remove("KEEL_RUNTIME").output().unwrap().into()
}

#[test]
fn the_runtime_that_files_were_applied_with_stays_theirs() {
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &spec("demo", 1, "hello"));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    let pids = rig.instances(|one| one["pid"].clone());
    // Whatever else is started without a runtime of its own runs there.
    rig.write("state/default-runtime", "docker");
    let told = plain(&rig, &["get", "deployments", "-o", "json"]).expect_code(0);
    assert_eq!((&told.json()[0]["state"], &told.json()[0]["message"]), (&"running".into(), &"".into()));
    plain(&rig, &["diff", "-f", "demo.yaml"]).expect_code(0);
    rig.write("moved.yaml", &spec("demo", 1, "hello"));
    for file in ["demo.yaml", "moved.yaml"] {
        let told = plain(&rig, &["apply", "-f", file]).expect_code(0);
        assert_eq!(told.out, "deployment/demo unchanged\n");
    }
    // To write down where it runs replaces nothing, and nothing is told to change.
    rig.write(
        "moved.yaml",
        &spec("demo", 1, "hello").replace("deployment: demo\n", "deployment: demo\nruntime: sandbox\n"),
    );
    let told = plain(&rig, &["diff", "-f", "moved.yaml"]).expect_code(0);
    assert_eq!(told.out, "");
    let told = plain(&rig, &["apply", "-f", "moved.yaml"]).expect_code(0);
    assert_eq!(told.out, "deployment/demo unchanged\n");
    assert_eq!(rig.instances(|one| one["pid"].clone()), pids);
    // What was written took the place of what was named before: where it is left out again, it is to be named again.
    rig.write("moved.yaml", &spec("demo", 1, "hello"));
    for named in [&["--runtime", "sandbox"][..], &[]] {
        let told = plain(&rig, &[&["apply", "-f", "moved.yaml"], named].concat()).expect_code(0);
        assert_eq!(told.out, "deployment/demo unchanged\n");
    }
    assert_eq!(rig.instances(|one| one["pid"].clone()), pids);
    let other =
        rig.command(&["diff", "-f", "moved.yaml", "-o", "json"]).env("KEEL_RUNTIME", "docker").output().unwrap();
    let fields = crate::rig::Done::from(other).json()[0]["fields"].clone();
    assert_eq!((fields[0]["old"].as_str(), fields[0]["new"].as_str()), (Some("sandbox"), Some("docker")), "{fields}");
    let rehearsed = rig.command(&["plan", "-f", "moved.yaml"]).env("KEEL_RUNTIME", "sim").output().unwrap();
    crate::rig::Done::from(rehearsed).expect_code(1);
    {
        let _controller = rig.controller_with(&["--runtime", "docker"]);
        plain(&rig, &["apply", "-f", "moved.yaml"]).expect_code(0);
    }
    assert_eq!(rig.instances(|one| one["pid"].clone()), pids);
    plain(&rig, &["delete", "demo"]).expect_code(0);
    assert_eq!(rig.instances(|one| one["pid"].clone()), [""; 0]);
}
