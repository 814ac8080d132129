//! Services that wait for others of their deployment.

use std::collections::{BTreeMap, BTreeSet};

use super::super::check::{bad_name, folded};
use super::super::document::Mark;
use super::super::{Problem, RType, suggest};
use super::draft::{Draft, Part};
use super::{Findings, place};

/// Who waits for whom, and where that is written.
type Edges<'a> = BTreeMap<&'a str, Vec<(&'a str, &'a Mark)>>;

/// Finds dependencies on services that do not exist, and cycles. What a service says of itself alone was checked with
/// its document.
pub(super) fn check(deployment: &str, draft: &Draft<'_>, findings: &mut Findings) {
    let known: BTreeSet<&str> = draft.parts().map(|part| part.name).collect();
    let (bad, good): (BTreeSet<&str>, BTreeSet<&str>) = known.iter().partition(|name| bad_name(name).is_some());
    let unnamed: BTreeSet<String> = bad.into_iter().map(folded).collect();
    for part in draft.parts() {
        for (depends, mark) in dependencies(part).filter(|(depends, _)| !known.contains(depends)) {
            if draft.may_declare_more || findings.may_declare_more || unnamed.contains(&folded(depends)) {
                let why = "what may declare it has problems";
                let reason =
                    format!("{}: the service {depends:?} is not known: {why}", place(part.file, mark.position));
                findings.refused.entry(deployment.to_owned()).or_insert(reason);
            } else {
                findings.refuse(deployment, part.file, unknown(deployment, (part.name, depends), mark, &good));
            }
        }
    }
    check_schedules(deployment, draft, findings);
    let services = draft.services.values();
    let edges: Edges<'_> = services
        .map(|part| (part.name, dependencies(part).filter(|(depends, _)| known.contains(depends)).collect()))
        .collect();
    for cycle in cycles(&edges) {
        // Of one that waits for itself alone that was told with its document.
        let [first, second, ..] = cycle.as_slice() else { continue };
        let Some(part) = draft.services.get(first) else { continue };
        let Some((_, mark)) = edges[first].iter().find(|(to, _)| to == second) else { continue };
        let message = format!("services wait for each other: {} -> {first}", cycle.join(" -> "));
        let problem = Problem::new(mark.position, mark.path.clone(), message).with_help("remove one of these depends");
        findings.refuse(deployment, part.file, problem);
    }
}

/// Finds dependencies on cron services: the end of one run says nothing of the next one, and the first may be months away.
fn check_schedules(deployment: &str, draft: &Draft<'_>, findings: &mut Findings) {
    let is_cron = |part: &Part<'_>| part.service.is_some_and(|service| service.spec.rtype() == RType::Cron);
    let crons: BTreeSet<&str> = draft.services.values().filter(|part| is_cron(part)).map(|part| part.name).collect();
    for part in draft.parts() {
        for (depends, mark) in dependencies(part).filter(|(depends, _)| crons.contains(depends)) {
            let message = format!("{depends} is a cron service, which runs by its schedule: nothing can wait for it");
            let help = "name a service or a job of the deployment";
            let problem = Problem::new(mark.position, mark.path.clone(), message).with_help(help);
            findings.refuse(deployment, part.file, problem);
        }
    }
}

/// What a service depends on, as far as that is certain.
fn dependencies<'a>(part: &Part<'a>) -> impl Iterator<Item = (&'a str, &'a Mark)> {
    let of = part.service.into_iter().flat_map(|service| service.spec.depends.iter().zip(&service.marks.depends));
    of.filter_map(|(depends, mark)| Some((depends.service.as_str(), mark.as_ref()?)))
}

fn unknown(deployment: &str, (service, depends): (&str, &str), mark: &Mark, known: &BTreeSet<&str>) -> Problem {
    let known: Vec<&str> = known.iter().copied().collect();
    let help = match suggest::nearest(depends, &known).filter(|best| *best != service) {
        Some(best) => Some(format!("did you mean `{best}`?")),
        None if known.is_empty() => None,
        None => Some(format!("services of {deployment} are {}", known.join(", "))),
    };
    let message = format!("the deployment {deployment} has no service {depends:?}");
    Problem { help, ..Problem::new(mark.position, mark.path.clone(), message) }
}

/// Every cycle of the graph once, beginning with its smallest name.
fn cycles<'a>(edges: &Edges<'a>) -> Vec<Vec<&'a str>> {
    let mut found = BTreeSet::new();
    let mut done = BTreeSet::new();
    for start in edges.keys() {
        // The way from `start` to where the search is, with the next edge to take at each place.
        let mut way: Vec<(&str, usize)> = vec![(start, 0)];
        while let Some((at, next)) = way.last_mut() {
            let at = *at;
            match edges.get(at).and_then(|out| out.get(*next)) {
                Some((to, _)) => {
                    *next += 1;
                    if let Some(begin) = way.iter().position(|(name, _)| name == to) {
                        found.insert(smallest_first(way[begin..].iter().map(|(name, _)| *name).collect()));
                    } else if !done.contains(to) {
                        way.push((to, 0));
                    }
                }
                None => {
                    done.insert(at);
                    way.pop();
                }
            }
        }
    }
    found.into_iter().collect()
}

fn smallest_first(mut cycle: Vec<&str>) -> Vec<&str> {
    let smallest = cycle.iter().enumerate().min_by_key(|(_, name)| **name).map_or(0, |(index, _)| index);
    cycle.rotate_left(smallest);
    cycle
}
