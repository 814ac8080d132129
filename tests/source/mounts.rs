//! File systems below the watched directory that come and go.

use evenkeel::source::Deleted;
use evenkeel::spec::Prune;

use crate::bench::{Bench, deployment, images, link, names, problems, removed};

/// Runs what needs mounts of its own in a thread whose mounts nobody else sees, where this user may make any.
fn with_mounts(body: impl FnOnce() + Send + 'static) {
    let work = move || {
        // SAFETY: only this thread gets other mounts, and it ends with the test.
        let own = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) };
        if let Err(error) = own {
            return eprintln!("skipped: this user can't mount ({error})");
        }
        mount(&["--make-rprivate", "/"]);
        body();
    };
    std::thread::spawn(work).join().unwrap();
}

fn mount(arguments: &[&str]) {
    assert!(std::process::Command::new("mount").args(arguments).status().unwrap().success(), "mount {arguments:?}");
}

fn unmount(at: &std::path::Path) {
    assert!(std::process::Command::new("umount").arg(at).status().unwrap().success());
}

/// A bench with `a.yaml`, and `below/b.yaml` on a file system of its own.
fn with_a_file_system_below() -> Bench {
    let mut bench = Bench::with(&["a"]);
    mount_below(&bench);
    assert_eq!(names(&bench.scan()), ["a", "b"]);
    bench
}

fn mount_below(bench: &Bench) {
    std::fs::create_dir_all(bench.path("below")).unwrap();
    mount(&["-t", "tmpfs", "specs", bench.path("below").to_str().unwrap()]);
    bench.write("below/b.yaml", &deployment("b", "one"));
}

#[test]
fn what_lies_on_a_file_system_that_is_unmounted_stays_also_over_a_restart() {
    with_mounts(|| {
        for (restart, without_its_place) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut bench = with_a_file_system_below();
            unmount(&bench.path("below"));
            if without_its_place {
                std::fs::remove_dir(bench.path("below")).unwrap();
            }
            for _ in 0..2 {
                if restart {
                    bench.restart();
                }
                let snapshot = bench.scan();
                assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["a", "b"], vec![]));
                let told = problems(&snapshot);
                assert!(told.len() == 1 && told[0].contains("below") && told[0].contains("was unmounted"), "{told:?}");
                assert!(told[0].ends_with("=> b keeps its last good version"), "{told:?}");
                bench.advance(std::time::Duration::from_secs(3600));
            }
            mount_below(&bench);
            let snapshot = bench.scan();
            assert_eq!((names(&snapshot), problems(&snapshot)), (vec!["a", "b"], vec![]));
            // Where it is mounted, what goes is gone.
            bench.remove("below/b.yaml");
            assert_eq!(names(&bench.scan()), ["a"]);
            unmount(&bench.path("below"));
        }
    });
}

#[test]
fn another_file_system_in_its_place_takes_nothing_away_also_over_a_restart() {
    with_mounts(|| {
        for restart in [false, true] {
            let mut bench = with_a_file_system_below();
            let below = bench.path("below");
            unmount(&below);
            mount(&["-t", "tmpfs", "other", below.to_str().unwrap()]);
            for _ in 0..3 {
                if restart {
                    bench.restart();
                }
                let snapshot = bench.scan();
                assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["a", "b"], vec![]), "restart: {restart}");
                let told = problems(&snapshot);
                assert!(told.len() == 1 && told[0].contains("something else is mounted there"), "{told:?}");
                bench.advance(std::time::Duration::from_secs(3600));
            }
            // What is declared on the other one comes and goes as anywhere, whatever the first one held.
            bench.write("below/c.yaml", &deployment("c", "one"));
            assert_eq!(names(&bench.scan()), ["a", "b", "c"]);
            if restart {
                bench.restart();
                bench.scan();
            }
            bench.remove("below/c.yaml");
            let snapshot = bench.scan();
            assert_eq!(
                (names(&snapshot), removed(&snapshot)),
                (vec!["a", "b"], vec![("c", Prune::Auto)]),
                "restart: {restart}"
            );
            bench.write("below/b.yaml", &deployment("b", "one"));
            let snapshot = bench.scan();
            assert_eq!((names(&snapshot), problems(&snapshot)), (vec!["a", "b"], vec![]));
            bench.remove("below/b.yaml");
            assert_eq!(names(&bench.scan()), ["a"]);
            unmount(&below);
        }
    });
}

