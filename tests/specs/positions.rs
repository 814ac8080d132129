//! Where problems are said to be, and what is kept of what was written.

use std::sync::Arc;

use evenkeel::spec::{DocumentKind, Scalar, ServiceSpec, parse, parse_bytes, unsupported};

fn first(text: &str) -> String {
    parse(text).problems.first().map(ToString::to_string).unwrap_or_default()
}

fn service(text: &str) -> Arc<ServiceSpec> {
    let file = parse(text);
    assert_eq!(file.problems, []);
    match &file.documents[0].kind {
        DocumentKind::Service { service, .. } => Arc::clone(&service.spec),
        DocumentKind::Deployment(deployment) => Arc::clone(&deployment.services.values().next().unwrap().spec),
    }
}

#[test]
fn numbers_in_env_keep_the_text_they_were_written_as() {
    let spec = service(
        "service: a\ndeployment: d\nimage: { name: x }\n\
         env: { A: 1.10, B: 080, C: 0x1F, D: yes, E: true, F: 1e3, G: '', H: , I: 12345678901234567890123 }\n\
         labels: { version: 2.0 }\ncommand: { args: [1.50, 007] }",
    );
    let values: Vec<&str> = spec.env.values().map(|Scalar(text)| text.as_str()).collect();
    assert_eq!(values, ["1.10", "080", "0x1F", "yes", "true", "1e3", "", "", "12345678901234567890123"]);
    assert_eq!(spec.labels["version"], Scalar("2.0".into()));
    assert_eq!(spec.command.as_ref().unwrap().args.as_ref().unwrap(), &["1.50", "007"]);
}

#[test]
fn bytes_that_are_no_text_have_a_position() {
    let problem = |bytes: &[u8]| parse_bytes(bytes).problems[0].to_string();
    assert!(problem(b"version: v1\nname: \xff").starts_with("2:7: the file is not UTF-8"));
    assert!(problem(b"version: v1\n\0\0\0\0").starts_with("2:1: the control character '\\0'"));
    assert!(problem(b"\xff\xfev\0e\0r\0").starts_with("1:1: the file is not UTF-8"));
}

#[test]
fn columns_count_characters_and_line_ends_of_windows_count_once() {
    let text = "version: v1\r\ndeployment: d\r\nservices: { w: { image: { name: x }, env: { ä: 1, ö: 2, ä: 3 } } }\r\n";
    assert!(first(text).starts_with("3:57: services.w.env[\"ä\"]: the key `ä` is written twice"), "{}", first(text));
}

#[test]
fn a_problem_behind_an_alias_is_where_the_value_was_written() {
    let text = "version: v1\ndeployment: d\nx-h: &h { retries: 0, check: { type: tcp, port: 1 } }\n\
                services: { a: { image: { name: x }, health: *h } }";
    assert!(first(text).starts_with("3:20: services.a.health.retries: 0 is too small"), "{}", first(text));
}

#[test]
fn an_error_in_one_place_does_not_shift_the_others() {
    let text = "version: v1\ndeployment: d\nservices:\n  a:\n    image: { name: x }\n    endpoints:\n      - One\n      \
                - { name: 1.5.5 }\n      - { name: Two, protocol: http, port: 2 }\n";
    let problems: Vec<String> = parse(text).problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "7:9: services.a.endpoints[0]: expected a map, found text \"One\"; write `{ name: http, protocol: http, port: 80 }`",
            "8:9: services.a.endpoints[1]: `protocol` is missing; write one of http, https, tcp, udp, websocket",
            "8:9: services.a.endpoints[1]: `port` is missing; write `port: NUMBER`",
            "8:17: services.a.endpoints[1].name: \"1.5.5\" is not a name; write 1-5-5",
            "9:17: services.a.endpoints[2].name: \"Two\" is not a name; write two",
        ]
    );
}

#[test]
fn what_nothing_honours_yet_is_listed() {
    let honoured = service(
        "service: a\ndeployment: d\nimage: { name: x, pull_policy: newer }\nscale: { mode: manual }\n\
         rollout: { history: 3, on_failure: pause, progress_deadline: 1m }\n\
         health: { check: { type: tcp, port: 1 } }\nresources: { gpu: { count: 1 } }",
    );
    assert_eq!(unsupported(&honoured), []);
    let spec = service(
        "service: a\ndeployment: d\nrtype: job\nimage: { name: x }\nenv: { A: '$S:a' }\n\
         restart_policy: { kind: always }\nscale: { mode: fixed, replicas: 2 }\nstorage: [{ type: s3, bucket: b, target: /b }]\n\
         lifecycle: { on_idle: suspend }",
    );
    let paths: Vec<String> = unsupported(&spec).into_iter().map(|field| field.path).collect();
    let of_job = ["restart_policy.kind", "scale"];
    let others = ["lifecycle.on_idle", "storage[0]", "env.A"];
    assert_eq!(paths, [&of_job[..], &others].concat());
    let job = service("service: a\ndeployment: d\nrtype: job\nimage: { name: x }\njob: { completions: 2 }");
    assert_eq!(unsupported(&job), []);
}
