//! Who the processes of an instance are and what they may: the program, the init process above it, and commands inside.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use evenkeel::runtime::io::{ExecOutput, ExecRequest};
use evenkeel::runtime::{Control, EnforcementState as State, ErrorKind, Exec, Runtime, Support};
use evenkeel::spec::Signal;
use evenkeel::state::{InstanceRef, StopCause};
use futures::StreamExt;

use crate::support::{PATIENCE, Sandbox, is_root, request, rootfs, shell, shell_in, stop, without_namespaces_but_with};

const FOREVER: &str = "while :; do sleep 0.05; done";
/// The bit of CAP_KILL.
const KILL: u64 = 1 << 5;
/// Sets of capabilities in `/proc/PID/status`.
const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// Fields of a `/proc/PID/status`.
fn fields(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect()
}

fn set(status: &BTreeMap<&str, &str>, name: &str) -> u64 {
    u64::from_str_radix(status[name], 16).unwrap()
}

/// Runs a command inside and returns what it wrote.
async fn exec(sandbox: &Sandbox, instance: &InstanceRef, script: &str) -> String {
    let command = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
    let request = ExecRequest { command, ..ExecRequest::default() };
    let session = Exec::exec(&sandbox.runtime, instance, &request).await.unwrap();
    let written = session.output.filter_map(|item| async {
        match item.unwrap() {
            ExecOutput::Stdout(text) | ExecOutput::Stderr(text) => Some(String::from_utf8_lossy(&text).into_owned()),
            _ => None,
        }
    });
    written.collect().await
}

/// Programs of another user pass the directories that are made for what is shown inside.
#[tokio::test]
async fn the_program_of_another_user_finds_this_program_and_is_told_what_does_not_exist() {
    let sandbox = Sandbox::new();
    let user = if is_root() { "user: '65534'" } else { "" };
    let (_, said) =
        sandbox.script_with(user, "keel --version | cut -d' ' -f1; no-such-program 2>/dev/null; echo $?").await;
    assert!(said.starts_with("keel\n127\n"), "{said}");
}

#[tokio::test]
async fn the_init_process_and_commands_inside_may_no_more_than_the_program() {
    let cases = [
        ("", 0),
        ("capabilities: [SYS_PTRACE]", 0),
        ("sandbox: { seccomp: strict }", 0),
        ("user: '65534'\ncapabilities: [SYS_PTRACE]", 0),
        ("cap_drop: [ALL]", 0),
        // It hands signals on to a program that becomes another user.
        ("cap_drop: [ALL]\ncapabilities: [SETUID, SYS_PTRACE]", KILL),
    ];
    let script = "cat /proc/1/status; echo ---; cat /proc/self/status";
    let sandbox = Sandbox::new();
    for (slot, (more, besides)) in (0..).zip(cases) {
        let yaml = shell(&format!("{script}; echo; echo up; {FOREVER}")) + "\n" + more;
        let created = sandbox.runtime.create(&request(&yaml, slot)).await.unwrap();
        let instance = sandbox.runtime.start(&created.as_ref()).await.unwrap().as_ref();
        sandbox.wrote(&instance, "\nup\n").await;
        for output in [sandbox.output(&instance), exec(&sandbox, &instance, script).await] {
            let (init, own) = output.split_once("---").unwrap();
            let (init, own) = (fields(init), fields(own));
            for name in SETS {
                let more = set(&init, name) & !set(&own, name);
                assert_eq!(more & !besides, 0, "{more:#x}, {name}, {slot}");
            }
            assert_eq!((init["NoNewPrivs"], init["Seccomp"]), ("1", "2"), "{slot}");
            for name in ["NoNewPrivs", "Seccomp", "Seccomp_filters", "Uid", "Gid", "Groups"] {
                assert_eq!(init.get(name), own.get(name), "{name}, {slot}");
            }
        }
        sandbox.runtime.remove(&instance).await.unwrap();
    }
}

#[tokio::test]
async fn no_process_inside_is_ever_stronger_than_the_program() {
    let sandbox = Sandbox::new();
    let script = "echo up; while :; do grep -hs CapBnd /proc/[0-9]*/status; done";
    let instance = sandbox.run(&(shell(script) + "\ncapabilities: [SYS_PTRACE]\ncap_drop: [CHOWN]")).await.as_ref();
    sandbox.wrote(&instance, "CapBnd").await;
    for _ in 0..20 {
        assert_eq!(exec(&sandbox, &instance, "echo done").await, "done\n");
    }
    let output = sandbox.output(&instance);
    let sets: BTreeSet<&str> = output.lines().filter(|line| *line != "up").collect();
    assert_eq!(sets.len(), 1, "{sets:?}");
}

