//! Root file systems, mounts, users and networks.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use evenkeel::runtime::{Control, ErrorKind, Runtime, Support};
use evenkeel::spec::Signal;
use evenkeel::state::{Phase, StopCause, Volumes};

use crate::support::{PATIENCE, Sandbox, is_root, keel, open, request, rootfs, shell, shell_in, stop};

async fn run(sandbox: &Sandbox, yaml: &str) -> String {
    let instance = sandbox.run(yaml).await;
    sandbox.ended(&instance.as_ref()).await;
    sandbox.output(&instance.as_ref())
}

#[tokio::test]
async fn a_directory_is_a_root_whose_writes_stay_with_the_instance() {
    let sandbox = Sandbox::new();
    let root = rootfs(sandbox.root.path());
    let output = run(&sandbox, &shell_in(&root, "touch /srv/new && ls / /srv")).await;
    assert_eq!(output, "/:\nbin\ndev\netc\nproc\nsrv\nsys\n\n/srv:\nnew\n");
    assert_eq!(std::fs::read_dir(root.join("srv")).unwrap().count(), 0);
    assert!(!root.join("proc").exists());
}

#[tokio::test]
async fn a_read_only_root_refuses_writes_and_has_its_mounts() {
    let sandbox = Sandbox::new();
    let root = rootfs(sandbox.root.path());
    let script = "touch /srv/new 2>/dev/null || echo refused; touch /data/new && ls /data";
    let yaml = shell_in(&root, script) + "\nread_only_root_fs: true\nstorage: [{ type: tmpfs, target: /data }]";
    assert!(run(&sandbox, &yaml).await.ends_with("refused\nnew\n"));
    assert!(!root.join("data").exists());
}

#[tokio::test]
async fn a_read_only_root_can_be_written_where_the_spec_says_so() {
    let sandbox = Sandbox::new();
    let root = rootfs(sandbox.root.path());
    std::fs::write(root.join("etc/settings"), "old\n").unwrap();
    let script = "for f in /srv/new /made/new /etc/settings /etc/other; do echo x 2>/dev/null > $f && echo $f; done; \
                  cat /etc/settings";
    let yaml =
        shell_in(&root, script) + "\nread_only_root_fs: true\nsandbox: { writable: [/srv, /made, /etc/settings] }";
    let yaml = if is_root() { yaml.replace("[sh, ", "[busybox, sh, ") + "\nuser: web" } else { yaml };
    for path in [root.join("srv"), root.join("etc/settings")] {
        if is_root() {
            std::os::unix::fs::chown(path, Some(33), Some(34)).unwrap();
        }
    }
    let instance = sandbox.run(&yaml).await;
    sandbox.ended(&instance.as_ref()).await;
    let output: String = sandbox
        .output(&instance.as_ref())
        .lines()
        .filter(|line| !line.contains("can't create"))
        .collect::<Vec<_>>()
        .join(" ");
    assert_eq!(output, "/srv/new /made/new /etc/settings x");
    assert_eq!(std::fs::read_to_string(root.join("etc/settings")).unwrap(), "old\n", "the image is as it was");
    assert!(!root.join("made").exists());
}

