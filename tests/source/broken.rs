//! Files that are broken, half-written or unreadable.

use std::time::Duration;

use evenkeel::source::{Deleted, LOSS_SETTLE};
use evenkeel::spec::Prune;
use evenkeel::store::{discard_applied, save_applied};

use crate::bench::{Bench, deployment, images, link, names, problems, removed, service};

const BROKEN: &str = "version: v1\ndeployment: a\nservices:\n  web:\n    image: {name: two}\n    replicas: 3\n";

#[test]
fn a_broken_file_keeps_its_last_good_version_also_across_restarts() {
    let mut bench = Bench::with(&["a", "b"]);
    bench.write("a.yaml", BROKEN);
    for _ in 0..2 {
        let snapshot = bench.scan();
        assert_eq!(images(&snapshot), ["a/web=one", "b/web=one"]);
        let said = problems(&snapshot);
        assert!(said[0].starts_with("a.yaml:6:5: services.web.replicas: unknown"), "{said:?}");
        assert!(said[0].ends_with("=> a keeps its last good version"), "{said:?}");
        assert!(snapshot.stale["a"].contains("a.yaml:6:5"), "{:?}", snapshot.stale);
        bench.restart();
    }
    bench.write("a.yaml", &deployment("a", "two"));
    let snapshot = bench.scan();
    assert_eq!(images(&snapshot), ["a/web=two", "b/web=one"]);
    assert!(snapshot.stale.is_empty() && snapshot.problems.is_empty());
}

#[test]
fn a_half_written_file_keeps_its_last_good_version() {
    let mut bench = Bench::with(&["a"]);
    let whole = deployment("a", "two");
    let cut = whole.find("two").unwrap() + 1;
    bench.write("a.yaml", &whole[..cut]);
    assert_eq!(images(&bench.scan()), ["a/web=one"]);
    bench.write("a.yaml", &whole);
    assert_eq!(images(&bench.scan()), ["a/web=two"]);
}

#[test]
fn a_file_without_a_byte_or_without_its_services_keeps_its_last_good_version() {
    for text in ["", "version: v1\ndeployment: a\nservices:\n"] {
        let mut bench = Bench::with(&["a", "b"]);
        bench.write("a.yaml", text);
        for _ in 0..2 {
            bench.scan();
            bench.advance(LOSS_SETTLE * 2);
            let snapshot = bench.scan();
            assert_eq!((images(&snapshot), removed(&snapshot)), (strings(&["a/web=one", "b/web=one"]), vec![]));
            let said = problems(&snapshot);
            assert!(said.len() == 1 && said[0].ends_with("=> a keeps its last good version"), "{said:?}");
            bench.restart();
        }
        bench.remove("a.yaml");
        assert_eq!(images(&bench.scan()), ["b/web=one"]);
        bench.write("a.yaml", "");
        assert_eq!(problems(&bench.scan()), [""; 0], "it declares nothing, as before");
    }
}

#[test]
fn a_text_that_was_cut_off_before_its_services_keeps_the_last_good_version() {
    let head = "# A comment\nversion: v1\ndeployment: a\n";
    for (text, said) in [
        ("", "is empty"),
        ("\n", "declares nothing any more"),
        ("# A comm", "declares nothing any more"),
        ("---\n", "declares nothing any more"),
        (head, "has no `services` any more"),
        ("version: v1\ndeployment: a\nprune: auto\n", "has no `services` any more"),
    ] {
        let mut bench = Bench::with(&["a", "b"]);
        bench.write("a.yaml", text);
        for _ in 0..2 {
            let snapshot = bench.scan();
            assert_eq!(
                (images(&snapshot), removed(&snapshot)),
                (strings(&["a/web=one", "b/web=one"]), vec![]),
                "{text:?}"
            );
            let told = problems(&snapshot);
            assert!(
                told.len() == 1 && told[0].contains(said) && told[0].ends_with("=> a keeps its last good version"),
                "{told:?}"
            );
            bench.restart();
        }
        // Whoever means it says so.
        bench.write("a.yaml", &format!("{head}services: {{}}\n"));
        assert_eq!((images(&bench.scan()), problems(&bench.scan())), (strings(&["b/web=one"]), vec![]));
    }
    // Nor is anything lost that has a document of its own now, while one service more is.
    let apart = "---\nversion: v1\ndeployment: a\nservice: web\nimage: {name: two}\n";
    let mut bench = Bench::with(&["a", "b"]);
    bench.write("a.yaml", &format!("{head}{apart}"));
    assert_eq!((images(&bench.scan()), problems(&bench.scan())), (strings(&["a/web=two", "b/web=one"]), vec![]));
    // What never had any needs none.
    let mut bench = Bench::with(&["b"]);
    bench.write("a.yaml", head);
    assert_eq!((names(&bench.scan()), problems(&bench.scan())), (vec!["a", "b"], vec![]));
}