#[tokio::test]
async fn a_program_that_became_another_user_is_told_to_stop() {
    if !is_root() {
        return;
    }
    let sandbox = Sandbox::new();
    let script = "exec /usr/bin/setpriv --reuid 33 --regid 33 --clear-groups /bin/busybox sh -c \
                  'trap \"echo term; exit 7\" TERM; echo up; while :; do sleep 0.05; done'";
    let more = "\ncap_drop: [ALL]\ncapabilities: [SETUID, SETGID]";
    let instance = sandbox.run(&(shell(script) + more)).await.as_ref();
    sandbox.wrote(&instance, "up").await;
    sandbox.runtime.stop(&instance, &stop(Signal::TERM, PATIENCE, StopCause::Retired)).await.unwrap();
    assert_eq!(sandbox.ended(&instance).await.code, Some(7));
    assert_eq!(sandbox.output(&instance), "up\nterm\n");
}

#[tokio::test]
async fn what_the_program_leaves_behind_is_reaped_under_every_profile() {
    for profile in ["default", "strict", "unconfined"] {
        let sandbox = Sandbox::new();
        let script =
            "(sleep 0 & sleep 0.1 &); sleep 0.4; grep -l '^State:.*Z' /proc/[0-9]*/status 2>/dev/null; echo end";
        let (exit, output) =
            sandbox.script_with(&format!("sandbox: {{ seccomp: {profile} }}\nuser: '65534'"), script).await;
        assert_eq!((exit.code, output.as_str()), (Some(0), "end\n"), "{profile}");
    }
}

/// Variable that tells the run without a capability.
const LACKING: &str = "KEEL_TEST_LACKING";

/// Runs a test again as root without some capabilities. Whether this is that run.
fn lacking(capabilities: &str, name: &str) -> bool {
    if std::env::var_os(LACKING).is_some() {
        return true;
    }
    if is_root() {
        let mut command = Command::new("setpriv");
        command.arg(format!("--bounding-set={capabilities}")).arg(std::env::current_exe().unwrap());
        let output = command.args(["--exact", name]).env(LACKING, "1").output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("running 1 test"), "{told}");
    }
    false
}

const OWN_SETS: &str = "grep -E 'CapInh|CapPrm|CapEff|CapAmb' /proc/self/status | tr -d '\\t'";
const NOTHING: &str =
    "CapInh:0000000000000000\nCapPrm:0000000000000000\nCapEff:0000000000000000\nCapAmb:0000000000000000\n";

