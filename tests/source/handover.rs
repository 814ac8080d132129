//! A controller that watches a directory for the first time from which files were applied before.

use evenkeel::source::{
    Deleted, NamedRuntimes, Recording, Records, Root, RootKind, Scanner, SpecSnapshot, hand_over, last_roots,
};
use evenkeel::spec::{RuntimeKind, parse};
use evenkeel::store::{AppliedFile, discard_applied, read_applied, save_applied};

use crate::bench::{Bench, deployment, images, names, problems, removed};

/// `specs` is applied, and watched later.
struct Applied {
    bench: Bench,
    /// The runtime that is named with every apply.
    runtime: Option<RuntimeKind>,
    scanner: Option<Scanner>,
}

impl Applied {
    /// A file `NAME.yaml` per deployment was applied, and is still there.
    fn with(names: &[&str]) -> Self {
        let mut applied = Self { bench: Bench::new(), runtime: None, scanner: None };
        for name in names {
            applied.bench.write(&format!("{name}.yaml"), &deployment(name, "one"));
            applied.save(&format!("{name}.yaml"), &deployment(name, "one"), &[]);
        }
        assert_eq!(self::names(&applied.command()), names);
        applied
    }

    fn save(&self, file: &str, text: &str, without: &[&str]) {
        let copy = AppliedFile {
            origin: self.bench.path(file),
            text: text.to_owned(),
            without: without.iter().map(|name| (*name).to_owned()).collect(),
            default_runtimes: parse(text)
                .deployments()
                .filter_map(|name| Some((name.to_owned(), self.runtime?)))
                .collect(),
        };
        save_applied(&[copy], &self.copies()).unwrap();
    }

    fn copies(&self) -> std::path::PathBuf {
        self.bench.roots()[1].path.clone()
    }

    /// A command looks, with no controller.
    fn command(&mut self) -> SpecSnapshot {
        self.bench.options.deleted = Deleted::Stays;
        let watched = last_roots(&self.bench.store()).unwrap();
        self.look(watched)
    }

    /// A controller begins to take over, and is killed before the copies go.
    fn take_over_half(&mut self) {
        self.bench.restart();
        let watched = [self.bench.roots()[0].path.clone()];
        let taken_over = read_applied(&self.copies()).unwrap();
        hand_over(&self.bench.store(), &taken_over, &self.copies(), &watched, self.bench.now()).unwrap();
    }

    /// A controller watches `specs`.
    fn watch(&mut self) -> SpecSnapshot {
        self.take_over_half();
        self.bench.options.deleted = Deleted::Returns;
        let snapshot = self.look(vec![self.bench.roots()[0].clone()]);
        discard_applied(&read_applied(&self.copies()).unwrap(), &self.copies()).unwrap();
        assert_eq!(self.scan().deployments, snapshot.deployments, "nothing depends on the copies");
        snapshot
    }

    fn look(&mut self, watched: Vec<Root>) -> SpecSnapshot {
        let applied = Root { path: self.copies(), kind: RootKind::Applied };
        let roots = watched.into_iter().chain([applied]).collect();
        let scanner = Scanner::load(roots, self.bench.store(), self.bench.options, Recording::On).unwrap();
        self.scanner = Some(scanner);
        self.scan()
    }

    fn scan(&mut self) -> SpecSnapshot {
        loop {
            let scanned = self.scanner.as_mut().unwrap().scan(self.bench.now());
            let Some(wait) = scanned.settles_in else { return SpecSnapshot::clone(&scanned.snapshot) };
            self.bench.advance(wait);
        }
    }

    fn missing(snapshot: &SpecSnapshot) -> Vec<&str> {
        snapshot.hold.iter().flat_map(|hold| &hold.missing).map(String::as_str).collect()
    }
}

const ALL: [&str; 5] = ["a", "b", "c", "d", "e"];

