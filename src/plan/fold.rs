//! Forecasts as people read them: instances for which the same is done in one line, stages that repeat told once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::render::{Clock, long, phrase};
use super::{Action, Cause, End, Forecast, Lane, Stage, Wait};
use crate::spec::{HumanDuration, Revision};
use crate::state::InstanceId;

/// Most lines of a forecast: what somebody still scrolls through.
const LINES: usize = 200;

/// Longest sequence of stages that is recognised when it repeats: two services that make and retire in turn.
const CYCLE: usize = 4;

/// Repetitions from which on a sequence is told once; three replicas that are replaced one at a time are told one by
/// one.
const REPEATS: usize = 4;

/// Most ranges of slots that are named in a line; nobody reads more of them.
const RANGES: usize = 10;

impl Forecast {
    /// What is expected, in lines; what has one number happens side by side.
    pub fn lines(&self) -> Vec<String> {
        let blocks = blocks(&self.stages);
        let shapes: Vec<Shape<'_>> = blocks.iter().map(|block| block.iter().map(Line::shape).collect()).collect();
        let mut lines = Vec::new();
        let mut next = 0;
        while next < blocks.len() {
            let (cycle, times) = repetition(&shapes[next..]);
            let (again, end) = (next + cycle, next + cycle * times);
            for (block, place) in blocks[next..again].iter().zip(next + 1..) {
                number(&mut lines, &place.to_string(), block.iter().map(Line::text));
            }
            if again < end {
                let text = format!("the same for {}, in {} turns", names(&blocks[again..end]), times - 1);
                number(&mut lines, &format!("{}-{end}", again + 1), [text]);
            }
            next = end;
        }
        if self.end == End::Beyond {
            lines.push("... and so on; this is as far as a forecast goes".to_owned());
        }
        shortened(lines)
    }

    /// What stays as it is afterwards, until somebody does something or something happens, in lines.
    pub fn rest(&self) -> Vec<String> {
        match &self.end {
            End::Rest { waits } => shortened(wait_lines(waits, Clock::Wall).iter().map(Line::text).collect()),
            End::Beyond => Vec::new(),
        }
    }
}

/// Something that is done or waited for, alike for all of these instances.
struct Line<'a> {
    what: What<'a>,
    ids: Vec<&'a InstanceId>,
}

/// What is done or waited for.
#[derive(Clone, Copy)]
enum What<'a> {
    Lane(&'a Lane),
    Wait(&'a Wait, Clock),
}

/// What a line says but for the slots, and of how many instances; equal for two that are alike.
type Shape<'a> = Vec<(Kind<'a>, usize)>;

/// What a line says but for the instances.
type Kind<'a> = (String, Option<&'a Revision>);

impl<'a> What<'a> {
    fn instance(self) -> Option<&'a InstanceId> {
        match self {
            Self::Lane(lane) => lane.steps.first().and_then(|step| step.action.instance()),
            Self::Wait(wait, _) => wait.instance(),
        }
    }

    fn text(self, who: &str) -> String {
        match self {
            Self::Lane(lane) => lane_text(lane, who),
            Self::Wait(wait, clock) => phrase(wait, who, clock),
        }
    }

    fn kind(self) -> Kind<'a> {
        let id = self.instance();
        (self.text(&id.map(service).unwrap_or_default()), id.map(|id| &id.revision))
    }
}

impl<'a> Line<'a> {
    fn shape(&self) -> (Kind<'a>, usize) {
        (self.what.kind(), self.ids.len())
    }

    fn text(&self) -> String {
        self.what.text(&who(&self.ids))
    }
}

/// The lines of stages; what is waited for belongs to what was done before.
fn blocks(stages: &[Stage]) -> Vec<Vec<Line<'_>>> {
    let mut blocks: Vec<Vec<Line<'_>>> = Vec::new();
    for stage in stages {
        match stage {
            Stage::Act { lanes, .. } => blocks.push(grouped(lanes.iter().map(What::Lane))),
            Stage::Wait { at, waits } => {
                let waits = wait_lines(waits, Clock::Since(*at));
                match blocks.last_mut() {
                    Some(block) => block.extend(waits),
                    None => blocks.push(waits),
                }
            }
        }
    }
    blocks
}

fn wait_lines(waits: &[Wait], clock: Clock) -> Vec<Line<'_>> {
    grouped(waits.iter().map(|wait| What::Wait(wait, clock)))
}

/// One line for all that are alike, in the order of their first.
fn grouped<'a>(all: impl Iterator<Item = What<'a>>) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    let mut places = HashMap::new();
    for what in all {
        let place = *places.entry(what.kind()).or_insert(lines.len());
        if place == lines.len() {
            lines.push(Line { what, ids: Vec::new() });
        }
        lines[place].ids.extend(what.instance());
    }
    lines
}

