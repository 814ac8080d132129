//! The machine's `/etc` inside: what is hidden, and what is the instance's own, stays so whatever the machine puts there.

use std::fs;
use std::path::Path;
use std::process::Command;

use evenkeel::runtime::io::{Exec, ExecOutput, ExecRequest};
use evenkeel::state::InstanceRef;
use futures::StreamExt;

use crate::support::{Sandbox, is_root, shell, skip, with_own_mounts};
use crate::unprivileged::Copies;

/// Gives the tests an /etc of their own.
const OWN_ETC: &str = "dir=$(mktemp -d) && cp -a /etc $dir && cp -L /etc/hosts /etc/resolv.conf $dir/etc && \
                       mkdir -p $dir/etc/ssh && echo key >$dir/etc/ssh/ssh_host_old_key && \
                       echo config >$dir/etc/ssh/ssh_config && echo old >$dir/etc/keel-test && rm -rf $dir/etc/sudoers* && \
                       echo old >$dir/etc/shadow && chmod 644 $dir/etc/shadow && chown -R 65534 $dir/etc && \
                       mount --bind $dir/etc /etc";
/// Set in the run as an ordinary user.
const ORDINARY: &str = "KEEL_TEST_ETC";

async fn seen(sandbox: &Sandbox, instance: &InstanceRef) -> String {
    let script = "cd /etc; cat shadow sudoers ssh/ssh_host_new_key ssh/ssh_host_old_key 2>/dev/null; cat ssh/ssh_config; \
                  grep -c example.test hosts; ls -d [sg]*shadow* sudoers* ssh/*_key 2>/dev/null; cat keel-test; echo end";
    let request = ExecRequest { command: ["sh", "-c", script].map(str::to_owned).to_vec(), ..ExecRequest::default() };
    let session = Exec::exec(&sandbox.runtime, instance, &request).await.unwrap();
    let written = session.output.filter_map(|item| async {
        match item.unwrap() {
            ExecOutput::Stdout(text) | ExecOutput::Stderr(text) => Some(String::from_utf8_lossy(&text).into_owned()),
            ExecOutput::Exit(_) => None,
        }
    });
    written.collect().await
}

/// Puts a file in the place of another one, as the tools do that change what is in /etc.
fn replace(path: &str, text: &str) {
    fs::write("/etc/keel-new", text).unwrap();
    fs::rename("/etc/keel-new", path).unwrap();
}

/// Has the machine change its files below an instance that runs.
async fn stays_hidden() {
    let sandbox = Sandbox::new();
    // It has files about names of its own.
    let yaml = shell("sleep 1000") + "\nsandbox: { network: loopback }\nextra_hosts: ['example.test:192.0.2.1']";
    let instance = sandbox.run(&yaml).await.as_ref();
    let expected = "config\n1\nold\nend\n";
    assert_eq!(seen(&sandbox, &instance).await, expected);
    for secret in ["shadow", "shadow-", "gshadow", "sudoers", "ssh/ssh_host_old_key", "ssh/ssh_host_new_key"] {
        replace(&format!("/etc/{secret}"), "secret\n");
        assert_eq!(seen(&sandbox, &instance).await, expected, "{secret}");
    }
    for own in ["hosts", "resolv.conf"] {
        replace(&format!("/etc/{own}"), "# the machine's\n");
        assert_eq!(seen(&sandbox, &instance).await, expected, "{own}");
    }
    fs::write("/etc/keel-test", "written in place\n").unwrap();
    assert_eq!(seen(&sandbox, &instance).await, expected.replace("old", "written in place"));
}

#[tokio::test]
async fn what_is_hidden_stays_so_when_the_machine_replaces_it() {
    if with_own_mounts(OWN_ETC, "etc::what_is_hidden_stays_so_when_the_machine_replaces_it") {
        stays_hidden().await;
    }
}

#[tokio::test]
async fn so_it_does_where_something_is_mounted_below() {
    let script = format!("{OWN_ETC} && mount --bind /etc/passwd /etc/passwd");
    if with_own_mounts(&script, "etc::so_it_does_where_something_is_mounted_below") {
        stays_hidden().await;
    }
}

#[tokio::test]
async fn so_it_does_for_an_ordinary_user() {
    if std::env::var_os(ORDINARY).is_some() {
        return stays_hidden().await;
    }
    for more in ["true", "mount --bind /etc/passwd /etc/passwd"] {
        if !is_root() {
            return;
        }
        let copies = Copies::new();
        let tests = copies.tests();
        let script = format!("{OWN_ETC} && {more} && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh"]).arg(tests.get_program());
        command.args(["--exact", "etc::so_it_does_for_an_ordinary_user"]).env(ORDINARY, "1");
        command.envs(tests.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = command.current_dir(tests.get_current_dir().unwrap_or(Path::new("/"))).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        match told.contains("running 1 test") {
            true => assert!(output.status.success(), "{told}"),
            false => skip(&format!("no such mounts here: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }
}