#[tokio::test]
async fn mounts_of_every_kind_are_where_they_should_be() {
    let sandbox = Sandbox::new();
    let root = rootfs(sandbox.root.path());
    let shared = sandbox.root.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "from outside\n").unwrap();
    let storage = format!(
        "\nstorage:\n- {{ type: bind, source: {0}, target: /in/ro, readonly: true }}\n\
         - {{ type: bind, source: {0}, target: /rw }}\n\
         - {{ type: bind, source: {0}/file, target: /etc/one, readonly: true }}\n\
         - {{ type: named, name: data, target: /named }}\n\
         - {{ type: anonymous, target: /named/inner }}\n\
         - {{ type: tmpfs, target: /mem, size: 1Mi, mode: 700 }}",
        shared.display()
    );
    let script = "cat /in/ro/file /etc/one; touch /in/ro/x 2>/dev/null || echo ro; touch /rw/written; \
                  touch /named/kept /named/inner/x /mem/x && ls -l / | cat | busybox grep mem | busybox cut -c1-10";
    let output = run(&sandbox, &(shell_in(&root, script) + &storage)).await;
    assert_eq!(output, "from outside\nfrom outside\nro\ndrwx------\n");
    assert!(shared.join("written").exists());
    let volume = sandbox.root.path().join("sandbox/volumes/demo/data");
    assert!(volume.join("kept").exists());
    let instance = sandbox.runtime.list().await.unwrap().instances.remove(0);
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
    sandbox.runtime.teardown("demo", Volumes::Keep).await.unwrap();
    assert!(volume.join("kept").exists());
    sandbox.runtime.teardown("demo", Volumes::Remove).await.unwrap();
    assert!(!volume.exists());
}

#[tokio::test]
async fn a_volume_with_a_size_holds_no_more_or_says_that_it_does() {
    let sandbox = Sandbox::new();
    let root = rootfs(sandbox.root.path());
    let script = "busybox dd if=/dev/zero of=/data/file bs=65536 count=64 2>/dev/null || echo full; \
                  busybox du -k /data/file | busybox cut -f1";
    let yaml = shell_in(&root, script) + "\nstorage: [{ type: named, name: data, target: /data, size: 1Mi }]";
    let instance = sandbox.run(&yaml).await;
    sandbox.ended(&instance.as_ref()).await;
    let output = sandbox.output(&instance.as_ref());
    let told = instance.conditions.iter().find(|condition| condition.reason == "Storage0Size");
    match (sandbox.runtime.capabilities().await.unwrap().support(Control::DiskLimit), told) {
        (Support::Enforced, None) => {
            let kib: u64 = output.strip_prefix("full\n").expect("it is full").trim().parse().unwrap();
            assert!((512..=1024).contains(&kib), "{output}");
        }
        (Support::Absent { why }, Some(condition)) => {
            assert!(condition.message.ends_with(&why), "{condition:?}");
            assert_eq!(output, "4096\n");
        }
        other => panic!("{other:?}"),
    }
    // Another size holds from the next start on.
    let mut larger = request(&yaml.replace("1Mi", "2Mi"), 1);
    larger.id.attempt = 1;
    let created = sandbox.runtime.create(&larger).await.unwrap();
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
    sandbox.ended(&created.as_ref()).await;
    if told.is_none() {
        let output = sandbox.output(&created.as_ref());
        let kib: u64 = output.strip_prefix("full\n").expect("it is full").trim().parse().unwrap();
        assert!((1536..=2048).contains(&kib), "{output}");
    }
}