#[test]
fn a_directory_that_is_empty_or_gone_meanwhile_ends_nothing_until_that_is_approved() {
    for is_gone in [false, true] {
        let mut applied = Applied::with(&ALL);
        std::fs::rename(applied.bench.path(""), applied.bench.base.path().join("away")).unwrap();
        if !is_gone {
            // As where its file system is not mounted.
            std::fs::create_dir(applied.bench.path("")).unwrap();
        }
        for _ in 0..2 {
            let snapshot = applied.watch();
            assert_eq!((names(&snapshot), removed(&snapshot)), (ALL.to_vec(), vec![]), "{is_gone}");
            assert_eq!(Applied::missing(&snapshot), ALL, "{is_gone}");
        }
        let now = applied.bench.now();
        let (approved, scanned) = applied.scanner.as_mut().unwrap().approve(now).unwrap();
        assert_eq!((approved, names(&scanned.snapshot)), (ALL.map(str::to_owned).to_vec(), vec![]), "{is_gone}");
    }
}

#[test]
fn a_single_file_that_is_gone_meanwhile_ends_what_it_declared_and_most_of_them_do_not() {
    let mut applied = Applied::with(&ALL);
    applied.bench.remove("e.yaml");
    let snapshot = applied.watch();
    assert_eq!((names(&snapshot), Applied::missing(&snapshot)), (ALL[..4].to_vec(), vec![]));

    let mut applied = Applied::with(&ALL);
    ALL[1..].iter().for_each(|name| applied.bench.remove(&format!("{name}.yaml")));
    let snapshot = applied.watch();
    assert_eq!((names(&snapshot), Applied::missing(&snapshot)), (ALL.to_vec(), ALL[1..].to_vec()));
}

#[test]
fn what_was_emptied_cut_off_or_broken_meanwhile_keeps_what_was_applied_and_a_change_counts() {
    let mut applied = Applied::with(&ALL);
    applied.bench.write("a.yaml", "");
    applied.bench.write("b.yaml", "version: v1\ndeployment: b\n");
    applied.bench.write("c.yaml", "services: [");
    applied.bench.write("d.yaml", &deployment("d", "two"));
    let kept = ["a/web=one", "b/web=one", "c/web=one", "d/web=two", "e/web=one"];
    let snapshot = applied.watch();
    assert_eq!((images(&snapshot), problems(&snapshot).len()), (kept.map(str::to_owned).to_vec(), 3));
    // That another one is mended says nothing of those that are not.
    applied.bench.write("c.yaml", &deployment("c", "one"));
    let snapshot = applied.scan();
    assert_eq!((images(&snapshot), problems(&snapshot).len()), (kept.map(str::to_owned).to_vec(), 2));
    applied.bench.write("b.yaml", "version: v1\ndeployment: b\nservices: {}\n");
    assert_eq!(images(&applied.scan()), ["a/web=one", "c/web=one", "d/web=two", "e/web=one"]);
}

#[test]
fn the_runtime_that_was_named_with_an_apply_stays_whatever_becomes_of_the_file_until_one_is_written() {
    let runtime = |snapshot: &SpecSnapshot, name: &str| snapshot.deployments[name].services["web"].declared_runtime();
    let named = || {
        let mut applied = Applied { bench: Bench::new(), runtime: Some(RuntimeKind::Docker), scanner: None };
        for name in ALL {
            applied.bench.write(&format!("{name}.yaml"), &deployment(name, "one"));
            applied.save(&format!("{name}.yaml"), &deployment(name, "one"), &[]);
        }
        applied.command();
        applied
    };
    let mut applied = named();
    std::fs::rename(applied.bench.path("a.yaml"), applied.bench.path("site.yaml")).unwrap();
    applied.bench.write("b.yaml", "services: [");
    applied.bench.write("c.yaml", &deployment("c", "one").replace("services:", "runtime: sandbox\nservices:"));
    let snapshot = applied.watch();
    let docker = Some(RuntimeKind::Docker);
    assert_eq!(["a", "b", "d"].map(|name| runtime(&snapshot, name)), [docker; 3]);
    assert_eq!(runtime(&snapshot, "c"), Some(RuntimeKind::Sandbox));
    applied.bench.write("b.yaml", &deployment("b", "two"));
    applied.bench.write("c.yaml", &deployment("c", "one"));
    for _ in 0..2 {
        let snapshot = applied.watch();
        assert_eq!(["a", "b", "d"].map(|name| runtime(&snapshot, name)), [docker; 3]);
        assert_eq!(runtime(&snapshot, "c"), None, "what was written took its place");
    }
    // Somebody names one for all that name none.
    applied.bench.options.runtimes = NamedRuntimes::Forgotten;
    assert_eq!(runtime(&applied.watch(), "a"), None);
    applied.bench.options.runtimes = NamedRuntimes::Remembered;
    assert_eq!(runtime(&applied.watch(), "a"), None);
}

