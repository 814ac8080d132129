//! What belongs to a tree, and what changes it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use evenkeel::source::{LOSS_SETTLE, MAX_DEPTH, MAX_FILES, Recording, Root, RootKind, Scanner};
use evenkeel::spec::Prune;
use evenkeel::store::{AppliedFile, discard_applied, save_applied};

use crate::bench::{Bench, deployment, images, link, names, problems, removed, service};

#[test]
fn a_tree_is_read_with_its_sub_directories_and_without_leftovers() {
    let mut bench = Bench::new();
    bench.write("a.yaml", &deployment("a", "one"));
    bench.write("team/deep/b.yml", &deployment("b", "one"));
    for leftover in [".c.yaml", "c.yaml~", "c.yaml.bak", ".c.yaml.swp", "c.yaml.orig", "4913", "c.yaml.tmp", "c.txt"] {
        bench.write(leftover, &deployment("c", "one"));
    }
    bench.write(".git/d.yaml", &deployment("d", "one"));
    let snapshot = bench.scan();
    assert_eq!(images(&snapshot), ["a/web=one", "b/web=one"]);
    assert_eq!(snapshot.deployments["b"].file, bench.path("team/deep/b.yml"));
    assert!(snapshot.synced && snapshot.problems.is_empty() && snapshot.removed.is_empty());
}

#[test]
fn an_empty_directory_is_synced_and_declares_nothing() {
    let snapshot = Bench::new().scan();
    assert!(snapshot.synced && snapshot.deployments.is_empty() && snapshot.problems.is_empty());
}

#[test]
fn a_single_file_of_any_name_is_a_root() {
    let bench = Bench::new();
    bench.write("specs.txt", &deployment("a", "one"));
    bench.write("b.yaml", &deployment("b", "one"));
    let root = Root { path: bench.path("specs.txt"), kind: RootKind::Watched };
    let mut scanner = Scanner::load(vec![root], bench.store(), bench.options, Recording::On).unwrap();
    assert_eq!(names(&scanner.scan(bench.now()).snapshot), ["a"]);
}

#[test]
fn what_did_not_change_gives_the_same_snapshot() {
    let mut bench = Bench::with(&["a"]);
    let first = bench.scan();
    let times = std::fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    std::fs::File::options().write(true).open(bench.path("a.yaml")).unwrap().set_times(times).unwrap();
    let mut permissions = std::fs::metadata(bench.path("a.yaml")).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(bench.path("a.yaml"), permissions).unwrap();
    assert!(Arc::ptr_eq(&first, &bench.scan()));
    std::fs::write(bench.path("b.tmp"), deployment("a", "one")).unwrap();
    std::fs::rename(bench.path("b.tmp"), bench.path("a.yaml")).unwrap();
    assert!(Arc::ptr_eq(&first, &bench.scan()));
}

#[test]
fn changes_of_the_same_size_within_one_tick_of_the_clock_are_seen() {
    let mut bench = Bench::with(&["a"]);
    // The file system's clock ticks every few milliseconds, which is slower than this.
    for round in 10..60 {
        bench.write("a.yaml", &deployment("a", &format!("v{round}")));
        assert_eq!(images(&bench.scan()), [format!("a/web=v{round}")]);
    }
}

#[test]
fn removing_a_document_removes_what_it_declared_and_nothing_else() {
    let mut bench = Bench::new();
    let (a, b) = (deployment("a", "one"), deployment("b", "one"));
    bench.write("both.yaml", &format!("{a}---\n{b}"));
    assert_eq!(names(&bench.scan()), ["a", "b"]);
    bench.write("both.yaml", &b);
    let snapshot = bench.scan();
    assert_eq!(names(&snapshot), ["b"]);
    assert_eq!(removed(&snapshot), [("a", Prune::Auto)]);
}

#[test]
fn removing_the_only_file_removes_what_it_declared() {
    let mut bench = Bench::with(&["a"]);
    bench.remove("a.yaml");
    let snapshot = bench.scan();
    assert_eq!((names(&snapshot), removed(&snapshot)), (vec![], vec![("a", Prune::Auto)]));
    assert_eq!(snapshot.hold, None);
}