/// A root file system with directories in `/srv` that hold something, of which two are seen by links as well.
fn furnished(folder: &Path) -> PathBuf {
    let root = rootfs(folder);
    for data in ["data", "other", "more"].map(|name| root.join("srv").join(name)) {
        std::fs::create_dir_all(data.join("closed")).unwrap();
        std::fs::write(data.join("file"), "of the image\n").unwrap();
        std::fs::write(data.join("closed/tool"), "").unwrap();
        for (path, mode) in [("closed/tool", 0o750), ("closed", 0o711), ("file", 0o640), ("", 0o1777)] {
            std::fs::set_permissions(data.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        if is_root() {
            std::os::unix::fs::chown(data.join("file"), Some(33), Some(34)).unwrap();
        }
    }
    std::os::unix::fs::symlink("../srv/other", root.join("srv/link")).unwrap();
    std::os::unix::fs::symlink("/srv/more", root.join("anonymous")).unwrap();
    root
}

#[tokio::test]
async fn new_volumes_take_over_what_the_image_has_and_keep_what_becomes_of_it() {
    let sandbox = Sandbox::new();
    let root = furnished(sandbox.root.path());
    let script =
        "cat /srv/data/file /anonymous/file && echo written > /srv/data/file && busybox rm -r /srv/data/closed";
    // By links too, and at a path that the image does not have.
    let storage = "\nstorage:\n- { type: named, name: data, target: /srv/data }\n\
                   - { type: named, name: other, target: /srv/link, readonly: true }\n\
                   - { type: named, name: empty, target: /none }\n\
                   - { type: anonymous, target: /anonymous }";
    let instance = sandbox.run(&(shell_in(&root, script) + storage)).await;
    sandbox.ended(&instance.as_ref()).await;
    assert_eq!(sandbox.output(&instance.as_ref()), "of the image\nof the image\n");
    let volumes = sandbox.root.path().join("sandbox/volumes/demo");
    let data = |path: &str| std::fs::metadata(volumes.join(path)).unwrap();
    let modes =
        ["other", "other/file", "other/closed", "other/closed/tool", "empty"].map(|path| data(path).mode() & 0o7777);
    assert_eq!(modes, [0o1777, 0o640, 0o711, 0o750, 0o755]);
    if is_root() {
        assert_eq!((data("other/file").uid(), data("other/file").gid(), data("other/closed").uid()), (33, 34, 0));
    }
    assert_eq!(std::fs::read(volumes.join("other/file")).unwrap(), b"of the image\n");
    assert_eq!(std::fs::read_dir(volumes.join("empty")).unwrap().count(), 0);
    // Another instance finds what the first one left, whatever the image has now.
    for name in ["data", "more"] {
        std::fs::write(root.join("srv").join(name).join("later"), "").unwrap();
    }
    let script = "cat /srv/data/file; ls /srv/data; ls /anonymous";
    let created = sandbox.runtime.create(&request(&(shell_in(&root, script) + storage), 1)).await.unwrap();
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
    sandbox.ended(&created.as_ref()).await;
    assert_eq!(sandbox.output(&created.as_ref()), "written\nfile\nclosed\nfile\nlater\n");
    // What was emptied stays empty, also for the next start of the same instance.
    std::fs::remove_file(volumes.join("data/file")).unwrap();
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
    sandbox.ended(&created.as_ref()).await;
    assert_eq!(std::fs::read_dir(volumes.join("data")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(&volumes).unwrap().count(), 3, "nothing else is left");
}

#[tokio::test]
async fn a_new_volume_at_several_targets_takes_over_the_first_that_holds_something() {
    let sandbox = Sandbox::new();
    let root = furnished(sandbox.root.path());
    std::fs::create_dir(root.join("srv/bare")).unwrap();
    std::fs::set_permissions(root.join("srv/bare"), std::fs::Permissions::from_mode(0o710)).unwrap();
    std::fs::write(root.join("srv/more/late"), "").unwrap();
    let at = |name: &str, targets: &[&str]| -> String {
        targets.iter().map(|target| format!("\n- {{ type: named, name: {name}, target: {target} }}")).collect()
    };
    let storage = at("data", &["/none", "/srv/bare", "/srv/data", "/srv/more"]) + &at("empty", &["/no", "/srv/bare"]);
    // The second volume has one target of the first, over which it lies.
    let yaml = shell_in(&root, "ls /none /srv/more; cat /srv/data/file") + "\nstorage:" + &storage;
    assert_eq!(run(&sandbox, &yaml).await, "/none:\nclosed\nfile\n\n/srv/more:\nclosed\nfile\nof the image\n");
    let modes = ["data", "empty"].map(|name| {
        let volume = sandbox.root.path().join("sandbox/volumes/demo").join(name);
        std::fs::metadata(volume).unwrap().mode() & 0o7777
    });
    assert_eq!(modes, [0o1777, 0o710]);
}

#[tokio::test]
async fn a_volume_whose_making_was_cut_off_is_made_anew() {
    let sandbox = Sandbox::new();
    let root = furnished(sandbox.root.path());
    let cut = sandbox.root.path().join("sandbox/volumes/demo/.data.new");
    std::fs::create_dir_all(cut.join("half")).unwrap();
    let yaml = shell_in(&root, "ls /srv/data") + "\nstorage: [{ type: named, name: data, target: /srv/data }]";
    assert_eq!(run(&sandbox, &yaml).await, "closed\nfile\n");
    assert!(!cut.exists());
}

/// Where the process that is killed while it removes volumes finds its root; it does nothing without.
const REMOVING: &str = "KEEL_TEST_REMOVING_VOLUMES";

/// The process that is killed: a test of no meaning of its own.
#[tokio::test]
async fn removes_volumes() {
    let Some(root) = std::env::var_os(REMOVING).map(PathBuf::from) else { return };
    let owner = root.file_name().unwrap().to_string_lossy().replace('.', "test-");
    open(&root, &owner).teardown("demo", Volumes::Remove).await.unwrap();
}

#[tokio::test]
async fn a_volume_whose_removal_was_cut_off_is_gone_and_what_is_left_of_it_goes_too() {
    let sandbox = Sandbox::new();
    let yaml = shell("ls /data | busybox wc -l") + "\nstorage: [{ type: named, name: data, target: /data }]";
    let created = sandbox.run(&yaml).await.as_ref();
    sandbox.ended(&created).await;
    sandbox.runtime.remove(&created).await.unwrap();
    let volumes = sandbox.root.path().join("sandbox/volumes");
    let files = 30_000;
    for number in 0..files {
        std::fs::write(volumes.join(format!("demo/data/{number}")), "").unwrap();
    }
    // By what it opened, it is seen under every name.
    let data: std::os::fd::OwnedFd = std::fs::File::open(volumes.join("demo/data")).unwrap().into();
    let count = || std::fs::read_dir(format!("/proc/self/fd/{}", data.as_raw_fd())).map_or(0, Iterator::count);
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "storage::removes_volumes"]).env(REMOVING, sandbox.root.path());
    let mut removing = command.env("KEEL_TEST_PROGRAM", keel()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let end = std::time::Instant::now() + PATIENCE;
    while count() == files && std::time::Instant::now() < end {}
    removing.kill().unwrap();
    removing.wait().unwrap();
    assert!((1..files).contains(&count()), "it was killed midway: {}", count());
    assert_eq!(run(&sandbox, &yaml).await, "0\n");
    sandbox.runtime.teardown("other", Volumes::Keep).await.unwrap();
    let names: Vec<_> = std::fs::read_dir(&volumes).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["demo"]);
    assert_eq!(count(), 0);
}

#[tokio::test]
async fn instances_that_start_together_find_the_same_whole_volume() {
    let sandbox = Sandbox::new();
    let root = furnished(sandbox.root.path());
    for number in 0..500 {
        std::fs::write(root.join(format!("srv/data/{number}")), "x").unwrap();
    }
    let yaml = shell_in(&root, "ls /srv/data | busybox wc -l; touch /srv/data/mark-$HOSTNAME")
        + "\nstorage: [{ type: named, name: data, target: /srv/data }]";
    let starts = (0..4).map(|slot| {
        let (runtime, request) = (sandbox.runtime.clone(), request(&yaml, slot));
        async move {
            let created = runtime.create(&request).await.unwrap();
            runtime.start(&created.as_ref()).await.unwrap()
        }
    });
    for instance in futures::future::join_all(starts).await {
        sandbox.ended(&instance.as_ref()).await;
        let seen: usize = sandbox.output(&instance.as_ref()).trim().parse().unwrap();
        assert!((502..=505).contains(&seen), "{seen}");
    }
}

#[tokio::test]
async fn the_machines_own_files_are_no_image() {
    let sandbox = Sandbox::new();
    let yaml = shell("ls /usr/share; echo end") + "\nstorage: [{ type: named, name: data, target: /usr/share }]";
    assert_eq!(run(&sandbox, &yaml).await, "end\n");
}

#[tokio::test]
async fn a_target_that_is_missing_on_the_machine_is_made_for_the_instance_alone() {
    let sandbox = Sandbox::new();
    let storage = "\nstorage:\n- { type: named, name: data, target: /keel-data/deep }\n\
                   - { type: tmpfs, target: /usr/lib/keel-data }";
    let script = "touch /keel-data/deep/x /usr/lib/keel-data/y && ls /keel-data/deep /usr/lib/keel-data; \
                  touch /keel-data/z 2>/dev/null || echo read-only; test -e /etc/passwd && test -e /usr/bin && echo rest";
    let output = run(&sandbox, &(shell(script) + storage)).await;
    assert_eq!(output, "/keel-data/deep:\nx\n\n/usr/lib/keel-data:\ny\nread-only\nrest\n");
    assert!(!std::path::Path::new("/keel-data").exists());
}

#[tokio::test]
async fn a_link_in_an_image_does_not_lead_a_mount_out_of_it() {
    let sandbox = Sandbox::new();
    let root = rootfs(sandbox.root.path());
    let outside = sandbox.root.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
    std::os::unix::fs::symlink("../../../../../..", root.join("up")).unwrap();
    let yaml = shell_in(&root, "ls /up") + "\nstorage: [{ type: tmpfs, target: /up/made }]";
    assert!(run(&sandbox, &yaml).await.contains("made\n"));
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!std::path::Path::new("/made").exists());
}

