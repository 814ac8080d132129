//! What instances share instead of each having it for itself.

use evenkeel::runtime::Runtime;

use crate::support::{Sandbox, is_root, read_json, rootfs, shell, shell_in};

#[tokio::test]
async fn an_image_that_lacks_the_files_about_names_has_them_and_nothing_is_written_for_that() {
    let folder = tempfile::tempdir().unwrap();
    let root = rootfs(folder.path());
    std::fs::remove_dir_all(root.join("etc")).unwrap();
    let sandbox = Sandbox::new();
    let script = "cat /etc/hosts; ls -d /dev /proc /sys /etc/resolv.conf; echo own > /etc/own; cat /etc/own";
    let instance = sandbox.run(&shell_in(&root, script)).await;
    sandbox.ended(&instance.as_ref()).await;
    let output = sandbox.output(&instance.as_ref());
    assert!(output.contains("localhost") && output.ends_with("/dev\n/etc/resolv.conf\n/proc\n/sys\nown\n"), "{output}");
    assert!(!root.join("etc").exists(), "the image stays as it was");
    let upper = sandbox.dir(&instance.as_ref()).join("upper");
    if upper.is_dir() {
        let names = |folder: &std::path::Path| -> Vec<_> {
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        assert_eq!((names(&upper), names(&upper.join("etc"))), (vec!["etc".to_owned()], vec!["own".to_owned()]));
    }
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
}

#[tokio::test]
async fn constants_of_a_supervisor_lie_in_a_file_that_none_can_write() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell("sleep 100")).await;
    let run = read_json(&sandbox.dir(&instance.as_ref()).join("run.json"));
    // The first process lets no other user look.
    for who in ["supervisor", "first"].into_iter().take(if is_root() { 2 } else { 1 }) {
        let pid = run[who]["pid"].as_i64().unwrap();
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let shared: Vec<_> = maps.lines().filter(|line| line.contains("/memfd:keel-constants")).collect();
        let modes: Vec<_> = shared.iter().filter_map(|line| line.split(' ').nth(1)).collect();
        assert_eq!(modes, ["r--p"], "{who}: {maps}");
    }
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
}
