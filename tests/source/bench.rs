//! A source on a directory of its own, scanned by hand at times of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use evenkeel::source::{Recording, Root, RootKind, Scanned, Scanner, SourceError, SourceOptions, SpecSnapshot};
use evenkeel::spec::{MergedDeployment, Prune};
use evenkeel::store::Store;
use tempfile::TempDir;

/// A document that declares a deployment with one service of this image.
pub fn deployment(name: &str, image: &str) -> String {
    format!("version: v1\ndeployment: {name}\nservices:\n  web:\n    image: {{name: \"{image}\"}}\n")
}

/// A document that adds a service to a deployment.
pub fn service(deployment: &str, name: &str, image: &str) -> String {
    format!("version: v1\ndeployment: {deployment}\nservice: {name}\nimage: {{name: \"{image}\"}}\n")
}

/// `NAME=IMAGE` of every service, `DEPLOYMENT/SERVICE=IMAGE`.
pub fn images(snapshot: &SpecSnapshot) -> Vec<String> {
    let of = |deployment: &MergedDeployment| {
        let name = deployment.name.clone();
        deployment
            .services
            .values()
            .map(move |service| {
                let image = service.spec.image.name.to_string();
                let image = image.strip_prefix("docker.io/library/").unwrap_or(&image);
                format!("{name}/{}={}", service.name, image.strip_suffix(":latest").unwrap_or(image))
            })
            .collect::<Vec<_>>()
    };
    snapshot.deployments.values().flat_map(of).collect()
}

pub fn names(snapshot: &SpecSnapshot) -> Vec<&str> {
    snapshot.deployments.keys().map(String::as_str).collect()
}

pub fn removed(snapshot: &SpecSnapshot) -> Vec<(&str, Prune)> {
    snapshot.removed.iter().map(|(name, one)| (name.as_str(), one.prune)).collect()
}

/// Every problem as it is printed, files by their name, with the effect.
pub fn problems(snapshot: &SpecSnapshot) -> Vec<String> {
    let print = |problem: &evenkeel::source::FileProblem| {
        let file = problem.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!("{file}:{} => {}", problem.problem, problem.effect)
    };
    snapshot.problems.iter().map(print).collect()
}

pub struct Bench {
    pub base: TempDir,
    pub options: SourceOptions,
    now: DateTime<Utc>,
    scanner: Option<Scanner>,
}

impl Bench {
    /// Specs in `specs/`, state in `state/`, what was applied in `state/applied/`.
    pub fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(base.path().join("specs")).unwrap();
        std::fs::create_dir_all(base.path().join("state/applied")).unwrap();
        Self { base, options: SourceOptions::default(), now: "2026-01-02T03:04:05Z".parse().unwrap(), scanner: None }
    }

    /// A bench with one deployment in each of these files `NAME.yaml`, scanned.
    pub fn with(names: &[&str]) -> Self {
        let mut bench = Self::new();
        for name in names {
            bench.write(&format!("{name}.yaml"), &deployment(name, "one"));
        }
        bench.scan();
        bench
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.base.path().join("specs").join(file)
    }

    pub fn write(&self, file: &str, text: &str) {
        let path = self.path(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn remove(&self, file: &str) {
        std::fs::remove_file(self.path(file)).unwrap();
    }

    pub fn roots(&self) -> Vec<Root> {
        vec![
            Root { path: self.base.path().join("specs"), kind: RootKind::Watched },
            Root { path: self.base.path().join("state/applied"), kind: RootKind::Applied },
        ]
    }

    pub fn store(&self) -> Arc<Store> {
        Arc::new(Store::open(&self.base.path().join("state")).unwrap())
    }

    pub fn load(&self, recording: Recording) -> Result<Scanner, SourceError> {
        Scanner::load(self.roots(), self.store(), self.options, recording)
    }

    pub fn scanner(&mut self) -> &mut Scanner {
        if self.scanner.is_none() {
            self.scanner = Some(self.load(Recording::On).unwrap());
        }
        self.scanner.as_mut().unwrap()
    }

    pub fn advance(&mut self, by: Duration) {
        self.now += TimeDelta::from_std(by).unwrap();
    }

    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// One scan; time stands still.
    pub fn glance(&mut self) -> Scanned {
        let now = self.now;
        self.scanner().scan(now)
    }

    /// Scans until all is settled.
    pub fn scan(&mut self) -> Arc<SpecSnapshot> {
        let mut scanned = self.glance();
        while let Some(wait) = scanned.settles_in {
            self.advance(wait);
            scanned = self.glance();
        }
        scanned.snapshot
    }

    pub fn approve(&mut self) -> (Vec<String>, Arc<SpecSnapshot>) {
        let now = self.now;
        let (missing, scanned) = self.scanner().approve(now).unwrap();
        (missing, scanned.snapshot)
    }

    /// The controller ends and another begins.
    pub fn restart(&mut self) {
        self.scanner = None;
        self.advance(Duration::from_secs(60));
    }
}

pub fn link(target: impl AsRef<Path>, at: impl AsRef<Path>) {
    std::os::unix::fs::symlink(target, at).unwrap();
}