#[tokio::test]
async fn a_missing_source_is_told_by_name_and_may_still_be_made() {
    let sandbox = Sandbox::new();
    let yaml = shell("true") + "\nstorage: [{ type: bind, source: /no/such/source, target: /tmp/x }]";
    let error = sandbox.runtime.create(&request(&yaml, 0)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Failed);
    assert!(error.message.contains("/no/such/source"), "{error}");
    assert_eq!(sandbox.runtime.list().await.unwrap().instances, []);
}

#[tokio::test]
async fn a_user_is_found_in_the_image_and_an_unknown_one_is_refused() {
    let sandbox = Sandbox::new();
    let root = rootfs(sandbox.root.path());
    let yaml = shell_in(&root, "id -u; id -g; echo $HOME") + "\nuser: web";
    assert_eq!(run(&sandbox, &yaml).await, "33\n34\n/srv\n");
    let created = sandbox.runtime.create(&request(&(shell_in(&root, "id") + "\nuser: nobody-knows"), 1)).await.unwrap();
    let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected);
    assert!(error.message.contains("nobody-knows"), "{error}");
}

#[tokio::test]
async fn without_a_network_there_is_loopback_and_nothing_else() {
    let sandbox = Sandbox::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        "ifconfig lo | grep -q UP && echo loopback; tail -n +2 /proc/net/route | grep -q . && echo routes; \
         nc -w 1 127.0.0.1 {port} < /dev/null > /dev/null 2>&1 && echo reached; echo end"
    );
    // It answers those that share the machine's network.
    std::thread::spawn(move || while listener.accept().is_ok() {});
    let with = run(&sandbox, &(shell(&script) + "\nnetwork_mode: host")).await;
    assert!(with.starts_with("loopback\n") && with.ends_with("reached\nend\n"), "{with}");
    let without = request(&(shell(&script) + "\nsandbox: { network: none }"), 1);
    let created = sandbox.runtime.create(&without).await.unwrap();
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
    sandbox.ended(&created.as_ref()).await;
    assert_eq!(sandbox.output(&created.as_ref()), "loopback\nend\n");
}