#[test]
fn a_file_that_was_never_good_is_left_out() {
    let mut bench = Bench::with(&["b"]);
    bench.write("a.yaml", BROKEN);
    bench.write("c.yaml", "{");
    let snapshot = bench.scan();
    assert_eq!(names(&snapshot), ["b"]);
    let said = problems(&snapshot);
    assert!(said[0].ends_with("=> a is left out"), "{said:?}");
    assert!(said[1].starts_with("c.yaml:") && said[1].ends_with("=> nothing of the file is used"), "{said:?}");
    assert!(snapshot.stale.is_empty() && removed(&snapshot).is_empty());
}

#[test]
fn a_broken_part_keeps_the_whole_deployment_as_it_was() {
    let mut bench = Bench::with(&["a"]);
    bench.write("db.yaml", &service("a", "db", "pg"));
    bench.scan();
    bench.write("db.yaml", "version: v1\ndeployment: a\nservice: db\nimage: 7\n");
    bench.write("a.yaml", &deployment("a", "two"));
    let snapshot = bench.scan();
    assert_eq!(images(&snapshot), ["a/db=pg", "a/web=one"]);
    assert!(snapshot.stale["a"].contains("db.yaml:"), "{:?}", snapshot.stale);
    bench.write("db.yaml", &service("a", "db", "pg"));
    assert_eq!(images(&bench.scan()), ["a/db=pg", "a/web=two"]);
}

#[test]
fn a_new_deployment_waits_for_its_broken_part() {
    let mut bench = Bench::with(&["a"]);
    bench.write("db.yaml", "version: v1\ndeployment: b\nservice: db\nimage: 7\n");
    bench.write("b.yaml", &deployment("b", "one"));
    let snapshot = bench.scan();
    assert_eq!(names(&snapshot), ["a"]);
    assert!(problems(&snapshot)[0].ends_with("=> b is left out"), "{:?}", problems(&snapshot));
}

#[test]
fn one_broken_document_keeps_its_file_as_it_was() {
    let mut bench = Bench::new();
    bench.write("both.yaml", &format!("{}---\n{}", deployment("a", "one"), deployment("b", "one")));
    bench.scan();
    bench.write("both.yaml", &format!("{BROKEN}---\n{}---\n{}", deployment("b", "two"), deployment("c", "two")));
    let snapshot = bench.scan();
    assert_eq!(images(&snapshot), ["a/web=one", "b/web=one"]);
    assert!(
        problems(&snapshot)[0].ends_with("=> a, b keep their last good version; c is left out"),
        "{:?}",
        problems(&snapshot)
    );
}

#[test]
fn what_can_not_be_read_keeps_its_last_good_version() {
    let mut bench = Bench::with(&["a", "b", "c", "d"]);
    for name in ["a", "b", "c", "d"] {
        bench.remove(&format!("{name}.yaml"));
    }
    std::fs::create_dir(bench.path("a.yaml")).unwrap();
    link("nowhere", bench.path("b.yaml"));
    link("c.yaml", bench.path("c.yaml"));
    bench.write("d.yaml", &" ".repeat((1 << 20) + 1));
    for _ in 0..2 {
        let snapshot = bench.scan();
        assert_eq!(names(&snapshot), ["a", "b", "c", "d"]);
        assert_eq!((removed(&snapshot), &snapshot.hold), (vec![], &None));
        assert_eq!(
            problems(&snapshot),
            [
                "a.yaml:1:1: is a directory, not a file; remove or rename it => a keeps its last good version",
                "b.yaml:1:1: is a symbolic link to nowhere, which does not exist; restore what it points to, or remove \
                 the link => b keeps its last good version",
                "c.yaml:1:1: can't be read: Too many levels of symbolic links (os error 40) => c keeps its last good \
                 version",
                "d.yaml:1:1: has 1048577 bytes; at most 1048576 are read; split it into several files => d keeps its \
                 last good version",
            ]
        );
        bench.restart();
    }
}

