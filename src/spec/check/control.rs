//! How many, when, and what happens before and after: fields that the controller acts on.

use std::collections::HashSet;
use std::str::FromStr as _;
use std::time::Duration;

use super::super::problem::{Step, steps};
use super::super::suggest::nearest;
use super::super::{
    Check, CountOrPercent, EndpointProtocol, Health, HumanDuration, InitStep, Pool, RType, RefillRate, Rollout, Scale,
    ServiceSpec, Storage, UNCHECKED_RUN,
};
use super::Report;

pub(super) fn check(report: &mut Report<'_>, name: &str, spec: &ServiceSpec) {
    kind(report, spec);
    schedule(report, spec);
    scale(report, spec);
    if let Some(check) = &spec.health {
        health(&mut report.within(&steps!["health"]), check);
        first_endpoint(&mut report.within(&steps!["health", "check"]), &check.check, spec);
    }
    depends(report, name, spec);
    for (index, step) in spec.init.iter().flat_map(|init| &init.steps).enumerate() {
        init_step(&mut report.within(&steps!["init", "steps", index]), step);
    }
    init_ids(report, spec);
    times(report, spec);
    if let Some(settings) = &spec.rollout {
        rollout(report, settings);
    }
    if spec.rollout.is_some() || (spec.rtype() == RType::Service && spec.pool.is_none()) {
        deadlines(report, &spec.rollout(), spec.health.as_ref());
    }
    if let Some(settings) = &spec.pool {
        pool(report, settings);
    }
}

/// Fields that need another kind of service.
fn kind(report: &mut Report<'_>, spec: &ServiceSpec) {
    let rtype = spec.rtype();
    if rtype == RType::Service && spec.job.is_some() {
        report.problem_help(
            &steps!["job"],
            "only a job or a cron job has `job`",
            "write `rtype: job` or `rtype: cron`",
        );
    }
    if rtype != RType::Service {
        limits_of_a_job(report, spec);
    }
    if spec.pool.is_some() && rtype != RType::Service {
        report.problem_help(&steps!["pool"], "a job can't be a pool", "leave out `pool` or `rtype`");
    }
    if spec.pool.is_some() && spec.scale.is_some() {
        let help = "leave out `scale`; `pool.min_warm` and `pool.max_total` say how many";
        report.problem_help(&steps!["scale"], "a pool has no fixed replicas", help);
    }
    let is_workspace = |mount: &Storage| matches!(mount, Storage::Workspace { .. });
    if let Some(index) = spec.storage.iter().position(is_workspace).filter(|_| spec.pool.is_some()) {
        let why = "a pool has no workspaces: what one session leaves there, the next one would find";
        let help = "write an anonymous volume, which goes with each member";
        report.problem_help(&steps!["storage", index, "type"], why, help);
    }
    if spec.wasm.is_some() && !spec.service_type.is_some_and(super::super::ServiceType::is_wasm) {
        let help = "write `service_type: wasm_http` or another WebAssembly type";
        report.problem_help(&steps!["wasm"], "only a WebAssembly service has `wasm`", help);
    }
    if let Some(wasm) = &spec.wasm {
        let (min, max) = (wasm.min_instances.unwrap_or(0), wasm.max_instances.unwrap_or(10));
        ordered(report, &steps!["wasm", "min_instances"], ("min_instances", min), ("max_instances", max));
    }
}

/// Limits on the life of an instance: one that a job's instance reached would count as its failure, and be retried.
fn limits_of_a_job(report: &mut Report<'_>, spec: &ServiceSpec) {
    let Some(lifecycle) = &spec.lifecycle else { return };
    let help = "write `job.active_deadline`, which ends a run that takes longer";
    for (key, is_written) in
        [("max_idle", lifecycle.max_idle.is_some()), ("max_lifetime", lifecycle.max_lifetime.is_some())]
    {
        if is_written {
            let why = format!("a job is not limited by `{key}`: it runs until it is done");
            report.problem_help(&steps!["lifecycle", key], why, help);
        }
    }
}