#[test]
fn the_runtime_that_is_named_for_a_deployment_of_a_watched_file_is_remembered_until_another_one_is() {
    let (docker, sandbox) = (Some(RuntimeKind::Docker), Some(RuntimeKind::Sandbox));
    let mut bench = Bench::with(&["a", "b"]);
    bench.options.deleted = Deleted::Stays;
    bench.options.records = Records::Asked;
    for (named, expected) in [(docker, docker), (None, docker), (sandbox, sandbox)] {
        bench.restart();
        bench.scanner().ask_for(&["a".to_owned()].into(), named).unwrap();
        for _ in 0..2 {
            let snapshot = bench.scan();
            let runtime = |name: &str| snapshot.deployments[name].services["web"].declared_runtime();
            assert_eq!((runtime("a"), runtime("b")), (expected, None), "{named:?}");
            bench.restart();
        }
    }
}

#[test]
fn what_was_deleted_by_name_does_not_come_back_with_a_file_that_was_emptied() {
    let mut applied = Applied::with(&["a"]);
    let text = deployment("x", "one") + "---\n" + &deployment("y", "one");
    applied.save("x.yaml", &text, &["y"]);
    applied.bench.write("x.yaml", &text);
    assert_eq!(names(&applied.command()), ["a", "x"]);
    applied.bench.write("x.yaml", "");
    assert_eq!(names(&applied.watch()), ["a", "x"]);
}

#[test]
fn a_controller_that_is_killed_while_it_takes_over_loses_nothing() {
    let mut applied = Applied::with(&ALL);
    applied.take_over_half();
    // A command still sees the copies, whatever became of the files.
    ALL.iter().for_each(|name| applied.bench.write(&format!("{name}.yaml"), ""));
    let snapshot = applied.command();
    assert_eq!((names(&snapshot), problems(&snapshot), snapshot.unwatched.len()), (ALL.to_vec(), vec![], 0));
    let taken_back = read_applied(&applied.copies()).unwrap().into_iter().find(|copy| copy.deployments().contains("e"));
    discard_applied(&[taken_back.unwrap()], &applied.copies()).unwrap();
    assert_eq!(names(&applied.scan()), ALL[..4], "what a command takes back is meant");
    for _ in 0..2 {
        applied.take_over_half();
    }
    assert_eq!(names(&applied.watch()), ALL[..4]);
}

#[test]
fn a_copy_that_was_left_behind_does_not_count_over_what_was_watched_since() {
    let mut applied = Applied::with(&["a"]);
    let left: Vec<AppliedFile> = read_applied(&applied.copies()).unwrap();
    applied.bench.write("a.yaml", &deployment("a", "two"));
    assert_eq!(images(&applied.watch()), ["a/web=two"]);
    // Killed before they went.
    save_applied(&left, &applied.copies()).unwrap();
    applied.bench.write("a.yaml", "");
    assert_eq!(images(&applied.watch()), ["a/web=two"]);
}