#[tokio::test]
async fn capabilities_are_those_of_docker_without_what_was_dropped() {
    let sandbox = Sandbox::new();
    let script = "grep -E 'CapInh|CapBnd|CapAmb|NoNewPrivs' /proc/self/status | tr -d '\\t'";
    let yaml = shell(script) + "\nuser: '0'\ncap_drop: [ALL]\ncapabilities: [CHOWN]";
    let output = run(&sandbox, &yaml).await;
    let zero = "0000000000000000";
    assert_eq!(output, format!("CapInh:{zero}\nCapBnd:0000000000000001\nCapAmb:{zero}\nNoNewPrivs:1\n"));
}

#[tokio::test]
async fn a_root_file_system_that_is_another_users_is_told() {
    let sandbox = Sandbox::new();
    let yaml = "image: { name: 'dir:/usr' }\ncommand: { entrypoint: [/bin/true] }";
    let created = sandbox.runtime.create(&request(yaml, 0)).await.unwrap();
    let is_told = created.conditions.iter().any(|condition| condition.reason == "FilesOfAnotherUser");
    assert_eq!(is_told, !is_root(), "{:?}", created.conditions);
}

#[tokio::test]
async fn what_is_required_and_not_enforced_is_refused_and_what_is_ignored_is_told() {
    let sandbox = Sandbox::new();
    let capabilities = sandbox.runtime.capabilities().await.unwrap();
    let is_lacking = |control: &&Control| matches!(capabilities.support(**control), Support::Absent { .. });
    if let Some(lacking) = Control::ALL.iter().find(is_lacking) {
        let yaml = shell("true") + &format!("\nsandbox: {{ require: [{lacking}] }}");
        let error = sandbox.runtime.create(&request(&yaml, 0)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Rejected);
        assert!(error.message.contains(&lacking.to_string()), "{error}");
    }
    for (limit, field) in [("memory_limit", "memory"), ("cpu_limit", "cpu"), ("pids_limit", "pids_limit")] {
        let yaml = shell("true") + &format!("\nsandbox: {{ require: [{limit}] }}");
        let error = sandbox.runtime.create(&request(&yaml, 0)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Rejected);
        let lacks = error.message.contains(&format!("write resources.{field}"));
        assert!(lacks || error.message.contains(&format!("{limit} can't be enforced")), "{error}");
    }
    let all: Vec<String> = Control::ALL.iter().map(ToString::to_string).collect();
    let limits = ["memory_limit", "cpu_limit", "pids_limit", "io_limit"];
    let lacking = Control::ALL.iter().filter(is_lacking).map(ToString::to_string);
    let named: Vec<String> = lacking.chain(limits.map(str::to_owned)).collect();
    let yaml = shell("true") + &format!("\nsandbox: {{ require: [{}] }}", all.join(", "));
    let error = sandbox.runtime.create(&request(&yaml, 0)).await.unwrap_err();
    assert!(named.iter().all(|name| error.message.contains(name)), "all that is missing is named: {error}");
    let yaml = shell("true") + "\ncgroup_parent: /elsewhere\nsysctls: { net.core.somaxconn: 9 }\nnetwork_mode: host";
    let created = sandbox.runtime.create(&request(&yaml, 0)).await.unwrap();
    let told: Vec<_> = created.conditions.iter().map(|c| (c.kind.as_str(), c.reason.as_str())).collect();
    assert_eq!(told, [("UnsupportedField", "CgroupParent"), ("UnsupportedField", "SysctlsNetCoreSomaxconn")]);
}