fn schedule(report: &mut Report<'_>, spec: &ServiceSpec) {
    let cron = spec.rtype() == RType::Cron;
    match &spec.schedule {
        None if cron => {
            report.problem_help(
                &steps!["schedule"],
                "`schedule` is missing",
                "write `schedule: \"0 3 * * *\"` or `@daily`",
            );
        }
        Some(_) if !cron => {
            report.problem_help(&steps!["schedule"], "only a cron job has a schedule", "write `rtype: cron`");
        }
        Some(text) => match croner::Cron::from_str(text) {
            Ok(cron) => {
                if cron.find_next_occurrence(&chrono::DateTime::UNIX_EPOCH, true).is_err() {
                    let message = format!("{text:?} names a time that never comes");
                    report.problem_help(
                        &steps!["schedule"],
                        message,
                        "write a day that its month has, and a year to come",
                    );
                }
            }
            Err(error) => {
                let error = error.to_string();
                let message = format!("{text:?} is not a cron expression: {}", error.trim_end_matches('.'));
                let help = match ends_in_a_year(text) {
                    true => {
                        "six fields are read with seconds first and without a year; a year needs all seven: second minute \
                         hour day month weekday year"
                    }
                    false => {
                        "write five fields (minute hour day month weekday), six with seconds first, seven with the year \
                         last, or @hourly, @daily, @weekly, @monthly, @yearly"
                    }
                };
                report.problem_help(&steps!["schedule"], message, help);
            }
        },
        None => {}
    }
    if let Some(zone) = &spec.time_zone {
        if !cron {
            report.problem_help(&steps!["time_zone"], "only a cron job has a time zone", "write `rtype: cron`");
        }
        if chrono_tz::Tz::from_str(zone).is_err() {
            let names: Vec<&str> = chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name()).collect();
            let help = match nearest(zone, &names) {
                Some(best) => format!("did you mean {best}?"),
                None => "write an IANA name such as Europe/Berlin or UTC".to_owned(),
            };
            report.problem_help(&steps!["time_zone"], format!("{zone:?} is not a time zone"), help);
        }
    }
}

fn scale(report: &mut Report<'_>, spec: &ServiceSpec) {
    let Some(Scale::Adaptive { min, max, cooldown, .. }) = &spec.scale else { return };
    ordered(report, &steps!["scale", "min"], ("min", *min), ("max", *max));
    if *max == 0 {
        report.problem_help(&steps!["scale", "max"], "max is 0: nothing could ever run", "write at least 1");
    }
    positive(report, "scale", "cooldown", *cooldown);
}

/// Says so when a lower bound is above the upper one.
fn ordered(report: &mut Report<'_>, path: &[super::Step], low: (&str, u32), high: (&str, u32)) {
    if low.1 > high.1 {
        let message = format!("{} ({}) is larger than {} ({})", low.0, low.1, high.0, high.1);
        report.problem_help(path, message, format!("write {} of at most {}", low.0, high.0));
    }
}

/// Checks a health block; paths are seen from it.
pub(super) fn health(report: &mut Report<'_>, health: &Health) {
    for (key, value) in [("interval", health.interval), ("timeout", health.timeout)] {
        if value.is_some_and(|value| value.get().is_zero()) {
            report.problem_help(&steps![key], format!("`{key}` must be more than 0"), "write a time such as 10s");
        }
    }
    match &health.check {
        Check::Tcp { .. } => {}
        Check::Http { url, .. } => {
            if let Some((message, help)) = bad_url(url) {
                report.problem_help(&steps!["check", "url"], message, help);
            }
        }
        Check::Command { command } if command.trim().is_empty() => {
            report.problem(&steps!["check", "command"], "the command must not be empty");
        }
        Check::Command { .. } => {}
    }
}

/// Says so when a check means the first endpoint and there is none that takes connections; paths are seen from the check.
fn first_endpoint(report: &mut Report<'_>, check: &Check, spec: &ServiceSpec) {
    let key = match check {
        Check::Tcp { port: 0 } => "port",
        Check::Http { url, .. } if url.contains(":0/") || url.ends_with(":0") => "url",
        Check::Tcp { .. } | Check::Http { .. } | Check::Command { .. } => return,
    };
    let why = match spec.endpoints.first() {
        None => "port 0 is the first endpoint, and there is none",
        Some(first) if first.protocol == EndpointProtocol::Udp => "port 0 is the first endpoint, and it takes no TCP",
        Some(_) => return,
    };
    report.problem_help(&steps![key], why, "write the port that the program listens on, or an endpoint");
}

/// What is wrong with the address of a GET.
fn bad_url(url: &str) -> Option<(String, String)> {
    const HELP: &str = "write http://localhost:8080/health";
    let bad = |what: &str| Some((format!("{url:?} {what}"), HELP.to_owned()));
    let Some(rest) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) else {
        return bad("does not begin with http:// or https://");
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    let address = authority.rsplit('@').next().unwrap_or("");
    let (host, port) = match address.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.strip_prefix(':').unwrap_or("-"))),
        None => match address.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    if host.is_empty() {
        return bad("names no host");
    }
    // Port 0 stands for the first endpoint, as in a tcp check.
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return bad("has a port that is not a number up to 65535");
    }
    match url.contains(|c: char| c.is_whitespace() || c.is_control()) {
        true => bad("holds a space"),
        false => None,
    }
}

