//! One state directory, and controllers that watch one directory after the other.

use std::collections::BTreeSet;

use evenkeel::source::{Deleted, Recording, Root, RootKind, Scanned, Scanner, SpecSnapshot, last_roots};
use evenkeel::spec::Prune;
use evenkeel::store::{AppliedFile, save_applied};

use crate::bench::{Bench, deployment, images, names, problems, removed, service};

/// What is kept, and the file that declared it, by its name.
fn unwatched(snapshot: &SpecSnapshot) -> Vec<String> {
    let file = |path: &std::path::Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let kept = snapshot.unwatched.iter();
    kept.map(|(name, one)| format!("{name} {}/{}", file(&one.directory), file(&one.source.file))).collect()
}

/// Controllers that watch `specs` or another directory, with the files that were applied.
struct Changing {
    bench: Bench,
    scanner: Option<Scanner>,
}

impl Changing {
    /// `specs` declared a deployment per name.
    fn with(names: &[&str]) -> Self {
        Self { bench: Bench::with(names), scanner: None }
    }

    fn write_other(&self, file: &str, text: &str) {
        let other = self.bench.base.path().join("other");
        std::fs::create_dir_all(&other).unwrap();
        std::fs::write(other.join(file), text).unwrap();
    }

    /// A new controller watches this directory.
    fn watch(&mut self, directory: &str) -> SpecSnapshot {
        self.bench.restart();
        self.bench.options.deleted = Deleted::Returns;
        let watched = Root { path: self.bench.base.path().join(directory), kind: RootKind::Watched };
        let roots = vec![watched, self.bench.roots()[1].clone()];
        let scanner = Scanner::load(roots, self.bench.store(), self.bench.options, Recording::On).unwrap();
        self.scanner = Some(scanner);
        self.scan()
    }

    fn scan(&mut self) -> SpecSnapshot {
        loop {
            let now = self.bench.now();
            let Scanned { snapshot, settles_in, .. } = self.scanner.as_mut().unwrap().scan(now);
            let Some(wait) = settles_in else { return SpecSnapshot::clone(&snapshot) };
            self.bench.advance(wait);
        }
    }

    fn delete(&mut self, name: &str) -> SpecSnapshot {
        let now = self.bench.now();
        let scanner = self.scanner.as_mut().unwrap();
        scanner.delete(&[name.to_owned()].into(), now).unwrap();
        SpecSnapshot::clone(&scanner.snapshot())
    }

    fn approve(&mut self) -> (Vec<String>, SpecSnapshot) {
        let now = self.bench.now();
        let (names, scanned) = self.scanner.as_mut().unwrap().approve(now).unwrap();
        (names, SpecSnapshot::clone(&scanned.snapshot))
    }
}

#[test]
fn what_another_directory_declared_stays_and_is_no_loss() {
    // Five of six are lost from sight, which would be held if they had vanished from their directory.
    let mut changing = Changing::with(&["a", "b", "c", "d", "e"]);
    changing.write_other("f.yaml", &deployment("f", "one"));
    for allow_empty in [false, true] {
        changing.bench.options.allow_empty = allow_empty;
        let snapshot = changing.watch("other");
        assert_eq!(names(&snapshot), ["a", "b", "c", "d", "e", "f"]);
        assert_eq!((&snapshot.hold, removed(&snapshot), problems(&snapshot)), (&None, vec![], vec![]));
        let kept = ["a specs/a.yaml", "b specs/b.yaml", "c specs/c.yaml", "d specs/d.yaml", "e specs/e.yaml"];
        assert_eq!(unwatched(&snapshot), kept);
    }
    let other = Root { path: changing.bench.base.path().join("other"), kind: RootKind::Watched };
    assert_eq!(last_roots(&changing.bench.store()).unwrap(), [other]);
}

#[test]
fn what_is_watched_is_pruned_as_if_the_other_directory_had_never_been() {
    let mut changing = Changing::with(&["a", "b", "c", "d"]);
    for name in ["v", "w", "x", "y", "z"] {
        changing.write_other(&format!("{name}.yaml"), &deployment(name, "one"));
    }
    changing.watch("other");
    let other = changing.bench.base.path().join("other");
    std::fs::remove_file(other.join("v.yaml")).unwrap();
    let snapshot = changing.scan();
    assert_eq!(names(&snapshot), ["a", "b", "c", "d", "w", "x", "y", "z"]);
    assert_eq!(removed(&snapshot), [("v", Prune::Auto)]);
    // All four that are left: half of what is kept, and more than half of what is watched.
    for name in ["w", "x", "y", "z"] {
        std::fs::remove_file(other.join(format!("{name}.yaml"))).unwrap();
    }
    let snapshot = changing.scan();
    assert_eq!(snapshot.hold.as_ref().unwrap().missing, ["w", "x", "y", "z"]);
    let (confirmed, snapshot) = changing.approve();
    assert_eq!(confirmed, ["w", "x", "y", "z"], "the loss that was told, and nothing else");
    assert_eq!(names(&snapshot), ["a", "b", "c", "d"]);
    let (confirmed, snapshot) = changing.approve();
    assert_eq!(confirmed, ["a", "b", "c", "d"]);
    assert_eq!((names(&snapshot), removed(&snapshot).len()), (vec![], 9));
}