#[tokio::test]
async fn daemons_that_detached_end_with_their_instance() {
    let sandbox = Sandbox::new();
    let script = "(setsid sh -c 'sleep 7777 & sleep 7777' &) ; sleep 0.1; echo up; while :; do sleep 0.05; done";
    let instance = sandbox.run(&shell(script)).await;
    sandbox.wrote(&instance.as_ref(), "up\n").await;
    let order = stop(Signal::TERM, std::time::Duration::ZERO, StopCause::Retired);
    let stopped = sandbox.runtime.stop(&instance.as_ref(), &order).await.unwrap().unwrap();
    assert!(matches!(stopped.phase, Phase::Exited(_)));
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line.starts_with(b"sleep\x007777"))
    });
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn the_directory_of_instances_is_out_of_sight() {
    let sandbox = Sandbox::new();
    let place = sandbox.root.path().join("sandbox");
    if is_root() {
        // Shown again by a mount of what is above it, the private /tmp hides it elsewise.
        let output = run(&sandbox, &shell(&format!("ls {} 2>/dev/null; echo end", place.display()))).await;
        assert_eq!(output, "end\n");
    }
}

#[tokio::test]
async fn nothing_is_mounted_over_directories_of_the_kernel() {
    let sandbox = Sandbox::new();
    let root = rootfs(sandbox.root.path());
    for target in ["/dev", "/dev/", "/dev/null", "/dev/pts/x", "/proc", "/proc/sys", "/sys", "/sys/fs/cgroup"] {
        let yaml = shell_in(&root, "true") + &format!("\nstorage: [{{ type: tmpfs, target: {target} }}]");
        let error = sandbox.runtime.create(&request(&yaml, 0)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Rejected, "{target}");
        assert!(error.message.contains(&format!("storage: nothing can be mounted at {target}")), "{error}");
    }
    let log = sandbox.root.path().join("log");
    std::fs::write(&log, "of the machine\n").unwrap();
    let yaml = shell_in(&root, "cat /dev/log; cat /proc/mounts")
        + &format!(
            "\nstorage: [{{ type: tmpfs, target: /dev/shm, size: 1Mi }}, {{ type: bind, source: {}, target: /dev/log }}]",
            log.display()
        );
    let output = run(&sandbox, &yaml).await;
    assert!(
        output.starts_with("of the machine\n") && output.contains("/dev/shm tmpfs rw") && output.contains("size=1024k"),
        "{output}"
    );
}