fn depends(report: &mut Report<'_>, name: &str, spec: &ServiceSpec) {
    let mut seen = HashSet::new();
    for (index, depends) in spec.depends.iter().enumerate() {
        let path = steps!["depends", index, "service"];
        if depends.service == name {
            report.problem_help(&path, "a service can't depend on itself", "name another service of the deployment");
        } else if !seen.insert(&depends.service) {
            let message = format!("{:?} is named twice", depends.service);
            report.problem_help(&path, message, "keep one of them");
        }
        if depends.timeout.is_some_and(|timeout| timeout.get().is_zero()) {
            let path = steps!["depends", index, "timeout"];
            report.problem_help(&path, "`timeout` must be more than 0", "write a time such as 5m");
        }
    }
}

fn init_ids(report: &mut Report<'_>, spec: &ServiceSpec) {
    let mut seen = HashSet::new();
    for (index, step) in spec.init.iter().flat_map(|init| &init.steps).enumerate() {
        let path = steps!["init", "steps", index, "id"];
        if step.id.trim().is_empty() {
            report.problem(&path, "a step needs an id");
        } else if report.is_whole(&path) && !seen.insert(&step.id) {
            report.problem_help(&path, format!("the id {:?} is used twice", step.id), "give each step its own id");
        }
    }
}

/// What an input of an init step must be.
#[derive(Clone, Copy)]
enum Input {
    Text,
    Port,
    Url,
    Status,
    Duration,
}

/// Inputs of each action: name, kind, and whether it is required.
fn inputs_of(action: &str) -> Option<&'static [(&'static str, Input, bool)]> {
    match action {
        "init.wait_tcp" => {
            Some(&[("host", Input::Text, true), ("port", Input::Port, true), ("interval", Input::Duration, false)])
        }
        "init.wait_http" => Some(&[
            ("url", Input::Url, true),
            ("expect_status", Input::Status, false),
            ("interval", Input::Duration, false),
        ]),
        "init.run" => Some(&[("command", Input::Text, true), ("workdir", Input::Text, false)]),
        _ => None,
    }
}

fn init_step(report: &mut Report<'_>, step: &InitStep) {
    if step.timeout.is_some_and(|timeout| timeout.get().is_zero()) {
        report.problem_help(&steps!["timeout"], "`timeout` must be more than 0", "write a time such as 5m");
    }
    // An action that does not exist was refused with the structure.
    let Some(inputs) = inputs_of(&step.uses) else { return };
    let names: Vec<&str> = inputs.iter().map(|(name, _, _)| *name).collect();
    for (name, value) in &step.with {
        let path = steps!["with", name];
        match inputs.iter().find(|(known, _, _)| known == name) {
            Some((_, input, _)) => {
                if let Some((message, help)) = bad_input(*input, value) {
                    report.problem_help(&path, message, help);
                }
            }
            None => {
                let help = match nearest(name, &names) {
                    Some(best) => format!("did you mean `{best}`?"),
                    None => format!("{} takes {}", step.uses, names.join(", ")),
                };
                report.problem_help(&path, format!("{} has no input `{name}`", step.uses), help);
            }
        }
    }
    for (name, _, _) in inputs.iter().filter(|(name, _, required)| *required && !step.with.contains_key(*name)) {
        let message = format!("{} needs the input `{name}`", step.uses);
        report.problem_help(&steps!["with", *name], message, format!("write `with: {{ {name}: ... }}`"));
    }
}

fn bad_input(input: Input, value: &serde_json::Value) -> Option<(String, String)> {
    let text = match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Number(number) => number.to_string(),
        _ => return Some(("this must be text or a number".to_owned(), "write one value".to_owned())),
    };
    let bad = |what: &str, help: &str| Some((format!("{text:?} is not {what}"), help.to_owned()));
    match input {
        Input::Text if text.trim().is_empty() => {
            Some(("this must not be empty".to_owned(), "write a value".to_owned()))
        }
        Input::Text => None,
        Input::Port if !super::is_port(&text) => bad("a port", "write a number from 1 to 65535"),
        Input::Url => bad_url(&text),
        Input::Status if !text.parse::<u16>().is_ok_and(|status| (100..600).contains(&status)) => {
            bad("a status of HTTP", "write a number from 100 to 599")
        }
        Input::Duration if !text.parse::<HumanDuration>().is_ok_and(|time| !time.get().is_zero()) => {
            bad("a length of time", "write a time such as 2s")
        }
        Input::Port | Input::Status | Input::Duration => None,
    }
}

/// Times of which zero makes no sense.
fn times(report: &mut Report<'_>, spec: &ServiceSpec) {
    if let Some(lifecycle) = &spec.lifecycle {
        positive(report, "lifecycle", "max_idle", lifecycle.max_idle);
        positive(report, "lifecycle", "max_lifetime", lifecycle.max_lifetime);
    }
    if let Some(job) = &spec.job {
        positive(report, "job", "active_deadline", job.active_deadline);
    }
    if let Some(session) = &spec.session {
        positive(report, "session", "idle_timeout", session.idle_timeout);
        positive(report, "session", "detach_timeout", session.detach_timeout);
        positive(report, "session", "suspend_timeout", session.suspend_timeout);
    }
}