#[test]
fn the_first_directory_takes_up_again_what_it_declares() {
    let mut changing = Changing::with(&["a", "b", "c"]);
    changing.write_other("x.yaml", &deployment("x", "one"));
    changing.watch("other");
    changing.bench.write("a.yaml", &deployment("a", "two"));
    changing.bench.write("c.yaml", "{");
    changing.bench.remove("b.yaml");
    let snapshot = changing.watch("specs");
    assert_eq!(images(&snapshot), ["a/web=two", "c/web=one", "x/web=one"]);
    assert_eq!(removed(&snapshot), [("b", Prune::Auto)]);
    assert_eq!(unwatched(&snapshot), ["x other/x.yaml"]);
    assert!(problems(&snapshot)[0].ends_with("=> c keeps its last good version"), "{:?}", problems(&snapshot));
}

#[test]
fn what_is_declared_by_the_same_name_takes_the_place() {
    let mut changing = Changing::with(&["a", "b"]);
    changing.write_other("x.yaml", &deployment("a", "two"));
    let snapshot = changing.watch("other");
    assert_eq!(
        (images(&snapshot), unwatched(&snapshot)),
        (vec!["a/web=two".to_owned(), "b/web=one".to_owned()], vec!["b specs/b.yaml".to_owned()])
    );
    std::fs::remove_file(changing.bench.base.path().join("other/x.yaml")).unwrap();
    changing.write_other("y.yaml", &deployment("y", "one"));
    assert_eq!(removed(&changing.scan()), [("a", Prune::Auto)]);
}

#[test]
fn one_deployment_may_be_deleted_alone() {
    let mut changing = Changing::with(&["a", "b"]);
    changing.write_other("x.yaml", &deployment("x", "one"));
    changing.watch("other");
    let snapshot = changing.delete("x");
    assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["a", "b", "x"], vec![]), "x is declared");
    let snapshot = changing.delete("a");
    assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["b", "x"], vec![("a", Prune::Auto)]));
    let snapshot = changing.watch("other");
    assert_eq!((names(&snapshot), unwatched(&snapshot)), (vec!["b", "x"], vec!["b specs/b.yaml".to_owned()]));
}

#[test]
fn a_directory_above_or_below_watches_the_same_files() {
    let mut changing = Changing::with(&["a"]);
    changing.bench.write("team/b.yaml", &deployment("b", "one"));
    changing.bench.write("team/c.yaml", &deployment("c", "one"));
    assert_eq!(unwatched(&changing.watch("specs")), [""; 0]);
    assert_eq!(unwatched(&changing.watch("specs/team")), ["a specs/a.yaml"]);
    changing.bench.remove("team/b.yaml");
    let snapshot = changing.scan();
    assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["a", "c"], vec![("b", Prune::Auto)]));
    let (team, away) = (changing.bench.path("team"), changing.bench.base.path().join("away"));
    std::fs::rename(&team, &away).unwrap();
    let snapshot = changing.scan();
    assert!(snapshot.hold.is_some(), "the watched directory is gone, whichever one declared it first");
    assert_eq!(names(&snapshot), ["a", "c"]);
    std::fs::rename(&away, &team).unwrap();
    assert_eq!(changing.scan().hold, None);
    changing.bench.remove("team/c.yaml");
    let snapshot = changing.watch("");
    assert_eq!((names(&snapshot), unwatched(&snapshot)), (vec!["a"], vec![]));
    assert_eq!(removed(&snapshot).iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["b", "c"]);
}

#[test]
fn a_part_that_is_still_seen_does_not_stand_for_the_whole() {
    let mut changing = Changing::with(&["a", "b"]);
    let copy = AppliedFile {
        origin: "/elsewhere/x.yaml".into(),
        text: format!("{}---\n{}", service("a", "db", "pg"), deployment("c", "one")),
        without: BTreeSet::new(),
        default_runtimes: Default::default(),
    };
    save_applied(std::slice::from_ref(&copy), &changing.bench.base.path().join("state/applied")).unwrap();
    changing.bench.write("c.yaml", &service("c", "cache", "redis"));
    let all = ["a/db=pg", "a/web=one", "b/web=one", "c/cache=redis", "c/web=one"];
    assert_eq!(images(&changing.watch("specs")), all);
    changing.write_other("x.yaml", &deployment("x", "one"));
    for _ in 0..2 {
        let snapshot = changing.watch("other");
        assert_eq!(images(&snapshot)[..5], all);
        assert_eq!(unwatched(&snapshot), ["a specs/a.yaml", "b specs/b.yaml", "c specs/x.yaml"]);
    }
    let snapshot = changing.delete("c");
    assert_eq!(images(&snapshot)[3..], ["c/web=one", "x/web=one"], "what is left of it");
}

