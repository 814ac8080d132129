//! Deployments that several files declare together.

use crate::rig::Rig;

fn deployment(image: &str) -> String {
    format!("version: v1\ndeployment: d\nservices:\n  web:\n    image: {{ name: {image} }}\n")
}

fn service(image: &str) -> String {
    format!("version: v1\ndeployment: d\nservice: extra\nimage: {{ name: {image} }}\n")
}

/// A controller that watches one deployment in two files, which runs.
fn two_files() -> (Rig, crate::rig::Controller) {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &deployment("one"));
    rig.write("specs/b.yaml", &service("one"));
    let controller = rig.controller();
    rig.keel(&["apply", "-f", "specs"]).expect_code(0);
    (rig, controller)
}

#[test]
fn a_file_alone_is_compared_with_what_the_others_add_to_it() {
    let (rig, _controller) = two_files();
    for file in ["specs/a.yaml", "specs/b.yaml", "specs"] {
        let done = rig.keel(&["diff", "-f", file]).expect_code(0);
        assert_eq!(done.out, "", "{file}");
        let done = rig.keel(&["apply", "-f", file]).expect_code(0);
        assert_eq!(done.out, "deployment/d unchanged\n", "{file}");
    }
    rig.write("a2.yaml", &deployment("two"));
    let done = rig.keel(&["diff", "-f", "specs/a.yaml", "-f", "specs/b.yaml"]).expect_code(0);
    assert_eq!(done.out, "");
    assert_eq!(rig.keel(&["get", "instances", "-o", "name"]).out, "instance/d/extra/0\ninstance/d/web/0\n");
}

#[test]
fn what_is_kept_from_counting_by_another_file_is_no_success() {
    let (rig, _controller) = two_files();
    rig.write("specs/b.yaml", "version: v1\ndeployment: d\nservice: extra\nimage: 7\n");
    rig.write("specs/a.yaml", &deployment("two"));
    let done = rig.keel(&["apply", "-f", "specs/a.yaml"]).expect_code(1);
    assert!(done.err.contains("it runs on its last good version: ") && done.err.contains("b.yaml:4:"), "{}", done.err);
    let view = rig.keel(&["get", "deployments", "-o", "json"]).json();
    let ready = &view[0]["conditions"][0];
    assert_eq!(
        (&ready["type"], &ready["status"], &ready["reason"]),
        (&"Ready".into(), &"False".into(), &"Stale".into())
    );
    rig.write("specs/b.yaml", &service("one"));
    rig.keel(&["apply", "-f", "specs/a.yaml"]).expect_code(0);
}

#[test]
fn what_was_applied_and_is_watched_now_says_how_it_is_handed_over() {
    let rig = Rig::new("sim");
    rig.write("d.yaml", &deployment("one"));
    rig.keel(&["apply", "-f", "d.yaml"]).expect_code(0);
    std::fs::rename(rig.path("d.yaml"), rig.path("specs/d.yaml")).unwrap();
    let _controller = rig.controller();
    let watched = rig.path("specs/d.yaml").display().to_string();
    let told = rig.keel(&["get", "deployments"]);
    let advice = format!("`keel apply -f {watched}` hands d over to {watched}");
    assert!(told.out.contains(&advice) || told.err.contains(&advice), "{told:?}");
    rig.keel(&["apply", "-f", &watched]).expect_code(0);
    let told = rig.keel(&["get", "deployments"]);
    assert!(!told.out.contains("twice") && !told.err.contains("twice"), "{told:?}");
    std::fs::remove_file(&watched).unwrap();
    rig.until("it goes with its file", || rig.keel(&["get", "deployments", "-o", "name"]).out.is_empty());
}
