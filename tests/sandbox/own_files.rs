//! What holds the environments and secrets of every instance is out of reach of each of them.

use std::os::unix::fs::symlink;
use std::path::Path;

use evenkeel::runtime::{ErrorKind, Runtime};

use crate::support::{Sandbox, request, rootfs, shell, shell_in, with_own_mounts, without_namespaces};

/// What another instance has in its environment.
const SECRET: &str = "hunter2";

/// A sandbox with an instance that has a secret, and its directory as text.
async fn with_secret() -> (Sandbox, String) {
    let sandbox = Sandbox::new();
    let mut holder = request(&shell("true"), 9);
    holder.env.insert("SECRET".to_owned(), SECRET.to_owned());
    let holder = sandbox.runtime.create(&holder).await.unwrap();
    let dir = std::fs::canonicalize(sandbox.dir(&holder.as_ref())).unwrap().display().to_string();
    assert!(std::fs::read_to_string(format!("{dir}/record.json")).unwrap().contains(SECRET));
    (sandbox, dir)
}

/// A script that tries every way to a file and tells what it could do.
fn tries(places: &[&str], dir: &str) -> String {
    let mut script = String::new();
    for place in places {
        for way in ["", "/proc/self/root", "/proc/1/root", "/proc/self/cwd/.."] {
            script += &format!("cat {way}{place}{dir}/record.json 2>/dev/null; ls {way}{place}{dir}/.. 2>/dev/null\n");
        }
    }
    script + "echo end"
}

fn real(path: &Path) -> String {
    std::fs::canonicalize(path).unwrap().display().to_string()
}

#[tokio::test]
async fn a_writable_directory_that_holds_them_shows_everything_else() {
    let (sandbox, dir) = with_secret().await;
    let outer = real(sandbox.root.path());
    std::fs::write(sandbox.root.path().join("file"), "shown\n").unwrap();
    let script = format!("cat {outer}/file; echo written > {outer}/new\n{}", tries(&[""], &dir));
    let (_, output) = sandbox.script_with(&format!("sandbox: {{ writable: [{outer}] }}"), &script).await;
    assert_eq!(output, "shown\nend\n");
    assert_eq!(std::fs::read_to_string(sandbox.root.path().join("new")).unwrap(), "written\n");
}

#[tokio::test]
async fn directories_on_the_way_to_them_can_not_be_replaced_from_inside() {
    let (sandbox, dir) = with_secret().await;
    let (above, outer) = (real(sandbox.root.path().parent().unwrap()), real(sandbox.root.path()));
    let script = format!(
        "mv {outer} {outer}.moved 2>/dev/null && echo moved; mv {outer}/sandbox {outer}/moved 2>/dev/null && echo moved; \
         rmdir {outer}/sandbox 2>/dev/null && echo removed; umount {outer}/sandbox 2>/dev/null && echo unmounted\n{}",
        tries(&[""], &dir)
    );
    let (_, output) = sandbox.script_with(&format!("sandbox: {{ writable: ['{above}'] }}"), &script).await;
    assert_eq!(output, "end\n");
    assert!(Path::new(&dir).join("record.json").exists());
}

#[tokio::test]
async fn a_bind_of_the_whole_machine_leaves_them_out() {
    let (sandbox, dir) = with_secret().await;
    let folder = tempfile::tempdir().unwrap();
    let root = rootfs(folder.path());
    let storage = "\nstorage: [{ type: bind, source: /, target: /machine }, \
                   { type: bind, source: /, target: /again, readonly: true }]";
    let script = format!("ls -d /machine/proc\n{}", tries(&["/machine", "/again"], &dir));
    let instance = sandbox.run(&(shell_in(&root, &script) + storage)).await;
    sandbox.ended(&instance.as_ref()).await;
    assert_eq!(sandbox.output(&instance.as_ref()), "/machine/proc\nend\n");
}

