//! Tests that run where nobody gets namespaces.

/// Reports that a test can't run here.
///
/// # Panics
/// When `KEEL_TEST_REQUIRE`, a list with commas, names the sandbox.
pub fn skip(reason: &str) {
    let required = std::env::var("KEEL_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name.trim() == "sandbox"), "{reason}");
    eprintln!("skipped: {reason}");
}

/// Runs a test of this program again where nobody gets namespaces. Whether this is that run.
pub fn without_namespaces(name: &str) -> bool {
    without_namespaces_but_with(&["--bounding-set=-all"], name)
}

/// The same with capabilities in the user namespace that the tests run in, as options of setpriv(1).
pub fn without_namespaces_but_with(capabilities: &[&str], name: &str) -> bool {
    const INSIDE: &str = "KEEL_TEST_WITHOUT_NAMESPACES";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    // A user namespace whose limits leave none for anybody in it, who has no capabilities there either.
    let limits = "for kind in user mnt pid; do echo 0 >/proc/sys/user/max_${kind}_namespaces || exit 77; done";
    let script = format!("{limits}; exec setpriv \"$@\"");
    let output = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", &script, "sh"])
        .args(capabilities)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    match told.contains("running 1 test") {
        true => assert!(output.status.success(), "{told}"),
        false => skip(&format!("no user namespace here: {}", String::from_utf8_lossy(&output.stderr))),
    }
    false
}
