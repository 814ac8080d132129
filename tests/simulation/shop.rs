//! What the stories declare: a few deployments as YAML, and the source that reads it and keeps the last good version.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

use evenkeel::controller::{Declared, Removed};
use evenkeel::runtime::sim::Rng;
use evenkeel::spec::{MergedDeployment, Prune, RuntimeKind, Strategy, merge, parse};
use evenkeel::state::{Desired, DesiredDeployment, ServiceName};

/// One service as its author thinks of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    pub replicas: u32,
    /// Changes the template.
    pub version: u32,
    pub image: &'static str,
    pub strategy: &'static str,
    pub surge: &'static str,
    pub unavailable: &'static str,
    pub check: &'static str,
    pub on_failure: &'static str,
}

/// Time within which a rollout has to make progress.
pub const DEADLINE: chrono::Duration = chrono::Duration::minutes(2);

/// Programs that never come to run: one crashes, one can't be had, one is refused, one is never ready.
const BAD: [&str; 4] = ["sim/crash:1s", "sim/missing", "sim/reject", "sim/slow:9000s"];

/// What checks of services do; none at all where it is empty.
const CHECKS: [&str; 4] = ["", "", "type: tcp, port: 80", "type: http, url: 'http://localhost:80/'"];

/// Whether a program of this name never comes to run.
pub fn is_bad(image: &str) -> bool {
    BAD.iter().any(|bad| image.ends_with(bad) || image.ends_with(&format!("{bad}:latest")))
}

impl Service {
    pub fn random(rng: &mut Rng) -> Self {
        let mut service = Self {
            replicas: rng.below(6) as u32,
            version: 0,
            image: pick(rng, &["sim/run", "sim/run", "sim/slow:3s", "sim/stubborn"]),
            strategy: "rolling",
            surge: "",
            unavailable: "",
            check: "",
            on_failure: "rollback",
        };
        service.check = CHECKS[service.replicas as usize % CHECKS.len()];
        service.choose_rollout(rng);
        service
    }

    /// Lets the next revision be one that never comes to run.
    pub fn spoil(&mut self, rng: &mut Rng) {
        self.image = pick(rng, &BAD);
    }

    /// Whether it never comes to run.
    pub fn is_bad(&self) -> bool {
        is_bad(self.image)
    }

    /// Lets it come to run again.
    pub fn mend(&mut self) {
        self.image = "sim/run";
    }

    pub fn choose_rollout(&mut self, rng: &mut Rng) {
        self.on_failure = pick(rng, &["rollback", "rollback", "rollback", "continue"]);
        self.strategy = pick(rng, &["rolling", "rolling", "rolling", "rolling", "recreate"]);
        self.surge = pick(rng, &["0", "1", "2", "25%", "50%"]);
        self.unavailable = pick(rng, &["0", "1", "25%", "34%"]);
    }
}

/// One of these.
pub fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.below(of.len() as u64) as usize]
}

/// Services by name.
pub type Services = BTreeMap<String, Service>;

/// The text of a deployment's file. `style` changes how it is written and nothing of what it says.
fn text(name: &str, services: &Services, style: u32) -> String {
    let mut text = format!("# written {style} times\nversion: v1\n");
    let mut body = String::from("services:\n");
    for (name, service) in services {
        let Service { replicas, version, image, strategy, surge, unavailable, check, on_failure } = service;
        let health = match *check {
            "" => String::new(),
            check => format!("    health: {{ interval: 20s, check: {{ {check} }} }}\n"),
        };
        let fields = [
            health,
            format!("    image: {{ name: '{image}' }}\n"),
            format!("    env: {{ VERSION: '{version}' }}\n"),
            format!("    scale: {{ mode: fixed, replicas: {replicas} }}\n"),
            "    stop_grace_period: 5s\n".to_owned(),
            format!(
                "    rollout: {{ strategy: {strategy}, max_surge: {surge}, max_unavailable: {unavailable}, \
                 progress_deadline: {}s, on_failure: {on_failure} }}\n",
                DEADLINE.num_seconds()
            ),
        ];
        let _ = writeln!(body, "  {name}:");
        for index in 0..fields.len() {
            body += &fields[(index + style as usize) % fields.len()];
        }
    }
    if services.is_empty() {
        body = "services: {}\n".to_owned();
    }
    let head = format!("deployment: {name}\n");
    text += &if style.is_multiple_of(2) { head + &body } else { body + &head };
    text
}