#[test]
fn what_a_file_system_is_mounted_over_stays() {
    with_mounts(|| {
        for restart in [false, true] {
            let mut bench = Bench::with(&["a"]);
            bench.write("below/deep/b.yaml", &deployment("b", "one"));
            assert_eq!(names(&bench.scan()), ["a", "b"]);
            let below = bench.path("below");
            mount(&["-t", "tmpfs", "other", below.to_str().unwrap()]);
            for _ in 0..2 {
                if restart {
                    bench.restart();
                }
                let snapshot = bench.scan();
                assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["a", "b"], vec![]), "restart: {restart}");
                let expected = "below:1:1: is a file system that covers specs which were read here before; unmount it; `keel \
                                delete NAME` removes what they declared => b keeps its last good version";
                assert_eq!(problems(&snapshot), [expected]);
            }
            unmount(&below);
            let snapshot = bench.scan();
            assert_eq!((names(&snapshot), problems(&snapshot)), (vec!["a", "b"], vec![]));
            bench.remove("below/deep/b.yaml");
            assert_eq!(names(&bench.scan()), ["a"]);
        }
    });
}

#[test]
fn what_is_not_on_the_file_system_that_is_unmounted_goes_on_as_before() {
    with_mounts(|| {
        let mut bench = with_a_file_system_below();
        bench.options.deleted = Deleted::Returns;
        bench.restart();
        bench.scan();
        unmount(&bench.path("below"));
        bench.write("a.yaml", &deployment("a", "two"));
        bench.write("below/c.yaml", &deployment("c", "one"));
        assert_eq!(images(&bench.scan()), ["a/web=two", "b/web=one", "c/web=one"]);
        bench.write("below/c.yaml", &deployment("c", "two"));
        assert_eq!(images(&bench.scan()), ["a/web=two", "b/web=one", "c/web=two"]);
        // What nobody wants back goes by name, and is told of no more.
        let now = bench.now();
        bench.scanner().delete(&["b".to_owned()].into(), now).unwrap();
        let snapshot = bench.scan();
        assert_eq!((images(&snapshot).join(" "), problems(&snapshot)), ("a/web=two c/web=two".to_owned(), vec![]));
        unmount_quietly(&bench.path("below"));
    });
}

fn unmount_quietly(at: &std::path::Path) {
    let _ = std::process::Command::new("umount").arg("-q").arg(at).status();
}

#[test]
fn a_link_to_another_file_system_may_be_taken_away_or_lead_elsewhere() {
    with_mounts(|| {
        for retargeted in [false, true] {
            let mut bench = Bench::with(&["a"]);
            let other = bench.base.path().join("other");
            std::fs::create_dir(&other).unwrap();
            mount(&["-t", "tmpfs", "specs", other.to_str().unwrap()]);
            std::fs::create_dir_all(other.join("one")).unwrap();
            std::fs::write(other.join("one/b.yaml"), deployment("b", "one")).unwrap();
            let current = bench.path("dir/current");
            bench.write("dir/sibling.yaml", &deployment("s", "one"));
            link(other.join("one"), &current);
            assert_eq!(names(&bench.scan()), ["a", "b", "s"]);
            std::fs::remove_file(&current).unwrap();
            if retargeted {
                let beside = bench.base.path().join("beside");
                std::fs::create_dir(&beside).unwrap();
                std::fs::write(beside.join("renamed.yaml"), deployment("b", "two")).unwrap();
                link(&beside, &current);
            }
            bench.write("dir/sibling.yaml", &deployment("s", "two"));
            let snapshot = bench.scan();
            let expected = if retargeted { "a/web=one b/web=two s/web=two" } else { "a/web=one s/web=two" };
            assert_eq!((images(&snapshot).join(" "), problems(&snapshot)), (expected.to_owned(), vec![]));
            unmount(&other);
        }
    });
}

#[test]
fn a_file_system_that_could_not_be_looked_at_before_it_was_unmounted_stays_too() {
    with_mounts(|| {
        for restart in [false, true] {
            let mut bench = with_a_file_system_below();
            // What root may not list either: a folder without end.
            let below = bench.path("below");
            let aside = bench.base.path().join("aside");
            mount(&["--move", below.to_str().unwrap(), aside_folder(&aside).to_str().unwrap()]);
            std::fs::remove_dir(&below).unwrap();
            link("below", &below);
            bench.scan();
            if restart {
                bench.restart();
            }
            bench.scan();
            std::fs::remove_file(&below).unwrap();
            std::fs::create_dir(&below).unwrap();
            let snapshot = bench.scan();
            assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["a", "b"], vec![]), "restart: {restart}");
            unmount(&aside);
        }
    });
}

fn aside_folder(path: &std::path::Path) -> &std::path::Path {
    std::fs::create_dir(path).unwrap();
    path
}

/// A bench on a root with `under.yaml`, which a file system covers with `a.yaml` and `b.yaml`.
fn with_a_file_system_as_root() -> Bench {
    let mut bench = Bench::new();
    bench.write("under.yaml", &deployment("under", "one"));
    mount_root(&bench);
    assert_eq!(names(&bench.scan()), ["a", "b"]);
    bench
}