#[tokio::test]
async fn what_lies_in_them_is_neither_mounted_nor_opened_up() {
    let (sandbox, dir) = with_secret().await;
    let folder = tempfile::tempdir().unwrap();
    let root = rootfs(folder.path());
    let link = folder.path().join("link");
    symlink(&dir, &link).unwrap();
    let own = real(&sandbox.root.path().join("sandbox"));
    let link = link.display().to_string();
    for (number, path) in [&own, &dir, &format!("{dir}/record.json"), &link].into_iter().enumerate() {
        let bind = format!("\nstorage: [{{ type: bind, source: {path}, target: /own, readonly: true }}]");
        let open = format!("\nsandbox: {{ writable: [{path}] }}");
        for yaml in [shell_in(&root, "true") + &bind, shell("true") + &open] {
            let error = sandbox.runtime.create(&request(&yaml, u32::try_from(number).unwrap())).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
            assert!(error.message.contains(&format!("{path} lies in {own}")), "{error}");
        }
    }
    for path in [&dir, &own, "/"] {
        let error = sandbox.runtime.create(&request(&shell_in(Path::new(path), "true"), 0)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
        assert!(error.message.contains("state directory"), "{error}");
    }
}

#[tokio::test]
async fn a_link_that_leads_to_them_only_later_is_not_followed() {
    let (sandbox, dir) = with_secret().await;
    let folder = tempfile::tempdir().unwrap();
    let root = rootfs(folder.path());
    let link = folder.path().join("link");
    symlink("/etc", &link).unwrap();
    let bind = format!("\nstorage: [{{ type: bind, source: {}, target: /own }}]", link.display());
    let script = "cat /own/record.json 2>/dev/null; ls -d /own/passwd";
    let created = sandbox.runtime.create(&request(&(shell_in(&root, script) + &bind), 0)).await.unwrap();
    std::fs::remove_file(&link).unwrap();
    symlink(&dir, &link).unwrap();
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
    sandbox.ended(&created.as_ref()).await;
    assert_eq!(sandbox.output(&created.as_ref()), "/own/passwd\n");
    // Nor is one that comes in the place of a directory.
    let directory = folder.path().join("directory");
    std::fs::create_dir(&directory).unwrap();
    let bind = format!("\nstorage: [{{ type: bind, source: {}, target: /own }}]", directory.display());
    let created = sandbox.runtime.create(&request(&(shell_in(&root, script) + &bind), 1)).await.unwrap();
    std::fs::remove_dir(&directory).unwrap();
    symlink(&dir, &directory).unwrap();
    let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
    assert!(error.message.contains(&format!("{} is a link", directory.display())), "{error}");
}

#[tokio::test]
async fn they_are_hidden_wherever_the_machine_mounts_them_too() {
    if !with_own_mounts("true", "own_files::they_are_hidden_wherever_the_machine_mounts_them_too") {
        return;
    }
    let (sandbox, dir) = with_secret().await;
    let folder = tempfile::tempdir_in("/var").unwrap();
    let (copy, part) = (folder.path().join("copy"), folder.path().join("part"));
    // Mounted after the runtime looked for the first time.
    for (from, to) in [(sandbox.root.path().to_owned(), &copy), (sandbox.root.path().join("sandbox/instances"), &part)]
    {
        std::fs::create_dir(to).unwrap();
        let mounted = std::process::Command::new("mount").arg("--bind").args([&from, to]).status().unwrap();
        assert!(mounted.success());
    }
    let id = dir.rsplit('/').next().unwrap();
    let tries = format!(
        "ls -d {0}; cat {0}/copy/sandbox/instances/{id}/record.json {0}/part/{id}/record.json 2>/dev/null; echo end",
        folder.path().display()
    );
    for more in [String::new(), format!("sandbox: {{ writable: [{}] }}", folder.path().display())] {
        let (_, output) = sandbox.script_with(&more, &tries).await;
        assert_eq!(output, format!("{}\nend\n", folder.path().display()), "{more}");
        let instance = sandbox.first().await;
        sandbox.runtime.remove(&instance).await.unwrap();
    }
    for place in [copy, part] {
        assert!(std::process::Command::new("umount").arg(place).status().unwrap().success());
    }
}

#[tokio::test]
async fn without_namespaces_they_are_as_closed() {
    if !without_namespaces("own_files::without_namespaces_they_are_as_closed") {
        return;
    }
    let (sandbox, dir) = with_secret().await;
    let outer = real(sandbox.root.path());
    std::fs::write(sandbox.root.path().join("file"), "shown\n").unwrap();
    let own = "echo mine > $TMPDIR/x && cat $TMPDIR/x; head -c 5 /etc/passwd; echo";
    let begin = format!("ls /tmp 2>/dev/null; cat {outer}/file 2>/dev/null; echo new > {outer}/new; {own}\n");
    for (slot, open, shown) in [
        (0, String::new(), "mine\nroot:\nend\n"),
        (1, format!("readable: [{outer}]"), "shown\nmine\nroot:\nend\n"),
        (2, format!("writable: [{}]", real(&sandbox.root.path().join("file"))), "shown\nmine\nroot:\nend\n"),
    ] {
        let script = format!("exec 2>/dev/null; {begin}{}", tries(&[""], &dir)).replace('\n', "; ");
        let yaml = format!("{}\nsandbox: {{ {open} }}", shell(&script));
        let created = sandbox.runtime.create(&request(&yaml, slot)).await.unwrap();
        sandbox.runtime.start(&created.as_ref()).await.unwrap();
        sandbox.ended(&created.as_ref()).await;
        assert_eq!(sandbox.output(&created.as_ref()), shown, "{open}");
        assert!(!sandbox.root.path().join("new").exists(), "{open}");
    }
    let yaml = shell("true") + &format!("\nsandbox: {{ readable: [{dir}] }}");
    let error = sandbox.runtime.create(&request(&yaml, 3)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
}

#[tokio::test]
async fn a_program_that_nothing_keeps_from_them_is_told() {
    if !without_namespaces("own_files::a_program_that_nothing_keeps_from_them_is_told") {
        return;
    }
    let sandbox = Sandbox::new();
    let created = sandbox.runtime.create(&request(&(shell("true") + "\nprivileged: true"), 0)).await.unwrap();
    let told = created.conditions.iter().find(|one| one.reason == "StateExposed").expect("it is told");
    assert!(told.message.contains("Evenkeel's state directory") && told.message.contains("privileged"), "{told:?}");
    let plain = created.conditions.iter().find(|one| one.reason == "NotIsolated").expect("it is told");
    assert!(plain.message.contains("is not confined at all"), "{plain:?}");
}