#[tokio::test]
async fn a_path_that_a_program_made_a_link_to_is_not_opened_for_writing() {
    let sandbox = Sandbox::new();
    let root = rootfs(sandbox.root.path());
    // What is below is made for the instance: an overlay moves no directory of the image.
    std::fs::create_dir_all(root.join("w")).unwrap();
    std::fs::create_dir_all(root.join("b")).unwrap();
    std::os::unix::fs::symlink("w", root.join("l")).unwrap();
    let user = if is_root() { "\nuser: '0'" } else { "" };
    for (slot, writable) in ["[/w, /w/a/b]", "[/w/a/b, /w]", "[/l, /w/a/b]"].into_iter().enumerate() {
        let script = "busybox mv /w/a /w/moved; busybox ln -s / /w/a; echo x 2>/dev/null > /b/new && echo written";
        let yaml =
            shell_in(&root, script) + &format!("\nread_only_root_fs: true\nsandbox: {{ writable: {writable} }}{user}");
        let created = sandbox.runtime.create(&request(&yaml, u32::try_from(slot).unwrap())).await.unwrap();
        sandbox.runtime.start(&created.as_ref()).await.unwrap();
        sandbox.ended(&created.as_ref()).await;
        let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
        assert!(error.message.contains("the link /w/a lies in /w, which the program may write"), "{error}");
        assert!(!sandbox.output(&created.as_ref()).contains("written"), "{writable}");
    }
}

#[tokio::test]
async fn links_of_an_image_on_the_way_to_a_writable_path_are_followed() {
    let sandbox = Sandbox::new();
    let root = rootfs(sandbox.root.path());
    std::fs::create_dir_all(root.join("real/deep")).unwrap();
    std::os::unix::fs::symlink("real", root.join("link")).unwrap();
    let yaml =
        shell_in(&root, "echo yes > /real/deep/new && cat /link/deep/new; touch /real/new 2>/dev/null || echo no")
            + "\nread_only_root_fs: true\nsandbox: { writable: [/link/deep] }";
    assert_eq!(run(&sandbox, &yaml).await, "yes\nno\n");
}
