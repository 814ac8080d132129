//! Losses that are too large to be believed.

use std::collections::BTreeSet;

use evenkeel::source::{LOSS_SETTLE, Recording, SourceError, SpecSnapshot, last_roots};
use evenkeel::spec::Prune;

use crate::bench::{Bench, deployment, names, problems, removed};

const SEVEN: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];

fn missing(snapshot: &SpecSnapshot) -> Vec<&str> {
    snapshot.hold.as_ref().map(|hold| hold.missing.iter().map(String::as_str).collect()).unwrap_or_default()
}

fn remove_all(bench: &Bench, names: &[&str]) {
    for name in names {
        bench.remove(&format!("{name}.yaml"));
    }
}

fn restore(bench: &Bench, names: &[&str]) {
    for name in names {
        bench.write(&format!("{name}.yaml"), &deployment(name, "one"));
    }
}

#[test]
fn a_loss_is_held_only_when_it_is_more_than_three_and_more_than_half() {
    for (known, lost, held) in [(3, 3, false), (4, 4, true), (6, 3, false), (7, 4, true), (8, 4, false), (9, 5, true)] {
        let all = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        let mut bench = Bench::with(&all[..known]);
        // Also the last one goes: the directory is empty, but it is the same.
        remove_all(&bench, &all[..lost]);
        let snapshot = bench.scan();
        assert_eq!(snapshot.hold.is_some(), held, "{lost} of {known}");
        let gone: Vec<_> = all[..lost].iter().map(|name| (*name, Prune::Auto)).collect();
        assert_eq!(removed(&snapshot), if held { vec![] } else { gone }, "{lost} of {known}");
        assert_eq!(names(&snapshot), if held { &all[..known] } else { &all[lost..known] }, "{lost} of {known}");
    }
}

#[test]
fn files_that_go_one_after_the_other_are_one_loss() {
    let mut bench = Bench::with(&SEVEN);
    for name in &SEVEN[..4] {
        bench.remove(&format!("{name}.yaml"));
        assert_eq!((names(&bench.glance().snapshot), missing(&bench.glance().snapshot)), (SEVEN.to_vec(), vec![]));
        bench.advance(LOSS_SETTLE / 4);
    }
    let snapshot = bench.glance().snapshot;
    assert_eq!((names(&snapshot), removed(&snapshot)), (SEVEN.to_vec(), vec![]));
    assert_eq!(missing(&bench.scan()), SEVEN[..4]);
}

#[test]
fn a_directory_that_goes_after_its_files_has_vanished() {
    let mut bench = Bench::with(&["a", "b"]);
    remove_all(&bench, &["a", "b"]);
    bench.glance();
    bench.advance(LOSS_SETTLE / 2);
    std::fs::remove_dir(bench.path("")).unwrap();
    let snapshot = bench.scan();
    assert_eq!((missing(&snapshot), removed(&snapshot)), (vec!["a", "b"], vec![]));
}

#[test]
fn a_hold_says_why_and_lasts_over_restarts_until_all_is_back() {
    let mut bench = Bench::with(&SEVEN);
    remove_all(&bench, &SEVEN[..5]);
    let snapshot = bench.scan();
    let hold = snapshot.hold.clone().unwrap();
    assert_eq!(
        hold.reason,
        "more than half of the deployments vanished from the source at once: 5 of 7 are missing (a, b, c, d, e); \
         pruning is stopped: restore the files, or confirm with `keel approve`"
    );
    assert_eq!((hold.since, missing(&snapshot)), (bench.now(), vec!["a", "b", "c", "d", "e"]));
    bench.restart();
    restore(&bench, &SEVEN[..3]);
    let snapshot = bench.scan();
    assert_eq!((missing(&snapshot), names(&snapshot)), (vec!["d", "e"], SEVEN.to_vec()));
    assert_eq!(snapshot.hold.as_ref().unwrap().since, hold.since);
    restore(&bench, &SEVEN[3..5]);
    let snapshot = bench.scan();
    assert_eq!((&snapshot.hold, names(&snapshot), removed(&snapshot)), (&None, SEVEN.to_vec(), vec![]));
}

