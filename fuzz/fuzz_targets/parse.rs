//! Any bytes give documents or problems with positions: no panic, no hang, no stack overflow.

#![no_main]

use evenkeel::spec::{merge, parse_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let file = parse_bytes(bytes);
    assert!(file.problems.iter().all(|problem| problem.position.line >= 1 && problem.position.column >= 1));
    merge(&[("fuzz.yaml".into(), file)]);
});