/// What one service is declared to be at some time, as far as the rules speak of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub replicas: u32,
    pub revision: String,
    pub surge: u32,
    pub unavailable: u32,
    pub checked: bool,
}

/// Every declared service at some time.
pub type Wants = BTreeMap<ServiceName, Wanted>;

/// The files, and what a source makes of them. It outlives the controller, as files and an inventory on disk do.
#[derive(Default)]
pub struct Source {
    pub shop: BTreeMap<String, Services>,
    pub broken: BTreeSet<String>,
    styles: BTreeMap<String, u32>,
    good: BTreeMap<String, MergedDeployment>,
    removed: BTreeMap<String, Removed>,
}

impl Source {
    /// Writes a deployment's file anew, in another style.
    pub fn rewrite(&mut self, name: &str) {
        *self.styles.entry(name.to_owned()).or_default() += 1;
    }

    /// Reads every file: what is good counts, what is broken stays as it was, what is gone is removed.
    pub fn read(&mut self) -> Declared {
        for (name, services) in &self.shop {
            let style = self.styles.get(name).copied().unwrap_or_default();
            let mut text = text(name, services, style);
            if self.broken.contains(name) {
                text.insert_str(text.len() / 2, "\n\t]: broken");
            }
            let file = PathBuf::from(format!("/specs/{name}.yaml"));
            let parsed = parse(&text);
            assert_eq!(parsed.problems.is_empty(), !self.broken.contains(name), "{text}\n{:?}", parsed.problems);
            let merged = merge(&[(file, parsed)]);
            self.good.extend(merged.deployments);
        }
        let gone: Vec<String> = self.good.keys().filter(|name| !self.shop.contains_key(*name)).cloned().collect();
        for name in gone {
            self.good.remove(&name);
            let runtimes = [RuntimeKind::Sim].into();
            self.removed.insert(name, Removed { prune: Prune::Auto, runtimes });
        }
        self.removed.retain(|name, _| !self.good.contains_key(name));
        self.declared()
    }

    fn declared(&self) -> Declared {
        let desired = |merged: &MergedDeployment| evenkeel::controller::desired(merged, RuntimeKind::Sim);
        let deployments: BTreeMap<String, DesiredDeployment> =
            self.good.iter().map(|(name, merged)| (name.clone(), desired(merged))).collect();
        let stale = self.broken.iter().filter(|name| self.good.contains_key(*name));
        Declared {
            synced: true,
            desired: Desired { deployments },
            removed: self.removed.clone(),
            stale: stale.map(|name| (name.clone(), "its file is broken".to_owned())).collect(),
            ..Declared::default()
        }
    }

    /// Nothing is left of a removed deployment.
    pub fn forget(&mut self, name: &str) {
        self.removed.remove(name);
    }

    /// The inventory is lost, with the memory of what was declared once.
    pub fn lose_inventory(&mut self) {
        self.removed.clear();
    }
}

/// What a declaration wants of each service.
pub fn wants(declared: &Declared) -> Wants {
    let services = declared.desired.deployments.values().flat_map(|deployment| {
        deployment.services.values().map(|service| {
            let rollout = service.spec.rollout();
            let (surge, unavailable) = match rollout.strategy() {
                Strategy::Recreate => (0, service.replicas),
                Strategy::Rolling => rollout.bounds(service.replicas),
            };
            let name = ServiceName { deployment: deployment.name.clone(), service: service.name.clone() };
            let revision = service.revision.to_string();
            let checked = service.spec.health.is_some();
            (name, Wanted { replicas: service.replicas, revision, surge, unavailable, checked })
        })
    });
    services.collect()
}