#[test]
fn a_hold_counts_what_is_missing_now() {
    let mut bench = Bench::with(&SEVEN);
    let counts = |snapshot: &SpecSnapshot| {
        let reason = snapshot.hold.as_ref().unwrap().reason.clone();
        reason.split(": ").nth(1).unwrap().split(';').next().unwrap().to_owned()
    };
    remove_all(&bench, &SEVEN[..4]);
    assert_eq!(counts(&bench.scan()), "4 of 7 are missing (a, b, c, d)");
    restore(&bench, &SEVEN[..2]);
    assert_eq!(counts(&bench.scan()), "2 of 7 are missing (c, d)");
    bench.remove("g.yaml");
    assert_eq!(counts(&bench.scan()), "3 of 7 are missing (c, d, g)");
    bench.restart();
    assert_eq!(counts(&bench.scan()), "3 of 7 are missing (c, d, g)");
    bench.remove("a.yaml");
    bench.remove("b.yaml");
    bench.remove("e.yaml");
    assert_eq!(counts(&bench.scan()), "6 of 7 are missing (a, b, c, d, e and 1 more)");
}

#[test]
fn deployments_lost_while_no_controller_ran_are_held_too() {
    let mut bench = Bench::with(&SEVEN);
    bench.restart();
    remove_all(&bench, &SEVEN[1..]);
    let snapshot = bench.scan();
    assert_eq!((missing(&snapshot), names(&snapshot)), (SEVEN[1..].to_vec(), SEVEN.to_vec()));
}

#[test]
fn a_confirmed_loss_is_pruned_also_after_a_restart() {
    let mut bench = Bench::with(&SEVEN);
    remove_all(&bench, &SEVEN[..5]);
    bench.scan();
    bench.restart();
    bench.scan();
    let (confirmed, snapshot) = bench.approve();
    assert_eq!(confirmed, SEVEN[..5]);
    let gone: BTreeSet<&str> = removed(&snapshot).into_iter().map(|(name, _)| name).collect();
    assert_eq!(gone, SEVEN[..5].iter().copied().collect());
    assert_eq!((&snapshot.hold, names(&snapshot)), (&None, SEVEN[5..].to_vec()));
    bench.restart();
    let snapshot = bench.scan();
    assert_eq!((&snapshot.hold, removed(&snapshot).len()), (&None, 5));
    assert_eq!(bench.approve().0, [""; 0]);
}

#[test]
fn nothing_is_pruned_during_a_hold_and_a_small_loss_follows_it() {
    let mut bench = Bench::with(&SEVEN);
    remove_all(&bench, &SEVEN[..5]);
    bench.scan();
    bench.remove("g.yaml");
    let snapshot = bench.scan();
    assert_eq!((missing(&snapshot), removed(&snapshot)), (vec!["a", "b", "c", "d", "e", "g"], vec![]));
    restore(&bench, &SEVEN[..5]);
    let snapshot = bench.scan();
    assert_eq!((&snapshot.hold, removed(&snapshot)), (&None, vec![("g", Prune::Auto)]));
}

#[test]
fn a_held_deployment_that_is_edited_back_is_as_it_is_declared() {
    let mut bench = Bench::with(&SEVEN);
    remove_all(&bench, &SEVEN);
    bench.scan();
    bench.write("a.yaml", &deployment("a", "two"));
    let snapshot = bench.scan();
    assert_eq!(crate::bench::images(&snapshot)[0], "a/web=two");
    assert_eq!(missing(&snapshot), SEVEN[1..]);
}

#[test]
fn allow_empty_believes_everything() {
    let mut bench = Bench::with(&SEVEN);
    remove_all(&bench, &SEVEN);
    bench.scan();
    bench.restart();
    bench.options.allow_empty = true;
    let snapshot = bench.scan();
    assert_eq!((&snapshot.hold, names(&snapshot), removed(&snapshot).len()), (&None, vec![], 7));
}

#[test]
fn that_the_directory_is_gone_is_no_problem_where_that_was_confirmed_beforehand() {
    let mut bench = Bench::with(&["a", "b"]);
    bench.restart();
    std::fs::remove_dir_all(bench.path("")).unwrap();
    bench.options.allow_empty = true;
    let snapshot = bench.scan();
    assert_eq!((&snapshot.hold, names(&snapshot), removed(&snapshot).len()), (&None, vec![], 2));
    assert_eq!(problems(&snapshot), [""; 0]);
}