#[test]
fn a_removed_deployment_is_remembered_until_it_is_forgotten() {
    let mut bench = Bench::new();
    bench.write("a.yaml", &format!("prune: never\n{}", deployment("a", "one")));
    bench.scan();
    bench.remove("a.yaml");
    assert_eq!(removed(&bench.scan()), [("a", Prune::Never)]);
    bench.restart();
    assert_eq!(removed(&bench.scan()), [("a", Prune::Never)]);
    bench.scanner().forget("a").unwrap();
    assert_eq!(removed(&bench.scanner().snapshot()), []);
    assert_eq!(removed(&bench.scan()), []);
    bench.restart();
    assert_eq!(removed(&bench.scan()), []);
}

#[test]
fn what_is_declared_again_is_not_forgotten() {
    let mut bench = Bench::with(&["a"]);
    bench.remove("a.yaml");
    bench.scan();
    bench.write("a.yaml", &deployment("a", "two"));
    let snapshot = bench.scan();
    assert_eq!((images(&snapshot), removed(&snapshot)), (vec!["a/web=two".to_owned()], vec![]));
    bench.scanner().forget("a").unwrap();
    bench.restart();
    bench.remove("a.yaml");
    assert_eq!(removed(&bench.scan()), [("a", Prune::Auto)]);
}

#[test]
fn a_file_removed_while_no_controller_ran_is_removed_at_the_start() {
    let mut bench = Bench::with(&["a", "b"]);
    bench.restart();
    bench.remove("a.yaml");
    let first = bench.glance();
    assert!(!first.snapshot.synced, "it may be the middle of a save");
    assert_eq!(names(&first.snapshot), ["a", "b"]);
    let snapshot = bench.scan();
    assert!(snapshot.synced);
    assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["b"], vec![("a", Prune::Auto)]));
}

#[test]
fn a_moved_declaration_is_no_removal() {
    let mut bench = Bench::with(&["a", "b"]);
    std::fs::create_dir(bench.path("sub")).unwrap();
    std::fs::rename(bench.path("a.yaml"), bench.path("sub/x.yaml")).unwrap();
    let snapshot = bench.scan();
    assert_eq!(names(&snapshot), ["a", "b"]);
    assert_eq!(removed(&snapshot), []);
    assert_eq!(snapshot.deployments["a"].file, bench.path("sub/x.yaml"));
}

#[test]
fn between_delete_and_create_nothing_is_removed() {
    let mut bench = Bench::with(&["a"]);
    let before = bench.scan();
    bench.remove("a.yaml");
    let scanned = bench.glance();
    assert!(Arc::ptr_eq(&scanned.snapshot, &before));
    assert_eq!(scanned.settles_in, Some(LOSS_SETTLE));
    bench.advance(LOSS_SETTLE - Duration::from_millis(1));
    assert!(Arc::ptr_eq(&bench.glance().snapshot, &before));
    bench.write("a.yaml", &deployment("a", "two"));
    let scanned = bench.glance();
    assert_eq!((images(&scanned.snapshot), scanned.settles_in), (vec!["a/web=two".to_owned()], None));
}

#[test]
fn between_truncate_and_write_nothing_is_removed() {
    let mut bench = Bench::with(&["a"]);
    bench.scan();
    bench.write("a.yaml", "#");
    for restart in [false, true] {
        if restart {
            bench.restart();
        }
        let snapshot = bench.scan();
        assert_eq!((images(&snapshot), removed(&snapshot)), (vec!["a/web=one".to_owned()], vec![]));
        assert_eq!(problems(&snapshot).len(), 1);
    }
    bench.write("a.yaml", &deployment("a", "two"));
    let snapshot = bench.scan();
    assert_eq!((images(&snapshot), problems(&snapshot)), (vec!["a/web=two".to_owned()], vec![]));
}