fn positive(report: &mut Report<'_>, part: &'static str, key: &'static str, value: Option<HumanDuration>) {
    if value.is_some_and(|value| value.get().is_zero()) {
        let message = format!("`{key}` must be more than 0");
        report.problem_help(&steps![part, key], message, "write a time such as 10m, or leave it out");
    }
}

fn rollout(report: &mut Report<'_>, rollout: &Rollout) {
    if let Some(CountOrPercent::Percent(percent)) = rollout.max_unavailable
        && percent > 100
    {
        let message = format!("{percent}% of the replicas can't be unavailable");
        report.problem_help(&steps!["rollout", "max_unavailable"], message, "write at most 100%");
    }
    positive(report, "rollout", "progress_deadline", rollout.progress_deadline);
}

/// Times that no rollout can keep within its deadline, whichever of them are written and whichever hold by default.
fn deadlines(report: &mut Report<'_>, rollout: &Rollout, health: Option<&Health>) {
    let deadline = Time { written: rollout.progress_deadline, holds: rollout.progress_deadline() };
    if deadline.holds.is_zero() {
        return;
    }
    let min_ready = Time { written: rollout.min_ready, holds: rollout.min_ready() };
    if min_ready.holds >= deadline.holds {
        // Kubernetes refuses this too: progressDeadlineSeconds must be greater than minReadySeconds.
        let message = format!("no rollout can be ready for {min_ready} within the deadline ({deadline})");
        too_short(report, (deadline, min_ready), (&steps!["rollout", "min_ready"], "min_ready"), message);
    }
    if health.is_none() && min_ready.holds.is_zero() && deadline.holds <= UNCHECKED_RUN {
        let least = HumanDuration(UNCHECKED_RUN);
        let message = format!(
            "the deadline ({deadline}) is over before a new instance counts: it has to run for {least} where neither \
             `health` nor `min_ready` tells more"
        );
        let help = format!("write more than {least}, or `health` or `min_ready`");
        report.problem_help(&steps!["rollout", "progress_deadline"], message, help);
    }
    let Some(health) = health else { return };
    let grace = Time { written: health.start_grace, holds: health.start_grace() };
    if grace.holds >= deadline.holds {
        let message = format!("the deadline ({deadline}) ends before `health.start_grace` ({grace})");
        too_short(report, (deadline, grace), (&steps!["health", "start_grace"], "start_grace"), message);
    }
}

/// A time as it is written, and as it holds.
#[derive(Clone, Copy)]
struct Time {
    written: Option<HumanDuration>,
    holds: Duration,
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let default = if self.written.is_none() { ", the default" } else { "" };
        write!(f, "{}{default}", HumanDuration(self.holds))
    }
}

/// Says so at the time that is written: the deadline, else the other one, whose path and name these are.
fn too_short(report: &mut Report<'_>, (deadline, other): (Time, Time), (path, key): (&[Step], &str), message: String) {
    let at_deadline = &steps!["rollout", "progress_deadline"];
    match (deadline.written, other.written) {
        (Some(_), Some(_)) => report.problem_help(at_deadline, message, format!("write more than `{key}`")),
        (Some(_), None) => {
            let help = format!("write more than {}, or less as `{key}`", HumanDuration(other.holds));
            report.problem_help(at_deadline, message, help);
        }
        (None, _) => report.problem_help(path, message, "write less, or a longer `rollout.progress_deadline`"),
    }
}

fn pool(report: &mut Report<'_>, pool: &Pool) {
    let (min, max, total) = (pool.min_warm(), pool.max_warm(), pool.max_total());
    ordered(report, &steps!["pool", "min_warm"], ("min_warm", min), ("max_warm", max));
    ordered(report, &steps!["pool", "max_warm"], ("max_warm", max), ("max_total", total));
    positive(report, "pool", "warm_ttl", pool.warm_ttl);
    if let Some(rate) = pool.refill_rate
        && !(RefillRate::LEAST..=RefillRate::MOST).contains(&rate)
    {
        let message =
            format!("`refill_rate` must be from {} to {} members per second", RefillRate::LEAST, RefillRate::MOST);
        report.problem_help(&steps!["pool", "refill_rate"], message, "write a number such as 0.5, or leave it out");
    }
}

/// Whether an expression has six fields and the last one looks like a year.
fn ends_in_a_year(text: &str) -> bool {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let is_year = |field: &&str| field.len() == 4 && field.bytes().all(|byte| byte.is_ascii_digit());
    fields.len() == 6 && fields.last().is_some_and(is_year)
}
