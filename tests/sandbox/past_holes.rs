//! Holes that container runtimes had: each attempt is made, and must fail. The numbers name where each is described.

use std::os::unix::fs::symlink;
use std::time::Duration;

use evenkeel::runtime::io::{ExecOutput, ExecRequest};
use evenkeel::runtime::{ErrorKind, Exec, Runtime};
use evenkeel::state::Phase;
use futures::StreamExt;

use crate::support::{Sandbox, keel, request, rootfs, shell, shell_in};

// CVE-2021-20199: `visitors::no_client_of_a_published_port_comes_from_a_loopback_address`.

const FOREVER: &str = "while :; do sleep 0.05; done";

/// CVE-2019-5736.
#[tokio::test]
async fn the_supervisors_program_can_not_be_written_from_inside() {
    let sandbox = Sandbox::new();
    let before = std::fs::read(keel()).unwrap();
    // A script whose interpreter is whatever executes it, and a writer that waits for the link to be writable.
    let script = "printf '#!/proc/self/exe\\n' > /tmp/s; chmod 755 /tmp/s; /tmp/s; \
                  (: > /run/keel/bin/keel) 2>/dev/null && echo wrote; \
                  for p in /proc/[0-9]*; do (: > $p/exe) 2>/dev/null && [ $p != /proc/$$ ] && echo wrote $p; done; true";
    let (_, output) = sandbox.script(script).await;
    assert!(!output.contains("wrote"), "{output}");
    let instance = sandbox
        .runtime
        .create(&request("image: { name: host }\ncommand: { entrypoint: [/proc/self/exe, --version] }", 1))
        .await
        .unwrap();
    let _ = sandbox.runtime.start(&instance.as_ref()).await;
    assert!(std::fs::read(keel()).unwrap() == before, "the program is as it was");
}

/// What the first process of an instance runs from, seen from outside.
#[tokio::test]
async fn processes_of_the_runtime_run_from_a_file_that_can_not_be_written() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await;
    let run = crate::support::read_json(&sandbox.dir(&instance.as_ref()).join("run.json"));
    for process in ["supervisor", "first"] {
        let exe = format!("/proc/{}/exe", run[process]["pid"]);
        let error = std::fs::OpenOptions::new().write(true).open(&exe).unwrap_err();
        // A read-only mount, a seal, or, for an ordinary user, a link that can't even be read.
        assert!(matches!(error.raw_os_error(), Some(30 | 1 | 13 | 26)), "{exe}: {error}");
    }
}