#[tokio::test]
async fn capabilities_are_dropped_also_where_the_bounding_set_stays() {
    if !lacking("-setpcap", "privileges::capabilities_are_dropped_also_where_the_bounding_set_stays") {
        return;
    }
    let sandbox = Sandbox::new();
    let support = sandbox.runtime.capabilities().await.unwrap().support(Control::CapabilityDrop);
    let Support::Degraded { why } = support else { panic!("{support:?}") };
    assert!(why.starts_with("keel can't reduce the bounding set, which takes CAP_SETPCAP"), "{why}");
    let yaml = shell(OWN_SETS) + "\nuser: '0'\ncap_drop: [ALL]";
    let instance = sandbox.run(&yaml).await;
    assert!(instance.conditions.iter().any(|one| one.reason == "CapabilitiesNotBounded"), "{:?}", instance.conditions);
    sandbox.ended(&instance.as_ref()).await;
    assert_eq!(sandbox.output(&instance.as_ref()), NOTHING);
    let required = yaml + "\nsandbox: { require: [capability_drop] }";
    let error = sandbox.runtime.create(&request(&required, 1)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
}

#[tokio::test]
async fn a_required_user_is_one_that_is_written_and_not_root() {
    let sandbox = Sandbox::new();
    let enforced = sandbox.runtime.capabilities().await.unwrap().support(Control::User) == Support::Enforced;
    let required = "\nsandbox: { require: [user] }";
    for user in ["", "\nuser: root", "\nuser: '0:5'", "\nuser: '00'", "\nuser: '000:5'"] {
        let yaml = shell("true") + user + required;
        let error = sandbox.runtime.create(&request(&yaml, 0)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
        assert!(!enforced || error.message.ends_with("write a user other than root"), "{error}");
    }
    let met = sandbox.runtime.create(&request(&(shell("true") + "\nuser: '65534:65534'" + required), 0)).await;
    assert_eq!(met.is_ok(), enforced, "{met:?}");
}

#[tokio::test]
async fn a_required_user_is_not_root_under_another_name() {
    let sandbox = Sandbox::new();
    if sandbox.runtime.capabilities().await.unwrap().support(Control::User) != Support::Enforced {
        return;
    }
    let root = rootfs(sandbox.root.path());
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:0:0::/:/bin/sh\nlog:x:7:0::/:/bin/sh\n")
        .unwrap();
    let yaml = |user: &str| format!("{}\nuser: {user}", shell_in(&root, "id -u"));
    let required = |user: &str| yaml(user) + "\nsandbox: { require: [user] }";
    let created = sandbox.runtime.create(&request(&required("web"), 0)).await.unwrap();
    let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
    assert!(error.message.contains("sandbox.require: user does not hold: /etc/passwd of the image"), "{error}");
    sandbox.runtime.remove(&created.as_ref()).await.unwrap();
    for (yaml, uid, expected) in [
        (required("log"), "7\n", State::Enforced { by: "user 7, group 0".to_owned() }),
        (
            yaml("web"),
            "0\n",
            State::Degraded { by: "user 0, group 0".to_owned(), why: "web is root in its /etc/passwd".to_owned() },
        ),
        (yaml("'00'"), "0\n", State::NotRequested { by: None }),
    ] {
        let instance = sandbox.run(&yaml).await.as_ref();
        sandbox.ended(&instance).await;
        assert_eq!(sandbox.output(&instance), uid);
        let told = sandbox.runtime.enforcement(&instance).await.unwrap();
        let user = told.into_iter().find(|one| one.control == Control::User).unwrap();
        assert_eq!(user.state, expected);
        sandbox.runtime.remove(&instance).await.unwrap();
    }
}

#[tokio::test]
async fn a_user_or_group_that_can_not_be_set_is_refused() {
    if !lacking("-setgid", "privileges::a_user_or_group_that_can_not_be_set_is_refused") {
        return;
    }
    let sandbox = Sandbox::new();
    let support = sandbox.runtime.capabilities().await.unwrap().support(Control::User);
    assert!(matches!(&support, Support::Degraded { why } if why.contains("CAP_SETGID")), "{support:?}");
    let refused = [("user: '0:7'", "group 7"), ("user: '0'\nextra_groups: ['7']", "the groups [7]")];
    for (slot, (more, text)) in (0..).zip(refused) {
        let created = sandbox.runtime.create(&request(&format!("{}\n{more}", shell("true")), slot)).await.unwrap();
        let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
        assert!(error.message.contains(text) && error.message.contains("CAP_SETGID"), "{error}");
    }
    let instance = sandbox.runtime.create(&request(&(shell(OWN_SETS) + "\ncap_drop: [ALL]"), 2)).await.unwrap();
    sandbox.runtime.start(&instance.as_ref()).await.unwrap();
    sandbox.ended(&instance.as_ref()).await;
    assert_eq!(sandbox.output(&instance.as_ref()), NOTHING);
}

#[tokio::test]
async fn a_plain_process_keeps_no_capability_of_the_controller() {
    let kept = ["--bounding-set=-all,+chown", "--inh-caps=-all,+chown", "--ambient-caps=-all,+chown"];
    if !without_namespaces_but_with(&kept, "privileges::a_plain_process_keeps_no_capability_of_the_controller") {
        return;
    }
    let sandbox = Sandbox::new();
    let instance =
        sandbox.run(&(shell(&format!("{OWN_SETS}; echo up; {FOREVER}")) + "\ncap_drop: [ALL]")).await.as_ref();
    sandbox.wrote(&instance, "up").await;
    assert_eq!(sandbox.output(&instance), format!("{NOTHING}up\n"));
    assert_eq!(exec(&sandbox, &instance, OWN_SETS).await, NOTHING);
}

#[tokio::test]
async fn processes_have_the_oom_score_of_the_spec_and_not_that_of_the_controller() {
    const OWN: &str = "/proc/self/oom_score_adj";
    let before = std::fs::read_to_string(OWN).unwrap();
    // Whoever raises it may go back.
    std::fs::write(OWN, "300").unwrap();
    let sandbox = Sandbox::new();
    let script = format!("cat /proc/1/oom_score_adj {OWN}; echo up; {FOREVER}");
    for (slot, (more, expected)) in (0..).zip([("", before.trim()), ("resources: { oom_score_adj: 500 }", "500")]) {
        let expected = if slot == 0 && is_root() { "0" } else { expected };
        let created = sandbox.runtime.create(&request(&format!("{}\n{more}", shell(&script)), slot)).await.unwrap();
        let instance = sandbox.runtime.start(&created.as_ref()).await.unwrap().as_ref();
        sandbox.wrote(&instance, "up").await;
        assert_eq!(sandbox.output(&instance), format!("{expected}\n{expected}\nup\n"));
        assert_eq!(exec(&sandbox, &instance, &format!("cat {OWN}")).await, format!("{expected}\n"));
    }
    std::fs::write(OWN, before).unwrap();
}
