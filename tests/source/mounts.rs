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
                assert!(
                    problems(&snapshot)[0].contains("something else is mounted there"),
                    "{:?}",
                    problems(&snapshot)
                );
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
