//! What needs no engine: help, wrong command lines, formats.

use std::process::Stdio;

use crate::rig::{Done, Rig};

#[test]
fn help_names_every_verb() {
    let rig = Rig::new("sim");
    let help = rig.keel(&["--help"]).expect_code(0).out;
    for verb in [
        "run",
        "apply",
        "diff",
        "plan",
        "delete",
        "get",
        "logs",
        "exec",
        "approve",
        "validate",
        "schema",
        "completion",
        "version",
    ] {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb} is missing in:\n{help}");
        let own = rig.keel(&[verb, "--help"]).expect_code(0).out;
        assert!(own.contains(&format!("Usage: keel {verb}")), "{own}");
    }
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    let rig = Rig::new("sim");
    for arguments in
        [&["frobnicate"][..], &["get"], &["run", "--runtime", "lxc"], &["exec", "demo/web"], &["logs", "a/b/c/d"]]
    {
        let done = rig.keel(arguments).expect_code(2);
        assert!(done.err.starts_with("error: "), "{arguments:?}: {}", done.err);
        assert_eq!(done.out, "", "{arguments:?}");
    }
}

#[test]
fn an_option_that_takes_a_duration_says_what_to_write() {
    let rig = Rig::new("sim");
    for arguments in [
        &["apply", "-f", "specs", "--timeout"][..],
        &["delete", "demo", "--timeout"],
        &["run", "--once", "--timeout"],
        &["trigger", "demo/job", "--timeout"],
        &["orphans", "--reap", "--timeout"],
        &["rollout", "status", "demo", "--timeout"],
        &["hold", "demo/web/0", "--for"],
        &["session", "acquire", "demo/pool", "--timeout"],
        &["logs", "demo", "--since"],
    ] {
        let told = rig.keel(&[arguments, &["abc"]].concat()).expect_code(2).err;
        let says = format!("error: invalid value 'abc' for '{}", arguments[arguments.len() - 1]);
        assert!(told.starts_with(&says) && told.contains(": write a duration such as 5m"), "{told}");
    }
}

#[test]
fn the_usage_of_a_wrong_command_line_is_that_of_the_help() {
    let rig = Rig::new("sim");
    let usage = |text: &str| text.lines().find(|line| line.starts_with("Usage:")).map(str::to_owned);
    for (verb, wrong) in [
        (&[][..], "--bogus"),
        (&["delete"], "--no-wait"),
        (&["get"], "--watch"),
        (&["exec"], "demo/web"),
        (&["apply"], "--bogus"),
        (&["logs"], "--bogus"),
    ] {
        let told = rig.keel(&[verb, &[wrong]].concat()).expect_code(2).err;
        let help = rig.keel(&[verb, &["--help"]].concat()).expect_code(0).out;
        assert_eq!(usage(&told), usage(&help), "{told}");
    }
    assert!(rig.keel(&["delete"]).err.contains("\nUsage: keel delete [OPTIONS] [NAME]...\n"));
}

#[test]
fn without_a_verb_the_help_is_printed_whatever_the_environment_says() {
    let rig = Rig::new("sim");
    let told = rig.keel(&[]).expect_code(2);
    let mut bare = rig.command(&[]);
    let bare: crate::rig::Done = bare.env_remove("KEEL_STATE_DIR").env_remove("KEEL_RUNTIME").output().unwrap().into();
    assert!(told.err.contains("\nCommands:\n  run "), "{}", told.err);
    assert_eq!((bare.code, bare.out, bare.err), (told.code, told.out, told.err));
}

#[test]
fn an_unknown_type_is_answered_with_the_known_ones() {
    let done = Rig::new("sim").keel(&["get", "pods"]).expect_code(2);
    assert_eq!(
        done.err,
        "error: there is no type \"pods\"; write deployments, services, jobs, pools, instances or all\n"
    );
}

#[test]
fn completion_is_there_for_every_shell() {
    let rig = Rig::new("sim");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = rig.keel(&["completion", shell]).expect_code(0).out;
        assert!(script.contains("validate"), "{shell}");
    }
}

#[test]
fn output_that_nobody_reads_ends_quietly() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let rig = Rig::new("sim");
    let mut command = rig.command(&["completion", "bash"]);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn the_demo_is_valid() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/specs");
    Rig::new("sim").keel(&["validate", demo]).expect_code(0);
}

#[test]
fn run_without_its_directory_says_which_one_is_missing() {
    let rig = Rig::new("sim");
    let done = rig.keel(&["run", "nowhere"]).expect_code(1);
    let path = rig.path("nowhere");
    assert_eq!(
        done.err,
        format!(
            "error: {}: No such file or directory (os error 2); name the directory that holds your specs, or create it\n",
            path.display()
        )
    );
}

#[test]
fn run_with_a_file_says_what_to_do_with_it() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", "version: v1\n");
    for arguments in [&["run", "specs/a.yaml"][..], &["run", "specs/a.yaml", "--allow-empty"]] {
        let done = rig.keel(arguments).expect_code(1);
        assert_eq!(
            done.err,
            format!(
                "error: {} is a file, and keel run watches a directory; name the one that it is in, or start what it \
                 declares with: keel apply -f specs/a.yaml\n",
                rig.path("specs/a.yaml").display()
            )
        );
    }
    assert!(!rig.path("state").exists());
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named() {
    let rig = Rig::new("sim");
    rig.write("file", "");
    let done = rig.keel(&["get", "all", "--state-dir", "file"]).expect_code(1);
    assert!(done.err.contains(&rig.path("file").display().to_string()), "{}", done.err);
}

#[test]
fn variables_that_are_set_to_nothing_count_as_not_set() {
    let rig = Rig::new("sim");
    let run = |arguments: &[&str]| {
        let mut command = rig.command(arguments);
        for name in ["KEEL_STATE_DIR", "KEEL_RUNTIME", "KEEL_LOG", "KEEL_LOG_FORMAT", "KEEL_DEVICES"] {
            command.env(name, "");
        }
        Done::from(command.output().unwrap())
    };
    let told = run(&["run", "specs", "--once", "--runtime", "sim", "--state-dir", "named"]).expect_code(0).err;
    assert!(told.contains(" converging specs once, then exiting; state in "), "{told}");
    run(&["version"]).expect_code(0);
    let told = rig.command(&["run"]).env("KEEL_RUNTIME", "lxc").output().unwrap();
    assert_eq!(Done::from(told).code, 2);
}