/// CVE-2024-21626.
#[tokio::test]
async fn a_working_directory_does_not_lead_through_an_open_descriptor() {
    let sandbox = Sandbox::new();
    for number in 3..12 {
        let yaml = format!(
            "image: {{ name: host }}\ncommand: {{ entrypoint: [/bin/busybox, pwd], workdir: /proc/self/fd/{number} }}"
        );
        let instance = sandbox.runtime.create(&request(&yaml, number)).await.unwrap();
        let error = sandbox.runtime.start(&instance.as_ref()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
    }
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2025-31133, CVE-2025-52565, CVE-2026-41579.
#[tokio::test]
async fn an_image_whose_kernel_directories_are_links_is_refused() {
    let sandbox = Sandbox::new();
    for name in ["proc", "sys", "dev"] {
        let folder = tempfile::tempdir().unwrap();
        let root = rootfs(folder.path());
        std::fs::create_dir(root.join("elsewhere")).unwrap();
        symlink("elsewhere", root.join(name)).unwrap();
        let created = sandbox.runtime.create(&request(&shell_in(&root, "true"), 0)).await.unwrap();
        let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
        assert!(error.message.contains(&format!("/{name} is not a directory")), "{error}");
        sandbox.runtime.remove(&created.as_ref()).await.unwrap();
    }
}

/// CVE-2025-31133: an image can't choose what masks are made of.
#[tokio::test]
async fn masks_hold_whatever_an_image_has_for_devices() {
    let folder = tempfile::tempdir().unwrap();
    let root = rootfs(folder.path());
    std::fs::create_dir(root.join("dev")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", root.join("dev/null")).unwrap();
    let sandbox = Sandbox::new();
    let script = "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null; (echo x > /proc/sys/kernel/core_pattern) 2>/dev/null \
                  && echo wrote; (echo x > /proc/sysrq-trigger) 2>/dev/null && echo wrote; echo y > /dev/null; echo end";
    let instance = sandbox.run(&shell_in(&root, script)).await;
    sandbox.ended(&instance.as_ref()).await;
    assert_eq!(sandbox.output(&instance.as_ref()), "end\n");
}

/// CVE-2021-30465, CVE-2024-45310: another instance replaces the target of a mount by a link, again and again.
#[tokio::test]
async fn a_target_that_is_swapped_for_a_link_leads_no_mount_out() {
    let folder = tempfile::tempdir().unwrap();
    let root = rootfs(folder.path());
    let (outside, shared) = (folder.path().join("outside"), folder.path().join("shared"));
    for path in [&outside, &shared] {
        std::fs::create_dir(path).unwrap();
    }
    let sandbox = Sandbox::new();
    let storage = format!("\nstorage: [{{ type: bind, source: {}, target: /shared }}", shared.display());
    let flip = format!(
        "cd /shared; while :; do mkdir a; rmdir a; ln -s ../../../../../../..{} a; rm a; done 2>/dev/null",
        outside.display()
    );
    let flipper = sandbox.run(&(shell_in(&root, &flip) + &storage + "]")).await;
    for slot in 1..60 {
        let storage = format!("{storage}, {{ type: tmpfs, target: /shared/a/b }}]");
        let created = sandbox.runtime.create(&request(&(shell_in(&root, "true") + &storage), slot)).await.unwrap();
        let _ = sandbox.runtime.start(&created.as_ref()).await;
        sandbox.runtime.remove(&created.as_ref()).await.unwrap();
    }
    sandbox.runtime.remove(&flipper.as_ref()).await.unwrap();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "nothing was made outside");
}

/// CVE-2024-40635.
#[tokio::test]
async fn a_user_number_that_is_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = rootfs(folder.path());
    let sandbox = Sandbox::new();
    for user in ["4294967296", "4294967295", "-1", "0:4294967296"] {
        let yaml = format!("{}\nuser: '{user}'", shell_in(&root, "id"));
        let refused = match sandbox.runtime.create(&request(&yaml, 0)).await {
            Ok(created) => {
                let error = sandbox.runtime.start(&created.as_ref()).await.err();
                sandbox.runtime.remove(&created.as_ref()).await.unwrap();
                error
            }
            Err(error) => Some(error),
        };
        assert!(refused.is_some_and(|error| error.message.contains("user")), "{user}");
    }
}

/// CVE-2026-53489.
#[tokio::test]
async fn a_log_that_was_replaced_by_a_link_is_not_written_through() {
    let sandbox = Sandbox::new();
    let created = sandbox.runtime.create(&request(&shell("echo secret"), 0)).await.unwrap();
    let victim = sandbox.root.path().join("victim");
    std::fs::write(&victim, "").unwrap();
    symlink(&victim, sandbox.dir(&created.as_ref()).join("logs/output.log")).unwrap();
    let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
    assert!(error.message.contains("log"), "{error}");
    assert_eq!(std::fs::read(&victim).unwrap(), b"");
}

/// CVE-2024-9676.
#[tokio::test]
async fn a_password_file_that_is_no_file_hangs_nothing() {
    let sandbox = Sandbox::new();
    for kind in ["fifo", "link"] {
        let folder = tempfile::tempdir().unwrap();
        let root = rootfs(folder.path());
        let path = root.join("etc/passwd");
        std::fs::remove_file(&path).unwrap();
        if kind == "fifo" {
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        } else {
            symlink("/etc/shadow", &path).unwrap();
        }
        let created = sandbox.runtime.create(&request(&shell_in(&root, "echo up"), 0)).await.unwrap();
        let id = created.as_ref();
        let started = tokio::time::timeout(Duration::from_secs(10), sandbox.runtime.start(&id));
        let _ = started.await.expect("it does not hang");
        sandbox.runtime.remove(&created.as_ref()).await.unwrap();
    }
}

/// CVE-2022-31030.
#[tokio::test]
async fn output_that_nobody_reads_is_not_kept_in_memory() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await;
    // A line in `rounds` stands for a mebibyte that was taken from the command.
    let script = "while head -c 1048576 /dev/zero; do echo >> /tmp/rounds; done";
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let request = ExecRequest { command, ..ExecRequest::default() };
    let mut session = Exec::exec(&sandbox.runtime, &instance.as_ref(), &request).await.unwrap();
    let Some(Ok(ExecOutput::Stdout(first))) = session.output.next().await else { panic!("it writes") };
    assert!(first.iter().all(|byte| *byte == 0) && !first.is_empty());
    let rounds = async || {
        let command = ["/bin/sh", "-c", "touch /tmp/rounds; wc -l < /tmp/rounds"].map(str::to_owned).to_vec();
        let request = ExecRequest { command, ..ExecRequest::default() };
        let mut session = Exec::exec(&sandbox.runtime, &instance.as_ref(), &request).await.unwrap();
        let Some(Ok(ExecOutput::Stdout(lines))) = session.output.next().await else { panic!("it counts") };
        String::from_utf8_lossy(&lines).trim().parse::<u32>().unwrap()
    };
    let mut before = rounds().await;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let after = rounds().await;
        assert!(after < 8, "{after} MiB were taken, and nobody read them");
        if after == before {
            break;
        }
        before = after;
    }
    drop(session);
    assert!(matches!(sandbox.find(&instance.as_ref()).await.unwrap().phase, Phase::Running { .. }));
}