#[test]
fn a_vanished_directory_removes_nothing_until_it_is_back() {
    let mut bench = Bench::with(&["a", "b"]);
    let (specs, away) = (bench.path(""), bench.base.path().join("away"));
    std::fs::rename(&specs, &away).unwrap();
    assert_eq!(bench.glance().snapshot.hold, None, "it may be the middle of a swap");
    for _ in 0..2 {
        let snapshot = bench.scan();
        assert_eq!(
            (names(&snapshot), missing(&snapshot), removed(&snapshot)),
            (vec!["a", "b"], vec!["a", "b"], vec![])
        );
        let hold = snapshot.hold.as_ref().unwrap();
        assert!(
            hold.reason.contains("specs vanished: 2 of 2 are missing (a, b); pruning is stopped"),
            "{}",
            hold.reason
        );
        assert_eq!(
            problems(&snapshot),
            ["specs:1:1: does not exist; restore it, or mount its file system => a, b keep their last good version"]
        );
        bench.restart();
    }
    // It comes back bit by bit, one file broken: that one has its last good version still.
    std::fs::create_dir(&specs).unwrap();
    bench.write("a.yaml", "{");
    let snapshot = bench.scan();
    assert_eq!((names(&snapshot), missing(&snapshot)), (vec!["a", "b"], vec!["b"]));
    restore(&bench, &["a", "b"]);
    let snapshot = bench.scan();
    assert_eq!((&snapshot.hold, names(&snapshot), removed(&snapshot)), (&None, vec!["a", "b"], vec![]));
    assert_eq!(problems(&snapshot), [""; 0]);
}

#[test]
fn a_directory_that_is_back_bit_by_bit_is_said_to_be_back() {
    let mut bench = Bench::with(&SEVEN);
    let (specs, away) = (bench.path(""), bench.base.path().join("away"));
    std::fs::rename(&specs, &away).unwrap();
    assert_eq!(missing(&bench.scan()), SEVEN);
    std::fs::remove_file(away.join("g.yaml")).unwrap();
    std::fs::rename(&away, &specs).unwrap();
    let snapshot = bench.scan();
    assert_eq!((missing(&snapshot), removed(&snapshot)), (vec!["g"], vec![]));
    let reason = &snapshot.hold.as_ref().unwrap().reason;
    assert!(
        reason.contains("specs vanished, and is back without all that was in it: 1 of 7 is missing (g)"),
        "{reason}"
    );
}

#[test]
fn an_empty_directory_in_the_place_of_the_old_one_is_an_unmounted_one() {
    for restart in [false, true] {
        let mut bench = Bench::with(&["a"]);
        if restart {
            bench.restart();
        }
        std::fs::rename(bench.path(""), bench.base.path().join("away")).unwrap();
        std::fs::create_dir(bench.path("")).unwrap();
        let snapshot = bench.scan();
        assert_eq!((names(&snapshot), missing(&snapshot), removed(&snapshot)), (vec!["a"], vec!["a"], vec![]));
        assert!(snapshot.hold.as_ref().unwrap().reason.contains("specs was replaced by an empty directory"));
        bench.restart();
        assert_eq!(missing(&bench.scan()), ["a"]);
        let (confirmed, snapshot) = bench.approve();
        assert_eq!((confirmed, removed(&snapshot)), (vec!["a".to_owned()], vec![("a", Prune::Auto)]));
    }
}

#[test]
fn a_directory_that_never_was_is_an_error() {
    let bench = Bench::new();
    std::fs::remove_dir(bench.path("")).unwrap();
    let error = bench.load(Recording::On).unwrap_err();
    assert!(
        matches!(&error, SourceError::Root { path, .. } if *path == bench.path("").components().collect::<std::path::PathBuf>())
    );
    assert!(error.to_string().ends_with("name the directory that holds your specs, or create it"), "{error}");
}

#[test]
fn a_missing_applied_folder_declares_nothing_and_is_no_error() {
    let mut bench = Bench::with(&["a"]);
    std::fs::remove_dir(bench.base.path().join("state/applied")).unwrap();
    let snapshot = bench.scan();
    assert_eq!((names(&snapshot), problems(&snapshot)), (vec!["a"], vec![]));
}

#[test]
fn a_directory_without_specs_says_nothing_about_what_is_unclaimed() {
    let mut bench = Bench::new();
    let why = bench.scan().unclear.clone().unwrap();
    assert!(why.ends_with("specs holds no specs"), "{why}");
    bench.restart();
    bench.options.allow_empty = true;
    assert_eq!(bench.scan().unclear, None);
}

#[test]
fn commands_look_at_the_last_directory_as_long_as_it_matters() {
    let mut bench = Bench::with(&["a"]);
    let watched = bench.roots()[..1].to_vec();
    assert_eq!(last_roots(&bench.store()).unwrap(), watched);
    std::fs::remove_dir_all(bench.path("")).unwrap();
    bench.scan();
    assert_eq!(last_roots(&bench.store()).unwrap(), watched);
    bench.approve();
    bench.scanner().forget("a").unwrap();
    assert_eq!(last_roots(&bench.store()).unwrap(), []);
}