#[test]
fn a_pipe_in_the_place_of_a_file_does_not_block() {
    let mut bench = Bench::with(&["a"]);
    bench.remove("a.yaml");
    let made = std::process::Command::new("mkfifo").arg(bench.path("a.yaml")).status().unwrap();
    assert!(made.success());
    let snapshot = bench.scan();
    assert_eq!(names(&snapshot), ["a"]);
    assert!(problems(&snapshot)[0].contains("neither a file nor a directory"));
}

#[test]
fn a_link_to_a_directory_that_dangles_hides_and_does_not_remove() {
    let mut bench = Bench::new();
    let elsewhere = bench.base.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("a.yaml"), deployment("a", "one")).unwrap();
    link(&elsewhere, bench.path("linked"));
    link("nowhere", bench.path("unrelated"));
    assert_eq!(names(&bench.scan()), ["a"]);
    std::fs::rename(&elsewhere, bench.base.path().join("away")).unwrap();
    let snapshot = bench.scan();
    assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["a"], vec![]));
    let said = problems(&snapshot);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("linked:1:1: is a symbolic link to"), "{said:?}");
}

#[test]
fn what_is_kept_over_a_restart_is_exactly_what_was_declared() {
    let sets = ["tests/specs/valid/everything.yaml", "tests/specs/valid/crons.yaml", "examples/code-sandboxes.yaml"];
    for set in sets {
        let mut bench = Bench::new();
        let text = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(set)).unwrap();
        bench.write("set.yaml", &text);
        let declared = bench.scan().deployments.clone();
        assert!(!declared.is_empty(), "{set}: {:?}", problems(&bench.scan()));
        bench.write("set.yaml", "{");
        bench.restart();
        let kept = bench.scan();
        assert_eq!(kept.deployments, declared, "{set}");
        assert_eq!(kept.stale.len(), declared.len(), "{set}");
    }
}

#[test]
fn while_a_file_was_never_good_nobody_knows_what_is_unclaimed() {
    let mut bench = Bench::with(&["b"]);
    assert_eq!(bench.scan().unclear, None);
    for text in [BROKEN, "{"] {
        bench.write("a.yaml", text);
        let why = bench.scan().unclear.clone().unwrap();
        assert!(why.contains("a.yaml has problems and was never good"), "{why}");
    }
    bench.write("a.yaml", &deployment("a", "one"));
    assert_eq!(bench.scan().unclear, None);
    bench.write("a.yaml", "{");
    assert_eq!(bench.scan().unclear, None, "its last good version is known");
    bench.write("c.yaml", &deployment("c", "one"));
    bench.write("d.yaml", &deployment("c", "one"));
    let why = bench.scan().unclear.clone().unwrap();
    assert!(why.contains("c is declared twice"), "{why}");
}

#[test]
fn a_damaged_copy_of_an_applied_file_removes_nothing() {
    let mut bench = Bench::with(&["b"]);
    let applied = bench.base.path().join("state/applied");
    let copy = evenkeel::store::AppliedFile {
        origin: "/elsewhere/a.yaml".into(),
        text: deployment("a", "one"),
        without: Default::default(),
        default_runtimes: Default::default(),
    };
    save_applied(std::slice::from_ref(&copy), &applied).unwrap();
    bench.scan();
    std::fs::write(applied.join("x.json"), "{").unwrap();
    for _ in 0..2 {
        let snapshot = bench.scan();
        assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["a", "b"], vec![]));
        assert!(problems(&snapshot)[0].ends_with("=> a keeps its last good version"), "{:?}", problems(&snapshot));
        bench.restart();
    }
    std::fs::remove_file(applied.join("x.json")).unwrap();
    discard_applied(std::slice::from_ref(&copy), &applied).unwrap();
    assert_eq!(names(&bench.scan()), ["b"]);
}