#[test]
fn a_directory_that_was_emptied_meanwhile_is_taken_for_an_unmounted_one() {
    let mut changing = Changing::with(&["a"]);
    changing.write_other("x.yaml", &deployment("x", "one"));
    changing.watch("other");
    changing.bench.remove("a.yaml");
    let snapshot = changing.watch("specs");
    let hold = snapshot.hold.as_ref().unwrap();
    assert!(hold.reason.contains("specs was found empty"), "{}", hold.reason);
    assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["a", "x"], vec![]));
}

/// A command looks at what the last controller watched.
fn command(changing: &mut Changing) -> SpecSnapshot {
    changing.bench.options.deleted = Deleted::Stays;
    let mut roots: Vec<Root> = last_roots(&changing.bench.store()).unwrap();
    roots.push(changing.bench.roots()[1].clone());
    let scanner = Scanner::load(roots, changing.bench.store(), changing.bench.options, Recording::On).unwrap();
    changing.scanner = Some(scanner);
    changing.scan()
}

#[test]
fn what_is_deleted_without_a_controller_stays_deleted_until_one_watches_it_again() {
    let mut changing = Changing::with(&["a", "b"]);
    changing.write_other("x.yaml", &deployment("x", "one"));
    changing.watch("specs");
    command(&mut changing);
    let snapshot = changing.delete("a");
    assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["b"], vec![("a", Prune::Auto)]));
    changing.scanner.as_mut().unwrap().forget("a").unwrap();
    for _ in 0..2 {
        let snapshot = command(&mut changing);
        assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["b"], vec![]), "nothing is left of it");
    }
    let snapshot = changing.watch("other");
    assert_eq!((names(&snapshot), unwatched(&snapshot)), (vec!["b", "x"], vec!["b specs/b.yaml".to_owned()]));
    assert_eq!(names(&changing.watch("specs")), ["a", "b", "x"], "its file is watched");
    assert_eq!(names(&command(&mut changing)), ["a", "b", "x"], "and counts from then on");
}

#[test]
fn what_is_deleted_while_its_file_is_out_of_sight_stays_deleted_until_the_file_is_seen() {
    type Hide = fn(&Bench, &std::path::Path);
    let ways: [(&str, Hide); 2] = [
        ("an empty directory in its place", |bench, _| std::fs::create_dir(bench.path("")).unwrap()),
        ("a link to nowhere in its place", |bench, away| {
            crate::bench::link("nowhere", bench.path("").to_str().unwrap().trim_end_matches('/'));
            assert!(away.exists());
        }),
    ];
    for (what, hide) in ways {
        for with_controller in [true, false] {
            let mut changing = Changing::with(&["a", "b"]);
            changing.watch("specs");
            let (specs, away) = (changing.bench.base.path().join("specs"), changing.bench.base.path().join("away"));
            std::fs::rename(&specs, &away).unwrap();
            hide(&changing.bench, &away);
            if with_controller {
                changing.watch("specs")
            } else {
                command(&mut changing)
            };
            let snapshot = changing.delete("a");
            assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["b"], vec![("a", Prune::Auto)]), "{what}");
            changing.scanner.as_mut().unwrap().forget("a").unwrap();
            for _ in 0..2 {
                let snapshot = changing.watch("specs");
                assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["b"], vec![]), "{what}");
            }
            if specs.is_symlink() { std::fs::remove_file(&specs) } else { std::fs::remove_dir(&specs) }.unwrap();
            std::fs::rename(&away, &specs).unwrap();
            assert_eq!(names(&changing.scan()), ["a", "b"], "{what}: its file is there again");
        }
    }
}

#[test]
fn what_is_deleted_in_a_directory_that_can_not_be_seen_stays_deleted() {
    let mut changing = Changing::with(&["b"]);
    let elsewhere = changing.bench.base.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("a.yaml"), deployment("a", "one")).unwrap();
    crate::bench::link(&elsewhere, changing.bench.path("linked"));
    assert_eq!(names(&changing.watch("specs")), ["a", "b"]);
    let away = changing.bench.base.path().join("away");
    std::fs::rename(&elsewhere, &away).unwrap();
    assert_eq!(names(&changing.scan()), ["a", "b"], "its last good version counts");
    let snapshot = changing.delete("a");
    assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["b"], vec![("a", Prune::Auto)]));
    changing.scanner.as_mut().unwrap().forget("a").unwrap();
    assert_eq!(names(&changing.watch("specs")), ["b"]);
    std::fs::rename(&away, &elsewhere).unwrap();
    assert_eq!(names(&changing.scan()), ["a", "b"], "its file is seen");
}

#[test]
fn what_is_deleted_and_applied_again_counts_again() {
    let mut changing = Changing::with(&["a", "b"]);
    changing.watch("specs");
    command(&mut changing);
    changing.delete("a");
    changing.delete("b");
    assert_eq!(names(&command(&mut changing)), [""; 0]);
    changing.scanner.as_mut().unwrap().ask_for(&["a".to_owned()].into(), None).unwrap();
    assert_eq!(names(&changing.scan()), ["a"]);
    assert_eq!(names(&command(&mut changing)), ["a"]);
}