/// Length of the sequence that the shapes begin with, and how often it comes in a row; 1 and 1 where it is not worth
/// telling.
fn repetition(shapes: &[Shape<'_>]) -> (usize, usize) {
    let mut best = (1, 1);
    for cycle in 1..=CYCLE.min(shapes.len() / REPEATS) {
        let (first, rest) = shapes.split_at(cycle);
        let times = 1 + rest.chunks_exact(cycle).take_while(|next| *next == first).count();
        if times >= REPEATS && cycle * times > best.0 * best.1 {
            best = (cycle, times);
        }
    }
    best
}

/// Adds lines of which the first has a number and the others stand below it.
fn number(lines: &mut Vec<String>, label: &str, texts: impl IntoIterator<Item = String>) {
    let label = format!("{label}. ");
    for (place, text) in texts.into_iter().enumerate() {
        let margin = if place == 0 { label.as_str() } else { "" };
        lines.push(format!("{margin:width$}{text}", width = label.len()));
    }
}

fn shortened(mut lines: Vec<String>) -> Vec<String> {
    let more = lines.len().saturating_sub(LINES);
    if more > 0 {
        lines.truncate(LINES);
        lines.push(format!("... and {more} more lines"));
    }
    lines
}

/// A lane in one line: what is done with the instance, where, and why.
fn lane_text(lane: &Lane, who: &str) -> String {
    let Some(first) = lane.steps.first() else { return String::new() };
    if first.action.instance().is_none() {
        return first.to_string();
    }
    let actions = || lane.steps.iter().map(|step| &step.action);
    let verbs: Vec<&str> = actions().filter_map(verb).collect();
    let details: String = actions().filter_map(detail).collect();
    let init: Vec<&str> = actions().filter_map(init_step).collect();
    let init = match init.as_slice() {
        [] => String::new(),
        [one] => format!(" after init step {one}"),
        more => format!(" after init steps {}", more.join(", ")),
    };
    format!("{} {who} on {}{details}{init}: {}", verbs.join(" and "), first.action.runtime(), why(&first.cause))
}

const fn verb(action: &Action) -> Option<&'static str> {
    match action {
        Action::EnsureImage { .. } | Action::Init { .. } => None,
        Action::Create { .. } => Some("create"),
        Action::StartCreated { .. } | Action::Start { .. } => Some("start"),
        Action::Resume { .. } => Some("resume"),
        Action::Suspend { .. } => Some("suspend"),
        Action::Stop { .. } => Some("stop"),
        Action::Remove { .. } => Some("remove"),
        Action::Teardown { .. } => Some("tear down"),
    }
}

fn detail(action: &Action) -> Option<String> {
    match action {
        Action::EnsureImage { image, .. } => Some(format!(" from image {}", image.name)),
        Action::Stop { stop, .. } => Some(format!(" ({}, {} grace)", stop.signal, HumanDuration(stop.grace))),
        _ => None,
    }
}

fn init_step(action: &Action) -> Option<&str> {
    match action {
        Action::Init { step, .. } => Some(&step.id),
        _ => None,
    }
}

/// The cause without the times that tell two instances of one course apart.
fn why(cause: &Cause) -> String {
    match cause {
        Cause::Expired { .. } => "reached its maximum age".to_owned(),
        Cause::Idle { .. } => "idle".to_owned(),
        Cause::Orphan { .. } => "orphan, declared nowhere".to_owned(),
        Cause::Cold { .. } => "pool.warm_ttl has passed".to_owned(),
        cause => cause.to_string(),
    }
}

/// `DEPLOYMENT/SERVICE`.
fn service(id: &InstanceId) -> String {
    id.service_name().to_string()
}

/// The instances of one service and template, as a phrase.
fn who(ids: &[&InstanceId]) -> String {
    let Some((first, others)) = ids.split_first() else { return String::new() };
    if others.is_empty() {
        return long(first);
    }
    let slots = ranges(&ids.iter().map(|id| id.slot).collect());
    let same = others.iter().all(|id| id.attempt == first.attempt);
    let attempt = if same { format!(", attempt {}", first.attempt) } else { String::new() };
    format!("{}/{slots} ({} instances, {}{attempt})", service(first), ids.len(), first.revision.short())
}

/// The instances of several lines, by service.
fn names(blocks: &[Vec<Line<'_>>]) -> String {
    let mut slots: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for id in blocks.iter().flatten().flat_map(|line| &line.ids) {
        slots.entry(service(id)).or_default().insert(id.slot);
    }
    let named: Vec<String> = slots.iter().map(|(service, slots)| format!("{service}/{}", ranges(slots))).collect();
    named.join(", ")
}

/// Numbers as `0-4,7,9-12`.
fn ranges(numbers: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == *number => *end = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let text = |(start, end): &(u32, u32)| match start == end {
        true => start.to_string(),
        false => format!("{start}-{end}"),
    };
    let mut named: Vec<String> = ranges.iter().take(RANGES).map(text).collect();
    if ranges.len() > RANGES {
        named.push("...".to_owned());
    }
    named.join(",")
}