/// What `keel validate` finds in the directory of a bench: what is wrong inside of documents and between them.
fn validated(bench: &Bench, files: &[&str]) -> Vec<String> {
    let parse =
        |file: &&str| (bench.path(file), evenkeel::spec::parse(&std::fs::read_to_string(bench.path(file)).unwrap()));
    let files: Vec<_> = files.iter().map(parse).collect();
    let found = evenkeel::spec::problems(&files, &evenkeel::spec::merge(&files));
    let name = |path: &std::path::Path| path.file_name().unwrap().to_string_lossy().into_owned();
    found.iter().map(|(path, problem)| format!("{}:{problem}", name(path))).collect()
}

fn without_effects(problems: &[String]) -> Vec<String> {
    problems.iter().map(|line| line.split(" => ").next().unwrap().to_owned()).collect()
}

const WAITS: &str = "service: waits\ndeployment: a\nimage: {name: x}\ndepends: [{service: web}, {service: ghost}]\n";

#[test]
fn problems_between_documents_are_told_beside_those_inside_as_validation_tells_them() {
    let mut bench = Bench::new();
    bench.write("a.yaml", BROKEN);
    bench.write("b.yaml", WAITS);
    bench.write("c.yaml", &format!("{}---\n{}", deployment("c", "one"), service("a", "waits", "x")));
    let snapshot = bench.scan();
    let said = problems(&snapshot);
    assert_eq!(without_effects(&said), validated(&bench, &["a.yaml", "b.yaml", "c.yaml"]));
    assert_eq!(
        said[1..],
        [
            "b.yaml:1:1: the service a/waits is declared twice, also at c.yaml:9:1; remove or rename one of them",
            "b.yaml:4:37: depends[1].service: the deployment a has no service \"ghost\"; services of a are waits, web",
            "c.yaml:9:1: the service a/waits is declared twice, also at b.yaml:1:1; remove or rename one of them",
        ]
        .map(|line| line.replace("at c.yaml", &format!("at {}", bench.path("c.yaml").display())))
        .map(|line| line.replace("at b.yaml", &format!("at {}", bench.path("b.yaml").display())))
        .map(|line| format!("{line} => a is left out"))
    );
    assert_eq!(names(&snapshot), ["c"]);
}

#[test]
fn what_is_said_between_documents_is_about_the_present_texts() {
    let mut bench = Bench::with(&["a"]);
    // The service moves to another file, and what is left of its old one breaks.
    bench.write("a.yaml", "version: v1\ndeployment: a\nservices:\n  db: 7\n");
    bench.write("b.yaml", &format!("{}---\n{WAITS}", service("a", "web", "two")));
    let snapshot = bench.scan();
    let said = problems(&snapshot);
    assert_eq!(without_effects(&said), validated(&bench, &["a.yaml", "b.yaml"]));
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[1].contains("has no service \"ghost\"; services of a are db, waits, web"), "{said:?}");
    assert_eq!(images(&snapshot), ["a/web=one"]);
}

#[test]
fn a_dependency_that_a_file_without_meaning_may_declare_is_waited_for() {
    let mut bench = Bench::with(&["b"]);
    bench.write("a.yaml", WAITS.split(", {service: ghost}").collect::<String>().as_str());
    bench.write("web.yaml", "service: [");
    let snapshot = bench.scan();
    let said = problems(&snapshot);
    assert_eq!(without_effects(&said), validated(&bench, &["a.yaml", "b.yaml", "web.yaml"]));
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].starts_with("web.yaml:2:1: this is not valid YAML") && said[0].ends_with("=> a is left out"),
        "{said:?}"
    );
    assert_eq!(names(&snapshot), ["b"]);
    bench.write("web.yaml", &service("a", "web", "x"));
    let snapshot = bench.scan();
    assert_eq!((names(&snapshot), problems(&snapshot)), (vec!["a", "b"], vec![]));
}