/// A step of a save, on what is there now.
type Step = fn(&Bench);

#[test]
fn what_is_lost_counts_when_it_stayed_away_and_what_comes_counts_at_once() {
    let (a, b) = (deployment("a", "one"), deployment("b", "one"));
    let whole = format!("{a}  db:\n    image: {{name: pg}}\n---\n{b}");
    let losses: [(&str, Step, &[&str]); 3] = [
        ("a document", |bench| bench.write("all.yaml", &deployment("b", "one")), &["b/web=one"]),
        ("the rest of a document", |bench| bench.write("all.yaml", &deployment("a", "one")), &["a/web=one"]),
        ("the file", |bench| bench.remove("all.yaml"), &[]),
    ];
    let before = ["a/db=pg", "a/web=one", "b/web=one"];
    for (what, lose, left) in losses {
        let mut bench = Bench::new();
        bench.write("all.yaml", &whole);
        assert_eq!(images(&bench.scan()), before);
        lose(&bench);
        bench.write("c.yaml", &deployment("c", "one"));
        let more = |all: &[&str]| all.iter().copied().chain(["c/web=one"]).map(str::to_owned).collect::<Vec<_>>();
        let scanned = bench.glance();
        assert_eq!((images(&scanned.snapshot), scanned.settles_in), (more(&before), Some(LOSS_SETTLE)), "{what}");
        bench.advance(LOSS_SETTLE - Duration::from_millis(1));
        // Back for a moment: the time begins anew.
        bench.write("all.yaml", &whole);
        assert_eq!(bench.glance().settles_in, None, "{what}");
        lose(&bench);
        assert_eq!(images(&bench.glance().snapshot), more(&before), "{what}");
        bench.advance(LOSS_SETTLE - Duration::from_millis(1));
        let scanned = bench.glance();
        assert_eq!((images(&scanned.snapshot), problems(&scanned.snapshot)), (more(&before), vec![]), "{what}");
        bench.advance(Duration::from_millis(1));
        let scanned = bench.glance();
        assert_eq!((images(&scanned.snapshot), scanned.settles_in), (more(left), None), "{what}");
    }
}

#[test]
fn what_moves_or_gets_another_name_is_no_loss_and_no_problem_meanwhile() {
    let mut bench = Bench::with(&["a", "b"]);
    std::fs::rename(bench.path("a.yaml"), bench.path("x.yaml")).unwrap();
    let scanned = bench.glance();
    assert_eq!((images(&scanned.snapshot), scanned.settles_in), (one(&["a/web=one", "b/web=one"]), None));
    assert_eq!(problems(&scanned.snapshot), [""; 0]);
    bench.write("x.yaml", &deployment("y", "two"));
    let scanned = bench.glance();
    assert_eq!(images(&scanned.snapshot), ["a/web=one", "b/web=one", "y/web=two"]);
    assert_eq!((images(&bench.scan()), bench.scan().hold.clone()), (one(&["b/web=one", "y/web=two"]), None));
}

fn one(images: &[&str]) -> Vec<String> {
    images.iter().map(|image| (*image).to_owned()).collect()
}

#[test]
fn a_file_that_is_truncated_and_breaks_before_it_is_whole_keeps_what_it_declared() {
    let mut bench = Bench::new();
    let (a, b) = (deployment("a", "one"), deployment("b", "one"));
    bench.write("all.yaml", &format!("{a}---\n{b}"));
    bench.scan();
    for text in ["", &a, &format!("{a}---\n{}", &b[..20])] {
        bench.write("all.yaml", text);
        assert_eq!(names(&bench.glance().snapshot), ["a", "b"]);
        bench.advance(LOSS_SETTLE - Duration::from_millis(1));
    }
    bench.advance(LOSS_SETTLE);
    assert_eq!(names(&bench.scan()), ["a", "b"]);
    bench.restart();
    assert_eq!(names(&bench.scan()), ["a", "b"]);
}