fn mount_root(bench: &Bench) {
    mount(&["-t", "tmpfs", "specs", bench.path("").to_str().unwrap()]);
    for name in ["a", "b"] {
        bench.write(&format!("{name}.yaml"), &deployment(name, "one"));
    }
}

fn held(snapshot: &evenkeel::source::SpecSnapshot) -> (Vec<&str>, &str) {
    snapshot
        .hold
        .as_ref()
        .map_or_else(Default::default, |hold| (hold.missing.iter().map(String::as_str).collect(), hold.reason.as_str()))
}

const UNMOUNTED: &str =
    "specs was unmounted, or something else is mounted there: 2 of 3 are missing (a, b); pruning is stopped";

#[test]
fn what_a_root_declared_that_is_unmounted_stays_whatever_shows_then() {
    with_mounts(|| {
        for restart in [false, true] {
            let mut bench = with_a_file_system_as_root();
            unmount(&bench.path(""));
            for _ in 0..3 {
                if restart {
                    bench.restart();
                }
                let snapshot = bench.scan();
                assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["a", "b", "under"], vec![]));
                let (missing, reason) = held(&snapshot);
                assert!(missing == ["a", "b"] && reason.contains(UNMOUNTED), "{missing:?} {reason}");
                bench.advance(std::time::Duration::from_secs(3600));
            }
            // What shows now counts as anywhere.
            bench.write("under.yaml", &deployment("under", "two"));
            assert_eq!(images(&bench.scan()), ["a/web=one", "b/web=one", "under/web=two"]);
            mount_root(&bench);
            bench.write("a.yaml", &deployment("a", "two"));
            let snapshot = bench.scan();
            assert_eq!(images(&snapshot), ["a/web=two", "b/web=one", "under/web=two"]);
            assert_eq!(held(&snapshot).0, ["under"], "it is there, below what was mounted again");
            bench.approve();
            let snapshot = bench.scan();
            assert_eq!((names(&snapshot), held(&snapshot).0), (vec!["a", "b"], vec![]));
            unmount(&bench.path(""));
        }
    });
}

#[test]
fn what_a_root_declared_that_is_mounted_over_stays_until_that_is_confirmed() {
    with_mounts(|| {
        for restart in [false, true] {
            let mut bench = Bench::with(&["under"]);
            let source = bench.base.path().join("source");
            std::fs::create_dir(&source).unwrap();
            std::fs::write(source.join("c.yaml"), deployment("c", "one")).unwrap();
            // Of the same file system: only the place tells that it is another one.
            mount(&["--bind", source.to_str().unwrap(), bench.path("").to_str().unwrap()]);
            for _ in 0..2 {
                if restart {
                    bench.restart();
                }
                let snapshot = bench.scan();
                assert_eq!((names(&snapshot), held(&snapshot).0), (vec!["c", "under"], vec!["under"]));
            }
            let (confirmed, snapshot) = bench.approve();
            assert_eq!((confirmed, names(&snapshot)), (vec!["under".to_owned()], vec!["c"]));
            unmount(&bench.path(""));
            // The other way, with leave to lose all.
            bench.options.allow_empty = true;
            bench.restart();
            let snapshot = bench.scan();
            assert_eq!((names(&snapshot), held(&snapshot).0), (vec!["under"], vec![]));
        }
    });
}

#[test]
fn a_root_that_is_a_link_to_another_file_system_may_lead_elsewhere() {
    with_mounts(|| {
        let mut bench = Bench::new();
        let (first, second) = (bench.base.path().join("first"), bench.base.path().join("second"));
        for (folder, name) in [(&first, "a"), (&second, "b")] {
            std::fs::create_dir(folder).unwrap();
            mount(&["-t", "tmpfs", "specs", folder.to_str().unwrap()]);
            std::fs::write(folder.join("x.yaml"), deployment(name, "one")).unwrap();
        }
        let root = bench.base.path().join("specs");
        std::fs::remove_dir(&root).unwrap();
        link(&first, &root);
        assert_eq!(names(&bench.scan()), ["a"]);
        std::fs::remove_file(&root).unwrap();
        link(&second, &root);
        let snapshot = bench.scan();
        assert_eq!((names(&snapshot), held(&snapshot).0), (vec!["b"], vec![]));
        unmount(&first);
        unmount(&second);
    });
}

#[test]
fn another_directory_of_the_same_file_system_takes_the_place_of_a_root() {
    let mut bench = Bench::with(&["a", "b"]);
    std::fs::rename(bench.path(""), bench.base.path().join("away")).unwrap();
    bench.write("b.yaml", &deployment("b", "two"));
    let snapshot = bench.scan();
    assert_eq!((images(&snapshot), held(&snapshot).0), (vec!["b/web=two".to_owned()], vec![]));
}