#[test]
fn a_port_that_only_a_last_good_version_takes_is_told_where_it_is_wanted() {
    let port = "    port_mappings: [{container_port: 1, host_port: 80}]\n";
    let mut bench = Bench::new();
    bench.write("a.yaml", &format!("{}{port}", deployment("a", "one")));
    bench.scan();
    bench.write("a.yaml", BROKEN);
    bench.write("b.yaml", &format!("{}{port}", deployment("b", "one")));
    let snapshot = bench.scan();
    let said = problems(&snapshot);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[1].starts_with("b.yaml:6:52: services.web.port_mappings[0].host_port: port 80 is also taken by a/web")
    );
    assert!(said[1].ends_with("(of a file with problems, the last good version counts) => b is left out"), "{said:?}");
    assert_eq!(images(&snapshot), ["a/web=one"]);
}

#[test]
fn an_applied_copy_that_is_not_good_any_more_says_so() {
    let mut bench = Bench::with(&["a"]);
    let applied = bench.base.path().join("state/applied");
    let copy = evenkeel::store::AppliedFile {
        origin: "/elsewhere/b.yaml".into(),
        text: BROKEN.replace("deployment: a", "deployment: b"),
        without: std::collections::BTreeSet::new(),
        default_runtimes: Default::default(),
    };
    save_applied(std::slice::from_ref(&copy), &applied).unwrap();
    let snapshot = bench.scan();
    let said = problems(&snapshot);
    assert!(said[0].starts_with("b.yaml:6:5: services.web.replicas: unknown"), "{said:?}");
    assert!(said[0].ends_with("=> b is left out"), "{said:?}");
    assert_eq!(names(&snapshot), ["a"]);
}

#[test]
fn a_file_that_moves_and_can_not_be_read_any_more_keeps_what_it_declared() {
    for at_once in [true, false] {
        let mut bench = Bench::with(&["a", "b"]);
        let cut = format!("{}  db: {{image: [}}\n", deployment("a", "two"));
        if at_once {
            bench.write("sub/a.yaml", &cut);
            bench.remove("a.yaml");
        } else {
            // While no controller ran.
            bench.restart();
            bench.remove("a.yaml");
            bench.write("sub/a.yaml", &cut);
        }
        for _ in 0..2 {
            bench.scan();
            bench.advance(Duration::from_secs(3600));
            let snapshot = bench.scan();
            assert_eq!((images(&snapshot), removed(&snapshot)), (strings(&["a/web=one", "b/web=one"]), vec![]));
            assert!(snapshot.stale["a"].contains("vanished, and"), "{:?}", snapshot.stale);
            let said = problems(&snapshot);
            assert!(said[0].ends_with("=> a keeps its last good version"), "{said:?}");
            bench.restart();
        }
        bench.write("sub/a.yaml", &deployment("a", "two"));
        let snapshot = bench.scan();
        assert_eq!((images(&snapshot), snapshot.stale.len()), (strings(&["a/web=two", "b/web=one"]), 0));
    }
}

#[test]
fn a_deployment_goes_with_its_file_though_another_one_can_not_be_read_for_long() {
    let mut bench = Bench::with(&["a", "b"]);
    bench.write("draft.yaml", "{");
    bench.scan();
    bench.advance(LOSS_SETTLE + Duration::from_secs(1));
    bench.remove("a.yaml");
    let snapshot = bench.scan();
    assert_eq!((images(&snapshot), removed(&snapshot)), (strings(&["b/web=one"]), vec![("a", Prune::Auto)]));
}

#[test]
fn what_may_be_in_a_file_that_can_not_be_read_goes_with_it_or_by_name() {
    for by_name in [true, false] {
        let mut bench = Bench::with(&["a", "b"]);
        bench.options.deleted = Deleted::Returns;
        bench.restart();
        bench.write("draft.yaml", "{");
        bench.remove("a.yaml");
        bench.scan();
        let now = bench.now();
        match by_name {
            true => drop(bench.scanner().delete(&["a".to_owned()].into(), now).unwrap()),
            false => bench.remove("draft.yaml"),
        }
        let snapshot = bench.scan();
        assert_eq!((images(&snapshot), removed(&snapshot)), (strings(&["b/web=one"]), vec![("a", Prune::Auto)]));
    }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