#[test]
fn links_are_followed_and_loops_are_not() {
    let mut bench = Bench::new();
    let elsewhere = bench.base.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("b.yaml"), deployment("b", "one")).unwrap();
    std::fs::write(bench.base.path().join("c.txt"), deployment("c", "one")).unwrap();
    bench.write("sub/a.yaml", &deployment("a", "one"));
    link("..", bench.path("sub/loop"));
    link(".", bench.path("self"));
    link(&elsewhere, bench.path("linked"));
    link("../c.txt", bench.path("c.yaml"));
    let snapshot = bench.scan();
    assert_eq!(names(&snapshot), ["a", "b", "c"]);
    assert_eq!(problems(&snapshot), [""; 0]);
}

#[test]
fn a_tree_that_is_too_deep_says_so_and_keeps_what_was_read() {
    let mut bench = Bench::with(&["a"]);
    let deep = vec!["d"; MAX_DEPTH + 1].join("/");
    bench.write(&format!("{deep}/b.yaml"), &deployment("b", "one"));
    let snapshot = bench.scan();
    assert_eq!(names(&snapshot), ["a"]);
    assert_eq!(
        problems(&snapshot),
        ["d:1:1: is more than 32 directories deep; move its specs further up => nothing of the file is used"]
    );
}

#[test]
fn a_tree_of_too_many_files_says_so_and_loses_nothing() {
    let mut bench = Bench::with(&["a", "b", "c", "d", "e"]);
    std::fs::remove_dir_all(bench.path("")).unwrap();
    std::fs::create_dir(bench.path("")).unwrap();
    for number in 0..=MAX_FILES {
        std::fs::File::create(bench.path(&format!("{number}.yaml"))).unwrap();
    }
    let snapshot = bench.scan();
    assert_eq!((names(&snapshot), removed(&snapshot), &snapshot.hold), (vec!["a", "b", "c", "d", "e"], vec![], &None));
    assert_eq!(
        problems(&snapshot),
        ["specs:1:1: holds more than 10000 spec files or 100000 entries; name a directory that holds only specs => \
          a, b, c, d, e keep their last good version"]
    );
    assert!(snapshot.unclear.as_ref().is_some_and(|why| why.contains("holds more than")), "{:?}", snapshot.unclear);
}

#[test]
fn two_roots_are_one_set() {
    let mut bench = Bench::with(&["a"]);
    let applied = bench.base.path().join("state/applied");
    let copy = AppliedFile {
        origin: "/elsewhere/b.yaml".into(),
        text: format!("{}---\n{}", deployment("b", "one"), service("a", "db", "pg")),
        without: BTreeSet::new(),
        default_runtimes: Default::default(),
    };
    save_applied(std::slice::from_ref(&copy), &applied).unwrap();
    assert_eq!(images(&bench.scan()), ["a/db=pg", "a/web=one", "b/web=one"]);
    discard_applied(std::slice::from_ref(&copy), &applied).unwrap();
    // Commands write there: what goes is meant, at once.
    let scanned = bench.glance();
    assert_eq!((removed(&scanned.snapshot), scanned.settles_in), (vec![("b", Prune::Auto)], None));
    assert_eq!(images(&scanned.snapshot), ["a/web=one"]);
}

#[test]
fn a_look_without_recording_leaves_no_trace() {
    let mut bench = Bench::with(&["a"]);
    bench.restart();
    bench.write("a.yaml", &deployment("a", "two"));
    bench.write("b.yaml", &deployment("b", "one"));
    let look = |bench: &Bench| {
        let scanner = Scanner::load(bench.roots(), bench.store(), bench.options, Recording::Off);
        scanner.unwrap().settle(&evenkeel::clock::SystemClock)
    };
    assert_eq!(images(&look(&bench)), ["a/web=two", "b/web=one"]);
    bench.remove("b.yaml");
    let after = look(&bench);
    assert_eq!((images(&after), removed(&after)), (vec!["a/web=two".to_owned()], vec![]));
    assert_eq!(bench.store().inventory().unwrap().len(), 1);
}
